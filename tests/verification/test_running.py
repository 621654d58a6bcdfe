"""Starting, stopping, running: passes in the background, signals, forks, and what is counted."""

import asyncio
import signal
import subprocess
import sys
import threading

import httpx
import pytest
from supabase import AsyncClientOptions, ClientOptions, acreate_client, create_client

from supabase_resilience import VerificationError, server_side_verification
from supabase_resilience.cursors import MemoryCursor

from .worlds import TLS, Bench, Leaping, SyncWorld, dated, eventually, is_dated


def test_the_first_pass_begins_with_start(bench):
    """Not after the first interval; then it waits for the next."""
    table = bench.table()
    table.fill(20, [3])
    verification = bench.verification(table, interval=3600)
    assert ("stopped", False) == (verification.stats.state, verification.is_active())
    verification.start()
    assert verification.is_active()
    eventually(lambda: verification.stats.passes == 1)
    eventually(lambda: verification.stats.state == "waiting")
    assert [] == table.broken()
    verification.start()
    assert verification.stop()
    assert ("stopped", False) == (verification.stats.state, verification.is_active())
    assert 1 == verification.stats.passes
    assert verification.stop()


def test_there_is_a_pass_each_interval(bench):
    """What breaks in the meantime is found; counts add up."""
    table = bench.table()
    table.fill(20, [3])
    verification = bench.verification(table, interval=0.01)
    assert None is verification.stats.last_pass_age
    verification.start()
    eventually(lambda: verification.stats.fixed == 1)
    table.run("update {} set status = 'done' where id in (5, 6)")
    eventually(lambda: verification.stats.fixed == 3)
    verification.stop()
    stats = verification.stats
    assert (3, 3, 0, 0) == (stats.problem_count, stats.fixed, stats.open, stats.failed_passes)
    assert stats.rows >= 40
    assert stats.last_pass_age >= 0
    assert stats.table == stats.last_report.table == table.full_name
    assert "VerificationStats" not in repr(verification.verification)
    assert f"{table.full_name} stopped" in repr(verification.verification)


def test_problem_count_is_that_of_confirmed_violations(bench):
    """What settles, and what is right, is none; what is left counts in each pass."""
    table = bench.table()
    table.fill(20, [3, 7])

    def check(row):
        if row["id"] == 3:
            table.run("update {} set done_at = now() where id = 3 and done_at is null")
        return is_dated(row)

    verification = bench.verification(table, rules=[dated(check=check, fix=None)])
    for count in (1, 2):
        verification.run_once()
        assert (count, 1) == (verification.stats.problem_count, verification.stats.open)


def test_a_stopped_verification_goes_on_where_it_was(bench):
    """With a cursor; whoever stops does not wait for the pass to be complete."""
    table = bench.table()
    table.fill(200)
    seen: list[int] = []
    reached = threading.Event()

    def check(row):
        seen.append(row["id"])
        if row["id"] == 100:
            verification.verification.pause()
            reached.set()
        return True

    verification = bench.verification(
        table, rules=[dated(check=check)], cursor=MemoryCursor(), batch_size=10, clock=Leaping(0.1)
    )
    verification.start()
    assert reached.wait(60)
    assert verification.stop()
    assert (0, 1) == (verification.stats.passes, verification.stats.failed_passes)
    assert "stopped before" in verification.stats.last_report.failure
    seen_before = len(seen)
    verification.resume()
    verification.start()
    eventually(lambda: verification.stats.passes == 1)
    assert set(range(1, 201)) == set(seen)
    assert len(seen) - seen_before < 200


def test_a_stop_right_after_a_start_is_never_lost(bench):
    """However the two meet."""
    table = bench.table()
    table.fill(5)
    verification = bench.verification(table)
    verification.pause()  # a pass that was not stopped would last for ever
    for _ in range(30):
        verification.start()
        assert verification.stop()
        assert not verification.is_active()


