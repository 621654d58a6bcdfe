"""What once went wrong in a processor's life: a job lost, a wait without end."""

import asyncio
import os
import threading
import time
from collections.abc import Collection, Iterator
from typing import Any

import pytest

from supabase_resilience import (
    AsyncQueueProcessor,
    MemoryQueue,
    Postpone,
    QueueError,
    QueueProcessor,
)
from supabase_resilience.queues._core import Core
from supabase_resilience.queues._decisions import Recent, judge
from supabase_resilience.queues._jobs import Job
from supabase_resilience.queues._store import Abilities, Exchange
from supabase_resilience.testing import FakeClock, RecordingHook

from .test_choices import settings
from .test_processors import SOON, Async, Bench, world

__all__ = ["world"]  # a fixture


@pytest.fixture
def bench(world) -> Iterator[Bench]:
    """In memory, in both colours: the store plays no part in most of this."""
    made = Bench(world, ("memory", None))
    yield made
    for processor in made.made:
        made.run(processor.stop(drain=False, timeout=0.5))


def come_true(bench: Bench, condition: Any) -> bool:
    """Let the loop run, or the threads, until it does."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        if condition():
            return True
        if isinstance(bench.world, Async):
            bench.run(asyncio.wait_for(asyncio.shield(asyncio.sleep(0)), 1.0))
        else:
            threading.Event().wait(0.002)
    return False


# --- jobs in hand --------------------------------------------------------------------------------


def test_a_thread_that_was_left_behind_takes_no_more_jobs():
    """It ends as soon as its handler does: its place is another's, and nobody hears it."""
    let_go, threads = threading.Event(), []

    def handle(data: Any) -> None:
        if data == "slow":
            threads.append(threading.current_thread())
            let_go.wait(SOON)
        elif data == 0:
            let_go.set()  # while others wait
            threads[0].join(0.5)

    queue = QueueProcessor(handle, handler_timeout=1.0, max_retries=0, on_event=RecordingHook())
    queue.enqueue("slow")
    assert queue.join(SOON)
    queue.enqueue_many(range(20))
    assert queue.join(SOON / 4)
    assert not threads[0].is_alive()
    assert 20 == queue.get_stats().succeeded
    queue.stop()


def test_a_job_that_is_taken_as_all_are_given_up_waits_again():
    """Between taking it and calling its handler, nobody else can see it."""
    seen: list[Any] = []
    queue = QueueProcessor(seen.append, clock=FakeClock())
    queue.enqueue("x")
    crew = queue._crew
    from supabase_resilience.queues._sync_crew import Worker  # noqa: PLC0415

    worker = Worker(crew)
    worker.is_abandoned = True
    job = queue._core.ready.take()
    assert job is not None
    crew.handle(job, worker)
    assert [] == seen
    assert (1, 0) == (queue._core.ready.waiting, queue._core.ready.in_hand)


def test_a_due_job_is_started_by_whoever_is_idle():
    """Also when the task that waited for its time has taken another job."""
    late = asyncio.Event()
    seen: list[Any] = []

    async def handle(data: Any) -> None:
        if data == "late":
            late.set()
        else:
            await late.wait()
        seen.append(data)

    async def main() -> None:
        queue = AsyncQueueProcessor(handle, concurrency=4)
        await queue.start()
        await queue.enqueue("late", delay=0.05)
        for _ in range(5):
            await asyncio.sleep(0)
        await queue.enqueue("waits for it")
        assert await queue.join(SOON / 4)
        await queue.stop()

    asyncio.run(main())
    assert ["late", "waits for it"] == sorted(seen)


def test_a_canceled_worker_leaves_nothing_in_hand():
    """Handlers that never wait are canceled only between two jobs."""

    async def handle(_: Any) -> None:
        return None

    async def main() -> None:
        queue = AsyncQueueProcessor(handle)
        queue.pause()
        await queue.enqueue_many(range(500))
        await queue.start()
        queue.resume()
        for _ in range(3):
            await asyncio.sleep(0)
        await queue.stop(timeout=0.0)
        assert 0 == queue.get_stats().in_flight
        await queue.start()
        assert await queue.join(SOON)
        await queue.stop()

    asyncio.run(main())


