"""For your tests and ours: a clock moved by hand, a hook that remembers, a queue run to empty.

A handler is tested as it will run, retries and delays included, without a thread and without
waiting:

```python
clock = FakeClock()
flaky = fail_attempts(handle, 1, 2)
processor = QueueProcessor(flaky, clock=clock)
processor.enqueue(...)
assert drain_queue(processor) == 3
```
"""

# ruff: noqa: SLF001 - these helpers stand in for a processor's own threads and tasks

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from supabase_resilience._checks import is_async
from supabase_resilience.errors import QueueError
from supabase_resilience.events import Event
from supabase_resilience.queues._async import AsyncQueueProcessor
from supabase_resilience.queues._jobs import current_job
from supabase_resilience.queues._sync import QueueProcessor

__all__ = ["FakeClock", "RecordingHook", "drain_queue", "drain_queue_async", "fail_attempts"]

Handler = TypeVar("Handler", bound=Callable[[Any], object])


class FakeClock:
    """A clock that stands still until `advance()`: `CircuitBreaker(clock=FakeClock())`."""

    stands_still = True

    def __init__(self, now: float = 1000.0) -> None:
        self.now: float = now

    def __call__(self) -> float:
        """The current time in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass; raises ValueError for a negative number, as clocks don't go back."""
        if not seconds >= 0:  # NaN is neither
            raise ValueError(f"seconds must be >= 0, got {seconds!r}")
        self.now += seconds


class RecordingHook:
    """Remembers the events it is told, in order: `CircuitBreaker(on_event=RecordingHook())`."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Remember one event."""
        self.events.append(event)

    @property
    def names(self) -> list[str]:
        """The dotted names of the events, in order."""
        return [event.name for event in self.events]


# --- queues ---------------------------------------------------------------------------------------


def drain_queue(processor: QueueProcessor, *, limit: int = 10_000) -> int:
    """Run a memory queue to empty, here and now; how often a job was handled.

    Jobs run one after another in the calling thread. Delays, retries and the breaks of an outage
    are not waited for: the processor's `FakeClock` is moved on instead, so it needs
    `QueueProcessor(..., clock=FakeClock())`, which does not start by itself. `handler_timeout` and
    `strict_order` have no meaning here.

    Raises `QueueError` for another store or clock, while workers run, and after `limit` jobs, as a
    handler that postpones for ever never ends; and whatever a handler raises that is no
    `Exception`.
    """
    by_hand = _ByHand(processor, limit)
    while by_hand.has_more():
        processor._run_next()
    return by_hand.handled


async def drain_queue_async(processor: AsyncQueueProcessor, *, limit: int = 10_000) -> int:
    """The same for an `AsyncQueueProcessor`: one job after another, in the calling task."""
    by_hand = _ByHand(processor, limit)
    while by_hand.has_more():
        await processor._run_next()
    return by_hand.handled


class _ByHand:
    """What stands in for the waiting of workers: the clock is moved to the next job."""

    def __init__(self, processor: QueueProcessor | AsyncQueueProcessor, limit: int) -> None:
        self.handled = 0
        self._processor = processor
        self._limit = limit
        self._clock = _clock_of(processor)

    def has_more(self) -> bool:
        """Whether there is another job, which is due now and counted as handled."""
        brake = self._processor._core.books.brake
        due = self._processor._next_due()
        if due is None:
            return False
        if self.handled >= self._limit:
            raise QueueError(
                f"{self.handled} jobs were handled and the queue is still not empty; "
                "does a handler postpone or enqueue for ever? If not, give a higher limit="
            )
        # Set rather than added to: a sum of floats might end up just before its time.
        self._clock.now = max(self._clock.now + (brake.wait() or 0.0), due)
        brake.try_one()
        self.handled += 1
        return True


def _clock_of(processor: QueueProcessor | AsyncQueueProcessor) -> FakeClock:
    core, kind = processor._core, type(processor).__name__
    clock = core.clock
    if not isinstance(clock, FakeClock) or core.is_durable:
        raise QueueError(
            "only a queue in memory whose clock can be moved is run to empty: "
            f"{kind}(..., clock=FakeClock())"
        )
    if core.ready.clock is not clock:
        raise QueueError(
            "the store must have the clock of the processor: MemoryQueue(clock=clock) and "
            f"{kind}(..., store=store, clock=clock)"
        )
    if processor.get_stats().state not in {"new", "stopped"}:
        raise QueueError("its workers run; stop() them first, or don't start them at all")
    return clock


Failure = BaseException | type[BaseException] | Callable[[], BaseException]


def fail_attempts(process: Handler, *attempts: int, error: Failure | None = None) -> Handler:
    """A handler that raises at the given attempts of each job, and else is `process`.

    `attempts` count from 1, as `current_job().attempt` does: an error that is an outage spends
    none, so that it is raised again and again. `error` is an exception, its class, or a function
    that makes one; by default `RuntimeError("planned failure")`. It works inside a queue only, and
    is sync or async as `process` is.
    """
    if not attempts or any(attempt < 1 for attempt in attempts):
        raise ValueError(f"attempts count from 1, and there must be one, got {attempts!r}")

    def fail_if_planned() -> None:
        if current_job().attempt in attempts:
            raise _made(error)

    @functools.wraps(process)
    def planned(data: Any) -> object:
        fail_if_planned()
        return process(data)

    @functools.wraps(process)
    async def planned_async(data: Any) -> object:
        fail_if_planned()
        return await cast("Any", process(data))

    return cast("Handler", planned_async if is_async(process) else planned)


def _made(error: Failure | None) -> BaseException:
    if error is None:
        return RuntimeError("planned failure")
    return error if isinstance(error, BaseException) else error()
