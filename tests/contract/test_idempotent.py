"""What protected clients send again after a lost answer, by what supabase-py's builders send.

Over a transport that the test plays, and once over a real local Supabase, where the row counts.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from postgrest import APIError, ReturnMethod
from supabase.lib.client_options import AsyncClientOptions, SyncClientOptions

from supabase_resilience import CircuitBreaker, CircuitBreakers, RetryConfig, idempotent, protect
from supabase_resilience.local import LocalSupabase

from .conftest import Time
from .worlds import AsyncWorld, Server, World, error, times

Build = Callable[[Any], Any]
MINIMAL = ReturnMethod.minimal
LOST = httpx.ReadError("the answer was lost")
AT_ONCE = RetryConfig(wait_initial=0.0)
ROW, ROWS = {"id": 1, "name": "Ada"}, [{"id": 1, "name": "Ada"}, {"id": 2, "name": "Bob"}]

# What is sent again although it may have been applied; all of it is within idempotent().
REPEATED: dict[str, tuple[Build, bool]] = {
    "select": (lambda t: t.select("*").eq("id", 1), True),
    "head": (lambda t: t.select("*", head=True), True),
    "insert": (lambda t: t.insert(ROW), False),
    "insert many": (lambda t: t.insert(ROWS), False),
    "insert minimal": (lambda t: t.insert(ROW, returning=MINIMAL), False),
    "insert and select": (lambda t: t.insert(ROW).select("id"), False),
    "insert as upsert": (lambda t: t.insert(ROW, upsert=True), True),
    "upsert": (lambda t: t.upsert(ROW), True),
    "upsert many": (lambda t: t.upsert(ROWS, on_conflict="id"), True),
    "upsert by name": (lambda t: t.upsert({"name": "Ada"}, on_conflict="name"), True),
    "upsert by two": (lambda t: t.upsert(ROW, on_conflict="id,name"), True),
    "upsert without key": (lambda t: t.upsert({"name": "Ada"}), False),
    "upsert without its key": (lambda t: t.upsert(ROW, on_conflict="email"), False),
    "upsert of null": (lambda t: t.upsert({"id": None, "name": "Ada"}), False),
    "upsert with one row without": (lambda t: t.upsert([ROW, {"name": "Bob"}]), False),
    "upsert, default": (lambda t: t.upsert(ROWS, default_to_null=False), True),
    "upsert that ignores": (lambda t: t.upsert(ROW, ignore_duplicates=True), False),
    "upsert that ignores, minimal": (
        lambda t: t.upsert(ROW, ignore_duplicates=True, returning=MINIMAL),
        True,
    ),
    "update": (lambda t: t.update({"name": "Eve"}).eq("id", 1), True),
    "update of all": (lambda t: t.update({"name": "Eve"}).gte("id", 0), True),
    "update and select": (lambda t: t.update({"name": "Eve"}).eq("id", 1).select("name"), True),
    "swap": (lambda t: t.update({"version": 2}).eq("id", 1).eq("version", 1), False),
    "swap by not": (lambda t: t.update({"version": 2}).not_.eq("version", 2), False),
    "swap by match": (lambda t: t.update({"version": 2}).match({"id": 1, "version": 1}), False),
    "swap by xmin": (lambda t: t.update({"name": "Eve"}).eq("id", 1).eq("xmin", 700), False),
    "swap in JSON": (lambda t: t.update({"data": {"v": 2}}).eq("data->>v", 1), False),
    "swap by or": (lambda t: t.update({"version": 2}).or_("version.eq.1,id.eq.1"), False),
    "swap by not or": (lambda t: t.update({"version": 2}).not_.or_("version.eq.2"), False),
    "delete": (lambda t: t.delete().eq("id", 1), False),
    "delete minimal": (lambda t: t.delete(returning=MINIMAL).eq("id", 1), True),
}


@pytest.mark.parametrize(("build", "expected"), REPEATED.values(), ids=REPEATED)
@pytest.mark.parametrize("schema", [None, "other"])
def test_lost_answer(
    world: World, server: Server, *, protected, build: Build, expected: bool, schema: str | None
) -> None:
    """What real builders send is told apart; within idempotent() all of it is sent again."""
    table = (protected if schema is None else protected.schema(schema)).table("t")
    server.will(*times(3, LOST))
    with pytest.raises(httpx.ReadError):
        world.run(build(table).execute())
    assert (3 if expected else 1) == server.count
    server.requests.clear()
    server.replies[:] = times(3, LOST)
    with idempotent(), pytest.raises(httpx.ReadError):
        world.run(build(table).execute())
    assert 3 == server.count


@pytest.mark.parametrize(
    ("options", "expected"), [({}, False), ({"get": True}, True), ({"head": True}, True)]
)
def test_lost_answer_of_a_function(
    world: World, server: Server, *, protected, options: dict[str, bool], expected: bool
) -> None:
    """A function called by GET or HEAD is read; called by POST it is repeated by promise only."""
    server.will(*times(3, LOST))
    with pytest.raises(httpx.ReadError):
        world.run(protected.rpc("f", {"id": 1}, **options).execute())
    assert (3 if expected else 1) == server.count
    server.replies[:] = [LOST]
    with idempotent():
        world.run(protected.rpc("f", {"id": 1}, **options).execute())


def test_each_try_sends_the_same(world: World, server: Server, protected) -> None:
    """Method, URL, headers and body of a try are those of the first."""
    server.will(LOST, LOST)
    with idempotent():
        world.run(protected.table("t").insert(ROWS).execute())
    sent = [(r.method, r.url, r.content, sorted(r.headers.items())) for r in server.requests]
    assert [sent[0]] * 3 == sent


def test_promise_is_for_its_block(world: World, server: Server, protected) -> None:
    """A call after the block is on its own again."""
    with idempotent():
        world.run(protected.table("t").insert(ROW).execute())
    server.requests.clear()
    server.will(LOST, LOST)
    with pytest.raises(httpx.ReadError):
        world.run(protected.table("t").insert(ROW).execute())
    assert 1 == server.count


@pytest.mark.parametrize(
    "final", [error(400, "22P02"), error(403, "42501"), error(524), error(402)]
)
def test_promise_does_not_make_retryable(
    world: World, server: Server, protected, final: Any
) -> None:
    """What another try cannot mend is not tried again, promise or not."""
    server.will(final, final)
    with idempotent(), pytest.raises(APIError):
        world.run(protected.table("t").insert(ROW).execute())
    assert 1 == server.count


def test_promise_of_one_task(server: Server, time: Time) -> None:
    """Two tasks share a client: only the one that promised is repeated."""
    world = AsyncWorld()
    breaker = CircuitBreaker(failure_threshold=99, clock=time, on_event=id)
    client = protect(world.client(world.session(server)), breaker=breaker)

    async def insert(name: str) -> str:
        try:
            await client.table(name).insert(ROW).execute()
        except httpx.ReadError:
            return "lost"
        return "done"

    async def promise(name: str) -> str:
        with idempotent():
            return await insert(name)

    async def both() -> list[str]:
        return await asyncio.gather(promise("a"), insert("b"))

    lost: set[str] = set()

    def lose_the_first(request: httpx.Request) -> httpx.Response:
        if request.url.path not in lost:
            lost.add(request.url.path)
            raise LOST
        return httpx.Response(201, json=[ROW])

    server.will(*times(4, lose_the_first))
    assert ["done", "lost"] == world.run(both())
    assert ["/rest/v1/a", "/rest/v1/a", "/rest/v1/b"] == sorted(
        request.url.path for request in server.requests
    )
    world.close()


# --- the duplicate that is ourselves ------------------------------------------------------------


def duplicate(column: str = "id", constraint: str = "t_pkey") -> httpx.Response:
    """Refuse an insert as PostgREST does."""
    return httpx.Response(
        409,
        json={
            "code": "23505",
            "details": f"Key ({column})=(x) already exists.",
            "hint": None,
            "message": f'duplicate key value violates unique constraint "{constraint}"',
        },
    )


INSERTS: dict[str, tuple[Build, Any]] = {
    "one": (lambda t: t.insert(ROW), [ROW]),
    "many": (lambda t: t.insert(ROWS), ROWS),
    "minimal": (lambda t: t.insert(ROW, returning=MINIMAL), []),
    "many, minimal": (lambda t: t.insert(ROWS, returning=MINIMAL), []),
    "counted": (lambda t: t.insert(ROW, count="exact"), [ROW]),
    "key by another name": (lambda t: t.insert({"email": "a@x.test"}), [{"email": "a@x.test"}]),
    "beyond ASCII": (lambda t: t.insert({"id": 1, "name": "Zoë"}), [{"id": 1, "name": "Zoë"}]),
}


@pytest.mark.parametrize(("build", "rows"), INSERTS.values(), ids=INSERTS)
@pytest.mark.parametrize("lost", [[LOST], [LOST, error(503)], [error(502)]], ids=len)
def test_duplicate_of_an_earlier_try(
    world: World, server: Server, *, protected, build: Build, rows: Any, lost: list[Any]
) -> None:
    """Refused as a duplicate after a lost answer, an insert succeeded: the rows as they were sent.

    A try in between that surely did nothing does not change that.
    """
    has_id = "email" not in str(rows)
    server.will(*lost, duplicate() if has_id else duplicate("email", "t_email_key"))
    with idempotent():
        assert rows == world.run(build(protected.table("t")).execute()).data
    assert len(lost) + 1 == server.count


@pytest.mark.parametrize(
    "before",
    [[], [error(503)], [httpx.ConnectError("x")], [error(500, "57014")], [error(500, "40001")]],
    ids=["first try", "503", "ConnectError", "57014", "40001"],
)
def test_duplicate_of_somebody_else(world: World, server: Server, protected, before: Any) -> None:
    """On the first try, or after tries that surely did nothing, a duplicate is an error."""
    server.will(*before, duplicate())
    with idempotent(), pytest.raises(APIError) as told:
        world.run(protected.table("t").insert(ROW).execute())
    assert ("23505", len(before) + 1) == (told.value.code, server.count)


def test_duplicate_of_another_value(world: World, server: Server, protected) -> None:
    """A row with an id of its own whose e-mail is taken was never inserted, and that is told."""
    server.will(LOST, duplicate("email", "t_email_key"))
    with idempotent(), pytest.raises(APIError, match="t_email_key"):
        world.run(protected.table("t").insert({"id": 1, "email": "a@x.test"}).execute())


def test_duplicate_without_details(world: World, server: Server, protected) -> None:
    """Where Postgres may not show the values, the primary key's name says it."""
    taken = duplicate().json() | {"details": None}
    server.will(LOST, httpx.Response(409, json=taken))
    with idempotent():
        world.run(protected.table("t").insert(ROW).execute())


