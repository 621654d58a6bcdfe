"""The tasks that run handlers: who takes which job, and what happens to one that hangs."""

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, cast

from supabase_resilience._checks import is_async
from supabase_resilience._handler_threads import HandlerThreads
from supabase_resilience._telling import logger
from supabase_resilience.errors import HandlerTimeoutError, QueueError
from supabase_resilience.queues._async_parking import AsyncParking
from supabase_resilience.queues._core import Core
from supabase_resilience.queues._jobs import Job, Settlement, _current

__all__ = ["AsyncCrew", "AsyncOnError", "AsyncTies"]

AsyncOnError = Callable[[Exception, Job], object]
# A handler that was canceled may still clean up for so many seconds.
_GRACE = 1.0
# Handlers that never wait would keep all other tasks of the loop waiting.
_JOBS_IN_A_ROW = 32
# Whose handler this is; in a context, as a handler with a timeout runs in a task of its own.
_working_for: contextvars.ContextVar["AsyncCrew | None"] = contextvars.ContextVar(
    "working_for", default=None
)


class AsyncTies(NamedTuple):
    """What a crew asks of its processor.

    `settle` carries out what becomes of a job. `changed` tells all who wait, `is_filling` whether
    jobs may still come in a stop.
    """

    settle: Callable[[Settlement], Awaitable[None]]
    changed: Callable[[], None]
    is_filling: Callable[[], bool]


