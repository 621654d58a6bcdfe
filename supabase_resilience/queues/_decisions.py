"""Every choice of a queue, without I/O: what becomes of a job, when to ask again, whose turn it is.

The promise behind them: a job is handled at least once, an outage spends none of its attempts, and
when its attempts are spent it is kept for a person. The drivers only carry this out.
"""

import random
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from supabase_resilience import _clock
from supabase_resilience._checks import (
    check_callable,
    check_count,
    check_number,
    check_optional,
    check_seconds,
    check_text,
)
from supabase_resilience.failures import Classification, classify
from supabase_resilience.queues._jobs import DeadLetter, Job, Postpone, Settlement

__all__ = [
    "Brake",
    "Intake",
    "LaneShares",
    "Lanes",
    "Pace",
    "Recent",
    "Settings",
    "check_handler",
    "judge",
    "lane_of",
    "refuse",
]

# A traceback is for a person; what is longer is recursion.
_LONGEST_TRACEBACK = 8_000
_SHORTEST_DELAY = 0.1
# Time after which the reading side tries again while the queue cannot be reached, and the breaks of
# a queue whose handlers meet an outage: doubled each time, with full jitter.
_FIRST_BREAK, _LONGEST_BREAK = 1.0, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The numbers of a processor; `ValueError` or `TypeError` for those that make no sense."""

    concurrency: int
    retry_delay: float
    max_retries: int
    backoff: float
    max_retry_delay: float
    visibility_timeout: float
    handler_timeout: float | None
    max_age: float | None
    max_deliveries: int
    lanes: Mapping[int, str] | None
    strict_order: bool

    def __post_init__(self) -> None:
        check_count("concurrency", self.concurrency)
        check_number("retry_delay", self.retry_delay, at_least=0.0)
        check_count("max_retries", self.max_retries, at_least=0)
        check_number("backoff", self.backoff, at_least=1.0)
        check_number("max_retry_delay", self.max_retry_delay, at_least=0.0)
        check_number("visibility_timeout", self.visibility_timeout, at_least=1.0)
        check_optional(check_seconds, "handler_timeout", self.handler_timeout)
        check_optional(check_seconds, "max_age", self.max_age)
        check_count("max_deliveries", self.max_deliveries)
        if self.strict_order and self.concurrency != 1:
            raise ValueError(
                f"strict_order needs concurrency=1, got concurrency={self.concurrency!r}"
            )

    def retry_delay_after(self, attempt: int) -> float:
        """Seconds until the next attempt.

        Full jitter, any time up to the doubled delay, spreads those that failed together best
        (Brooker, "Exponential Backoff And Jitter", 2015). With `backoff=1.0` it is always
        `retry_delay`.
        """
        if self.backoff == 1.0:
            return min(self.retry_delay, self.max_retry_delay)
        try:
            longest = self.retry_delay * self.backoff ** (attempt - 1)
        except OverflowError:
            longest = self.max_retry_delay
        return random.uniform(0.0, min(longest, self.max_retry_delay))  # noqa: S311


# --- what becomes of a job ------------------------------------------------------------------------


def judge(job: Job, error: BaseException, settings: Settings) -> Settlement:
    """What becomes of a job whose handler raised `error`."""
    if isinstance(error, Postpone):
        # Without a break a job that is not due would be tried again and again.
        delay = error.seconds if error.pause else max(error.seconds, _SHORTEST_DELAY)
        return _postponed(job, delay, "postponed by its handler", error, settings)
    if not isinstance(error, Exception):  # the process ends, which says nothing of the job
        return Settlement(kind="postponed", job=job)
    meaning = classify(error)
    if meaning.is_outage:
        return _postponed(job, 0.0, meaning.reason, error, settings)
    if job.attempt > settings.max_retries:
        reason = f"failed {job.attempt} times" if job.attempt > 1 else "failed, no retries"
        return _dead(job, reason, error)
    if _age(job) > (settings.max_age or _FOREVER):
        return _dead(job, f"older than {settings.max_age:g} s", error)
    delay = settings.retry_delay_after(job.attempt)
    return Settlement(kind="retry", job=job, delay=delay)


def refuse(job: Job, settings: Settings) -> Settlement | None:
    """Whether a job that has just come in should not be run any more."""
    if settings.max_age is not None and _age(job) > settings.max_age:
        return _dead(job, f"older than {settings.max_age:g} s", None)
    if job.lost >= settings.max_deliveries:
        return _dead(
            job,
            f"delivered {job.deliveries} times without an end: it kills its worker, or takes "
            "longer than the visibility timeout",
            None,
        )
    return None


def _postponed(
    job: Job, delay: float, reason: str, error: BaseException, settings: Settings
) -> Settlement:
    if _age(job) + delay > (settings.max_age or _FOREVER):
        return _dead(job, f"{reason}, and older than {settings.max_age:g} s", error)
    return Settlement(kind="postponed", job=job, delay=delay)


_FOREVER = float("inf")


def _age(job: Job) -> float:
    return _clock.wall() - job.enqueued_at


def _dead(job: Job, reason: str, error: BaseException | None) -> Settlement:
    text = "" if error is None else "".join(traceback.format_exception(error))
    letter = DeadLetter(
        id=job.id,
        data=job.data,
        queue=job.queue,
        priority=job.priority,
        attempts=job.attempt if error is not None else job.attempt - 1,
        reason=reason,
        error="" if error is None else type(error).__name__,
        traceback=text[-_LONGEST_TRACEBACK:],
        enqueued_at=job.enqueued_at,
        died_at=_clock.wall(),
        dedupe_key=job.dedupe_key,
    )
    return Settlement(kind="dead", job=job, letter=letter)


# --- when to ask again ----------------------------------------------------------------------------


class Pace:
    """How long a reader waits before it asks its queue again.

    Found something: no wait, as there may be more. Nothing: 0.1 s, growing by half each time to
    about 5.5 s, so that 1,000 idle workers make fewer than 200 requests a second. Each wait is
    moved at random by a tenth, so that workers that were started together don't ask together.
    """

    FIRST, GROWTH, LONGEST, SPREAD = 0.1, 1.5, 5.5, 0.1

    def __init__(self) -> None:
        self._wait = self.FIRST
        self._failures = 0

    def found(self) -> float:
        """After a read that brought jobs."""
        self.reset()
        return 0.0

    def nothing(self) -> float:
        """After a read that brought none."""
        self._failures = 0
        wait, self._wait = self._wait, min(self._wait * self.GROWTH, self.LONGEST)
        return wait * random.uniform(1.0 - self.SPREAD, 1.0 + self.SPREAD)  # noqa: S311

    def failed(self, meaning: Classification, *, is_urgent: bool) -> float:
        """After a round trip that failed: what the server or the circuit asks for, else back-off.

        Settlements are urgent, as they matter only until the lease ends.
        """
        wait = _break(0 if is_urgent else self._failures)
        self._failures += 1
        return max(wait, meaning.retry_after or 0.0)

    def reset(self) -> None:
        """Something is likely to be there: a job was added here, or the queue is resumed."""
        self._wait = self.FIRST
        self._failures = 0

    @property
    def has_failed(self) -> bool:
        """Whether the last read failed."""
        return self._failures > 0


class Brake:
    """Holds a queue back while its handlers meet an outage.

    Each outage makes a break, doubled from 1 s up to 60 s with jitter. After it one job is
    let through at a time; once one has ended in any other way, all may run.
    """

    def __init__(self, clock: _clock.Clock) -> None:
        self._clock = clock
        self._breaks = 0
        self._ends_at = 0.0
        self._is_trying = False
        self._began_at = 0.0
        # Whether the queue is held back; plain, as every worker reads it before every job.
        self.is_on = False

    def hit(self, retry_after: float | None) -> bool:
        """A job was given back because of an outage; whether that is news."""
        self._is_trying = False
        now = self._clock()
        if self.is_on and now < self._ends_at:
            return False  # one of those that were in hand when the outage began
        is_news = not self.is_on
        self._began_at = now if is_news else self._began_at
        self.is_on = True
        self._ends_at = now + max(_break(self._breaks), retry_after or 0.0)
        self._breaks += 1
        return is_news

    def wait(self) -> float | None:
        """Seconds until a job may be tried, 0 for now, None while one is being tried."""
        if not self.is_on:
            return 0.0
        return None if self._is_trying else max(0.0, self._ends_at - self._clock())

    def try_one(self) -> None:
        """A job is let through."""
        self._is_trying = self.is_on

    def tried_in_vain(self) -> None:
        """What was let through came to no verdict."""
        self._is_trying = False

    def release(self) -> float | None:
        """All may run again; for how many seconds they could not, None when they could."""
        was_on, self.is_on = self.is_on, False
        self._is_trying, self._breaks = False, 0
        return self._clock() - self._began_at if was_on else None


def _break(before: int) -> float:
    longest = min(_FIRST_BREAK * 2.0 ** min(before, 16), _LONGEST_BREAK)
    return random.uniform(longest / 2, longest)  # noqa: S311


# --- whose turn it is -----------------------------------------------------------------------------


class Lanes:
    """Where a priority travels: `{10: "_high"}` sends those of 10 and more to `<name>_high`."""

    def __init__(self, lanes: Mapping[int, str] | None) -> None:
        if lanes is not None and not isinstance(lanes, Mapping):
            raise TypeError(f"lanes must be a mapping of priority to suffix, got {lanes!r}")
        for threshold, suffix in (lanes or {}).items():
            check_count("a priority in lanes", threshold, at_least=-(2**31))
            check_text("a suffix in lanes", suffix)
        if len(set((lanes or {}).values())) < len(lanes or {}):
            raise ValueError(
                f"lanes must have a suffix of its own for each priority, got {lanes!r}"
            )
        if "_dead" in (lanes or {}).values():
            raise ValueError("the suffix '_dead' in lanes is that of the dead letters")
        self.thresholds = sorted((lanes or {}).items(), reverse=True)
        self.suffixes = [*(suffix for _, suffix in self.thresholds), ""]

    def of(self, priority: int) -> str:
        """The suffix of the queue in which a job of this priority travels."""
        return lane_of(priority, self.thresholds)


def lane_of(priority: int, thresholds: Sequence[tuple[int, str]]) -> str:
    """The first lane whose threshold the priority reaches, highest first; else the queue itself."""
    return next((suffix for at_least, suffix in thresholds if at_least <= priority), "")


class LaneShares:
    """Of ten jobs that are taken, one is not the most urgent, so that nothing waits for ever.

    It comes from a lower lane, each in turn; in a queue read by priority it is the oldest.
    """

    SHARE = 0.1

    def __init__(self, suffixes: Sequence[str]) -> None:
        self._suffixes = suffixes
        self._credit = 0.0
        self._turn = 0

    def reserve(self, free: int) -> int:
        """How many of `free` places don't go by urgency this time."""
        return min(free, int(self._credit))

    def took(self, count: int, reserved: int) -> None:
        """So many jobs were taken in all, with so many places reserved."""
        self._credit = max(0.0, self._credit - reserved)
        self._credit = min(self._credit + count * self.SHARE, 10.0)

    def rounds(self, free: int) -> Iterator[tuple[str, int]]:
        """Which lane to ask, and how many of the places that are left it may fill at most."""
        lower = self._suffixes[1:]
        reserved = self.reserve(free) if lower else 0
        if reserved:
            self._turn += 1
            # The lowest first, then upwards, then again.
            yield lower[-1 - self._turn % len(lower)], reserved
        for suffix in self._suffixes:
            yield suffix, free


