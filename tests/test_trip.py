"""FailureRate: the share of calls that failed, in a window of time or of calls, slow ones included.

The windows keep running totals; the model here keeps the calls themselves and counts them anew.
"""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from supabase_resilience import CircuitBreaker, Classification, FailureRate
from supabase_resilience.events import CircuitOpened
from supabase_resilience.testing import FakeClock, RecordingHook
from supabase_resilience.trip import Window

pytestmark = pytest.mark.anyio

Make = Callable[..., CircuitBreaker]
DOWN = httpx.ConnectError("no route")
LOST = Classification(verdict="failure", connection_lost=True)
FAILURE = Classification(verdict="failure")
SUCCESS = Classification(verdict="success")
PATIENCE = 60.0


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def hook():
    return RecordingHook()


@pytest.fixture
def make(clock: FakeClock, hook: RecordingHook) -> Make:
    def make(**rule: Any) -> CircuitBreaker:
        trip = FailureRate(**{"minimum_calls": 4, "window": 10.0, **rule})
        return CircuitBreaker(trip=trip, jitter=0.0, clock=clock, on_event=hook)

    return make


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.settle(breaker.acquire(), FAILURE)


def succeed(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.execute(int)


def failures(breaker: CircuitBreaker) -> int:
    return breaker.get_stats().current_failures


# --- the share ----------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [None, 50], ids=["time", "calls"])
@pytest.mark.parametrize(
    ("threshold", "successes", "allowed"),
    [(0.5, 10, 9), (0.5, 0, 3), (1.0, 0, 3), (0.1, 18, 1), (0.75, 5, 14), (1e-9, 8, 0)],
)
def test_opens_at_the_share(
    make: Make, calls: int | None, threshold: float, successes: int, allowed: int
) -> None:
    """The failure that makes the share reach the threshold opens, and none before it."""
    breaker = make(threshold=threshold, calls=calls)
    succeed(breaker, successes)
    fail(breaker, allowed)
    assert "closed" == breaker.get_state()
    fail(breaker)
    assert "open" == breaker.get_state()


@given(failed=st.integers(1, 100))
@example(failed=55)
@example(failed=7)
def test_share_as_written(failed: int) -> None:
    """Shares written in decimals are met exactly: 55 of 100 is 0.55, 54 is not."""
    rule = FailureRate(threshold=float(f"{failed / 100:.2f}"))
    assert rule.is_reached(failed, 100 - failed)
    assert not rule.is_reached(failed - 1, 101 - failed)


@pytest.mark.parametrize("calls", [None, 50], ids=["time", "calls"])
def test_minimum_calls(make: Make, calls: int | None) -> None:
    """With fewer calls than the minimum nothing opens, were they all to fail; then at once."""
    breaker = make(minimum_calls=6, calls=calls)
    fail(breaker, 5)
    assert "closed" == breaker.get_state()
    fail(breaker)
    assert "open" == breaker.get_state()


def test_success_never_opens(make: Make) -> None:
    """Only a failure opens, also where a success is the call that completes the minimum."""
    breaker = make(threshold=0.5)
    fail(breaker, 3)
    succeed(breaker)
    assert "closed" == breaker.get_state()
    fail(breaker)
    assert "open" == breaker.get_state()


def test_takes_the_place_of_the_count(make: Make) -> None:
    """Failures in a row do not open by themselves, and a success between them forgets nothing."""
    breaker = make(threshold=0.9)
    succeed(breaker, 4)
    fail(breaker, 30)
    succeed(breaker)
    assert ("closed", 30) == (breaker.get_state(), failures(breaker))
    fail(breaker, 15)
    assert "open" == breaker.get_state()


def test_neutral_outcomes_are_no_calls(make: Make) -> None:
    """What says nothing counts neither as a failure nor as a call."""
    breaker = make()
    for _ in range(50):
        breaker.release(breaker.acquire())
        breaker.settle(breaker.acquire(), Classification(verdict="failure", scope="query"))
    fail(breaker, 3)
    assert "closed" == breaker.get_state()
    fail(breaker)
    assert "open" == breaker.get_state()


def test_burst_counts_once(make: Make) -> None:
    """Calls in flight that lose one connection are one failure in the window, too."""
    breaker = make()
    permits = [breaker.acquire() for _ in range(20)]
    for permit in permits:
        breaker.settle(permit, LOST)
    assert ("closed", 1) == (breaker.get_state(), failures(breaker))


def test_success_from_before_a_loss_counts(make: Make) -> None:
    """A loss changes no state: a success of a call that began before it counts as ever."""
    breaker = make()
    before = breaker.acquire()
    breaker.settle(breaker.acquire(), LOST)
    for _ in range(3):
        breaker.settle(before, SUCCESS)
    fail(breaker)
    assert "closed" == breaker.get_state()
    fail(breaker)
    assert "open" == breaker.get_state()


@pytest.mark.parametrize("verdict", ["throttled", "blocked"])
@pytest.mark.parametrize("calls", [None, 50], ids=["time", "calls"])
def test_opens_at_once(make: Make, verdict: Any, calls: int | None) -> None:
    """Throttled and blocked open at once, whatever the window says."""
    breaker = make(calls=calls)
    succeed(breaker, 40)
    breaker.settle(breaker.acquire(), Classification(verdict=verdict))
    assert "open" == breaker.get_state()


# --- the window of time -------------------------------------------------------------------------


def test_calls_stop_counting(make: Make, clock: FakeClock) -> None:
    """A failure counts for the whole window, and not a moment longer."""
    breaker = make()
    fail(breaker, 3)
    clock.advance(9.0)
    assert 3 == failures(breaker)
    clock.advance(1.0)
    assert 0 == failures(breaker)
    fail(breaker, 3)
    assert ("closed", 3) == (breaker.get_state(), failures(breaker))


def test_successes_stop_counting(make: Make, clock: FakeClock) -> None:
    """Good times long ago do not outweigh an outage."""
    breaker = make()
    succeed(breaker, 1000)
    clock.advance(10.0)
    fail(breaker, 4)
    assert "open" == breaker.get_state()


def test_moves_in_tenths(make: Make, clock: FakeClock) -> None:
    """Calls of one tenth stop counting together, with the first of them."""
    breaker = make(minimum_calls=100)
    for _ in range(4):
        fail(breaker)
        clock.advance(0.25)
    fail(breaker)
    clock.advance(8.75)
    assert 5 == failures(breaker)
    clock.advance(0.25)
    assert 1 == failures(breaker)


def test_tenth_ends_where_the_next_begins(make: Make, clock: FakeClock) -> None:
    """A success at the very end of a tenth belongs to the next, and counts as long as that."""
    breaker = make(minimum_calls=1, threshold=0.6)
    succeed(breaker)
    clock.advance(1.0)
    succeed(breaker)
    clock.advance(9.0)
    fail(breaker)
    assert "closed" == breaker.get_state()


def test_share_moves_with_the_window(make: Make, clock: FakeClock) -> None:
    """The same trickle of failures opens as soon as the good calls before it are gone."""
    breaker = make(minimum_calls=4)
    succeed(breaker, 6)
    for _ in range(5):
        clock.advance(1.0)
        fail(breaker)
    assert "closed" == breaker.get_state()
    clock.advance(5.0)
    fail(breaker)
    assert "open" == breaker.get_state()


def test_many_rotations(make: Make, clock: FakeClock) -> None:
    """Totals stay right however often the window has turned."""
    breaker = make(threshold=0.9, minimum_calls=1)
    for turn in range(500):
        succeed(breaker, 2)
        fail(breaker)
        assert min(turn + 1, 10) == failures(breaker)
        clock.advance(1.0)
    assert "closed" == breaker.get_state()


@pytest.mark.parametrize("idle", [10.0, 11.5, 1e6, 1e12])
def test_long_idle(make: Make, clock: FakeClock, idle: float) -> None:
    """After a pause longer than the window it begins anew."""
    breaker = make()
    for _ in range(4):
        succeed(breaker, 10)
        fail(breaker, 3)
        clock.advance(1.0)
    clock.advance(idle)
    assert 0 == failures(breaker)
    fail(breaker, 3)
    assert ("closed", 3) == (breaker.get_state(), failures(breaker))
    fail(breaker)
    assert "open" == breaker.get_state()


def test_current_failures_without_another_call(make: Make, clock: FakeClock) -> None:
    """Statistics show what counts now, not what counted at the last failure."""
    breaker = make()
    fail(breaker, 3)
    clock.advance(5.0)
    succeed(breaker)
    assert 3 == failures(breaker)
    clock.advance(5.0)
    succeed(breaker)
    assert 0 == failures(breaker)


# --- the window of calls ------------------------------------------------------------------------


def test_last_calls(make: Make, clock: FakeClock) -> None:
    """The last calls count, however long ago they were; one before them does not."""
    breaker = make(calls=4)
    fail(breaker)
    succeed(breaker, 3)
    assert 1 == failures(breaker)
    clock.advance(1e6)
    assert 1 == failures(breaker)
    succeed(breaker)
    fail(breaker)
    assert ("closed", 1) == (breaker.get_state(), failures(breaker))
    fail(breaker)
    assert ("open", 2) == (breaker.get_state(), failures(breaker))


def test_window_of_one_call(make: Make) -> None:
    """With a window of one call, each failure opens."""
    breaker = make(calls=1, minimum_calls=1, threshold=1.0)
    succeed(breaker, 9)
    fail(breaker)
    assert "open" == breaker.get_state()


# --- against a list of calls --------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(st.sampled_from(["success", "failure"]), st.integers(1, 25)), max_size=60
)
RULES = {
    "threshold": st.sampled_from([0.1, 0.5, 0.55, 2 / 3, 1.0]),
    "minimum_calls": st.integers(1, 8),
}


