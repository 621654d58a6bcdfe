"""What handlers, hooks and signals do to the workers of a queue, and which use is refused."""

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from supabase_resilience import (
    AsyncQueueProcessor,
    MemoryQueue,
    QueueError,
    QueueProcessor,
    current_job,
)
from supabase_resilience.queues import _async_crew
from supabase_resilience.queues._jobs import Job
from supabase_resilience.queues._sync_crew import Worker

from .test_processors import SOON, Bench, Sync, world

__all__ = ["world"]  # a fixture


@pytest.fixture
def bench(world) -> Iterator[Bench]:
    """In memory, in both colours: the store plays no part in this."""
    made = Bench(world, ("memory", None))
    yield made
    for processor in made.made:
        made.run(processor.stop(drain=False, timeout=0.5))


# --- hooks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [{}, {"handler_timeout": SOON}])
def test_a_hook_that_ends_the_process_at_a_success(bench, limit):
    """Nothing starts after it, and what waits is not lost."""

    def tell(event: Any) -> None:
        if event.name == "job.succeeded":
            raise SystemExit("enough")

    queue = bench.make(on_event=tell, **limit)
    queue.pause()
    bench.run(queue.enqueue_many(range(3)))
    queue.resume()
    with pytest.raises(SystemExit, match="enough"):
        bench.run(queue.run())
    stats = queue.get_stats()
    assert ([0], "stopped", 0) == (bench.seen, stats.state, stats.in_flight)
    assert 2 <= stats.waiting


def test_a_hook_that_ends_the_process_at_a_handler_that_hangs(bench):
    """`run()` raises it; the job waits again."""
    release = threading.Event()

    def tell(event: Any) -> None:
        if event.name == "queue.handler_abandoned":
            raise SystemExit("enough")

    made: Any = QueueProcessor if isinstance(bench.world, Sync) else AsyncQueueProcessor
    queue = made(lambda _: release.wait(SOON), handler_timeout=0.02, on_event=tell)
    bench.made.append(queue)
    with pytest.raises(SystemExit, match="enough"):
        bench.run_with(queue, "x")
    release.set()
    assert ("stopped", 1) == (queue.get_stats().state, queue.get_stats().waiting)


def test_an_async_on_error_is_awaited():
    """Before the job is tried again."""
    seen: list[Any] = []

    async def handle(_: Any) -> None:
        seen.append(current_job().attempt)
        if len(seen) == 1:
            raise ValueError

    async def on_error(error: Exception, job: Job) -> None:
        await asyncio.sleep(0)
        seen.append((type(error).__name__, job.attempt))

    async def main() -> None:
        queue = AsyncQueueProcessor(handle, on_error=on_error, retry_delay=0.0)
        await queue.enqueue("x")
        assert await queue.join()
        await queue.stop()

    asyncio.run(main())
    assert [1, ("ValueError", 1), 2] == seen


def test_a_job_in_memory_has_no_lease(bench):
    """Nobody else can get it."""
    lefts: list[Any] = []
    queue = bench.make(lambda _: lefts.append(current_job().lease_left()))
    bench.run(queue.enqueue("x"))
    assert bench.run(queue.join(SOON))
    assert [None] == lefts


def test_a_dead_letter_is_replayed_beside_another_of_its_key(bench):
    """Both are wanted now; the one that waits keeps the key."""
    is_broken = threading.Event()
    is_broken.set()

    def handle(data: Any) -> None:
        if is_broken.is_set():
            raise ValueError
        bench.seen.append((data, current_job().dedupe_key))

    queue = bench.make(handle, max_retries=0)
    dead = bench.run(queue.enqueue("dead", dedupe_key="k"))
    assert bench.run(queue.join(SOON))
    is_broken.clear()
    queue.pause()
    bench.run(queue.enqueue("waits", dedupe_key="k"))
    bench.run(queue.replay(dead))
    queue.resume()
    assert bench.run(queue.join(SOON))
    assert {("waits", "k"), ("dead", None)} == set(bench.seen)


def test_a_queue_in_memory_shows_its_name_and_how_much_waits():
    """And nothing of what is in it."""
    memory = MemoryQueue("mails")
    memory.put(Job("1", "secret"))
    assert "<MemoryQueue 'mails', 1 waiting>" == repr(memory)


# --- handlers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [ValueError, SystemExit])
def test_an_error_within_its_time_is_an_error(bench, end):
    """A handler timeout changes nothing for a handler that keeps it."""

    def handle(_: Any) -> None:
        raise end("said")

    queue = bench.make(handle, handler_timeout=SOON, max_retries=0)
    bench.run(queue.enqueue("x"))
    raised = pytest.raises(end, match="said") if end is SystemExit else contextlib.nullcontext()
    with raised:
        bench.run(queue.run(until_empty=True))
    stats = queue.get_stats()
    expected = (0, 1) if end is SystemExit else (1, 0)
    assert expected == (stats.dead, stats.waiting)


