"""The circuit's state machine: which calls may pass, and what an outcome changes.

It knows no lock, no hook and no clock: every method wants external locking and is told the time.
What happened is left in `untold`, for the caller to tell after it has let go of the lock.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from supabase_resilience._checks import (
    check_count,
    check_number,
    check_optional,
    check_seconds,
    check_text,
)
from supabase_resilience.events import (
    CircuitClosed,
    CircuitDisabled,
    CircuitHalfOpened,
    CircuitOpened,
    Event,
)
from supabase_resilience.failures import Classification, Verdict
from supabase_resilience.trip import FailureRate

__all__ = ["Circuit", "CircuitSettings", "Permit", "State"]

State = Literal["closed", "open", "half_open", "forced_open", "disabled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitSettings:
    """The numbers of a circuit; `CircuitBreaker` documents them."""

    name: str
    failure_threshold: int
    reset_timeout: float
    trip: FailureRate | None = None
    half_open_permits: int
    close_after: int
    probe_timeout: float | None
    max_reset_timeout: float
    growth: float
    jitter: float

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        check_text("name", self.name)
        check_count("failure_threshold", self.failure_threshold)
        check_seconds("reset_timeout", self.reset_timeout)
        if self.trip is not None and not isinstance(self.trip, FailureRate):
            raise TypeError(f"trip must be a FailureRate or None, got {self.trip!r}")
        check_count("half_open_permits", self.half_open_permits)
        check_count("close_after", self.close_after)
        check_optional(check_seconds, "probe_timeout", self.probe_timeout)
        check_seconds("max_reset_timeout", self.max_reset_timeout)
        if self.max_reset_timeout < self.reset_timeout:
            raise ValueError(
                f"max_reset_timeout must be >= reset_timeout ({self.reset_timeout!r}), "
                f"got {self.max_reset_timeout!r}"
            )
        check_number("growth", self.growth, at_least=1.0)
        check_number("jitter", self.jitter, at_least=0.0)


class Permit:
    """Leave to make one call; it goes back through `settle()` or `release()` of its breaker.

    It remembers the moment it was given: `generation` grows with each change of state, and a
    result from before the last one is not counted; `losses` grows with each connection loss
    counted, and calls in flight share that one. Calls that start while nothing changes share one
    permit, but each probe has its own. `is_probe` marks the trial call of a half-open circuit,
    which must not be repeated; `is_nested` a use inside a call of the same breaker. `started_at`
    is known where slow calls count; then calls share no permit.
    """

    __slots__ = ("generation", "is_nested", "is_probe", "losses", "started_at")

    def __init__(
        self,
        generation: int,
        losses: int,
        *,
        is_probe: bool = False,
        is_nested: bool = False,
        started_at: float | None = None,
    ) -> None:
        self.generation: int = generation
        self.losses: int = losses
        self.is_probe: bool = is_probe
        self.is_nested: bool = is_nested
        self.started_at: float | None = started_at


class Circuit:
    """Closed, open, half-open, and the two states that are set by hand."""

    def __init__(
        self, settings: CircuitSettings, now: float, *, rng: Callable[[], float] = random.random
    ) -> None:
        self.settings = settings
        self._rng = rng
        self.state: State = "closed"
        self.window = settings.trip.start(now) if settings.trip else None
        self._slow_after = settings.trip.slow_after if settings.trip else None
        self._generation = 0
        self.losses = 0
        self.echoes = 0
        """Losses that the last counted one stands for, and that no retry was made of yet."""
        self.permit = self._shared_permit()
        """What every call takes while closed; None sends it to `admit()`."""
        self.failures = 0
        self.since = now
        self.open_until = 0.0
        # Why it opened last; None while closed.
        self.cause: str | None = None
        self.reason: str | None = None
        self.counts: dict[str, int] = dict.fromkeys(
            ("failure", "neutral", "throttled", "blocked", "refused", "opened", "closed"), 0
        )
        self.untold: deque[Event] = deque()
        self._left_closed_at = now
        self._usual_open_time = settings.reset_timeout
        self._probes: dict[Permit, float] = {}  # and when each forfeits
        self._probe_successes = 0

    def admit(self, now: float) -> tuple[Permit | None, float | None]:
        """A permit; or None and how many seconds to wait, where that is known."""
        if self.state == "open" and now >= self.open_until:
            self._move("half_open", now)
            self.untold.append(CircuitHalfOpened(breaker=self.settings.name))
        if self.state in {"closed", "disabled"}:
            return Permit(self._generation, self.losses, started_at=now), None
        if self.state == "half_open":
            return self._admit_probe(now)
        return self._refuse(self.open_until - now if self.state == "open" else None)

    def _admit_probe(self, now: float) -> tuple[Permit | None, float | None]:
        for permit in [permit for permit, until in self._probes.items() if until <= now]:
            del self._probes[permit]  # it hangs, and would keep the circuit half-open for ever
        if len(self._probes) >= self.settings.half_open_permits:
            return self._refuse(min(self._probes.values()) - now)
        permit = Permit(self._generation, self.losses, is_probe=True, started_at=now)
        self._probes[permit] = now + (self.settings.probe_timeout or self.settings.reset_timeout)
        return permit, None

    def _shared_permit(self) -> Permit | None:
        if self._slow_after is not None:
            return None
        return Permit(self._generation, self.losses)

    def _refuse(self, retry_after: float | None) -> tuple[None, float | None]:
        self.counts["refused"] += 1
        return None, retry_after

    def succeed(self, permit: Permit, now: float) -> None:
        """A call came back well: failures are no longer consecutive, a probe may close."""
        if not self._is_current(permit):
            return
        if self.state == "closed":
            if self.window is None:
                self.failures = 0
            else:
                self.window.add_success(now)
        elif self.state == "half_open":
            self._probe_successes += 1
            if self._probe_successes >= self.settings.close_after:
                self.close(now)

    def is_slow(self, permit: Permit, now: float) -> bool:
        """Whether a call that came back well took so long that it counts as a failure."""
        limit, started_at = self._slow_after, permit.started_at
        return limit is not None and started_at is not None and now - started_at > limit

    def count(self, permit: Permit, outcome: Classification, now: float) -> None:
        """A call came back otherwise: count it, and open if that was enough."""
        verdict = self._verdict(permit, outcome)
        self.counts[verdict] += 1
        if verdict == "neutral" and permit.is_probe and outcome.answered:
            # Postgres refused the probe's own request, so the service is back.
            self.succeed(permit, now)
        elif self._is_current(permit) and verdict != "neutral" and self.state != "disabled":
            self._fail(verdict, outcome, now)

    def _verdict(self, permit: Permit, outcome: Classification) -> Verdict:
        if outcome.scope == "query":
            return "neutral"
        # One HTTP/2 GOAWAY or one restarted proxy breaks every call on the wire: one failure.
        is_echo = outcome.connection_lost and permit.losses < self.losses
        self.echoes += is_echo
        return "neutral" if is_echo else outcome.verdict

    def _is_current(self, permit: Permit) -> bool:
        """Is this result still news? Takes a probe's permit back, and fences late ones."""
        held = self._probes.pop(permit, None) is not None
        return permit.generation == self._generation and (held or not permit.is_probe)

    def _fail(self, verdict: Verdict, outcome: Classification, now: float) -> None:
        is_enough = self._add_failure(now)
        if outcome.connection_lost:
            self.losses += 1
            self.echoes = 0
            if self.state == "closed":
                self.permit = self._shared_permit()
        if is_enough or verdict != "failure" or self.state == "half_open":
            self._open(verdict, outcome, now)

    def _add_failure(self, now: float) -> bool:
        if self.window is None:
            self.failures += 1
            return self.failures >= self.settings.failure_threshold
        is_enough = self.window.add_failure(now)
        self.failures = self.window.count_failures(now)
        return is_enough

    def current_failures(self, now: float) -> int:
        """What counts towards opening now; a window forgets while time passes."""
        return self.failures if self.window is None else self.window.count_failures(now)

    def _open(self, cause: Verdict, outcome: Classification, now: float) -> None:
        if self.state == "half_open":
            grown = self._usual_open_time * self.settings.growth
            self._usual_open_time = min(grown, self.settings.max_reset_timeout)
        open_for = self._open_time(cause, outcome.retry_after or 0.0)
        self._move("open", now)
        self.open_until = now + open_for
        self._tell_opened(cause, outcome.reason, open_for)

    def _open_time(self, cause: Verdict, retry_after: float) -> float:
        limit = self.settings.max_reset_timeout
        asked = max(self._usual_open_time, retry_after)
        seconds = limit if cause == "blocked" else min(asked, limit)
        # Only ever longer: a server that asked for a minute must not be called before it.
        return seconds * (1.0 + self.settings.jitter * self._rng())

    def force_open(self, now: float) -> None:
        """Refuse every call until `close()`."""
        self._move("forced_open", now)
        self._tell_opened("forced", "force_open()", None)

    def _tell_opened(self, cause: str, reason: str, open_for: float | None) -> None:
        self.counts["opened"] += 1
        self.cause, self.reason = cause, reason
        facts: dict[str, Any] = {"cause": cause, "reason": reason, "open_for": open_for}
        event = CircuitOpened(breaker=self.settings.name, failures=self.failures, **facts)
        self.untold.append(event)

    def disable(self, now: float) -> None:
        """Let every call pass and judge none, until `close()`."""
        self._move("disabled", now)
        self.untold.append(CircuitDisabled(breaker=self.settings.name))

    def close(self, now: float) -> None:
        """Let calls pass; what was counted before is forgotten."""
        was, away = self.state, max(0.0, now - self._left_closed_at)
        self._move("closed", now)
        self.failures = 0
        self.cause = self.reason = None
        if self.window is not None:
            self.window.clear(now)
        self._usual_open_time = self.settings.reset_timeout
        self.permit = self._shared_permit()
        if was != "closed":
            self.counts["closed"] += 1
            self.untold.append(CircuitClosed(breaker=self.settings.name, seconds=away))

    def _move(self, state: State, now: float) -> None:
        if self.state == "closed":
            self._left_closed_at = now
        self.state, self.since, self.permit = state, now, None
        self._generation += 1
        self._probes.clear()
        self._probe_successes = 0

    def forget_probes(self) -> None:
        """After a fork: the probes in flight belong to the parent."""
        self._probes.clear()
