"""CircuitBreaker by itself: each promise of its docstrings, on a clock that the test moves."""

import asyncio
import contextlib
import contextvars
import copy
import gc
import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial

import httpx
import pytest
from postgrest import APIError

from supabase_resilience import (
    CircuitBreaker,
    CircuitOpenError,
    Classification,
    FailureRate,
    ResilienceError,
    classify,
)
from supabase_resilience._calls import is_inside
from supabase_resilience._circuit import Circuit, CircuitSettings
from supabase_resilience.breaker import _PLAIN_WAYS
from supabase_resilience.events import CallRefused, CircuitClosed, CircuitOpened, Event
from supabase_resilience.testing import FakeClock, RecordingHook

pytestmark = pytest.mark.anyio

Make = Callable[..., CircuitBreaker]
FAILURE = Classification(verdict="failure", reason="it failed")
NEUTRAL = Classification(verdict="neutral", reason="the caller's mistake")
ANSWERED = Classification(verdict="neutral", reason="refused", answered=True)
LOST = Classification(verdict="failure", reason="lost", connection_lost=True)
SUCCESS = Classification(verdict="success")
DOWN = httpx.ConnectError("no route")


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
    def make(**options):
        return CircuitBreaker(**{"jitter": 0.0, "clock": clock, "on_event": hook, **options})

    return make


def throw(error: BaseException):
    raise error


async def throw_later(error: BaseException):
    throw(error)


async def give_later(value):
    return value


