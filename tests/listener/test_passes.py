"""What a catch-up asks for, in which order, and what it tells; answered by hand, read by read."""

from collections.abc import Callable
from typing import Any

import pytest

from supabase_resilience._queries import Rpc, Select
from supabase_resilience.errors import ListenerError
from supabase_resilience.listener import _passes
from supabase_resilience.listener._changes import Change, Seen, Shape
from supabase_resilience.listener._follower import Follower, Position
from supabase_resilience.listener._levels import Recovery
from supabase_resilience.listener._log import LogShape
from supabase_resilience.listener._passes import Outcome, Passes, migration_command
from supabase_resilience.listener._reads import Plan, Wait
from supabase_resilience.listener._recovery import MARGIN, LogLedger, RowLedger

COLUMN = Shape("public", "orders", ["id"])
VERSIONED = Shape("public", "orders", ["id"], version="sync_ver", xid="sync_xid")
TWO = Shape("public", "lines", ["order", "line"], version="sync_ver", xid="sync_xid")
OPEN = [("status", "eq", "open")]
EVENING, NIGHT = "2026-01-01T20:00:00+00:00", "2026-01-01T23:00:00+00:00"

Answer = list[Any] | dict[str, Any] | Callable[[], Any] | None


def passes(
    level: str = "versioned", *, where: Any = (), shape: Shape | None = None, **options: Any
) -> Passes:
    if level == "change_log":
        return Passes(COLUMN, Recovery.change_log(), (), log=LogShape(COLUMN))
    if level == "by_column":
        return Passes(COLUMN, Recovery.by_column("at", **options), where)
    return Passes(shape or VERSIONED, Recovery.versioned(**options), where)


def follower(
    name: str = "mail",
    *,
    ledger: Any = None,
    shape: Shape = VERSIONED,
    since: Position | None = None,
    **options: Any,
) -> Follower:
    ledger = RowLedger(is_versioned=True, limit=None) if ledger is None else ledger
    made = Follower(name, ledger, shape, **{"limit": 100, "blocks": False, **options})
    made.since = made.acked = since
    return made


def plain(name: str = "mail", **options: Any) -> Follower:
    return follower(name, ledger=RowLedger(is_versioned=False, limit=None), shape=COLUMN, **options)


def logged(name: str = "mail", **options: Any) -> Follower:
    return follower(name, ledger=LogLedger(), shape=COLUMN, **options)


def horizon(xmin: int = 100, xmax: int = 110, **more: Any) -> dict[str, Any]:
    return {
        "migration": 1,
        "recovery": "versioned",
        "key": ["id"],
        "floor": 0,
        "xmin": xmin,
        "xmax": xmax,
        "history": "one",
        **more,
    }


def log_horizon(**more: Any) -> dict[str, Any]:
    return horizon(recovery="change_log", **more)


def row(key: Any, version: int = 1, xid: int = 50, **more: Any) -> dict[str, Any]:
    return {"id": key, "sync_ver": version, "sync_xid": xid, **more}


def entry(seq: int, xid: int = 105, key: Any = 7) -> dict[str, Any]:
    return {
        "seq": seq,
        "xid": xid,
        "op": "UPDATE",
        "key": [key],
        "new": {"id": key},
        "old": None,
        "at": EVENING,
    }


def play(plan: Plan[Outcome], *answers: Answer) -> tuple[list[Any], Outcome]:
    """Give these answers; what was asked, and what came of it. A function is called when asked."""
    asked: list[Any] = []
    answer = None
    for following in (*answers, None):
        try:
            asked.append(plan.send(answer))
        except StopIteration as end:
            assert len(asked) == len(answers), f"it asked only {asked}"
            return asked, end.value
        answer = following() if callable(following) else following
    return pytest.fail(f"it asked for more: {asked[len(answers) :]}")


def told(one: Follower) -> list[tuple[str, Any]]:
    changes: list[Change] = []
    while batch := one.next(100):
        changes += batch
        one.done(batch)
    return [(change.type, change.key) for change in changes]


def functions(asked: list[Any]) -> list[str]:
    """In short: the function, `rows`, the column of a single condition `in`, or `wait`."""
    return [_short(read) for read in asked]


def _short(read: Any) -> str:
    if isinstance(read, Rpc):
        return read.function.removeprefix("supabase_resilience_")
    if isinstance(read, Wait):
        return "wait"
    operators = [operator for _, operator, _ in read.where]
    return "again" if "in" in operators else "keys" if read.columns else "rows"


# --- versioned ------------------------------------------------------------------------------------