def add(window: Window, outcome: str, now: float) -> bool:
    """Count a call as a breaker does, and say whether the threshold is reached."""
    if outcome == "failure":
        return window.add_failure(now)
    if not window.add_success_unlocked(now):
        window.add_success(now)
    return False


def is_reached(rule: FailureRate, calls: list[str]) -> bool:
    share = calls.count("failure") / max(1, len(calls))
    return len(calls) >= rule.minimum_calls and share >= rule.threshold


@given(steps=STEPS, **RULES)
def test_time_window_by_the_list(steps: list[Any], threshold: float, minimum_calls: int) -> None:
    """With calls at full tenths, exactly those younger than the window count."""
    rule = FailureRate(threshold=threshold, window=10.0, minimum_calls=minimum_calls)
    now, calls, window = 1000.0, [], rule.start(1000.0)
    for step in steps:
        if isinstance(step, int):
            now += step
            continue
        calls.append((now, step))
        young = [outcome for at, outcome in calls if now - at < 10.0]
        expected = step == "failure" and is_reached(rule, young)
        assert expected == add(window, step, now)
        assert young.count("failure") == window.count_failures(now)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["success", "failure"]), st.floats(0.0, 12.0)), max_size=60
    )
)
def test_time_window_between_tenths(steps: list[tuple[str, float]]) -> None:
    """At any time, all failures younger than nine tenths count, and none older than the window."""
    now, failed, window = 1000.0, [], FailureRate(window=10.0).start(1000.0)
    for outcome, pause in steps:
        now += pause
        add(window, outcome, now)
        failed += [now] * (outcome == "failure")
        young, old = (sum(now - at < age for at in failed) for age in (9.0 - 1e-9, 10.0 + 1e-9))
        assert young <= window.count_failures(now) <= old