def fail(breaker: CircuitBreaker, error: Exception = DOWN, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(type(error)):
            breaker.execute(throw, error)


def open_circuit(breaker: CircuitBreaker) -> None:
    while breaker.get_state() == "closed":
        fail(breaker)


def half_open(breaker: CircuitBreaker, clock: FakeClock, seconds: float = 30.0):
    """Take the permit of the first probe."""
    open_circuit(breaker)
    clock.advance(seconds)
    return breaker.acquire()


# --- closed, open, half-open, closed ------------------------------------------------------------


def test_starts_closed(make: Make) -> None:
    """A new breaker is closed, and execute() returns what the function returns."""
    breaker = make()
    assert "closed" == breaker.get_state()
    assert (1, (2,), {"x": 3}) == breaker.execute(lambda a, *b, **c: (a, b, c), 1, 2, x=3)


def test_full_circle(make: Make, clock: FakeClock) -> None:
    """Closed, open after the threshold, half-open after the open time, closed after a success."""
    breaker = make(failure_threshold=2, reset_timeout=10.0)
    fail(breaker)
    assert "closed" == breaker.get_state()
    fail(breaker)
    assert "open" == breaker.get_state()
    clock.advance(10.0)
    states = [breaker.execute(breaker.get_state), breaker.get_state()]
    assert ["half_open", "closed"] == states


def test_refuses_while_open(make: Make, clock: FakeClock) -> None:
    """While open the function isn't called, to the last moment of the open time."""
    breaker = make(failure_threshold=1)
    open_circuit(breaker)
    clock.advance(29.75)
    calls: list[int] = []
    with pytest.raises(CircuitOpenError) as refusal:
        breaker.execute(calls.append, 1)
    assert [] == calls
    assert ("supabase", 0.25) == (refusal.value.breaker, refusal.value.retry_after)


def test_tripping_call_raises_its_own_error(make: Make) -> None:
    """The call that opens the circuit raises the very exception of the function."""
    breaker = make(failure_threshold=1)
    error = httpx.ReadTimeout("slow")
    with pytest.raises(httpx.ReadTimeout) as raised:
        breaker.execute(throw, error)
    assert error is raised.value
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    assert "open" == breaker.get_state()


def test_success_between_failures(make: Make) -> None:
    """Only failures without a success between them add up."""
    breaker = make(failure_threshold=3)
    for _ in range(3):
        fail(breaker, times=2)
        breaker.execute(int)
    assert "closed" == breaker.get_state()
    assert 0 == breaker.get_stats().current_failures


def test_neutral_between_failures(make: Make) -> None:
    """The caller's own mistakes neither add to the failures nor forget them."""
    breaker = make(failure_threshold=2)
    fail(breaker)
    fail(breaker, TypeError("ours"), times=5)
    assert 1 == breaker.get_stats().current_failures
    fail(breaker)
    assert "open" == breaker.get_state()


def test_failed_probe_opens_again(make: Make, clock: FakeClock) -> None:
    """One failed probe opens the circuit again, for the whole open time."""
    breaker = make(failure_threshold=3)
    open_circuit(breaker)
    clock.advance(30.0)
    fail(breaker)
    assert "open" == breaker.get_state()
    assert 30.0 == breaker.get_stats().retry_after


def test_open_until_a_call_comes(make: Make, clock: FakeClock, hook: RecordingHook) -> None:
    """Time alone changes nothing: the circuit says open until a call comes as its probe."""
    breaker = make(failure_threshold=1)
    open_circuit(breaker)
    clock.advance(1e6)
    assert "open" == breaker.get_state()
    assert 0.0 == breaker.get_stats().retry_after
    assert ["circuit.opened"] == hook.names


def test_closing_forgets(make: Make, clock: FakeClock) -> None:
    """After closing, the count of failures begins anew."""
    breaker = make(failure_threshold=2)
    open_circuit(breaker)
    clock.advance(30.0)
    breaker.execute(int)
    fail(breaker)
    assert "closed" == breaker.get_state()


# --- the open time ------------------------------------------------------------------------------


def settled(breaker: CircuitBreaker, outcome: Classification) -> float | None:
    breaker.settle(breaker.acquire(), outcome)
    return breaker.get_stats().retry_after


def failure(after: float | None) -> Classification:
    return Classification(verdict="failure", retry_after=after)


def throttled(after: float | None) -> Classification:
    return Classification(verdict="throttled", retry_after=after)


@pytest.mark.parametrize(
    ("outcome", "seconds"),
    [
        pytest.param(failure(None), 30.0, id="no Retry-After"),
        pytest.param(failure(0.0), 30.0, id="0 means with the usual back-off"),
        pytest.param(failure(5.0), 30.0, id="a shorter one does not shorten"),
        pytest.param(failure(45.0), 45.0, id="a longer one lengthens"),
        pytest.param(failure(9999.0), 300.0, id="up to max_reset_timeout"),
        pytest.param(throttled(60.0), 60.0, id="throttled waits as long as it is asked"),
        pytest.param(throttled(None), 30.0, id="throttled without Retry-After"),
        pytest.param(Classification(verdict="blocked"), 300.0, id="blocked for the maximum"),
    ],
)
def test_open_time(make: Make, outcome: Classification, seconds: float) -> None:
    """The open time is reset_timeout; Retry-After only lengthens it; blocked takes the maximum."""
    assert seconds == settled(make(failure_threshold=1), outcome)


@pytest.mark.parametrize("verdict", ["throttled", "blocked"])
def test_opens_at_once(make: Make, verdict) -> None:
    """Throttled and blocked open at once, whatever the threshold."""
    breaker = make(failure_threshold=100)
    settled(breaker, Classification(verdict=verdict))
    assert "open" == breaker.get_state()


def test_blocked_is_an_error(make: Make, hook: RecordingHook) -> None:
    """A wrong key needs a person: the event is an error, other openings are warnings."""
    breaker = make(failure_threshold=1)
    settled(breaker, Classification(verdict="blocked"))
    breaker.reset()
    settled(breaker, FAILURE)
    opened = [event for event in hook.events if isinstance(event, CircuitOpened)]
    assert [("blocked", logging.ERROR), ("failure", logging.WARNING)] == [
        (event.cause, event.severity) for event in opened
    ]


def reopened(breaker: CircuitBreaker, clock: FakeClock, times: int) -> Iterator[float | None]:
    for _ in range(times):
        after = breaker.get_stats().retry_after
        yield after
        clock.advance(after or 0.0)
        fail(breaker)


def test_growth(make: Make, clock: FakeClock) -> None:
    """Each re-opening multiplies the open time, up to the maximum; closing starts over."""
    breaker = make(failure_threshold=1, reset_timeout=30.0, growth=2.0, max_reset_timeout=200.0)
    open_circuit(breaker)
    assert [30.0, 60.0, 120.0, 200.0, 200.0] == list(reopened(breaker, clock, 5))
    clock.advance(200.0)
    breaker.execute(int)
    open_circuit(breaker)
    assert [30.0, 60.0] == list(reopened(breaker, clock, 2))


def test_no_growth_by_default(make: Make, clock: FakeClock) -> None:
    """Without growth every opening lasts as long as the first."""
    breaker = make(failure_threshold=1)
    open_circuit(breaker)
    assert [30.0] * 4 == list(reopened(breaker, clock, 4))


@pytest.mark.parametrize("growth", [1e10, 10**10])
def test_growth_without_bounds(make: Make, clock: FakeClock, growth: float) -> None:
    """However large the growth and however long the outage, the maximum holds."""
    breaker = make(failure_threshold=1, growth=growth)
    open_circuit(breaker)
    assert [30.0] + [300.0] * 70 == list(reopened(breaker, clock, 71))


def test_retry_after_with_growth(make: Make, clock: FakeClock) -> None:
    """The longer of Retry-After and the grown open time counts."""
    breaker = make(failure_threshold=1, growth=2.0)
    settled(breaker, FAILURE)
    clock.advance(30.0)
    assert 60.0 == settled(breaker, failure(45.0))
    clock.advance(60.0)
    assert 130.0 == settled(breaker, failure(130.0))


@pytest.mark.parametrize(("drawn", "seconds"), [(0.0, 30.0), (0.5, 33.0), (1.0, 36.0)])
def test_jitter(drawn: float, seconds: float) -> None:
    """Jitter lengthens the open time by up to its share, and never shortens it."""
    settings = CircuitSettings(
        name="x",
        failure_threshold=1,
        reset_timeout=30.0,
        half_open_permits=1,
        close_after=1,
        probe_timeout=None,
        max_reset_timeout=300.0,
        growth=1.0,
        jitter=0.2,
    )
    circuit = Circuit(settings, 0.0, rng=lambda: drawn)
    circuit.count(circuit.admit(0.0)[0], FAILURE, 0.0)
    assert pytest.approx(seconds) == circuit.open_until


def test_jitter_is_on_by_default(clock: FakeClock) -> None:
    """Many breakers do not come back in the same instant, and none comes back early."""
    times = {
        settled(CircuitBreaker(failure_threshold=1, clock=clock, on_event=id), FAILURE)
        for _ in range(50)
    }
    assert len(times) > 1
    assert all(30.0 <= seconds <= 33.0 for seconds in times if seconds is not None)


# --- half-open ----------------------------------------------------------------------------------


@pytest.mark.parametrize("permits", [1, 3])
def test_half_open_permits(make: Make, clock: FakeClock, permits: int) -> None:
    """Exactly half_open_permits probes are in flight at a time."""
    breaker = make(failure_threshold=1, half_open_permits=permits, close_after=9)
    held = [half_open(breaker, clock), *(breaker.acquire() for _ in range(permits - 1))]
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    breaker.settle(held.pop(), SUCCESS)
    held.append(breaker.acquire())
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    assert all(permit.is_probe for permit in held)


def test_close_after(make: Make, clock: FakeClock) -> None:
    """The circuit closes after close_after successful probes, and a failure starts over."""
    breaker = make(failure_threshold=1, close_after=3)
    open_circuit(breaker)
    clock.advance(30.0)
    breaker.execute(int)
    breaker.execute(int)
    fail(breaker)
    clock.advance(30.0)
    breaker.execute(int)
    breaker.execute(int)
    assert "half_open" == breaker.get_state()
    breaker.execute(int)
    assert "closed" == breaker.get_state()


def test_refused_at_half_open(make: Make, clock: FakeClock) -> None:
    """A refusal at half-open says when the probe forfeits its permit."""
    breaker = make(failure_threshold=1, probe_timeout=7.0)
    half_open(breaker, clock)
    clock.advance(2.0)
    with pytest.raises(CircuitOpenError) as refusal:
        breaker.acquire()
    assert 5.0 == refusal.value.retry_after


def test_refused_by_several_probes(make: Make, clock: FakeClock) -> None:
    """With several probes in flight, the first permit that becomes free counts."""
    breaker = make(failure_threshold=1, probe_timeout=7.0, half_open_permits=2)
    half_open(breaker, clock)
    clock.advance(2.0)
    breaker.acquire()
    with pytest.raises(CircuitOpenError) as refusal:
        breaker.acquire()
    assert 5.0 == refusal.value.retry_after


@pytest.mark.parametrize(("probe_timeout", "lease"), [(None, 30.0), (4.0, 4.0)])
def test_probe_timeout(make: Make, clock: FakeClock, probe_timeout, lease: float) -> None:
    """A probe that hangs forfeits its permit after probe_timeout (default: reset_timeout)."""
    breaker = make(failure_threshold=1, probe_timeout=probe_timeout)
    half_open(breaker, clock)
    clock.advance(lease - 0.5)
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    clock.advance(0.5)
    assert breaker.acquire().is_probe
    with pytest.raises(CircuitOpenError):
        breaker.acquire()


@pytest.mark.parametrize("late", [SUCCESS, FAILURE, ANSWERED, throttled(99.0)])
def test_late_probe(make: Make, clock: FakeClock, late: Classification) -> None:
    """What a probe says after its permit went to another one changes nothing."""
    breaker = make(failure_threshold=1)
    hanging = half_open(breaker, clock)
    clock.advance(30.0)
    breaker.acquire()
    breaker.settle(hanging, late)
    assert "half_open" == breaker.get_state()
    with pytest.raises(CircuitOpenError):  # the second probe still holds the permit
        breaker.acquire()


def test_probe_from_before_a_change(make: Make, clock: FakeClock) -> None:
    """A probe in flight at a change of state holds no permit of a later half-open."""
    breaker = make(failure_threshold=1, probe_timeout=9999.0)
    half_open(breaker, clock)
    breaker.reset()
    assert half_open(breaker, clock).is_probe


def test_slow_probe_that_nobody_replaced(make: Make, clock: FakeClock) -> None:
    """A probe past its time that nobody replaced yet still counts: it is the newest word."""
    breaker = make(failure_threshold=1)
    slow = half_open(breaker, clock)
    clock.advance(99.0)
    breaker.settle(slow, SUCCESS)
    assert "closed" == breaker.get_state()


def test_probe_settled_twice(make: Make, clock: FakeClock) -> None:
    """A probe that reports twice counts once."""
    breaker = make(failure_threshold=1, close_after=2)
    probe = half_open(breaker, clock)
    breaker.settle(probe, SUCCESS)
    breaker.settle(probe, SUCCESS)
    assert "half_open" == breaker.get_state()


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(APIError({"code": "23505", "message": "duplicate"}), id="23505"),
        pytest.param(APIError({"code": "PGRST116", "message": "no row"}), id="PGRST116"),
        pytest.param(APIError({"code": "40001", "message": "serialization"}), id="40001"),
        pytest.param(APIError({"code": "57014", "message": "statement timeout"}), id="57014"),
    ],
)
def test_answered_probe_closes(make: Make, clock: FakeClock, error: Exception) -> None:
    """A probe that Postgres itself refused shows that the service is back."""
    breaker = make(failure_threshold=1)
    open_circuit(breaker)
    clock.advance(30.0)
    fail(breaker, error)
    assert "closed" == breaker.get_state()


def test_neutral_probe_says_nothing(make: Make, clock: FakeClock) -> None:
    """A probe that failed on our own side gives its permit back and changes nothing."""
    breaker = make(failure_threshold=1)
    open_circuit(breaker)
    clock.advance(30.0)
    fail(breaker, KeyError("ours"))
    assert "half_open" == breaker.get_state()
    breaker.execute(int)
    assert "closed" == breaker.get_state()


# --- results that are no news -------------------------------------------------------------------


