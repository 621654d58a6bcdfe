"""Jobs over Supabase Queues on a local Supabase: ours, the loop one would write by hand, and aimq.

Everybody empties a queue of the same no-op jobs, which PostgreSQL has put there, and takes turns
within each round. The loop reads as many messages as it may handle at once and deletes them side by
side, with supabase-py alone. "Stock" is a project as Supabase makes it, "migrated" one that has
`python -m supabase_resilience sql queue`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import httpx
import psycopg
import queue_peers
from judged import Line, at_least, at_most, ratio, show_table
from queues_memory import Rates, check_all_done, do_nothing, do_nothing_async, tell_nobody, turns
from supabase import AsyncClient, Client, ClientOptions, acreate_client, create_client

from supabase_resilience import (
    AsyncQueueProcessor,
    AsyncSupabaseQueue,
    QueueProcessor,
    SupabaseQueue,
)
from supabase_resilience.local import LocalSupabase

A_MINUTE = 60.0
QUEUES = "select pgmq.create(name) from unnest(array['jobs', 'jobs_high', 'jobs_dead']) as name"
MIGRATED_QUEUES = """
select supabase_resilience_queue_create('jobs');
select supabase_resilience_queue_create('jobs_high', false);
"""
LOOP, STOCK, MIGRATED, AIMQ = "hand-written loop", "ours, stock", "ours, migrated", "aimq"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured."""

    rounds: int
    jobs: int
    concurrency: int
    waiting: int
    urgent: int


def migration() -> str:
    return files("supabase_resilience").joinpath("sql/queue.sql").read_text(encoding="utf-8")


@contextmanager
def stacks() -> Iterator[tuple[LocalSupabase, LocalSupabase]]:
    """A stock one and a migrated one."""
    with ExitStack() as stack:
        stock = stack.enter_context(LocalSupabase(schema=QUEUES))
        migrated = stack.enter_context(LocalSupabase(schema=[migration(), MIGRATED_QUEUES]))
        yield stock, migrated


def fill(local: LocalSupabase, jobs: int, message: str = "jsonb_build_object('n', n)") -> None:
    """Empty the queue, put so many messages there, and let the planner know."""
    with psycopg.connect(local.admin_dsn, autocommit=True) as connection:
        connection.execute(
            "select pgmq.purge_queue(name) from unnest(array['jobs', 'jobs_high']) name"
        )
        connection.execute(
            f"select pgmq.send_batch('jobs', array_agg({message} order by n)) "
            "from generate_series(1, %s) n",
            (jobs,),
        )
        connection.execute("vacuum analyze pgmq.q_jobs")


def left(local: LocalSupabase) -> int:
    with psycopg.connect(local.admin_dsn) as connection:
        row = connection.execute("select count(*) from pgmq.q_jobs").fetchone()
        return int(row[0]) if row else 0


def sync_client(local: LocalSupabase) -> Client:
    """Its session is of HTTP/1.1 and may be used by threads."""
    return create_client(
        local.url, local.secret_key, ClientOptions(httpx_client=httpx.Client(timeout=A_MINUTE))
    )


async def async_client(local: LocalSupabase) -> AsyncClient:
    return await acreate_client(local.url, local.secret_key)


# --- who empties the queue ----------------------------------------------------------------------


def loop_sync(local: LocalSupabase, concurrency: int) -> None:
    client = sync_client(local).schema("pgmq_public")

    def handle(row: dict[str, Any]) -> None:
        do_nothing(row["message"])
        asked = {"queue_name": "jobs", "message_id": row["msg_id"]}
        client.rpc("delete", asked).execute()

    with ThreadPoolExecutor(concurrency) as pool:
        while rows := client.rpc("read", read_of(concurrency)).execute().data:
            list(pool.map(handle, rows))


async def loop_async(local: LocalSupabase, concurrency: int) -> None:
    client = (await async_client(local)).schema("pgmq_public")

    async def handle(row: dict[str, Any]) -> None:
        await do_nothing_async(row["message"])
        asked = {"queue_name": "jobs", "message_id": row["msg_id"]}
        await client.rpc("delete", asked).execute()

    while rows := (await client.rpc("read", read_of(concurrency)).execute()).data:
        await asyncio.gather(*map(handle, rows))


def read_of(concurrency: int) -> dict[str, Any]:
    return {"queue_name": "jobs", "sleep_seconds": 60, "n": concurrency}


def ours_sync(local: LocalSupabase, concurrency: int) -> None:
    store = SupabaseQueue(sync_client(local), "jobs")
    queue = QueueProcessor(do_nothing, store=store, concurrency=concurrency, on_event=tell_nobody)
    queue.run(until_empty=True)


async def ours_async(local: LocalSupabase, concurrency: int) -> None:
    store = AsyncSupabaseQueue(await async_client(local), "jobs")
    queue = AsyncQueueProcessor(
        do_nothing_async, store=store, concurrency=concurrency, on_event=tell_nobody
    )
    await queue.run(until_empty=True)


def aimq(local: LocalSupabase, _: int) -> None:
    work = queue_peers.aimq(local.url, local.secret_key, "jobs")
    while work():
        pass


def aimq_is_installed() -> bool:
    try:
        queue_peers.aimq("http://127.0.0.1", "a.b.c", "jobs")
    except ImportError:
        return False
    return True


