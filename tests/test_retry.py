"""When one call is tried again, when not, and how long it waits: decided without any waiting."""

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from supabase_resilience import CircuitBreaker, Classification, RetryConfig, _clock
from supabase_resilience.events import RetryScheduled
from supabase_resilience.retry import Attempt, Schedule
from supabase_resilience.testing import FakeClock, RecordingHook

pytestmark = pytest.mark.anyio

FAILED = Classification(verdict="failure", reason="bad gateway", retryable=True)
ONCE = Classification(verdict="failure", reason="500", retryable=True, retry_once=True)


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio, as supabase-py does."""
    return "asyncio"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Put a clock of the test's in the place of the package's."""
    clock = FakeClock()
    monkeypatch.setattr(_clock, "monotonic", clock)
    return clock


@pytest.fixture
def hook() -> RecordingHook:
    """Return what the breaker tells."""
    return RecordingHook()


@pytest.fixture
def breaker(clock: FakeClock, hook: RecordingHook) -> CircuitBreaker:
    """Return a breaker on the test's clock."""
    return CircuitBreaker("db", clock=clock, on_event=hook)


class Run(list[float]):
    """The waits of one call; `sleep` lets the clock pass instead of the time."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def sleep(self, seconds: float) -> None:
        self.append(seconds)
        self._clock.advance(seconds)


def failed(meaning: Classification = FAILED, *, may_repeat: bool = True) -> Attempt:
    return Attempt(meaning, may_repeat=may_repeat, error=ConnectionError(meaning.reason))


def succeeded() -> Attempt:
    return Attempt.of("rows")


def asked_to_wait(seconds: float) -> Attempt:
    return failed(Classification(verdict="failure", retryable=True, retry_after=seconds))


class Attempts:
    """The attempts of one call, one after the other; remembers how many were made."""

    def __init__(self, attempts: Iterable[Attempt]) -> None:
        self._attempts = iter(attempts)
        self.made = 0

    def __call__(self) -> Attempt:
        made = next(self._attempts)
        self.made += 1
        return made


@pytest.fixture
def run(clock: FakeClock) -> Run:
    """Return where waits are recorded."""
    return Run(clock)


Make = Callable[..., Schedule]


@pytest.fixture
def schedule(breaker: CircuitBreaker, clock: FakeClock) -> Make:
    """Return a maker of schedules; `left` is what the call has left, in seconds."""

    def make(left: float = 15.0, **config: Any) -> Schedule:
        return Schedule(RetryConfig(**config), breaker, clock() + left)

    return make


@pytest.fixture
def longest_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let chance choose the longest wait that jitter allows."""
    monkeypatch.setattr(random, "uniform", lambda _, high: high)


@pytest.fixture
def shortest_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let chance choose the shortest wait that jitter allows."""
    monkeypatch.setattr(random, "uniform", lambda low, _: low)


# --- the numbers ---------------------------------------------------------------------------------


def test_defaults() -> None:
    """The defaults bound supabase-py's 120 s."""
    assert RetryConfig() == RetryConfig(
        attempts=3, wait_initial=0.1, wait_max=2.0, attempt_timeout=10.0, total_timeout=15.0
    )