@pytest.mark.parametrize("hook", ["on_error", "on_event"])
@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt])
def test_a_hook_that_ends_the_process_loses_no_job(bench, hook, end):
    """It drains, then propagates, as from a handler; the job is settled or waits."""

    def fail(*_: Any) -> None:
        if hook == "on_error" or _[0].name == "job.failed":
            raise end

    def handle(data: Any) -> None:
        raise ValueError(data)

    queue = bench.make(handle, retry_delay=60.0, backoff=1.0, **{hook: fail})
    bench.run(queue.enqueue("x"))
    with pytest.raises(end):
        bench.run(queue.run())
    stats = queue.get_stats()
    assert ("stopped", 1, 0) == (stats.state, stats.waiting, stats.in_flight)


# --- breaks --------------------------------------------------------------------------------------


def test_a_job_that_was_being_tried_does_not_outlive_a_stop(bench):
    """The next start tries another one."""
    if isinstance(bench.world, Async):
        pytest.skip("the same line of Core; an async handler would need a loop of its own")
    let_go, is_trying = threading.Event(), threading.Event()
    calls: list[Any] = []

    def handle(data: Any) -> None:
        calls.append(data)
        if len(calls) == 1:
            raise ConnectionError
        if len(calls) == 2:
            is_trying.set()
            let_go.wait(SOON)

    queue = bench.make(handle)
    queue.enqueue("x")
    assert is_trying.wait(SOON)
    assert not queue.stop(timeout=0.0)
    queue.start()
    assert queue.join(SOON)
    let_go.set()


def test_one_at_a_time_is_tried():
    """Asking and claiming are one step."""
    clock = FakeClock()
    books = Core(None, settings(), None, RecordingHook(), clock).books
    books.brake.hit(None)
    clock.advance(60.0)
    assert [True, False, False] == [books.claim_start() for _ in range(3)]
    books.brake.tried_in_vain()
    assert books.claim_start()


def test_a_job_that_yields_lets_others_pass():
    """`Postpone(0, pause=False)` waits a tenth of a second at least, or it would spin alone."""
    job = Job("1", None, enqueued_at=4e9)
    assert 0.1 == judge(job, Postpone(0.0, pause=False), settings()).delay
    assert 5.0 == judge(job, Postpone(5.0, pause=False), settings()).delay
    assert 0.0 == judge(job, Postpone(0.0), settings()).delay


# --- waits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["enqueue", "start"])
def test_a_requested_stop_ends_by_itself(bench, way):
    """Nobody has to call `stop()` for it to come to its end, and to start again."""
    queue = bench.make()
    bench.run(queue.start())
    queue.request_stop()
    assert come_true(bench, lambda: queue.get_stats().state == "stopped")
    bench.run(queue.enqueue("x") if way == "enqueue" else queue.start())
    bench.run(queue.enqueue("y"))
    assert bench.run(queue.join(SOON))
    assert "y" in bench.seen


def test_a_start_amid_a_stop_is_refused():
    """Silence would look like a start."""
    is_running, may_end = threading.Event(), threading.Event()

    def handle(_: Any) -> None:
        is_running.set()
        may_end.wait(SOON)

    queue = QueueProcessor(handle)
    queue.enqueue("x")
    assert is_running.wait(SOON)
    queue.request_stop()
    while queue.get_stats().state != "stopping":
        threading.Event().wait(0.001)
    with pytest.raises(QueueError, match="is stopping"):
        queue.start()
    may_end.set()
    assert queue.stop(timeout=SOON)


