"""server_side_verification(client, table): the verification of the client's colour."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict, Unpack, overload

from supabase import AsyncClient, Client

from supabase_resilience._clock import Clock
from supabase_resilience._identity import Token
from supabase_resilience.events import Hook
from supabase_resilience.verification._async import AsyncServerSideVerification
from supabase_resilience.verification._rules import Rule
from supabase_resilience.verification._sync import ServerSideVerification

__all__ = ["server_side_verification"]


class VerificationOptions(TypedDict, total=False):
    """What `server_side_verification()` passes on."""

    schema: str | None
    id_column: str | Sequence[str]
    rules: Sequence[Rule]
    data_validator: Callable[[dict[str, Any]], Any] | None
    fix_missing_data: Callable[[Any], Any] | None
    interval: float
    batch_size: int
    grace: float
    ranges: int
    dry_run: bool
    max_fixes: int
    max_share: float
    changed_since: str | None
    overlap: float
    full_every: int
    lease: str | None
    cursor: Any
    token: Token
    throttle: Callable[[], Any] | None
    only_between: Sequence[str] | None
    on_event: Hook
    clock: Clock


@overload
def server_side_verification(
    client: Client, table: str, **options: Unpack[VerificationOptions]
) -> ServerSideVerification: ...
@overload
def server_side_verification(
    client: AsyncClient, table: str, **options: Unpack[VerificationOptions]
) -> AsyncServerSideVerification: ...
def server_side_verification(
    client: Client | AsyncClient, table: str, **options: Any
) -> ServerSideVerification | AsyncServerSideVerification:
    """A verification of `table`: sync for a `Client`, else async.

    The same as `ServerSideVerification(client, table, **options)`. Raises `TypeError` for what is
    no supabase-py client.
    """
    if isinstance(client, AsyncClient):
        return AsyncServerSideVerification(client, table, **options)
    return ServerSideVerification(client, table, **options)
