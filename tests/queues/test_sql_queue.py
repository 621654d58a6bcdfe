"""The migration itself: who may call it, run again and taken back, quick with many jobs waiting."""

import json

import psycopg
import pytest

from supabase_resilience.__main__ import main
from supabase_resilience.local import LocalSupabase
from supabase_resilience.queues._migrated import VERSION

from .worlds import MIGRATION, REMOVAL

MADE = """
select proname from pg_proc where pronamespace in (
    select oid from pg_namespace where nspname in ('public', 'supabase_resilience'))
  and (proname like 'supabase%' or pronamespace::regnamespace::text = 'supabase_resilience')
union all
select relname from pg_class where relnamespace in (
    select oid from pg_namespace where nspname = 'supabase_resilience')
union all
select nspname::text from pg_namespace where nspname = 'supabase_resilience'
union all
select indexname::text from pg_indexes where indexname like '%priority%'
order by 1
"""
CALLABLE = """
select proname, p.oid::regprocedure, prosecdef, proconfig from pg_proc p
where pronamespace = 'public'::regnamespace and proname like 'supabase%' order by 1
"""


@pytest.fixture(scope="module")
def local(pgmq_sql):
    """One version is enough here; the store is tested with all of them."""
    with LocalSupabase(pgmq_sql=pgmq_sql("installed")) as stack:
        yield stack


@pytest.fixture
def migrated(database):
    """The owner's view of a database with the migration and a prepared queue."""
    database.execute(MIGRATION.encode())
    database.execute("select public.supabase_resilience_queue_create('jobs')")
    return database


def made(database):
    return [row[0] for row in database.execute(MADE).fetchall()]


def call(database, function, *given):
    marks = ", ".join(["%s"] * len(given))
    query = f"select public.supabase_resilience_queue_{function}({marks})"
    return database.execute(query, given).fetchone()[0]


# --- what it makes --------------------------------------------------------------------------------


def test_it_may_be_run_again(migrated):
    """Nothing changes, and what was in the queues stays there."""
    before = made(migrated)
    migrated.execute("select pgmq.send('jobs', '1')")
    waiting = migrated.execute("select count(*) from pgmq.q_jobs").fetchone()
    migrated.execute(MIGRATION.encode())
    assert before == made(migrated)
    assert waiting == migrated.execute("select count(*) from pgmq.q_jobs").fetchone()


def test_it_may_be_run_statement_by_statement(migrated):
    """As some editors do; nothing depends on one transaction around it."""
    migrated.execute(REMOVAL.encode())
    pieces = MIGRATION.replace("end $$;", "end $$;\0").replace("$$;\n\n", "$$;\n\n\0").split("\0")
    for piece in pieces:
        migrated.execute(piece.encode())
    assert VERSION == call(migrated, "check", [])["version"]


def test_its_version_is_the_one_the_package_asks_for(migrated):
    """Who raises one has to raise the other."""
    expected = {
        "version": VERSION,
        "queues": {
            "jobs": {"exists": True, "prepared": True},
            "jobs_dead": {"exists": True, "prepared": False},
            "nowhere": {"exists": False, "prepared": False},
        },
    }
    assert expected == call(migrated, "check", ["jobs", "jobs_dead", "nowhere"])


def test_it_can_be_taken_back(migrated):
    """Nothing of it is left but the queues and what is in them; also a second time."""
    migrated.execute("select pgmq.send('jobs', '1')")
    for _ in range(2):
        migrated.execute(REMOVAL.encode())
        assert [] == made(migrated)
    assert migrated.execute("select count(*) > 0 from pgmq.q_jobs").fetchone()[0]
    migrated.execute("select * from pgmq.read('jobs', 0, 1)")


def test_it_leaves_another_migration_alone(migrated):
    """The schema stays while something else lives in it."""
    migrated.execute("create table supabase_resilience.of_another (id int)")
    try:
        migrated.execute(REMOVAL.encode())
        assert {"of_another", "supabase_resilience"} == set(made(migrated))
    finally:
        migrated.execute("drop table supabase_resilience.of_another")


# --- who may call it ------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_users_may_call_none_of_it(migrated, role):
    """Neither through the API nor with SQL of their own."""
    functions = migrated.execute(CALLABLE).fetchall()
    assert len(functions) > 5
    for _, signature, *_ in functions:
        query = "select has_function_privilege(%s, %s, 'execute')"
        assert (False,) == migrated.execute(query, [role, signature]).fetchone()
    query = "select has_schema_privilege(%s, 'supabase_resilience', 'usage')"
    assert (False,) == migrated.execute(query, [role]).fetchone()


def test_the_service_role_may_call_all_of_it(migrated):
    """With the owner's rights, a search path that nobody can bend, and no overloads."""
    functions = migrated.execute(CALLABLE).fetchall()
    for name, signature, is_definer, settings in functions:
        query = "select has_function_privilege('service_role', %s, 'execute')"
        assert (True,) == migrated.execute(query, [signature]).fetchone()
        assert (True, ["search_path=pg_catalog, pg_temp"]) == (is_definer, settings), name
    assert len({name for name, *_ in functions}) == len(functions)


