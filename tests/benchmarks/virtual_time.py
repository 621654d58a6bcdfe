"""An asyncio loop whose time passes at once: minutes of an outage are played in seconds.

Whatever waits on asyncio waits here, so supabase-py, the retries and the timeouts run as they are;
only the time between two events is skipped. One seed, one story: every run is the same.
"""

import asyncio
import gc
import random
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar
from unittest import mock

from supabase_resilience import _clock

T = TypeVar("T")


def play(story: Coroutine[Any, Any, T], *, seed: int = 1) -> T:
    """Run `story` with the package's clock on virtual time, which begins at 0."""
    random.seed(seed)
    usual = gc.get_threshold()
    gc.set_threshold(100_000, 10, 10)  # all that waits would be looked through again and again
    try:
        return _played(story)
    finally:
        gc.set_threshold(*usual)


def _played(story: Coroutine[Any, Any, T]) -> T:
    with (
        asyncio.Runner(loop_factory=VirtualTimeLoop) as runner,
        mock.patch.object(_clock, "monotonic", runner.get_loop().time),
    ):
        return runner.run(story)


def now() -> float:
    return asyncio.get_running_loop().time()


async def pause(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    timer = loop.call_later(seconds, _let_go, over)
    try:
        await over
    finally:
        timer.cancel()


async def pause_until(moment: float) -> None:
    if moment > now():
        await pause(moment - now())


def _let_go(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop that hears of nothing from outside and never waits."""

    def __init__(self) -> None:
        self._skipping = _SkippingSelector()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now


class _SkippingSelector(selectors.DefaultSelector):
    """The loop asks for events until its next timer: there are none, and that time is over."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits, and nothing will ever happen")
        self.now += max(timeout, 0.0)
        return []
