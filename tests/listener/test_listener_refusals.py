"""What a person has to set right, said with its remedy; and tokens, which a listener renews."""

import re

import pytest

from supabase_resilience import FileCursor, ListenerError
from supabase_resilience.events import ListenerRefused
from supabase_resilience.listener import Recovery, _pacing, _recoverer

from .worlds import (
    ADA,
    BY_COLUMN,
    CHANGE_LOG,
    LIVE,
    RECOVERING,
    SOON,
    VERSIONED,
    VERSIONED_RLS,
    AsyncWorld,
    Ear,
    Level,
    SyncWorld,
)

UNPREPARED = Level("versioned, not migrated", Recovery.versioned())
UNLOGGED = Level("change_log, not migrated", Recovery.change_log())


def refused(bench, listener) -> str:
    """What `ready()` raises, which is told as an event, too."""
    listener.handle("ear", Ear())
    listener.start()
    with pytest.raises(ListenerError) as caught:
        listener.ready(SOON)
    told = [event for event in bench.hook.events if isinstance(event, ListenerRefused)]
    assert told
    assert all(event.reason in str(caught.value) for event in told[:1])
    assert "refused" == listener.stats.state
    assert listener.stats.reason
    return str(caught.value)


# --- what is permanent ----------------------------------------------------------------------------


@pytest.mark.parametrize("level", [LIVE, *RECOVERING], ids=lambda level: level.name)
def test_an_unknown_table_is_refused(bench, level):
    """By Realtime, or by the first catch-up."""
    table = bench.table(level)
    table.name = "nowhere"
    said = refused(bench, bench.listener(table))
    assert "public.nowhere" in said
    assert re.search(r"create the table|table exists|sql listener --table", said)


@pytest.mark.parametrize("level", [LIVE, BY_COLUMN, VERSIONED], ids=lambda level: level.name)
def test_a_table_that_is_not_published_is_refused(bench, level):
    """With the SQL that publishes it."""
    table = bench.table(level)
    table.run("alter publication supabase_realtime drop table {}")
    said = refused(bench, bench.listener(table))
    assert f"alter publication supabase_realtime add table public.{table.name};" in said


@pytest.mark.parametrize("level", [LIVE, BY_COLUMN, VERSIONED], ids=lambda level: level.name)
@pytest.mark.parametrize("wrong", ["nope=eq.1", "id=eq.many"])
def test_a_filter_that_the_table_cannot_have_is_refused(bench, level, wrong):
    """A column that is not there, a value of the wrong type."""
    assert "filter=" in refused(bench, bench.listener(bench.table(level), filter=wrong))


@pytest.mark.parametrize(
    ("recovery", "says"),
    [
        (Recovery.by_column("nope"), "the recovery's column"),
        (Recovery.by_column("name"), "must hold times or numbers"),
    ],
)
def test_a_column_that_cannot_be_followed_is_refused(bench, recovery, says):
    """One that is not there, one of words."""
    table = bench.table(BY_COLUMN)
    table.insert("a word")
    assert says in refused(bench, bench.listener(table, recovery=recovery))


@pytest.mark.parametrize("level", [BY_COLUMN, VERSIONED], ids=lambda level: level.name)
def test_a_key_that_is_not_there_is_refused(bench, level):
    """With the name of the option."""
    table = bench.table(level)
    table.insert("a row")
    said = refused(bench, bench.listener(table, id_column="nope"))
    assert "id_column" in said


@pytest.mark.parametrize(
    ("level", "migrated", "options"),
    [
        (UNPREPARED, None, ""),
        (UNLOGGED, None, "--recovery change-log "),
        (VERSIONED, CHANGE_LOG, ""),
        (CHANGE_LOG, VERSIONED, "--recovery change-log "),
    ],
    ids=["versioned", "change_log", "log instead", "versions instead"],
)
def test_a_missing_migration_is_refused_with_its_command(bench, level, migrated, options):
    """Also when the table is followed in the other way."""
    table = bench.table(migrated or level)
    if migrated is CHANGE_LOG:
        table.run("alter publication supabase_realtime add table {}")
    said = refused(bench, bench.listener(table, recovery=level.recovery))
    command = "python -m supabase_resilience sql listener "
    assert command in said
    assert f"--table public.{table.name}" in said
    assert options.strip() in said


