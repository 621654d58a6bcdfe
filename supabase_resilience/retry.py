"""How often, how long and how patiently one call is tried: decisions only, tenacity waits.

Retries help against a short failure and hurt in a long one. So only what may succeed and may be
repeated is tried again, with full jitter, within one total time, and never against a circuit that
has opened meanwhile.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from tenacity import AsyncRetrying, RetryCallState, Retrying, wait_random_exponential

from supabase_resilience import _clock
from supabase_resilience._checks import check_count, check_number, check_seconds
from supabase_resilience._failure_table import SUCCESS
from supabase_resilience.breaker import CircuitBreaker
from supabase_resilience.failures import Classification

__all__ = ["Attempt", "RetryConfig", "Schedule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryConfig:
    """Try up to `attempts` times within `total_timeout` seconds; the first try counts.

    - Reads (GET, HEAD) are repeated after a failure that another try can mend. Writes only when
      the failed try was provably not applied: no connection, refused before it began, rolled back.
    - The wait before try n+1 is random between 0 and `wait_initial * 2**(n-1)` seconds, `wait_max`
      at most (full jitter), and never shorter than the server's `Retry-After`. A wait beyond what
      is left of the total raises the last error at once.
    - `attempt_timeout` bounds each try: connecting, sending and waiting for the answer together.
      supabase-py's own 120 s bound each of these alone.

    Raises `ValueError` or `TypeError`, naming the argument, for one that makes no sense.
    """

    attempts: int = 3
    wait_initial: float = 0.1
    wait_max: float = 2.0
    attempt_timeout: float = 10.0
    total_timeout: float = 15.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        check_count("attempts", self.attempts)
        check_number("wait_initial", self.wait_initial, at_least=0.0)
        check_number("wait_max", self.wait_max, at_least=0.0)
        check_seconds("attempt_timeout", self.attempt_timeout)
        check_seconds("total_timeout", self.total_timeout)


class Attempt:
    """How one try ended: with a response, or with the error to raise; and what that means."""

    __slots__ = ("error", "may_repeat", "meaning", "response")

    def __init__(
        self,
        meaning: Classification,
        *,
        may_repeat: bool,
        response: Any = None,
        error: Exception | None = None,
    ) -> None:
        self.meaning: Classification = meaning
        self.may_repeat: bool = may_repeat
        self.response: Any = response
        self.error: Exception | None = error

    @classmethod
    def of(cls, made: "Attempt | Any") -> "Attempt":
        """An attempt as it is; a response on its own is a success."""
        return made if isinstance(made, cls) else cls(SUCCESS, may_repeat=False, response=made)

    def final(self) -> "Attempt":
        """The same, but not to be repeated."""
        return Attempt(self.meaning, may_repeat=False, response=self.response, error=self.error)

    def result(self) -> Any:
        """The response; or the error, raised as it came."""
        if self.error is not None:
            raise self.error
        return self.response


class Schedule:
    """When the next try of one call may start, if at all.

    `ends_at` is the call's own end on the monotonic clock. Made only after a first failure, so
    that a call that succeeds pays for none of this.
    """

    def __init__(self, config: RetryConfig, breaker: CircuitBreaker, ends_at: float) -> None:
        self._config = config
        self._breaker = breaker
        self._ends_at = ends_at
        self._jittered = wait_random_exponential(config.wait_initial, max=config.wait_max)

    def blocking(self, sleep: Callable[[float], None]) -> Retrying:
        """Tenacity for threads: call it with a function that makes the next attempt."""
        return Retrying(sleep=sleep, **self._policy())

    def awaiting(self, sleep: Callable[[float], Any]) -> AsyncRetrying:
        """Tenacity for tasks."""
        return AsyncRetrying(sleep=sleep, **self._policy())

    def _policy(self) -> dict[str, Any]:
        return {
            "retry": self._wants_retry,
            "wait": self._wait,
            "stop": self._is_over,
            "before_sleep": self._tell,
            "retry_error_callback": _last_attempt,
        }

    def _wants_retry(self, state: RetryCallState) -> bool:
        """Only what can succeed, may be repeated, and finds the circuit still closed."""
        attempt = _attempt_of(state)
        tries = 1 if attempt.meaning.retry_once else self._config.attempts
        return (
            attempt.may_repeat
            and state.attempt_number <= tries
            and self._breaker.get_state() in {"closed", "disabled"}
        )

    def _wait(self, state: RetryCallState) -> float:
        """Full jitter on top of what the server asked for, so that a herd spreads after it too."""
        asked = max(0.0, _attempt_of(state).meaning.retry_after or 0.0)
        return asked + self._jittered(state)

    def _is_over(self, state: RetryCallState) -> bool:
        starts_at = _clock.monotonic() + state.upcoming_sleep
        if state.attempt_number >= self._config.attempts or starts_at >= self._ends_at:
            return True
        lost = _attempt_of(state).meaning.connection_lost
        return not self._breaker.may_retry(connection_lost=lost)

    def _tell(self, state: RetryCallState) -> None:
        self._breaker.retrying(
            attempt=state.attempt_number,
            delay=state.upcoming_sleep,
            reason=_attempt_of(state).meaning.reason,
        )


def _attempt_of(state: RetryCallState) -> Attempt:
    return cast("Attempt", cast("Any", state.outcome).result())


def _last_attempt(state: RetryCallState) -> Attempt:
    return _attempt_of(state)
