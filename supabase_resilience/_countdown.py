"""How long one call and its attempt under way may still take, as the transport sees it.

httpx bounds each phase of a request (connecting, sending, each read) by itself: four phases of ten
seconds make an attempt of forty, and an answer that arrives drop by drop never ends. A countdown
takes the place of those numbers in httpx's request extension `timeout`: the transport asks for one
as its phase begins, and gets no more than what is left of the attempt.
"""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from supabase_resilience import _clock
from supabase_resilience.deadline import deadline_at
from supabase_resilience.retry import RetryConfig

__all__ = ["Countdown", "StrictCountdown"]

# Never 0: to a socket that would mean "do not wait", which is another error.
_SHORTEST = 0.001


class Countdown(Mapping[str, float | None]):
    """The time of one call, in all (`ends_at`, monotonic) and for its attempt under way.

    `was_asked` says that a transport has begun to wait; one that works in memory never does, and
    so is not charged for guards against a slow network.
    """

    __slots__ = ("_attempt_ends_at", "_attempt_timeout", "_usual", "ends_at", "was_asked")

    def __init__(
        self, usual: httpx.Timeout | httpx.Client | httpx.AsyncClient, config: RetryConfig
    ) -> None:
        now = _clock.monotonic()
        limit = deadline_at()
        self.ends_at: float = now + config.total_timeout
        self.was_asked: bool = False
        self._usual = usual
        self._attempt_timeout = config.attempt_timeout
        self._attempt_ends_at = now + config.attempt_timeout
        if limit is not None or config.attempt_timeout > config.total_timeout:
            self.ends_at = min(self.ends_at, now + config.total_timeout if limit is None else limit)
            self.start_attempt(now)

    def start_attempt(self, now: float) -> None:
        """Begin an attempt now, or refuse to when nothing is left."""
        if now >= self.ends_at:
            # Nothing was sent: not the service's fault, and any write may be repeated.
            raise httpx.PoolTimeout("the deadline passed before the request was sent")
        self._attempt_ends_at = min(now + self._attempt_timeout, self.ends_at)

    def left(self) -> float:
        """Seconds until the attempt has to be over; negative when it should have been."""
        return self._attempt_ends_at - _clock.monotonic()

    def __getitem__(self, phase: str) -> float | None:
        """The seconds that `phase` may take from now on."""
        self.was_asked = True
        usual = self._phases()[phase]
        left = max(self.left(), _SHORTEST)
        return left if usual is None else min(left, usual)

    def _phases(self) -> dict[str, float | None]:
        usual = self._usual
        return (usual if isinstance(usual, httpx.Timeout) else usual.timeout).as_dict()

    def __iter__(self) -> Iterator[str]:
        return iter(self._phases())

    def __len__(self) -> int:
        return len(self._phases())


class StrictCountdown(Countdown):
    """A countdown that also interrupts the attempt at its end, whatever it is waiting for.

    The task is canceled and the cancellation turned into a timeout, as `asyncio.timeout()` does.
    That one would cost 2 % of a query; here the timer starts when the transport begins to wait.
    """

    _timer: asyncio.TimerHandle | None = None
    _task: "asyncio.Task[Any] | None" = None
    _cancelling = 0
    _has_struck = False

    def __getitem__(self, phase: str) -> float | None:
        """The seconds that `phase` may take; the first question of an attempt starts the timer."""
        if self._timer is None:
            self._start_timer()
        return super().__getitem__(phase)

    def _start_timer(self) -> None:
        try:
            task = asyncio.current_task()
        except RuntimeError:  # somebody looks at a request outside of any loop
            task = None
        if task is not None:
            self._task = task
            self._cancelling = task.cancelling()
            left = max(self.left(), _SHORTEST)
            self._timer = task.get_loop().call_later(left, self._strike, task)

    def _strike(self, task: "asyncio.Task[Any]") -> None:
        self._has_struck = True
        task.cancel()

    def has_struck(self) -> bool:
        """Whether the cancellation that has just arrived is this countdown's, and nobody else's."""
        return (
            self._has_struck
            and self._task is not None
            and self._task.uncancel() <= self._cancelling
        )

    def stop(self) -> None:
        """The attempt is over; whoever keeps the response must not keep its task."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._task = None
            self._has_struck = False
