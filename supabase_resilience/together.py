"""Resilience: parts made elsewhere, started, stopped, watched and asked as one.

It makes no part and adds no second way to use one: what it knows comes from their own `start()`,
`stop()` and `get_stats()`.
"""

import asyncio
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Generic, Self, TypeVar, cast

from supabase_resilience import _clock
from supabase_resilience._alerts import Alert, AlertBook
from supabase_resilience._checks import check_callable, check_number, check_seconds
from supabase_resilience._health import Health, HealthBook, Kind, Stats
from supabase_resilience._signals import handled_signals
from supabase_resilience._telling import show, tell
from supabase_resilience.breaker import CircuitBreaker
from supabase_resilience.breakers import CircuitBreakers
from supabase_resilience.events import Hook, log_event
from supabase_resilience.http import AsyncResilientHttpClient, ResilientHttpClient
from supabase_resilience.listener import AsyncRealtimeListener, RealtimeListener
from supabase_resilience.protect import AsyncProtectedClient, ProtectedClient
from supabase_resilience.queues import AsyncQueueProcessor, QueueProcessor
from supabase_resilience.verification import AsyncServerSideVerification, ServerSideVerification

__all__ = ["AsyncPart", "AsyncResilience", "Part", "Resilience"]

Breakers = CircuitBreaker | CircuitBreakers
Worker = QueueProcessor | RealtimeListener | ServerSideVerification
AsyncWorker = AsyncQueueProcessor | AsyncRealtimeListener | AsyncServerSideVerification
Part = Breakers | ProtectedClient | ResilientHttpClient | Worker
AsyncPart = Breakers | AsyncProtectedClient | AsyncResilientHttpClient | AsyncWorker
W = TypeVar("W", Worker, AsyncWorker)
_QUEUES = (QueueProcessor, AsyncQueueProcessor)
_LISTENERS = (RealtimeListener, AsyncRealtimeListener)
_USUAL_SCHEMA = "public."
_LOOK_AGAIN = 0.2
# It stands still when so many looks are missing, and so many seconds beside.
_LOOKS_MISSED = 3
_LOOK_TIME = 30.0


class _Parts(Generic[W]):
    """The parts by their names, and what can be asked of all without doing anything."""

    def __init__(
        self, parts: Sequence[Any], worker: tuple[type, ...], client: tuple[type, ...]
    ) -> None:
        self.by_name: dict[str, Any] = {}
        self._worker, self._client = worker, client
        for part in parts:
            self._add(part)

    def _add(self, part: Any) -> None:
        if isinstance(part, self._client):
            client: Any = part
            of_services = getattr(client, "breakers", None)
            for each in [client.breaker] if of_services is None else of_services.values():
                self._add(each)
        elif isinstance(part, CircuitBreaker | CircuitBreakers):
            if part not in self.by_name.values():  # clients share breakers
                project = part.project if isinstance(part, CircuitBreakers) else part
                self._name("breaker", project.name, part)
        elif isinstance(part, self._worker):
            self._name(*_name_of(part), part)
        else:
            kinds = ", ".join(kind.__name__ for kind in (*self._client, *self._worker))
            raise TypeError(f"a part must be a breaker or one of {kinds}; got {part!r}")

    def _name(self, kind: Kind, name: str, part: Any) -> None:
        full, number = f"{kind}:{name}", 1
        while full in self.by_name:
            number += 1
            full = f"{kind}:{name}#{number}"
        self.by_name[full] = part

    def workers(self) -> list[W]:
        """Those with a life, in the order in which they are started.

        Queues come first, since what the others hear is often made a job; so they are stopped last.
        """
        found = [each for each in self.by_name.values() if isinstance(each, self._worker)]
        return sorted(cast("list[W]", found), key=lambda part: not isinstance(part, _QUEUES))

    def stats(self) -> Mapping[str, Stats]:
        """The statistics of all."""
        found: dict[str, Stats] = {}
        for name, part in self.by_name.items():
            if isinstance(part, CircuitBreakers):
                several = part.get_stats()
                found[name] = several.project
                found |= {f"{name}/{_word(key)}": each for key, each in several.by_key.items()}
            else:
                found[name] = part.get_stats()
        return MappingProxyType(found)


