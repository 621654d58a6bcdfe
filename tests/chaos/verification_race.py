"""The race: an app that writes each order in two steps; the rules are false between them.

`control` is the same with a verifier that does not wait before it fixes: its compare-and-swap keeps
the app's values, and yet it makes fixes that nobody needed. So the race can be lost.
"""

import asyncio
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import verification_app
from crew import wait_until
from report import Line, exactly, info
from supabase import acreate_client, create_client
from verification_app import LONGEST, App
from verification_world import FIXES, PAYMENT, Books, dated, paid, tell_nobody, world

from supabase_resilience import AsyncServerSideVerification, Report, ServerSideVerification
from supabase_resilience.local import LocalSupabase

# The seconds between the two steps of each order that the app has completed.
STEPS = """
select id, extract(epoch from done.at - begun.at)::float8 as took
from audit begun join audit done using (id)
where begun.status = 'completed' and begun.date is null and begun.payment is null
  and done.payment like 'pay_%%'
"""
# Orders that were not broken, and fixed nevertheless: all, and those with the steps of so long.
NEEDLESS = f"""
select count(*), count(*) filter (where coalesce(took, 0) < %s)
from (select distinct id from ({FIXES}) f where not f.id = any(%s)) needless
left join ({STEPS}) steps using (id)
"""
# The app's own values, written over by somebody.
DESTROYED = f"""
select count(*) from audit
where (old_date = '{verification_app.DATE}' and date is distinct from old_date)
  or (old_payment like 'pay_%%' and payment is distinct from old_payment)
"""
NOT_THE_APPS = f"""
select count(*) from orders where id = any(%s)
  and (completion_date <> '{verification_app.DATE}' or payment_id = '{PAYMENT}')
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Seconds, and numbers of orders; half of the broken ones are so from the beginning."""

    colour: str
    seconds: float
    orders: int
    broken: int
    writers: int
    grace: float
    seed: int


class Verifier(threading.Thread):
    """One pass after the other until it is told that the next one is the last."""

    def __init__(self, local: LocalSupabase, plan: Plan) -> None:
        super().__init__(name="verifier", daemon=True)
        self.reports: list[Report] = []
        self._ending = threading.Event()
        self._error: BaseException | None = None
        make = self._make if plan.colour == "sync" else self._make_async
        self._make_pass = lambda: make(local, self._options(plan))

    def _options(self, plan: Plan) -> dict[str, Any]:
        return {
            "rules": [dated(), paid()],
            "grace": plan.grace,
            "batch_size": 200,
            "ranges": 2,
            "max_share": 1.0,
            "on_event": tell_nobody,
        }

    def _make(self, local: LocalSupabase, options: dict[str, Any]) -> Callable[[], Report]:
        client = create_client(local.url, local.secret_key)
        return ServerSideVerification(client, "orders", **options).run_once

    def _make_async(self, local: LocalSupabase, options: dict[str, Any]) -> Callable[[], Report]:
        runner = asyncio.Runner()
        client = runner.run(acreate_client(local.url, local.secret_key))
        verification = AsyncServerSideVerification(client, "orders", **options)
        return lambda: runner.run(verification.run_once())

    def run(self) -> None:
        try:
            verify = self._make_pass()
            while not self._ending.is_set():
                self.reports.append(verify())
            self.reports.append(verify())
        except BaseException as error:  # noqa: BLE001 - told by `end()`
            self._error = error

    def end(self) -> None:
        """Return after a last pass."""
        self._ending.set()
        self.join()
        if self._error is not None:
            raise self._error

    def count(self, fate: str) -> int:
        return sum(rule.fates[fate] for each in self.reports for rule in each.rules.values())

    def settled(self) -> int:
        return sum(rule.settled for each in self.reports for rule in each.rules.values())


def run(plan: Plan) -> list[Line]:
    chance = random.Random(plan.seed)
    broken = frozenset(chance.sample(range(1, plan.orders + 1), plan.broken))
    abandoned = frozenset(chance.sample(sorted(broken), plan.broken // 2))
    with world() as (local, books):
        books.fill(plan.orders, sorted(broken - abandoned))
        app = App(local, app_plan(plan, broken, abandoned, chance))
        verifier = Verifier(local, plan)
        app.start()
        verifier.start()
        threading.Event().wait(plan.seconds)
        if not plan.grace:
            wait_until(
                lambda: needless(plan, books, broken)[0] or not app.is_alive(), "one is made"
            )
        app.enough.set()
        app.join()
        verifier.end()
        return report(plan, books, app, verifier, broken)


def app_plan(
    plan: Plan, broken: frozenset[int], abandoned: frozenset[int], chance: random.Random
) -> verification_app.Plan:
    orders = [n for n in range(1, plan.orders + 1) if n not in broken or n in abandoned]
    chance.shuffle(orders)
    return verification_app.Plan(
        orders=orders,
        abandoned=abandoned,
        writers=plan.writers,
        seed=plan.seed,
    )


def report(
    plan: Plan, books: Books, app: App, verifier: Verifier, broken: frozenset[int]
) -> list[Line]:
    fixes, of_quick_steps = needless(plan, books, broken)
    ((longest,),) = books.rows(f"select coalesce(max(took), 0) from ({STEPS}) steps")
    fixed = books.number(
        f"select count(distinct id) from ({FIXES}) f where id = any(%s)", [*broken]
    )
    lines = [
        info("orders the app has completed", len(app.done.completed)),
        info("passes", len(verifier.reports)),
        info("violations that settled by themselves", verifier.settled()),
        exactly("app values destroyed", 0, books.number(DESTROYED)),
        exactly("orders of the app that are not as it wrote them", 0,
                books.number(NOT_THE_APPS, sorted(app.done.completed))),
        exactly("orders that were really broken, fixed", plan.broken, fixed),
        exactly("orders still broken", 0, books.still_broken()),
        exactly("fixed more than once", 0, books.fixed_more_than_once()),
        exactly("fixes in the reports less those in the database", 0,
                verifier.count("fixed") - books.fixes()),
        info("compare-and-swaps lost", verifier.count("cas_lost")),
        info("longest time between two steps of the app, s", round(longest, 2)),
    ]  # fmt: skip
    if plan.grace:
        return [
            *lines,
            exactly("needless fixes", 0, of_quick_steps),
            # A machine that is too slow may break what the promise asks of the app.
            info(f"of orders whose steps took {plan.grace:g} s and more", fixes - of_quick_steps),
        ]
    return [*lines, control(fixes)]


def needless(plan: Plan, books: Books, broken: frozenset[int]) -> tuple[int, int]:
    """All, and those of orders whose steps took less than the grace."""
    ((fixes, of_quick_steps),) = books.rows(NEEDLESS, plan.grace, sorted(broken))
    return fixes, of_quick_steps


def control(fixes: int) -> Line:
    """Without a grace there must be some, or the race proves nothing."""
    measure = f"needless fixes, steps of up to {LONGEST:g} s, without a grace"
    return Line(measure=measure, must="> 0", here=str(fixes), is_met=fixes > 0)
