"""What the owner of the process can ask of the server: settings, counts and faults.

Each public method is a command of the control protocol. A fault begins and ends when the WAL has
been read to its end, so it concerns exactly what is committed meanwhile.
"""

import asyncio

from supabase_resilience.local.realtime._cdc import Cdc
from supabase_resilience.local.realtime._channels import Channels
from supabase_resilience.local.realtime._settings import SettingChanges, Settings
from supabase_resilience.local.realtime._sockets import Sockets
from supabase_resilience.local.realtime._stream import ChangeStream
from supabase_resilience.local.realtime._subscriptions import Subscriptions

SERVICE_RESTART = 1012


class Controls:
    """Turns the switches. `refusing` is the code with which new sockets are closed, if they are."""

    def __init__(
        self,
        *,
        settings: Settings,
        sockets: Sockets,
        channels: Channels,
        subscriptions: Subscriptions,
        stream: ChangeStream,
        cdc: Cdc,
    ) -> None:
        self.refusing: int | None = None
        self._settings = settings
        self._sockets = sockets
        self._channels = channels
        self._subscriptions = subscriptions
        self._stream = stream
        self._cdc = cdc

    def ping(self) -> None:
        """Do nothing."""

    def connects(self) -> int:
        """Return how many sockets there have been, refused ones included."""
        return self._sockets.opened

    def connections(self) -> int:
        """Return how many sockets are open."""
        return len(self._sockets)

    def subscriptions(self) -> int:
        """Return how many bindings are live."""
        return len(self._subscriptions)

    def configure(self, settings: SettingChanges) -> None:
        """Change some of the settings. Raises `ValueError` or `TypeError`."""
        self._settings.change(settings)

    async def catch_up(self) -> None:
        """Return when the WAL has been read to where it ends now, or cannot be read."""
        if self._cdc.is_flowing:
            await self._stream.catch_up()

    async def close(self, code: int = SERVICE_RESTART, *, announced: bool = False) -> None:
        """Close every socket. Not seen through: the owner may be what holds a client up."""
        if announced:
            self._channels.announce_disconnect()
        await self.say_goodbye(code)

    async def say_goodbye(self, code: int = SERVICE_RESTART) -> asyncio.Future[list[None]]:
        """Start the closing handshake on every socket; await the result to see it through."""
        closing = asyncio.gather(*(socket.close(code) for socket in self._sockets))
        await asyncio.sleep(0)  # Now the close frames are on their way.
        return closing

    def abort(self) -> None:
        """Drop the TCP connection of every socket."""
        for socket in self._sockets:
            socket.abort()

    def crash_channels(self) -> None:
        """End every channel with an error; the sockets stay."""
        self._channels.crash()

    def refuse(self, code: int | None) -> None:
        """Close every new socket as soon as it is open; None ends that."""
        self.refusing = code

    async def stall(self, *, on: bool) -> None:
        """Leave every socket half-open, also those that connect while this is on."""
        await self.catch_up()
        self._sockets.stall(on=on)

    async def lose_changes(self, *, on: bool) -> None:
        """Read the WAL, and tell nobody."""
        await self.catch_up()
        self._stream.losing = on

    async def kill_cdc(self) -> None:
        """End the stream of changes, for all who are subscribed."""
        await self.catch_up()
        await self._cdc.kill()
