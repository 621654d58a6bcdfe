"""What no local project can show: versions, projects' references, numbers at their edges."""

import base64
import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import httpx
import pytest

from supabase_resilience import doctor
from supabase_resilience.doctor import _installed
from supabase_resilience.doctor._api import _Api, _column, _skew, _version
from supabase_resilience.doctor._checks import Limits, check_project
from supabase_resilience.doctor._facts import (
    ApiFacts,
    DatabaseFacts,
    RelationFacts,
    RoleFacts,
    TableAnswer,
)
from supabase_resilience.doctor._findings import Diagnosis, Finding
from supabase_resilience.doctor._keys import read_key, role_of_token
from supabase_resilience.doctor._queue_checks import check_queue
from supabase_resilience.doctor._subjects import QueueUse, Subjects, TableUse
from supabase_resilience.doctor._table_checks import check_table
from supabase_resilience.doctor._words import identifier, literal, migration_command, relation
from supabase_resilience.listener._passes import MIGRATION

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


# --- tables ---------------------------------------------------------------------------------------


ORDERS = ("public", "orders")
TABLE = RelationFacts(
    kind="r",
    identity="d",
    has_primary_key=True,
    is_published=True,
    has_security=False,
    leading=frozenset({"updated_at"}),
    key=("id",),
    writes=0,
    subscribers=0,
)
HORIZON = {"migration": MIGRATION, "recovery": "versioned", "key": ["id"]}


def looked_at(answer=None, catalogue=None, *, facts=None, **use):
    """What is said of a listener to `orders`, but for what is well."""
    listener = TableUse(
        **{"schema": "public", "table": "orders", "by": "listener", "key": ("id",), **use}
    )
    tables = {} if answer is None else {listener: answer}
    found = check_table(listener, api(tables=tables, **(facts or {})), catalogue)
    return [each for each in found if each.severity != "ok"]


def shown(found):
    return [(each.check, each.severity) for each in found]


def catalogue(relation=TABLE, **facts):
    return database(**{"relations": {ORDERS: relation}, "has_publication": True, **facts})


def test_a_table_that_the_api_was_not_asked_for_is_judged_by_the_catalogue():
    """As when the key was refused."""
    assert [] == looked_at(None, catalogue())
    unpublished = catalogue(replace(TABLE, is_published=False))
    assert [("publication", "problem")] == shown(looked_at(None, unpublished))


def test_a_table_that_could_not_be_read_is_unseen():
    """Whatever it was refused with is told, or that nothing was."""
    (found,) = looked_at(TableAnswer("57014", "canceling statement due to statement timeout"))
    assert ("unseen", "could not be read (57014)") == (found.severity, found.what)
    assert "statement timeout" in found.fix
    assert "no text" in looked_at(TableAnswer("HTTP 400"))[0].fix


@pytest.mark.parametrize(
    ("horizon", "severity", "said"),
    [
        ("PGRST202", "problem", "is absent"),
        ("42501", "problem", "the migration answers 42501"),
        ("57014", "unseen", "the migration answers 57014"),
        ({**HORIZON, "migration": MIGRATION - 1}, "problem", f"version {MIGRATION - 1}"),
        ({**HORIZON, "recovery": None}, "problem", "is not followed"),
        ({**HORIZON, "recovery": "change_log"}, "problem", "is followed by change_log, not by"),
        ({**HORIZON, "key": ["id", "kind"]}, "problem", "by the key id, kind, not by id_column id"),
    ],
)
def test_a_migration_that_does_not_serve_a_listener_is_found(horizon, severity, said):
    """Each in its own words, with the command that mends it."""
    (found,) = looked_at(TableAnswer(horizon=horizon), level="versioned")
    assert ("migration", severity) == (found.check, found.severity)
    assert said in found.what
    assert "sql listener --table public.orders" in found.fix
    assert [] == looked_at(TableAnswer(horizon=HORIZON), level="versioned")


def test_a_missing_column_of_a_migration_that_is_there_is_found():
    """Somebody has dropped it; where the migration itself is missing, that says it."""
    answer = TableAnswer(missing=("sync_xid",), horizon=HORIZON)
    (found,) = looked_at(answer, level="versioned", column="sync_xid")
    assert ("column", "has no column sync_xid") == (found.check, found.what)
    assert "sql listener" in found.fix
    answer = replace(answer, horizon="PGRST202")
    assert ["migration"] == [f.check for f in looked_at(answer, level="versioned")]


