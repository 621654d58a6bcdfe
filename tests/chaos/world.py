"""The Supabase of a chaos run, and its books: what the database knows of messages and deliveries.

A trigger on the queue's table notes each message and each time it is read, so that what handlers
report can be checked against what the database has done.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import psycopg

from supabase_resilience.local import LocalSupabase

QUEUE = "jobs"
STOCK = "select pgmq.create(name) from unnest(array['jobs', 'jobs_dead']) as name"
MIGRATED = "select supabase_resilience_queue_create('jobs')"
SCHEMA = """
create table effects (job_id text primary key, n int not null);
create table deliveries (
  run uuid primary key, worker int not null, job_id text not null, n int not null,
  message_id bigint not null, read_ct int not null, attempt int not null
);
create table audit (message_id bigint, job_id text, read_ct int);

create function note_message() returns trigger language plpgsql security definer as $$
begin
  insert into public.audit
    values (new.msg_id, new.message -> 'supabase_resilience' ->> 'id', new.read_ct);
  return null;
end $$;
create trigger audit after insert or update of read_ct on pgmq.q_jobs
  for each row execute function note_message();
"""
# Of the deliveries of one job all but the first are duplicates. One that pgmq has counted is
# explained by read_ct, one of a later message by a re-send; nothing else may happen.
DUPLICATES = """
with delivered as (
  select *,
    row_number() over (partition by job_id order by message_id, read_ct) as of_job,
    row_number() over (partition by job_id, message_id, read_ct) as of_reading,
    min(message_id) over (partition by job_id) as first_message
  from deliveries
)
select count(*) filter (where of_job > 1),
  count(*) filter (where of_job > 1 and of_reading = 1 and read_ct > 1),
  count(*) filter (where of_job > 1 and of_reading = 1 and read_ct = 1
                     and message_id > first_message),
  count(*) filter (where of_reading > 1),
  count(*) filter (where not exists (
    select from audit where audit.message_id = delivered.message_id
      and audit.job_id = delivered.job_id and audit.read_ct = delivered.read_ct))
from delivered
"""


def migration() -> str:
    return files("supabase_resilience").joinpath("sql/queue.sql").read_text(encoding="utf-8")


class Books:
    """Questions to the database, asked past REST; it may be down for a moment."""

    def __init__(self, local: LocalSupabase) -> None:
        self._local = local

    def _row(self, query: str, *given: Any) -> tuple[Any, ...]:
        with psycopg.connect(self._local.admin_dsn) as connection:
            return connection.execute(query, given).fetchone() or ()

    def _number(self, query: str, *given: Any) -> int:
        return int(self._row(query, *given)[0])

    def effects(self) -> int:
        return self._number("select count(*) from effects")

    def different_effects(self) -> int:
        return self._number("select count(distinct n) from effects")

    def in_queue(self) -> int:
        return self._number("select count(*) from pgmq.q_jobs")

    def dead_letters(self) -> int:
        return self._number("select count(*) from pgmq.q_jobs_dead")

    def readings(self) -> int:
        return self._number("select count(*) from audit where read_ct > 0")

    def duplicates(self) -> tuple[int, int, int, int, int]:
        """All, by read_ct, by re-sends, handled twice for one reading, unknown to the database."""
        all_of_them, by_read_ct, by_re_send, twice, unknown = self._row(DUPLICATES)
        return all_of_them, by_read_ct, by_re_send, twice, unknown


@contextmanager
def world(mode: str) -> Iterator[tuple[LocalSupabase, Books]]:
    """A project that is stock or migrated."""
    queues = [migration(), MIGRATED] if mode == "migrated" else [STOCK]
    with LocalSupabase(schema=[*queues, SCHEMA]) as local:
        yield local, Books(local)
