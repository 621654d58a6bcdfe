"""Events are frozen facts; the default hook logs changes of state and nothing else."""

import dataclasses
import inspect
import json
import logging

import pytest

from supabase_resilience import events
from supabase_resilience.events import (
    AlertCleared,
    AlertFired,
    CallRefused,
    CatchUpFailed,
    ChangeSkipped,
    ChangesLost,
    CircuitClosed,
    CircuitDisabled,
    CircuitHalfOpened,
    CircuitOpened,
    CursorNotSaved,
    DeletesHeld,
    DuplicateSkipped,
    Event,
    FixingAborted,
    GapDetected,
    GapRecovered,
    HandlerAbandoned,
    HandlerBehind,
    HandlerFailed,
    JobDeadLettered,
    JobFailed,
    JobPostponed,
    JobSucceeded,
    LeaseLost,
    LeaseTaken,
    ListenerLost,
    ListenerReady,
    ListenerRefused,
    MigrationOutdated,
    PassCompleted,
    PassFailed,
    PassPaused,
    PassResumed,
    PassStarted,
    QueuePaused,
    QueueReachable,
    QueueResumed,
    QueueUnreachable,
    Resync,
    RetryScheduled,
    RowQuarantined,
    RunnerLeaseLost,
    ViolationFixed,
    log_event,
)

LOGGER = "supabase_resilience"


def opened(cause: str = "failure") -> CircuitOpened:
    return CircuitOpened(breaker="db", cause=cause, reason="no connection", failures=5, open_for=30)


