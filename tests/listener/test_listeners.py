"""What a listener tells, in both colours and at every level of recovery."""

import pytest

from supabase_resilience.listener import _recoverer

from .worlds import (
    ADA,
    BY_COLUMN,
    CHANGE_LOG,
    COLUMNS,
    KEY_DIFF,
    LIVE,
    RECOVERING,
    VERSIONED,
    VERSIONED_RLS,
    Ear,
)

every_level = pytest.mark.parametrize("level", [LIVE, *RECOVERING], ids=lambda level: level.name)
recovering = pytest.mark.parametrize("level", RECOVERING, ids=lambda level: level.name)
complete = pytest.mark.parametrize(
    "level", [KEY_DIFF, VERSIONED, CHANGE_LOG], ids=lambda level: level.name
)


# --- live -----------------------------------------------------------------------------------------


@every_level
def test_changes_come_live(bench, level):
    """In the order of a row's changes, with its values, and a delete with its key."""
    table = bench.table(level)
    _, ear = bench.hear(table)
    key = table.insert("a")
    table.update(key, "b")
    # Under RLS, Realtime tells only of rows that are still there when it looks.
    bench.eventually(lambda: len(ear.changes) == 2)
    table.delete(key)
    bench.eventually(lambda: len(ear.changes) == 3)
    inserted, updated, deleted = ear.changes
    assert [("INSERT", key), ("UPDATE", key), ("DELETE", key)] == ear.told
    assert ["live"] * 3 == [change.source for change in ear.changes]
    assert ["a", "b"] == [inserted.new["name"], updated.new["name"]]
    assert {} == inserted.old
    assert {} == deleted.new
    assert key == deleted.old["id"]
    assert ("public", table.name) == (deleted.schema, deleted.table)
    assert all(change.commit_timestamp for change in ear.changes)


# --- missed ---------------------------------------------------------------------------------------


@recovering
def test_what_was_missed_is_found(bench, level):
    """Whatever was written while Realtime was away; and then it is live again."""
    table = bench.table(level)
    kept, changed, gone = (table.insert(name) for name in ("kept", "changed", "gone"))
    listener, ear = bench.hear(table, start_from="beginning")
    bench.eventually(lambda: len(ear.changes) == 3)
    bench.local.realtime.kill()
    table.update(changed, "changed once")
    table.update(changed, "changed twice")
    new = table.insert("new")
    brief = table.insert("brief")
    table.delete(brief)
    table.delete(gone)
    bench.local.realtime.start()
    expected = {kept: "kept", changed: "changed twice", new: "new"}
    if not level.finds_deletes:
        expected[gone] = "gone"
    bench.eventually(lambda: ear.names == expected)
    listener.ready(30)
    later = table.insert("later")
    bench.eventually(lambda: later in ear.rows)
    assert "live" == ear.changes[-1].source
    if level is CHANGE_LOG:
        assert ["changed once", "changed twice"] == [
            change.new["name"] for change in ear.changes if change.type == "UPDATE"
        ]
        assert [("INSERT", brief), ("DELETE", brief)] == [
            told for told in ear.told if told[1] == brief
        ]


@complete
def test_values_are_the_same_live_and_caught_up(bench, level):
    """Whatever the type; so nobody can tell how a row came."""
    more = """,
      blob bytea, price numeric, huge numeric(40, 10), at timestamptz, bare timestamp, day date,
      moment time, span interval, data jsonb, doc json, tags text[], matrix int[][], big bigint,
      ratio float8, small real, flag boolean, other uuid, kind char(3), net inet, range int4range
    """
    table = bench.table(level, COLUMNS + more)
    _, live = bench.hear(table)
    full = table.insert(
        'all "types", \\ and\nlines é 漢',
        blob=b"\x00\xde\xad",
        price="12.3400",
        huge="123456789012345678901234567890.0123456789",
        at="2026-03-01 12:30:00.123456+05:30",
        bare="2026-03-01 12:30:00.5",
        day="2026-03-01",
        moment="12:30:00",
        span="1 day 02:03:04.5",
        data='{"b": [1, 2.50, null, "x"], "a": {"deep": true}}',
        doc='{"b":1, "a":2}',
        tags=["a", 'b,"c"', "", "null"],
        matrix=[[1, 2], [3, 4]],
        big=9223372036854775807,
        ratio="0.1",
        small="0.1",
        flag=False,
        other=ADA,
        kind="ab",
        net="10.0.0.1/8",
        range="[1,5)",
    )
    nothing = table.insert(None)
    bench.eventually(lambda: len(live.rows) == 2)
    _, read = bench.hear(table, start_from="beginning")
    assert {"live"} == {change.source for change in live.changes}
    bench.eventually(lambda: len(read.rows) == 2)
    assert {"catch_up"} == {change.source for change in read.changes}
    assert live.rows[full] == read.rows[full]
    assert live.rows[nothing] == read.rows[nothing]
    assert "\\x00dead" == live.rows[full]["blob"]
    assert 9223372036854775807 == live.rows[full]["big"]
    assert live.rows[nothing]["blob"] is None


