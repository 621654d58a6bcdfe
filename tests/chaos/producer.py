"""Enqueues the jobs of a run from a thread of its own, and insists until each has been accepted."""

import asyncio
import random
import threading
from collections.abc import Awaitable, Iterator
from typing import Any

from supabase import acreate_client, create_client

from supabase_resilience import (
    AsyncQueueProcessor,
    AsyncSupabaseQueue,
    CircuitBreaker,
    QueueProcessor,
    RetryConfig,
    SupabaseQueue,
    classify,
    idempotent,
    protect,
)
from supabase_resilience.local import LocalSupabase

PATIENT = RetryConfig(attempts=100, wait_initial=0.05, wait_max=1.0, total_timeout=120.0)


class Producer(threading.Thread):
    """A try whose answer is lost is repeated with the same ids, which is what `idempotent` is for.

    `unsure` are the jobs for which that was given up: they may be in the queue twice, under two
    ids.
    """

    def __init__(
        self, local: LocalSupabase, queue: str, colour: str, jobs: list[dict[str, Any]], seed: int
    ) -> None:
        super().__init__(name="producer", daemon=True)
        self._local = local
        self._queue = queue
        self._colour = colour
        self._jobs = jobs
        self._random = random.Random(seed)
        self.accepted = 0
        self.unsure = 0
        self.error: Exception | None = None

    @property
    def is_over(self) -> bool:
        """Raises what it has failed with."""
        if self.error is not None:
            raise self.error
        return self.accepted == len(self._jobs)

    def run(self) -> None:
        try:
            if self._colour == "async":
                asyncio.run(self._enqueue_async())
            else:
                self._enqueue_sync()
        except Exception as error:  # noqa: BLE001 - told in `is_over`
            self.error = error

    def _batches(self) -> Iterator[list[dict[str, Any]]]:
        """From one to twenty at once."""
        while self.accepted < len(self._jobs):
            size = self._random.randint(1, 20)
            yield self._jobs[self.accepted : self.accepted + size]

    def _enqueue_sync(self) -> None:
        key = self._local.secret_key
        client = protect(create_client(self._local.url, key), breaker=_patient(), retry=PATIENT)
        queue = QueueProcessor(None, store=SupabaseQueue(client, self._queue))
        for batch in self._batches():
            try:
                with idempotent():
                    _enqueue(queue, batch)
            except Exception as error:  # noqa: BLE001 - looked at there
                self._failed(batch, error)
            else:
                self.accepted += len(batch)

    async def _enqueue_async(self) -> None:
        client = await acreate_client(self._local.url, self._local.secret_key)
        guarded = protect(client, breaker=_patient(), retry=PATIENT)
        queue = AsyncQueueProcessor(None, store=AsyncSupabaseQueue(guarded, self._queue))
        for batch in self._batches():
            try:
                with idempotent():
                    await _enqueue(queue, batch)
            except Exception as error:  # noqa: BLE001 - looked at there
                self._failed(batch, error)
            else:
                self.accepted += len(batch)

    def _failed(self, batch: list[dict[str, Any]], error: Exception) -> None:
        """Go on after an outage only."""
        meaning = classify(error)
        if not meaning.is_outage:
            raise error
        if meaning.write_applied != "no":
            self.unsure += len(batch)


def _enqueue(queue: Any, batch: list[dict[str, Any]]) -> Any | Awaitable[Any]:
    return queue.enqueue(batch[0]) if len(batch) == 1 else queue.enqueue_many(batch)


def _patient() -> CircuitBreaker:
    """Never opens, and pays for every retry: the producer has nothing else to do."""
    breaker = CircuitBreaker("producer", retry_budget=None, on_event=lambda _: None)
    breaker.disable()
    return breaker
