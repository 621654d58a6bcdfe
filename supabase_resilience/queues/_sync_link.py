"""The threads between a processor and its durable queue: a reader, and a keeper of leases.

The reader brings as many jobs as can start at once and settles what is done, in one round trip
where the server can. It never dies: whatever a round trip raises, it tells once and tries again.
"""

import threading
from collections.abc import Callable, Sequence

from supabase_resilience.deadline import deadline
from supabase_resilience.errors import QueueError
from supabase_resilience.failures import classify
from supabase_resilience.queues._core import Core, by_lane
from supabase_resilience.queues._decisions import LaneShares
from supabase_resilience.queues._hand import Hand
from supabase_resilience.queues._jobs import Job, Settlement
from supabase_resilience.queues._store import Abilities, Store

__all__ = ["Link"]

_GIVE_BACK_WITHIN = 2.0


class Link:
    """Carries jobs and settlements between a processor and its store.

    `changed` is called when others may have waited for what has happened.
    """

    def __init__(self, core: Core, store: Store, changed: Callable[[], None]) -> None:
        self._core = core
        self._store = store
        self._changed = changed
        self._lease = core.settings.visibility_timeout
        self._shares = LaneShares(core.lanes.suffixes)
        self._has_ended = threading.Event()
        self.is_reading = False
        # Reentrant, as the list of jobs tells us when its last one ends.
        self._lock = threading.RLock()
        self._turn = threading.Condition(self._lock)
        # Guarded by _lock.
        self._hand = Hand(core)

    def known(self) -> Abilities:
        """What the server can do; asked for once."""
        abilities = self._core.abilities
        if abilities is None:
            abilities = self._store.check(self._core.lanes.suffixes)
            self._core.learned(abilities)
        return abilities

    def check_unless_out(self) -> None:
        """Raise `QueueError` for what somebody has to set right; an outage is waited for later."""
        try:
            self.known()
        except QueueError:
            raise
        except Exception as error:
            if not classify(error).is_outage:
                raise
            self._core.books.unreachable(error)

    def send(self, jobs: Sequence[Job], delay: float) -> list[str]:
        """Add jobs of one priority to their lane."""
        priority = jobs[0].priority
        if self._core.needs_priorities(priority):
            self._core.check_priorities(self.known(), priority)
        ids = self._store.send(self._core.lanes.of(priority), jobs, delay)
        for _ in jobs:
            self._core.books.count_enqueued()
        if not delay:
            self.wake()
        return ids

    def wake(self) -> None:
        """Something is likely to be there, or somebody wants to know that there is nothing."""
        with self._lock:
            self._hand.wake()
            self._turn.notify()

    def stir(self) -> None:
        """The state of the processor has changed."""
        with self._lock:
            self._turn.notify()

    # --- what workers tell ------------------------------------------------------------------------

    def settle(self, settlement: Settlement) -> None:
        """Tell the queue what becomes of a job, together with others or here and now."""
        if self._core.is_migrated:
            self.post(settlement)
            return
        self._settle_now(settlement)
        with self._lock:
            self._hand.release(settlement.job)
            self._turn.notify()
        self._stirred()

    def post(self, settlement: Settlement) -> None:
        """Let the reader tell it."""
        with self._lock:
            self._hand.post(settlement)
            self._hand.release(settlement.job)
            self._turn.notify()
        self._stirred()

    def _settle_now(self, settlement: Settlement) -> None:
        """One by one, side by side: all that can be done without the migration."""
        left = self._core.lease_left(settlement.job)
        if left <= 0.0:  # unfenced: it would delete what another worker holds
            self._core.books.lost(settlement.job)
            return
        try:
            with deadline(left):
                self._exchange(settlement.job.lane, [settlement], limit=0, oldest=0)
        except Exception:  # noqa: BLE001 - the reader tries again, and tells when it cannot
            with self._lock:
                self._hand.post(settlement)

    def _stirred(self) -> None:
        if self._core.phase != "running" or self._core.books.brake.is_on or not self._hand:
            self._changed()

    def held(self) -> int:
        """How many jobs are in hand, started or not."""
        return len(self._hand)

    def is_filling(self) -> bool:
        """Whether a read is under way that may bring more."""
        return self._hand.is_under_way and self.is_reading

    def is_empty(self) -> bool:
        """Whether the queue was empty when it was last read, and nothing is in hand.

        Takes no lock, as it is asked while the one of those who wait is held.
        """
        return self._hand.is_empty()

    # --- the reader -------------------------------------------------------------------------------

    def begin(self) -> list[Callable[[], None]]:
        """What is to be run on threads now; once, as a link that has ended is not used again."""
        self.is_reading = True
        return [self._read, self._keep]

    def _read(self) -> None:
        try:
            while self._wait_for_turn():
                try:
                    self._go()
                except BaseException as error:  # noqa: BLE001 - a hook ends the process
                    self._core.end_by(error)
        finally:
            self.is_reading = False
            self._changed()

    def _wait_for_turn(self) -> bool:
        """Until a round trip is due; False when there will be none any more."""
        self._hand.is_under_way = False
        # Else nobody has waited for it, and idle workers would be woken for nothing.
        if self._core.phase != "running" or self._hand.is_empty():
            self._changed()
        with self._lock:
            while not (self._hand.is_over() or self._has_ended.is_set()):
                if self._core.must_return():
                    self._hand.return_unstarted()
                wait = self._hand.turn_in()
                if wait == 0.0:
                    self._hand.is_under_way = True
                    return True
                self._turn.wait(wait)
        return False

    def _go(self) -> None:
        """One round trip: settle what is done and take what can be started."""
        with self._lock:
            unsent, asked = self._hand.begin_trip()
        try:
            self.known()
            found = self._take(unsent, asked)
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader must go on
            with self._lock:
                late = self._hand.failed_trip(error, [s for part in unsent.values() for s in part])
            self._core.books.unreachable(error)
            for job in late:
                self._core.books.lost(job)
            return
        with self._lock:
            self._hand.ended_trip(asked, found)
        self._core.books.reachable()

    def _take(self, unsent: dict[str, list[Settlement]], asked: int) -> int:
        """Ask lane by lane; what is answered leaves `unsent`. How many jobs came."""
        reserved, found = self._shares.reserve(asked), 0
        for lane, most in self._shares.rounds(asked):
            limit, part = min(most, asked - found), unsent.get(lane, [])
            if limit or part:
                found += self._exchange(lane, part, limit=limit, oldest=reserved)
                unsent.pop(lane, None)
        self._shares.took(found, reserved)
        return found

    def _exchange(self, lane: str, part: list[Settlement], *, limit: int, oldest: int) -> int:
        asked_at = self._core.clock()
        answer = self._store.exchange(lane, part, limit=limit, oldest=oldest, lease=self._lease)
        self._core.check_settled(part, answer.settled)
        # Those that come after the end are nobody's: their leases lapse.
        if answer.jobs and not self._has_ended.is_set():
            with self._lock:
                self._hand.hold(answer.jobs, asked_at + self._lease)
        return len(answer.jobs)

    # --- leases -----------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Extend leases, at a third of the visibility timeout, where the server can."""
        while not self._has_ended.wait(self._lease / 3):
            if self._core.is_migrated:
                try:
                    self._extend_all()
                except BaseException as error:  # noqa: BLE001 - a hook ends the process
                    self._core.end_by(error)

    def _extend_all(self) -> None:
        with self._lock:
            parts = self._hand.expiring()
        for lane, jobs in parts.items():
            self._extend(lane, jobs)

    def _extend(self, lane: str, jobs: list[Job]) -> None:
        asked_at = self._core.clock()
        try:
            ours = self._store.extend(lane, jobs, self._lease)
        except Exception:  # noqa: BLE001 - the next turn tries again; watch() tells what is lost
            return
        for job in jobs:
            with self._lock:
                is_held = self._hand.holds(job)
            if job.message_id in ours:
                job.lease_ends_at = asked_at + self._lease
            elif is_held:
                self._core.books.lost(job)

    def watch(self) -> float:
        """Tell which leases have run out; seconds until others may have."""
        with self._lock:
            jobs, wait = self._hand.expired()
        for job in jobs:
            self._core.books.lost(job)
        return wait

    def end(self) -> None:
        """Nothing is in hand any more: what still runs can be done by another worker.

        That is so at once with the migration; without it the leases lapse.
        """
        self._has_ended.set()
        with self._lock:
            left = self._hand.drop()
            self._turn.notify_all()
        if not left or not self._core.is_migrated:
            return
        try:
            with deadline(_GIVE_BACK_WITHIN):
                for lane, part in by_lane(left).items():
                    self._exchange(lane, part, limit=0, oldest=0)
        except Exception as error:  # noqa: BLE001 - their leases lapse
            self._core.books.unreachable(error)
