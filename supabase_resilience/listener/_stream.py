"""Between the socket and the followers: judges each live change, or holds it while pages are read.

Called inside of realtime-py's receive loop, so nothing here waits or raises.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from supabase_resilience._clock import Clock
from supabase_resilience.events import Event, HandlerBehind
from supabase_resilience.listener._changes import Seen, Shape
from supabase_resilience.listener._follower import Follower
from supabase_resilience.listener._log import LogShape
from supabase_resilience.listener._settings import Settings
from supabase_resilience.listener._stats import Counts

__all__ = ["Stream"]


class Stream:
    """The live changes of one listener, and the followers that they go to.

    `want_catch_up` is called with the reason when something may have been missed, `want_reads` when
    a follower has doubts.
    """

    def __init__(
        self,
        settings: Settings,
        shape: Shape,
        counts: Counts,
        *,
        tell: Callable[[Event], None],
        clock: Clock,
        want_catch_up: Callable[[str], None],
        want_reads: Callable[[], None],
    ) -> None:
        self.followers: dict[str, Follower] = {}
        self.unseen: dict[Any, int | None] = {}
        self._name = settings.name
        self._limit = settings.buffer_size
        self._shape = shape
        self._log = LogShape(shape) if settings.is_log else None
        self._counts = counts
        self._tell = tell
        self._clock = clock
        self._want_catch_up = want_catch_up
        self._want_reads = want_reads
        self._held: deque[Seen] = deque()
        self._is_reading = False

    # --- live -------------------------------------------------------------------------------------

    def arrived(self, payload: Mapping[str, Any]) -> None:
        """A frame of `postgres_changes` has come."""
        self._counts.received += 1
        self._counts.last_change = self._clock()
        try:
            seen = self._read(payload)
        except KeyError:
            # No delete by key without it; a catch-up that compares keys finds it.
            self._want_catch_up("a change came without its key; is id_column the primary key?")
            return
        if seen is None:
            return
        if (moved := self._moved(seen)) is not None:
            self._take(moved)
        self._take(seen)

    def _read(self, payload: Mapping[str, Any]) -> Seen | None:
        if self._log is not None:
            return self._log.live(payload)
        return self._shape.live(payload)

    def _moved(self, seen: Seen) -> Seen | None:
        """A row with another key than before is gone under its old one."""
        if self._log is not None or (key := self._shape.moved_from(seen)) is None:
            return None
        return Seen("DELETE", key, {}, seen.old, at=seen.at, raw=seen.raw)

    def _take(self, seen: Seen) -> None:
        if self.unseen:
            self.unseen.pop(seen.key if self._log is None else seen.version, None)
        if self._is_reading:
            for follower in self.followers.values():
                follower.ledger.arrived(seen)
        if self._is_reading or self._held or self._is_blocked():
            self._hold(seen)
        else:
            self._judge(seen)

    def _hold(self, seen: Seen) -> None:
        if len(self._held) >= self._limit:
            self._held.clear()
            self._want_catch_up("more changes came than buffer_size holds")
        else:
            self._held.append(seen)

    def _judge(self, seen: Seen) -> None:
        for follower in self.followers.values():
            if follower.is_behind:
                continue
            if not follower.live(seen):
                self._tell(HandlerBehind(listener=self._name, handler=follower.name))
            elif follower.doubts:
                self._want_reads()

    # --- holding back -----------------------------------------------------------------------------

    def hold(self) -> None:
        """Pages are read from now on: judge nothing until `release()`."""
        self._is_reading = True

    def release(self) -> None:
        """Judge what was held."""
        self._is_reading = False
        self.drain()

    def drain(self) -> None:
        """Judge what was held, as far as those who block have room."""
        while self._held and not self._is_reading and not self._is_blocked():
            self._judge(self._held.popleft())

    def _is_blocked(self) -> bool:
        return any(
            follower.blocks and not follower.is_behind and not follower.has_room(1)
            for follower in self.followers.values()
        )
