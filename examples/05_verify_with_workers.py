"""Verify one table with many workers: ranges of its keys travel as jobs of a durable queue.

Run it: `python examples/05_verify_with_workers.py`. It needs no account: it starts a local Supabase
with 6,000 orders, and three worker processes. Where these run does not matter.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from supabase import Client, create_client

from supabase_resilience import (
    KeyRange,
    QueueProcessor,
    Report,
    Rule,
    ServerSideVerification,
    current_job,
    protect,
    queue_processor,
    server_side_verification,
)
from supabase_resilience.local import LocalSupabase

SCHEMA = """
create table orders (
  id int primary key,
  status text not null,
  completion_date timestamptz,
  updated_at timestamptz not null default now()
);
insert into orders (id, status, completion_date)
select i, 'completed', case when i % 100 <> 0 then now() end from generate_series(1, 6000) i;

select pgmq.create('verify');
select pgmq.create('verify_dead');
create table reports (job text primary key, worker int not null, report jsonb not null);
"""
RANGES, WORKERS = 12, 3


def orders(supabase: Client) -> ServerSideVerification:
    """The same in every process."""
    return server_side_verification(
        supabase,
        "orders",
        rules=[
            Rule(
                "completed orders have a date",
                check=lambda order: order["status"] != "completed" or order["completion_date"],
                fix=lambda order: {"completion_date": order["updated_at"]},
            )
        ],
        grace=0.5,
        batch_size=500,
    )


def make_worker(supabase: Client) -> QueueProcessor:
    """In production it is run by `python -m supabase_resilience work module:queue`."""
    verification = orders(supabase)

    def verify(data: dict[str, Any]) -> None:
        """May run more than once for a range, as any job.

        The rows are right afterwards; what an attempt that died had fixed is in no report.
        """
        report = verification.run_range(KeyRange.from_json(data))
        if report.failure:
            raise RuntimeError(report.failure)  # the queue tries again
        row = {"job": current_job().id, "worker": os.getpid(), "report": report.to_dict()}
        # Only the first one counts: a second one would find the rows fixed already.
        supabase.table("reports").upsert(row, ignore_duplicates=True).execute()

    # Longer than a range takes.
    return queue_processor(supabase, "verify", verify, visibility_timeout=60.0)


def enqueue(supabase: Client) -> None:
    """Cut the table, and hand the pieces out."""
    queue = queue_processor(supabase, "verify", None)
    for key_range in orders(supabase).key_ranges(RANGES):
        queue.enqueue(key_range.to_json())


# --- the staging ----------------------------------------------------------------------------------


def connect() -> Client:
    return protect(create_client(os.environ["SUPABASE_URL"], os.environ["SUPABASE_KEY"]))


@contextmanager
def workers(local: LocalSupabase) -> Iterator[None]:
    """Three processes, until the block ends."""
    environment = os.environ | {"SUPABASE_URL": local.url, "SUPABASE_KEY": local.secret_key}
    command = [sys.executable, __file__, "worker"]
    processes = [subprocess.Popen(command, env=environment) for _ in range(WORKERS)]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def wait_for_reports(supabase: Client) -> list[dict[str, Any]]:
    while True:
        rows: list[Any] = supabase.table("reports").select("*").execute().data
        if len(rows) == RANGES:
            return rows
        time.sleep(0.1)


def show(expected: Report, rows: list[dict[str, Any]]) -> None:
    reports = [row["report"] for row in rows]
    print(f"{len({row['worker'] for row in rows})} workers verified {len(rows)} ranges")
    for what, alone in (("rows", expected.rows), ("violations", expected.violations)):
        together = sum(report[what] for report in reports)
        print(f"{what}: {alone:,} by one alone, {together:,} by all together")
    found = sorted(problem["key"] for report in reports for problem in report["problems"])
    same = "the same" if found == sorted(expected.failing_ids()) else "other"
    print(f"they found {same} orders, and fixed {sum(report['fixed'] for report in reports)}")


def main() -> None:
    with LocalSupabase(schema=SCHEMA) as local:
        supabase = protect(create_client(local.url, local.secret_key))
        alone = orders(supabase).run_once(dry_run=True)
        enqueue(supabase)
        with workers(local):
            rows = wait_for_reports(supabase)
        show(alone, rows)
        after = orders(supabase).run_once()
        print(f"afterwards: {after.open} open, exit code {after.exit_code}")


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        make_worker(connect()).run()
    else:
        main()
