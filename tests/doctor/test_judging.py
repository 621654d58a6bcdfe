"""What no local project can show: versions, projects' references, numbers at their edges."""

import base64
import json
from dataclasses import replace

import pytest

from supabase_resilience.doctor._checks import Limits, check_project
from supabase_resilience.doctor._facts import ApiFacts, DatabaseFacts
from supabase_resilience.doctor._findings import Diagnosis, Finding
from supabase_resilience.doctor._keys import read_key, role_of_token
from supabase_resilience.doctor._queue_checks import check_queue
from supabase_resilience.doctor._subjects import QueueUse, Subjects
from supabase_resilience.doctor._words import identifier, literal, migration_command, relation

DAY = 86_400.0
OURS = "abcdefghijklmnopqrst"
URL = f"https://{OURS}.supabase.co"
INSTALLED = {"supabase": "2.34.1", "realtime": "2.34.1"}
SECRET = read_key("sb_secret_x", URL)


def jwt(**claims):
    parts = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
             for part in ({"alg": "HS256"}, claims))  # fmt: skip
    return ".".join([*parts, "c2lnbmF0dXJl"])


def api(**facts):
    return ApiFacts(
        **({"key": SECRET, "now": 100 * DAY, "skew": 0.0, "rest_version": "13.0"} | facts)
    )


def database(**facts):
    usual = DatabaseFacts(
        version=170_006,
        pgmq="1.5.1",
        skew=0.0,
        has_publication=True,
        unpublished_kinds=(),
        relations={},
        roles={},
        queues={},
        seconds=60.0,
    )
    return replace(usual, **facts)


def wrong(facts, *, catalogue=None, installed=INSTALLED):
    found = Diagnosis.of(check_project(Subjects(), facts, catalogue, Limits(), installed))
    return [*found.problems, *found.warnings]


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "kind", "role"),
    [
        ("sb_secret_x", "secret", "service_role"),
        ("sb_publishable_x", "publishable", "anon"),
        (jwt(role="service_role", ref=OURS), "legacy", "service_role"),
        (jwt(role="anon", ref=OURS), "legacy", "anon"),
        (jwt(role="authenticated", sub="u"), "user", "authenticated"),
        (jwt(), "legacy", "anon"),
        ("a.b.c", "unknown", None),
        ("what", "unknown", None),
        ("", "unknown", None),
    ],
)
def test_a_key_tells_its_kind_and_role(key, kind, role):
    """By its shape, or by its claims."""
    found = read_key(key, URL)

    assert (kind, role) == (found.kind, found.role)


def test_a_key_of_another_project_is_found():
    """Its reference is compared with that of the URL, where both are known."""
    other = jwt(role="service_role", ref="t" * 20)

    found = wrong(api(key=read_key(other, URL)))

    assert [("key", "problem")] == [(each.check, each.severity) for each in found]
    assert OURS in found[0].what
    for url in ("https://db.example.com", "http://127.0.0.1:54321"):
        assert ["warning"] == [each.severity for each in wrong(api(key=read_key(other, url)))]


def test_a_legacy_key_that_will_expire_says_when():
    """Thirty days ahead."""
    key = read_key(jwt(role="service_role", exp=110 * DAY), URL)

    assert "expires in 10 days" in wrong(api(key=key))[0].what
    assert "expires" not in wrong(api(key=key, now=70 * DAY))[0].what
    assert "problem" == wrong(api(key=key, now=110 * DAY))[0].severity


@pytest.mark.parametrize(
    ("token", "role"),
    [
        (None, None),
        (jwt(role="manager"), "manager"),
        (lambda: "later", "authenticated"),
        ("no jwt", "authenticated"),
    ],
)
def test_a_token_tells_its_role(token, role):
    """One that is asked for later is a user's."""
    assert role == role_of_token(token)


# --- versions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("installed", "outdated"),
    [
        ({"supabase": "2.33.9", "realtime": "2.34.0"}, "supabase"),
        ({"supabase": "2.34.0", "realtime": "3.0.0a1"}, "realtime"),
        ({"supabase": "2.34.0"}, "realtime"),
        ({"supabase": "2.100", "realtime": "1.0"}, "realtime"),
    ],
)
def test_an_unsupported_package_is_found(installed, outdated):
    """With the command that installs a supported one."""
    found = wrong(api(), installed=installed)

    assert [("versions", "problem", outdated)] == [(f.check, f.severity, f.subject) for f in found]
    assert f'pip install "{outdated}>=2.34,<3"' == found[0].fix


