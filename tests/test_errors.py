"""What the package raises of its own accord: one family, that says what to do, and can travel."""

import copy
import pickle

import httpx
import pytest

from supabase_resilience import CircuitOpenError, ResilienceError


def test_one_base() -> None:
    """`except ResilienceError` catches a refusal; nothing of httpx's or Python's I/O does."""
    error = CircuitOpenError("db", 1.0)
    assert isinstance(error, ResilienceError)
    # supabase-py's Auth swallows these two and makes errors of its own of them.
    assert not isinstance(error, httpx.RequestError | RuntimeError | OSError)


@pytest.mark.parametrize(
    ("retry_after", "text"),
    [
        (12.345, "retry in 12.3 s"),
        (0.0, "retry in 0.0 s"),
        (None, "it was opened by hand, call reset() to close it"),
    ],
)
def test_text_says_what_to_do(retry_after: float | None, text: str) -> None:
    """A refusal says which breaker it was, and when to try again or how to end it."""
    expected = f"Circuit breaker is OPEN: 'db' refused the call; {text}"
    assert expected == str(CircuitOpenError("db", retry_after))


@pytest.mark.parametrize("travel", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy])
@pytest.mark.parametrize("retry_after", [5.0, None])
def test_survives_a_process_boundary(travel, retry_after: float | None) -> None:
    """A refusal arrives whole from a worker process."""
    arrived = travel(CircuitOpenError("db", retry_after))
    assert type(arrived) is CircuitOpenError
    assert (arrived.breaker, arrived.retry_after) == ("db", retry_after)
    assert str(arrived) == str(CircuitOpenError("db", retry_after))


@pytest.mark.parametrize("kind", [CircuitOpenError, ResilienceError])
def test_named_by_its_public_place(kind: type[Exception]) -> None:
    """A traceback shows the name that can be imported."""
    assert kind.__module__ == "supabase_resilience"
