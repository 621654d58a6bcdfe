"""Handlers that fail, block, wait and come and go; and a listener that is stopped meanwhile."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from supabase_resilience.errors import ListenerError
from supabase_resilience.events import ChangeSkipped, HandlerBehind, HandlerFailed

from .worlds import CHANGE_LOG, LIVE, SOON, VERSIONED, Bench, Ear, SyncWorld

recovering = pytest.mark.parametrize("level", [VERSIONED, CHANGE_LOG], ids=lambda level: level.name)
levels = pytest.mark.parametrize("level", [LIVE, VERSIONED], ids=lambda level: level.name)


class Gate:
    """A handler that is held until its gate is opened, in either colour."""

    def __init__(self, bench):
        self.ear = Ear()
        self.entered = threading.Event()
        self._opened = threading.Event()
        self._is_sync = isinstance(bench.world, SyncWorld)

    def handler(self):
        return self._handle if self._is_sync else self._handle_async

    def open(self):
        self._opened.set()

    def _handle(self, change):
        self.entered.set()
        self._opened.wait(SOON)
        self.ear(change)

    async def _handle_async(self, change):
        self.entered.set()
        await asyncio.to_thread(self._opened.wait, SOON)
        self.ear(change)


@pytest.fixture
def gate(bench):
    """Opened at the end of the test at the latest."""
    made = Gate(bench)
    yield made
    made.open()


# --- handlers that fail ---------------------------------------------------------------------------


@recovering
def test_a_handler_that_always_raises_hurts_no_other(bench, level):
    """Live and caught up; it is tried again and told of, and the connection lives."""
    table = bench.table(level)
    listener, ear = bench.hear(table)

    def fail(_):
        raise ValueError("secret words")

    listener.handle("broken", fail)
    listener.ready(SOON)
    keys = [table.insert(f"live {number}") for number in range(5)]
    bench.eventually(lambda: sorted(ear.rows) == keys)
    with bench.unheard():
        keys.append(table.insert("missed"))
    bench.eventually(lambda: sorted(ear.rows) == keys)
    bench.eventually(lambda: listener.stats.handlers["broken"].failed >= 2)
    listener.ready(SOON)
    keys.append(table.insert("later"))
    bench.eventually(lambda: sorted(ear.rows) == keys)
    failures = [event for event in bench.hook.events if isinstance(event, HandlerFailed)]
    assert ("broken", "ValueError", 1) == (
        failures[0].handler,
        failures[0].error,
        failures[0].attempt,
    )
    assert "secret words" not in repr(bench.hook.events)
    assert 0 == listener.stats.handlers["broken"].delivered


@levels
def test_a_change_is_retried_before_the_next_one(bench, level):
    """Until the handler has returned; so the order is kept and nothing is left out."""
    table = bench.table(level)
    listener, heard, calls = bench.listener(table), Ear(), []

    def handle(change):
        calls.append(change.key)
        if calls.count(change.key) <= 2:
            raise ValueError
        heard(change)

    listener.handle("flaky", handle)
    listener.start()
    listener.ready(SOON)
    keys = [table.insert(f"row {number}") for number in range(3)]
    bench.eventually(lambda: len(heard.changes) == 3)
    assert keys == [change.key for change in heard.changes]
    assert [key for key in keys for _ in range(3)] == calls
    bench.eventually(lambda: listener.stats.handlers["flaky"].delivered == 3)
    assert 6 == listener.stats.handlers["flaky"].failed


def test_a_change_can_be_skipped(bench):
    """With `on_handler_error="skip"`: told with its key, then the next one is handled."""
    table = bench.table(VERSIONED)
    listener, heard = bench.listener(table, on_handler_error="skip"), Ear()

    def handle(change):
        if change.new["name"] == "bad":
            raise ValueError
        heard(change)

    listener.handle("picky", handle)
    listener.start()
    listener.ready(SOON)
    bad, good = table.insert("bad"), table.insert("good")
    bench.eventually(lambda: good in heard.rows)
    skipped = [event for event in bench.hook.events if isinstance(event, ChangeSkipped)]
    assert [("picky", str(bad), "ValueError")] == [
        (event.handler, event.key, event.error) for event in skipped
    ]
    bench.eventually(lambda: listener.stats.handlers["picky"].delivered == 2)
    assert 1 == listener.stats.handlers["picky"].skipped


# --- handlers that take their time ----------------------------------------------------------------


@recovering
def test_a_handler_that_hangs_hurts_no_other(bench, gate, level):
    """The others hear what comes live and what was missed; it hears all of it later."""
    table = bench.table(level)
    listener, ear = bench.hear(table)
    listener.on_change("slow", gate.handler())
    listener.ready(SOON)
    keys = [table.insert("first")]
    bench.eventually(gate.entered.is_set)
    keys += [table.insert(f"live {number}") for number in range(5)]
    with bench.unheard():
        keys.append(table.insert("missed"))
    bench.eventually(lambda: sorted(ear.rows) == keys)
    listener.ready(SOON)
    keys.append(table.insert("later"))
    bench.eventually(lambda: sorted(ear.rows) == keys)
    gate.open()
    bench.eventually(lambda: sorted(gate.ear.rows) == keys)


@recovering
def test_a_full_queue_is_read_again(bench, gate, level):
    """With `overflow="recover"`: nobody waits, it is told, and the handler hears all in the end."""
    table = bench.table(level)
    listener, ear = bench.hear(table, buffer_size=3, catch_up_interval=0.3)
    listener.on_change("slow", gate.handler())
    listener.ready(SOON)
    keys = []
    for number in range(12):
        keys.append(table.insert(f"row {number}"))
        bench.eventually(lambda: keys[-1] in ear.rows)
    bench.eventually(lambda: [e for e in bench.hook.events if isinstance(e, HandlerBehind)])
    assert 0 < listener.stats.handlers["slow"].dropped
    assert listener.stats.handlers["slow"].dropped
    gate.open()
    bench.eventually(lambda: sorted(gate.ear.rows) == keys)
    bench.eventually(lambda: not listener.stats.handlers["slow"].is_behind)
    new = table.insert("new")
    bench.eventually(lambda: new in gate.ear.rows)


@levels
def test_a_full_queue_can_make_the_others_wait(bench, gate, level):
    """With `overflow="block"`: then nothing is dropped, and each change is told once, in order."""
    table = bench.table(level)
    listener, ear = bench.hear(table, buffer_size=5, overflow="block")
    listener.on_change("slow", gate.handler())
    listener.ready(SOON)
    keys = [table.insert(f"row {number}") for number in range(8)]
    bench.eventually(lambda: listener.stats.received == 8)
    bench.eventually(lambda: len(ear.changes) == 5)
    gate.open()
    bench.eventually(lambda: len(ear.changes) == len(gate.ear.changes) == 8)
    assert keys == [change.key for change in gate.ear.changes]
    assert keys == [change.key for change in ear.changes]
    assert 0 == listener.stats.handlers["slow"].dropped


# --- handlers that come and go --------------------------------------------------------------------


@levels
def test_handlers_come_and_go_while_it_runs(bench, level):
    """A new one hears what changes from then on, one that was removed nothing any more."""
    table = bench.table(level)
    listener, first = bench.hear(table)
    second = Ear()
    one = table.insert("one")
    bench.eventually(lambda: one in first.rows)
    listener.handle("second", second)
    listener.ready(SOON)
    two = table.insert("two")
    bench.eventually(lambda: two in first.rows and two in second.rows)
    assert listener.remove_listener("ear")
    assert not listener.remove_listener("ear")
    three = table.insert("three")
    bench.eventually(lambda: three in second.rows)
    assert [("INSERT", two), ("INSERT", three)] == second.told
    assert [one, two] == sorted(first.rows)
    assert ["second"] == list(listener.stats.handlers)


def test_a_name_is_taken_once(bench):
    """The second handler is refused, with the way out."""
    listener = bench.listener(bench.table(LIVE))
    listener.handle("mail", Ear())
    with pytest.raises(ListenerError, match=r"remove_listener\('mail'\) first"):
        listener.handle("mail", Ear())


def test_a_sync_listener_takes_no_async_handler(bench):
    """It says which listener does; an async one takes both."""
    listener, ear = bench.listener(bench.table(LIVE)), Ear()

    async def handle(change):
        ear(change)

    if isinstance(bench.world, SyncWorld):
        with pytest.raises(TypeError, match="AsyncRealtimeListener"):
            listener.on_change("async", handle)
    else:
        listener.on_change("async", handle)
        listener.on_change("blocking", Ear())


def test_a_handler_can_use_its_listener(bench):
    """Ask it, add a handler to it, remove itself."""
    table = bench.table(VERSIONED)
    listener, second, seen = bench.listener(table), Ear(), []
    own = listener.listener

    def handle(change):
        seen.append((own.get_stats().state, own.is_active(), change.key))
        own.on_change("second", bench.world.handler(second))
        own.remove_listener("first")

    listener.handle("first", handle)
    listener.start()
    listener.ready(SOON)
    one = table.insert("one")
    bench.eventually(lambda: "second" in listener.stats.handlers)
    listener.ready(SOON)
    two = table.insert("two")
    bench.eventually(lambda: two in second.rows)
    assert [("live", True, one)] == seen


def test_a_handler_can_stop_its_listener(bench):
    """Without waiting for itself."""
    table = bench.table(VERSIONED)
    listener, done = bench.listener(table), threading.Event()
    own = listener.listener
    if isinstance(bench.world, SyncWorld):

        def handle(_):
            own.stop()
            done.set()
    else:

        async def handle(_):
            await own.stop()
            done.set()

    listener.on_change("last", handle)
    listener.start()
    listener.ready(SOON)
    table.insert("it")
    bench.eventually(done.is_set)
    assert not listener.is_active()
    assert "stopped" == listener.stats.state


# --- iterating ------------------------------------------------------------------------------------


@levels
def test_changes_can_be_walked_through(bench, level):
    """Until the loop is left; then nothing is kept for it any more."""
    table = bench.table(level)
    listener, seen = bench.listener(table), []
    listener.start()

    def visit(change):
        seen.append(change.key)
        return "stop" if len(seen) == 3 else None

    wait = bench.world.walk(listener.listener.changes(), visit)
    bench.eventually(lambda: "changes" in listener.stats.handlers)
    listener.ready(SOON)
    keys = [table.insert(f"row {number}") for number in range(5)]
    wait()
    assert keys[:3] == seen
    assert {} == listener.stats.handlers


def test_a_walk_ends_with_the_listener(bench):
    """Without an error."""
    table = bench.table(VERSIONED)
    listener, seen = bench.listener(table), []
    listener.start()
    wait = bench.world.walk(listener.listener.changes(), lambda change: seen.append(change.key))
    bench.eventually(lambda: "changes" in listener.stats.handlers)
    listener.ready(SOON)
    key = table.insert("it")
    bench.eventually(lambda: seen)
    assert listener.stop()
    wait()
    assert [key] == seen


# --- start and stop -------------------------------------------------------------------------------


@levels
def test_it_can_be_stopped_and_started_again(bench, level):
    """What happened in between is found where there is a recovery."""
    table = bench.table(level)
    listener, ear = bench.hear(table)
    for turn in range(2):
        assert listener.is_active()
        assert listener.stop()
        assert not listener.is_active()
        between = table.insert(f"between {turn}")
        listener.start()
        listener.ready(SOON)
        later = table.insert(f"later {turn}")
        bench.eventually(lambda: later in ear.rows)  # noqa: B023 - called at once
        assert (between in ear.rows) == (level is not LIVE)


def test_it_can_be_asked_before_it_is_started(bench):
    """It has statistics, is not active, and says what `ready()` needs."""
    listener = bench.listener(bench.table(VERSIONED))
    assert not listener.is_active()
    assert "stopped" == listener.stats.state
    assert listener.stop()
    with pytest.raises(ListenerError, match="start"):
        listener.ready(SOON)


def test_stop_waits_for_the_change_in_hand(bench, gate):
    """Then it is handled and no other is begun."""
    table = bench.table(VERSIONED)
    listener = bench.listener(table)
    listener.on_change("slow", gate.handler())
    listener.start()
    listener.ready(SOON)
    first, _ = table.insert("first"), table.insert("second")
    bench.eventually(gate.entered.is_set)
    bench.eventually(lambda: listener.stats.handlers["slow"].waiting == 2)
    ending = bench.world.begin(listener.listener.stop)
    runner = listener.listener._engine._runners["slow"]  # nothing public tells that it has arrived
    bench.eventually(lambda: runner._is_stopping)
    gate.open()
    assert ending()
    assert [first] == list(gate.ear.rows)


def test_stop_leaves_a_hanging_handler_behind(bench, gate):
    """After `timeout`, and says so."""
    table = bench.table(VERSIONED)
    listener = bench.listener(table)
    listener.on_change("slow", gate.handler())
    listener.start()
    listener.ready(SOON)
    table.insert("first")
    bench.eventually(gate.entered.is_set)
    assert not listener.stop(timeout=0.1)
    assert not listener.is_active()


def test_what_was_not_handled_is_told_after_the_next_start(bench, gate):
    """The change in hand when the time was up, and all behind it."""
    table = bench.table(VERSIONED)
    listener = bench.listener(table)
    listener.on_change("slow", gate.handler())
    listener.start()
    listener.ready(SOON)
    keys = [table.insert(f"row {number}") for number in range(3)]
    bench.eventually(lambda: listener.stats.handlers["slow"].waiting == 3)
    bench.eventually(gate.entered.is_set)
    listener.stop(timeout=0.1)
    gate.open()
    listener.start()
    bench.eventually(lambda: keys == sorted(gate.ear.rows))


# --- ends of the process --------------------------------------------------------------------------

_PROGRAM = """
import asyncio, sys, threading
from supabase import acreate_client, create_client
from supabase_resilience import AsyncRealtimeListener, RealtimeListener, Recovery
colour, url, key, table, how = sys.argv[1:]

