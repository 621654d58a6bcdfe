"""EventLog: what happened lately, and what fails how often for which reason.

Single failures are told as debug events, of which a bad day has thousands: they are counted by
part and reason instead of being kept one by one.
"""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass

from supabase_resilience import _clock
from supabase_resilience._checks import check_count
from supabase_resilience.events import Event, Plain, RetryScheduled, facts_of

__all__ = ["EventLog", "Failure", "LoggedEvent"]

_SUBJECTS = ("breaker", "queue", "listener", "table", "lease", "alert")
_KINDS_OF_FAILURES = 100


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event and when it was told (`at`, a Unix time); `facts` are its fields."""

    at: float
    name: str
    severity: int
    facts: Mapping[str, Plain]


@dataclass(frozen=True, slots=True)
class Failure:
    """How often (`count`) a part failed in one way for one reason, and when last (a Unix time)."""

    name: str
    part: str
    why: str
    count: int
    last: float


class EventLog:
    """A hook that remembers the last `size` events and counts failures by part and reason.

    `on_event=Hooks(log_event, log)` for each part, then `status_app(app, events=log)`. Events below
    `level`, a `logging` level, are not remembered; failures are counted whatever their level. It is
    kept in memory and is of this process only; safe to use from any thread.

    Raises `ValueError` or `TypeError` for a `size` or `level` that makes no sense.
    """

    def __init__(self, size: int = 200, *, level: int = logging.INFO) -> None:
        check_count("size", size)
        check_count("level", level, at_least=0)
        self._level = level
        self._lock = threading.Lock()
        # Guarded by _lock.
        self._events: deque[LoggedEvent] = deque(maxlen=size)
        self._failures: OrderedDict[tuple[str, str, str], Failure] = OrderedDict()

    def __call__(self, event: Event) -> None:
        """Remember one event."""
        now, why = _clock.wall(), _why(event)
        if why is None and event.severity < self._level:
            return
        facts = facts_of(event)
        with self._lock:
            if event.severity >= self._level:
                self._events.append(LoggedEvent(now, event.name, event.severity, facts))
            if why is not None:
                self._count(event.name, _subject(facts), why, now)

    def _count(self, name: str, part: str, why: str, now: float) -> None:
        key = (name, part, why)
        before = self._failures.pop(key, None)
        self._failures[key] = Failure(
            name, part, why, 1 if before is None else before.count + 1, now
        )
        if len(self._failures) > _KINDS_OF_FAILURES:
            self._failures.popitem(last=False)

    def events(self) -> list[LoggedEvent]:
        """What is remembered, newest first."""
        with self._lock:
            return list(reversed(self._events))

    def failures(self) -> list[Failure]:
        """What has failed, the latest first; of a hundred ways to fail the oldest are forgotten."""
        with self._lock:
            return list(reversed(self._failures.values()))


def _why(event: Event) -> str | None:
    """The reason of a failure; None for an event that is none."""
    if isinstance(event, RetryScheduled):
        return event.reason
    error: str | None = getattr(event, "error", None)
    return error


def _subject(facts: Mapping[str, Plain]) -> str:
    return next((str(facts[each]) for each in _SUBJECTS if each in facts), "")
