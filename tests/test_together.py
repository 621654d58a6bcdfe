"""Resilience: parts that were made elsewhere, started, stopped, watched and asked as one."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from supabase_resilience import (
    Alert,
    AsyncQueueProcessor,
    AsyncResilience,
    AsyncSupabaseQueue,
    CircuitBreaker,
    CircuitBreakers,
    QueueError,
    QueueProcessor,
    Recovery,
    Resilience,
    RetryConfig,
    Rule,
    SupabaseQueue,
    protect,
    queue_processor,
    realtime_listener,
    resilient_http_client,
    server_side_verification,
)
from supabase_resilience.local import LocalSupabase
from supabase_resilience.testing import RecordingHook

from .listener.worlds import SOON, AsyncWorld, SyncWorld, eventually
from .test_telling import SpanHook

SCHEMA = """
create table orders (id int primary key, status text, updated_at timestamptz default now());
create table projects (id int primary key, name text, updated_at timestamptz default now());
alter publication supabase_realtime add table projects;
insert into orders values (1, 'paid'), (2, null);
select pgmq.create('mails'); select pgmq.create('mails_dead');
"""
RULES = [Rule("paid", check=bool)]
ROOT = Path(__file__).parents[1]


class Sync(SyncWorld):
    together, queue, store = Resilience, QueueProcessor, SupabaseQueue


class Async(AsyncWorld):
    together, queue, store = AsyncResilience, AsyncQueueProcessor, AsyncSupabaseQueue


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSupabase]:
    """One stack for this file."""
    with LocalSupabase(schema=SCHEMA) as stack:
        yield stack


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def world(request):
    """Both colours."""
    made = request.param()
    yield made
    made.close()


def make(world, *parts, **options):
    return world.do(world.together, *parts, **options)


# --- parts ----------------------------------------------------------------------------------------


def test_each_part_has_a_name(world, local) -> None:
    """By its kind; a client is its breaker, once, and a second one of a name is numbered."""
    client = world.client(local)
    breakers = CircuitBreakers(name="db")
    one, two = (protect(client, breaker=breakers) for _ in range(2))
    parts = [
        one,
        two,
        CircuitBreaker("db"),
        world.queue(world.handler(print)),
        realtime_listener(client, "projects"),
        server_side_verification(client, "orders", rules=RULES),
        server_side_verification(client, "orders", rules=RULES),
    ]
    app = make(world, *parts)
    names = [
        "breaker:db",
        "breaker:db#2",
        f"queue:{parts[3].name}",
        "listener:projects",
        "verification:orders",
        "verification:orders#2",
    ]
    assert names == list(app.parts) == list(app.get_stats())
    assert [breakers, *parts[2:]] == list(app.parts.values())
    with pytest.raises(TypeError):
        app.parts["x"] = parts[2]


def test_breakers_of_tables_and_services_have_names() -> None:
    """`breaker:NAME/TABLE`, and those of the other services by their own."""
    with resilient_http_client() as client:
        breakers = CircuitBreakers(name="db")
        app = Resilience(client, breakers)
        services = [f"breaker:{name}" for name in client.breakers]
        assert {*services, "breaker:db"} == set(app.get_stats())


def test_a_breaker_of_a_key_is_named_by_it() -> None:
    """Without the schema that is the usual one; a key of several parts with dots between."""
    breakers = CircuitBreakers(key=lambda target: target.table, name="db", failure_threshold=1)
    app = Resilience(breakers)
    for key in ("public.orders", ("rpc", "charge"), "shop.orders", 7):
        breakers.by_key[key] = CircuitBreaker()
    assert ["db", "db/orders", "db/rpc.charge", "db/shop.orders", "db/7"] == [
        name.removeprefix("breaker:") for name in app.get_stats()
    ]


def test_a_stop_before_a_start_is_nothing(world) -> None:
    """Who was never started is none the worse: it is not active, and alive."""
    app = make(world, world.queue(world.handler(print)))
    assert world.do(app.stop)
    assert (False, True) == (app.is_active(), app.is_alive())
    world.do(app.start)
    world.do(app.start)
    assert (True, True) == (app.is_active(), app.is_alive())
    assert world.do(app.stop)
    assert (False, True) == (app.is_active(), app.is_alive())


@pytest.mark.parametrize("wrong", [None, "queue:mails", object(), AsyncQueueProcessor(None)])
def test_other_parts_are_refused(wrong) -> None:
    """An async part in a sync app, too."""
    with pytest.raises(TypeError, match="a part must be"):
        Resilience(wrong)


def test_a_sync_part_is_refused_by_the_async_one() -> None:
    """It would block the loop."""
    with pytest.raises(TypeError, match="QueueProcessor"):
        AsyncResilience(QueueProcessor(print))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Resilience, AsyncResilience])
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"alerts": [print]}, TypeError),
        ({"on_event": None}, TypeError),
        ({"check_every": 0}, ValueError),
        ({"check_every": "5"}, TypeError),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(kind, options, error) -> None:
    """The error names the argument."""
    (name,) = options
    with pytest.raises(error, match=name):
        kind(**options)


# --- life -----------------------------------------------------------------------------------------


def test_all_start_and_stop_together(world, local) -> None:
    """Health is ok while they run; afterwards each says that it is stopped."""
    client = world.client(local)
    queue = world.queue(world.handler(print))
    listener = realtime_listener(client, "projects", recovery=Recovery.by_column("updated_at"))
    orders = server_side_verification(client, "orders", rules=RULES)
    app = make(world, queue, listener, orders, check_every=0.05)
    assert not app.is_active()
    world.do(app.start)
    world.do(app.start)  # twice is once
    assert app.is_active()
    eventually(lambda: "ok" == app.health().status)
    eventually(lambda: app.watch_age() is not None)
    assert world.do(app.stop)
    assert not app.is_active()
    assert ["failing"] * 3 == [part.status for part in app.health().parts]
    assert ["it is stopped"] * 3 == [part.reason for part in app.health().parts]


def test_what_is_in_hand_is_finished(world) -> None:
    """Queues are drained, and only after those who may still add jobs."""
    done, go_on = [], threading.Event()

    def handle(data) -> None:
        assert go_on.wait(SOON)
        done.append(data)

    async def handle_async(data) -> None:
        await asyncio.to_thread(handle, data)

    queue = world.queue(handle_async if isinstance(world, Async) else handle)
    app = make(world, queue)
    world.do(app.start)
    for number in range(3):
        world.do(queue.enqueue, number)
    stopped = world.begin(app.stop)
    go_on.set()
    assert stopped()
    assert [0, 1, 2] == done


def test_a_producer_is_not_started(world) -> None:
    """And is none the worse for it."""
    app = make(world, world.queue(None))
    world.do(app.start)
    assert "ok" == app.health().status
    assert world.do(app.stop)


def test_one_that_cannot_start_stops_the_others(world, local) -> None:
    """Its error is raised, and nothing runs."""
    client = world.client(local)
    good = world.queue(world.handler(print))
    bad = queue_processor(client, "no_such_queue", world.handler(print))
    app = make(world, good, bad)
    with pytest.raises(QueueError, match="no_such_queue"):
        world.do(app.start)
    assert not app.is_active()
    assert "stopped" == good.get_stats().state


def test_one_that_fails_to_stop_does_not_keep_the_others() -> None:
    """Its error is raised after all have stopped."""

    def end(_) -> None:
        raise SystemExit(7)

    bad, good = QueueProcessor(end), QueueProcessor(print)
    app = Resilience(good, bad)
    app.start()
    bad.enqueue(1)
    eventually(lambda: "stopped" == bad.get_stats().state)
    with pytest.raises(SystemExit):
        app.stop()
    assert "stopped" == good.get_stats().state


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_signal_ends_run(colour) -> None:
    """SIGTERM: the queue is drained, and the program ends as usual."""
    program = {
        "sync": """
            queue = QueueProcessor(lambda n: print("did", n, flush=True))
            app = Resilience(queue)
            def work():
                while not app.is_active(): pass
                queue.enqueue(1)
            threading.Thread(target=work).start()
            app.run()
            print("ended", flush=True)
        """,
        "async": """
            async def handle(n): print("did", n, flush=True)
            async def main():
                queue = AsyncQueueProcessor(handle)
                app = AsyncResilience(queue)
                running = asyncio.create_task(app.run())
                while not app.is_active(): await asyncio.sleep(0)
                await queue.enqueue(1)
                await running
            asyncio.run(main())
            print("ended", flush=True)
        """,
    }[colour]
    text = "import asyncio, threading\nfrom supabase_resilience import *\n" + textwrap.dedent(
        program
    )
    command = [sys.executable, "-c", text]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        assert "did 1\n" == child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        assert "ended\n" == child.stdout.readline()
    assert 0 == child.returncode


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_is_not_active() -> None:
    """The parent goes on."""
    app = Resilience(QueueProcessor(print))
    with app:
        if (child := os.fork()) == 0:
            os._exit(int(app.is_active()))
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert app.is_active()


# --- one outage -----------------------------------------------------------------------------------


def test_an_outage_is_seen_in_each_part(world, local) -> None:
    """Why, since when, and that it is over; an alert fires once and clears once."""
    hook = RecordingHook()
    client = world.client(local)
    breaker = CircuitBreaker("db", failure_threshold=1, reset_timeout=0.2, on_event=hook)
    protected = protect(client, breaker=breaker, retry=RetryConfig(attempts=1))
    mails = queue_processor(protected, "mails", world.handler(print), on_event=hook)
    projects = realtime_listener(
        client, "projects", recovery=Recovery.by_column("updated_at"), on_event=hook
    )
    orders = server_side_verification(client, "orders", rules=RULES, interval=0.1, on_event=hook)
    app = make(
        world,
        protected,
        mails,
        projects,
        orders,
        alerts=[Alert("db", when=lambda stats: stats["breaker:db"].state != "closed")],
        on_event=hook,
        check_every=0.05,
    )
    world.do(app.start)
    try:
        eventually(lambda: "ok" == app.health().status)
        local.postgres.stop()
        _ask_until(world, protected, lambda: "closed" != breaker.get_state())
        for kind in ("breaker", "queue", "listener", "verification"):
            part = eventually(lambda kind=kind: _sick(app, kind))
            assert part.reason
            assert part.since > 1.7e9
        assert "degraded" == app.health().status
        eventually(lambda: ("db",) == app.alerts_firing())
        local.postgres.start()
        _ask_until(world, protected, lambda: "closed" == breaker.get_state())
        eventually(lambda: "ok" == app.health().status)
        eventually(lambda: () == app.alerts_firing())
    finally:
        local.postgres.start()
        world.do(app.stop)
    fired = [name for name in hook.names if name.startswith("alert.")]
    assert ["alert.fired", "alert.cleared"] == fired[:2]


def _sick(app, kind: str):
    (part,) = [part for part in app.health().parts if part.kind == kind]
    return part if part.status == "degraded" else None


def _ask_until(world, client, condition) -> None:
    def ask() -> bool:
        try:
            world.do(client.table("orders").select("id").execute)
        except Exception:  # noqa: BLE001 - it is down, or refused
            return condition()
        return condition()

    eventually(ask)


# --- spans of the patterns ------------------------------------------------------------------------


def test_calls_changes_and_batches_have_spans(world, local) -> None:
    """Each says where it was and how it ended, and nothing of what was in it."""
    hook = SpanHook()
    client = world.client(local)
    protected = protect(client, breaker=CircuitBreaker("db", on_event=hook))
    world.do(protected.table("orders").select("status").eq("status", "secret").execute)
    call = {"breaker": "db", "method": "GET", "table": "orders"}
    assert [("begin", "resilience.call", call), ("end", "resilience.call", None)] == hook.spans
    hook.spans.clear()
    orders = server_side_verification(client, "orders", rules=RULES, on_event=hook)
    world.do(orders.run_once)
    read = {"verification": "public.orders", "command": "Read"}
    assert ("begin", "verification.batch", read) in hook.spans
    hook.spans.clear()
    seen = threading.Event()
    projects = realtime_listener(
        client,
        "projects",
        recovery=Recovery.by_column("updated_at"),
        start_from="beginning",
        on_event=hook,
    )
    world.do(projects.on_change, "mine", world.handler(lambda _: seen.set()))
    world.do(protected.table("projects").upsert({"id": 1, "name": "secret"}).execute)
    hook.spans.clear()
    world.do(projects.start)
    assert seen.wait(SOON)
    world.do(projects.stop)
    facts = {"listener": "public.projects", "handler": "mine", "type": "INSERT"}
    (begun, *_) = [span for span in hook.spans if span[1] == "listener.handler"]
    assert facts.items() <= begun[2].items()
    assert "secret" not in repr(hook.spans)