def test_versioned_reads_the_horizon_first():
    """Then tombstones, then the rows below its end; the page ends only at an empty one."""
    mine = follower(since=Position(90, "one"))
    grave = {"id": 5, "key": [1], "ver": 3, "xid": 95, "alive": False}
    asked, outcome = play(
        passes().run([mine], 0), horizon(), [grave], [], [row(2, xid=95)], [row(3, xid=96)], []
    )
    assert ["horizon", "tombstones", "tombstones", "rows", "rows", "rows"] == functions(asked)
    assert [0, 5] == [asked[each].arguments["p_after"] for each in (1, 2)]
    assert {90} == {asked[each].arguments["p_since"] for each in (1, 2)}
    assert [("sync_xid", "lt", "110"), ("sync_xid", "gte", "90")] == asked[3].where
    assert ["sync_xid", "id"] == list(asked[3].order)
    assert "sync_xid.gt.95,and(sync_xid.eq.95,id.gt.2)" == asked[4].any_of
    assert [("DELETE", 1), ("INSERT", 2), ("INSERT", 3)] == told(mine)
    assert Position(100, "one") == mine.acked
    assert {1: None, 2: 1, 3: 1} == outcome.found


def test_a_beginning_that_is_kept_is_kept_first():
    """Ahead of the first row: whoever dies amid the rows hears of the deletes since."""
    mine = follower(is_kept=True)
    asked, outcome = play(passes().run([mine], 0), horizon())
    assert (["horizon"], True) == (functions(asked), outcome.goes_on)
    assert Position(100, "one", is_start=True) == mine.acked
    asked, outcome = play(passes().run([mine], 0), horizon(101), [], [row(1)], [])
    assert (["horizon", "tombstones", "rows", "rows"], False) == (functions(asked), outcome.goes_on)
    assert [("sync_xid", "lt", "110")] == asked[2].where, "all rows"
    assert ([("INSERT", 1)], Position(101, "one")) == (told(mine), mine.acked)


def test_a_beginning_that_is_not_kept():
    """It goes on at once."""
    mine = follower()
    _, outcome = play(passes().run([mine], 0), horizon(), [], [row(1)], [])
    assert (False, [("INSERT", 1)]) == (outcome.goes_on, told(mine))


def test_from_now_on():
    """What is there is learned and not told; what follows is told."""
    mine = follower(starts_now=True)
    play(passes().run([mine], 0), horizon(), [], [row(1, xid=105)], [])
    assert [] == told(mine)
    assert mine.live(Seen("UPDATE", 1, {}, {}, 1, 105))
    assert mine.live(Seen("UPDATE", 1, {}, {}, 2, 106))
    assert [("UPDATE", 1)] == told(mine)


def test_key_diff_instead_of_tombstones():
    """All keys are read; those that lack are looked at once more, a little later."""
    mine = follower(since=Position(90, "one"))
    mine.ledger.row(VERSIONED.read(row(1)))
    mine.ledger.row(VERSIONED.read(row(2)))
    asked, _ = play(passes(key_diff=True).run([mine], 0), horizon(), [], [{"id": 2}], [], None, [])
    assert ["horizon", "rows", "keys", "keys", "wait", "again"] == functions(asked)
    assert [("DELETE", 1)] == told(mine)


def test_key_diff_learns_what_was_never_told():
    """The end of a row that a handler knows from elsewhere is told, too."""
    mine, plan = follower(since=Position(90, "one")), passes(key_diff=True)
    play(plan.run([mine], 0), horizon(), [], [{"id": 1}, {"id": 2}], [])
    assert [] == told(mine)
    play(plan.run([mine], 0), horizon(), [], [{"id": 1}], [], None, [])
    assert [("DELETE", 2)] == told(mine)


def test_key_diff_at_the_beginning():
    """The rows have just been told; keys that came since are told with their rows."""
    mine, plan = follower(), passes(key_diff=True)
    play(plan.run([mine], 0), horizon(), [row(1)], [], [{"id": 1}, {"id": 2}], [])
    assert [("INSERT", 1)] == told(mine)
    play(plan.run([mine], 0), horizon(), [row(2, xid=105)], [], [{"id": 1}, {"id": 2}], [])
    assert [("INSERT", 2)] == told(mine)


def test_too_many_deletes_are_held():
    """More than the share looks like lost rights: none is told."""
    mine = follower(since=Position(90, "one"))
    for key in range(10):
        mine.ledger.row(VERSIONED.read(row(key)))
    keys = [{"id": key} for key in range(7)]
    _, outcome = play(passes(key_diff=True).run([mine], 0), horizon(), [], keys, [])
    assert ([("mail", 3, 10)], []) == (outcome.held, told(mine))
    _, outcome = play(
        passes(key_diff=True, max_delete_share=0.3).run([mine], 0),
        horizon(),
        [],
        keys,
        [],
        None,
        [],
    )
    assert ([], 3) == (outcome.held, len(told(mine)))