LOGGED: dict[Event, tuple[int, str]] = {
    opened(): (
        logging.WARNING,
        "circuit.opened breaker='db' cause='failure' reason='no connection' failures=5 open_for=30",
    ),
    CircuitHalfOpened(breaker="db"): (logging.INFO, "circuit.half_opened breaker='db'"),
    CircuitClosed(breaker="db", seconds=2.5): (
        logging.INFO,
        "circuit.closed breaker='db' seconds=2.5",
    ),
    CircuitDisabled(breaker="db"): (logging.WARNING, "circuit.disabled breaker='db'"),
    JobDeadLettered(queue="q", job="1", attempts=4, reason="failed 4 times", error="ValueError"): (
        logging.ERROR,
        "job.dead_lettered queue='q' job='1' attempts=4 reason='failed 4 times' error='ValueError'",
    ),
    LeaseLost(queue="q", job="1"): (logging.WARNING, "job.lease_lost queue='q' job='1'"),
    HandlerAbandoned(queue="q", job="1", seconds=5.0): (
        logging.ERROR,
        "queue.handler_abandoned queue='q' job='1' seconds=5.0",
    ),
    QueuePaused(queue="q", reason="timed out"): (
        logging.WARNING,
        "queue.paused queue='q' reason='timed out'",
    ),
    QueueResumed(queue="q", seconds=2.5): (logging.INFO, "queue.resumed queue='q' seconds=2.5"),
    QueueUnreachable(queue="q", reason="timed out", needs_you=False): (
        logging.WARNING,
        "queue.unreachable queue='q' reason='timed out' needs_you=False",
    ),
    QueueReachable(queue="q", seconds=2.5): (logging.INFO, "queue.reachable queue='q' seconds=2.5"),
    MigrationOutdated(part="queue", version=1, remedy="run it again"): (
        logging.WARNING,
        "migration.outdated part='queue' version=1 remedy='run it again'",
    ),
    ListenerReady(listener="public.orders", seconds=0.5): (
        logging.INFO,
        "listener.ready listener='public.orders' seconds=0.5",
    ),
    ListenerLost(listener="public.orders", reason="closed"): (
        logging.WARNING,
        "listener.lost listener='public.orders' reason='closed'",
    ),
    ListenerRefused(listener="public.orders", reason="no table", remedy="create it"): (
        logging.ERROR,
        "listener.refused listener='public.orders' reason='no table' remedy='create it'",
    ),
    GapDetected(listener="public.orders", reason="closed"): (
        logging.INFO,
        "listener.gap_detected listener='public.orders' reason='closed'",
    ),
    GapRecovered(listener="public.orders", changes=3, seconds=0.5): (
        logging.INFO,
        "listener.gap_recovered listener='public.orders' changes=3 seconds=0.5",
    ),
    ChangesLost(listener="public.orders", changes=3): (
        logging.WARNING,
        "listener.changes_lost listener='public.orders' changes=3",
    ),
    CatchUpFailed(listener="public.orders", reason="timed out"): (
        logging.WARNING,
        "listener.catch_up_failed listener='public.orders' reason='timed out'",
    ),
    Resync(listener="public.orders", handler="h", reason="restored"): (
        logging.WARNING,
        "listener.resync listener='public.orders' handler='h' reason='restored'",
    ),
    DeletesHeld(listener="public.orders", handler="h", missing=9, known=10): (
        logging.ERROR,
        "listener.deletes_held listener='public.orders' handler='h' missing=9 known=10",
    ),
    HandlerFailed(
        listener="public.orders", handler="h", error="ValueError", attempt=1, delay=0.1
    ): (
        logging.WARNING,
        (
            "listener.handler_failed listener='public.orders' handler='h' error='ValueError' "
            "attempt=1 delay=0.1"
        ),
    ),
    ChangeSkipped(listener="public.orders", handler="h", key="7", error="ValueError"): (
        logging.ERROR,
        "listener.change_skipped listener='public.orders' handler='h' key='7' error='ValueError'",
    ),
    HandlerBehind(listener="public.orders", handler="h"): (
        logging.WARNING,
        "listener.handler_behind listener='public.orders' handler='h'",
    ),
    CursorNotSaved(table="public.orders", reason="OSError"): (
        logging.WARNING,
        "cursor.not_saved table='public.orders' reason='OSError'",
    ),
    PassStarted(table="public.orders", is_full=True): (
        logging.INFO,
        "verification.pass_started table='public.orders' is_full=True",
    ),
    PassCompleted(table="public.orders", rows=9, violations=2, fixed=1, open=1, seconds=0.5): (
        logging.WARNING,
        (
            "verification.pass_completed table='public.orders' rows=9 violations=2 fixed=1 open=1 "
            "seconds=0.5"
        ),
    ),
    PassFailed(table="public.orders", reason="APIError"): (
        logging.ERROR,
        "verification.pass_failed table='public.orders' reason='APIError'",
    ),
    PassPaused(table="public.orders", reason="throttle"): (
        logging.INFO,
        "verification.pass_paused table='public.orders' reason='throttle'",
    ),
    PassResumed(table="public.orders", seconds=0.5): (
        logging.INFO,
        "verification.pass_resumed table='public.orders' seconds=0.5",
    ),
    RowQuarantined(table="public.orders", rule="dated", key="7"): (
        logging.ERROR,
        "verification.row_quarantined table='public.orders' rule='dated' key='7'",
    ),
    FixingAborted(table="public.orders", rule="dated", reason="too many"): (
        logging.ERROR,
        "verification.fixing_aborted table='public.orders' rule='dated' reason='too many'",
    ),
    LeaseTaken(lease="orders", token=7): (
        logging.INFO,
        "verification.lease_taken lease='orders' token=7",
    ),
    RunnerLeaseLost(lease="orders"): (
        logging.WARNING,
        "verification.lease_lost lease='orders'",
    ),
    AlertFired(alert="problems", seconds=60.0): (
        logging.ERROR,
        "alert.fired alert='problems' seconds=60.0",
    ),
    AlertCleared(alert="problems", seconds=90.0): (
        logging.INFO,
        "alert.cleared alert='problems' seconds=90.0",
    ),
}
COUNTED = [
    CallRefused(breaker="db", retry_after=3.0),
    RetryScheduled(breaker="db", attempt=1, delay=0.1, reason="no connection"),
    JobSucceeded(queue="q", job="1", attempt=1, waited=0.1, seconds=0.1),
    JobFailed(queue="q", job="1", attempt=1, error="ValueError", delay=1.0),
    JobPostponed(queue="q", job="1", reason="timed out", delay=0.0),
    DuplicateSkipped(queue="q", job="1"),
    ViolationFixed(table="public.orders", rule="dated", key="7"),
]
ALL = [*LOGGED, *COUNTED]


