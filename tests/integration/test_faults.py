"""Every fault that the local stack can produce, met by a protected client, in both colours.

What a gateway answers, connections that break or fall silent, servers and single database sessions
that die with a query in their hands: what the caller sees, how often the server was asked, what the
database has done, and what the breaker thinks of it.
"""

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import httpx
import pytest
from postgrest import APIError
from supabase import ClientOptions, create_client

from supabase_resilience import (
    CircuitBreaker,
    CircuitBreakers,
    CircuitOpenError,
    RetryConfig,
    classify,
    idempotent,
    protect,
)
from supabase_resilience.local import LocalSupabase
from supabase_resilience.testing import FakeClock

SCHEMA = """
create table profiles (id int primary key, name text);
create table visits (id bigint generated always as identity primary key, note text);
create table orders (id int primary key, total int);
create table members (id int primary key, email text unique);
insert into members values (1, 'ada@example.test');
create view slow_orders as select id, total from orders, pg_sleep(60);

create function nap(seconds float) returns int language sql as
  'select 1 from pg_sleep(seconds)';
create function wait_for_lock() returns int language sql as
  'select 1 from pg_advisory_xact_lock_shared(42)';
create function add_visit(remark text, seconds float) returns int language plpgsql as $$
begin
  insert into visits (note) values (remark);
  perform pg_sleep(seconds);
  return 1;
end $$;
create function slow_report() returns int language sql set statement_timeout = '50ms' as
  'select 1 from pg_sleep(60)';
alter role authenticated set statement_timeout = '50ms';
insert into orders values (1, 10);
insert into profiles values (1, 'Ada');
"""
AT_ONCE = RetryConfig(wait_initial=0.0)
SOON = RetryConfig(wait_initial=0.0, attempt_timeout=0.3, total_timeout=20.0)
PATIENCE = 20.0  # seconds; far more than any of it takes, so that only a hang ends here


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSupabase]:
    """A running local Supabase; each test leaves it well."""
    with LocalSupabase(schema=SCHEMA) as stack:
        yield stack


def patient() -> CircuitBreaker:
    """A breaker that never opens, and pays for any number of retries."""
    return CircuitBreaker(failure_threshold=10**6, retry_budget=None, on_event=id)


def read(world, client) -> Any:
    return world.run(client.table("profiles").select("*"))


def outcome(world, builder) -> Any:
    """The data; or the class of the error."""
    try:
        return world.run(builder).data
    except Exception as error:  # noqa: BLE001 - it is compared
        return type(error)


def rows(local: LocalSupabase, sql: str, *values: Any) -> list[Any]:
    """What the database holds, by its own word."""
    with local.postgres.connect() as connection:
        return connection.execute(sql, values).fetchall()


def until(condition: Callable[[], Any]) -> Any:
    """Ask again and again; each time takes as long as asking does."""
    give_up_at = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < give_up_at, "it never happened"
    return answer


# --- what a gateway answers ---------------------------------------------------------------------

PAGE = {"body": "<html>bad gateway</html>", "headers": {"content-type": "text/html"}}
PAUSED = {"message": "project is paused"}


def postgrest(code: str) -> dict[str, Any]:
    return {"body": {"code": code, "message": "m", "details": None, "hint": None}}


