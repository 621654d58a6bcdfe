"""realtime_listener(client, table): the listener of the client's colour."""

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack, overload

from supabase import AsyncClient, Client

from supabase_resilience.events import Hook
from supabase_resilience.listener._async import AsyncRealtimeListener
from supabase_resilience.listener._levels import Recovery
from supabase_resilience.listener._settings import (
    EventKind,
    OnHandlerError,
    Overflow,
    StartFrom,
    TokenSource,
)
from supabase_resilience.listener._sync import RealtimeListener

__all__ = ["realtime_listener"]


class ListenerOptions(TypedDict, total=False):
    """What `realtime_listener()` passes on."""

    schema: str | None
    event: EventKind
    filter: str | None
    id_column: str | Sequence[str]
    recovery: Recovery | None
    start_from: StartFrom
    cursor: Any
    token: TokenSource
    catch_up_interval: float
    ping_interval: float
    buffer_size: int
    overflow: Overflow
    on_handler_error: OnHandlerError
    on_event: Hook


@overload
def realtime_listener(
    client: Client, table: str, **options: Unpack[ListenerOptions]
) -> RealtimeListener: ...
@overload
def realtime_listener(
    client: AsyncClient, table: str, **options: Unpack[ListenerOptions]
) -> AsyncRealtimeListener: ...
def realtime_listener(
    client: Client | AsyncClient, table: str, **options: Any
) -> RealtimeListener | AsyncRealtimeListener:
    """A listener for the changes of `table`: sync for a `Client`, else async.

    The same as `RealtimeListener(client, table, **options)`. Raises `TypeError` for what is no
    supabase-py client.
    """
    if isinstance(client, AsyncClient):
        return AsyncRealtimeListener(client, table, **options)
    return RealtimeListener(client, table, **options)