@pytest.mark.parametrize("stale", [SUCCESS, FAILURE, ANSWERED, throttled(9.0)])
def test_stale_result(make: Make, clock: FakeClock, stale: Classification) -> None:
    """A result of a call that began before the last change of state changes nothing."""
    breaker = make(failure_threshold=2)
    old = breaker.acquire()
    half_open(breaker, clock)
    before = breaker.get_stats()
    breaker.settle(old, stale)
    after = breaker.get_stats()
    assert (before.state, before.retry_after) == (after.state, after.retry_after)
    assert before.current_failures == after.current_failures
    assert "half_open" == breaker.get_state()


def test_stale_failure_after_closing(make: Make, clock: FakeClock) -> None:
    """A failure of a call from before the outage does not count after it."""
    breaker = make(failure_threshold=1)
    old = breaker.acquire()
    breaker.settle(half_open(breaker, clock), SUCCESS)
    breaker.settle(old, FAILURE)
    assert "closed" == breaker.get_state()


def test_stale_success_is_no_consolation(make: Make, clock: FakeClock) -> None:
    """A success of a call from before the outage does not forget failures after it."""
    breaker = make(failure_threshold=2)
    old = breaker.acquire()
    breaker.settle(half_open(breaker, clock), SUCCESS)
    fail(breaker)
    breaker.settle(old, SUCCESS)
    assert 1 == breaker.get_stats().current_failures


def test_burst_of_lost_connections(make: Make) -> None:
    """Connection losses among calls in flight when the first was recorded are one failure."""
    breaker = make(failure_threshold=2)
    for permit in [breaker.acquire() for _ in range(50)]:
        breaker.settle(permit, LOST)
    assert 1 == breaker.get_stats().current_failures
    assert "closed" == breaker.get_state()


def test_two_bursts(make: Make) -> None:
    """Connection losses of calls that began after the first one are another failure."""
    breaker = make(failure_threshold=2)
    for _ in range(2):
        for permit in [breaker.acquire() for _ in range(3)]:
            breaker.settle(permit, LOST)
    assert "open" == breaker.get_state()


def test_other_failures_are_no_burst(make: Make) -> None:
    """Failures that are no connection loss count each, however many are in flight."""
    breaker = make(failure_threshold=3)
    for permit in [breaker.acquire() for _ in range(3)]:
        breaker.settle(permit, FAILURE)
    assert "open" == breaker.get_state()


def test_lost_probe(make: Make, clock: FakeClock) -> None:
    """A probe that loses its connection opens the circuit again, burst or not."""
    breaker = make(failure_threshold=1)
    breaker.settle(breaker.acquire(), LOST)
    clock.advance(30.0)
    breaker.settle(breaker.acquire(), LOST)
    assert "open" == breaker.get_state()
    assert 2 == breaker.get_stats().opened


# --- what counts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        TypeError("x"),
        KeyError("x"),
        AttributeError("x"),
        ValueError("x"),
        httpx.PoolTimeout("ours"),
        CircuitOpenError("another", 1.0),
        APIError({"code": "23505"}),
        APIError({"code": "P0001"}),
        APIError({"code": "57014"}),
    ],
    ids=repr,
)
def test_neutral(make: Make, error: Exception) -> None:
    """The caller's mistakes never open a circuit, and are counted as neutral."""
    breaker = make(failure_threshold=1)
    fail(breaker, error, times=3)
    assert "closed" == breaker.get_state()
    assert (3, 0) == (breaker.get_stats().neutral, breaker.get_stats().failures)


@pytest.mark.parametrize(
    "error", [Exception("unknown"), httpx.ReadTimeout("x"), APIError({"code": "PGRST000"})]
)
def test_failure(make: Make, error: Exception) -> None:
    """Transport errors, errors of the service and exceptions that nobody knows are failures."""
    breaker = make(failure_threshold=1)
    fail(breaker, error)
    assert "open" == breaker.get_state()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), asyncio.CancelledError()])
def test_base_exception_is_no_verdict(make: Make, clock: FakeClock, error) -> None:
    """A cancellation counts nothing, and a canceled probe gives its permit back."""
    breaker = make(failure_threshold=1)
    with pytest.raises(type(error)):
        breaker.execute(throw, error)
    assert "closed" == breaker.get_state()
    open_circuit(breaker)
    clock.advance(30.0)
    with pytest.raises(type(error)):
        breaker.execute(throw, error)
    assert "half_open" == breaker.get_state()
    assert breaker.acquire().is_probe


async def test_canceled_task(make: Make, clock: FakeClock) -> None:
    """Canceling a task in an awaited call gives the probe's permit back and changes nothing."""
    breaker = make(failure_threshold=1)
    open_circuit(breaker)
    clock.advance(30.0)
    began = asyncio.Event()

    async def hang() -> None:
        began.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(breaker.execute(hang))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "half_open" == breaker.get_state()
    assert breaker.acquire().is_probe


def test_release(make: Make, clock: FakeClock) -> None:
    """release() gives a permit back without a verdict."""
    breaker = make(failure_threshold=1)
    breaker.release(half_open(breaker, clock))
    assert "half_open" == breaker.get_state()
    assert breaker.acquire().is_probe
    assert 0 == breaker.get_stats().successes


def test_custom_classify(make: Make) -> None:
    """`classify` decides what an exception means, also that it is a success."""
    verdicts = {"bad": FAILURE, "fine": SUCCESS, "mine": NEUTRAL}
    breaker = make(failure_threshold=2, classify=lambda error: verdicts[str(error)])
    fail(breaker, RuntimeError("bad"))
    fail(breaker, RuntimeError("mine"))
    assert 1 == breaker.get_stats().current_failures
    fail(breaker, RuntimeError("fine"))
    assert 0 == breaker.get_stats().current_failures
    fail(breaker, RuntimeError("bad"), times=2)
    assert "open" == breaker.get_state()


@pytest.mark.parametrize(
    "broken", [lambda error: throw(LookupError("in classify")), lambda error: None]
)
def test_broken_classify(make: Make, caplog: pytest.LogCaptureFixture, broken) -> None:
    """A classify that raises or answers nonsense is logged, and the built-in one decides."""
    breaker = make(failure_threshold=1, classify=broken)
    fail(breaker, httpx.ReadError("the real one"))
    assert "open" == breaker.get_state()
    assert ["classify failed; the built-in one is asked instead"] == caplog.messages


def test_classify_is_not_asked_about_cancellation(make: Make) -> None:
    """A BaseException never reaches classify."""
    asked: list[BaseException] = []
    breaker = make(classify=lambda error: asked.append(error) or classify(error))
    with pytest.raises(KeyboardInterrupt):
        breaker.execute(throw, KeyboardInterrupt())
    assert [] == asked


# --- execute() in all its shapes ----------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda fn, *args: (fn, *args), id="coroutine function"),
        pytest.param(lambda fn, *args: (lambda: fn(*args),), id="lambda"),
        pytest.param(lambda fn, *args: (partial(fn, *args),), id="partial"),
        pytest.param(lambda fn, *args: (lambda: asyncio.ensure_future(fn(*args)),), id="task"),
    ],
)
async def test_awaitables(make: Make, clock: FakeClock, call) -> None:
    """Whatever awaitable the function returns is awaited, and judged when it ends."""
    breaker = make(failure_threshold=1)
    assert "value" == await breaker.execute(*call(give_later, "value"))
    pending = breaker.execute(*call(throw_later, DOWN))
    assert "closed" == breaker.get_state()
    with pytest.raises(httpx.ConnectError) as raised:
        await pending
    assert DOWN is raised.value
    assert "open" == breaker.get_state()
    clock.advance(30.0)
    assert "probe" == await breaker.execute(*call(give_later, "probe"))
    assert "closed" == breaker.get_state()


async def test_refusal_of_a_coroutine_function(make: Make) -> None:
    """A coroutine function is refused at the await, as it would fail there, too."""
    breaker = make(failure_threshold=1)
    open_circuit(breaker)
    pending = breaker.execute(give_later, 1)
    with pytest.raises(CircuitOpenError):
        await pending