# --- keys -----------------------------------------------------------------------------------------


STRANGE = [
    "a,b",
    'say "x"',
    "back\\slash",
    "(a.eq.b)",
    "ü 漢 \n",
    "",
    "null",
    "é",
    "100%",
    "a&b=c#d",
]


@complete
def test_a_key_may_be_any_text(bench, level):
    """Also where the API gives its characters a meaning, and as the name of a column."""
    columns = COLUMNS.replace("id bigint generated by default as identity", '"The Key" text')
    table = bench.table(level, columns, key=("The Key",))
    listener, ear = bench.hear(table, start_from="beginning")
    write = 'insert into {} ("The Key", name, owner) values (%s, %s, %s)'
    for key in STRANGE[::2]:
        table.run(write, key, "live", ADA)
    bench.eventually(lambda: sorted(STRANGE[::2]) == sorted(ear.rows))
    with bench.unheard():
        for key in STRANGE[1::2]:
            table.run(write, key, "missed", ADA)
        gone = STRANGE[4:6]
        for key in gone:
            table.run('delete from {} where "The Key" = %s', key)
    expected = table.rows('"The Key", name')
    bench.eventually(lambda: ear.names == expected)
    listener.ready(30)


@complete
def test_a_key_may_have_several_columns(bench, level):
    """It is a tuple then, of whatever types, in the order of `id_column`."""
    columns = (
        COLUMNS.replace("id bigint generated by default as identity primary key", "id uuid")
        + ", shop text, number numeric(6, 2), since timestamptz"
        + ", primary key (shop, id, number, since)"
    )
    table = bench.table(level, columns, key=("shop", "number", "id", "since"))
    listener, ear = bench.hear(table, start_from="beginning")
    since = "2026-03-01T12:30:00.1+00:00"
    write = (
        """insert into {} (shop, number, id, since, name, owner) values (%s, %s, %s, %s, 'x', %s)"""
    )
    for shop in ("a,b", "c"):
        table.run(write, shop, "1.50", ADA, since, ADA)
    bench.eventually(lambda: len(ear.rows) == 2)
    assert {("a,b", 1.5, ADA, since), ("c", 1.5, ADA, since)} == set(ear.rows)
    with bench.unheard():
        table.run(write, "d", "2", ADA, since, ADA)
        table.run("update {} set name = 'y' where shop = 'c'")
        table.run("delete from {} where shop = 'a,b'")
    expected = {("c", 1.5, ADA, since): "y", ("d", 2, ADA, since): "x"}
    bench.eventually(lambda: ear.names == expected)
    listener.ready(30)
    table.run("delete from {} where shop = 'd'")
    bench.eventually(lambda: list(ear.rows) == [("c", 1.5, ADA, since)])


@complete
def test_a_row_may_get_another_key(bench, level):
    """It is gone under the old one and there under the new one, live and caught up."""
    table = bench.table(level)
    if level is not CHANGE_LOG:
        table.run("alter table {} replica identity full")
    live, missed = table.insert("live"), table.insert("missed")
    listener, ear = bench.hear(table, start_from="beginning")
    bench.eventually(lambda: len(ear.rows) == 2)
    table.run("update {} set id = 1001 where id = %s", live)
    bench.eventually(lambda: {1001: "live", missed: "missed"} == ear.names)
    with bench.unheard():
        table.run("update {} set id = 1002 where id = %s", missed)
    bench.eventually(lambda: {1001: "live", 1002: "missed"} == ear.names)
    listener.ready(30)


# --- where it begins ------------------------------------------------------------------------------


@recovering
def test_the_existing_rows_come_first_when_asked_for(bench, level):
    """As INSERTs that were caught up, page after page, without a gap to what comes live."""
    table = bench.table(level)
    count = 30 if level is VERSIONED_RLS else 2100
    table.run(
        "insert into {} (name, owner) select 'old', %s from generate_series(1, %s)", ADA, count
    )
    listener, ear = bench.listener(table, start_from="beginning"), Ear()
    listener.handle("ear", ear)
    listener.start()
    new = [table.insert(f"new {number}") for number in range(20)]
    bench.eventually(lambda: len(ear.rows) == count + 20)
    assert set(new) < set(ear.rows)
    assert {"INSERT"} == {change.type for change in ear.changes}
    if level is not CHANGE_LOG:  # its rows have no number, by which entries are told once
        assert len(ear.rows) == len(ear.changes)
    assert "catch_up" == ear.changes[0].source


@recovering
def test_it_begins_now_otherwise(bench, level):
    """Rows from before are not told until they change."""
    table = bench.table(level)
    old = table.insert("old")
    _, ear = bench.hear(table)
    new = table.insert("new")
    with bench.unheard():
        table.update(old, "changed")
        missed = table.insert("missed")
    bench.eventually(lambda: {old: "changed", new: "new", missed: "missed"} == ear.names)
    assert new == ear.changes[0].key


