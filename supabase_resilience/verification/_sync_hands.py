"""Carries out what a pass asks for, on threads: one per range, and one to fetch the next page."""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
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

__all__ = ["Hands", "Stopped"]

T = TypeVar("T")
_SLICE = 1.0
_THROTTLED = 1.0
# The interpreter has one lock: a thread that parses the next page holds up quick checks of this one
# (measured: 4 % of a pass at 0.002, none here).
_WORTH_A_THREAD = 0.02


class Stopped(BaseException):
    """The pass is ended by `stop()`; no verdict on anything."""


class Hands:
    """`resting` is called between commands, to keep the cursor."""

    def __init__(
        self,
        builders: Builders,
        core: Core,
        *,
        clock: Clock,
        tell: Callable[[Event], None],
        resting: Callable[[], None],
    ) -> None:
        self.stopping = threading.Event()
        self.going = threading.Event()
        self.going.set()
        self._builders = builders
        self._core = core
        self._clock = clock
        self._tell = tell
        self._resting = resting
        self._window = Window.of(core.settings.only_between)
        self._span = span_of(core.settings.on_event)
        self._turn = threading.Lock()
        self._pace = _Pace()

    def run_all(self, plans: list[Plan[None]]) -> None:
        """Go through several plans side by side; the first error ends them all."""
        failed = threading.Event()
        ranges = [
            in_thread("verification range", functools.partial(self._part, plan, failed))
            for plan in plans[1:]
        ]
        first = settle(Future[None](), functools.partial(self._part, plans[0], failed))
        # Whoever was only stopped by another's error has nothing to say.
        errors = [each.exception() for each in (first, *ranges)]  # nobody is left behind
        told = [error for error in errors if error is not None]
        if told:
            raise min(told, key=lambda error: isinstance(error, Stopped))

    def _part(self, plan: Plan[None], failed: threading.Event) -> None:
        try:
            self.run(plan, failed)
        except BaseException:
            failed.set()
            raise

    def run(self, plan: Plan[T], failed: threading.Event | None = None) -> T:
        """Go through a plan; raises `Stopped`, and what the plan does not answer."""
        answer: Any = None
        error: Exception | None = None
        try:
            while True:
                command = plan.send(answer) if error is None else plan.throw(error)
                if failed is not None and failed.is_set():
                    raise Stopped
                answer, error = self._do(command)
        except StopIteration as end:
            return cast("T", end.value)
        finally:
            plan.close()

    # --- commands ---------------------------------------------------------------------------------

    def _do(self, command: Command) -> tuple[Any, Exception | None]:
        if isinstance(command, Wait):
            self._sleep(command.seconds)
            return None, None
        if isinstance(command, Begin):
            self._wait_until_allowed()
            return self._begin(command), None
        try:
            if isinstance(command, Get):
                self._pace.work = self._clock() - self._pace.begun
                return command.ticket.result(), None
            if isinstance(command, Call):
                return command.function(command.argument), None
            return self._patiently(command), None
        except Exception as error:  # noqa: BLE001 - the plan decides what it means
            return None, error

    def _begin(self, command: Begin) -> "Future[Page] | _Later":
        """Fetch the page meanwhile, if the work on the last one took longer than a thread costs."""
        self._pace.begun = self._clock()
        fetch = functools.partial(self._page, command.read)
        if self._pace.work < _WORTH_A_THREAD:
            return _Later(fetch)
        return in_thread("verification fetch", fetch)

    def _page(self, read: Read) -> Page:
        began = self._clock()
        rows = self._patiently(read)
        return Page(rows, self._clock() - began)

    def _patiently(self, command: Command) -> Any:
        """Do it again as long as Supabase is out."""
        patience, paused_at = Patience(), None
        while True:
            try:
                answer = self._told_once(command)
            except Exception as error:
                delay = patience.wait_for(command, error)
                if delay is None:  # the plan decides, and waits no longer
                    self._tell_resumed(paused_at)
                    raise
                if paused_at is None:
                    paused_at = self._clock()
                    self._tell(PassPaused(table=self._core.settings.name, reason=delay.reason))
                self._sleep(delay.seconds)
            else:
                self._tell_resumed(paused_at)
                return answer

    def _told_once(self, command: Command) -> Any:
        if self._span is None:
            return self._once(command)
        facts = {"verification": self._core.settings.name, "command": type(command).__name__}
        with self._span(BATCH, facts):
            return self._once(command)

    def _once(self, command: Command) -> Any:
        if isinstance(command, Write):
            return self._builders.update(command.patch, command.where, command.key).execute().data
        with idempotent():
            if isinstance(command, Read):
                narrow = None if command.rule is None else command.rule.violates
                return self._builders.select(command.select, narrow).execute().data
            if isinstance(command, Count):
                return self._builders.count().execute().count
            if isinstance(command, Rpc):
                return self._builders.rpc(command).execute().data
        raise TypeError(f"no such command: {command!r}")

    # --- waiting ----------------------------------------------------------------------------------

    def _sleep(self, seconds: float) -> None:
        """In slices, in which the lease is kept."""
        end = self._clock() + seconds
        while not self.stopping.is_set():
            left = end - self._clock()
            if left <= 0:
                return
            self.stopping.wait(min(left, _SLICE))
            self._rest()
        raise Stopped

    def _wait_until_allowed(self) -> None:
        """Return when nothing speaks against the next page."""
        paused_at: float | None = None
        while (reason := self._objection()) is not None:
            if paused_at is None:
                paused_at = self._clock()
                self._tell(PassPaused(table=self._core.settings.name, reason=reason[0]))
            self._sleep(reason[1])
        self._tell_resumed(paused_at)
        if self.stopping.is_set():
            raise Stopped
        self._rest()

    def _tell_resumed(self, paused_at: float | None) -> None:
        if paused_at is not None:
            seconds = self._clock() - paused_at
            self._tell(PassResumed(table=self._core.settings.name, seconds=seconds))

    def _objection(self) -> tuple[str, float] | None:
        if not self.going.is_set():
            return "pause()", _SLICE / 10
        if self._window is not None:
            seconds = self._window.seconds_until(datetime.now())  # noqa: DTZ005 - by this machine's clock
            if seconds > 0:
                return "only_between", min(seconds, _SLICE)
        throttle = self._core.settings.throttle
        held = throttle() if throttle is not None else None
        if held:
            return "throttle", _THROTTLED if held is True else float(held)
        return None

    def _rest(self) -> None:
        """Keep the lease and the cursor; one thread at a time does."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            lease = self._core.lease
            if lease is not None and lease.is_renewal_due and not self.run(lease.renew()):
                raise VerificationError("another runner has taken the lease over")
            self._resting()
        finally:
            self._turn.release()


class _Pace(threading.local):
    """Of one range: when its next page was asked for, and how long the last one was worked on."""

    begun = 0.0
    work = 0.0


class _Later:
    """A page that is fetched when it is needed."""

    def __init__(self, fetch: Callable[[], Page]) -> None:
        self._fetch = fetch

    def result(self) -> Page:
        """Fetch it."""
        return self._fetch()


def in_thread(name: str, work: Callable[[], T]) -> "Future[T]":
    """Do it on a thread that does not keep the process alive, as those of an executor would."""
    future: Future[T] = Future()
    threading.Thread(target=settle, args=(future, work), name=name, daemon=True).start()
    return future


def settle(future: "Future[T]", work: Callable[[], T]) -> "Future[T]":
    """Do it, here and now."""
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever asks for the result
        future.set_exception(error)
    return future