def test_refusal_of_a_lambda(make: Make) -> None:
    """What a plain function would have returned is not known: it is refused at the call."""
    breaker = make(failure_threshold=1)
    open_circuit(breaker)
    with pytest.raises(CircuitOpenError):
        breaker.execute(lambda: give_later(1))


async def test_fallback(make: Make) -> None:
    """A fallback answers a refusal, by a value or by something awaitable."""
    breaker = make(failure_threshold=1)
    open_circuit(breaker)
    after = [
        breaker.execute(int, fallback=lambda refusal: refusal.retry_after),
        await breaker.execute(give_later, 1, fallback=lambda refusal: refusal.retry_after),
        await breaker.execute(give_later, 1, fallback=lambda e: give_later(e.retry_after)),
        await breaker.execute(lambda: give_later(1), fallback=lambda e: give_later(e.retry_after)),
    ]
    assert [30.0] * 4 == after


async def test_fallback_is_for_refusals_only(make: Make) -> None:
    """A fallback never hides the error of a call that was made, not even of the tripping one."""
    breaker = make(failure_threshold=1)
    with pytest.raises(httpx.ConnectError):
        breaker.execute(throw, DOWN, fallback=lambda refusal: "hidden")
    breaker.reset()
    with pytest.raises(httpx.ConnectError):
        await breaker.execute(throw_later, DOWN, fallback=lambda refusal: "hidden")


async def test_fallback_for_an_inner_refusal(make: Make, clock: FakeClock) -> None:
    """A refusal by another breaker inside the function is answered by the fallback, too."""
    outer, inner = make(failure_threshold=1), make(failure_threshold=1)
    open_circuit(inner)
    for _ in range(2):  # closed, then as the probe
        assert "plain" == outer.execute(lambda: inner.execute(int), fallback=lambda e: "plain")

        async def query() -> object:
            return inner.execute(int)

        assert "awaited" == await outer.execute(query, fallback=lambda e: "awaited")
        open_circuit(outer)
        clock.advance(29.0)
        inner.force_open()
        clock.advance(1.0)


def test_fallback_that_raises(make: Make) -> None:
    """What a fallback raises is raised."""
    breaker = make(failure_threshold=1)
    open_circuit(breaker)
    with pytest.raises(LookupError):
        breaker.execute(int, fallback=lambda refusal: throw(LookupError()))


def test_argument_called_breaker(make: Make) -> None:
    """Arguments of the function may have any name but `fallback`."""
    assert {"fn": 1, "self": 2, "breaker": 3} == make().execute(dict, fn=1, self=2, breaker=3)


def test_context_variables(make: Make) -> None:
    """The function runs in the caller's context: what it sets stays set."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    make().execute(variable.set, 7)
    assert 7 == variable.get()


# --- guard() ------------------------------------------------------------------------------------


def test_guard(make: Make, clock: FakeClock) -> None:
    """guard() judges what leaves the block and refuses at its entry."""
    breaker = make(failure_threshold=1)
    with breaker.guard():
        pass
    with pytest.raises(httpx.ConnectError), breaker.guard():
        throw(DOWN)
    entered = False
    with pytest.raises(CircuitOpenError), breaker.guard():
        entered = True
    assert not entered
    clock.advance(30.0)
    with breaker.guard():
        assert "half_open" == breaker.get_state()
    assert "closed" == breaker.get_state()


async def test_guard_around_an_await(make: Make, clock: FakeClock) -> None:
    """guard() is a plain `with`, also around an await; a cancellation inside counts nothing."""
    breaker = make(failure_threshold=1)
    with pytest.raises(httpx.ConnectError), breaker.guard():
        await throw_later(DOWN)
    clock.advance(30.0)
    with pytest.raises(asyncio.CancelledError), breaker.guard():
        await throw_later(asyncio.CancelledError())
    assert "half_open" == breaker.get_state()
    with breaker.guard():
        await give_later(1)
    assert "closed" == breaker.get_state()


def test_guard_is_one_call(make: Make, clock: FakeClock) -> None:
    """Uses of the same breaker inside a guard belong to that one call."""
    breaker = make(failure_threshold=2)
    with pytest.raises(httpx.ConnectError), breaker.guard():
        breaker.execute(throw, DOWN)
    assert 1 == breaker.get_stats().current_failures


# --- nested use ---------------------------------------------------------------------------------


def test_nested_counts_once(make: Make) -> None:
    """A call within a call of the same breaker is one call: one success, or one failure."""
    breaker = make(failure_threshold=2)
    breaker.execute(breaker.execute, breaker.execute, int)
    assert 1 == breaker.get_stats().successes
    with pytest.raises(httpx.ConnectError):
        breaker.execute(breaker.execute, breaker.execute, throw, DOWN)
    assert 1 == breaker.get_stats().current_failures


def test_nested_probe_closes(make: Make, clock: FakeClock) -> None:
    """At half-open the inner call passes on the outer one's permit, and the circuit closes."""
    breaker = make(failure_threshold=1)
    open_circuit(breaker)
    clock.advance(30.0)
    assert 0 == breaker.execute(breaker.execute, int)
    assert "closed" == breaker.get_state()


async def test_nested_probe_closes_async(make: Make, clock: FakeClock) -> None:
    """The same holds for awaitables, by a coroutine function and by a lambda."""
    breaker = make(failure_threshold=1)

    async def query() -> int:
        return await breaker.execute(give_later, 1)

    for outer in (query, lambda: breaker.execute(give_later, 1), lambda: breaker.execute(query)):
        open_circuit(breaker)
        clock.advance(30.0)
        assert 1 == await breaker.execute(outer)
        assert "closed" == breaker.get_state()


def test_nested_permit_knows_the_probe(make: Make, clock: FakeClock) -> None:
    """A permit within a probe says so: it must not be repeated; one within a call does not."""
    breaker = make(failure_threshold=1)
    inside = breaker.execute(breaker.acquire)
    assert (True, False) == (inside.is_nested, inside.is_probe)
    open_circuit(breaker)
    clock.advance(30.0)
    inside = breaker.execute(breaker.acquire)
    assert (True, True) == (inside.is_nested, inside.is_probe)


def test_nested_failure_that_is_handled(make: Make) -> None:
    """An inner failure that the outer function handles is not counted."""
    breaker = make(failure_threshold=1)

    def handle() -> str:
        with pytest.raises(httpx.ConnectError):
            breaker.execute(throw, DOWN)
        return "from the cache"

    assert "from the cache" == breaker.execute(handle)
    assert ("closed", 1) == (breaker.get_state(), breaker.get_stats().successes)


def test_nested_retries(make: Make) -> None:
    """Tries repeated inside one call are one call, by their last outcome."""
    breaker = make(failure_threshold=1)

    def third_time_lucky(left: int = 2) -> str:
        try:
            return breaker.execute(throw, DOWN) if left else "done"
        except httpx.ConnectError:
            return third_time_lucky(left - 1)

    assert "done" == breaker.execute(third_time_lucky)
    assert "closed" == breaker.get_state()


def test_two_breakers_nested(make: Make) -> None:
    """Breakers of two services nest, in any order, and each counts for itself."""
    one, two = make(failure_threshold=2), make(failure_threshold=2)
    with pytest.raises(httpx.ConnectError):
        one.execute(two.execute, one.execute, two.execute, throw, DOWN)
    assert [1, 1] == [each.get_stats().current_failures for each in (one, two)]
    one.execute(two.execute, int)
    assert [0, 0] == [each.get_stats().current_failures for each in (one, two)]


def test_after_a_nested_call(make: Make) -> None:
    """What follows a call isn't part of it any more, however deep it was nested."""
    one, two = make(failure_threshold=1), make(failure_threshold=1)

    def both() -> None:
        two.execute(int)
        assert one.acquire().is_nested
        assert not two.acquire().is_nested

    one.execute(both)
    assert not one.acquire().is_nested
    fail(one)
    assert "open" == one.get_state()


