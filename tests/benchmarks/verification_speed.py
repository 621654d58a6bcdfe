"""Rows per second of a pass, with the loop that one would write by hand as the measure.

Loop and passes use the same client, select the same columns and judge by the same function; all
take turns, round after round, each beginning where the one before it left off.
"""

import asyncio
import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from judged import Line, at_least, ratio, show_table
from supabase import AsyncClient, Client, acreate_client, create_client
from verification_table import checked, is_right, pushed, tell_nobody

from supabase_resilience import AsyncServerSideVerification, ServerSideVerification
from supabase_resilience.local import LocalSupabase

LOOP, ONE, FOUR, PUSHED = "hand-written loop", "one range", "four ranges", "in the database"
PASSES: dict[str, dict[str, Any]] = {
    ONE: {"rules": checked(), "ranges": 1},
    FOUR: {"rules": checked(), "ranges": 4},
    PUSHED: {"rules": pushed(), "ranges": 1},
}
Found = list[int]
Contender = Callable[[int], Awaitable[Found]]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How many rounds, over how many rows, in pages of how many to begin with."""

    rows: int
    page: int
    rounds: int


# --- those who find the broken rows ---------------------------------------------------------------


def page_of(client: Any, last: int, size: int) -> Any:
    return client.table("orders").select("*").gt("id", last).order("id").limit(size)


def loop(client: Client, size: int) -> Found:
    found: Found = []
    last = 0
    while rows := page_of(client, last, size).execute().data:
        found += [row["id"] for row in rows if not is_right(row)]
        last = rows[-1]["id"]
    return found


async def loop_async(client: AsyncClient, size: int) -> Found:
    found: Found = []
    last = 0
    while rows := (await page_of(client, last, size).execute()).data:
        found += [row["id"] for row in rows if not is_right(row)]
        last = rows[-1]["id"]
    return found


def options(size: int, name: str) -> dict[str, Any]:
    return {**PASSES[name], "batch_size": size, "grace": 0.0, "on_event": tell_nobody}


def contender(client: Client, name: str) -> Contender:
    async def find(size: int) -> Found:
        if name == LOOP:
            return loop(client, size)
        verification = ServerSideVerification(client, "orders", **options(size, name))
        return list(verification.run_once().failing_ids())

    return find


def contender_async(client: AsyncClient, name: str) -> Contender:
    async def find(size: int) -> Found:
        if name == LOOP:
            return await loop_async(client, size)
        verification = AsyncServerSideVerification(client, "orders", **options(size, name))
        return list((await verification.run_once()).failing_ids())

    return find


# --- the race -------------------------------------------------------------------------------------


async def all_rounds(local: LocalSupabase, colour: str, effort: Effort) -> dict[str, list[float]]:
    """The seconds of everybody, round by round."""
    names = [LOOP, *PASSES]
    if colour == "sync":
        client = create_client(local.url, local.secret_key)
        contenders = {name: contender(client, name) for name in names}
    else:
        async_client = await acreate_client(local.url, local.secret_key)
        contenders = {name: contender_async(async_client, name) for name in names}
    seconds: dict[str, list[float]] = defaultdict(list)
    found: set[tuple[int, ...]] = set()
    for number in range(effort.rounds):
        turn = number % len(names)  # nobody is always the first one
        for name in [*names[turn:], *names[:turn]]:
            gc.collect()
            begun = time.perf_counter()
            ids = await contenders[name](effort.page)
            seconds[name].append(time.perf_counter() - begun)
            found.add(tuple(sorted(ids)))
    if len(found) != 1:
        raise RuntimeError(f"they do not find the same rows: {sorted(map(len, found))}")
    return seconds


def run(local: LocalSupabase, effort: Effort) -> list[Line]:
    lines: list[Line] = []
    for colour in ("sync", "async"):
        seconds = asyncio.run(all_rounds(local, colour, effort))
        show(colour, effort, seconds)
        to_loop = {name: ratio(seconds[LOOP], seconds[name]) for name in (ONE, FOUR)}
        to_all = ratio(seconds[ONE], seconds[PUSHED])
        lines += [
            at_least(f"{colour}: rows/s in one range, of the loop's", 0.95, to_loop[ONE]),
            at_least(f"{colour}: rows/s in four ranges, of the loop's", 1.3, to_loop[FOUR]),
            at_least(f"{colour}: rule in the database, times as fast", 50, to_all, digits=0),
        ]
    return lines


def show(colour: str, effort: Effort, seconds: dict[str, list[float]]) -> None:
    rows = []
    for name, each in seconds.items():
        median = statistics.median(each)
        rate = f"{effort.rows / median:,.0f}"
        rows.append((name, f"{median:.3f}", rate, f"{ratio(seconds[LOOP], each):.2f}"))
    head = (f"{effort.rows:,} rows, all find the same", "seconds", "rows/s", "times the loop's")
    show_table(f"A pass, {colour}", head, sorted(rows))
