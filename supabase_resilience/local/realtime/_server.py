"""The server: wires the WAL, the subscriptions and the websockets together, and plays faults.

Everything runs on one event loop. Faults are switches on sockets and on the stream of changes, so
no other module knows of them.
"""

import asyncio
import json
import logging
import secrets
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import psycopg
from psycopg import sql
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from supabase_resilience.local.realtime._catalog import Catalog
from supabase_resilience.local.realtime._channels import Channels
from supabase_resilience.local.realtime._compiler import Compiler
from supabase_resilience.local.realtime._database import Database
from supabase_resilience.local.realtime._fanout import Commit, Fanout
from supabase_resilience.local.realtime._pgoutput import Begin, Change, Decoder, Marker, Relation
from supabase_resilience.local.realtime._phoenix import VERSION, Message
from supabase_resilience.local.realtime._sockets import Socket, Sockets
from supabase_resilience.local.realtime._subscriber import Subscriber
from supabase_resilience.local.realtime._subscriptions import Subscriptions
from supabase_resilience.local.realtime._tokens import Keyring, TokenError
from supabase_resilience.local.realtime._wal import StartError, WalReader

_HOST: Final = "127.0.0.1"
_PATHS: Final = frozenset({"/realtime/v1/websocket", "/socket/websocket"})
_MOST_FRAME_BYTES: Final = 5_000_000
_CLOSE_TIMEOUT: Final = 1.0
_PATIENCE: Final = 10.0
_CATCH_UP_TIMEOUT: Final = 5.0
_EMIT_MARK: Final = sql.SQL("SELECT pg_logical_emit_message(true, 'realtime', %s::bytea)")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Config:
    """What the server needs to know.

    `subscribe_delay`, and the time between two looks at the publication's tables, are in seconds.
    """

    dsn: str
    jwt_secret: str
    publishable_key: str
    secret_key: str
    port: int = 0
    publication: str = "supabase_realtime"
    subscribe_delay: float = 0.0
    publication_check: float = 60.0


