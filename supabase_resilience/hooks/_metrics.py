"""The one table of metrics: what each is called, and where its number comes from.

A number has one of three sources: the statistics of a part (`of` is their class), an event (`of` is
its class, or several), or a span (`of` is its name). Everything else that speaks of metrics reads
this table: both hooks, the alert rules, the dashboard and the README.

Labels are few: names that the app gave to its parts, and words of closed sets. What an error says,
a key or the id of a job is never one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

from supabase_resilience._circuit import State
from supabase_resilience._telling import BATCH, CALL, HANDLER, JOB
from supabase_resilience.breaker import BreakerStats
from supabase_resilience.events import (
    AlertCleared,
    AlertFired,
    Event,
    GapRecovered,
    JobSucceeded,
    PassCompleted,
)
from supabase_resilience.listener import ListenerStats
from supabase_resilience.listener._stats import ListenerState
from supabase_resilience.queues import QueueMetrics, QueueStats
from supabase_resilience.queues._books import QueueState
from supabase_resilience.verification import VerificationStats
from supabase_resilience.verification._stats import VerificationState

__all__ = ["METRICS", "NAMESPACE", "Labels", "Metric", "of_events", "of_spans", "of_stats", "short"]

NAMESPACE = "supabase_resilience"
Labels = tuple[str, ...]
Numbers = Mapping[Labels, float | None]
Source = TypeVar("Source")
# How the values of several processes become one: added up, so that a state says in how many
# processes it is so, unless the greatest or the least of them is what matters.
Merge = Literal["livesum", "livemax", "livemin"]
QUICK = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
PATIENT = (0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric(Generic[Source]):
    """One row. `name` is without the namespace, `labels` the names of its labels.

    `read` gives the numbers in a source by the values of its labels; None is no number. The first
    label is the name of the part, which statistics leave out. With `is_age` they are seconds since
    something happened, told as the time when it did. A metric of spans has no `read`: it is their
    duration.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: Labels
    help: str
    of: type[Source] | tuple[type[Source], ...] | str
    read: Callable[[Source], Numbers] | None = None
    unit: str = "1"
    is_age: bool = False
    merge: Merge = "livesum"
    buckets: tuple[float, ...] = QUICK

    @property
    def full_name(self) -> str:
        """The name in Prometheus."""
        return f"{NAMESPACE}_{self.name}"


def short(name: str) -> str:
    """A table as `Resilience` calls it: the usual schema goes without saying."""
    return name.removeprefix("public.")


def _one(number: float | None) -> Numbers:
    return {(): number}


def _each(**numbers: float | None) -> Numbers:
    return {(label,): number for label, number in numbers.items()}


def _which(now: str | None, words: tuple[str, ...]) -> Numbers:
    """One series for each word that there is: 1 for the one that is true now, 0 for the others."""
    return {(word,): float(word == now) for word in words}


_BREAKERS: tuple[Metric[Any], ...] = (
    Metric(
        name="circuit_state",
        kind="gauge",
        labels=("breaker", "state"),
        help="1 for the state that the project's circuit is in, 0 for the others.",
        of=BreakerStats,
        read=lambda stats: _which(stats.state, get_args(State)),
    ),
    Metric(
        name="circuit_cause",
        kind="gauge",
        labels=("breaker", "cause"),
        help="1 for the cause why the circuit is not closed; blocked needs a person.",
        of=BreakerStats,
        read=lambda stats: _which(stats.cause, ("failure", "throttled", "blocked", "forced")),
    ),
    Metric(
        name="circuit_calls_total",
        kind="counter",
        labels=("breaker", "outcome"),
        help="Attempts by how the circuit judged them, and calls that it refused.",
        of=BreakerStats,
        read=lambda stats: _each(
            success=stats.successes,
            failure=stats.failures,
            neutral=stats.neutral,
            throttled=stats.throttled,
            blocked=stats.blocked,
            refused=stats.refused,
        ),
        unit="{call}",
    ),
    Metric(
        name="circuit_transitions_total",
        kind="counter",
        labels=("breaker", "to"),
        help="How often the circuit opened and closed.",
        of=BreakerStats,
        read=lambda stats: _each(open=stats.opened, closed=stats.closed),
        unit="{transition}",
    ),
    Metric(
        name="retry_attempts_total",
        kind="counter",
        labels=("breaker", "outcome"),
        help="Retries that were made, and those that were not for want of budget.",
        of=BreakerStats,
        read=lambda stats: _each(made=stats.retries, over_budget=stats.retries_refused),
        unit="{attempt}",
    ),
    Metric(
        name="retry_budget_tokens",
        kind="gauge",
        labels=("breaker",),
        help="Retries that could be made now; no series without a budget.",
        of=BreakerStats,
        read=lambda stats: _one(stats.budget_left),
        unit="{attempt}",
    ),
)

