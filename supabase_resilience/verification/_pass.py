"""The life of a violation: flagged, read again after the grace, fixed if unchanged, and verified.

A compare-and-swap keeps us from overwriting what an app has written. Only the grace keeps us from
interfering with an app that is half-way through writing: fixers without it made hundreds of
needless fixes in a minute (measured), with it none.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from postgrest.exceptions import APIError

from supabase_resilience._clock import Clock
from supabase_resilience._queries import KEYS_PER_READ, Condition, Select, next_page
from supabase_resilience.errors import VerificationError
from supabase_resilience.verification._commands import Begin, Call, Get, Page, Plan, Read, Wait
from supabase_resilience.verification._paging import KeyRange, PageSize
from supabase_resilience.verification._report import Fate
from supabase_resilience.verification._rules import SKIP, Judgment, Rule, suspects
from supabase_resilience.verification._table import Table
from supabase_resilience.verification._tally import Tally
from supabase_resilience.verification._writers import Writer

__all__ = ["RangePass", "Way"]

_TIMEOUTS = {"57014", "PGRST003"}
_ROUNDS = 3
_FIXES_AT_ONCE = 10
_LINGER = 1.0
_BROKEN = Judgment("broken")


@dataclass(frozen=True, slots=True)
class Way:
    """How a pass goes about it."""

    rules: Sequence[Rule]
    fix_missing_data: Callable[[Any], Any] | None
    page_size: int
    grace: float
    is_dry_run: bool
    since: Sequence[Condition] = ()


@dataclass(slots=True)
class _Flag:
    """A row that looks broken; looked at again at `due`. Unsure: whether its fix was written."""

    rule: Rule
    key: Any
    stamp: Any
    due: float
    reason: str
    place: int
    rounds: int = 1
    is_unsure: bool = False


class RangePass:
    """One pass over one range of keys; `last` is the row up to which nothing is left to do."""

    def __init__(
        self,
        table: Table,
        key_range: KeyRange,
        way: Way,
        tally: Tally,
        writer: Writer,
        *,
        clock: Clock,
        last: dict[str, Any] | None = None,
    ) -> None:
        self.last = last
        self._table = table
        self._range = key_range
        self._way = way
        self._tally = tally
        self._writer = writer
        self._clock = clock
        self._flags: deque[_Flag] = deque()
        self._places: dict[int, dict[str, Any] | None] = {}
        self._place = 0
        self._scanned = last
        self._widest = 1
        self._written: Counter[Any] = Counter()

    def run(self) -> Plan[None]:
        """Check every row of the range."""
        checked = [rule for rule in self._way.rules if rule.violates is None]
        if checked:
            yield from self._scan(None, checked)
        for rule in self._way.rules:
            if rule.violates is not None:
                self._scanned = None
                yield from self._scan(rule, [rule])

    # --- scanning ---------------------------------------------------------------------------------

    def _scan(self, pushed: Rule | None, rules: Sequence[Rule]) -> Plan[None]:
        """Page through the rows, or through those that violate `pushed`."""
        size = PageSize(self._way.page_size)
        page = yield from self._first_page(pushed, size, rules)
        while page.rows:
            asked = size.size
            ticket = yield Begin(self._read(pushed, page.rows[-1], size.size))
            self._enter_page()
            self._widest = max(self._widest, len(page.rows))
            for rule in rules:
                self._judge(rule, page.rows)
            self._scanned = page.rows[-1]
            if pushed is None:
                self._tally.checked(len(page.rows))
            yield from self._settle(everything=False)
            if pushed is None:
                self._note_place()
            page = yield from self._next_page(pushed, size, ticket, asked)
        yield from self._settle(everything=True)

    def _enter_page(self) -> None:
        """Where a new process would have to begin if rows of this page were not settled."""
        self._place += 1
        self._places[self._place] = self._key_of(self._scanned)

    def _note_place(self) -> None:
        oldest = min((flag.place for flag in self._flags), default=None)
        self.last = self._key_of(self._scanned) if oldest is None else self._places[oldest]
        for place in list(self._places):
            if oldest is None or place < oldest:
                del self._places[place]

    def _key_of(self, row: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if row is None else {column: row[column] for column in self._table.key}

    def _read(self, pushed: Rule | None, last: dict[str, Any] | None, limit: int) -> Read:
        table = self._table
        further, any_of = next_page(table.key, last)
        where = [*self._range.conditions(table.key[0]), *self._way.since, *further]
        select = Select(where=where, any_of=any_of, order=table.key, limit=limit)
        return Read(select, pushed)

    def _first_page(self, pushed: Rule | None, size: PageSize, rules: Sequence[Rule]) -> Plan[Page]:
        while True:
            try:
                ticket = yield Begin(self._read(pushed, self._scanned, size.size))
                page: Page = yield Get(ticket)
            except APIError as error:
                if not (error.code in _TIMEOUTS and size.timed_out()):
                    raise
            else:
                self._check_guards(rules, page.rows)
                return page

    def _check_guards(self, rules: Sequence[Rule], rows: Sequence[dict[str, Any]]) -> None:
        for row in rows[:1]:
            for rule in rules:
                missing = [column for column in rule.guard or () if column not in row]
                if missing:
                    raise VerificationError(
                        f"rule {rule.name!r} is guarded by columns that {self._table} does not "
                        f"have: {', '.join(missing)}"
                    )

    def _next_page(
        self, pushed: Rule | None, size: PageSize, ticket: Any, asked: int
    ) -> Plan[Page]:
        while True:
            try:
                page: Page = yield Get(ticket)
            except APIError as error:
                if not (error.code in _TIMEOUTS and size.timed_out()):
                    raise
                asked = size.size
                ticket = yield Begin(self._read(pushed, self._scanned, asked))
            else:
                size.took(page.seconds)
                return page

    def _judge(self, rule: Rule, rows: Iterable[dict[str, Any]]) -> None:
        for row in suspects(rule, rows):
            judgment = _BROKEN if rule.violates is not None else rule.judge(row)
            if judgment.state == "broken":
                self._tally.flagged(rule)
                self._flag(rule, row, judgment.reason)
            elif judgment.state == "error":
                self._tally.fate(rule, self._table.key_of(row), "error", judgment.reason)

    def _flag(
        self, rule: Rule, row: dict[str, Any], reason: str, before: _Flag | None = None
    ) -> None:
        place, rounds = (self._place, 1) if before is None else (before.place, before.rounds + 1)
        key, stamp = self._table.key_of(row), self._table.stamp(row, rule)
        due = self._clock() + self._way.grace
        self._flags.append(_Flag(rule, key, stamp, due, reason, place, rounds))

    # --- settling ---------------------------------------------------------------------------------

    def _settle(self, *, everything: bool) -> Plan[None]:
        """Look again at the flags that are due; with `everything` wait for all of them."""
        while self._flags:
            if not everything and not self._is_worth_a_look():
                return
            wait = self._flags[0].due - self._clock()
            if wait > 0:
                yield Wait(wait)
                continue
            yield from self._confirm(self._take_due())

    def _take_due(self) -> list[_Flag]:
        """Flags to look at in one read: one of a row, as a fix for it changes what others see."""
        now, later = self._clock(), list[_Flag]()
        due: dict[Any, _Flag] = {}
        # More rows than came in a page might not come: the server may have a cap.
        most = min(KEYS_PER_READ, self._widest)
        while self._flags and self._flags[0].due <= now and len(due) < most:
            flag = self._flags.popleft()
            if flag.key in due:
                later.append(flag)
            else:
                due[flag.key] = flag
        self._flags.extendleft(reversed(later))
        return list(due.values())

    def _is_worth_a_look(self) -> bool:
        """Whether many flags are due, or one for long: a read for each would double the reads."""
        if not self._tally.is_sample_enough():
            return False
        now = self._clock()
        many = len(self._flags) >= KEYS_PER_READ and self._flags[KEYS_PER_READ - 1].due <= now
        return many or self._flags[0].due + _LINGER <= now

    def _confirm(self, flags: list[_Flag]) -> Plan[None]:
        """Read the rows again: fix what is unchanged and still broken."""
        fixed: list[_Flag] = []
        found = yield from self._look_again(flags)
        for flag, (row, judgment) in zip(flags, found, strict=True):
            if row is None or judgment.state != "broken":
                self._tally.settled(flag.rule)
            elif self._table.stamp(row, flag.rule) != flag.stamp:
                self._again(flag, row, judgment)
            elif (yield from self._treat(flag, row)):
                fixed.append(flag)
            # In an outage it is the look that waits for the end, not the next write that fails.
            if len(fixed) >= _FIXES_AT_ONCE or (fixed and flag.is_unsure):
                yield from self._verify(fixed)
                fixed.clear()
                yield Wait(0.0)  # whoever wants to stop needs not wait for all of them
        yield from self._verify(fixed)

    def _again(self, flag: _Flag, row: dict[str, Any], judgment: Judgment) -> None:
        if flag.rounds >= _ROUNDS + self._written[flag.key]:  # what we write is no unrest
            self._tally.fate(flag.rule, flag.key, "unsettled", "it changes all the time")
        else:
            self._flag(flag.rule, row, judgment.reason, flag)

    def _look_again(
        self, flags: Sequence[_Flag]
    ) -> Plan[list[tuple[dict[str, Any] | None, Judgment]]]:
        """The rows as they are now, each with what its rule says of it."""
        rows: dict[Any, dict[Any, dict[str, Any]]] = {}
        for rule in {id(flag.rule): flag.rule for flag in flags}.values():
            source = None if rule.violates is None else rule
            if source not in rows:
                same = [f for f in flags if (None if f.rule.violates is None else f.rule) is source]
                rows[source] = yield from self._by_key(source, [flag.key for flag in same])
        found: list[tuple[dict[str, Any] | None, Judgment]] = []
        for flag in flags:
            rule = flag.rule
            row = rows[None if rule.violates is None else rule].get(flag.key)
            found.append((row, self._judgment(rule, row)))
        return found

    def _judgment(self, rule: Rule, row: dict[str, Any] | None) -> Judgment:
        if row is None:
            return Judgment("right")
        if rule.violates is not None:
            return _BROKEN
        return rule.judge(self._table.visible(row))

    def _by_key(self, pushed: Rule | None, keys: Iterable[Any]) -> Plan[dict[Any, dict[str, Any]]]:
        found: dict[Any, dict[str, Any]] = {}
        for select in self._table.reads_of(list(dict.fromkeys(keys))):
            rows = yield Read(select, pushed)
            found.update((self._table.key_of(row), row) for row in rows)
        return found

    # --- fixing -----------------------------------------------------------------------------------

    def _treat(self, flag: _Flag, row: dict[str, Any]) -> Plan[bool]:
        """Fix a confirmed violation, if that may be; True if it has to be verified."""
        rule, repair = flag.rule, self._way.fix_missing_data
        if rule.fix is None and repair is None:
            self._tally.fate(rule, flag.key, "left", flag.reason)
            return False
        if self._way.is_dry_run:
            self._tally.fate(rule, flag.key, "would_fix", flag.reason)
            return False
        refusal = self._tally.refusal(rule, flag.key)
        if refusal is not None:
            self._tally.fate(rule, flag.key, refusal, flag.reason)
            return False
        fate, reason = yield from (
            self._patch(rule, row) if rule.fix is not None else self._repair(flag.key)
        )
        if fate is not None:
            self._tally.fate(rule, flag.key, fate, reason)
        else:
            self._written[flag.key] += 1
        flag.is_unsure = fate is None and bool(reason)
        return fate is None

    def _repair(self, key: Any) -> Plan[tuple[Fate | None, str]]:
        """The user's own repair: confirmed and verified, but neither swapped nor fenced."""
        if self._way.fix_missing_data is None:
            return "left", ""
        if (yield from self._writer.is_lost()):
            return "left", "the lease was lost"
        try:
            yield Call(self._way.fix_missing_data, key)
        except Exception as error:  # noqa: BLE001 - it is the user's function
            return "fix_failed", f"fix_missing_data raised {type(error).__name__}"
        return None, ""

    def _patch(self, rule: Rule, row: dict[str, Any]) -> Plan[tuple[Fate | None, str]]:
        if (yield from self._writer.is_lost()):
            return "left", "the lease was lost"
        try:
            patch = yield Call(rule.fix or _nothing, self._table.visible(row))
        except Exception as error:  # noqa: BLE001 - it is the user's function
            return "fix_failed", f"fix raised {type(error).__name__}"
        if patch is SKIP:
            return "skipped", "fix returned SKIP"
        if not isinstance(patch, dict) or not patch:
            return "fix_failed", f"fix returned no columns to set but {type(patch).__name__}"
        try:
            return (yield from self._writer.write(self._table, rule, row, patch))
        except APIError as error:
            return "fix_failed", f"the write was refused: {error.code}"

    def _verify(self, flags: Sequence[_Flag]) -> Plan[None]:
        """Look at what was written, or may have been."""
        if not flags:
            return
        found = yield from self._look_again(flags)
        for flag, (row, judgment) in zip(flags, found, strict=True):
            if row is not None and judgment.state != "right":
                self._not_fixed(flag, row, judgment)
            else:
                self._tally.fate(flag.rule, flag.key, "fixed", flag.reason)

    def _not_fixed(self, flag: _Flag, row: dict[str, Any], judgment: Judgment) -> None:
        if flag.is_unsure and judgment.state == "broken" and flag.rounds < _ROUNDS:
            self._flag(flag.rule, row, judgment.reason, flag)
        else:
            self._tally.fate(flag.rule, flag.key, "fix_failed", "it is still broken")


def _nothing(_: Any) -> dict[str, Any]:
    return {}


def with_since(way: Way, since: Sequence[Condition]) -> Way:
    """The same, for the rows that have changed."""
    return replace(way, since=since)
