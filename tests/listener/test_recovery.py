"""The rules of the ledgers, one by one; `test_recovery_model` shows that together they suffice."""

from typing import Any

import pytest

from supabase_resilience.listener import _recovery
from supabase_resilience.listener._changes import Change, Seen, Shape
from supabase_resilience.listener._recovery import (
    DOUBT,
    MARGIN,
    Ledger,
    LiveLedger,
    LogLedger,
    RowLedger,
    Snapshot,
    exceeds_share,
)

SHAPE = Shape("public", "orders", ["id"])


def row(version: int | None = None, *, key: Any = 7, xid: int | None = None, **new: Any) -> Seen:
    return Seen("UPDATE", key, {"id": key, **new}, {}, version, xid)


def delete(key: Any = 7) -> Seen:
    return Seen("DELETE", key, {}, {"id": key})


def told(*seen: Seen) -> list[Change]:
    return [SHAPE.change(each, each.type, "live") for each in seen]


@pytest.fixture
def versioned() -> RowLedger:
    return RowLedger(is_versioned=True)


@pytest.fixture
def plain() -> RowLedger:
    return RowLedger(is_versioned=False)


# --- which transactions had ended -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("xid", "ended"), [(9, True), (10, False), (11, True), (12, False), (13, True), (14, False)]
)
def test_snapshot(xid, ended):
    """All below `xmin` had ended, and below `xmax` all but those that were running."""
    assert ended == Snapshot(10, 14, (10, 12)).has(xid)


# --- live events ----------------------------------------------------------------------------------


def test_live_rows_are_told_once(versioned):
    """A version that was told, or an older one, is nothing new."""
    assert ["UPDATE", None, None, "UPDATE"] == [
        versioned.live(row(version)) for version in (2, 2, 1, 3)
    ]


def test_what_a_catch_up_has_covered_is_stale(versioned):
    """However late it comes, and of whatever key."""
    versioned.covered(Snapshot(100))
    assert [None, "UPDATE"] == [versioned.live(row(1, xid=99)), versioned.live(row(2, xid=100))]


def test_covering_never_goes_back(versioned):
    """A smaller horizon takes nothing back."""
    versioned.covered(Snapshot(100))
    versioned.covered(Snapshot(50))
    assert versioned.live(row(1, xid=99)) is None


def test_covering_goes_on_behind_an_open_transaction(versioned):
    """The oldest one may be the same as before, and more have ended above it."""
    versioned.covered(Snapshot(100, 110, (100,)))
    versioned.covered(Snapshot(100, 120, (100,)))
    assert [None, "UPDATE"] == [versioned.live(row(1, xid=115)), versioned.live(row(2, xid=100))]


def test_the_end_of_a_live_row_is_told_once(versioned):
    """The stream is in order: a delete behind a live row is its end."""
    versioned.live(row(2))
    assert ["DELETE", None] == [versioned.live(delete()), versioned.live(delete())]
    assert not versioned.knows(7)


def test_what_came_before_a_delete_is_stale(versioned):
    """A late event does not bring back a row of at most the version that ended."""
    versioned.live(row(2))
    versioned.live(delete())
    assert [None, None, "UPDATE"] == [versioned.live(row(version)) for version in (1, 2, 3)]


@pytest.mark.parametrize("is_read", [True, False])
def test_a_delete_of_what_did_not_come_live_is_a_doubt(versioned, is_read):
    """It can be that of an earlier life: of a row that was read, or of one that is unknown."""
    if is_read:
        versioned.row(row(2))
    assert DOUBT == versioned.live(delete())
    assert is_read == versioned.knows(7)


def test_the_stream_catches_up_with_a_read(versioned):
    """When the version that was read has come live, too, a delete behind it is believed."""
    versioned.row(row(2))
    assert [None, "DELETE"] == [versioned.live(row(2)), versioned.live(delete())]


def test_a_partial_event_is_a_doubt(versioned):
    """Only its key is believed; but a delete has no values to lack."""
    assert DOUBT == versioned.live(row(2)._replace(partial=True))
    assert not versioned.knows(7)


def test_without_a_version_the_row_decides(plain):
    """A live row is told, even when it is as before: the stream repeats nothing."""
    assert ["UPDATE"] * 3 == [plain.live(row(a=value)) for value in (1, 1, 2)]


def test_without_a_version_a_row_that_was_read_comes_once_more(plain):
    """Its event is nothing new; the next one is, even when it tells the same."""
    plain.row(row(a=1))
    assert [None, "UPDATE"] == [plain.live(row(a=1)), plain.live(row(a=1))]


# --- rows that were read --------------------------------------------------------------------------


def test_a_read_row_is_told_once(versioned):
    """The first of its key is an INSERT, a greater version an UPDATE."""
    assert ["INSERT", None, None, "UPDATE"] == [
        versioned.row(row(version)) for version in (2, 2, 1, 3)
    ]


