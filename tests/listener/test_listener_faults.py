"""What servers, networks and tokens do to a listener, and what it makes of it."""

import itertools
import threading

import pytest

from supabase_resilience import CircuitBreaker, RetryConfig
from supabase_resilience.errors import ListenerError
from supabase_resilience.events import (
    CatchUpFailed,
    ChangesLost,
    ListenerLost,
    ListenerRefused,
)
from supabase_resilience.listener import Recovery, _recoverer

from .worlds import (
    ADA,
    BY_COLUMN,
    CHANGE_LOG,
    COLUMNS,
    KEY_DIFF,
    LIVE,
    SOON,
    VERSIONED,
    VERSIONED_RLS,
    AsyncWorld,
    Ear,
    Level,
)

levels = pytest.mark.parametrize(
    "level", [KEY_DIFF, VERSIONED, CHANGE_LOG], ids=lambda level: level.name
)
_names = (f"change {number}" for number in itertools.count())


def events(bench, kind):
    return [event for event in list(bench.hook.events) if isinstance(event, kind)]


def live_again(bench, table, listener, ear):
    """A change comes live, after whatever went before."""
    listener.ready(SOON)
    key = table.insert(next(_names))
    bench.eventually(lambda: key in ear.rows)
    assert "live" == next(each for each in ear.changes if each.key == key).source


# --- connections that end -------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 1006])
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
    assert 2 == listener.stats.connects
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


def test_a_healthy_connection_is_left_alone(bench):
    """However long nothing happens on it."""
    table = bench.table(VERSIONED)
    listener, ear = bench.hear(table, ping_interval=0.05)
    before = listener.stats.last_catch_up_age
    bench.eventually(lambda: listener.stats.last_catch_up_age > before + 1)
    live_again(bench, table, listener, ear)
    assert (1, 0) == (listener.stats.connects, listener.stats.gaps)


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
    """By the timer, on a connection that looks healthy; told, counted, and the connection renewed."""
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


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_token_is_renewed_before_it_expires(bench, kind):
    """On the connection that there is, so nothing is missed."""
    table = bench.table(VERSIONED_RLS)
    asked = []

    def token():
        asked.append(threading.current_thread())
        return bench.local.jwt(sub=ADA, expires_in=2 if len(asked) < 3 else 600)

    async def token_async():
        return token()

    listener, ear = bench.hear(table, token=token_async if kind == "async" else token)
    bench.eventually(lambda: len(asked) >= 3)
    live_again(bench, table, listener, ear)
    assert 1 == listener.stats.connects


def test_an_expired_token_is_replaced(bench):
    """The server has refused it; another one is asked for, and nobody has to be called."""
    table = bench.table(VERSIONED_RLS)
    tokens = iter([bench.local.jwt(sub=ADA, expires_in=-10)])
    listener, ear = bench.hear(table, token=lambda: next(tokens, bench.local.jwt(sub=ADA)))
    live_again(bench, table, listener, ear)
    assert [] == events(bench, ListenerRefused)


def test_a_token_that_cannot_be_renewed_is_told_when_it_expires(bench):
    """With the way out."""
    table = bench.table(VERSIONED_RLS)
    listener, _ = bench.hear(table, token=bench.local.jwt(sub=ADA, expires_in=2))
    refused = bench.eventually(lambda: events(bench, ListenerRefused))[0]
    assert "token=" in refused.remedy
    with pytest.raises(ListenerError, match="token="):
        listener.ready(SOON)


def test_a_source_of_tokens_may_fail_for_a_while(bench):
    """It is asked again."""
    table = bench.table(VERSIONED_RLS)
    failures = iter([ConnectionError(), ConnectionError()])

    def token():
        if (error := next(failures, None)) is not None:
            raise error
        return bench.local.jwt(sub=ADA)

    listener, ear = bench.hear(table, token=token)
    live_again(bench, table, listener, ear)


# --- what a person must set right -----------------------------------------------------------------


def refusal(bench, listener):
    """What `ready()` raises, and at what cost."""
    before = bench.local.realtime.connects, bench.local.requests(match="/rest/v1/")
    listener.start()
    with pytest.raises(ListenerError) as raised:
        listener.ready(SOON)
    connects = bench.local.realtime.connects - before[0]
    requests = bench.local.requests(match="/rest/v1/") - before[1]
    assert connects <= 2
    assert requests <= 4
    assert "refused" == listener.stats.state
    assert listener.stats.reason in str(raised.value)
    with pytest.raises(ListenerError):
        listener.ready(SOON)
    assert events(bench, ListenerRefused)
    return str(raised.value)


@pytest.mark.parametrize("level", [LIVE, BY_COLUMN, VERSIONED, CHANGE_LOG], ids=lambda it: it.name)
def test_an_unknown_table_is_refused(bench, level):
    """With its name."""
    table = bench.table(level)
    table.run("drop table {}")
    bench.local.rest.reload()
    assert table.name in refusal(bench, bench.listener(table))


