"""The server: wires the WAL, the subscriptions and the websockets together.

Everything runs on one event loop. Faults are switches on sockets and on the stream of changes, so
hardly any other module knows of them.
"""

import asyncio
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import psycopg
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from supabase_resilience.local.realtime._admission import Admission
from supabase_resilience.local.realtime._broadcasts import parse_binary
from supabase_resilience.local.realtime._catalog import Catalog
from supabase_resilience.local.realtime._cdc import Cdc
from supabase_resilience.local.realtime._channels import Channels
from supabase_resilience.local.realtime._compiler import Compiler
from supabase_resilience.local.realtime._controls import Controls
from supabase_resilience.local.realtime._database import Database
from supabase_resilience.local.realtime._fanout import Fanout
from supabase_resilience.local.realtime._gate import Gate, token_of, version_of
from supabase_resilience.local.realtime._limits import Limits
from supabase_resilience.local.realtime._phoenix import Message
from supabase_resilience.local.realtime._rates import Rate
from supabase_resilience.local.realtime._settings import Settings
from supabase_resilience.local.realtime._sockets import Connection, Socket, Sockets
from supabase_resilience.local.realtime._stream import ChangeStream
from supabase_resilience.local.realtime._subscriber import Subscriber
from supabase_resilience.local.realtime._subscriptions import Subscriptions
from supabase_resilience.local.realtime._tokens import Keyring
from supabase_resilience.local.realtime._wal import StartError, WalReader

_HOST: Final = "127.0.0.1"
_MOST_FRAME_BYTES: Final = 5_000_000
_CLOSE_TIMEOUT: Final = 1.0
_PATIENCE: Final = 10.0
_NORMAL: Final = 1000
_TICK: Final = 1.0


@dataclass(frozen=True, slots=True)
class Config:
    """What the server needs to know; `settings` are named as in `Settings`."""

    dsn: str
    jwt_secret: str
    publishable_key: str
    secret_key: str
    port: int = 0
    publication: str = "supabase_realtime"
    settings: dict[str, Any] = field(default_factory=dict[str, Any])


class RealtimeServer:
    """One Realtime server on 127.0.0.1. Raises `ValueError` and `TypeError` as `Settings` does."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._settings = settings = Settings(**config.settings)
        self._sockets = sockets = Sockets()
        subscriptions, database, events = Subscriptions(), Database(config.dsn), Rate(settings)
        catalog = Catalog(database)
        self._compiler = Compiler(database, catalog, publication=config.publication)
        fanout = Fanout(database, catalog, subscriptions, events)
        stream = ChangeStream(database, catalog, fanout, events, settings)
        wal = WalReader(config.dsn, config.publication, stream.consume, settings)
        self._cdc = Cdc(wal, subscriptions)
        subscriber = Subscriber(database, self._compiler, subscriptions, self._cdc, settings)
        keyring, limits = _keyring(config), Limits(sockets, settings)
        self._gate = Gate(keyring, limits, settings)
        admission = Admission(keyring, limits)
        self._channels = Channels(
            sockets=sockets,
            admission=admission,
            keyring=keyring,
            subscriber=subscriber,
            subscriptions=subscriptions,
            settings=settings,
        )
        self.controls = Controls(
            settings=settings,
            sockets=sockets,
            channels=self._channels,
            subscriptions=subscriptions,
            stream=stream,
            cdc=self._cdc,
        )
        self._published: tuple[int, ...] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        """Read the WAL and listen; return the port. Raises `StartError`."""
        await self._cdc.start(patience=_PATIENCE)
        port = await self._listen()
        work = (self._cdc.run(), self._keep_house())
        self._tasks = [asyncio.create_task(each) for each in work]
        return port

    async def wait(self) -> None:
        """Return only if one of the server's own tasks fails, with its exception."""
        await asyncio.gather(*self._tasks)

    async def _keep_house(self) -> None:
        """Do what comes round, soon after its time; the settings may change meanwhile."""
        loop = asyncio.get_running_loop()
        looked_at = -math.inf
        while True:
            self._close_idle()
            if loop.time() >= looked_at + self._settings.publication_check:
                await self._look_at_publication()
                looked_at = loop.time()
            settings = self._settings
            await asyncio.sleep(min(_TICK, settings.publication_check, settings.idle_timeout / 2))

    async def _look_at_publication(self) -> None:
        """Subscribe everybody anew when the published tables have changed."""
        try:
            published = await self._compiler.published()
        except psycopg.Error:
            return
        if self._published not in {None, tuple(published)}:
            self._channels.resubscribe()
        self._published = tuple(published)

    def _close_idle(self) -> None:
        for socket in self._sockets:
            if not socket.stalled and socket.connection.silent_for() > self._settings.idle_timeout:
                socket.start_close(_NORMAL)

    async def _listen(self) -> int:
        port = self._config.port
        try:
            server: Server = await serve(
                self._serve_socket,
                _HOST,
                port,
                process_request=self._gate.refusal,
                create_connection=Connection,
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

    async def _serve_socket(self, connection: ServerConnection) -> None:
        assert isinstance(connection, Connection)  # noqa: S101  (as `serve` was told)
        self._sockets.opened += 1
        if self.controls.refusing is not None:
            await connection.close(self.controls.refusing)
            return
        request = connection.request
        socket = Socket(connection, token_of(request), version_of(request))
        self._sockets.add(socket)
        try:
            await self._receive(socket)
        finally:
            self._sockets.discard(socket)
            self._channels.drop(socket)

    async def _receive(self, socket: Socket) -> None:
        try:
            async for data in socket.connection:
                message = Message.parse(data) if isinstance(data, str) else parse_binary(data)
                if message is not None:
                    socket.perform(partial(self._channels.handle, socket, message))
        except ConnectionClosed:
            pass


def _keyring(config: Config) -> Keyring:
    return Keyring(
        jwt_secret=config.jwt_secret,
        publishable_key=config.publishable_key,
        secret_key=config.secret_key,
    )
