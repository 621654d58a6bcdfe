"""When to connect again: full jitter after failures, and never in a storm.

A server that accepts and closes at once would otherwise be met by thousands of connects, as each
of them succeeds. So what counts is how long a connection lived, not whether it was made.
"""

import random
from collections.abc import Callable

from supabase_resilience.listener._refusals import Refusal

__all__ = ["Pacing", "backoff"]

LONGEST = 5.0
_FIRST = 0.5
_YOUNG = 30.0
_RATE = (30.0, 60.0)
_REFUSED = 60.0


def backoff(failures: int, *, longest: float, first: float = _FIRST) -> float:
    """Full jitter (AWS, "Exponential Backoff and Jitter"): anything up to the doubled wait."""
    return random.uniform(0, min(longest, first * 2 ** min(failures, 30)))  # noqa: S311


class Pacing:
    """The wait before the next connect; `uniform` draws a number between two."""

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self.deaths = 0

    def after(self, refusal: Refusal, *, lived: float | None) -> float:
        """The seconds to wait; `lived` is how long the connection stood, None if it never did."""
        if lived is not None and lived >= _YOUNG:
            self.deaths = 0
        deaths, self.deaths = self.deaths, self.deaths + 1
        if refusal.kind == "rate":  # Realtime averages over 60 s
            return self._uniform(*_RATE)
        if refusal.kind == "permanent" or (refusal.kind == "token" and deaths > 1):
            return self._uniform(_REFUSED / 2, _REFUSED)
        longest = min(LONGEST, _FIRST * 2 ** min(deaths, 10))
        if lived is None:
            return self._uniform(0, longest)
        if deaths == 0:
            return self._uniform(0, _FIRST)
        # It was accepted and died young: then only a floor keeps the number of connects small.
        floor = min(LONGEST, 2.0**deaths)
        return self._uniform(0.95 * floor, floor)
