"""What servers, networks and tokens do to a listener, and what it makes of it."""

import itertools

import pytest

from supabase_resilience import CircuitBreaker, RetryConfig
from supabase_resilience.events import (
    CatchUpFailed,
    ChangesLost,
    ListenerLost,
)
from supabase_resilience.listener import _recoverer, _supervisor

from .worlds import (
    CHANGE_LOG,
    COLUMNS,
    KEY_DIFF,
    SOON,
    VERSIONED,
    Ear,
    SyncWorld,
)

levels = pytest.mark.parametrize(
    "level", [KEY_DIFF, VERSIONED, CHANGE_LOG], ids=lambda level: level.name
)
_names = (f"change {number}" for number in itertools.count())


def events(bench, kind):
    return [event for event in list(bench.hook.events) if isinstance(event, kind)]


def live_again(bench, table, listener, ear):
    """Changes come live, after whatever went before."""
    listener.ready(SOON)

    def is_told_live():
        key = table.insert(next(_names))
        bench.eventually(lambda: key in ear.rows)
        return "live" == next(each for each in ear.changes if each.key == key).source

    bench.eventually(is_told_live)  # a catch-up may always have been faster


# --- connections that end -------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1012, 1006])
def test_whatever_closes_the_socket_it_connects_again(bench, code):
    """Also after codes that say all is well: Realtime means no good by them."""
    table = bench.table(VERSIONED)
    listener, ear = bench.hear(table)
    realtime = bench.local.realtime
    realtime.lose_changes()
    missed = table.insert("missed")
    realtime.catch_up()
    realtime.lose_changes(False)
    if code == 1006:
        realtime.abort()
    else:
        realtime.close(code, announced=code == 1012)
    bench.eventually(lambda: missed in ear.rows)
    live_again(bench, table, listener, ear)
    bench.eventually(lambda: 2 == listener.stats.connects)
    assert 1 == len(events(bench, ListenerLost))


def test_a_channel_that_crashed_is_joined_again(bench):
    """On another connection, as what is left of this one cannot be known."""
    table = bench.table(VERSIONED)
    listener, ear = bench.hear(table)
    bench.local.realtime.crash_channels()
    bench.eventually(lambda: listener.stats.connects == 2)
    live_again(bench, table, listener, ear)


def test_a_silent_connection_is_found(bench):
    """By a ping that is not answered, though nothing closes the socket."""
    table = bench.table(VERSIONED)
    listener, ear = bench.hear(table, ping_interval=0.3)
    bench.local.realtime.stall()
    missed = table.insert("missed")
    bench.eventually(lambda: events(bench, ListenerLost))
    bench.local.realtime.stall(False)
    bench.eventually(lambda: missed in ear.rows)
    live_again(bench, table, listener, ear)
    assert "Realtime does not answer" == events(bench, ListenerLost)[0].reason


@pytest.mark.parametrize("world", [SyncWorld], indirect=True)
def test_a_connection_on_which_nothing_is_said_is_replaced(bench, monkeypatch):
    """It was accepted, and no join was answered in time."""
    table = bench.table(VERSIONED)
    listener, ear = bench.listener(table), Ear()
    listener.handle("ear", ear)
    bench.local.realtime.stall()
    with monkeypatch.context() as hurried:
        hurried.setattr(_supervisor, "_SUBSCRIBED_WITHIN", 0.2)
        listener.start()
        bench.eventually(lambda: listener.stats.connects >= 2)
    bench.local.realtime.stall(False)
    live_again(bench, table, listener, ear)


@pytest.mark.parametrize("world", [SyncWorld], indirect=True)
def test_a_healthy_connection_is_left_alone(bench):
    """However long nothing happens on it."""
    table = bench.table(VERSIONED)
    listener, ear = bench.hear(table, ping_interval=0.05)
    before = listener.stats.last_catch_up_age
    bench.eventually(lambda: listener.stats.last_catch_up_age > before + 1)
    live_again(bench, table, listener, ear)
    assert (1, 0) == (listener.stats.connects, listener.stats.gaps)


@pytest.mark.parametrize("world", [SyncWorld], indirect=True)
def test_a_server_that_closes_at_once_is_not_stormed(bench):
    """Each connect succeeds, and still the wait grows; then all is well again."""
    table = bench.table(VERSIONED)
    listener, ear = bench.hear(table)
    realtime = bench.local.realtime
    before = realtime.connects
    realtime.refuse(1012)
    realtime.abort()
    missed = table.insert("missed")
    bench.eventually(lambda: realtime.connects >= before + 2)
    realtime.refuse(None)
    bench.eventually(lambda: missed in ear.rows)
    live_again(bench, table, listener, ear)
    assert realtime.connects <= before + 4
    assert 1 == len(events(bench, ListenerLost))


# --- changes that are lost ------------------------------------------------------------------------


@levels
def test_what_realtime_loses_silently_is_found(bench, level, monkeypatch):
    """By the timer, on a connection that looks healthy; it is told, counted, and renewed."""
    monkeypatch.setattr(_recoverer, "_LAG", 0.5)  # of 5 seconds
    table = bench.table(level)
    listener, ear = bench.hear(table, catch_up_interval=0.3)
    bench.eventually(lambda: listener.stats.catch_ups >= 3)
    bench.local.realtime.lose_changes()
    lost = table.insert("lost")
    bench.eventually(lambda: lost in ear.rows)
    bench.eventually(lambda: events(bench, ChangesLost))
    bench.local.realtime.lose_changes(False)
    bench.eventually(lambda: listener.stats.connects >= 2)
    live_again(bench, table, listener, ear)
    assert 1 == listener.stats.lost == events(bench, ChangesLost)[0].changes


