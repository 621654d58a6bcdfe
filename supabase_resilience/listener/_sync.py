"""RealtimeListener: the same for sync apps, on an event loop in a thread of its own.

supabase-py has no sync Realtime at all. Handlers run on threads, each on its own.
"""

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Coroutine, Generator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from supabase import Client

from supabase_resilience._checks import (
    check_callable,
    check_number,
    check_optional,
    check_text,
    is_async,
)
from supabase_resilience._identity import identity_of, wrong_client
from supabase_resilience._signals import handled_signals
from supabase_resilience.errors import ListenerError
from supabase_resilience.events import Hook, log_event
from supabase_resilience.listener._changes import Change
from supabase_resilience.listener._engine import Engine, require_recovery
from supabase_resilience.listener._levels import Recovery
from supabase_resilience.listener._own_loop import OwnLoop
from supabase_resilience.listener._reader import ThreadReader
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

__all__ = ["RealtimeListener"]

T = TypeVar("T")
_LOOK_AGAIN = 0.2


class RealtimeListener:
    """The changes of one table, and those again that Realtime did not deliver, for a sync app.

    ```python
    listener = RealtimeListener(client, "orders", recovery=Recovery.by_column("updated_at"))
    listener.on_change("mail", send_mail)
    listener.run()
    ```

    The same as `AsyncRealtimeListener`, which says what the options mean and what is promised, on
    an event loop in a background thread. Handlers are plain functions, each called on a thread of
    its own; `token` may be a plain function, too.

    Raises `ValueError` and `TypeError` for arguments that make no sense.
    """

    def __init__(
        self,
        client: Client,
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
        if not isinstance(client, Client):
            raise TypeError(wrong_client(client, Client, "AsyncRealtimeListener"))
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
            reader=ThreadReader(identity, settings.schema, table),
            tokens=tokens,
        )
        self._loop: OwnLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid: int | None = None
        self._asked_to_stop = threading.Event()

    def __repr__(self) -> str:
        """Show what it follows, and how that goes."""
        return f"<RealtimeListener {self._engine.settings.name} {self._engine.state}>"

    # --- handlers ---------------------------------------------------------------------------------

    def on_change(self, name: str, handler: Callable[[Change], object]) -> None:
        """Call `handler(change)` for each change, one after the other, on a thread of its own.

        Each handler has a queue and a position of its own under its `name`: one that raises or
        blocks delays no other. Can be called at any time; before `start()` no change is missed.

        Raises `ListenerError` when there is a handler of that name, `TypeError` for an async one.
        """
        check_text("name", name)
        check_callable("handler", handler)
        if is_async(handler):
            raise TypeError(f"handler is async: {handler!r}; use AsyncRealtimeListener for it")
        self._on_loop(lambda: self._engine.add(name, handler, way="thread"))

    def remove_listener(self, name: str) -> bool:
        """Call this handler no more, after the change that it is handling; False if unknown."""
        return self._on_loop(lambda: self._engine.remove(name))

    def changes(self, name: str = "changes") -> Generator[Change]:
        """`for change in listener.changes():`, until the listener is stopped.

        A change counts as handled when the next one is asked for. Begins where `start_from` or the
        cursor of `name` says, and ends with the loop around it.
        """
        check_text("name", name)
        handed: queue.SimpleQueue[Change] = queue.SimpleQueue()
        taken, closed = threading.Semaphore(0), threading.Event()

        def hand_over(change: Change) -> None:
            handed.put(change)
            while not taken.acquire(timeout=_LOOK_AGAIN):
                if self._asked_to_stop.is_set() or closed.is_set():
                    raise ListenerError("ended before the change was handled")

        self._on_loop(lambda: self._engine.add(name, hand_over, way="thread"))
        try:
            while not self._asked_to_stop.is_set():
                try:
                    change = handed.get(timeout=_LOOK_AGAIN)
                except queue.Empty:
                    continue
                yield change
                taken.release()
        finally:
            closed.set()
            self._on_loop(lambda: self._engine.remove(name))

    def _add_table(self, name: str, apply: Callable[[Change], None]) -> None:
        require_recovery(self._engine)
        self._on_loop(lambda: self._engine.add(name, None, inline=apply))

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect, and return at once: an outage is waited out in the background."""
        if self.is_active():
            return
        started = threading.Event()
        self._pid = os.getpid()
        self._asked_to_stop.clear()
        self._loop = OwnLoop()
        self._thread = threading.Thread(
            target=self._live,
            args=(self._loop, started),
            name=f"listener {self._engine.settings.name}",
            daemon=True,
        )
        self._thread.start()
        started.wait()

    def ready(self, timeout: float | None = None) -> None:
        """Return when changes arrive live and those of before are caught up.

        Raises `ListenerError` for what a person has to set right (an unknown table, a bad filter, a
        missing migration), and `TimeoutError` after `timeout` seconds.
        """
        check_optional(_check_timeout, "timeout", timeout)
        self._await(self._engine.ready, timeout)

    def stop(self, timeout: float = 10.0) -> bool:
        """End after the changes that are being handled, and keep the cursor.

        False if a handler outlasted `timeout` seconds: its thread goes on alone. What was not
        handled is told again after the next start.
        """
        check_number("timeout", timeout, at_least=0)
        self._asked_to_stop.set()
        if not self.is_active() or self._loop is None or self._thread is None:
            return True
        loop = self._loop
        ended = asyncio.run_coroutine_threadsafe(self._engine.stop(timeout), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        self._loop = self._thread = None
        return ended

    def request_stop(self) -> None:
        """Make `run()` stop; can be called in a handler or a signal handler."""
        self._asked_to_stop.set()

    def run(self, shutdown_timeout: float = 10.0) -> None:
        """Listen until SIGTERM, SIGINT or `request_stop()`, then `stop()` within the timeout.

        Signals are handled only in the main thread. Raises a KeyboardInterrupt or SystemExit of a
        handler.
        """
        check_number("shutdown_timeout", shutdown_timeout, at_least=0)
        with handled_signals(self.request_stop):
            self.start()
            try:
                while not self._asked_to_stop.wait(_LOOK_AGAIN):
                    self._engine.raise_fatal()
            finally:
                self.stop(shutdown_timeout)

    def is_active(self) -> bool:
        """Whether it was started and not stopped, in this process."""
        return (
            self._pid == os.getpid()
            and self._thread is not None
            and self._engine.state != "stopped"
        )

    def get_stats(self) -> ListenerStats:
        """A snapshot, from memory."""
        return self._engine.stats()

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    # --- between the threads ----------------------------------------------------------------------

    def _live(self, loop: OwnLoop, started: threading.Event) -> None:
        asyncio.set_event_loop(loop)
        loop.call_soon(self._engine.start)
        loop.call_soon(started.set)
        try:
            loop.run_forever()
        finally:
            loop.end()

    def _on_loop(self, work: Callable[[], T]) -> T:
        """Do it where the engine lives: on its loop while that runs."""
        if self._loop is None or self._pid != os.getpid():
            return work()

        async def there() -> T:
            return work()

        return self._await(there, None)

    def _await(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float | None) -> T:
        if not self.is_active() or self._loop is None:
            name = self._engine.settings.name
            raise ListenerError(f"the listener of {name} is not started; call start()")
        if threading.current_thread() is self._thread:
            raise ListenerError("this cannot be called on the listener's own thread")
        future = asyncio.run_coroutine_threadsafe(work(), self._loop)
        try:
            return future.result(timeout)
        finally:
            future.cancel()


def _check_timeout(name: str, value: Any) -> None:
    check_number(name, value, at_least=0)