def test_all_events_are_here() -> None:
    """This file knows every event that the module exports."""
    exported = [getattr(events, name) for name in events.__all__]
    kinds = {
        kind
        for kind in exported
        if inspect.isclass(kind) and issubclass(kind, Event) and kind is not Event
    }
    assert kinds == {type(event) for event in ALL}


def test_names() -> None:
    """Each event has a dotted name of its own."""
    names = [event.name for event in ALL]
    assert len(set(names)) == len(names)
    assert all(name.count(".") == 1 and name == name.lower() for name in names)


@pytest.mark.parametrize("event", ALL, ids=lambda event: event.name)
def test_frozen(event: Event) -> None:
    """A fact can't be changed, nor told by position, nor given fields it doesn't have."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, dataclasses.fields(event)[0].name, "other")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        type(event)("db")  # type: ignore[call-arg]
    assert not hasattr(event, "__dict__")


@pytest.mark.parametrize(("event", "line"), LOGGED.items(), ids=[event.name for event in LOGGED])
def test_change_of_state_is_logged(
    event: Event, line: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    """One line, at the event's severity: its name and its fields, which the record has apart."""
    with caplog.at_level(logging.DEBUG, LOGGER):
        log_event(event)
    [record] = caplog.records
    assert line == (record.levelno, record.getMessage())
    assert record.levelno == event.severity
    parts = vars(record)
    assert (event.name, dataclasses.asdict(event)) == (parts["event"], parts["resilience"])  # type: ignore[call-overload]
    assert parts["resilience"] == json.loads(json.dumps(parts["resilience"]))


def test_seconds_are_told_to_the_millisecond(caplog: pytest.LogCaptureFixture) -> None:
    """By the message; the record has them as they are."""
    with caplog.at_level(logging.DEBUG, LOGGER):
        log_event(CircuitClosed(breaker="db", seconds=2 / 3))
    [record] = caplog.records
    assert record.getMessage().endswith("seconds=0.667")
    assert 2 / 3 == vars(record)["resilience"]["seconds"]


def test_only_plain_values_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """What an event of somebody else's holds beside them might be a row."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OrderSeen(Event):
        name = "order.seen"
        row: dict[str, str]
        number: int

    with caplog.at_level(logging.INFO, LOGGER):
        log_event(OrderSeen(row={"card": "4711"}, number=3))
    [record] = caplog.records
    assert {"number": 3} == vars(record)["resilience"]
    assert "order.seen number=3" == record.getMessage()


@pytest.mark.parametrize("event", COUNTED, ids=lambda event: event.name)
def test_one_of_many_is_not_logged(event: Event, caplog: pytest.LogCaptureFixture) -> None:
    """Refusals and retries, thousands in an outage, are counted elsewhere and never logged."""
    with caplog.at_level(logging.DEBUG, LOGGER):
        log_event(event)
    assert caplog.records == []
    assert event.severity == logging.DEBUG


def test_blocked_is_an_error() -> None:
    """A circuit that a person has to see to is an error; the other causes are warnings."""
    assert logging.ERROR == opened("blocked").severity
    assert {logging.WARNING} == {opened(c).severity for c in ("failure", "throttled", "forced")}


def test_quiet_logger(caplog: pytest.LogCaptureFixture) -> None:
    """What the logger's level excludes isn't even put into words."""

    class Unprintable(str):
        __slots__ = ()

        def __repr__(self) -> str:
            raise AssertionError("put into words")

    with caplog.at_level(logging.ERROR, LOGGER):
        log_event(CircuitClosed(breaker=Unprintable("db"), seconds=1.0))
    assert caplog.records == []


def test_text_with_line_breaks(caplog: pytest.LogCaptureFixture) -> None:
    """A name or reason can't forge a line of the log."""
    with caplog.at_level(logging.DEBUG, LOGGER):
        log_event(CircuitHalfOpened(breaker="db\nERROR forged"))
    assert "\n" not in caplog.records[0].getMessage()


def test_severities_that_depend_on_the_fact() -> None:
    """A clean pass and a handler's later tries are no news; what is left open is."""
    clean = PassCompleted(table="t", rows=9, violations=1, fixed=1, open=0, seconds=0.5)
    assert logging.INFO == clean.severity
    again = HandlerFailed(listener="t", handler="h", error="ValueError", attempt=2, delay=0.1)
    assert logging.DEBUG == again.severity