# An answer; the state it leaves a breaker with a threshold of one in; how often it is asked for
# when a read and when an insert gets it each time, with three attempts.
ANSWERS: dict[str, tuple[dict[str, Any], str, int, int]] = {
    "401 wrong key": ({"status": 401, "body": {"message": "Invalid API key"}}, "open", 1, 1),
    "401 expired token": ({"status": 401, **postgrest("PGRST303")}, "closed", 1, 1),
    "402 restricted": ({"status": 402, "body": {"message": "exceed_egress_quota"}}, "open", 1, 1),
    "403": ({"status": 403}, "closed", 1, 1),
    "404 no route": (
        {"status": 404, "body": {"message": "no Route matched with those values"}},
        "open",
        1,
        1,
    ),
    "404 unknown table": ({"status": 404, **postgrest("PGRST205")}, "closed", 2, 2),
    "408": ({"status": 408}, "closed", 1, 1),
    "409 duplicate": ({"status": 409, **postgrest("23505")}, "closed", 1, 1),
    "413": ({"status": 413}, "closed", 1, 1),
    "423": ({"status": 423}, "closed", 3, 3),
    "429": ({"status": 429}, "open", 1, 1),
    "431": ({"status": 431}, "closed", 1, 1),
    "500 of a gateway": ({"status": 500}, "open", 2, 1),
    "500 serialization failure": ({"status": 500, **postgrest("40001")}, "closed", 3, 3),
    "500 deadlock": ({"status": 500, **postgrest("40P01")}, "closed", 3, 3),
    "500 statement timeout": ({"status": 500, **postgrest("57014")}, "closed", 2, 2),
    "500 raised by SQL": ({"status": 500, **postgrest("P0001")}, "closed", 1, 1),
    "500 internal error": ({"status": 500, **postgrest("XX000")}, "open", 2, 2),
    "502": ({"status": 502}, "open", 3, 1),
    "502 page": ({"status": 502, **PAGE}, "open", 3, 1),
    "503": ({"status": 503}, "open", 3, 3),
    "503 no database": ({"status": 503, **postgrest("PGRST000")}, "open", 3, 3),
    "503 lost database": ({"status": 503, **postgrest("PGRST001")}, "open", 3, 1),
    "503 no schema cache": ({"status": 503, **postgrest("PGRST002")}, "open", 3, 3),
    "503 too many connections": ({"status": 503, **postgrest("53300")}, "open", 3, 3),
    "503 shutting down": ({"status": 503, **postgrest("57P01")}, "open", 3, 3),
    "503 starting up": ({"status": 503, **postgrest("57P03")}, "open", 3, 3),
    "504": ({"status": 504}, "open", 3, 1),
    "504 pool exhausted": ({"status": 504, **postgrest("PGRST003")}, "open", 3, 3),
    "520": ({"status": 520}, "open", 3, 1),
    "521": ({"status": 521}, "open", 3, 3),
    "522": ({"status": 522}, "open", 3, 1),
    "523": ({"status": 523}, "open", 3, 3),
    "524": ({"status": 524}, "open", 1, 1),
    "525": ({"status": 525}, "open", 3, 3),
    "526": ({"status": 526}, "open", 3, 3),
    "530": ({"status": 530}, "open", 3, 3),
    "540 paused": ({"status": 540}, "open", 1, 1),
    "200 page": ({"status": 200, **PAGE}, "open", 3, 1),
    "302 to nowhere": ({"status": 302}, "open", 1, 1),
    "400 paused": ({"status": 400, "body": PAUSED}, "open", 1, 1),
}
each_answer = pytest.mark.parametrize("name", ANSWERS)


@each_answer
def test_what_an_answer_says_of_the_service(world, local, name: str) -> None:
    """The service's failures open the circuit, whatever their status; the caller's do not."""
    answer, state, _, _ = ANSWERS[name]
    breaker = CircuitBreaker(failure_threshold=1, on_event=id)
    client = world.client(local, breaker=breaker, retry=None)
    local.faults.add(match="/profiles", **answer)
    outcome(world, client.table("profiles").select("*"))
    assert state == breaker.get_state()


@each_answer
def test_how_often_an_answer_is_asked_for(world, local, name: str) -> None:
    """A read is repeated when that can help, an insert only when it was surely not applied."""
    answer, _, reads, inserts = ANSWERS[name]
    for method, most in (("GET", reads), ("POST", inserts)):
        client = world.client(local, breaker=patient(), retry=AT_ONCE)
        fault = local.faults.add(match="/orders", times=None, **answer)
        table = client.table("orders")
        outcome(world, table.select("*") if method == "GET" else table.insert({"id": -1}))
        assert (method, most) == (method, fault.count)
        fault.remove()


