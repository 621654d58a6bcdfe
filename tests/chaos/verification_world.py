"""The orders of a chaos run, the rules for them, and the books: what the database knows of writes.

A trigger notes each write of a date or payment. What fixes set can be told from what the app sets,
so whoever wrote a row, and how often, is a question to the database and not to the verifier.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import psycopg

from supabase_resilience import Rule
from supabase_resilience.local import LocalSupabase

DATE, PAYMENT = "2001-01-01T00:00:00+00:00", "by a fix"
SCHEMA = """
create table orders (
  id int primary key, status text not null default 'open',
  completion_date timestamptz, payment_id text, note text not null default 'some note'
);
create table audit (
  number bigint generated always as identity, at timestamptz not null default clock_timestamp(),
  id int not null, status text, old_date timestamptz, date timestamptz,
  old_payment text, payment text
);
create function note_write() returns trigger language plpgsql security definer as $$
begin
  insert into public.audit (id, status, old_date, date, old_payment, payment) values
    (new.id, new.status, old.completion_date, new.completion_date, old.payment_id, new.payment_id);
  return null;
end $$;
create trigger audit after update on orders for each row execute function note_write();
"""
# A fix sets one of the two columns to a value of its own.
FIXES = f"""
select *, case when date = '{DATE}' and old_date is distinct from date then 'date'
  else 'payment' end as what
from audit where (date = '{DATE}' and old_date is distinct from date)
  or (payment = '{PAYMENT}' and old_payment is distinct from payment)
"""


def dated() -> Rule:
    """Judged in the database."""
    return Rule(
        "completed orders have a date",
        violates=lambda q: q.eq("status", "completed").is_("completion_date", "null"),
        fix=lambda _: {"completion_date": DATE},
    )


def paid() -> Rule:
    """Judged here, row by row."""
    return Rule(
        "completed orders are paid",
        check=is_paid,
        fix=lambda _: {"payment_id": PAYMENT},
    )


def is_paid(row: Mapping[str, Any]) -> bool:
    return row["status"] != "completed" or row["payment_id"] is not None


def tell_nobody(_: object) -> None:
    """Hear of events."""


def every_other(held: Callable[[], float]) -> Callable[[], float]:
    """A throttle that pauses once a page: its second question is whether the pause is over."""
    due = itertools.cycle([True, False])
    return lambda: held() if next(due) else 0.0


def migration() -> str:
    path = files("supabase_resilience").joinpath("sql/verification.sql")
    return path.read_text(encoding="utf-8")


class Books:
    """Questions to the database, asked past REST."""

    def __init__(self, local: LocalSupabase) -> None:
        self._local = local

    def rows(self, query: str, *given: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._local.admin_dsn) as connection:
            return connection.execute(query, given).fetchall()

    def number(self, query: str, *given: Any) -> int:
        return int(self.rows(query, *given)[0][0])

    def fill(self, orders: int, broken: Sequence[int]) -> None:
        """So many open orders; some are completed, with neither date nor payment."""
        with psycopg.connect(self._local.admin_dsn, autocommit=True) as connection:
            connection.execute(
                "insert into orders (id, status) select i, case when i = any(%s) then 'completed' "
                "else 'open' end from generate_series(1, %s) i",
                (list(broken), orders),
            )
            connection.execute("vacuum analyze orders")

    def fixes(self) -> int:
        return self.number(f"select count(*) from ({FIXES}) f")

    def fixed_more_than_once(self) -> int:
        return self.number(
            f"select count(*) from (select 1 from ({FIXES}) f group by id, what "
            "having count(*) > 1) g"
        )

    def still_broken(self) -> int:
        return self.number(
            "select count(*) from orders where status = 'completed' "
            "and (completion_date is null or payment_id is null)"
        )


@contextmanager
def world() -> Iterator[tuple[LocalSupabase, Books]]:
    with LocalSupabase(schema=[migration(), SCHEMA]) as local:
        yield local, Books(local)
