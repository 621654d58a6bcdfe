"""What this package refuses, and what to do about it.

```
ResilienceError              everything raised on purpose by this package
├── CircuitOpenError         a call that was not made because the circuit is open
├── QueueError               a queue that cannot work as it is, and what sets it right
│   └── HandlerTimeoutError  a handler that did not end within its `handler_timeout`
├── ListenerError            a listener that cannot work as it is, and what sets it right
└── VerificationError        a verification that cannot work as it is, and what sets it right
```

Errors of httpx and of Supabase pass through unchanged: `except APIError` keeps working.
"""

__all__ = [
    "CircuitOpenError",
    "HandlerTimeoutError",
    "ListenerError",
    "QueueError",
    "ResilienceError",
    "VerificationError",
]


class ResilienceError(Exception):
    """Base of everything that this package raises on purpose."""

    __module__ = "supabase_resilience"


class CircuitOpenError(ResilienceError):
    """The call was not made: the circuit is open, so nothing reached the service.

    `breaker` is the name of the breaker that refused. `retry_after` is how many seconds to wait
    before another try is worth it, or None when only `reset()` ends the refusal.
    """

    __module__ = "supabase_resilience"

    def __init__(self, breaker: str, retry_after: float | None) -> None:
        super().__init__(breaker, retry_after)
        self.breaker = breaker
        self.retry_after = retry_after

    def __str__(self) -> str:
        """Say which breaker refused and when to try again."""
        when = (
            "it was opened by hand, call reset() to close it"
            if self.retry_after is None
            else f"retry in {self.retry_after:.1f} s"
        )
        return f"Circuit breaker is OPEN: {self.breaker!r} refused the call; {when}"


class QueueError(ResilienceError):
    """A queue cannot do what was asked of it; the message says what to do, often as SQL to run."""

    __module__ = "supabase_resilience"


class HandlerTimeoutError(QueueError):
    """A handler did not end within `handler_timeout` seconds; it spends an attempt like any error.

    No `TimeoutError`, which would be an outage: a slow job would never run out of attempts.
    """

    __module__ = "supabase_resilience"


class ListenerError(ResilienceError):
    """A listener cannot do what was asked of it; the message says what to do."""

    __module__ = "supabase_resilience"


class VerificationError(ResilienceError):
    """A verification cannot do what was asked of it; the message says what to do."""

    __module__ = "supabase_resilience"
