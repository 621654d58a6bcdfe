"""One runner of many: leases, fencing tokens, and the functions of the migration."""

import signal
import subprocess
import sys
import textwrap

import httpx
import psycopg
import pytest
from postgrest.exceptions import APIError
from supabase import ClientOptions, create_client

from supabase_resilience import VerificationError
from supabase_resilience.verification import _async, _sync

from .worlds import (
    DATE,
    TLS,
    Bench,
    Leaping,
    SyncWorld,
    dated,
    eventually,
    fates,
    is_dated,
    sql,
    with_date,
)

FUNCTIONS = {
    "lease_acquire": {"p_name": "x", "p_holder": "x", "p_seconds": 9},
    "lease_renew": {"p_name": "x", "p_token": 1, "p_seconds": 9},
    "lease_release": {"p_name": "x", "p_token": 1},
    "lease_holds": {"p_name": "x", "p_token": 1},
    "verification_fix": {
        "p_lease": "x",
        "p_token": 1,
        "p_schema": "public",
        "p_table": "first",
        "p_key": {"id": 1},
        "p_patch": {"id": 2},
        "p_xmin": "1",
    },
}
TAKE_OVER = """
update supabase_resilience.leases
set token = token + 1, holder = 'another', ends_at = now() + interval '1 hour' where name = %s
"""


def lease_of(table):
    """Whether the lease named like the table is held, and its token."""
    query = "select ends_at > now(), token from supabase_resilience.leases where name = %s"
    return table.run(query, table.name)[0]


# --- runners --------------------------------------------------------------------------------------


def test_one_of_two_verifies(bench):
    """The other one says who does not let it; afterwards it may."""
    table = bench.table()
    table.fill(20, [3])
    one, other = (bench.verification(table, lease=table.name) for _ in range(2))
    one.pause()
    result = one.begin("run_once")
    eventually(lambda: "verification.pass_paused" in bench.hook.names)
    assert lease_of(table)[0]
    with pytest.raises(VerificationError, match=f"another runner holds the lease '{table.name}'"):
        other.run_once()
    one.resume()
    assert {"fixed": 1} == fates(result())
    assert not lease_of(table)[0]
    assert 0 == other.run_once().violations
    tokens = [e.token for e in bench.hook.events if e.name == "verification.lease_taken"]
    assert [1, 2] == tokens


@pytest.mark.parametrize("guard", [None, ("status", "note")])
def test_a_fenced_fix_writes_what_it_is_given(bench, guard):
    """Numbers, JSON, arrays and NULL, as a PATCH would; only if the row is what it was."""
    table = bench.table(
        "id text, nr int, status text, note text, done_at timestamptz,"
        " j jsonb, a int[], n numeric, primary key (id, nr)"
    )
    for key in ('a,b."c"', "a b"):
        table.run("insert into {} (id, nr, status) values (%s, 1, 'done')", key)
    patch = {"done_at": DATE, "j": {"x": [1, None]}, "a": [1, 2], "n": 1.5}
    rule = dated(fix=lambda _: patch, guard=guard)
    options = {"id_column": ("id", "nr"), "lease": table.name}
    assert {"fixed": 2} == fates(bench.verify(table, rules=[rule], **options))
    assert (
        2 == table.run("select count(*) from {} where j = '{\"x\": [1, null]}' and a[2] = 2")[0][0]
    )
    table.run("update {} set done_at = null")

    def slow_fix(_):
        table.run("update {} set note = 'of the app'")
        return {"done_at": DATE, "note": "of the fixer"}

    rule = dated(fix=slow_fix, guard=guard)
    lost = bench.verify(table, rules=[rule], batch_size=1, max_fixes=1, **options)
    assert {"cas_lost": 1, "over_budget": 1} == fates(lost)
    assert {"of the app"} == set(table.rows("id, note").values())


def test_a_fenced_fix_that_is_refused_is_told(bench):
    """As one without a lease."""
    table = bench.table()
    table.fill(5, [3])
    rule = dated(fix=lambda _: {"nope": 1})
    (problem,) = bench.verify(table, rules=[rule], lease=table.name).problems
    assert ("fix_failed", "the write was refused: 42703") == (problem.fate, problem.reason)