def test_a_key_that_is_back_when_confirmed():
    """It is not gone."""
    mine = follower(since=Position(90, "one"))
    mine.ledger.row(VERSIONED.read(row(1)))
    play(passes(key_diff=True).run([mine], 0), horizon(), [], [], None, [row(1, 2, 120)])
    assert [("UPDATE", 1)] == told(mine)


def test_the_window_of_a_page():
    """A row whose delete came live since the page was asked for is read again by its key."""
    mine = follower(since=Position(90, "one"))
    mine.ledger.row(VERSIONED.read(row(1)))

    def page() -> list[dict[str, Any]]:
        mine.ledger.arrived(Seen("DELETE", 1, {}, {}))
        return [row(1, 2, xid=95), row(2, xid=95)]

    asked, _ = play(passes().run([mine], 0), horizon(), [], page, [], [])
    assert [("id", "in", "(1)")] == asked[-1].where
    assert [("INSERT", 2), ("DELETE", 1)] == told(mine)


@pytest.mark.parametrize("key", [1, "a,b"])
def test_doubts_alone(key):
    """They are read by key, without a catch-up; a delete that was none is nothing new."""
    mine = follower(since=Position(90, "one"))
    mine.doubts = {key: True, 2: False, 3: True}
    asked, _ = play(passes().again([mine]), [row(key), row(2)])
    assert ["again"] == functions(asked)
    assert ([("INSERT", key), ("INSERT", 2), ("DELETE", 3)], {}) == (told(mine), mine.doubts)


def test_no_doubts():
    """Nothing is read."""
    plan = passes().again([follower()])
    with pytest.raises(StopIteration):
        next(plan)


def test_many_doubts():
    """No URL gets too long; and a key that is doubtful again and again is left for later."""
    mine = follower(since=Position(90, "one"))
    mine.doubts = dict.fromkeys(range(150), True)
    asked, _ = play(passes().again([mine]), [], [])
    assert [100, 50] == [len(read.where[0][2].split(",")) for read in asked]
    mine.doubts = {7: True}

    def born_and_gone() -> list[dict[str, Any]]:
        mine.ledger.arrived(Seen("DELETE", 7, {}, {}))
        return [row(7)]

    asked, _ = play(passes().again([mine]), *[born_and_gone] * 5)
    assert {7: False} == mine.doubts


def test_an_unknown_key_that_is_absent():
    """An event that only lacked values, of a row that is gone before anybody was told of it."""
    mine = follower()
    mine.doubts = {7: False}
    play(passes().again([mine]), [])
    assert [] == told(mine)


def test_followers_share_the_reads():
    """Each is told what is news to it, from where it is."""
    old, young = (
        follower("old", since=Position(90, "one")),
        follower("young", since=Position(60, "one")),
    )
    rows = [row(1, xid=70), row(2, xid=95)]
    grave = {"id": 5, "key": [3], "ver": 3, "xid": 70, "alive": False}
    asked, _ = play(passes().run([old, young], 0), horizon(), [grave], [], rows, [])
    assert {60} == {read.arguments["p_since"] for read in asked if _short(read) == "tombstones"}
    assert [("INSERT", 2)] == told(old)
    assert [("DELETE", 3), ("INSERT", 1), ("INSERT", 2)] == told(young)


def test_only_who_asked_is_told():
    """A doubt of one is none of the other, nor is a row that it was told."""
    one, other = follower("one"), follower("other")
    one.doubts, other.doubts = {1: False}, {2: False}
    other.ledger.row(VERSIONED.read(row(2)))
    play(passes().again([one, other]), [row(1), row(2)])
    assert ([("INSERT", 1)], []) == (told(one), told(other))


@pytest.mark.parametrize(
    ("level", "answers"),
    [("versioned", [horizon()]), ("by_column", [[]]), ("change_log", [log_horizon()])],
)
def test_nobody_listens(level, answers):
    """Only what is learned of refusals is read."""
    asked, _ = play(passes(level).run([], 0), *answers)
    assert 1 == len(asked)


def test_truncate():
    """All that is known is gone, and Realtime tells nothing of it."""
    mine = follower(since=Position(90, "one"))
    mine.ledger.row(VERSIONED.read(row(1)))
    grave = {"id": 5, "key": None, "ver": 9, "xid": 95, "alive": False}
    _, outcome = play(passes().run([mine], 0), horizon(), [grave], [], [])
    assert ([("DELETE", 1)], {1}) == (told(mine), outcome.silent)