@given(steps=STEPS, calls=st.integers(8, 12), **RULES)
def test_call_window_by_the_list(
    steps: list[Any], calls: int, threshold: float, minimum_calls: int
) -> None:
    """The last calls count, and nothing else."""
    rule = FailureRate(threshold=threshold, calls=calls, minimum_calls=minimum_calls)
    made, window = [], rule.start(0.0)
    for now, step in enumerate(step for step in steps if isinstance(step, str)):
        made.append(step)
        last = made[-calls:]
        assert (step == "failure" and is_reached(rule, last)) == add(window, step, now)
        assert last.count("failure") == window.count_failures(now)


@given(steps=STEPS)
def test_cleared_window_is_a_new_one(steps: list[Any]) -> None:
    """After clear() a window goes on like one that has just begun."""
    for rule in (FailureRate(window=10.0, minimum_calls=2), FailureRate(calls=5, minimum_calls=2)):
        now, used = 1000.0, rule.start(1000.0)
        for outcome in ("failure", "success", "failure"):
            add(used, outcome, now)
            now += 1.0
        used.clear(now)
        new = rule.start(now)
        for step in steps:
            if isinstance(step, int):
                now += step
                continue
            assert add(new, step, now) == add(used, step, now)
            assert new.count_failures(now) == used.count_failures(now)