# --- connections that break ---------------------------------------------------------------------

# A request; whether doing it twice is doing it once; and what it does.
KINDS: dict[str, tuple[Callable[[Any], Any], bool, str]] = {
    "read": (lambda client: client.table("visits").select("note"), True, "reads"),
    "count": (
        lambda client: client.table("visits").select("note", count="exact", head=True),
        True,
        "reads",
    ),
    "rpc get": (lambda client: client.rpc("nap", {"seconds": 0}, get=True), True, "reads"),
    "rpc": (
        lambda client: client.rpc("add_visit", {"remark": "x", "seconds": 0}),
        False,
        "adds",
    ),
    "insert": (lambda client: client.table("visits").insert({"note": "x"}), False, "adds"),
    "insert many": (lambda client: client.table("visits").insert([{"note": "x"}]), False, "adds"),
    "upsert": (
        lambda client: client.table("orders").upsert({"id": 1, "total": 11}, on_conflict="id"),
        True,
        "sets",
    ),
    "upsert, key made there": (
        lambda client: client.table("visits").upsert({"note": "x"}),
        False,
        "adds",
    ),
    "update": (
        lambda client: client.table("orders").update({"total": 11}).eq("id", 1),
        True,
        "sets",
    ),
    "delete": (
        lambda client: client.table("orders").delete(returning="minimal").eq("id", 7),
        True,
        "deletes",
    ),
    # Sent twice, it would tell that there was nothing to delete.
    "delete that tells the rows": (
        lambda client: client.table("orders").delete().eq("id", 7),
        False,
        "deletes",
    ),
    "compare and swap": (
        lambda client: client.table("orders").update({"total": 11}).eq("id", 1).eq("total", 10),
        False,
        "sets",
    ),
}
LOSSES = [
    (kind, drop)
    for kind in KINDS
    for drop in ("before", "after", "body")
    if (kind, drop) != ("count", "body")  # it has none
]


@pytest.mark.parametrize(("kind", "drop"), LOSSES)
def test_lost_connection(world, local, kind: str, drop: Any) -> None:
    """What can be done twice is repeated and succeeds; all else is done at most once, and told."""
    build, is_safe, effect = KINDS[kind]
    with local.postgres.connect() as connection:
        connection.execute("truncate visits, orders; insert into orders values (1, 10), (7, 70)")
    client = world.client(local, breaker=patient(), retry=AT_ONCE)
    local.faults.add(match="/rest/v1", drop=drop)
    before = local.requests(match="/rest/v1")
    end = outcome(world, build(client))
    assert (2 if is_safe else 1) == local.requests(match="/rest/v1") - before
    assert is_safe == (end is not httpx.RemoteProtocolError)
    is_applied = is_safe or drop != "before"
    [[total]] = rows(local, "select total from orders where id = 1")
    assert (11 if effect == "sets" and is_applied else 10) == total
    assert int(effect == "adds" and is_applied) == len(rows(local, "select * from visits"))
    is_deleted = effect == "deletes" and is_applied
    assert is_deleted == (not rows(local, "select * from orders where id = 7"))


@pytest.mark.parametrize("kind", ["insert", "rpc"])
@pytest.mark.parametrize("drop", ["before", "after"])
def test_lost_connection_within_idempotent(world, local, kind: str, drop: Any) -> None:
    """Within `idempotent()` the same are sent again, as their maker says they may be."""
    client = world.client(local, breaker=patient(), retry=AT_ONCE)
    builders = {
        "insert": client.table("orders").insert({"id": 2, "total": 20}),
        "rpc": client.rpc("nap", {"seconds": 0}),
    }
    fault = local.faults.add(match="/rest/v1", drop=drop)
    with idempotent():
        end = outcome(world, builders[kind])
    assert 1 == fault.count
    assert ([{"id": 2, "total": 20}] if kind == "insert" else 1) == end
    assert [(2, 20)] * (kind == "insert") == rows(
        local, "delete from orders where id = 2 returning *"
    )