class Recent:
    """The last jobs that were done here: a second delivery of one of them needs no second run.

    It is known by its id, a message of others by its number and time. A job with the dedupe key of
    another is a duplicate only if it was in the queue already when that one was read for the last
    time, which the server's own times tell; one that was enqueued later may be meant to run again.
    """

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._done: OrderedDict[str, None] = OrderedDict()
        self._keys: OrderedDict[str, float] = OrderedDict()

    def add(self, job: Job, lease: float) -> None:
        """A job is done; it had been read for `lease` seconds."""
        self._done[_identity(job)] = None
        if job.dedupe_key is not None:
            self._keys[job.dedupe_key] = job.hidden_until - lease
        for known in (self._done, self._keys):
            if len(known) > self._limit:
                known.popitem(last=False)

    def __contains__(self, job: Job) -> bool:
        if _identity(job) in self._done:
            return True
        if job.dedupe_key is None:
            return False
        return 0.0 < job.sent_at <= self._keys.get(job.dedupe_key, 0.0)


def _identity(job: Job) -> str:
    # Numbers of messages begin again when a queue is dropped and made anew.
    return f"{job.id}@{job.sent_at}" if job.is_foreign else job.id


class Intake:
    """When to go to a durable queue, and for how many jobs: never more than can start at once.

    A round trip costs about the same for one job as for sixteen, so places that become free wait
    for each other, for 20 ms or until seven of eight are.
    """

    LINGER = 0.02

    def __init__(self, concurrency: int, clock: _clock.Clock) -> None:
        self.pace = Pace()
        self._clock = clock
        self._enough = max(1, concurrency * 7 // 8)
        self._read_at = 0.0
        self._waiting_since: float | None = None

    def freed(self) -> None:
        """A place has become free, or there is something to settle."""
        if self._waiting_since is None:
            self._waiting_since = self._clock()

    def wake(self) -> None:
        """Something is likely to be there."""
        self.pace.reset()
        self._read_at = 0.0

    def wait(self, free: int, settlements: int) -> float:
        """Seconds until the next round trip is due; 0 for now."""
        now = self._clock()
        if self.pace.has_failed:
            return max(0.0, self._read_at - now) if free or settlements else _FOREVER
        # Nobody waits for others: nothing has become free since the last round trip.
        is_alone = self._waiting_since is None
        since = now if self._waiting_since is None else self._waiting_since
        linger = 0.0 if is_alone or free >= self._enough else max(0.0, since + self.LINGER - now)
        to_read = max(linger, self._read_at - now) if free else _FOREVER
        to_settle = max(0.0, since + self.LINGER - now) if settlements else _FOREVER
        return max(0.0, min(to_read, to_settle))

    def may_read(self) -> bool:
        """Whether this round trip should also read."""
        return self._clock() >= self._read_at

    def went(self) -> None:
        """A round trip begins."""
        self._waiting_since = None

    def settled(self) -> None:
        """A round trip that only settled has worked."""
        if self.pace.has_failed:
            self.pace.reset()

    def read(self, found: int) -> None:
        """A read has brought so many jobs."""
        wait = self.pace.found() if found else self.pace.nothing()
        self._read_at = self._clock() + wait

    def failed(self, meaning: Classification, *, is_urgent: bool) -> None:
        """A round trip has failed."""
        self._read_at = self._clock() + self.pace.failed(meaning, is_urgent=is_urgent)


def check_handler(
    process: Callable[..., object] | None, on_error: object, on_event: object
) -> None:
    """Refuse what cannot be called."""
    check_optional(check_callable, "process", process)
    check_optional(check_callable, "on_error", on_error)
    check_callable("on_event", on_event)
