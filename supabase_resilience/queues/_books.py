"""What both processors know and count: settings, statistics, events, and who may start a job.

It carries out nothing and waits for nothing. The drivers ask it before a job and tell it after.
"""

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from supabase_resilience import _clock
from supabase_resilience._telling import tell
from supabase_resilience.errors import QueueError
from supabase_resilience.events import (
    DuplicateSkipped,
    Event,
    HandlerAbandoned,
    Hook,
    JobDeadLettered,
    JobFailed,
    JobPostponed,
    JobSucceeded,
    LeaseLost,
    QueuePaused,
    QueueReachable,
    QueueResumed,
    QueueUnreachable,
    log_event,
)
from supabase_resilience.failures import classify
from supabase_resilience.queues._decisions import Brake, Recent, Settings, judge, refuse
from supabase_resilience.queues._jobs import Job, Postpone, Settlement

__all__ = ["Books", "QueueState", "QueueStats"]

QueueState = Literal["new", "running", "paused", "stopping", "stopped"]
# Percentiles of so many jobs say enough, and are counted out in no time.
_REMEMBERED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    """One moment of a processor; counts are since its construction, times are in seconds.

    `started` counts handler runs: `succeeded`, `failed` (attempts spent, of which `retried` run
    again and `dead` don't) or `postponed` (no attempt spent). `duplicates` were acknowledged
    without a run, `lost_leases` ran out in mid-handler, `abandoned` handlers outlasted their
    timeout and could not be stopped. `waiting` jobs are known here: all of a queue in memory, those
    about to start of a durable one. `run_…` is how long handlers took, `wait_…` how long jobs
    had waited since they were enqueued: percentiles of the last 1,000 successes (None: none yet).
    `is_reachable` is False while Supabase does not answer, `needs_you` if waiting will not help;
    `reason` says why jobs are not taken now (None: they are).
    """

    queue: str
    state: QueueState
    paused_for_outage: bool
    is_reachable: bool
    needs_you: bool
    reason: str | None
    enqueued: int
    started: int
    succeeded: int
    failed: int
    retried: int
    postponed: int
    dead: int
    duplicates: int
    lost_leases: int
    abandoned: int
    waiting: int
    in_flight: int
    run_p50: float | None
    run_p95: float | None
    run_p99: float | None
    wait_p50: float | None
    wait_p95: float | None
    wait_p99: float | None


