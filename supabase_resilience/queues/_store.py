"""What a processor asks of a durable queue: few calls, each of which the other side can repeat.

A store does the I/O and nothing else; every choice is made in `_decisions.py`. A lane is a queue of
its own, named by its suffix: `""` is the queue itself.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from supabase_resilience.queues._jobs import DeadLetter, Job, QueueMetrics, Settlement

__all__ = ["Abilities", "AsyncStore", "Exchange", "Store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What the server can do for a queue.

    `is_migrated`: our functions are there, so that leases can be extended, acks are fenced, and
    one call settles and reads. `has_priority`: reads go by priority without lanes.
    `outdated_version` is that of functions which are there, but too old to be used.
    """

    is_migrated: bool = False
    has_priority: bool = False
    outdated_version: int | None = None


class Exchange(NamedTuple):
    """The answer of one round trip: the messages that are settled for good, and new jobs.

    A settlement that isn't among `settled` found its message gone, or in the hands of another.
    """

    settled: Collection[int]
    jobs: Sequence[Job]


class Store(Protocol):
    """A durable queue, seen by the sync processor. Calls raise what supabase-py and httpx raise,
    and `QueueError` for what somebody has to set right.
    """  # noqa: D205

    @property
    def name(self) -> str:
        """The queue's name."""
        ...

    def check(self, lanes: Sequence[str]) -> Abilities:
        """Find out what can be done; raises `QueueError` with the SQL for what is missing."""
        ...

    def send(self, lane: str, jobs: Sequence[Job], delay: float) -> list[str]:
        """Add jobs in one transaction; the ids, which for a known dedupe key is the first one's."""
        ...

    def exchange(
        self, lane: str, settled: Sequence[Settlement], *, limit: int, oldest: int, lease: float
    ) -> Exchange:
        """Settle, then take up to `limit` jobs for `lease` seconds, `oldest` of them by age.

        The others go by priority where the server can do that; the result is in order.
        """
        ...

    def extend(self, lane: str, jobs: Sequence[Job], lease: float) -> Collection[int]:
        """Hold the jobs for `lease` seconds from now; the messages that still are ours."""
        ...

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """The oldest dead letters."""
        ...

    def replay(self, id: str, lanes: Sequence[tuple[int, str]]) -> bool:  # noqa: A002
        """Send a dead letter back to its lane, all attempts before it; False when there is none."""
        ...

    def purge_dead_letters(self) -> int:
        """Delete all dead letters; how many there were."""
        ...

    def metrics(self, lanes: Sequence[str]) -> QueueMetrics:
        """The queue and its lanes, summed up."""
        ...


class AsyncStore(Protocol):
    """The same for the async processor."""

    @property
    def name(self) -> str:
        """The queue's name."""
        ...

    async def check(self, lanes: Sequence[str]) -> Abilities:
        """As in `Store`."""
        ...

    async def send(self, lane: str, jobs: Sequence[Job], delay: float) -> list[str]:
        """As in `Store`."""
        ...

    async def exchange(
        self, lane: str, settled: Sequence[Settlement], *, limit: int, oldest: int, lease: float
    ) -> Exchange:
        """As in `Store`."""
        ...

    async def extend(self, lane: str, jobs: Sequence[Job], lease: float) -> Collection[int]:
        """As in `Store`."""
        ...

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        """As in `Store`."""
        ...

    async def replay(self, id: str, lanes: Sequence[tuple[int, str]]) -> bool:  # noqa: A002
        """As in `Store`."""
        ...

    async def purge_dead_letters(self) -> int:
        """As in `Store`."""
        ...

    async def metrics(self, lanes: Sequence[str]) -> QueueMetrics:
        """As in `Store`."""
        ...
