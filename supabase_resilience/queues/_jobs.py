"""The words of a queue: a job, what becomes of it, and how it is written down as a message.

A message in Supabase Queues is any JSON. Ours is an envelope, `{"data": …, "supabase_resilience":
{…}}`: the payload, and beside it what has to survive a re-send. Any other message is a job, too:
all of it is the payload.
"""

import os
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Self

from supabase_resilience import _clock
from supabase_resilience._checks import check_number
from supabase_resilience.errors import QueueError

__all__ = [
    "DeadLetter",
    "Job",
    "Postpone",
    "QueueMetrics",
    "Settlement",
    "current_job",
    "new_id",
    "new_origin",
]

ENVELOPE = "supabase_resilience"


class Postpone(Exception):  # noqa: N818 - an instruction to the queue rather than an error
    """Raise it in a handler: not now, in `seconds`; it spends no retry.

    The whole queue takes a break, too, as after any outage, since what this job waits for is
    likely missing for the next one; `pause=False` postpones this job alone, for 0.1 s at least.
    """

    __module__ = "supabase_resilience"

    def __init__(self, seconds: float = 0.0, *, pause: bool = True) -> None:
        check_number("seconds", seconds, at_least=0.0)
        super().__init__(seconds)
        self.seconds = seconds
        self.pause = pause