def test_a_fix_in_flight_is_refused_by_its_token(bench):
    """Another has taken over in the meantime: nothing is written, and no other fix begun."""
    table = bench.table()
    table.fill(20, [3, 7, 11])
    table.count_writes()
    begun = []

    def fix(row):
        begun.append(row["id"])
        table.run(TAKE_OVER, table.name)
        return with_date(row)

    report = bench.verify(table, rules=[dated(fix=fix)], lease=table.name)
    assert {"left": 3} == fates(report)
    assert {"the lease was lost"} == {problem.reason for problem in report.problems}
    assert [3] == begun
    assert [(0,)] == table.run("select sum(writes) from {}")
    assert 1 == bench.hook.names.count("verification.lease_lost")
    assert (True, 2) == lease_of(table)


def test_a_lease_that_runs_out_while_a_fix_is_made_ends_the_fixing(bench):
    """By our own clock; nobody is asked."""
    table = bench.table()
    table.fill(20, [3, 7, 11])
    begun, clock = [], Leaping(0.02)

    def fix(row):
        begun.append(row["id"])
        clock.jump(1000)
        return with_date(row)

    report = bench.verify(table, rules=[dated(fix=fix)], lease=table.name, clock=clock)
    assert ([3], {"left": 3}) == (begun, fates(report))
    assert [3, 7, 11] == table.broken()


def test_no_repair_is_begun_without_the_lease(bench):
    """`fix_missing_data` is not fenced, but it is not called either."""
    table = bench.table()
    table.fill(20, [3, 7, 11])
    begun, clock = [], Leaping(0.02)

    def repair(key):
        begun.append(key)
        clock.jump(1000)

    report = bench.verify(
        table, data_validator=is_dated, fix_missing_data=repair, lease=table.name, clock=clock
    )
    assert [3] == begun
    assert {"fix_failed": 1, "left": 2} == fates(report)


def test_a_long_pass_renews_its_lease(bench):
    """Well before it runs out."""
    table = bench.table()
    table.fill(60, [3, 30, 59])
    renewed = bench.local.faults.add(match="lease_renew", delay=0.001, times=None)
    report = bench.verify(table, lease=table.name, batch_size=5, clock=Leaping(1.0))
    assert {"fixed": 3} == fates(report)
    assert renewed.count >= 2


def test_a_pass_whose_lease_was_taken_over_ends(bench):
    """It is told at the next renewal."""
    table = bench.table()
    table.fill(60, [3])
    seen: list[int] = []

    def check(row):
        if not seen:
            table.run(TAKE_OVER, table.name)
        seen.append(row["id"])
        return is_dated(row)

    verification = bench.verification(
        table, rules=[dated(check=check)], lease=table.name, batch_size=5, clock=Leaping(1.0)
    )
    with pytest.raises(VerificationError, match="another runner has taken the lease over"):
        verification.run_once()
    assert [3] == table.broken()
    assert 1 == verification.stats.failed_passes


def test_a_started_runner_keeps_the_lease_between_passes_and_gives_it_back(bench, monkeypatch):
    """So that the one that waits takes over as soon as it is stopped."""
    for module in (_sync, _async):
        monkeypatch.setattr(module, "_LEASE_AGAIN", 0.01)
    table = bench.table()
    table.fill(20)
    one, other = (bench.verification(table, lease=table.name) for _ in range(2))
    one.start()
    eventually(lambda: one.stats.passes == 1)
    assert lease_of(table)[0]
    other.start()
    eventually(lambda: other.stats.failed_passes >= 2)
    assert one.stop()
    eventually(lambda: other.stats.passes == 1)
    other.stop()
    assert not lease_of(table)[0]


def test_without_the_secret_key_there_is_no_lease(bench):
    """It is said which key it takes."""
    table = bench.table()
    client = bench.client(bench.local.publishable_key)
    with pytest.raises(VerificationError, match="needs the secret key"):
        bench.verify(table, client=client, lease="x")


