"""A verification without its colour: what a pass consists of, and what is kept between passes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from postgrest.exceptions import APIError

from supabase_resilience._clock import Clock
from supabase_resilience._queries import Condition, Rpc, Select
from supabase_resilience.errors import ResilienceError, VerificationError
from supabase_resilience.events import (
    CursorNotSaved,
    Event,
    PassCompleted,
    PassFailed,
    PassPaused,
    PassResumed,
    PassStarted,
)
from supabase_resilience.failures import words_of
from supabase_resilience.verification._commands import Count, Plan, Read
from supabase_resilience.verification._lease import Lease
from supabase_resilience.verification._paging import KeyRange
from supabase_resilience.verification._pass import RangePass, with_since
from supabase_resilience.verification._report import Report
from supabase_resilience.verification._settings import Settings
from supabase_resilience.verification._stats import Counts, VerificationStats
from supabase_resilience.verification._table import XMIN, Table
from supabase_resilience.verification._tally import Fights, Tally
from supabase_resilience.verification._writers import FencedWriter, PlainWriter, Writer

__all__ = ["Core", "PassRun"]

_XID = "sync_xid"
_FORMAT = 1
_TIMEOUTS = {"57014", "PGRST003"}


@dataclass
class PassRun:
    """A pass under way: its ranges, its tally, and what the next one may begin from."""

    ranges: list[RangePass]
    keys: list[KeyRange]
    tally: Tally
    began: float
    marker: Any
    is_full: bool
    is_whole: bool

    @property
    def report(self) -> Report:
        """What it has found so far."""
        return self.tally.report


class Core:
    """What both colours share. `tell` hands an event to the user's hook."""

    def __init__(self, settings: Settings, *, clock: Clock, tell: Callable[[Event], None]) -> None:
        self.settings = settings
        self.counts = Counts()
        self.lease = (
            None if settings.lease is None else Lease(settings.lease, clock=clock, tell=tell)
        )
        self._clock = clock
        self._to_hook = tell
        self._fights = Fights()
        self._marker: Any = None
        self._passes = 0
        self._ended_with: BaseException | None = None
        self.run: PassRun | None = None

    def tell(self, event: Event) -> None:
        """Tell the user's hook; what holds a pass up is remembered."""
        if isinstance(event, PassPaused | PassFailed):
            self.counts.reason = event.reason
        elif isinstance(event, PassResumed | PassCompleted):
            self.counts.reason = None
        self._to_hook(event)

    # --- a pass -----------------------------------------------------------------------------------

    def begin(
        self,
        *,
        dry_run: bool = False,
        only: KeyRange | None = None,
        saved: Mapping[str, Any] | None = None,
    ) -> Plan[PassRun]:
        """Find out what there is to do; `saved` is where an earlier process was."""
        settings, table = self.settings, self._table()
        report = Report(settings.name, is_dry_run=dry_run or settings.dry_run)
        for rule in settings.all_rules():
            report.rule(rule.name, rule.severity)
        tally = Tally(
            report,
            self._fights,
            max_fixes=settings.max_fixes,
            max_share=settings.max_share,
            tell=self.tell,
        )
        tally.total = yield from _about_how_many()
        yield from self._look_for_xmin(table)
        places = _places(saved) if only is None else None
        is_full = self._is_full_due(saved) or only is not None
        is_whole = self.is_whole(dry_run=dry_run, only=only)
        marker = yield from self._new_marker()
        if saved is not None and saved.get("next") is not None:
            marker = saved["next"]  # what changed since then may lie before our place
        since = [] if is_full else self._since()
        report.is_incremental = bool(since)
        if places is None:
            keys = [only] if only is not None else (yield from self.key_ranges(settings.ranges))
            places = [(key_range, None) for key_range in keys]
        way = with_since(settings.way(is_dry_run=dry_run), since)
        ranges = [
            RangePass(table, key_range, way, tally, self._writer(), clock=self._clock, last=last)
            for key_range, last in places
        ]
        keys = [key_range for key_range, _ in places]
        self.run = PassRun(ranges, keys, tally, self._clock(), marker, is_full, is_whole)
        self.tell(PassStarted(table=settings.name, is_full=is_full))
        return self.run

    def is_whole(self, *, dry_run: bool, only: KeyRange | None) -> bool:
        """Whether a pass counts: it goes through all, and fixes what this verification fixes."""
        return only is None and (self.settings.dry_run or not dry_run)

    def end(self, run: PassRun, error: BaseException | None) -> Report:
        """Close the books of a pass."""
        report = run.report
        report.seconds = self._clock() - run.began
        if error is not None:
            report.failure = f"{type(error).__name__}: {_told(error)}"
        self.run = None
        self._ended_with = error
        self.counts.ended(report, self._clock())
        if error is not None:
            self.tell(PassFailed(table=report.table, reason=type(error).__name__))
            return report
        if run.is_whole:
            self._passes += 1
            self._marker = run.marker if run.marker is not None else self._marker
        self.tell(
            PassCompleted(
                table=report.table,
                rows=report.rows,
                violations=report.violations,
                fixed=report.fixed,
                open=report.open,
                seconds=report.seconds,
            )
        )
        return report

    def _look_for_xmin(self, table: Table) -> Plan[None]:
        """Rows without a guard are swapped by their xmin: see at once that they have one."""
        swapped = [r for r in self.settings.all_rules() if r.fix is not None and r.guard is None]
        if not swapped:
            return
        try:
            yield Read(Select([XMIN], limit=1))
        except APIError as error:
            if error.code != "42703":
                raise
            raise VerificationError(
                f"{table} is a view, so rule {swapped[0].name!r} needs guard=: the columns by "
                "which it can be seen that a row is still what it was"
            ) from error
        table.reads_xmin = True

    def _table(self) -> Table:
        return Table(self.settings.schema, self.settings.table, self.settings.key)

    def _writer(self) -> Writer:
        return PlainWriter() if self.lease is None else FencedWriter(self.lease)

    # --- ranges -----------------------------------------------------------------------------------

    def key_ranges(self, count: int) -> Plan[list[KeyRange]]:
        """Cut the keys into `count` ranges of about as many rows each."""
        if count == 1:
            return [KeyRange()]
        total = yield from _about_how_many()
        if not total or total < count:
            return [KeyRange()]
        column = self.settings.key[0]
        cuts: list[Any] = []
        for number in range(1, count):
            select = Select(
                [column], order=self.settings.key, limit=1, offset=number * total // count
            )
            rows = yield Read(select)
            if rows and (not cuts or rows[0][column] != cuts[-1]):
                cuts.append(rows[0][column])
        return KeyRange.between(cuts)

    # --- what has changed -------------------------------------------------------------------------

    def _is_full_due(self, saved: Mapping[str, Any] | None) -> bool:
        if self.settings.changed_since is None or self._marker is None:
            return True
        if saved is not None and "is_full" in saved:
            return bool(saved["is_full"])
        return self._passes % self.settings.full_every == 0

    def _new_marker(self) -> Plan[Any]:
        """Where the next incremental pass begins: taken before anything is read."""
        column = self.settings.changed_since
        if column is None:
            return None
        if column == _XID:
            about = {"p_schema": self.settings.schema, "p_table": self.settings.table}
            horizon = yield Rpc("supabase_resilience_horizon", about)
            return horizon["xmin"]
        newest = yield Read(
            Select(
                [column],
                where=[(column, "not.is", "null")],
                order=[column],
                is_descending=True,
                limit=1,
            )
        )
        return newest[0][column] if newest else None

    def _since(self) -> list[Condition]:
        column = self.settings.changed_since or ""
        value = self._marker
        if column != _XID:
            value = _earlier(value, self.settings.overlap, column)
        return [(column, "gte", str(value))]

    # --- the cursor -------------------------------------------------------------------------------

    def place(self) -> dict[str, Any] | None:
        """For a new process to go on from: where the pass under way is, and what is verified.

        None while a pass is under way that does not count.
        """
        run = self.run
        about = {
            "format": _FORMAT,
            "table": self.settings.name,
            "marker": self._marker,
            "passes": self._passes,
        }
        if run is None:
            return {**about, "ranges": None}
        if not run.is_whole:
            return None
        ranges = [
            {"range": keys.to_json(), "last": part.last}
            for keys, part in zip(run.keys, run.ranges, strict=True)
        ]
        return {**about, "ranges": ranges, "is_full": run.is_full, "next": run.marker}

    def resume(self, saved: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Take up what `place()` had saved; raises `VerificationError` for another's cursor."""
        if saved is None:
            return None
        if saved.get("format") != _FORMAT or saved.get("table") != self.settings.name:
            raise VerificationError(
                f"the cursor was saved by another verification, of {saved.get('table')!r}: give "
                f"each a cursor of its own, or delete this one to begin anew"
            )
        self._marker = saved.get("marker")
        self._passes = saved.get("passes", 0)
        return saved if saved.get("ranges") else None

    def failed(self, error: Exception) -> None:
        """A pass could not even begin; the error of one that has ended was told already."""
        if error is self._ended_with:
            return
        self.counts.failed_passes += 1
        self.tell(PassFailed(table=self.settings.name, reason=_told(error) or type(error).__name__))

    def not_saved(self, error: Exception) -> None:
        """The place could not be kept; a restart now would repeat more than it has to."""
        self.tell(CursorNotSaved(table=self.settings.name, reason=type(error).__name__))

    # --- numbers ----------------------------------------------------------------------------------

    def stats(self, state: Any) -> VerificationStats:
        """A snapshot."""
        run = self.run
        progress = None
        if run is not None and run.tally.total:
            progress = min(1.0, run.report.rows / run.tally.total)
        return self.counts.snapshot(
            table=self.settings.name, state=state, progress=progress, now=self._clock()
        )


def _about_how_many() -> Plan[int | None]:
    try:
        count: int | None = yield Count()
    except APIError as error:
        if error.code not in _TIMEOUTS:
            raise
        return None
    return count


def _places(
    saved: Mapping[str, Any] | None,
) -> list[tuple[KeyRange, dict[str, Any] | None]] | None:
    if saved is None or not saved.get("ranges"):
        return None
    return [(KeyRange.from_json(each["range"]), each["last"]) for each in saved["ranges"]]


def _earlier(value: Any, overlap: float, column: str) -> Any:
    if isinstance(value, int | float):
        return value - type(value)(overlap)
    try:
        return (datetime.fromisoformat(value) - timedelta(seconds=overlap)).isoformat()
    except (TypeError, ValueError):
        raise VerificationError(
            f"changed_since={column!r} must be a column of times or numbers"
        ) from None


def _told(error: BaseException) -> str:
    """What can be said of an error: a message that is not ours may quote a row."""
    if isinstance(error, APIError):
        return words_of(error)
    return str(error) if isinstance(error, ResilienceError) else ""