def _name_of(part: Any) -> tuple[Kind, str]:
    if isinstance(part, _QUEUES):
        return "queue", part.name
    kind: Kind = "listener" if isinstance(part, _LISTENERS) else "verification"
    return kind, part.get_stats().table.removeprefix(_USUAL_SCHEMA)


def _word(key: Any) -> str:
    text = ".".join(map(str, key)) if isinstance(key, tuple) else str(key)
    return text.removeprefix(_USUAL_SCHEMA)


class _Watch:
    """What is looked at every `every` seconds: health, so that `since` is true, and alerts."""

    def __init__(self, alerts: Iterable[Alert], on_event: Hook, every: float) -> None:
        check_callable("on_event", on_event)
        check_seconds("check_every", every)
        self.every = every
        self.alerts = AlertBook(alerts)
        self._health = HealthBook()
        self._on_event = on_event
        self._lock = threading.Lock()
        self.looked_at: float | None = None

    def health(self, stats: Mapping[str, Stats]) -> Health:
        """The health now."""
        return self._health.look(stats, _clock.wall())

    def look(self, stats: Mapping[str, Stats]) -> None:
        """One look; what the alerts say is told outside of the lock."""
        self.health(stats)
        show(self._on_event, stats)
        with self._lock:
            found = self.alerts.look(stats, _clock.monotonic())
        self.looked_at = _clock.monotonic()
        for hook, event in found:
            tell(hook or self._on_event, event)

    def age(self) -> float | None:
        """Seconds since the last look."""
        at = self.looked_at
        return None if at is None else _clock.monotonic() - at

    def stands_still(self) -> bool:
        """Whether several looks in a row are overdue."""
        return (self.age() or 0.0) > _LOOKS_MISSED * self.every + _LOOK_TIME