@pytest.mark.parametrize(
    ("argument", "value", "kind", "message"),
    [
        ("attempts", 0, ValueError, "attempts must be >= 1, got 0"),
        ("attempts", 2.0, TypeError, "attempts must be a whole number, got 2.0"),
        ("attempts", True, TypeError, "attempts must be a whole number, got True"),
        ("attempts", None, TypeError, "attempts must be a whole number, got None"),
        ("wait_initial", -0.1, ValueError, "wait_initial must be >= 0, got -0.1"),
        ("wait_initial", "1", TypeError, "wait_initial must be a number, got '1'"),
        ("wait_max", -1, ValueError, "wait_max must be >= 0, got -1"),
        ("wait_max", float("inf"), ValueError, "wait_max must be finite, got inf"),
        ("attempt_timeout", 0, ValueError, "attempt_timeout must be more than 0 seconds, got 0"),
        ("attempt_timeout", None, TypeError, "attempt_timeout must be a number, got None"),
        ("total_timeout", 0.0, ValueError, "total_timeout must be more than 0 seconds, got 0.0"),
        ("total_timeout", float("nan"), ValueError, "total_timeout must be finite, got nan"),
    ],
)
def test_refuses_nonsense(argument: str, value: Any, kind: type[Exception], message: str) -> None:
    """Each argument is checked at construction; the message names it and the value."""
    with pytest.raises(kind) as caught:
        RetryConfig(**{argument: value})
    assert message == str(caught.value)


def test_by_keyword_only_and_frozen() -> None:
    """Five numbers in a row are easy to mix up, and a shared config must not change."""
    with pytest.raises(TypeError):
        RetryConfig(3)  # type: ignore[misc]
    with pytest.raises(AttributeError):
        RetryConfig().attempts = 9  # type: ignore[misc]


# --- an attempt ----------------------------------------------------------------------------------


def test_attempt_of_a_response() -> None:
    """A response on its own is a success that nobody repeats; an attempt stays itself."""
    attempt = Attempt.of("rows")
    assert (attempt.result(), attempt.may_repeat, attempt.meaning.verdict) == (
        "rows",
        False,
        "success",
    )
    assert Attempt.of(attempt) is attempt


def test_attempt_raises_its_own_error() -> None:
    """The error is the very object that came, also after the last try."""
    attempt = failed()
    for each in (attempt, attempt.final()):
        with pytest.raises(ConnectionError) as caught:
            each.result()
        assert caught.value is attempt.error


def test_final_attempt() -> None:
    """`final()` is the same outcome, not to be repeated; the original stays as it was."""
    attempt = Attempt(FAILED, may_repeat=True, response="answer")
    final = attempt.final()
    assert (attempt.may_repeat, final.may_repeat) == (True, False)
    assert (final.meaning, final.result()) == (FAILED, "answer")


# --- which attempt is the last -------------------------------------------------------------------


def test_until_success(schedule: Make, run: Run) -> None:
    """The first success ends it."""
    attempts = Attempts([failed(), succeeded()])
    assert schedule().blocking(run.sleep)(attempts).result() == "rows"
    assert (attempts.made, len(run)) == (2, 1)


@pytest.mark.parametrize("allowed", [1, 2, 3, 7])
def test_attempts_count_the_first(schedule: Make, run: Run, allowed: int) -> None:
    """After `attempts` tries the last error counts, and nobody waits for nothing."""
    outcomes = [failed() for _ in range(allowed)]
    last = schedule(attempts=allowed).blocking(run.sleep)(Attempts(outcomes))
    assert last is outcomes[-1]
    assert len(run) == allowed - 1


def test_what_may_not_be_repeated(schedule: Make, run: Run) -> None:
    """A write that may have been applied, or a mistake of the caller, is tried once."""
    attempts = Attempts([failed(may_repeat=False), succeeded()])
    assert schedule().blocking(run.sleep)(attempts).error is not None
    assert (attempts.made, run) == (1, [])


def test_second_failure_that_may_not_be_repeated(schedule: Make, run: Run) -> None:
    """Each failure is judged by itself: the second can end what the first allowed."""
    last = failed(may_repeat=False)
    assert schedule().blocking(run.sleep)(Attempts([failed(), last])) is last


def test_retry_once(schedule: Make, run: Run) -> None:
    """What a second try may mend, a third won't."""
    attempts = Attempts([failed(ONCE), failed(ONCE), succeeded()])
    assert schedule(attempts=7).blocking(run.sleep)(attempts).meaning is ONCE
    assert (attempts.made, len(run)) == (2, 1)


