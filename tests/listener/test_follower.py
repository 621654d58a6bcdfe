"""A handler's queue: what is let in, what waits, and how far it has come."""

import json
from typing import Any

import pytest

from supabase_resilience.listener._changes import Change, Seen, Shape
from supabase_resilience.listener._follower import Follower, Position
from supabase_resilience.listener._recovery import (
    Ledger,
    LiveLedger,
    LogLedger,
    RowLedger,
    Snapshot,
)

SHAPE = Shape("public", "orders", ["id"])


def follower(ledger: Ledger | None = None, **options: Any) -> Follower:
    ledger = RowLedger(is_versioned=True) if ledger is None else ledger
    return Follower("mail", ledger, SHAPE, **{"limit": 3, "blocks": False, **options})


def row(key: int, version: int = 1, kind: Any = "UPDATE", **fields: Any) -> Seen:
    return Seen(kind, key, {"id": key}, {}, version, **fields)


def keys(changes: Any) -> list[Any]:
    return [change.key for change in changes]


# --- positions ------------------------------------------------------------------------------------

POSITIONS = [
    Position(),
    Position(2**62, "one"),
    Position(100, "one", started="today"),
    Position(100, "one", is_start=True, xmax=110, running=(100, 105)),
    Position(100, "one", started="today", xmax=110, running=(100,)),
    Position(value="2026-01-01T00:00:00.123456+00:00"),
    Position(value=2**62),
    Position(value=0),
]


@pytest.mark.parametrize("position", POSITIONS)
def test_position_as_json(position):
    """A cursor store gives back what it was given."""
    assert position == Position.from_json(json.loads(json.dumps(position.to_json())))


@pytest.mark.parametrize(
    "saved", [{}, {"xid": None}, {"xid": "7"}, {"xid": True}, {"xid": 1.5}, {"value": None}]
)
def test_no_position(saved):
    """What is none is refused."""
    with pytest.raises(ValueError, match="no position of a listener"):
        Position.from_json(saved)


def test_what_a_position_tells():
    """At the start nothing is told yet."""
    position = Position(100, xmax=110, running=(105,))
    assert Snapshot(100, 110, (105,)) == position.told
    assert Snapshot() == position._replace(is_start=True).told


# --- what comes in --------------------------------------------------------------------------------


def test_live_changes_wait_in_order():
    """News are queued and the handler is woken; what is no news is not."""
    woken: list[int] = []
    mine = follower()
    mine.live(row(1))
    mine.on_news(lambda: woken.append(mine.waiting))
    assert [True, True] == [mine.live(row(2)), mine.live(row(2))]
    assert [2] == woken
    assert [("live", 1), ("live", 2)] == [(change.source, change.key) for change in mine.next(9)]


def test_a_doubt_waits_for_a_read():
    """Nothing is queued; that one of several doubts was a delete is remembered."""
    mine = follower()
    mine.live(row(1)._replace(partial=True))
    mine.live(row(2, kind="DELETE"))
    mine.live(row(2)._replace(partial=True))
    assert ({1: False, 2: True}, 0) == (mine.doubts, mine.waiting)


def test_a_doubt_about_an_entry_is_read_by_number():
    """Keys say nothing in a log."""
    mine = follower(LogLedger())
    mine.live(row(1, 5)._replace(partial=True))
    assert {5: False} == mine.doubts


def test_only_what_it_wants():
    """A handler of deletes is not told of rows, live or read, but all is remembered."""
    mine = follower(wants="DELETE")
    mine.live(row(1))
    mine.tell(row(2), "INSERT")
    mine.live(row(1, kind="DELETE"))
    mine.tell(row(3), "DELETE")
    assert [("DELETE", 1), ("DELETE", 3)] == [(each.type, each.key) for each in mine.next(9)]
    assert 1 == mine.caught_up


def test_what_it_wants_of_a_moved_row():
    """In a log another key is a delete of the old one, ahead of the row with the new one."""
    moved = row(2, 5)._replace(old={"id": 1})
    expected = {
        None: [("DELETE", 1), ("UPDATE", 2)],
        "DELETE": [("DELETE", 1)],
        "UPDATE": [("UPDATE", 2)],
    }
    for wants, changes in expected.items():
        live, read = follower(LogLedger(), wants=wants), follower(LogLedger(), wants=wants)
        live.live(moved)
        read.tell(moved, "UPDATE")
        assert changes == [(each.type, each.key) for each in live.next(9)]
        assert changes == [(each.type, each.key) for each in read.next(9)]


def test_a_moved_row_of_a_table():
    """There the stream itself tells the delete."""
    mine = follower()
    mine.live(row(2)._replace(old={"id": 1}))
    assert [2] == keys(mine.next(9))


def test_inline():
    """It is called at once and nothing waits, whatever the limit."""
    told: list[Change] = []
    mine = follower(inline=told.append, limit=1)
    for key in range(3):
        assert mine.live(row(key))
    mine.tell(row(3), "INSERT")
    assert ([0, 1, 2, 3], 0, 4) == (keys(told), mine.waiting, mine.delivered)
    assert (True, False) == (mine.is_inline, follower().is_inline)


def test_from_now_on():
    """Its first catch-up tells nothing; what follows is told."""
    mine = follower(starts_now=True)
    mine.tell(row(1), "INSERT")
    assert (0, True) == (mine.waiting, mine.is_beginning)
    mine.mark(Position(100))
    mine.tell(row(2), "INSERT")
    assert ([2], False) == (keys(mine.next(9)), mine.is_beginning)


