"""The table that is verified: orders, of which a hundred are broken; and the rules that say so."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg

from supabase_resilience import Rule
from supabase_resilience.local import LocalSupabase

BROKEN = 100
SCHEMA = """
create table orders (
  id int primary key, status text not null, note text, amount numeric,
  updated_at timestamptz not null default now()
);
"""
FILL = """
insert into orders (id, status, note, amount)
select i, case when i %% %s = 0 then 'bad' else 'ok' end, 'some note for row ' || i, i / 3.0
from generate_series(1, %s) i
"""


@contextmanager
def stack(rows: int) -> Iterator[LocalSupabase]:
    with LocalSupabase(schema=SCHEMA) as local:
        with psycopg.connect(local.admin_dsn, autocommit=True) as connection:
            connection.execute(FILL, (rows // BROKEN, rows))
            connection.execute("vacuum analyze orders")
        yield local


def is_right(row: Mapping[str, Any]) -> bool:
    return bool(row["status"] != "bad")


def checked() -> list[Rule]:
    """Judged here: every row is fetched."""
    return [Rule("no bad orders", check=is_right)]


def pushed() -> list[Rule]:
    """Judged in the database."""
    return [Rule("no bad orders", violates=lambda q: q.eq("status", "bad"))]


def tell_nobody(_: object) -> None:
    """Hear of events."""