class Resilience:
    """The parts of a sync app as one: started and stopped together, their health, their alerts.

    ```python
    with Resilience(client, mails, projects, orders, alerts=[Alert("orders", when=...)]) as app:
        print(app.health().status)
    ```

    - `parts`: protected clients, breakers, `QueueProcessor`, `RealtimeListener` and
      `ServerSideVerification` objects that were made elsewhere. In what is returned each is called
      by its kind and name: `breaker:supabase` (`breaker:supabase/orders` for that of one table),
      `queue:mails`, `listener:projects`, `verification:orders`; a second one of the same name is
      `…#2`.
    - `start()` starts queues first, `stop()` stops them last, so that a job made by a change or a
      repair is still taken. A producer (`process=None`) is not started.
    - Every `check_every` seconds, while it is started, the alerts are looked at; what they have to
      say goes to their own `tell`, else to `on_event`. A hook with `observe(stats)`, such as
      `PrometheusHook` and `OpenTelemetryHook`, is shown the statistics then.

    Raises `TypeError` for a part of another kind, an async one among them, and `ValueError` or
    `TypeError`, naming the argument, for an option that makes no sense.
    """

    def __init__(
        self,
        *parts: Part,
        alerts: Iterable[Alert] = (),
        on_event: Hook = log_event,
        check_every: float = 5.0,
    ) -> None:
        self._parts = _Parts[Worker](
            parts,
            (QueueProcessor, RealtimeListener, ServerSideVerification),
            (ProtectedClient, ResilientHttpClient),
        )
        self._watch = _Watch(alerts, on_event, check_every)
        self._asked_to_stop = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid: int | None = None

    @property
    def parts(self) -> Mapping[str, Part]:
        """The parts by their names."""
        return MappingProxyType(self._parts.by_name)

    def start(self) -> None:
        """Start what has a life; if one cannot be started, those before it are stopped again.

        Raises what the part raises (`QueueError` for a queue that is missing).
        """
        if self.is_active():
            return
        started: list[Worker] = []
        try:
            for worker in self._parts.workers():
                started.append(worker)
                worker.__enter__()  # a producer starts nothing
        except BaseException:
            self._stop(started, 0.0)
            raise
        self._asked_to_stop.clear()
        self._ended = threading.Event()
        self._watch.looked_at = None
        self._pid = os.getpid()
        self._thread = threading.Thread(
            target=self._look, args=(self._ended,), name="resilience", daemon=True
        )
        self._thread.start()

    def stop(self, timeout: float = 25.0) -> bool:
        """Stop listeners and verifications, then drain the queues; False if that took longer.

        All are stopped even if one raises; then the first error is raised.
        """
        check_number("timeout", timeout, at_least=0.0)
        self._asked_to_stop.set()
        self._ended.set()
        thread, self._thread = self._thread, None
        if thread is not None and self._pid == os.getpid():
            thread.join()
        return self._stop(self._parts.workers(), timeout)

    def request_stop(self) -> None:
        """Make `run()` stop; can be called in a handler or a signal handler."""
        self._asked_to_stop.set()

    def run(self, shutdown_timeout: float = 25.0) -> None:
        """Run until SIGTERM, SIGINT or `request_stop()`, then `stop()` within the timeout.

        Signals are handled only in the main thread; a second one aborts.
        """
        check_number("shutdown_timeout", shutdown_timeout, at_least=0.0)
        with handled_signals(self.request_stop):
            self.start()
            try:
                # In slices: on Windows a signal does not end a wait.
                while not self._asked_to_stop.wait(_LOOK_AGAIN):
                    pass
            finally:
                self.stop(shutdown_timeout)

    def is_active(self) -> bool:
        """Whether it was started and not stopped, in this process."""
        thread = self._thread
        return self._pid == os.getpid() and thread is not None and thread.is_alive()

    def is_alive(self) -> bool:
        """False if its own thread, once started and not stopped, has died or stands still.

        The question of a liveness probe: nothing that happens to Supabase changes the answer.
        """
        if self.is_active():
            return not self._watch.stands_still()
        return self._pid != os.getpid() or self._thread is None

    def health(self) -> Health:
        """How each part is, why, and since when; from memory, nothing is asked of Supabase."""
        return self._watch.health(self.get_stats())

    def get_stats(self) -> Mapping[str, Stats]:
        """The statistics of each part, from memory."""
        return self._parts.stats()

    def alerts_firing(self) -> tuple[str, ...]:
        """The names of the alerts that have fired and are not over."""
        return self._watch.alerts.firing()

    def watch_age(self) -> float | None:
        """Seconds since the parts were looked at last: far above `check_every`, it stands still."""
        return self._watch.age()

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, and finish what is in hand."""
        self.stop()

    def _look(self, ended: threading.Event) -> None:
        while not ended.is_set():
            self._watch.look(self.get_stats())
            ended.wait(self._watch.every)

    def _stop(self, workers: Sequence[Worker], timeout: float) -> bool:
        ends_at = _clock.monotonic() + timeout
        have_ended, failures = True, Failures()
        for worker in reversed(workers):
            with failures:
                have_ended &= worker.stop(timeout=max(0.0, ends_at - _clock.monotonic()))
        failures.throw()
        return have_ended


class AsyncResilience:
    """The parts of an async app as one; `Resilience` says what that means.

    ```python
    async with AsyncResilience(client, mails, projects, orders) as app:
        print(app.health().status)
    ```
    """

    def __init__(
        self,
        *parts: AsyncPart,
        alerts: Iterable[Alert] = (),
        on_event: Hook = log_event,
        check_every: float = 5.0,
    ) -> None:
        self._parts = _Parts[AsyncWorker](
            parts,
            (AsyncQueueProcessor, AsyncRealtimeListener, AsyncServerSideVerification),
            (AsyncProtectedClient, AsyncResilientHttpClient),
        )
        self._watch = _Watch(alerts, on_event, check_every)
        self._asked_to_stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._pid: int | None = None

    @property
    def parts(self) -> Mapping[str, AsyncPart]:
        """The parts by their names."""
        return MappingProxyType(self._parts.by_name)

    async def start(self) -> None:
        """Start what has a life; if one cannot be started, those before it are stopped again.

        Raises what the part raises (`QueueError` for a queue that is missing).
        """
        if self.is_active():
            return
        started: list[AsyncWorker] = []
        try:
            for worker in self._parts.workers():
                started.append(worker)
                await worker.__aenter__()  # a producer starts nothing
        except BaseException:
            await self._stop(started, 0.0)
            raise
        self._asked_to_stop = asyncio.Event()
        self._watch.looked_at = None
        self._pid = os.getpid()
        self._task = asyncio.create_task(self._look(), name="resilience")

    async def stop(self, timeout: float = 25.0) -> bool:  # noqa: ASYNC109
        """Stop listeners and verifications, then drain the queues; False if that took longer.

        All are stopped even if one raises; then the first error is raised.
        """
        check_number("timeout", timeout, at_least=0.0)
        self._asked_to_stop.set()
        task, self._task = self._task, None
        if task is not None and self._pid == os.getpid():
            task.cancel()
            await asyncio.wait([task])
        return await self._stop(self._parts.workers(), timeout)

    def request_stop(self) -> None:
        """Make `run()` stop; to be called on its event loop."""
        self._asked_to_stop.set()

    async def run(self, shutdown_timeout: float = 25.0) -> None:
        """Run until SIGTERM, SIGINT or `request_stop()`, then `stop()` within the timeout.

        Signals are handled only in the main thread; a second one aborts.
        """
        check_number("shutdown_timeout", shutdown_timeout, at_least=0.0)
        loop = asyncio.get_running_loop()

        def stop_soon() -> None:
            loop.call_soon_threadsafe(self.request_stop)

        with handled_signals(stop_soon):
            await self.start()
            try:
                await self._asked_to_stop.wait()
            finally:
                await self.stop(shutdown_timeout)

    def is_active(self) -> bool:
        """Whether it was started and not stopped, in this process."""
        task = self._task
        return self._pid == os.getpid() and task is not None and not task.done()

    def is_alive(self) -> bool:
        """False if its own task, once started and not stopped, has died or stands still.

        The question of a liveness probe: nothing that happens to Supabase changes the answer.
        """
        if self.is_active():
            return not self._watch.stands_still()
        return self._pid != os.getpid() or self._task is None

    def health(self) -> Health:
        """How each part is, why, and since when; from memory, nothing is asked of Supabase."""
        return self._watch.health(self.get_stats())

    def get_stats(self) -> Mapping[str, Stats]:
        """The statistics of each part, from memory."""
        return self._parts.stats()

    def alerts_firing(self) -> tuple[str, ...]:
        """The names of the alerts that have fired and are not over."""
        return self._watch.alerts.firing()

    def watch_age(self) -> float | None:
        """Seconds since the parts were looked at last: far above `check_every`, it stands still."""
        return self._watch.age()

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, and finish what is in hand."""
        await self.stop()

    async def _look(self) -> None:
        while True:
            self._watch.look(self.get_stats())
            await asyncio.sleep(self._watch.every)

    async def _stop(self, workers: Sequence[AsyncWorker], timeout: float) -> bool:  # noqa: ASYNC109
        ends_at = _clock.monotonic() + timeout
        have_ended, failures = True, Failures()
        for worker in reversed(workers):
            with failures:
                have_ended &= await worker.stop(timeout=max(0.0, ends_at - _clock.monotonic()))
        failures.throw()
        return have_ended


class Failures:
    """Errors that have to wait: `with` each step, then `throw()` the first of them."""

    def __init__(self) -> None:
        self._first: BaseException | None = None

    def __enter__(self) -> None:
        """One step."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Keep it for later."""
        self._first = self._first or error
        return True

    def throw(self) -> None:
        """Raise the first."""
        if self._first is not None:
            raise self._first
