"""The report of a pass while it is made, its budgets, and what is remembered between passes.

Ranges are scanned side by side, on threads in a sync verification, so a lock keeps the numbers.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from supabase_resilience.events import Event, FixingAborted, RowQuarantined, ViolationFixed
from supabase_resilience.verification._report import Fate, Problem, Report
from supabase_resilience.verification._rules import Rule

__all__ = ["Fights", "Tally"]

_FIGHTS = 3
_REMEMBERED = 100_000
_HANDFUL = 20
_SAMPLE = 1_000


class Fights:
    """How often which row was fixed, over all passes: somebody may be undoing it."""

    def __init__(self) -> None:
        self._fixes: OrderedDict[tuple[str, Any], int] = OrderedDict()

    def fixed(self, rule: str, key: Any) -> None:
        """It was fixed once more."""
        count = self._fixes.pop((rule, key), 0)
        self._fixes[rule, key] = count + 1
        if len(self._fixes) > _REMEMBERED:
            self._fixes.popitem(last=False)

    def is_lost(self, rule: str, key: Any) -> bool:
        """Whether it was fixed so often that another time would not help."""
        return self._fixes.get((rule, key), 0) >= _FIGHTS


class Tally:
    """`report`, and whether more may be fixed. `total` is about how many rows the table has."""

    def __init__(
        self,
        report: Report,
        fights: Fights,
        *,
        max_fixes: int,
        max_share: float,
        tell: Callable[[Event], None],
    ) -> None:
        self.report = report
        self.total: int | None = None
        self.fixes = 0
        self._fights = fights
        self._max_fixes = max_fixes
        self._max_share = max_share
        self._tell = tell
        self._lock = threading.Lock()

    def checked(self, rows: int) -> None:
        """So many more rows were looked at."""
        with self._lock:
            self.report.rows += rows

    def flagged(self, rule: Rule) -> None:
        """A row looks broken."""
        with self._lock:
            self.report.rule(rule.name, rule.severity).flagged += 1

    def settled(self, rule: Rule) -> None:
        """It was right when looked at again."""
        with self._lock:
            self.report.rule(rule.name, rule.severity).settled += 1

    def is_sample_enough(self) -> bool:
        """Whether so many rows were seen that a share of them says something."""
        return self.report.rows >= _SAMPLE

    def refusal(self, rule: Rule, key: Any) -> Fate | None:
        """Why a row must not be fixed, None when it may be."""
        if self._fights.is_lost(rule.name, key):
            self._tell(RowQuarantined(table=self.report.table, rule=rule.name, key=str(key)))
            return "quarantined"
        with self._lock:
            reason = None if self.report.aborted else self._reason_to_abort(rule)
            if reason is not None:
                self.report.aborted = reason
            elif not self.report.aborted:
                self.fixes += 1
                return None
        if reason is not None:
            self._tell(FixingAborted(table=self.report.table, rule=rule.name, reason=reason))
        return "over_budget"

    def _reason_to_abort(self, rule: Rule) -> str | None:
        if self.fixes >= self._max_fixes:
            return f"fixing stopped after max_fixes={self._max_fixes}"
        counts = self.report.rules[rule.name]
        broken = counts.flagged - counts.settled
        seen = self.report.rows if rule.violates is None else self.total
        # A handful says nothing about a rule, however small the table is.
        if seen is not None and broken > _HANDFUL and broken > self._max_share * seen:
            return (
                f"fixing stopped: {broken} of {seen} rows seem to break {rule.name!r}, more than "
                f"max_share={self._max_share:g}; is the rule right?"
            )
        return None

    def fate(self, rule: Rule, key: Any, fate: Fate, reason: str = "") -> None:
        """What became of a violation."""
        with self._lock:
            self.report.rule(rule.name, rule.severity)
            shown = list(key) if isinstance(key, tuple) else key  # as from a file of JSON lines
            self.report.add(Problem(rule.name, shown, fate, reason))
            if fate == "fixed":
                self._fights.fixed(rule.name, key)
        if fate == "fixed":
            self._tell(ViolationFixed(table=self.report.table, rule=rule.name, key=str(key)))
