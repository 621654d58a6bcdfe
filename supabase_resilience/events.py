"""What happened, as frozen facts in the past tense.

Every part takes one `on_event` callable and tells it these facts after they are true and outside
its locks. They carry names, counts and durations, never row data, message bodies or keys.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

__all__ = [
    "AlertCleared",
    "AlertFired",
    "CallRefused",
    "CatchUpFailed",
    "ChangeSkipped",
    "ChangesLost",
    "CircuitClosed",
    "CircuitDisabled",
    "CircuitHalfOpened",
    "CircuitOpened",
    "CursorNotSaved",
    "DeletesHeld",
    "DuplicateSkipped",
    "Event",
    "FixingAborted",
    "GapDetected",
    "GapRecovered",
    "HandlerAbandoned",
    "HandlerBehind",
    "HandlerFailed",
    "Hook",
    "JobDeadLettered",
    "JobFailed",
    "JobPostponed",
    "JobSucceeded",
    "LeaseLost",
    "LeaseTaken",
    "ListenerLost",
    "ListenerReady",
    "ListenerRefused",
    "MigrationOutdated",
    "PassCompleted",
    "PassFailed",
    "PassPaused",
    "PassResumed",
    "PassStarted",
    "Plain",
    "QueuePaused",
    "QueueReachable",
    "QueueResumed",
    "QueueUnreachable",
    "Resync",
    "RetryScheduled",
    "RowQuarantined",
    "RunnerLeaseLost",
    "ViolationFixed",
    "facts_of",
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


Plain = str | int | float | bool | None
"""What each field of an event is: JSON has a word for it, but for floats that are not finite."""

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


# --- queues -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSucceeded(Event):
    """A handler returned after `seconds`; the job had waited `waited` seconds, retries included."""

    name: ClassVar[str] = "job.succeeded"
    queue: str
    job: str
    attempt: int
    waited: float
    seconds: float

    @property
    def severity(self) -> int:
        """The usual."""
        return logging.DEBUG


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailed(Event):
    """An attempt failed with an error of type `error`; the job runs again in `delay` seconds."""

    name: ClassVar[str] = "job.failed"
    queue: str
    job: str
    attempt: int
    error: str
    delay: float

    @property
    def severity(self) -> int:
        """One of many when a handler has a bad day; `on_error` sees each with its error."""
        return logging.DEBUG


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPostponed(Event):
    """A job was given back and no attempt spent: something that it needs is out."""

    name: ClassVar[str] = "job.postponed"
    queue: str
    job: str
    reason: str
    delay: float

    @property
    def severity(self) -> int:
        """One of many during an outage."""
        return logging.DEBUG


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDeadLettered(Event):
    """A job was given up on and is kept among the dead letters."""

    name: ClassVar[str] = "job.dead_lettered"
    queue: str
    job: str
    attempts: int
    reason: str
    error: str

    @property
    def severity(self) -> int:
        """It waits for a person."""
        return logging.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateSkipped(Event):
    """A second delivery of a job that was done here already; it was acknowledged, not run."""

    name: ClassVar[str] = "job.duplicate_skipped"
    queue: str
    job: str

    @property
    def severity(self) -> int:
        """At least once means that this happens."""
        return logging.DEBUG


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLost(Event):
    """A job's visibility timeout ran out in mid-handler, so it will be delivered again."""

    name: ClassVar[str] = "job.lease_lost"
    queue: str
    job: str

    @property
    def severity(self) -> int:
        """The handler is too slow for its queue, or Supabase cannot be reached."""
        return logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerAbandoned(Event):
    """A handler outlasted its timeout and could not be stopped; its place was given to another."""

    name: ClassVar[str] = "queue.handler_abandoned"
    queue: str
    job: str
    seconds: float

    @property
    def severity(self) -> int:
        """Its thread or task stays until it ends by itself."""
        return logging.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePaused(Event):
    """No job is started: by hand, or since an outage (`reason`) made handlers give jobs back."""

    name: ClassVar[str] = "queue.paused"
    queue: str
    reason: str

    @property
    def severity(self) -> int:
        """Work piles up meanwhile."""
        return logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueResumed(Event):
    """Jobs are started again, after `seconds`."""

    name: ClassVar[str] = "queue.resumed"
    queue: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueUnreachable(Event):
    """Reading the queue failed; it is tried again with back-off, and told once until it works."""

    name: ClassVar[str] = "queue.unreachable"
    queue: str
    reason: str
    needs_you: bool

    @property
    def severity(self) -> int:
        """What no waiting can heal (a missing queue, a bad key) is an error."""
        return logging.ERROR if self.needs_you else logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueReachable(Event):
    """Reading the queue works again, after `seconds`."""

    name: ClassVar[str] = "queue.reachable"
    queue: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationOutdated(Event):
    """The functions of `part` in the database are of an older version and are not used."""

    name: ClassVar[str] = "migration.outdated"
    part: str
    version: int
    remedy: str

    @property
    def severity(self) -> int:
        """All works, but not as well."""
        return logging.WARNING


