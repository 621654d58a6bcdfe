"""The listeners of a run: of both colours and all levels, each with what it makes of changes."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from supabase import acreate_client, create_client

from supabase_resilience import CircuitBreaker, protect
from supabase_resilience.events import Event
from supabase_resilience.listener import (
    AsyncRealtimeListener,
    Change,
    ListenerStats,
    LiveTable,
    RealtimeListener,
    Recovery,
)
from supabase_resilience.local import LocalSupabase

OVERLAP = 20.0  # above the longest transaction, and what may have waited for it
FILTER = "n=gt.500"


class Loop:
    """An event loop on a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def stand_still(self, seconds: float) -> None:
        self.loop.call_soon_threadsafe(threading.Event().wait, seconds)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Tokens:
    """A token source whose tokens can be made to expire before it has others."""

    def __init__(self, local: LocalSupabase) -> None:
        self._local = local
        self._only: str | None = None

    def __call__(self) -> str:
        return self._only or self._local.jwt(role="service_role", expires_in=60.0)

    def run_short(self, seconds: float) -> None:
        self._only = self._local.jwt(role="service_role", expires_in=seconds)

    def recover(self) -> None:
        self._only = None


class Copy:
    """A handler that keeps its own copy of the rows, and counts what nobody should be told."""

    def __init__(self) -> None:
        self.rows: dict[Any, Mapping[str, Any]] = {}
        self.told: Counter[tuple[Any, int]] = Counter()
        self.out_of_order = 0
        self._last: dict[Any, int] = {}

    def __call__(self, change: Change) -> None:
        if change.version is not None:
            self.told[change.key, change.version] += 1
            self.out_of_order += change.version < self._last.get(change.key, 0)
            self._last[change.key] = change.version
        if change.type in {"INSERT", "UPDATE"}:
            self.rows[change.key] = change.new
        else:
            self.rows.pop(change.key, None)

    async def later(self, change: Change) -> None:
        self(change)

    @property
    def twice(self) -> int:
        return sum(self.told.values()) - len(self.told)


class Entries:
    """A handler that notes the entries of the log: their numbers, with the key it was told.

    An entry that gives a row another key is told twice: as a delete, and under the new one.
    """

    def __init__(self) -> None:
        self.told: Counter[tuple[int | None, Any]] = Counter()
        self.rows: dict[Any, Mapping[str, Any]] = {}

    async def __call__(self, change: Change) -> None:
        self.told[change.version, change.key] += 1
        self.rows[change.key] = change.new


@dataclass(frozen=True, kw_only=True)
class View:
    """What somebody holds of a table, to be compared with those of its rows that `passes` lets."""

    name: str
    table: str
    rows: Mapping[Any, Mapping[str, Any]]
    passes: Callable[[Mapping[str, Any]], bool] = lambda _: True


class Crowd:
    """All listeners, started; `views` are what they hold."""

    def __init__(self, local: LocalSupabase, *, catch_up_interval: float) -> None:
        self.loop = Loop()
        self.tokens = Tokens(local)
        self.events: Counter[str] = Counter()
        self.entries = Entries()
        self.copies = {"async": Copy(), "sync": Copy()}
        self._local = local
        self._options: dict[str, Any] = {
            "catch_up_interval": catch_up_interval,
            "ping_interval": 1.0,
            "on_event": self._note,
        }
        self._sync = self._make_sync()
        self._async = self.loop.run(self._make_async())
        self.views = self._make_views()

    def _note(self, event: Event) -> None:
        self.events[type(event).__name__] += 1

    def _make_sync(self) -> dict[str, RealtimeListener]:
        client = create_client(self._local.url, self._local.secret_key)
        breaker = CircuitBreaker(reset_timeout=1.0, on_event=lambda _: None)
        protected = protect(client, breaker=breaker)
        by_column = Recovery.by_column("updated_at", overlap=OVERLAP, key_diff=True)
        versioned = Recovery.versioned()
        made = {
            "by_column": RealtimeListener(client, "items", recovery=by_column, **self._options),
            "versioned, sync": RealtimeListener(
                protected, "items", recovery=versioned, start_from="beginning", **self._options
            ),
        }
        made["versioned, sync"].on_change("copy", self.copies["sync"])
        return made

    async def _make_async(self) -> dict[str, AsyncRealtimeListener]:
        client = await acreate_client(self._local.url, self._local.secret_key)
        versioned, log = Recovery.versioned(), Recovery.change_log()
        made = {
            "versioned, async": AsyncRealtimeListener(
                client,
                "items",
                recovery=versioned,
                start_from="beginning",
                token=self.tokens,
                **self._options,
            ),
            "filtered": AsyncRealtimeListener(
                client, "items", recovery=versioned, filter=FILTER, **self._options
            ),
            "change_log": AsyncRealtimeListener(client, "logged", recovery=log, **self._options),
        }
        made["versioned, async"].on_change("copy", self.copies["async"].later)
        made["change_log"].on_change("entries", self.entries)
        return made

    def _make_views(self) -> list[View]:
        def of(name: str, table: str = "items", **more: Any) -> View:
            rows = LiveTable((self._sync | self._async)[name]).rows
            return View(name=f"{name}: LiveTable", table=table, rows=rows, **more)

        return [
            of("versioned, async"),
            of("versioned, sync"),
            *(
                View(name=f"versioned, {colour}: handler", table="items", rows=copy.rows)
                for colour, copy in self.copies.items()
            ),
            of("filtered", passes=lambda row: bool(row["n"] > 500)),
            of("by_column"),
            of("change_log", "logged"),
        ]

    # --- life ---

    def start(self) -> None:
        self.loop.run(self._start_async())
        for listener in self._sync.values():
            listener.start()
            listener.ready(60)

    async def _start_async(self) -> None:
        for listener in self._async.values():
            await listener.start()
        for listener in self._async.values():
            await listener.ready(60)

    def stop(self) -> None:
        for listener in self._sync.values():
            listener.stop()
        self.loop.run(self._stop_async())
        self.loop.close()

    async def _stop_async(self) -> None:
        for listener in self._async.values():
            await listener.stop()

    def stats(self) -> dict[str, ListenerStats]:
        return {name: each.get_stats() for name, each in (self._sync | self._async).items()}

    def know(self, key: int) -> bool:
        """Whether everybody was told of this row."""
        return all(key in view.rows for view in self.views) and key in self.entries.rows