def test_a_pause_amid_a_stop_does_not_hold_it():
    """What is paused is not worked off, whenever that was said."""
    is_running, may_end = threading.Event(), threading.Event()

    def handle(_: Any) -> None:
        is_running.set()
        may_end.wait(SOON)

    queue = QueueProcessor(handle)
    queue.enqueue_many(range(3))
    assert is_running.wait(SOON)
    ended: list[bool] = []
    stopping = threading.Thread(target=lambda: ended.append(queue.stop(timeout=SOON / 4)))
    stopping.start()
    while queue.get_stats().state != "stopping":
        threading.Event().wait(0.001)
    queue.pause()
    may_end.set()
    stopping.join(SOON)
    assert [True] == ended
    assert 2 == queue.get_stats().waiting


def test_strict_order_hears_a_stop_at_any_moment():
    """Also between a look at the state and the wait for it to change."""
    queue = QueueProcessor(_fail, strict_order=True, retry_delay=60.0, backoff=1.0)
    parking = queue._crew._parking
    enter, is_first = parking.enter, iter([True])

    def stop_then_enter() -> Any:
        if (
            threading.current_thread().name.startswith("queue")
            and queue._core.books.stats(state="running", waiting=0, in_flight=0).failed
            and next(is_first, False)
        ):
            queue._begin_stop(drain=False)
        return enter()

    parking.enter = stop_then_enter  # type: ignore[method-assign]
    queue.enqueue("x")
    deadline = time.monotonic() + SOON / 4
    while queue.get_stats().state != "stopped" and time.monotonic() < deadline:
        threading.Event().wait(0.001)
    assert "stopped" == queue.get_stats().state


def _fail(_: Any) -> None:
    raise ValueError


def test_threads_do_not_pile_up():
    """Every one that a start made is gone some time after the stop."""
    queue = QueueProcessor(print)
    before = threading.active_count()
    for _ in range(20):
        queue.start()
        queue.stop()
    deadline = time.monotonic() + SOON / 4
    while threading.active_count() > before + 1 and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert threading.active_count() <= before + 1


def test_strict_order_holds_in_a_drain(bench):
    """A job that failed is repeated before the others also while a stop works them off."""

    def handle(data: Any) -> None:
        bench.seen.append(data)
        if bench.seen == [1]:
            queue.request_stop()
            raise ValueError

    queue = bench.make(handle, strict_order=True, retry_delay=0.05, backoff=1.0)
    queue.pause()
    bench.run(queue.enqueue_many([1, 2, 3]))
    bench.run(queue.start())
    queue.resume()
    assert come_true(bench, lambda: queue.get_stats().state == "stopped")
    assert [1, 1, 2, 3] == bench.seen


def test_strict_order_holds_over_a_stop_that_does_not_drain(bench):
    """The job that failed is the first one at the next start, its attempt spent."""
    if isinstance(bench.world, Async):
        pytest.skip("the same lines of Core")

    def handle(data: Any) -> None:
        bench.seen.append(data)
        if len(bench.seen) == 1:
            queue._begin_stop(drain=False)
            raise ValueError

    queue = bench.make(handle, strict_order=True, retry_delay=60.0, backoff=1.0)
    queue.pause()
    queue.enqueue_many([1, 2])
    queue.start()
    queue.resume()
    assert come_true(bench, lambda: queue.get_stats().state != "running")
    queue.stop()
    queue.start()
    assert queue.join(SOON)
    assert [1, 1, 2] == bench.seen


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_was_forked_amid_a_count_can_count():
    """Locks that were held at the fork, the break and the counts are the parent's."""
    queue = QueueProcessor(_fail, max_retries=0, on_event=RecordingHook())
    queue._core.books.brake.hit(None)
    with queue._core.books._lock:
        child = os.fork()
        if child == 0:
            queue.enqueue("x")
            ok = queue.join(SOON / 4) and queue.get_stats().failed == 1
            os._exit(0 if ok else 1)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_wakers_may_go_while_others_are_called():
    """Two processors may share a queue in memory; one that stops takes nothing from the other."""
    memory, called = MemoryQueue(), []

    def first() -> None:
        called.append("first")
        memory.unwake(first)

    memory.wake(first)
    memory.wake(lambda: called.append("second"))
    memory.put(Job("1", None))
    assert ["first", "second"] == called


