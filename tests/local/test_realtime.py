"""The local Realtime on a real PostgreSQL: changes, permissions, protocol and faults."""

import asyncio
import itertools
import json
import socketserver
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
import supabase
from realtime.types import RealtimePostgresChangesListenEvent as Listen
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from supabase_resilience.local import LocalSupabase, LocalSupabaseError

from .phoenix import PATIENCE, Connect, Phoenix, opener, sql, system, table, websocket_url

pytestmark = [
    pytest.mark.anyio,
    # realtime-py reads these attributes in its reconnection; as errors they would end it.
    pytest.mark.filterwarnings("ignore:ConnectionClosed:DeprecationWarning"),
]

Eventually = Callable[[Callable[[], object]], None]

SCHEMA = """
create table orders (id int8 primary key, owner text, amount numeric, note text);
create table whole (id int primary key, n int, blob text);
alter table whole replica identity full;
alter table whole alter column blob set storage external;
create table secrets (id int primary key, owner text, title text);
alter table secrets enable row level security;
create policy own on secrets for select to authenticated
    using (owner = (current_setting('request.jwt.claims')::json ->> 'sub'));
create table vault (id int primary key, secret text);
alter table vault enable row level security;
alter table vault replica identity full;
create table nokey (x text);
create table hidden (id int primary key, open text, closed text);
revoke all on hidden from anon;
grant select (id, open) on hidden to anon;
create table nogrant (id int primary key);
revoke all on nogrant from anon, authenticated;
create type mood as enum ('sad', 'ok');
create domain positive as int check (value > 0);
create table kinds (
    id int4 primary key, a text[], n numeric, f float8, b bytea, u uuid, d date, t timestamp,
    tz timestamptz, j jsonb, i interval, ia int4[], big int8, nul text, e text, m mood, p positive,
    ok boolean
);
create table unpublished (id int primary key);
alter publication supabase_realtime
    add table orders, whole, secrets, vault, nokey, hidden, nogrant, kinds;
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSupabase]:
    with LocalSupabase(schema=SCHEMA) as stack:
        yield stack


@pytest.fixture
def ids() -> Iterator[int]:
    """Yield keys that no other test uses."""
    return itertools.count(time.time_ns() // 1000)


@pytest.fixture
def phoenix(local: LocalSupabase) -> Connect:
    """Return what opens a socket on the stack's URL."""
    return opener(local)


# --- supabase-py ---


class Listener:
    """A channel of supabase-py, its callbacks as queues."""

    def __init__(self) -> None:
        self.changes: asyncio.Queue[Any] = asyncio.Queue()
        self.systems: asyncio.Queue[Any] = asyncio.Queue()
        self.states: asyncio.Queue[str] = asyncio.Queue()

    async def subscribe(self, client: supabase.AsyncClient, **binding: Any) -> None:
        channel = client.channel("orders")
        channel.on_postgres_changes(Listen.All, callback=self.changes.put_nowait, **binding)
        channel.on_system(self.systems.put_nowait)
        await channel.subscribe(lambda state, _error: self.states.put_nowait(state.value))
        await self.live()

    async def live(self) -> None:
        await self.state("SUBSCRIBED")
        message = await self._next(self.systems)
        assert message.message == "Subscribed to PostgreSQL"

    async def state(self, wanted: str) -> None:
        while await self._next(self.states) != wanted:
            pass

    async def change(self) -> dict[str, Any]:
        return dict((await self._next(self.changes))["data"])

    async def _next(self, queue: asyncio.Queue[Any]) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await queue.get()


@pytest.fixture
async def client(local: LocalSupabase) -> AsyncIterator[supabase.AsyncClient]:
    made = await supabase.acreate_client(local.url, local.publishable_key)
    yield made
    await made.realtime.close()


async def test_an_insert_reaches_the_callback(
    local: LocalSupabase, client: supabase.AsyncClient, ids: Iterator[int]
) -> None:
    """A committed row is handed to the callback of supabase-py, typed and with its columns."""
    listener, key = Listener(), next(ids)
    await listener.subscribe(client, schema="public", table="orders")
    sql(local, "insert into orders values (%s, 'ann', 1.50, null)", key)
    change = await listener.change()
    assert change["type"] == Listen.Insert
    assert change["record"] == {"id": key, "owner": "ann", "amount": 1.5, "note": None}
    assert change["errors"] is None
    assert change["columns"] == [
        {"name": "id", "type": "int8"},
        {"name": "owner", "type": "text"},
        {"name": "amount", "type": "numeric"},
        {"name": "note", "type": "text"},
    ]


async def test_a_filter_lets_only_its_rows_pass(
    local: LocalSupabase, client: supabase.AsyncClient, ids: Iterator[int]
) -> None:
    """Rows that the filter does not match never come."""
    listener, key = Listener(), next(ids)
    filter_ = f"owner=eq.bob,amount=gte.10,id=not.eq.{key}"
    await listener.subscribe(client, schema="public", table="orders", filter=filter_)
    wanted = key + 4
    rows = [(key, "bob", 10), (key + 1, "ann", 10), (key + 2, "bob", 9), (key + 3, "bob", None)]
    for row in [*rows, (wanted, "bob", 10)]:
        sql(local, "insert into orders values (%s, %s, %s)", *row)
    assert (await listener.change())["record"]["id"] == wanted


async def test_a_closed_client_comes_back(
    local: LocalSupabase, client: supabase.AsyncClient, ids: Iterator[int]
) -> None:
    """After a close with 1012 the client reconnects, rejoins and hears of new rows."""
    listener, key = Listener(), next(ids)
    await listener.subscribe(client, schema="public", table="orders")
    local.realtime.close()
    await listener.state("CHANNEL_ERROR")
    await listener.live()
    sql(local, "insert into orders values (%s)", key)
    assert (await listener.change())["record"]["id"] == key


