"""The retry budget: each retry is paid for by successes, so retries cannot multiply an outage."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supabase_resilience import CircuitBreaker, Classification
from supabase_resilience._budget import RESERVE, RetryBudget
from supabase_resilience.testing import FakeClock

Make = Callable[..., CircuitBreaker]
SUCCESS = Classification(verdict="success")
FAILURE = Classification(verdict="failure")


@pytest.fixture
def make() -> Make:
    def make(**options: Any) -> CircuitBreaker:
        return CircuitBreaker(failure_threshold=10**6, clock=FakeClock(), on_event=id, **options)

    return make


def retries(breaker: CircuitBreaker) -> int:
    """Retry until the budget is spent."""
    count = 0
    while breaker.may_retry():
        count += 1
    return count


def succeed(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        breaker.execute(int)


def test_reserve(make: Make) -> None:
    """Without any success there are ten retries, so that a quiet client can retry, too."""
    breaker = make()
    assert RESERVE == breaker.get_stats().budget_left
    assert 10 == retries(breaker)
    stats = breaker.get_stats()
    assert (10, 1, 0.0) == (stats.retries, stats.retries_refused, stats.budget_left)


def test_successes_pay(make: Make) -> None:
    """By default ten successes pay for one retry."""
    breaker = make()
    retries(breaker)
    succeed(breaker, 9)
    assert not breaker.may_retry()
    succeed(breaker, 1)
    assert [True, False] == [breaker.may_retry(), breaker.may_retry()]


@pytest.mark.parametrize(("share", "successes", "paid"), [(0.5, 7, 3), (1.0, 7, 7), (0.01, 99, 0)])
def test_share(make: Make, share: float, successes: int, paid: int) -> None:
    """`retry_budget` is what a success pays for."""
    breaker = make(retry_budget=share)
    retries(breaker)
    succeed(breaker, successes)
    assert paid == retries(breaker)


def test_no_hoarding(make: Make) -> None:
    """However many successes there were, no more than the reserve is left for an outage."""
    breaker = make(retry_budget=1.0)
    succeed(breaker, 1000)
    assert RESERVE == breaker.get_stats().budget_left
    assert 10 == retries(breaker)


def test_every_way_pays(make: Make) -> None:
    """Successes by execute(), guard() and a driver's permit pay alike; failures do not."""
    breaker = make(retry_budget=1.0)
    retries(breaker)
    breaker.execute(int)
    with breaker.guard():
        pass
    breaker.settle(breaker.acquire(), SUCCESS)
    breaker.settle(breaker.acquire(), FAILURE)
    breaker.release(breaker.acquire())
    assert 3 == retries(breaker)


def test_no_limit(make: Make) -> None:
    """`retry_budget=None` refuses no retry, and nothing is left of no budget."""
    breaker = make(retry_budget=None)
    assert all(breaker.may_retry() for _ in range(1000))
    stats = breaker.get_stats()
    assert (1000, 0, None) == (stats.retries, stats.retries_refused, stats.budget_left)


def test_no_retries_at_all(make: Make) -> None:
    """`retry_budget=0` has no reserve either."""
    breaker = make(retry_budget=0.0)
    succeed(breaker, 1000)
    assert not breaker.may_retry()
    stats = breaker.get_stats()
    assert (0, 1, 0.0) == (stats.retries, stats.retries_refused, stats.budget_left)


def test_most_that_retries_add(make: Make) -> None:
    """Of 1,000 calls that all fail and would each be tried three times, ten are tried again."""
    breaker = make()
    sent = 0
    for _ in range(1000):
        for attempt in range(3):
            if attempt and not breaker.may_retry():
                break
            sent += 1
            breaker.settle(breaker.acquire(), FAILURE)
    assert 1010 == sent


def test_share_of_load(make: Make) -> None:
    """When every second call fails, retries add a tenth of the successes, no more."""
    breaker = make()
    for _ in range(1000):
        breaker.settle(breaker.acquire(), SUCCESS)
        breaker.settle(breaker.acquire(), FAILURE)
        breaker.may_retry()
    stats = breaker.get_stats()
    assert 110 >= stats.retries >= 108
    assert 1000 == stats.retries + stats.retries_refused


@given(share=st.sampled_from([0.1, 0.3, 0.7]), steps=st.lists(st.integers(0, 12), max_size=40))
def test_reading_costs_nothing(share: float, steps: list[int]) -> None:
    """A budget that is looked at after each success is spent like one that nobody looks at."""
    watched, other = RetryBudget(share), RetryBudget(share)
    total = 0
    for successes in steps:
        for _ in range(successes):
            total += 1
            watched.left(total)
        assert other.spend(total) == watched.spend(total)
    assert other.left(total) == watched.left(total)


def test_successes_read_while_counting(make: Make) -> None:
    """Paying looks at the number of successes, and changes none of it."""
    breaker = make()
    for count in range(1, 50):
        succeed(breaker, 1)
        breaker.may_retry()
        assert count == breaker.get_stats().successes


def test_one_burst_costs_one_retry() -> None:
    """Calls that a single GOAWAY broke are all tried again, for the price of one."""
    breaker = CircuitBreaker(failure_threshold=99)
    lost = Classification(verdict="failure", connection_lost=True)
    in_flight = [breaker.acquire() for _ in range(50)]
    for permit in in_flight:
        breaker.settle(permit, lost)
        assert breaker.may_retry(connection_lost=True)
    assert 9.0 == breaker.get_stats().budget_left
    breaker.settle(breaker.acquire(), lost)
    assert breaker.may_retry(connection_lost=True)
    assert 8.0 == breaker.get_stats().budget_left


def test_echoes_are_not_hoarded(make: Make) -> None:
    """Calls of a burst that were not tried again leave nothing to later ones."""
    breaker = make()
    lost = Classification(verdict="failure", connection_lost=True)
    for permit in [breaker.acquire() for _ in range(20)]:
        breaker.settle(permit, lost)
    for _ in range(20):
        breaker.settle(breaker.acquire(), lost)
        breaker.may_retry(connection_lost=True)
    assert (10, 10) == (breaker.get_stats().retries, breaker.get_stats().retries_refused)


@pytest.mark.parametrize("where", ["disabled", "nested"])
def test_losses_that_are_not_counted_are_paid(make: Make, where: str) -> None:
    """Where the circuit does not count connection losses, nobody can tell bursts: all are paid."""
    breaker = make()
    lost = Classification(verdict="failure", connection_lost=True)
    made: list[bool] = []

    def lose() -> None:
        breaker.settle(breaker.acquire(), lost)
        made.append(breaker.may_retry(connection_lost=True))

    breaker.mark_calls()
    if where == "disabled":
        breaker.disable()
    for _ in range(30):
        if where == "disabled":
            lose()
        else:
            breaker.execute(lose)
    paid_by_successes = 3 if where == "nested" else 0
    assert 10 <= made.count(True) <= 10 + paid_by_successes