CHILD = """
import asyncio, sys
from supabase import acreate_client, create_client
from supabase_resilience.verification import (
    AsyncServerSideVerification, Rule, ServerSideVerification
)

url, key, table, colour = sys.argv[1:]
begun = []

def fix(row):
    begun.append(row["id"])
    print("fixing", row["id"], flush=True)
    sys.stdin.readline()
    return {"done_at": "2026-01-01T00:00:00+00:00", "note": "frozen"}

rule = Rule("dated", check=lambda r: r["status"] != "done" or r["done_at"], fix=fix)
options = dict(rules=[rule], lease=table, grace=0.01, max_share=1.0, on_event=lambda e: None)

def report(found):
    print(begun, dict(found.rules["dated"].fates), flush=True)

async def main():
    verification = AsyncServerSideVerification(await acreate_client(url, key), table, **options)
    verification._core.lease.seconds = 1.5
    report(await verification.run_once())

if colour == "async":
    asyncio.run(main())
else:
    verification = ServerSideVerification(create_client(url, key), table, **options)
    verification._core.lease.seconds = 1.5
    report(verification.run_once())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no such signal on this platform")
def test_a_frozen_runner_starts_no_fix_after_it_wakes(bench):
    """Each violation is fixed once, by the one that took over; the one in flight is refused."""
    table = bench.table()
    table.fill(30, [3, 7, 11])
    table.count_writes()
    colour = "async" if bench.world.is_async else "sync"
    arguments = [bench.local.url, bench.local.secret_key, table.name, colour]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as frozen:
        assert "fixing 3\n" == frozen.stdout.readline()
        frozen.send_signal(signal.SIGSTOP)
        eventually(lambda: not lease_of(table)[0])
        report = bench.verify(table, lease=table.name)
        assert {"fixed": 3} == fates(report)
        frozen.send_signal(signal.SIGCONT)
        said, _ = frozen.communicate("\n" * 5)
    assert "[3] {'left': 3}\n" == said
    assert [(3, 0)] == table.run("select sum(writes), count(note) from {}")


# --- the migration --------------------------------------------------------------------------------


@pytest.fixture
def api(local):
    """Calls functions of the migration, as service_role or another."""
    with httpx.Client(timeout=30.0, verify=TLS) as session:
        options = ClientOptions(httpx_client=session)

        def call(function, key=None, **given):
            client = create_client(local.url, key or local.secret_key, options)
            return client.rpc(f"supabase_resilience_{function}", given).execute().data

        yield call


@pytest.fixture
def database(local):
    with psycopg.connect(local.dsn, autocommit=True) as connection:
        yield connection


@pytest.mark.parametrize("function", FUNCTIONS)
def test_users_may_not_call_the_functions(api, local, function):
    """Neither without a login nor with one."""
    for key in (local.publishable_key, local.jwt(sub="00000000-0000-0000-0000-000000000001")):
        with pytest.raises(APIError, match="permission denied") as raised:
            api(function, key, **FUNCTIONS[function])
        assert "42501" == raised.value.code


def test_nobody_reads_or_writes_leases_but_by_the_functions(database):
    """Also not the service role."""
    for role in ("anon", "authenticated", "service_role"):
        for right in ("select", "insert", "update", "delete"):
            query = "select has_table_privilege(%s, 'supabase_resilience.leases', %s)"
            assert (False,) == database.execute(query, [role, right]).fetchone()


def acquire(api, name, holder, seconds=60.0):
    return api("lease_acquire", p_name=name, p_holder=holder, p_seconds=seconds)


def test_a_lease_has_one_holder(api):
    """Who asks again keeps the token; who comes after gets a higher one."""
    assert 1 == acquire(api, "a", "ada")
    assert 1 == acquire(api, "a", "ada")
    assert acquire(api, "a", "bob") is None
    assert api("lease_holds", p_name="a", p_token=1)
    assert 1 == api("lease_renew", p_name="a", p_token=1, p_seconds=60)
    api("lease_release", p_name="a", p_token=1)
    assert not api("lease_holds", p_name="a", p_token=1)
    assert 2 == acquire(api, "a", "bob")
    assert api("lease_renew", p_name="a", p_token=1, p_seconds=60) is None
    api("lease_release", p_name="a", p_token=1)
    assert api("lease_holds", p_name="a", p_token=2)


def test_a_lease_that_ran_out_is_anyones(api):
    """Its holder may still renew it as long as nobody took it; and takes it anew by acquiring."""
    assert 1 == acquire(api, "b", "ada", seconds=-1)
    assert not api("lease_holds", p_name="b", p_token=1)
    assert 1 == api("lease_renew", p_name="b", p_token=1, p_seconds=-1)
    assert 2 == acquire(api, "b", "ada", seconds=-1)
    assert 3 == acquire(api, "b", "bob")
    assert api("lease_renew", p_name="b", p_token=2, p_seconds=60) is None
    assert not api("lease_holds", p_name="c", p_token=1)


def test_nobody_takes_the_lease_while_a_fix_is_written(api, database, local):
    """The token is good until the transaction of the fix has ended."""
    assert 1 == acquire(api, "d", "ada")
    with psycopg.connect(local.dsn) as fixing:
        query = "select public.supabase_resilience_lease_holds('d', 1)"
        assert (True,) == fixing.execute(query).fetchone()
        database.execute("set lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            database.execute("select public.supabase_resilience_lease_release('d', 1)")


@pytest.mark.parametrize(
    "case",
    [
        ({"p_token": 9}, "PT409", "taken over"),
        ({"p_table": "nope"}, "42P01", "no table public.nope"),
        ({"p_xmin": None}, "22023", "needs p_xmin or p_guard"),
        ({"p_patch": {"nope": 1}}, "42703", "nope"),
        ({"p_guard": {"nope": 1}}, "42703", "nope"),
        ({"p_key": {"b": 1}, "p_xmin": None, "p_guard": {"b": 1}}, "21000", "names 2 rows"),
    ],
)
def test_a_fix_that_makes_no_sense_is_refused(api, database, local, case):
    """And writes nothing."""
    given, code, reason = case
    database.execute("create table if not exists twins (a int primary key, b int, c int)")
    database.execute("grant all on twins to service_role")
    database.execute("insert into twins values (1, 1), (2, 1) on conflict do nothing")
    local.rest.reload()
    token = acquire(api, "e", "ada")
    right = {
        "p_lease": "e",
        "p_token": token,
        "p_schema": "public",
        "p_table": "twins",
        "p_key": {"a": 1},
        "p_patch": {"c": 1},
        "p_xmin": "1",
    }
    with pytest.raises(APIError, match=reason) as raised:
        api("verification_fix", **{**right, **given})
    assert code == raised.value.code
    assert (0,) == database.execute("select count(c) from twins").fetchone()


def test_a_fix_acts_with_the_rights_of_who_calls_it(api, database, local):
    """The service role gets no more by it than it has."""
    database.execute("create table private (id int primary key)")
    database.execute("insert into private values (1)")
    database.execute("revoke all on private from public, anon, authenticated, service_role")
    token = acquire(api, "f", "ada")
    given = FUNCTIONS["verification_fix"] | {"p_lease": "f", "p_token": token}
    with pytest.raises(APIError, match="permission denied") as raised:
        api("verification_fix", **given | {"p_table": "private"})
    assert "42501" == raised.value.code


def test_the_migration_may_be_run_again_and_taken_back(api, database, local):
    """Leases survive a second run; without it a verification says what to do."""
    bench = Bench(SyncWorld(), local)
    assert 1 == acquire(api, "g", "ada")
    database.execute(sql("verification").encode())
    assert 1 == acquire(api, "g", "ada")
    try:
        for _ in range(2):
            database.execute(sql("verification", "--remove").encode())
        local.rest.reload()
        query = "select to_regclass('supabase_resilience.leases')"
        assert (None,) == database.execute(query).fetchone()
        with pytest.raises(VerificationError, match="python -m supabase_resilience sql verificat"):
            bench.verify(bench.table(), lease="g")
    finally:
        database.execute(sql("verification").encode())
        local.rest.reload()
        bench.close()
    assert 1 == acquire(api, "g", "bob")
