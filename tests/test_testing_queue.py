"""A user's handlers, tested without threads and without waiting: `testing` for queues."""

import pytest

from supabase_resilience import (
    AsyncQueueProcessor,
    CircuitBreaker,
    CircuitOpenError,
    MemoryQueue,
    Postpone,
    QueueError,
    QueueProcessor,
    current_job,
)
from supabase_resilience.testing import FakeClock, drain_queue, drain_queue_async, fail_attempts

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


class SyncWorld:
    """A sync processor and a sync handler."""

    def __init__(self, **options) -> None:
        self.done: list[object] = []
        self.clock = FakeClock()
        self.options = {"clock": self.clock, **options}

    def process(self, data: object) -> None:
        self.done.append(data)

    def processor(self, process=None) -> QueueProcessor:
        return QueueProcessor(process or self.process, **self.options)

    async def enqueue(self, processor, data, *args, **options) -> str:
        return processor.enqueue(data, *args, **options)

    async def drain(self, processor, **options) -> int:
        return drain_queue(processor, **options)

    async def dead_letters(self, processor):
        return processor.dead_letters()


class AsyncWorld(SyncWorld):
    """An async processor and an async handler."""

    async def process(self, data: object) -> None:
        self.done.append(data)

    def processor(self, process=None) -> AsyncQueueProcessor:
        return AsyncQueueProcessor(process or self.process, **self.options)

    async def enqueue(self, processor, data, *args, **options) -> str:
        return await processor.enqueue(data, *args, **options)

    async def drain(self, processor, **options) -> int:
        return await drain_queue_async(processor, **options)

    async def dead_letters(self, processor):
        return await processor.dead_letters()


@pytest.fixture(params=[SyncWorld, AsyncWorld], ids=["sync", "async"])
def world(request):
    """Every test that asks for it holds in both colours."""
    return request.param


async def test_an_empty_queue_is_drained_at_once(world):
    """Nothing to do is no error, and takes no time."""
    w = world()
    assert (0, 1000.0) == (await w.drain(w.processor()), w.clock())


async def test_jobs_run_in_order(world):
    """Higher priority first, first come first served within one."""
    w = world()
    processor = w.processor()
    for data, priority in (("a", 0), ("b", 5), ("c", 0)):
        await w.enqueue(processor, data, priority)
    assert 3 == await w.drain(processor)
    assert ["b", "a", "c"] == w.done


async def test_delays_are_not_waited_for(world):
    """The clock is moved to the time of each delayed job, and no further."""
    w = world()
    processor = w.processor()
    await w.enqueue(processor, "late", delay=3600.1)
    await w.enqueue(processor, "soon", delay=0.3)
    assert 2 == await w.drain(processor)
    assert (["soon", "late"], pytest.approx(4600.1)) == (w.done, w.clock())


async def test_retries_are_not_waited_for(world):
    """Each failed attempt is a delivery; the fixed retry delays have passed on the clock."""
    w = world(retry_delay=10.0, backoff=1.0)
    processor = w.processor(fail_attempts(w.process, 1, 2))
    await w.enqueue(processor, "x")
    assert 3 == await w.drain(processor)
    assert (["x"], pytest.approx(1020.0)) == (w.done, w.clock())
    assert 2 == processor.get_stats().failed


async def test_attempts_that_all_fail_end_in_a_dead_letter(world):
    """What the handler would do then can be looked at, with the planned error as its reason."""
    w = world(max_retries=1)
    processor = w.processor(fail_attempts(w.process, 1, 2, error=KeyError("price")))
    id_ = await w.enqueue(processor, "x")
    assert 2 == await w.drain(processor)
    (letter,) = await w.dead_letters(processor)
    assert (id_, 2, "KeyError", []) == (letter.id, letter.attempts, letter.error, w.done)


async def test_the_nth_attempt_of_each_job_fails(world):
    """Attempts are counted for each job."""
    w = world()
    processor = w.processor(fail_attempts(w.process, 2))
    for data in "abc":
        await w.enqueue(processor, data)
    assert (3, ["a", "b", "c"]) == (await w.drain(processor), w.done)


async def test_an_outage_is_not_waited_for(world):
    """The breaks of a postponing handler pass on the clock, and cost no attempt."""
    w = world()
    outages = [CircuitOpenError("mail", 5.0), ConnectionRefusedError(), Postpone(7.0)]
    attempts = []

    def process(data):
        attempts.append(current_job().attempt)
        if outages:
            raise outages.pop()

    processor = w.processor(process)
    await w.enqueue(processor, "x")
    assert 4 == await w.drain(processor)
    assert [1, 1, 1, 1] == attempts
    assert w.clock() >= 1012.0


