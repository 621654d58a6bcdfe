"""What a processor promises, in both colours, on every store it can have."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from supabase_resilience import (
    AsyncQueueProcessor,
    AsyncSupabaseQueue,
    CircuitOpenError,
    MemoryQueue,
    Postpone,
    QueueError,
    QueueProcessor,
    SupabaseQueue,
    current_job,
)
from supabase_resilience.local import LocalSupabase
from supabase_resilience.testing import RecordingHook

from .worlds import MIGRATION, AsyncWorld, SyncWorld, migrate

SOON = 20.0
_A_MOMENT = threading.Event()
_names = (f"work{number}" for number in itertools.count(1))


class Sync(SyncWorld):
    """Handlers are plain functions."""

    def processor(self, handler: Any, store: Any, **options: Any) -> Any:
        return QueueProcessor(handler, store=store, **options)

    def store(self, local: LocalSupabase, name: str) -> Any:
        return SupabaseQueue(self.client(local), name)


class Async(AsyncWorld):
    """Handlers are coroutine functions."""

    def processor(self, handler: Any, store: Any, **options: Any) -> Any:
        async def handle(data: Any) -> None:
            handler(data)

        return AsyncQueueProcessor(handler and handle, store=store, **options)

    def store(self, local: LocalSupabase, name: str) -> Any:
        return AsyncSupabaseQueue(self.client(local), name)


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def world(request) -> Iterator[Any]:
    made = request.param()
    yield made
    made.close()


@pytest.fixture(scope="module", params=["memory", "stock", "migrated"])
def kind(request) -> Iterator[tuple[str, LocalSupabase | None]]:
    if request.param == "memory":
        yield request.param, None
        return
    with LocalSupabase() as local:
        if request.param == "migrated":
            migrate(local, MIGRATION)
        yield request.param, local


class Bench:
    """Makes processors on fresh stores, and remembers what their handlers saw."""

    def __init__(self, world: Any, kind: tuple[str, LocalSupabase | None]) -> None:
        self.world, (self.kind, self.local) = world, kind
        self.seen: list[Any] = []
        self.hook = RecordingHook()
        self.made: list[Any] = []

    def make(self, handler: Any = None, **options: Any) -> Any:
        options = {"retry_delay": 0.01, "visibility_timeout": 5.0, "on_event": self.hook, **options}
        made = self.world.processor(handler or self.seen.append, self.store(), **options)
        self.made.append(made)
        return made

    def store(self) -> Any:
        if self.local is None:
            return MemoryQueue()
        name = next(_names)
        self._create(name)
        return self.world.store(self.local, name)

    def _create(self, name: str) -> None:
        assert self.local is not None
        made = (
            "select public.supabase_resilience_queue_create(%s)"
            if self.kind == "migrated"
            else "select pgmq.create(%s), pgmq.create(%s || '_dead'), pgmq.create(%s || '_high')"
        )
        with psycopg.connect(self.local.dsn, autocommit=True) as owner:
            owner.execute(made.encode(), [name] * made.count("%s"))

    def run(self, result: Any) -> Any:
        return self.world.run(result)

    def run_with(self, processor: Any, *jobs: Any) -> None:
        """`run()`, and the jobs come while it runs: a queue in memory starts with its first one."""
        if isinstance(self.world, Async):
            self.run(processor.enqueue_many(jobs))  # nothing else happens before run()
            self.run(processor.run())
            return
        producer = threading.Thread(target=self._enqueue_when_it_runs, args=(processor, jobs))
        producer.start()
        processor.run()
        producer.join()

    def _enqueue_when_it_runs(self, processor: Any, jobs: Any) -> None:
        while processor.get_stats().state != "running":
            _A_MOMENT.wait(0.001)
        processor.enqueue_many(jobs)

    def work_off(self, processor: Any) -> None:
        """Start, wait until nothing is left, stop."""
        self.run(processor.start())
        self.wait_until(lambda: self.is_done(processor), processor)
        self.run(processor.stop())

    def is_done(self, processor: Any) -> bool:
        stats = processor.get_stats()
        return stats.succeeded + stats.dead + stats.duplicates >= stats.enqueued

    def wait_until(self, condition: Any, processor: Any) -> None:
        deadline = time.monotonic() + SOON
        while time.monotonic() < deadline:
            if condition():
                return
            self.run(processor.join(timeout=0.1))
        raise AssertionError(f"it never came: {processor.get_stats()}, {self.hook.events}")


@pytest.fixture
def bench(world, kind) -> Iterator[Bench]:
    made = Bench(world, kind)
    yield made
    for processor in made.made:
        made.run(processor.stop(drain=False, timeout=0.5))


# --- jobs ---------------------------------------------------------------------------------------


def test_every_job_is_handled(bench):
    """All of them once, and the queue is empty then."""
    queue = bench.make(concurrency=4)
    ids = bench.run(queue.enqueue_many(range(40)))
    bench.work_off(queue)
    assert list(range(40)) == sorted(bench.seen)
    assert 40 == len(set(ids)) == queue.get_stats().succeeded


def test_one_at_a_time_is_first_in_first_out(bench):
    """With the default concurrency."""
    queue = bench.make()
    queue.pause()
    for number in range(5):
        bench.run(queue.enqueue(number))
    bench.run(queue.start())
    queue.resume()
    bench.work_off(queue)
    assert [0, 1, 2, 3, 4] == bench.seen


def test_the_more_urgent_comes_first(bench):
    """By lanes where the server knows no priorities."""
    lanes = {10: "_high"} if bench.kind == "stock" else None
    queue = bench.make(lanes=lanes)
    queue.pause()
    for data, priority in (("a", 0), ("b", 0), ("c", 10), ("d", 10)):
        bench.run(queue.enqueue(data, priority))
    bench.run(queue.start())
    queue.resume()
    bench.work_off(queue)
    assert ["c", "d", "a", "b"] == bench.seen


def test_a_failed_attempt_is_repeated(bench):
    """Under the same id, with the attempts counted, and `on_error` told of each failed one."""
    told: list[Any] = []

    def handle(data: Any) -> None:
        bench.seen.append((current_job().id, current_job().attempt))
        if current_job().attempt < 3:
            raise ValueError(data)

    queue = bench.make(handle, on_error=lambda error, job: told.append((str(error), job.attempt)))
    made = bench.run(queue.enqueue("x"))
    bench.work_off(queue)
    assert [(made, 1), (made, 2), (made, 3)] == bench.seen
    assert [("x", 1), ("x", 2)] == told


def test_what_keeps_failing_is_a_dead_letter_and_can_be_replayed(bench):
    """With its reason and traceback; a replay has all attempts before it."""
    is_broken = threading.Event()
    is_broken.set()

    def handle(data: Any) -> None:
        if is_broken.is_set():
            raise LookupError("nobody there")
        bench.seen.append((data, current_job().id, current_job().attempt))

    queue = bench.make(handle, max_retries=1)
    made = bench.run(queue.enqueue({"a": 1}))
    bench.run(queue.start())
    bench.wait_until(lambda: bench.run(queue.dead_letters()), queue)
    (letter,) = bench.run(queue.dead_letters())
    assert (made, {"a": 1}, 2, "LookupError") == (
        letter.id,
        letter.data,
        letter.attempts,
        letter.error,
    )
    assert "failed 2 times" == letter.reason
    assert "nobody there" in letter.traceback
    is_broken.clear()
    bench.run(queue.replay(made))
    bench.wait_until(lambda: bench.seen, queue)
    assert [({"a": 1}, made, 1)] == bench.seen
    with pytest.raises(QueueError, match="no dead letter"):
        bench.run(queue.replay(made))


@pytest.mark.parametrize(
    "outage", [ConnectionRefusedError("down"), CircuitOpenError("b", 0.01), Postpone(0.0)]
)
def test_an_outage_spends_no_attempt_and_pauses_the_queue(bench, outage):
    """The job is given back, the queue takes a break, told once, and goes on."""
    down = iter([True])

    def handle(data: Any) -> None:
        if next(down, False):
            raise outage
        bench.seen.append(current_job().attempt)

    queue = bench.make(handle, max_retries=0, visibility_timeout=1.0)
    bench.run(queue.enqueue("x"))
    bench.work_off(queue)
    assert [1] == bench.seen
    assert 1 == bench.hook.names.count("queue.paused") == bench.hook.names.count("queue.resumed")
    assert 1 == queue.get_stats().postponed


def test_an_outage_of_half_the_places_ends(bench):
    """With more than one place, a queue that takes a break reads again after it."""
    down = iter([True])

    def handle(data: Any) -> None:
        if next(down, False):
            raise ConnectionResetError
        bench.seen.append(data)

    queue = bench.make(handle, concurrency=8, visibility_timeout=1.0)
    bench.run(queue.enqueue_many(range(12)))
    bench.work_off(queue)
    assert set(range(12)) == set(bench.seen)


def test_what_hooks_raise_changes_nothing(bench):
    """Neither `on_event` nor `on_error` can hurt a job."""

    def fail(*_: Any) -> None:
        raise RuntimeError("hook")

    def handle(data: Any) -> None:
        if current_job().attempt == 1:
            raise ValueError
        bench.seen.append(data)

    queue = bench.make(handle, on_event=fail, on_error=fail)
    bench.run(queue.enqueue("x"))
    bench.work_off(queue)
    assert ["x"] == bench.seen


def test_a_job_that_is_too_old_is_not_run(bench):
    """It becomes a dead letter."""
    queue = bench.make(max_age=1e-6)
    bench.run(queue.enqueue("x"))
    bench.run(queue.start())
    bench.wait_until(lambda: bench.run(queue.dead_letters()), queue)
    assert [] == bench.seen


def test_strict_order_repeats_in_place(bench):
    """All others wait for a failed job."""

    def handle(data: Any) -> None:
        bench.seen.append(data)
        if data == "a" and current_job().attempt < 3:
            raise ValueError

    queue = bench.make(handle, strict_order=True)
    if bench.kind == "stock":
        with pytest.raises(QueueError, match="strict_order"):
            bench.run(queue.start())
        return
    queue.pause()
    bench.run(queue.enqueue("a"))
    bench.run(queue.enqueue("b"))
    bench.run(queue.start())
    queue.resume()
    bench.work_off(queue)
    assert ["a", "a", "a", "b"] == bench.seen


# --- handlers that hang, end the process, or lose their lease -------------------------------------


def test_a_hanging_handler_is_replaced(bench):
    """It fails its attempt, is counted, and delays nobody else."""
    hang = threading.Event()
    if isinstance(bench.world, Async):
        pytest.skip("an async handler that blocks the loop cannot be helped; see the next test")

    def handle(data: Any) -> None:
        if data == "hangs":
            hang.wait(SOON)
        bench.seen.append(data)

    queue = bench.make(handle, handler_timeout=0.05, max_retries=0)
    bench.run(queue.enqueue("hangs"))
    bench.run(queue.enqueue("works"))
    bench.work_off(queue)
    assert ["works"] == bench.seen
    assert 1 == queue.get_stats().abandoned == queue.get_stats().dead
    hang.set()


def test_sync_handlers_of_an_async_processor_hang_on_threads(bench):
    """The same there: a thread of its own is left behind."""
    hang = threading.Event()
    if isinstance(bench.world, Sync):
        pytest.skip("that is the test before")

    def handle(data: Any) -> None:
        if data == "hangs":
            hang.wait(SOON)
        bench.seen.append((data, current_job().id))

    queue = AsyncQueueProcessor(
        handle, store=bench.store(), handler_timeout=0.05, max_retries=0, on_event=bench.hook
    )
    bench.made.append(queue)
    bench.run(queue.enqueue("hangs"))
    made = bench.run(queue.enqueue("works"))
    bench.work_off(queue)
    assert [("works", made)] == bench.seen
    assert 1 == queue.get_stats().abandoned == queue.get_stats().dead
    hang.set()


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_drains_then_propagates(bench, end):
    """The job is not lost, and no attempt of it is spent."""

    def handle(data: Any) -> None:
        if not bench.seen:
            bench.seen.append(current_job().attempt)
            raise end

    queue = bench.make(handle)
    bench.run(queue.enqueue("x"))
    with pytest.raises(end):
        bench.run(queue.run(until_empty=True))
    assert "stopped" == queue.get_stats().state
    assert [1] == bench.seen
    assert (0, 0) == (queue.get_stats().failed, queue.get_stats().dead)


def test_a_lost_lease_is_told_and_its_result_dropped(bench):
    """A handler that is slower than the visibility timeout, and whose lease nobody extends."""
    if bench.kind != "stock" or isinstance(bench.world, Async):
        pytest.skip("memory has no leases, the migration extends them")
    lost = threading.Event()

    def tell(event: Any) -> None:
        bench.hook(event)
        if event.name == "job.lease_lost":
            lost.set()

    def handle(data: Any) -> None:
        if current_job().deliveries == 1:
            assert lost.wait(SOON)
            left = current_job().lease_left()
            assert left is not None
            assert left <= 0
        bench.seen.append(current_job().deliveries)

    queue = bench.make(handle, visibility_timeout=1.0, on_event=tell)
    bench.run(queue.enqueue("x"))
    bench.run(queue.start())
    bench.wait_until(lambda: queue.get_stats().duplicates, queue)
    assert 1 == queue.get_stats().lost_leases
    assert [1] == bench.seen  # the second delivery was of a job that was done here


# --- starting and stopping -----------------------------------------------------------------------


def test_stop_finishes_what_is_in_hand(bench):
    """A running handler is waited for, and then all is said."""
    running = threading.Event()

    def handle(data: Any) -> None:
        running.set()
        bench.seen.append(data)

    queue = bench.make(handle)
    bench.run(queue.enqueue("x"))
    bench.run(queue.start())
    bench.wait_until(running.is_set, queue)
    assert bench.run(queue.stop(timeout=SOON))
    assert ["x"] == bench.seen
    assert 0 == queue.get_stats().in_flight
    assert "stopped" == queue.get_stats().state


def test_a_stop_without_drain_takes_nothing_more():
    """A queue in memory keeps what waits."""
    is_running, may_end = threading.Event(), threading.Event()
    seen: list[Any] = []

    def handle(data: Any) -> None:
        is_running.set()
        assert may_end.wait(SOON)
        seen.append(data)

    queue = QueueProcessor(handle)
    queue.enqueue_many(range(3))
    assert is_running.wait(SOON)
    stopping = threading.Thread(target=lambda: queue.stop(drain=False))
    stopping.start()
    while queue.get_stats().state == "running":
        is_running.wait(0.001)
    may_end.set()
    stopping.join(SOON)
    assert [0] == seen
    assert 2 == queue.get_stats().waiting
    queue.start()
    assert queue.join(SOON)
    assert [0, 1, 2] == seen
    queue.stop()


def test_a_duplicate_does_not_end_a_break():
    """A queue that takes a break tries the next job when the first one was not to be run."""
    seen: list[Any] = []
    down = iter([True])

    def handle(data: Any) -> None:
        if next(down, False):
            raise ConnectionError
        seen.append(data)

    queue = QueueProcessor(handle, max_age=0.2)
    queue.enqueue("too old after the break of half a second and more")
    assert queue.join(SOON)
    queue.enqueue("fresh")
    assert queue.join(SOON)
    queue.enqueue("fresh, too")
    assert queue.join(SOON)
    assert 2 <= len(seen) + queue.get_stats().dead
    assert "fresh, too" in seen
    queue.stop()


def test_a_stopped_queue_starts_again(bench):
    """With what came meanwhile."""
    queue = bench.make()
    bench.run(queue.start())
    bench.run(queue.stop())
    bench.run(queue.enqueue("x"))
    bench.work_off(queue)
    assert ["x"] == bench.seen


def test_a_stop_that_is_asked_for_too_early_is_kept(bench):
    """A signal may come before the workers run."""
    queue = bench.make()
    queue.request_stop()
    bench.run(queue.run())
    assert "stopped" == queue.get_stats().state


def test_a_handler_may_ask_for_the_stop(bench):
    """It cannot wait for itself, so `run()` does."""
    queue = None

    def handle(data: Any) -> None:
        bench.seen.append(data)
        queue.request_stop()

    queue = bench.make(handle)
    bench.run_with(queue, "x")
    assert ["x"] == bench.seen


def test_run_until_empty_ends(bench):
    """For cron jobs and tests."""
    queue = bench.make(concurrency=2)
    bench.run(queue.enqueue_many(range(6)))
    bench.run(queue.run(until_empty=True))
    assert list(range(6)) == sorted(bench.seen)


def test_a_paused_queue_starts_nothing(bench):
    """Until it is resumed, which is told."""
    queue = bench.make()
    queue.pause()
    bench.run(queue.start())
    bench.run(queue.enqueue("x"))
    assert not bench.run(queue.join(timeout=0.05)) or bench.kind != "memory"
    assert [] == bench.seen
    assert "paused" == queue.get_stats().state
    queue.resume()
    bench.work_off(queue)
    assert ["x"] == bench.seen


def test_a_producer_cannot_start(bench):
    """It only enqueues."""
    producer = bench.world.processor(None, bench.store())
    bench.run(producer.enqueue("x"))
    with pytest.raises(QueueError, match="producer"):
        bench.run(producer.start())


def test_one_key_one_job_while_it_waits(bench):
    """Where the store can know: the second one gets the id of the first."""
    if bench.kind == "stock":
        pytest.skip("stock mode cannot know")
    queue = bench.make()
    queue.pause()
    bench.run(queue.start())
    first = bench.run(queue.enqueue("a", dedupe_key="k"))
    assert first == bench.run(queue.enqueue("b", dedupe_key="k"))
    queue.resume()
    bench.wait_until(lambda: bench.seen == ["a"], queue)
    bench.run(queue.join(timeout=1.0))
    bench.wait_until(lambda: bench.run(queue.enqueue("c", dedupe_key="k")) != first, queue)


# --- processes ------------------------------------------------------------------------------------

PROGRAM = """
import signal, threading
from supabase_resilience import QueueProcessor
def handle(data):
    print(data, flush=True)
def feed():
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        threading.Event().wait(0.001)
    queue.enqueue("handled")
queue = QueueProcessor(handle)
threading.Thread(target=feed).start()
queue.run()
print("stopped", flush=True)
"""


def test_sigterm_ends_run():
    """With its job done, and exit code 0."""
    worker = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    with worker:
        assert worker.stdout is not None
        assert "handled\n" == worker.stdout.readline()
        worker.send_signal(signal.SIGTERM)
        assert "stopped\n" == worker.stdout.readline()
        assert 0 == worker.wait(SOON)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_starts_anew():
    """It runs nothing of the parent's, and can use the queue itself."""
    seen: list[Any] = []
    queue = QueueProcessor(seen.append)
    queue.pause()
    queue.enqueue("the parent's")
    child = os.fork()
    if child == 0:
        queue.resume()
        queue.enqueue("the child's")
        ok = queue.join(SOON) and seen == ["the child's"]
        os._exit(0 if ok else 1)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    queue.resume()
    assert queue.join(SOON)
    assert ["the parent's"] == seen
    queue.stop()
