"""When a durable queue's reader goes to its queue: never never."""

import pytest

from supabase_resilience.queues._core import Core
from supabase_resilience.queues._hand import Hand
from supabase_resilience.queues._jobs import Job, Settlement
from supabase_resilience.testing import FakeClock, RecordingHook

from .test_choices import settings


def made(concurrency: int = 4) -> tuple[Core, Hand, FakeClock]:
    clock = FakeClock()
    core = Core(None, settings(concurrency=concurrency), None, RecordingHook(), clock)
    core.begin()
    return core, Hand(core), clock


def jobs(count: int) -> list[Job]:
    return [Job(str(number), None, enqueued_at=4e9) for number in range(count)]


@pytest.mark.parametrize("concurrency", [1, 2, 16])
@pytest.mark.parametrize("breaks", [1, 3, 9])
@pytest.mark.parametrize("has_read", [True, False])
def test_no_break_lasts_for_ever(concurrency, breaks, has_read):
    """With empty hands there is always a time, and at it one job is asked for."""
    core, hand, clock = made(concurrency)
    if has_read:
        hand.begin_trip()
        hand.ended_trip(concurrency, 0)
        clock.advance(10.0)
    for _ in range(breaks):
        core.books.brake.hit(None)
        clock.advance(60.0)
    core.books.brake.hit(None)
    wait = hand.turn_in()
    assert wait is not None
    assert 0.0 < wait <= 60.0
    clock.advance(wait)
    assert 0.0 == hand.turn_in()
    assert ({}, 1) == hand.begin_trip()


def test_a_break_with_a_job_in_hand_ends_with_that_job():
    """Nothing is read beside the job that is being tried; its end makes it due."""
    core, hand, clock = made()
    core.books.brake.hit(None)
    clock.advance(60.0)
    (job,) = jobs(1)
    hand.hold([job], clock() + 30.0)
    assert core.ready.take() is job
    core.books.brake.try_one()
    assert hand.turn_in() is None
    core.books.release_brake()
    hand.release(job)
    wait = hand.turn_in()
    assert wait is not None
    assert wait <= 0.02


def test_settlements_do_not_wait_for_the_end_of_a_break():
    """What was done in it is told within 20 ms, and nothing is read with it."""
    core, hand, clock = made()
    (job,) = jobs(1)
    hand.hold([job], clock() + 30.0)
    assert core.ready.take() is job
    core.books.brake.hit(None)
    told = Settlement(kind="postponed", job=job)
    hand.post(told)
    hand.release(job)
    wait = hand.turn_in()
    assert wait is not None
    assert wait <= 0.02
    assert ({"": [told]}, 0) == hand.begin_trip()


def test_full_hands_ask_for_nothing():
    """Never more jobs than can start at once."""
    core, hand, clock = made(concurrency=2)
    first, second = jobs(2)
    hand.hold([first, second], clock() + 30.0)
    assert hand.turn_in() is None
    assert core.ready.take() is first
    hand.release(first)
    assert hand.turn_in() is not None
    assert ({}, 1) == hand.begin_trip()


def test_what_could_not_be_told_is_told_again_while_it_matters():
    """A settlement whose lease has ended is of no use; its job is lost."""
    core, hand, clock = made()
    soon, late = jobs(2)
    hand.hold([soon], clock() + 1.0)
    hand.hold([late], clock() + 30.0)
    for job in (core.ready.take(), core.ready.take()):
        assert job is not None
        hand.post(Settlement(kind="done", job=job))
        hand.release(job)
    parts, _ = hand.begin_trip()
    clock.advance(2.0)
    assert [soon] == hand.failed_trip(ConnectionError(), parts[""])
    clock.advance(60.0)
    assert 0.0 == hand.turn_in()
    again, _ = hand.begin_trip()
    assert [late] == [each.job for each in again[""]]


def test_a_paused_or_stopped_queue_is_not_read():
    """There is no time at which it would be."""
    core, hand, _ = made()
    core.is_paused = True
    assert hand.turn_in() is None
    core.is_paused = False
    assert 0.0 == hand.turn_in()
    core.begin_stop(drain=True)
    assert hand.turn_in() is None
    assert hand.is_over()


def test_a_job_that_was_given_back_is_not_ended_again():
    """A handler that was left alone may still settle it: that counts for nobody."""
    core, hand, _ = made()
    (job,) = jobs(1)
    hand.hold([job], 30.0)
    assert job is core.ready.take()
    assert [job] == [each.job for each in hand.drop()]
    hand.release(job)
    assert (0, 1) == (len(hand), core.ready.in_hand)