class Books:
    """The state of a processor that has no colour."""

    def __init__(self, queue: str, settings: Settings, on_event: Hook, clock: _clock.Clock) -> None:
        self.queue = queue
        self.settings = settings
        self.brake = Brake(clock)
        self._recent = Recent()
        self._on_event = on_event
        # The usual hook ignores what happens to single jobs, so that needs no telling.
        self._tells_successes = on_event is not log_event
        self._clock = clock
        # What the clock showed at 0 seconds since the epoch, to compare the two.
        self._epoch = _clock.wall() - clock()
        self._unreachable_since: float | None = None
        self._unreachable = self._paused_for = ""
        self._needs_you = False
        self._paused_at: float | None = None
        self._times: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)
        # Counts that take one step; reading one counts, too (`_asked`).
        self._enqueued, self._succeeded = itertools.count(), itertools.count()
        # Called for each job that is added through this processor.
        self.count_enqueued: Callable[[], int] = self._enqueued.__next__
        self._lock = threading.Lock()
        # Guarded by _lock.
        self._asked = 0
        self._failed = self._retried = 0
        self._postponed = self._dead = self._duplicates = self._lost = self._abandoned = 0

    def tell(self, event: Event) -> None:
        """Tell the hook; what it raises is logged and changes nothing."""
        tell(self._on_event, event)

    # --- jobs -------------------------------------------------------------------------------------

    def refusal(self, job: Job, *, is_durable: bool) -> Settlement | None:
        """What becomes of a job that should not be run: a duplicate, too old, or a killer."""
        if is_durable and job in self._recent:
            with self._lock:
                self._duplicates += 1
            self.brake.tried_in_vain()
            self.tell(DuplicateSkipped(queue=self.queue, job=job.id))
            return Settlement(kind="done", job=job)
        settlement = refuse(job, self.settings)
        if settlement is not None:
            self.brake.tried_in_vain()
            self._count_dead(settlement)
        return settlement

    def succeeded(self, job: Job, began_at: float) -> None:
        """A handler that began at `began_at` has returned."""
        seconds = self._clock() - began_at
        waited = began_at + self._epoch - job.enqueued_at
        # Each is one step, so that workers need not queue for a lock after every job.
        next(self._succeeded)
        self._times.append((seconds, waited))
        if job.message_id:  # of a durable queue
            self._recent.add(job, math.ceil(self.settings.visibility_timeout))
        if self.brake.is_on:
            self.release_brake()
        if self._tells_successes:
            self.tell(
                JobSucceeded(
                    queue=self.queue,
                    job=job.id,
                    attempt=job.attempt,
                    waited=waited,
                    seconds=seconds,
                )
            )

    def raised(self, job: Job, error: BaseException) -> Settlement:
        """A handler has raised: what becomes of its job."""
        settlement = judge(job, error, self.settings)
        if settlement.kind == "postponed":
            self._count_postponed(settlement, error)
            return settlement
        if self.brake.is_on:
            self.release_brake()
        with self._lock:
            self._failed += 1
        if settlement.kind == "dead":
            self._count_dead(settlement)
        else:
            self._count_retry(settlement, error)
        return settlement

    def _count_retry(self, settlement: Settlement, error: BaseException) -> None:
        with self._lock:
            self._retried += 1
        job = settlement.job
        self.tell(
            JobFailed(
                queue=self.queue,
                job=job.id,
                attempt=job.attempt,
                error=type(error).__name__,
                delay=settlement.delay,
            )
        )

    def _count_postponed(self, settlement: Settlement, error: BaseException) -> None:
        with self._lock:
            self._postponed += 1
        reason = _reason(error)
        self.tell(
            JobPostponed(
                queue=self.queue, job=settlement.job.id, reason=reason, delay=settlement.delay
            )
        )
        if not isinstance(error, Exception) or (isinstance(error, Postpone) and not error.pause):
            self.brake.tried_in_vain()
            return
        with self._lock:
            is_news = self.brake.hit(classify(error).retry_after)
        if is_news:
            self._paused_for = reason
            self.tell(QueuePaused(queue=self.queue, reason=reason))

    def _count_dead(self, settlement: Settlement) -> None:
        with self._lock:
            self._dead += 1
        letter = settlement.letter
        if letter is not None:
            self.tell(
                JobDeadLettered(
                    queue=self.queue,
                    job=letter.id,
                    attempts=letter.attempts,
                    reason=letter.reason,
                    error=letter.error,
                )
            )

    def lost(self, job: Job) -> None:
        """A job's lease has run out; told and counted once."""
        with self._lock:
            if job.is_lost:
                return
            job.is_lost = True
            self._lost += 1
        self.brake.tried_in_vain()
        self.tell(LeaseLost(queue=self.queue, job=job.id))

    def abandoned(self, job: Job, seconds: float) -> None:
        """A handler outlasted its timeout and could not be stopped."""
        with self._lock:
            self._abandoned += 1
        self.tell(HandlerAbandoned(queue=self.queue, job=job.id, seconds=seconds))

    # --- breaks -----------------------------------------------------------------------------------

    def claim_start(self) -> bool:
        """Whether a job may be started now; during a break only one at a time may."""
        with self._lock:
            if self.brake.wait() != 0.0:
                return False
            self.brake.try_one()
            return True

    # --- the queue --------------------------------------------------------------------------------

    def release_brake(self) -> None:
        """Whatever was out is back."""
        with self._lock:
            seconds = self.brake.release()
        if seconds is not None:
            self.tell(QueueResumed(queue=self.queue, seconds=seconds))

    def unreachable(self, error: Exception) -> None:
        """A round trip has failed; told once until one works."""
        if self._unreachable_since is None:
            self._unreachable_since = self._clock()
            meaning = classify(error)
            needs_you = not meaning.is_outage or meaning.verdict == "blocked"
            reason = _reason(error)
            self._unreachable, self._needs_you = reason, needs_you
            self.tell(QueueUnreachable(queue=self.queue, reason=reason, needs_you=needs_you))

    def reachable(self) -> None:
        """A round trip has worked."""
        since, self._unreachable_since = self._unreachable_since, None
        if since is not None:
            self.tell(QueueReachable(queue=self.queue, seconds=self._clock() - since))

    def paused(self) -> None:
        """Paused by hand."""
        self._paused_at = self._clock()
        self.tell(QueuePaused(queue=self.queue, reason="by hand"))

    def resumed(self) -> None:
        """Resumed by hand."""
        since = self._clock() if self._paused_at is None else self._paused_at
        self.tell(QueueResumed(queue=self.queue, seconds=self._clock() - since))

    def stats(self, *, state: QueueState, waiting: int, in_flight: int) -> QueueStats:
        """The numbers now."""
        is_reachable = self._unreachable_since is None
        with self._lock:
            times = self._times.copy()
            runs = sorted(seconds for seconds, _ in times)
            waits = sorted(waited for _, waited in times)
            succeeded = next(self._succeeded) - self._asked
            enqueued = next(self._enqueued) - self._asked
            self._asked += 1
            return QueueStats(
                queue=self.queue,
                state=state,
                paused_for_outage=self.brake.is_on,
                is_reachable=is_reachable,
                needs_you=self._needs_you and not is_reachable,
                reason=self._reason_now(state, is_reachable=is_reachable),
                enqueued=enqueued,
                started=succeeded + self._failed + self._postponed + in_flight,
                succeeded=succeeded,
                failed=self._failed,
                retried=self._retried,
                postponed=self._postponed,
                dead=self._dead,
                duplicates=self._duplicates,
                lost_leases=self._lost,
                abandoned=self._abandoned,
                waiting=waiting,
                in_flight=in_flight,
                run_p50=_percentile(runs, 0.5),
                run_p95=_percentile(runs, 0.95),
                run_p99=_percentile(runs, 0.99),
                wait_p50=_percentile(waits, 0.5),
                wait_p95=_percentile(waits, 0.95),
                wait_p99=_percentile(waits, 0.99),
            )

    def _reason_now(self, state: QueueState, *, is_reachable: bool) -> str | None:
        if not is_reachable:
            return self._unreachable
        if self.brake.is_on:
            return self._paused_for
        return "paused by hand" if state == "paused" else None


def _reason(error: BaseException) -> str:
    """What can be said of an error without its message, which may quote a row."""
    if isinstance(error, Postpone):
        return "postponed by its handler"
    if not isinstance(error, Exception):
        return type(error).__name__
    if isinstance(error, QueueError):  # our own words, the first line of which says it
        return str(error).partition("\n")[0]
    meaning = classify(error)
    return meaning.reason if meaning.is_outage else type(error).__name__


def _percentile(values: Sequence[float], share: float) -> float | None:
    return values[min(len(values) - 1, int(share * len(values)))] if values else None
