"""What happened, as frozen facts in the past tense.

Every part takes one `on_event` callable and tells it these facts after they are true and outside
its locks. They carry names, counts and durations, never row data, message bodies or keys.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

__all__ = [
    "CallRefused",
    "CircuitClosed",
    "CircuitDisabled",
    "CircuitHalfOpened",
    "CircuitOpened",
    "Event",
    "Hook",
    "RetryScheduled",
    "log_event",
]

_logger = logging.getLogger("supabase_resilience")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One fact. `name` is its dotted name in logs, `severity` a `logging` level."""

    name: ClassVar[str] = "event"

    @property
    def severity(self) -> int:
        """The `logging` level that this fact deserves."""
        return logging.INFO


Hook = Callable[[Event], None]
"""Called with each event; must be quick. What it raises is logged and changes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitOpened(Event):
    """Calls are refused from now on, for `open_for` seconds (None: until `reset()`).

    `cause` is `failure`, `throttled`, `blocked` or `forced`; `reason` says what was seen last;
    `failures` is how many were counted when it opened.
    """

    name: ClassVar[str] = "circuit.opened"
    breaker: str
    cause: str
    reason: str
    failures: int
    open_for: float | None

    @property
    def severity(self) -> int:
        """Blocked (key, billing, paused project) needs a person, so it is an error."""
        return logging.ERROR if self.cause == "blocked" else logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitHalfOpened(Event):
    """The open time is over: a probe is let through."""

    name: ClassVar[str] = "circuit.half_opened"
    breaker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitClosed(Event):
    """Calls pass again, after `seconds` during which the circuit was not closed."""

    name: ClassVar[str] = "circuit.closed"
    breaker: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitDisabled(Event):
    """Every call passes and none is judged, until `reset()`."""

    name: ClassVar[str] = "circuit.disabled"
    breaker: str

    @property
    def severity(self) -> int:
        """A switched-off protection should be seen."""
        return logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRefused(Event):
    """A call was not made because the circuit is open."""

    name: ClassVar[str] = "circuit.call_refused"
    breaker: str
    retry_after: float | None

    @property
    def severity(self) -> int:
        """One of many during an outage."""
        return logging.DEBUG


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryScheduled(Event):
    """An attempt failed and will be repeated in `delay` seconds; `attempt` is the failed one."""

    name: ClassVar[str] = "retry.scheduled"
    breaker: str
    attempt: int
    delay: float
    reason: str

    @property
    def severity(self) -> int:
        """One of many during an outage."""
        return logging.DEBUG


# One line per refusal or retry would be a second outage, in the logs.
_COUNTED_ONLY = (CallRefused, RetryScheduled)


def log_event(event: Event) -> None:
    """Log state changes on the logger `supabase_resilience`; the default for every `on_event`.

    The message is the event's dotted name with its fields, the fields are also in the record's
    `resilience` attribute. Refusals and retries are counted in `get_stats()`, not logged.
    """
    if isinstance(event, _COUNTED_ONLY) or not _logger.isEnabledFor(event.severity):
        return
    facts = {field.name: getattr(event, field.name) for field in fields(event)}
    text = " ".join(f"{key}={value!r}" for key, value in facts.items())
    _logger.log(event.severity, "%s %s", event.name, text, extra={"resilience": facts})
