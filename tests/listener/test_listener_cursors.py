"""A new process goes on where the handlers of the one before it had come to."""

import json
import threading

import psycopg
import pytest
from postgrest.exceptions import APIError

from supabase_resilience import AsyncTableCursor, FileCursor, MemoryCursor, TableCursor
from supabase_resilience.errors import ListenerError, ResilienceError
from supabase_resilience.events import CursorNotSaved, Resync

from .worlds import (
    BY_COLUMN,
    CHANGE_LOG,
    SOON,
    VERSIONED,
    VERSIONED_RLS,
    AsyncWorld,
    Ear,
)

levels = pytest.mark.parametrize(
    "level", [BY_COLUMN, VERSIONED, CHANGE_LOG], ids=lambda level: level.name
)
migrated = pytest.mark.parametrize("level", [VERSIONED, CHANGE_LOG], ids=lambda level: level.name)


class Life:
    """What one process after the other is told of a table."""

    def __init__(self, bench, table, cursor, **options):
        self._bench = bench
        self._table = table
        self._options = {"cursor": cursor, **options}

    def begin(self, handler=None):
        """A listener that is ready, as a new process makes it."""
        listener, ear = self._bench.listener(self._table, **self._options), Ear()
        listener.handle("ear", handler or ear)
        listener.start()
        listener.ready(SOON)
        return listener, ear

    def hear(self, count):
        """A whole life, until it has heard so much."""
        listener, ear = self.begin()
        self._bench.eventually(lambda: len(ear.changes) >= count)
        assert listener.stop()
        return ear


def events(bench, kind):
    return [event for event in list(bench.hook.events) if isinstance(event, kind)]


# --- going on -------------------------------------------------------------------------------------


@levels
@pytest.mark.parametrize("kind", ["file", "table"])
def test_a_new_process_goes_on(bench, tmp_path, level, kind):
    """It is told what has changed since, and not what was handled long before."""
    table = bench.table(level)
    if kind == "file":
        cursor = FileCursor(tmp_path / "deep" / "cursor.json")
    else:
        client, is_async = bench.client(), isinstance(bench.world, AsyncWorld)
        cursor = (AsyncTableCursor if is_async else TableCursor)(client, table.name)
    life = Life(bench, table, cursor, start_from="beginning")
    changed, gone, kept = (table.insert(name) for name in ("changed", "gone", "kept"))
    table.run("alter table {} disable trigger touch")
    if level is BY_COLUMN:  # older than the overlap
        table.run("update {} set updated_at = updated_at - interval '1 hour'")
    table.run("alter table {} enable trigger touch")
    first = life.hear(3)
    assert {changed, gone, kept} == set(first.rows)
    table.update(changed, "changed again")
    table.delete(gone)
    new = table.insert("new")
    second = life.hear(3 if level.finds_deletes else 2)
    told = {("UPDATE" if level is CHANGE_LOG else "INSERT", changed), ("INSERT", new)}
    assert told | ({("DELETE", gone)} if level.finds_deletes else set()) <= set(second.told)
    assert [] == events(bench, Resync)
    table.insert("newest")
    assert "newest" in life.hear(1).names.values()


@migrated
def test_a_new_process_hears_of_a_truncate(bench, level):
    """It knows no row any more of which it could tell the end, so it tells the end of all."""
    table = bench.table(level)
    life = Life(bench, table, MemoryCursor(), start_from="beginning")
    for name in ("a", "b"):
        table.insert(name)
    assert {"a", "b"} == set(life.hear(2).names.values())
    table.run("truncate {}")
    new = table.insert("new")
    second = life.hear(2)
    assert [("TRUNCATE", None), ("INSERT", new)] == second.told


@migrated
def test_each_handler_has_its_own_place(bench, level):
    """One that comes later begins where `start_from` says."""
    table = bench.table(level)
    cursor = MemoryCursor()
    life = Life(bench, table, cursor, start_from="beginning")
    old = table.insert("old")
    life.hear(1)
    new = table.insert("new")
    listener, ear = bench.listener(table, cursor=cursor, start_from="beginning"), Ear()
    second = Ear()
    listener.handle("ear", ear)
    listener.handle("second", second)
    listener.start()
    bench.eventually(lambda: new in ear.rows and new in second.rows)
    assert old not in ear.rows
    assert old in second.rows


