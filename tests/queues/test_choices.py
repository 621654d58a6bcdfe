"""The choices of a queue, with a clock that a test moves."""

import logging

import pytest

from supabase_resilience import CircuitOpenError, HandlerTimeoutError, Postpone, QueueError, _clock
from supabase_resilience.events import QueueUnreachable
from supabase_resilience.failures import classify
from supabase_resilience.queues._core import Core
from supabase_resilience.queues._decisions import (
    Brake,
    Intake,
    Lanes,
    LaneShares,
    Pace,
    Recent,
    Settings,
    judge,
    refuse,
)
from supabase_resilience.queues._hand import Hand
from supabase_resilience.queues._jobs import Job
from supabase_resilience.testing import FakeClock, RecordingHook

DEFAULTS = {
    "concurrency": 1,
    "retry_delay": 1.0,
    "max_retries": 3,
    "backoff": 2.0,
    "max_retry_delay": 300.0,
    "visibility_timeout": 30.0,
    "handler_timeout": None,
    "max_age": None,
    "max_deliveries": 20,
    "lanes": None,
    "strict_order": False,
}


def settings(**options) -> Settings:
    return Settings(**{**DEFAULTS, **options})


def job(**options) -> Job:
    return Job("id", "data", **{"enqueued_at": 4e9, **options})


# --- what becomes of a job ------------------------------------------------------------------------


def test_a_fixed_delay_stays_fixed():
    """With a back-off of 1."""
    assert {1.5} == {settings(retry_delay=1.5, backoff=1.0).retry_delay_after(n) for n in (1, 5)}


@pytest.mark.parametrize(("attempt", "longest"), [(1, 1.0), (2, 2.0), (5, 16.0), (5000, 300.0)])
def test_delays_double_with_full_jitter_up_to_the_longest(attempt, longest):
    """Any time up to the doubled delay."""
    drawn = [settings().retry_delay_after(attempt) for _ in range(300)]
    assert 0.0 <= min(drawn) < longest * 0.1
    assert longest * 0.9 < max(drawn) <= longest


@pytest.mark.parametrize(("attempt", "kind"), [(1, "retry"), (3, "retry"), (4, "dead")])
def test_retries_come_after_the_first_attempt(attempt, kind):
    """Three retries are four attempts."""
    assert kind == judge(job(attempt=attempt), ValueError(), settings()).kind


@pytest.mark.parametrize(
    "error", [ConnectionError(), TimeoutError(), CircuitOpenError("b", 1.0), Postpone(3.0)]
)
def test_an_outage_is_no_attempt(error):
    """Not even for a job without attempts left."""
    assert "postponed" == judge(job(attempt=9), error, settings()).kind


def test_a_slow_handler_spends_an_attempt():
    """Its timeout is no outage, or a slow job would be repeated for ever."""
    assert "dead" == judge(job(attempt=4), HandlerTimeoutError(), settings()).kind


@pytest.mark.parametrize("error", [ConnectionError(), ValueError(), Postpone(1.0)])
def test_age_ends_everything(error):
    """An outage, too, can only postpone a job up to its largest age."""
    assert "dead" == judge(job(enqueued_at=1.0), error, settings(max_age=60.0)).kind


def test_a_job_that_kills_its_workers_is_given_up_on():
    """Deliveries without an end count; those that came to one don't."""
    killer = job(deliveries=21)
    assert refuse(killer, settings()) is not None
    killer.outlived = 5
    assert refuse(killer, settings()) is None


def test_a_letter_tells_the_end_of_a_long_traceback_and_hides_the_data():
    """The last lines are those that matter."""
    settlement = judge(job(attempt=4), ValueError("x" * 20_000 + "end"), settings())
    assert settlement.letter is not None
    assert settlement.letter.traceback.endswith("end\n")
    assert len(settlement.letter.traceback) <= 8_000
    assert "'data'" not in repr(settlement.letter) + repr(settlement.job)


# --- when to ask again ----------------------------------------------------------------------------


def test_an_empty_queue_is_asked_ever_less_often():
    """From a tenth of a second to five and a half, a tenth more or less; a find starts over."""
    pace = Pace()
    waits = [pace.nothing() for _ in range(30)]
    assert waits[0] <= 0.11
    assert all(0.9 * 5.5 <= wait <= 1.1 * 5.5 for wait in waits[-5:])
    assert 0.0 == pace.found()
    assert pace.nothing() <= 0.11


