"""A process of the run `sink`: a listener with a durable cursor, whose handler writes into a table.

`listener_child.py '{"url": …}'`; it says "ready" on stdout, and is killed at any moment. A share of
the handler's calls fails, before or after it has written.
"""

import asyncio
import json
import random
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.types.json import Jsonb
from supabase import AsyncClient, Client, acreate_client, create_client

from supabase_resilience import AsyncTableCursor, FileCursor, TableCursor
from supabase_resilience.listener import AsyncRealtimeListener, Change, RealtimeListener, Recovery

_UPSERT = """
insert into sink (id, row) values (%s, %s) on conflict (id) do update set row = excluded.row
"""
_DELETE = "delete from sink where id = %s"
_NOTE = """
insert into sink_log (seq, told) values (%s, 1)
on conflict (seq) do update set told = sink_log.told + 1
"""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """`cursor` is the path of a file, or "table"; `life` counts the processes of a run."""

    url: str
    key: str
    dsn: str
    colour: str
    level: str
    cursor: str
    fails: float
    seed: int
    life: int


class Sink:
    """The handler's work: writes what it is told, once in a while in vain."""

    def __init__(self, setup: Setup) -> None:
        self._connection = psycopg.connect(setup.dsn, autocommit=True)
        self._chance = random.Random(f"{setup.seed}/{setup.life}")
        self._fails = setup.fails
        self._write = self._note if setup.level == "change_log" else self._mirror

    def take(self, change: Change) -> None:
        is_bad, too_early = self._chance.random() < self._fails, self._chance.random() < 0.5
        if is_bad and too_early:
            raise ValueError("before the write")
        self._write(change)
        if is_bad:
            raise ValueError("after the write")

    async def take_later(self, change: Change) -> None:
        await asyncio.to_thread(self.take, change)

    def _mirror(self, change: Change) -> None:
        if change.type in {"INSERT", "UPDATE"}:
            self._connection.execute(_UPSERT, (change.key, Jsonb(change.new)))
        else:
            self._connection.execute(_DELETE, (change.key,))

    def _note(self, change: Change) -> None:
        self._connection.execute(_NOTE, (change.version,))


def options(setup: Setup) -> dict[str, Any]:
    """Of a log the entries from now on, of rows those that are there."""
    if setup.level == "change_log":
        return {"table": "logged", "recovery": Recovery.change_log(), "catch_up_interval": 2.0}
    recovery = Recovery.versioned()
    return {
        "table": "items",
        "recovery": recovery,
        "start_from": "beginning",
        "catch_up_interval": 2.0,
    }


def cursor(setup: Setup, client: Any, in_table: Callable[[Any, str], Any]) -> Any:
    return in_table(client, "sink") if setup.cursor == "table" else FileCursor(setup.cursor)


def listen(setup: Setup) -> None:
    client: Client = create_client(setup.url, setup.key)
    kept = cursor(setup, client, TableCursor)
    listener = RealtimeListener(client, cursor=kept, **options(setup))
    listener.on_change("sink", Sink(setup).take)
    listener.start()
    listener.ready()
    print("ready", flush=True)
    threading.Event().wait()


async def listen_async(setup: Setup) -> None:
    client: AsyncClient = await acreate_client(setup.url, setup.key)
    kept = cursor(setup, client, AsyncTableCursor)
    listener = AsyncRealtimeListener(client, cursor=kept, **options(setup))
    listener.on_change("sink", Sink(setup).take_later)
    await listener.start()
    await listener.ready()
    print("ready", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    setup = Setup(**json.loads(sys.argv[1]))
    if setup.colour == "async":
        asyncio.run(listen_async(setup))
    else:
        listen(setup)


if __name__ == "__main__":
    main()