class AsyncCrew:
    """`concurrency` workers on one list of jobs."""

    def __init__(self, core: Core, ties: AsyncTies, on_error: AsyncOnError | None) -> None:
        self._core = core
        self._process = cast("Callable[[Any], Any]", core.process)  # a producer has no workers
        self._ties = ties
        self._on_error = on_error
        self.parking = AsyncParking()
        self._threads = HandlerThreads(f"queue {core.name} handler")
        self._calls_on_loop = is_async(core.process)
        limits = core.settings.handler_timeout, core.settings.max_age
        is_limited = core.settings.strict_order or limits != (None, None)
        self._is_plain = self._calls_on_loop and not (core.is_durable or is_limited)
        self._abandoned: set[asyncio.Task[object]] = set()
        self.workers: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Start all workers."""
        for number in range(self._core.settings.concurrency):
            context = contextvars.copy_context()
            context.run(_working_for.set, self)
            work = self._work_plainly() if self._is_plain else self.work()
            name = f"queue {self._core.name} {number}"
            task = asyncio.create_task(work, name=name, context=context)
            self.workers.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.workers.discard(task)
        self._ties.changed()

    def is_at_work_here(self) -> bool:
        """Whether the caller is one of the handlers of these workers."""
        return _working_for.get() is self

    def wake_one(self) -> None:
        """There is a job."""
        self.parking.wake_one()

    def wake_all(self) -> None:
        """Things have changed."""
        self.parking.wake_all()

    async def abandon_all(self) -> None:
        """Cancel whoever still runs a handler, and wait a moment for it."""
        workers, self.workers = set(self.workers), set()
        for worker in workers:
            worker.cancel()
        if workers:
            await asyncio.wait(workers, timeout=_GRACE)
        self._threads.close()

    # --- who takes which job ----------------------------------------------------------------------

    async def work(self) -> None:
        """The life of a worker."""
        done: Job | None = None
        in_a_row = 0
        while (job := await self._next(done)) is not None:
            done = await self._handle_safely(job)
            in_a_row += 1
            if in_a_row == _JOBS_IN_A_ROW:
                in_a_row = 0
                self._end(done)  # first, as it may be canceled there
                done = None
                await asyncio.sleep(0)

    async def _handle_safely(self, job: Job) -> Job | None:
        try:
            return await self.handle(job)
        except (KeyboardInterrupt, SystemExit) as error:  # a hook ends the process
            self._core.end_by(error)
            await self._ties.settle(Settlement(kind="postponed", job=job))
            return None

    def _end(self, done: Job | None) -> None:
        if done is not None:
            self._core.ready.end(done)

    async def _next(self, done: Job | None) -> Job | None:
        if self._core.may_take:
            job = self._core.ready.take(done)
            if job is not None:
                return job
        else:
            self._end(done)
        return await self._wait_for_job()

    async def _work_plainly(self) -> None:
        """`work()` for a queue in memory without limits, in one step: half the time of a job."""
        core, books, process = self._core, self._core.books, self._process
        brake, take, clock, succeeded = books.brake, core.ready.take, core.clock, books.succeeded
        done: Job | None = None
        in_a_row = 0
        while True:
            is_open = core.is_taking and not (core.is_paused or brake.is_on)
            job = take(done) if is_open else await self._next(done)
            if job is None and (job := await self._wait_for_job()) is None:
                return
            done = None
            _current.set(job)
            began_at = clock()
            try:
                await process(job.data)
            except BaseException as error:  # noqa: BLE001 - _raised() decides
                await self._settle_error(job, error)
            else:
                done = job
                try:
                    if brake.is_on:
                        self._succeeded(job, began_at)
                    else:
                        succeeded(job, began_at)
                except BaseException as error:  # noqa: BLE001 - a hook ends the process
                    core.end_by(error)
            in_a_row += 1
            if in_a_row == _JOBS_IN_A_ROW:
                in_a_row = 0
                self._end(done)  # first, as it may be canceled there
                done = None
                await asyncio.sleep(0)

    async def _settle_error(self, job: Job, error: BaseException) -> None:
        settlement = Settlement(kind="postponed", job=job)
        try:
            settlement = await self._raised(job, error)
        except asyncio.CancelledError:
            self._core.ready.give_back(job, 0.0, is_retry=False)
            raise
        except (KeyboardInterrupt, SystemExit) as end:  # a hook ends the process
            self._core.end_by(end)
        await self._ties.settle(settlement)

    async def _wait_for_job(self) -> Job | None:
        while True:
            # Before the list is looked at: who adds a job after that finds somebody to wake.
            spot = self.parking.enter()
            job = self._core.take_one()
            if job is not None or self._core.is_over(is_filling=self._ties.is_filling()):
                self.parking.leave(spot)
                if self._core.ready.waiting:
                    self.parking.wake_one()
                return job
            await self.parking.wait(spot, self._core.due_in())

    # --- one job ----------------------------------------------------------------------------------

    async def handle(self, job: Job) -> Job | None:
        """Run the handler for a job, as often as strict order asks, and settle it.

        A job that is done in memory is returned: it ends as the next one is taken.
        """
        if self._core.looks_twice and await self._refused(job):
            return None
        try:
            settlement = await self._attempt(job)
            while settlement is not None and await self._waits_in_place(settlement):
                settlement = await self._attempt(job)
        except asyncio.CancelledError:
            if not self._core.is_durable:  # else the link knows what is in hand
                self._core.ready.give_back(job, 0.0, is_retry=False)
            raise
        if settlement is None:
            return job
        await self._ties.settle(self._core.keep_place(settlement))
        return None

    async def _refused(self, job: Job) -> bool:
        """Whether a job is not to be run, and so has been settled."""
        core = self._core
        if core.lease_left(job) <= 0.0:
            core.books.lost(job)
            await self._ties.settle(Settlement(kind="postponed", job=job))
            return True
        refusal = core.books.refusal(job, is_durable=core.is_durable)
        if refusal is not None:
            await self._ties.settle(refusal)
        return refusal is not None

    async def _attempt(self, job: Job) -> Settlement | None:
        """Call the handler; what becomes of the job, or None when it is done in memory."""
        began_at = self._core.clock()
        token = _current.set(job)
        try:
            if self._core.settings.handler_timeout is not None:
                await self._call_within(job, self._core.settings.handler_timeout)
            elif self._calls_on_loop:
                await self._process(job.data)
            else:
                await self._call_on_thread(job)
        except BaseException as error:  # noqa: BLE001 - _raised() decides
            return await self._raised(job, error)
        finally:
            _current.reset(token)
        return self._succeeded(job, began_at)

    async def _call_on_thread(self, job: Job) -> None:
        result, error = await self._threads.run(self._process, job.data)
        if error is not None:
            try:
                raise error
            finally:
                del error  # or it and its traceback keep this frame alive, and the job with it
        if inspect.isawaitable(result):  # a plain function that hands out a coroutine
            await result

    async def _call_within(self, job: Job, limit: float) -> None:
        call = self._process(job.data) if self._calls_on_loop else self._call_on_thread(job)
        task: asyncio.Task[object] = asyncio.ensure_future(_guarded(call))
        try:
            done, _ = await asyncio.wait({task}, timeout=limit)
            if not done:
                await self._give_up_on(task, job, limit)
        except asyncio.CancelledError:
            task.cancel()
            raise
        error = await task
        if isinstance(error, BaseException):
            raise error

    async def _give_up_on(self, task: "asyncio.Task[object]", job: Job, limit: float) -> None:
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=_GRACE)
        if not done or not self._calls_on_loop:
            self._core.books.abandoned(job, limit)
        if not done:
            self._abandoned.add(task)
            task.add_done_callback(self._abandoned.discard)
        raise HandlerTimeoutError(f"the handler did not end within {limit:g} s")

    def _succeeded(self, job: Job, began_at: float) -> Settlement | None:
        core = self._core
        was_braking = core.books.brake.is_on
        core.books.succeeded(job, began_at)
        if was_braking:
            self._ties.changed()
        return Settlement(kind="done", job=job) if core.is_durable else None

    async def _raised(self, job: Job, error: BaseException) -> Settlement:
        if isinstance(error, asyncio.CancelledError):
            if _is_canceled():
                raise error
            error = _canceled_itself(error)
        if not isinstance(error, Exception):
            self._core.end_by(error)
        was_braking = self._core.books.brake.is_on
        settlement = self._core.books.raised(job, error)
        if isinstance(error, Exception) and settlement.kind != "postponed":
            await self._tell_error(error, job)
        if was_braking or self._core.books.brake.is_on:
            self._ties.changed()
        return settlement

    async def _tell_error(self, error: Exception, job: Job) -> None:
        if self._on_error is None:
            return
        try:
            result = self._on_error(error, job)
            if inspect.isawaitable(result):
                await result
        except Exception:
            logger.exception("on_error failed for job %s of %r", job.id, job.queue)
        except (KeyboardInterrupt, SystemExit) as end:  # it ends the process, but loses no job
            self._core.end_by(end)

    async def _waits_in_place(self, settlement: Settlement) -> bool:
        """With strict order a job is repeated before any other; whether it can be now."""
        core, job = self._core, settlement.job
        if not core.settings.strict_order or settlement.kind not in {"retry", "postponed"}:
            return False
        until = core.clock() + settlement.delay
        while True:
            spot = self.parking.enter()
            wait = max(until - core.clock(), core.books.brake.wait() or 0.0)
            may_repeat = core.repeats_in_place and not job.is_lost
            if not may_repeat or (wait <= 0.0 and not core.is_paused):
                self.parking.leave(spot)
                job.attempt += may_repeat and settlement.kind == "retry"
                return may_repeat
            await self.parking.wait(spot, wait if wait > 0.0 else None)


async def _guarded(call: Awaitable[object]) -> object:
    """What a call raised, as a value: a task that raises KeyboardInterrupt would end the loop."""
    try:
        await call
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 - it is raised again where it is awaited
        return error
    return None


def _is_canceled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _canceled_itself(error: asyncio.CancelledError) -> QueueError:
    ours = QueueError("the handler was canceled, and not by its queue")
    ours.__cause__ = error
    return ours
