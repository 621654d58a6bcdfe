"""A database that tests can see through: transactions that commit out of order, and what is read.

Everything that makes recovery hard is in it, and nothing else: transaction ids are given at the
beginning and visible after the commit, each read has a snapshot of its own, the versions of a key
grow across its delete and re-insert, and the stream of changes is in the order of the commits.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from supabase_resilience._queries import Condition, Rpc, Select

SCHEMA, TABLE = "public", "orders"
COLUMNS = [
    {"name": "id", "type": "int8"},
    {"name": "value", "type": "int8"},
    {"name": "status", "type": "text"},
    {"name": "at", "type": "timestamptz"},
    {"name": "sync_ver", "type": "int8"},
    {"name": "sync_xid", "type": "int8"},
]
LOG_COLUMNS = [
    {"name": name, "type": "text"} for name in ["seq", "xid", "schema_name", "table_name"]
]
LOG_COLUMNS += [{"name": name, "type": "jsonb"} for name in ["op", "key", "new", "old", "at"]]
LONGEST = 8.0  # seconds, of a transaction
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
_KEYS = 12
_CAP = 4  # what the server cuts pages to, whatever is asked for

Row = dict[str, Any]


@dataclass
class Transaction:
    """One that is open: nobody else sees its changes, or may write its rows."""

    xid: int
    began: float
    view: dict[int, Row | None] = field(default_factory=dict)
    frames: list[Row] = field(default_factory=list)
    tombstones: list[Row] = field(default_factory=list)
    entries: list[Row] = field(default_factory=list)


class Database:
    """One table of few keys, written by a few transactions at a time."""

    def __init__(self, random: Random) -> None:
        self.now = 0.0
        self.rows: dict[int, Row] = {}
        self.tombstones: list[Row] = []
        self.entries: list[Row] = []
        self.committed: list[Row] = []  # frames that Realtime has not polled yet
        self._random = random
        self._open: list[Transaction] = []
        self._next_xid = self._ended = 100
        self._sequence = 0

    # --- writing ----------------------------------------------------------------------------------

    def work(self) -> None:
        """Begin, write in, or end a transaction."""
        random = self._random
        self.now += random.random()
        late = [each for each in self._open if self.now - each.began > LONGEST - 1]
        if late:
            self._end(late[0])
        elif not self._open or (len(self._open) < 4 and random.random() < 0.3):
            self._open.append(Transaction(self._next_xid, self.now))
            self._next_xid += 1
            self._write(self._open[-1])
        elif random.random() < 0.5:
            self._write(random.choice(self._open))
        else:
            self._end(random.choice(self._open))

    def rest(self) -> None:
        """End all transactions."""
        for transaction in list(self._open):
            self._end(transaction)

    def _write(self, mine: Transaction) -> None:
        taken = {key for other in self._open if other is not mine for key in other.view}
        free = [key for key in range(_KEYS) if key not in taken]
        if not free:
            return
        key = self._random.choice(free)
        before = mine.view.get(key, self.rows.get(key))
        if before is not None and self._random.random() < 0.4:
            self._change(mine, key, before, None)
        else:
            self._change(mine, key, before, self._new_row(mine, key))

    def _new_row(self, mine: Transaction, key: int) -> Row:
        return {
            "id": key,
            "value": self._random.randrange(3),
            "status": self._random.choice(["open", "done"]),
            "at": timestamp(mine.began),  # like now(): it goes backwards in the order of commits
            "sync_ver": self._number(),
            "sync_xid": mine.xid,
        }

    def _change(self, mine: Transaction, key: int, before: Row | None, after: Row | None) -> None:
        mine.view[key] = after
        kind = "DELETE" if after is None else "INSERT" if before is None else "UPDATE"
        mine.frames.append({"type": kind, "key": key, "row": after})
        number = self._number()
        if after is None and before is not None:
            grave = {"id": number, "key": [key], "ver": before["sync_ver"], "xid": mine.xid}
            mine.tombstones.append(grave)
        mine.entries.append(
            {
                "seq": number,
                "xid": mine.xid,
                "op": kind,
                "key": [key],
                "new": after,
                "old": before,
                "at": timestamp(self.now),
            }
        )

    def _end(self, mine: Transaction) -> None:
        self._open.remove(mine)
        self._ended = max(self._ended, mine.xid + 1)
        if self._random.random() < 0.1:
            return  # rolled back
        for key, row in mine.view.items():
            self.rows.pop(key, None)
            if row is not None:
                self.rows[key] = row
        self.tombstones += mine.tombstones
        self.entries += mine.entries
        for frame, entry in zip(mine.frames, mine.entries, strict=True):
            self.committed.append({**frame, "entry": entry, "at": self.now})

    def _number(self) -> int:
        self._sequence += 1
        return self._sequence

    # --- reading ----------------------------------------------------------------------------------

    def answer(self, read: Rpc | Select, level: str) -> Any:
        """What PostgREST answers now: all that is committed, and nothing else."""
        if isinstance(read, Select):
            return self._select(read)
        if read.function == "supabase_resilience_horizon":
            return self._horizon(level)
        if read.function == "supabase_resilience_tombstones":
            graves = [{**each, "alive": each["key"][0] in self.rows} for each in self.tombstones]
            return _part(graves, "id", read.arguments)
        if "p_seqs" in read.arguments:
            return [each for each in self.entries if each["seq"] in read.arguments["p_seqs"]]
        return _part(self.entries, "seq", read.arguments)

    def _horizon(self, level: str) -> Row:
        return {
            "migration": 1,
            "recovery": level,
            "key": ["id"],
            "floor": 0,
            "xmin": min([self._ended, *(each.xid for each in self._open)]),
            "xmax": self._ended,
            "history": "one",
            "xip": [each.xid for each in self._open if each.xid < self._ended],
        }

    def _select(self, read: Select) -> list[Row]:
        tests = [_test(column, operator, value) for column, operator, value in read.where]
        if read.any_of is not None:
            tests.append(_any_of(read.any_of))
        found = [row for row in self.rows.values() if all(test(row) for test in tests)]
        found.sort(key=lambda row: [_typed(each, row[each]) for each in read.order])
        if read.is_descending:
            found.reverse()
        limit = len(found) if read.limit is None else min(read.limit, _CAP)
        columns = read.columns or [each["name"] for each in COLUMNS]
        return [{name: row[name] for name in columns} for row in found[:limit]]


def frame_of(change: Row, *, is_cut: bool) -> Row:
    """A change of a row as Realtime tells it; `is_cut` when the row is too large for it."""
    row = change["row"] or {}
    return _frame(
        change["type"],
        COLUMNS,
        {"id": change["key"]} if is_cut else row,
        {"id": change["key"]} if change["type"] == "DELETE" else {},
        is_cut=is_cut,
    )


def log_frame_of(change: Row, *, is_cut: bool) -> Row:
    """The entry of a change as Realtime tells it."""
    entry = {**change["entry"], "schema_name": SCHEMA, "table_name": TABLE}
    if is_cut:
        entry = {name: value for name, value in entry.items() if name not in {"new", "old"}}
    return _frame("INSERT", LOG_COLUMNS, entry, {}, is_cut=is_cut)


def _frame(kind: str, columns: list[Row], record: Row, old: Row, *, is_cut: bool) -> Row:
    return {
        "data": {
            "type": kind,
            "columns": columns,
            "record": record,
            "old_record": old,
            "commit_timestamp": "2026-01-01T00:00:00.000Z",
            "errors": ["Error 413: Payload Too Large"] if is_cut else None,
        }
    }


def timestamp(seconds: float) -> str:
    """A moment of the model as PostgREST prints it."""
    return (_BEGAN + timedelta(seconds=seconds)).isoformat()


def _part(rows: list[Row], number: str, arguments: Mapping[str, Any]) -> list[Row]:
    found = [
        row
        for row in rows
        if row["xid"] >= arguments["p_since"] and row[number] > arguments["p_after"]
    ]
    return sorted(found, key=lambda row: row[number])[:_CAP]


# --- the filters of PostgREST ---------------------------------------------------------------------

Test = Callable[[Row], bool]


def passes(row: Row, conditions: list[Condition]) -> bool:
    """Whether a row passes a filter."""
    return all(_test(*condition)(row) for condition in conditions)


def _test(column: str, operator: str, value: str) -> Test:
    if operator == "in":
        values = {_typed(column, each) for each in value.strip("()").split(",")}
        return lambda row: _typed(column, row[column]) in values
    if operator in {"is", "not.is"}:  # null
        return lambda row: (row[column] is None) == (operator == "is")
    limit = _typed(column, value.strip('"'))
    compare = _COMPARE[operator]
    return lambda row: compare(_typed(column, row[column]), limit)


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda one, other: one == other,
    "gt": lambda one, other: one > other,
    "gte": lambda one, other: one >= other,
    "lt": lambda one, other: one < other,
}


def _any_of(text: str) -> Test:
    """`a.gt.1,and(a.eq.1,b.gt.2)`: no value of the model has a bracket."""
    steps = [
        [_test(*each.split(".", 2)) for each in step.removeprefix("and(").split(",")]
        for step in text.replace("),", ")\n")
        .replace(",and(", "\nand(")
        .replace(")", "")
        .split("\n")
    ]
    return lambda row: any(all(test(row) for test in step) for step in steps)


def _typed(column: str, value: Any) -> Any:
    if column == "at":
        return _moment(value)
    return value if column == "status" else int(value)


@functools.lru_cache(10_000)
def _moment(value: str) -> datetime:
    return datetime.fromisoformat(value)
