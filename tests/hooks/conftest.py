"""Statistics of each kind, as parts give them, for hooks to look at."""

from dataclasses import replace

import pytest

from supabase_resilience import (
    BreakerStats,
    HandlerStats,
    ListenerStats,
    QueueMetrics,
    QueueStats,
    Report,
    VerificationStats,
)

BREAKER = BreakerStats(
    name="supabase",
    state="open",
    seconds_in_state=3.0,
    current_failures=5,
    successes=100,
    failures=7,
    neutral=3,
    throttled=2,
    blocked=1,
    refused=40,
    retries=6,
    retries_refused=4,
    budget_left=9.5,
    opened=2,
    closed=1,
    retry_after=27.0,
    cause="failure",
    reason="bad gateway (502)",
)
TABLE = replace(BREAKER, name="supabase:public.orders", successes=5000)
QUEUE = QueueStats(
    queue="mails",
    state="running",
    paused_for_outage=True,
    is_reachable=False,
    needs_you=True,
    reason="no connection",
    enqueued=30,
    started=28,
    succeeded=20,
    failed=5,
    retried=3,
    postponed=1,
    dead=2,
    duplicates=4,
    lost_leases=6,
    abandoned=7,
    waiting=8,
    in_flight=9,
    run_p50=0.1,
    run_p95=0.2,
    run_p99=0.3,
    wait_p50=1.0,
    wait_p95=2.0,
    wait_p99=3.0,
)
SERVER = QueueMetrics(queue="mails", ready=11, delayed=12, oldest_age=345.0, dead=None)
HANDLER = HandlerStats(
    delivered=50, failed=6, skipped=1, caught_up=5, waiting=3, dropped=2, is_behind=False
)
LISTENER = ListenerStats(
    table="public.projects",
    state="live",
    reason=None,
    received=60,
    lost=4,
    caught_up=9,
    connects=3,
    gaps=2,
    catch_ups=8,
    resyncs=1,
    last_change_age=10.0,
    last_catch_up_age=20.0,
    handlers={"notify": HANDLER},
)


def report(*rules: str) -> Report:
    """Return a report in which each rule has one open violation, the row of which is secret."""
    made = Report("public.orders")
    for name in rules:
        made.rule(name, "error").fates["left"] += 1
    return made


VERIFICATION = VerificationStats(
    table="public.orders",
    state="verifying",
    reason=None,
    problem_count=25,
    fixed=10,
    cas_lost=3,
    fix_failed=2,
    open=1,
    passes=4,
    failed_passes=1,
    rows=900,
    progress=0.5,
    last_pass_age=100.0,
    last_report=report("total_matches"),
)


@pytest.fixture
def stats():
    """Return what `Resilience.get_stats()` would, with one table's circuit besides."""
    return {
        "breaker:supabase": BREAKER,
        "breaker:supabase/orders": TABLE,
        "queue:mails": QUEUE,
        "listener:projects": LISTENER,
        "verification:orders": VERIFICATION,
    }


@pytest.fixture
def server():
    """Return what `processor.metrics()` would."""
    return SERVER
