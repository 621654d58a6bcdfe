"""AsyncRealtimeListener: the listener on the caller's own event loop."""

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

from supabase import AsyncClient

from supabase_resilience._checks import check_callable, check_number, check_text
from supabase_resilience._identity import identity_of, wrong_client
from supabase_resilience._signals import handled_signals
from supabase_resilience.events import Hook, log_event
from supabase_resilience.listener._changes import Change
from supabase_resilience.listener._engine import Engine, require_recovery
from supabase_resilience.listener._levels import Recovery
from supabase_resilience.listener._reader import LoopReader
from supabase_resilience.listener._settings import (
    EventKind,
    OnHandlerError,
    Overflow,
    Settings,
    StartFrom,
    TokenSource,
)
from supabase_resilience.listener._stats import ListenerStats
from supabase_resilience.listener._tokens import Tokens

__all__ = ["AsyncRealtimeListener"]

_BATCH = 100


class AsyncRealtimeListener:
    """The changes of one table, and those again that Realtime did not deliver.

    ```python
    listener = AsyncRealtimeListener(client, "orders", recovery=Recovery.by_column("updated_at"))
    listener.on_change("mail", send_mail)
    async with listener:
        await listener.run()
    ```

    Realtime delivers at most once: changes during a disconnect, over the plan's rate, or while the
    database is away are gone, some on a connection that looks healthy. This listener reconnects for
    ever and finds them by reading, as far as its `recovery` goes; see `Recovery` for what each
    level promises. It is at least once in every level: handlers must bear a change twice.

    - `client`: an `AsyncClient`; one made by `protect()` lends its breaker and retries to the
      reading. Its key (or the user of `as_user()`) is pinned: no sign-in on the client changes it.
    - `table`, `schema` (None: the client's), `event` (`*`, `INSERT`, `UPDATE`, `DELETE`).
    - `filter`: as Realtime wants it, `"status=eq.open,amount=gt.100"`. A row that no longer passes
      is told as `LEAVE`, by the next catch-up.
    - `id_column`: the primary key; a tuple when it has several columns.
    - `recovery`: a `Recovery`; None finds nothing again.
    - `start_from`: `"now"`, or `"beginning"`: the existing rows come first, then what changes.
    - `cursor`: a store (`FileCursor`, `TableCursor`) that keeps where each handler is, so that a
      new process resumes there.
    - `token`: who to be instead of the client's key: a JWT, or a function (sync or async) that
      returns one; it is asked again before the JWT expires.
    - `catch_up_interval`: seconds between catch-ups on a healthy connection: how long a silent
      loss can stay unnoticed. Each costs up to four requests.
    - `ping_interval`: seconds of silence after which the server has to answer within as many.
    - `buffer_size`: changes in the queue of each handler. A full one is emptied and read again when
      its handler has caught up (`overflow="recover"`), or the others wait for it (`"block"`).
    - `on_handler_error`: `"retry"` with back-off until it works (that handler waits, no other), or
      `"skip"`.

    Run one listener per fleet: Realtime counts every subscriber against the project's rate.

    Raises `ValueError` and `TypeError` for arguments that make no sense.
    """

    def __init__(
        self,
        client: AsyncClient,
        table: str,
        *,
        schema: str | None = None,
        event: EventKind = "*",
        filter: str | None = None,  # noqa: A002 - Realtime's own word
        id_column: str | Sequence[str] = "id",
        recovery: Recovery | None = None,
        start_from: StartFrom = "now",
        cursor: Any = None,
        token: TokenSource = None,
        catch_up_interval: float = 60.0,
        ping_interval: float = 10.0,
        buffer_size: int = 10_000,
        overflow: Overflow = "recover",
        on_handler_error: OnHandlerError = "retry",
        on_event: Hook = log_event,
    ) -> None:
        if not isinstance(client, AsyncClient):
            raise TypeError(wrong_client(client, AsyncClient, "RealtimeListener"))
        settings = Settings(
            table=table,
            schema=client.options.schema if schema is None else schema,
            event=event,
            filter=filter,
            id_column=id_column,
            recovery=recovery,
            start_from=start_from,
            cursor=cursor,
            token=token,
            catch_up_interval=catch_up_interval,
            ping_interval=ping_interval,
            buffer_size=buffer_size,
            overflow=overflow,
            on_handler_error=on_handler_error,
            on_event=on_event,
        )
        tokens = Tokens(token)
        identity = identity_of(client, lambda: tokens.current, unguarded="listener")
        self._engine = Engine(
            settings,
            url=str(client.realtime_url),
            apikey=client.supabase_key,
            identity=identity,
            reader=LoopReader(identity, settings.schema, table),
            tokens=tokens,
        )
        self._pid: int | None = None

    def __repr__(self) -> str:
        """Show what it follows, and how that goes."""
        return f"<AsyncRealtimeListener {self._engine.settings.name} {self._engine.state}>"

    # --- handlers ---------------------------------------------------------------------------------

    def on_change(self, name: str, handler: Callable[[Change], object | Awaitable[object]]) -> None:
        """Call `handler(change)` for each change, one after the other.

        A plain function runs on a thread of its own, an `async def` on the event loop. Each handler
        has a queue and a position of its own under its `name`: one that raises, waits or blocks a
        thread delays no other. Can be called at any time; before `start()` no change is missed.

        Raises `ListenerError` when there is a handler of that name.
        """
        check_text("name", name)
        check_callable("handler", handler)
        self._engine.add(name, handler)

    def remove_listener(self, name: str) -> bool:
        """Call this handler no more, after the change that it is handling; False if unknown."""
        return self._engine.remove(name)

    async def changes(self, name: str = "changes") -> AsyncGenerator[Change]:
        """`async for change in listener.changes():`, until the listener is stopped.

        A change counts as handled when the next one is asked for. Begins where `start_from` or the
        cursor of `name` says, and ends with the loop around it.
        """
        check_text("name", name)
        news = asyncio.Event()
        follower = self._engine.add(name, None)
        follower.on_news(news.set)
        try:
            while not self._engine.stopped.is_set():
                news.clear()
                for change in follower.next(_BATCH):
                    yield change
                    follower.done([change])
                self._engine.progressed(follower)
                if not follower.waiting:
                    await self._news_or_end(news)
        finally:
            self._engine.remove(name)

    def _add_table(self, name: str, apply: Callable[[Change], None]) -> None:
        require_recovery(self._engine)
        self._engine.add(name, None, inline=apply)

    async def _news_or_end(self, news: asyncio.Event) -> None:
        """Wait for `news`, or for the end of the listener."""
        waiting = [asyncio.ensure_future(event.wait()) for event in (news, self._engine.stopped)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to connect, and return at once: an outage is waited out in the background."""
        self._pid = os.getpid()
        self._engine.start()

    async def ready(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Return when changes arrive live and those of before are caught up.

        Raises `ListenerError` for what a person has to set right (an unknown table, a bad filter, a
        missing migration), and `TimeoutError` after `timeout` seconds.
        """
        async with asyncio.timeout(timeout):
            await self._engine.ready()

    async def stop(self, timeout: float = 10.0) -> bool:  # noqa: ASYNC109
        """End after the changes that are being handled, and keep the cursor.

        False if a handler outlasted `timeout` seconds: an async one is canceled, the thread of
        another goes on alone. What was not handled is told again after the next start.
        """
        check_number("timeout", timeout, at_least=0)
        return await self._engine.stop(timeout)

    def request_stop(self) -> None:
        """Make `run()` stop; can be called in a handler or a signal handler."""
        self._engine.stopped.set()

    async def run(self, shutdown_timeout: float = 10.0) -> None:
        """Listen until SIGTERM, SIGINT or `request_stop()`, then `stop()` within the timeout.

        Signals are handled only in the main thread. Raises a KeyboardInterrupt or SystemExit of a
        handler.
        """
        check_number("shutdown_timeout", shutdown_timeout, at_least=0)
        loop = asyncio.get_running_loop()

        def stop_soon() -> None:
            loop.call_soon_threadsafe(self.request_stop)

        with handled_signals(stop_soon):
            await self.start()
            try:
                await self._engine.ended()
            finally:
                await self.stop(shutdown_timeout)

    def is_active(self) -> bool:
        """Whether it was started and not stopped, in this process."""
        return self._pid == os.getpid() and self._engine.state != "stopped"

    def get_stats(self) -> ListenerStats:
        """A snapshot, from memory."""
        return self._engine.stats()

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        await self.stop()
