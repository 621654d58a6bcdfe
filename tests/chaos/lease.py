"""A lost lease: the first worker is still at a job when the second one gets it.

In stock mode the handler simply takes longer than the visibility timeout. With the migration leases
are extended, so the first worker is frozen meanwhile, as a virtual machine may be.
"""

import signal
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import rolling
from crew import Worker, wait_until
from dependency import Dependency
from report import Line, exactly, info
from world import QUEUE, Books, world

from supabase_resilience.local import LocalSupabase


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Seconds."""

    mode: str
    colour: str
    visibility_timeout: float


def run(plan: Plan, directory: Path) -> list[Line]:
    with world(plan.mode) as (local, books):
        scene = Scene(plan, local, directory)
        try:
            return lose_it(scene, books)
        finally:
            scene.close()


class Scene:
    """Two workers whose handler is held until it is let go."""

    def __init__(self, plan: Plan, local: LocalSupabase, directory: Path) -> None:
        self.dependency = Dependency()
        self.freezes = plan.mode == "migrated"
        self._setup = rolling.setup(rolling_plan(plan), local, self.dependency)
        self._directory = directory
        self._workers: list[Worker] = []
        send(local)

    def worker_at_the_job(self) -> Worker:
        number = len(self._workers)
        self._workers.append(Worker(replace(self._setup, number=number), self._directory))
        self.dependency.wait_until_held(str(number))
        return self._workers[-1]

    def close(self) -> None:
        for worker in self._workers:
            worker.signal(signal.SIGCONT)
            worker.end(signal.SIGTERM, 30.0)
        self.dependency.down()


def lose_it(scene: Scene, books: Books) -> list[Line]:
    first = scene.worker_at_the_job()
    if scene.freezes:
        first.signal(signal.SIGSTOP)
    second = scene.worker_at_the_job()
    first.signal(signal.SIGCONT)
    scene.dependency.let_go("0")
    wait_until(books.effects, "the first worker is through")
    wait_until(lambda: first.said("job.lease_lost"), "the first worker notices")
    first.end(signal.SIGTERM, 30.0)  # whatever it acknowledges has been acknowledged now
    left_to_the_second = books.in_queue()
    scene.dependency.let_go("1")
    wait_until(lambda: not books.in_queue(), "the second worker acknowledges")
    second.end(signal.SIGTERM, 30.0)
    return report(books, first, second, left_to_the_second)


def rolling_plan(plan: Plan) -> rolling.Plan:
    return rolling.Plan(
        mode=plan.mode,
        colour=plan.colour,
        terms=0,
        workers=2,
        concurrency=1,
        visibility_timeout=plan.visibility_timeout,
        shutdown_timeout=10.0,
        slow=0.0,
        seed=0,
    )


def send(local: LocalSupabase) -> None:
    with psycopg.connect(local.admin_dsn) as connection:
        message = '{"n": 1, "hold": true}'
        connection.execute("select pgmq.send(%s, %s::jsonb)", (QUEUE, message))


def report(books: Books, first: Worker, second: Worker, left: int) -> list[Line]:
    counted = sum(each["lost_leases"] for each in first.said("ends"))
    duplicates, by_read_ct, *_ = books.duplicates()
    return [
        info("leases taken away", 1),
        exactly("told by the first worker", 1, len(first.said("job.lease_lost"))),
        exactly("counted by the first worker", 1, counted),
        exactly("messages its late acknowledgement left alone", 1, left),
        exactly("effects", 1, books.effects()),
        exactly("duplicate deliveries, by read_ct", 1, by_read_ct),
        exactly("duplicate deliveries", 1, duplicates),
        exactly("dead letters", 0, books.dead_letters()),
        info("leases lost by the second worker", len(second.said("job.lease_lost"))),
    ]