@pytest.mark.parametrize("drop", ["before", "after"])
def test_duplicate_of_another_row_within_idempotent(world, local, drop: Any) -> None:
    """A duplicate that is not an earlier try of ours is told: that row was never inserted."""
    client = world.client(local, breaker=patient(), retry=AT_ONCE)
    local.faults.add(match="/members", drop=drop)
    with idempotent(), pytest.raises(APIError, match="members_email_key"):
        world.run(client.table("members").insert({"id": 2, "email": "ada@example.test"}))
    assert [(1,)] == rows(local, "select id from members")


# --- a network in between -----------------------------------------------------------------------


class Network:
    """A TCP relay in front of the stack: it can cut connections, or let them fall silent."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._wires: list[tuple[socket.socket, socket.socket]] = []
        self._silent: set[socket.socket] = set()
        self._limit: int | None = None
        self.connections = 0
        self._waker, self._wake = socket.socketpair()
        self._is_over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def url(self) -> str:
        """The stack's URL, by way of this network."""
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def fall_silent(self) -> None:
        """Carry nothing more on the connections there are; their ends learn nothing of it."""
        self._silent.update(end for wire in self._wires for end in wire)

    def break_answers(self, after: int) -> None:
        """Carry so many bytes of the next answer, then fall silent on its connection."""
        self._limit = after

    def cut(self) -> None:
        """Reset all connections there are."""
        for wire in self._wires:
            for end in wire:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it."""
        self._is_over = True
        self._wake.send(b"x")
        self._thread.join()
        for each in (self._listening, self._waker, self._wake, *sum(self._wires, ())):
            each.close()

    def _run(self) -> None:
        while not self._is_over:
            ends = {here: there for a, b in self._wires for here, there in ((a, b), (b, a))}
            watched = [self._listening, self._waker, *(set(ends) - self._silent)]
            for ready in select.select(watched, [], [])[0]:
                if ready is self._listening:
                    self._connect()
                elif ready in ends and ready not in self._silent:
                    self._carry(ready, ends[ready])

    def _connect(self) -> None:
        here = self._listening.accept()[0]
        self.connections += 1
        self._wires.append((here, socket.create_connection(("127.0.0.1", self._port))))

    def _carry(self, here: socket.socket, there: socket.socket) -> None:
        try:
            data = here.recv(65_536)
        except OSError:
            data = b""
        is_answer = any(here is server for _, server in self._wires)
        if is_answer and self._limit is not None:
            data, self._limit = data[: self._limit], None
            self._silent.update((here, there))
        with suppress(OSError):
            there.sendall(data)
        if not data:
            self._wires = [wire for wire in self._wires if here not in wire]
            here.close()
            there.close()


@pytest.fixture
def network(local: LocalSupabase) -> Iterator[Network]:
    """Give a way to the stack that can be broken."""
    made = Network(httpx.URL(local.url).port or 0)
    yield made
    made.close()


class Through:
    """The stack as it is reached by way of a network."""

    def __init__(self, local: LocalSupabase, network: Network) -> None:
        self.url = network.url
        self.secret_key = local.secret_key


@pytest.fixture
def far(local: LocalSupabase, network: Network) -> Through:
    """Give the stack at the other end of the network."""
    return Through(local, network)


def test_pooled_connection_that_died_silently(world, far, network) -> None:
    """A connection that a firewall forgot costs a read one attempt: the next one gets another."""
    client = world.client(far, breaker=patient(), retry=SOON)
    read(world, client)
    network.fall_silent()
    assert [{"id": 1, "name": "Ada"}] == read(world, client).data
    assert (1, 1, 2) == (
        client.breaker.get_stats().failures,
        client.breaker.get_stats().retries,
        network.connections,
    )


def test_silence_amid_the_headers(world, far, network) -> None:
    """Half-open TCP in the middle of an answer ends a read's attempt, and the next one succeeds."""
    client = world.client(far, breaker=patient(), retry=SOON)
    network.break_answers(after=20)
    assert [{"id": 1, "name": "Ada"}] == read(world, client).data
    assert 1 == client.breaker.get_stats().failures


