"""MemoryQueue: jobs of this process, by priority, first in first out within one.

It is the whole store of a processor in memory, and the short list of jobs in hand of a durable one.
It never waits: those who do are told by a waker that there is something to do.
"""

import heapq
import itertools
import os
import threading
from collections.abc import Callable, Sequence

from supabase_resilience import _clock
from supabase_resilience._checks import check_callable, check_text
from supabase_resilience.queues._jobs import DeadLetter, Job

__all__ = ["MemoryQueue"]


class MemoryQueue:
    """A queue that dies with the process: for work that may be lost then, and for tests.

    `QueueProcessor` makes one when it is given no store. All of it is in memory, dead letters
    included (`purge_dead_letters()` drops them); a forked child starts with an empty one. Payloads
    are any objects, handed over as they are. `clock` counts delays.
    """

    def __init__(self, name: str = "memory", *, clock: _clock.Clock = _clock.monotonic) -> None:
        check_text("name", name)
        check_callable("clock", clock)
        self.name = name
        self.clock = clock
        self._wakers: list[Callable[[], object]] = []
        self._clear()

    def _clear(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        # Guarded by _lock.
        self._numbers = itertools.count(1)
        self._ready: list[tuple[int, int, Job]] = []
        self._delayed: list[tuple[float, int, Job]] = []
        self._keys: dict[str, str] = {}
        self._dead: dict[str, DeadLetter] = {}
        self._in_hand = 0

    def __repr__(self) -> str:
        """Show the name and how much waits."""
        return f"<MemoryQueue {self.name!r}, {self.waiting} waiting>"

    def forget_if_forked(self) -> None:
        """What the parent's queue holds is the parent's work."""
        if self._pid != os.getpid():
            self._clear()
            self._wakers = []

    def wake(self, waker: Callable[[], object]) -> None:
        """Call `waker` whenever a job is added; it must be quick and never raise."""
        self._wakers = [*self._wakers, waker]  # anew, as another thread may be calling them

    def unwake(self, waker: Callable[[], object]) -> None:
        """Don't, any more."""
        self._wakers = [each for each in self._wakers if each != waker]

    # --- jobs in and out --------------------------------------------------------------------------

    def put(self, job: Job, delay: float = 0.0) -> str:
        """Add a job; its id, or that of the waiting or running one with the same dedupe key."""
        key = job.dedupe_key
        with self._lock:
            if key is not None:
                if key in self._keys:
                    return self._keys[key]
                self._keys[key] = job.id
            job.sequence = next(self._numbers)
            if delay > 0.0:
                heapq.heappush(self._delayed, (self.clock() + delay, job.sequence, job))
            else:
                heapq.heappush(self._ready, (-job.priority, job.sequence, job))
        for waker in self._wakers:
            waker()
        return job.id

    def load(self, jobs: Sequence[Job]) -> None:
        """Add jobs that a durable queue has handed out; their keys are its own business."""
        with self._lock:
            for job in jobs:
                job.sequence = next(self._numbers)
                self._place_locked(job, 0.0)
        for _ in jobs:
            self._tell()

    def take(self, done: Job | None = None) -> Job | None:
        """The next job that is due, or None; it is in hand until it is given back or ended.

        `done` is one in hand that ends now: both in one step, as threads fight for each.
        """
        with self._lock:
            if done is not None:
                self._in_hand -= 1
                if done.dedupe_key is not None:
                    self._keys.pop(done.dedupe_key, None)
            if self._delayed:
                self._ripen_locked()
            if self._ready:
                self._in_hand += 1
                return heapq.heappop(self._ready)[2]
            is_last = done is not None and not (self._in_hand or self._delayed)
        if is_last:
            self._tell()
        return None

    def give_back(self, job: Job, delay: float, *, is_retry: bool) -> None:
        """A job in hand waits again: a retried one behind its equals, else where it was."""
        with self._lock:
            self._in_hand -= 1
            if is_retry:
                job.sequence = next(self._numbers)
            self._place_locked(job, delay)
        self._tell()

    def end(self, job: Job, letter: DeadLetter | None = None) -> None:
        """A job in hand is over: done, or a dead letter."""
        with self._lock:
            self._in_hand -= 1
            if job.dedupe_key is not None:
                self._keys.pop(job.dedupe_key, None)
            if letter is not None:
                self._dead[letter.id] = letter
            is_last = not (self._in_hand or self._ready or self._delayed)
        if is_last:
            self._tell()

    def _place_locked(self, job: Job, delay: float) -> None:
        if delay > 0.0:
            heapq.heappush(self._delayed, (self.clock() + delay, job.sequence, job))
        else:
            heapq.heappush(self._ready, (-job.priority, job.sequence, job))

    def _ripen_locked(self) -> None:
        now = self.clock()
        while self._delayed and self._delayed[0][0] <= now:
            job = heapq.heappop(self._delayed)[2]
            heapq.heappush(self._ready, (-job.priority, job.sequence, job))

    def _tell(self) -> None:
        for waker in self._wakers:
            waker()

    # --- what is known ----------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many jobs wait, those with a delay included."""
        return len(self._ready) + len(self._delayed)

    @property
    def unfinished(self) -> int:
        """How many wait or are in hand."""
        with self._lock:
            return len(self._ready) + len(self._delayed) + self._in_hand

    def next_due(self) -> float | None:
        """The clock's time at which the next job can be taken; None when nothing waits."""
        with self._lock:
            if self._ready:
                return self.clock()
            return self._delayed[0][0] if self._delayed else None

    @property
    def in_hand(self) -> int:
        """How many were taken and have not come to an end."""
        return self._in_hand

    def counts(self) -> tuple[int, int, int]:
        """How many are ready, delayed or in hand, and dead."""
        with self._lock:
            self._ripen_locked()
            return len(self._ready), len(self._delayed) + self._in_hand, len(self._dead)

    def oldest_enqueued_at(self) -> float | None:
        """When the oldest job that is ready was enqueued, in seconds since the epoch."""
        with self._lock:
            return min((job.enqueued_at for *_, job in self._ready), default=None)

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """The oldest dead letters."""
        with self._lock:
            return list(itertools.islice(self._dead.values(), limit))

    def replay(self, id: str) -> bool:  # noqa: A002 - the field's own name
        """Put a dead letter back, all its attempts before it; False when there is none."""
        with self._lock:
            letter = self._dead.pop(id, None)
            if letter is None:
                return False
            job = letter.to_job()
            if job.dedupe_key in self._keys:  # another one came meanwhile; both are wanted now
                job.dedupe_key = None
        self.put(job)
        return True

    def purge_dead_letters(self) -> int:
        """Drop all dead letters; how many there were."""
        with self._lock:
            count, self._dead = len(self._dead), {}
        return count