@pytest.mark.parametrize(
    "build",
    [
        lambda c: c.table("t").upsert(ROW),
        lambda c: c.table("t").update(ROW).eq("id", 2),
        lambda c: c.rpc("f", ROW),
    ],
    ids=["upsert", "update", "rpc"],
)
def test_duplicate_of_what_is_no_insert(world: World, server: Server, protected, build) -> None:
    """Only an insert can be its own duplicate."""
    server.will(LOST, duplicate())
    with idempotent(), pytest.raises(APIError):
        world.run(build(protected).execute())


def test_duplicate_without_a_promise(world: World, server: Server, protected) -> None:
    """Outside idempotent() a duplicate is an error, always."""
    server.will(error(503), duplicate())
    with pytest.raises(APIError):
        world.run(protected.table("t").insert(ROW).execute())
    server.will(LOST, duplicate())
    with pytest.raises(httpx.ReadError):
        world.run(protected.table("t").insert(ROW).execute())


def test_duplicate_is_no_verdict(world: World, server: Server, protected, patient) -> None:
    """For the breaker a duplicate is neutral, as ever: a failure, a refusal, no success."""
    server.will(LOST, duplicate())
    with idempotent():
        world.run(protected.table("t").insert(ROW).execute())
    stats = patient.get_stats()
    assert (1, 1, 0, 1) == (stats.failures, stats.neutral, stats.successes, stats.retries)


