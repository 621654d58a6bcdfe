"""How long it takes, once a fault is over, until a thousand rows that were missed are there.

One listener, one fault at a time. What tells of itself (a closed socket, a server that starts anew)
has to be over soon; what is silent is found by the next catch-up on the timer.
"""

import random
import statistics
import threading
import time
from dataclasses import dataclass

from listener_crowd import Loop, Tokens
from listener_faults import Faults
from listener_world import world
from report import Line, at_most, exactly
from supabase import acreate_client

from supabase_resilience.listener import AsyncRealtimeListener, LiveTable, Recovery
from supabase_resilience.local import LocalSupabase

SUBSCRIBE_DELAY = 0.5
_LONGEST_BACKOFF = 5.0
_LEEWAY = 2.0
_SILENT = {"stalled", "stream of changes dead", "changes lost", "lost to the rate limit"}
_READS = {"REST killed", "requests lost"}  # which the listener meets only if it has to read
_INSERT = """
insert into items (id, n, amount, data, at, note)
select n, 1, 1, '', now(), '' from generate_series(%s::bigint, %s::bigint) n
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`rounds` of every kind, with so many missed `rows`; the rest in seconds."""

    rounds: int
    rows: int
    catch_up_interval: float
    patience: float
    seed: int


class Heal:
    """One run."""

    def __init__(self, plan: Plan, local: LocalSupabase) -> None:
        self._plan = plan
        self._local = local
        self._loop = Loop()
        self._tokens = Tokens(local)
        self._faults = Faults(local, self._tokens, self._loop)
        self._listener = self._loop.run(self._make())
        self._table = LiveTable(self._listener)
        self._written = 0

    async def _make(self) -> AsyncRealtimeListener:
        client = await acreate_client(self._local.url, self._local.secret_key)
        return AsyncRealtimeListener(
            client,
            "items",
            recovery=Recovery.versioned(),
            token=self._tokens,
            catch_up_interval=self._plan.catch_up_interval,
            ping_interval=1.0,
            on_event=lambda _: None,
        )

    def run(self) -> list[Line]:
        self._loop.run(self._listener.start())
        try:
            times: dict[str, list[float | None]] = {kind: [] for kind in self._faults.kinds}
            for number in range(self._plan.rounds):
                for kind, known in times.items():
                    known.append(self._once(kind, random.Random(f"{self._plan.seed}/{number}")))
        finally:
            self._loop.run(self._listener.stop())
            self._loop.close()
        return [line for kind, known in times.items() for line in self._lines(kind, known)]

    def _once(self, kind: str, chance: random.Random) -> float | None:
        self._loop.run(self._listener.ready(self._plan.patience))
        self._faults.strike(kind, chance, lambda: self._miss(kind))
        healed = time.monotonic()
        while len(self._table.rows) < self._written:
            if time.monotonic() - healed > self._plan.patience:
                return None
            threading.Event().wait(0.02)
        return time.monotonic() - healed

    def _miss(self, kind: str) -> None:
        if kind in _READS:
            self._local.realtime.abort()
        first, self._written = self._written + 1, self._written + self._plan.rows
        with self._local.postgres.connect() as connection:
            connection.execute(_INSERT.encode(), (first, self._written))

    def _lines(self, kind: str, known: list[float | None]) -> list[Line]:
        times = [seconds for seconds in known if seconds is not None]
        lines = [exactly(f"{kind}: healed", self._plan.rounds, len(times))]
        if times:
            what = f"{kind}: s, the slowest (median {statistics.median(times):.2f})"
            lines.append(at_most(what, self._limit(kind), max(times)))
        return lines

    def _limit(self, kind: str) -> float:
        if kind in _SILENT:
            return self._plan.catch_up_interval + _LEEWAY
        return _LEEWAY + SUBSCRIBE_DELAY + _LONGEST_BACKOFF


def run(plan: Plan) -> list[Line]:
    with world() as local:
        local.realtime.configure(subscribe_delay=SUBSCRIBE_DELAY)
        return Heal(plan, local).run()
