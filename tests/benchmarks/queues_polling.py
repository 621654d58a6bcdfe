"""What a fleet of idle workers asks of Supabase, and how soon one of them finds a new job.

The real processor with its real polling runs on virtual time (`virtual_time.py`) over a queue that
answers at once; 1,000 processors share 10 queues and nothing happens for minutes.
"""

import asyncio
import random
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from judged import Line, at_most, show_table
from queues_memory import tell_nobody
from virtual_time import now, pause, play

from supabase_resilience import AsyncQueueProcessor
from supabase_resilience.queues._jobs import DeadLetter, Job, QueueMetrics, Settlement, new_id
from supabase_resilience.queues._store import Abilities, Exchange

TEN_MINUTES = 600.0


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """How many there are, and how many jobs are sent to them, one after the other."""

    workers: int
    queues: int
    jobs: int


class StandIn:
    """A durable queue that is seldom anything but empty, and counts who asks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = 0
        self._waiting: list[Job] = []
        self._numbers = 0

    def put(self, data: float) -> None:
        self._numbers += 1
        job = Job(new_id(), data, queue=self.name, enqueued_at=now())
        job.message_id, job.fence = self._numbers, 1
        self._waiting.append(job)

    async def check(self, lanes: Sequence[str]) -> Abilities:
        return Abilities()

    async def exchange(
        self, lane: str, settled: Sequence[Settlement], *, limit: int, oldest: int, lease: float
    ) -> Exchange:
        self.asked += 1
        jobs, self._waiting = self._waiting[:limit], self._waiting[limit:]
        return Exchange([each.job.message_id for each in settled], jobs)

    async def extend(self, lane: str, jobs: Sequence[Job], lease: float) -> Collection[int]:
        return [job.message_id for job in jobs]

    async def send(self, lane: str, jobs: Sequence[Job], delay: float) -> list[str]:
        raise NotImplementedError

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        raise NotImplementedError

    async def replay(self, id: str, lanes: Sequence[tuple[int, str]]) -> bool:  # noqa: A002
        raise NotImplementedError

    async def purge_dead_letters(self) -> int:
        raise NotImplementedError

    async def metrics(self, lanes: Sequence[str]) -> QueueMetrics:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Result:
    """Requests per second of the whole fleet, and the seconds until each job has started."""

    requests: float
    delays: list[float]


async def idle(fleet: Fleet) -> Result:
    stores = [StandIn(f"queue_{number}") for number in range(fleet.queues)]
    delays: list[float] = []

    async def handle(sent_at: float) -> None:
        delays.append(now() - sent_at)

    workers = [
        AsyncQueueProcessor(
            handle, store=stores[number % fleet.queues], on_event=tell_nobody, clock=now
        )
        for number in range(fleet.workers)
    ]
    await asyncio.gather(*(worker.start() for worker in workers))
    await pause(TEN_MINUTES / 10)
    before = sum(store.asked for store in stores)
    await pause(TEN_MINUTES)
    requests = (sum(store.asked for store in stores) - before) / TEN_MINUTES
    for _ in range(fleet.jobs):
        random.choice(stores).put(now())
        await pause(random.uniform(0.0, 20.0))
    await asyncio.gather(*(worker.stop() for worker in workers))
    return Result(requests=requests, delays=delays)


def run(fleet: Fleet, *, seed: int) -> list[Line]:
    result = play(idle(fleet), seed=seed)
    # As few as can be: how soon one alone finds its job.
    alone = play(idle(Fleet(workers=fleet.queues, queues=fleet.queues, jobs=fleet.jobs)), seed=seed)
    rows = [row(f"{fleet.workers:,}", result), row(f"{fleet.queues:,}", alone)]
    head = (
        f"idle workers on {fleet.queues} queues",
        "requests/s in all",
        "job starts after, median s",
        "worst s",
    )
    show_table("Poll load, in virtual time", head, rows)
    return [
        at_most(f"requests/s of {fleet.workers:,} idle workers", 200, result.requests, digits=0),
        at_most("a new job starts after, median s", 1.0, statistics.median(result.delays)),
        at_most("a new job starts after, worst s", 5.0, max(result.delays)),
    ]


def row(workers: str, result: Result) -> tuple[str, ...]:
    middle, worst = statistics.median(result.delays), max(result.delays)
    return workers, f"{result.requests:.0f}", f"{middle:.2f}", f"{worst:.2f}"