def test_a_read_row_loses_against_a_live_delete(versioned):
    """The page was asked for before the delete came, so it may have been read before it, too."""
    versioned.requested()
    versioned.arrived(delete())
    assert DOUBT == versioned.row(row(2))
    versioned.requested()
    assert "INSERT" == versioned.row(row(2)), "the next page is read later"


@pytest.mark.parametrize(("is_versioned", "verdict"), [(True, "INSERT"), (False, None)])
def test_a_read_row_and_a_live_event(is_versioned, verdict):
    """Without versions it cannot be known which of them is newer, and the event comes next."""
    ledger = RowLedger(is_versioned=is_versioned)
    ledger.arrived(row(3))
    assert verdict == ledger.row(row(2))


def test_a_key_that_is_born_again_meanwhile(plain):
    """A delete and an INSERT behind it: the later one counts."""
    plain.arrived(delete())
    plain.arrived(row())
    assert DOUBT == plain.row(row()), "the delete may be the later one of what the page shows"
    assert plain.absent(7) is None
    plain.arrived(delete())
    assert "DELETE" == plain.absent(7), "and gone again"


def test_the_window_begins_with_each_request(plain):
    """What came before a page was requested cannot be newer than the page."""
    plain.arrived(row())
    plain.requested()
    assert "INSERT" == plain.row(row())


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": {"b": [1, {"c": None}]}}, {"a": {"b": [1, {"c": None}]}}, None),
        ({"a": {"b": [1]}}, {"a": {"b": [2]}}, "UPDATE"),
        ({"a": [1, 2]}, {"a": [2, 1]}, "UPDATE"),
        ({"a": 1}, {"a": 1.0}, "UPDATE"),
        ({"a": 1}, {"a": True}, "UPDATE"),
        ({"a": None}, {"b": None}, "UPDATE"),
    ],
)
def test_without_a_version_rows_are_compared(plain, before, after, verdict):
    """By all of their values and the types of these."""
    plain.row(row(**before))
    assert verdict == plain.row(row(**after))


def test_a_row_without_its_version(versioned):
    """It is below all others: told when its key is unknown, and never over what is known."""
    assert ["INSERT", None] == [versioned.row(row(None)), versioned.row(row(None))]


@pytest.mark.parametrize(
    ("known", "version", "news"),
    [(None, 1, True), (2, 1, False), (2, 2, False), (2, 3, True), (2, None, True)],
)
def test_news_by_version(versioned, known, version, news):
    """A greater version is worth a look, and so is what cannot be compared."""
    if known is not None:
        versioned.row(row(known))
    assert news == versioned.has_news(row(version))


def test_news_without_versions(plain):
    """Everything may be news."""
    plain.row(row())
    assert plain.has_news(row())


# --- rows that are gone ---------------------------------------------------------------------------


def test_an_absent_key_is_told_once(versioned):
    """Known or not; and what it was before is stale from then on."""
    versioned.row(row(2))
    assert ["DELETE", None, "DELETE"] == [
        versioned.absent(7),
        versioned.absent(7),
        versioned.absent(8),
    ]
    assert versioned.live(row(2)) is None


def test_an_absent_key_whose_event_came_meanwhile(versioned):
    """The event is judged next."""
    versioned.row(row(2))
    versioned.arrived(row(3))
    assert versioned.absent(7) is None
    assert versioned.knows(7)


@pytest.mark.parametrize(
    ("known", "is_alive", "verdict"),
    [
        (None, False, "DELETE"),
        (4, False, "DELETE"),
        (5, False, "DELETE"),
        (6, False, None),
        (4, True, None),
        (None, True, None),
    ],
)
def test_tombstone(versioned, known, is_alive, verdict):
    """It ends what is known, unless that is of a later life, or there is one to be read."""
    if known is not None:
        versioned.row(row(known))
    assert verdict == versioned.tombstone(7, 5, is_alive=is_alive)


def test_a_new_life_is_news(versioned):
    """After the tombstone of the old one its row has a greater version."""
    versioned.row(row(4))
    versioned.tombstone(7, 5, is_alive=True)
    assert "UPDATE" == versioned.row(row(6))


def test_a_tombstone_is_told_once(versioned):
    """Not again in the next pass; but of another life that nobody saw it is."""
    assert ["DELETE", None, None, "DELETE"] == [
        versioned.tombstone(7, version, is_alive=False) for version in (5, 5, 4, 6)
    ]


def test_the_tombstone_of_a_live_delete(versioned):
    """An end that was told without a version is that of the next tombstone."""
    versioned.absent(7)
    assert [None, None, "DELETE"] == [
        versioned.tombstone(7, version, is_alive=False) for version in (5, 5, 6)
    ]