def test_a_pass_is_not_interrupted_by_another(bench):
    """The second one is told."""
    table = bench.table()
    table.fill(20)
    verification = bench.verification(table)
    verification.pause()
    result = verification.begin("run_once")
    eventually(lambda: verification.stats.state == "paused")
    with pytest.raises(VerificationError, match=f"over {table.full_name} is under way already"):
        verification.run_once()
    verification.resume()
    assert 20 == result().rows


def test_a_pass_here_and_now_can_be_stopped(local):
    """In mid-pass its report says so; before it could begin the error does."""
    bench = Bench(SyncWorld(), local)
    table = bench.table()
    table.fill(20, [3])
    verification = bench.verification(table)
    verification.pause()
    result = verification.begin("run_once")
    eventually(lambda: verification.stats.state == "paused")
    verification.stop()
    report = result()
    assert (2, [3]) == (report.exit_code, table.broken())
    local.faults.add(status=503, times=None)
    result = verification.begin("run_once")
    eventually(lambda: bench.hook.names.count("verification.pass_paused") == 2)
    verification.stop()
    with pytest.raises(VerificationError, match="stopped before the pass was complete"):
        result()
    local.faults.clear()
    verification.resume()
    assert 1 == verification.run_once().fixed
    bench.close()


def test_a_pass_that_fails_is_followed_by_another(bench):
    """An outage at the start is waited out, an error is told."""
    table = bench.table()
    table.fill(20, [3])
    failures = [KeyError("x")]

    def throttle():
        if failures:
            raise failures.pop()

    bench.local.faults.add(status=503, times=2)
    verification = bench.verification(table, throttle=throttle, interval=0.01)
    verification.start()
    eventually(lambda: verification.stats.passes >= 1)
    assert 1 == verification.stats.failed_passes
    assert "verification.pass_failed" in bench.hook.names
    assert [] == table.broken()


def test_what_a_person_has_to_set_right_is_told_by_each_pass(bench):
    """A verification that was started goes on trying."""
    verification = bench.verification("nope", interval=0.01)
    verification.start()
    eventually(lambda: verification.stats.failed_passes >= 2)
    assert verification.is_active()
    event = next(e for e in bench.hook.events if e.name == "verification.pass_failed")
    assert "create the table" in event.reason


def test_a_pass_that_ends_with_such_an_error_is_counted_once(bench):
    """Although it had begun."""
    table = bench.table()
    table.fill(5)
    verification = bench.verification(table, rules=[dated(guard=("nope",))], interval=3600)
    verification.start()
    eventually(lambda: verification.stats.failed_passes)
    eventually(lambda: verification.stats.state == "waiting")
    verification.stop()
    assert (0, 1) == (verification.stats.passes, verification.stats.failed_passes)
    assert 1 == bench.hook.names.count("verification.pass_failed")


def test_progress_is_known_while_a_pass_is_under_way(bench):
    """From about how many rows there are."""
    table = bench.table()
    table.fill(100)
    told = []

    def check(row):
        told.append(verification.stats.progress)
        return True

    verification = bench.verification(table, rules=[dated(check=check)], batch_size=10)
    verification.run_once()
    assert (0.0, True) == (told[0], 0.8 <= told[-1] < 1.0)
    assert sorted(told) == told
    assert None is verification.stats.progress


def test_a_hook_that_raises_changes_nothing(bench):
    """It is told where such things are logged."""
    table = bench.table()
    table.fill(20, [3])

    def hook(event):
        raise KeyError(event.name)

    assert 1 == bench.verify(table, on_event=hook).fixed


