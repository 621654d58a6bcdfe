"""The breaker against a plain model of its rules, through random histories of calls.

The model is written down as a reader of the documentation would: no lock, no permits handed out,
just a list of the calls in flight and what each of them may still change.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from supabase_resilience import CircuitBreaker, CircuitOpenError, Classification, FailureRate
from supabase_resilience._circuit import Permit
from supabase_resilience.testing import FakeClock, RecordingHook

RESET, MAXIMUM = 30.0, 200.0

OUTCOMES = {
    "success": Classification(verdict="success"),
    "failure": Classification(verdict="failure"),
    "failure, Retry-After 90": Classification(verdict="failure", retry_after=90.0),
    "connection lost": Classification(verdict="failure", connection_lost=True),
    "slow query": Classification(verdict="failure", scope="query"),
    "slow query, answered": Classification(verdict="failure", scope="query", answered=True),
    "our mistake": Classification(verdict="neutral"),
    "refused by Postgres": Classification(verdict="neutral", answered=True),
    "throttled": Classification(verdict="throttled", retry_after=50.0),
    "blocked": Classification(verdict="blocked"),
}
FAILURES = ["failure", "failure, Retry-After 90", "connection lost", "throttled", "blocked"]


@dataclass(eq=False)
class Flight:
    """A call in flight; `era` is when it began: after how many changes of state."""

    permit: Permit
    era: int
    losses: int
    began_at: float
    forfeits_at: float | None = None  # of a probe


@dataclass
class Model:
    """What the documentation says."""

    threshold: int
    permits: int
    close_after: int
    growth: float
    lease: float
    rate: FailureRate | None = None
    state: str = "closed"
    in_a_row: int = 0
    calls: list[tuple[float, bool]] = field(default_factory=list)  # when, and whether it failed
    successful_probes: int = 0
    open_until: float = 0.0
    open_time: float = RESET
    era: int = 0
    losses: int = 0
    probes: list[Flight] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def counting(self, now: float) -> list[bool]:
        """Which of the calls that count now failed; the clock only ever shows full tenths."""
        if self.rate is None:
            return [True] * self.in_a_row
        if self.rate.calls is not None:
            return [failed for _, failed in self.calls[-self.rate.calls :]]
        return [failed for at, failed in self.calls if now - at < self.rate.window]

    def is_enough(self, now: float) -> bool:
        counting = self.counting(now)
        if self.rate is None:
            return len(counting) >= self.threshold
        share = counting.count(True) / len(counting)
        return len(counting) >= self.rate.minimum_calls and share >= self.rate.threshold

    def change(self, state: str, event: str | None) -> None:
        self.state = state
        self.era += 1
        self.successful_probes = 0
        self.probes = []
        if event:
            self.told.append(event)

    def lets_in(self, now: float) -> bool:
        if self.state == "open" and now >= self.open_until:
            self.change("half_open", "circuit.half_opened")
        if self.state == "half_open":
            self.probes = [probe for probe in self.probes if probe.forfeits_at > now]
            return len(self.probes) < self.permits
        return self.state in {"closed", "disabled"}

    def began(self, permit: Permit, now: float) -> Flight:
        flight = Flight(permit, self.era, self.losses, now)
        if self.state == "half_open":
            flight.forfeits_at = now + self.lease
            self.probes.append(flight)
        return flight

    def is_news(self, flight: Flight) -> bool:
        """A result from before the last change is stale, one of a replaced probe is late."""
        if flight.forfeits_at is None:
            return flight.era == self.era
        return flight in self.probes

    def ended(self, flight: Flight, outcome: Classification, now: float) -> None:
        is_news = self.is_news(flight)
        is_probe = flight.forfeits_at is not None
        if flight in self.probes:
            self.probes.remove(flight)
        if not is_news or self.state == "disabled":
            return
        verdict = "neutral" if outcome.scope == "query" else outcome.verdict
        if outcome.connection_lost and flight.losses < self.losses:
            verdict = "neutral"
        if verdict == "success" and self.is_slow(flight, now):
            verdict = "failure"
        if verdict == "success" or (verdict == "neutral" and outcome.answered and is_probe):
            self.succeeded(now)
        elif verdict != "neutral":
            self.failed(verdict, outcome, now)

    def is_slow(self, flight: Flight, now: float) -> bool:
        limit = self.rate and self.rate.slow_after
        return limit is not None and now - flight.began_at > limit

    def succeeded(self, now: float) -> None:
        if self.state == "closed":
            self.in_a_row = 0
            self.calls.append((now, False))
            return
        self.successful_probes += 1
        if self.successful_probes == self.close_after:
            self.close()

    def close(self) -> None:
        self.change("closed", "circuit.closed" if self.state != "closed" else None)
        self.in_a_row = 0
        self.calls = []
        self.open_time = RESET

    def failed(self, verdict: str, outcome: Classification, now: float) -> None:
        self.in_a_row += 1
        self.calls.append((now, True))
        self.losses += outcome.connection_lost
        was = self.state
        if was == "closed" and verdict == "failure" and not self.is_enough(now):
            return
        if was == "half_open":
            self.open_time = min(self.open_time * self.growth, MAXIMUM)
        self.change("open", "circuit.opened")
        asked = min(max(self.open_time, outcome.retry_after or 0.0), MAXIMUM)
        self.open_until = now + (MAXIMUM if verdict == "blocked" else asked)


class BreakerMachine(RuleBasedStateMachine):
    """Random calls, outcomes, pauses and manual steering, on breaker and model alike."""

    flights = Bundle("flights")

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.hook = FakeClock(), RecordingHook()
        self.set_up(Model(threshold=3, permits=1, close_after=1, growth=1.0, lease=20.0))

    def set_up(self, model: Model) -> None:
        self.model = model
        self.breaker = CircuitBreaker(
            failure_threshold=model.threshold,
            trip=model.rate,
            reset_timeout=RESET,
            half_open_permits=model.permits,
            close_after=model.close_after,
            probe_timeout=model.lease,
            max_reset_timeout=MAXIMUM,
            growth=model.growth,
            jitter=0.0,
            clock=self.clock,
            on_event=self.hook,
        )

    @rule(target=flights)
    def call(self) -> Flight | None:
        """A call begins exactly if the model lets it in."""
        now = self.clock()
        lets_in = self.model.lets_in(now)
        state = self.model.state
        try:
            permit = self.breaker.acquire()
        except CircuitOpenError as refusal:
            assert not lets_in
            self.model.told.append("circuit.call_refused")
            self.says_when_to_retry(refusal, state, now)
            return None
        assert lets_in
        assert (state == "half_open") == permit.is_probe
        return self.model.began(permit, now)

    def says_when_to_retry(self, refusal: CircuitOpenError, state: str, now: float) -> None:
        ends = {"open": [self.model.open_until], "forced_open": []}
        ends["half_open"] = [probe.forfeits_at for probe in self.model.probes]
        assert min((end - now for end in ends[state]), default=None) == refusal.retry_after

    @rule(flight=consumes(flights), outcome=st.sampled_from(sorted(OUTCOMES)))
    def end(self, flight: Flight | None, outcome: str) -> None:
        """A call ends somehow; the model says what that changes."""
        if flight is not None:
            self.model.ended(flight, OUTCOMES[outcome], self.clock())
            self.breaker.settle(flight.permit, OUTCOMES[outcome])

    @rule(flight=consumes(flights))
    def cancel(self, flight: Flight | None) -> None:
        """A canceled call changes nothing but to give its permit back."""
        if flight is not None:
            before = self.breaker.get_stats()
            self.breaker.release(flight.permit)
            if flight in self.model.probes:
                self.model.probes.remove(flight)
            after = self.breaker.get_stats()
            assert before.neutral + 1 == after.neutral
            assert (before.state, before.current_failures, before.successes) == (
                after.state,
                after.current_failures,
                after.successes,
            )

    @rule(seconds=st.sampled_from([1.0, 3.0, 10.0, 20.0, RESET, MAXIMUM]))
    def wait(self, seconds: float) -> None:
        """Time passes; alone it changes nothing."""
        self.clock.advance(seconds)

    @rule(outcome=st.sampled_from(FAILURES), early=st.sampled_from([0.0, 0.0, 0.0, 1.0]))
    def outage(self, outcome: str, early: float) -> None:
        """Calls fail one after the other; then the open time passes, or nearly."""
        for _ in range(self.model.threshold):
            self.end(self.call(), outcome)
        if self.model.state == "open":
            self.clock.advance(max(0.0, self.model.open_until - self.clock() - early))

    @rule(target=flights, count=st.integers(2, 4))
    def calls(self, count: int) -> MultipleResults[Flight | None]:
        """Several calls begin in the same moment."""
        return multiple(*(self.call() for _ in range(count)))

    @rule(count=st.integers(2, 4))
    def burst(self, count: int) -> None:
        """Several calls lose the same connection."""
        for flight in [self.call() for _ in range(count)]:
            self.end(flight, "connection lost")

    @rule(outcomes=st.lists(st.sampled_from(["success", "failure", "our mistake"]), max_size=5))
    def one_by_one(self, outcomes: list[str]) -> None:
        """Patient calls, each made when the one before has ended and the open time is over."""
        for outcome in outcomes:
            if self.model.state == "open":
                self.clock.advance(max(0.0, self.model.open_until - self.clock()))
            self.end(self.call(), outcome)

    @rule(how=st.sampled_from(["force_open", "disable", "reset", "reset"]))
    def steer(self, how: str) -> None:
        """Somebody steers by hand."""
        if how == "reset":
            self.model.close()
        elif how == "disable":
            self.model.change("disabled", "circuit.disabled")
        else:
            self.model.change("forced_open", "circuit.opened")
        getattr(self.breaker, how)()

    @invariant()
    def agrees(self) -> None:
        """State, failures, time to wait and everything told are those of the model."""
        stats, model = self.breaker.get_stats(), self.model
        left = max(0.0, model.open_until - self.clock()) if model.state == "open" else None
        assert (model.state, model.counting(self.clock()).count(True), left) == (
            stats.state,
            stats.current_failures,
            stats.retry_after,
        )
        assert model.told == self.hook.names

    @invariant()
    def never_too_many_probes(self) -> None:
        """There are never more probes in flight than permits."""
        assert len(self.breaker._circuit._probes) <= self.model.permits


def machine(numbers: dict[str, Any]) -> type[RuleBasedStateMachine]:
    class Configured(BreakerMachine):
        def __init__(self) -> None:
            super().__init__()
            self.set_up(Model(**numbers))

    return Configured


@pytest.mark.parametrize(
    "numbers",
    [
        {"threshold": 3, "permits": 1, "close_after": 1, "growth": 1.0, "lease": 20.0},
        {"threshold": 1, "permits": 1, "close_after": 2, "growth": 2.0, "lease": 999.0},
        {"threshold": 2, "permits": 3, "close_after": 2, "growth": 1.5, "lease": 30.0},
        {
            "threshold": 3,
            "permits": 1,
            "close_after": 1,
            "growth": 1.0,
            "lease": 20.0,
            "rate": FailureRate(threshold=0.5, window=10.0, minimum_calls=3),
        },
        {
            "threshold": 3,
            "permits": 2,
            "close_after": 2,
            "growth": 2.0,
            "lease": 30.0,
            "rate": FailureRate(threshold=0.6, calls=5, minimum_calls=2),
        },
        {
            "threshold": 4,
            "permits": 1,
            "close_after": 1,
            "growth": 1.0,
            "lease": 20.0,
            "rate": FailureRate(threshold=0.75, window=10.0, minimum_calls=2, slow_after=5.0),
        },
    ],
    ids=["default", "growing", "three probes", "share", "share of the last calls", "slow calls"],
)
def test_breaker_follows_the_model(numbers: dict[str, Any]) -> None:
    """Whatever happens in whatever order, the breaker does what the documentation says."""
    case = machine(numbers).TestCase
    case.settings = settings(max_examples=150, stateful_step_count=60, deadline=None, database=None)
    case("runTest").runTest()