async def test_task_within_a_call(make: Make) -> None:
    """A task that a call started and awaits is part of it."""
    breaker = make(failure_threshold=1)

    async def spread() -> list[object]:
        calls = [breaker.execute(throw_later, DOWN) for _ in range(3)]
        return await asyncio.gather(*calls, return_exceptions=True)

    assert [DOWN] * 3 == await breaker.execute(spread)
    assert ("closed", 1) == (breaker.get_state(), breaker.get_stats().successes)


@pytest.mark.parametrize("kind", ["sync", "async", "failing"])
async def test_task_outliving_its_call(make: Make, kind: str) -> None:
    """A task that outlives the call it was started in is on its own afterwards."""
    breaker = make(failure_threshold=1)
    call_ended = asyncio.Event()

    async def afterwards() -> None:
        await call_ended.wait()
        await breaker.execute(throw_later, DOWN)

    tasks: list[asyncio.Task[None]] = []

    def start() -> None:
        tasks.append(asyncio.create_task(afterwards()))

    async def start_async() -> None:
        start()

    def start_and_fail() -> None:
        start()
        raise TypeError("ours")

    if kind == "failing":
        with pytest.raises(TypeError):
            breaker.execute(start_and_fail)
    elif kind == "async":
        await breaker.execute(start_async)
    else:
        breaker.execute(start)
    call_ended.set()
    with pytest.raises(httpx.ConnectError):
        await tasks[0]
    assert "open" == breaker.get_state()


def test_thread_within_a_call(make: Make) -> None:
    """A thread has a context of its own: a call in it is another call."""
    breaker = make(failure_threshold=1)
    permits: list[bool] = []

    def in_thread() -> None:
        thread = threading.Thread(target=lambda: permits.append(breaker.acquire().is_nested))
        thread.start()
        thread.join()

    breaker.execute(in_thread)
    assert [False] == permits


# --- nested use without marks: before anything but execute() uses a breaker ----------------------


def unmarked(breaker: CircuitBreaker) -> bool:
    return not breaker._is_marking


def calls_in_progress(breaker: CircuitBreaker) -> int:
    """How many plain calls have begun and not ended; reading counts as one that ended."""
    started = next(breaker._started)
    breaker._ended = next(breaker._ends)
    return started - breaker._ended + 1