# Of the circuits of single tables and functions; as there may be hundreds, they have no names here.
KEYS_OPEN: Metric[BreakerStats] = Metric(
    name="circuit_keys_open",
    kind="gauge",
    labels=("breaker",),
    help="Tables and functions whose own circuit is not closed.",
    of=BreakerStats,
    unit="{circuit}",
)

_QUEUES: tuple[Metric[Any], ...] = (
    Metric(
        name="queue_state",
        kind="gauge",
        labels=("queue", "state"),
        help="1 for the state that the processor is in, 0 for the others.",
        of=QueueStats,
        read=lambda stats: _which(stats.state, get_args(QueueState)),
    ),
    Metric(
        name="queue_paused_for_outage",
        kind="gauge",
        labels=("queue",),
        help="1 while no job is started because something that they need is out.",
        of=QueueStats,
        read=lambda stats: _one(stats.paused_for_outage),
    ),
    Metric(
        name="queue_unreachable",
        kind="gauge",
        labels=("queue",),
        help="1 while reading the queue fails.",
        of=QueueStats,
        read=lambda stats: _one(not stats.is_reachable),
    ),
    Metric(
        name="queue_depth",
        kind="gauge",
        labels=("queue", "state"),
        help="Jobs that this process knows of: waiting to start here, or in the hands of a worker.",
        of=QueueStats,
        read=lambda stats: _each(waiting=stats.waiting, in_flight=stats.in_flight),
        unit="{job}",
    ),
    Metric(
        name="jobs_enqueued_total",
        kind="counter",
        labels=("queue",),
        help="Jobs that were added by this process.",
        of=QueueStats,
        read=lambda stats: _one(stats.enqueued),
        unit="{job}",
    ),
    Metric(
        name="jobs_total",
        kind="counter",
        labels=("queue", "outcome"),
        help="Deliveries by what became of them; dead jobs are kept among the dead letters.",
        of=QueueStats,
        read=lambda stats: _each(
            succeeded=stats.succeeded,
            retried=stats.retried,
            postponed=stats.postponed,
            dead=stats.dead,
            duplicate=stats.duplicates,
        ),
        unit="{job}",
    ),
    Metric(
        name="job_leases_lost_total",
        kind="counter",
        labels=("queue",),
        help="Visibility timeouts that ran out in mid-handler.",
        of=QueueStats,
        read=lambda stats: _one(stats.lost_leases),
        unit="{job}",
    ),
    Metric(
        name="job_handlers_abandoned_total",
        kind="counter",
        labels=("queue",),
        help="Handlers that outlasted their timeout and could not be stopped.",
        of=QueueStats,
        read=lambda stats: _one(stats.abandoned),
        unit="{handler}",
    ),
    Metric(
        name="job_wait_seconds",
        kind="histogram",
        labels=("queue",),
        help="How long jobs that succeeded had waited since they were added, retries included.",
        of=JobSucceeded,
        read=lambda event: {(event.queue,): event.waited},
        unit="s",
        buckets=PATIENT,
    ),
    Metric(
        name="job_duration_seconds",
        kind="histogram",
        labels=("queue", "outcome"),
        help="How long handlers took until they returned or raised.",
        of=JOB,
        unit="s",
    ),
)
# What only the server knows: of `processor.metrics()`, for those who hand it in.
_SERVER: tuple[Metric[Any], ...] = (
    Metric(
        name="queue_oldest_age_seconds",
        kind="gauge",
        labels=("queue",),
        help="How long the oldest ready job has waited, as the server knows it.",
        of=QueueMetrics,
        read=lambda metrics: _one(metrics.oldest_age),
        unit="s",
        merge="livemax",
    ),
    Metric(
        name="queue_jobs",
        kind="gauge",
        labels=("queue", "state"),
        help="Jobs in the whole queue, as the server knows them.",
        of=QueueMetrics,
        read=lambda metrics: _each(ready=metrics.ready, delayed=metrics.delayed, dead=metrics.dead),
        unit="{job}",
        merge="livemax",
    ),
)

