"""The average rate of something, as the real server counts it: in ticks, which it looks back on.

What happens within a tick is not limited by it, so a burst passes and is paid for afterwards.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from supabase_resilience.local.realtime._settings import Settings

_TICKS: Final = 12


class Rate:
    """Counts, and averages over the last twelve whole ticks, or those that there have been."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._window = settings.rate_window
        self._tick_began = clock()
        self._running = 0
        self._ticks: deque[int] = deque(maxlen=_TICKS)

    def add(self, count: int = 1) -> None:
        """Count it in the tick that is running."""
        self._look_at_the_clock()
        self._running += count

    def is_above(self, limit: float | None) -> bool:
        """Tell whether the average per second has passed the limit; None is no limit."""
        self._look_at_the_clock()
        if limit is None or not self._ticks:
            return False
        return sum(self._ticks) / (len(self._ticks) * self._tick) > limit

    @property
    def _tick(self) -> float:
        return self._window / _TICKS

    def _look_at_the_clock(self) -> None:
        if self._window != self._settings.rate_window:
            self._start_anew()
        whole = int((self._clock() - self._tick_began) / self._tick)
        for _ in range(min(whole, _TICKS + 1)):
            self._ticks.append(self._running)
            self._running = 0
        self._tick_began += whole * self._tick

    def _start_anew(self) -> None:
        self._window = self._settings.rate_window
        self._tick_began = self._clock()
        self._running = 0
        self._ticks.clear()
