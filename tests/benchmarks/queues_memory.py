"""Jobs in memory: what ids, statistics and events cost, against bare workers on a priority queue.

Every side enqueues and does the same number of no-op jobs with the same concurrency, and is timed
from the first enqueue to the last job's end. Ours tells every event to a hook and keeps statistics.
"""

import asyncio
import gc
import itertools
import os
import queue as stdlib_queue
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import queue_peers
from judged import Line, at_least, at_most, ratio, show_table

from supabase_resilience import AsyncQueueProcessor, Event, QueueProcessor

PRIORITIES = 3
OURS = "ours"
FLOOR_ASYNC = "bare tasks on asyncio.PriorityQueue"
FLOOR_SYNC = "bare threads on queue.PriorityQueue"

Rate = Callable[[int, int], float]
AsyncRate = Callable[[int, int], Awaitable[float]]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured."""

    rounds: int
    jobs: int
    concurrency: int
    kept: int


@dataclass
class Rates:
    """Jobs per second, by who did them, one number a round."""

    by_name: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, rate: float) -> None:
        self.by_name.setdefault(name, []).append(rate)

    def best(self, name: str) -> float:
        return max(self.by_name[name])

    def show(self, title: str, floor: str) -> None:
        rows = [
            (
                name,
                f"{max(rates):,.0f}",
                f"{statistics.median(rates):,.0f}",
                f"{self.best(name) / self.best(floor):.2f}",
                f"{ratio(rates, self.by_name[floor]):.2f}",
            )
            for name, rates in self.by_name.items()
        ]
        head = ("no-op jobs/s", "best round", "median round", "best x floor", "median x floor")
        show_table(title, head, rows)


# --- who works ----------------------------------------------------------------------------------


def tell_nobody(_: Event) -> None:
    """Every event is told; writing them somewhere is no part of the queue."""


def do_nothing(_: object) -> None:
    return None


async def do_nothing_async(_: object) -> None:
    return None


async def bare_async(jobs: int, concurrency: int) -> float:
    queue: asyncio.PriorityQueue[tuple[int, int, object]] = asyncio.PriorityQueue()
    number = itertools.count()

    async def work() -> None:
        while True:
            _, _, data = await queue.get()
            await do_nothing_async(data)
            queue.task_done()

    begun = time.perf_counter()
    workers = [asyncio.create_task(work()) for _ in range(concurrency)]
    for data in range(jobs):
        await queue.put((-(data % PRIORITIES), next(number), data))
    await queue.join()
    rate = jobs / (time.perf_counter() - begun)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    return rate


def bare_sync(jobs: int, concurrency: int) -> float:
    queue: stdlib_queue.PriorityQueue[tuple[float, int, object]] = stdlib_queue.PriorityQueue()
    number = itertools.count()
    the_end = float("inf")

    def work() -> None:
        while True:
            urgency, _, data = queue.get()
            if urgency == the_end:
                return
            do_nothing(data)
            queue.task_done()

    begun = time.perf_counter()
    workers = [threading.Thread(target=work) for _ in range(concurrency)]
    for worker in workers:
        worker.start()
    for data in range(jobs):
        queue.put((-(data % PRIORITIES), next(number), data))
    queue.join()
    rate = jobs / (time.perf_counter() - begun)
    for _ in workers:
        queue.put((the_end, next(number), None))
    for worker in workers:
        worker.join()
    return rate


async def ours_async(jobs: int, concurrency: int) -> float:
    begun = time.perf_counter()
    queue = AsyncQueueProcessor(do_nothing_async, concurrency=concurrency, on_event=tell_nobody)
    for data in range(jobs):
        await queue.enqueue(data, data % PRIORITIES)
    await queue.stop()
    rate = jobs / (time.perf_counter() - begun)
    check_all_done(queue.get_stats().succeeded, jobs)
    return rate


def ours_sync(jobs: int, concurrency: int) -> float:
    begun = time.perf_counter()
    queue = QueueProcessor(do_nothing, concurrency=concurrency, on_event=tell_nobody)
    for data in range(jobs):
        queue.enqueue(data, data % PRIORITIES)
    queue.stop()
    rate = jobs / (time.perf_counter() - begun)
    check_all_done(queue.get_stats().succeeded, jobs)
    return rate


def check_all_done(done: int, jobs: int) -> None:
    if done != jobs:
        raise RuntimeError(f"{done} of {jobs} jobs were done: that is no measurement")


# --- the rounds ---------------------------------------------------------------------------------


def run(effort: Effort) -> list[Line]:
    peers, missing = queue_peers.installed(queue_peers.IN_MEMORY)
    queue_peers.show_missing(missing)
    rates_async, rates_sync = Rates(), Rates()
    for number in range(effort.rounds):
        for name, work in turns(number, ((FLOOR_ASYNC, bare_async), (OURS, ours_async))):
            rates_async.add(name, asyncio.run(work(effort.jobs, effort.concurrency)))
        for name, thread_work in turns(number, ((FLOOR_SYNC, bare_sync), (OURS, ours_sync))):
            rates_sync.add(name, thread_work(effort.jobs, effort.concurrency))
        for peer in peers:
            rates_async.add(peer.name, asyncio.run(peer.rate(effort.jobs, effort.concurrency)))
    rates_async.show(f"In memory, async, concurrency {effort.concurrency}", FLOOR_ASYNC)
    rates_sync.show(f"In memory, sync, concurrency {effort.concurrency}", FLOOR_SYNC)
    return [*judge(rates_async, rates_sync, [peer.name for peer in peers]), *run_flat(effort)]


def turns(number: int, both: Iterable[tuple[str, Callable]]) -> list[tuple[str, Callable]]:
    """Whoever was first in the last round is last in this one."""
    return list(both)[:: -1 if number % 2 else 1]


def judge(rates_async: Rates, rates_sync: Rates, peers: list[str]) -> list[Line]:
    ours, floor = rates_async.by_name[OURS], rates_async.by_name[FLOOR_ASYNC]
    ours_sync, floor_sync = rates_sync.by_name[OURS], rates_sync.by_name[FLOOR_SYNC]
    best_peer = max((rates_async.best(name) for name in peers), default=None)
    to_peer = None if best_peer is None else max(ours) / best_peer
    return [
        at_least("in memory, async, x bare tasks", 0.25, ratio(ours, floor)),
        at_least("in memory, sync, x bare threads", 0.25, ratio(ours_sync, floor_sync)),
        at_least("in memory, async, x the quickest peer", 1.0, to_peer),
    ]


# --- what is left behind ------------------------------------------------------------------------


def run_flat(effort: Effort) -> list[Line]:
    """Do the jobs in ten waves, and look at what is left after the first and after the last."""
    queue = QueueProcessor(do_nothing, concurrency=4, on_event=tell_nobody)
    waves = [after_a_wave(queue, effort.kept // 10) for _ in range(10)]
    queue.stop()
    check_all_done(queue.get_stats().succeeded, effort.kept // 10 * 10)
    rows = [
        (f"{(number + 1) * effort.kept // 10:,}", f"{blocks:,}", f"{resident / 2**20:.1f}")
        for number, (blocks, resident) in enumerate(waves)
    ]
    head = ("jobs enqueued and done", "memory blocks of Python", "resident MiB")
    show_table("Memory, once they are done", head, rows)
    (first_blocks, first_resident), (last_blocks, last_resident) = waves[0], waves[-1]
    return [
        at_most(
            f"memory blocks kept of {effort.kept:,} jobs, per 1,000 jobs",
            1.0,
            1000 * (last_blocks - first_blocks) / effort.kept,
        ),
        at_most("resident memory after all, x after a tenth", 1.1, last_resident / first_resident),
    ]


def after_a_wave(queue: QueueProcessor, jobs: int) -> tuple[int, int]:
    for data in range(jobs):
        queue.enqueue(data)
    queue.run(until_empty=True)
    gc.collect()
    return sys.getallocatedblocks(), resident_bytes()


def resident_bytes() -> int:
    """1 where the system has no /proc, so that there is something to divide by."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 1