async def test_a_handler_may_enqueue(world):
    """What it adds is handled, too, in the same run."""
    w = world()

    if world is AsyncWorld:

        async def process(left):
            w.done.append(left)
            if left:
                await processor.enqueue(left - 1)
    else:

        def process(left):
            w.done.append(left)
            if left:
                processor.enqueue(left - 1)

    processor = w.processor(process)
    await w.enqueue(processor, 3)
    assert (4, [3, 2, 1, 0]) == (await w.drain(processor), w.done)


async def test_for_ever_has_an_end(world):
    """A handler that always postpones is told after `limit` jobs."""
    w = world()

    def process(data):
        raise Postpone(1.0)

    processor = w.processor(process)
    await w.enqueue(processor, "x")
    with pytest.raises(QueueError, match="50 jobs were handled and the queue is still not empty"):
        await w.drain(processor, limit=50)


async def test_a_real_clock_is_refused(world):
    """It would have to be waited for; nothing is handled."""
    w = world()
    del w.options["clock"]
    processor = w.processor()
    with pytest.raises(QueueError, match=r"QueueProcessor\(\.\.\., clock=FakeClock"):
        await w.drain(processor)
    assert [] == w.done


async def test_another_clock_in_the_store_is_refused(world):
    """A store that counts delays by a clock that nobody moves would never come to its job."""
    w = world(store=MemoryQueue(clock=FakeClock()))
    with pytest.raises(QueueError, match="the store must have the clock of the processor"):
        await w.drain(w.processor())


async def test_a_store_may_be_given(world):
    """With the same clock it is as good as the processor's own."""
    w = world()
    w.options["store"] = MemoryQueue(clock=w.clock)
    processor = w.processor()
    await w.enqueue(processor, "x", delay=5.0)
    assert (1, ["x"]) == (await w.drain(processor), w.done)


async def test_enqueueing_starts_no_workers(world):
    """A clock that stands still cannot be waited for; until it is drained nothing runs."""
    w = world()
    processor = w.processor()
    await w.enqueue(processor, "x")
    assert ("new", 1) == (processor.get_stats().state, processor.get_stats().waiting)


async def test_an_open_circuit_is_not_waited_for(world):
    """A breaker that shares the clock is asked again when it lets a probe through."""
    w = world()
    breaker = CircuitBreaker(failure_threshold=1, reset_timeout=30.0, jitter=0.0, clock=w.clock)
    answers = [OSError("down"), OSError("still down"), None]

    def call():
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        w.done.append("mailed")

    def process(data):
        breaker.execute(call)

    processor = w.processor(process)
    await w.enqueue(processor, "x")
    assert 5 >= await w.drain(processor)
    assert (["mailed"], "closed") == (w.done, breaker.get_state())


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
async def test_what_ends_the_process_propagates_and_is_forgotten(world, end):
    """The job waits again, and nothing of it stops a later run."""
    w = world()
    raised = iter([end])

    def process(data):
        error = next(raised, None)
        if error is not None:
            raise error
        w.done.append(data)

    processor = w.processor(process if world is SyncWorld else _as_async(process))
    await w.enqueue(processor, "x")
    with pytest.raises(end):
        await w.drain(processor)
    assert (1, "new") == (processor.get_stats().waiting, processor.get_stats().state)
    assert not processor._core.stop_is_requested
    await w.drain(processor)
    assert ["x"] == w.done


def _as_async(process):
    async def process_async(data):
        process(data)

    return process_async


# --- fail_attempts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("planned", "expected"),
    [
        (None, "RuntimeError('planned failure')"),
        (ValueError("as is"), "ValueError('as is')"),
        (LookupError, "LookupError()"),
        (lambda: LookupError("made"), "LookupError('made')"),
    ],
    ids=["default", "instance", "class", "function"],
)
def test_the_error_is_the_one_that_was_planned(planned, expected):
    """An exception, its class, or a function that makes one."""
    errors = []
    processor = QueueProcessor(
        fail_attempts(print, 1, error=planned),
        clock=FakeClock(),
        max_retries=0,
        on_error=lambda error, job: errors.append(repr(error)),
    )
    processor.enqueue("x")
    drain_queue(processor)
    assert [expected] == errors


@pytest.mark.parametrize("attempts", [(), (0,), (1, -1)])
def test_attempts_that_never_come_are_refused(attempts):
    """A test that plans them would prove nothing."""
    with pytest.raises(ValueError, match="attempts count from 1"):
        fail_attempts(print, *attempts)


async def test_a_handler_keeps_its_name(world):
    """Besides the failures it is the handler."""
    w = world()
    planned = fail_attempts(w.process, 1)
    assert "process" == planned.__name__


def test_outside_of_a_queue_there_are_no_attempts():
    """A planned handler that is called directly says so."""
    with pytest.raises(QueueError, match="only inside a handler"):
        fail_attempts(print, 1)("x")


def test_an_object_can_be_an_async_handler():
    """Its colour is that of its `__call__`."""

    class Handler:
        async def __call__(self, data):
            return data

    made = fail_attempts(Handler(), 1)("x")
    made.close()
    assert "coroutine" == type(made).__name__