def test_a_circuit_says_when_to_ask_again():
    """What it asks for is waited at least."""
    assert Pace().failed(classify(CircuitOpenError("b", 42.0)), is_urgent=False) >= 42.0


def test_a_place_that_is_alone_does_not_wait_for_others():
    """Nothing else is about to become free, so its read is due at once."""
    intake = Intake(16, FakeClock())
    assert 0.0 == intake.wait(free=1, settlements=0)


def test_places_wait_for_each_other():
    """For 20 ms, or until seven of eight are free."""
    clock = FakeClock()
    intake = Intake(16, clock)
    intake.freed()
    assert pytest.approx(0.02) == intake.wait(free=2, settlements=0)
    assert pytest.approx(0.02) == intake.wait(free=13, settlements=0)
    assert 0.0 == intake.wait(free=14, settlements=0)
    clock.advance(0.03)
    assert 0.0 == intake.wait(free=2, settlements=0)


def test_failed_reads_wait_ever_longer_and_urgent_ones_do_not(monkeypatch):
    """What is to be settled matters only until its lease ends."""
    monkeypatch.setattr("random.uniform", lambda low, _: low)
    outage = classify(ConnectionError())
    pace = Pace()
    assert [0.5, 1.0, 2.0] == [pace.failed(outage, is_urgent=False) for _ in range(3)]
    assert 0.5 == pace.failed(outage, is_urgent=True)
    assert 8.0 == pace.failed(outage, is_urgent=False)


def test_a_job_of_which_nothing_is_known_is_no_duplicate():
    """Neither without a key, nor with a key that nobody had or a time that nobody told."""
    recent = Recent()
    assert Job("fresh", None) not in recent
    assert Job("keyed", None, dedupe_key="k") not in recent


def test_a_failure_is_waited_for_by_whoever_has_something_to_say(monkeypatch):
    """A place that is free, or a settlement alone; with neither there is no next round trip."""
    monkeypatch.setattr("random.uniform", lambda low, _: low)
    intake = Intake(4, FakeClock())
    intake.failed(classify(ConnectionError()), is_urgent=False)
    assert [0.5, 0.5, float("inf")] == [
        intake.wait(free=free, settlements=count) for free, count in ((1, 0), (0, 1), (0, 0))
    ]


def test_the_only_place_waits_for_no_other():
    """All that can be free is."""
    intake = Intake(1, FakeClock())
    intake.freed()
    assert 0.0 == intake.wait(free=1, settlements=0)


def test_the_first_job_goes_by_urgency():
    """Nothing is reserved before something was taken."""
    shares = LaneShares(["_high", ""])
    assert 0 == shares.reserve(16)
    shares.took(10, 0)
    assert 1 == shares.reserve(16)


def test_a_job_that_will_be_too_old_is_given_up_at_once():
    """Before it has waited in vain for its next try."""
    young = job(enqueued_at=_clock.wall() - 50.0)
    assert "dead" == judge(young, Postpone(20.0), settings(max_age=60.0)).kind
    assert "postponed" == judge(young, Postpone(5.0), settings(max_age=60.0)).kind


def test_a_settlement_that_works_ends_the_wait_of_a_failure():
    """Whoever answers it answers a read as well, so what failed counts no more."""
    clock = FakeClock()
    intake = Intake(1, clock)
    for _ in range(3):
        intake.failed(classify(ConnectionError()), is_urgent=False)
    assert intake.pace.has_failed
    intake.settled()
    assert not intake.pace.has_failed
    intake.freed()
    assert pytest.approx(Intake.LINGER) == intake.wait(free=0, settlements=1)


def test_the_last_that_were_done_are_known_and_no_more():
    """The oldest is forgotten, by its id and by its key."""
    recent = Recent(limit=2)
    done = [Job(str(number), None, dedupe_key=f"k{number}") for number in range(3)]
    for each in done:
        each.sent_at, each.hidden_until = 10.0, 50.0
        recent.add(each, 30.0)
    assert [False, True, True] == [each in recent for each in done]
    again = [Job(f"new{number}", None, dedupe_key=f"k{number}") for number in range(3)]
    for each in again:
        each.sent_at = 15.0
    assert [False, True, True] == [each in recent for each in again]


def test_nothing_is_told_in_a_loop_while_it_fails():
    """Settlements wait for the back-off, too."""
    intake = Intake(1, FakeClock())
    intake.failed(classify(CircuitOpenError("b", 5.0)), is_urgent=True)
    assert intake.wait(free=0, settlements=3) >= 5.0