def test_truncate_for_who_knows_more():
    """A resumed handler may know rows that this process does not: all end, and begin anew."""
    mine = follower()
    mine.resume(Position(90, "one"))
    mine.ledger.row(VERSIONED.read(row(1)))
    grave = {"id": 5, "key": None, "ver": 9, "xid": 95, "alive": False}
    seen = horizon(xmin=94, xip=[94])
    asked, _ = play(passes().run([mine], 0), seen, [grave], [], [row(2, 10, 60)], [])
    assert [("DELETE", 1), ("TRUNCATE", None), ("INSERT", 2)] == told(mine)
    assert [("sync_xid", "lt", "110")] == asked[3].where  # from the beginning
    play(passes().run([mine], 0), seen, [grave], [], [])
    assert [] == told(mine)  # a transaction that is still open makes it be read again


def test_truncate_for_who_has_forgotten():
    """A ledger that could not remember all keys can't tell the end of each."""
    mine = follower(ledger=RowLedger(is_versioned=True, limit=1), since=Position(90, "one"))
    for key in (1, 2):
        mine.ledger.row(VERSIONED.read(row(key)))
    grave = {"id": 5, "key": None, "ver": 9, "xid": 95, "alive": False}
    play(passes().run([mine], 0), horizon(), [grave], [], [])
    assert [("DELETE", 2), ("TRUNCATE", None)] == told(mine)


def test_composite_keys():
    """Tombstones, pages and single reads speak of all columns."""
    mine = follower(shape=TWO, since=Position(90, "one"))
    mine.doubts = {("y", 2): True}
    grave = {"id": 5, "key": ["x", 1], "ver": 3, "xid": 95, "alive": False}
    rows = [{"order": "z", "line": 3, "sync_ver": 1, "sync_xid": 95}]
    asked, _ = play(
        passes(shape=TWO).run([mine], 0), horizon(key=["order", "line"]), [grave], [], rows, [], []
    )
    assert (
        'sync_xid.gt.95,and(sync_xid.eq.95,order.gt."z"),and(sync_xid.eq.95,order.eq."z",line.gt.3)'
        == asked[4].any_of
    )
    assert 'and(order.eq."y",line.eq.2)' == asked[5].any_of
    assert [("DELETE", ("x", 1)), ("INSERT", ("z", 3)), ("DELETE", ("y", 2))] == told(mine)


# --- filters --------------------------------------------------------------------------------------


def test_a_row_that_left_the_filter():
    """What has changed at all is looked at: it is told as LEAVE, with its row, or as gone."""
    mine = follower(since=Position(90, "one"))
    for key in (1, 2, 3):
        mine.ledger.row(VERSIONED.read(row(key)))
    left = row(1, 2, 95, status="done")
    keys = [row(1, 2, 95), row(2, 2, 95), row(3, 1, 95)]
    asked, outcome = play(
        passes(where=OPEN).run([mine], 0), horizon(), [], keys, [], [row(2, 2, 95)], [left]
    )
    assert ["horizon", "tombstones", "keys", "keys", "again", "again"] == functions(asked)
    assert OPEN[0] not in asked[2].where
    assert ["sync_xid", "id", "sync_ver"] == list(asked[2].columns)
    assert [("id", "in", "(1,2)"), *OPEN] == asked[4].where
    assert [("id", "in", "(1)")] == asked[5].where
    assert [("LEAVE", 1), ("UPDATE", 2)] == told(mine)
    assert {1} == outcome.silent


def test_a_beginning_with_a_filter():
    """The rows that pass are read, all of them."""
    mine = follower()
    asked, _ = play(passes(where=OPEN).run([mine], 0), horizon(), [], [], [row(1)], [])
    assert [*OPEN, ("sync_xid", "lt", "110")] == asked[3].where
    assert [("INSERT", 1)] == told(mine)


def test_a_delete_under_a_filter():
    """Realtime may not have told it, for all it knows of the old row is its key."""
    mine = follower(since=Position(90, "one"))
    mine.ledger.row(VERSIONED.read(row(1)))
    grave = {"id": 5, "key": [1], "ver": 9, "xid": 95, "alive": False}
    _, outcome = play(passes(where=OPEN).run([mine], 0), horizon(), [grave], [], [])
    assert ([("DELETE", 1)], {1}) == (told(mine), outcome.silent)


# --- positions that are of no use -----------------------------------------------------------------

LOST = [
    ({"history": "two"}, Position(90, "one"), "another history"),
    ({"xmax": 100}, Position(101 + MARGIN, "one"), "behind the cursor"),
    ({"floor": 91}, Position(90, "one"), "retention"),
]