def test_it_needs_no_rights_on_queues(migrated, local):
    """Service_role works through the functions where it has no table of pgmq's."""
    call(migrated, "create", "closed")
    migrated.execute("revoke all on pgmq.q_closed, pgmq.q_closed_dead from service_role")
    with psycopg.connect(local.admin_dsn, autocommit=True) as service:
        service.execute("set role service_role")
        call(service, "send", "closed", json.dumps([{"any": 1}]), 0)
        taken = call(service, "exchange", "closed", "[]", 1, 0, 30, True, "closed_dead")
        assert [{"any": 1}] == [row["message"] for row in taken["jobs"]]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            service.execute("select * from pgmq.q_closed")


@pytest.mark.parametrize("name", ["", None, "a$b", "a;b", "a--b", "a'b", "x" * 48, "é" * 24])
def test_names_that_pgmq_refuses(migrated, name):
    """Refused before any SQL is made of them."""
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="name of a queue"):
        call(migrated, "send", name, "[]", 0)


def test_names_are_only_names(migrated):
    """Whatever is in one, it is a table of pgmq's."""
    with pytest.raises(psycopg.errors.UndefinedTable, match="pgmq"):
        call(migrated, "metrics", ['jobs" where true or "'])


# --- priorities -----------------------------------------------------------------------------------


def envelope(priority):
    return {"data": 1, "supabase_resilience": {"id": "x", "priority": priority}}


@pytest.mark.parametrize(
    ("message", "priority"),
    [
        (envelope(7), 7),
        (envelope(-7), -7),
        (envelope(10**9), 2**31 - 1),
        (envelope(10**30), 2**31 - 1),
        (envelope(-(10**30)), -(2**31)),
        (envelope("7"), 0),
        (envelope(7.5), 0),
        (envelope(None), 0),
        (envelope(True), 0),
        (envelope([7]), 0),
        ({"supabase_resilience": {"id": "x", "priority": 7}}, 0),
        ({"data": 1, "supabase_resilience": {"priority": 7}}, 0),
        ({"data": 1, "supabase_resilience": {"id": "", "priority": 7}}, 0),
        ({"data": 1, "supabase_resilience": [{"id": "x", "priority": 7}]}, 0),
        ({"data": 1, "supabase_resilience": "x"}, 0),
        (["data", "supabase_resilience"], 0),
        ("data", 0),
        (7, 0),
        (None, 0),
    ],
)
def test_any_message_has_a_priority(migrated, message, priority):
    """The index takes whatever is in a queue: a job's own number, else 0."""
    query = "select supabase_resilience.job_priority(%s::jsonb)"
    assert (priority,) == migrated.execute(query, [json.dumps(message)]).fetchone()


def test_no_message_has_priority_0(migrated):
    """Pgmq's column may be null."""
    query = "select supabase_resilience.job_priority(null)"
    assert (0,) == migrated.execute(query).fetchone()


def test_many_waiting_jobs_are_not_looked_at(migrated):
    """Among 100,000 an urgent one is found by index, whether they are ready or analyzed or not."""
    migrated.execute("truncate pgmq.q_jobs")
    migrated.execute(
        "select count(*) from pgmq.send_batch('jobs', array("
        "select jsonb_build_object('data', n, 'supabase_resilience', "
        "jsonb_build_object('id', n::text, 'priority', n %% 10)) "
        "from generate_series(1, 100000) n))".replace("%%", "%")
    )
    for preparation in ("select", "analyze pgmq.q_jobs"):
        migrated.execute(preparation)
        with migrated.transaction():
            before = seen(migrated)
            taken = call(migrated, "exchange", "jobs", "[]", 16, 2, 30, True, "jobs_dead")
            held = [
                {"id": row["msg_id"], "fence": row["read_ct"], "kind": "done"}
                for row in taken["jobs"]
            ]
            settled = json.dumps(held)
            call(migrated, "exchange", "jobs", settled, 16, 0, 30, True, "jobs_dead")
            looked_at = seen(migrated) - before
        priorities = sorted(
            row["message"]["supabase_resilience"]["priority"] for row in taken["jobs"]
        )
        assert [9] * 14 == priorities[2:]
        assert looked_at < 1000


def seen(database):
    """How many rows of the queue this transaction has looked at, by index or one after another."""
    query = """select coalesce(sum(seq_tup_read + idx_tup_fetch), 0)
        from pg_stat_xact_user_tables where relname = 'q_jobs'"""
    return int(database.execute(query).fetchone()[0])


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_it(capsys):
    """As it is in the package, and the way back."""
    assert 0 == main(["sql", "queue"])
    assert MIGRATION == capsys.readouterr().out
    assert 0 == main(["sql", "queue", "--remove"])
    assert REMOVAL == capsys.readouterr().out


def test_the_command_knows_what_there_is(capsys):
    """Misuse ends with 2 and tells the names."""
    with pytest.raises(SystemExit) as ended:
        main(["sql", "nothing"])
    assert 2 == ended.value.code
    assert "queue" in capsys.readouterr().err
