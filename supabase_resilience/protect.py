"""protect(client): the same supabase-py client, its queries guarded by breaker, retry and timeouts.

Every PostgREST call of supabase-py ends in one `session.request(…)`, and every builder comes from
the client's public `postgrest` property. So a protected client is a subclass of yours that differs
in that property: it answers a PostgREST client whose session is guarded. Builders, results and
exceptions are supabase-py's own, and the guard sees what they hide: the status and the headers.
"""

import os
from typing import Any, TypeVar, cast, overload

import httpx
from postgrest import AsyncPostgrestClient, SyncPostgrestClient
from storage3 import AsyncStorageClient, SyncStorageClient
from supabase import AsyncClient, Client
from supabase_functions import AsyncFunctionsClient, SyncFunctionsClient

from supabase_resilience._checks import check_text
from supabase_resilience._session import AsyncGuardedSession, Guard, GuardedSession
from supabase_resilience.breaker import CircuitBreaker
from supabase_resilience.breakers import CircuitBreakers
from supabase_resilience.errors import ResilienceError
from supabase_resilience.retry import RetryConfig

__all__ = ["AsyncProtectedClient", "ProtectedClient", "protect"]

T = TypeVar("T")
_DEFAULT_RETRY = RetryConfig()


@overload
def protect(
    client: Client,
    *,
    breaker: CircuitBreaker | CircuitBreakers | None = None,
    retry: RetryConfig | None = ...,
) -> "ProtectedClient": ...
@overload
def protect(
    client: AsyncClient,
    *,
    breaker: CircuitBreaker | CircuitBreakers | None = None,
    retry: RetryConfig | None = ...,
) -> "AsyncProtectedClient": ...
def protect(
    client: Client | AsyncClient,
    *,
    breaker: CircuitBreaker | CircuitBreakers | None = None,
    retry: RetryConfig | None = _DEFAULT_RETRY,
) -> "ProtectedClient | AsyncProtectedClient":
    """Your client, guarded: queries end in time, retry with care, and leave a sick server alone.

    Returns a subclass of your client's own class: `isinstance(protect(client), Client)` holds, and
    every builder is supabase-py's. `client` itself stays as it was, unguarded. Both are one
    session: who signs in on one is signed in on the other.

    - Guarded is what goes through PostgREST: `table`, `from_`, `rpc`, `schema(…)`, `postgrest`.
      For `auth`, `storage` and `functions` there is `resilient_http_client()`.
    - `breaker`: share one among clients of the same project. None makes `CircuitBreakers()`: one
      for the project, one for each table or function that fails on its own. Each attempt is
      judged, by its status, headers and body (`classify`).
    - `retry`: see `RetryConfig`; None means one attempt. postgrest's own retry is off inside.
    - A call ends within `retry.total_timeout` seconds, sooner within `deadline()`. What is left
      when a phase begins is its limit, so these can take longer: in a sync client, looking up the
      host's name (no limit) and a host of which several addresses swallow the connection (each
      takes as long); over HTTP/1.1, a server that sends its headers drop by drop (each drop takes
      as long) or falls silent amid the body (as long once more).
    - A sync client made without an `httpx_client` gets a session of its own with HTTP/1.1, since
      an HTTP/2 session of httpx breaks when threads share it.

    Raises `CircuitOpenError` for a call that was refused; all else that is raised is httpx's or
    postgrest's, unchanged. `TypeError` when `client` is no supabase-py client or protected already.
    """
    if isinstance(client, ProtectedClient | AsyncProtectedClient):
        raise TypeError(f"client is protected already: {client!r}; protect the original once")
    if breaker is not None and not isinstance(breaker, CircuitBreaker | CircuitBreakers):
        raise TypeError(
            f"breaker must be a CircuitBreaker, CircuitBreakers or None, got {breaker!r}"
        )
    if retry is not None and not isinstance(retry, RetryConfig):
        raise TypeError(f"retry must be a RetryConfig or None, got {retry!r}")
    guard = Guard(breaker or CircuitBreakers(), retry or RetryConfig(attempts=1))
    if isinstance(client, Client):
        return _subclass_of(client, ProtectedClient)(client, guard, None)
    if isinstance(client, AsyncClient):
        return _subclass_of(client, AsyncProtectedClient)(client, guard, None)
    raise TypeError(f"client must be a supabase Client or AsyncClient, got {client!r}")


def _subclass_of(client: object, protected: type[T]) -> type[T]:
    """A protected class that is also the class of `client`, so that its own methods are guarded."""
    own = type(client)
    if own in {Client, AsyncClient}:
        return protected
    return cast("type[T]", type(f"Protected{own.__name__}", (protected, own), {}))


# --- the clients --------------------------------------------------------------------------------