@pytest.mark.parametrize(("found", "since", "reason"), LOST)
def test_a_position_that_is_lost(found, since, reason):
    """All rows are told again, and what is not there any more is told as deleted."""
    mine = follower(since=since)
    mine.ledger.row(VERSIONED.read(row(1, 500)))
    mine.ledger.row(VERSIONED.read(row(2, 500)))
    _, outcome = play(passes().run([mine], 0), horizon(**found), [], [row(1, 3)], [], [])
    assert [("mail", reason)] == [(name, reason) for name, why in outcome.resyncs if reason in why]
    assert [("UPDATE", 1), ("DELETE", 2)] == told(mine)


def test_a_lost_position_without_room():
    """What is gone is told when all rows were read; until then it begins anew."""
    mine = follower(limit=1, since=Position(90, "zero"))
    mine.ledger.row(VERSIONED.read(row(9)))
    play(passes().run([mine], 0), horizon(), [], [row(1, xid=20)], [row(2, xid=30)])
    assert (True, True, [("INSERT", 1)]) == (mine.is_behind, mine.needs_rows, told(mine))
    play(passes().run([mine], 0), horizon(), [], [row(2, xid=30)], [], [])
    assert [("INSERT", 2), ("DELETE", 9), ("DELETE", 1)] == told(mine)


def test_a_position_without_a_history():
    """One that does not say is taken at its word."""
    mine = follower(since=Position(90))
    _, outcome = play(passes().run([mine], 0), horizon(), [], [])
    assert [] == outcome.resyncs


@pytest.mark.parametrize(("xid", "begins"), [(50_000, 50_000 - MARGIN), (5, 0)])
def test_a_server_that_was_started_anew(xid, begins):
    """After a crash some xids are given anew: it goes a little back, and says no resync."""
    mine = follower(since=Position(xid, "one", started="today"))
    found = horizon(60_000, 60_000, started="now", xip=[])
    asked, outcome = play(passes().run([mine], 0), found, [], [])
    assert (begins, []) == (asked[1].arguments["p_since"], outcome.resyncs)
    assert Position(60_000, "one", started="now", xmax=60_000) == mine.acked


# --- the migration --------------------------------------------------------------------------------

UNPREPARED = [
    ({"recovery": None}, "is not prepared for Recovery.versioned()"),
    ({"recovery": "change_log"}, "is not prepared for Recovery.versioned()"),
    ({"migration": 2}, "is not prepared for Recovery.versioned()"),
    ({"key": ["uuid"]}, "was made for the key ['uuid'], and id_column is ['id']"),
]


@pytest.mark.parametrize(("found", "message"), UNPREPARED)
def test_a_table_that_is_not_prepared(found, message):
    """The command to run is told."""
    plan = passes().run([follower()], 0)
    next(plan)
    with pytest.raises(ListenerError) as raised:
        plan.send(horizon(**found))
    assert message in str(raised.value)
    assert migration_command(VERSIONED, "versioned") in str(raised.value)


@pytest.mark.parametrize(
    ("shape", "level", "command"),
    [
        (VERSIONED, "versioned", "--table public.orders"),
        (VERSIONED, "change_log", "--table public.orders --recovery change-log"),
        (TWO, "versioned", "--table public.lines --key order,line"),
    ],
)
def test_the_command(shape, level, command):
    """It names the table, the recovery and a key that is not `id`."""
    assert f"python -m supabase_resilience sql listener {command}" == migration_command(
        shape, level
    )


# --- room -----------------------------------------------------------------------------------------


def test_a_handler_without_room_leaves():
    """The others go on; it begins again where it left, but not above the horizon."""
    since = Position(1, "one")
    slow, quick = follower("slow", limit=2, since=since), follower("quick", since=since)
    pages = [[row(1, xid=20), row(2, xid=30)], [row(3, xid=105)], []]
    asked, _ = play(passes().run([slow, quick], 0), horizon(), [], *pages)
    assert [2, 2, 2] == [read.limit for read in asked[2:]]
    assert (True, Position(30, "one")) == (slow.is_behind, slow.since)
    assert ([1, 2], [1, 2, 3]) == ([key for _, key in told(slow)], [key for _, key in told(quick)])
    assert (Position(1, "one"), Position(100, "one")) == (slow.acked, quick.acked)


def test_a_handler_that_leaves_above_the_horizon():
    """There more may come to light."""
    slow = follower(limit=1, since=Position(1, "one"))
    play(passes().run([slow], 0), horizon(), [], [row(1, xid=105)], [row(2, xid=106)])
    assert Position(100, "one") == slow.since