# --- a window and the circuit -------------------------------------------------------------------


@pytest.mark.parametrize("calls", [None, 50], ids=["time", "calls"])
def test_closing_clears(make: Make, clock: FakeClock, calls: int | None) -> None:
    """A circuit that has closed again starts with an empty window, by itself or by reset()."""
    breaker = make(window=1000.0, calls=calls)
    for close in (lambda: succeed(breaker), breaker.reset):
        fail(breaker, 4)
        assert "open" == breaker.get_state()
        clock.advance(30.0)
        close()
        assert ("closed", 0) == (breaker.get_state(), failures(breaker))
        fail(breaker, 3)
        assert "closed" == breaker.get_state()
        breaker.reset()


def test_half_open_as_ever(make: Make, clock: FakeClock) -> None:
    """At half-open one failure opens again, and one success closes."""
    breaker = make()
    fail(breaker, 4)
    clock.advance(30.0)
    fail(breaker)
    assert ("open", 2) == (breaker.get_state(), breaker.get_stats().opened)
    clock.advance(30.0)
    succeed(breaker)
    assert "closed" == breaker.get_state()


def test_stale_results(make: Make, clock: FakeClock) -> None:
    """Results of calls from before an opening do not count in the window after it."""
    breaker = make()
    stale = breaker.acquire()
    fail(breaker, 4)
    clock.advance(30.0)
    succeed(breaker)
    for outcome in (FAILURE, SUCCESS) * 20:
        breaker.settle(stale, outcome)
    assert 0 == failures(breaker)
    fail(breaker, 3)
    assert "closed" == breaker.get_state()
    fail(breaker)
    assert "open" == breaker.get_state()


def test_nothing_counts_while_disabled(make: Make) -> None:
    """What happens while the circuit is disabled is not in the window afterwards."""
    breaker = make()
    breaker.disable()
    fail(breaker, 10)
    succeed(breaker, 10)
    assert 0 == failures(breaker)
    breaker.reset()
    fail(breaker, 3)
    assert "closed" == breaker.get_state()


def test_event_tells_the_failures(make: Make, clock: FakeClock, hook: RecordingHook) -> None:
    """The event says how many failures were in the window, not how many there ever were."""
    breaker = make()
    fail(breaker, 3)
    clock.advance(10.0)
    fail(breaker, 4)
    [opened] = hook.events
    assert isinstance(opened, CircuitOpened)
    assert 4 == opened.failures


