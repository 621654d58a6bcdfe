"""Misconfigurations, planted by the SQL, key or traffic that makes them: each is found, alone.

Where the fix is SQL, or a command that prints SQL, it is run as it is, as the project's owner: then
the finding is gone. Each case has a table or queue of its own; what is the project's is put back.
"""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import pytest

from supabase_resilience import (
    Recovery,
    Rule,
    TableCursor,
    queue_processor,
    realtime_listener,
    server_side_verification,
)

from .projects import migration


@dataclass(frozen=True)
class Case:
    """What is planted, how it is looked at, what is found, and what is put back afterwards."""

    found: tuple[str, str, str]
    plant: str = ""
    parts: Callable[[Any], list[Any]] = lambda client: []
    options: dict[str, Any] = field(default_factory=dict)
    back: str = ""
    fixed_by: str = "sql"
    says: str = ""
    on: str = "sound"


def listening(table, **options):
    return lambda client: [realtime_listener(client, table, **options)]


def verifying(table, **options):
    rules = [Rule("a", check=bool)]
    return lambda client: [server_side_verification(client, table, rules=rules, **options)]


def working(queue, **options):
    return lambda client: [queue_processor(client, queue, print, **options)]


def with_cursor(client):
    listener = realtime_listener(
        client, "orders", recovery=Recovery.by_column(), cursor=TableCursor(client, "here")
    )
    return [listener]


