"""What a handler is given, and what the two sources of it, frames and rows, have in common.

Realtime and PostgREST print the same row alike but for bytea; after this module nobody can tell
where a row came from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, NamedTuple

__all__ = ["Change", "ChangeType", "Key", "Seen", "Shape", "key_list"]

Key = Any
"""The value of the key column, or a tuple of the values of a composite key."""

ChangeType = Literal["INSERT", "UPDATE", "DELETE", "LEAVE", "TRUNCATE"]
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one row.

    - `type`: `INSERT`, `UPDATE`, `DELETE`; `LEAVE` for a row that no longer passes the listener's
      filter; `TRUNCATE` for all rows at once, without a key: with `Recovery.change_log()`, and with
      `versioned()` for a handler that may know rows that this process does not. Those that there
      are again follow as `INSERT`.
      A caught-up row is an `INSERT` when this listener did not know its key, else an `UPDATE`.
    - `key`: the primary key's value; a tuple of values when it has several columns.
    - `new`: the row as it is now, {} when it is gone. `old`: what is known of the row before,
      which Realtime limits to the key unless the table has `replica identity full`.
    - `commit_timestamp`: ISO 8601, of the transaction; None for a row that was read.
    - `source`: `live`, or `catch_up` for what Realtime had not delivered and was read afterwards.
    - `version`: grows with every change of a row (`sync_ver`, or the position in the change log);
      None without our migration. A new primary key is told as a `DELETE` of the old one and an
      `UPDATE` of the new one, of one version: who looks for repeats compares (version, key).
    - `raw`: the frame's payload as supabase-py hands it over, or the row that was read.
    """

    type: ChangeType
    schema: str
    table: str
    key: Key
    new: Row
    old: Row
    commit_timestamp: str | None
    source: Literal["live", "catch_up"]
    raw: Any
    version: int | None = None


class Seen(NamedTuple):
    """A change as it came in, before anybody decided what it means.

    `xid` is that of the writing transaction where the row carries it. A `partial` row lacks values,
    so only its key can be believed.
    """

    type: ChangeType
    key: Key
    new: Row
    old: Row
    version: int | None = None
    xid: int | None = None
    at: str | None = None
    partial: bool = False
    raw: Any = None


class Shape:
    """Where key, version and transaction are found in the rows of a table."""

    def __init__(
        self,
        schema: str,
        table: str,
        key: Sequence[str],
        *,
        version: str | None = None,
        xid: str | None = None,
    ) -> None:
        self.schema = schema
        self.table = table
        self.key = tuple(key)
        self.version = version
        self.xid = xid
        self._column = self.key[0] if len(self.key) == 1 else None

    def key_of(self, row: Row) -> Key:
        """The key's value; raises `KeyError` when the row lacks a column of it."""
        if self._column is not None:
            return _frozen(row[self._column])
        return tuple(_frozen(row[column]) for column in self.key)

    def read(self, row: Row, kind: ChangeType = "UPDATE") -> Seen:
        """A row that PostgREST has returned."""
        return Seen(
            kind,
            self.key_of(row),
            row,
            {},
            None if self.version is None else row[self.version],
            None if self.xid is None else row[self.xid],
            raw=row,
        )

    def live(self, payload: Mapping[str, Any]) -> Seen:
        """A frame of `postgres_changes`; raises `KeyError` when it does not tell the key."""
        data = payload["data"]
        kind = data["type"]
        kind = kind.value if isinstance(kind, Enum) else kind
        columns = data["columns"]
        old = _as_rest(data.get("old_record") or {}, columns)
        if kind == "DELETE":
            return Seen(kind, self.key_of(old), {}, old, at=data["commit_timestamp"], raw=payload)
        new = _as_rest(data.get("record") or {}, columns)
        return Seen(
            kind,
            self.key_of(new),
            new,
            old,
            None if self.version is None else new.get(self.version),
            None if self.xid is None else new.get(self.xid),
            data["commit_timestamp"],
            self._is_partial(data, new),
            payload,
        )

    def _is_partial(self, data: Mapping[str, Any], new: Row) -> bool:
        # Over 1 MiB values are cut away, and an UPDATE leaves out large ones that it didn't touch.
        if data["errors"] or len(new) < len(data["columns"]):
            return True
        return self.version is not None and new.get(self.version) is None

    def moved_from(self, seen: Seen) -> Key | None:
        """The key that a row had before an UPDATE gave it another; None if it kept it."""
        if seen.type != "UPDATE" or not seen.old:
            return None
        try:
            key = self.key_of(seen.old)
        except KeyError:
            return None
        return None if key == seen.key else key

    def change(self, seen: Seen, kind: ChangeType, source: Literal["live", "catch_up"]) -> Change:
        """What a handler is told."""
        return Change(
            kind,
            self.schema,
            self.table,
            seen.key,
            seen.new,
            seen.old,
            seen.at,
            source,
            seen.raw,
            seen.version,
        )

    def key_row(self, key: Key) -> dict[str, Any]:
        """The columns of a key, as a row."""
        return dict(zip(self.key, key_list(key, len(self.key)), strict=True))


def key_list(key: Key, columns: int) -> Sequence[Any]:
    """The values of a key, one for each of its columns."""
    return key if columns > 1 else (key,)


def _frozen(value: Any) -> Any:
    """Keys are looked up, and JSON has values (of an array or jsonb column) that can't be."""
    if isinstance(value, list):
        return tuple(_frozen(each) for each in value)
    return repr(value) if isinstance(value, dict) else value


def _as_rest(record: Row, columns: Sequence[Mapping[str, str]]) -> Row:
    r"""A record as PostgREST would print it: Realtime leaves out the `\x` of bytea."""
    for column in columns:
        if column["type"] == "bytea" and isinstance(value := record.get(column["name"]), str):
            record = {**record, column["name"]: f"\\x{value}"}
    return record
