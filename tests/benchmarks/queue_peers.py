"""The queues that `queues.py` compares ours with, each used in the way its documentation says.

Those that are not installed are left out; `queue_peers.txt` names them. In memory each gets as many
jobs as it is good at: procrastinate looks through all of its jobs for each one that it takes.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Peer:
    """`rate(jobs, concurrency)` is no-op jobs per second, enqueueing included."""

    name: str
    rate: Callable[[int, int], Awaitable[float]]


def procrastinate() -> Peer:
    procrastinate = import_module("procrastinate")
    testing = import_module("procrastinate.testing")
    logging.getLogger("procrastinate").setLevel(logging.ERROR)

    async def rate(jobs: int, concurrency: int) -> float:
        app = procrastinate.App(connector=testing.InMemoryConnector())
        jobs = min(jobs, 200)

        @app.task
        async def do_nothing(number: int) -> None:
            return None

        async with app.open_async():
            begun = time.perf_counter()
            for number in range(jobs):
                await do_nothing.defer_async(number=number)
            await app.run_worker_async(
                wait=False,
                concurrency=concurrency,
                install_signal_handlers=False,
                delete_jobs="always",
            )
            return jobs / (time.perf_counter() - begun)

    return Peer(name="procrastinate, InMemoryConnector", rate=rate)


def taskiq() -> Peer:
    taskiq = import_module("taskiq")

    async def rate(jobs: int, concurrency: int) -> float:
        broker = taskiq.InMemoryBroker(max_async_tasks=concurrency)

        @broker.task
        async def do_nothing(number: int) -> None:
            return None

        await broker.startup()
        begun = time.perf_counter()
        for number in range(jobs):
            await do_nothing.kiq(number)
        await broker.wait_all()
        spent = time.perf_counter() - begun
        await broker.shutdown()
        return jobs / spent

    return Peer(name="taskiq, InMemoryBroker", rate=rate)


def pgqueuer() -> Peer:
    pgqueuer = import_module("pgqueuer")
    drain = import_module("pgqueuer.domain.types").QueueExecutionMode.drain

    async def rate(jobs: int, concurrency: int) -> float:
        queue = pgqueuer.PgQueuer.in_memory()

        @queue.entrypoint("do_nothing")
        async def do_nothing(_: Any) -> None:
            return None

        begun = time.perf_counter()
        for _ in range(jobs):
            await queue.qm.queries.enqueue("do_nothing", b"", 0)
        await queue.qm.run(
            mode=drain,
            batch_size=concurrency,
            max_concurrent_tasks=2 * concurrency,
            dequeue_timeout=timedelta(seconds=1),
        )
        return jobs / (time.perf_counter() - begun)

    return Peer(name="pgqueuer, in_memory()", rate=rate)


IN_MEMORY: Sequence[Callable[[], Peer]] = (procrastinate, taskiq, pgqueuer)


# --- over Supabase Queues -----------------------------------------------------------------------


def aimq(url: str, key: str, queue: str) -> Callable[[], bool]:
    """A function that does one job and says whether there was one; its worker is one thread."""
    config = import_module("aimq.config").config
    config.supabase_url, config.supabase_key = url, key
    worker = import_module("aimq.worker").Worker()

    def is_done(_: Any) -> bool:
        return True

    worker.task(queue=queue, delete_on_finish=True)(is_done)
    return lambda: bool(worker.work(queue))


def installed(makers: Sequence[Callable[[], Peer]]) -> tuple[list[Peer], list[str]]:
    """The peers that can be measured here, and the names of the others."""
    found, missing = [], []
    for make in makers:
        try:
            found.append(make())
        except ImportError:
            missing.append(make.__name__)
    return found, missing


def show_missing(names: Sequence[str]) -> None:
    if names:
        print(
            f"Not installed, so not measured: {', '.join(names)} (tests/benchmarks/queue_peers.txt)"
        )
