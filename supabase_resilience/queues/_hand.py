"""What is in hand of a durable queue, and what is to be told to it: the state of a link.

It waits for nothing and is not thread-safe: the sync link uses it under a lock.
"""

from collections.abc import Sequence

from supabase_resilience.failures import classify
from supabase_resilience.queues._core import FOREVER, Core, by_lane
from supabase_resilience.queues._decisions import Intake
from supabase_resilience.queues._jobs import Job, Settlement

__all__ = ["Hand"]


class Hand:
    """Jobs that are leased here, started or not, and settlements that the server does not know."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._intake = Intake(core.settings.concurrency, core.clock)
        self._held: dict[int, Job] = {}
        self._outbox: list[Settlement] = []
        self._saw_empty = False
        # How often somebody has said that there is something: an answer that is older does not
        # know of it.
        self._wakes = self._wakes_before_trip = 0
        self.is_under_way = False

    def __len__(self) -> int:
        """How many jobs are leased here."""
        return len(self._held)

    def wake(self) -> None:
        """Something is likely to be there, or somebody wants to know that there is nothing."""
        self._wakes += 1
        self._saw_empty = False
        self._intake.wake()

    # --- jobs come and go -------------------------------------------------------------------------

    def hold(self, jobs: Sequence[Job], lease_ends_at: float) -> None:
        """Jobs have come, to be started at once."""
        for job in jobs:
            job.lease_ends_at = lease_ends_at
            self._held[id(job)] = job
        self._core.ready.load(jobs)

    def holds(self, job: Job) -> bool:
        """Whether a job is still in hand."""
        return id(job) in self._held

    def release(self, job: Job) -> None:
        """Its place is free."""
        if self._held.pop(id(job), None) is not None:
            self._core.ready.end(job)
        self._intake.freed()

    def post(self, settlement: Settlement) -> None:
        """To be told with the next round trip."""
        self._outbox.append(settlement)
        self._intake.freed()

    def return_unstarted(self) -> None:
        """Give back what has come and should not be started now."""
        while (job := self._core.ready.take()) is not None:
            self.post(Settlement(kind="postponed", job=job))
            self.release(job)

    def drop(self) -> list[Settlement]:
        """All that is to be told when nothing is in hand any more."""
        left = [*self._outbox, *(Settlement(kind="postponed", job=job) for job in self.jobs())]
        self._held, self._outbox = {}, []
        return left

    def jobs(self) -> list[Job]:
        """All that are leased here."""
        return list(self._held.values())

    # --- round trips ------------------------------------------------------------------------------

    def turn_in(self) -> float | None:
        """Seconds until a round trip is due; None until something changes."""
        wait = self._intake.wait(self._free(), len(self._outbox))
        brake = self._core.books.brake
        if brake.is_on and not self._outbox:
            pause = brake.wait()
            if pause is None or self._held:
                return None
            if pause:  # nothing is free before it is over
                return pause
        return None if wait == FOREVER else wait

    def _free(self) -> int:
        """How many jobs could start now."""
        if self._core.phase != "running" or self._core.is_paused:
            return 0
        if self._core.books.brake.is_on:
            return 1 if not self._held and self._core.books.brake.wait() == 0.0 else 0
        return self._core.settings.concurrency - len(self._held)

    def begin_trip(self) -> tuple[dict[str, list[Settlement]], int]:
        """What is to be told, by lane, and how many jobs to ask for."""
        outbox, self._outbox = self._outbox, []
        self._wakes_before_trip = self._wakes
        free = self._free() if self._intake.may_read() else 0
        self._intake.went()
        return by_lane(outbox), free

    def ended_trip(self, asked: int, found: int) -> None:
        """A round trip has worked."""
        if not asked:
            self._intake.settled()
            return
        self._intake.read(found)
        if self._wakes != self._wakes_before_trip:
            self._intake.wake()
        else:
            self._saw_empty = not found

    def failed_trip(self, error: Exception, unsent: Sequence[Settlement]) -> list[Job]:
        """A round trip has failed: keep what could not be told, as long as it matters.

        The jobs for which it does no longer are returned: they are lost.
        """
        late = [each for each in unsent if self._core.lease_left(each.job) <= 0.0]
        self._outbox[:0] = [each for each in unsent if each not in late]
        self._intake.failed(classify(error), is_urgent=bool(self._outbox))
        return [each.job for each in late]

    def is_over(self) -> bool:
        """Whether no round trip will be due any more."""
        if self._core.phase == "stopping":
            return not (self._held or self._outbox)
        return self._core.phase == "stopped"

    def is_empty(self) -> bool:
        """Whether the queue was empty when it was last read, and nothing is in hand.

        Right without a lock, too: a settlement is posted before its job is released, and a round
        trip is under way until what it brought is in hand.
        """
        return self._saw_empty and not (self._held or self._outbox or self.is_under_way)

    # --- leases -----------------------------------------------------------------------------------

    def expiring(self) -> dict[str, list[Job]]:
        """Jobs whose lease should be extended now, by lane."""
        soon = self._core.settings.visibility_timeout * 0.75
        parts: dict[str, list[Job]] = {}
        for job in self._held.values():
            if self._core.lease_left(job) < soon:
                parts.setdefault(job.lane, []).append(job)
        return parts

    def expired(self) -> tuple[list[Job], float]:
        """Jobs whose lease has run out, and the seconds until others' may have."""
        lefts = {job: self._core.lease_left(job) for job in self.jobs() if not job.is_lost}
        coming = [left for left in lefts.values() if left > 0.0]
        wait = min([self._core.settings.visibility_timeout, *coming])
        return [job for job, left in lefts.items() if left <= 0.0], wait