def test_truncate(versioned):
    """All keys with a smaller version are gone; what came later is not."""
    for key, version in ((1, 4), (2, 5), (3, 6)):
        versioned.row(row(version, key=key))
    assert [1, 2] == versioned.truncated(5)
    assert [False, False, True] == [versioned.knows(key) for key in (1, 2, 3)]
    assert [] == versioned.truncated(5)


def test_missing(versioned):
    """What a complete list of keys lacks is missing, unless it has come since it was asked for."""
    for key in (1, 2, 3):
        versioned.row(row(1, key=key))
    versioned.requested()
    versioned.arrived(row(2, key=3))
    assert [2] == versioned.missing({1, 9})


@pytest.mark.parametrize(
    ("gone", "known", "share", "exceeds"),
    [
        (1, 1, 0.2, False),
        (1, 3, 0, False),
        (2, 10, 0.2, False),
        (3, 10, 0.2, True),
        (2, 3, 0.2, True),
        (3, 3, 1, False),
    ],
)
def test_max_delete_share(gone, known, share, exceeds):
    """More than the share of the known rows is too much; a single one never is."""
    assert exceeds == exceeds_share(gone, known, share)


# --- what the handler may know from elsewhere -----------------------------------------------------


def test_learned_keys(versioned):
    """Their end is told, their rows are news, and what is known already stays known."""
    versioned.row(row(5, key=1))
    versioned.learn({1, 2, 3})
    assert 3 == len(versioned)
    assert [None, "UPDATE"] == [versioned.row(row(5, key=1)), versioned.row(row(1, key=2))]
    assert [DOUBT, "DELETE"] == [versioned.live(delete(3)), versioned.absent(3)]


def test_forgotten_ends(versioned):
    """Ends that only were learned are told when they are found again."""
    versioned.tombstone(7, 5, is_alive=False)
    versioned.forget_gone()
    assert "DELETE" == versioned.tombstone(7, 5, is_alive=False)


# --- changes that never reached the handler -------------------------------------------------------


@pytest.mark.parametrize("last", ["UPDATE", "DELETE"])
def test_dropped_changes_are_news(versioned, last):
    """Row or end: found again they are told again, and nothing is covered that was before."""
    versioned.live(row(2, xid=150))
    versioned.covered(Snapshot(200))
    changes = told(row(2), *([delete()] if last == "DELETE" else []))
    if last == "DELETE":
        versioned.live(delete())
    versioned.dropped(changes, Snapshot(100))
    if last == "DELETE":
        assert "DELETE" == versioned.tombstone(7, 2, is_alive=False)
    else:
        assert "UPDATE" == versioned.row(row(2, xid=150))


def test_dropped_changes_are_not_covered(versioned):
    """What was covered since then is news again, too."""
    versioned.covered(Snapshot(200))
    versioned.dropped([], Snapshot(100))
    assert ["UPDATE", None] == [versioned.live(row(1, xid=150)), versioned.live(row(2, xid=99))]


def test_rewound(versioned):
    """After a crash of the server some xids are given anew."""
    versioned.covered(Snapshot(100))
    versioned.rewound(90)
    assert ["UPDATE", None] == [versioned.live(row(1, xid=95)), versioned.live(row(2, xid=89))]


def test_restored(versioned):
    """In another history versions may be smaller; keys stay known, so their end is told."""
    versioned.covered(Snapshot(100))
    versioned.row(row(50, key=1))
    versioned.tombstone(2, 60, is_alive=False)
    versioned.live(row(70, key=3, xid=200))
    versioned.restored()
    assert DOUBT == versioned.live(delete(3)), "of which history it is cannot be known"
    assert ["UPDATE", "UPDATE"] == [
        versioned.row(row(3, key=1, xid=9)),
        versioned.live(row(4, key=2, xid=9)),
    ]


# --- memory ---------------------------------------------------------------------------------------


def test_only_the_newest_keys_are_remembered():
    """What is forgotten may be told twice; a key that is told again is new."""
    ledger = RowLedger(is_versioned=True, limit=2)
    for key in (1, 2, 1, 3):
        ledger.row(row(key + len(ledger), key=key))
    assert 2 == len(ledger)
    assert [True, False, True] == [ledger.knows(key) for key in (1, 2, 3)]


def test_a_forgotten_row_has_no_end():
    """It was told after the end of its earlier life, so a delete is no longer an old one."""
    ledger = RowLedger(is_versioned=True, limit=1)
    ledger.tombstone(7, 5, is_alive=False)
    ledger.row(row(6))
    ledger.row(row(1, key=8))
    assert DOUBT == ledger.live(delete())