# --- requests made by hand ----------------------------------------------------------------------

HEADERS: dict[str, Any] = {
    "none": None,
    "dict": {"Prefer": "return=representation", "Content-Profile": "public"},
    "pairs": [("Prefer", "return=representation"), ("Content-Profile", "public")],
    "bytes": {b"prefer": b"return=representation"},
}
PARAMS: dict[str, Any] = {
    "none": None,
    "dict": {"id": "eq.1"},
    "pairs": [("id", "eq.1")],
    "text": "id=eq.1",
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE", "PUT", "get", "OPTIONS"])
@pytest.mark.parametrize("fault", [LOST, error(500, "57014")], ids=["lost", "57014"])
def test_by_hand(
    world: World, server: Server, *, bare, time: Time, headers, params, method, fault
) -> None:
    """Whatever httpx takes as headers and params, the outcome comes through as it was."""
    breakers = CircuitBreakers(failure_threshold=99, clock=time, on_event=id)
    session = protect(bare, breaker=breakers, retry=AT_ONCE).postgrest.session
    sent = {"headers": headers, "params": params, "json": ROW}
    for _ in range(2):
        server.replies[:] = times(3, fault)
        url = "https://project.supabase.test/rest/v1/t"
        try:
            code = world.run(session.request(method, url, **sent)).json()["code"]
        except httpx.ReadError:
            code = None
        assert (None if fault is LOST else "57014") == code


def test_duplicate_by_hand(world: World, server: Server, protected) -> None:
    """An insert made by hand can be its own duplicate, too."""
    for sent, rows in (
        ({"json": ROW, "headers": [("Prefer", "return=representation")]}, [ROW]),
        ({"json": ROW, "headers": None}, None),
        ({"json": ROW}, None),
    ):
        server.will(LOST, duplicate())
        with idempotent():
            response = world.run(protected.postgrest.session.request("POST", "https://x/t", **sent))
        assert (201, rows) == (
            response.status_code,
            response.json() if response.content else None,
        )


@pytest.mark.parametrize(
    ("sent", "count"),
    [
        ({"json": {"v": 2}, "params": {"v": "eq.1"}}, 1),
        ({"json": {"v": 2}, "params": [("v", "eq.1")]}, 1),
        ({"json": {"v": 2}, "params": "v=eq.1"}, 1),
        ({"content": b'{"v": 2}', "params": {"v": "eq.1"}}, 1),
        ({"json": {"v": 2}, "params": {"id": "eq.1"}}, 3),
        ({"data": {"v": 2}, "params": {"id": "eq.1"}}, 1),
    ],
)
def test_swap_by_hand(
    world: World, server: Server, protected, sent: dict[str, Any], count: int
) -> None:
    """A compare-and-swap made by hand is one as well; what cannot be read is not repeated."""
    server.will(*times(3, LOST))
    with pytest.raises(httpx.ReadError):
        world.run(protected.postgrest.session.request("PATCH", "https://x/t", **sent))
    assert count == server.count


# --- a real one ---------------------------------------------------------------------------------

SCHEMA = """
create table things (id int primary key, name text unique, version int not null default 1);
create table notes (id bigint generated always as identity primary key, note text);
"""


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSupabase]:
    """Give a running local Supabase."""
    with LocalSupabase(schema=SCHEMA) as local:
        yield local


