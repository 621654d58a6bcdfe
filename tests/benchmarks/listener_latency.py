"""How much later our handler hears of a change than the callback of the bare client.

Both are subscribed to the same LocalSupabase at the same time, on the same event loop, and of each
change the times are compared. Who subscribes first hears first, so they take turns in that. How
much two bare clients differ is the measure of the machine.
"""

import asyncio
import contextlib
import io
import random
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from judged import Line, at_most, show_table
from listener_clients import LEVELS, SOON, binding_of, subscribe, tell_nobody
from supabase import acreate_client, create_client

from supabase_resilience.__main__ import main
from supabase_resilience.listener import AsyncRealtimeListener, RealtimeListener
from supabase_resilience.local import LocalSupabase

SCHEMA = """
create table items (
  id bigint primary key, name text not null, updated_at timestamptz not null default now()
);
create table logged (like items including all);
"""
WRITE = "insert into {} (id, name) values (%s, 'a row')"


async def pause(seconds: float) -> None:
    """Let the others work."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How many rounds, of how many changes each, and how many a second are made."""

    rounds: int
    changes: int
    rate: float


class Times:
    """When each row was heard of."""

    def __init__(self) -> None:
        self.of: dict[int, float] = {}

    async def wait_for(self, keys: range) -> None:
        while len(self.of) < len(keys):
            await pause(0.05)

    def bare(self, payload: Any) -> None:
        record = payload["data"]["record"]
        self._note(record["new"]["id"] if "seq" in record else record["id"])

    def ours(self, change: Any) -> None:
        self._note(change.key)

    async def ours_later(self, change: Any) -> None:
        self._note(change.key)

    def _note(self, key: int) -> None:
        self.of.setdefault(key, time.perf_counter())


Stop = Callable[[], Awaitable[object]]


async def subscribe_bare(local: LocalSupabase, level: str, times: Times) -> Stop:
    client = await subscribe(local.url, local.secret_key, binding_of(level), times.bare)
    return client.close


async def subscribe_async(local: LocalSupabase, level: str, times: Times) -> Stop:
    return await _subscribe_async(local, level, times.ours_later)


async def subscribe_threaded(local: LocalSupabase, level: str, times: Times) -> Stop:
    return await _subscribe_async(local, level, times.ours)


async def _subscribe_async(local: LocalSupabase, level: str, handler: Any) -> Stop:
    client = await acreate_client(local.url, local.secret_key)
    listener = AsyncRealtimeListener(
        client, _table(level), recovery=LEVELS[level], on_event=tell_nobody
    )
    listener.on_change("times", handler)
    await listener.start()
    await listener.ready(SOON)
    return listener.stop


async def subscribe_sync(local: LocalSupabase, level: str, times: Times) -> Stop:
    client = create_client(local.url, local.secret_key)
    listener = RealtimeListener(client, _table(level), recovery=LEVELS[level], on_event=tell_nobody)
    listener.on_change("times", times.ours)
    listener.start()
    await asyncio.to_thread(listener.ready, SOON)

    async def stop() -> None:
        await asyncio.to_thread(listener.stop)

    return stop


def _table(level: str) -> str:
    return "logged" if level == "change_log" else "items"


OURS = {
    "async handler": subscribe_async,
    "sync handler": subscribe_threaded,
    "sync listener": subscribe_sync,
}
KINDS: dict[str, tuple[Any, str]] = {
    "a second bare client": (subscribe_bare, "live only"),
    **{f"{level}, async handler": (subscribe_async, level) for level in LEVELS},
    **{f"versioned, {name}": (how, "versioned") for name, how in OURS.items()},
}


class Run:
    """One LocalSupabase, and the rows that are written there."""

    def __init__(self, local: LocalSupabase, effort: Effort) -> None:
        self._local = local
        self._effort = effort
        self._next = 1

    async def added(self, kind: str, *, first: bool) -> list[float]:
        """Of each change, the seconds that ours (or the second one) came after the bare client."""
        subscribe, level = KINDS[kind]
        bare, ours = Times(), Times()
        begin = [(subscribe_bare, bare), (subscribe, ours)]
        stops = [
            await each(self._local, level, times) for each, times in begin[:: -1 if first else 1]
        ]
        keys = range(self._next, self._next + self._effort.changes)
        self._next = keys.stop
        await asyncio.to_thread(self._write, _table(level), keys)
        async with asyncio.timeout(SOON):
            await bare.wait_for(keys)
            await ours.wait_for(keys)
        for stop in stops:
            await stop()
        return [ours.of[key] - bare.of[key] for key in keys]

    def _write(self, table: str, keys: range) -> None:
        with psycopg.connect(self._local.dsn, autocommit=True) as connection:
            for key in keys:
                threading.Event().wait(random.expovariate(self._effort.rate))
                connection.execute(WRITE.format(table).encode(), (key,))


def migration(*arguments: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(["sql", "listener", *arguments])
    return printed.getvalue()


async def measure(effort: Effort) -> dict[str, list[float]]:
    migrations = [
        migration("--table", "items"),
        migration("--recovery", "change-log", "--table", "logged"),
    ]
    added: dict[str, list[float]] = {kind: [] for kind in KINDS}
    async with LocalSupabase(schema=[SCHEMA, *migrations]) as local:
        run = Run(local, effort)
        for number in range(effort.rounds):
            for kind in KINDS:
                added[kind] += await run.added(kind, first=number % 2 == 1)
    return added


def run(effort: Effort) -> list[Line]:
    rows, lines = [], []
    for kind, seconds in asyncio.run(measure(effort)).items():
        percent = statistics.quantiles([1000 * each for each in seconds], n=100)
        p50, p90, p99 = percent[49], percent[89], percent[98]
        rows.append((kind, *(f"{value:.2f}" for value in (p50, p90, p99)), f"{len(seconds):,}"))
        if KINDS[kind][0] is not subscribe_bare:
            lines += [
                at_most(f"added latency p50, ms: {kind}", 1.0, p50),
                at_most(f"added latency p99, ms: {kind}", 3.0, p99),
            ]
    show_table(
        "Latency added to the bare client's, ms", ("who", "p50", "p90", "p99", "changes"), rows
    )
    return lines
