"""When to connect again: no storm, and no longer wait than there has to be."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supabase_resilience.listener._pacing import Pacing, backoff
from supabase_resilience.listener._refusals import Refusal

PASSING = Refusal("passing", "closed")
LEAST: Callable[[float, float], float] = lambda low, high: low  # noqa: E731
MOST: Callable[[float, float], float] = lambda low, high: high  # noqa: E731
BOTH = pytest.mark.parametrize("draw", [LEAST, MOST])


def after(
    pacing: Pacing, count: int, refusal: Refusal = PASSING, *, lived: float | None
) -> list[float]:
    return [pacing.after(refusal, lived=lived) for _ in range(count)]


def connects_within(seconds: float, pacing: Pacing) -> int:
    """How often a server that accepts and closes at once is connected to."""
    now, connects = 0.0, 0
    while now <= seconds:
        connects += 1
        now += pacing.after(PASSING, lived=0.0)
    return connects


@given(st.randoms(use_true_random=False))
def test_a_server_that_closes_at_once_is_met_seldom(random):
    """At most 15 connects in 60 s, whatever the jitter draws."""
    assert connects_within(60, Pacing(random.uniform)) <= 15


def test_at_worst():
    """The bound is kept even when every draw is the least."""
    assert connects_within(60, Pacing(LEAST)) <= 15


def test_a_server_that_is_away():
    """Full jitter: anything from 0 to a bound that doubles up to 5 s."""
    assert [0.5, 1, 2, 4, 5, 5] == after(Pacing(MOST), 6, lived=None)
    assert [0.0] * 6 == after(Pacing(LEAST), 6, lived=None)


def test_a_first_short_life_is_forgiven():
    """The first that dies young is replaced soon, the next ones later and later."""
    assert [0.5, 2, 4, 5, 5] == after(Pacing(MOST), 5, lived=1)
    assert [0.0, 1.9, 3.8, 4.75, 4.75] == pytest.approx(after(Pacing(LEAST), 5, lived=1))


@pytest.mark.parametrize("lived", [30, 3600])
def test_a_long_life_begins_anew(lived):
    """What comes after 30 s of life is a first failure again."""
    pacing = Pacing(MOST)
    after(pacing, 5, lived=1)
    assert 0.5 == pacing.after(PASSING, lived=lived)
    assert 2 == pacing.after(PASSING, lived=1), "and counts as one"


@BOTH
def test_rate_limit(draw):
    """A rate limit, an average over 60 s, is waited out for 30 to 60 s, from the first one on."""
    assert [draw(30, 60)] * 2 == after(Pacing(draw), 2, Refusal("rate", ""), lived=None)


@BOTH
def test_permanent(draw):
    """What a person has to set right is looked at every 30 to 60 s."""
    assert [draw(30, 60)] * 2 == after(Pacing(draw), 2, Refusal("permanent", ""), lived=None)


@BOTH
def test_token(draw):
    """A refused token is replaced at once, and again; then nobody has a better one."""
    waits = after(Pacing(draw), 4, Refusal("token", ""), lived=None)
    assert [draw(0, 0.5), draw(0, 1), draw(30, 60), draw(30, 60)] == waits


@given(st.integers(1, 10**6))
def test_backoff(failures):
    """Full jitter stays within the longest wait, for any number of failures."""
    assert 0 <= backoff(failures, longest=5.0) <= min(5.0, 0.5 * 2 ** min(failures, 10))


def test_first_backoff():
    """`first` is what the bound doubles from."""
    assert 0 <= backoff(1, longest=30.0, first=0.1) <= 0.2
