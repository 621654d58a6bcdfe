"""A handler that raises on every change, and one that sleeps over every change, hurt no other."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from listener_crowd import Copy, Loop
from listener_world import world
from report import Line, exactly, info
from supabase import acreate_client, create_client

from supabase_resilience.listener import (
    AsyncRealtimeListener,
    Change,
    ListenerStats,
    RealtimeListener,
    Recovery,
)
from supabase_resilience.local import LocalSupabase

_ROUND = 100
_PING = 0.5  # seconds
_INSERT = """
insert into items (id, n, amount, data, at, note)
select n, 1, 1, '', now(), '' from generate_series(1, %s) n
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Rounds of a hundred rows that come and go; a handler sleeps `sleeps` seconds over each.

    Queues hold `buffer` changes, so that those of the bad handlers overflow.
    """

    rounds: int
    sleeps: float
    buffer: int
    patience: float


def raises(change: Change) -> None:
    raise ValueError(f"{change.type} is more than I can bear")


def run(plan: Plan) -> list[Line]:
    with world() as local:
        return [*_sync(plan, local), *_async(plan, local)]


def _options(plan: Plan) -> dict[str, Any]:
    return {
        "recovery": Recovery.versioned(),
        "buffer_size": plan.buffer,
        "ping_interval": _PING,
        "on_event": lambda _: None,
    }


def _sync(plan: Plan, local: LocalSupabase) -> list[Line]:
    copy = Copy()
    client = create_client(local.url, local.secret_key)
    listener = RealtimeListener(client, "items", **_options(plan))
    listener.on_change("raises", raises)
    listener.on_change("sleeps", lambda _: threading.Event().wait(plan.sleeps))
    listener.on_change("good", copy)
    listener.start()
    listener.ready(plan.patience)
    lines = _judge("sync", plan, local, copy, listener.get_stats)
    listener.stop(timeout=0.0)
    return lines


def _async(plan: Plan, local: LocalSupabase) -> list[Line]:
    copy, loop = Copy(), Loop()
    listener = loop.run(_start(plan, local, copy))
    lines = _judge("async", plan, local, copy, listener.get_stats)
    loop.run(listener.stop(timeout=0.0))
    loop.close()
    return lines


async def _start(plan: Plan, local: LocalSupabase, copy: Copy) -> AsyncRealtimeListener:
    async def sleeps(_: Change) -> None:
        await asyncio.wait_for(asyncio.Event().wait(), plan.sleeps)  # ends in a TimeoutError

    client = await acreate_client(local.url, local.secret_key)
    listener = AsyncRealtimeListener(client, "items", **_options(plan))
    listener.on_change("raises", raises)
    listener.on_change("sleeps", sleeps)
    listener.on_change("sleeps on a thread", lambda _: threading.Event().wait(plan.sleeps))
    listener.on_change("good", copy.later)
    await listener.start()
    await listener.ready(plan.patience)
    return listener


def _judge(
    colour: str, plan: Plan, local: LocalSupabase, copy: Copy, stats: Callable[[], ListenerStats]
) -> list[Line]:
    for _ in range(plan.rounds):
        for table, query, given in ((100, _INSERT, (_ROUND,)), (0, "delete from items", ())):
            with local.postgres.connect() as connection:
                connection.execute(query.encode(), given)
            _wait_until(lambda table=table: len(copy.rows) == table, plan.patience)
    # Long enough for the pings to tell whether the socket still lives.
    threading.Event().wait(3 * _PING)
    told = stats()
    good, bad = told.handlers["good"], told.handlers["raises"]
    return [
        exactly(
            f"{colour}: changes that the good handler saw", 2 * _ROUND * plan.rounds, good.delivered
        ),
        exactly(
            f"{colour}: dropped, or found by reading, for it", 0, good.dropped + good.caught_up
        ),
        exactly(f"{colour}: connections", 1, told.connects),
        exactly(f"{colour}: gaps", 0, told.gaps),
        exactly(f"{colour}: delivered to the one that raises", 0, bad.delivered),
        *(
            info(f"{colour}: {name}", f"{each.delivered} delivered, {each.dropped} dropped")
            for name, each in told.handlers.items()
        ),
    ]


def _wait_until(condition: Callable[[], bool], within: float) -> None:
    end = time.monotonic() + within
    while not condition() and time.monotonic() < end:
        threading.Event().wait(0.02)
