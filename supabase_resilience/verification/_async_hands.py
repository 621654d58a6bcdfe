"""Carries out what a pass asks for, as tasks: one per range, and one to fetch the next page."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar, cast

from supabase_resilience._builders import Builders
from supabase_resilience._clock import Clock
from supabase_resilience._queries import Rpc
from supabase_resilience._requests import idempotent
from supabase_resilience._telling import BATCH, span_of
from supabase_resilience.errors import VerificationError
from supabase_resilience.events import Event, PassPaused, PassResumed
from supabase_resilience.verification._commands import (
    Begin,
    Call,
    Command,
    Count,
    Get,
    Page,
    Plan,
    Read,
    Wait,
    Write,
)
from supabase_resilience.verification._core import Core
from supabase_resilience.verification._patience import Patience
from supabase_resilience.verification._settings import Window

__all__ = ["AsyncHands"]

T = TypeVar("T")
_SLICE = 1.0
_THROTTLED = 1.0


class AsyncHands:
    """`resting` is awaited between commands, to keep the cursor. Stopped by being canceled."""

    def __init__(
        self,
        builders: Builders,
        core: Core,
        *,
        clock: Clock,
        tell: Callable[[Event], None],
        resting: Callable[[], Awaitable[None]],
    ) -> None:
        self.going = asyncio.Event()
        self.going.set()
        self._builders = builders
        self._core = core
        self._clock = clock
        self._tell = tell
        self._resting = resting
        self._window = Window.of(core.settings.only_between)
        self._span = span_of(core.settings.on_event)
        self._is_resting = False

    async def run_all(self, plans: list[Plan[None]]) -> None:
        """Go through several plans side by side; the first error ends them all."""
        try:
            async with asyncio.TaskGroup() as group:
                for plan in plans:
                    group.create_task(self.run(plan))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def run(self, plan: Plan[T]) -> T:
        """Go through a plan; raises what the plan does not answer."""
        answer: Any = None
        error: Exception | None = None
        ticket: asyncio.Task[Page] | None = None
        try:
            while True:
                command = plan.send(answer) if error is None else plan.throw(error)
                answer, error = await self._do(command)
                if isinstance(command, Begin):
                    ticket = answer
        except StopIteration as end:
            return cast("T", end.value)
        finally:
            plan.close()
            if ticket is not None:
                ticket.cancel()

    # --- commands ---------------------------------------------------------------------------------

    async def _do(self, command: Command) -> tuple[Any, Exception | None]:
        if isinstance(command, Wait):
            await self._sleep(command.seconds)
            return None, None
        if isinstance(command, Begin):
            await self._wait_until_allowed()
            return asyncio.ensure_future(self._page(command.read)), None
        try:
            if isinstance(command, Get):
                return await command.ticket, None
            if isinstance(command, Call):
                result = command.function(command.argument)
                return (await result if inspect.isawaitable(result) else result), None
            return await self._patiently(command), None
        except Exception as error:  # noqa: BLE001 - the plan decides what it means
            return None, error

    async def _page(self, read: Read) -> Page:
        began = self._clock()
        rows = await self._patiently(read)
        return Page(rows, self._clock() - began)

    async def _patiently(self, command: Command) -> Any:
        """Do it again as long as Supabase is out."""
        patience, paused_at = Patience(), None
        while True:
            try:
                answer = await self._told_once(command)
            except Exception as error:
                delay = patience.wait_for(command, error)
                if delay is None:  # the plan decides, and waits no longer
                    self._tell_resumed(paused_at)
                    raise
                if paused_at is None:
                    paused_at = self._clock()
                    self._tell(PassPaused(table=self._core.settings.name, reason=delay.reason))
                await self._sleep(delay.seconds)
            else:
                self._tell_resumed(paused_at)
                return answer

    async def _told_once(self, command: Command) -> Any:
        if self._span is None:
            return await self._once(command)
        facts = {"verification": self._core.settings.name, "command": type(command).__name__}
        with self._span(BATCH, facts):
            return await self._once(command)

    async def _once(self, command: Command) -> Any:
        if isinstance(command, Write):
            update = self._builders.update(command.patch, command.where, command.key)
            return (await update.execute()).data
        with idempotent():
            if isinstance(command, Read):
                narrow = None if command.rule is None else command.rule.violates
                return (await self._builders.select(command.select, narrow).execute()).data
            if isinstance(command, Count):
                return (await self._builders.count().execute()).count
            if isinstance(command, Rpc):
                return (await self._builders.rpc(command).execute()).data
        raise TypeError(f"no such command: {command!r}")

    # --- waiting ----------------------------------------------------------------------------------

    async def _sleep(self, seconds: float) -> None:
        """In slices, in which the lease is kept."""
        end = self._clock() + seconds
        while (left := end - self._clock()) > 0:
            await asyncio.sleep(min(left, _SLICE))
            await self._rest()

    async def _wait_until_allowed(self) -> None:
        """Return when nothing speaks against the next page."""
        paused_at: float | None = None
        while (reason := await self._objection()) is not None:
            if paused_at is None:
                paused_at = self._clock()
                self._tell(PassPaused(table=self._core.settings.name, reason=reason[0]))
            await self._sleep(reason[1])
        self._tell_resumed(paused_at)
        await self._rest()

    def _tell_resumed(self, paused_at: float | None) -> None:
        if paused_at is not None:
            seconds = self._clock() - paused_at
            self._tell(PassResumed(table=self._core.settings.name, seconds=seconds))

    async def _objection(self) -> tuple[str, float] | None:
        if not self.going.is_set():
            return "pause()", _SLICE / 10
        if self._window is not None:
            seconds = self._window.seconds_until(datetime.now())  # noqa: DTZ005 - by this machine's clock
            if seconds > 0:
                return "only_between", min(seconds, _SLICE)
        throttle = self._core.settings.throttle
        held = throttle() if throttle is not None else None
        if inspect.isawaitable(held):
            held = await held
        if held:
            return "throttle", _THROTTLED if held is True else float(held)
        return None

    async def _rest(self) -> None:
        """Keep the lease and the cursor; one task at a time does."""
        if self._is_resting:
            return
        self._is_resting = True
        try:
            lease = self._core.lease
            if lease is not None and lease.is_renewal_due and not await self.run(lease.renew()):
                raise VerificationError("another runner has taken the lease over")
            await self._resting()
        finally:
            self._is_resting = False