def test_retry_once_within_the_attempts(schedule: Make, run: Run) -> None:
    """One attempt is one attempt, also for what might be retried once."""
    attempts = Attempts([failed(ONCE), succeeded()])
    schedule(attempts=1).blocking(run.sleep)(attempts)
    assert attempts.made == 1


@pytest.mark.parametrize("state", ["open", "half_open", "forced_open"])
def test_circuit_that_is_not_closed(
    schedule: Make, run: Run, breaker: CircuitBreaker, clock: FakeClock, state: str
) -> None:
    """Against a circuit that has opened nobody retries: the last real error is the answer."""
    bring_into(breaker, clock, state)
    only = failed()
    assert schedule().blocking(run.sleep)(Attempts([only])) is only
    assert run == []


@pytest.mark.parametrize("state", ["closed", "disabled"])
def test_circuit_that_lets_calls_pass(
    schedule: Make, run: Run, breaker: CircuitBreaker, clock: FakeClock, state: str
) -> None:
    """A disabled breaker switches the refusals off, not the retries."""
    bring_into(breaker, clock, state)
    assert schedule().blocking(run.sleep)(Attempts([failed(), succeeded()])).result() == "rows"


def bring_into(breaker: CircuitBreaker, clock: FakeClock, state: str) -> None:
    if state == "disabled":
        breaker.disable()
    elif state == "forced_open":
        breaker.force_open()
    elif state != "closed":
        breaker.settle(breaker.acquire(), Classification(verdict="throttled"))
    if state == "half_open":
        clock.advance(60)
        breaker.acquire()
    assert state == breaker.get_state()


def test_circuit_that_opens_during_the_second_attempt(
    schedule: Make, run: Run, breaker: CircuitBreaker
) -> None:
    """It is asked again after each failure."""

    def outcomes() -> Iterator[Attempt]:
        yield failed()
        breaker.force_open()
        yield failed()

    attempts = Attempts(outcomes())
    schedule(attempts=7).blocking(run.sleep)(attempts)
    assert attempts.made == 2


# --- how long it waits ---------------------------------------------------------------------------


@pytest.mark.usefixtures("longest_waits")
def test_longest_waits(schedule: Make, run: Run) -> None:
    """The wait before try n+1 is at most `wait_initial * 2**(n-1)`, and at most `wait_max`."""
    attempts = Attempts(failed() for _ in range(7))
    schedule(attempts=7, wait_initial=0.1, wait_max=1.0).blocking(run.sleep)(attempts)
    assert pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0]) == run


@pytest.mark.usefixtures("shortest_waits")
def test_shortest_waits(schedule: Make, run: Run) -> None:
    """Jitter is full: any wait can be as short as nothing."""
    schedule(attempts=4).blocking(run.sleep)(Attempts(failed() for _ in range(4)))
    assert run == [0.0, 0.0, 0.0]


def test_waits_differ(schedule: Make, run: Run) -> None:
    """Real chance keeps within the bounds, and does not repeat itself."""
    for _ in range(50):
        schedule(wait_initial=0.5).blocking(run.sleep)(Attempts([failed(), succeeded()]))
    assert all(0.0 <= wait <= 0.5 for wait in run)
    assert len(set(run)) > 1


def test_no_waits_at_all(schedule: Make, run: Run) -> None:
    """`wait_initial=0` means at once."""
    config = {"attempts": 4, "wait_initial": 0.0}
    schedule(**config).blocking(run.sleep)(Attempts(failed() for _ in range(4)))
    assert run == [0.0, 0.0, 0.0]


@pytest.mark.usefixtures("shortest_waits")
def test_retry_after_is_the_least(schedule: Make, run: Run) -> None:
    """The server is never called before the time it asked for, `wait_max` or not."""
    schedule(wait_max=2.0).blocking(run.sleep)(Attempts([asked_to_wait(5.0), succeeded()]))
    assert run == [5.0]


