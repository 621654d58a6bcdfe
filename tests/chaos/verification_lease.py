"""A lost lease: the one who holds it is frozen past its end, amid fixing, and wakes up later.

Its last fix is on its way meanwhile, held in front of the servers. It arrives when the other
verifier has the lease and has not yet touched the row, so nothing but the token can refuse it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from crew import wait_until
from report import Line, exactly, info
from verification_child import Setup
from verification_crew import Child
from verification_world import Books, world

from supabase_resilience.local import LocalSupabase

FIX = "verification_fix"
TAKEN, LOST = "verification.lease_taken", "verification.lease_lost"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`lease` in seconds. The holder is frozen after `before` fixes."""

    colour: str
    broken: int
    before: int
    lease: float


def run(plan: Plan, directory: Path) -> list[Line]:
    with world() as (local, books):
        books.fill(plan.broken, range(1, plan.broken + 1))
        books.rows("update orders set payment_id = 'paid' returning 1")
        scene = Scene(plan, local, books, directory)
        try:
            return scene.play()
        finally:
            scene.close()


class Scene:
    """Two verifiers from the beginning, of which one has the lease."""

    def __init__(self, plan: Plan, local: LocalSupabase, books: Books, directory: Path) -> None:
        self._plan = plan
        self._local = local
        self._books = books
        self._gate = directory / "gate"
        setup = Setup(
            number=0,
            colour=plan.colour,
            url=local.url,
            key=local.secret_key,
            grace=0.5,
            page=100,
            lease="orders",
            lease_seconds=plan.lease,
        )
        self._holder = Child(setup, directory)
        self._children = [self._holder]
        wait_until(lambda: self._holder.said(TAKEN), "the holder takes the lease")
        self._standby = Child(replace(setup, number=1, gate=str(self._gate)), directory)
        self._children.append(self._standby)

    def play(self) -> list[Line]:
        self._wait_for_fixes(self._plan.before)
        held = self._local.faults.add(match=FIX, times=1, delay=2 * self._plan.lease + 3.0)
        wait_until(lambda: held.count, "a fix is on its way")
        self._holder.freeze()
        before = self._books.fixes()
        wait_until(lambda: self._standby.said(TAKEN), "the standby takes the lease")
        refused = self._wait_for_the_late_fix(before)
        self._gate.touch()
        other = self._standby.end()
        wait_until(lambda: not self._broken(), "all are fixed")
        begun = len(self._holder.said("fix"))
        self._holder.thaw()
        frozen = self._holder.end()
        return [
            info("verifiers frozen", 1),
            exactly("fixes by the frozen one before it was frozen", before, begun - 1),
            exactly(
                "its fix in flight that arrived late, and was refused by its token", 1, refused
            ),
            exactly("fixes it has begun after waking", 0, len(self._holder.said("fix")) - begun),
            exactly("told by it: its lease is lost", 1, len(self._holder.said(LOST))),
            info("what became of its rows", frozen["fates"]),
            info("and of its pass", frozen["failure"]),
            exactly("fixed by the other one", self._plan.broken - before, other["fates"]["fixed"]),
            exactly("fixes in all", self._plan.broken, self._books.fixes()),
            exactly("violations fixed more than once", 0, self._books.fixed_more_than_once()),
            exactly("violations that are left", 0, self._broken()),
        ]

    def _wait_for_fixes(self, count: int) -> None:
        wait_until(lambda: self._books.fixes() >= count, "the holder fixes")

    def _wait_for_the_late_fix(self, before: int) -> int:
        """Until the servers have answered it; how many of it were refused."""
        row = self._holder.said("fix")[-1]["id"]
        log = self._local.directory / "postgres.log"
        wait_until(lambda: "was taken over" in log.read_text(errors="replace"), "it arrives")
        wrote = self._books.fixes() - before
        touched = self._books.number(
            "select count(*) from audit where id = %s and date is not null", row
        )
        return 1 - wrote - touched

    def _broken(self) -> int:
        return self._books.number("select count(*) from orders where completion_date is null")

    def close(self) -> None:
        for child in self._children:
            child.close()
