"""queue_processor(client, name, process): the processor of the client's colour on its queue."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypedDict, Unpack, overload

from supabase import AsyncClient, Client

from supabase_resilience._clock import Clock
from supabase_resilience.events import Hook
from supabase_resilience.queues._async import AsyncQueueProcessor
from supabase_resilience.queues._jobs import Job
from supabase_resilience.queues._supabase import AsyncSupabaseQueue, SupabaseQueue
from supabase_resilience.queues._sync import QueueProcessor

__all__ = ["queue_processor"]


class _Options(TypedDict, total=False):
    concurrency: int
    retry_delay: float
    max_retries: int
    backoff: float
    max_retry_delay: float
    visibility_timeout: float
    handler_timeout: float | None
    max_age: float | None
    max_deliveries: int
    lanes: Mapping[int, str] | None
    strict_order: bool
    on_event: Hook
    clock: Clock


class QueueOptions(_Options, total=False):
    """What `queue_processor()` passes on to `QueueProcessor`."""

    on_error: Callable[[Exception, Job], object] | None


class AsyncQueueOptions(_Options, total=False):
    """What `queue_processor()` passes on to `AsyncQueueProcessor`."""

    on_error: Callable[[Exception, Job], object | Awaitable[object]] | None


@overload
def queue_processor(
    client: Client,
    queue: str,
    process: Callable[[Any], object] | None,
    **options: Unpack[QueueOptions],
) -> QueueProcessor: ...
@overload
def queue_processor(
    client: AsyncClient,
    queue: str,
    process: Callable[[Any], object] | None,
    **options: Unpack[AsyncQueueOptions],
) -> AsyncQueueProcessor: ...
def queue_processor(
    client: Client | AsyncClient,
    queue: str,
    process: Callable[[Any], object] | None,
    **options: Any,
) -> QueueProcessor | AsyncQueueProcessor:
    """A processor for the Supabase Queue named `queue`: sync for a `Client`, else async.

    The same as `QueueProcessor(process, store=SupabaseQueue(client, queue), **options)`. Pass a
    protected client, and every call of the queue goes through its breaker and retries.
    `process=None` makes a producer. Raises `TypeError` for what is no supabase-py client.
    """
    if isinstance(client, AsyncClient):
        return AsyncQueueProcessor(process, store=AsyncSupabaseQueue(client, queue), **options)
    return QueueProcessor(process, store=SupabaseQueue(client, queue), **options)
