"""How many sockets, channels and joins there may be; the texts are the real server's."""

from supabase_resilience.local.realtime._joins import JoinError
from supabase_resilience.local.realtime._rates import Rate
from supabase_resilience.local.realtime._settings import Settings
from supabase_resilience.local.realtime._sockets import Socket, Sockets

_TOO_MANY_USERS = "Too many connected users"
_TOO_MANY_JOINS = "Too many joins per second"


class JoinRateError(JoinError):
    """The project's clients join too often; the socket of this one is closed."""


class Limits:
    """Compares what there is with the settings."""

    def __init__(self, sockets: Sockets, settings: Settings) -> None:
        self._sockets = sockets
        self._settings = settings
        self._joins = Rate(settings)

    def reached_by_connecting(self) -> str | None:
        """Return the limit that leaves no place for one more socket, if there is one."""
        if self._is_full():
            return _TOO_MANY_USERS
        return _TOO_MANY_JOINS if self._joins_too_often() else None

    def check_join(self, socket: Socket, topic: str) -> None:
        """Count a join. Raises `JoinError` when there is no place for it."""
        self._joins.add()
        if self._joins_too_often():
            raise JoinRateError(f"ClientJoinRateLimitReached: {_TOO_MANY_JOINS}")
        if len(socket.channels.keys() - {topic}) >= self._settings.max_channels:
            raise JoinError("ChannelRateLimitReached: Too many channels")
        if not socket.channels and self._is_full():
            raise JoinError(f"ConnectionRateLimitReached: {_TOO_MANY_USERS}")

    def _joins_too_often(self) -> bool:
        return self._joins.is_above(self._settings.max_joins_per_second)

    def _is_full(self) -> bool:
        most = self._settings.max_connections
        return most is not None and self._sockets.with_channels >= most
