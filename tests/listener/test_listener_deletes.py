"""Deletes, which leave no row to read: many at once, keys used again, what a restore takes away."""

import pytest

from supabase_resilience.events import DeletesHeld, Resync
from supabase_resilience.listener import Recovery

from .worlds import (
    ADA,
    BY_COLUMN,
    CHANGE_LOG,
    KEY_DIFF,
    SOON,
    VERSIONED,
    VERSIONED_RLS,
)

HOLDING = Recovery.by_column(overlap=0.5, key_diff=True, max_delete_share=0.2)
complete = pytest.mark.parametrize(
    "level", [KEY_DIFF, VERSIONED, VERSIONED_RLS, CHANGE_LOG], ids=lambda level: level.name
)


def names(live):
    return {key: row["name"] for key, row in live.rows.items()}


def kept(bench, table, **options):
    """A table in memory whose listener is ready."""
    listener = bench.listener(table, **options)
    live = listener.table()
    listener.start()
    listener.ready(SOON)
    return listener, live


# --- many at once ---------------------------------------------------------------------------------


def test_many_deletes_at_once_are_held_back(bench):
    """Lost rights look the same; a person is told, with the numbers, and the rest goes on."""
    table = bench.table(KEY_DIFF)
    keys = [table.insert(f"row {number}") for number in range(10)]
    listener, live = kept(bench, table, recovery=HOLDING)
    with bench.unheard():
        table.run("delete from {} where id > %s", keys[4])
    held = bench.eventually(
        lambda: [event for event in bench.hook.events if isinstance(event, DeletesHeld)]
    )
    assert ("live_table", 5, 10) == (held[0].handler, held[0].missing, held[0].known)
    assert keys == sorted(live.rows)
    listener.ready(SOON)
    new = table.insert("new")
    bench.eventually(lambda: new in live.rows)


def test_lost_rights_are_no_deletes(bench):
    """With row level security they hide rows without an error."""
    table = bench.table(VERSIONED_RLS)
    keys = [table.insert(f"row {number}") for number in range(10)]
    recovery = Recovery.versioned(key_diff=True)
    listener, live = kept(bench, table, recovery=recovery)
    table.run("drop policy mine on {}")
    with bench.unheard():
        pass
    bench.eventually(lambda: "listener.deletes_held" in bench.hook.names)
    assert keys == sorted(live.rows)
    table.run("create policy mine on {} to authenticated using (true)")
    listener.ready(SOON)
    new = table.insert("new")
    bench.eventually(lambda: new in live.rows)
    assert [*keys, new] == sorted(live.rows)


def test_few_deletes_at_once_are_believed(bench):
    """Up to `max_delete_share`."""
    table = bench.table(KEY_DIFF)
    keys = [table.insert(f"row {number}") for number in range(10)]
    _, live = kept(bench, table, recovery=HOLDING)
    with bench.unheard():
        table.run("delete from {} where id <= %s", keys[1])
    bench.eventually(lambda: keys[2:] == sorted(live.rows))
    assert "listener.deletes_held" not in bench.hook.names


# --- keys and rows --------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [KEY_DIFF, VERSIONED, CHANGE_LOG], ids=lambda level: level.name)
def test_a_key_that_is_used_again_is_there(bench, level):
    """However often its row went and came."""
    table = bench.table(level)
    again = "insert into {} (id, name) values (1, %s)"
    listener, live = kept(bench, table)
    for number in range(10):
        table.run(again, f"life {number}")
        table.delete(1)
    table.run(again, "live")
    bench.eventually(lambda: {1: "live"} == names(live))
    with bench.unheard():
        table.delete(1)
        table.run(again, "missed")
        table.run("insert into {} (id, name) values (2, 'brief')")
        table.delete(2)
    bench.eventually(lambda: {1: "missed"} == names(live))
    listener.ready(SOON)
    table.delete(1)
    bench.eventually(lambda: {} == names(live))


@complete
def test_rows_may_come_change_and_go_while_they_are_read(bench, level):
    """Page after page, with the connection lost once."""
    table = bench.table(level)
    table.run("insert into {} (name, owner) select 'old', %s from generate_series(1, 1500)", ADA)
    listener = bench.listener(table)
    live = listener.table()
    listener.start()
    for number in range(1, 60):
        table.update(number, f"changed {number}")
        table.delete(1500 - number)
        table.insert(f"new {number}")
        if number == 30:
            bench.local.realtime.abort()
    bench.eventually(lambda: table.rows() == names(live))
    listener.ready(SOON)
    assert table.rows() == names(live)


def test_without_a_way_to_find_deletes_their_rows_stay(bench):
    """As `by_column()` says."""
    table = bench.table(BY_COLUMN)
    key = table.insert("a")
    listener, live = kept(bench, table)
    with bench.unheard():
        table.delete(key)
        new = table.insert("b")
    bench.eventually(lambda: new in live.rows)
    listener.ready(SOON)
    assert {key: "a", new: "b"} == names(live)


# --- another history ------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [VERSIONED, CHANGE_LOG], ids=lambda level: level.name)
def test_a_table_in_memory_is_right_after_a_restore(bench, level):
    """With rows gone, others as they were, and all that is numbered beginning anew."""
    table = bench.table(level)
    here, gone = table.insert("here"), table.insert("gone")
    _, live = kept(bench, table, catch_up_interval=0.2)
    for number in range(5):
        table.update(here, f"here {number}")
    bench.eventually(lambda: {here: "here 4", gone: "gone"} == names(live))
    with bench.unheard():
        restore(table, here)
    bench.eventually(lambda: {here: "restored"} == names(live))
    bench.eventually(lambda: [each for each in bench.hook.events if isinstance(each, Resync)])
    table.update(here, "again")
    bench.eventually(lambda: {here: "again"} == names(live))


def restore(table, here):
    """Make the database what a backup would: but for one row empty, its sequences set back."""
    relation = f"'public', '{table.name}'"
    admin = table.local.postgres.connect()
    with admin, admin.transaction():
        for query in (
            f"select supabase_resilience.unfollow({relation})",
            f"delete from {table.name} where id <> {here}",
            "select setval('supabase_resilience.sync_ver', 1)",
            "alter sequence supabase_resilience.changes_seq_seq restart",
            "delete from supabase_resilience.changes",
        ):
            admin.execute(query)
    table.migrate()
    table.update(here, "restored")
    table.local.rest.reload()


def test_a_truncate_that_is_found_late_spares_what_came_after(bench):
    """In a change log what was lost is told behind what came live."""
    table = bench.table(CHANGE_LOG)
    old = table.insert("old")
    listener, live = kept(bench, table)
    assert {old: "old"} == names(live)
    bench.local.realtime.lose_changes()
    table.run("truncate {}")
    bench.local.realtime.catch_up()
    bench.local.realtime.lose_changes(False)
    new = table.insert("new")
    bench.eventually(lambda: {old: "old", new: "new"} == names(live))
    with bench.unheard():
        pass
    bench.eventually(lambda: {new: "new"} == names(live))
    listener.ready(SOON)
    assert {new: "new"} == names(live)


def test_a_table_in_memory_takes_all_events(bench):
    """Whatever the handlers beside it are told."""
    table = bench.table(VERSIONED)
    key = table.insert("a")
    _, live = kept(bench, table, event="INSERT")
    table.update(key, "b")
    bench.eventually(lambda: {key: "b"} == names(live))
    table.delete(key)
    bench.eventually(lambda: {} == names(live))