def test_a_handler_that_leaves_at_the_first_page():
    """It begins again where it began."""
    slow = follower(limit=2, since=Position(1, "one"))
    slow.live(Seen("UPDATE", 9, {}, {}, 1, 200))
    play(passes().run([slow], 0), horizon(), [], [row(1), row(2)])
    assert (Position(1, "one"), [("UPDATE", 9)]) == (slow.since, told(slow))


def test_a_handler_that_blocks_is_waited_for():
    """Nobody leaves."""
    slow = follower(limit=1, blocks=True, since=Position(1, "one"))
    seen: list[tuple[str, Any]] = []
    asked, _ = play(
        passes().run([slow], 0),
        horizon(),
        [],
        [row(1)],
        [row(2)],
        lambda: seen.extend(told(slow)),
        [],
    )
    assert ["horizon", "tombstones", "rows", "rows", "wait", "rows"] == functions(asked)
    assert [("INSERT", 1), ("INSERT", 2)] == [*seen, *told(slow)]


# --- by column ------------------------------------------------------------------------------------


def test_by_column():
    """The newest value first, then the rows from `since` on; the next begins an overlap earlier."""
    mine = plain(since=Position(value=EVENING))
    asked, _ = play(
        passes("by_column", overlap=3600).run([mine], 0),
        [{"at": NIGHT}],
        [{"id": 1, "at": NIGHT}],
        [],
    )
    newest = Select(
        ["at"], where=[("at", "not.is", "null")], order=["at"], is_descending=True, limit=1
    )
    assert newest == asked[0]
    assert [("at", "not.is", "null"), ("at", "gte", EVENING)] == asked[1].where
    assert ["at", "id"] == list(asked[1].order)
    assert [("INSERT", 1)] == told(mine)
    assert Position(value="2026-01-01T22:00:00+00:00") == mine.acked


def test_by_column_from_the_beginning():
    """Rows without a value come first; later passes do not look at them."""
    mine = plain()
    asked, _ = play(
        passes("by_column").run([mine], 0),
        [{"at": NIGHT}],
        [{"id": 1, "at": None}],
        [],
        [{"id": 2, "at": NIGHT}],
        [],
    )
    assert [("at", "is", "null")] == asked[1].where
    assert ["id"] == list(asked[1].order)
    assert [("INSERT", 1), ("INSERT", 2)] == told(mine)


def test_by_column_of_an_empty_table():
    """There is no position yet, and nothing to read by it."""
    mine, plan = plain(), passes("by_column")
    asked, _ = play(plan.run([mine], 0), [], [])
    assert ["keys", "rows"] == functions(asked)
    play(plan.run([mine], 60), [{"at": NIGHT}], [{"id": 1, "at": NIGHT}], [])
    assert [("INSERT", 1)] == told(mine)


def test_by_column_from_now_on():
    """It begins an overlap before the newest row, and tells none of those."""
    mine = plain(starts_now=True)
    asked, _ = play(
        passes("by_column", overlap=3600).run([mine], 0),
        [{"at": NIGHT}],
        [{"id": 1, "at": NIGHT}],
        [],
    )
    assert ("at", "gte", "2026-01-01T22:00:00+00:00") in asked[1].where
    assert [] == told(mine)


@pytest.mark.parametrize(
    ("seconds", "settled"), [(3599, "2026-01-01T22:00:00+00:00"), (3600, NIGHT)]
)
def test_a_quiet_table_is_not_read_again_and_again(seconds, settled):
    """What was the newest an overlap ago is settled: nothing open can come before it."""
    mine, plan = plain(since=Position(value=EVENING)), passes("by_column", overlap=3600)
    for now in (0, seconds):
        play(plan.run([mine], now), [{"at": NIGHT}], [])
    assert Position(value=settled) == mine.since


def test_a_table_that_was_emptied():
    """What was settled before stays so."""
    mine, plan = plain(since=Position(value=EVENING)), passes("by_column", overlap=60)
    play(plan.run([mine], 0), [{"at": NIGHT}], [])
    play(plan.run([mine], 100), [])
    assert Position(value=NIGHT) == mine.since


@pytest.mark.parametrize(("newest", "settled"), [(1000, 990), (1000.5, 990.5)])
def test_by_a_number(newest, settled):
    """The overlap counts in the unit of the column."""
    mine = plain(since=Position(value=1))
    play(passes("by_column", overlap=10).run([mine], 0), [{"at": newest}], [])
    assert Position(value=settled) == mine.since


@pytest.mark.parametrize("value", ["soon", [1], {"a": 1}])
def test_by_something_else(value):
    """It is refused."""
    plan = passes("by_column").run([plain()], 0)
    next(plan)
    with pytest.raises(
        ListenerError, match=r"must hold times or numbers; in public\.orders it does"
    ):
        plan.send([{"at": value}])


