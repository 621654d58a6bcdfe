"""The tasks between a processor and its durable queue: a reader, and two that look after leases.

The reader brings as many jobs as can start at once and settles what is done, in one round trip
where the server can. It never dies: whatever a round trip raises, it tells once and tries again.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from supabase_resilience.deadline import deadline
from supabase_resilience.errors import QueueError
from supabase_resilience.failures import classify
from supabase_resilience.queues._async_parking import AsyncParking
from supabase_resilience.queues._core import Core, by_lane
from supabase_resilience.queues._decisions import LaneShares
from supabase_resilience.queues._hand import Hand
from supabase_resilience.queues._jobs import Job, Settlement
from supabase_resilience.queues._store import Abilities, AsyncStore

__all__ = ["AsyncLink"]

_GIVE_BACK_WITHIN = 2.0


class AsyncLink:
    """Carries jobs and settlements between a processor and its store.

    `changed` is called when others may have waited for what has happened.
    """

    def __init__(self, core: Core, store: AsyncStore, changed: Callable[[], None]) -> None:
        self._core = core
        self._store = store
        self._changed = changed
        self._lease = core.settings.visibility_timeout
        self._shares = LaneShares(core.lanes.suffixes)
        self._turn = AsyncParking()
        self._lease_turn = AsyncParking()
        self._settling: set[asyncio.Task[None]] = set()
        self._has_ended = False
        self.is_reading = False
        self._hand = Hand(core)

    async def known(self) -> Abilities:
        """What the server can do; asked for once."""
        abilities = self._core.abilities
        if abilities is None:
            abilities = await self._store.check(self._core.lanes.suffixes)
            self._core.learned(abilities)
        return abilities

    async def check_unless_out(self) -> None:
        """Raise `QueueError` for what somebody has to set right; an outage is waited for later."""
        try:
            await self.known()
        except QueueError:
            raise
        except Exception as error:
            if not classify(error).is_outage:
                raise
            self._core.books.unreachable(error)

    async def send(self, jobs: Sequence[Job], delay: float) -> list[str]:
        """Add jobs of one priority to their lane."""
        priority = jobs[0].priority
        if self._core.needs_priorities(priority):
            self._core.check_priorities(await self.known(), priority)
        ids = await self._store.send(self._core.lanes.of(priority), jobs, delay)
        for _ in jobs:
            self._core.books.count_enqueued()
        if not delay:
            self.wake()
        return ids

    def wake(self) -> None:
        """Something is likely to be there, or somebody wants to know that there is nothing."""
        self._hand.wake()
        self._turn.wake_one()

    def stir(self) -> None:
        """The state of the processor has changed."""
        self._turn.wake_one()

    # --- what workers tell ------------------------------------------------------------------------

    async def settle(self, settlement: Settlement) -> None:
        """Tell the queue what becomes of a job, together with others or here and now."""
        if self._core.is_migrated:
            self._hand.post(settlement)
            self._hand.release(settlement.job)
        else:
            task = asyncio.ensure_future(self._settle_safely(settlement))
            self._settling.add(task)
            task.add_done_callback(self._settling.discard)
            # A worker that is canceled has done its job: what it says of it must get through.
            await asyncio.shield(task)
            self._hand.release(settlement.job)
        self._turn.wake_one()
        if self._core.phase != "running" or self._core.books.brake.is_on or not self._hand:
            self._changed()

    async def _settle_safely(self, settlement: Settlement) -> None:
        with self._ending():
            await self._settle_now(settlement)

    async def _settle_now(self, settlement: Settlement) -> None:
        """One by one, side by side: all that can be done without the migration."""
        left = self._core.lease_left(settlement.job)
        if left <= 0.0:  # unfenced: it would delete what another worker holds
            self._core.books.lost(settlement.job)
            return
        try:
            with deadline(left):
                await self._exchange(settlement.job.lane, [settlement], limit=0, oldest=0)
        except Exception:  # noqa: BLE001 - the reader tries again, and tells when it cannot
            self._hand.post(settlement)

    def held(self) -> int:
        """How many jobs are in hand, started or not."""
        return len(self._hand)

    def is_filling(self) -> bool:
        """Whether a read is under way that may bring more."""
        return self._hand.is_under_way and self.is_reading

    def is_empty(self) -> bool:
        """Whether the queue was empty when it was last read, and nothing is in hand."""
        return self._hand.is_empty()

    # --- the reader -------------------------------------------------------------------------------

    def begin(self) -> list[Coroutine[Any, Any, None]]:
        """What is to be run as tasks now; once, as a link that has ended is not used again."""
        self.is_reading = True
        return [self._read(), self._keep(), self._watch()]

    async def _read(self) -> None:
        try:
            while await self._wait_for_turn():
                with self._ending():
                    await self._go()
        finally:
            self.is_reading = False
            self._changed()

    @contextmanager
    def _ending(self) -> Generator[None]:
        """A hook ends the process: it ends in good order, where a task would end the loop."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit) as error:
            self._core.end_by(error)

    async def _wait_for_turn(self) -> bool:
        """Until a round trip is due; False when there will be none any more."""
        self._hand.is_under_way = False
        # Else nobody has waited for it, and idle workers would be woken for nothing.
        if self._core.phase != "running" or self._hand.is_empty():
            self._changed()
        while not (self._hand.is_over() or self._has_ended):
            if self._core.must_return():
                self._hand.return_unstarted()
            spot = self._turn.enter()
            wait = self._hand.turn_in()
            if wait == 0.0:
                self._turn.leave(spot)
                self._hand.is_under_way = True
                return True
            await self._turn.wait(spot, wait)
        return False

    async def _go(self) -> None:
        """One round trip: settle what is done and take what can be started."""
        unsent, asked = self._hand.begin_trip()
        try:
            await self.known()
            found = await self._take(unsent, asked)
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader must go on
            late = self._hand.failed_trip(error, [s for part in unsent.values() for s in part])
            self._core.books.unreachable(error)
            for job in late:
                self._core.books.lost(job)
            return
        self._hand.ended_trip(asked, found)
        self._core.books.reachable()

    async def _take(self, unsent: dict[str, list[Settlement]], asked: int) -> int:
        """Ask lane by lane; what is answered leaves `unsent`. How many jobs came."""
        reserved, found = self._shares.reserve(asked), 0
        for lane, most in self._shares.rounds(asked):
            limit, part = min(most, asked - found), unsent.get(lane, [])
            if limit or part:
                found += await self._exchange(lane, part, limit=limit, oldest=reserved)
                unsent.pop(lane, None)
        self._shares.took(found, reserved)
        return found

    async def _exchange(self, lane: str, part: list[Settlement], *, limit: int, oldest: int) -> int:
        asked_at = self._core.clock()
        answer = await self._store.exchange(
            lane, part, limit=limit, oldest=oldest, lease=self._lease
        )
        self._core.check_settled(part, answer.settled)
        # Those that come after the end are nobody's: their leases lapse.
        if answer.jobs and not self._has_ended:
            self._hand.hold(answer.jobs, asked_at + self._lease)
        return len(answer.jobs)

    # --- leases -----------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Extend leases, at a third of the visibility timeout, where the server can."""
        while await self._wait_unless_ended(self._lease / 3):
            if self._core.is_migrated:
                with self._ending():
                    for lane, jobs in self._hand.expiring().items():
                        await self._extend(lane, jobs)

    async def _wait_unless_ended(self, seconds: float) -> bool:
        if not self._has_ended:
            await self._lease_turn.wait(self._lease_turn.enter(), seconds)
        return not self._has_ended

    async def _extend(self, lane: str, jobs: list[Job]) -> None:
        asked_at = self._core.clock()
        try:
            ours = await self._store.extend(lane, jobs, self._lease)
        except Exception:  # noqa: BLE001 - the next turn tries again; _watch() tells what is lost
            return
        for job in jobs:
            if job.message_id in ours:
                job.lease_ends_at = asked_at + self._lease
            elif self._hand.holds(job):
                self._core.books.lost(job)

    async def _watch(self) -> None:
        """Tell which leases have run out."""
        wait = self._lease
        while await self._wait_unless_ended(max(0.001, wait)):
            jobs, wait = self._hand.expired()
            with self._ending():
                for job in jobs:
                    self._core.books.lost(job)

    async def end(self) -> None:
        """Nothing is in hand any more: what still runs can be done by another worker.

        That is so at once with the migration; without it the leases lapse.
        """
        if self._settling:
            await asyncio.wait(self._settling, timeout=_GIVE_BACK_WITHIN)
        self._has_ended = True
        self._lease_turn.wake_all()
        left = self._hand.drop()
        self._turn.wake_all()
        if not left or not self._core.is_migrated:
            return
        try:
            with deadline(_GIVE_BACK_WITHIN):
                for lane, part in by_lane(left).items():
                    await self._exchange(lane, part, limit=0, oldest=0)
        except Exception as error:  # noqa: BLE001 - their leases lapse
            self._core.books.unreachable(error)