_LISTENERS: tuple[Metric[Any], ...] = (
    Metric(
        name="listener_state",
        kind="gauge",
        labels=("listener", "state"),
        help="1 for the state that the listener is in, 0 for the others.",
        of=ListenerStats,
        read=lambda stats: _which(stats.state, get_args(ListenerState)),
    ),
    Metric(
        name="listener_changes_total",
        kind="counter",
        labels=("listener", "source"),
        help="Changes that came live, and those that were found by catching up.",
        of=ListenerStats,
        read=lambda stats: _each(live=stats.received, catch_up=stats.caught_up),
        unit="{change}",
    ),
    Metric(
        name="listener_changes_lost_total",
        kind="counter",
        labels=("listener",),
        help="Changes that Realtime lost on a healthy connection; catching up found them.",
        of=ListenerStats,
        read=lambda stats: _one(stats.lost),
        unit="{change}",
    ),
    Metric(
        name="listener_connects_total",
        kind="counter",
        labels=("listener",),
        help="Connections to Realtime that were made.",
        of=ListenerStats,
        read=lambda stats: _one(stats.connects),
        unit="{connection}",
    ),
    Metric(
        name="listener_gaps_total",
        kind="counter",
        labels=("listener",),
        help="Times when changes may have been missed.",
        of=ListenerStats,
        read=lambda stats: _one(stats.gaps),
        unit="{gap}",
    ),
    Metric(
        name="listener_catch_ups_total",
        kind="counter",
        labels=("listener",),
        help="Catch-ups that were completed.",
        of=ListenerStats,
        read=lambda stats: _one(stats.catch_ups),
        unit="{catch_up}",
    ),
    Metric(
        name="listener_resyncs_total",
        kind="counter",
        labels=("listener",),
        help="Handlers that were sent back to the beginning.",
        of=ListenerStats,
        read=lambda stats: _one(stats.resyncs),
        unit="{resync}",
    ),
    Metric(
        name="listener_last_change_timestamp_seconds",
        kind="gauge",
        labels=("listener",),
        help="When the last live change came; no series before the first.",
        of=ListenerStats,
        read=lambda stats: _one(stats.last_change_age),
        unit="s",
        is_age=True,
        merge="livemax",
    ),
    Metric(
        name="listener_last_catch_up_timestamp_seconds",
        kind="gauge",
        labels=("listener",),
        help="When a catch-up was last completed; no series before the first.",
        of=ListenerStats,
        read=lambda stats: _one(stats.last_catch_up_age),
        unit="s",
        is_age=True,
        merge="livemin",
    ),
    Metric(
        name="listener_handler_changes_total",
        kind="counter",
        labels=("listener", "handler", "outcome"),
        help="Changes that a handler took, skipped for good, or dropped to read them again later; "
        "failed counts calls that raised.",
        of=ListenerStats,
        read=lambda stats: {
            (name, outcome): number
            for name, handler in stats.handlers.items()
            for outcome, number in (
                ("delivered", handler.delivered),
                ("failed", handler.failed),
                ("skipped", handler.skipped),
                ("dropped", handler.dropped),
            )
        },
        unit="{change}",
    ),
    Metric(
        name="listener_handler_waiting",
        kind="gauge",
        labels=("listener", "handler"),
        help="Changes in a handler's queue.",
        of=ListenerStats,
        read=lambda stats: {(name,): each.waiting for name, each in stats.handlers.items()},
        unit="{change}",
    ),
    Metric(
        name="listener_handler_duration_seconds",
        kind="histogram",
        labels=("listener", "handler", "outcome"),
        help="How long a handler took until it returned or raised.",
        of=HANDLER,
        unit="s",
    ),
    Metric(
        name="listener_catch_up_duration_seconds",
        kind="histogram",
        labels=("listener",),
        help="How long it took to find all that was missed in a gap.",
        of=GapRecovered,
        read=lambda event: {(short(event.listener),): event.seconds},
        unit="s",
        buckets=PATIENT,
    ),
)

