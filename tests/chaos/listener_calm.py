"""What a listener costs: connects while the server turns everybody away, and requests when idle."""

import asyncio
import math
import threading
import time
from dataclasses import dataclass
from typing import Any

from listener_world import world
from realtime import AsyncRealtimeClient
from report import Line, at_most, exactly, info
from supabase import create_client

from supabase_resilience.listener import RealtimeListener, Recovery
from supabase_resilience.local import LocalSupabase

_CONNECTS = 3, 12  # at once, and in each minute
_REQUESTS = 4  # of one catch-up, of which an idle listener makes one a minute
_ROW = "insert into items (id, n, amount, data, at, note) values (1, 1, 1, '', now(), '')"
_SETTLED = 7.0  # seconds from the subscription until the second look is over
_LEVELS = {
    "versioned": ("items", Recovery.versioned()),
    "by_column": ("items", Recovery.by_column("updated_at")),
    "change_log": ("logged", Recovery.change_log()),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All in seconds; `bare` is how long supabase-py's client is turned away, for comparison."""

    turned_away: float
    bare: float
    idle: float
    catch_up_interval: float
    patience: float


def _make(local: LocalSupabase, table: str, recovery: Recovery, **more: Any) -> RealtimeListener:
    client = create_client(local.url, local.secret_key)
    return RealtimeListener(client, table, recovery=recovery, on_event=lambda _: None, **more)


# --- the server accepts, and closes at once -------------------------------------------------------


def storm(plan: Plan) -> list[Line]:
    with world() as local:
        local.realtime.refuse()
        bare = asyncio.run(_bare_connects(local, plan.bare))
        before = local.realtime.connects
        with _make(local, "items", Recovery.versioned()) as listener:
            threading.Event().wait(plan.turned_away)
            connects = local.realtime.connects - before
            local.realtime.refuse(None)
            began = time.monotonic()
            listener.ready(plan.patience)
            healed = time.monotonic() - began
    limit = _CONNECTS[0] + _CONNECTS[1] * plan.turned_away / 60
    return [
        at_most(f"connects in {plan.turned_away:g} s", limit, connects),
        info(f"supabase-py's own client, in {plan.bare:g} s", bare),
        at_most("s until it is live again, at most the back-off and 2", 7.0, healed),
    ]


async def _bare_connects(local: LocalSupabase, seconds: float) -> int:
    before = local.realtime.connects
    client = AsyncRealtimeClient(f"{local.url}/realtime/v1", token=local.secret_key)
    trying = asyncio.ensure_future(client.connect())
    await asyncio.wait([asyncio.ensure_future(asyncio.Event().wait())], timeout=seconds)
    client.auto_reconnect = False
    trying.cancel()
    await client.close()
    return local.realtime.connects - before


# --- nothing happens ------------------------------------------------------------------------------


def idle(plan: Plan) -> list[Line]:
    with world() as local:
        with local.postgres.connect() as connection:
            connection.execute(_ROW.encode())
        return [line for level in _LEVELS for line in _idle(level, plan, local)]


def _idle(level: str, plan: Plan, local: LocalSupabase) -> list[Line]:
    table, recovery = _LEVELS[level]
    interval = plan.catch_up_interval
    with _make(local, table, recovery, catch_up_interval=interval) as listener:
        listener.ready(plan.patience)
        threading.Event().wait(min(_SETTLED, interval))
        before, passes = local.requests(), listener.get_stats().catch_ups
        threading.Event().wait(plan.idle)
        requests = local.requests() - before
        passes = listener.get_stats().catch_ups - passes
        connects = listener.get_stats().connects
    # The timer is jittered, by a tenth; and where the interval is short, a second look may come.
    limit = math.ceil(plan.idle / (0.9 * interval)) + (interval < _SETTLED)
    return [
        at_most(f"{level}: requests of a catch-up", _REQUESTS, requests / max(passes, 1)),
        at_most(f"{level}: catch-ups in {plan.idle:g} s, one in {interval:g} s", limit, passes),
        exactly(f"{level}: connections", 1, connects),
    ]
