"""The catch-up of each level: what is read, in which order, and what the followers are told of it.

The order is what makes it right: first the horizon, then tombstones, then rows. What ended before
the horizon is seen by every later read; what had not ended is read again by the next pass.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast

from supabase_resilience._queries import KEYS_PER_READ, Condition, Rpc, Select, next_page
from supabase_resilience.errors import ListenerError
from supabase_resilience.listener._changes import Key, Seen, Shape
from supabase_resilience.listener._follower import Follower, Position
from supabase_resilience.listener._levels import Recovery
from supabase_resilience.listener._log import LogShape
from supabase_resilience.listener._reads import Plan, Wait, with_keys
from supabase_resilience.listener._recovery import (
    DOUBT,
    MARGIN,
    LogLedger,
    RowLedger,
    exceeds_share,
)

__all__ = ["MIGRATION", "Outcome", "Passes"]

MIGRATION = 1
_PAGE = 1000
_ROUNDS = 5
_UNTIL_CONFIRMED = 1.0
_UNTIL_ROOM = 0.02
_HORIZON = "supabase_resilience_horizon"
_TOMBSTONES = "supabase_resilience_tombstones"
_CHANGES = "supabase_resilience_changes"
_XID = "sync_xid"


@dataclass
class Outcome:
    """What a pass has found.

    `found` are the keys (in a change log: the entries) that were news to somebody, with versions.
    Of the `silent` ones among them Realtime tells nothing, however well it is.
    `goes_on` when the positions must be kept before the next pass does the rest.
    """

    found: dict[Any, int | None] = field(default_factory=dict)
    silent: set[Any] = field(default_factory=set)
    resyncs: list[tuple[str, str]] = field(default_factory=list)
    goes_on: bool = False
    held: list[tuple[str, int, int]] = field(default_factory=list)


class Passes:
    """Makes the plans of one listener's catch-ups."""

    def __init__(
        self,
        shape: Shape,
        recovery: Recovery,
        where: Sequence[Condition],
        *,
        log: LogShape | None = None,
    ) -> None:
        self._shape = shape
        self._recovery = recovery
        self._where = where
        self._log = log
        self._newest: tuple[float, Any] | None = None
        self._about = {"p_schema": shape.schema, "p_table": shape.table}

    def run(
        self, followers: Iterable[Follower], now: float, outcome: Outcome | None = None
    ) -> Plan[Outcome]:
        """Bring these up to date; `now` is a monotonic time.

        `outcome` is where to note what was found, also when the pass fails later.
        """
        group, outcome = list(followers), outcome or Outcome()
        if self._recovery.level == "by_column":
            yield from self._by_column(group, outcome, now)
        elif self._recovery.level == "versioned":
            yield from self._versioned(group, outcome)
        else:
            yield from self._change_log(group, outcome)
        return outcome

    def again(self, followers: Iterable[Follower]) -> Plan[Outcome]:
        """Only read again what these have doubts about."""
        group, outcome = list(followers), Outcome()
        if self._log is None:
            yield from self._resolve(group, outcome)
        else:
            yield from self._entries_again(group, outcome)
        return outcome

    # --- versioned --------------------------------------------------------------------------------

    def _versioned(self, group: list[Follower], outcome: Outcome) -> Plan[None]:
        position, end = yield from self._horizon(group, outcome)
        if self._begins(group, position, outcome):
            return
        old = [follower for follower in group if follower.since is not None]
        if old and not self._recovery.key_diff:
            yield from self._tombstones(old, outcome)
        window = [(_XID, "lt", str(end))]
        order = [_XID, *self._shape.key]
        if self._where and old:
            yield from self._changed_keys(old, _XID, order, window)
        readers = [f for f in group if f.needs_rows] if self._where else group
        if readers:
            yield from self._rows(readers, group, order, window, outcome=outcome, horizon=position)
        yield from self._finish(group, outcome, position)

    def _horizon(self, group: list[Follower], outcome: Outcome) -> Plan[tuple[Position, int]]:
        found = yield Rpc(_HORIZON, self._about)
        self._check_migration(found)
        position = Position(
            found["xmin"],
            found["history"],
            started=found.get("started"),
            xmax=found["xmax"] if "xip" in found else 0,
            running=tuple(found.get("xip", ())),
        )
        for follower in group:
            if follower.starts_now:
                follower.since = follower.acked = position
            reason = _lost(follower.since, found)
            if reason is not None:
                outcome.resyncs.append((follower.name, reason))
                follower.since = follower.left_at = None
                if self._log is None:
                    _row_ledger(follower).restored()
            elif follower.since is not None and follower.since.started != position.started:
                self._after_restart(follower, follower.since, position, found["xmax"])
        return position, found["xmax"]

    def _after_restart(
        self, follower: Follower, since: Position, position: Position, end: int
    ) -> None:
        xid = max(0, min(since.xid, end) - MARGIN)
        follower.rewind(since._replace(xid=xid, xmax=0, started=position.started))

    def _begins(self, group: list[Follower], position: Position, outcome: Outcome) -> bool:
        """Note where those that begin do so, ahead of the first row: they may die amid the rows."""
        for follower in group:
            if follower.since is None:
                follower.since = follower.acked = position._replace(is_start=True)
                outcome.goes_on = outcome.goes_on or follower.is_kept
        return outcome.goes_on

    def _check_migration(self, found: dict[str, Any]) -> None:
        shape, level = self._shape, self._recovery.level
        if found.get("recovery") != level or found.get("migration") != MIGRATION:
            raise ListenerError(
                f"{shape.schema}.{shape.table} is not prepared for Recovery.{level}(). Run the SQL "
                f"that this prints: {migration_command(shape, level)}"
            )
        if level == "versioned" and list(found["key"]) != list(shape.key):
            raise ListenerError(
                f"the migration of {shape.schema}.{shape.table} was made for the key "
                f"{found['key']}, and id_column is {list(shape.key)}. Make them the same: "
                f"{migration_command(shape, level)}"
            )

    def _tombstones(self, group: list[Follower], outcome: Outcome) -> Plan[None]:
        since = min(follower.since.xid for follower in group if follower.since)
        last = 0
        while True:
            arguments = {**self._about, "p_since": since, "p_after": last, "p_limit": _PAGE}
            rows = yield Rpc(_TOMBSTONES, arguments)
            for row in rows:
                for follower in group:
                    self._bury(follower, row, outcome)
            if not rows:
                return
            last = rows[-1]["id"]

    def _bury(self, follower: Follower, row: dict[str, Any], outcome: Outcome) -> None:
        since, version = follower.since, row["ver"]
        if since is None or row["xid"] < since.xid:
            return
        if row["key"] is None:
            if not since.told.has(row["xid"]):
                self._empty(follower, since, version, outcome)
            return
        key = self._shape.key_of(dict(zip(self._shape.key, row["key"], strict=True)))
        if _row_ledger(follower).tombstone(key, version, is_alive=row["alive"]) == "DELETE":
            self._tell_gone(follower, key, outcome)

    def _empty(self, follower: Follower, since: Position, version: int, outcome: Outcome) -> None:
        """A TRUNCATE: the end of each row that is known, or of all and then the rows anew."""
        ledger = _row_ledger(follower)
        keys = ledger.truncated(version)
        for key in keys:
            self._tell_gone(follower, key, outcome)
        outcome.silent.update(keys)
        if follower.began_midway or ledger.has_forgotten:
            ledger.emptied()
            follower.tell(Seen("TRUNCATE", None, {}, {}, version), "TRUNCATE")
            follower.since = since._replace(is_start=True)
            follower.began_midway = False

    # --- rows -------------------------------------------------------------------------------------

    def _rows(
        self,
        readers: list[Follower],
        group: list[Follower],
        order: Sequence[str],
        window: Sequence[Condition],
        *,
        outcome: Outcome,
        horizon: Position | None,
    ) -> Plan[None]:
        """Page through the rows from the earliest `since` on; who has no room leaves the group.

        It goes on where it left, but not above the `horizon`, where more may come to light; without
        one where it began.
        """
        # Who needs all rows has been told none of them, be there a position or not.
        needs_all = any(follower.needs_rows for follower in readers)
        begin = None if needs_all else _earliest(readers, order[0])
        where = [*self._where, *window, *_from(begin, order[0])]
        # Who knows rows and is back at the beginning may have missed deletes.
        full = [f for f in readers if order[0] == _XID and f.needs_rows and len(f.ledger)]
        remote: set[Key] = set()
        limit = min([_PAGE, *(follower.limit for follower in readers)])
        last: dict[str, Any] | None = None
        while readers:
            _requested(readers)
            rows = yield _page(order, last, where=where, limit=limit)
            if not rows:
                break
            reached = None if full or last is None else _lower(order[0], last, horizon)
            yield from self._make_room(readers, group, len(rows), reached)
            for row in rows:
                seen = self._shape.read(row)
                if full:
                    remote.add(seen.key)
                for follower in readers:
                    if not _was_told(follower, row, order[0]):
                        self._offer(follower, seen, outcome)
            last = rows[-1]
        for follower in full:
            if follower in readers:
                self._suspect(follower, remote, outcome, max_share=1.0)

    def _make_room(
        self,
        readers: list[Follower],
        group: list[Follower],
        rows: int,
        position: Position | None,
    ) -> Plan[None]:
        for follower in list(readers):
            while follower.blocks and not follower.has_room(rows):
                yield Wait(_UNTIL_ROOM)
            if not follower.has_room(rows):
                follower.fall_behind(position or follower.since)
                readers.remove(follower)
                if follower in group:
                    group.remove(follower)

    def _offer(self, follower: Follower, seen: Seen, outcome: Outcome) -> None:
        verdict = follower.ledger.row(seen)
        if verdict == DOUBT:
            follower.doubt(seen)
        elif verdict is not None:
            outcome.found[seen.key] = seen.version
            follower.tell(seen, verdict)

    def _tell_gone(self, follower: Follower, key: Key, outcome: Outcome) -> None:
        outcome.found[key] = None
        if self._where:  # the old row may have passed, and Realtime knows of it only the key
            outcome.silent.add(key)
        follower.tell(Seen("DELETE", key, {}, self._shape.key_row(key)), "DELETE")

    def _changed_keys(
        self,
        group: list[Follower],
        column: str,
        order: Sequence[str],
        window: Sequence[Condition],
    ) -> Plan[None]:
        """With a filter: which rows have changed at all, for those that left it are news, too."""
        where = [*window, *_from(_earliest(group, column), column)]
        extra = [] if self._shape.version is None else [self._shape.version]
        columns = list(dict.fromkeys([*order, *extra]))
        last: dict[str, Any] | None = None
        while True:
            rows = yield _page(order, last, columns=columns, where=where)
            for row in rows:
                key, version = self._shape.key_of(row), row.get(self._shape.version or "")
                for follower in group:
                    if _row_ledger(follower).has_news(Seen("UPDATE", key, row, {}, version)):
                        follower.doubts.setdefault(key, False)
            if not rows:
                return
            last = rows[-1]

    # --- the end of a pass over rows --------------------------------------------------------------

    def _finish(self, group: list[Follower], outcome: Outcome, position: Position) -> Plan[None]:
        if self._recovery.key_diff:
            yield from self._key_diff(group, outcome)
        yield from self._resolve(group, outcome)
        for follower in group:
            if follower.starts_now:
                _row_ledger(follower).forget_gone()
            follower.mark(position)

    def _key_diff(self, group: list[Follower], outcome: Outcome) -> Plan[None]:
        key, remote = self._shape.key, set[Key]()
        _requested(group)
        last: dict[str, Any] | None = None
        while True:
            rows = yield _page(key, last, columns=key, where=self._where)
            if not rows:
                break
            remote.update(map(self._shape.key_of, rows))
            last = rows[-1]
        for follower in group:
            if follower.starts_now or not follower.knows_keys:
                follower.knows_keys = True
                if not follower.needs_rows:  # who does has just been told of them
                    _row_ledger(follower).learn(remote)
            self._suspect(follower, remote, outcome, max_share=self._recovery.max_delete_share)
        if any(follower.doubts for follower in group):
            yield Wait(_UNTIL_CONFIRMED)

    def _suspect(
        self, follower: Follower, remote: set[Key], outcome: Outcome, *, max_share: float
    ) -> None:
        ledger = _row_ledger(follower)
        missing = ledger.missing(remote)
        if exceeds_share(len(missing), len(ledger), max_share):
            outcome.held.append((follower.name, len(missing), len(ledger)))
            return
        follower.doubts.update(dict.fromkeys(missing, True))

    def _resolve(self, group: list[Follower], outcome: Outcome) -> Plan[None]:
        """Read the doubtful keys again, until none is left."""
        for _ in range(_ROUNDS):
            keys = list({key: None for follower in group for key in follower.doubts})
            if not keys:
                return
            for start in range(0, len(keys), KEYS_PER_READ):
                yield from self._read_again(group, keys[start : start + KEYS_PER_READ], outcome)

    def _read_again(self, group: list[Follower], keys: list[Key], outcome: Outcome) -> Plan[None]:
        _requested(group)
        rows = yield with_keys(self._shape, keys, where=self._where)
        present = {seen.key: seen for seen in map(self._shape.read, rows)}
        absent = [key for key in keys if key not in present]
        left = {}
        if self._where and absent:
            rows = yield with_keys(self._shape, absent)
            left = {seen.key: seen for seen in map(self._shape.read, rows)}
        for follower in group:
            for key in keys:
                if key in follower.doubts:
                    is_delete = follower.doubts.pop(key)
                    if key in present:
                        self._offer(follower, present[key], outcome)
                    else:
                        self._miss(follower, key, left.get(key), outcome, is_delete=is_delete)

    def _miss(
        self,
        follower: Follower,
        key: Key,
        left: Seen | None,
        outcome: Outcome,
        *,
        is_delete: bool,
    ) -> None:
        ledger = _row_ledger(follower)
        was_known = ledger.knows(key)
        if ledger.absent(key) is None or not (was_known or is_delete or follower.is_resumed):
            return
        outcome.found[key] = None
        if left is not None:
            outcome.silent.add(key)
            follower.tell(left, "LEAVE")
        else:
            self._tell_gone(follower, key, outcome)

    # --- by column --------------------------------------------------------------------------------

    def _by_column(self, group: list[Follower], outcome: Outcome, now: float) -> Plan[None]:
        column = self._recovery.column or ""
        order = [column, *self._shape.key]
        newest = yield Select(
            [column],
            where=[(column, "not.is", "null")],
            order=[column],
            is_descending=True,
            limit=1,
        )
        value = newest[0][column] if newest else None
        settled = self._settled(value, now)
        self._begin_now(group, value)
        old = [follower for follower in group if follower.since is not None]
        if self._where and old:
            yield from self._changed_keys(old, column, order, [])
        readers = [f for f in group if f.since is None] if self._where else group
        if any(follower.since is None for follower in readers):
            beginners = [f for f in readers if f.since is None]
            nulls = [(column, "is", "null")]
            yield from self._rows(
                beginners, group, self._shape.key, nulls, outcome=outcome, horizon=None
            )
            readers = [f for f in readers if f in group]
        if readers and value is not None:
            not_null = [(column, "not.is", "null")]
            yield from self._rows(readers, group, order, not_null, outcome=outcome, horizon=settled)
        yield from self._finish(group, outcome, settled)

    def _begin_now(self, group: list[Follower], newest: Any) -> None:
        for follower in group:
            if follower.starts_now:
                follower.since = follower.acked = Position(value=self._less_overlap(newest))

    def _settled(self, newest: Any, now: float) -> Position:
        """Up to where no writing transaction of at most `overlap` can still hide anything."""
        value = self._less_overlap(newest)
        if self._newest is not None and now - self._newest[0] >= self._recovery.overlap:
            before = self._newest[1]
            if isinstance(before, str) and (value is None or _later(before, value)):
                value = before  # of numbers the overlap does not say how long they take
        if newest is not None:
            self._newest = (now, newest)
        return Position(value=value)

    def _less_overlap(self, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, int | float):
            return value - type(value)(self._recovery.overlap)
        try:
            earlier = datetime.fromisoformat(value) - timedelta(seconds=self._recovery.overlap)
        except (TypeError, ValueError):
            raise ListenerError(
                f"the column {self._recovery.column!r} of Recovery.by_column() must hold times or "
                f"numbers; in {self._shape.schema}.{self._shape.table} it does not"
            ) from None
        return earlier.isoformat()

    # --- change log -------------------------------------------------------------------------------

    def _change_log(self, group: list[Follower], outcome: Outcome) -> Plan[None]:
        position, _ = yield from self._horizon(group, outcome)
        if self._begins(group, position, outcome):
            return
        for follower in group:
            follower.begin_now(position)
        beginners = [follower for follower in group if follower.needs_rows]
        if beginners:
            yield from self._base(beginners, group)
        if group:
            yield from self._entries(group, outcome)
        yield from self._entries_again(group, outcome)
        for follower in group:
            follower.mark(position)

    def _base(self, beginners: list[Follower], group: list[Follower]) -> Plan[None]:
        """The rows of the table itself, for those whose log does not reach back.

        All entries follow again: of a row that was told before, the oldest are told after it. Who
        has no room for a page leaves, and goes on there.
        """
        self._begin_log([follower for follower in beginners if follower.left_at is None])
        while beginners:
            last = beginners[0].left_at
            together = [follower for follower in beginners if follower.left_at == last]
            beginners = [follower for follower in beginners if follower.left_at != last]
            yield from self._base_from(together, group, last)

    def _base_from(
        self, readers: list[Follower], group: list[Follower], last: dict[str, Any] | None
    ) -> Plan[None]:
        order = self._shape.key
        while readers and (rows := (yield _page(order, last))):
            for follower in readers:
                follower.left_at = last
            yield from self._make_room(readers, group, len(rows), None)
            for seen in map(self._shape.read, rows):
                for follower in readers:
                    follower.tell(seen, "INSERT")
            last = rows[-1]
        for follower in readers:
            follower.left_at = None
            if follower.since is not None:
                follower.since = follower.since._replace(is_start=False)

    def _begin_log(self, beginners: list[Follower]) -> None:
        for follower in beginners:
            if follower.is_inline and follower.delivered:  # its rows may be of another history
                follower.tell(Seen("TRUNCATE", None, {}, {}), "TRUNCATE")
            if follower.since is not None:
                told = follower.since._replace(is_start=False).told
                cast("LogLedger", follower.ledger).begin(told)

    def _entries(self, group: list[Follower], outcome: Outcome) -> Plan[None]:
        since = min(follower.since.xid for follower in group if follower.since)
        last = 0
        while group:
            arguments = {**self._about, "p_since": since, "p_after": last, "p_limit": _PAGE}
            rows = yield Rpc(_CHANGES, arguments)
            if not rows:
                return
            yield from self._make_room(group, [], len(rows), None)
            for seen in map(self._read_entry, rows):
                for follower in group:
                    self._enter(follower, seen, outcome)
            last = rows[-1]["seq"]

    def _entries_again(self, group: list[Follower], outcome: Outcome) -> Plan[None]:
        numbers = list({number: None for follower in group for number in follower.doubts})
        for start in range(0, len(numbers), KEYS_PER_READ):
            part = numbers[start : start + KEYS_PER_READ]
            arguments = {**self._about, "p_since": 0, "p_seqs": part}
            rows = yield Rpc(_CHANGES, arguments)
            for seen in map(self._read_entry, rows):
                for follower in group:
                    if seen.version in follower.doubts:
                        self._enter(follower, seen, outcome)
        for follower in group:
            follower.doubts.clear()

    def _read_entry(self, row: dict[str, Any]) -> Seen:
        return cast("LogShape", self._log).read(row)

    def _enter(self, follower: Follower, seen: Seen, outcome: Outcome) -> None:
        verdict = follower.ledger.row(seen)
        if verdict is not None and verdict != DOUBT:
            outcome.found[seen.version] = seen.version
            follower.tell(seen, verdict)


