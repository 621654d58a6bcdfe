"""What to believe: events of an at-most-once stream that lags, rows read meanwhile, tombstones.

A ledger remembers what one handler has been told, and decides of everything that comes in whether
it is news. No I/O, no clock. The rules, each of which a model in the tests breaks when it is left
out:

- *Window rule*: a row of a page loses against a live delete of its key that arrived after the page
  was requested. Without versions it loses against any live event of its key.
- *Older is stale*: versions of a key only grow, also across delete and re-insert. What a finished
  catch-up has covered (`xid` below its horizon) is stale as well, however late it arrives.
- *Reads are believed more than deletes*: a live delete carries no version. If what is known of its
  key was read, the delete may be that of an earlier life, so it is a doubt: read the key again.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from supabase_resilience.listener._changes import Change, ChangeType, Key, Seen

__all__ = [
    "DOUBT",
    "MARGIN",
    "Ledger",
    "LiveLedger",
    "LogLedger",
    "RowLedger",
    "Verdict",
    "exceeds_share",
]

Verdict = ChangeType | Literal["doubt"] | None
DOUBT: Literal["doubt"] = "doubt"
"""The key (in a change log: the entry) has to be read again before anything can be told."""

_NEVER = -1
"""A version below all others: known to the handler, in which state is not known."""
_LIMIT = 100_000
MARGIN = 10_000
"""Transactions to go back after a restart of the server: after a crash it gives those xids anew
that left no trace in its WAL, which it writes three times a second."""


class Snapshot(NamedTuple):
    """Which transactions had ended: all below `xmin`, and below `xmax` all but those `running`."""

    xmin: int = 0
    xmax: int = 0
    running: Sequence[int] = ()

    def has(self, xid: int) -> bool:
        """Whether it had ended."""
        return xid < self.xmin or (xid < self.xmax and xid not in self.running)


class _Mark(NamedTuple):
    """What the handler was told last of a key; `is_read` when that came from a read."""

    version: int
    is_read: bool


class Ledger(Protocol):
    """What one handler has been told; its length is that of its memory."""

    def __len__(self) -> int: ...

    def requested(self) -> None:
        """A page is asked for now."""

    def arrived(self, seen: Seen) -> None:
        """A live event has come in while pages are read; it is judged later, by `live()`."""

    def live(self, seen: Seen) -> Verdict:
        """What a live event means."""

    def row(self, seen: Seen) -> Verdict:
        """What a row means that was read."""

    def dropped(self, told: Iterable[Change], covered: Snapshot) -> None:
        """These were told but never reached the handler, which is back at `covered`."""

    def covered(self, told: Snapshot) -> None:
        """A catch-up is complete: all transactions that `told` has are told."""

    def rewound(self, xid: int) -> None:
        """Transactions from `xid` on, at most `MARGIN` of the covered ones, may be others now."""


class RowLedger:
    """The ledger of a level that delivers states of rows.

    `limit` keys are remembered, None for all of them; what is forgotten may be told twice.
    """

    def __init__(self, *, is_versioned: bool, limit: int | None = _LIMIT) -> None:
        self._is_versioned = is_versioned
        self._limit = limit
        self._known: OrderedDict[Key, _Mark] = OrderedDict()
        self._gone: OrderedDict[Key, int] = OrderedDict()
        self._deleted_meanwhile: set[Key] = set()
        self._seen_meanwhile: set[Key] = set()
        self._covered = Snapshot()
        self.has_forgotten = False

    def __len__(self) -> int:
        return len(self._known)

    def knows(self, key: Key) -> bool:
        """Whether the handler was told of this row, and not of its end."""
        return key in self._known

    # --- live -------------------------------------------------------------------------------------

    def requested(self) -> None:
        """A page is asked for now."""
        self._deleted_meanwhile.clear()
        self._seen_meanwhile.clear()

    def arrived(self, seen: Seen) -> None:
        """A live event has come in while pages are read."""
        if seen.type == "DELETE":
            self._deleted_meanwhile.add(seen.key)
            self._seen_meanwhile.discard(seen.key)
        else:
            self._seen_meanwhile.add(seen.key)

    def live(self, seen: Seen) -> Verdict:
        """What a live event means: its type, None for nothing new, or a doubt."""
        key, mark = seen.key, self._known.get(seen.key)
        if seen.type == "DELETE":
            return self._live_delete(key, mark)
        if seen.partial:
            return DOUBT
        version = self._version(seen)
        if self._is_stale(seen, version, mark):
            return None
        self._learn(key, _Mark(version, is_read=False))
        return seen.type

    def _live_delete(self, key: Key, mark: _Mark | None) -> Verdict:
        if mark is None:
            return None if key in self._gone else DOUBT
        return DOUBT if mark.is_read else self._bury(key, mark.version)

    def _is_stale(self, seen: Seen, version: int, mark: _Mark | None) -> bool:
        if mark is not None and mark.is_read and mark.version == version:
            # The stream has come as far as the read; by itself it repeats nothing.
            self._known[seen.key] = _Mark(version, is_read=False)
            return True
        if not self._is_versioned:
            return False
        if seen.xid is not None and self._covered.has(seen.xid):
            return True
        told = self._gone.get(seen.key, _NEVER) if mark is None else mark.version
        return version <= told

    # --- read -------------------------------------------------------------------------------------

    def row(self, seen: Seen) -> Verdict:
        """What a row means that was read: an INSERT if its key is unknown here, else an UPDATE."""
        key = seen.key
        if key in self._deleted_meanwhile:
            return DOUBT
        if not self._is_versioned and key in self._seen_meanwhile:
            return None
        version, mark = self._version(seen), self._known.get(key)
        if mark is not None and self._is_told(version, mark.version):
            return None
        self._learn(key, _Mark(version, is_read=True))
        return "INSERT" if mark is None else "UPDATE"

    def has_news(self, seen: Seen) -> bool:
        """Whether a changed row, of which only key and version were read, must be looked at."""
        mark = self._known.get(seen.key)
        if mark is None or not self._is_versioned or seen.version is None:
            return True
        return seen.version > mark.version

    def absent(self, key: Key) -> Verdict:
        """What it means that a key, asked for by itself, is not there."""
        if key in self._seen_meanwhile:
            return None  # born again; its event is judged next
        mark = self._known.get(key)
        if mark is None and key in self._gone:
            return None
        return self._bury(key, _NEVER if mark is None else mark.version)

    def tombstone(self, key: Key, version: int, *, is_alive: bool) -> Verdict:
        """What a recorded delete means; `is_alive` when the key has a row again."""
        mark = self._known.get(key)
        if mark is not None and mark.version > version:
            return None  # of an earlier life
        if is_alive:
            return None  # the row of its new life has a greater version, and is news by that
        if mark is None and self._is_told_gone(key, version):
            self._gone[key] = max(version, self._gone[key])
            return None
        return self._bury(key, version)

    def _is_told_gone(self, key: Key, version: int) -> bool:
        # Of another life, of which nothing came here, the handler may know from elsewhere.
        told = self._gone.get(key)
        return told is not None and (told == _NEVER or version <= told)

    def truncated(self, version: int) -> list[Key]:
        """The keys that a TRUNCATE has removed."""
        keys = [key for key, mark in self._known.items() if mark.version <= version]
        for key in keys:
            self._bury(key, version)
        return keys

    def emptied(self) -> None:
        """The handler was told that there are no rows; those that there are come anew."""
        self._known.clear()
        self._gone.clear()
        self._covered = Snapshot()
        self.has_forgotten = False

    def missing(self, remote: set[Key]) -> list[Key]:
        """The known keys that a complete list of all keys lacks."""
        return [key for key in self._known if key not in remote and key not in self._seen_meanwhile]

    def forget_gone(self) -> None:
        """The handler was told of no end yet."""
        self._gone.clear()

    def learn(self, keys: Iterable[Key]) -> None:
        """Rows that the handler may know from elsewhere, so that their end is told."""
        for key in keys:
            self._known.setdefault(key, _Mark(_NEVER, is_read=True))

    # --- bookkeeping ------------------------------------------------------------------------------

    def dropped(self, told: Iterable[Change], covered: Snapshot) -> None:
        """These were told but never reached the handler, so they are news when found again."""
        self._covered = covered
        for change in told:
            self._gone.pop(change.key, None)
            self._known[change.key] = _Mark(_NEVER, is_read=False)

    def covered(self, told: Snapshot) -> None:
        """A catch-up is complete: all transactions that `told` has are told."""
        if told.xmin >= self._covered.xmin:
            self._covered = told

    def rewound(self, xid: int) -> None:
        """Transactions from `xid` on may be others now."""
        self._covered = Snapshot(xid)

    def restored(self) -> None:
        """The database has another history, whose versions say nothing of those before."""
        self._covered = Snapshot()
        self._gone.clear()
        self._known = OrderedDict.fromkeys(self._known, _Mark(_NEVER, is_read=True))

    def _version(self, seen: Seen) -> int:
        if self._is_versioned:
            return seen.version if seen.version is not None else _NEVER
        return _digest(seen.new)

    def _is_told(self, version: int, told: int) -> bool:
        return version <= told if self._is_versioned else version == told

    def _learn(self, key: Key, mark: _Mark) -> None:
        self._gone.pop(key, None)
        self._known[key] = mark
        self.has_forgotten |= _keep_newest(self._known, key, self._limit)

    def _bury(self, key: Key, version: int) -> ChangeType:
        self._known.pop(key, None)
        self._gone[key] = version
        _keep_newest(self._gone, key, _LIMIT)
        return "DELETE"


class LogLedger:
    """The ledger of a change log: every entry once by its number (`version`)."""

    def __init__(self) -> None:
        self._told: dict[int, int] = {}
        self._covered = Snapshot()

    def __len__(self) -> int:
        return len(self._told)

    def requested(self) -> None:
        """Pages of a log need no window: an entry never changes."""

    def arrived(self, seen: Seen) -> None:
        """Judged later, by `live()`."""

    def live(self, seen: Seen) -> Verdict:
        """What a live entry means: its type, None when it was told, or a doubt."""
        return DOUBT if seen.partial else self.row(seen)

    def row(self, seen: Seen) -> Verdict:
        """What an entry means that was read."""
        number, xid = seen.version or 0, seen.xid or 0
        if self._covered.has(xid) or number in self._told:
            return None
        self._told[number] = xid
        return seen.type

    def dropped(self, told: Iterable[Change], covered: Snapshot) -> None:
        """These were told but never reached the handler, so they are news when found again."""
        self._covered = covered
        for change in told:
            self._told.pop(change.version or 0, None)

    def covered(self, told: Snapshot) -> None:
        """A catch-up is complete: all transactions that `told` has are told."""
        if told.xmin >= self._covered.xmin:
            self._covered = told
        kept = self._covered.xmin - MARGIN
        self._told = {number: at for number, at in self._told.items() if at >= kept}

    def rewound(self, xid: int) -> None:
        """Transactions from `xid` on may be others now; which entries were told is still known."""
        self._covered = Snapshot(xid)

    def begin(self, told: Snapshot) -> None:
        """Rows tell what these transactions did; all other entries are to be told after them.

        In the order of entries a later one of a row can have a lower xid, so of two that are in the
        row already neither may follow.
        """
        self._covered = told
        self._told.clear()


class LiveLedger:
    """Of a listener without recovery: everything that comes is told, and nothing else."""

    def __len__(self) -> int:
        return 0

    def requested(self) -> None:
        """There are no pages."""

    def arrived(self, seen: Seen) -> None:
        """There are no pages."""

    def live(self, seen: Seen) -> Verdict:
        """What a live event means: its type."""
        return seen.type

    def row(self, seen: Seen) -> Verdict:
        """Nothing is read."""
        return seen.type

    def dropped(self, told: Iterable[Change], covered: Snapshot) -> None:
        """They are lost."""

    def covered(self, told: Snapshot) -> None:
        """Nothing is read."""

    def rewound(self, xid: int) -> None:
        """Nothing is read."""


def exceeds_share(gone: int, known: int, max_share: float) -> bool:
    """Whether so many deletes at once look like lost rights rather than like deletes.

    A single one never does, or a table of three rows could lose none.
    """
    return gone > max(1.0, max_share * known)


def _keep_newest(entries: OrderedDict[Key, Any], key: Key, limit: int | None) -> bool:
    """Drop the oldest when there are too many; whether that was so."""
    if limit is None:
        return False
    entries.move_to_end(key)
    if len(entries) <= limit:
        return False
    entries.popitem(last=False)
    return True


def _digest(row: Any) -> int:
    return hash(_hashable(row))


def _hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return frozenset((key, _hashable(each)) for key, each in value.items())
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    # 1 == 1.0 == True for hash(), and they are not the same row.
    return (type(value).__name__, value)
