"""Whether a part works, from its statistics: ok, degraded (it helps itself) or failing (you must).

No I/O and no clock: whoever looks brings the numbers and the time.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from supabase_resilience.breaker import BreakerStats
from supabase_resilience.listener import ListenerStats
from supabase_resilience.queues import QueueStats
from supabase_resilience.verification import VerificationStats

__all__ = ["Health", "HealthBook", "Kind", "PartHealth", "Stats", "Status", "judge"]

Kind = Literal["breaker", "queue", "listener", "verification"]
Status = Literal["ok", "degraded", "failing"]
Stats = BreakerStats | QueueStats | ListenerStats | VerificationStats
Judgement = tuple[Status, str | None]
_WORST_LAST: tuple[Status, ...] = ("ok", "degraded", "failing")
_KINDS: Mapping[type, Kind] = {
    BreakerStats: "breaker",
    QueueStats: "queue",
    ListenerStats: "listener",
    VerificationStats: "verification",
}


@dataclass(frozen=True, slots=True)
class PartHealth:
    """One part: `reason` says what is wrong (None: nothing is), `since` is a Unix time in seconds.

    - `degraded`: it does not do all of its work now, and goes on by itself when what it waits for
      is back: an open circuit, a queue that Supabase does not answer, a listener that catches up.
    - `failing`: a person has to set something right: a refused key, a missing table, a part that is
      stopped.
    """

    part: str
    kind: Kind
    status: Status
    reason: str | None
    since: float


@dataclass(frozen=True, slots=True)
class Health:
    """All parts at one moment; `status` is the worst of theirs."""

    status: Status
    parts: tuple[PartHealth, ...]


class HealthBook:
    """Remembers since when each part has been as it is, to the second of the looks at it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guarded by _lock.
        self._since: dict[str, tuple[Status, float]] = {}

    def look(self, stats: Mapping[str, Stats], now: float) -> Health:
        """The health at `now`, a Unix time."""
        with self._lock:
            parts = tuple(self._part(name, each, now) for name, each in stats.items())
            self._since = {part.part: (part.status, part.since) for part in parts}
        worst = max((_WORST_LAST.index(part.status) for part in parts), default=0)
        return Health(_WORST_LAST[worst], parts)

    def _part(self, name: str, stats: Stats, now: float) -> PartHealth:
        status, reason = judge(stats)
        before = self._since.get(name)
        if before is not None and before[0] == status:
            since = before[1]
        else:
            since = now - stats.seconds_in_state if isinstance(stats, BreakerStats) else now
        return PartHealth(name, _KINDS[type(stats)], status, reason, since)


def judge(stats: Stats) -> Judgement:
    """The status of a part, and what is wrong with it."""
    match stats:
        case BreakerStats():
            return _of_breaker(stats)
        case QueueStats():
            return _of_queue(stats)
        case ListenerStats():
            return _of_listener(stats)
        case VerificationStats():
            return _of_verification(stats)


def _of_breaker(stats: BreakerStats) -> Judgement:
    if stats.state == "closed":
        return "ok", None
    if stats.state == "disabled":
        return "degraded", "disabled: no call is judged"
    if stats.state == "forced_open":
        return "degraded", "opened by hand: every call is refused"
    status: Status = "failing" if stats.cause == "blocked" else "degraded"
    return status, f"the circuit is {stats.state.replace('_', '-')}: {stats.reason}"


def _of_queue(stats: QueueStats) -> Judgement:
    if stats.needs_you:
        return "failing", stats.reason
    if stats.state in {"stopping", "stopped"}:
        return "failing", f"it is {stats.state}"
    # One that is new has no workers: it only takes jobs in.
    return ("ok", None) if stats.reason is None else ("degraded", stats.reason)


def _of_listener(stats: ListenerStats) -> Judgement:
    if stats.state == "refused":
        return "failing", stats.reason
    if stats.state == "stopped":
        return "failing", "it is stopped"
    if stats.state == "live" and stats.reason is None:
        return "ok", None
    return "degraded", stats.reason or f"it is {stats.state.replace('_', ' ')}"


def _of_verification(stats: VerificationStats) -> Judgement:
    if stats.state == "stopped":
        return "failing", "it is stopped"
    if stats.reason is not None:
        return "degraded", stats.reason
    return ("degraded", "paused by hand") if stats.state == "paused" else ("ok", None)
