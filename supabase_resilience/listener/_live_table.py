"""LiveTable: the rows of a table in memory, kept right by a listener."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from supabase_resilience._checks import check_text
from supabase_resilience.listener._async import AsyncRealtimeListener
from supabase_resilience.listener._changes import Change, Key
from supabase_resilience.listener._sync import RealtimeListener

__all__ = ["LiveTable"]

_LOOK_AGAIN = 0.2
_REMEMBERED = 100_000


class LiveTable:
    """All rows that the listener may see, by key, as far as its recovery goes.

    ```python
    table = LiveTable(listener)
    listener.start()
    listener.ready()  # now `table.rows` is complete
    ```

    It reads the whole table first, at every start of the process. Deletes that Realtime missed are
    found with `Recovery.versioned()`, `change_log()` or `key_diff=True`; without them such rows
    stay.

    Raises `TypeError` for what is no listener, `ValueError` for one without a recovery, and
    `ListenerError` when its `name` is taken.
    """

    def __init__(
        self, listener: RealtimeListener | AsyncRealtimeListener, *, name: str = "live_table"
    ) -> None:
        if not isinstance(listener, RealtimeListener | AsyncRealtimeListener):
            raise TypeError(f"listener must be a RealtimeListener, got {listener!r}")
        check_text("name", name)
        self._listener = listener
        self._rows: dict[Key, Mapping[str, Any]] = {}
        self._versions: dict[Key, int] = {}
        self._floor = 0
        self._is_log = listener._engine.settings.is_log  # noqa: SLF001 - made for each other
        self._view = _Rows(self._rows)
        self._feeds: list[_Feed] = []
        listener._add_table(name, self._apply)  # noqa: SLF001 - they are made for each other

    def __repr__(self) -> str:
        """Show what it holds of what."""
        return f"<LiveTable of {len(self._rows)} rows, {self._listener!r}>"

    @property
    def rows(self) -> Mapping[Key, Mapping[str, Any]]:
        """Key to row: a view that changes with the table, and that can be read from any thread."""
        return self._view

    def changes(self) -> "_Feed":
        """`for change in table.changes():`, with `async for` when the listener is async.

        Each change is in `rows` already. Of a row that changes faster than it is looked at, only
        the last change is told. Ends when the listener is stopped.
        """
        feed = _Feed(self._listener, self._feeds.remove)
        self._feeds.append(feed)
        return feed

    def _apply(self, change: Change) -> None:
        if change.type == "TRUNCATE":
            self._truncate(change.version)
        elif self._is_older(change):
            return
        elif change.type in {"INSERT", "UPDATE"}:
            self._rows[change.key] = change.new
        else:
            self._rows.pop(change.key, None)
        for feed in list(self._feeds):
            feed.put(change)

    def _truncate(self, version: int | None) -> None:
        """All rows are gone but those that came later; without a version all begins anew."""
        if version is None:
            self._rows.clear()
            self._versions.clear()
            self._floor = 0
            return
        self._floor = max(self._floor, version)
        for key in [key for key in self._rows if self._versions.get(key, 0) < version]:
            del self._rows[key]

    def _is_older(self, change: Change) -> bool:
        """In a change log, what was lost is found after what came later."""
        version = change.version
        if version is None or not self._is_log:
            return False
        if version < max(self._floor, self._versions.get(change.key, version)):
            return True
        if change.key not in self._rows:
            self._versions.pop(change.key, None)  # so that the oldest come first
        self._versions[change.key] = version
        if len(self._versions) > len(self._rows) + _REMEMBERED:
            del self._versions[next(iter(self._versions))]
        return False


class _Rows(Mapping[Key, Mapping[str, Any]]):
    """Read-only, and safe to walk through while rows come and go."""

    def __init__(self, rows: dict[Key, Mapping[str, Any]]) -> None:
        self._rows = rows

    def __getitem__(self, key: Key) -> Mapping[str, Any]:
        return self._rows[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<rows: {len(self._rows)}>"


class _Feed:
    """The changes that somebody has not looked at yet, the last one of each row."""

    def __init__(
        self,
        listener: RealtimeListener | AsyncRealtimeListener,
        close: Callable[["_Feed"], None],
    ) -> None:
        self._listener = listener
        self._close = close
        self._pending: dict[Key, Change] = {}
        self._lock = threading.Condition()
        self._news = asyncio.Event()

    def put(self, change: Change) -> None:
        with self._lock:
            self._pending.pop(change.key, None)
            self._pending[change.key] = change
            self._lock.notify()
        if isinstance(self._listener, AsyncRealtimeListener):
            self._news.set()

    def __iter__(self) -> Iterator[Change]:
        if isinstance(self._listener, AsyncRealtimeListener):
            raise TypeError("the listener is async: use `async for`")
        return self._walk(self._listener)

    def __aiter__(self) -> AsyncIterator[Change]:
        if not isinstance(self._listener, AsyncRealtimeListener):
            raise TypeError("the listener is sync: use `for`")
        return self._walk_async(self._listener)

    def _walk(self, listener: RealtimeListener) -> Iterator[Change]:
        try:
            while True:
                with self._lock:
                    while not self._pending:
                        if not listener.is_active():
                            return
                        self._lock.wait(_LOOK_AGAIN)
                    change = self._pending.pop(next(iter(self._pending)))
                yield change
        finally:
            self._close(self)

    async def _walk_async(self, listener: AsyncRealtimeListener) -> AsyncIterator[Change]:
        try:
            while self._pending or listener.is_active():
                self._news.clear()
                while self._pending:
                    yield self._pending.pop(next(iter(self._pending)))
                await listener._news_or_end(self._news)  # noqa: SLF001 - made for each other
        finally:
            self._close(self)