def test_silence_amid_the_body(world, local, far, network) -> None:
    """An insert whose answer stops midway was applied; that is told, and it is not sent again."""
    rows(local, "delete from visits returning id")
    client = world.client(far, breaker=patient(), retry=SOON)
    before = local.requests(match="/visits")
    network.break_answers(after=1000)
    end = outcome(world, client.table("visits").insert({"note": "x" * 2000}))
    assert httpx.ReadTimeout is end
    assert 1 == local.requests(match="/visits") - before
    assert 1 == len(rows(local, "select * from visits"))


def test_silence_of_every_attempt(world, local, far, network) -> None:
    """A host that accepts and never answers ends each attempt and then the call."""
    client = world.client(far, breaker=patient(), retry=SOON)
    fault = local.faults.add(match="/profiles", stall=True, times=None)
    assert httpx.ReadTimeout is outcome(world, client.table("profiles").select("*"))
    assert (3, 3) == (fault.count, client.breaker.get_stats().failures)


def test_many_connections_cut_at_once_are_one_failure(sync_world, local, far, network) -> None:
    """A proxy that restarts breaks the calls of 10 threads on 10 connections: one failure."""
    breaker = CircuitBreaker(failure_threshold=2, on_event=id)
    client = sync_world.client(far, breaker=breaker, retry=None)
    fault = local.faults.add(match="/profiles", stall=True, times=10)
    ends: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda: ends.append(outcome(sync_world, client.table("profiles").select("*")))
        )
        for _ in range(10)
    ]
    for thread in threads:
        thread.start()
    until(lambda: fault.count == 10)
    network.cut()
    for thread in threads:
        thread.join()
    assert 10 == len(ends)
    assert {httpx.RemoteProtocolError, httpx.ReadError} >= set(ends)
    stats = breaker.get_stats()
    assert ("closed", 1, 9) == (stats.state, stats.failures, stats.neutral)


# --- answers that are late ----------------------------------------------------------------------


def test_late_answer_that_is_in_time(world, local) -> None:
    """A delay shorter than the attempt is no failure."""
    client = world.client(local, breaker=patient())
    local.faults.add(match="/profiles", delay=0.05)
    assert [{"id": 1, "name": "Ada"}] == read(world, client).data
    assert (0, 1) == (client.breaker.get_stats().failures, client.breaker.get_stats().successes)


def test_late_answer_to_a_read(world, local) -> None:
    """A read that is late is asked again, and the second answer is taken."""
    client = world.client(local, breaker=patient(), retry=SOON)
    fault = local.faults.add(match="/profiles", delay=0.6)
    assert [{"id": 1, "name": "Ada"}] == read(world, client).data
    assert (1, 1) == (fault.count, client.breaker.get_stats().failures)


def test_late_answer_to_an_insert(world, local) -> None:
    """An insert that its caller has given up on is applied in the end, once and only once."""
    rows(local, "delete from visits returning id")
    client = world.client(local, breaker=patient(), retry=SOON)
    fault = local.faults.add(match="/visits", delay=0.4)
    assert httpx.ReadTimeout is outcome(world, client.table("visits").insert({"note": "late"}))
    until(lambda: rows(local, "select * from visits"))
    assert (1, 1) == (fault.count, len(rows(local, "select * from visits")))


# --- a database that dies with a query in its hands ---------------------------------------------


def at_work(local: LocalSupabase, doing: str) -> list[Any]:
    sql = "select pid from pg_stat_activity where state = 'active' and query ilike %s"
    return rows(local, sql + " and pid <> pg_backend_pid()", f"%{doing}%")


