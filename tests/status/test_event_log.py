"""EventLog: what happened lately, and what fails how often."""

import logging

import pytest

from supabase_resilience.events import (
    CircuitHalfOpened,
    CircuitOpened,
    HandlerFailed,
    JobFailed,
    RetryScheduled,
)
from supabase_resilience.status import EventLog

HALF_OPENED = CircuitHalfOpened(breaker="supabase")
OPENED = CircuitOpened(
    breaker="supabase", cause="failure", reason="gone", failures=5, open_for=30.0
)


def job_failed(error="ValueError", queue="mails"):
    return JobFailed(queue=queue, job="1", attempt=1, error=error, delay=1.0)


def test_the_newest_is_first_and_the_oldest_goes():
    """It remembers as many events as it has room for."""
    log = EventLog(size=2)
    for event in (OPENED, OPENED, HALF_OPENED):
        log(event)
    assert ["circuit.half_opened", "circuit.opened"] == [each.name for each in log.events()]


def test_facts_are_the_fields_of_the_event():
    """Name, severity and fields are what a log line has."""
    log = EventLog()
    log(OPENED)
    (logged,) = log.events()
    assert (logging.WARNING, "gone") == (logged.severity, logged.facts["reason"])


def test_what_is_below_the_level_is_not_kept():
    """A thousand failed jobs push nothing out; with a lower level each is kept."""
    quiet, loud = EventLog(), EventLog(level=logging.DEBUG)
    for log in (quiet, loud):
        log(job_failed())
    assert (0, 1) == (len(quiet.events()), len(loud.events()))


def test_failures_are_counted_by_part_and_reason():
    """One line for each reason, the latest first; retries count by theirs."""
    log = EventLog()
    retry = RetryScheduled(breaker="supabase", attempt=1, delay=0.1, reason="bad gateway (502)")
    handler = HandlerFailed(
        listener="public.projects", handler="cache", error="KeyError", attempt=2, delay=1.0
    )
    for event in (job_failed(), retry, handler, job_failed(), job_failed("KeyError")):
        log(event)
    assert [
        ("job.failed", "mails", "KeyError", 1),
        ("job.failed", "mails", "ValueError", 2),
        ("listener.handler_failed", "public.projects", "KeyError", 1),
        ("retry.scheduled", "supabase", "bad gateway (502)", 1),
    ] == [(each.name, each.part, each.why, each.count) for each in log.failures()]


def test_ways_to_fail_are_bounded():
    """A new reason each time takes no more than a hundred lines."""
    log = EventLog()
    for number in range(150):
        log(job_failed(f"Error{number}"))
    assert (100, "Error149") == (len(log.failures()), log.failures()[0].why)


@pytest.mark.parametrize(
    ("options", "error"),
    [({"size": 0}, ValueError), ({"size": "many"}, TypeError), ({"level": -1}, ValueError)],
)
def test_options_that_make_no_sense(options, error):
    """They are refused by name."""
    with pytest.raises(error, match=next(iter(options))):
        EventLog(**options)
