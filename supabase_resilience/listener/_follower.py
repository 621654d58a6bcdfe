"""One handler's place in the stream: its ledger, its bounded queue, and how far it has come.

Markers travel in the queue behind the changes of a finished catch-up. When the handler has come to
a marker, all before it is acknowledged, and that is the cursor that a restart resumes from. All of
this runs on the listener's event loop; handlers on threads are handed batches.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from supabase_resilience.listener._changes import Change, ChangeType, Seen, Shape
from supabase_resilience.listener._recovery import DOUBT, Ledger, LiveLedger, LogLedger, Snapshot

__all__ = ["Follower", "Position"]


class Position(NamedTuple):
    """A point up to which everything is told: a transaction of a history, or a column's value.

    Of the transactions from `xid` to `xmax` all are told but those that were `running`.
    `is_start` when no row has been told yet, only deletes and changes after it will be: whoever
    died in its first reading then hears of what was deleted since. `started` tells one run of the
    server from the next.
    """

    xid: int = 0
    history: str | None = None
    value: Any = None
    is_start: bool = False
    started: str | None = None
    xmax: int = 0
    running: Sequence[int] = ()

    @property
    def told(self) -> Snapshot:
        """Which transactions are told."""
        return Snapshot() if self.is_start else Snapshot(self.xid, self.xmax, self.running)

    def to_json(self) -> dict[str, Any]:
        """What a cursor store keeps."""
        if self.value is not None:
            return {"value": self.value}
        start = {"is_start": True} if self.is_start else {}
        run = {} if self.started is None else {"started": self.started}
        told = {"xmax": self.xmax, "running": list(self.running)} if self.xmax > self.xid else {}
        return {"xid": self.xid, "history": self.history, **told, **run, **start}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Position":
        """Read it back; raises `ValueError` for what is no position."""
        if saved.get("value") is not None:
            return cls(value=saved["value"])
        xid = saved.get("xid")
        if not isinstance(xid, int) or isinstance(xid, bool):
            raise ValueError("it holds no position of a listener")  # noqa: TRY004
        return cls(
            xid,
            saved.get("history"),
            is_start=saved.get("is_start") is True,
            started=saved.get("started"),
            xmax=saved.get("xmax", 0),
            running=tuple(saved.get("running", ())),
        )


class _Marker(NamedTuple):
    position: Position


class Follower:
    """The queue between the stream and one handler.

    `since` is where the next catch-up begins for it, None for the very beginning. One that
    `starts_now` is told nothing by its first catch-up, which only learns what is there. `inline` is
    called at once, without a queue. Of one that `is_kept` the position outlives the process.
    """

    def __init__(
        self,
        name: str,
        ledger: Ledger,
        shape: Shape,
        *,
        wants: ChangeType | None = None,
        limit: int,
        blocks: bool,
        starts_now: bool = False,
        inline: Callable[[Change], None] | None = None,
        is_kept: bool = False,
    ) -> None:
        self.name = name
        self.ledger = ledger
        self.limit = limit
        self.blocks = blocks
        self.since: Position | None = None
        self.acked: Position | None = None
        self.is_resumed = False
        self.starts_now = starts_now
        self.knows_keys = False  # those of rows that it was not told
        self.began_midway = starts_now  # so its handler may know of rows that the ledger does not
        self.left_at: dict[str, Any] | None = None  # in the first reading of a change log
        self.is_behind = True  # until it has been caught up for the first time
        self.delivered = 0
        self.caught_up = 0
        self.dropped = 0
        self.doubts: dict[Any, bool] = {}
        self._shape = shape
        self._wants = wants
        self._inline = inline
        self.is_kept = is_kept
        self._wake: Callable[[], None] = _nobody
        self._queue: deque[Change | _Marker] = deque()
        self._changes = 0

    def on_news(self, wake: Callable[[], None]) -> None:
        """Call this when something was queued."""
        self._wake = wake

    def resume(self, position: Position) -> None:
        """Begin where an earlier process has come to."""
        self.since = self.acked = position
        self.starts_now = False
        self.is_resumed = self.began_midway = True
        self.ledger.covered(position.told)

    # --- what comes in ----------------------------------------------------------------------------

    def live(self, seen: Seen) -> bool:
        """Judge a live event and queue what is news; False if there was no room for it."""
        verdict = self.ledger.live(seen)
        if verdict is None:
            return True
        if verdict == DOUBT:
            self.doubt(seen)
            return True
        self._leave_old_key(seen, "live")
        if self._wants is not None and verdict != self._wants:
            return True
        change = self._shape.change(seen, verdict, "live")
        if self._changes < self.limit:
            self._put(change)
            return True
        self._overflow(change)
        return False

    def doubt(self, seen: Seen) -> None:
        """Remember what has to be read again, and whether it may be a delete."""
        if isinstance(self.ledger, LogLedger):
            self.doubts[seen.version] = False
        else:
            self.doubts[seen.key] = self.doubts.get(seen.key, False) or seen.type == "DELETE"

    def tell(self, seen: Seen, kind: ChangeType) -> None:
        """Queue a caught-up change."""
        if self.starts_now:
            return
        self._leave_old_key(seen, "catch_up")
        if self._wants in {None, kind}:
            self.caught_up += 1
            self._put(self._shape.change(seen, kind, "catch_up"))

    def mark(self, position: Position) -> None:
        """All up to `position` is told now."""
        self.since = position
        self.starts_now = False
        self.is_resumed = True
        self.ledger.covered(position.told)
        if self._queue:
            self._queue.append(_Marker(position))
        else:
            self.acked = position

    def begin_now(self, position: Position) -> None:
        """Of one that `starts_now`: tell it all that `position` does not cover."""
        if self.starts_now:
            self.starts_now = False
            self.ledger.covered(position.told)

    def rewind(self, position: Position) -> None:
        """Begin again a little earlier."""
        self.since = position
        self.ledger.rewound(position.told.xmin)

    def has_room(self, changes: int) -> bool:
        """Whether so many more fit, or none wait."""
        return self._changes == 0 or self._changes + changes <= self.limit

    def fall_behind(self, since: Position | None) -> None:
        """Take no more until the queue is empty; the next catch-up begins at `since`."""
        self.is_behind = True
        self.since = since

    def _leave_old_key(self, seen: Seen, source: Literal["live", "catch_up"]) -> None:
        """An entry of a log that gives a row another key is a delete of the old one, too."""
        if not isinstance(self.ledger, LogLedger) or self._wants not in {None, "DELETE"}:
            return
        if (key := self._shape.moved_from(seen)) is not None:
            gone = seen._replace(type="DELETE", key=key, new={})
            self._put(self._shape.change(gone, "DELETE", source))

    def _put(self, change: Change) -> None:
        if self._inline is not None:
            self.delivered += 1
            self._inline(change)
            return
        self._queue.append(change)
        self._changes += 1
        self._wake()

    def _overflow(self, change: Change) -> None:
        """Forget what waits: a catch-up from where the handler has come to finds it again."""
        lost = [each for each in self._queue if isinstance(each, Change)]
        self.dropped += len(lost) + 1
        self._queue.clear()
        self._changes = 0
        if isinstance(self.ledger, LiveLedger):
            return
        self.ledger.dropped([*lost, change], self.acked.told if self.acked else Snapshot())
        self.fall_behind(self.acked)

    # --- what goes out ----------------------------------------------------------------------------

    @property
    def is_inline(self) -> bool:
        """Whether it is a table in memory, which begins at the beginning and takes all at once."""
        return self._inline is not None

    @property
    def needs_rows(self) -> bool:
        """Whether it has to be told all rows that there are."""
        return self.since is None or self.since.is_start

    @property
    def is_beginning(self) -> bool:
        """Whether no catch-up has been completed for it yet."""
        return self.starts_now or self.needs_rows

    @property
    def waiting(self) -> int:
        """How many changes wait for the handler."""
        return self._changes

    def next(self, most: int) -> Sequence[Change]:
        """The next changes in line; they stay in line until `done()`."""
        batch: list[Change] = []
        for each in self._queue:
            if isinstance(each, _Marker) or len(batch) == most:
                break
            batch.append(each)
        return batch

    def done(self, batch: Sequence[Change]) -> None:
        """The handler is through with these, which were next in line."""
        for change in batch:
            # An overflow may have emptied the queue meanwhile.
            if not self._queue or self._queue[0] is not change:
                return
            self._queue.popleft()
            self._changes -= 1
            self.delivered += 1
        while self._queue and isinstance(marker := self._queue[0], _Marker):
            self.acked = marker.position
            self._queue.popleft()


def _nobody() -> None:
    """Nobody waits yet."""