# --- listener -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerReady(Event):
    """Changes arrive live, and what was missed before is found, `seconds` after it was not so."""

    name: ClassVar[str] = "listener.ready"
    listener: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerLost(Event):
    """The connection to Realtime is gone; it is made anew, and told once until that works."""

    name: ClassVar[str] = "listener.lost"
    listener: str
    reason: str

    @property
    def severity(self) -> int:
        """Changes are late meanwhile."""
        return logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerRefused(Event):
    """What no waiting can heal: a table, a filter, a key, a migration; `remedy` sets it right."""

    name: ClassVar[str] = "listener.refused"
    listener: str
    reason: str
    remedy: str

    @property
    def severity(self) -> int:
        """It waits for a person, and is tried again now and then."""
        return logging.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class GapDetected(Event):
    """Changes may have been missed, or were (`reason`); a catch-up follows."""

    name: ClassVar[str] = "listener.gap_detected"
    listener: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GapRecovered(Event):
    """A catch-up has found all there was to find: `changes` that were news, in `seconds`."""

    name: ClassVar[str] = "listener.gap_recovered"
    listener: str
    changes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangesLost(Event):
    """Realtime did not deliver `changes` on a healthy connection; a catch-up found them."""

    name: ClassVar[str] = "listener.changes_lost"
    listener: str
    changes: int

    @property
    def severity(self) -> int:
        """Over the plan's rate, or a database that was away: worth a look."""
        return logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class CatchUpFailed(Event):
    """A catch-up could not be completed; it is tried again, and told once until it works."""

    name: ClassVar[str] = "listener.catch_up_failed"
    listener: str
    reason: str

    @property
    def severity(self) -> int:
        """Missed changes stay missed meanwhile."""
        return logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class Resync(Event):
    """A handler's position is of no use any more (`reason`); it is told all rows that there are.

    Deletes and versions from before may be missing.
    """

    name: ClassVar[str] = "listener.resync"
    listener: str
    handler: str
    reason: str

    @property
    def severity(self) -> int:
        """What its handler keeps may hold rows that are gone."""
        return logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletesHeld(Event):
    """Of `known` rows `missing` seem gone, more than `max_delete_share`: none is told as deleted.

    A key that has lost its rights looks the same.
    """

    name: ClassVar[str] = "listener.deletes_held"
    listener: str
    handler: str
    missing: int
    known: int

    @property
    def severity(self) -> int:
        """A person has to say what is true."""
        return logging.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerFailed(Event):
    """A handler raised an error of type `error`; it is called again in `delay` seconds."""

    name: ClassVar[str] = "listener.handler_failed"
    listener: str
    handler: str
    error: str
    attempt: int
    delay: float

    @property
    def severity(self) -> int:
        """The first failure of a change is worth a line, its retries are not."""
        return logging.WARNING if self.attempt == 1 else logging.DEBUG


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeSkipped(Event):
    """A handler raised an error of type `error` for the row `key`, and goes on without it."""

    name: ClassVar[str] = "listener.change_skipped"
    listener: str
    handler: str
    key: str
    error: str

    @property
    def severity(self) -> int:
        """That handler has missed a change for good."""
        return logging.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerBehind(Event):
    """A handler's queue is full: what waits is dropped, and read again when it has caught up."""

    name: ClassVar[str] = "listener.handler_behind"
    listener: str
    handler: str

    @property
    def severity(self) -> int:
        """It is slower than the table."""
        return logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class CursorNotSaved(Event):
    """How far work on `table` has come could not be kept: a restart would repeat more."""

    name: ClassVar[str] = "cursor.not_saved"
    table: str
    reason: str

    @property
    def severity(self) -> int:
        """Nothing is lost."""
        return logging.WARNING