def test_what_a_stop_cancels_waits_for_the_next_start():
    """A handler with a limit of its own is canceled as any other, and its job is not lost."""
    seen: list[Any] = []
    is_running = asyncio.Event()

    async def handle(data: Any) -> None:
        seen.append(data)
        is_running.set()
        if len(seen) == 1:
            await asyncio.Event().wait()

    async def main() -> None:
        queue = AsyncQueueProcessor(handle, handler_timeout=SOON)
        await queue.enqueue("x")
        await is_running.wait()
        await queue.stop(timeout=0.0)
        assert (1, 0) == (queue.get_stats().waiting, queue.get_stats().in_flight)
        await queue.start()
        assert await queue.join(SOON)
        await queue.stop()

    asyncio.run(main())
    assert ["x", "x"] == seen


def test_a_task_that_cannot_be_canceled_is_left_alone(monkeypatch):
    """It is told, its attempt has failed, and the next job runs beside it."""
    monkeypatch.setattr(_async_crew, "_GRACE", 0.01)
    seen: list[Any] = []
    may_end = asyncio.Event()

    async def handle(data: Any) -> None:
        while data == "stubborn" and not may_end.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await may_end.wait()
        seen.append(data)

    async def main() -> None:
        queue = AsyncQueueProcessor(handle, handler_timeout=0.01, max_retries=0)
        await queue.enqueue_many(["stubborn", "next"])
        assert await queue.join(SOON)
        assert ["next"] == seen
        may_end.set()
        await queue.stop()
        stats = queue.get_stats()
        assert (1, 1, 1) == (stats.abandoned, stats.dead, stats.succeeded)

    asyncio.run(main())


def test_a_handler_that_cancels_itself_has_failed():
    """Nobody has canceled the worker, so it lives, and the job is tried again."""
    attempts: list[int] = []
    told: list[Exception] = []

    async def handle(_: Any) -> None:
        attempts.append(current_job().attempt)
        if len(attempts) == 1:
            raise asyncio.CancelledError

    async def main() -> None:
        queue = AsyncQueueProcessor(
            handle, retry_delay=0.0, on_error=lambda error, _: told.append(error)
        )
        await queue.enqueue("x")
        assert await queue.join(SOON)
        await queue.stop()

    asyncio.run(main())
    assert [1, 2] == attempts
    assert ["the handler was canceled, and not by its queue"] == [str(error) for error in told]


def test_a_plain_function_that_hands_out_a_coroutine(bench):
    """An async queue awaits it; a sync one cannot, and says so."""

    async def work(data: Any) -> None:
        bench.seen.append(data)

    made: Any = QueueProcessor if isinstance(bench.world, Sync) else AsyncQueueProcessor
    coroutines = []

    def handle(data: Any) -> Any:
        coroutines.append(work(data))
        return coroutines[-1]

    queue = made(handle, max_retries=0)
    bench.made.append(queue)
    bench.run(queue.enqueue("x"))
    assert bench.run(queue.join(SOON))
    letters = [letter.error for letter in bench.run(queue.dead_letters())]
    if isinstance(bench.world, Sync):
        coroutines[0].close()
        assert ([], ["TypeError"]) == (bench.seen, letters)
    else:
        assert (["x"], []) == (bench.seen, letters)


def test_an_error_that_comes_too_late_changes_nothing():
    """The attempt has failed already when an abandoned handler raises."""
    release, has_ended = threading.Event(), threading.Event()

    def handle(_: Any) -> None:
        release.wait(SOON)
        has_ended.set()
        raise ValueError

    queue = QueueProcessor(handle, handler_timeout=0.02, max_retries=0)
    queue.enqueue("x")
    assert queue.join(SOON)
    release.set()
    assert has_ended.wait(SOON)
    assert queue.stop()
    assert (1, 1) == (queue.get_stats().failed, queue.get_stats().dead)


def test_a_handler_that_ends_as_it_is_given_up_keeps_its_place():
    """Nobody takes it over, and nothing is told of it."""
    queue = QueueProcessor(print)
    worker = Worker(queue._crew)
    queue._crew.workers = {worker}
    queue._crew._replace(worker, Job("1", None), 1.0)
    assert {worker} == queue._crew.workers
    assert (False, 0) == (worker.is_abandoned, queue.get_stats().abandoned)
    queue._crew.workers = set()


# --- loops, threads and processes -----------------------------------------------------------------