class ProtectedClient(Client):
    """A `Client` whose queries are guarded; made by `protect()`.

    `breaker` is the breaker in use. All other attributes are those of the original client.
    """

    def __init__(self, client: Client, guard: Guard, authorization: str | None) -> None:
        # Client.__init__ would make a second auth session; this one borrows the original's.
        self.breaker: CircuitBreaker | CircuitBreakers = guard.breakers
        self._original = client
        self._guard = guard
        self._authorization = authorization
        self._derived: tuple[SyncPostgrestClient, SyncPostgrestClient] | None = None
        self._own_session = _OwnSession(client) if client.options.httpx_client is None else None

    def __getattr__(self, name: str) -> Any:
        return getattr(_original_of(self), name)

    def __repr__(self) -> str:
        """Show what is protected by what."""
        return f"<ProtectedClient {self._original.supabase_url} {self.breaker!r}>"

    @property
    def postgrest(self) -> SyncPostgrestClient:
        """The guarded PostgREST client; follows the original's at every auth event."""
        source, derived = self._original.postgrest, self._derived
        if derived is None or derived[0] is not source:
            derived = self._derived = source, self._derive(source)
        return derived[1]

    def _derive(self, source: SyncPostgrestClient) -> SyncPostgrestClient:
        client = SyncPostgrestClient(
            str(source.base_url),
            schema=source.headers["Accept-Profile"],
            headers=dict(source.headers),
            http_client=GuardedSession(self._own_session or source, self._guard),
            retry_enabled=False,
        )
        _identify(client, source, self._authorization)
        return client

    def as_user(self, jwt: str) -> "ProtectedClient":
        """The same pool, breaker and limits, with this user's Authorization (row level security).

        For a request handler: cheap enough to make one per request. It is pinned: no auth event
        changes it, and it changes no other client. It serves queries; `storage` and `functions`
        refuse, since theirs would carry the original's identity.
        """
        check_text("jwt", jwt)
        client = type(self)(self._original, self._guard, f"Bearer {jwt}")
        client._own_session = self._own_session  # noqa: SLF001 - our own class
        return client

    @property
    def storage(self) -> SyncStorageClient:
        """The original's, not guarded."""
        _refuse_if_pinned("storage", self._authorization)
        return self._original.storage

    @property
    def functions(self) -> SyncFunctionsClient:
        """The original's, not guarded."""
        _refuse_if_pinned("functions", self._authorization)
        return self._original.functions


class AsyncProtectedClient(AsyncClient):
    """An `AsyncClient` whose queries are guarded; made by `protect()`.

    `breaker` is the breaker in use. All other attributes are those of the original client.
    """

    def __init__(self, client: AsyncClient, guard: Guard, authorization: str | None) -> None:
        # AsyncClient.__init__ would make a second auth session; this one borrows the original's.
        self.breaker: CircuitBreaker | CircuitBreakers = guard.breakers
        self._original = client
        self._guard = guard
        self._authorization = authorization
        self._derived: tuple[AsyncPostgrestClient, AsyncPostgrestClient] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(_original_of(self), name)

    def __repr__(self) -> str:
        """Show what is protected by what."""
        return f"<AsyncProtectedClient {self._original.supabase_url} {self.breaker!r}>"

    @property
    def postgrest(self) -> AsyncPostgrestClient:
        """The guarded PostgREST client; follows the original's at every auth event."""
        source, derived = self._original.postgrest, self._derived
        if derived is None or derived[0] is not source:
            derived = self._derived = source, self._derive(source)
        return derived[1]

    def _derive(self, source: AsyncPostgrestClient) -> AsyncPostgrestClient:
        client = AsyncPostgrestClient(
            str(source.base_url),
            schema=source.headers["Accept-Profile"],
            headers=dict(source.headers),
            http_client=AsyncGuardedSession(source, self._guard),
            retry_enabled=False,
        )
        _identify(client, source, self._authorization)
        return client

    def as_user(self, jwt: str) -> "AsyncProtectedClient":
        """The same pool, breaker and limits, with this user's Authorization (row level security).

        For a request handler: cheap enough to make one per request. It is pinned: no auth event
        changes it, and it changes no other client. It serves queries; `storage` and `functions`
        refuse, since theirs would carry the original's identity.
        """
        check_text("jwt", jwt)
        return type(self)(self._original, self._guard, f"Bearer {jwt}")

    @property
    def storage(self) -> AsyncStorageClient:
        """The original's, not guarded."""
        _refuse_if_pinned("storage", self._authorization)
        return self._original.storage

    @property
    def functions(self) -> AsyncFunctionsClient:
        """The original's, not guarded."""
        _refuse_if_pinned("functions", self._authorization)
        return self._original.functions


def _original_of(protected: Any) -> Any:
    # Read past __getattr__: a half-made object (copy, pickle) has no original yet.
    try:
        return vars(protected)["_original"]
    except KeyError:
        raise AttributeError("not protected yet") from None


def _refuse_if_pinned(service: str, authorization: str | None) -> None:
    if authorization is not None:
        raise ResilienceError(
            f"as_user() serves queries only: {service} here would act as the original client. "
            f"Sign the user in on a client of its own for {service}"
        )


def _identify(derived: Any, source: Any, authorization: str | None) -> None:
    """Share the source's headers, so that `postgrest.auth(token)` reaches both; or pin our own."""
    if authorization is None:
        derived.headers = source.headers
        derived.basic_auth = source.basic_auth
    else:
        derived.headers["Authorization"] = authorization


class _OwnSession:
    """An HTTP/1.1 session with supabase-py's settings; a new one after a fork."""

    def __init__(self, client: Client) -> None:
        self._timeout = client.options.postgrest_client_timeout
        self._by_pid: dict[int, httpx.Client] = {}

    @property
    def session(self) -> httpx.Client:
        pid = os.getpid()
        session = self._by_pid.get(pid)
        if session is None:
            session = httpx.Client(timeout=self._timeout, follow_redirects=True)
            # One step, so that threads that start together share one pool; no lock, as a fork
            # could leave it held.
            session = self._by_pid.setdefault(pid, session)
        return session
