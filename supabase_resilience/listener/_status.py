"""Where a listener stands, and who waits for it to be ready."""

import asyncio
from collections.abc import Callable
from typing import Literal

from supabase_resilience._clock import Clock
from supabase_resilience.errors import ListenerError
from supabase_resilience.events import (
    CatchUpFailed,
    Event,
    GapDetected,
    ListenerLost,
    ListenerReady,
)
from supabase_resilience.events import ListenerRefused as Refused
from supabase_resilience.listener._refusals import Refusal
from supabase_resilience.listener._stats import Counts, ListenerState

__all__ = ["Part", "Status"]

Part = Literal["connection", "catch_up"]


class Status:
    """Ready is who is subscribed, and has caught up since.

    `epoch` changes whenever changes may have been missed, so that a catch-up knows whether it is
    one of before.
    """

    def __init__(
        self, name: str, counts: Counts, *, tell: Callable[[Event], None], clock: Clock
    ) -> None:
        self.epoch = 0
        self.is_subscribed = False
        self._refusals: dict[Part, Refusal] = {}
        self._name = name
        self._counts = counts
        self._tell = tell
        self._clock = clock
        self._is_running = False
        self._is_caught_up = False
        self._was_told_lost = False
        self._lost_by: str | None = None
        self._catch_up_failure: str | None = None
        self._since = clock()
        self._changed = asyncio.Event()

    @property
    def refusal(self) -> Refusal | None:
        """What a person has to set right; of several the one that came first."""
        return next(iter(self._refusals.values()), None)

    @property
    def reason(self) -> str | None:
        """What is wrong now: what was refused, why the connection is gone, why reading fails."""
        if self.refusal is not None:
            return self.refusal.reason
        return self._lost_by or self._catch_up_failure

    @property
    def state(self) -> ListenerState:
        """In one word."""
        if not self._is_running:
            return "stopped"
        if self.refusal is not None:
            return "refused"
        if not self.is_subscribed:
            return "connecting"
        return "live" if self._is_caught_up else "catching_up"

    def started(self) -> None:
        """It runs from now on."""
        self._is_running = True
        self._since = self._clock()
        self._notify()

    def stopped(self) -> None:
        """It runs no more."""
        self._is_running = self.is_subscribed = self._is_caught_up = False
        self._was_told_lost = False
        self._lost_by = self._catch_up_failure = None
        self._refusals.clear()
        self._notify()

    def subscribed(self) -> None:
        """Realtime has said "Subscribed to PostgreSQL": changes arrive from now on."""
        self.epoch += 1
        if self._is_caught_up:
            self._since = self._clock()
        self._is_caught_up = False
        self.is_subscribed = True
        self._lost_by = None
        self._notify()

    def gap(self, reason: str) -> None:
        """Changes may have been missed."""
        self.epoch += 1
        self._counts.gaps += 1
        self._tell(GapDetected(listener=self._name, reason=reason))

    def lost(self, refusal: Refusal) -> None:
        """The connection is gone."""
        if self._is_caught_up:
            self._since = self._clock()
            self.gap(refusal.reason)
        self.is_subscribed = self._is_caught_up = False
        self._lost_by = refusal.reason
        if not self._was_told_lost and refusal.kind != "permanent":
            self._was_told_lost = True
            self._tell(ListenerLost(listener=self._name, reason=refusal.reason))
        self._notify()

    def refused(self, part: Part, refusal: Refusal) -> None:
        """What no waiting can heal; told once as long as it is the same."""
        if self._refusals.get(part) != refusal:
            self._refusals[part] = refusal
            self._tell(Refused(listener=self._name, reason=refusal.reason, remedy=refusal.remedy))
        self._notify()

    def healed(self, part: Part) -> None:
        """What was refused works; what the other part was refused may not."""
        if self._refusals.pop(part, None) is not None:
            self._notify()

    def catch_up_failed(self, reason: str) -> None:
        """A catch-up could not be completed; it is tried again."""
        self._catch_up_failure = reason
        self._tell(CatchUpFailed(listener=self._name, reason=reason))

    def caught_up(self, epoch: int) -> None:
        """A catch-up that began in `epoch` is complete."""
        self._catch_up_failure = None
        if epoch == self.epoch and self.is_subscribed and not self._is_caught_up:
            self._is_caught_up = True
            self._was_told_lost = False
            self._tell(ListenerReady(listener=self._name, seconds=self._clock() - self._since))
        self._notify()

    async def wait_ready(self) -> None:
        """Return when it is; raises `ListenerError` for what a person has to set right."""
        while not self._is_caught_up:
            if self.refusal is not None:
                raise error_of(self._name, self.refusal)
            if not self._is_running:
                raise ListenerError(f"the listener of {self._name} is not started; call start()")
            await self.wait_change()

    async def wait_change(self) -> None:
        """Return when something here has changed, or a catch-up was completed."""
        changed = self._changed
        await changed.wait()

    def _notify(self) -> None:
        # A new one each time: whoever waits looks at what is true now.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def error_of(name: str, refusal: Refusal) -> ListenerError:
    """The error that tells a person what to do."""
    remedy = f"; {refusal.remedy}" if refusal.remedy else ""
    return ListenerError(f"cannot follow {name}: {refusal.reason}{remedy}")