@migrated
def test_what_was_not_handled_is_told_again(bench, level):
    """The position of a handler that fails is held, whatever the others have handled."""
    table = bench.table(level)
    cursor = MemoryCursor()

    def fail(_):
        raise ValueError

    life = Life(bench, table, cursor)
    listener, _ = life.begin(fail)
    listener.handle("other", other := Ear())
    listener.ready(SOON)
    keys = [table.insert(f"row {number}") for number in range(3)]
    with bench.unheard():
        keys.append(table.insert("missed"))
    bench.eventually(lambda: sorted(other.rows) == keys)
    listener.ready(SOON)
    listener.stop()
    assert sorted(life.hear(4).rows) == keys


@migrated
def test_changes_between_two_catch_ups_are_told_again(bench, level):
    """Live ones move no position by themselves: better twice than never."""
    table = bench.table(level)
    life = Life(bench, table, MemoryCursor())
    listener, ear = life.begin()
    key = table.insert("it")
    bench.eventually(lambda: key in ear.rows)
    listener.stop()
    assert key in life.hear(1).rows


@migrated
def test_a_first_reading_that_was_broken_off_is_made_up_for(bench, level):
    """Rows are read from the beginning again, and what was deleted since is told."""
    table = bench.table(level)
    options = {"cursor": MemoryCursor(), "start_from": "beginning", "buffer_size": 3}
    keys = [table.insert(f"row {number}") for number in range(9)]
    ear, is_enough = Ear(), threading.Event()

    def handle(change):
        if is_enough.is_set():
            raise ValueError
        ear(change)
        if len(ear.changes) == 2:
            is_enough.set()

    for handler in (handle, ear):
        listener = bench.listener(table, **options)
        listener.handle("ear", handler)
        listener.start()
        if handler is handle:
            bench.eventually(is_enough.is_set)
            listener.stop()
            for key in keys[:4]:
                table.delete(key)
    bench.eventually(lambda: sorted(ear.rows) == keys[4:])


# --- a position of no use -------------------------------------------------------------------------


def changed(cursor, **values):
    """The same cursor, with other values in all positions."""
    saved = cursor.load()
    for position in saved["handlers"].values():
        position.update(values)
    cursor.save(saved)


@migrated
def test_a_restored_database_is_noticed(bench, tmp_path, level):
    """Its history is another one: told as Resync, and all rows are told anew."""
    table = bench.table(level)
    cursor = FileCursor(tmp_path / "cursor.json")
    life = Life(bench, table, cursor, start_from="beginning")
    keys = [table.insert("one"), table.insert("two")]
    life.hear(2)
    changed(cursor, history="another")
    assert sorted(life.hear(2).rows) == keys
    assert "another history" in events(bench, Resync)[0].reason
    assert "ear" == events(bench, Resync)[0].handler


@migrated
def test_a_database_behind_the_cursor_is_noticed(bench, level):
    """As after a restore that went unnoticed otherwise."""
    table = bench.table(level)
    cursor = MemoryCursor()
    life = Life(bench, table, cursor, start_from="beginning")
    key = table.insert("one")
    life.hear(1)
    changed(cursor, xid=2**40)
    assert key in life.hear(1).rows
    assert "restored" in events(bench, Resync)[0].reason


@migrated
def test_a_position_beyond_the_retention_is_noticed(bench, level):
    """Deletes are no longer on record, so the rows are told anew; and once, not at each start."""
    table = bench.table(level)
    cursor = MemoryCursor()
    life = Life(bench, table, cursor, start_from="beginning")
    key, gone = table.insert("one"), table.insert("gone")
    life.hear(2)
    table.delete(gone)
    changed(cursor, xid=1)
    table.run(
        "update supabase_resilience.followed set floor = 2 where table_name = %s",
        table.name,
        raw=True,
    )
    assert key in life.hear(1).rows
    assert "retention" in events(bench, Resync)[0].reason
    listener, _ = life.begin()
    assert 0 == listener.stats.resyncs


@migrated
def test_a_cursor_of_another_table_is_refused(bench, level):
    """With both names, and nothing is overwritten."""
    one, two = bench.table(level), bench.table(level)
    cursor = MemoryCursor()
    one.insert("it")
    Life(bench, one, cursor, start_from="beginning").hear(1)
    saved = cursor.load()
    listener = bench.listener(two, cursor=cursor)
    listener.handle("ear", Ear())
    listener.start()
    with pytest.raises(ListenerError, match=f"(?s){two.name}.*{one.name}.*cursor of its own"):
        listener.ready(SOON)
    listener.stop()
    assert saved == cursor.load()


