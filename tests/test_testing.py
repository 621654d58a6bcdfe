"""The helpers for tests do what tests lean on."""

import pytest

from supabase_resilience import CircuitBreaker, CircuitOpenError
from supabase_resilience.events import CircuitHalfOpened, CircuitOpened
from supabase_resilience.testing import FakeClock, RecordingHook


def test_clock_stands_still() -> None:
    """Only `advance()` moves the clock."""
    clock = FakeClock()
    assert [1000.0, 1000.0] == [clock(), clock()]
    clock.advance(2.5)
    assert clock() == 1002.5
    clock.advance(0)
    assert clock() == 1002.5


def test_clock_starts_where_told() -> None:
    """A test can choose the first reading."""
    assert FakeClock(5.0)() == 5.0


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_clock_does_not_go_back(seconds: float) -> None:
    """Monotonic is monotonic: a step back, or to nowhere, is refused and changes nothing."""
    clock = FakeClock(5.0)
    with pytest.raises(ValueError, match=f"seconds must be >= 0, got {seconds!r}"):
        clock.advance(seconds)
    assert clock() == 5.0


def test_hook_remembers_in_order() -> None:
    """Events are kept as they came, with their names at hand."""
    hook = RecordingHook()
    first, second = CircuitHalfOpened(breaker="a"), CircuitHalfOpened(breaker="b")
    hook(first)
    hook(second)
    assert [first, second] == hook.events
    assert ["circuit.half_opened"] * 2 == hook.names


def test_with_a_breaker() -> None:
    """Both are what `CircuitBreaker` takes for `clock` and `on_event`."""
    clock, hook = FakeClock(), RecordingHook()
    breaker = CircuitBreaker(reset_timeout=30.0, jitter=0.0, clock=clock, on_event=hook)
    breaker.force_open()
    with pytest.raises(CircuitOpenError):
        breaker.execute(int)
    assert ["circuit.opened", "circuit.call_refused"] == hook.names
    assert isinstance(hook.events[0], CircuitOpened)
