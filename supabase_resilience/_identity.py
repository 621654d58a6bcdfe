"""Who a queue or a listener is: a client that no auth event reaches.

One sign-in on a shared client silently changes the role of everything else on it, so whatever runs
in the background pins its key, or asks for its token itself.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from supabase import AsyncClient, Client

from supabase_resilience._checks import check_text
from supabase_resilience.breaker import CircuitBreaker
from supabase_resilience.events import Event
from supabase_resilience.protect import AsyncProtectedClient, ProtectedClient, protect

__all__ = ["Identity", "Token", "check_token", "identity_of", "wrong_client"]

P = TypeVar("P", ProtectedClient, AsyncProtectedClient)
Token = str | Callable[[], str | None] | None


class Identity(Generic[P]):
    """A protected client, pinned to its key or to what `token` says."""

    def __init__(self, client: P, token: Token) -> None:
        self._origin: P = client
        self._token = token
        self._pinned: tuple[str | None, P] | None = None
        self._apis: dict[str, tuple[Any, Any]] = {}

    def api(self, schema: str) -> Any:
        """The PostgREST client of a schema; the same one until the client's own is another."""
        postgrest: Any = self.client().postgrest
        known = self._apis.get(schema)
        if known is None or known[0] is not postgrest:
            known = self._apis[schema] = postgrest, postgrest.schema(schema)
        return known[1]

    def client(self) -> P:
        """The client to use now; a new one only when `token()` returns another token."""
        token = self._token() if callable(self._token) else self._token
        pinned = self._pinned
        if pinned is None or pinned[0] != token:
            pinned = self._pinned = token, self._pin(token)
        return pinned[1]

    @property
    def bearer(self) -> str:
        """The token of its requests: that of the user it was made for, else its key."""
        token = self._token() if callable(self._token) else self._token
        if token is not None:
            return token
        own = self._origin._authorization  # noqa: SLF001 - our own class
        return self._origin.supabase_key if own is None else own.removeprefix("Bearer ")

    def _pin(self, token: str | None) -> P:
        origin: P = self._origin
        if token is None and origin._authorization is not None:  # noqa: SLF001 - our own class
            return origin  # made by as_user()
        return origin.as_user(origin.supabase_key if token is None else token)


def identity_of(client: Any, token: Token, *, unguarded: str) -> Identity[Any]:
    """The identity of a client; one that asked for no protection gets only timeouts and a pool.

    `unguarded` names the breaker that never opens.
    """
    protected: Any = client
    if not isinstance(client, ProtectedClient | AsyncProtectedClient):
        protected = protect(cast("Client", client), breaker=_no_breaker(unguarded), retry=None)
    return Identity(protected, token)


def check_token(token: Any) -> None:
    """A non-empty string, a function that returns one, or None."""
    if token is not None and not callable(token):
        check_text("token", token)


def wrong_client(client: object, wanted: type, instead: str) -> str:
    """What to say of a client of the other colour, or of no client at all."""
    is_other = isinstance(client, Client | AsyncClient)
    return f"client must be a supabase {wanted.__name__}, got {client!r}" + (
        f"; use {instead} for it" if is_other else ""
    )


def _no_breaker(name: str) -> CircuitBreaker:
    breaker = CircuitBreaker(name, on_event=_tell_nobody)
    breaker.disable()
    return breaker


def _tell_nobody(_: Event) -> None:
    pass