@pytest.mark.usefixtures("longest_waits")
def test_retry_after_is_jittered(schedule: Make, run: Run) -> None:
    """All who were asked to wait as long don't come back in the same instant."""
    schedule(wait_initial=0.1).blocking(run.sleep)(Attempts([asked_to_wait(5.0), succeeded()]))
    assert pytest.approx([5.1]) == run


@pytest.mark.usefixtures("longest_waits")
def test_retry_after_of_zero(schedule: Make, run: Run) -> None:
    """0 means soon: with the usual back-off, not without any."""
    schedule(wait_initial=0.1).blocking(run.sleep)(Attempts([asked_to_wait(0.0), succeeded()]))
    assert pytest.approx([0.1]) == run


@pytest.mark.usefixtures("shortest_waits")
@pytest.mark.parametrize(("asked", "tries"), [(4.9, 2), (5.0, 1), (3600.0, 1)])
def test_retry_after_beyond_the_end(schedule: Make, run: Run, asked: float, tries: int) -> None:
    """A wait that leaves nothing of the total raises the last error at once, not at the end."""
    attempts = Attempts([asked_to_wait(asked), succeeded()])
    schedule(left=5.0).blocking(run.sleep)(attempts)
    assert (attempts.made, len(run)) == (tries, tries - 1)


@pytest.mark.usefixtures("longest_waits")
def test_back_off_beyond_the_end(schedule: Make, run: Run) -> None:
    """The usual waits, too, stay within what is left; the clock is read anew each time."""
    outcomes = [failed() for _ in range(9)]
    config = {"attempts": 9, "wait_initial": 1.0, "wait_max": 100.0}
    last = schedule(left=10.0, **config).blocking(run.sleep)(Attempts(outcomes))
    assert [1.0, 2.0, 4.0] == run  # 8 more seconds would end at 15
    assert last is outcomes[3]


def test_time_that_is_up(schedule: Make, run: Run) -> None:
    """A first try that took all the time is the only one."""
    schedule(left=-1.0).blocking(run.sleep)(Attempts([failed()]))
    assert run == []


# --- the budget ----------------------------------------------------------------------------------


@pytest.fixture
def poor(clock: FakeClock, hook: RecordingHook) -> CircuitBreaker:
    """Give a breaker whose budget is one retry."""
    breaker = CircuitBreaker("db", clock=clock, on_event=hook)
    while breaker.get_stats().budget_left > 1.0:
        breaker.may_retry()
    return breaker


def schedule_of(breaker: CircuitBreaker, clock: FakeClock, **config: Any) -> Schedule:
    return Schedule(RetryConfig(**config), breaker, clock() + 15.0)


def test_budget_that_is_spent(poor: CircuitBreaker, clock: FakeClock, run: Run, hook) -> None:
    """Without budget the last attempt is the result, with no wait and no event."""
    attempts = Attempts([failed(), failed(), succeeded()])
    result = schedule_of(poor, clock).blocking(run.sleep)(attempts)
    assert "bad gateway" == str(result.error)
    assert (2, 1, ["retry.scheduled"]) == (attempts.made, len(run), hook.names)
    assert (10, 1) == (poor.get_stats().retries, poor.get_stats().retries_refused)


async def test_budget_that_is_spent_async(poor: CircuitBreaker, clock: FakeClock, run: Run) -> None:
    """The same holds for tasks."""
    attempts = Attempts([failed(), failed(), succeeded()])

    async def attempt() -> Attempt:
        return attempts()

    async def sleep(seconds: float) -> None:
        run.sleep(seconds)

    result = await schedule_of(poor, clock).awaiting(sleep)(attempt)
    assert "bad gateway" == str(result.error)
    assert (2, 1) == (attempts.made, len(run))


