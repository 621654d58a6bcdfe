"""Who follows the canned server: the bare client of supabase-py, and our listener at each level.

Each counts what it is told. The listener's catch-ups are answered here, at once: an empty table
whose transactions have all ended.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from listener_server import FIRST_XID
from realtime import AsyncRealtimeClient
from realtime.types import RealtimePostgresChangesListenEvent
from supabase import AsyncClientOptions, ClientOptions, acreate_client, create_client

from supabase_resilience.listener import AsyncRealtimeListener, RealtimeListener, Recovery

KEY = "a-key-that-the-canned-server-does-not-look-at"
SOON = 60.0
LOG = ("supabase_resilience", "changes")
ROWS = ("public", "items")


class Count:
    """A handler: how many changes it was told, and when the first and the last one came."""

    def __init__(self) -> None:
        self.told = 0
        self.began = 0.0
        self._until = 0
        self._loop = asyncio.get_running_loop()
        self._all = asyncio.Event()

    def __call__(self, _: Any) -> None:
        if not self.told:
            self.began = time.perf_counter()
        self.told += 1
        if self.told == self._until:
            self.ended = time.perf_counter()
            self._loop.call_soon_threadsafe(self._all.set)

    async def later(self, change: Any) -> None:
        self(change)

    def expect(self, changes: int) -> None:
        """Begin anew, and wait for so many."""
        self.told, self._until = 0, changes
        self._all.clear()

    async def wait(self) -> float:
        """The seconds that they took; raises `TimeoutError`, and says how far it came."""
        try:
            await asyncio.wait_for(self._all.wait(), SOON + self._until / 500)
        except TimeoutError:
            raise TimeoutError(f"{self.told:,} of {self._until:,} changes came") from None
        return self.ended - self.began


class Rest:
    """The answers to catch-ups; `xid` is where all transactions have ended."""

    def __init__(self, level: str) -> None:
        self.xid = FIRST_XID
        self._level = level
        self.transport = httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("_horizon"):
            return httpx.Response(200, json=self._horizon())
        return httpx.Response(200, json=[])

    def _horizon(self) -> dict[str, Any]:
        return {
            "migration": 1,
            "recovery": self._level,
            "key": ["id"],
            "floor": 0,
            "xmin": self.xid,
            "xmax": self.xid,
            "history": "one",
        }


@dataclass
class Open:
    """A client that is subscribed."""

    count: Count
    rest: Rest | None = None
    listener: Any = None


Contender = Callable[[str], Any]


async def subscribe(
    url: str, key: str, binding: tuple[str, str], callback: Callable[[Any], None]
) -> AsyncRealtimeClient:
    """The client of supabase-py alone, once it hears of changes."""
    ready = asyncio.Event()
    client = AsyncRealtimeClient(f"{url}/realtime/v1", key, auto_reconnect=False)
    channel = client.channel("bare")
    schema, table = binding
    every = RealtimePostgresChangesListenEvent.All
    channel.on_postgres_changes(every, callback, schema=schema, table=table)
    channel.on_system(lambda _: ready.set())
    await client.connect()
    await channel.subscribe()
    await asyncio.wait_for(ready.wait(), SOON)
    return client


def bare(binding: tuple[str, str]) -> Contender:
    """The client of supabase-py alone."""

    @asynccontextmanager
    async def opened(url: str) -> AsyncGenerator[Open]:
        count = Count()
        client = await subscribe(url, KEY, binding, count)
        yield Open(count)
        await client.close()

    return opened


@dataclass
class Setup:
    """What a listener is made of."""

    url: str
    rest: Rest
    handler: Any
    options: dict[str, Any]


def ours(recovery: Recovery | None, *, how: str = "async", **options: Any) -> Contender:
    """The listener; `how` its handler is called: "async", "thread" (of it), or all "sync"."""

    @asynccontextmanager
    async def opened(url: str) -> AsyncGenerator[Open]:
        count, rest = Count(), Rest(recovery.level if recovery else "")
        setup = Setup(
            url,
            rest,
            count.later if how == "async" else count,
            {"recovery": recovery, "on_event": tell_nobody, **options},
        )
        listener, stop = await (_sync if how == "sync" else _async)(setup)
        yield Open(count, rest, listener)
        await stop()

    return opened


async def _async(setup: Setup) -> tuple[Any, Any]:
    session = httpx.AsyncClient(transport=setup.rest.transport)
    client = await acreate_client(setup.url, KEY, AsyncClientOptions(httpx_client=session))
    listener = AsyncRealtimeListener(client, "items", **setup.options)
    listener.on_change("count", setup.handler)
    await listener.start()
    await listener.ready(SOON)
    return listener, listener.stop


async def _sync(setup: Setup) -> tuple[Any, Any]:
    session = httpx.Client(transport=setup.rest.transport)
    client = create_client(setup.url, KEY, ClientOptions(httpx_client=session))
    listener = RealtimeListener(client, "items", **setup.options)
    listener.on_change("count", setup.handler)
    listener.start()
    await asyncio.to_thread(listener.ready, SOON)

    async def stop() -> None:
        await asyncio.to_thread(listener.stop)

    return listener, stop


def tell_nobody(_: object) -> None:
    """Instead of logging."""


LEVELS: dict[str, Recovery | None] = {
    "live only": None,
    "by_column": Recovery.by_column("updated_at"),
    "versioned": Recovery.versioned(),
    "change_log": Recovery.change_log(),
}


def binding_of(level: str) -> tuple[str, str]:
    return LOG if level == "change_log" else ROWS