def test_a_log_from_now_on():
    """It is told all that its first position does not cover; only once."""
    mine = follower(LogLedger(), starts_now=True)
    mine.begin_now(Position(100, xmax=110, running=(105,)))
    mine.begin_now(Position(10**9))
    for number, xid in enumerate((99, 104, 105, 110)):
        mine.live(row(number, number, xid=xid))
    assert [2, 3] == keys(mine.next(9))


# --- how far it has come --------------------------------------------------------------------------


def test_a_position_is_acknowledged_behind_its_changes():
    """Not before the handler is through with all that came before it."""
    mine = follower()
    mine.tell(row(1), "INSERT")
    mine.tell(row(2), "INSERT")
    mine.mark(Position(100))
    first, second = mine.next(9)
    mine.done([first])
    assert mine.acked is None
    mine.done([second])
    assert (Position(100), 2, 0) == (mine.acked, mine.delivered, mine.waiting)


def test_a_position_with_nothing_before_it():
    """It is acknowledged at once, and so are several in a row."""
    mine = follower()
    mine.mark(Position(100))
    assert Position(100) == mine.acked
    mine.tell(row(1), "INSERT")
    mine.mark(Position(110))
    mine.mark(Position(120))
    mine.done(mine.next(9))
    assert Position(120) == mine.acked


def test_a_batch_ends_at_a_position():
    """And at the number that was asked for; what was handed out stays in line."""
    mine = follower(limit=9)
    for key in range(3):
        mine.tell(row(key), "INSERT")
    mine.mark(Position(100))
    mine.tell(row(3), "INSERT")
    assert [[0, 1], [0, 1, 2]] == [keys(mine.next(2)), keys(mine.next(9))]
    mine.done(mine.next(9))
    assert [3] == keys(mine.next(9))


def test_resumed():
    """It goes on where it was, is told what comes next, and late events of before are stale."""
    mine = follower(starts_now=True)
    mine.resume(Position(100))
    assert (Position(100), Position(100), True) == (mine.since, mine.acked, mine.is_resumed)
    mine.live(row(1, xid=99))
    mine.tell(row(2), "UPDATE")
    assert [2] == keys(mine.next(9))


def test_resumed_at_the_start():
    """Who died in the first reading is told all rows: no event is stale yet."""
    mine = follower()
    mine.resume(Position(100, is_start=True))
    mine.live(row(1, xid=99))
    assert ([1], True, True) == (keys(mine.next(9)), mine.needs_rows, mine.is_beginning)


@pytest.mark.parametrize(
    ("since", "needs"), [(None, True), (Position(1, is_start=True), True), (Position(1), False)]
)
def test_who_needs_all_rows(since, needs):
    """Whoever has no position, or only one ahead of the first row."""
    mine = follower()
    mine.since = since
    assert needs == mine.needs_rows


def test_rewound():
    """It begins a little earlier, and what comes from there is not stale."""
    mine = follower()
    mine.mark(Position(100))
    mine.rewind(Position(90))
    mine.live(row(1, xid=95))
    assert (Position(90), [1]) == (mine.since, keys(mine.next(9)))


# --- too much -------------------------------------------------------------------------------------


def test_room():
    """An empty queue has room for anything, else for as much as the limit leaves."""
    mine = follower()
    assert mine.has_room(100)
    mine.live(row(1))
    assert [True, False] == [mine.has_room(2), mine.has_room(3)]


def fill(mine: Follower) -> bool:
    return [mine.live(row(key, xid=200)) for key in range(4)][-1]


def test_overflow():
    """The queue is emptied; it begins again where its handler has come to, and all is news."""
    mine = follower()
    mine.mark(Position(100))
    mine.tell(row(9, xid=150), "INSERT")
    mine.done(mine.next(9))
    mine.tell(row(8, xid=150), "INSERT")
    mine.mark(Position(160))
    mine.done([])
    for key in range(2):
        mine.live(row(key, xid=200))
    assert not mine.live(row(2, xid=200))
    assert (Position(100), True, 0, 4) == (mine.since, mine.is_behind, mine.waiting, mine.dropped)
    verdicts = [mine.ledger.row(row(key, xid=150)) for key in (8, 0, 1, 2)]
    assert ["UPDATE"] * 4 == verdicts


def test_overflow_before_the_first_position():
    """It begins again at the beginning."""
    mine = follower()
    assert not fill(mine)
    assert (None, True, 4) == (mine.since, mine.is_behind, mine.dropped)


def test_overflow_without_recovery():
    """What is lost is lost, and what comes next is told."""
    mine = follower(LiveLedger())
    mine.is_behind = False
    assert not fill(mine)
    assert (False, 4) == (mine.is_behind, mine.dropped)
    assert mine.live(row(5))
    assert [5] == keys(mine.next(9))


def test_a_handler_that_was_busy_while_its_queue_overflowed():
    """What it has done is no longer in line, and takes nothing else out of it."""
    mine = follower()
    mine.live(row(1, xid=200))
    batch = mine.next(9)
    assert not [mine.live(row(key, xid=200)) for key in (2, 3, 4)][-1]
    mine.done(batch)
    assert 0 == mine.delivered
    mine.tell(row(5), "INSERT")
    mine.done(batch)
    assert ([5], 0) == (keys(mine.next(9)), mine.delivered)


def test_falling_behind():
    """It waits for its next catch-up from there."""
    mine = follower()
    mine.is_behind = False
    mine.fall_behind(Position(50))
    assert (Position(50), True) == (mine.since, mine.is_behind)
