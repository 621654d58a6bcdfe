"""The storm: kills, restarts, lost requests and answers, and a dependency that is down for a while.

Everything but the outage's end is tied to progress, so that a slow machine meets as many blows as a
quick one, and one seed decides where they fall.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from crew import Crew
from dependency import Dependency
from producer import Producer
from report import Line, exactly, info
from worker import Setup
from world import QUEUE, Books, world

from supabase_resilience.local import LocalSupabase
from supabase_resilience.local._faults import Fault


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of everything; `outage` and the timeouts in seconds, `lost` a share of requests."""

    mode: str
    colour: str
    jobs: int
    workers: int
    kills: int
    restarts: int
    lost: float
    outage: float
    concurrency: int
    visibility_timeout: float
    patience: float
    seed: int


class Blow(NamedTuple):
    """Something bad, once so many jobs are done."""

    at: int
    strike: Callable[[], object]


class Storm:
    """One run."""

    def __init__(self, plan: Plan, local: LocalSupabase, books: Books, directory: Path) -> None:
        self._plan = plan
        self._local = local
        self._books = books
        self._random = random.Random(plan.seed)
        self._dependency = Dependency()
        jobs = [{"n": n} for n in range(plan.jobs)]
        self._producer = Producer(local, QUEUE, plan.colour, jobs, plan.seed)
        self._crew = Crew(self._setup(), plan.workers, directory)
        self._outage_ends: float | None = None
        self._faults: list[Fault] = []
        self._fallen = 0
        self._struck: list[str] = []

    def _setup(self) -> Setup:
        plan = self._plan
        return Setup(
            number=0,
            colour=plan.colour,
            url=self._local.url,
            key=self._local.secret_key,
            queue=QUEUE,
            dependency=self._dependency.url,
            concurrency=plan.concurrency,
            visibility_timeout=plan.visibility_timeout,
            shutdown_timeout=10.0,
            reset_timeout=1.0,
            fails_once=50,
        )

    # --- the blows ---

    def _blows(self) -> list[Blow]:
        plan = self._plan
        kinds = [self._kill] * plan.kills + [self._restart_rest] * plan.restarts
        kinds += [self._restart_postgres] * plan.restarts
        at = sorted(self._random.sample(range(plan.jobs // 20, plan.jobs * 19 // 20), len(kinds)))
        self._random.shuffle(kinds)
        blows = [Blow(*each) for each in zip(at, kinds, strict=True)]
        return sorted([*blows, Blow(plan.jobs // 2, self._begin_outage)], key=lambda blow: blow.at)

    def _kill(self) -> None:
        self._crew.kill(self._random.randrange(self._plan.workers))

    def _restart_rest(self) -> None:
        self._local.rest.kill()
        self._local.rest.start()

    def _restart_postgres(self) -> None:
        """As an upgrade would, or as a crash."""
        if self._random.random() < 0.5:
            self._local.postgres.stop()
        else:
            self._local.postgres.kill()
        self._local.postgres.start()

    def _begin_outage(self) -> None:
        self._dependency.down()
        self._outage_ends = time.monotonic() + self._plan.outage

    def _lose_requests(self) -> None:
        share, seed = self._plan.lost, self._plan.seed
        if share:
            add = self._local.faults.add
            match = "^/rest/v1/"
            self._faults = [
                add(match=match, times=None, share=share, seed=seed, drop="before"),
                # Of what the first has left.
                add(
                    match=match, times=None, share=share / (1 - share), seed=seed + 1, drop="after"
                ),
            ]

    # --- the run ---

    def run(self) -> list[Line]:
        begun = time.monotonic()
        self._lose_requests()
        self._producer.start()
        blows = self._blows()
        while not self._is_over(blows):
            if time.monotonic() - begun > self._plan.patience:
                break  # the report says what is missing
            done = self._books.effects()
            while blows and blows[0].at <= done:
                self._strike(blows.pop(0))
            self._look_after()
            threading.Event().wait(0.1)
        seconds = time.monotonic() - begun
        lost_requests = [fault.count for fault in self._faults]
        self._local.faults.clear()
        in_time = self._crew.end_all(30.0)
        return self._report(seconds, lost_requests, ended_in_time=in_time)

    def _is_over(self, blows: list[Blow]) -> bool:
        return (
            self._producer.is_over
            and not blows
            and self._dependency.is_up
            and not self._books.in_queue()
        )

    def _strike(self, blow: Blow) -> None:
        blow.strike()
        self._struck.append(blow.strike.__name__)

    def _look_after(self) -> None:
        self._fallen += self._crew.replace_the_fallen()
        if self._outage_ends is not None and time.monotonic() >= self._outage_ends:
            self._outage_ends = None
            self._dependency.up()

    def close(self) -> None:
        self._crew.end_all(30.0)
        self._dependency.down()

    # --- the report ---

    def _report(
        self, seconds: float, lost_requests: list[int], *, ended_in_time: bool
    ) -> list[Line]:
        plan, books, struck = self._plan, self._books, self._struck
        duplicates, by_read_ct, by_re_send, twice, unknown = books.duplicates()
        effects, different = books.effects(), books.different_effects()
        return [
            exactly("jobs enqueued", plan.jobs, self._producer.accepted),
            exactly("jobs lost", 0, plan.jobs - different),
            exactly("dead letters", 0, books.dead_letters()),
            exactly("messages left in the queue", 0, books.in_queue()),
            exactly("effects of jobs that were enqueued once", plan.jobs, self._single(effects)),
            info("jobs the producer could not be sure of", self._producer.unsure),
            info("duplicate deliveries", duplicates),
            info("explained by read_ct", by_read_ct),
            info("explained by a re-send", by_re_send),
            exactly("unexplained", 0, duplicates - by_read_ct - by_re_send),
            exactly("one reading, handled twice", 0, twice),
            exactly("deliveries the database does not know", 0, unknown),
            exactly("workers killed with SIGKILL", plan.kills, struck.count("_kill")),
            exactly("restarts of PostgreSQL", plan.restarts, struck.count("_restart_postgres")),
            exactly("restarts of REST", plan.restarts, struck.count("_restart_rest")),
            info(
                "requests lost before, and after the commit", " and ".join(map(str, lost_requests))
            ),
            exactly("workers that ended by themselves", 0, self._fallen),
            exactly("workers that stopped in time at the end", True, ended_in_time),
            info("seconds", round(seconds)),
        ]

    def _single(self, effects: int) -> int:
        """Effects less those of jobs that may have been enqueued twice, under two ids."""
        return effects - max(0, min(self._producer.unsure, effects - self._plan.jobs))


def run(plan: Plan, directory: Path) -> list[Line]:
    with world(plan.mode) as (local, books):
        storm = Storm(plan, local, books, directory)
        try:
            return storm.run()
        finally:
            storm.close()
