"""Sockets and the channels joined on them: state only, the protocol's rules are in `_channels`.

Sending never waits. A client that stops reading is cut off when its unsent frames take 50 MB, the
size at which the real server gives up on a socket.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from websockets.asyncio.server import ServerConnection, broadcast
from websockets.exceptions import WebSocketException

from supabase_resilience.local.realtime._joins import JoinConfig
from supabase_resilience.local.realtime._tokens import Claims

_MOST_UNSENT_BYTES: Final = 50_000_000


@dataclass(eq=False, slots=True)
class Socket:
    """One websocket; `token` is the key it connected with."""

    connection: ServerConnection
    token: str
    channels: "dict[str, Channel]" = field(default_factory=dict[str, "Channel"])
    stalled: bool = False

    def send(self, frame: str) -> None:
        """Send a frame without waiting; nothing happens if the socket is closed or stalled."""
        if self.stalled:
            return
        broadcast([self.connection], frame)
        if self.connection.transport.get_write_buffer_size() > _MOST_UNSENT_BYTES:
            self.abort()

    def stall(self, *, on: bool) -> None:
        """Play a half-open connection: what arrives stays unread, what is sent is lost."""
        self.stalled = on
        if on:
            self.connection.transport.pause_reading()
        else:
            self.connection.transport.resume_reading()

    async def close(self, code: int) -> None:
        """Close with a handshake."""
        try:
            await self.connection.close(code)
        except WebSocketException:
            self.abort()

    def abort(self) -> None:
        """Drop the TCP connection; the client sees 1006."""
        self.connection.transport.abort()


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

    def send(self, frame: str) -> None:
        """Send a frame to the channel's client."""
        self.socket.send(frame)


class Sockets:
    """All open sockets."""

    def __init__(self) -> None:
        self._open: set[Socket] = set()

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Socket]:
        return iter(list(self._open))

    def add(self, socket: Socket) -> None:
        """Remember a socket that has opened."""
        self._open.add(socket)

    def discard(self, socket: Socket) -> None:
        """Forget a socket that has closed."""
        self._open.discard(socket)

    def joined(self, topic: str, *, private: bool) -> list[Channel]:
        """Return the channels of a topic; private and public ones are kept apart."""
        channels = (socket.channels.get(topic) for socket in self._open)
        return [c for c in channels if c is not None and c.config.private == private]
