"""For your tests and ours: a clock that a test moves by hand, and a hook that remembers."""

from supabase_resilience.events import Event

__all__ = ["FakeClock", "RecordingHook"]


class FakeClock:
    """A clock that stands still until `advance()`: `CircuitBreaker(clock=FakeClock())`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The current time in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass; raises ValueError for a negative number, as clocks don't go back."""
        if not seconds >= 0:  # NaN is neither
            raise ValueError(f"seconds must be >= 0, got {seconds!r}")
        self.now += seconds


class RecordingHook:
    """Remembers the events it is told, in order: `CircuitBreaker(on_event=RecordingHook())`."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Remember one event."""
        self.events.append(event)

    @property
    def names(self) -> list[str]:
        """The dotted names of the events, in order."""
        return [event.name for event in self.events]