@pytest.mark.parametrize(
    ("facts", "catalogue", "outdated"),
    [
        ({"rest_version": "11.2.2"}, {}, "PostgREST"),
        ({}, {"version": 140_012}, "PostgreSQL"),
        ({}, {"pgmq": "1.4.3"}, "pgmq"),
    ],
)
def test_an_unsupported_server_is_found(facts, catalogue, outdated):
    """Each by its own number."""
    found = wrong(api(**facts), catalogue=database(**catalogue))

    assert [outdated] == [each.subject for each in found]


@pytest.mark.parametrize("version", ["12.2.3", "14", "14.1 (abc)", "13.0.5"])
def test_supported_servers_are_not(version):
    """Whatever stands behind the number."""
    assert [] == wrong(api(rest_version=version), catalogue=database(pgmq="1.13.0"))


# --- clocks, and what is unseen -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("skew", "severity"), [(4.9, None), (-5.0, "warning"), (29.9, "warning"), (-30.0, "problem")]
)
def test_a_clock_may_differ_a_little(skew, severity):
    """The token's leeway is where it breaks."""
    found = wrong(api(), catalogue=database(skew=skew))

    assert ([severity] if severity else []) == [each.severity for each in found]


def test_a_server_without_a_date_or_a_version_is_unseen():
    """And no problem."""
    facts = api(skew=None, rest_version=None)
    found = Diagnosis.of(check_project(Subjects(), facts, None, Limits(), INSTALLED))

    assert ["the API", "PostgREST"] == [each.subject for each in found.unseen]
    assert 0 == found.exit_code


# --- queues ---------------------------------------------------------------------------------------


def judged(where, catalogue=None, **facts):
    use = QueueUse(name="mails", **facts)
    queues = dict.fromkeys(use.queues, where)
    found = Diagnosis.of(check_queue(use, api(queues=queues), catalogue))
    return [(each.check, each.severity, each.subject) for each in found.findings
            if each.severity != "ok"]  # fmt: skip


def test_queues_that_are_not_installed_are_one_finding():
    """Not one for each queue."""
    assert [("pgmq_public", "problem", "pgmq")] == judged("no_pgmq")


def test_the_catalogue_tells_of_queues_that_the_api_hides():
    """Without it they are unseen; with it they are there, or missing."""
    exposure = ("pgmq_public", "problem", "pgmq_public")
    unseen = [("queue", "unseen", "mails"), ("queue", "unseen", "mails_dead")]
    known = database(queues={"mails": True, "mails_dead": False})

    assert [exposure, *unseen] == judged("not_exposed")
    assert [exposure, ("queue", "problem", "mails_dead")] == judged("not_exposed", known)


def test_a_queue_that_needs_the_migration_says_what_for():
    """Any other works without it."""
    assert [] == judged("there")
    assert [("migration", "problem", "sql queue")] == judged(
        "there", needs_migration="strict_order=True"
    )


# --- words ----------------------------------------------------------------------------------------


def test_names_are_quoted_wherever_they_go():
    """In SQL, and for a shell."""
    assert '"a""; drop table b"' == identifier('a"; drop table b')
    assert '"s"."A b"' == relation("s", "A b")
    assert "'it''s'" == literal("it's")
    command = migration_command("public", "A b; rm -rf", "change_log", ["id", "Kind"])
    assert (
        "python -m supabase_resilience sql listener --table 'public.\"A b; rm -rf\"' "
        "--recovery change-log --key 'id,\"Kind\"'"
    ) == command


def test_findings_come_worst_first_and_once():
    """As two parts may share a table."""
    fine, bad = Finding("a", "ok", "t", "w"), Finding("b", "problem", "t", "w")

    diagnosis = Diagnosis.of([fine, bad, fine])

    assert (bad, fine) == diagnosis.findings
    assert 1 == diagnosis.exit_code
    assert {"exit_code", "findings"} == diagnosis.to_dict().keys()
