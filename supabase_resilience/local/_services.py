"""The two servers behind the gateway, as their user handles them: killed, started, misbehaving."""

from collections.abc import Callable

from supabase_resilience.local._child import Child
from supabase_resilience.local._errors import LocalSupabaseError


class Service:
    """A server behind the gateway. While it is down, the gateway answers 502 in its place."""

    def __init__(self, name: str, spawn: Callable[[], Child], gateway: Child) -> None:
        self._name = name
        self._spawn = spawn
        self._gateway = gateway
        self._child: Child | None = None

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._child is not None and self._child.running

    @property
    def pid(self) -> int:
        """The number of the process; raises `LocalSupabaseError` when there is none."""
        return self._alive().pid

    def start(self) -> None:
        """Start the process again; returns when it serves. Does nothing when it runs."""
        if not self.running:
            self.kill()  # what is left of one that died by itself
            self._child = self._spawn()
            self._route(self._child.port)

    def kill(self) -> None:
        """End the process with SIGKILL, as a crash would; everything else goes on."""
        if self._child is not None:
            self._child.kill()
            self._child = None
            # Another program may get its port now.
            self._route(None)

    def shut_down(self) -> None:
        """End the process in order, for good."""
        if self._child is not None:
            self._child.stop()

    def _route(self, port: int | None) -> None:
        self._gateway.ask("route", service=self._name, port=port)

    def _alive(self) -> Child:
        if self._child is None:
            raise LocalSupabaseError(
                f"{self._name} was killed; call local.{self._name}.start() first"
            )
        return self._child


class Rest(Service):
    """REST and Auth."""

    def reload(self) -> None:
        """Have it read the database's schema again; returns when it has."""
        self._alive().ask("reload")


class Realtime(Service):
    """Realtime. Its misbehaviour ends with its process; only the subscribe delay stays."""

    def __init__(
        self, spawn: Callable[[float], Child], gateway: Child, *, subscribe_delay: float
    ) -> None:
        super().__init__("realtime", lambda: spawn(self._subscribe_delay), gateway)
        self._subscribe_delay = subscribe_delay

    def subscribe_delay(self, seconds: float) -> None:
        """Set the time between the reply to a join and "Subscribed to PostgreSQL"."""
        if self.running:
            self._alive().ask("subscribe_delay", seconds=seconds)
        self._subscribe_delay = seconds

    def close(self, code: int = 1012) -> None:
        """Close every WebSocket with this code; clients may connect again at once."""
        self._alive().ask("close", code=code)

    def abort(self) -> None:
        """Lose every connection without a word; clients see close code 1006."""
        self._alive().ask("abort")

    def stall(self, on: bool = True) -> None:  # noqa: FBT001, FBT002  (reads as a switch)
        """Keep all connections open but silent, later ones too, until called with False."""
        self._alive().ask("stall", on=on)

    def lose_changes(self, on: bool = True) -> None:  # noqa: FBT001, FBT002  (reads as a switch)
        """Tell nobody of the database's changes until called with False; they stay lost."""
        self._alive().ask("lose_changes", on=on)
