"""What a processor does when its store fails, refuses, or answers too late, in both colours."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Any

import httpx
import pytest

from supabase_resilience import AsyncQueueProcessor, QueueError, QueueProcessor, current_job
from supabase_resilience.queues._jobs import Job, Settlement
from supabase_resilience.queues._store import Abilities, Exchange
from supabase_resilience.queues._sync_crew import Worker

from .test_processors import SOON, Bench, Sync, world

__all__ = ["world"]  # a fixture

OUT = httpx.ConnectError("down")


class Leaping:
    """A clock that goes on, and may be moved ahead."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead

    def advance(self, seconds: float) -> None:
        self.ahead += seconds


class Shelf:
    """A durable queue in a list. `errors` are raised by the call of that name, one each time."""

    name = "shelf"

    def __init__(self, **abilities: Any) -> None:
        self.abilities = Abilities(**{"is_migrated": True, **abilities})
        self.jobs: list[tuple[str, Any]] = []
        self.settled: list[tuple[str, Any]] = []
        self.extends = 0
        self.errors: dict[str, list[Exception]] = defaultdict(list)
        self.before_reading: Callable[[], Any] = lambda: None

    def _may_fail(self, call: str) -> None:
        if self.errors[call]:
            raise self.errors[call].pop()

    def checked(self) -> Abilities:
        self._may_fail("check")
        return self.abilities

    def sent(self, jobs: Collection[Job]) -> list[str]:
        self.jobs += [(job.id, job.data) for job in jobs]
        return [job.id for job in jobs]

    def exchanged(self, settled: Collection[Settlement], limit: int) -> Exchange:
        self._may_fail("exchange")
        for each in settled:
            self.settled.append((each.kind, each.job.data))
            if each.kind in {"postponed", "retry"}:
                self.jobs.append((each.job.id, each.job.data))
        given, self.jobs = self.jobs[:limit], self.jobs[limit:]
        if given:
            self.before_reading()
        return Exchange([each.job.message_id for each in settled], [_job(*each) for each in given])

    def extended(self) -> list[int]:
        """Nothing is anybody's any more."""
        self.extends += 1
        self._may_fail("extend")
        return []


def _job(name: str, data: Any) -> Job:
    made = Job(name, data, Shelf.name, 4e9)
    made.message_id = 1 + hash(name) % 1000
    return made


class SyncShelf(Shelf):
    def check(self, _: Any) -> Abilities:
        return self.checked()

    def send(self, _: str, jobs: Any, __: float) -> list[str]:
        return self.sent(jobs)

    def exchange(self, _: str, settled: Any, *, limit: int, **__: Any) -> Exchange:
        return self.exchanged(settled, limit)

    def extend(self, *_: Any) -> Collection[int]:
        return self.extended()


class AsyncShelf(Shelf):
    async def check(self, _: Any) -> Abilities:
        return self.checked()

    async def send(self, _: str, jobs: Any, __: float) -> list[str]:
        return self.sent(jobs)

    async def exchange(self, _: str, settled: Any, *, limit: int, **__: Any) -> Exchange:
        return self.exchanged(settled, limit)

    async def extend(self, *_: Any) -> Collection[int]:
        return self.extended()


class Shelves(Bench):
    """Makes processors on one shelf; their handlers run on threads, whatever the colour."""

    def __init__(self, world: Any) -> None:
        super().__init__(world, ("shelf", None))
        self.shelf: Any = SyncShelf() if isinstance(world, Sync) else AsyncShelf()

    def make(self, handler: Any = None, **options: Any) -> Any:
        made = QueueProcessor if isinstance(self.world, Sync) else AsyncQueueProcessor
        given = {"retry_delay": 0.01, "on_event": self.hook, **options}
        queue: Any = made(handler or self.seen.append, store=self.shelf, **given)
        self.made.append(queue)
        return queue

    def ending_at(self, name: str) -> Callable[[Any], None]:
        """A hook that ends the process at the first event of that name."""

        def tell(event: Any) -> None:
            if event.name == name and name not in self.hook.names:
                self.hook(event)
                raise SystemExit(name)
            self.hook(event)

        return tell


@pytest.fixture
def bench(world) -> Iterator[Shelves]:
    made = Shelves(world)
    yield made
    for processor in made.made:
        made.run(processor.stop(drain=False, timeout=0.5))


# --- starting -------------------------------------------------------------------------------------


def test_a_start_in_an_outage_waits_for_its_end(bench):
    """It is no error, is told once, and jobs run as soon as they can be read."""
    queue = bench.make()
    bench.run(queue.enqueue("x"))
    bench.shelf.errors["check"] = [OUT]
    bench.work_off(queue)
    assert ["x"] == bench.seen
    assert ["queue.unreachable", "queue.reachable"] == [
        name for name in bench.hook.names if name.startswith("queue.")
    ]