def migration_command(shape: Shape, level: str) -> str:
    """The command that prints the migration of a table."""
    recovery = "" if level == "versioned" else " --recovery change-log"
    key = "" if list(shape.key) == ["id"] else f" --key {','.join(shape.key)}"
    return (
        "python -m supabase_resilience sql listener "
        f"--table {shape.schema}.{shape.table}{recovery}{key}"
    )


def _lost(since: Position | None, horizon: dict[str, Any]) -> str | None:
    """Why a position is of no use any more."""
    if since is None:
        return None
    if since.history is not None and since.history != horizon["history"]:
        return "the database has another history: it was restored or promoted"
    if since.xid > horizon["xmax"] + MARGIN:
        return "the database is behind the cursor: it was restored"
    if since.xid < horizon["floor"]:
        return "the cursor is older than what the migration's retention has kept"
    return None


def _requested(followers: Iterable[Follower]) -> None:
    for follower in followers:
        follower.ledger.requested()


def _row_ledger(follower: Follower) -> RowLedger:
    """The ledger of a level that reads rows; all but the change log's are."""
    return cast("RowLedger", follower.ledger)


def _page(
    order: Sequence[str],
    last: dict[str, Any] | None,
    *,
    columns: Sequence[str] = (),
    where: Sequence[Condition] = (),
    limit: int = _PAGE,
) -> Select:
    """The next page of rows; the only end is an empty one, as a server may cut pages short."""
    further, any_of = next_page(order, last)
    return Select(columns, where=[*where, *further], any_of=any_of, order=order, limit=limit)