@pytest.mark.parametrize(
    "last",
    [
        [failed(may_repeat=False)],
        [succeeded()],
        [asked_to_wait(15.0)],
        [failed(ONCE), failed(ONCE)],
        [failed(), failed(), failed()],
    ],
    ids=["not to be repeated", "success", "too long a wait", "retry once", "last attempt"],
)
def test_only_retries_are_paid(
    schedule: Make, run: Run, breaker: CircuitBreaker, last: list[Attempt]
) -> None:
    """The budget pays for each try but the first, and for none that is not made."""
    schedule().blocking(run.sleep)(Attempts(last))
    stats = breaker.get_stats()
    assert (len(last) - 1, 0, 11.0 - len(last)) == (
        stats.retries,
        stats.retries_refused,
        stats.budget_left,
    )


@pytest.mark.parametrize("asked", [-1.0, float("nan"), -float("inf")])
def test_nonsense_of_a_classify(schedule: Make, run: Run, asked: float) -> None:
    """A wait below nothing, as a user's `classify` may ask for, is none."""
    attempts = Attempts([asked_to_wait(asked), succeeded()])
    assert "rows" == schedule().blocking(run.sleep)(attempts).response
    assert 0.0 <= run[0] <= 0.1


@pytest.mark.parametrize("asked", [float("inf"), 1e308])
def test_endless_wait(schedule: Make, run: Run, asked: float) -> None:
    """A wait without end is not begun."""
    attempts = Attempts([asked_to_wait(asked), succeeded()])
    assert schedule().blocking(run.sleep)(attempts).error is not None
    assert [] == run


# --- what it tells -------------------------------------------------------------------------------


@pytest.mark.usefixtures("longest_waits")
def test_tells_each_retry(
    schedule: Make, run: Run, breaker: CircuitBreaker, hook: RecordingHook
) -> None:
    """Each wait is an event before it begins, and a count; the last failure is neither."""
    schedule(wait_initial=0.1).blocking(run.sleep)(Attempts(failed() for _ in range(3)))
    assert hook.events == [
        RetryScheduled(breaker="db", attempt=1, delay=0.1, reason="bad gateway"),
        RetryScheduled(breaker="db", attempt=2, delay=0.2, reason="bad gateway"),
    ]
    assert breaker.get_stats().retries == 2


# --- what isn't an attempt -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_what_an_attempt_raises(schedule: Make, run: Run, kind: type[BaseException]) -> None:
    """An attempt that raises instead of ending isn't repeated: the exception passes."""

    def interrupt() -> Attempt:
        raise kind

    with pytest.raises(kind):
        schedule().blocking(run.sleep)(interrupt)
    assert run == []


# --- async ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("longest_waits")
async def test_awaiting_decides_the_same(schedule: Make, run: Run, breaker: CircuitBreaker) -> None:
    """Tasks wait as threads do: as often, as long."""

    async def sleep(seconds: float) -> None:
        run.sleep(seconds)

    attempts = Attempts([failed(), asked_to_wait(3.0), failed()])

    async def attempt() -> Attempt:
        return attempts()

    last = await schedule(wait_initial=0.1).awaiting(sleep)(attempt)
    assert (attempts.made, last.meaning) == (3, FAILED)
    assert pytest.approx([0.1, 3.2]) == run
    assert breaker.get_stats().retries == 2


async def test_canceled_attempt(schedule: Make) -> None:
    """A cancellation isn't a failed attempt: it passes at once."""

    async def sleep(_: float) -> None:
        raise AssertionError("waited")

    async def canceled() -> Attempt:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await schedule().awaiting(sleep)(canceled)


async def test_canceled_wait(schedule: Make) -> None:
    """A call that is canceled while it waits is not tried again."""
    waiting = asyncio.Event()

    async def sleep(_: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    attempts = Attempts([failed(), succeeded()])

    async def attempt() -> Attempt:
        return attempts()

    task = asyncio.create_task(schedule().awaiting(sleep)(attempt))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert attempts.made == 1