def test_by_column_with_a_filter():
    """Of rows without versions all that lie in the overlap are looked at."""
    mine = plain(since=Position(value=EVENING))
    mine.ledger.row(COLUMN.read({"id": 1, "at": EVENING}))
    asked, _ = play(
        passes("by_column", where=OPEN).run([mine], 0),
        [{"at": NIGHT}],
        [{"id": 1, "at": NIGHT}],
        [],
        [],
        [{"id": 1, "at": NIGHT, "status": "done"}],
    )
    assert ["keys", "keys", "keys", "again", "again"] == functions(asked)
    assert ["at", "id"] == list(asked[1].columns)
    assert [("LEAVE", 1)] == told(mine)


def test_by_column_at_different_places():
    """The earliest decides what is read; nobody is told what it was told."""
    old, young = (
        plain("old", since=Position(value=NIGHT)),
        plain("young", since=Position(value=EVENING)),
    )
    asked, _ = play(
        passes("by_column").run([old, young], 0),
        [{"at": NIGHT}],
        [{"id": 1, "at": EVENING}, {"id": 2, "at": NIGHT}],
        [],
    )
    assert ("at", "gte", EVENING) in asked[1].where
    assert ([("INSERT", 2)], [("INSERT", 1), ("INSERT", 2)]) == (told(old), told(young))


@pytest.mark.parametrize(
    ("at", "since"), [(EVENING, EVENING), (NIGHT, "2026-01-01T22:00:00+00:00")]
)
def test_by_column_without_room(at, since):
    """It goes on where it left, but not within the overlap."""
    slow = plain(limit=1, since=Position(value="2026-01-01T10:00:00+00:00"))
    play(
        passes("by_column", overlap=3600).run([slow], 0),
        [{"at": NIGHT}],
        [{"id": 1, "at": at}],
        [{"id": 2, "at": NIGHT}],
    )
    assert Position(value=since) == slow.since


def test_by_column_without_room_among_rows_without_a_value():
    """It begins anew: there is no order to go on in."""
    slow, quick = plain("slow", limit=1), plain("quick")
    nulls = [[{"id": key, "at": None}] for key in (1, 2)]
    play(passes("by_column").run([slow, quick], 0), [{"at": NIGHT}], *nulls, [], [])
    assert (True, None) == (slow.is_behind, slow.since)
    assert [("INSERT", 1), ("INSERT", 2)] == told(quick)


# --- change log -----------------------------------------------------------------------------------


def test_the_log():
    """The entries from the oldest open transaction on, each told once; then doubts by number."""
    mine = logged(since=Position(90, "one"))
    mine.doubts = {3: False, 4: False}
    asked, outcome = play(
        passes("change_log").run([mine], 0),
        log_horizon(xip=[100]),
        [entry(1), entry(2)],
        [],
        [entry(3)],
    )
    assert ["horizon", "changes", "changes", "changes"] == functions(asked)
    assert [0, 2] == [read.arguments["p_after"] for read in asked[1:3]]
    assert [3, 4] == asked[3].arguments["p_seqs"]
    assert [("UPDATE", 7)] * 3 == told(mine)
    assert ({1: 1, 2: 2, 3: 3}, {}) == (outcome.found, mine.doubts)
    assert Position(100, "one", xmax=110, running=(100,)) == mine.acked


def test_the_log_from_the_beginning():
    """First the rows of the table, then the entries that they do not tell of."""
    mine = logged()
    asked, _ = play(
        passes("change_log").run([mine], 0),
        log_horizon(),
        [{"id": 1}],
        [{"id": 2}],
        [],
        [entry(1, 95), entry(2)],
        [],
    )
    assert ["horizon", "rows", "rows", "rows", "changes", "changes"] == functions(asked)
    assert [("INSERT", 1), ("INSERT", 2)] == told(mine)[:2]


def test_the_log_from_now_on():
    """What had ended at the horizon is not told, what was running then is."""
    mine = logged(starts_now=True)
    asked, _ = play(
        passes("change_log").run([mine], 0),
        log_horizon(xip=[105]),
        [entry(1, 104), entry(2, 105)],
        [],
    )
    assert ["horizon", "changes", "changes"] == functions(asked)
    assert [("UPDATE", 7)] == told(mine)


def test_a_log_that_is_kept():
    """Its beginning is kept ahead of the first row."""
    mine = logged(is_kept=True)
    _, outcome = play(passes("change_log").run([mine], 0), log_horizon())
    assert (True, True) == (outcome.goes_on, mine.needs_rows)