# --- verification -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PassStarted(Event):
    """A pass over a table has begun; one that is not `is_full` looks at what has changed."""

    name: ClassVar[str] = "verification.pass_started"
    table: str
    is_full: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCompleted(Event):
    """A pass is over: `violations` were confirmed, `fixed` of them are, `open` are left."""

    name: ClassVar[str] = "verification.pass_completed"
    table: str
    rows: int
    violations: int
    fixed: int
    open: int
    seconds: float

    @property
    def severity(self) -> int:
        """What is left waits for a person."""
        return logging.WARNING if self.open else logging.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class PassFailed(Event):
    """A pass ended before it was complete, with an error of type `reason`."""

    name: ClassVar[str] = "verification.pass_failed"
    table: str
    reason: str

    @property
    def severity(self) -> int:
        """The table is not verified."""
        return logging.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class PassPaused(Event):
    """The pass waits (`reason`): for Supabase, for its hours, for `throttle` or `resume()`."""

    name: ClassVar[str] = "verification.pass_paused"
    table: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PassResumed(Event):
    """The pass goes on after `seconds`."""

    name: ClassVar[str] = "verification.pass_resumed"
    table: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ViolationFixed(Event):
    """The row `key` broke a rule, was fixed, and was seen to be right."""

    name: ClassVar[str] = "verification.violation_fixed"
    table: str
    rule: str
    key: str

    @property
    def severity(self) -> int:
        """One of many."""
        return logging.DEBUG


@dataclass(frozen=True, slots=True, kw_only=True)
class RowQuarantined(Event):
    """The row `key` was fixed three times and is broken again: somebody undoes it."""

    name: ClassVar[str] = "verification.row_quarantined"
    table: str
    rule: str
    key: str

    @property
    def severity(self) -> int:
        """A person has to find out who."""
        return logging.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class FixingAborted(Event):
    """Nothing more is fixed in this pass (`reason`): too many rows break the rule."""

    name: ClassVar[str] = "verification.fixing_aborted"
    table: str
    rule: str
    reason: str

    @property
    def severity(self) -> int:
        """The rule is wrong, or the data is in a bad way."""
        return logging.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTaken(Event):
    """This runner verifies; others wait. `token` grows with each that takes it."""

    name: ClassVar[str] = "verification.lease_taken"
    lease: str
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerLeaseLost(Event):
    """Another runner verifies; this one begins no fix any more."""

    name: ClassVar[str] = "verification.lease_lost"
    lease: str

    @property
    def severity(self) -> int:
        """It was frozen, or could not reach Supabase."""
        return logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertFired(Event):
    """The condition of an alert has held for `seconds`."""

    name: ClassVar[str] = "alert.fired"
    alert: str
    seconds: float

    @property
    def severity(self) -> int:
        """Somebody wanted to know."""
        return logging.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertCleared(Event):
    """An alert is over; it had fired for `seconds`."""

    name: ClassVar[str] = "alert.cleared"
    alert: str
    seconds: float


# One line per refusal, retry or job would be a second outage, in the logs.
_COUNTED_ONLY = (
    CallRefused,
    RetryScheduled,
    JobSucceeded,
    JobFailed,
    JobPostponed,
    DuplicateSkipped,
    ViolationFixed,
)


def log_event(event: Event) -> None:
    """Log state changes on the logger `supabase_resilience`; the default for every `on_event`.

    The message is the event's dotted name with its fields. For loggers that write JSON the record
    has both apart, too: the attributes `event`, the name, and `resilience`, a dict of the fields.
    What happens to single calls and jobs is not logged: `get_stats()` counts it.
    """
    if isinstance(event, _COUNTED_ONLY) or not _logger.isEnabledFor(event.severity):
        return
    facts = facts_of(event)
    text = " ".join(f"{key}={_short(value)}" for key, value in facts.items())
    extra = {"event": event.name, "resilience": facts}
    _logger.log(event.severity, "%s %s", event.name, text, extra=extra)


def _short(value: Plain) -> str:
    return repr(round(value, 3) if isinstance(value, float) else value)


def facts_of(event: Event) -> dict[str, Plain]:
    """The fields of an event that are plain values.

    Anything else, in an event of somebody else's, is left out: it might hold a row.
    """
    found = ((field.name, getattr(event, field.name)) for field in fields(event))
    return {name: value for name, value in found if isinstance(value, Plain)}