@pytest.fixture
def real(world: World, local: LocalSupabase) -> Iterator[Any]:
    """Give a protected client of it, and one row."""
    session = world.session_class(timeout=30.0)
    make = AsyncClientOptions if world.colour == "async" else SyncClientOptions
    client = world.client_class.create(local.url, local.secret_key, make(httpx_client=session))
    breaker = CircuitBreaker(failure_threshold=99, on_event=id)
    with local.postgres.connect() as connection:
        connection.execute("truncate things, notes; insert into things values (7, 'Sue', 1)")
    yield protect(world.run(client), breaker=breaker, retry=AT_ONCE)
    local.faults.clear()
    world.run(session.aclose() if world.colour == "async" else session.close())


def things(local: LocalSupabase) -> list[tuple[Any, ...]]:
    with local.postgres.connect() as connection:
        return connection.execute("select id, name, version from things order by id").fetchall()


SUE = (7, "Sue", 1)
WRITES: dict[str, tuple[Build, bool, Any, list[Any]]] = {
    "insert": (lambda t: t.insert(ROW), True, [ROW], [(1, "Ada", 1), SUE]),
    "insert many": (lambda t: t.insert(ROWS), True, ROWS, [(1, "Ada", 1), (2, "Bob", 1), SUE]),
    "insert minimal": (
        lambda t: t.insert(ROW, returning=MINIMAL),
        True,
        [],
        [(1, "Ada", 1), SUE],
    ),
    "upsert": (
        lambda t: t.upsert({"id": 7, "name": "Zoë"}),
        False,
        [{"id": 7, "name": "Zoë", "version": 1}],
        [(7, "Zoë", 1)],
    ),
    "upsert of a new row": (
        lambda t: t.upsert(ROWS, returning=MINIMAL),
        False,
        [],
        [(1, "Ada", 1), (2, "Bob", 1), SUE],
    ),
    "update": (
        lambda t: t.update({"version": 2}).eq("id", 7),
        False,
        [{"id": 7, "name": "Sue", "version": 2}],
        [(7, "Sue", 2)],
    ),
    "delete": (lambda t: t.delete(returning=MINIMAL).eq("id", 7), False, [], []),
}