def test_one_rule_for_two_breakers(make: Make, clock: FakeClock) -> None:
    """A rule is a few numbers: breakers that share it count each for itself."""
    rule = FailureRate(minimum_calls=4)
    one, two = (CircuitBreaker(trip=rule, clock=clock, on_event=id) for _ in range(2))
    fail(one, 3)
    fail(two, 3)
    assert [("closed", 3)] * 2 == [(each.get_state(), failures(each)) for each in (one, two)]
    fail(one)
    assert ["open", "closed"] == [one.get_state(), two.get_state()]


def test_successes_are_counted_once(make: Make, clock: FakeClock) -> None:
    """The statistics count each success once, by whatever way it came, window or no window."""
    breaker = make()
    succeed(breaker, 3)
    breaker.settle(breaker.acquire(), SUCCESS)
    with breaker.guard():
        pass
    clock.advance(1.0)
    succeed(breaker)
    breaker.settle(breaker.acquire(), SUCCESS)
    assert 7 == breaker.get_stats().successes


@pytest.mark.parametrize("threshold", [0, 0.0, 1.01, 2])
def test_a_share_that_none_or_all_reach_is_refused(threshold: float) -> None:
    """At 0 it would be open without a failure, above 1 never."""
    with pytest.raises(ValueError, match=f"above 0 and at most 1, got {threshold}"):
        FailureRate(threshold=threshold)
    assert 1.0 == FailureRate(threshold=1.0).threshold


def test_rules_compare_by_their_numbers() -> None:
    """Rules are values: equal, hashable and frozen."""
    assert FailureRate() == FailureRate(
        threshold=0.5, window=30.0, minimum_calls=20, slow_after=None, calls=None
    )
    assert 1 == len({FailureRate(), FailureRate()})
    with pytest.raises(AttributeError):
        FailureRate().threshold = 0.1  # type: ignore[misc]


# --- slow calls ---------------------------------------------------------------------------------


@pytest.fixture
def slow(make: Make, clock: FakeClock) -> tuple[CircuitBreaker, Callable[[float], None]]:
    """Give a breaker for which more than 2 s are slow, and a function that takes its time."""
    return make(minimum_calls=2, slow_after=2.0, window=1000.0), clock.advance


@pytest.mark.parametrize(("seconds", "failed"), [(0.0, 0), (2.0, 0), (2.001, 1), (500.0, 1)])
@pytest.mark.parametrize("calls", [None, 9], ids=["time", "calls"])
def test_slow_after(
    make: Make, clock: FakeClock, calls: int | None, seconds: float, failed: int
) -> None:
    """A success that took longer is a failure, to the moment; its result is still the answer."""
    breaker = make(slow_after=2.0, calls=calls)

    def work() -> str:
        clock.advance(seconds)
        return "done"

    assert "done" == breaker.execute(work)
    stats = breaker.get_stats()
    assert (failed, failed, 1 - failed) == (
        stats.current_failures,
        stats.failures,
        stats.successes,
    )


def test_slow_calls_open(slow: Any, hook: RecordingHook) -> None:
    """Slow answers alone open the circuit, and the event says why."""
    breaker, work = slow
    breaker.execute(work, 3.0)
    assert "closed" == breaker.get_state()
    breaker.execute(work, 3.0)
    assert "open" == breaker.get_state()
    assert "slow call" == hook.events[-1].reason


def test_slow_guard(slow: Any) -> None:
    """A guarded block that takes too long is slow, too."""
    breaker, work = slow
    with breaker.guard():
        work(3.0)
    assert 1 == failures(breaker)


async def test_slow_await(make: Make, clock: FakeClock) -> None:
    """What is awaited is timed to its end, by each way."""
    breaker, work = make(minimum_calls=3, slow_after=2.0), clock.advance

    async def query(seconds: float) -> None:
        await asyncio.wait([asyncio.create_task(in_time(seconds))])

    async def in_time(seconds: float) -> None:
        work(seconds)

    await breaker.execute(query, 1.0)
    assert 0 == failures(breaker)
    await breaker.execute(lambda: query(3.0))
    assert 1 == failures(breaker)
    await breaker(query)(3.0)
    assert "open" == breaker.get_state()