async def test_kill_and_start_of_realtime(
    local: LocalSupabase, client: supabase.AsyncClient, ids: Iterator[int]
) -> None:
    """A killed server is back on its feet; rows of the time between are lost."""
    listener, lost, key = Listener(), next(ids), next(ids) + 1
    await listener.subscribe(client, schema="public", table="orders")
    local.realtime.kill()
    sql(local, "insert into orders values (%s)", lost)
    local.realtime.start()
    await listener.live()
    sql(local, "insert into orders values (%s)", key)
    assert (await listener.change())["record"]["id"] == key


# --- what a change looks like ---


async def test_the_frame_is_that_of_the_real_server(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """Keys, their order and the ids are as recorded from the real server."""
    key = next(ids)
    async with phoenix() as a:
        reply = await a.join(table("orders"), table("orders", event="INSERT"))
        first, second = (b["id"] for b in reply["payload"]["response"]["postgres_changes"])
        await a.frame()
        sql(local, "insert into orders values (%s, 'ann', 1.50, 'x')", key)
        frame = json.loads(await a.text())
    timestamp = frame["payload"]["data"]["commit_timestamp"]
    columns = [("id", "int8"), ("owner", "text"), ("amount", "numeric"), ("note", "text")]
    expected = {
        "event": "postgres_changes",
        "payload": {
            "data": {
                "columns": [{"name": name, "type": type_} for name, type_ in columns],
                "commit_timestamp": timestamp,
                "errors": None,
                "record": {"id": key, "note": "x", "owner": "ann", "amount": 1.5},
                "schema": "public",
                "table": "orders",
                "type": "INSERT",
            },
            "ids": [first, second],
        },
        "ref": None,
        "topic": "realtime:t",
    }
    assert json.dumps(expected) == json.dumps(frame)
    assert len("2026-01-02T03:04:05.678Z") == len(timestamp)
    assert timestamp.endswith("Z")


async def test_values_are_exact(local: LocalSupabase, phoenix: Connect, ids: Iterator[int]) -> None:
    """Types read as to_jsonb writes them; integers beyond 2^53 and numerics keep every digit."""
    key = next(ids) % 2**31
    async with phoenix() as a:
        await a.subscribe(table("kinds"))
        sql(
            local,
            """insert into kinds values (%s, '{a,"b c",NULL}', 12345678901234567890.12, 1.5,
               '\\xdeadbeef', '6f3f5a1e-0d5c-4a7e-8a43-0f2b6a0f5d01', '2026-01-02',
               '2026-01-02 03:04:05.678901', '2026-01-02 03:04:05.678901+02', '{"k": [1, null]}',
               '1 day 02:03:04', '{1,2,NULL}', 9007199254740993, null, '', 'ok', 5, true)""",
            key,
        )
        frame = json.loads(await a.text(), parse_float=Decimal)
    expected = {
        "id": key,
        "a": ["a", "b c", None],
        "n": Decimal("12345678901234567890.12"),
        "f": Decimal("1.5"),
        "b": "deadbeef",
        "u": "6f3f5a1e-0d5c-4a7e-8a43-0f2b6a0f5d01",
        "d": "2026-01-02",
        "t": "2026-01-02T03:04:05.678901",
        "tz": "2026-01-02T01:04:05.678901+00:00",
        "j": {"k": [1, None]},
        "i": "1 day 02:03:04",
        "ia": [1, 2, None],
        "big": 9007199254740993,
        "nul": None,
        "e": "",
        "m": "ok",
        "p": 5,
        "ok": True,
    }
    assert expected == frame["payload"]["data"]["record"]


async def test_default_identity_knows_the_old_key(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """Without REPLICA IDENTITY FULL the old record of UPDATE and DELETE is the primary key."""
    key = next(ids)
    sql(local, "insert into orders values (%s, 'ann')", key)
    async with phoenix() as a:
        await a.subscribe(table("orders"))
        sql(local, "update orders set owner = 'bob' where id = %s", key)
        sql(local, "delete from orders where id = %s", key)
        updated, deleted = await a.change(), await a.change()
    assert (updated["type"], deleted["type"]) == ("UPDATE", "DELETE")
    assert updated["old_record"] == {"id": key}
    assert updated["record"] == {"id": key, "owner": "bob", "amount": None, "note": None}
    assert deleted["old_record"] == {"id": key}
    assert "record" not in deleted


async def test_full_identity_knows_the_old_row(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """With REPLICA IDENTITY FULL the old row is whole, and fills in unchanged TOAST values."""
    key, blob = next(ids) % 2**31, "x" * 5000
    sql(local, "insert into whole values (%s, 1, %s)", key, blob)
    async with phoenix() as a:
        await a.subscribe(table("whole"))
        sql(local, "update whole set n = 2 where id = %s", key)
        sql(local, "delete from whole where id = %s", key)
        updated, deleted = await a.change(), await a.change()
    assert updated["old_record"] == {"id": key, "n": 1, "blob": blob}
    assert updated["record"] == {"id": key, "n": 2, "blob": blob}
    assert deleted["old_record"] == {"id": key, "n": 2, "blob": blob}


async def test_unchanged_toast_is_left_out(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """Without the old row, a TOAST value that an UPDATE left alone is missing from the record."""
    key = next(ids)
    sql(local, "alter table orders alter column note set storage external")
    sql(local, "insert into orders values (%s, 'ann', 1, repeat('x', 5000))", key)
    async with phoenix() as a:
        await a.subscribe(table("orders"))
        sql(local, "update orders set amount = 2 where id = %s", key)
        change = await a.change()
    assert change["record"] == {"id": key, "owner": "ann", "amount": 2}


async def test_a_delete_passes_a_filter_by_its_old_row(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """A filter sees what the replica identity brings: everything with FULL, else the key only."""
    key = next(ids)
    small = key % 2**31
    sql(local, "insert into whole values (%s, 5)", small)
    sql(local, "insert into orders values (%s, 'gone')", key)
    async with phoenix() as a:
        bindings = table("orders", filter="owner=eq.gone"), table("whole", filter="n=eq.5")
        await a.subscribe(*bindings)
        sql(local, "delete from orders where id = %s", key)
        sql(local, "delete from whole where id = %s", small)
        change = await a.change()
    assert (change["table"], change["old_record"]) == ("whole", {"id": small, "n": 5, "blob": None})


async def test_select_shows_only_chosen_columns_and_the_key(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """A binding may choose columns; the primary key always comes."""
    key = next(ids)
    async with phoenix() as a:
        await a.subscribe(table("orders", select=["note"]))
        sql(local, "insert into orders values (%s, 'ann', 1, 'x')", key)
        change = await a.change()
    assert change["record"] == {"id": key, "note": "x"}
    assert [column["name"] for column in change["columns"]] == ["id", "note"]


async def test_a_wildcard_hears_of_every_published_table(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """Without a table, every published one of the schema is meant, and no other."""
    key = next(ids)
    async with phoenix() as a:
        await a.subscribe({"event": "INSERT", "schema": "public"})
        sql(local, "insert into unpublished values (%s)", key % 2**31)
        sql(local, "insert into whole values (%s)", key % 2**31)
        sql(local, "insert into orders values (%s)", key)
        tables = [(await a.change())["table"], (await a.change())["table"]]
    assert tables == ["whole", "orders"]


async def test_a_record_over_one_mebibyte_keeps_its_small_values(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """Too large a record comes with an error, without its values over 64 bytes and its nulls."""
    key = next(ids)
    async with phoenix() as a:
        await a.subscribe(table("orders"))
        sql(local, "insert into orders values (%s, 'ann', null, repeat('x', 1100000))", key)
        change = await a.change()
    assert change["errors"] == ["Error 413: Payload Too Large"]
    assert change["record"] == {"id": key, "owner": "ann"}


async def test_a_transaction_comes_whole_and_in_order(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """Many rows of one commit arrive in the order in which they were written."""
    first = next(ids)
    async with phoenix() as a:
        await a.subscribe(table("orders"))
        statement = "insert into orders (id) select %s + g from generate_series(0, 1999) g"
        sql(local, statement, first)
        got = [(await a.change())["record"]["id"] for _ in range(2000)]
    assert got == list(range(first, first + 2000))


async def test_a_changed_table_is_seen_as_it_is_now(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """DDL and grants show in the very next change."""
    key = next(ids) % 2**31
    sql(local, "create table if not exists growing (id int primary key)")
    sql(local, "alter publication supabase_realtime add table growing")
    async with phoenix() as a:
        await a.subscribe(table("growing"))
        sql(local, "insert into growing values (%s)", key)
        assert (await a.change())["record"] == {"id": key}
        sql(local, "alter table growing add column extra text default 'new'")
        sql(local, "insert into growing values (%s)", key + 1)
        assert (await a.change())["record"] == {"id": key + 1, "extra": "new"}
        sql(local, "revoke select on growing from anon")
        sql(local, "insert into growing values (%s)", key + 2)
        assert (await a.change())["errors"] == ["Error 401: Unauthorized"]


# --- who may see what ---


async def test_row_security_is_asked_per_subscriber(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """A user hears of the rows that the policies show to that user; service_role of all."""
    key = next(ids) % 2**31
    async with phoenix() as a, phoenix(local.secret_key) as admin:
        await a.subscribe(table("secrets"), access_token=local.jwt(sub="ann"))
        await a.subscribe(table("secrets"), topic="realtime:b", access_token=local.jwt(sub="bob"))
        await admin.subscribe(table("secrets"))
        sql(local, "insert into secrets values (%s, 'bob', 'x')", key)
        sql(local, "insert into secrets values (%s, 'ann', 'y')", key + 1)
        frames = [await a.frame(), await a.frame()]
        seen = [(f["topic"], f["payload"]["data"]["record"]["owner"]) for f in frames]
        everything = [(await admin.change())["record"]["owner"] for _ in range(2)]
    assert seen == [("realtime:b", "bob"), ("realtime:t", "ann")]
    assert everything == ["bob", "ann"]


async def test_a_row_is_judged_when_others_can_see_it(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int], eventually: Eventually
) -> None:
    """A commit is in the WAL before other sessions see it; its rows are not lost in between."""
    key = next(ids) % 2**31
    insert = "insert into secrets values (%s, 'ann', 'x')"
    is_held = threading.Event()

    def write() -> int:
        """Rows one by one, until a commit was held: the server obeys some time after a reload."""
        count = 0
        while True:
            count += 1
            sql(local, insert, key + count)
            if is_held.is_set():
                return count

    async with phoenix() as a:
        await a.subscribe(table("secrets"), access_token=local.jwt(sub="ann"))
        with local.postgres.connect() as db:
            # Without its standby a commit is written, but not finished.
            set_system(db, "synchronous_standby_names = 'nobody'")
            try:
                writing = asyncio.get_running_loop().run_in_executor(None, write)
                eventually(lambda: is_read_but_unfinished(db))
            finally:
                is_held.set()
                set_system(db, "synchronous_standby_names = ''")
        count = await writing
        sql(local, insert, key)
        heard = [(await a.change())["record"]["id"] for _ in range(count)]
        assert [key + number for number in range(1, count + 1)] == heard


def set_system(db: psycopg.Connection[Any], setting: str) -> None:
    db.execute(f"alter system set {setting}".encode())
    db.execute("select pg_reload_conf()")


def is_read_but_unfinished(db: psycopg.Connection[Any]) -> bool:
    row = db.execute(
        "select exists (select from pg_stat_activity where wait_event = 'SyncRep') "
        "and pg_current_wal_flush_lsn() <= all (select sent_lsn from pg_stat_replication)"
    ).fetchone()
    return row == (True,)


async def test_a_delete_shows_its_key_to_everyone(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """Row level security cannot judge a row that is gone, so only its key is told, but to all."""
    key = next(ids) % 2**31
    sql(local, "insert into secrets values (%s, 'bob', 'x')", key)
    async with phoenix() as a:
        await a.subscribe(table("secrets"))
        sql(local, "update secrets set title = 'y' where id = %s", key)
        sql(local, "delete from secrets where id = %s", key)
        change = await a.change()
    assert (change["type"], change["old_record"]) == ("DELETE", {"id": key})


async def test_a_delete_under_row_security_never_shows_the_row(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """Not even REPLICA IDENTITY FULL brings more than the key of a protected row."""
    key = next(ids) % 2**31
    sql(local, "insert into vault values (%s, 'x')", key)
    async with phoenix() as a:
        await a.subscribe(table("vault"))
        sql(local, "delete from vault where id = %s", key)
        change = await a.change()
    assert change["old_record"] == {"id": key}


async def test_columns_without_a_grant_are_left_out(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """A role sees the columns that it may select, in the record and in the list of columns."""
    key = next(ids) % 2**31
    async with phoenix() as a:
        await a.subscribe(table("hidden"))
        sql(local, "insert into hidden values (%s, 'see', 'not')", key)
        change = await a.change()
    assert change["record"] == {"id": key, "open": "see"}
    assert [column["name"] for column in change["columns"]] == ["id", "open"]


@pytest.mark.parametrize(
    ("name", "values", "error"),
    [
        ("nokey", "('x')", "Error 400: Bad Request, no primary key"),
        ("nogrant", "(nextval('seq'))", "Error 401: Unauthorized"),
    ],
)
async def test_what_cannot_be_shown_is_an_error_frame(
    local: LocalSupabase, phoenix: Connect, name: str, values: str, error: str
) -> None:
    """Without a primary key, or the right to see it, a change is an error without any data."""
    sql(local, "create sequence if not exists seq")
    async with phoenix() as a:
        await a.subscribe(table(name))
        sql(local, f"insert into {name} values {values}")
        change = await a.change()
    expected: dict[str, Any] = {
        "columns": [],
        "commit_timestamp": None,
        "errors": [error],
        "record": {},
        "schema": "public",
        "table": name,
        "type": "INSERT",
    }
    assert expected == change


# --- joining ---


async def test_what_is_committed_before_subscribed_never_comes(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """The reply to a join does not mean subscribed: rows until "Subscribed" are lost."""
    early, late = next(ids), next(ids) + 1
    local.realtime.subscribe_delay(0.3)
    try:
        async with phoenix() as a:
            reply = await a.join(table("orders"))
            sql(local, "insert into orders values (%s)", early)
            subscribed = await a.frame()
            sql(local, "insert into orders values (%s)", late)
            change = await a.change()
    finally:
        local.realtime.subscribe_delay(0.0)
    assert reply["payload"]["status"] == "ok"
    assert system("Subscribed to PostgreSQL", status="ok") == subscribed
    assert change["record"]["id"] == late


PARAMETERS = "Unable to subscribe to changes with given parameters. "
NOT_PUBLISHED = f"{PARAMETERS}Please check Realtime is enabled for the given connect parameters: "
EXCEPTION = f"{PARAMETERS}An exception happened so please check your connect parameters: "


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        (
            table("unpublished"),
            (
                f"{NOT_PUBLISHED}[event: *, schema: public, table: unpublished, filters: [], "
                "select: nil]"
            ),
        ),
        (
            {"event": "*", "schema": "nope"},
            f"{NOT_PUBLISHED}[event: *, schema: nope, table: *, filters: [], select: nil]",
        ),
        (
            table("orders", filter="nope=eq.1"),
            (
                f"{EXCEPTION}[event: *, schema: public, table: orders, "
                'filters: [{"nope", "eq", "1", false}], select: nil]. '
                "Exception: ERROR P0001 (raise_exception) invalid column for filter nope"
            ),
        ),
        (
            table("orders", filter="id=eq.abc"),
            (
                f"{EXCEPTION}[event: *, schema: public, table: orders, "
                'filters: [{"id", "eq", "abc", false}], select: nil]. Exception: ERROR 22P02 '
                '(invalid_text_representation) invalid input syntax for type bigint: "abc"'
            ),
        ),
        (
            table("orders", select=["id", "zzz"]),
            (
                f"{EXCEPTION}[event: *, schema: public, table: orders, filters: [], "
                'select: ["id", "zzz"]]. '
                "Exception: ERROR P0001 (raise_exception) invalid column for select zzz"
            ),
        ),
        (table("orders", filter="id=foo.1"), 'Error parsing `filter` params: ["foo", "1"]'),
    ],
)
async def test_a_bad_binding_is_an_error_after_the_ok(
    phoenix: Connect, binding: dict[str, Any], message: str
) -> None:
    """A join is answered ok all the same; the binding's fault follows as a system message."""
    async with phoenix() as a:
        reply = await a.join(binding)
        assert reply["payload"]["status"] == "ok"
        assert system(message, status="error") == await a.frame()


@pytest.mark.parametrize(
    ("filter_", "problem"),
    [
        ("id=like.1%", "operator like requires a text-compatible column type, got bigint"),
        ("owner=is.true", "is true filter requires a boolean column, got text"),
        ("owner=match.(", "invalid regular expression for match filter: "),
        (f"id=in.({','.join(map(str, range(101)))})", "too many values for `in` filter."),
    ],
)
async def test_a_filter_is_checked_against_its_column(
    phoenix: Connect, filter_: str, problem: str
) -> None:
    """A filter that could never work is refused when subscribing, not silently dead."""
    async with phoenix() as a:
        await a.join(table("orders", filter=filter_))
        frame = await a.frame()
    assert f"ERROR P0001 (raise_exception) {problem}" in frame["payload"]["message"]


async def test_filter_values_are_read_by_postgresql(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """A value may be written in any way that the column's type accepts."""
    key = next(ids) % 2**31
    moment = "tz=eq.2026-01-02 03:04:05+02"
    async with phoenix() as a:
        await a.subscribe(table("kinds", filter=f'{moment},ok=in.(yes),ia=eq."{{1, 2}}"'))
        sql(local, "insert into kinds (id) values (%s)", key)
        statement = (
            "insert into kinds (id, tz, ok, ia) values (%s, '2026-01-02T01:04:05Z', true, %s)"
        )
        sql(local, statement, key + 1, [1, 2])
        assert (await a.change())["record"]["id"] == key + 1


async def test_one_bad_binding_silences_the_channel(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """As in the real server, a channel with a bad binding hears nothing through its good ones."""
    key = next(ids)
    async with phoenix() as a:
        await a.join(table("orders"), table("unpublished"))
        assert (await a.frame())["payload"]["status"] == "error"
        await a.subscribe(table("orders"), topic="realtime:good")
        sql(local, "insert into orders values (%s)", key)
        assert (await a.frame())["topic"] == "realtime:good"
        await a.push("heartbeat", topic="phoenix")
        assert (await a.frame())["topic"] == "phoenix"


async def test_a_second_join_replaces_the_first(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """The new join is answered first, then the old one is closed with the old join's ref."""
    key = next(ids)
    async with phoenix() as a:
        await a.subscribe(table("orders"))
        assert (await a.join(table("orders")))["ref"] == "2"
        frames = [await a.frame(), await a.frame()]
        sql(local, "insert into orders values (%s)", key)
        change = await a.change()
        await a.push("heartbeat", topic="phoenix")
        after = await a.frame()
    assert frames[0] == {"event": "phx_close", "payload": {}, "ref": "1", "topic": "realtime:t"}
    assert frames[1] == system("Subscribed to PostgreSQL", status="ok")
    assert change["record"]["id"] == key
    assert after["topic"] == "phoenix"


async def test_a_leave_needs_the_joins_ref(phoenix: Connect) -> None:
    """A leave with another join_ref is ignored; the right one is answered, then closed."""
    async with phoenix() as a:
        await a.join()
        await a.push("phx_leave", join_ref="99")
        await a.push("phx_leave", join_ref=None)
        ref = await a.push("phx_leave", join_ref="1")
        reply, closed = await a.frame(), await a.frame()
    assert (reply["event"], reply["ref"], reply["payload"]["status"]) == ("phx_reply", ref, "ok")
    assert closed == {"event": "phx_close", "payload": {}, "ref": "1", "topic": "realtime:t"}


async def test_heartbeats_are_answered_with_their_ref(phoenix: Connect) -> None:
    """A heartbeat's reply has its ref, also when that is null."""
    async with phoenix() as a:
        ref = await a.push("heartbeat", topic="phoenix")
        message: dict[str, Any] = {
            "topic": "phoenix",
            "event": "heartbeat",
            "payload": {},
            "ref": None,
        }
        await a.socket.send(json.dumps(message))
        replies = [await a.frame(), await a.frame()]
    assert [reply["ref"] for reply in replies] == [ref, None]


async def test_edges_of_the_protocol(phoenix: Connect) -> None:
    """Topics that are not joined, or cannot be, are refused; broken frames are dropped."""
    async with phoenix() as a:
        await a.socket.send("{")
        await a.push("broadcast", topic="realtime:x")
        unmatched = await a.frame()
        await a.push("phx_leave", topic="realtime:never")
        left = await a.frame()
        nameless = await a.join(topic="realtime:")
        foreign = await a.join(topic="other:x")
    error = {"response": {"reason": "unmatched topic"}, "status": "error"}
    assert unmatched["payload"] == error
    assert left["payload"] == {"response": {}, "status": "ok"}
    reason = "TopicNameRequired: You must provide a topic name"
    assert nameless["payload"]["response"] == {"reason": reason}
    assert foreign["payload"] == error


# --- keys and tokens ---


async def test_a_missing_or_wrong_key_is_refused_with_401(local: LocalSupabase) -> None:
    """The handshake fails with HTTP 401 and a JSON reason."""
    reasons: list[str] = []
    for key in ("", "nonsense"):
        with pytest.raises(InvalidStatus) as refused:
            await connect(websocket_url(local, key))
        assert refused.value.response.status_code == 401
        reasons.append(json.loads(refused.value.response.body or b"")["error"])
    assert reasons == ["API key is missing", "The token provided is not a valid JWT"]


async def test_the_header_comes_before_the_query(local: LocalSupabase) -> None:
    """A key in x-api-key is used, whatever the query says."""
    headers = {"x-api-key": local.publishable_key}
    async with connect(websocket_url(local, "nonsense"), additional_headers=headers) as socket:
        await Phoenix(socket).push("heartbeat", topic="phoenix")
        assert await socket.recv()


async def test_a_bad_token_is_refused_at_the_join(local: LocalSupabase, phoenix: Connect) -> None:
    """The reason has the code of the real server; an API key stands for the connection's own."""
    async with phoenix() as a:
        malformed = await a.join(access_token="abc")
        expired = await a.join(access_token=local.jwt(expires_in=-60))
        key = await a.join(access_token="sb_publishable_other")
    assert malformed["payload"] == {
        "response": {"reason": "MalformedJWT: The token provided is not a valid JWT"},
        "status": "error",
    }
    reason = expired["payload"]["response"]["reason"]
    assert reason.startswith("InvalidJWTToken: Token has expired 6")
    assert key["payload"]["status"] == "ok"


async def test_an_expiring_token_ends_its_channel(local: LocalSupabase, phoenix: Connect) -> None:
    """At expiry comes a system error, then phx_close with the join's ref; the socket stays."""
    async with phoenix() as a:
        await a.join(access_token=local.jwt(expires_in=1.2))
        error, closed = await a.frame(), await a.frame()
        await a.push("heartbeat", topic="phoenix")
        alive = await a.frame()
    message = "Token has expired 0 seconds ago"
    assert system(message, status="error", extension="system") == error
    assert closed == {"event": "phx_close", "payload": {}, "ref": "1", "topic": "realtime:t"}
    assert alive["topic"] == "phoenix"


async def test_a_refreshed_token_subscribes_anew(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """A new token has no reply but a second "Subscribed", and its claims count from then on."""
    key = next(ids) % 2**31
    async with phoenix() as a:
        token = local.jwt(sub="ann")
        await a.subscribe(table("secrets"), access_token=token)
        for same in (token, None, "sb_secret_x"):
            await a.push("access_token", {"access_token": same}, join_ref="1")
        await a.push("access_token", {"access_token": local.jwt(sub="bob")}, join_ref="1")
        again = await a.frame()
        sql(local, "insert into secrets values (%s, 'ann')", key)
        sql(local, "insert into secrets values (%s, 'bob')", key + 1)
        change = await a.change()
    assert system("Subscribed to PostgreSQL", status="ok") == again
    assert change["record"]["owner"] == "bob"


async def test_a_bad_new_token_ends_the_channel(phoenix: Connect) -> None:
    """A token that does not hold puts the client out of the channel."""
    async with phoenix() as a:
        await a.join()
        await a.push("access_token", {"access_token": "abc"}, join_ref="1")
        error, closed = await a.frame(), await a.frame()
    message = "The token provided is not a valid JWT"
    assert system(message, status="error", extension="system") == error
    assert (closed["event"], closed["ref"]) == ("phx_close", "1")


# --- broadcast and presence ---


async def test_broadcast_reaches_the_others_and_self_if_asked(phoenix: Connect) -> None:
    """A broadcast goes to the topic as it was sent; `self` and `ack` are the sender's choice."""
    payload = {"type": "broadcast", "event": "cursor", "payload": {"x": 1}}
    async with phoenix() as a, phoenix() as b:
        await a.join(broadcast={"self": True, "ack": True})
        await b.join()
        ref = await a.push("broadcast", payload, join_ref="1")
        own, ack, other = await a.frame(), await a.frame(), await b.frame()
        await b.push("broadcast", payload, join_ref="1")
        await b.push("heartbeat", topic="phoenix")
        quiet = await b.frame()
    expected = {"event": "broadcast", "payload": payload, "ref": None, "topic": "realtime:t"}
    assert expected == own
    assert expected == other
    assert (ack["ref"], ack["payload"]) == (ref, {"response": {}, "status": "ok"})
    assert quiet["topic"] == "phoenix"


async def test_presence_is_a_state_and_then_differences(phoenix: Connect) -> None:
    """Everybody on the topic is told who comes, changes and goes, also by losing the socket."""
    track = {"type": "presence", "event": "track", "payload": {"at": "home"}}
    async with phoenix() as b:
        async with phoenix() as a:
            await a.join(presence={"key": "ann", "enabled": True})
            assert (await a.frame())["payload"] == {}
            await a.push("presence", track, join_ref="1")
            assert (await a.frame())["payload"]["status"] == "ok"
            joined = (await a.frame())["payload"]
            await b.join(presence={"key": "bob", "enabled": True})
            state = (await b.frame())["payload"]
        left = (await b.frame())["payload"]
    meta = joined["joins"]["ann"]["metas"][0]
    assert meta == {"phx_ref": meta["phx_ref"], "at": "home"}
    assert joined["leaves"] == {}
    assert state == {"ann": {"metas": [meta]}}
    assert left == {"joins": {}, "leaves": {"ann": {"metas": [meta]}}}


async def test_a_changed_presence_leaves_and_joins(phoenix: Connect) -> None:
    """Tracking again replaces the old entry and names it; untracking removes it."""
    async with phoenix() as a:
        await a.join(presence={"key": "ann", "enabled": True})
        await a.frame()
        payloads: list[dict[str, Any]] = []
        for event, at in (("track", "home"), ("track", "work"), ("untrack", None)):
            await a.push("presence", {"event": event, "payload": {"at": at}}, join_ref="1")
            await a.frame()
            payloads.append((await a.frame())["payload"])
        await a.push("presence", {"event": "track", "payload": "no map"}, join_ref="1")
        refused = await a.frame()
    before, after = (p["joins"]["ann"]["metas"][0] for p in payloads[:2])
    assert after == {"phx_ref": after["phx_ref"], "phx_ref_prev": before["phx_ref"], "at": "work"}
    assert payloads[1]["leaves"]["ann"]["metas"] == [before]
    assert payloads[2] == {"joins": {}, "leaves": {"ann": {"metas": [after]}}}
    reason = "Presence track payload must be a map"
    assert refused["payload"] == {"response": {"reason": reason}, "status": "error"}


# --- faults ---


async def test_abort_is_a_loss_without_a_word(local: LocalSupabase, phoenix: Connect) -> None:
    """After an abort the client has no close frame, which it sees as 1006."""
    async with phoenix() as a:
        await a.join()
        local.realtime.abort()
        with pytest.raises(ConnectionClosed) as lost:
            await a.text()
    assert lost.value.rcvd is None


async def test_close_is_a_handshake_with_the_code(local: LocalSupabase, phoenix: Connect) -> None:
    """The client is told the code."""
    async with phoenix() as a:
        await a.join()
        local.realtime.close(code=4321)
        with pytest.raises(ConnectionClosed) as closed:
            await a.text()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4321


async def test_a_stalled_server_stays_silent(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """Half-open: no answer, no change, no pong, for new sockets as well; the past stays lost."""
    lost, key = next(ids), next(ids) + 1
    async with phoenix() as a, phoenix() as b:
        await a.subscribe(table("orders"))
        await b.subscribe(table("orders"))
        local.realtime.stall()
        async with phoenix() as late:
            pongs = [await client.socket.ping() for client in (a, late)]
            sql(local, "insert into orders values (%s)", lost)
            await late.push("heartbeat", topic="phoenix")
            local.realtime.stall(on=False)
            assert (await late.frame())["topic"] == "phoenix"
            await late.subscribe(table("orders"))
            assert (await asyncio.wait_for(asyncio.gather(*pongs), PATIENCE)) is not None
            sql(local, "insert into orders values (%s)", key)
            assert (await a.change())["record"]["id"] == key


async def test_lost_changes_are_never_told(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """While changes are lost everything else works; what was lost never comes."""
    lost, key = next(ids), next(ids) + 1
    async with phoenix() as a:
        await a.subscribe(table("orders"))
        local.realtime.lose_changes()
        sql(local, "insert into orders values (%s)", lost)
        await a.push("heartbeat", topic="phoenix")
        assert (await a.frame())["topic"] == "phoenix"
        local.realtime.lose_changes(on=False)
        sql(local, "insert into orders values (%s)", key)
        assert (await a.change())["record"]["id"] == key


# --- outages of PostgreSQL ---


async def test_a_killed_postgresql_is_survived_in_silence(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """Channels stay joined through a crash of PostgreSQL and hear of rows after its return."""
    key = next(ids)
    async with phoenix() as a, phoenix() as b:
        await a.subscribe(table("orders"))
        local.postgres.kill()
        failing = await b.join(table("orders"))
        waiting = await b.frame()
        local.postgres.start()
        while (live := await b.frame()) == waiting:
            pass
        sql(local, "insert into orders values (%s)", key)
        changes = [await a.change(), await b.change()]
    timeouts = '{:error, "Too many database timeouts"}'
    assert failing["payload"]["status"] == "ok"
    assert system(timeouts, status="error") == waiting
    assert system("Subscribed to PostgreSQL", status="ok") == live
    assert [change["record"]["id"] for change in changes] == [key, key]


async def test_a_terminated_walsender_is_replaced(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """When somebody ends the replication connection, the server makes a new one by itself."""
    key = next(ids)
    async with phoenix() as a, phoenix() as b:
        await a.subscribe(table("orders"))
        with local.postgres.connect() as db:
            db.execute(
                "select pg_terminate_backend(pid, 30000) from pg_stat_activity "
                "where backend_type = 'walsender'"
            )
        await b.join(table("orders"))
        while (await b.frame())["payload"]["status"] == "error":
            pass
        sql(local, "insert into orders values (%s)", key)
        assert (await a.change())["record"]["id"] == key


async def test_subscribed_waits_for_a_replication_slot(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """A database that answers is not enough: without a slot changes are lost, and nobody is told.

    Who joins meanwhile is told, and is subscribed when it is over.
    """
    lost, key = next(ids), next(ids) + 1
    async with phoenix() as a, phoenix() as b:
        await b.subscribe(table("orders"))
        with local.postgres.connect() as db:
            try:
                db.execute(TAKE_EVERY_SLOT)
                sql(local, "insert into orders values (%s)", lost)
                await a.join(table("orders"))
                waiting = await a.frame()
                assert waiting["payload"]["status"] == "error"
            finally:
                drop_slots(db)
        while (live := await a.frame()) == waiting:
            pass
        sql(local, "insert into orders values (%s)", key)
        assert (await a.change())["record"]["id"] == key
        assert (await b.change())["record"]["id"] == key
    assert system("Subscribed to PostgreSQL", status="ok") == live


TAKE_EVERY_SLOT = """
do $$
declare
    slots int := current_setting('max_replication_slots')::int;
begin
    for i in 2..slots loop  -- All but Realtime's.
        perform pg_create_physical_replication_slot('taken_' || i);
    end loop;
    -- Only a loop inside the database takes that one before Realtime is back, if not at once.
    loop
        perform pg_stat_clear_snapshot();
        perform pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'walsender';
        begin
            perform pg_create_physical_replication_slot('taken_1');
            exit;
        exception when configuration_limit_exceeded then null;
        end;
    end loop;
end $$
"""


def drop_slots(db: psycopg.Connection[Any]) -> None:
    db.execute(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots "
        "where slot_type = 'physical'"
    )


async def test_an_orderly_stop_is_not_held_up(local: LocalSupabase, phoenix: Connect) -> None:
    """PostgreSQL waits for its walsenders when it stops; this one lets it go at once."""
    async with phoenix() as a:
        await a.subscribe(table("orders"))
        sql(local, "insert into whole select g from generate_series(1, 1000) g")
        local.postgres.stop()
    log = (local.directory / "postgres.log").read_text()
    local.postgres.start()
    assert "database system is shut down" in log
    assert "immediate shutdown" not in log


async def test_a_wrong_wal_level_is_one_clear_error(local: LocalSupabase) -> None:
    """Without logical decoding the server does not start, and says what to set."""
    local.realtime.kill()
    _set_wal_level(local, "replica")
    try:
        with pytest.raises(LocalSupabaseError, match="set wal_level = logical"):
            local.realtime.start()
    finally:
        _set_wal_level(local, "logical")
        local.realtime.start()


def _set_wal_level(local: LocalSupabase, level: str) -> None:
    with local.postgres.connect() as db:
        set_system(db, f"wal_level = {level}")
    local.postgres.stop()
    local.postgres.start()


# --- the control protocol ---


class Owner:
    """Starts a server of its own and gives it commands."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def send(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        async with asyncio.timeout(PATIENCE):
            return dict(json.loads(await self.process.stdout.readline()))

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()


@pytest.fixture
async def owner() -> AsyncIterator[Owner]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "supabase_resilience.local.realtime",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    yield Owner(process)
    if process.returncode is None:
        process.kill()
        await process.wait()


def config(local: LocalSupabase, **more: Any) -> dict[str, Any]:
    keys = {"publishable_key": "sb_publishable_x", "secret_key": "sb_secret_x"}
    return {"dsn": local.postgres.admin_dsn, "jwt_secret": "s" * 32, **keys, **more}


async def test_commands_are_answered(local: LocalSupabase, owner: Owner) -> None:
    """A command has one answer with its id: what it asked for, or why not."""
    port = (await owner.send(config(local)))["ready"]["port"]
    url = f"ws://127.0.0.1:{port}/socket/websocket?apikey=sb_secret_x"
    assert await owner.send({"id": 1, "do": "ping"}) == {"id": 1, "ok": None}
    assert await owner.send({"id": 2, "do": "connections"}) == {"id": 2, "ok": 0}
    async with connect(url) as socket:
        await Phoenix(socket).subscribe(table("orders"), table("whole"))
        assert await owner.send({"id": 3, "do": "connections"}) == {"id": 3, "ok": 1}
        assert await owner.send({"id": 4, "do": "subscriptions"}) == {"id": 4, "ok": 2}
    answer = await owner.send({"id": 5, "do": "dance"})
    assert answer == {"id": 5, "error": "cannot do 'dance': no such command"}


async def test_a_changed_publication_subscribes_everyone_anew(
    local: LocalSupabase, owner: Owner, ids: Iterator[int]
) -> None:
    """A table that is published later joins the wildcards; one that is taken out is told of."""
    key = next(ids) % 2**31
    sql(local, "create table late (id int primary key)")
    port = (await owner.send(config(local, settings={"publication_check": 0.02})))["ready"]["port"]
    async with connect(f"ws://127.0.0.1:{port}/socket/websocket?apikey=sb_secret_x") as socket:
        a = Phoenix(socket)
        await a.subscribe({"event": "*", "schema": "public"})
        sql(local, "alter publication supabase_realtime add table late")
        assert await a.frame() == system("Subscribed to PostgreSQL", status="ok")
        sql(local, "insert into late values (%s)", key)
        assert (await a.change())["record"] == {"id": key}
        await a.push("phx_leave", join_ref="1")
        await a.frame()
        await a.frame()
        await a.subscribe(table("late"))
        sql(local, "alter publication supabase_realtime drop table late")
        gone = await a.frame()
    describe = "[event: *, schema: public, table: late, filters: [], select: nil]"
    assert system(NOT_PUBLISHED + describe, status="error") == gone


async def test_sigterm_says_goodbye(local: LocalSupabase, owner: Owner) -> None:
    """On SIGTERM the sockets are closed with 1012 and the exit code is 0."""
    port = (await owner.send(config(local)))["ready"]["port"]
    async with connect(f"ws://127.0.0.1:{port}/socket/websocket?apikey=sb_secret_x") as socket:
        owner.process.terminate()
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    assert await owner.ended() == 0


async def test_the_end_of_stdin_is_the_end(local: LocalSupabase, owner: Owner) -> None:
    """A server whose owner is gone goes, too, also before it was told anything."""
    await owner.send(config(local))
    assert owner.process.stdin is not None
    owner.process.stdin.close()
    assert await owner.ended() == 0


async def test_a_port_in_use_is_one_clear_error(local: LocalSupabase, owner: Owner) -> None:
    """A port that is taken is named, and what to do about it."""
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as taken:
        port = taken.server_address[1]
        answer = await owner.send(config(local, port=port))
    assert answer["error"].startswith(f"cannot listen on 127.0.0.1:{port} (")
    assert answer["error"].endswith("choose another port, or 0 for any free one")
    assert await owner.ended() == 1


async def test_an_incomplete_config_is_one_clear_error(owner: Owner) -> None:
    """What is missing is named."""
    answer = await owner.send({"dsn": "host=127.0.0.1"})
    assert "missing 3 required" in answer["error"]
    assert await owner.ended() == 1