class Job:
    """One job as a handler and `on_error` see it.

    `id` was made at enqueue and stays the same through retries, re-sends and replays: store it with
    the effect, in one transaction, to have the effect once. `attempt` counts from 1; an outage
    spends none. `deliveries` is how often the message was read (pgmq's `read_ct`; 1 in memory).
    `enqueued_at` is in seconds since the epoch.
    """

    # What most jobs leave as it is costs them nothing here.
    priority: int = 0
    attempt: int = 1
    deliveries: int = 1
    dedupe_key: str | None = None
    # The rest is the queue's own: its place in memory, or its message and lease.
    sequence: int = 0
    lane: str = ""
    message_id: int = 0
    fence: int = 0
    outlived: int = 0
    lease_ends_at: float | None = None
    is_lost: bool = False
    is_foreign: bool = False
    sent_at: float = 0.0
    hidden_until: float = 0.0

    def __init__(
        self,
        id: str,  # noqa: A002 - the field's own name
        data: Any,
        queue: str = "",
        enqueued_at: float = 0.0,
        *,
        priority: int = 0,
        attempt: int = 1,
        deliveries: int = 1,
        dedupe_key: str | None = None,
    ) -> None:
        self.id = id
        self.data = data
        self.queue = queue
        self.enqueued_at = enqueued_at
        if priority:
            self.priority = priority
        if attempt != 1:
            self.attempt = attempt
        if deliveries != 1:
            self.deliveries = deliveries
        if dedupe_key is not None:
            self.dedupe_key = dedupe_key

    def __repr__(self) -> str:
        """Show what it is, never what is in it."""
        return f"<Job {self.id} of {self.queue!r}, attempt {self.attempt}>"

    def lease_left(self) -> float | None:
        """Seconds for which nobody else can get this job; None when it has no lease (in memory).

        Once it is 0 or less another worker may be at the same job: a handler that is about to do
        what must not be done twice should stop then.
        """
        if self.lease_ends_at is None:
            return None
        return self.lease_ends_at - _clock.monotonic()

    @property
    def lost(self) -> int:
        """Deliveries before this one that came to no end: the worker died or lost its lease."""
        return max(0, self.deliveries - 1 - self.outlived)

    def to_message(
        self,
        *,
        attempts: int | None = None,
        outlived: int = 0,
        dead: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The envelope to send, with `attempts` spent so far (None: as many as before).

        `outlived` is how many deliveries of this very message came to a good end: for a message
        that stays and is changed in place.
        """
        spent = self.attempt - 1 if attempts is None else attempts
        ours: dict[str, Any] = {"id": self.id, "enqueued_at": self.enqueued_at}
        if spent:
            ours["attempts"] = spent
        if outlived:
            ours["outlived"] = outlived
        if self.priority:
            ours["priority"] = self.priority
        if self.dedupe_key is not None:
            ours["dedupe_key"] = self.dedupe_key
        if dead is not None:
            ours["dead"] = dict(dead)
        return {"data": self.data, ENVELOPE: ours}

    @classmethod
    def from_row(cls, row: Mapping[str, Any], queue: str, lane: str = "") -> Self:
        """Read a row of pgmq; columns that a version lacks or adds make no difference."""
        message_id, reads = int(row["msg_id"]), int(row.get("read_ct") or 1)
        message, ours = row.get("message"), _ours(row.get("message"))
        job = cls(
            _text(ours.get("id")) or f"{queue}{lane}/{message_id}",
            message["data"] if ours and isinstance(message, dict) else message,
            queue=queue,
            priority=_whole(ours.get("priority")),
            attempt=max(0, _whole(ours.get("attempts"))) + 1,
            deliveries=reads,
            enqueued_at=_seconds(ours.get("enqueued_at")) or _timestamp(row.get("enqueued_at")),
            dedupe_key=_text(ours.get("dedupe_key")) or None,
        )
        job.lane, job.message_id, job.fence = lane, message_id, reads
        job.outlived = _whole(ours.get("outlived"))
        if not ours or job.dedupe_key is not None:  # by the server's clock
            job.sent_at = _timestamp(row.get("enqueued_at"))
            job.hidden_until = _timestamp(row.get("vt"))
        job.is_foreign = not ours
        return job


_current: ContextVar[Job | None] = ContextVar("supabase_resilience_job", default=None)
"""The job that this code is handling."""


def current_job() -> Job:
    """The job that is being handled here; raises `QueueError` outside of a handler."""
    job = _current.get()
    if job is None:
        raise QueueError("current_job() has an answer only inside a handler of a queue")
    return job


def new_id() -> str:
    """128 random bits in hexadecimal: unique everywhere, and a `uuid` to PostgreSQL."""
    return os.urandom(16).hex()


def new_origin() -> str:
    """64 random bits: with a count of as many bits behind it, a unique id that costs less."""
    return os.urandom(8).hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A job that was given up on, kept for a person: look at `reason`, then `replay(id)` it.

    `error` is the type of the last error, `traceback` its text; `attempts` is how many were made.
    Times are in seconds since the epoch.
    """

    id: str
    data: Any = field(repr=False)
    queue: str
    priority: int
    attempts: int
    reason: str
    error: str
    traceback: str = field(repr=False)
    enqueued_at: float
    died_at: float
    message_id: int | None = None
    dedupe_key: str | None = None

    def note(self) -> dict[str, Any]:
        """What the envelope says of the death."""
        return {
            "reason": self.reason,
            "error": self.error,
            "traceback": self.traceback,
            "at": self.died_at,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any], queue: str) -> Self:
        """Read a row of the queue of dead letters; one that somebody else put there has no note."""
        job = Job.from_row(row, queue)
        note = _ours(row.get("message")).get("dead")
        note = note if isinstance(note, dict) else {}
        return cls(
            id=job.id,
            data=job.data,
            queue=queue,
            priority=job.priority,
            attempts=job.attempt - 1,
            reason=_text(note.get("reason")) or "unknown",
            error=_text(note.get("error")),
            traceback=_text(note.get("traceback")),
            enqueued_at=job.enqueued_at,
            died_at=_seconds(note.get("at")) or _timestamp(row.get("enqueued_at")),
            message_id=job.message_id,
            dedupe_key=job.dedupe_key,
        )

    def to_job(self) -> Job:
        """The job as new: all its attempts before it, its age 0, its id the same."""
        return Job(
            self.id,
            self.data,
            queue=self.queue,
            priority=self.priority,
            enqueued_at=_clock.wall(),
            dedupe_key=self.dedupe_key,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What becomes of a job after its handler.

    `done`: it is over. `retry`: an attempt was spent, again in `delay` seconds. `postponed`: none
    was spent, again in `delay` seconds. `dead`: `letter` goes to the dead letters.
    """

    kind: Literal["done", "retry", "postponed", "dead"]
    job: Job
    delay: float = 0.0
    letter: DeadLetter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueMetrics:
    """What the server knows of a queue now; None where it cannot be known (stock mode).

    `ready` can be taken now, `delayed` later, or they are in the hands of a worker (a lease and a
    delay look the same). `oldest_age` is how many seconds the oldest ready job has waited: the
    number to alert on. `dead` is the number of dead letters.
    """

    queue: str
    ready: int | None
    delayed: int | None
    oldest_age: float | None
    dead: int | None


# --- reading what others may have written ---------------------------------------------------------


def _ours(message: Any) -> Mapping[str, Any]:
    """Our part of an envelope; nothing for a message that is none."""
    if not isinstance(message, dict) or "data" not in message:
        return {}
    ours = message.get(ENVELOPE)
    return ours if isinstance(ours, dict) and _text(ours.get("id")) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _timestamp(value: Any) -> float:
    try:
        return datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError):
        return _clock.wall()