def meanwhile(local: LocalSupabase, doing: str, strike: Callable[[int], Any]) -> threading.Thread:
    """As soon as a session of the database is `doing` something, strike it."""

    def wait_and_strike() -> None:
        [(pid,), *_] = until(lambda: at_work(local, doing))
        strike(pid)

    thread = threading.Thread(target=wait_and_strike)
    thread.start()
    return thread


def terminate(local: LocalSupabase, pid: int) -> None:
    rows(local, "select pg_terminate_backend(%s)", pid)


def test_database_killed_amid_a_read(world, local) -> None:
    """A crash of Postgres under a read is an outage, and the failure is the service's."""
    client = world.client(local, breaker=patient(), retry=None)
    killer = meanwhile(local, "nap", lambda _: local.postgres.kill())
    with pytest.raises(APIError) as told:
        world.run(client.rpc("nap", {"seconds": 60}, get=True))
    killer.join()
    assert classify(told.value).is_outage
    assert 1 == client.breaker.get_stats().failures


def test_database_killed_amid_a_write(world, local) -> None:
    """A write under which Postgres crashed is not sent again: nobody knows what became of it."""
    client = world.client(local, breaker=patient(), retry=AT_ONCE)
    killer = meanwhile(local, "add_visit", lambda _: local.postgres.kill())
    before = local.requests(match="/add_visit")
    with pytest.raises(APIError) as told:
        world.run(client.rpc("add_visit", {"remark": "crash", "seconds": 60}))
    killer.join()
    assert classify(told.value).is_outage
    assert 1 == local.requests(match="/add_visit") - before
    local.postgres.start()
    assert [] == rows(local, "select * from visits where note = 'crash'")


def test_rest_killed_amid_a_write(world, local) -> None:
    """When PostgREST dies with a write in its hands, it is not sent again, nor committed."""
    client = world.client(local, breaker=patient(), retry=AT_ONCE)
    killer = meanwhile(local, "add_visit", lambda _: local.rest.kill())
    before = local.requests(match="/add_visit")
    with pytest.raises(APIError) as told:
        world.run(client.rpc("add_visit", {"remark": "orphan", "seconds": 60}))
    killer.join()
    local.rest.start()
    assert classify(told.value).is_outage
    assert 1 == local.requests(match="/add_visit") - before
    for (pid,) in at_work(local, "add_visit"):  # it does not know yet that nobody listens
        terminate(local, pid)
    until(lambda: not at_work(local, "add_visit"))
    assert [] == rows(local, "select * from visits where note = 'orphan'")


@pytest.mark.parametrize("by", ["GET", "POST"])
def test_session_terminated(world, local, by: str) -> None:
    """A query whose database session an administrator ends is repeated: 57P01 rolls back."""
    client = world.client(local, breaker=patient(), retry=AT_ONCE)
    before = local.requests(match="/wait_for_lock")
    with local.postgres.connect() as holder:
        holder.execute("select pg_advisory_lock(42)")

        def end_it(pid: int) -> None:
            terminate(local, pid)
            holder.execute("select pg_advisory_unlock(42)")

        killer = meanwhile(local, "wait_for_lock", end_it)
        assert 1 == world.run(client.rpc("wait_for_lock", get=by == "GET")).data
        killer.join()
    assert 2 == local.requests(match="/wait_for_lock") - before
    assert (1, 1) == (client.breaker.get_stats().failures, client.breaker.get_stats().successes)


# --- one table that is sick ---------------------------------------------------------------------


def test_statement_timeout_on_one_table(world, local) -> None:
    """57014 on one table opens that table's circuit, and no other is refused."""
    breakers = CircuitBreakers(failure_threshold=2, on_event=id)
    client = world.client(local, breaker=breakers, retry=None)
    user = client.as_user(local.jwt(sub="00000000-0000-0000-0000-000000000001"))
    slow = user.table("slow_orders").select("*")
    for _ in range(2):
        with pytest.raises(APIError, match="statement timeout"):
            world.run(slow)
    before = local.requests(match="/slow_orders")
    with pytest.raises(CircuitOpenError, match="slow_orders"):
        world.run(slow)
    assert before == local.requests(match="/slow_orders")
    assert [{"id": 1, "name": "Ada"}] == read(world, user).data
    assert world.run(user.table("orders").select("id")).data
    assert "closed" == breakers.get_stats().project.state


