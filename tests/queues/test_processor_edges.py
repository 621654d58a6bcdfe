"""The edges of a processor's life: what hangs, what ends meanwhile, what one job does to others."""

import asyncio
import threading
from typing import Any

import pytest

from supabase_resilience import AsyncQueueProcessor, Postpone, QueueProcessor, current_job

from .test_processors import SOON, Async, Bench, Sync, bench, kind, world

__all__ = ["bench", "kind", "world"]  # fixtures


def hanging(bench: Bench, handler: Any = None, **options: Any) -> Any:
    """A processor whose handler waits for ever at the job "hangs", in the way of its colour."""
    release = threading.Event()

    def handle(data: Any) -> None:
        if data == "hangs":
            release.wait(SOON)
        else:
            bench.seen.append(data)

    async def handle_async(data: Any) -> None:
        if data == "hangs":
            await asyncio.Event().wait()
        bench.seen.append(data)

    made = QueueProcessor if isinstance(bench.world, Sync) else AsyncQueueProcessor
    chosen: Any = handle if isinstance(bench.world, Sync) else handle_async
    options = {"retry_delay": 0.01, "visibility_timeout": 5.0, "on_event": bench.hook, **options}
    queue: Any = made(handler or chosen, store=bench.store(), **options)
    queue.let_go = release.set
    bench.made.append(queue)
    return queue


# --- one job and the others -----------------------------------------------------------------------


def test_a_failing_job_touches_no_other(bench):
    """The others are handled once each, with one attempt, beside it."""

    def handle(data: Any) -> None:
        if data == 3:
            raise ValueError
        bench.seen.append((data, current_job().attempt))

    queue = bench.make(handle, concurrency=2, max_retries=1)
    bench.run(queue.enqueue_many(range(8)))
    bench.work_off(queue)
    assert [(number, 1) for number in range(8) if number != 3] == sorted(bench.seen)
    assert (2, 1) == (queue.get_stats().failed, queue.get_stats().dead)


def test_a_delayed_job_lets_others_pass(bench):
    """It runs when its time has come, also when it was enqueued first."""
    queue = bench.make()
    bench.run(queue.enqueue("late", delay=1.0))
    bench.run(queue.enqueue("early"))
    bench.work_off(queue)
    assert ["early", "late"] == bench.seen


def test_an_outage_keeps_the_attempts_that_were_spent_before(bench):
    """The attempt that met it is the one that is repeated."""
    outcomes = iter([ValueError(), ConnectionError(), None])

    def handle(_: Any) -> None:
        bench.seen.append(current_job().attempt)
        if (error := next(outcomes)) is not None:
            raise error

    told: list[str] = []
    queue = bench.make(
        handle,
        visibility_timeout=1.0,
        on_error=lambda error, _: told.append(type(error).__name__),
    )
    bench.run(queue.enqueue("x"))
    bench.work_off(queue)
    assert [1, 2, 2] == bench.seen
    assert ["ValueError"] == told


def test_a_job_that_postpones_itself_alone_pauses_nobody(bench):
    """`Postpone(…, pause=False)` is about one job."""

    def handle(data: Any) -> None:
        if data == "later" and not bench.seen:
            raise Postpone(0.05, pause=False)
        bench.seen.append(data)

    queue = bench.make(handle, visibility_timeout=1.0)
    bench.run(queue.enqueue_many(["later", "now"]))
    bench.work_off(queue)
    assert {"later", "now"} == set(bench.seen)
    assert "queue.paused" not in bench.hook.names


def test_dead_letters_can_be_purged(bench):
    """The number of them is returned, and none is left."""

    def handle(_: Any) -> None:
        raise ValueError

    queue = bench.make(handle, max_retries=0)
    bench.run(queue.enqueue_many(range(3)))
    bench.work_off(queue)
    assert 3 == len(bench.run(queue.dead_letters()))
    assert 2 == len(bench.run(queue.dead_letters(limit=2)))
    assert 3 == bench.run(queue.purge_dead_letters())
    assert [] == bench.run(queue.dead_letters())


def test_metrics_are_of_the_queue_itself(bench):
    """Also while nothing works on it; stock functions cannot tell how many are ready."""
    queue = bench.make()
    queue.pause()
    bench.run(queue.enqueue_many(["a", "b"]))
    told = bench.run(queue.metrics())
    ready = None if bench.kind == "stock" else 2
    assert (queue.name, ready) == (told.queue, told.ready)


# --- what hangs -----------------------------------------------------------------------------------


def test_a_hanging_attempt_fails_and_is_repeated(bench):
    """With a handler timeout: told to `on_error`, while others go on; the last one is its end."""
    told: list[tuple[str, int]] = []
    queue = hanging(
        bench,
        handler_timeout=0.05,
        max_retries=1,
        on_error=lambda error, job: told.append((type(error).__name__, job.attempt)),
    )
    bench.run(queue.enqueue("hangs"))
    bench.run(queue.enqueue("works"))
    bench.work_off(queue)
    queue.let_go()
    assert ["works"] == bench.seen
    assert [("HandlerTimeoutError", 1), ("HandlerTimeoutError", 2)] == told
    (letter,) = bench.run(queue.dead_letters())
    assert ("hangs", 2) == (letter.data, letter.attempts)


def test_a_stop_does_not_wait_for_ever(bench):
    """It says that something still ran, and the queue has stopped all the same."""
    queue = hanging(bench)
    bench.run(queue.enqueue("hangs"))
    bench.run(queue.start())
    bench.wait_until(lambda: queue.get_stats().in_flight, queue)
    assert not bench.run(queue.stop(timeout=0.05))
    assert "stopped" == queue.get_stats().state
    assert bench.run(queue.stop())
    queue.let_go()


