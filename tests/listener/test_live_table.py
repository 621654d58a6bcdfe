"""LiveTable: equal to the table, as far as the listener's recovery goes."""

import pytest

from supabase_resilience import LiveTable
from supabase_resilience.errors import ListenerError

from .worlds import (
    CHANGE_LOG,
    COLUMNS,
    KEY_DIFF,
    LIVE,
    SOON,
    VERSIONED,
    VERSIONED_RLS,
    AsyncWorld,
    Ear,
)

levels = pytest.mark.parametrize(
    "level", [KEY_DIFF, VERSIONED, VERSIONED_RLS, CHANGE_LOG], ids=lambda level: level.name
)


def follow(bench, table, **options):
    """A listener that is ready, and the table it keeps."""
    listener = bench.listener(table, **options)
    live = listener.table()
    listener.start()
    listener.ready(SOON)
    return listener, live


def names(live):
    return {key: row["name"] for key, row in live.rows.items()}


@levels
def test_it_equals_the_table(bench, level):
    """Once ready; then live, and after whatever was missed."""
    table = bench.table(level)
    for number in range(7):
        table.insert(f"row {number}")
    listener, live = follow(bench, table, buffer_size=3)
    assert table.rows() == names(live)
    first, second, *_ = table.rows()
    table.update(first, "live")
    table.delete(second)
    table.insert("new")
    bench.eventually(lambda: table.rows() == names(live))
    with bench.unheard():
        table.run("delete from {} where name = 'row 2'")
        table.run("update {} set name = 'missed' where name like 'row%%'")
        table.insert("newest")
    bench.eventually(lambda: table.rows() == names(live))
    listener.ready(SOON)
    assert table.rows() == names(live)


@levels
def test_a_row_that_gets_another_key_is_there_once(bench, level):
    """Live and missed."""
    table = bench.table(level)
    if level is not CHANGE_LOG:
        table.run("alter table {} replica identity full")
    one, two = table.insert("one"), table.insert("two")
    listener, live = follow(bench, table)
    table.run("update {} set id = 1001 where id = %s", one)
    bench.eventually(lambda: {1001: "one", two: "two"} == names(live))
    with bench.unheard():
        table.run("update {} set id = 1002 where id = %s", two)
    bench.eventually(lambda: {1001: "one", 1002: "two"} == names(live))
    listener.ready(SOON)


@pytest.mark.parametrize("level", [VERSIONED, CHANGE_LOG], ids=lambda level: level.name)
def test_it_is_empty_after_a_truncate(bench, level):
    """However it is told."""
    table = bench.table(level)
    table.insert("one")
    table.insert("two")
    _, live = follow(bench, table, catch_up_interval=0.3)
    assert 2 == len(live.rows)
    table.run("truncate {}")
    bench.eventually(lambda: not live.rows)
    key = table.insert("three")
    bench.eventually(lambda: {key: "three"} == names(live))


def test_with_a_filter_it_holds_what_passes(bench):
    """A row that leaves the filter leaves it, too."""
    table = bench.table(VERSIONED)
    stays, leaves = table.insert("in"), table.insert("in")
    table.insert("out")
    _, live = follow(bench, table, filter="name=eq.in", catch_up_interval=0.3)
    assert {stays, leaves} == set(live.rows)
    table.update(leaves, "out")
    bench.eventually(lambda: {stays} == set(live.rows))


def test_composite_keys_are_tuples(bench):
    """In the order of `id_column`."""
    columns = COLUMNS.replace("primary key", "") + ", shop text, primary key (shop, id)"
    table = bench.table(VERSIONED, columns, key=("shop", "id"))
    key = table.insert("one", shop="a,b")
    _, live = follow(bench, table)
    assert {("a,b", key): "one"} == names(live)


def test_its_rows_can_only_be_read(bench):
    """A mapping, safe to walk through while rows come and go."""
    table = bench.table(VERSIONED)
    keys = [table.insert(f"row {number}") for number in range(3)]
    _, live = follow(bench, table)
    with pytest.raises(TypeError):
        live.rows[keys[0]] = {}
    with pytest.raises(TypeError):
        del live.rows[keys[0]]
    seen = []
    for key in live.rows:
        seen.append(key)
        table.delete(keys[-1])
        bench.eventually(lambda: keys[-1] not in live.rows)
    assert keys == seen
    assert live.rows.get(0) is None
    assert f"<LiveTable of 2 rows, {listener_repr(live)}>" == repr(live)


def listener_repr(live):
    return repr(live._listener)


def test_handlers_beside_it_hear_as_ever(bench):
    """And can look at its rows."""
    table = bench.table(VERSIONED)
    old = table.insert("old")
    listener, ear = bench.listener(table), Ear()
    live = listener.table(name="projects")
    seen = {}

    def look(change):
        seen[change.key] = live.rows.get(change.key, {}).get("name")
        ear(change)

    listener.handle("ear", look)
    listener.start()
    listener.ready(SOON)
    new = table.insert("new")
    bench.eventually(lambda: new in ear.rows)
    assert [("INSERT", new)] == ear.told
    assert {new: "new"} == seen
    assert {old, new} == set(live.rows)


def test_its_changes_can_be_walked_through(bench):
    """Each is in `rows` already; the walk ends with the listener."""
    table = bench.table(VERSIONED)
    listener, live = follow(bench, table)
    seen = []
    wait = bench.world.walk(
        live.changes(), lambda change: seen.append((change.type, live.rows[change.key]["name"]))
    )
    table.insert("one")
    bench.eventually(lambda: seen)
    table.insert("two")
    bench.eventually(lambda: len(seen) == 2)
    listener.stop()
    wait()
    assert [("INSERT", "one"), ("INSERT", "two")] == seen


def test_only_the_last_change_of_a_row_is_told_to_who_is_slow(bench):
    """So nobody who looks at it seldom has to catch up with everything."""
    table = bench.table(VERSIONED)
    key = table.insert("one")
    _, live = follow(bench, table)
    feed, seen = bench.world.do(live.changes), []
    for name in ("two", "three", "four"):
        table.update(key, name)
    bench.eventually(lambda: {key: "four"} == names(live))

    def visit(change):
        seen.append(change.new["name"])
        return "stop"

    bench.world.walk(feed, visit)()
    assert ["four"] == seen


def test_the_other_colour_of_a_walk_is_refused(bench):
    """With the word to use."""
    live = bench.listener(bench.table(VERSIONED)).table()
    if isinstance(bench.world, AsyncWorld):
        with pytest.raises(TypeError, match="async for"):
            iter(live.changes())
    else:
        with pytest.raises(TypeError, match="use `for`"):
            aiter(live.changes())


def test_it_outlives_a_stop_and_a_start(bench):
    """What happened in between is found."""
    table = bench.table(VERSIONED)
    gone, _ = table.insert("gone"), table.insert("kept")
    listener, live = follow(bench, table)
    listener.stop()
    assert table.rows() == names(live)
    table.delete(gone)
    table.insert("new")
    listener.start()
    listener.ready(SOON)
    assert table.rows() == names(live)


def test_it_needs_a_listener_that_reads(bench):
    """And one at all, with a free name."""
    listener = bench.listener(bench.table(LIVE))
    with pytest.raises(ValueError, match="needs a listener with a recovery"):
        listener.table()
    with pytest.raises(TypeError, match="must be a RealtimeListener"):
        LiveTable("orders")
    listener = bench.listener(bench.table(VERSIONED))
    listener.table()
    with pytest.raises(ListenerError, match="live_table"):
        listener.table()
