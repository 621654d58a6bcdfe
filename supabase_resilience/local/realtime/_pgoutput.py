"""Decoder of PostgreSQL's `pgoutput` messages (protocol version 1): bytes in, records out.

It does no I/O and knows nothing of subscribers, so that it can be tested with bytes alone.
The only state is the relations, which PostgreSQL describes once before their first change.
"""

import enum
import struct
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["INSERT", "UPDATE", "DELETE"]

_KINDS: Final[dict[int, Kind]] = {ord("I"): "INSERT", ord("U"): "UPDATE", ord("D"): "DELETE"}
_NEW_TUPLE: Final = ord("N")
_KEY_TUPLE: Final = ord("K")
_NULL: Final = ord("n")
_UNCHANGED: Final = ord("u")
_IS_KEY: Final = 1


class Absent(enum.Enum):
    """The type of `ABSENT`."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT
"""A column whose value the WAL does not carry: unchanged TOAST, or a non-key column of a key."""

Value = str | Absent | None
Row = tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a relation; `is_key` marks the columns of the replica identity."""

    name: str
    type_oid: int
    is_key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as the WAL describes it; rows list their values in the order of `columns`."""

    oid: int
    schema: str
    table: str
    columns: tuple[Column, ...]

    def key_of(self, row: Row) -> Row:
        """Blank out everything but the replica identity."""
        pairs = zip(self.columns, row, strict=False)
        return tuple(value if column.is_key else ABSENT for column, value in pairs)


@dataclass(frozen=True, slots=True)
class Begin:
    """A transaction starts; `committed_at` is in microseconds since 2000-01-01 UTC."""

    commit_lsn: int
    committed_at: int
    xid: int


@dataclass(frozen=True, slots=True)
class Change:
    """One changed row, values as PostgreSQL's text; `size` is its length in the WAL in bytes."""

    kind: Kind
    relation: Relation
    new: Row | None
    old: Row | None
    size: int


@dataclass(frozen=True, slots=True)
class Marker:
    """A logical message that somebody wrote into the WAL with `pg_logical_emit_message`."""

    content: bytes


class Decoder:
    """Turns the messages of one replication stream into records, in order."""

    def __init__(self) -> None:
        self._relations: dict[int, Relation] = {}

    def decode(self, message: bytes) -> Begin | Relation | Change | Marker | None:
        """Return the record in `message`; None for those that subscribers never hear of."""
        tag = message[0]
        if tag in _KINDS:
            return self._change(_KINDS[tag], message)
        if tag == ord("B"):
            return Begin(*struct.unpack_from(">QqI", message, 1))
        if tag == ord("R"):
            relation = _relation(message)
            self._relations[relation.oid] = relation
            return relation
        return _marker(message) if tag == ord("M") else None

    def _change(self, kind: Kind, message: bytes) -> Change:
        (oid,) = struct.unpack_from(">I", message, 1)
        relation = self._relations[oid]
        new = old = None
        position = 5
        while position < len(message):
            tuple_kind = message[position]
            row, position = _row(message, position + 1)
            if tuple_kind == _NEW_TUPLE:
                new = row
            else:
                old = relation.key_of(row) if tuple_kind == _KEY_TUPLE else row
        if kind == "UPDATE" and old is None and new is not None:
            old = relation.key_of(new)  # PostgreSQL omits the old key when it did not change.
        return Change(kind, relation, new, old, len(message))


def _marker(message: bytes) -> Marker:
    _, position = _string(message, 10)  # After the tag, the flags and the position in the WAL.
    return Marker(message[position + 4 :])


def _row(message: bytes, position: int) -> tuple[Row, int]:
    (count,) = struct.unpack_from(">H", message, position)
    position += 2
    values: list[Value] = []
    for _ in range(count):
        kind = message[position]
        position += 1
        if kind == _NULL:
            values.append(None)
        elif kind == _UNCHANGED:
            values.append(ABSENT)
        else:
            start = position + 4
            position = start + int.from_bytes(message[position:start], "big")
            values.append(message[start:position].decode())
    return tuple(values), position


def _relation(message: bytes) -> Relation:
    (oid,) = struct.unpack_from(">I", message, 1)
    schema, position = _string(message, 5)
    table, position = _string(message, position)
    (count,) = struct.unpack_from(">H", message, position + 1)  # One byte of identity comes first.
    position += 3
    columns: list[Column] = []
    for _ in range(count):
        column, position = _column(message, position)
        columns.append(column)
    return Relation(oid, schema or "pg_catalog", table, tuple(columns))


def _column(message: bytes, position: int) -> tuple[Column, int]:
    flags = message[position]
    name, position = _string(message, position + 1)
    (type_oid,) = struct.unpack_from(">I", message, position)
    return Column(name, type_oid, bool(flags & _IS_KEY)), position + 8


def _string(message: bytes, position: int) -> tuple[str, int]:
    end = message.index(0, position)
    return message[position:end].decode(), end + 1
