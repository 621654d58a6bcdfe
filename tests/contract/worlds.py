"""The two colours of supabase-py behind one face, so that each behaviour is written down once.

A world makes clients over a transport that the test plays itself, and runs what they return: a
value in the sync world, an awaitable in the async one.
"""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

import httpx
from supabase import AsyncClient, Client
from supabase.lib.client_options import AsyncClientOptions, SyncClientOptions

URL = "https://project.supabase.test"
KEY = "sb_publishable_key"
TOKEN = {
    "access_token": "token-of-ada",
    "token_type": "bearer",
    "expires_in": 3600,
    "refresh_token": "refresh",
    "user": {
        "id": "00000000-0000-0000-0000-000000000001",
        "aud": "authenticated",
        "app_metadata": {},
        "user_metadata": {},
        "created_at": "2026-01-01T00:00:00Z",
    },
}

Handler = Callable[[httpx.Request], httpx.Response]


class SyncWorld:
    """`Client` over `httpx.Client`."""

    colour = "sync"
    client_class = Client
    session_class = httpx.Client

    def __init__(self) -> None:
        self._sessions: list[httpx.Client] = []

    def session(self, handler: Handler, **options: Any) -> httpx.Client:
        """An HTTP session whose requests `handler` answers."""
        session = httpx.Client(transport=httpx.MockTransport(handler), **options)
        self._sessions.append(session)
        return session

    def client(self, session: httpx.Client, *, url: str = URL, cls: Any = Client, **options: Any):
        """A client without protection, made as supabase-py documents it."""
        options = {"auto_refresh_token": False, **options}
        return cls.create(url, KEY, SyncClientOptions(httpx_client=session, **options))

    def run(self, result: Any) -> Any:
        """What a call of a client returned."""
        return result

    def close(self) -> None:
        """End all sessions."""
        for session in self._sessions:
            session.close()


class AsyncWorld:
    """`AsyncClient` over `httpx.AsyncClient`, on an event loop of its own."""

    colour = "async"
    client_class = AsyncClient
    session_class = httpx.AsyncClient

    def __init__(self) -> None:
        self._sessions: list[httpx.AsyncClient] = []
        self._runner = asyncio.Runner()

    def session(self, handler: Handler, **options: Any) -> httpx.AsyncClient:
        """An HTTP session whose requests `handler` answers."""
        session = httpx.AsyncClient(transport=httpx.MockTransport(handler), **options)
        self._sessions.append(session)
        return session

    def client(
        self, session: httpx.AsyncClient, *, url: str = URL, cls: Any = AsyncClient, **options: Any
    ):
        """A client without protection, made as supabase-py documents it."""
        options = {"auto_refresh_token": False, **options}
        return self.run(cls.create(url, KEY, AsyncClientOptions(httpx_client=session, **options)))

    def run(self, result: Any) -> Any:
        """What an awaitable becomes; anything else is taken as it is."""
        if not hasattr(result, "__await__"):
            return result
        return self._runner.run(_awaited(result), context=contextvars.copy_context())

    def close(self) -> None:
        """End all sessions and the loop."""
        for session in self._sessions:
            self.run(session.aclose())
        self._runner.close()


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


World = SyncWorld | AsyncWorld


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that arrives piece by piece; an exception or a function among them happens there."""

    def __init__(self, *pieces: Any) -> None:
        self._pieces = pieces
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece() if callable(piece) else piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.is_closed = True

    async def aclose(self) -> None:
        self.is_closed = True


class Server:
    """Answers as PostgREST would, unless it is told to answer otherwise first."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.replies: list[Any] = []

    def will(self, *replies: Any) -> None:
        """Answer the next requests so: a response, an exception, or a function of the request."""
        self.replies.extend(replies)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        if request.url.path.startswith("/auth/"):
            return httpx.Response(200, json=TOKEN)
        self.requests.append(request)
        reply = self.replies.pop(0) if self.replies else usual_reply
        if callable(reply) and not isinstance(reply, httpx.Response):
            reply = reply(request)
        if isinstance(reply, BaseException):
            raise reply
        return reply

    @property
    def count(self) -> int:
        """How many requests came in, those of Auth aside."""
        return len(self.requests)

    @property
    def tokens(self) -> list[str]:
        """Whose requests they were."""
        return [request.headers["authorization"].split()[-1] for request in self.requests]


def usual_reply(request: httpx.Request) -> httpx.Response:
    """One row, in the format that was asked for."""
    accept = request.headers.get("accept", "")
    if request.method == "HEAD":
        return httpx.Response(200, headers={"content-range": "0-0/1"})
    if "vnd.pgrst.plan" in accept:
        return httpx.Response(200, text="Seq Scan on t")
    if "csv" in accept:
        return httpx.Response(200, text="id\n1", headers={"content-type": "text/csv"})
    row = {"id": 1}
    return httpx.Response(200, json=row if "pgrst.object" in accept else [row])


def error(status: int, code: str | None = None, **headers: str) -> Handler:
    """An error: in PostgREST's words when it has a code, else an empty answer of a gateway."""

    def reply(request: httpx.Request) -> httpx.Response:
        body = {"code": code, "message": "m", "details": None, "hint": None}
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if code is None:
            return httpx.Response(status, headers=names)
        return httpx.Response(status, json=body, headers=names)

    return reply


def times(count: int, reply: Any) -> Iterable[Any]:
    """The same reply several times."""
    return [reply] * count
