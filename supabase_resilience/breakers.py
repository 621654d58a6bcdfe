"""CircuitBreakers: one circuit for the project, and one for each table or function that is sick.

A statement that runs into its timeout says that one table or function is slow, not that Supabase
is down: refusing all queries for it would be an outage of our own making. Connections that fail
say the reverse. So each failure goes to the circuit of its scope.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack

from supabase_resilience import _clock
from supabase_resilience._checks import check_callable, check_count
from supabase_resilience._circuit import Permit
from supabase_resilience._requests import Target, by_table
from supabase_resilience._telling import logger
from supabase_resilience.breaker import BreakerStats, CircuitBreaker, State
from supabase_resilience.errors import CircuitOpenError
from supabase_resilience.events import Hook
from supabase_resilience.failures import Classification, Outcome
from supabase_resilience.trip import FailureRate

__all__ = ["BreakerOptions", "BreakersStats", "CircuitBreakers"]


class BreakerOptions(TypedDict, total=False):
    """The options of `CircuitBreaker`, given to each breaker of the set."""

    name: str
    failure_threshold: int
    reset_timeout: float
    trip: FailureRate | None
    half_open_permits: int
    close_after: int
    probe_timeout: float | None
    max_reset_timeout: float
    growth: float
    jitter: float
    retry_budget: float | None
    classify: Callable[[Outcome], Classification]
    on_open: Callable[[], object] | None
    on_half_open: Callable[[], object] | None
    on_close: Callable[[], object] | None
    on_event: Hook
    clock: _clock.Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakersStats:
    """One moment of all: the project's breaker, and those of single tables and functions."""

    project: BreakerStats
    by_key: Mapping[Hashable, BreakerStats]


class CircuitBreakers:
    """One breaker for the project, one per table or function for what concerns that one alone.

    For `protect(breaker=…)`, which makes one by default. `key(target)` names the circuit of a
    request, see `by_table`; None: it has none but the project's. A circuit of a single key is made
    at the key's first failure; at most `limit` of them exist, and the one not used for longest goes
    first. All other options are those of `CircuitBreaker`; the retry budget is the project's.

    Raises `ValueError` or `TypeError`, naming the argument, for one that makes no sense.
    """

    def __init__(
        self,
        key: Callable[[Target], Hashable | None] = by_table,
        *,
        limit: int = 256,
        **options: Unpack[BreakerOptions],
    ) -> None:
        check_callable("key", key)
        check_count("limit", limit)
        self.project: CircuitBreaker = CircuitBreaker(**options)
        self.key = key
        self._limit = limit
        self._options = options
        # Guarded by the project's lock, but for the question whether it is empty.
        self.by_key: OrderedDict[Hashable, CircuitBreaker] = OrderedDict()

    def __repr__(self) -> str:
        """Show the project's breaker and how many others there are."""
        return f"<CircuitBreakers {self.project!r} +{len(self.by_key)}>"

    def __len__(self) -> int:
        """How many keys have a breaker of their own."""
        return len(self.by_key)

    def __bool__(self) -> bool:
        """A set of breakers is something, also before the first key fails."""
        return True

    def get_state(self) -> State:
        """The state of the project's breaker."""
        return self.project.get_state()

    def get_stats(self) -> BreakersStats:
        """An immutable snapshot of each breaker."""
        with self.project.locked():
            by_key = dict(self.by_key)
        return BreakersStats(
            project=self.project.get_stats(),
            by_key={key: breaker.get_stats() for key, breaker in by_key.items()},
        )

    def reset(self) -> None:
        """Close every circuit, and forget those of single keys."""
        with self.project.locked():
            self.by_key.clear()
        self.project.reset()

    # --- for drivers ----------------------------------------------------------------------------

    def acquire(self, permit: Permit, target: Target) -> "Permit | KeyedPermit":
        """Leave of the target's own circuit, too, beside the project's `permit`.

        Raises `CircuitOpenError`, and gives `permit` back, when that circuit is open.
        """
        key = self._key_of(target)
        with self.project.locked():
            breaker = self.by_key.get(key)
            if breaker is None:
                return permit
            self.by_key.move_to_end(key)
        try:
            return KeyedPermit(permit, breaker, breaker.acquire())
        except CircuitOpenError:
            self.project.release(permit)
            raise

    def blame(self, target: Target, outcome: Classification) -> bool:
        """Count a failure of one table or function alone; whether its circuit is still closed."""
        key = self._key_of(target)
        if key is None:
            return True
        breaker = self._of(key)
        try:
            permit = breaker.acquire()
        except CircuitOpenError:  # another call has opened it meanwhile
            return False
        breaker.settle(permit, replace(outcome, scope="project"))
        return _lets_pass(breaker)

    def _key_of(self, target: Target) -> Hashable | None:
        """The user's key; when it fails, the call must not fail with it."""
        try:
            key = self.key(target)
            hash(key)
        except Exception:
            logger.exception("key failed; the call has no circuit but the project's")
            return None
        return key

    def _of(self, key: Hashable) -> CircuitBreaker:
        with self.project.locked():
            breaker = self.by_key.get(key)
            if breaker is None:
                name = f"{self.project.name}:{key}"
                options: Any = {**self._options, "name": name, "retry_budget": None}
                breaker = self.by_key[key] = CircuitBreaker(**options)
                breaker.mark_calls()
            self.by_key.move_to_end(key)
            while len(self.by_key) > self._limit:
                self.by_key.popitem(last=False)
            return breaker


class KeyedPermit:
    """Two permits for one call: the project's, and that of the table or function."""

    __slots__ = ("_breaker", "_permit", "is_probe", "project")

    def __init__(self, project: Permit, breaker: CircuitBreaker, permit: Permit) -> None:
        self.project: Permit = project
        self._breaker = breaker
        self._permit = permit
        self.is_probe: bool = project.is_probe or permit.is_probe

    def settle_key(self, outcome: Classification) -> bool:
        """Give the key's permit back; whether its circuit is still closed.

        Only success, and failures of this query, are about the key.
        """
        if outcome.verdict in {"success", "neutral"}:
            self._breaker.settle(self._permit, outcome)
        elif outcome.scope == "query":
            self._breaker.settle(self._permit, replace(outcome, scope="project"))
        else:
            self._breaker.release(self._permit)
        return _lets_pass(self._breaker)


def _lets_pass(breaker: CircuitBreaker) -> bool:
    return breaker.get_state() in {"closed", "disabled"}