def _from(begin: Any, column: str) -> list[Condition]:
    """The condition for the rows from there on, None for all."""
    return [] if begin is None else [(column, "gte", str(begin))]


def _earliest(followers: Iterable[Follower], column: str) -> Any:
    """The earliest `since`; None when somebody needs all."""
    starts = [_start(follower, column) for follower in followers]
    if any(start is None for start in starts):
        return None
    return functools.reduce(lambda one, other: other if _later(one, other) else one, starts)


def _start(follower: Follower, column: str) -> Any:
    since = follower.since
    if since is None:
        return None
    return since.xid if column == _XID else since.value


def _was_told(follower: Follower, row: dict[str, Any], column: str) -> bool:
    """Whether the row is read only for others in the group, who are not as far."""
    if follower.needs_rows or row[column] is None:
        return False
    start = _start(follower, column)
    return start is not None and _later(start, row[column])


def _lower(column: str, last: dict[str, Any], horizon: Position | None) -> Position | None:
    """The position of a row, or the horizon where that is lower."""
    if horizon is None:
        return None
    if column == _XID:
        return horizon._replace(xid=min(last[column], horizon.xid), xmax=0)
    return horizon if _later(last[column], horizon.value) else Position(value=last[column])


def _later(one: Any, other: Any) -> bool:
    if isinstance(one, str):
        return datetime.fromisoformat(one) > datetime.fromisoformat(other)
    return bool(one > other)
