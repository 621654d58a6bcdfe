"""Threads for the sync handlers of an async owner; one that hangs is left behind, not waited for.

The loop's own executor would not do: it has few threads, all of which are joined at exit.
"""

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["HandlerThreads"]

Outcome = tuple[Any, BaseException | None]
Call = tuple[Callable[[], Any], contextvars.Context, "asyncio.Future[Outcome]"]


class HandlerThreads:
    """`await run(fn, data)`: what it returned, or the error it raised."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[_Thread] = []

    async def run(self, fn: Callable[[Any], Any], data: Any) -> Outcome:
        """Call `fn(data)` on a thread, in the caller's context.

        When the caller is canceled meanwhile, the thread goes on alone and is used no more.
        """
        thread = self._idle.pop() if self._idle else _Thread(self._name)
        outcome = await thread.call(lambda: fn(data))
        self._idle.append(thread)
        return outcome

    def close(self) -> None:
        """End the threads that are idle."""
        while self._idle:
            self._idle.pop().end()


class _Thread:
    """One thread that makes one call at a time."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def call(self, fn: Callable[[], Any]) -> Outcome:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._calls.put((fn, contextvars.copy_context(), future))
        try:
            return await future
        except asyncio.CancelledError:
            self.end()
            raise

    def end(self) -> None:
        """After the call that is being made."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            fn, context, future = call
            outcome = _outcome(fn, context)
            try:
                future.get_loop().call_soon_threadsafe(_deliver, future, outcome)
            except RuntimeError:  # the loop was closed meanwhile
                return
            del call, fn, context, future, outcome


def _outcome(fn: Callable[[], Any], context: contextvars.Context) -> Outcome:
    try:
        return context.run(fn), None
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever awaits it
        return None, error


def _deliver(future: "asyncio.Future[Outcome]", outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)
