"""Sockets and the channels joined on them: state only, the protocol's rules are in `_channels`.

Sending never waits. A client that stops reading is cut off when its unsent frames take 50 MB, the
size at which the real server gives up on a socket.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from websockets.asyncio.server import ServerConnection, broadcast
from websockets.exceptions import WebSocketException

from supabase_resilience.local.realtime._joins import JoinConfig
from supabase_resilience.local.realtime._phoenix import Sendable
from supabase_resilience.local.realtime._tokens import Claims

_MOST_UNSENT_BYTES: Final = 50_000_000

Work = Callable[[], None]


class Connection(ServerConnection):
    """A websocket connection that knows when its client was last heard; pings count."""

    heard_at = 0.0

    def data_received(self, data: bytes) -> None:
        """Take what the client has sent."""
        self.heard_at = self.loop.time()
        super().data_received(data)

    def silent_for(self) -> float:
        """Return the seconds since the client has sent anything."""
        return self.loop.time() - self.heard_at


@dataclass(eq=False, slots=True)
class Socket:
    """One websocket; `token` is the key it connected with, `version` that of its protocol.

    It does one thing after the other, and nothing while it is blocked but answer pings.
    """

    connection: Connection
    token: str
    version: str
    channels: "dict[str, Channel]" = field(default_factory=dict[str, "Channel"])
    stalled: bool = False
    _waiting: deque[Work] = field(default_factory=deque[Work])
    _blocked: bool = False
    _closing: asyncio.Task[None] | None = None

    def perform(self, work: Work) -> None:
        """Do this now or, if the socket is blocked, in its turn."""
        if self._blocked:
            self._waiting.append(work)
        else:
            work()

    def block(self, seconds: float, then: Work) -> None:
        """Do nothing for this time, then this, then what has come meanwhile."""
        if seconds:
            self._blocked = True
            asyncio.get_running_loop().call_later(seconds, self._unblock, then)
        else:
            then()

    def send(self, frame: Sendable) -> None:
        """Send a frame in its turn; nothing happens if the socket is closed or stalled."""
        self.perform(partial(self._transmit, frame))

    def stall(self, *, on: bool) -> None:
        """Play a half-open connection: what arrives stays unread, what is sent is lost."""
        self.stalled = on
        if on:
            self.connection.transport.pause_reading()
        else:
            self.connection.transport.resume_reading()

    def start_close(self, code: int) -> None:
        """Close with a handshake that nobody waits for."""
        if self._closing is None:
            self._closing = asyncio.create_task(self.close(code))

    async def close(self, code: int) -> None:
        """Close with a handshake."""
        try:
            await self.connection.close(code)
        except WebSocketException:
            self.abort()

    def abort(self) -> None:
        """Drop the TCP connection; the client sees 1006."""
        self.connection.transport.abort()

    def forget(self) -> None:
        """Do nothing ever again, for the client is gone."""
        self._blocked = True
        self._waiting.clear()

    def _unblock(self, then: Work) -> None:
        self._blocked = False
        self._waiting.appendleft(then)
        # One of these may block the socket again.
        while self._waiting and not self._blocked:
            self._waiting.popleft()()

    def _transmit(self, frame: Sendable) -> None:
        data = None if self.stalled else frame.encode(self.version)
        if data is not None:
            broadcast([self.connection], data)
        if self.connection.transport.get_write_buffer_size() > _MOST_UNSENT_BYTES:
            self.abort()


@dataclass(eq=False, slots=True)
class Channel:
    """A topic joined on a socket; `tracked` is its presence, if it shows any."""

    socket: Socket
    topic: str
    join_ref: str | None
    config: JoinConfig
    token: str
    claims: Claims
    presence_key: str
    tracked: dict[str, Any] | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    expiry: asyncio.TimerHandle | None = None

    def send(self, frame: Sendable) -> None:
        """Send a frame to the channel's client."""
        self.socket.send(frame)


class Sockets:
    """All open sockets. `opened` counts those that there ever were, refused ones included."""

    def __init__(self) -> None:
        self.opened = 0
        self._open: set[Socket] = set()
        self._stalling = False

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Socket]:
        return iter(list(self._open))

    @property
    def with_channels(self) -> int:
        """The number of sockets on which a topic is joined."""
        return sum(1 for socket in self._open if socket.channels)

    def add(self, socket: Socket) -> None:
        """Remember a socket that has opened."""
        self._open.add(socket)
        if self._stalling:
            socket.stall(on=True)

    def discard(self, socket: Socket) -> None:
        """Forget a socket that has closed."""
        self._open.discard(socket)

    def stall(self, *, on: bool) -> None:
        """Stall all sockets, also those that open while this is on."""
        self._stalling = on
        for socket in self:
            socket.stall(on=on)

    def joined(self, topic: str, *, private: bool) -> list[Channel]:
        """Return the channels of a topic; private and public ones are kept apart."""
        channels = (socket.channels.get(topic) for socket in self._open)
        return [c for c in channels if c is not None and c.config.private == private]
