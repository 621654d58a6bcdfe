"""The two servers behind the gateway, as their user handles them: killed, started, misbehaving."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Unpack

from supabase_resilience.local._child import Child
from supabase_resilience.local._errors import LocalSupabaseError
from supabase_resilience.local.realtime._settings import SettingChanges, Settings


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
    """Realtime. Its misbehaviour and its counts end with its process; its settings stay."""

    def __init__(
        self,
        spawn: Callable[[dict[str, Any]], Child],
        gateway: Child,
        **settings: Unpack[SettingChanges],
    ) -> None:
        super().__init__("realtime", lambda: spawn(asdict(self._settings)), gateway)
        self._settings = Settings(**settings)

    # --- settings ---

    def configure(self, **settings: Unpack[SettingChanges]) -> None:
        """Set how it behaves from now on, in later processes, too.

        Times are in seconds, rates are averages over `rate_window`, None is no limit. In brackets:
        the value at first, and that of Supabase's own server where it is another one.

        - `subscribe_delay`: between the reply to a join and "Subscribed to PostgreSQL" (0; up to 3)
        - `join_error_delay`: before a join is refused; its whole socket waits meanwhile (0; 5)
        - `connect_error_delay`: before a connection is refused (0; 2)
        - `idle_timeout`: a socket whose client is silent for longer, also without pings, is closed
          with code 1000 (60)
        - `cdc_patience`: an outage of PostgreSQL that is longer does what `kill_cdc` does (100)
        - `publication_check`: between two looks at the published tables (60)
        - `rate_window`: what rates are averages of, looked at twelve times in it (60)
        - `max_events_per_second`: changes times their subscribers; above it all changes are lost
          until the average has fallen, only a transaction that has begun comes whole (None; 100)
        - `max_joins_per_second`: above it joins and connections are refused (None; 100)
        - `max_connections`: sockets with a channel; more are refused (None; 200)
        - `max_channels`: of one socket; more are refused (100)

        Raises `ValueError` for a value that makes no sense, `TypeError` for another name.
        """
        changed = replace(self._settings, **settings)
        if self.running:
            self._alive().ask("configure", settings=settings)
        self._settings = changed

    def subscribe_delay(self, seconds: float) -> None:
        """Set the time between the reply to a join and "Subscribed to PostgreSQL"."""
        self.configure(subscribe_delay=seconds)

    # --- counts ---

    @property
    def connects(self) -> int:
        """How many WebSockets have been opened since the process started."""
        return int(self._alive().ask("connects"))

    @property
    def connections(self) -> int:
        """How many WebSockets are open."""
        return int(self._alive().ask("connections"))

    @property
    def subscriptions(self) -> int:
        """How many bindings are served with changes."""
        return int(self._alive().ask("subscriptions"))

    def catch_up(self) -> None:
        """Return when all that has been committed so far is sent or lost."""
        self._alive().ask("catch_up")

    # --- faults ---

    def close(self, code: int = 1012, *, announced: bool = False) -> None:
        """Close every WebSocket with this code; clients may connect again at once.

        `announced` sends "Server requested disconnect" to every channel first, as the reload of a
        project does.
        """
        self._alive().ask("close", code=code, announced=announced)

    def crash_channels(self) -> None:
        """Lose every channel, with `phx_error`; the WebSockets stay, and joining again works."""
        self._alive().ask("crash_channels")

    def refuse(self, code: int | None = 1012) -> None:
        """Accept every new WebSocket and close it at once with this code; None ends that."""
        self._alive().ask("refuse", code=code)

    def abort(self) -> None:
        """Lose every connection without a word; clients see close code 1006."""
        self._alive().ask("abort")

    def stall(self, on: bool = True) -> None:  # noqa: FBT001, FBT002  (reads as a switch)
        """Keep all connections open but silent, later ones too, until called with False."""
        self._alive().ask("stall", on=on)

    def lose_changes(self, on: bool = True) -> None:  # noqa: FBT001, FBT002  (reads as a switch)
        """Tell nobody of the database's changes until called with False; they stay lost."""
        self._alive().ask("lose_changes", on=on)

    def kill_cdc(self) -> None:
        """Stop the stream of changes, as a long outage of PostgreSQL does.

        Nobody is told: heartbeats are answered and channels stay joined, but hear of no change any
        more. A later join, or another access token for a channel, starts the stream again, for that
        channel only. Does nothing when it has stopped already.
        """
        self._alive().ask("kill_cdc")