def test_a_dead_change_stream_is_found_and_renewed(bench, monkeypatch):
    """Realtime answers every ping and stays joined, and tells of nothing any more."""
    monkeypatch.setattr(_recoverer, "_LAG", 0.5)  # of 5 seconds
    table = bench.table(VERSIONED)
    listener, ear = bench.hear(table, catch_up_interval=0.3, ping_interval=0.2)
    bench.eventually(lambda: listener.stats.catch_ups >= 3)
    bench.local.realtime.kill_cdc()
    first = table.insert("first")
    bench.eventually(lambda: first in ear.rows)
    bench.eventually(lambda: listener.stats.connects >= 2)
    live_again(bench, table, listener, ear)


@pytest.mark.parametrize("world", [SyncWorld], indirect=True)
def test_what_only_comes_late_is_not_lost(bench, monkeypatch):
    """A catch-up that overtakes Realtime renews nothing, and nothing is told twice."""
    monkeypatch.setattr(_recoverer, "_LAG", 2.0)  # of 5 seconds
    table = bench.table(VERSIONED)
    listener, ear = bench.hear(table, catch_up_interval=0.2)
    bench.eventually(lambda: listener.stats.catch_ups >= 3)
    keys = [table.insert(next(_names)) for _ in range(300)]
    bench.eventually(lambda: listener.stats.received == 300)
    before = listener.stats.last_catch_up_age, listener.stats.catch_ups
    bench.eventually(lambda: listener.stats.catch_ups > before[1] + 2)
    assert keys == sorted(change.key for change in ear.changes)
    assert [] == events(bench, ChangesLost)


# --- servers that go ------------------------------------------------------------------------------


@levels
def test_it_waits_for_an_api_that_is_down(bench, level):
    """The connection lives meanwhile, and what comes live is held, not lost; it is told once."""
    table = bench.table(level)
    listener, ear = bench.hear(table)
    bench.local.faults.add(match="/rest/v1/", times=None, status=503)
    with bench.unheard():
        missed = table.insert("missed")
    bench.eventually(lambda: events(bench, CatchUpFailed))
    bench.eventually(lambda: listener.stats.connects == 2)
    bench.local.faults.clear()
    bench.eventually(lambda: missed in ear.rows)
    live_again(bench, table, listener, ear)
    assert 1 == len(events(bench, CatchUpFailed))


def test_it_starts_in_an_outage(bench):
    """`start()` returns, `ready()` waits for as long as it is asked to."""
    table = bench.table(VERSIONED)
    listener, ear = bench.listener(table), Ear()
    bench.local.realtime.kill()
    bench.local.rest.kill()
    listener.handle("ear", ear)
    listener.start()
    with pytest.raises(TimeoutError):
        listener.ready(0.3)
    bench.local.rest.start()
    bench.local.realtime.start()
    live_again(bench, table, listener, ear)


def test_it_outlives_a_restart_of_postgresql(bench):
    """Realtime loses what is written until it has a slot again; that is found."""
    table = bench.table(VERSIONED)
    listener, ear = bench.hear(table, catch_up_interval=1)
    bench.local.postgres.kill()
    bench.local.postgres.start()
    table.close()
    keys = [table.insert(next(_names)) for _ in range(3)]
    bench.eventually(lambda: sorted(ear.rows) == keys)
    listener.ready(SOON)
    keys.append(table.insert("later"))
    bench.eventually(lambda: sorted(ear.rows) == keys)


def test_an_open_circuit_only_delays_it(bench):
    """The client's own breaker guards the reading; the socket is none of its business."""
    breaker = CircuitBreaker("mine", reset_timeout=0.5, on_event=lambda _: None)
    client = bench.protected(breaker=breaker, retry=RetryConfig(attempts=1))
    table = bench.table(VERSIONED)
    listener, ear = bench.hear(table, client=client)
    breaker.force_open()
    with bench.unheard():
        missed = table.insert("missed")
    bench.eventually(lambda: events(bench, CatchUpFailed))
    assert "CircuitOpenError" == events(bench, CatchUpFailed)[0].reason
    breaker.reset()
    bench.eventually(lambda: missed in ear.rows)
    live_again(bench, table, listener, ear)


# --- rows that come in part -----------------------------------------------------------------------


@levels
def test_a_row_that_realtime_cuts_is_read(bench, level):
    """Above 1 MiB it sends fragments, and of an UPDATE no large values that stayed the same."""
    table = bench.table(level, COLUMNS + ", body text, note text")
    table.run("alter table {} alter body set storage external")
    _, ear = bench.hear(table)
    large, huge = "x" * 10_000, "y" * 1_200_000
    one = table.insert("one", body=large)
    two = table.insert("two", body=huge)
    bench.eventually(lambda: {one, two} == set(ear.rows))
    assert [large, huge] == [ear.rows[key]["body"] for key in (one, two)]
    table.run("update {} set note = 'n'")
    bench.eventually(lambda: {"n"} == {row["note"] for row in ear.rows.values()})
    assert [large, huge] == [ear.rows[key]["body"] for key in (one, two)]
    assert [one, two] == sorted(change.key for change in ear.changes if change.type == "INSERT")
