"""What a pass has found and done, for people and for programs."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from supabase_resilience.verification._rules import Severity

__all__ = ["Fate", "Problem", "Report", "RuleReport"]

Fate = Literal[
    "left",
    "would_fix",
    "fixed",
    "cas_lost",
    "fix_failed",
    "skipped",
    "quarantined",
    "unsettled",
    "over_budget",
    "error",
]
"""What became of a violation.

`left`: nothing to fix it with. `would_fix`: a dry run. `cas_lost`: somebody changed the row first.
`skipped`: the fix said SKIP. `quarantined`: fixed three times, and broken again. `unsettled`: it
changes too often to be judged. `over_budget`: the fixing was stopped. `error`: the check raised.
"""
_SOLVED = {"fixed"}
_IN_MEMORY = 10_000
_SUMMARY = 3_000
_SHOWN_IDS = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """One row that breaks one rule: its key (a list of values if composite), fate and reason."""

    rule: str
    key: Any
    fate: Fate
    reason: str = ""


@dataclass(slots=True)
class RuleReport:
    """The counts of one rule."""

    name: str
    severity: Severity = "error"
    flagged: int = 0
    settled: int = 0
    fates: Counter[str] = field(default_factory=Counter)

    @property
    def violations(self) -> int:
        """Those that were confirmed."""
        return sum(self.fates.values())

    @property
    def open(self) -> int:
        """Those that are still there."""
        return sum(count for fate, count in self.fates.items() if fate not in _SOLVED)


class Problems:
    """All problems of a pass; beyond ten thousand they lie in a file of JSON lines."""

    def __init__(self) -> None:
        self._recent: list[Problem] = []
        self._path: Path | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Problem]:
        if self._path is not None:
            with self._path.open(encoding="utf-8") as lines:
                for line in lines:
                    yield Problem(**json.loads(line))
        yield from list(self._recent)

    @property
    def path(self) -> Path | None:
        """The file, if there are so many."""
        if self._path is not None:
            self._spill()
        return self._path

    def add(self, problem: Problem) -> None:
        self._recent.append(problem)
        self._count += 1
        if len(self._recent) >= _IN_MEMORY:
            self._spill()

    def _spill(self) -> None:
        if self._path is None:
            descriptor, name = tempfile.mkstemp(prefix="verification-", suffix=".jsonl")
            self._path = Path(name)
            open(descriptor, "wb").close()  # noqa: PTH123 - only made
        with self._path.open("a", encoding="utf-8") as file:
            for each in self._recent:
                row = {"rule": each.rule, "key": each.key, "fate": each.fate, "reason": each.reason}
                file.write(json.dumps(row, default=str) + "\n")
        self._recent.clear()


@dataclass
class Report:
    """What a pass has found and done.

    `rows` were checked by fetching them; a rule that is pushed down fetches only broken ones.
    `aborted` says why the fixing was stopped, `failure` why the pass was. Two reports of parts of
    one table are added with `+`.
    """

    table: str
    rules: dict[str, RuleReport] = field(default_factory=dict)
    rows: int = 0
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    seconds: float = 0.0
    is_dry_run: bool = False
    is_incremental: bool = False
    aborted: str | None = None
    failure: str | None = None
    problems: Problems = field(default_factory=Problems)

    def __add__(self, other: "Report") -> "Report":
        """Both as one; raises `ValueError` for those of different tables."""
        if self.table != other.table:
            raise ValueError(f"reports of {self.table} and of {other.table} do not add up")
        total = Report(
            self.table,
            rows=self.rows + other.rows,
            started_at=min(self.started_at, other.started_at),
            seconds=max(self.seconds, other.seconds),
            is_dry_run=self.is_dry_run or other.is_dry_run,
            is_incremental=self.is_incremental or other.is_incremental,
            aborted=self.aborted or other.aborted,
            failure=self.failure or other.failure,
        )
        for part in (self, other):
            for name, rule in part.rules.items():
                total.rule(name, rule.severity).flagged += rule.flagged
                total.rules[name].settled += rule.settled
                total.rules[name].fates.update(rule.fates)
            for problem in part.problems:
                total.problems.add(problem)
        return total

    # --- made by the pass -------------------------------------------------------------------------

    def rule(self, name: str, severity: Severity = "error") -> RuleReport:
        """The counts of a rule."""
        return self.rules.setdefault(name, RuleReport(name, severity))

    def add(self, problem: Problem) -> None:
        """Note what became of a violation."""
        self.rule(problem.rule).fates[problem.fate] += 1
        self.problems.add(problem)

    # --- read by people and programs --------------------------------------------------------------

    @property
    def violations(self) -> int:
        """Violations that were confirmed."""
        return sum(rule.violations for rule in self.rules.values())

    @property
    def fixed(self) -> int:
        """Violations that were fixed, and seen to be."""
        return sum(rule.fates["fixed"] for rule in self.rules.values())

    @property
    def open(self) -> int:
        """Violations that are left."""
        return sum(rule.open for rule in self.rules.values())

    @property
    def rows_per_second(self) -> float:
        """Rows checked in a second."""
        return self.rows / self.seconds if self.seconds else 0.0

    @property
    def exit_code(self) -> int:
        """0: clean. 1: violations are left. 2: the pass failed."""
        if self.failure is not None:
            return 2
        return 1 if self.open else 0

    def failing_ids(self, rule: str | None = None) -> Iterator[Any]:
        """The keys of the rows that are still broken, all of them."""
        for problem in self.problems:
            if problem.fate not in _SOLVED and rule in {None, problem.rule}:
                yield problem.key

    def to_dict(self, *, max_problems: int = 1_000) -> dict[str, Any]:
        """For JSON; with the first `max_problems` problems, all of which `problems` iterates."""
        first = [
            {"rule": each.rule, "key": each.key, "fate": each.fate, "reason": each.reason}
            for each in islice(self.problems, max_problems)
        ]
        return {
            "table": self.table,
            "started_at": self.started_at.isoformat(),
            "seconds": round(self.seconds, 3),
            "rows": self.rows,
            "rows_per_second": round(self.rows_per_second, 1),
            "violations": self.violations,
            "fixed": self.fixed,
            "open": self.open,
            "exit_code": self.exit_code,
            "is_dry_run": self.is_dry_run,
            "is_incremental": self.is_incremental,
            "aborted": self.aborted,
            "failure": self.failure,
            "rules": [
                {
                    "name": rule.name,
                    "severity": rule.severity,
                    "flagged": rule.flagged,
                    "settled": rule.settled,
                    "violations": rule.violations,
                    "fates": dict(rule.fates),
                }
                for rule in self.rules.values()
            ],
            "problems": first,
            "problems_file": None if self.problems.path is None else str(self.problems.path),
        }

    def summary(self) -> str:
        """At most 3,000 characters, for a chat message."""
        lines = [self.headline]
        for rule in self.rules.values():
            fates = ", ".join(f"{count} {fate}" for fate, count in sorted(rule.fates.items()))
            lines.append(f"• {rule.name} ({rule.severity}): {fates or 'none broken'}")
            ids = [str(each) for each in islice(self.failing_ids(rule.name), _SHOWN_IDS)]
            if ids:
                more = " …" if rule.open > len(ids) else ""
                lines.append(f"  still broken: {', '.join(ids)}{more}")
        lines += [f"! {text}" for text in (self.aborted, self.failure) if text]
        text = "\n".join(lines)
        return text if len(text) <= _SUMMARY else text[: _SUMMARY - 2] + "\n…"

    @property
    def headline(self) -> str:
        """The whole of it in one line."""
        what = "failed" if self.failure else "clean" if not self.open else f"{self.open} open"
        kind = " (dry run)" if self.is_dry_run else ""
        return (
            f"{self.table}: {what}{kind}; {self.rows:,} rows in {self.seconds:.1f} s, "
            f"{self.violations} violations, {self.fixed} fixed"
        )

    def __str__(self) -> str:
        """A table."""
        fates = sorted({fate for rule in self.rules.values() for fate in rule.fates})
        head = ["rule", "severity", "violations", *fates]
        body = [
            [rule.name, rule.severity, str(rule.violations), *(str(rule.fates[f]) for f in fates)]
            for rule in self.rules.values()
        ]
        notes = [text for text in (self.aborted, self.failure) if text]
        return "\n".join([self.headline, *_table([head, *body]), *notes])

    def to_html(self) -> str:
        """One page that needs nothing else, to forward to a colleague."""
        from supabase_resilience.verification._html import page  # noqa: PLC0415

        return page(self)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