@pytest.mark.parametrize(("build", "by_promise", "data", "after"), WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("drop", ["after", "before"])
def test_applied_once(
    world: World, local: LocalSupabase, *, real, build, by_promise: bool, data, after, drop: Any
) -> None:
    """The answer is lost, the caller gets a success, and it was done once."""
    fault = local.faults.add(match="/things", drop=drop)
    if by_promise:
        with idempotent():
            told = world.run(build(real.table("things")).execute()).data
    else:
        told = world.run(build(real.table("things")).execute()).data
    # Rows that were inserted by the first try are told as they were sent.
    told = [{name: row[name] for name in each} for row, each in zip(told, data, strict=True)]
    assert (1, data, after) == (fault.count, told, things(local))


def test_real_duplicates(world: World, local: LocalSupabase, real) -> None:
    """A duplicate on the first try is an error, in and out of idempotent(), and so is a taken name.

    A name that is taken says that the row with its own id was never inserted.
    """
    insert = real.table("things").insert
    with pytest.raises(APIError, match="things_pkey"):
        world.run(insert({"id": 7}).execute())
    with idempotent():
        with pytest.raises(APIError, match="things_pkey"):
            world.run(insert({"id": 7}).execute())
        local.faults.add(match="/things", drop="before")
        with pytest.raises(APIError, match="things_name_key"):
            world.run(insert({"id": 8, "name": "Sue"}).execute())
    assert [SUE] == things(local)


def test_real_upsert_whose_key_the_database_makes(world: World, local, real) -> None:
    """An upsert without a key is an insert: it is there once, and the loss is told."""
    local.faults.add(match="/notes", drop="after")
    with pytest.raises(httpx.RemoteProtocolError):
        world.run(real.table("notes").upsert({"note": "x"}).execute())
    assert 1 == len(world.run(real.table("notes").select("*").execute()).data)


def test_real_swap(world: World, local: LocalSupabase, real) -> None:
    """A compare-and-swap that was applied is never told as a race that was lost."""
    local.faults.add(match="/things", drop="after")
    swap = real.table("things").update({"version": 2}).eq("id", 7).eq("version", 1)
    with pytest.raises(httpx.RemoteProtocolError):
        world.run(swap.execute())
    assert [(7, "Sue", 2)] == things(local)