@pytest.mark.parametrize("content", ["{", "[]", '"x"', "{}"])
def test_a_file_that_holds_no_cursor_is_refused(bench, tmp_path, content):
    """Nobody overwrites it by accident."""
    path = tmp_path / "cursor.json"
    path.write_text(content)
    listener = bench.listener(bench.table(VERSIONED), cursor=FileCursor(path))
    listener.handle("ear", Ear())
    listener.start()
    with pytest.raises(ListenerError, match="cursor"):
        listener.ready(SOON)
    listener.stop()
    assert content == path.read_text()


@pytest.mark.parametrize("broken", [{"xid": "7"}, {"xid": None}], ids=["text", "none"])
def test_a_position_that_is_none_is_refused(bench, broken):
    """It begins nowhere rather than at a place that it was not at."""
    table = bench.table(VERSIONED)
    cursor = MemoryCursor()
    table.insert("it")
    Life(bench, table, cursor, start_from="beginning").hear(1)
    changed(cursor, **broken)
    listener = bench.listener(table, cursor=cursor)
    listener.handle("ear", Ear())
    listener.start()
    with pytest.raises(ListenerError, match="position"):
        listener.ready(SOON)


# --- stores that fail -----------------------------------------------------------------------------


class Store(MemoryCursor):
    """Fails as often as it is told to."""

    def __init__(self, *, loads=0, saves=0):
        super().__init__()
        self.loads = loads
        self.saves = saves

    def load(self):
        if self.loads:
            self.loads -= 1
            raise OSError
        return super().load()

    def save(self, value):
        if self.saves:
            self.saves -= 1
            raise OSError
        super().save(value)


def test_a_store_that_cannot_be_read_is_asked_again(bench):
    """Nothing is told before it is known where to begin."""
    table = bench.table(VERSIONED)
    listener, ear = bench.hear(table, cursor=Store(loads=1))
    key = table.insert("it")
    bench.eventually(lambda: key in ear.rows)
    listener.stop()


def test_a_store_that_cannot_be_written_stops_nothing(bench):
    """It is told, and what could not be kept is kept the next time."""
    table = bench.table(VERSIONED)
    store = Store(saves=1)
    listener, ear = bench.hear(table, cursor=store)
    key = table.insert("it")
    bench.eventually(lambda: key in ear.rows)
    with bench.unheard():
        pass
    listener.stop()
    assert "OSError" == events(bench, CursorNotSaved)[0].reason
    assert "ear" in json.loads(json.dumps(store.load()))["handlers"]


def test_an_async_store_works_in_both_colours(bench):
    """Any class with `load()` and `save()` is a store."""
    table, inner = bench.table(VERSIONED), MemoryCursor()

    class AsyncStore:
        async def load(self):
            return inner.load()

        async def save(self, value):
            inner.save(value)

    table.insert("it")
    Life(bench, table, AsyncStore(), start_from="beginning").hear(1)
    assert inner.load()["handlers"]["ear"]["xid"]


# --- a table of cursors ---------------------------------------------------------------------------


def table_cursor(bench, level=VERSIONED):
    is_async = isinstance(bench.world, AsyncWorld)
    return (AsyncTableCursor if is_async else TableCursor)(bench.client(level), "mine")


def test_a_table_of_cursors_is_for_the_secret_key(bench):
    """Others are told so, and nothing is saved."""
    cursor = table_cursor(bench, VERSIONED_RLS)
    with pytest.raises(ResilienceError, match="need the secret key") as refused:
        bench.world.do(cursor.save, {"xid": 1})
    assert "42501" == refused.value.__cause__.code
    assert bench.world.do(table_cursor(bench).load) is None


def test_a_table_of_cursors_that_is_missing_says_how_to_make_it(bench, local):
    """With the command that prints the SQL."""
    cursor, name = table_cursor(bench), "supabase_resilience_load_cursor"
    with psycopg.connect(local.admin_dsn, autocommit=True) as owner:
        owner.execute(f"alter function {name}(text) rename to hidden")
        local.rest.reload()
        try:
            with pytest.raises(ResilienceError, match="python -m supabase_resilience sql cursors"):
                bench.world.do(cursor.load)
        finally:
            owner.execute(f"alter function hidden(text) rename to {name}")
            local.rest.reload()
    assert bench.world.do(cursor.load) is None


def test_any_other_error_of_a_table_of_cursors_is_as_it_was(bench, local):
    """Nor is it its own cause, or who follows causes never ends."""
    local.faults.add(match="load_cursor", status=418)
    with pytest.raises(APIError) as raised:
        bench.world.do(table_cursor(bench).load)
    assert raised.value.__cause__ is not raised.value
