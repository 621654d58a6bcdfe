"""QueueProcessor: the choices of a queue carried out with threads.

Its crew takes jobs from a list in memory. For a queue in memory that list is the queue; for a
durable one a link fills it and settles what is done. What is here is the surface, and one thread
that carries out what a signal handler asked for and watches over what takes too long.
"""

import atexit
import inspect
import queue as stdlib_queue
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self

from supabase_resilience import _clock
from supabase_resilience._checks import check_count, check_number, check_text
from supabase_resilience._signals import handled_signals
from supabase_resilience.events import Hook, log_event
from supabase_resilience.queues._books import QueueStats
from supabase_resilience.queues._core import Core, reset_after_fork
from supabase_resilience.queues._decisions import Settings, check_handler
from supabase_resilience.queues._jobs import DeadLetter, QueueMetrics
from supabase_resilience.queues._memory import MemoryQueue
from supabase_resilience.queues._store import Store
from supabase_resilience.queues._sync_crew import Crew, OnError, Ties
from supabase_resilience.queues._sync_link import Link

__all__ = ["QueueProcessor"]

_EXIT_WITHIN = 25.0


class QueueProcessor:
    """Handle each job at least once; your handler must bear a second delivery.

    `process(data)` runs for each job, `concurrency` at a time on threads, higher `priority` first
    and first in first out within one. A failed attempt is repeated up to `max_retries` times,
    `retry_delay` seconds later, growing by `backoff` with full jitter up to `max_retry_delay`
    (`backoff=1.0`: always `retry_delay`); after that the job is a dead letter, to be looked at and
    replayed. An outage is no attempt: after `Postpone`, `CircuitOpenError`, or any error that
    `classify` calls an outage, the job is given back and the queue takes a break.

    - `store`: None for a `MemoryQueue`, which dies with the process and starts with the first
      `enqueue`; or a `SupabaseQueue`, which starts with `start()` or `run()`.
    - `process=None` makes a producer that only enqueues.
    - `visibility_timeout`: seconds until a job of a killed worker comes back. With the migration
      leases are extended while a handler runs; without it a handler must end within them.
    - `handler_timeout`: seconds after which an attempt has failed. A thread cannot be stopped: it
      is left alone, told (`HandlerAbandoned`) and replaced.
    - `max_age`: seconds after its enqueue beyond which a job becomes a dead letter, also in an
      outage.
    - `max_deliveries`: how often a job may come back without an end (its worker was killed, its
      lease ran out) before it is a dead letter.
    - `lanes`: `{10: "_high"}` lets jobs of priority 10 and more travel in the queue `<name>_high`;
      what a durable queue needs for priorities when it has no migration.
    - `strict_order`: with `concurrency=1`, a job that fails is repeated in its place, all others
      wait; over Supabase Queues this needs the migration.
    - `on_error(error, job)`: called after each failed attempt.

    All methods may be called from any thread. Raises `ValueError` or `TypeError`, naming the
    argument, for one that makes no sense.
    """

    def __init__(
        self,
        process: Callable[[Any], object] | None,
        *,
        store: MemoryQueue | Store | None = None,
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
        on_error: OnError | None = None,
        on_event: Hook = log_event,
        clock: _clock.Clock = _clock.monotonic,
    ) -> None:
        check_handler(process, on_error, on_event)
        if inspect.iscoroutinefunction(process):
            raise TypeError(f"process must not be async here, use AsyncQueueProcessor: {process!r}")
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
        self._signals: stdlib_queue.SimpleQueue[None] = stdlib_queue.SimpleQueue()
        self._starting = threading.Lock()
        self._something = threading.Condition()
        self._watching = 0
        self._equip()

    def _equip(self) -> None:
        """A crew and a link for one run: what an earlier one has left behind keeps its own."""
        link = Link(self._core, self._store, self._changed) if self._store else None
        settle, post = (link.settle, link.post) if link else (self._core.settle_in_memory,) * 2
        ties = Ties(
            settle=settle,
            post=post,
            changed=self._changed,
            is_filling=link.is_filling if link else _never,
        )
        self._link = link
        self._crew = Crew(self._core, ties, self._on_error)

    def __repr__(self) -> str:
        """Show the queue and what it is doing."""
        return f"<QueueProcessor {self.name!r} {self._core.told_state}>"

    # --- enqueueing -------------------------------------------------------------------------------

    def enqueue(
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
            return self._link.send([job], delay)[0]
        self._core.books.count_enqueued()
        found = self._core.ready.put(job, delay)
        if self._core.phase != "running":
            self._start_by_itself()
        return found

    def enqueue_many(
        self, items: Iterable[Any], priority: int = 0, *, delay: float = 0.0
    ) -> list[str]:
        """Add a job for each of `items`, over Supabase Queues in one transaction; their ids."""
        jobs = self._core.new_jobs(items, priority, delay)
        if self._link is not None:
            return self._link.send(jobs, delay) if jobs else []
        ids = self._core.put(jobs, delay)
        self._start_by_itself()
        return ids

    # --- starting and stopping --------------------------------------------------------------------

    def start(self) -> None:
        """Start the workers, unless they run.

        Raises `QueueError` when the queue, its lanes or that of the dead letters are missing or
        may not be used, with the SQL that helps, and while it is stopping. An outage is no error:
        the queue is read as soon as it can be.
        """
        self._core.check_process()
        if self._core.phase == "stopping" and self._has_ended():
            self._end_stop()
        with self._starting:
            if self._core.phase == "stopping":
                self._core.refuse_start()
            if self._core.phase == "running":
                return
            if self._link is not None:
                self._link.check_unless_out()
            self._start_threads()

    def _start_threads(self) -> None:
        self._core.begin()
        self._signals = stdlib_queue.SimpleQueue()
        loops: list[Callable[[], None]] = [partial(self._control, self._signals)]
        if self._link is not None:
            loops += self._link.begin()
        self._core.ready.wake(self._waken)
        atexit.register(self._at_exit)
        self._crew.start()
        for loop in loops:
            threading.Thread(target=loop, name=f"queue {self.name} link", daemon=True).start()

    def _start_by_itself(self) -> None:
        """A queue in memory starts with its first job."""
        if self._core.starts_by_itself and self._core.phase in {"new", "stopped"}:
            self.start()

    def request_stop(self) -> None:
        """Ask for `stop()` and return at once; takes no lock: a signal handler may call it."""
        self._core.stop_is_requested = True
        self._signals.put(None)  # reentrant by its documentation

    def stop(self, drain: bool = True, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002
        """Take no more jobs, finish those in hand, and stop the workers; whether all have ended.

        With `drain` a queue in memory is worked off, delayed jobs included, since it would die with
        the process; without it, or while it is paused, what waits stays there for the next
        `start()`. After `timeout` seconds what still runs is left alone: its lease is given back
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
            has_ended = self._wait_for(self._has_ended, timeout)
        finally:
            self._end_stop()
        self._core.raise_fatal()
        return has_ended

    def _begin_stop(self, *, drain: bool) -> None:
        self._core.begin_stop(drain=drain)
        self._changed()

    def _has_ended(self) -> bool:
        return not (self._crew.workers or (self._link is not None and self._link.is_reading))

    def _end_stop(self) -> None:
        with self._starting:
            if self._core.phase != "stopping":
                return  # somebody else was first
            crew, link = self._crew, self._link
            self._core.end()
            self._core.ready.unwake(self._waken)
            atexit.unregister(self._at_exit)
            self._equip()
            crew.abandon_all()
            if link is not None:
                link.end()
        self._signals.put(None)
        self._changed()

    def _at_exit(self) -> None:
        """The interpreter ends: daemon threads would be cut off in the middle of a job."""
        self.stop(timeout=_EXIT_WITHIN)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until nothing waits and nothing runs, as far as is known here; whether that came.

        A durable queue has been read and was empty then. Raises the KeyboardInterrupt or SystemExit
        of a handler, if there was one.
        """
        if timeout is not None:
            check_number("timeout", timeout, at_least=0.0)
        if self._link is not None:
            self._link.wake()
        self._wait_for(lambda: self._is_empty() or self._core.fatal is not None, timeout)
        self._core.raise_fatal()
        return self._is_empty()

    def _is_empty(self) -> bool:
        if self._link is not None:
            return self._link.is_empty()
        return not self._core.ready.unfinished

    def _wait_for(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        with self._something:
            self._watching += 1
            try:
                return self._something.wait_for(condition, timeout)
            finally:
                self._watching -= 1

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
        if self._link is not None:
            self._link.wake()
        self._changed()

    def run(self, until_empty: bool = False, shutdown_timeout: float = 25.0) -> None:  # noqa: FBT001, FBT002
        """Work until SIGTERM, SIGINT or `request_stop()`, then `stop()` within `shutdown_timeout`.

        A second signal aborts: jobs in hand are left to their leases. `until_empty` also stops when
        there is nothing to take: for cron jobs and tests. (Retries of a durable queue that are due
        later are left to the next run.) Signals are handled only in the main thread. Raises what
        `start()` raises, and the KeyboardInterrupt or SystemExit of a handler.
        """
        check_number("shutdown_timeout", shutdown_timeout, at_least=0.0)
        with handled_signals(self.request_stop):
            if not self._core.is_ending():
                self.start()
            self._wait_for(
                lambda: self._core.phase != "running" or (until_empty and self._is_empty()), None
            )
            self.stop(timeout=shutdown_timeout)

    def __enter__(self) -> Self:
        """Start, unless it is a producer."""
        if self._core.process is not None:
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

    # --- what is known ----------------------------------------------------------------------------

    def get_stats(self) -> QueueStats:
        """The numbers of this processor: local, and cheap."""
        return self._core.stats(0 if self._link is None else self._link.held())

    def metrics(self) -> QueueMetrics:
        """What the queue holds, asked of the server; None where it cannot tell."""
        if self._store is not None:
            return self._store.metrics(self._core.lanes.suffixes)
        return self._core.metrics()

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The oldest jobs that were given up on."""
        check_count("limit", limit)
        return (self._store or self._core.ready).dead_letters(limit)

    def replay(self, id: str) -> None:  # noqa: A002 - the field's own name
        """Send a dead letter back to the queue, all its attempts before it.

        Raises `QueueError` when there is none with this id.
        """
        check_text("id", id)
        if self._store is not None:
            is_there = self._store.replay(id, self._core.lanes.thresholds)
        else:
            is_there = self._core.ready.replay(id)
        self._core.replayed(id, is_there=is_there)
        if self._link is not None:
            self._link.wake()
        else:
            self._start_by_itself()

    def purge_dead_letters(self) -> int:
        """Delete all dead letters; how many there were."""
        return (self._store or self._core.ready).purge_dead_letters()

    # --- for the crew and the link ----------------------------------------------------------------

    def _changed(self) -> None:
        self._crew.wake_all()
        if self._link is not None:
            self._link.stir()
        self._notify()
        if self._core.phase == "stopping":
            self._signals.put(None)  # the control ends what nobody waits for

    def _waken(self) -> None:
        """A job was added, or the last one in hand has ended."""
        self._crew.wake_one()
        if self._watching or self._core.phase != "running":
            self._crew.wake_all()
            self._notify()

    def _notify(self) -> None:
        if self._watching:
            with self._something:
                self._something.notify_all()

    def _control(self, signals: "stdlib_queue.SimpleQueue[None]") -> None:
        """Carry out what a signal handler asked for, and watch over what takes too long."""
        while self._core.phase != "stopped" and signals is self._signals:
            if self._core.stop_is_requested and self._core.phase == "running":
                self._begin_stop(drain=True)
            if self._core.phase == "stopping" and self._has_ended():
                self._end_stop()
            try:
                signals.get(timeout=self._watch_safely())
            except stdlib_queue.Empty:
                continue

    def _watch_safely(self) -> float | None:
        try:
            return self._watch()
        except BaseException as error:  # noqa: BLE001 - a hook ends the process
            self._core.end_by(error)
            return 0.001

    def _watch(self) -> float | None:
        waits = list(self._crew.watch())
        if self._link is not None:
            waits.append(self._link.watch())
        return max(0.001, min(waits)) if waits else None

    # --- for supabase_resilience.testing ----------------------------------------------------------

    def _run_next(self) -> None:
        """Handle one job in this thread, without workers."""
        job = self._core.ready.take()
        if job is not None:
            self._crew.handle(job)
            self._core.raise_fatal()

    def _next_due(self) -> float | None:
        return self._core.ready.next_due()


def _never() -> bool:
    return False


def _checked(store: Any) -> Store:
    exchange = getattr(store, "exchange", None)
    if not callable(exchange):
        raise TypeError(f"store must be a MemoryQueue or a SupabaseQueue, got {store!r}")
    if inspect.iscoroutinefunction(exchange):
        raise TypeError(f"store is async, use AsyncQueueProcessor: {store!r}")
    return store  # type: ignore[no-any-return]
