"""What the statistics of a part say about it: ok, degraded or failing, why, and since when."""

from dataclasses import replace

import pytest

from supabase_resilience import (
    CircuitBreaker,
    ListenerStats,
    QueueProcessor,
    QueueStats,
    VerificationStats,
)
from supabase_resilience._health import HealthBook, judge
from supabase_resilience.failures import classify
from supabase_resilience.testing import FakeClock

QUEUE: QueueStats = replace(QueueProcessor(print).get_stats(), state="running")
LISTENER = ListenerStats(
    table="public.projects",
    state="live",
    reason=None,
    received=0,
    lost=0,
    caught_up=0,
    connects=1,
    gaps=0,
    catch_ups=1,
    resyncs=0,
    last_change_age=None,
    last_catch_up_age=1.0,
    handlers={},
)
VERIFICATION = VerificationStats(
    table="public.orders",
    state="waiting",
    reason=None,
    problem_count=0,
    fixed=0,
    cas_lost=0,
    fix_failed=0,
    open=0,
    passes=1,
    failed_passes=0,
    rows=1,
    progress=None,
    last_pass_age=1.0,
    last_report=None,
)
LOST = "the connection was lost"


@pytest.mark.parametrize(
    ("stats", "status", "reason"),
    [
        (QUEUE, "ok", None),
        (replace(QUEUE, state="new"), "ok", None),
        (replace(QUEUE, is_reachable=False, reason=LOST), "degraded", LOST),
        (replace(QUEUE, needs_you=True, reason="no such queue"), "failing", "no such queue"),
        (replace(QUEUE, state="paused", reason="paused by hand"), "degraded", "paused by hand"),
        (replace(QUEUE, state="stopped"), "failing", "it is stopped"),
        (replace(QUEUE, state="stopping"), "failing", "it is stopping"),
        (LISTENER, "ok", None),
        (replace(LISTENER, reason="PGRST002"), "degraded", "PGRST002"),
        (replace(LISTENER, state="connecting", reason=LOST), "degraded", LOST),
        (replace(LISTENER, state="catching_up"), "degraded", "it is catching up"),
        (replace(LISTENER, state="refused", reason="no such table"), "failing", "no such table"),
        (replace(LISTENER, state="stopped"), "failing", "it is stopped"),
        (VERIFICATION, "ok", None),
        (replace(VERIFICATION, state="verifying"), "ok", None),
        (replace(VERIFICATION, state="paused"), "degraded", "paused by hand"),
        (replace(VERIFICATION, reason="APIError"), "degraded", "APIError"),
        (replace(VERIFICATION, state="stopped"), "failing", "it is stopped"),
        # Rows that break a rule are what a verification is for; an alert can be set on them.
        (replace(VERIFICATION, open=7, problem_count=9), "ok", None),
    ],
    ids=repr,
)
def test_each_state_has_its_meaning(stats, status, reason) -> None:
    """What helps itself is degraded, what needs a person is failing."""
    assert (status, reason) == judge(stats)


def test_an_open_circuit_is_degraded() -> None:
    """It says what was seen, and is ok again when it is closed."""
    clock = FakeClock()
    breaker = CircuitBreaker(failure_threshold=1, clock=clock, jitter=0.0)
    assert ("ok", None) == judge(breaker.get_stats())
    with pytest.raises(ConnectionError):
        breaker.execute(_fail)
    reason = classify(ConnectionError()).reason
    assert ("degraded", f"the circuit is open: {reason}") == judge(breaker.get_stats())
    clock.advance(30.0)
    breaker.execute(int)
    assert ("ok", None) == judge(breaker.get_stats())
    assert breaker.get_stats().cause is None


def _fail() -> None:
    raise ConnectionError


def test_what_is_set_by_hand_is_degraded() -> None:
    """A person knows, and others should."""
    breaker = CircuitBreaker()
    breaker.force_open()
    assert ("degraded", "opened by hand: every call is refused") == judge(breaker.get_stats())
    breaker.disable()
    assert ("degraded", "disabled: no call is judged") == judge(breaker.get_stats())
    breaker.reset()
    assert ("ok", None) == judge(breaker.get_stats())


def test_a_blocked_project_is_failing() -> None:
    """A wrong key heals by no waiting."""
    breaker = CircuitBreaker(
        classify=lambda _: replace(classify(ConnectionError()), verdict="blocked", reason="no key")
    )
    with pytest.raises(ConnectionError):
        breaker.execute(_fail)
    assert ("failing", "the circuit is open: no key") == judge(breaker.get_stats())


def test_since_is_when_the_status_changed() -> None:
    """A new reason for the same status changes nothing; a part that was gone begins anew."""
    book, lost = HealthBook(), replace(LISTENER, state="connecting", reason=LOST)
    looks = [
        (10.0, LISTENER),
        (20.0, lost),
        (30.0, replace(lost, reason="another")),
        (40.0, LISTENER),
    ]
    since = [book.look({"listener:projects": s}, now).parts[0].since for now, s in looks]
    assert [10.0, 20.0, 20.0, 40.0] == since
    assert () == book.look({}, 50.0).parts
    assert 60.0 == book.look({"listener:projects": LISTENER}, 60.0).parts[0].since


def test_a_breaker_knows_its_since_by_itself() -> None:
    """Also when nobody looked for a while."""
    clock = FakeClock()
    breaker = CircuitBreaker(clock=clock)
    book = HealthBook()
    book.look({"breaker:db": breaker.get_stats()}, 100.0)
    breaker.force_open()
    clock.advance(7.0)
    (part,) = book.look({"breaker:db": breaker.get_stats()}, 110.0).parts
    assert ("degraded", 103.0) == (part.status, part.since)


def test_the_worst_part_counts() -> None:
    """Nothing at all is ok."""
    book = HealthBook()
    assert "ok" == book.look({}, 0.0).status
    parts = {"a": QUEUE, "b": replace(LISTENER, state="connecting")}
    assert "degraded" == book.look(parts, 0.0).status
    parts["c"] = replace(VERIFICATION, state="stopped")
    assert "failing" == book.look(parts, 0.0).status
    assert ["queue", "listener", "verification"] == [p.kind for p in book.look(parts, 0.0).parts]
