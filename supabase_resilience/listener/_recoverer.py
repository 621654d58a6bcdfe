"""Runs the catch-ups: one at a time, many wishes answered by one, and one on a timer anyway."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable

from supabase_resilience._clock import Clock
from supabase_resilience._queries import Rpc
from supabase_resilience.events import (
    ChangesLost,
    DeletesHeld,
    Event,
    GapRecovered,
    Resync,
)
from supabase_resilience.listener._follower import Follower
from supabase_resilience.listener._pacing import backoff
from supabase_resilience.listener._passes import Outcome, Passes
from supabase_resilience.listener._reader import Reader, carry_out
from supabase_resilience.listener._refusals import Refusal
from supabase_resilience.listener._settings import Settings
from supabase_resilience.listener._stats import Counts
from supabase_resilience.listener._status import Status
from supabase_resilience.listener._stream import Stream

__all__ = ["Recoverer"]

_LEAST_PAUSE = 0.25
_LONGEST_WAIT = 5.0
_REFUSED_WAIT = (30.0, 60.0)
_PRUNE_EVERY = 600.0
_LAG = 5.0
"""Seconds until a change is overdue: Realtime polls every 0.1 to 0.5 s."""


class Recoverer:
    """`meaning(error)` tells what a failed catch-up means; `done` is awaited after each."""

    def __init__(
        self,
        settings: Settings,
        passes: Passes,
        stream: Stream,
        status: Status,
        counts: Counts,
        *,
        reader: Reader,
        tell: Callable[[Event], None],
        clock: Clock,
        meaning: Callable[[Exception], Refusal],
        renew: Callable[[str], None],
        done: Callable[[], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._passes = passes
        self._reader = reader
        self._stream = stream
        self._status = status
        self._counts = counts
        self._tell = tell
        self._clock = clock
        self._meaning = meaning
        self._renew = renew
        self._done = done
        self._wanted = asyncio.Event()
        self._is_gap = False
        self._failures = 0
        self._began = -_LEAST_PAUSE
        self._due = clock()
        self._repeat_at: float | None = None
        self._lost_at: float | None = None
        self._watched = 0
        self._prune_at = clock() + _PRUNE_EVERY * random.random()  # noqa: S311

    def want(self, reason: str) -> None:
        """Changes may have been missed."""
        self._is_gap = True
        if reason == "subscribed":
            # The slot of a project that was idle is made by another process than the one that
            # says "Subscribed": what was committed in between is found by a second look.
            self._repeat_at = self._clock() + _LAG
        self._wanted.set()

    def want_reads(self) -> None:
        """A follower has doubts, or is ready to be caught up."""
        self._wanted.set()

    async def run(self) -> None:
        """Catch up whenever it is wanted, and after `catch_up_interval`, until canceled."""
        while True:
            await self._wait()
            self._check_lost()
            if not self._is_due():
                continue
            is_timer, is_gap = not self._wanted.is_set(), self._is_gap
            self._wanted.clear()
            self._is_gap = False
            group = [f for f in self._stream.followers.values() if not (f.is_behind and f.waiting)]
            if is_timer or is_gap or any(follower.is_behind for follower in group):
                await self._catch_up(group, is_timer=is_timer and not is_gap)
            elif any(follower.doubts for follower in group):
                await self._read_again(group)

    async def _wait(self) -> None:
        now = self._clock()
        until = min(at for at in (self._due, self._repeat_at, self._lost_at) if at is not None)
        pause = self._began + _LEAST_PAUSE - now
        if self._wanted.is_set():
            await asyncio.sleep(max(0.0, pause))
            return
        try:
            async with asyncio.timeout(max(0.0, until - now)):
                await self._wanted.wait()
        except TimeoutError:
            return
        await asyncio.sleep(max(0.0, pause))

    def _is_due(self) -> bool:
        now = self._clock()
        if self._repeat_at is not None and now >= self._repeat_at:
            return True
        return self._wanted.is_set() or now >= self._due

    async def _read_again(self, group: list[Follower]) -> None:
        self._began = self._clock()
        self._stream.hold()
        try:
            await carry_out(self._passes.again(group), self._reader)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next try may do
            self._failed(error)
        finally:
            self._stream.release()

    async def _catch_up(self, group: list[Follower], *, is_timer: bool) -> None:
        began = self._began = self._clock()
        if self._repeat_at is not None and began >= self._repeat_at:
            self._repeat_at = None
        self._due = began + self._settings.catch_up_interval * random.uniform(0.9, 1.0)  # noqa: S311
        behind = [follower for follower in group if follower.is_behind]
        epoch = self._status.epoch
        for follower in group:
            follower.is_behind = False
        self._stream.hold()
        outcome = Outcome()
        try:
            await carry_out(self._passes.run(group, began, outcome), self._reader)
            if outcome.goes_on:
                _set_back(behind)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next try may do
            _set_back(behind)
            self._failed(error)
            return
        finally:
            self._stream.release()
            self._tell_resyncs(outcome)
        # Ahead of telling that it is ready: what comes after that must not be lost by a crash.
        await self._done()
        if outcome.goes_on:
            self.want("begun")
            return
        self._succeeded(outcome, epoch, began, is_watched=is_timer and not behind)
        await self._prune()

    async def _prune(self) -> None:
        """Where no pg_cron does it: delete tombstones and log entries beyond their retention."""
        recovery = self._settings.recovery
        if recovery is None or recovery.level == "by_column" or self._clock() < self._prune_at:
            return
        self._prune_at = self._clock() + _PRUNE_EVERY
        with contextlib.suppress(Exception):  # only the secret key may, and the next time will do
            await self._reader.rows(Rpc("supabase_resilience_prune", {}))

    # --- what came of it --------------------------------------------------------------------------

    def _succeeded(self, outcome: Outcome, epoch: int, began: float, *, is_watched: bool) -> None:
        name, now = self._settings.name, self._clock()
        self._failures = 0
        self._counts.catch_ups += 1
        self._counts.last_catch_up = now
        self._counts.caught_up += len(outcome.found)
        for handler, missing, known in outcome.held:
            self._tell(DeletesHeld(listener=name, handler=handler, missing=missing, known=known))
        if outcome.found:
            self._tell(GapRecovered(listener=name, changes=len(outcome.found), seconds=now - began))
        if is_watched and self._status.is_subscribed and epoch == self._status.epoch:
            self._watch(outcome, epoch, now)
        self._status.healed("catch_up")
        self._status.caught_up(epoch)

    def _tell_resyncs(self, outcome: Outcome) -> None:
        self._counts.resyncs += len(outcome.resyncs)
        for handler, reason in outcome.resyncs:
            self._tell(Resync(listener=self._settings.name, handler=handler, reason=reason))

    def _watch(self, outcome: Outcome, epoch: int, now: float) -> None:
        """What was found on a healthy connection should come live, too."""
        overdue = {key: at for key, at in outcome.found.items() if key not in outcome.silent}
        if epoch != self._watched:  # what is waited for was interrupted, and that was told
            self._watched, self._lost_at = epoch, None
            self._stream.unseen.clear()
        if overdue:
            self._stream.unseen.update(overdue)
            self._lost_at = self._lost_at or now + _LAG

    def _check_lost(self) -> None:
        """What was found on a healthy connection and has still not come live is lost."""
        if self._lost_at is None or self._clock() < self._lost_at:
            return
        self._lost_at = None
        lost = len(self._stream.unseen)
        self._stream.unseen.clear()
        if lost and self._status.is_subscribed and self._watched == self._status.epoch:
            self._counts.lost += lost
            self._tell(ChangesLost(listener=self._settings.name, changes=lost))
            # The server's side may be dead with its heartbeats answered; a new one is not.
            self._renew("Realtime has lost changes")

    def _failed(self, error: Exception) -> None:
        refusal = self._meaning(error)
        self._failures += 1
        self._is_gap = True
        if refusal.kind == "passing":
            wait = backoff(self._failures, longest=_LONGEST_WAIT)
            if self._failures == 1:
                self._status.catch_up_failed(refusal.reason)
        else:
            wait = random.uniform(*_REFUSED_WAIT)  # noqa: S311
            self._status.refused("catch_up", refusal)
        self._due = self._clock() + wait


def _set_back(followers: Iterable[Follower]) -> None:
    """They have not been caught up: what is held is not for them yet."""
    for follower in followers:
        follower.is_behind = True
