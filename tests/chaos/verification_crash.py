"""A verifier that is killed in mid-pass: the next one goes on where its cursor says."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from crew import wait_until
from report import Line, exactly, info
from verification_child import Setup
from verification_crew import Child
from verification_world import Books, world

from supabase_resilience.local import LocalSupabase


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`pause`: seconds before each page, so that the cursor is kept before the blow."""

    colour: str
    orders: int
    broken: int
    kills: int
    pause: float


def run(plan: Plan, directory: Path) -> list[Line]:
    with world() as (local, books):
        every = plan.orders // plan.broken
        books.fill(plan.orders, range(every, plan.orders + 1, every))
        children: list[Child] = []
        try:
            return play(plan, local, books, directory, children)
        finally:
            for child in children:
                child.close()


def play(
    plan: Plan, local: LocalSupabase, books: Books, directory: Path, children: list[Child]
) -> list[Line]:
    cursor = directory / "cursor.json"
    setup = Setup(
        number=0,
        colour=plan.colour,
        url=local.url,
        key=local.secret_key,
        grace=0.5,
        page=50,
        cursor=str(cursor),
        pause=plan.pause,
    )
    for number in range(plan.kills):
        children.append(Child(replace(setup, number=number), directory))
        due = plan.broken * (number + 1) // (plan.kills + 1)
        wait_until(lambda due=due: has_place(cursor) and books.fixes() >= due, "it fixes")
        children[-1].kill()
    killed_amid = sum(not child.said("ends") for child in children)
    children.append(Child(replace(setup, number=plan.kills), directory))
    ending = children[-1].end()
    return [
        exactly("verifiers killed in mid-pass", plan.kills, killed_amid),
        fewer("rows checked by the last one, of all", plan.orders, ending["rows"]),
        exactly("violations fixed", plan.broken, books.fixes()),
        exactly("violations fixed more than once", 0, books.fixed_more_than_once()),
        info("what became of those of the last one", ending["fates"]),
    ]


def has_place(cursor: Path) -> bool:
    """Whether some pages are done for good; the first saves of a pass have nothing to say yet."""
    if not cursor.exists():
        return False
    ranges = json.loads(cursor.read_text(encoding="utf-8"))["ranges"] or []
    return any(each["last"] for each in ranges)


def fewer(measure: str, limit: int, here: int) -> Line:
    return Line(measure=measure, must=f"< {limit:,}", here=f"{here:,}", is_met=here < limit)
