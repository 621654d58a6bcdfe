"""What a verification counts, and the snapshot of it."""

from dataclasses import dataclass
from typing import Literal

from supabase_resilience.verification._report import Report

__all__ = ["Counts", "VerificationState", "VerificationStats"]

VerificationState = Literal["stopped", "waiting", "verifying", "paused"]


@dataclass(frozen=True, slots=True)
class VerificationStats:
    """A verification at one moment, counted since it was made.

    - `problem_count`: violations that were confirmed. `fixed`, `cas_lost`, `fix_failed`: what
      became of them. `open`: those that the last pass left.
    - `passes`: complete ones, `failed_passes`. `rows`: those that were checked.
    - `reason`: what holds the pass up, or why the last one failed (None: neither).
    - `progress`: of the pass under way, 0 to 1, None when none is or nobody knows.
    - `last_pass_age`: seconds since a pass was completed, None before the first.
    """

    table: str
    state: VerificationState
    reason: str | None
    problem_count: int
    fixed: int
    cas_lost: int
    fix_failed: int
    open: int
    passes: int
    failed_passes: int
    rows: int
    progress: float | None
    last_pass_age: float | None
    last_report: Report | None


@dataclass(slots=True)
class Counts:
    """The numbers behind `VerificationStats`."""

    problem_count: int = 0
    fixed: int = 0
    cas_lost: int = 0
    fix_failed: int = 0
    passes: int = 0
    failed_passes: int = 0
    rows: int = 0
    reason: str | None = None
    ended_at: float | None = None
    last_report: Report | None = None

    def ended(self, report: Report, now: float) -> None:
        """A pass is over."""
        fates = [rule.fates for rule in report.rules.values()]
        self.problem_count += report.violations
        self.fixed += report.fixed
        self.cas_lost += sum(each["cas_lost"] for each in fates)
        self.fix_failed += sum(each["fix_failed"] for each in fates)
        self.rows += report.rows
        self.last_report = report
        if report.failure is None:
            self.passes += 1
            self.ended_at = now
        else:
            self.failed_passes += 1

    def snapshot(
        self, *, table: str, state: VerificationState, progress: float | None, now: float
    ) -> VerificationStats:
        """As it is now."""
        report = self.last_report
        return VerificationStats(
            table=table,
            state=state,
            reason=self.reason,
            problem_count=self.problem_count,
            fixed=self.fixed,
            cas_lost=self.cas_lost,
            fix_failed=self.fix_failed,
            open=0 if report is None else report.open,
            passes=self.passes,
            failed_passes=self.failed_passes,
            rows=self.rows,
            progress=progress,
            last_pass_age=None if self.ended_at is None else max(0.0, now - self.ended_at),
            last_report=report,
        )
