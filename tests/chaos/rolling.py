"""Rolling deployments under load: each SIGTERM ends a worker in order, nothing happens twice."""

import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from crew import A_MINUTE, Crew, wait_until
from dependency import Dependency
from producer import Producer
from report import Line, at_most, exactly, info
from worker import Setup
from world import QUEUE, Books, world

from supabase_resilience.local import LocalSupabase


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`slow` is how many seconds a job takes, so that each SIGTERM finds some in hand."""

    mode: str
    colour: str
    terms: int
    workers: int
    concurrency: int
    visibility_timeout: float
    shutdown_timeout: float
    slow: float
    seed: int


def run(plan: Plan, directory: Path) -> list[Line]:
    with world(plan.mode) as (local, books):
        dependency = Dependency(delay=plan.slow)
        crew = Crew(setup(plan, local, dependency), plan.workers, directory)
        try:
            return roll(plan, local, books, crew)
        finally:
            crew.end_all(30.0)
            dependency.down()


def setup(plan: Plan, local: LocalSupabase, dependency: Dependency) -> Setup:
    return Setup(
        number=0,
        colour=plan.colour,
        url=local.url,
        key=local.secret_key,
        queue=QUEUE,
        dependency=dependency.url,
        concurrency=plan.concurrency,
        visibility_timeout=plan.visibility_timeout,
        shutdown_timeout=plan.shutdown_timeout,
        reset_timeout=1.0,
        fails_once=0,
    )


def roll(plan: Plan, local: LocalSupabase, books: Books, crew: Crew) -> list[Line]:
    begun = time.monotonic()
    each = plan.concurrency  # jobs between two deployments, so that there are always some in hand
    jobs = [{"n": n} for n in range(each * (plan.terms + 2 * plan.workers))]
    producer = Producer(local, QUEUE, plan.colour, jobs, plan.seed)
    producer.start()
    chance, ends = random.Random(plan.seed), list[End]()
    for number in range(plan.terms):
        place = chance.randrange(plan.workers)
        wait_until(lambda place=place: crew.on_duty[place].said("begins"), "a worker begins")
        enough = each * (number + 1)
        wait_until(lambda enough=enough: books.effects() >= enough, "the work goes on")
        ends.append(stop(crew, place, plan.shutdown_timeout + A_MINUTE))
    wait_until(lambda: producer.is_over and not books.in_queue(), "all is done", 5 * A_MINUTE)
    crew.end_all(30.0)
    return [
        *report(plan, ends),
        exactly("jobs lost", 0, len(jobs) - books.different_effects()),
        exactly("dead letters", 0, books.dead_letters()),
        exactly("duplicate deliveries", 0, books.duplicates()[0]),
        info("messages that were read more than once", books.readings() - len(jobs)),
        info("jobs", len(jobs)),
        info("seconds", round(time.monotonic() - begun)),
    ]


class End(NamedTuple):
    """How a worker ended; `seconds` is None when it had to be killed."""

    seconds: float | None
    code: int | None


def stop(crew: Crew, place: int, within: float) -> End:
    worker = crew.on_duty[place]
    seconds = worker.end(signal.SIGTERM, within)
    crew.replace(place)
    return End(seconds, worker.exit_code)


def report(plan: Plan, ends: list[End]) -> list[Line]:
    times = [end.seconds for end in ends if end.seconds is not None]
    return [
        exactly("workers stopped by SIGTERM", plan.terms, len(times)),
        exactly("of these, with exit code 0", plan.terms, [end.code for end in ends].count(0)),
        at_most("the slowest to stop, s", plan.shutdown_timeout, max(times, default=0.0)),
    ]
