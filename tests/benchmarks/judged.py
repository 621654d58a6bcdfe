"""The table at the end of a benchmark: what ours must reach, and what it reached here."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Line:
    """One measure beside its bar, `>=` or `<=`; `here` is None when it could not be measured."""

    measure: str
    bar: str
    limit: float
    here: float | None
    digits: int = 2

    @property
    def is_met(self) -> bool | None:
        if self.here is None:
            return None
        return self.here >= self.limit if self.bar == ">=" else self.here <= self.limit

    def cells(self) -> tuple[str, ...]:
        verdict = {True: "yes", False: "NO", None: "not measured"}[self.is_met]
        here = "" if self.here is None else f"{self.here:,.{self.digits}f}"
        return self.measure, f"{self.bar} {self.limit:,g}", here, verdict


def at_least(measure: str, limit: float, here: float | None, *, digits: int = 2) -> Line:
    return Line(measure=measure, bar=">=", limit=limit, here=here, digits=digits)


def at_most(measure: str, limit: float, here: float | None, *, digits: int = 2) -> Line:
    return Line(measure=measure, bar="<=", limit=limit, here=here, digits=digits)


def show_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n### {title}\n")
    print(f"| {' | '.join(head)} |\n|---|{'---:|' * (len(head) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def show_judged(lines: Sequence[Line]) -> None:
    show_table(
        "What ours must reach",
        ("measure", "must reach", "here", ""),
        [line.cells() for line in lines],
    )


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios, each round by itself."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