def handle(change):
    print("handled", change.key, flush=True)
    if how == "exit":
        sys.exit(7)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "request":
        listener.request_stop()

async def handle_async(change):
    handle(change)

def say_ready():
    listener.ready(30)
    print("ready", flush=True)

async def say_ready_async():
    await listener.ready(30)
    print("ready", flush=True)

async def run():
    global listener
    client = await acreate_client(url, key)
    listener = AsyncRealtimeListener(client, table, recovery=Recovery.versioned())
    listener.on_change("it", handle if colour == "threads" else handle_async)
    await listener.start()
    ready = asyncio.create_task(say_ready_async())
    await listener.run(shutdown_timeout=5)

def run_sync():
    global listener
    listener = RealtimeListener(create_client(url, key), table, recovery=Recovery.versioned())
    listener.on_change("it", handle)
    listener.start()
    threading.Thread(target=say_ready, daemon=True).start()
    listener.run(shutdown_timeout=5)

run_sync() if colour == "sync" else asyncio.run(run())
print("ended", listener.is_active(), flush=True)
"""


@contextlib.contextmanager
def program(local, colour, table, how):
    """A process that listens; its output from "ready" on."""
    command = [sys.executable, "-c", _PROGRAM, colour, local.url, local.secret_key, table.name, how]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert "ready\n" == process.stdout.readline()
        yield process
        process.kill()


@pytest.fixture
def quiet_bench(local):
    """A bench that makes tables only."""
    made = Bench(SyncWorld(), local)
    yield made
    made.close()


colours = pytest.mark.parametrize("colour", ["sync", "async"])


@colours
def test_run_ends_in_order_on_sigterm(quiet_bench, local, colour):
    """And returns."""
    with program(local, colour, quiet_bench.table(VERSIONED), "sigterm") as process:
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=SOON)
        assert ("ended False\n", 0) == (said, process.returncode), errors


@colours
def test_run_ends_when_a_handler_asks_for_it(quiet_bench, local, colour):
    """After the change in hand."""
    table = quiet_bench.table(VERSIONED)
    with program(local, colour, table, "request") as process:
        key = table.insert("it")
        said, errors = process.communicate(timeout=SOON)
        assert (f"handled {key}\nended False\n", 0) == (said, process.returncode), errors


@pytest.mark.parametrize("colour", ["sync", "async", "threads"])
@pytest.mark.parametrize("how", ["exit", "interrupt"])
def test_what_ends_a_process_ends_run(quiet_bench, local, colour, how):
    """A SystemExit or KeyboardInterrupt of a handler is raised by `run()`, as it is."""
    table = quiet_bench.table(VERSIONED)
    with program(local, colour, table, how) as process:
        key = table.insert("it")
        said, errors = process.communicate(timeout=SOON)
        expected = 7 if how == "exit" else -signal.SIGINT
        assert (f"handled {key}\n", expected) == (said, process.returncode), errors
        assert "never retrieved" not in errors
        assert "destroyed" not in errors


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_does_not_claim_to_listen(bench):
    """The parent goes on."""
    table = bench.table(VERSIONED)
    listener, ear = bench.hear(table)
    if (child := os.fork()) == 0:
        os._exit(int(listener.listener.is_active()))  # no loop to ask on
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert listener.is_active()
    key = table.insert("it")
    bench.eventually(lambda: key in ear.rows)