def test_the_rows_of_a_log_wait_for_room():
    """Of a handler that blocks the others when its queue is full."""
    mine = logged(limit=1, blocks=True)
    seen: list[tuple[str, Any]] = []
    asked, _ = play(
        passes("change_log").run([mine], 0),
        log_horizon(),
        [{"id": 1}],
        [{"id": 2}],
        lambda: seen.extend(told(mine)),
        [],
        [],
    )
    assert ["horizon", "rows", "rows", "wait", "rows", "changes"] == functions(asked)
    assert [("INSERT", 1), ("INSERT", 2)] == [*seen, *told(mine)]


def test_the_rows_of_a_log_wait_for_nobody():
    """Who has no room leaves, and goes on there when its queue is empty; the others get all."""
    plans, mine, other = passes("change_log"), logged("slow", limit=1), logged("quick")
    rows = [[{"id": 1}], [{"id": 2}], []]
    asked, _ = play(plans.run([mine, other], 0), log_horizon(), *rows, [])
    assert ["horizon", "rows", "rows", "rows", "changes"] == functions(asked)
    assert [("INSERT", 1), ("INSERT", 2)] == told(other)
    assert (True, {"id": 1}) == (mine.needs_rows, mine.left_at)
    assert [("INSERT", 1)] == told(mine)
    asked, _ = play(plans.run([mine], 0), log_horizon(), [{"id": 2}], [], [])
    assert [("id", "gt", "1")] == asked[1].where
    assert [("INSERT", 2)] == told(mine)
    assert (False, None) == (mine.needs_rows, mine.left_at)


def test_a_log_without_room():
    """It begins again where it began: entries are in no order of positions."""
    mine = logged(limit=1, since=Position(90, "one"))
    asked, _ = play(passes("change_log").run([mine], 0), log_horizon(), [entry(1)], [entry(2)])
    assert (Position(90, "one"), True) == (mine.since, mine.is_behind)
    assert ["horizon", "changes", "changes"] == functions(asked)


def test_a_table_in_memory_of_another_history():
    """It is emptied before it is told the rows again."""
    changes: list[Change] = []
    mine = logged(inline=changes.append, since=Position(90, "zero"))
    mine.tell(Seen("INSERT", 9, {"id": 9}, {}), "INSERT")
    _, outcome = play(passes("change_log").run([mine], 0), log_horizon(), [{"id": 1}], [], [])
    assert ["INSERT", "TRUNCATE", "INSERT"] == [change.type for change in changes]
    assert 1 == len(outcome.resyncs)


def test_doubts_about_entries():
    """They are read by number; those that are gone are forgotten."""
    mine = logged(since=Position(90, "one"))
    mine.doubts = {5: False, 6: False}
    asked, _ = play(passes("change_log").again([mine]), [entry(5)])
    assert ["changes"] == functions(asked)
    assert ([("UPDATE", 7)], {}) == (told(mine), mine.doubts)


def test_doubts_of_another_handler():
    """An entry is told only to those who asked, and to nobody twice."""
    one, other = (
        logged("one", since=Position(90, "one")),
        logged("other", since=Position(90, "one")),
    )
    one.doubts, other.doubts = {5: False}, {6: False}
    other.live(Seen("UPDATE", 7, {}, {}, 6, 105))
    play(passes("change_log").again([one, other]), [entry(5), entry(6)])
    assert ([("UPDATE", 7)], [("UPDATE", 7)]) == (told(one), told(other))


def test_many_doubts_about_entries():
    """No request gets too long."""
    mine = logged(since=Position(90, "one"))
    mine.doubts = dict.fromkeys(range(_passes.KEYS_PER_READ + 1), False)
    asked, _ = play(passes("change_log").again([mine]), [], [])
    assert [100, 1] == [len(read.arguments["p_seqs"]) for read in asked]


def test_what_was_found_is_noted_on_the_way():
    """Also by a pass that fails later."""
    mine, outcome = follower(since=Position(90, "one")), Outcome()
    plan = passes().run([mine], 0, outcome)
    for answer in (None, horizon(), [], [row(1, xid=95)]):
        plan.send(answer)
    plan.close()
    assert ({1: 1}, Position(90, "one")) == (outcome.found, mine.since)


@pytest.mark.parametrize("start", [5, "2026-01-01T00:00:00+00:00"])
def test_what_is_at_the_very_start_was_not_told(start):
    """A position is where to go on, so that row is read by all."""
    assert not _passes._later(start, start)
    assert _passes._later(6, 5)
    assert _passes._later("2026-01-01T01:00:00+00:00", "2026-01-01T01:59:59+01:00")
