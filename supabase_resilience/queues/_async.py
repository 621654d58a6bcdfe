"""AsyncQueueProcessor: the choices of a queue carried out with tasks, on one event loop.

Its crew takes jobs from a list in memory. For a queue in memory that list is the queue; for a
durable one a link fills it and settles what is done. What is here is the surface.
"""

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from supabase_resilience import _clock
from supabase_resilience._checks import check_count, check_number, check_text
from supabase_resilience._signals import handled_signals, meaning_of
from supabase_resilience.events import Hook, log_event
from supabase_resilience.queues._async_crew import AsyncCrew, AsyncOnError, AsyncTies
from supabase_resilience.queues._async_link import AsyncLink
from supabase_resilience.queues._async_parking import AsyncParking
from supabase_resilience.queues._books import QueueStats
from supabase_resilience.queues._core import Core, reset_after_fork
from supabase_resilience.queues._decisions import Settings, check_handler
from supabase_resilience.queues._jobs import DeadLetter, Job, QueueMetrics, Settlement
from supabase_resilience.queues._memory import MemoryQueue
from supabase_resilience.queues._store import AsyncStore

__all__ = ["AsyncQueueProcessor"]


class AsyncQueueProcessor:
    """Handle each job at least once; your handler must bear a second delivery.

    `QueueProcessor` for an event loop: the same arguments, promises and limits, where `process` and
    `on_error` may be async. Handlers run as tasks, `concurrency` at a time; a sync handler runs on
    a thread. A handler that outlasts `handler_timeout` is canceled; one that cannot be (a thread,
    or a task that ignores it) is left alone, told (`HandlerAbandoned`) and replaced.

    It belongs to the loop that starts it. From other threads call only `pause()`, `resume()`,
    `request_stop()` and `get_stats()`.
    """

    def __init__(
        self,
        process: Callable[[Any], object] | None,
        *,
        store: MemoryQueue | AsyncStore | None = None,
        concurrency: int = 1,
        retry_delay: float = 1.0,
        max_retries: int = 3,
        backoff: float = 2.0,
        max_retry_delay: float = 300.0,
        visibility_timeout: float = 30.0,
        handler_timeout: float | None = None,
        max_age: float | None = None,
        max_deliveries: int = 20,
        lanes: Mapping[int, str] | None = None,
        strict_order: bool = False,
        on_error: AsyncOnError | None = None,
        on_event: Hook = log_event,
        clock: _clock.Clock = _clock.monotonic,
    ) -> None:
        check_handler(process, on_error, on_event)
        settings = Settings(
            concurrency=concurrency,
            retry_delay=retry_delay,
            max_retries=max_retries,
            backoff=backoff,
            max_retry_delay=max_retry_delay,
            visibility_timeout=visibility_timeout,
            handler_timeout=handler_timeout,
            max_age=max_age,
            max_deliveries=max_deliveries,
            lanes=lanes,
            strict_order=strict_order,
        )
        self._store = None if store is None or isinstance(store, MemoryQueue) else _checked(store)
        self._on_error = on_error
        self._core = Core(process, settings, store, on_event, clock)
        self.name: str = self._core.name
        self.reset()
        reset_after_fork(self)

    def reset(self) -> None:
        """All that belongs to this process: anew after a fork."""
        self._core.reset()
        self._core.request_stop = self.request_stop
        self._renew()

    def _renew(self) -> None:
        """All that belongs to an event loop."""
        self._something = AsyncParking()
        self._starting = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._equip()

    def _equip(self) -> None:
        """A crew and a link for one run: what an earlier one has left behind keeps its own."""
        link = AsyncLink(self._core, self._store, self._changed) if self._store else None
        ties = AsyncTies(
            settle=link.settle if link else self._settle_in_memory,
            changed=self._changed,
            is_filling=link.is_filling if link else _never,
        )
        self._link = link
        self._crew = AsyncCrew(self._core, ties, self._on_error)

    def __repr__(self) -> str:
        """Show the queue and what it is doing."""
        return f"<AsyncQueueProcessor {self.name!r} {self._core.told_state}>"

    # --- enqueueing -------------------------------------------------------------------------------

    async def enqueue(
        self,
        data: Any,
        priority: int = 0,
        *,
        delay: float = 0.0,
        dedupe_key: str | None = None,
    ) -> str:
        """Add a job that may start in `delay` seconds, and return its id.

        With a `dedupe_key`, no second job of that key is added while one waits or runs, and the id
        is that one's. Over Supabase Queues this needs the migration: without it the second job is
        added, and skipped if the processor that did the first one meets it.

        Over Supabase Queues an error of the network may mean that the job was added all the same;
        within `idempotent()` it is sent again, under the same id. Raises `QueueError` when the
        queue cannot take it, and whatever supabase-py raises.
        """
        job = self._core.new_job(data, priority, delay, dedupe_key)
        if self._link is not None:
            return (await self._link.send([job], delay))[0]
        self._core.books.count_enqueued()
        found = self._core.ready.put(job, delay)
        if self._loop is not asyncio.get_running_loop() or self._core.phase != "running":
            await self._start_by_itself()
        return found

    async def enqueue_many(
        self, items: Iterable[Any], priority: int = 0, *, delay: float = 0.0
    ) -> list[str]:
        """Add a job for each of `items`, over Supabase Queues in one transaction; their ids."""
        jobs = self._core.new_jobs(items, priority, delay)
        if self._link is not None:
            return await self._link.send(jobs, delay) if jobs else []
        ids = self._core.put(jobs, delay)
        await self._start_by_itself()
        return ids

    # --- starting and stopping --------------------------------------------------------------------

    async def start(self) -> None:
        """Start the workers, unless they run.

        Raises `QueueError` when the queue, its lanes or that of the dead letters are missing or
        may not be used, with the SQL that helps, and while it is stopping. An outage is no error:
        the queue is read as soon as it can be.
        """
        self._core.check_process()
        if self._loop is not None and self._loop.is_closed():
            self._forget_loop()
        if self._core.phase == "stopping" and self._has_ended():
            await self._end_stop()
        async with self._starting:
            if self._core.phase == "stopping":
                self._core.refuse_start()
            if self._core.phase == "running":
                return
            if self._link is not None:
                await self._link.check_unless_out()
            self._start_tasks()

    def _forget_loop(self) -> None:
        """The loop ended, and the tasks with it; jobs in memory wait for the next one."""
        self._core.ready.unwake(self._waken)
        self._core.end()
        self._renew()

    def _start_tasks(self) -> None:
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._core.begin()
        self._core.ready.wake(self._waken)
        self._crew.start()
        for loop in [] if self._link is None else self._link.begin():
            self._keep_task(loop)
        if self._core.stop_is_requested:
            self._begin_requested_stop()

    def _keep_task(self, loop: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start_by_itself(self) -> None:
        """A queue in memory starts with its first job."""
        is_gone = self._loop is not None and self._loop.is_closed()
        if self._core.starts_by_itself and (is_gone or self._core.phase in {"new", "stopped"}):
            await self.start()

    def request_stop(self) -> None:
        """Ask for `stop()` and return at once; takes no lock: a signal handler may call it."""
        self._core.stop_is_requested = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._begin_requested_stop)

    def _begin_requested_stop(self) -> None:
        if self._core.phase == "running":
            self._begin_stop(drain=True)

    async def stop(self, drain: bool = True, timeout: float | None = None) -> bool:  # noqa: ASYNC109, FBT001, FBT002
        """Take no more jobs, finish those in hand, and stop the workers; whether all have ended.

        With `drain` a queue in memory is worked off, delayed jobs included, since it would die with
        the process; without it, or while it is paused, what waits stays there for the next
        `start()`. After `timeout` seconds what still runs is canceled: its lease is given back
        (migration) or lapses. Called by a handler, it only asks for the stop.
        Raises the KeyboardInterrupt or SystemExit of a handler, if there was one.
        """
        if timeout is not None:
            check_number("timeout", timeout, at_least=0.0)
        if self._core.told_state in {"new", "stopped"}:
            self._core.raise_fatal()
            return True
        self._begin_stop(drain=drain)
        if self._crew.is_at_work_here():
            return False  # a handler cannot wait for itself
        try:
            has_ended = await self._wait_for(self._has_ended, timeout)
        finally:
            await self._end_stop()
        self._core.raise_fatal()
        return has_ended

    def _begin_stop(self, *, drain: bool) -> None:
        is_first = self._core.phase == "running"
        self._core.begin_stop(drain=drain)
        self._changed()
        if is_first:
            self._keep_task(self._end_when_over())

    async def _end_when_over(self) -> None:
        """The end of a stop that nobody waits for."""
        await self._wait_for(lambda: self._has_ended() or self._core.phase != "stopping", None)
        await self._end_stop()

    def _has_ended(self) -> bool:
        return not (self._crew.workers or (self._link is not None and self._link.is_reading))

    async def _end_stop(self) -> None:
        async with self._starting:
            if self._core.phase != "stopping":
                return  # somebody else was first
            crew, link = self._crew, self._link
            self._core.end()
            self._core.ready.unwake(self._waken)
            self._equip()
            crew.wake_all()
            await crew.abandon_all()
            if link is not None:
                await link.end()
        self._changed()

    async def join(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Wait until nothing waits and nothing runs, as far as is known here; whether that came.

        A durable queue has been read and was empty then. Raises the KeyboardInterrupt or SystemExit
        of a handler, if there was one.
        """
        if timeout is not None:
            check_number("timeout", timeout, at_least=0.0)
        if self._link is not None:
            self._link.wake()
        await self._wait_for(lambda: self._is_empty() or self._core.fatal is not None, timeout)
        self._core.raise_fatal()
        return self._is_empty()

    def _is_empty(self) -> bool:
        if self._link is not None:
            return self._link.is_empty()
        return not self._core.ready.unfinished

    async def _wait_for(self, condition: Callable[[], bool], timeout: float | None) -> bool:  # noqa: ASYNC109
        until = None if timeout is None else self._core.clock() + timeout
        while True:
            spot = self._something.enter()
            left = None if until is None else until - self._core.clock()
            if condition() or (left is not None and left <= 0.0):
                self._something.leave(spot)
                return condition()
            await self._something.wait(spot, left)

    def pause(self) -> None:
        """Start no more jobs until `resume()`; those in hand go on."""
        was_paused, self._core.is_paused = self._core.is_paused, True
        if not was_paused:
            self._core.books.paused()
            self._changed()

    def resume(self) -> None:
        """Start jobs again; also ends the break of an outage."""
        was_paused, self._core.is_paused = self._core.is_paused, False
        if was_paused:
            self._core.books.resumed()
        if self._core.books.brake.is_on:
            self._core.books.release_brake()
        self._on_loop(self._wake_link)
        self._changed()

    async def run(self, until_empty: bool = False, shutdown_timeout: float = 25.0) -> None:  # noqa: FBT001, FBT002
        """Work until SIGTERM, SIGINT or `request_stop()`, then `stop()` within `shutdown_timeout`.

        A second signal aborts: jobs in hand are left to their leases. `until_empty` also stops when
        there is nothing to take: for cron jobs and tests. (Retries of a durable queue that are due
        later are left to the next run.) Signals are handled only in the main thread. Raises what
        `start()` raises, and the KeyboardInterrupt or SystemExit of a handler.
        """
        check_number("shutdown_timeout", shutdown_timeout, at_least=0.0)
        signals: list[int] = []
        with handled_signals(self.request_stop, self._aborter(signals)):
            try:
                if not self._core.is_ending():
                    await self.start()
                await self._wait_for(
                    lambda: self._core.phase != "running" or (until_empty and self._is_empty()),
                    None,
                )
                await self.stop(timeout=shutdown_timeout)
            except asyncio.CancelledError:
                if signals:
                    raise meaning_of(signals[0]) from None
                raise

    def _aborter(self, signals: list[int]) -> Callable[[int], None]:
        """Cancel the running task, and remember by which signal."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def abort(number: int) -> None:
            signals.append(number)
            if task is not None:
                loop.call_soon_threadsafe(task.cancel)

        return abort

    async def __aenter__(self) -> Self:
        """Start, unless it is a producer."""
        if self._core.process is not None:
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

    # --- what is known ----------------------------------------------------------------------------

    def get_stats(self) -> QueueStats:
        """The numbers of this processor: local, and cheap."""
        return self._core.stats(0 if self._link is None else self._link.held())

    async def metrics(self) -> QueueMetrics:
        """What the queue holds, asked of the server; None where it cannot tell."""
        if self._store is not None:
            return await self._store.metrics(self._core.lanes.suffixes)
        return self._core.metrics()

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The oldest jobs that were given up on."""
        check_count("limit", limit)
        if self._store is not None:
            return await self._store.dead_letters(limit)
        return self._core.ready.dead_letters(limit)

    async def replay(self, id: str) -> None:  # noqa: A002 - the field's own name
        """Send a dead letter back to the queue, all its attempts before it.

        Raises `QueueError` when there is none with this id.
        """
        check_text("id", id)
        if self._store is not None:
            is_there = await self._store.replay(id, self._core.lanes.thresholds)
        else:
            is_there = self._core.ready.replay(id)
        self._core.replayed(id, is_there=is_there)
        if self._link is not None:
            self._link.wake()
        else:
            await self._start_by_itself()

    async def purge_dead_letters(self) -> int:
        """Delete all dead letters; how many there were."""
        if self._store is not None:
            return await self._store.purge_dead_letters()
        return self._core.ready.purge_dead_letters()

    # --- for the crew and the link ----------------------------------------------------------------

    async def _settle_in_memory(self, settlement: Settlement) -> None:
        self._core.settle_in_memory(settlement)

    def _on_loop(self, fn: Callable[[], None]) -> None:
        """Call `fn` on the loop's thread: here and now, or soon."""
        if self._loop is None or self._loop.is_closed():
            return
        if threading.get_ident() == self._thread:
            fn()
        else:
            self._loop.call_soon_threadsafe(fn)

    def _changed(self) -> None:
        self._on_loop(self._wake_all)

    def _wake_all(self) -> None:
        self._crew.wake_all()
        if self._link is not None:
            self._link.stir()
        self._something.wake_all()

    def _wake_link(self) -> None:
        if self._link is not None:
            self._link.wake()

    def _waken(self) -> None:
        """A job was added, or the last one in hand has ended."""
        if self._crew.parking.spots or self._something.spots:
            self._on_loop(self._wake_one)

    def _wake_one(self) -> None:
        if self._core.phase != "running":
            self._wake_all()
            return
        self._crew.wake_one()
        self._something.wake_all()

    # --- for supabase_resilience.testing ----------------------------------------------------------

    async def _run_next(self) -> None:
        """Handle one job in this task, without workers."""
        job: Job | None = self._core.ready.take()
        if job is not None:
            done = await self._crew.handle(job)
            if done is not None:
                self._core.ready.end(done)
            self._core.raise_fatal()

    def _next_due(self) -> float | None:
        return self._core.ready.next_due()


def _never() -> bool:
    return False


def _checked(store: Any) -> AsyncStore:
    exchange = getattr(store, "exchange", None)
    if not callable(exchange):
        raise TypeError(f"store must be a MemoryQueue or an AsyncSupabaseQueue, got {store!r}")
    if not inspect.iscoroutinefunction(exchange):
        raise TypeError(f"store is sync, use QueueProcessor: {store!r}")
    return store  # type: ignore[no-any-return]
