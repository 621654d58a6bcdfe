"""A pass amid outages: servers are killed, answers get lost, and it goes on where it was.

Each blow is tied to progress; the server comes back once the verifier has noticed.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from crew import wait_until
from report import Line, exactly, info
from supabase import acreate_client, create_client
from verification_world import DATE, Books, every_other, world

from supabase_resilience import (
    AsyncServerSideVerification,
    Event,
    Report,
    Rule,
    ServerSideVerification,
)
from supabase_resilience.events import PassPaused, PassResumed
from supabase_resilience.local import LocalSupabase


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`lost`: a share of the answers; `pause`: seconds before each page."""

    colour: str
    orders: int
    broken: int
    lost: float
    pause: float
    seed: int


class Witness:
    """What the rule was asked, and how often the pass had to wait for a server."""

    def __init__(self) -> None:
        self.judged: Counter[int] = Counter()
        self.outages = 0
        self.recoveries = 0
        self._reasons: dict[object, str] = {}

    def is_right(self, row: Mapping[str, Any]) -> bool:
        self.judged[row["id"]] += 1
        return row["status"] != "completed" or row["completion_date"] is not None

    def hear(self, event: Event) -> None:
        if isinstance(event, PassPaused):
            self._reasons[_who()] = event.reason
            self.outages += event.reason != "throttle"
        elif isinstance(event, PassResumed):
            self.recoveries += self._reasons.pop(_who()) != "throttle"

    def outages_when_calm(self) -> int:
        """How many there were once none is left: what a blow adds is then a pause of its own."""
        seen = [-1]

        def is_calm() -> bool:
            seen[0] = self.outages
            return self.recoveries == seen[0]

        wait_until(is_calm, "it goes on")
        return seen[0]


def _who() -> object:
    """The thread or task that waits."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return threading.get_ident()


class Verifier(threading.Thread):
    """One pass, of either colour."""

    def __init__(self, local: LocalSupabase, plan: Plan, witness: Witness) -> None:
        super().__init__(name="verifier", daemon=True)
        self.report: Report | None = None
        self.error: BaseException | None = None
        self._local = local
        self._colour = plan.colour
        self._options: dict[str, Any] = {
            "rules": [
                Rule("dated", check=witness.is_right, fix=lambda _: {"completion_date": DATE})
            ],
            "grace": 0.5,
            "max_share": 1.0,
            "throttle": every_other(lambda: plan.pause),
            "on_event": witness.hear,
        }

    def run(self) -> None:
        try:
            self.report = self._verify() if self._colour == "sync" else asyncio.run(self._averify())
        except BaseException as error:  # noqa: BLE001 - told by `ended()`
            self.error = error

    def _verify(self) -> Report:
        client = create_client(self._local.url, self._local.secret_key)
        return ServerSideVerification(client, "orders", **self._options).run_once()

    async def _averify(self) -> Report:
        client = await acreate_client(self._local.url, self._local.secret_key)
        return await AsyncServerSideVerification(client, "orders", **self._options).run_once()

    def ended(self) -> Report:
        self.join()
        if self.report is None:
            raise RuntimeError("the pass failed") from self.error
        return self.report


def run(plan: Plan) -> list[Line]:
    with world() as (local, books):
        every = plan.orders // plan.broken
        broken = range(every, plan.orders + 1, every)
        books.fill(plan.orders, broken)
        lost = local.faults.add(
            match="^/rest/v1/", times=None, share=plan.lost, seed=plan.seed, drop="after"
        )
        witness = Witness()
        verifier = Verifier(local, plan, witness)
        verifier.start()
        struck = strike(plan, local, books, witness, verifier)
        report = verifier.ended()
        never_flagged = [n for n in range(1, plan.orders + 1) if n not in broken]
        return [
            exactly("servers killed in mid-pass", 4, struck),
            exactly("rows checked", plan.orders, report.rows),
            exactly(
                "rows that were right, and checked but once",
                len(never_flagged),
                sum(witness.judged[n] == 1 for n in never_flagged),
            ),
            exactly("violations fixed, by the report", plan.broken, report.fixed),
            exactly("fixes, by the database", plan.broken, books.fixes()),
            exactly("violations fixed more than once", 0, books.fixed_more_than_once()),
            exactly("exit code", 0, report.exit_code),
            info("answers lost besides", lost.count),
            info("times the pass had to wait for a server", witness.outages),
            info("seconds", round(report.seconds)),
        ]


def strike(
    plan: Plan, local: LocalSupabase, books: Books, witness: Witness, verifier: Verifier
) -> int:
    """Each server is killed amid the scan, and once more amid the fixing; how often, in all."""
    moments: list[tuple[Callable[[], int], int, Any]] = [
        (lambda: len(witness.judged), plan.orders // 5, local.rest),
        (lambda: len(witness.judged), plan.orders * 2 // 5, local.postgres),
        (books.fixes, plan.broken * 3 // 5, local.rest),
        (books.fixes, plan.broken * 4 // 5, local.postgres),
    ]
    struck = 0
    for progress, at, server in moments:
        wait_until(lambda p=progress, a=at: p() >= a or not verifier.is_alive(), "progress")
        if not verifier.is_alive():
            break
        before = witness.outages_when_calm()
        server.kill()
        wait_until(lambda b=before: witness.outages > b or not verifier.is_alive(), "it notices")
        server.start()
        struck += 1
        witness.outages_when_calm()
    return struck
