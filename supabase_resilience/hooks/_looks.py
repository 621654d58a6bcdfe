"""From one look at the statistics to the next: which series now say what.

Gauges are told as they are, counters by how much they have grown since the last look. So counting
costs the parts nothing, and several processes may add to one series.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from supabase_resilience._clock import Clock, wall
from supabase_resilience.breaker import BreakerStats
from supabase_resilience.hooks._metrics import KEYS_OPEN, Labels, Metric, of_stats

__all__ = ["Looks", "Sample", "Statistics", "samples"]

Statistics = Mapping[str, Any]
"""What `Resilience.get_stats()` returns: snapshots by the names of their parts."""


class Sample(NamedTuple):
    """One number of one series."""

    metric: Metric[Any]
    labels: Labels
    value: float


_BY_KIND: dict[type[Any], list[Metric[Any]]] = {}
for _kind, _metric in of_stats():
    _BY_KIND.setdefault(_kind, []).append(_metric)


def samples(stats: Statistics, now: float) -> Iterator[Sample]:
    """All that statistics say, counters as they stand; `now` is in seconds since the epoch.

    The circuits of single tables and functions (`breaker:NAME/KEY`) are only counted, as one gauge
    of the breaker that they belong to. What is no statistics of ours is passed over.
    """
    breakers = {part: each for part, each in stats.items() if isinstance(each, BreakerStats)}
    owners = {part: _owner(part, breakers) for part in breakers}
    for part, each in stats.items():
        if owners.get(part) is None:
            yield from _of_part(part.partition(":")[2], each, now)
    for part in (part for part, owner in owners.items() if owner is None):
        own = [breakers[key] for key, owner in owners.items() if owner == part]
        is_open = sum(each.state != "closed" for each in own)
        yield Sample(KEYS_OPEN, (part.partition(":")[2],), is_open)


def _owner(part: str, breakers: Mapping[str, BreakerStats]) -> str | None:
    """The breaker of the project, for that of a single table or function; None for any other."""
    for other, stats in breakers.items():
        if part.startswith(f"{other}/") and breakers[part].name.startswith(f"{stats.name}:"):
            return other
    return None


def _of_part(name: str, stats: Any, now: float) -> Iterator[Sample]:
    for metric in _BY_KIND.get(type(stats), ()):
        if metric.read is None:
            continue
        for labels, number in metric.read(stats).items():
            if number is not None:
                value = now - number if metric.is_age else float(number)
                yield Sample(metric, (name, *labels), value)


class Looks:
    """What has to be told after each look. Any thread may look; a fork is noticed."""

    def __init__(self, clock: Clock = wall) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pid = os.getpid()
        # Guarded by _lock: all series so far.
        self._last: dict[tuple[str, Labels], Sample] = {}

    def look(self, stats: Statistics) -> list[Sample]:
        """What to set gauges to, and what to add to counters: 0, too, as a series begins with it.

        A counter that has gone back belongs to a new part of the same name, so all it counts is
        news. A gauge of a rule or handler that is gone is 0.
        """
        now_there = {
            (each.metric.name, each.labels): each for each in samples(stats, self._clock())
        }
        with self._locked():
            gone = self._gone(now_there)
            news = [self._news(each) for each in now_there.values()]
            self._last.update(now_there)
            self._last.update(((each.metric.name, each.labels), each) for each in gone)
        return [*news, *gone]

    def _news(self, sample: Sample) -> Sample:
        if sample.metric.kind != "counter":
            return sample
        last = self._last.get((sample.metric.name, sample.labels))
        before = 0.0 if last is None or last.value > sample.value else last.value
        return sample._replace(value=sample.value - before)

    def _gone(self, now_there: Mapping[tuple[str, Labels], Sample]) -> list[Sample]:
        parts = {(name, labels[0]) for name, labels in now_there}
        return [
            each._replace(value=0.0)
            for key, each in self._last.items()
            if key not in now_there
            and (each.metric.name, each.labels[0]) in parts
            and each.metric.kind == "gauge"
        ]

    def _locked(self) -> threading.Lock:
        if os.getpid() != self._pid:  # a thread of the parent may have held it
            self._lock, self._pid = threading.Lock(), os.getpid()
        return self._lock