def test_a_start_that_nothing_heals_raises(bench):
    """An error that is no outage would be met by every read."""
    queue = bench.make()
    bench.shelf.errors["check"] = [LookupError("no such key")]
    with pytest.raises(LookupError, match="no such key"):
        bench.run(queue.start())
    assert "new" == queue.get_stats().state


def test_a_priority_that_nobody_would_respect_is_refused(bench):
    """With both ways to have priorities; nothing is enqueued."""
    bench.shelf.abilities = Abilities(is_migrated=True, has_priority=False)
    queue = bench.make()
    with pytest.raises(QueueError, match=r"no priorities, got priority=5.*lanes"):
        bench.run(queue.enqueue("x", 5))
    assert ([], 0) == (bench.shelf.jobs, queue.get_stats().enqueued)


def test_a_migration_that_is_too_old_is_told(bench):
    """It is done without, and how to renew it is said."""
    bench.shelf.abilities = Abilities(outdated_version=1)
    queue = bench.make()
    bench.run(queue.start())
    (event,) = [each for each in bench.hook.events if each.name == "migration.outdated"]
    assert ("queue", 1) == (event.part, event.version)
    assert "sql queue" in event.remedy


# --- settling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_migrated", [True, False])
def test_a_settlement_that_fails_is_sent_again(bench, is_migrated):
    """The job is done once, and its end is told as soon as it can be."""
    bench.shelf.abilities = Abilities(is_migrated=is_migrated)

    def handle(data: Any) -> None:
        bench.seen.append(data)
        bench.shelf.errors["exchange"] = [OUT]

    queue = bench.make(handle)
    bench.run(queue.enqueue("x"))
    bench.run(queue.start())
    bench.wait_until(lambda: bench.shelf.settled, queue)
    assert (["x"], [("done", "x")]) == (bench.seen, bench.shelf.settled)


def test_what_cannot_be_settled_within_its_lease_is_lost(bench):
    """It is somebody else's then: nothing is settled any more, which is told and counted once."""
    clock = Leaping()

    def handle(data: Any) -> None:
        bench.seen.append(data)
        bench.shelf.errors["exchange"] = [OUT]
        clock.advance(60.0)

    queue = bench.make(handle, clock=clock)
    bench.run(queue.enqueue("x"))
    bench.run(queue.start())
    bench.wait_until(lambda: queue.get_stats().lost_leases, queue)
    bench.wait_until(lambda: not bench.shelf.errors["exchange"], queue)
    bench.run(queue.stop())
    assert ([], 1) == (bench.shelf.settled, queue.get_stats().lost_leases)
    assert 1 == bench.hook.names.count("job.lease_lost")


def test_a_job_that_came_too_late_is_not_run(bench):
    """A read that took longer than the lease brings what is others' already; it goes back."""
    clock = Leaping()
    slow = iter([60.0])
    bench.shelf.before_reading = lambda: clock.advance(next(slow, 0.0))
    queue = bench.make(clock=clock)
    bench.run(queue.enqueue("x"))
    bench.work_off(queue)
    assert (["x"], 1) == (bench.seen, queue.get_stats().lost_leases)
    assert [("postponed", "x"), ("done", "x")] == bench.shelf.settled


def test_a_stop_in_an_outage_ends(bench):
    """What is in hand cannot be given back, so its lease lapses; that is told."""
    is_running, may_end = threading.Event(), threading.Event()

    def handle(_: Any) -> None:
        is_running.set()
        may_end.wait(SOON)

    queue = bench.make(handle)
    bench.run(queue.enqueue("x"))
    bench.run(queue.start())
    bench.wait_until(is_running.is_set, queue)
    bench.shelf.errors["exchange"] = [OUT] * 10
    assert not bench.run(queue.stop(timeout=0.0))
    may_end.set()
    assert ("stopped", [], 0) == (
        queue.get_stats().state,
        bench.shelf.settled,
        queue.get_stats().in_flight,
    )
    assert "queue.unreachable" in bench.hook.names


def test_a_worker_that_is_given_up_as_it_begins_leaves_the_job_to_the_link():
    """The link has given it back: the worker runs nothing and settles nothing."""
    seen: list[Any] = []
    shelf = SyncShelf()
    queue = QueueProcessor(seen.append, store=shelf)  # type: ignore[arg-type]
    worker = Worker(queue._crew)
    worker.is_abandoned = True
    queue._crew.handle(_job("1", "x"), worker)
    assert ([], [], 0) == (seen, shelf.settled, queue._core.ready.waiting)


# --- leases ---------------------------------------------------------------------------------------