def test_only_the_newest_ends_are_remembered(versioned, monkeypatch):
    """An end that is forgotten may be told twice."""
    monkeypatch.setattr(_recovery, "_LIMIT", 2)
    for key in (1, 2, 3):
        versioned.absent(key)
    assert [DOUBT, None, None] == [versioned.live(delete(key)) for key in (1, 2, 3)]


def test_without_a_limit_all_keys_are_remembered():
    """For a table in memory, and for a comparison of keys."""
    ledger = RowLedger(is_versioned=True, limit=None)
    for key in range(1000):
        ledger.row(row(1, key=key))
    assert 1000 == len(ledger)


# --- the change log -------------------------------------------------------------------------------


def entry(number: int, xid: int = 100, **fields: Any) -> Seen:
    return Seen("INSERT", 7, {"id": 7}, {}, number, xid, **fields)


def test_an_entry_is_told_once():
    """By its number, however it came."""
    log = LogLedger()
    assert ["INSERT", None, "INSERT"] == [log.live(entry(1)), log.row(entry(1)), log.row(entry(2))]
    assert 2 == len(log)


def test_a_partial_entry_is_a_doubt():
    """It is read again by its number."""
    log = LogLedger()
    assert [DOUBT, "INSERT"] == [log.live(entry(1, partial=True)), log.row(entry(1))]


def test_covered_entries_are_stale():
    """All that had ended; one of a transaction that was running is told."""
    log = LogLedger()
    log.covered(Snapshot(100, 110, (105,)))
    assert [None, None, "INSERT", "INSERT"] == [
        log.live(entry(number, xid)) for number, xid in ((1, 99), (2, 104), (3, 105), (4, 110))
    ]


def test_an_older_snapshot_covers_nothing_more():
    """Covering never goes back."""
    log = LogLedger()
    log.covered(Snapshot(100))
    log.covered(Snapshot(90, 95, (90,)))
    assert log.live(entry(1, 99)) is None


def test_covering_a_log_goes_on_behind_an_open_transaction():
    """The oldest one may be the same as before, and more have ended above it."""
    log = LogLedger()
    log.covered(Snapshot(100, 110, (100,)))
    log.covered(Snapshot(100, 120, (100,)))
    assert [None, "INSERT"] == [log.live(entry(1, 115)), log.live(entry(2, 100))]


def test_old_numbers_are_forgotten():
    """But for those that a crash of the server could bring up again."""
    log = LogLedger()
    log.row(entry(1, 100))
    log.row(entry(2, 101))
    log.covered(Snapshot(101 + MARGIN))
    assert 1 == len(log)


def test_dropped_entries_are_news():
    """They are told when they are found again."""
    log = LogLedger()
    log.row(entry(1))
    log.row(entry(2))
    log.covered(Snapshot(200))
    log.dropped(told(entry(2), entry(2)._replace(version=None)), Snapshot(50))
    assert [None, "INSERT"] == [log.row(entry(1)), log.row(entry(2))]


def test_a_rewound_log_repeats_nothing():
    """Which entries were told is still known; what has a reused xid is told."""
    log = LogLedger()
    log.row(entry(1, 95))
    log.covered(Snapshot(100))
    log.rewound(90)
    assert [None, "INSERT"] == [log.row(entry(1, 95)), log.row(entry(2, 95))]


def test_a_log_begins_behind_the_rows():
    """What the rows tell is not told again, all else is."""
    log = LogLedger()
    log.row(entry(1, 105))
    log.begin(Snapshot(100, 110, (105,)))
    assert [None, "INSERT"] == [log.row(entry(2, 104)), log.row(entry(1, 105))]


def test_a_log_needs_no_window():
    """What comes in meanwhile changes no verdict."""
    log = LogLedger()
    log.arrived(entry(1))
    log.requested()
    assert "INSERT" == log.row(entry(1))


# --- no recovery ----------------------------------------------------------------------------------


def test_without_recovery_everything_is_told():
    """Also twice: nothing is remembered."""
    ledger: Ledger = LiveLedger()
    ledger.requested()
    ledger.arrived(row())
    ledger.dropped(told(row()), Snapshot())
    ledger.covered(Snapshot(10**9))
    ledger.rewound(1)
    assert ["UPDATE", "UPDATE", "DELETE", "UPDATE"] == [
        ledger.live(row(1, xid=1)),
        ledger.live(row(1, xid=1)),
        ledger.live(delete()),
        ledger.row(row(1)),
    ]
    assert 0 == len(ledger)


def test_a_ledger_knows_whether_it_has_forgotten():
    """From the first row beyond its limit on, until the handler knows no row at all."""
    ledger = RowLedger(is_versioned=True, limit=2)
    forgotten = [ledger.has_forgotten]
    for key in range(3):
        ledger.live(row(1, key=key))
        forgotten.append(ledger.has_forgotten)
    ledger.emptied()
    assert [False, False, False, True, False] == [*forgotten, ledger.has_forgotten]