class RealtimeServer:
    """One Realtime server on 127.0.0.1."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._keyring = Keyring(
            jwt_secret=config.jwt_secret,
            publishable_key=config.publishable_key,
            secret_key=config.secret_key,
        )
        self._sockets = Sockets()
        self._subscriptions = Subscriptions()
        self._database = Database(config.dsn)
        self._catalog = Catalog(self._database)
        self._compiler = Compiler(self._database, self._catalog, publication=config.publication)
        self._wal = WalReader(config.dsn, config.publication, self._on_wal)
        self._subscriber = Subscriber(
            self._database, self._compiler, self._subscriptions, self._wal.live
        )
        self._channels = Channels(
            self._sockets, self._keyring, self._subscriber, self._subscriptions
        )
        self._fanout = Fanout(self._database, self._catalog, self._subscriptions)
        self._decoder = Decoder()
        self._commit = Commit(0, "", 0)
        self._losing = False
        self._stalling = False
        self._marks: dict[bytes, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        """Read the WAL and listen; return the port. Raises `StartError`."""
        self._subscriber.delay = self._config.subscribe_delay
        await self._wal.open(patience=_PATIENCE)
        port = await self._listen()
        self._tasks = [
            asyncio.create_task(self._wal.run()),
            asyncio.create_task(self._watch_publication()),
        ]
        return port

    async def wait(self) -> None:
        """Return only if one of the server's own tasks fails, with its exception."""
        await asyncio.gather(*self._tasks)

    @property
    def connections(self) -> int:
        """The number of open sockets."""
        return len(self._sockets)

    @property
    def subscriptions(self) -> int:
        """The number of live `postgres_changes` subscriptions."""
        return len(self._subscriptions)

    def set_subscribe_delay(self, seconds: float) -> None:
        """Let this time pass between a join's reply and "Subscribed to PostgreSQL"."""
        self._subscriber.delay = seconds

    async def close(self, code: int) -> asyncio.Future[list[None]]:
        """Start the closing handshake on every socket; await the result to see it through."""
        closing = asyncio.gather(*(socket.close(code) for socket in self._sockets))
        await asyncio.sleep(0)  # Now the close frames are on their way.
        return closing

    def abort(self) -> None:
        """Drop the TCP connection of every socket."""
        for socket in self._sockets:
            socket.abort()

    async def stall(self, *, on: bool) -> None:
        """Leave every socket half-open, also those that connect while this is on."""
        await self.catch_up()
        self._stalling = on
        for socket in self._sockets:
            socket.stall(on=on)

    async def lose_changes(self, *, on: bool) -> None:
        """Read the WAL, and tell nobody."""
        await self.catch_up()
        self._losing = on

    async def catch_up(self) -> None:
        """Return when the WAL has been read to where it ends now, or cannot be read any more.

        A fault that begins or ends after this counts for exactly what is committed meanwhile.
        """
        if not self._wal.live.is_set():
            return
        mark = secrets.token_bytes(8)
        self._marks[mark] = asyncio.Event()
        try:
            async with asyncio.timeout(_CATCH_UP_TIMEOUT):
                await self._database.rows(_EMIT_MARK, (mark,))
                await self._marks[mark].wait()
        except (TimeoutError, psycopg.Error) as error:
            _log.warning("did not reach the end of the WAL: %s", type(error).__name__)
        finally:
            del self._marks[mark]

    async def _on_wal(self, message: bytes) -> None:
        record = self._decoder.decode(message)
        if isinstance(record, Change):
            if not self._losing:
                await self._fanout.deliver(record, self._commit)
        elif isinstance(record, Begin):
            self._commit = Commit.of(record)
        elif isinstance(record, Relation):
            self._catalog.forget(record.oid)
        elif isinstance(record, Marker) and record.content in self._marks:
            self._marks[record.content].set()

    async def _watch_publication(self) -> None:
        """Subscribe everybody anew when the published tables have changed."""
        known: tuple[int, ...] | None = None
        while True:
            published = await self._published()
            if None not in {known, published} and published != known:
                self._channels.resubscribe()
            known = known if published is None else published
            await asyncio.sleep(self._config.publication_check)

    async def _published(self) -> tuple[int, ...] | None:
        try:
            return tuple(await self._compiler.published())
        except psycopg.Error:
            return None

    async def _listen(self) -> int:
        port = self._config.port
        try:
            server: Server = await serve(
                self._serve_socket,
                _HOST,
                port,
                process_request=self._refuse,
                compression=None,
                max_size=_MOST_FRAME_BYTES,
                ping_interval=None,
                close_timeout=_CLOSE_TIMEOUT,
                server_header=None,
            )
        except OSError as error:
            raise StartError(
                f"cannot listen on {_HOST}:{port} ({error.strerror}): choose another port, or 0 "
                "for any free one"
            ) from None
        return int(next(iter(server.sockets)).getsockname()[1])

    def _refuse(self, connection: ServerConnection, request: Request) -> Response | None:
        """Check path, version and key before the handshake; None lets the client in."""
        url = urlsplit(request.path)
        if url.path not in _PATHS:
            return connection.respond(HTTPStatus.NOT_FOUND, "")
        if parse_qs(url.query).get("vsn", [VERSION])[0] != VERSION:
            return connection.respond(HTTPStatus.FORBIDDEN, "")
        token = _token(request)
        if not token:
            return _unauthorized(connection, "API key is missing")
        try:
            self._keyring.claims(token)
        except TokenError as error:
            return _unauthorized(connection, error.reason)
        return None

    async def _serve_socket(self, connection: ServerConnection) -> None:
        socket = Socket(connection, _token(connection.request))
        self._sockets.add(socket)
        if self._stalling:
            socket.stall(on=True)
        try:
            async for text in connection:
                message = Message.parse(text)
                if message is not None:
                    self._channels.handle(socket, message)
        except ConnectionClosed:
            pass
        finally:
            self._sockets.discard(socket)
            self._channels.drop(socket)


def _token(request: Request | None) -> str:
    if request is None:
        return ""
    header: Any = request.headers.get("x-api-key")
    query = parse_qs(urlsplit(request.path).query)
    return str(header or query.get("apikey", [""])[0])


def _unauthorized(connection: ServerConnection, reason: str) -> Response:
    response = connection.respond(HTTPStatus.UNAUTHORIZED, json.dumps({"error": reason}))
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/json; charset=utf-8"
    return response