def test_a_break_ends_after_one_job_that_works():
    """One is let through at a time; what was in hand when it began makes it no longer."""
    clock = FakeClock()
    brake = Brake(clock)
    assert brake.hit(None)
    assert not brake.hit(None)
    wait = brake.wait()
    assert wait is not None
    assert 0.5 <= wait <= 1.0
    clock.advance(1.0)
    assert 0.0 == brake.wait()
    brake.try_one()
    assert brake.wait() is None
    assert brake.release() is not None
    assert 0.0 == brake.wait()


def test_breaks_grow():
    """Each in vain doubles the next, up to a minute."""
    clock = FakeClock()
    brake = Brake(clock)
    for _ in range(12):
        brake.hit(None)
        clock.advance(60.0)
    brake.hit(None)
    wait = brake.wait()
    assert wait is not None
    assert 30.0 <= wait <= 60.0


def test_a_break_is_waited_for_and_no_longer():
    """A reader that has nothing in hand sleeps until the break ends, never for ever."""
    clock = FakeClock()
    core = Core(None, settings(), None, RecordingHook(), clock)
    core.begin()
    core.books.brake.hit(None)
    wait = Hand(core).turn_in()
    assert wait is not None
    assert 0.5 <= wait <= 1.0
    clock.advance(1.0)
    assert 0.0 == Hand(core).turn_in()


def test_what_somebody_must_set_right_is_told_in_words():
    """Once, as an error, with what the queue's own error says first."""
    hook = RecordingHook()
    books = Core(None, settings(), None, hook, FakeClock()).books
    for _ in range(2):
        books.unreachable(
            QueueError("the queue 'jobs' does not exist\nselect pgmq.create('jobs');")
        )
    (event,) = hook.events
    assert isinstance(event, QueueUnreachable)
    assert (True, "the queue 'jobs' does not exist") == (event.needs_you, event.reason)
    assert logging.ERROR == event.severity


# --- whose turn it is -----------------------------------------------------------------------------


def test_a_priority_travels_in_the_first_lane_that_it_reaches():
    """The queue itself is the lane of all the others."""
    lanes = Lanes({10: "_high", 100: "_urgent"})
    assert ["_urgent", "_high", ""] == lanes.suffixes
    assert ["", "_high", "_high", "_urgent"] == [lanes.of(p) for p in (9, 10, 99, 100)]


@pytest.mark.parametrize("lanes", [{1: "_dead"}, {1: "_a", 2: "_a"}, {1: ""}, {True: "_a"}, [1]])
def test_lanes_that_make_no_sense_are_refused(lanes):
    """At construction."""
    with pytest.raises((ValueError, TypeError), match="lanes"):
        Lanes(lanes)


def test_one_of_ten_comes_from_a_lower_lane():
    """Each lower lane in turn, however full the highest is."""
    shares, taken = LaneShares(["_high", "_mid", ""]), {"_high": 0, "_mid": 0, "": 0}
    for _ in range(1000):
        reserved, left = shares.reserve(1), 1
        for lane, most in shares.rounds(1):
            got = min(most, left)
            taken[lane] += got
            left -= got
        shares.took(1, reserved)
    assert pytest.approx(900, abs=10) == taken["_high"]
    assert pytest.approx(50, abs=5) == taken["_mid"]
    assert pytest.approx(50, abs=5) == taken[""]


def test_a_duplicate_is_known_by_its_id_or_by_a_key_that_waited_beside_it():
    """One with the same key that came later is meant to run."""
    recent, first = Recent(), job(dedupe_key="k")
    first.hidden_until = 130.0  # read at 100 for 30 s
    recent.add(first, 30.0)
    assert first in recent
    beside, later = Job("2", 0, dedupe_key="k"), Job("3", 0, dedupe_key="k")
    beside.sent_at, later.sent_at = 99.0, 101.0
    assert beside in recent
    assert later not in recent


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("concurrency", 0),
        ("max_retries", -1),
        ("backoff", 0.5),
        ("visibility_timeout", 0.0),
        ("handler_timeout", 0.0),
        ("max_age", -1.0),
        ("max_deliveries", 0),
        ("retry_delay", float("nan")),
    ],
)
def test_numbers_that_make_no_sense_are_refused(name, value):
    """The error names the argument and the value."""
    with pytest.raises(ValueError, match=name):
        settings(**{name: value})


def test_strict_order_needs_one_worker():
    """Two would overtake each other."""
    with pytest.raises(ValueError, match="strict_order needs concurrency=1, got concurrency=2"):
        settings(strict_order=True, concurrency=2)