def test_slow_driver(slow: Any) -> None:
    """A driver's permit knows when it was given."""
    breaker, work = slow
    permit = breaker.acquire()
    work(1.0)
    other = breaker.acquire()
    work(1.5)
    breaker.settle(other, SUCCESS)
    assert 0 == failures(breaker)
    breaker.settle(permit, SUCCESS)
    assert 1 == failures(breaker)


def test_slow_failure_is_one_failure(slow: Any) -> None:
    """A failure that also was slow counts once, and a slow neutral outcome not at all."""
    breaker, work = slow
    permit = breaker.acquire()
    work(3.0)
    breaker.settle(permit, FAILURE)
    assert 1 == failures(breaker)
    permit = breaker.acquire()
    work(3.0)
    breaker.release(permit)
    assert ("closed", 1) == (breaker.get_state(), failures(breaker))


def test_slow_probe(slow: Any, clock: FakeClock) -> None:
    """A slow probe shows a sick service: it opens again; a fast one closes."""
    breaker, work = slow
    fail(breaker, 2)
    clock.advance(30.0)
    breaker.execute(work, 3.0)
    assert "open" == breaker.get_state()
    clock.advance(30.0)
    breaker.execute(work, 1.0)
    assert "closed" == breaker.get_state()


def test_slow_stale_call(slow: Any, clock: FakeClock) -> None:
    """A slow call from before an opening changes nothing after it."""
    breaker, work = slow
    stale = breaker.acquire()
    fail(breaker, 2)
    clock.advance(30.0)
    breaker.execute(work, 0.0)
    breaker.settle(stale, SUCCESS)
    assert ("closed", 0) == (breaker.get_state(), failures(breaker))


def test_slow_nested_call(slow: Any) -> None:
    """A slow call inside a call of the same breaker is one call, and slow once."""
    breaker, work = slow
    breaker.execute(breaker.execute, breaker.execute, work, 3.0)
    assert (1, 0) == (failures(breaker), breaker.get_stats().successes)


async def test_reader_of_a_stream_may_be_slow(slow: Any) -> None:
    """How long a generator takes is up to its reader: it is never slow."""
    breaker, work = slow

    @breaker
    def stream() -> Iterator[int]:
        yield from range(3)

    @breaker
    async def async_stream() -> AsyncIterator[int]:
        for item in range(3):
            yield item

    for _ in stream():
        work(3.0)
    async for _ in async_stream():
        work(3.0)
    assert (0, 2) == (failures(breaker), breaker.get_stats().successes)


def test_slow_only_where_asked(make: Make, clock: FakeClock) -> None:
    """Without `slow_after` no call is slow."""
    breaker = make()
    breaker.execute(clock.advance, 1e6)
    assert (0, 1) == (failures(breaker), breaker.get_stats().successes)


# --- threads ------------------------------------------------------------------------------------


@pytest.fixture
def _restless() -> Iterator[None]:
    """Switch threads as often as Python can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("_restless")
def test_counts_of_many_threads(make: Make, clock: FakeClock) -> None:
    """Failures are counted to the last; a success may be missed where a bucket turns, no more."""
    threads, rounds, turns = 8, 400, 8
    breaker = make(threshold=1.0, window=10.0)
    barrier = threading.Barrier(threads)

    def work(number: int) -> None:
        barrier.wait(PATIENCE)
        for count in range(rounds):
            succeed(breaker)
            if number == 0 and count % (rounds // turns) == 0:
                fail(breaker)
                clock.advance(1.0)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE)
    window, made = breaker._window, threads * rounds
    counted = window._successes_before + window._peek()
    assert (turns, made) == (failures(breaker), breaker.get_stats().successes)
    assert made - threads * 2 * turns <= counted <= made