# --- the rounds ---------------------------------------------------------------------------------

Emptier = Callable[[LocalSupabase, int], Any]
Turns = Sequence[tuple[str, tuple[LocalSupabase, Emptier, int]]]


def run(effort: Effort) -> list[Line]:
    has_aimq = aimq_is_installed()
    queue_peers.show_missing([] if has_aimq else ["aimq"])
    with stacks() as (stock, migrated):
        lines: list[Line] = []
        for colour, by_hand, ours in (
            ("sync", loop_sync, ours_sync),
            ("async", loop_async, ours_async),
        ):
            all_of_them: Turns = [
                (LOOP, (stock, by_hand, effort.jobs)),
                (STOCK, (stock, ours, effort.jobs)),
                (MIGRATED, (migrated, ours, effort.jobs)),
                # It does one after the other, so a few tell its rate.
                *([(AIMQ, (stock, aimq, effort.jobs // 10))] if has_aimq else []),
            ]
            lines += measure(colour, all_of_them, effort)
        lines += asyncio.run(run_priority(stock, migrated, effort))
    return lines


def measure(colour: str, all_of_them: Turns, effort: Effort) -> list[Line]:
    rates = Rates()
    for number in range(effort.rounds):
        for name, (local, empty, jobs) in turns(number, all_of_them):
            fill(local, jobs)
            rates.add(name, jobs / seconds(lambda: empty(local, effort.concurrency)))  # noqa: B023
            check_all_done(jobs - left(local), jobs)
    title = f"LocalSupabase, {colour}, concurrency {effort.concurrency}, {effort.jobs:,} jobs"
    rates.show(title, LOOP)
    by = rates.by_name
    to_aimq = ratio(by[MIGRATED], by[AIMQ]) if AIMQ in by else None
    return [
        at_least(f"stock, {colour}, x hand-written loop", 0.9, ratio(by[STOCK], by[LOOP])),
        at_least(f"migrated, {colour}, x hand-written loop", 3.0, ratio(by[MIGRATED], by[LOOP])),
        at_least(f"migrated, {colour}, x aimq", 10.0, to_aimq),
    ]


def seconds(empty: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    working = empty()
    if isinstance(working, Awaitable):
        asyncio.run(working)  # type: ignore[arg-type]
    return time.perf_counter() - begun


# --- urgent jobs among many ---------------------------------------------------------------------

URGENT = 10
ENVELOPE = """
jsonb_build_object('data', 'usual',
  'supabase_resilience', jsonb_build_object('id', md5(n::text), 'enqueued_at', 0))
"""


async def run_priority(stock: LocalSupabase, migrated: LocalSupabase, effort: Effort) -> list[Line]:
    orders = {
        "lanes, stock": await order_of_starts(stock, effort, {URGENT: "_high"}),
        "migrated, no lanes": await order_of_starts(migrated, effort, None),
    }
    shown = {name: Order(starts, effort) for name, starts in orders.items()}
    head = (
        f"{effort.urgent:,} urgent among {effort.waiting:,} waiting",
        "usual jobs before the first urgent",
        "starts until the last urgent",
        "share of the usual meanwhile",
    )
    rows = [
        (name, str(order.before), str(order.until_the_last), f"{order.share:.1%}")
        for name, order in shown.items()
    ]
    show_table("Priority under load: the order of starts", head, rows)
    two_rounds = 2 * effort.concurrency
    return [
        line
        for name, order in shown.items()
        for line in (
            at_most(f"usual jobs before the urgent, {name}", two_rounds, order.before, digits=0),
            at_least(f"share of the lowest meanwhile, {name}", 0.05, order.share, digits=3),
        )
    ]


class Order:
    """What the order of starts tells, from the moment when the urgent jobs were enqueued."""

    def __init__(self, starts: list[str], effort: Effort) -> None:
        urgent = [place for place, data in enumerate(starts) if data == "urgent"]
        check_all_done(len(urgent), effort.urgent)
        self.before = urgent[0]
        self.until_the_last = urgent[-1] + 1
        self.share = (urgent[-1] + 1 - urgent[0] - len(urgent)) / (urgent[-1] + 1 - urgent[0])


async def order_of_starts(
    local: LocalSupabase, effort: Effort, lanes: dict[int, str] | None
) -> list[str]:
    """What was started from the moment on in which the urgent jobs were there."""
    fill(local, effort.waiting, ENVELOPE)
    starts: list[str] = []
    has_begun, all_urgent_started = asyncio.Event(), asyncio.Event()
    to_come = effort.urgent

    async def handle(data: str) -> None:
        nonlocal to_come
        starts.append(data)
        to_come -= data == "urgent"
        has_begun.set()
        if not to_come:
            all_urgent_started.set()

    store = AsyncSupabaseQueue(await async_client(local), "jobs")
    queue = AsyncQueueProcessor(
        handle, store=store, concurrency=effort.concurrency, lanes=lanes, on_event=tell_nobody
    )
    await queue.start()
    await has_begun.wait()
    await queue.enqueue_many(["urgent"] * effort.urgent, URGENT)
    there = len(starts)
    await all_urgent_started.wait()
    await queue.stop()
    # Those that were started while the answer to the enqueue was under way count as well.
    first = starts.index("urgent")
    return starts[min(there, first) :]