PUBLISH = "alter publication supabase_realtime add table"
CASES = {
    "table not in the publication": Case(
        ("publication", "problem", "public.Un published"),
        plant='create table "Un published" (id int primary key)',
        options={"tables": ["Un published"]},
    ),
    "publication gone": Case(
        ("publication", "problem", "public.orders"),
        plant="alter publication supabase_realtime rename to parked",
        options={"tables": ["orders"]},
        back="drop publication if exists supabase_realtime;"
        "alter publication parked rename to supabase_realtime",
    ),
    "publication without deletes": Case(
        ("publication", "problem", "supabase_realtime"),
        plant="alter publication supabase_realtime set (publish = 'insert, update')",
        options={"tables": ["orders"]},
        back="alter publication supabase_realtime"
        " set (publish = 'insert, update, delete, truncate')",
    ),
    "change log not in the publication": Case(
        ("publication", "problem", "supabase_resilience.changes"),
        plant="create table logged (id int primary key);"
        + migration("listener", "--table", "logged", "--recovery", "change-log")
        + "alter publication supabase_realtime drop table supabase_resilience.changes",
        parts=listening("logged", recovery=Recovery.change_log()),
    ),
    "no replica identity": Case(
        ("replica_identity", "problem", "public.nameless"),
        plant=f"create table nameless (id int primary key); {PUBLISH} nameless;"
        "alter table nameless replica identity nothing",
        options={"tables": ["nameless"]},
    ),
    "no key to be the replica identity": Case(
        ("replica_identity", "problem", "public.keyless"),
        plant=f"create table keyless (id int); {PUBLISH} keyless",
        options={"tables": ["keyless"]},
    ),
    "filter on deletes, which bear the key only": Case(
        ("replica_identity", "problem", "public.filtered"),
        plant=f"create table filtered (id int primary key, kind text); {PUBLISH} filtered",
        parts=listening("filtered", event="DELETE", filter="kind=eq.a"),
    ),
    "filter on all events, deletes among them": Case(
        ("replica_identity", "warning", "public.sifted"),
        plant=f"create table sifted (id int primary key, kind text); {PUBLISH} sifted",
        parts=listening("sifted", filter="kind=eq.a"),
    ),
    "row level security without a policy": Case(
        ("policy", "problem", "public.hidden"),
        plant=f"create table hidden (id int primary key); {PUBLISH} hidden;"
        "alter table hidden enable row level security;"
        # None of these lets it read: another role's, another verb's, and one that only narrows.
        "create policy mine on hidden for select to authenticated using (true);"
        "create policy made on hidden for insert to anon with check (true);"
        "create policy less on hidden as restrictive for select to anon using (true)",
        parts=listening("hidden"),
        options={"key": "publishable"},
    ),
    "no policy for the role of the listener's token": Case(
        ("policy", "problem", "public.of_others"),
        plant=f"create table of_others (id int primary key); {PUBLISH} of_others;"
        "alter table of_others enable row level security;"
        "create policy theirs on of_others for select to anon using (true)",
        parts=listening("of_others", token=lambda: "a fresh one"),
    ),
    "no right to read": Case(
        ("privilege", "problem", "public.locked"),
        plant=f"create table locked (id int primary key); {PUBLISH} locked;"
        "revoke all on locked from service_role",
        options={"tables": ["locked"]},
    ),
    "pgmq_public not exposed": Case(
        ("pgmq_public", "problem", "pgmq_public"),
        plant="select pgmq.create('shut'); select pgmq.create('shut_dead')",
        options={"queues": ["shut"]},
        fixed_by="",
        on="bare",
    ),
    "no queue of dead letters": Case(
        ("queue", "problem", "jobs_dead"),
        plant="select pgmq.create('jobs')",
        options={"queues": ["jobs"]},
    ),
    "no lane": Case(
        ("queue", "problem", "tasks_high"),
        plant="select supabase_resilience_queue_create('tasks')",
        parts=working("tasks", lanes={10: "_high"}),
    ),
    "no migration for a listener": Case(
        ("migration", "problem", "public.Wanted"),
        plant=f'create table "Wanted" (a int, b int, primary key (a, b)); {PUBLISH} "Wanted"',
        parts=listening("Wanted", id_column=("a", "b"), recovery=Recovery.versioned()),
        fixed_by="command",
        on="bare",
    ),
    "no migration for a change log": Case(
        ("migration", "problem", "public.history"),
        plant="create table history (id int primary key)",
        parts=listening("history", recovery=Recovery.change_log()),
        fixed_by="command",
    ),
    "no migration for cursors": Case(
        ("migration", "problem", "sql cursors"),
        parts=with_cursor,
        fixed_by="command",
        on="bare",
    ),
    "no migration for leases": Case(
        ("migration", "problem", "sql verification"),
        parts=verifying("orders", lease="one"),
        fixed_by="command",
        on="bare",
    ),
    "an old migration of listeners": Case(
        ("migration", "problem", "public.items"),
        plant="create or replace function supabase_resilience_horizon(p_schema text, p_table text)"
        """ returns jsonb language sql stable as $$ select '{"migration": 0,"""
        """ "recovery": "versioned", "key": ["id"]}'::jsonb $$""",
        parts=listening("items", recovery=Recovery.versioned()),
        fixed_by="command",
    ),
    "an old migration of queues": Case(
        ("migration", "problem", "sql queue"),
        plant="create or replace function supabase_resilience_queue_check(queues text[])"
        """ returns jsonb language sql stable as $$ select '{"version": 0, "queues":"""
        """ {"mails": {"exists": true}, "mails_dead": {"exists": true}}}'::jsonb $$""",
        options={"queues": ["mails"]},
        fixed_by="command",
    ),
    "triggers switched off": Case(
        ("migration", "problem", "public.muted"),
        plant="create table muted (id int primary key);"
        + migration("listener", "--table", "muted")
        + "alter table muted disable trigger user",
        says="triggers are missing or disabled",
        parts=listening("muted", recovery=Recovery.versioned()),
        fixed_by="command",
    ),
    "followed by another key": Case(
        ("migration", "problem", "public.rekeyed"),
        plant="create table rekeyed (id int primary key, code int not null unique);"
        + migration("listener", "--table", "rekeyed"),
        parts=listening("rekeyed", id_column="code", recovery=Recovery.versioned()),
        fixed_by="",
    ),
    "no index on the cursor column": Case(
        ("index", "problem", "public.Slow"),
        plant='create table "Slow" (id int primary key, "changedAt" timestamptz);'
        # Neither helps: one knows not all rows, one begins with something else.
        'create index on "Slow" ("changedAt") where id > 0;'
        'create index on "Slow" (id, "changedAt");'
        f'{PUBLISH} "Slow"',
        parts=listening("Slow", recovery=Recovery.by_column("changedAt")),
    ),
    "no index on what the migration follows": Case(
        ("index", "problem", "public.crawling"),
        plant="create table crawling (id int primary key);"
        + migration("listener", "--table", "crawling")
        + "drop index crawling_sync_xid_id_idx",
        options={"tables": ["crawling"], "cursor_column": "sync_ver"},
    ),
    "no index on what a verification reads by": Case(
        ("index", "problem", "public.checked"),
        plant="create table checked (id int primary key, updated_at timestamptz)",
        parts=verifying("checked", changed_since="updated_at"),
    ),
    "answers cut off below the batch": Case(
        ("row_cap", "warning", "public.many"),
        plant="create table many as select * from generate_series(1, 61) id",
        parts=verifying("many", batch_size=61),
        fixed_by="",
    ),
    "a statement timeout that is too short": Case(
        ("statement_timeout", "problem", "service_role"),
        plant="alter role service_role set statement_timeout = '200ms'",
        back="alter role service_role reset statement_timeout",
    ),
    "a statement timeout in milliseconds": Case(
        ("statement_timeout", "problem", "service_role"),
        plant="alter role service_role set statement_timeout = 900",
        back="alter role service_role reset statement_timeout",
    ),
    "no statement timeout": Case(
        ("statement_timeout", "problem", "service_role"),
        plant="alter role authenticator reset statement_timeout",
        back="alter role authenticator set statement_timeout = '8s';"
        "alter role service_role reset statement_timeout",
    ),
    "a statement timeout that outlasts the API": Case(
        ("statement_timeout", "warning", "service_role"),
        plant="alter role service_role set statement_timeout = '2min'",
        back="alter role service_role reset statement_timeout",
    ),
    "a publishable key for a queue": Case(
        ("key", "problem", "SUPABASE_KEY"),
        parts=working("mails"),
        options={"key": "publishable"},
        fixed_by="",
    ),
    "a publishable key for a verification": Case(
        ("key", "warning", "SUPABASE_KEY"),
        parts=verifying("orders"),
        options={"key": "publishable"},
        fixed_by="",
    ),
    "a publishable key for tombstones": Case(
        ("key", "problem", "SUPABASE_KEY"),
        parts=listening("items", recovery=Recovery.versioned()),
        options={"key": "publishable"},
        fixed_by="",
    ),
    "a user's token for tombstones": Case(
        ("key", "problem", "public.items"),
        parts=listening("items", recovery=Recovery.versioned(), token=lambda: "a fresh one"),
        fixed_by="",
    ),
    "a legacy key": Case(
        ("key", "warning", "SUPABASE_KEY"), options={"key": "legacy"}, fixed_by=""
    ),
    "an expired key": Case(
        ("key", "problem", "SUPABASE_KEY"), options={"key": "expired"}, fixed_by=""
    ),
    "a user's token": Case(
        ("key", "problem", "SUPABASE_KEY"), options={"key": "user"}, fixed_by=""
    ),
    "another project's key": Case(
        ("key", "problem", "SUPABASE_KEY"),
        options={"key": "sb_secret_of_another_project"},
        fixed_by="",
    ),
    "another project's DSN": Case(
        ("dsn", "problem", "public.here_only"),
        plant=f"create table here_only (id int primary key); {PUBLISH} here_only",
        options={"tables": ["here_only"], "dsn": "other"},
        fixed_by="",
    ),
    "a table that is not there": Case(
        ("table", "problem", "public.ordres"), options={"tables": ["ordres"]}, fixed_by=""
    ),
    "a schema that the API does not serve": Case(
        ("schema", "problem", "back.office"),
        plant=f"create schema back; create table back.office (id int primary key);"
        f"{PUBLISH} back.office",
        options={"tables": [("back", "office")]},
        fixed_by="",
    ),
    "a key column that is not there": Case(
        ("column", "problem", "public.orders"),
        parts=listening("orders", id_column="uuid"),
        fixed_by="",
    ),
    "a view": Case(
        ("publication", "problem", "public.seen"),
        plant="create view seen as select * from orders",
        options={"tables": ["seen"]},
        fixed_by="",
    ),
    "more listeners than connections": Case(
        ("realtime_connections", "problem", "Realtime"),
        parts=listening("orders"),
        options={"processes": 201},
        fixed_by="",
    ),
    "more changes than Realtime tells": Case(
        ("realtime_rate", "problem", "Realtime"),
        # 333 a second over the minute that Realtime averages over, once for each listener.
        plant=f"create table busy (id int primary key); {PUBLISH} busy;"
        "insert into busy select generate_series(1, 20000)",
        parts=listening("busy"),
        options={"processes": 90},
        back="drop table busy",
        fixed_by="",
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


@pytest.fixture
def project(case, request):
    """With the case planted, and all that is the project's put back afterwards."""
    found = request.getfixturevalue(case.on)
    if case.plant:
        # As the owner would; the roles of the API are the platform's.
        (found.as_admin if case.plant.startswith("alter role") else found.run)(case.plant)
    yield found
    if case.back:
        found.as_admin(case.back)


def wrong(diagnosis):
    return [*diagnosis.problems, *diagnosis.warnings]


def test_what_is_planted_is_found_alone_and_its_fix_works(case, project, request):
    """Exactly this finding, with why it matters and a fix; and none once the fix was run."""
    parts, options = case.parts(project.client), dict(case.options)
    local = project.local
    keys = {
        "publishable": local.publishable_key,
        "legacy": local.jwt(role="service_role"),
        "expired": local.jwt(role="service_role", expires_in=-3600),
        "user": local.jwt(sub="3b5c4b7e-0d6d-4a0e-9a43-0d3f6c0d7c11", role="service_role"),
    }
    if "key" in options:
        options["key"] = keys.get(options["key"], options["key"])
    if "dsn" in options:
        options["dsn"] = request.getfixturevalue("bare").local.dsn

    findings = wrong(project.diagnose(*parts, **options))

    assert [case.found] == [(each.check, each.severity, each.subject) for each in findings]
    finding = findings[0]
    assert case.says in finding.what
    assert finding.why
    assert finding.fix
    if case.fixed_by == "command":
        command = shlex.split(finding.fix)
        assert ["python", "-m", "supabase_resilience", "sql"] == command[:4]
        project.run(migration(*command[4:]))
    elif case.fixed_by:
        project.run(finding.fix)
    else:
        return
    assert [] == wrong(project.diagnose(*parts, **options))


def test_a_missing_column_is_found_and_its_fix_adds_it(sound):
    """After the fix there is the column, and the index that it lacks is the next finding."""
    sound.run(f"create table ageless (id int primary key); {PUBLISH} ageless")
    parts = listening("ageless", recovery=Recovery.by_column("touched_at"))(sound.client)

    found = wrong(sound.diagnose(*parts))

    assert [("column", "problem")] == [(each.check, each.severity) for each in found]
    sound.run(found[0].fix)
    found = wrong(sound.diagnose(*parts))
    assert ["index"] == [each.check for each in found]
    sound.run(found[0].fix)
    assert [] == wrong(sound.diagnose(*parts))


@pytest.mark.parametrize(
    ("ahead", "severity"), [(120, "problem"), (-120, "problem"), (10, "warning")]
)
def test_a_clock_that_differs_is_found(sound, ahead, severity):
    """The date of an answer is compared with this machine's clock."""
    date = formatdate(time.time() - ahead, usegmt=True)
    body = {"code": "PGRST202", "message": "no such function"}
    sound.local.faults.add(match="queue_check", status=404, headers={"Date": date}, body=body)

    found = wrong(sound.diagnose())

    assert [("clock", severity, "the API")] == [(f.check, f.severity, f.subject) for f in found]
    assert ("ahead" if ahead > 0 else "behind") in found[0].what
    assert [] == wrong(sound.diagnose())