def test_statement_timeout_of_one_function(world, local) -> None:
    """The same for a function: it is refused, others of the same schema and tables are not."""
    breakers = CircuitBreakers(failure_threshold=2, on_event=id)
    client = world.client(local, breaker=breakers, retry=None)
    for _ in range(2):
        with pytest.raises(APIError, match="statement timeout"):
            world.run(client.rpc("slow_report"))
    with pytest.raises(CircuitOpenError, match="slow_report"):
        world.run(client.rpc("slow_report"))
    assert 1 == world.run(client.rpc("nap", {"seconds": 0})).data
    assert read(world, client).data


def test_function_that_recovers(world, local) -> None:
    """After its own open time the function's probe closes its circuit again."""
    clock = FakeClock()
    breakers = CircuitBreakers(failure_threshold=1, jitter=0.0, clock=clock, on_event=id)
    client = world.client(local, breaker=breakers, retry=None)
    report = partial(outcome, world, client.rpc("slow_report"))
    assert APIError is report()
    for _ in range(2):
        clock.advance(30.0)
        assert [APIError, CircuitOpenError] == [report(), report()]
    change = "create or replace function slow_report() returns int language sql {} as '{}'"
    with local.postgres.connect() as owner:
        owner.execute(change.format("", "select 7"))
        clock.advance(30.0)
        assert [7, 7] == [report(), report()]
        slowly = "set statement_timeout = '50ms'"
        owner.execute(change.format(slowly, "select 1 from pg_sleep(60)"))


def test_probe_of_a_function_that_meets_an_outage(world, local) -> None:
    """A function's probe that meets a failure of the project gives its permit to the next one."""
    clock = FakeClock()
    breakers = CircuitBreakers(failure_threshold=2, jitter=0.0, clock=clock, on_event=id)
    client = world.client(local, breaker=breakers, retry=None)
    report = partial(outcome, world, client.rpc("slow_report"))
    assert [APIError, APIError, CircuitOpenError] == [report() for _ in range(3)]
    clock.advance(30.0)
    fault = local.faults.add(match="/slow_report", status=503)
    assert [APIError, APIError, CircuitOpenError] == [report() for _ in range(3)]
    assert (1, 1) == (fault.count, breakers.get_stats().project.failures)


def test_statement_timeouts_say_nothing_to_a_lone_breaker(world, local) -> None:
    """Without a circuit for each table, 57014 is neutral: it must not refuse everything."""
    breaker = CircuitBreaker(failure_threshold=1, on_event=id)
    client = world.client(local, breaker=breaker, retry=None)
    with pytest.raises(APIError):
        world.run(client.rpc("slow_report"))
    assert ("closed", 1) == (breaker.get_state(), breaker.get_stats().neutral)


def test_outage_refuses_every_table(world, local) -> None:
    """A failure of the project, met on one table, opens the circuit of all."""
    breakers = CircuitBreakers(failure_threshold=1, on_event=id)
    client = world.client(local, breaker=breakers, retry=None)
    local.faults.add(match="/orders", status=503)
    outcome(world, client.table("orders").select("*"))
    for table in ("orders", "profiles"):
        with pytest.raises(CircuitOpenError):
            world.run(client.table(table).select("*"))


# --- protect() as a user calls it ---------------------------------------------------------------


def test_defaults_survive_a_restart_of_rest(local) -> None:
    """`protect(client)` without options rides over a short outage: 502 twice, then the rows."""
    with httpx.Client() as session:
        client = create_client(local.url, local.secret_key, ClientOptions(httpx_client=session))
        local.faults.add(match="/profiles", status=502, times=2)
        found = protect(client).table("profiles").select("*").execute()
    assert [{"id": 1, "name": "Ada"}] == found.data