def test_a_lease_that_cannot_be_extended_is_tried_again_and_then_lost(bench):
    """A failed try is none; an answer without the job says that it is another worker's."""

    def handle(data: Any) -> None:
        assert lost.wait(SOON)
        bench.seen.append((data, current_job().id))

    lost = threading.Event()

    def tell(event: Any) -> None:
        bench.hook(event)
        if event.name == "job.lease_lost":
            lost.set()

    queue = bench.make(handle, visibility_timeout=1.0, on_event=tell)
    bench.shelf.errors["extend"] = [OUT]
    made = bench.run(queue.enqueue("x"))
    bench.run(queue.start())
    bench.wait_until(lambda: bench.seen, queue)
    assert [("x", made)] == bench.seen
    assert 2 <= bench.shelf.extends
    assert 1 == queue.get_stats().lost_leases


def test_a_job_that_ends_while_its_lease_is_extended_is_not_lost(bench):
    """The server knows it no more because it is settled."""
    queue = bench.make()
    link, job = queue._link, _job("1", "x")
    bench.run(link._extend("", [job]))
    assert (1, 0) == (bench.shelf.extends, queue.get_stats().lost_leases)
    link._hand.hold([job], 1.0)
    bench.run(link._extend("", [job]))
    assert 1 == queue.get_stats().lost_leases


# --- hooks that end the process -------------------------------------------------------------------


def test_a_hook_that_ends_the_process_at_a_failed_read(bench):
    """`run()` stops, then raises it."""
    queue = bench.make(on_event=bench.ending_at("queue.unreachable"))
    bench.shelf.errors["exchange"] = [OUT]
    with pytest.raises(SystemExit, match=r"queue\.unreachable"):
        bench.run(queue.run())
    assert "stopped" == queue.get_stats().state


@pytest.mark.parametrize("way", ["refused", "expired"])
def test_a_hook_that_ends_the_process_at_a_lost_lease(bench, way):
    """What is in hand is finished first."""
    may_end = threading.Event()
    ending = bench.ending_at("job.lease_lost")

    def tell(event: Any) -> None:
        try:
            ending(event)
        finally:
            if event.name == "job.lease_lost":
                may_end.set()

    def handle(data: Any) -> None:
        assert may_end.wait(SOON)
        bench.seen.append(data)

    queue = bench.make(handle, visibility_timeout=1.0, on_event=tell)
    if way == "expired":
        bench.shelf.errors["extend"] = [OUT] * 100
    bench.run(queue.enqueue("x"))
    with pytest.raises(SystemExit, match=r"job\.lease_lost"):
        bench.run(queue.run(shutdown_timeout=SOON))
    assert (["x"], "stopped") == (bench.seen, queue.get_stats().state)


@pytest.mark.parametrize("timeout", [None, SOON])
def test_a_hook_that_ends_the_process_at_a_success(bench, timeout):
    """The job goes back, as nobody can say that it is done."""
    queue = bench.make(handler_timeout=timeout, on_event=bench.ending_at("job.succeeded"))
    bench.run(queue.enqueue("x"))
    with pytest.raises(SystemExit, match=r"job\.succeeded"):
        bench.run(queue.run())
    assert (["x"], {("postponed", "x")}) == (bench.seen, set(bench.shelf.settled))


# --- a break --------------------------------------------------------------------------------------


def test_resume_ends_a_break(bench):
    """Somebody knows better than the time that was to be waited."""
    outcomes: Iterator[Any] = iter([httpx.HTTPStatusError, None])
    asked = httpx.Response(503, headers={"Retry-After": "3600"}, request=httpx.Request("GET", "/"))

    def handle(data: Any) -> None:
        if next(outcomes) is not None:
            raise httpx.HTTPStatusError("out", request=asked.request, response=asked)
        bench.seen.append(data)

    queue = bench.make(handle)
    bench.run(queue.enqueue("x"))
    bench.run(queue.start())
    bench.wait_until(lambda: queue.get_stats().paused_for_outage, queue)
    queue.resume()
    bench.wait_until(lambda: bench.seen, queue)
    assert not queue.get_stats().paused_for_outage
    assert 1 == bench.hook.names.count("queue.resumed")


def test_pausing_and_resuming_twice_is_once(bench):
    """Each is told once, also when another thread asks for it."""
    queue = bench.make()
    bench.run(queue.start())
    for method in (queue.pause, queue.resume):
        for _ in range(2):
            thread = threading.Thread(target=method)
            thread.start()
            thread.join(SOON)
    bench.run(queue.enqueue("x"))
    bench.work_off(queue)
    assert ["x"] == bench.seen
    told = [name for name in bench.hook.names if name.startswith("queue.")]
    assert ["queue.paused", "queue.resumed"] == told