def test_another_loop_goes_on_where_the_last_one_ended():
    """What waited in memory is handled by the next `asyncio.run()`."""
    seen: list[Any] = []

    async def handle(data: Any) -> None:
        seen.append(data)

    queue = AsyncQueueProcessor(handle)
    asyncio.run(queue.enqueue("first, delayed", delay=0.02))

    async def second() -> None:
        await queue.enqueue("second")
        assert await queue.join(SOON)

    asyncio.run(second())
    assert {"first, delayed", "second"} == set(seen)
    queue.pause()  # from no loop at all, and the last one is closed
    assert "paused" == queue.get_stats().state


def test_a_start_amid_a_stop_is_refused_until_it_has_ended():
    """And then it starts, whoever has noticed the end first."""
    refused: list[str] = []

    async def main() -> None:
        queue = AsyncQueueProcessor(print)
        await queue.start()
        queue.request_stop()
        while queue.get_stats().state == "running":  # noqa: ASYNC110 - its next turns count
            await asyncio.sleep(0)
        while queue.get_stats().state != "running":
            try:
                await queue.start()
            except QueueError as error:
                refused.append(str(error))
            await asyncio.sleep(0)
        await queue.stop()

    asyncio.run(main())
    assert refused
    assert all("is stopping" in text for text in refused)


def test_a_start_ends_a_stop_that_nobody_has_ended_yet():
    """Its last worker has gone, and the thread that looks after it has not seen it."""
    queue = QueueProcessor(print)
    end_stop, is_free = queue._end_stop, threading.Event()

    def end_stop_late() -> None:
        if threading.current_thread() is not threading.main_thread():
            is_free.wait(SOON)
        end_stop()

    queue._end_stop = end_stop_late  # type: ignore[method-assign]
    queue.start()
    queue.request_stop()
    while not (queue.get_stats().state == "stopping" and queue._has_ended()):
        is_free.wait(0.001)
    queue.start()
    assert "running" == queue.get_stats().state
    is_free.set()
    queue.enqueue("x")
    assert queue.join(SOON)
    assert queue.stop()


def test_a_canceled_run_is_canceled():
    """Without a signal it is the caller's own doing."""

    async def main() -> None:
        queue = AsyncQueueProcessor(print)
        running = asyncio.create_task(queue.run())
        while queue.get_stats().state != "running":  # noqa: ASYNC110 - its next turns count
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await queue.stop()

    asyncio.run(main())


PROGRAM = """
import atexit, threading
from supabase_resilience import QueueProcessor
may_go = threading.Event()
def handle(data):
    may_go.wait(20)
    print(data)
queue = QueueProcessor(handle)
queue.enqueue_many(range(3))
atexit.register(may_go.set)
"""


def test_the_end_of_a_program_waits_for_its_jobs():
    """Nobody has called `stop()`; the threads are daemons all the same."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=SOON
    )
    assert ["0", "1", "2"] == done.stdout.split()


# --- what is refused ------------------------------------------------------------------------------


def test_other_colours_are_refused(world):
    """Each names what is to be used instead."""

    async def handle(_: Any) -> None: ...

    class Stores:
        def exchange(self) -> None: ...

    class AsyncStores:
        async def exchange(self) -> None: ...

    if isinstance(world, Sync):
        made, other, wrong = (
            QueueProcessor,
            AsyncStores(),
            "store is async, use AsyncQueueProcessor",
        )
        with pytest.raises(TypeError, match="process must not be async here, use AsyncQueue"):
            QueueProcessor(handle)
    else:
        made, other, wrong = AsyncQueueProcessor, Stores(), "store is sync, use QueueProcessor"
    with pytest.raises(TypeError, match=wrong):
        made(print, store=other)
    with pytest.raises(TypeError, match=r"store must be a MemoryQueue or an? .*SupabaseQueue, got"):
        made(print, store="mails")


@pytest.mark.parametrize(
    ("priority", "error", "said"),
    [
        (2**31, ValueError, "priority must be <= 2147483647, got 2147483648"),
        (-(2**31), ValueError, "priority must be >= -2147483647"),
        (True, TypeError, "priority must be a whole number, got True"),
        (1.5, TypeError, "priority must be a whole number, got 1.5"),
    ],
)
def test_a_priority_that_no_column_holds_is_refused(bench, priority, error, said):
    """It is an integer of PostgreSQL, but for its smallest."""
    queue = bench.make()
    with pytest.raises(error, match=said):
        bench.run(queue.enqueue("x", priority))
    bench.run(queue.enqueue("x", 2**31 - 1))
    bench.run(queue.enqueue("x", -(2**31) + 1))
    assert bench.run(queue.join(SOON))
    assert ["x", "x"] == bench.seen