def test_a_verification_is_started_and_stopped_by_with(local):
    """In both colours, each with its own `with`."""
    with httpx.Client(verify=TLS) as session:
        options = ClientOptions(httpx_client=session)
        client = create_client(local.url, local.secret_key, options)
        with server_side_verification(client, "first", data_validator=bool) as sync:
            eventually(lambda: sync.get_stats().passes == 1)
    assert not sync.is_active()

    async def go():
        done = asyncio.Event()

        def hear(event):
            if event.name == "verification.pass_completed":
                done.set()

        async with httpx.AsyncClient(verify=TLS) as session:
            options = AsyncClientOptions(httpx_client=session)
            client = await acreate_client(local.url, local.secret_key, options)
            async with server_side_verification(
                client, "first", data_validator=bool, on_event=hear
            ) as verification:
                await done.wait()
        return verification

    assert not asyncio.run(go()).is_active()


# --- processes ------------------------------------------------------------------------------------

CHILD = """
import asyncio, json, os, sys
from supabase import acreate_client, create_client
from supabase_resilience.verification import (
    AsyncServerSideVerification, Rule, ServerSideVerification
)

url, key, table, colour, way = sys.argv[1:]
made = []

def check(row):
    if way == "exit" and row["id"] == 3:
        raise SystemExit(7)
    if way == "stop" and row["id"] == 3:
        made[0].request_stop()
    return True

def told(event):
    if way == "signal" and event.name == "verification.pass_completed":
        print("passed", flush=True)

options = dict(rules=[Rule("any", check=check)], grace=0.01, on_event=told)

async def main():
    made.append(AsyncServerSideVerification(await acreate_client(url, key), table, **options))
    await made[0].run(5.0)

if colour == "async":
    asyncio.run(main())
else:
    made.append(ServerSideVerification(create_client(url, key), table, **options))
    made[0].run(5.0)
print("ended", made[0].is_active(), flush=True)
"""


def child(bench, table, way):
    colour = "async" if bench.world.is_async else "sync"
    arguments = [bench.local.url, bench.local.secret_key, table.name, colour, way]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_process_that_runs_it_ends_on_a_signal(bench, number):
    """With exit code 0, after what it was doing."""
    table = bench.table()
    table.fill(5)
    with child(bench, table, "signal") as running:
        assert "passed\n" == running.stdout.readline()
        running.send_signal(number)
        said, _ = running.communicate()
    assert ("ended False\n", 0) == (said, running.returncode)


@pytest.mark.parametrize(("way", "code", "said"), [("exit", 7, ""), ("stop", 0, "ended False\n")])
def test_a_rule_may_end_the_process(bench, way, code, said):
    """By `SystemExit`, or by asking the verification to stop."""
    table = bench.table()
    table.fill(5)
    with child(bench, table, way) as running:
        told, _ = running.communicate()
    assert (said, code) == (told, running.returncode)


FORK = """
import os, sys, threading
from supabase import create_client
from supabase_resilience.verification import Rule, ServerSideVerification

url, key, table = sys.argv[1:]
reached, go = threading.Event(), threading.Event()
parent = os.getpid()

def check(row):
    if os.getpid() == parent:
        reached.set()
        go.wait()
    return True

verification = ServerSideVerification(
    create_client(url, key), table, rules=[Rule("any", check=check)], grace=0.01, lease=table,
    on_event=lambda e: None,
)
verification.start()
reached.wait()
pid = os.fork()
if pid == 0:
    stats = verification.get_stats()
    print("child", verification.is_active(), stats.state, verification.stop(), flush=True)
    try:
        verification.run_once()
    except Exception as error:
        print("child", error, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
go.set()
while verification.get_stats().passes == 0:
    threading.Event().wait(0.01)
print("parent", verification.is_active(), verification.stop(), flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="no fork on this platform")
def test_a_fork_has_no_part_in_the_pass_of_its_parent(local):
    """It is not active there, holds no lease, and goes about it anew."""
    bench = Bench(SyncWorld(), local)
    table = bench.table()
    table.fill(5)
    arguments = [sys.executable, "-c", FORK, local.url, local.secret_key, table.name]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    assert [
        "child False stopped True",
        f"child another runner holds the lease '{table.name}'",
        "parent True True",
    ] == done.stdout.splitlines()
    bench.close()
