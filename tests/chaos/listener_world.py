"""The Supabase of the listeners' runs, what is written there, and the truth to compare with.

`items` is followed as versioned (and by its column `updated_at`), `logged` by its change log. The
values are of many types, some are large: rows must be the same whether they came live or were read.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg

from supabase_resilience.__main__ import main
from supabase_resilience.local import LocalSupabase

Rows = Mapping[Any, Mapping[str, Any]]

SCHEMA = """
create table items (
  id bigint primary key, n int not null, amount numeric not null, data bytea not null,
  at timestamptz not null, note text not null, updated_at timestamptz
);
create table logged (like items including all);
create table signed (token uuid primary key);
create table sink (id bigint primary key, row jsonb not null);
create table sink_log (seq bigint primary key, told int not null);

-- By the clock, for the start of a transaction that commits last may be earlier.
create function touch() returns trigger language plpgsql as $$
begin
  new.updated_at := clock_timestamp();
  return new;
end $$;
create trigger touch before insert or update on items for each row execute function touch();
"""
FILL = """
insert into items (id, n, amount, data, at, note)
select n, n, n / 100.0, decode(lpad(to_hex(n), 8, '0'), 'hex'), now(), ''
from generate_series(1, %s) n
"""


def sql(*arguments: str) -> str:
    """What the command `sql` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(["sql", *arguments])
    return printed.getvalue()


@contextmanager
def world() -> Iterator[LocalSupabase]:
    """A project with both tables, followed."""
    migrations = [
        sql("listener", "--table", "items"),
        sql("listener", "--recovery", "change-log", "--table", "logged"),
        sql("cursors"),
    ]
    with LocalSupabase(schema=[SCHEMA, *migrations]) as local:
        yield local


class Truth:
    """What the database holds, as PostgREST would print it."""

    def __init__(self, local: LocalSupabase) -> None:
        self._dsn = local.admin_dsn

    def rows(self, table: str) -> Rows:
        return {row["id"]: row for (row,) in self._all(f"select row_to_json(r) from {table} r")}

    def entries(self) -> list[tuple[int, int, str, Any]]:
        """Of the log, in its order: seq, xid, op and key."""
        return self._all(
            "select seq, xid, op, key -> 0 from supabase_resilience.changes order by seq"
        )

    def sink(self) -> Rows:
        return dict(self._all("select id, row from sink"))

    def sink_log(self) -> dict[int, int]:
        return dict(self._all("select seq, told from sink_log"))

    def _all(self, query: str) -> list[Any]:
        with psycopg.connect(self._dsn, options="-c timezone=UTC") as connection:
            return connection.execute(query.encode()).fetchall()


def difference(truth: Rows, rows: Rows) -> tuple[int, int, int]:
    """How many rows are wrong, missing, and ghosts."""
    wrong = sum(1 for key, row in truth.items() if key in rows and rows[key] != row)
    return wrong, len(truth.keys() - rows.keys()), len(rows.keys() - truth.keys())