_VERIFICATIONS: tuple[Metric[Any], ...] = (
    Metric(
        name="verification_state",
        kind="gauge",
        labels=("verification", "state"),
        help="1 for the state that the verification is in, 0 for the others.",
        of=VerificationStats,
        read=lambda stats: _which(stats.state, get_args(VerificationState)),
    ),
    Metric(
        name="verification_rows_scanned_total",
        kind="counter",
        labels=("verification",),
        help="Rows that were checked, counted at the end of a pass.",
        of=VerificationStats,
        read=lambda stats: _one(stats.rows),
        unit="{row}",
    ),
    Metric(
        name="verification_violations_total",
        kind="counter",
        labels=("verification",),
        help="Violations that were confirmed, counted at the end of a pass.",
        of=VerificationStats,
        read=lambda stats: _one(stats.problem_count),
        unit="{violation}",
    ),
    Metric(
        name="verification_fixes_total",
        kind="counter",
        labels=("verification", "outcome"),
        help="Fixes that were tried; cas_lost means that somebody changed the row first.",
        of=VerificationStats,
        read=lambda stats: _each(
            fixed=stats.fixed, cas_lost=stats.cas_lost, failed=stats.fix_failed
        ),
        unit="{fix}",
    ),
    Metric(
        name="verification_passes_total",
        kind="counter",
        labels=("verification", "outcome"),
        help="Passes that were completed, and those that failed.",
        of=VerificationStats,
        read=lambda stats: _each(completed=stats.passes, failed=stats.failed_passes),
        unit="{pass}",
    ),
    Metric(
        name="verification_open_violations",
        kind="gauge",
        labels=("verification", "rule", "severity"),
        help="Violations that the last pass left.",
        of=VerificationStats,
        read=lambda stats: (
            {}
            if stats.last_report is None
            else {
                (rule.name, rule.severity): rule.open for rule in stats.last_report.rules.values()
            }
        ),
        unit="{violation}",
        merge="livemax",
    ),
    Metric(
        name="verification_fixing_aborted",
        kind="gauge",
        labels=("verification",),
        help="1 if the last pass stopped fixing because too many rows break a rule.",
        of=VerificationStats,
        read=lambda stats: _one(
            stats.last_report is not None and stats.last_report.aborted is not None
        ),
        merge="livemax",
    ),
    Metric(
        name="verification_pass_progress_ratio",
        kind="gauge",
        labels=("verification",),
        help="How far the pass under way has come, 0 to 1; 0 if none is or nobody knows.",
        of=VerificationStats,
        read=lambda stats: _one(stats.progress or 0.0),
        merge="livemax",
    ),
    Metric(
        name="verification_last_pass_success_timestamp_seconds",
        kind="gauge",
        labels=("verification",),
        help="When a pass was last completed; no series before the first.",
        of=VerificationStats,
        read=lambda stats: _one(stats.last_pass_age),
        unit="s",
        is_age=True,
        merge="livemax",
    ),
    Metric(
        name="verification_pass_duration_seconds",
        kind="histogram",
        labels=("verification",),
        help="How long completed passes took.",
        of=PassCompleted,
        read=lambda event: {(short(event.table),): event.seconds},
        unit="s",
        buckets=(1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0, 86400.0),
    ),
    Metric(
        name="verification_batch_duration_seconds",
        kind="histogram",
        labels=("verification", "command", "outcome"),
        help="How long one request of a pass took: a page of rows, a count, a fix.",
        of=BATCH,
        unit="s",
    ),
)

METRICS: tuple[Metric[Any], ...] = (
    *_BREAKERS,
    KEYS_OPEN,
    Metric(
        name="call_duration_seconds",
        kind="histogram",
        labels=("breaker", "method", "outcome"),
        help="How long calls of a protected client took, all their attempts together.",
        of=CALL,
        unit="s",
    ),
    *_QUEUES,
    *_SERVER,
    *_LISTENERS,
    *_VERIFICATIONS,
    Metric(
        name="alert_firing",
        kind="gauge",
        labels=("alert",),
        help="1 while an Alert of the app fires, 0 once it is over.",
        of=(AlertFired, AlertCleared),
        read=lambda event: {(event.alert,): float(isinstance(event, AlertFired))},
    ),
)


def of_stats() -> Iterator[tuple[type[Any], Metric[Any]]]:
    """Those metrics that are read from the statistics of a part, each with their class."""
    for metric in METRICS:
        if isinstance(metric.of, type) and not issubclass(metric.of, Event):
            yield metric.of, metric


def of_events() -> Iterator[tuple[type[Event], Metric[Any]]]:
    """Those metrics that are read from events, each with a class of them."""
    for metric in METRICS:
        kinds = metric.of if isinstance(metric.of, tuple) else (metric.of,)
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Event):
                yield kind, metric


def of_spans() -> Iterator[tuple[str, Metric[Any]]]:
    """Those metrics that are the duration of spans, each with their name."""
    for metric in METRICS:
        if isinstance(metric.of, str):
            yield metric.of, metric