def test_what_a_stop_left_behind_in_memory_waits_for_the_next_start():
    """At least once: nobody knows whether a handler that was left alone will end."""
    release, seen, is_running = threading.Event(), [], threading.Event()

    def handle(data: Any) -> None:
        seen.append(data)
        is_running.set()
        release.wait(SOON)

    queue = QueueProcessor(handle)
    queue.enqueue("x")
    assert is_running.wait(SOON)
    assert not queue.stop(timeout=0.0)
    assert 1 == queue.get_stats().waiting
    release.set()
    queue.start()
    assert queue.join(SOON)
    assert ["x", "x"] == seen
    assert queue.stop()


def test_a_result_that_comes_too_late_changes_nothing():
    """The attempt has failed already when an abandoned handler returns."""
    release, has_ended = threading.Event(), threading.Event()

    def handle(_: Any) -> None:
        release.wait(SOON)
        has_ended.set()

    queue = QueueProcessor(handle, handler_timeout=0.02, max_retries=0)
    queue.enqueue("x")
    assert queue.join(SOON)
    release.set()
    assert has_ended.wait(SOON)
    assert queue.stop()
    stats = queue.get_stats()
    assert (0, 1, 1, 0) == (stats.succeeded, stats.failed, stats.dead, stats.in_flight)


# --- starting and stopping ------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_stop_within_a_handler_only_asks_for_it(bench, timeout):
    """No deadlock: it returns False, the handler goes on, and `run()` ends."""

    def handle(data: Any) -> None:
        bench.seen.append((data, queue.stop()))

    async def handle_async(data: Any) -> None:
        bench.seen.append((data, await queue.stop()))

    chosen = handle if isinstance(bench.world, Sync) else handle_async
    queue = hanging(bench, chosen, handler_timeout=timeout)
    bench.run_with(queue, "x")
    assert [("x", False)] == bench.seen
    assert "stopped" == queue.get_stats().state


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_a_handler_may_run_a_queue_of_its_own(bench, timeout):
    """The stop of that other queue waits as it does anywhere else."""

    def handle(data: Any) -> None:
        with QueueProcessor(bench.seen.append) as inner:
            inner.enqueue(data)
        bench.seen.append(inner.get_stats().state)

    async def handle_async(data: Any) -> None:
        async def note(data: Any) -> None:
            bench.seen.append(data)

        async with AsyncQueueProcessor(note) as inner:
            await inner.enqueue(data)
        bench.seen.append(inner.get_stats().state)

    chosen = handle if isinstance(bench.world, Sync) else handle_async
    queue = hanging(bench, chosen, handler_timeout=timeout)
    bench.run(queue.enqueue("x"))
    bench.work_off(queue)
    assert ["x", "stopped"] == bench.seen


def test_a_stop_asked_for_while_it_starts_is_kept(bench):
    """Such as by a signal between the check of the queue and the first worker."""
    queue = bench.make()
    begin = queue._core.begin  # the moment in the middle of start()

    def begin_and_ask() -> None:
        queue.request_stop()
        begin()

    queue._core.begin = begin_and_ask
    bench.run(queue.run())
    assert "stopped" == queue.get_stats().state


def test_starting_and_stopping_twice_is_once(bench):
    """Neither a second start nor a second stop, nor a stop before all, does anything."""
    queue = bench.make()
    assert bench.run(queue.stop())
    bench.run(queue.start())
    bench.run(queue.start())
    bench.run(queue.enqueue("x"))
    bench.work_off(queue)
    assert bench.run(queue.stop())
    assert ["x"] == bench.seen


def test_a_queue_in_memory_starts_with_its_first_job(bench):
    """A durable one is a matter of whoever works."""
    queue = bench.make()
    bench.run(queue.enqueue("x"))
    assert ("running" if bench.kind == "memory" else "new") == queue.get_stats().state


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_lets_others_finish(bench, end):
    """A job that is in hand beside it is done before it propagates."""
    if isinstance(bench.world, Async):
        pytest.skip("two handlers at once need threads or awaits; the wait is the same code")
    both = threading.Barrier(2)

    def handle(data: Any) -> None:
        both.wait(SOON)
        if data == "ends":
            raise end
        bench.seen.append(data)

    queue = bench.make(handle, concurrency=2)
    bench.run(queue.enqueue_many(["ends", "works"]))
    with pytest.raises(end):
        bench.run(queue.run())
    assert ["works"] == bench.seen
    assert 0 == queue.get_stats().in_flight


@pytest.mark.parametrize("strict_order", [False, True])
def test_nothing_starts_after_what_ends_the_process(world, strict_order):
    """Not even the same job again in the moment before the stop."""
    seen: list[Any] = []

    def handle(data: Any) -> None:
        seen.append(data)
        raise SystemExit

    queue = world.processor(handle, None, strict_order=strict_order)
    queue.pause()
    world.run(queue.enqueue_many(range(50)))
    queue.resume()
    with pytest.raises(SystemExit):
        world.run(queue.run())
    assert [0] == seen
    assert 50 == queue.get_stats().waiting


def test_a_long_handler_keeps_its_lease_with_the_migration(bench):
    """It is extended, so the job is delivered once, however long it takes."""
    if bench.kind != "migrated" or isinstance(bench.world, Async):
        pytest.skip("only the migration extends leases; the async link is tested with the store")
    release = threading.Event()

    def handle(_: Any) -> None:
        first = current_job().lease_ends_at
        while current_job().lease_ends_at == first:
            assert not release.wait(0.01)
        bench.seen.append(current_job().deliveries)

    queue = bench.make(handle, visibility_timeout=1.0)
    bench.run(queue.enqueue("x"))
    bench.work_off(queue)
    assert [1] == bench.seen
    assert (0, 0) == (queue.get_stats().lost_leases, queue.get_stats().duplicates)