SHAPES: dict[str, Callable[[CircuitBreaker, Callable[[], object]], object]] = {
    "function": lambda breaker, fn: breaker.execute(lambda: breaker.execute(fn)),
    "arguments": lambda breaker, fn: breaker.execute(breaker.execute, fn),
    "decorator": lambda breaker, fn: breaker(lambda: breaker.execute(fn))(),
    "decorated twice": lambda breaker, fn: breaker(breaker(fn))(),
    "partial": lambda breaker, fn: breaker.execute(partial(breaker(fn))),
    "another one between": lambda breaker, fn: breaker.execute(
        lambda: CircuitBreaker().execute(breaker.execute, fn)
    ),
    "map": lambda breaker, fn: breaker.execute(
        lambda: next(map(lambda _: breaker.execute(fn), [1]))  # noqa: C417 - a C frame between
    ),
    "generator": lambda breaker, fn: breaker.execute(
        lambda: next(breaker.execute(fn) for _ in range(1))
    ),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@each_shape
def test_unmarked_counts_once(make: Make, shape) -> None:
    """A call within a call is one call: one success, one failure, and nothing left in progress."""
    breaker = make(failure_threshold=2)
    assert 0 == shape(breaker, int)
    assert (1, 0) == (breaker.get_stats().successes, calls_in_progress(breaker))
    with pytest.raises(httpx.ConnectError):
        shape(breaker, partial(throw, DOWN))
    stats = breaker.get_stats()
    assert (1, 1, 0) == (stats.failures, stats.current_failures, calls_in_progress(breaker))
    assert unmarked(breaker)


class Later:
    """Awaitable, and no coroutine."""

    def __await__(self):
        return give_later(7).__await__()


async def within_awaits(breaker: CircuitBreaker, fn: Callable[[], object]) -> object:
    await asyncio.wait([asyncio.ensure_future(give_later(1))])
    return await breaker.execute(fn)


def within(breaker: CircuitBreaker, fn: Callable[[], object]) -> object:
    return breaker.execute(partial(within_awaits, breaker, fn))


ASYNC_SHAPES: dict[str, Callable[[CircuitBreaker, Callable[[], object]], object]] = {
    "lambda": lambda breaker, fn: breaker.execute(lambda: breaker.execute(fn)),
    "argument": lambda breaker, fn: breaker.execute(breaker.execute, fn),
    "decorated": lambda breaker, fn: breaker.execute(breaker(fn)),
    "decorated twice": lambda breaker, fn: breaker(breaker(fn))(),
    "async def": lambda breaker, fn: breaker.execute(within_awaits, breaker, fn),
    "awaited by its caller": within,
}


@pytest.mark.parametrize("shape", ASYNC_SHAPES.values(), ids=ASYNC_SHAPES)
async def test_unmarked_counts_once_async(make: Make, shape) -> None:
    """The same holds across awaits."""
    breaker = make(failure_threshold=2)

    async def work() -> int:
        return 0

    async def failing() -> None:
        await asyncio.wait([asyncio.ensure_future(give_later(1))])
        raise DOWN

    assert 0 == await shape(breaker, work)
    assert (1, 0) == (breaker.get_stats().successes, calls_in_progress(breaker))
    with pytest.raises(httpx.ConnectError):
        await shape(breaker, failing)
    stats = breaker.get_stats()
    assert (1, 1, 0) == (stats.failures, stats.current_failures, calls_in_progress(breaker))
    assert unmarked(breaker)


def test_unmarked_failure_that_is_handled(make: Make) -> None:
    """An inner failure that the outer function handles is not counted."""
    breaker = make(failure_threshold=1)

    def handle() -> str:
        for _ in range(3):
            with pytest.raises(httpx.ConnectError):
                breaker.execute(throw, DOWN)
        return "from the cache"

    assert "from the cache" == breaker.execute(handle)
    assert ("closed", 1, 0) == (
        breaker.get_state(),
        breaker.get_stats().successes,
        breaker.get_stats().failures,
    )
    assert unmarked(breaker)
    fail(breaker)
    assert "open" == breaker.get_state()


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_another_thread_is_not_around(make: Make, ends: str) -> None:
    """A call in progress in another thread has nothing to do with one here."""
    breaker = make(failure_threshold=9)
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        inside.set()
        assert done.wait(60.0)

    thread = threading.Thread(target=breaker.execute, args=(other,))
    thread.start()
    assert inside.wait(60.0)
    if ends == "well":
        breaker.execute(int)
        assert 1 == breaker.get_stats().successes
    else:
        fail(breaker)
        assert 1 == breaker.get_stats().failures
    assert unmarked(breaker)
    assert not breaker.acquire().is_nested
    done.set()
    thread.join()
    assert (1 + (ends == "well")) == breaker.get_stats().successes
    assert 0 == breaker._ended - breaker._plain_calls


async def test_another_task_is_not_around(make: Make) -> None:
    """A call that another task awaits has nothing to do with one here, sync or async."""
    breaker = make(failure_threshold=9)
    inside, done = asyncio.Event(), asyncio.Event()

    async def other() -> None:
        inside.set()
        await done.wait()

    task = asyncio.create_task(breaker.execute(other))
    await inside.wait()
    breaker.execute(int)
    await breaker.execute(give_later, 1)
    fail(breaker, times=2)
    assert (2, 2) == (breaker.get_stats().successes, breaker.get_stats().failures)
    assert not breaker.acquire().is_nested
    done.set()
    await task
    assert 3 == breaker.get_stats().successes


def test_fallback_is_not_inside(make: Make) -> None:
    """A fallback runs after its call: what it does with the breaker is a call of its own."""
    breaker = make(failure_threshold=9)
    other = breaker.execute(Later)  # in progress, so that calls around are looked for
    refusal = CircuitOpenError("inner", 1.0)

    def fallback(refused: CircuitOpenError) -> object:
        assert refused is refusal
        return breaker.execute(int)

    assert 0 == breaker.execute(throw, refusal, fallback=fallback)
    assert (1, 1) == (breaker.get_stats().successes, breaker.get_stats().neutral)
    assert unmarked(breaker)
    other.close()


async def test_fallback_is_not_inside_async(make: Make) -> None:
    """The same holds for one that is awaited."""
    breaker = make(failure_threshold=9)
    other = breaker.execute(Later)
    refusal = CircuitOpenError("inner", 1.0)
    result = breaker.execute(
        throw_later, refusal, fallback=lambda _: breaker.execute(give_later, 5)
    )
    assert 5 == await result
    assert (1, 1) == (breaker.get_stats().successes, breaker.get_stats().neutral)
    assert 7 == await other


def test_what_the_user_gave_is_not_inside(clock: FakeClock) -> None:
    """Nor are `classify`, hooks and the clock inside the call that they are asked about."""
    nested: list[bool] = []
    looks = 0

    def look() -> float:
        nonlocal looks
        looks += 1
        # Not by acquire(), which would make the breaker mark its calls.
        nested.append(is_inside(breaker, _PLAIN_WAYS))
        return clock()

    breaker = CircuitBreaker(
        trip=FailureRate(minimum_calls=2),
        clock=lambda: look() if looks else clock(),
        classify=lambda error: (look(), classify(error))[1],
        on_event=lambda event: look(),
    )
    breaker.execute(look)
    assert [True, False] == nested
    fail(breaker)
    assert "open" == breaker.get_state()
    assert len(nested) > 4
    assert not any(nested[1:])


def test_generator_leaves_its_call(make: Make) -> None:
    """A generator that a call returned is read outside of it."""
    breaker = make()
    numbers = breaker.execute(lambda: (breaker.execute(int) for _ in range(3)))
    assert [0, 0, 0] == list(numbers)
    assert (4, 0) == (breaker.get_stats().successes, calls_in_progress(breaker))
    assert unmarked(breaker)


async def test_coroutine_that_is_never_awaited(make: Make) -> None:
    """A call whose coroutine is thrown away is no outcome, and hides no other call."""
    breaker = make(failure_threshold=2)
    breaker.execute(Later).close()
    assert 0 == breaker.get_stats().successes
    breaker.execute(int)
    assert not breaker.acquire().is_nested
    assert breaker.execute(breaker.acquire).is_nested
    fail(breaker, times=2)
    assert ("open", 2) == (breaker.get_state(), breaker.get_stats().failures)


async def test_coroutine_awaited_elsewhere(make: Make) -> None:
    """Between its start and its await a call is not around the code in between."""
    breaker = make()
    later = breaker.execute(give_later, 1)
    breaker.execute(int)
    assert 1 == breaker.get_stats().successes
    assert 1 == await later
    assert (2, 0) == (breaker.get_stats().successes, calls_in_progress(breaker))


@pytest.mark.parametrize("depth", [1, 2, 100])
def test_recursion(make: Make, depth: int) -> None:
    """However deep a guarded function calls itself, it is one call."""
    breaker = make(failure_threshold=1)

    @breaker
    def climb(left: int) -> int:
        return climb(left - 1) + 1 if left else 0

    assert depth == climb(depth)
    assert (1, 0) == (breaker.get_stats().successes, calls_in_progress(breaker))


def test_recursion_without_end(make: Make) -> None:
    """A RecursionError comes through, and leaves nothing in progress."""
    breaker = make(failure_threshold=9)

    @breaker
    def climb() -> None:
        climb()

    with pytest.raises(RecursionError):
        climb()
    breaker.execute(int)
    assert 1 == breaker.get_stats().successes
    assert not breaker.acquire().is_nested


@pytest.mark.parametrize("how", ["mark_calls", "acquire", "guard"])
def test_marking_begins_within_a_call(make: Make, how: str) -> None:
    """Whatever makes a breaker mark its calls, calls in progress are seen still, till they end."""
    breaker = make(failure_threshold=1)

    def work() -> None:
        assert unmarked(breaker)
        if how == "guard":
            with pytest.raises(httpx.ConnectError), breaker.guard():
                raise DOWN
        else:
            getattr(breaker, how)()
        assert not unmarked(breaker)
        assert breaker.acquire().is_nested
        assert breaker.execute(breaker.acquire).is_nested
        breaker.settle(breaker.acquire(), FAILURE)

    breaker.execute(work)
    assert ("closed", 1) == (breaker.get_state(), breaker.get_stats().successes)
    assert not breaker.acquire().is_nested
    assert not breaker._may_be_inside


async def test_marking_begins_while_calls_are_in_progress(make: Make) -> None:
    """Calls of other tasks that began without a mark know it when they use the breaker again."""
    breaker = make(failure_threshold=1)
    inside, marked = asyncio.Event(), asyncio.Event()

    async def unaware() -> bool:
        inside.set()
        await marked.wait()
        return breaker.acquire().is_nested

    task = asyncio.create_task(breaker.execute(unaware))
    await inside.wait()
    assert not breaker.acquire().is_nested
    marked.set()
    assert await task
    assert not breaker.acquire().is_nested
    assert (1, False) == (breaker.get_stats().successes, breaker._may_be_inside)


def test_marking_begins_in_many_threads(make: Make) -> None:
    """When threads begin to mark in the same moment, each sees the call that it is in."""
    for _ in range(20):
        breaker = make(failure_threshold=1)
        together = threading.Barrier(8)
        nested: list[bool] = []

        def work(
            breaker: CircuitBreaker = breaker,
            together: threading.Barrier = together,
            nested: list[bool] = nested,
        ) -> None:
            together.wait(60.0)
            nested.append(breaker.acquire().is_nested)

        threads = [threading.Thread(target=breaker.execute, args=(work,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [True] * 8 == nested
        assert not breaker.acquire().is_nested
        assert not breaker._may_be_inside


async def test_task_within_a_marked_call(make: Make) -> None:
    """Once calls are marked, a task that a call starts and awaits is inside it."""
    breaker = make(failure_threshold=1)
    breaker.mark_calls()

    async def query() -> None:
        with pytest.raises(httpx.ConnectError):
            await breaker.execute(throw_later, DOWN)

    async def spread() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(query())

    await breaker.execute(spread)
    assert ("closed", 1, 0) == (
        breaker.get_state(),
        breaker.get_stats().successes,
        breaker.get_stats().failures,
    )


def test_open_meanwhile(make: Make, clock: FakeClock) -> None:
    """When the circuit opens during a call, what the call does with it still is part of it."""
    breaker = make(failure_threshold=1)

    def work() -> int:
        breaker.force_open()
        return breaker.execute(int) + breaker.execute(breaker.execute, int)

    assert 0 == breaker.execute(work)
    stats = breaker.get_stats()
    assert ("forced_open", 1, 0) == (stats.state, stats.successes, stats.refused)


@pytest.mark.parametrize("state", ["closed", "half_open", "disabled"])
async def test_result_that_only_claims_to_be_awaitable(
    make: Make, clock: FakeClock, state: str
) -> None:
    """A proxy that has any attribute is a result; a type that can be awaited is awaited."""
    breaker = make(failure_threshold=1)
    if state == "half_open":
        open_circuit(breaker)
        clock.advance(30.0)
    elif state == "disabled":
        breaker.disable()

    class Proxy:
        def __getattr__(self, name: str) -> object:
            return name

    for result in (Proxy(), asyncio.Future, Later):
        assert result is breaker.execute(lambda result=result: result)
    assert 7 == await breaker.execute(Later)
    assert 4 == breaker.get_stats().successes


# --- hooks and events ---------------------------------------------------------------------------


def test_events_in_order(make: Make, clock: FakeClock, hook: RecordingHook) -> None:
    """Events are told in the order in which they became true, refusals included."""
    breaker = make(failure_threshold=1)
    open_circuit(breaker)
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    clock.advance(30.0)
    fail(breaker)
    clock.advance(30.0)
    breaker.execute(int)
    assert [
        "circuit.opened",
        "circuit.call_refused",
        "circuit.half_opened",
        "circuit.opened",
        "circuit.half_opened",
        "circuit.closed",
    ] == hook.names


def test_what_events_say(make: Make, clock: FakeClock, hook: RecordingHook) -> None:
    """Events carry the breaker's name, the cause, counts and durations."""
    breaker = make(name="db", failure_threshold=2)
    open_circuit(breaker)
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    clock.advance(30.0)
    breaker.execute(int)
    facts = {"cause": "failure", "reason": "no connection", "failures": 2, "open_for": 30.0}
    assert CircuitOpened(breaker="db", **facts) == hook.events[0]
    assert CallRefused(breaker="db", retry_after=30.0) == hook.events[1]
    assert CircuitClosed(breaker="db", seconds=30.0) == hook.events[-1]


def test_plain_hooks(make: Make, clock: FakeClock) -> None:
    """on_open, on_half_open and on_close are called without arguments, once per change."""
    told: list[str] = []
    breaker = make(
        failure_threshold=1,
        on_open=lambda: told.append("open"),
        on_half_open=lambda: told.append("half_open"),
        on_close=lambda: told.append("close"),
    )
    open_circuit(breaker)
    clock.advance(30.0)
    fail(breaker)
    clock.advance(30.0)
    breaker.execute(int)
    breaker.execute(int)
    assert ["open", "half_open", "open", "half_open", "close"] == told


def test_one_callable_for_both_kinds_of_hook(make: Make) -> None:
    """The same callable as on_open and on_event gets no argument as the one, one as the other."""
    told: list[tuple[object, ...]] = []

    def hook(*args: object) -> None:
        told.append(args)

    make(on_open=hook, on_event=hook).force_open()
    assert [(), (CircuitOpened,)] == [tuple(type(each) for each in args) for args in told]


def test_hooks_run_outside_the_lock(make: Make, clock: FakeClock) -> None:
    """A hook may ask and steer the breaker that is telling it."""
    seen: list[tuple[str, int]] = []

    def hook(event: Event) -> None:
        seen.append((event.name, breaker.get_stats().opened))
        if event.name == "circuit.opened":
            breaker.reset()

    breaker = make(failure_threshold=1, on_event=hook)
    fail(breaker)
    assert [("circuit.opened", 1), ("circuit.closed", 1)] == seen
    assert "closed" == breaker.get_state()


def test_hook_that_calls(make: Make) -> None:
    """A hook may make calls through the breaker that is telling it."""
    results: list[object] = []
    breaker = make(failure_threshold=1, on_open=lambda: results.append(refused_by(breaker)))
    fail(breaker)
    assert [True] == results


def refused_by(breaker: CircuitBreaker) -> bool:
    try:
        breaker.acquire()
    except CircuitOpenError:
        return True
    return False


@pytest.mark.parametrize("kind", ["on_open", "on_event"])
def test_failing_hook(make: Make, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """What a hook raises is logged, and changes neither the outcome nor the other hooks."""
    other = {"on_open": "on_event", "on_event": "on_open"}[kind]
    told: list[object] = []
    failing = {kind: lambda *_: throw(LookupError()), other: lambda *args: told.append(args)}
    breaker = make(failure_threshold=1, **failing)
    fail(breaker)
    assert "open" == breaker.get_state()
    assert 1 == len(told)
    assert ["a hook failed on circuit.opened"] == caplog.messages


def test_hook_that_is_interrupted(make: Make, clock: FakeClock) -> None:
    """A Ctrl-C in a hook passes through, and later events are still told."""
    told: list[str] = []

    def hook(event: Event) -> None:
        told.append(event.name)
        if told == ["circuit.opened"]:
            raise KeyboardInterrupt

    breaker = make(failure_threshold=1, on_event=hook)
    with pytest.raises(KeyboardInterrupt):
        breaker.execute(throw, DOWN)
    breaker.reset()
    assert ["circuit.opened", "circuit.closed"] == told


def test_default_hook_logs(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """Without on_event, changes of state are logged; refusals are not."""
    breaker = CircuitBreaker(failure_threshold=1, jitter=0.0, clock=clock)
    open_circuit(breaker)
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    assert [("supabase_resilience", logging.WARNING)] == [
        (record.name, record.levelno) for record in caplog.records
    ]
    assert "circuit.opened breaker='supabase'" in caplog.text


# --- steering by hand ---------------------------------------------------------------------------


def test_force_open(make: Make, clock: FakeClock) -> None:
    """force_open() refuses every call until reset(), however long; there is no time to wait."""
    breaker = make()
    breaker.force_open()
    clock.advance(1e9)
    with pytest.raises(CircuitOpenError) as refusal:
        breaker.acquire()
    assert refusal.value.retry_after is None
    assert "reset()" in str(refusal.value)
    assert ("forced_open", None) == (breaker.get_state(), breaker.get_stats().retry_after)
    breaker.reset()
    assert 0 == breaker.execute(int)


def test_force_open_fences_calls_in_flight(make: Make) -> None:
    """A call that was in flight does not undo force_open()."""
    breaker = make()
    permit = breaker.acquire()
    breaker.force_open()
    breaker.settle(permit, SUCCESS)
    breaker.settle(permit, FAILURE)
    assert "forced_open" == breaker.get_state()


def test_disable(make: Make, hook: RecordingHook) -> None:
    """disable() lets every call pass unjudged until reset()."""
    breaker = make(failure_threshold=1)
    open_circuit(breaker)
    breaker.disable()
    fail(breaker, times=5)
    settled(breaker, Classification(verdict="blocked"))
    assert ("disabled", 0) == (breaker.execute(breaker.get_state), 0)
    breaker.reset()
    assert "closed" == breaker.get_state()
    assert ["circuit.opened", "circuit.disabled", "circuit.closed"] == hook.names


def test_disabled_results_do_not_count_later(make: Make) -> None:
    """A call made while disabled is not judged after reset() either."""
    breaker = make(failure_threshold=1)
    breaker.disable()
    permit = breaker.acquire()
    breaker.reset()
    breaker.settle(permit, FAILURE)
    assert "closed" == breaker.get_state()


def test_reset(make: Make, clock: FakeClock, hook: RecordingHook) -> None:
    """reset() closes, forgets failures and growth, and fences calls in flight."""
    breaker = make(failure_threshold=2, growth=2.0)
    open_circuit(breaker)
    clock.advance(30.0)
    fail(breaker)
    breaker.reset()
    fail(breaker)
    in_flight = breaker.acquire()
    breaker.reset()
    breaker.settle(in_flight, FAILURE)
    assert (0, "closed") == (breaker.get_stats().current_failures, breaker.get_state())
    open_circuit(breaker)
    assert 30.0 == breaker.get_stats().retry_after
    assert 1 == hook.names.count("circuit.closed")  # the second reset found it closed


def test_closed_event_counts_from_the_first_opening(make: Make, clock, hook) -> None:
    """CircuitClosed says how long the circuit was not closed, in all its states together."""
    breaker = make(failure_threshold=1)
    open_circuit(breaker)
    clock.advance(30.0)
    fail(breaker)
    clock.advance(5.0)
    breaker.force_open()
    clock.advance(5.0)
    breaker.reset()
    assert 40.0 == hook.events[-1].seconds


# --- statistics and words -----------------------------------------------------------------------


def test_stats(make: Make, clock: FakeClock) -> None:
    """get_stats() counts each outcome once, by what it was."""
    breaker = make(name="db", failure_threshold=2)
    breaker.execute(int)
    breaker.execute(int)
    fail(breaker)
    fail(breaker, TypeError("ours"))
    fail(breaker)
    for _ in range(3):
        with pytest.raises(CircuitOpenError):
            breaker.acquire()
    assert breaker.may_retry()
    clock.advance(12.0)
    stats = breaker.get_stats()
    assert ("db", "open", 12.0, 18.0) == (
        stats.name,
        stats.state,
        stats.seconds_in_state,
        stats.retry_after,
    )
    assert (2, 2, 1) == (stats.successes, stats.failures, stats.neutral)
    assert (3, 1, 1, 0) == (stats.refused, stats.retries, stats.opened, stats.closed)
    clock.advance(18.0)
    settled(breaker, throttled(None))
    clock.advance(30.0)
    settled(breaker, Classification(verdict="blocked"))
    stats = breaker.get_stats()
    assert (1, 1, 3) == (stats.throttled, stats.blocked, stats.opened)


def test_stats_are_a_snapshot(make: Make) -> None:
    """A snapshot cannot be changed, does not change, and asking does not count as a success."""
    breaker = make()
    before = breaker.get_stats()
    breaker.execute(int)
    assert [0, 1, 1] == [each.successes for each in (before, *(breaker.get_stats(),) * 2)]
    assert 1 == breaker.get_stats().successes
    with pytest.raises(AttributeError):
        before.successes = 5


def test_repr(make: Make) -> None:
    """repr() shows name and state."""
    breaker = make(name="db", failure_threshold=1)
    assert "<CircuitBreaker 'db' closed>" == repr(breaker)
    open_circuit(breaker)
    assert "<CircuitBreaker 'db' open>" == repr(breaker)


def test_error_says_when_to_retry(make: Make) -> None:
    """The refusal is a ResilienceError; its text names the breaker and the time to wait."""
    breaker = make(name="db", failure_threshold=1)
    open_circuit(breaker)
    with pytest.raises(ResilienceError) as refusal:
        breaker.acquire()
    text = "Circuit breaker is OPEN: 'db' refused the call; retry in 30.0 s"
    assert text == str(refusal.value)


@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
@pytest.mark.parametrize("after", [2.5, None])
def test_error_can_be_pickled(copied, after: float | None) -> None:
    """The refusal survives pickling, so it can leave a worker process."""
    error = copied(CircuitOpenError("db", after))
    assert ("db", after) == (error.breaker, error.retry_after)
    assert str(CircuitOpenError("db", after)) == str(error)


# --- arguments ----------------------------------------------------------------------------------

NOT_A_NUMBER = ["1", None, True, 1j]
NOT_A_TIME = [0.0, -1.0, float("inf"), float("nan")]


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("name", "", ValueError),
        ("name", 5, TypeError),
        *(("failure_threshold", value, ValueError) for value in (0, -1)),
        *(("failure_threshold", value, TypeError) for value in ("5", 1.5, True, None)),
        *(("half_open_permits", value, ValueError) for value in (0, -1)),
        *(("half_open_permits", value, TypeError) for value in ("5", 1.5, True, None)),
        *(("close_after", value, ValueError) for value in (0, -1)),
        *(("close_after", value, TypeError) for value in ("5", 1.5, True, None)),
        *(("reset_timeout", value, ValueError) for value in NOT_A_TIME),
        *(("reset_timeout", value, TypeError) for value in NOT_A_NUMBER),
        *(("probe_timeout", value, ValueError) for value in NOT_A_TIME),
        *(("probe_timeout", value, TypeError) for value in ("1", True)),
        *(("max_reset_timeout", value, ValueError) for value in (*NOT_A_TIME, 29.9)),
        *(("max_reset_timeout", value, TypeError) for value in NOT_A_NUMBER),
        *(("growth", value, ValueError) for value in (0.9, -1.0, float("inf"), float("nan"))),
        *(("growth", value, TypeError) for value in NOT_A_NUMBER),
        *(("jitter", value, ValueError) for value in (-0.1, float("inf"), float("nan"))),
        *(("jitter", value, TypeError) for value in NOT_A_NUMBER),
        *(
            (hook, value, TypeError)
            for hook in ("on_open", "on_half_open", "on_close")
            for value in (5, "print")
        ),
        *((what, None, TypeError) for what in ("on_event", "classify", "clock")),
    ],
)
def test_refused_arguments(name: str, value: object, kind: type[Exception]) -> None:
    """Arguments that make no sense are refused at construction, by name and value."""
    with pytest.raises(kind, match=name) as error:
        CircuitBreaker(**{name: value})
    assert value == "" or repr(value) in str(error.value)


def test_options_are_keyword_only() -> None:
    """Only the name is positional."""
    with pytest.raises(TypeError):
        CircuitBreaker("db", 5)


def test_defaults() -> None:
    """The documented defaults."""
    settings = CircuitBreaker()._circuit.settings
    assert settings == CircuitSettings(
        name="supabase",
        failure_threshold=5,
        reset_timeout=30.0,
        half_open_permits=1,
        close_after=1,
        probe_timeout=None,
        max_reset_timeout=300.0,
        growth=1.0,
        jitter=0.1,
    )


# --- fork ---------------------------------------------------------------------------------------


def exit_code_of_child(check: Callable[[], bool]) -> int:
    """Fork, and return 0 if `check` holds in the child; a child that hangs is killed."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)
        code = 1
        try:
            code = 0 if check() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_fork_while_locked(make: Make, clock: FakeClock) -> None:
    """A child works though a thread of the parent held the lock at the fork."""
    holding, let_go = threading.Event(), threading.Event()

    def slow_clock() -> float:
        if threading.current_thread().name == "holder":
            holding.set()
            let_go.wait()
        return clock()

    breaker = make(failure_threshold=1, clock=slow_clock)
    holder = threading.Thread(target=breaker.get_stats, name="holder")
    holder.start()
    holding.wait()

    def works() -> bool:
        open_circuit(breaker)
        return breaker.get_stats().failures == 1 and refused_by(breaker)

    code = exit_code_of_child(works)
    let_go.set()
    holder.join()
    assert 0 == code
    assert "closed" == breaker.get_state()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_fork_while_telling(make: Make) -> None:
    """A child tells its events though a thread of the parent was inside a hook at the fork."""
    telling, let_go = threading.Event(), threading.Event()
    parent, told = os.getpid(), []

    def slow_hook(event: Event) -> None:
        if os.getpid() == parent:
            telling.set()
            let_go.wait()
        told.append(event.name)

    breaker = make(on_event=slow_hook)
    teller = threading.Thread(target=breaker.force_open)
    teller.start()
    telling.wait()
    code = exit_code_of_child(lambda: breaker.reset() or told == ["circuit.closed"])
    let_go.set()
    teller.join()
    assert 0 == code


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_fork_with_a_probe_in_flight(make: Make, clock: FakeClock) -> None:
    """The parent's probe does not hold the child's permit, and the child's not the parent's."""
    breaker = make(failure_threshold=1)
    half_open(breaker, clock)
    assert 0 == exit_code_of_child(lambda: breaker.acquire().is_probe and refused_by(breaker))
    assert refused_by(breaker)


# --- garbage ------------------------------------------------------------------------------------


def garbage_of(run: Callable[[], object]) -> int:
    """How many objects only the collector can free after it."""
    gc.collect()
    gc.disable()
    try:
        run()
        return gc.collect()
    finally:
        gc.enable()


def repeatedly(call: Callable[[], object]) -> None:
    for _ in range(100):
        with contextlib.suppress(CircuitOpenError, TimeoutError):
            call()


@pytest.mark.parametrize("is_open", [True, False], ids=["refused", "failed"])
def test_errors_keep_nothing_alive(make: Make, *, is_open: bool) -> None:
    """An error that was handled leaves no cycle that holds the caller's frames and arguments."""
    breaker = make(failure_threshold=10**6)
    if is_open:
        breaker.force_open()

    def fail_now() -> None:
        raise TimeoutError

    assert garbage_of(lambda: repeatedly(lambda: breaker.execute(fail_now))) < 10


@pytest.mark.parametrize("is_open", [True, False], ids=["refused", "failed"])
def test_async_errors_keep_nothing_alive(make: Make, *, is_open: bool) -> None:
    """The same for what is awaited."""
    breaker = make(failure_threshold=10**6)
    if is_open:
        breaker.force_open()

    async def fail_later() -> None:
        raise TimeoutError

    async def all_of_them() -> None:
        for _ in range(100):
            with contextlib.suppress(CircuitOpenError, TimeoutError):
                await breaker.execute(fail_later)

    with asyncio.Runner() as runner:
        runner.run(asyncio.sleep(0))
        assert garbage_of(lambda: runner.run(all_of_them())) < 20