def test_a_migration_for_another_key_is_refused(bench):
    """With the command for the key that was given."""
    table = bench.table(VERSIONED)
    said = refused(bench, bench.listener(table, id_column=("id", "name")))
    assert "made for the key ['id']" in said
    assert "--key id,name" in said


@pytest.mark.parametrize("level", [LIVE, BY_COLUMN, VERSIONED], ids=lambda level: level.name)
def test_a_wrong_key_is_refused(bench, level):
    """Whether Realtime or the API says so first; and it is not shown."""
    client = bench.world.client(bench.local, "sb_secret_another_project")
    said = refused(bench, bench.listener(bench.table(level), client=client))
    assert "valid token" in said
    assert "another_project" not in said + repr(bench.hook.events)


def test_deletes_need_the_secret_key_or_a_key_diff(bench):
    """Nobody else may read tombstones."""
    table = bench.table(VERSIONED)
    client = bench.world.client(bench.local, bench.local.publishable_key)
    said = refused(bench, bench.listener(table, client=client, token=bench.local.jwt(sub=ADA)))
    assert "secret key" in said
    assert "key_diff=True" in said


def test_the_change_log_needs_the_secret_key(bench):
    """Realtime tells of it only what its reader may see."""
    table = bench.table(CHANGE_LOG)
    client = bench.world.client(bench.local, bench.local.publishable_key)
    assert "secret key" in refused(bench, bench.listener(table, client=client))


def test_a_cursor_that_is_none_is_refused(bench, tmp_path):
    """Rather than taken for the beginning."""
    (tmp_path / "cursor.json").write_text("my letters", encoding="utf-8")
    table = bench.table(VERSIONED)
    said = refused(bench, bench.listener(table, cursor=FileCursor(tmp_path / "cursor.json")))
    assert "holds no cursor; delete the file to begin anew" in said


def test_rights_that_are_missing_are_refused(bench):
    """With what to grant."""
    table = bench.table(BY_COLUMN)
    table.run("revoke all on {} from service_role")
    assert f"grant select on public.{table.name}" in refused(bench, bench.listener(table))


@pytest.mark.parametrize("level", [LIVE, BY_COLUMN], ids=lambda level: level.name)
def test_what_was_set_right_works_without_a_restart(bench, level, monkeypatch):
    """It is tried again, at long intervals; the refusal is told once."""
    monkeypatch.setattr(_pacing, "_REFUSED", 0.3)
    monkeypatch.setattr(_recoverer, "_REFUSED_WAIT", (0.1, 0.2))
    table = bench.table(level)
    table.run("alter publication supabase_realtime drop table {}")
    listener, ear = bench.listener(table), Ear()
    listener.handle("ear", ear)
    listener.start()
    with pytest.raises(ListenerError, match="alter publication"):
        listener.ready(SOON)
    connects = listener.stats.connects
    bench.eventually(lambda: listener.stats.connects >= connects + 2)
    assert 1 == bench.hook.names.count("listener.refused")
    table.run("alter publication supabase_realtime add table {}")
    bench.eventually(lambda: listener.stats.state == "live")
    listener.ready(SOON)
    key = table.insert("it")
    bench.eventually(lambda: key in ear.rows)


def test_nothing_is_stormed_meanwhile(bench):
    """However often it is asked whether it is ready."""
    table = bench.table(BY_COLUMN)
    table.run("alter publication supabase_realtime drop table {}")
    listener = bench.listener(table, catch_up_interval=0.1)
    refused(bench, listener)
    before = bench.local.realtime.connects
    bench.eventually(lambda: listener.stats.catch_ups >= 5)
    with pytest.raises(ListenerError):
        listener.ready(SOON)
    assert before == bench.local.realtime.connects
    assert 1 == bench.hook.names.count("listener.refused")


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
def test_the_wrong_client_is_refused(local, is_async):
    """By name, with the class to use."""
    worlds = [SyncWorld(), AsyncWorld()]
    mine, other = worlds[is_async], worlds[not is_async]
    try:
        with pytest.raises(TypeError, match=f"use {other.listener_class.__name__} for it"):
            mine.listener_class(other.client(local), "items")
    finally:
        for world in worlds:
            world.close()


# --- tokens ---------------------------------------------------------------------------------------