@pytest.mark.parametrize("level", [LIVE, BY_COLUMN], ids=lambda it: it.name)
def test_a_table_that_is_not_published_is_refused(bench, level):
    """With the SQL that publishes it; after that and another start it works."""
    table = bench.table(level)
    remedy = f"alter publication supabase_realtime add table public.{table.name};"
    table.run("alter publication supabase_realtime drop table {}")
    listener, ear = bench.listener(table), Ear()
    listener.handle("ear", ear)
    assert remedy in refusal(bench, listener)
    listener.stop()
    table.run(remedy, raw=True)
    listener.start()
    live_again(bench, table, listener, ear)


@pytest.mark.parametrize("level", [LIVE, BY_COLUMN, VERSIONED], ids=lambda it: it.name)
@pytest.mark.parametrize("filter_", ["nothing=eq.1", "id=eq.word"])
def test_a_bad_filter_is_refused(bench, level, filter_):
    """One with an unknown column, and one with a value of another type."""
    assert "filter=" in refusal(bench, bench.listener(bench.table(level), filter=filter_))


def test_a_bad_column_is_refused(bench):
    """Of the recovery or of the key."""
    table = bench.table(KEY_DIFF)
    wrong = bench.listener(table, recovery=Recovery.by_column("changed_at"))
    assert "changed_at" in refusal(bench, wrong)
    no_times = bench.listener(table, recovery=Recovery.by_column("name"))
    table.insert("no time")
    assert "must hold times or numbers" in refusal(bench, no_times)
    wrong_key = bench.listener(table, id_column="number")
    assert "number" in refusal(bench, wrong_key)


@pytest.mark.parametrize("level", [VERSIONED, CHANGE_LOG], ids=lambda it: it.name)
def test_a_missing_migration_is_refused(bench, level):
    """With the command that prints it."""
    table = bench.table(Level("unprepared", level.recovery))
    option = " --recovery change-log" if level is CHANGE_LOG else ""
    command = f"python -m supabase_resilience sql listener --table public.{table.name}{option}"
    assert command in refusal(bench, bench.listener(table))


def test_a_migration_for_another_key_is_refused(bench):
    """With both keys."""
    columns = COLUMNS.replace("primary key", "") + ", shop int default 1, primary key (shop, id)"
    table = bench.table(VERSIONED, columns, key=("shop", "id"))
    assert "['shop', 'id']" in refusal(bench, bench.listener(table, id_column="id"))


def test_a_migration_for_another_level_is_refused(bench):
    """With the command that prints the right one."""
    table = bench.table(CHANGE_LOG)
    listener = bench.listener(table, recovery=Recovery.versioned())
    assert "is not prepared for Recovery.versioned()" in refusal(bench, listener)


@pytest.mark.parametrize("level", [VERSIONED, CHANGE_LOG], ids=lambda it: it.name)
def test_what_only_the_secret_key_may_read_is_refused_to_others(bench, level):
    """With what else there is."""
    table = bench.table(level)
    client = bench.world.client(bench.local, bench.local.publishable_key)
    said = refusal(bench, bench.listener(table, client=client))
    assert "use the secret key" in said
    assert ("key_diff=True" in said) == (level is VERSIONED)


@pytest.mark.parametrize("level", [LIVE, VERSIONED], ids=lambda it: it.name)
def test_a_wrong_key_is_refused(bench, level):
    """And not shown."""
    table = bench.table(level)
    key = bench.local.jwt(role="service_role")[:-4] + "AAAA"
    client = bench.world.client(bench.local, key)
    said = refusal(bench, bench.listener(table, client=client))
    assert "key" in said
    assert key not in said


def test_a_table_without_rights_is_refused(bench):
    """With the grant it takes."""
    table = bench.table(BY_COLUMN)
    table.run("revoke all on {} from anon")
    client = bench.world.client(bench.local, bench.local.publishable_key)
    assert f"grant select on public.{table.name}" in refusal(
        bench, bench.listener(table, client=client)
    )


def test_a_refusal_is_told_once_and_nothing_is_stormed(bench):
    """However often it is asked whether it is ready."""
    table = bench.table(BY_COLUMN)
    table.run("alter publication supabase_realtime drop table {}")
    listener = bench.listener(table, catch_up_interval=0.2)
    refusal(bench, listener)
    before = bench.local.realtime.connects
    bench.eventually(lambda: listener.stats.catch_ups >= 3)
    with pytest.raises(ListenerError):
        listener.ready(SOON)
    assert before == bench.local.realtime.connects
    assert 1 == len(events(bench, ListenerRefused))


def test_the_wrong_client_is_refused(bench):
    """By name, with the class to use."""
    is_async = isinstance(bench.world, AsyncWorld)
    wanted = "RealtimeListener" if is_async else "AsyncRealtimeListener"
    other = Level("other", None)
    table = bench.table(other)
    from .worlds import SyncWorld

    world = SyncWorld() if is_async else AsyncWorld()
    try:
        with pytest.raises(TypeError, match=wanted):
            bench.listener(table, client=world.client(bench.local))
    finally:
        world.close()