# --- which changes --------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [BY_COLUMN, VERSIONED], ids=lambda level: level.name)
def test_a_filter_says_which_rows(bench, level, monkeypatch):
    """A row that no longer passes is told as LEAVE, with what it is now; that is no loss."""
    monkeypatch.setattr(_recoverer, "_LAG", 0.5)
    table = bench.table(level)
    old = [table.insert(name) for name in ("open", "open", "shut")]
    listener, ear = bench.hear(
        table, filter="name=in.(open,new)", start_from="beginning", catch_up_interval=0.2
    )
    bench.eventually(lambda: {old[0]: "open", old[1]: "open"} == ear.names)
    table.update(old[0], "shut")
    bench.eventually(lambda: {old[1]: "open"} == ear.names)
    assert ("LEAVE", "shut") == (ear.changes[-1].type, ear.changes[-1].new["name"])
    if level.finds_deletes:
        table.delete(old[1])
    else:
        table.update(old[1], "shut")
    bench.eventually(lambda: {} == ear.names)
    table.insert("shut")
    with bench.unheard():
        table.update(old[2], "open")
    bench.eventually(lambda: {old[2]: "open"} == ear.names)
    table.update(old[0], "new")
    bench.eventually(lambda: {old[2]: "open", old[0]: "new"} == ear.names)
    table.update(old[2], "shut")
    bench.eventually(lambda: {old[0]: "new"} == ear.names)
    told = {change.key for change in ear.changes if change.type in {"INSERT", "UPDATE"}}
    assert set(old) == told
    done = listener.stats.catch_ups
    bench.eventually(lambda: listener.stats.catch_ups > done + 4)
    assert 0 == listener.stats.lost


@pytest.mark.parametrize("level", [VERSIONED, CHANGE_LOG], ids=lambda level: level.name)
def test_an_event_says_which_changes(bench, level):
    """Live and caught up."""
    table = bench.table(level)
    changed, gone, gone_later = (table.insert(name) for name in "abc")
    events = ("INSERT", "UPDATE", "DELETE")
    ears = {event: bench.hear(table, event=event)[1] for event in events}
    new = table.insert("x")
    table.update(changed, "x")
    table.delete(gone)
    bench.eventually(lambda: all(ear.told for ear in ears.values()))
    with bench.unheard():
        newer = table.insert("y")
        table.update(changed, "y")
        table.delete(gone_later)
    bench.eventually(lambda: [2, 2, 2] == [len(ear.told) for ear in ears.values()])
    assert [("INSERT", new), ("INSERT", newer)] == ears["INSERT"].told
    assert [("UPDATE", changed), ("UPDATE", changed)] == ears["UPDATE"].told
    assert [("DELETE", gone), ("DELETE", gone_later)] == ears["DELETE"].told


def test_all_rows_may_go_at_once(bench):
    """A log tells it as TRUNCATE, tombstones as a DELETE of each row that was known."""
    logged, versioned = bench.table(CHANGE_LOG), bench.table(VERSIONED)
    ears = [bench.hear(table, start_from="beginning")[1] for table in (logged, versioned)]
    for table in (logged, versioned):
        table.insert("a")
        table.insert("b")
    bench.eventually(lambda: [2, 2] == [len(ear.rows) for ear in ears])
    with bench.unheard():
        logged.run("truncate {}")
        versioned.run("truncate {}")
        logged.insert("c")
        versioned.insert("c")
    bench.eventually(lambda: [["c"], ["c"]] == [list(ear.names.values()) for ear in ears])
    assert ("TRUNCATE", None) in ears[0].told
    assert ["DELETE", "DELETE"] == [kind for kind, _ in ears[1].told if kind != "INSERT"]


@every_level
def test_other_tables_are_not_told(bench, level):
    """Nor what row level security hides."""
    table, other = bench.table(level), bench.table(level)
    _, ear = bench.hear(table)
    other.insert("other")
    if level is VERSIONED_RLS:
        table.insert("bob's", owner="00000000-0000-0000-0000-0000000000b0")
    key = table.insert("mine")
    bench.eventually(lambda: ear.told)
    assert [("INSERT", key)] == ear.told


@recovering
def test_who_has_been_told_is_not_told_for_others(bench, level):
    """A table in memory, or a new handler, that reads all rows beside it."""
    table = bench.table(level)
    old = [table.insert(f"old {number}") for number in range(3)]
    listener, ear = bench.hear(table, catch_up_interval=0.2)
    new = table.insert("new")
    bench.eventually(lambda: [new] == list(ear.rows))
    done = listener.stats.catch_ups
    bench.eventually(lambda: listener.stats.catch_ups > done + 1)
    bench.eventually(lambda: "by_column" not in level.name or overlap_is_over(table))
    bench.eventually(lambda: listener.stats.catch_ups > done + 4)
    live = listener.table()
    bench.eventually(lambda: {*old, new} == set(live.rows))
    assert [new] == [change.key for change in ear.changes]


def overlap_is_over(table):
    """Whether the newest row is older than the overlap of `by_column`."""
    return table.run("select max(updated_at) < clock_timestamp() - interval '0.6 s' from {}")[0][0]