def test_a_queue_that_was_made_anew_has_no_duplicates_of_the_old_one():
    """Messages of others are known by number and time, as numbers begin again."""
    row = {"msg_id": 1, "read_ct": 1, "message": {"any": "thing"}}
    old = Job.from_row({**row, "enqueued_at": "2026-11-24T10:00:00+00:00"}, "q")
    new = Job.from_row({**row, "enqueued_at": "2026-11-24T11:00:00+00:00"}, "q")
    recent = Recent()
    recent.add(old, 30.0)
    assert old in recent
    assert new not in recent


# --- what only a store with a will of its own can show -------------------------------------------


class Willful:
    """A durable queue in a list, whose round trips wait until they are let go."""

    name = "willful"

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.acked: list[str] = []
        self.numbers = iter(range(1, 1000))

    def keep(self, jobs: Collection[Job]) -> list[str]:
        for job in jobs:
            job.message_id = next(self.numbers)
            self.jobs.append(job)
        return [job.id for job in jobs]

    def give(self, settled: Any, limit: int) -> Exchange:
        self.acked += [each.job.id for each in settled if each.kind == "done"]
        given, self.jobs = self.jobs[:limit], self.jobs[limit:]
        return Exchange([each.job.message_id for each in settled], given)


class WillfulQueue(Willful):
    """The sync one: its first read waits."""

    def __init__(self) -> None:
        super().__init__()
        self.is_reading, self.may_end = threading.Event(), threading.Event()

    def check(self, _: Any) -> Abilities:
        return Abilities(is_migrated=True)

    def send(self, _: str, jobs: Any, __: float) -> list[str]:
        return self.keep(jobs)

    def exchange(self, _: str, settled: Any, *, limit: int, **__: Any) -> Exchange:
        if limit and not self.is_reading.is_set():
            empty = self.give(settled, 0)
            self.is_reading.set()
            assert self.may_end.wait(SOON)
            return empty
        return self.give(settled, limit)

    def extend(self, *_: Any) -> Collection[int]:
        return []


def test_an_answer_from_before_an_enqueue_does_not_say_empty():
    """A read that was under way then knows nothing of it."""
    store, seen = WillfulQueue(), []
    queue: Any = QueueProcessor(seen.append, store=store)  # type: ignore[arg-type]
    queue.start()
    assert store.is_reading.wait(SOON)
    queue.enqueue("x")
    joined: list[bool] = []
    joining = threading.Thread(target=lambda: joined.append((queue.join(SOON), list(seen))))
    joining.start()
    while not queue._watching:
        threading.Event().wait(0.001)
    store.may_end.set()
    joining.join(SOON)
    assert [(True, ["x"])] == joined
    queue.stop(timeout=SOON)


class SlowAcks(Willful):
    """The async one, stock: acks take their time."""

    def __init__(self) -> None:
        super().__init__()
        self.is_acking, self.may_end = asyncio.Event(), asyncio.Event()

    async def check(self, _: Any) -> Abilities:
        return Abilities()

    async def send(self, _: str, jobs: Any, __: float) -> list[str]:
        return self.keep(jobs)

    async def exchange(self, _: str, settled: Any, *, limit: int, **__: Any) -> Exchange:
        if settled:
            self.is_acking.set()
            await self.may_end.wait()
        return self.give(settled, limit)

    async def extend(self, *_: Any) -> Collection[int]:
        return []


def test_a_stop_that_runs_out_of_time_lets_an_ack_through():
    """The job is done; canceling its ack would have it done twice."""

    async def handle(_: Any) -> None:
        return None

    async def main() -> None:
        store = SlowAcks()
        queue = AsyncQueueProcessor(handle, store=store)  # type: ignore[arg-type]
        made = await queue.enqueue("x")
        await queue.start()
        await store.is_acking.wait()
        asyncio.get_running_loop().call_later(0.05, store.may_end.set)
        await queue.stop(timeout=0.0)
        assert [made] == store.acked

    asyncio.run(main())