def test_a_migration_that_could_not_be_looked_at_is_unseen():
    """That is no problem, as it may be there."""
    found = looked_at(TableAnswer(), has_table_cursor=True, lease=True, facts={"leases": "yes"})
    assert [("sql cursors", "unseen")] == [(each.subject, each.severity) for each in found]


def test_a_change_log_without_its_table_is_one_finding():
    """That of the migration: without it there is nothing to publish."""
    found = looked_at(TableAnswer(horizon="PGRST202"), catalogue(), level="change_log")
    assert [("migration", "problem")] == shown(found)


@pytest.mark.parametrize(
    ("event", "key_diff", "expected"),
    [
        ("*", False, [("replica_identity", "warning")]),
        ("DELETE", False, [("replica_identity", "problem")]),
        ("DELETE", True, [("replica_identity", "problem")]),
        ("*", True, []),
        ("INSERT", False, []),
    ],
)
def test_a_filter_that_no_delete_passes_is_found(event, key_diff, expected):
    """Where somebody hears of deletes by Realtime alone."""
    use = {"event": event, "key_diff": key_diff, "filter_columns": ("kind",)}
    found = looked_at(TableAnswer(), catalogue(), **use)
    assert expected == shown(found)
    if found:
        assert key_diff != ("Nothing else finds deletes here" in found[0].why)
    full = catalogue(replace(TABLE, identity="f"))
    assert [] == looked_at(TableAnswer(), full, **use)


def test_a_role_that_may_not_read_is_found():
    """That of the listener's token; of a role that nobody knows nothing is said."""
    blind = RoleFacts(bypasses=False, timeout=0.0, may_read={ORDERS: False})
    known = catalogue(replace(TABLE, has_security=True), roles={"manager": blind})
    (found,) = looked_at(TableAnswer(), known, role="manager")
    assert ("privilege", "may not be read by manager") == (found.check, found.what)
    assert 'to "manager"' in found.fix
    assert [] == looked_at(TableAnswer(), known, role="nobody")
    assert [] == looked_at(TableAnswer(), known, facts={"key": read_key("what", URL)})
    sighted = replace(known, roles={"manager": replace(blind, may_read={})})
    assert ["policy"] == [f.check for f in looked_at(TableAnswer(), sighted, role="manager")]


def test_an_index_has_a_name_of_its_own_however_long_the_table_is_called():
    """PostgreSQL would cut it off, and two tables might want the same name."""
    names = [f"{'é' * 30}{number}" for number in range(2)]
    made = set()
    for name in names:
        use = TableUse(schema="public", table=name, by="listener", key=("id",), column="changed_at")
        relations = {("public", name): replace(TABLE, leading=frozenset())}
        (found,) = [
            each
            for each in check_table(use, api(), database(relations=relations))
            if each.severity != "ok"
        ]
        assert "index" == found.check
        made.add(found.fix.splitlines()[0].split('"')[1])
    assert 2 == len(made)
    assert all(len(name.encode()) <= 63 for name in made)


# --- through the API ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        (None, None),
        ("yesterday", None),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 0.0),
        ("Thu, 01 Jan 1970 00:01:30 GMT", 9.0),
        ("Thu, 01 Jan 1970 00:02:00 GMT", -19.5),
    ],
)
def test_a_date_tells_how_far_ahead_the_clock_is_at_least(date, expected):
    """It was asked at 100 s and answered half a second later."""
    assert expected == _skew(date, 100.0, 100.5)


def test_a_column_is_quoted_where_the_api_needs_it():
    """Or a comma in its name would be two columns."""
    assert ["id", '"Total, net"', '"a\\"b\\\\"', '"größe"'] == [
        _column(name) for name in ("id", "Total, net", 'a"b\\', "größe")
    ]


def test_a_server_tells_its_version_where_nothing_stands_before_it():
    """Supabase's gateway hides it in the header; then that of the description counts."""

    def answer(request):
        return httpx.Response(200, headers={"server": "postgrest/12.2.3"}, json=[])

    with httpx.Client(transport=httpx.MockTransport(answer)) as session:
        server = _Api(session, URL, "sb_secret_x", lambda: 0.0)
        assert "12.2.3" == _version(server)
    assert server.skew is None


def test_a_package_that_is_not_installed_is_not_among_those_that_are(monkeypatch):
    """What is missing is told with the others that do not fit."""

    def version(name):
        if name == "realtime":
            raise PackageNotFoundError(name)
        return "2.34.1"

    monkeypatch.setattr(doctor, "version", version)
    assert {"supabase": "2.34.1"} == _installed()


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
