"""When failures are enough: in a row, or as a share of the calls in a window.

A rule here is a few frozen numbers, so one object serves many breakers; the window that a breaker
keeps for it is made by `FailureRate.start()`. Windows keep running totals: O(1) per call.
"""

import itertools
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from supabase_resilience._checks import (
    check_count,
    check_number,
    check_optional,
    check_seconds,
)

__all__ = ["FailureRate", "Window"]

_BUCKETS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRate:
    """Open when at least `threshold` of the calls in the window failed.

    - `threshold`: the share, above 0 and up to 1.
    - `window`: seconds that a call counts; it moves in tenths. `calls`: look at the last so many
      calls instead, however long ago they were.
    - `minimum_calls`: with fewer calls in the window nothing opens; at most `calls`.
    - `slow_after`: a call that took more than so many seconds counts as a failure (None: never).
      Generators are never slow: how long they take is up to their reader.

    Raises `ValueError` or `TypeError`, naming the argument, for one that makes no sense.
    """

    threshold: float = 0.5
    window: float = 30.0
    minimum_calls: int = 20
    slow_after: float | None = None
    calls: int | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        check_number("threshold", self.threshold, at_least=0.0)
        if not 0.0 < self.threshold <= 1.0:
            raise ValueError(f"threshold must be above 0 and at most 1, got {self.threshold!r}")
        check_seconds("window", self.window)
        check_count("minimum_calls", self.minimum_calls)
        check_optional(check_seconds, "slow_after", self.slow_after)
        if self.calls is not None:
            check_count("calls", self.calls, at_least=self.minimum_calls)

    def start(self, now: float) -> "Window":
        """An empty window for one breaker."""
        return _TimeWindow(self, now) if self.calls is None else _CallWindow(self, self.calls)

    def is_reached(self, failures: int, successes: int) -> bool:
        """Whether so many of each are enough to open."""
        calls = failures + successes
        # Divided, not multiplied: 55 of 100 is 0.55, but 0.55 * 100 is more than 55.
        return calls >= self.minimum_calls and failures / calls >= self.threshold


class Window(Protocol):
    """The calls that count now. All but `add_success_unlocked()` want external locking."""

    def count_failures(self, now: float) -> int:
        """How many failures count now."""
        ...

    def add_success_unlocked(self, now: float) -> bool:
        """Count a success without the lock, or answer False when that takes it."""
        ...

    def add_success(self, now: float) -> None:
        """Count a success."""
        ...

    def add_failure(self, now: float) -> bool:
        """Count a failure; whether the threshold is reached."""
        ...

    def clear(self, now: float) -> None:
        """Forget everything."""
        ...


class _TimeWindow:
    """Ten buckets of a tenth of the window each, and the totals of all but the current one."""

    def __init__(self, rule: FailureRate, now: float) -> None:
        self._rule = rule
        self._width = rule.window / _BUCKETS
        self.clear(now)

    def clear(self, now: float) -> None:
        self._full: deque[tuple[float, int, int]] = deque()  # (ends at, failures, successes)
        self._failures_before = self._successes_before = 0
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._ends_at = now + self._width
        self._failures = 0
        # Counted without the lock: one `next()` is one step. A success that meets the turn of a
        # bucket may be missed; a share is no worse for that.
        self._successes = itertools.count()

    def count_failures(self, now: float) -> int:
        self._turn(now)
        return self._failures_before + self._failures

    def add_success_unlocked(self, now: float) -> bool:
        if now >= self._ends_at:
            return False
        next(self._successes)
        return True

    def add_success(self, now: float) -> None:
        self._turn(now)
        next(self._successes)

    def add_failure(self, now: float) -> bool:
        self._turn(now)
        self._failures += 1
        return self._rule.is_reached(
            self._failures_before + self._failures, self._successes_before + self._peek()
        )

    def _peek(self) -> int:
        """How many successes the current bucket has; a counter can only be read by counting."""
        value = next(self._successes)
        self._successes = itertools.count(value)
        return value

    def _turn(self, now: float) -> None:
        """Close the current bucket when it is over, and drop those that no longer count."""
        if now >= self._ends_at:
            failures, successes = self._failures, next(self._successes)
            self._full.append((self._ends_at, failures, successes))
            self._failures_before += failures
            self._successes_before += successes
            self._begin(now)
        while self._full and self._full[0][0] <= now - self._rule.window + self._width:
            _, failures, successes = self._full.popleft()
            self._failures_before -= failures
            self._successes_before -= successes


class _CallWindow:
    """The outcomes of the last calls, as a ring, and how many of them failed."""

    def __init__(self, rule: FailureRate, calls: int) -> None:
        self._rule = rule
        self._failed: deque[bool] = deque(maxlen=calls)
        self._failures = 0

    def clear(self, now: float) -> None:  # noqa: ARG002 - the clock is the other window's
        self._failed.clear()
        self._failures = 0

    def count_failures(self, now: float) -> int:  # noqa: ARG002
        return self._failures

    def add_success_unlocked(self, now: float) -> bool:  # noqa: ARG002
        return False

    def add_success(self, now: float) -> None:  # noqa: ARG002
        self._add(failed=False)

    def add_failure(self, now: float) -> bool:  # noqa: ARG002
        self._add(failed=True)
        return self._rule.is_reached(self._failures, len(self._failed) - self._failures)

    def _add(self, *, failed: bool) -> None:
        if len(self._failed) == self._failed.maxlen:
            self._failures -= self._failed[0]
        self._failed.append(failed)
        self._failures += failed
