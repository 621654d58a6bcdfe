"""The threads that run handlers: who takes which job, and what happens to one that hangs."""

import inspect
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

from supabase_resilience._telling import logger
from supabase_resilience.errors import HandlerTimeoutError
from supabase_resilience.queues._core import Core
from supabase_resilience.queues._jobs import Job, Settlement, _current
from supabase_resilience.queues._parking import Parking

__all__ = ["Crew", "OnError", "Ties", "Worker"]

OnError = Callable[[Exception, Job], object]


class Ties(NamedTuple):
    """What a crew asks of its processor.

    `settle` carries out what becomes of a job; `post` the same, by other hands when it takes a
    round trip. `changed` tells all who wait, `is_filling` whether jobs may still come in a stop.
    """

    settle: Callable[[Settlement], None]
    post: Callable[[Settlement], None]
    changed: Callable[[], None]
    is_filling: Callable[[], bool]


class Crew:
    """`concurrency` workers on one list of jobs."""

    def __init__(self, core: Core, ties: Ties, on_error: OnError | None) -> None:
        self._core = core
        self._process = cast("Callable[[Any], object]", core.process)  # a producer has no workers
        self._ties = ties
        self._on_error = on_error
        self._parking = Parking()
        self._lock = threading.Lock()
        # Guarded by _lock.
        self.workers: set[Worker] = set()

    def start(self) -> None:
        """Start all workers."""
        with self._lock:
            self.workers = {Worker(self) for _ in range(self._core.settings.concurrency)}
            workers = list(self.workers)
        for worker in workers:
            worker.start()

    def is_at_work_here(self) -> bool:
        """Whether the caller is one of the handlers of these workers."""
        return threading.current_thread() in self.workers

    def wake_one(self) -> None:
        """There is a job."""
        self._parking.wake_one()

    def wake_all(self) -> None:
        """Things have changed."""
        self._parking.wake_all()

    def abandon_all(self) -> None:
        """Whoever still runs a handler is on its own."""
        with self._lock:
            left = [worker.job for worker in self.workers if worker.job is not None]
            for worker in self.workers:
                worker.is_abandoned = True
            self.workers = set()
        if not self._core.is_durable:  # else the link knows what is in hand
            for job in left:
                self._core.ready.give_back(job, 0.0, is_retry=False)
        self.wake_all()

    # --- who takes which job ----------------------------------------------------------------------

    def work(self, worker: "Worker") -> None:
        """The life of a worker; nothing that a hook raises ends it."""
        try:
            worker.errand()
            while (job := self._next(worker)) is not None:
                self._handle_safely(job, worker)
        finally:
            with self._lock:
                self.workers.discard(worker)
            self.wake_all()
            self._ties.changed()

    def _handle_safely(self, job: Job, worker: "Worker") -> None:
        try:
            self.handle(job, worker)
        except BaseException as error:  # noqa: BLE001 - a hook ends the process; the job goes back
            self._core.end_by(error)
            self._ties.settle(Settlement(kind="postponed", job=job))

    def _next(self, worker: "Worker") -> Job | None:
        done, worker.done = worker.done, None
        if self._core.may_take and not worker.is_abandoned:
            job = self._core.ready.take(done)
            if job is not None:
                return job
        elif done is not None:
            self._core.ready.end(done)
        return self._wait_for_job(worker)

    def _wait_for_job(self, worker: "Worker") -> Job | None:
        while not worker.is_abandoned:
            # Before the list is looked at: who adds a job after that finds somebody to wake.
            spot = self._parking.enter()
            job = self._core.take_one()
            if job is not None or self._core.is_over(is_filling=self._ties.is_filling()):
                self._parking.leave(spot)
                if self._core.ready.waiting:
                    self._parking.wake_one()
                return job
            self._parking.wait(spot, self._core.due_in())
        return None

    # --- one job ----------------------------------------------------------------------------------

    def handle(self, job: Job, worker: "Worker | None" = None) -> None:
        """Run the handler for a job, as often as strict order asks, and settle it."""
        if self._core.looks_twice and self._refused(job):
            return
        settlement = self._attempt(job, worker)
        while settlement is not None and self._waits_in_place(settlement):
            settlement = self._attempt(job, worker)
        if settlement is not None:
            self._ties.settle(self._core.keep_place(settlement))

    def _refused(self, job: Job) -> bool:
        """Whether a job is not to be run, and so has been settled."""
        core = self._core
        if core.lease_left(job) <= 0.0:
            core.books.lost(job)
            self._ties.settle(Settlement(kind="postponed", job=job))
            return True
        refusal = core.books.refusal(job, is_durable=core.is_durable)
        if refusal is not None:
            self._ties.settle(refusal)
        return refusal is not None

    def _attempt(self, job: Job, worker: "Worker | None") -> Settlement | None:
        """Call the handler; what becomes of the job, or None when there is nothing left to do."""
        core = self._core
        began_at = core.clock()
        if worker is not None and not self._is_begun(job, worker, began_at):
            return None
        token = _current.set(job)
        try:
            _refuse_awaitable(self._process(job.data))
        except BaseException as error:  # noqa: BLE001 - _raised() decides
            return self._raised(job, error, worker)
        finally:
            _current.reset(token)
        if worker is not None and not self._is_ours(worker):
            return None
        return self._succeeded(job, began_at, worker)

    def _is_begun(self, job: Job, worker: "Worker", now: float) -> bool:
        """Make the job known as the worker's; a worker that was given up meanwhile puts it back."""
        with self._lock:
            if not worker.is_abandoned:
                worker.began_at, worker.job = now, job
                return True
        if not self._core.is_durable:  # else the link has given it back
            self._core.ready.give_back(job, 0.0, is_retry=False)
        return False

    def _is_ours(self, worker: "Worker") -> bool:
        """Whether the outcome is for the worker to tell: nobody has given up on it."""
        with self._lock:
            worker.job = None
            return not worker.is_abandoned

    def _succeeded(self, job: Job, began_at: float, worker: "Worker | None") -> Settlement | None:
        core = self._core
        was_braking = core.books.brake.is_on
        core.books.succeeded(job, began_at)
        if was_braking:
            self._ties.changed()
        if core.is_durable:
            return Settlement(kind="done", job=job)
        if worker is None:
            core.ready.end(job)
        else:
            worker.done = job  # ends as the next one is taken
        return None

    def _raised(self, job: Job, error: BaseException, worker: "Worker | None") -> Settlement | None:
        if worker is not None and not self._is_ours(worker):
            return None
        if not isinstance(error, Exception):
            self._core.end_by(error)
        was_braking = self._core.books.brake.is_on
        settlement = self._core.books.raised(job, error)
        if isinstance(error, Exception) and settlement.kind != "postponed":
            self._tell_error(error, job)
        if was_braking or self._core.books.brake.is_on:
            self._ties.changed()
        return settlement

    def _tell_error(self, error: Exception, job: Job) -> None:
        if self._on_error is None:
            return
        try:
            self._on_error(error, job)
        except Exception:
            logger.exception("on_error failed for job %s of %r", job.id, job.queue)
        except BaseException as end:  # noqa: BLE001 - it ends the process, but loses no job
            self._core.end_by(end)

    def _waits_in_place(self, settlement: Settlement) -> bool:
        """With strict order a job is repeated before any other; whether it can be now."""
        core, job = self._core, settlement.job
        if not core.settings.strict_order or settlement.kind not in {"retry", "postponed"}:
            return False
        until = core.clock() + settlement.delay
        while True:
            spot = self._parking.enter()  # before the look, as who changes things wakes who waits
            wait = max(until - core.clock(), core.books.brake.wait() or 0.0)
            may_repeat = core.repeats_in_place and not job.is_lost
            if not may_repeat or (wait <= 0.0 and not core.is_paused):
                self._parking.leave(spot)
                job.attempt += may_repeat and settlement.kind == "retry"
                return may_repeat
            self._parking.wait(spot, wait if wait > 0.0 else None)

    # --- one that hangs ---------------------------------------------------------------------------

    def watch(self) -> Iterator[float]:
        """Give up on handlers that have taken too long; seconds until others may have."""
        limit = self._core.settings.handler_timeout
        if limit is None:
            return
        yield limit
        with self._lock:
            workers = list(self.workers)
        for worker in workers:
            if (job := worker.job) is not None:
                left = worker.began_at + limit - self._core.clock()
                if left > 0.0:
                    yield left
                else:
                    self._replace(worker, job, limit)

    def _replace(self, worker: "Worker", job: Job, limit: float) -> None:
        """Give a worker's place to another, unless it has ended in this very moment.

        The substitute's first errand is to tell of it: hooks may take their time.
        """
        with self._lock:
            if worker.job is not job or worker.is_abandoned:
                return
            worker.is_abandoned = True
            self.workers.discard(worker)
            substitute = Worker(self, partial(self._abandoned, job, limit))
            self.workers.add(substitute)
        substitute.start()

    def _abandoned(self, job: Job, limit: float) -> None:
        error = HandlerTimeoutError(f"the handler did not end within {limit:g} s")
        settlement = Settlement(kind="postponed", job=job)
        try:
            self._core.books.abandoned(job, limit)
            settlement = self._core.books.raised(job, error)
            self._tell_error(error, job)
        except BaseException as end:  # noqa: BLE001 - a hook ends the process; the job goes back
            self._core.end_by(end)
        self._ties.post(self._core.keep_place(settlement))
        self._ties.changed()


def _nothing() -> None:
    pass


def _refuse_awaitable(result: object) -> None:
    if result is not None and inspect.isawaitable(result):
        raise TypeError("process returned an awaitable; use AsyncQueueProcessor")


class Worker(threading.Thread):
    """A thread that handles jobs; `job` is the one in its hands since `began_at`."""

    def __init__(self, crew: Crew, errand: Callable[[], None] = _nothing) -> None:
        super().__init__(name=f"queue {crew._core.name}", daemon=True)  # noqa: SLF001
        self.job: Job | None = None
        self.done: Job | None = None
        self.began_at = 0.0
        self.is_abandoned = False
        self.errand = errand
        self._crew = crew

    def run(self) -> None:
        """Work until there is nothing more to do."""
        self._crew.work(self)
