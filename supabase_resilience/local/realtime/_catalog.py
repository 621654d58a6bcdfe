"""What PostgreSQL's catalogue says of a table, as one role sees it.

Looked up anew when the WAL describes the table again (that follows DDL and grants on it) and,
since not everything shows there, at the latest after a second.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from psycopg import sql

from supabase_resilience.local.realtime._database import Database
from supabase_resilience.local.realtime._phoenix import to_json
from supabase_resilience.local.realtime._values import Encoder, encoder_of

_LIFETIME: Final = 1.0

_COLUMNS: Final = sql.SQL("""
    SELECT a.attname, t.typname, format_type(t.oid, -1), t.oid::int8, t.typtype::text,
           t.typcategory = 'A',
           coalesce(a.attnum = ANY (i.indkey::int2[]), false),
           has_column_privilege(%s::name, c.oid, a.attnum, 'SELECT'),
           c.relrowsecurity
      FROM pg_class c
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
      JOIN pg_type t ON t.oid = a.atttypid
      LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
     WHERE c.oid = %s::oid
     ORDER BY a.attnum
""")


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column: `type_name` for clients, `type_sql` for casts in SQL.

    Without `encode`, only PostgreSQL can turn its values into JSON.
    """

    name: str
    type_name: str
    type_sql: str
    type_oid: int
    encode: Encoder | None
    is_primary_key: bool
    selectable: bool


@dataclass(frozen=True, slots=True)
class Projection:
    """The columns of a table that one subscription is shown."""

    header: str
    """JSON for the key `columns`."""
    names: tuple[str, ...]
    """In the order in which jsonb keeps its keys: by length, then by bytes."""
    prefixes: dict[str, str]
    """Each name as a JSON key, colon included."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as one role sees it; without columns if it is gone."""

    columns: dict[str, TableColumn]
    row_security: bool
    _projections: dict[tuple[str, ...] | None, Projection] = field(
        default_factory=dict[tuple[str, ...] | None, Projection]
    )

    @property
    def primary_key(self) -> list[TableColumn]:
        """The columns of the primary key."""
        return [column for column in self.columns.values() if column.is_primary_key]

    def selectable(self, name: str) -> bool:
        """Tell whether the role may read a column (and whether it exists at all)."""
        return name in self.columns and self.columns[name].selectable

    def projection(self, select: tuple[str, ...] | None) -> Projection:
        """Return what is shown of the table; `select` None means every readable column."""
        if select not in self._projections:
            self._projections[select] = self._project(select)
        return self._projections[select]

    def _project(self, select: tuple[str, ...] | None) -> Projection:
        shown = [
            column
            for column in self.columns.values()
            if column.selectable
            and (select is None or column.name in select or column.is_primary_key)
        ]
        header = to_json([{"name": column.name, "type": column.type_name} for column in shown])
        names = sorted((column.name for column in shown), key=_jsonb_key)
        return Projection(header, tuple(names), {name: f"{to_json(name)}:" for name in names})


def _jsonb_key(name: str) -> tuple[int, bytes]:
    raw = name.encode()
    return len(raw), raw


class Catalog:
    """Remembers tables for a short while. Raises `psycopg.Error` when PostgreSQL is away."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._tables: dict[tuple[int, str], tuple[float, Table]] = {}

    def forget(self, oid: int) -> None:
        """Look this table up again next time."""
        for key in [key for key in self._tables if key[0] == oid]:
            del self._tables[key]

    def knows(self, oid: int, role: str) -> bool:
        """Tell whether the table can be had without asking PostgreSQL."""
        read_at, _ = self._tables.get((oid, role), (float("-inf"), None))
        return self._clock() - read_at <= _LIFETIME

    async def table(self, oid: int, role: str) -> Table:
        """Return a table as `role` sees it, at most a second old."""
        if not self.knows(oid, role):
            self._tables[oid, role] = (self._clock(), await self._read(oid, role))
        return self._tables[oid, role][1]

    async def _read(self, oid: int, role: str) -> Table:
        rows = await self._database.rows(_COLUMNS, (role, oid))
        columns = [
            TableColumn(
                name, type_, cast, oid_, encoder_of(oid_, kind, is_array=array), key, readable
            )
            for name, type_, cast, oid_, kind, array, key, readable, _ in rows
        ]
        row_security = any(row[-1] for row in rows)
        return Table({column.name: column for column in columns}, row_security)
