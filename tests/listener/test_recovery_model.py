"""The rules of recovery in thousands of random histories; and known-wrong rules, which fail."""

import functools
from dataclasses import replace

import pytest

from supabase_resilience.listener._changes import ChangeType, Key, Seen
from supabase_resilience.listener._follower import Follower, Position
from supabase_resilience.listener._passes import Outcome, Passes
from supabase_resilience.listener._reads import Plan
from supabase_resilience.listener._recovery import DOUBT, RowLedger, Snapshot, Verdict, _Mark
from supabase_resilience.listener._stream import Stream

from .model import Case, History, wrong_seeds

FILTER = "status=eq.open"
VERSIONED = Case()
BY_COLUMN = Case(level="by_column")
CHANGE_LOG = Case(level="change_log")

SITUATIONS = {
    "now": {"start_from": "now"},
    "nothing is lost": {"is_lossy": False},
    "several handlers": {"followers": 3, "buffer_size": 8},
    "a tiny buffer": {"buffer_size": 3, "followers": 2},
    "a tiny buffer from now on": {"buffer_size": 3, "start_from": "now"},
    "restarts": {"restarts": True},
    "restarts and a tiny buffer": {"restarts": True, "buffer_size": 5},
    "restarts from now on": {"restarts": True, "start_from": "now"},
    "without a queue": {"inline": True},
}
LEVELS = {
    "versioned": VERSIONED,
    "versioned, key diff": replace(VERSIONED, key_diff=True),
    "versioned, filter": replace(VERSIONED, filter=FILTER),
    "by column": BY_COLUMN,
    "by column, key diff": replace(BY_COLUMN, key_diff=True),
    "by column, filter": replace(BY_COLUMN, filter=FILTER, key_diff=True),
    "change log": CHANGE_LOG,
}


def test_versioned_ends_right_in_2000_histories():
    """Every row and every delete, whatever was lost, late, or written while pages were read."""
    assert {} == wrong_seeds(VERSIONED, range(2000))


@pytest.mark.parametrize("case", LEVELS.values(), ids=LEVELS)
def test_each_level_ends_right(case):
    """`by_column` with an overlap above the longest transaction; deletes where they are promised.

    Of the change log each entry is told once, and none is missing.
    """
    assert {} == wrong_seeds(case, range(2000, 2200))


def test_the_rows_that_a_log_begins_with_are_no_older_than_its_entries():
    """Of two changes that a row shows already, the first alone would undo the second."""
    assert {} == wrong_seeds(replace(CHANGE_LOG, steps=30), range(1500))


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_each_level_ends_right_in_each_situation(level, situation):
    """The positions that are kept, and the changes told again, leave no hole either."""
    case = replace(LEVELS[level], **SITUATIONS[situation])
    assert {} == wrong_seeds(case, range(3000, 3040))


@pytest.mark.parametrize("level", ["versioned", "versioned, filter", "change log"])
def test_a_handler_that_blocks_the_others_loses_nothing(level):
    """Changes that are held back are judged by the same rules when they are let go."""
    case = replace(LEVELS[level], overflow="block", buffer_size=3, followers=2)
    assert {} == wrong_seeds(case, range(4000, 4100))


# --- known-wrong rules ----------------------------------------------------------------------------


class AppliedAtOnce(Stream):
    """Holds nothing while pages are read."""

    def _hold(self, seen: Seen) -> None:
        self._judge(seen)


class ReplaceAll(RowLedger):
    """Believes whatever comes last, as stream builders of other SDKs do."""

    def live(self, seen: Seen) -> Verdict:
        if seen.partial:
            return DOUBT
        return self._end(seen.key) if seen.type == "DELETE" else self._take(seen)

    def row(self, seen: Seen) -> Verdict:
        return self._take(seen)

    def _take(self, seen: Seen) -> ChangeType:
        self._learn(seen.key, _Mark(seen.version or 0, is_read=True))
        return "UPDATE"

    def _end(self, key: Key) -> ChangeType:
        return self._bury(key, -1)


class BelievesDeletes(RowLedger):
    """A live delete is believed, though it can be that of an earlier life."""

    def _live_delete(self, key: Key, mark: _Mark | None) -> Verdict:
        return self._bury(key, -1 if mark is None else mark.version)


class VersionsOnly(RowLedger):
    """Has no window: a page brings back what was deleted after it was read."""

    def arrived(self, seen: Seen) -> None:
        pass


class ForgetsTheDead(RowLedger):
    """Remembers neither tombstones nor what a catch-up has covered."""

    def _bury(self, key: Key, version: int) -> ChangeType:
        self._known.pop(key, None)
        return "DELETE"

    def covered(self, told: Snapshot) -> None:
        pass


class CursorOfTheNewest(Passes):
    """Goes on behind the newest row seen, though open transactions may come to light before it."""

    newest = 0

    def _offer(self, follower: Follower, seen: Seen, outcome: Outcome) -> None:
        self.newest = max(self.newest, seen.xid or 0)
        super()._offer(follower, seen, outcome)

    def _finish(self, group: list[Follower], outcome: Outcome, position: Position) -> Plan[None]:
        beyond = position._replace(xid=max(position.xid, self.newest))
        return super()._finish(group, outcome, beyond)


class ForgetsWhoWasRunning(Passes):
    """Takes the log's entries from the oldest open transaction on for those after the position."""

    def _horizon(self, group: list[Follower], outcome: Outcome) -> Plan[tuple[Position, int]]:
        position, end = yield from super()._horizon(group, outcome)
        return position._replace(xmax=0), end


def versioned(ledger: type[RowLedger]) -> Case:
    return replace(VERSIONED, ledger=functools.partial(ledger, is_versioned=True, limit=None))


LOSSLESS = {"is_lossy": False, "stream": AppliedAtOnce}
WRONG = {
    "replace all": replace(versioned(ReplaceAll), **LOSSLESS),
    "replace all, held": versioned(ReplaceAll),
    "versions without a window": replace(versioned(VersionsOnly), **LOSSLESS),
    "deletes are believed": versioned(BelievesDeletes),
    "no memory of the dead": versioned(ForgetsTheDead),
    "cursor of the newest row": replace(VERSIONED, passes=CursorOfTheNewest),
    "the first page before the stream": replace(VERSIONED, is_early=True, is_lossy=False),
    "a log's position without its open transactions": replace(
        CHANGE_LOG, passes=ForgetsWhoWasRunning, steps=30
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_a_wrong_rule_ends_wrong(case):
    """Else the histories would prove nothing."""
    assert any(History(case, seed).run() for seed in range(2000))
