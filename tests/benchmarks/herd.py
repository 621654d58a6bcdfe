"""The herd at re-opening: 10,000 breakers that opened in the same second try again together.

Each client has workers that do what `CircuitOpenError` says: they wait `retry_after` seconds and
ask again. So whatever opened together comes back together, and each worker of a client is there.
The server is sick for a while longer, so that several rounds of probes are to be seen, then well.
"""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from virtual_time import now, pause, play

from supabase_resilience import CircuitBreaker, CircuitOpenError, Event

OPENED_WITHIN = 1.0


@dataclass(frozen=True, kw_only=True)
class Herd:
    """Times in seconds; each worker asks every `period` on average, at random."""

    clients: int = 10_000
    workers: int = 2
    period: float = 10.0
    answers_in: float = 0.05
    well_at: float = 100.0

    def demand(self) -> float:
        return self.clients * self.workers / self.period


EVERYBODY = {"half_open_permits": Herd.workers}
ROWS: dict[str, dict[str, Any]] = {
    "no jitter, whoever waits may pass (most peers)": {"jitter": 0.0, **EVERYBODY},
    "jitter=0.1, whoever waits may pass": {"jitter": 0.1, **EVERYBODY},
    "no jitter, 1 probe": {"jitter": 0.0},
    "jitter=0.1, 1 probe (the defaults)": {},
    "the defaults and growth=2.0": {"growth": 2.0},
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the table shows of one row; the last two count from the server's return."""

    probes_while_sick: int
    peak_while_sick: int
    peak_after: int
    closed_after: float
    answered_after: float


class Play:
    """One herd with one kind of breaker. It ends a period after each worker got an answer."""

    def __init__(self, herd: Herd, options: dict[str, Any]) -> None:
        self._herd = herd
        self._options = options
        self._arrivals: Counter[int] = Counter()
        self._closed_at = self._answered_at = 0.0
        self._waiting = herd.clients * herd.workers

    async def run(self) -> Result:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._herd.clients):
                tasks.create_task(self._live(tasks))
        well_at = self._herd.well_at
        again = {at: n for at, n in self._arrivals.items() if at > 2 * OPENED_WITHIN}
        return Result(
            probes_while_sick=sum(n for at, n in again.items() if at < well_at),
            peak_while_sick=max(n for at, n in again.items() if at < well_at),
            peak_after=max(n for at, n in again.items() if at >= well_at),
            closed_after=self._closed_at - well_at,
            answered_after=self._answered_at - well_at,
        )

    async def _live(self, tasks: asyncio.TaskGroup) -> None:
        """The first call of the first worker fails and opens the circuit; the others come along."""
        await pause(random.uniform(0.0, OPENED_WITHIN))
        breaker = CircuitBreaker(
            failure_threshold=1,
            clock=now,
            on_event=tell_nobody,
            on_close=self._note_closed,
            **self._options,
        )
        for number in range(self._herd.workers):
            delay = random.expovariate(1 / self._herd.period) if number else 0.0
            tasks.create_task(self._work(breaker, delay))

    async def _work(self, breaker: CircuitBreaker, delay: float) -> None:
        was_answered = False
        await pause(delay)
        while self._waiting or now() < self._answered_at + self._herd.period:
            wait = random.expovariate(1 / self._herd.period)
            try:
                await breaker.execute(self._answer)
            except CircuitOpenError as refusal:
                wait = max(refusal.retry_after or 0.0, 0.001)
            except ConnectionError:
                pass
            else:
                was_answered = was_answered or self._note_answered()
            await pause(wait)

    async def _answer(self) -> None:
        arrived = now()
        self._arrivals[int(arrived)] += 1
        await pause(self._herd.answers_in)
        if arrived < self._herd.well_at:
            raise ConnectionRefusedError

    def _note_closed(self) -> None:
        self._closed_at = now()

    def _note_answered(self) -> bool:
        self._waiting -= 1
        self._answered_at = now()
        return True


def tell_nobody(_: Event) -> None:
    """Thousands of breakers would fill the screen."""


def show(herd: Herd, results: dict[str, Result]) -> None:
    demand = herd.demand()
    print(
        f"\n### {herd.clients:,} clients whose breakers opened in the same second, each with "
        f"{herd.workers} workers that ask every {herd.period:g} s: a demand of {demand:,.0f} "
        f"requests/s. The server is well after {herd.well_at:g} s\n"
    )
    print(
        "| reset_timeout=30, and | probes while sick | peak requests/s while sick | x demand "
        "| peak requests/s after | x demand | all closed after (s) | all answered after (s) |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, row in results.items():
        print(
            f"| {name} | {row.probes_while_sick:,} "
            f"| {row.peak_while_sick:,} | {row.peak_while_sick / demand:.2f} "
            f"| {row.peak_after:,} | {row.peak_after / demand:.2f} | {row.closed_after:.0f} "
            f"| {row.answered_after:.0f} |"
        )


def main(herd: Herd, seed: int) -> None:
    show(herd, {name: play(Play(herd, row).run(), seed=seed) for name, row in ROWS.items()})


if __name__ == "__main__":
    main(Herd(), seed=1)