@pytest.fixture(params=["plain", "async"])
def as_source(request):
    """A token source of each kind, for listeners of both colours."""

    def make(function):
        async def token() -> str:
            return function()

        return function if request.param == "plain" else token

    return make


def test_a_token_is_renewed_before_it_expires(bench):
    """On the same connection, and changes come as before."""
    made = []

    def token() -> str:
        made.append(1)
        return bench.local.jwt(sub=ADA, expires_in=5)

    table = bench.table(VERSIONED_RLS)
    listener, ear = bench.hear(table, token=token)
    bench.eventually(lambda: len(made) >= 2)
    listener.ready(SOON)
    key = table.insert("mine")
    bench.eventually(lambda: key in ear.rows)
    assert 1 == listener.stats.connects


@pytest.mark.parametrize("level", [LIVE, VERSIONED_RLS], ids=lambda level: level.name)
def test_an_expired_token_is_replaced(bench, level, as_source):
    """When somebody can be asked for another one."""
    life = iter([-10.0, 3600.0])
    table = bench.table(level)
    token = as_source(lambda: bench.local.jwt(sub=ADA, expires_in=next(life, 3600.0)))
    _, ear = bench.hear(table, token=token)
    key = table.insert("mine")
    bench.eventually(lambda: key in ear.rows)


@pytest.mark.parametrize("level", [LIVE, VERSIONED_RLS], ids=lambda level: level.name)
def test_an_expired_token_that_nobody_replaces_is_refused(bench, level):
    """With what to do."""
    token = bench.local.jwt(sub=ADA, expires_in=-10)
    said = refused(bench, bench.listener(bench.table(level), token=token))
    assert "token= that returns a fresh one" in said


def test_a_token_that_expires_is_told_when_nobody_replaces_it(bench):
    """While it listens, too."""
    table = bench.table(VERSIONED_RLS)
    listener, _ = bench.hear(table, token=bench.local.jwt(sub=ADA, expires_in=2))
    bench.eventually(lambda: "listener.refused" in bench.hook.names)
    with pytest.raises(ListenerError, match="token= that returns a fresh one"):
        listener.ready(SOON)


def test_a_token_source_that_fails_is_asked_again(bench, as_source):
    """What it raised is not told, only that it did."""
    failures = iter([ValueError("private")])

    def token() -> str:
        for failure in failures:
            raise failure
        return bench.local.jwt(sub=ADA)

    table = bench.table(VERSIONED_RLS)
    _, ear = bench.hear(table, token=as_source(token))
    key = table.insert("mine")
    bench.eventually(lambda: key in ear.rows)
    assert "private" not in repr(bench.hook.events)


@pytest.mark.parametrize("made", [None, "", 7], ids=repr)
def test_a_token_source_that_returns_no_token_is_refused(bench, made):
    """It is asked some times, for it may only have failed to reach somebody."""
    listener = bench.listener(bench.table(VERSIONED_RLS), token=lambda: made)
    assert "token()" in refused(bench, listener)


def test_a_catch_up_that_is_unauthorized_gets_another_token(bench):
    """The key of the API can expire ahead of Realtime's."""
    made = []

    def token() -> str:
        made.append(1)
        return bench.local.jwt(sub=ADA)

    table = bench.table(VERSIONED_RLS)
    listener, ear = bench.hear(table, token=token)
    asked = len(made)
    body = {"code": "PGRST303", "message": "JWT expired", "details": None, "hint": None}
    bench.local.faults.add(match="/rest/v1/", status=401, body=body)
    with bench.unheard():
        key = table.insert("mine")
    bench.eventually(lambda: key in ear.rows)
    listener.ready(SOON)
    assert len(made) > asked
    assert "listener.refused" not in bench.hook.names


def test_a_sign_in_on_the_client_changes_nothing(bench):
    """The key was pinned when the listener was made."""
    table = bench.table(VERSIONED)
    client = bench.client()
    listener, ear = bench.hear(table, client=client)
    bench.world.do(
        client.auth.sign_up, {"email": f"{table.name}@example.test", "password": "password"}
    )
    with bench.unheard():
        missed = table.insert("missed")
        table.delete(table.insert("brief"))
    bench.eventually(lambda: missed in ear.rows)
    listener.ready(SOON)
    key = table.insert("it")
    bench.eventually(lambda: key in ear.rows)
