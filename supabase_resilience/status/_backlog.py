"""What Supabase says of the queues: asked now and then while somebody looks, never waited for.

A processor's own statistics are of its process; how long the oldest job has been waiting only the
queue knows.
"""

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from supabase_resilience import _clock
from supabase_resilience.failures import classify
from supabase_resilience.queues import AsyncQueueProcessor, QueueMetrics, QueueProcessor

__all__ = ["Backlog", "Known"]

_EVERY = 5.0
_TIMEOUT = 15.0


@dataclass(frozen=True, slots=True)
class Known:
    """The last answer, of the Unix time `at`; `failure` says why there is no newer one."""

    metrics: QueueMetrics | None = None
    at: float | None = None
    failure: str | None = None


class Backlog:
    """The queues among the parts, and what is known of them."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        kinds = QueueProcessor | AsyncQueueProcessor
        self._queues = {name: part for name, part in parts.items() if isinstance(part, kinds)}
        self._known = {name: Known() for name in self._queues}
        self._asked_at: dict[str, float] = {}
        self._asking: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def look(self) -> Mapping[str, Known]:
        """What is known; asks again if that is old. For the event loop of the async queues."""
        now = _clock.monotonic()
        for name, queue in self._queues.items():
            asked_at = self._asked_at.get(name)
            is_due = asked_at is None or now - asked_at >= _EVERY
            if is_due and name not in self._asking:
                self._asked_at[name] = now
                self._asking.add(name)
                self._ask(name, queue)
        return dict(self._known)

    def answers(self) -> Mapping[str, QueueMetrics]:
        """What the queues hold, but for those that cannot be asked now; asks again as `look()`."""
        found = self.look().items()
        return {
            name: known.metrics
            for name, known in found
            if known.metrics is not None and known.failure is None
        }

    def _ask(self, name: str, queue: QueueProcessor | AsyncQueueProcessor) -> None:
        if isinstance(queue, QueueProcessor):
            # No thread of a pool: a pool is waited for when the process ends.
            threading.Thread(
                target=self._ask_sync, args=(name, queue), name=f"status of {name}", daemon=True
            ).start()
            return
        task = asyncio.get_running_loop().create_task(self._ask_async(name, queue))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _ask_sync(self, name: str, queue: QueueProcessor) -> None:
        try:
            self._learn(name, queue.metrics())
        except Exception as error:  # noqa: BLE001 - whatever it is, the page goes on
            self._fail(name, error)
        finally:
            self._asking.discard(name)

    async def _ask_async(self, name: str, queue: AsyncQueueProcessor) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                self._learn(name, await queue.metrics())
        except Exception as error:  # noqa: BLE001 - whatever it is, the page goes on
            self._fail(name, error)
        finally:
            self._asking.discard(name)

    def _learn(self, name: str, metrics: QueueMetrics) -> None:
        self._known[name] = Known(metrics, _clock.wall())

    def _fail(self, name: str, error: Exception) -> None:
        known = self._known[name]
        self._known[name] = Known(known.metrics, known.at, classify(error).reason)
