"""Calls a handler with one change after the other, and with the same one again while it fails."""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Literal

from supabase_resilience._checks import is_async
from supabase_resilience._handler_threads import HandlerThreads
from supabase_resilience._telling import HANDLER, Attributes, spanned
from supabase_resilience.events import ChangeSkipped, Event, HandlerFailed
from supabase_resilience.listener._changes import Change
from supabase_resilience.listener._follower import Follower
from supabase_resilience.listener._pacing import backoff
from supabase_resilience.listener._settings import Settings
from supabase_resilience.listener._stats import Counts

__all__ = ["Runner", "handler_at_work"]

Handler = Callable[[Change], Any]
_BATCH = 100
_ACK_EVERY = 0.01
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 30.0
_at_work: ContextVar["asyncio.Task[Any] | None"] = ContextVar("at_work", default=None)


class Runner:
    """The task of one handler. `progressed` is called when others may have waited for room."""

    def __init__(
        self,
        follower: Follower,
        handler: Handler,
        settings: Settings,
        counts: Counts,
        *,
        way: Literal["task", "thread"] | None = None,
        tell: Callable[[Event], None],
        progressed: Callable[[], None],
    ) -> None:
        self.follower = follower
        self.handler = spanned(settings.on_event, HANDLER, self._facts, handler)
        self._settings = settings
        self._counts = counts
        self._tell = tell
        self._progressed = progressed
        self.way: Literal["task", "thread"] = way or ("task" if is_async(handler) else "thread")
        self._threads = HandlerThreads(f"listener {settings.name} {follower.name}")
        self._woken = asyncio.Event()
        self._is_stopping = False

    def _facts(self, change: Change) -> Attributes:
        return {
            "listener": self._settings.name,
            "handler": self.follower.name,
            "type": change.type,
            "source": change.source,
        }

    def wake(self) -> None:
        """There is something in the queue, or an end."""
        self._woken.set()

    def stop(self) -> None:
        """End after the change that is being handled."""
        self._is_stopping = True
        self.wake()

    async def run(self) -> None:
        """Handle changes until `stop()`; only what is no `Exception` of a handler gets out."""
        _at_work.set(asyncio.current_task())
        try:
            while not self._is_stopping:
                if batch := self.follower.next(_BATCH):
                    await self._handle(batch)
                    self._progressed()
                    await asyncio.sleep(0)  # a handler that never waits must not starve the socket
                else:
                    self._woken.clear()
                    await self._woken.wait()
        finally:
            self._threads.close()

    async def _handle(self, batch: Sequence[Change]) -> None:
        if self.way == "thread":
            await self._on_thread(batch)
            return
        clock = asyncio.get_running_loop().time
        acked, through, since = 0, 0, clock()
        try:
            for change in batch:
                error = await self._call(change)
                if error is not None:
                    await self._retry(change, error)
                    if self._is_stopping:
                        return
                through += 1
                if self._is_stopping:
                    return
                if clock() - since > _ACK_EVERY:  # a slow handler makes room one by one
                    self.follower.done(batch[acked:through])
                    self._progressed()
                    acked, since = through, clock()
        finally:
            self.follower.done(batch[acked:through])

    async def _call(self, change: Change) -> Exception | None:
        try:
            result = self.handler(change)
            if inspect.isawaitable(result):
                await result
        except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this handler alone
            return error
        return None

    async def _on_thread(self, batch: Sequence[Change]) -> None:
        outcome, fatal = await self._threads.run(self._work, batch)
        if fatal is not None:
            raise fatal
        done, error = outcome
        self.follower.done(batch[:done])
        if error is not None:
            await self._retry(batch[done], error)
            if not self._is_stopping:
                self.follower.done([batch[done]])

    def _work(self, batch: Sequence[Change]) -> tuple[int, Exception | None]:
        """Runs on the thread: handle changes until one fails; how many did not."""
        for done, change in enumerate(batch):
            if self._is_stopping:
                return done, None
            try:
                _check_done(self.handler(change))
            except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this handler
                return done, error
        return len(batch), None

    async def _retry(self, change: Change, error: Exception) -> None:
        """Until it works, the listener stops, or the change is skipped."""
        attempt, name = 1, self.follower.name
        self._count(self._counts.failed)
        if self._settings.on_handler_error == "skip":
            self._skip(change, error)
            return
        failure: Exception | None = error
        while failure is not None and not self._is_stopping:
            delay = backoff(attempt, longest=_LONGEST_DELAY, first=_FIRST_DELAY)
            self._tell(
                HandlerFailed(
                    listener=self._settings.name,
                    handler=name,
                    error=type(failure).__name__,
                    attempt=attempt,
                    delay=delay,
                )
            )
            await self._pause(delay)
            if self._is_stopping:
                return
            attempt += 1
            failure = await self._again(change)
            if failure is not None:
                self._count(self._counts.failed)

    async def _again(self, change: Change) -> Exception | None:
        if self.way != "thread":
            return await self._call(change)
        outcome, fatal = await self._threads.run(self._work, [change])
        if fatal is not None:
            raise fatal
        error: Exception | None = outcome[1]
        return error

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not self._is_stopping:
                    self._woken.clear()
                    await self._woken.wait()
        except TimeoutError:
            pass

    def _skip(self, change: Change, error: Exception) -> None:
        self._count(self._counts.skipped)
        self._tell(
            ChangeSkipped(
                listener=self._settings.name,
                handler=self.follower.name,
                key=str(change.key),
                error=type(error).__name__,
            )
        )

    def _count(self, numbers: dict[str, int]) -> None:
        numbers[self.follower.name] = numbers.get(self.follower.name, 0) + 1


def handler_at_work() -> "asyncio.Task[Any] | None":
    """The task whose handler calls this, be it on a thread; None for anybody else."""
    return _at_work.get()


def _check_done(result: Any) -> None:
    """On a thread nobody could await it."""
    if inspect.isawaitable(result):
        raise TypeError("a handler that returns an awaitable must be `async def`")
