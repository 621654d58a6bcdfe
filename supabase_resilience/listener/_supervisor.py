"""Keeps one connection to Realtime alive, for ever: a new generation after each that ended."""

import asyncio
from collections.abc import Callable
from typing import Any

from supabase_resilience._clock import Clock, wall
from supabase_resilience.listener._generation import Generation
from supabase_resilience.listener._pacing import Pacing
from supabase_resilience.listener._refusals import Refusal
from supabase_resilience.listener._stats import Counts
from supabase_resilience.listener._status import Status
from supabase_resilience.listener._tokens import Tokens

__all__ = ["Supervisor"]

_TICK = 0.5
_STILL = 3.0
_SUBSCRIBED_WITHIN = 20.0


class Supervisor:
    """`make(on_ready)` makes a generation; `want_catch_up` is called at each boundary of a gap."""

    def __init__(
        self,
        make: Callable[[Callable[[], None]], Generation],
        apikey: Callable[[], str],
        tokens: Tokens,
        status: Status,
        counts: Counts,
        *,
        ping_interval: float,
        clock: Clock,
        want_catch_up: Callable[[str], None],
    ) -> None:
        self._make = make
        self._bearer = apikey
        self._tokens = tokens
        self._status = status
        self._counts = counts
        self._ping_interval = ping_interval
        self._clock = clock
        self._want_catch_up = want_catch_up
        self._generation: Generation | None = None
        self._renewing: asyncio.Task[None] | None = None

    def renew(self, reason: str) -> None:
        """End the present connection; a new one follows."""
        if self._generation is not None:
            self._generation.end(Refusal("passing", reason))

    async def run(self) -> None:
        """Connect, watch, and connect again, until canceled."""
        pacing = Pacing()
        while True:
            refusal, lived = await self._one()
            if refusal.kind == "permanent" or (
                refusal.kind == "token" and (not self._tokens.can_renew or pacing.deaths > 1)
            ):
                self._status.refused("connection", refusal)
            self._status.lost(refusal)
            await asyncio.sleep(pacing.after(refusal, lived=lived))

    async def _one(self) -> tuple[Refusal, float | None]:
        """Live through one generation: why it ended, and how long it stood."""
        try:
            await self._tokens.renew()
        except Exception as error:  # noqa: BLE001 - it is the user's function
            return Refusal("token", f"token() raised {type(error).__name__}", "correct it"), None
        generation = self._generation = self._make(self._on_ready)
        opening = asyncio.ensure_future(generation.open(self._bearer()))
        watch = _Watch(generation, self._clock)
        try:
            await self._watch(watch)
        finally:
            self._generation = None
            opening.cancel()
            await generation.close()
        lived = None if watch.opened_at is None else self._clock() - watch.opened_at
        return generation.ended.result(), lived

    def _on_ready(self) -> None:
        first = not self._status.is_subscribed
        self._status.subscribed()
        self._status.healed("connection")
        if not first:
            self._status.gap("Realtime has subscribed anew")
        self._want_catch_up("subscribed")

    async def _watch(self, watch: "_Watch") -> None:
        generation = watch.generation
        while not generation.ended.done():
            before, by_wall = self._clock(), wall()
            await asyncio.wait([generation.ended], timeout=_TICK)
            watch.note_opened(self._counts)
            slept = max(self._clock() - before, wall() - by_wall)
            if slept > _TICK + _STILL:
                self._status.gap("the event loop stood still, or the machine slept")
                self._want_catch_up("stood still")
                watch.answered_at = 0.0
            if not self._status.is_subscribed:
                watch.end_if_late()
            elif watch.is_ping_due(self._ping_interval, self._counts.last_change):
                await watch.ping(self._ping_interval)
            if self._tokens.is_due and not generation.ended.done():
                await self._renew_token(generation)

    async def _renew_token(self, generation: Generation) -> None:
        try:
            await self._tokens.renew()
            await generation.refresh(self._bearer())
        except Exception as error:  # noqa: BLE001 - it is the user's function, or a socket that ends
            generation.end(Refusal("token", f"token() raised {type(error).__name__}", "correct it"))


class _Watch:
    """What is known of one generation's life."""

    def __init__(self, generation: Generation, clock: Clock) -> None:
        self.generation = generation
        self.opened_at: float | None = None
        self.answered_at = clock()
        self._clock = clock
        self._made_at = clock()

    def note_opened(self, counts: Counts) -> None:
        if self.opened_at is None and self.generation.is_open:
            self.opened_at = self._clock()
            counts.connects += 1

    def end_if_late(self) -> None:
        if self._clock() - self._made_at > _SUBSCRIBED_WITHIN:
            self.generation.end(Refusal("passing", "Realtime did not subscribe in time"))

    def is_ping_due(self, interval: float, last_change: float | None) -> bool:
        last_sign = max(self.answered_at, last_change or 0.0)
        return self._clock() - last_sign >= interval

    async def ping(self, within: float) -> None:
        ping = asyncio.ensure_future(self.generation.ping(within))
        either: list[asyncio.Future[Any]] = [ping, self.generation.ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not ping.done():
            ping.cancel()
        elif ping.result():
            self.answered_at = self._clock()
        else:
            self.generation.end(Refusal("passing", "Realtime does not answer"))
