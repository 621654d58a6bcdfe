"""protect(): what a protected client promises, once for both colours of supabase-py."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import httpx
import pytest
import respx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgrest import APIError, AsyncPostgrestClient, ReturnMethod, SyncPostgrestClient
from supabase import AsyncClient, Client
from supabase.lib.client_options import AsyncClientOptions

from supabase_resilience import (
    AsyncProtectedClient,
    CircuitBreaker,
    CircuitBreakers,
    CircuitOpenError,
    Classification,
    ProtectedClient,
    ResilienceError,
    RetryConfig,
    deadline,
    protect,
)
from supabase_resilience.testing import FakeClock, RecordingHook

from .conftest import Time
from .worlds import KEY, URL, AsyncWorld, Pieces, Server, SyncWorld, World, error, times

BUILDERS: dict[str, Callable[[Any], Any]] = {
    "select": lambda c: c.table("t").select("*"),
    "from_ and filters": lambda c: c.from_("t").select("id").eq("id", 1).in_("id", [1, 2]),
    "not_": lambda c: c.table("t").select("*").not_.eq("id", 2),
    "or_, order, limit": lambda c: c.table("t").select("*").or_("id.eq.1").order("id").limit(1),
    "range": lambda c: c.table("t").select("*").range(0, 9),
    "count, head": lambda c: c.table("t").select("*", count="exact", head=True),
    "single": lambda c: c.table("t").select("*").single(),
    "maybe_single": lambda c: c.table("t").select("*").maybe_single(),
    "csv": lambda c: c.table("t").select("*").csv(),
    "explain": lambda c: c.table("t").select("*").explain(),
    "insert": lambda c: c.table("t").insert({"id": 1}),
    "insert many": lambda c: c.table("t").insert([{"id": 1}, {"id": 2}], returning="minimal"),
    "upsert": lambda c: c.table("t").upsert({"id": 1}, on_conflict="id"),
    "update": lambda c: c.table("t").update({"x": None}).eq("id", 1),
    "delete": lambda c: c.table("t").delete().eq("id", 1),
    "delete, minimal": lambda c: c.table("t").delete(returning=ReturnMethod.minimal).eq("id", 1),
    "rpc": lambda c: c.rpc("f", {"a": 1}),
    "rpc without arguments": lambda c: c.rpc("f"),
    "rpc get": lambda c: c.rpc("f", {"a": 1}, get=True),
    "rpc head": lambda c: c.rpc("f", {"a": 1}, head=True, count="exact"),
    "rpc single": lambda c: c.rpc("f").single(),
    "rpc maybe_single": lambda c: c.rpc("f").maybe_single(),
    "rpc filtered": lambda c: c.rpc("f").eq("id", 1).limit(1),
    "schema.from_": lambda c: c.schema("other").from_("t").select("*"),
    "schema.table": lambda c: c.schema("other").table("t").insert({"id": 1}),
    "schema.rpc": lambda c: c.schema("other").rpc("f", {}),
    "postgrest.from_": lambda c: c.postgrest.from_("t").select("*"),
    "postgrest.schema.rpc": lambda c: c.postgrest.schema("other").rpc("f", {}),
}
READ, WRITE = BUILDERS["select"], BUILDERS["insert"]
every_builder = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
DOWN = httpx.ConnectError("no route")


def outcome(world: World, builder: Any) -> tuple[Any, ...]:
    """What executing it gives, in a form that can be compared."""
    try:
        result = world.run(builder.execute())
    except Exception as error:  # noqa: BLE001 - it is compared
        facts = error.json() if isinstance(error, APIError) else error.args
        return type(error), facts
    return type(result), result


def close(world: World, session: Any) -> None:
    world.run(session.close() if world.colour == "sync" else session.aclose())


def sign_in(world: World, client: Any) -> None:
    """Make an auth event, as every sign-in does."""
    world.run(client.auth.sign_in_with_password({"email": "ada@x.test", "password": "x"}))


# --- the same client ----------------------------------------------------------------------------


def test_is_a_client(world: World, bare, protected) -> None:
    """A protected client is one of supabase-py's own class, and shows what protects it."""
    assert isinstance(protected, world.client_class)
    assert isinstance(protected, ProtectedClient | AsyncProtectedClient)
    assert (bare.supabase_url, bare.options) == (protected.supabase_url, protected.options)
    assert bare.auth is protected.auth
    assert URL in repr(protected)
    assert "'supabase' closed" in repr(protected)
    assert KEY not in repr(protected)


@every_builder
def test_same_request_and_result(world: World, server: Server, bare, protected, build) -> None:
    """Builder, request and result are what they are without protection."""
    assert type(build(bare)) is type(build(protected))
    assert outcome(world, build(bare)) == outcome(world, build(protected))
    ours, theirs = (
        (each.method, each.url, sorted(each.headers.multi_items()), each.content)
        for each in server.requests
    )
    assert ours == theirs


@every_builder
@pytest.mark.parametrize("signed_in", [False, True], ids=["", "after an auth event"])
def test_everything_is_guarded(world: World, server: Server, protected, build, signed_in) -> None:
    """No way to a query leads past the breaker, before and after an auth event."""
    if signed_in:
        world.run(READ(protected).execute())
        sign_in(world, protected)
    before = server.count
    protected.breaker.force_open()
    with pytest.raises(CircuitOpenError):
        world.run(build(protected).execute())
    assert before == server.count
    protected.breaker.reset()
    world.run(build(protected).execute())
    assert before + 1 == server.count


def test_builder_made_before_an_auth_event(world: World, protected) -> None:
    """A builder at hand stays guarded when an auth event replaces what made it."""
    builder = READ(protected)
    sign_in(world, protected)
    protected.breaker.force_open()
    with pytest.raises(CircuitOpenError):
        world.run(builder.execute())


def test_original_is_unguarded(world: World, server: Server, bare, protected) -> None:
    """The original client goes on without protection, its own retry included."""
    world.run(READ(protected).execute())
    protected.breaker.force_open()
    world.run(READ(bare).execute())
    sign_in(world, bare)
    world.run(READ(bare).execute())
    assert 3 == server.count
    assert bare.postgrest.retry_enabled
    assert type(bare.postgrest.session) is world.session_class


@pytest.mark.parametrize("who", ["original", "protected"])
def test_one_auth_session(world: World, server: Server, bare, protected, who: str) -> None:
    """Who signs in on one of the two is signed in on both."""
    clients = {"original": bare, "protected": protected}
    for client in clients.values():
        world.run(READ(client).execute())
    sign_in(world, clients[who])
    for client in clients.values():
        world.run(READ(client).execute())
    assert [KEY, KEY, "token-of-ada", "token-of-ada"] == server.tokens


def test_postgrest_auth_reaches_both(world: World, server: Server, bare, protected) -> None:
    """`client.postgrest.auth(token)` works as without protection, at whichever it is called."""
    bare.postgrest.auth("one")
    world.run(READ(protected).execute())
    protected.postgrest.auth("two")
    world.run(READ(bare).execute())
    assert ["one", "two"] == server.tokens


def test_schema_of_the_client(world: World, server: Server, patient) -> None:
    """The schema from the client's options is kept."""
    client = world.client(world.session(server), schema="mine")
    world.run(READ(protect(client, breaker=patient)).execute())
    assert "mine" == server.requests[0].headers["accept-profile"]


def test_subclass(world: World, server: Server, breaker: CircuitBreaker) -> None:
    """A protected subclass is of the subclass, and its own methods are guarded."""

    class Notes(world.client_class):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.table_name = "notes"

        def notes(self) -> Any:
            return self.table(self.table_name).select("*").execute()

    protected = protect(world.client(world.session(server), cls=Notes), breaker=breaker)
    assert isinstance(protected, Notes)
    assert isinstance(protected.as_user("jwt"), Notes)
    world.run(protected.notes())
    assert "/rest/v1/notes" == server.requests[0].url.path
    breaker.force_open()
    for client in (protected, protected.as_user("jwt")):
        with pytest.raises(CircuitOpenError):
            world.run(client.notes())


def test_services_beside_postgrest(world: World, bare, protected) -> None:
    """Storage, functions and Realtime are the original's."""
    assert bare.storage is protected.storage
    assert bare.functions is protected.functions
    assert bare.realtime is protected.realtime
    sign_in(world, protected)
    assert bare.storage is protected.storage


def test_unknown_attribute(protected) -> None:
    """What neither has is an AttributeError, on the client and on its session."""
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = protected.nothing_like_it
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = protected.postgrest.session.nothing_like_it


@pytest.mark.parametrize("pick", [lambda c: c, lambda c: c.postgrest.session])
def test_half_made_object(protected, pick) -> None:
    """An object without its contents, as copy makes one, fails with AttributeError only."""
    kind = type(pick(protected))
    with pytest.raises(AttributeError):
        _ = kind.__new__(kind).anything


def test_breaker_of_its_own(bare) -> None:
    """Without one, protect() makes breakers, and two clients do not share them."""
    one, two = protect(bare), protect(bare)
    assert isinstance(one.breaker, CircuitBreakers)
    assert one.breaker is not two.breaker


@pytest.mark.parametrize(
    ("options", "says"),
    [({"breaker": 5}, "breaker must be"), ({"retry": 3}, "retry must be")],
)
def test_refused_options(bare, options: dict[str, Any], says: str) -> None:
    """A breaker or retry of the wrong kind is refused at once."""
    with pytest.raises(TypeError, match=says):
        protect(bare, **options)


@pytest.mark.parametrize("nonsense", [None, "client", object()])
def test_refused_clients(nonsense) -> None:
    """Only a supabase-py client can be protected."""
    with pytest.raises(TypeError, match="must be a supabase Client or AsyncClient"):
        protect(nonsense)


def test_protected_once(protected) -> None:
    """Protecting twice is refused: it would multiply tries and count failures twice."""
    for client in (protected, protected.as_user("jwt")):
        with pytest.raises(TypeError, match="protected already"):
            protect(client)


# --- outcomes are never changed -----------------------------------------------------------------

BODIES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"[]", b"{}", b"null", b"[{}]", b"<html></html>", b'"x"', b"\xff"]),
    st.dictionaries(
        st.sampled_from(["code", "message", "details", "hint", "error", "statusCode"]),
        st.one_of(
            st.none(),
            st.integers(),
            st.text(max_size=5),
            st.sampled_from(["57014", "PGRST000", "PGRST116", "23505", "500"]),
        ),
    ).map(lambda body: json.dumps(body).encode()),
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "content-type": st.sampled_from(["application/json", "text/html", "nonsense"]),
        "content-range": st.sampled_from(["0-0/1", "*/0", "*/*", "0-24/3573458"]),
        "retry-after": st.sampled_from(["0", "7", "soon", "Wed, 21 Oct 2026 07:28:00 GMT"]),
        "proxy-status": st.sampled_from(["PostgREST; error=57014", "x", "PostgREST; error="]),
        "content-encoding": st.sampled_from(["gzip", "identity"]),
        "location": st.sampled_from(["/elsewhere", "https://"]),
    },
)
ERRORS = st.sampled_from(
    [
        httpx.ConnectError,
        httpx.ConnectTimeout,
        httpx.ReadError,
        httpx.ReadTimeout,
        httpx.WriteError,
        httpx.PoolTimeout,
        httpx.RemoteProtocolError,
        httpx.LocalProtocolError,
        httpx.ProxyError,
        OSError,
        KeyError,
        RuntimeError,
    ]
)


def answered(status: int, headers: dict[str, str], body: bytes) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(status, headers=headers, stream=Pieces(body[:7], body[7:]))


def broken(status: int, kind: type[Exception]) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(status, stream=Pieces(b"[", kind("midway")))


def raised(kind: type[Exception]) -> Callable[[], Exception]:
    return lambda: kind("before")


STATUSES = st.one_of(
    st.integers(200, 599),
    st.sampled_from([200, 201, 204, 206, 302, 401, 404, 406, 429, 500, 502, 503, 504, 520, 540]),
)
REPLIES = st.one_of(
    st.builds(answered, STATUSES, HEADERS, BODIES),
    st.builds(broken, STATUSES, ERRORS),
    st.builds(raised, ERRORS),
)


@pytest.mark.parametrize("retry", [None, RetryConfig(wait_initial=0.0)], ids=["once", "retry"])
@settings(
    max_examples=300,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(make_reply=REPLIES, name=st.sampled_from(sorted(BUILDERS)))
def test_never_changes_an_outcome(world: World, time: Time, retry, make_reply, name: str) -> None:
    """Whatever the server answers, result and exception are those of the bare client."""
    client = world.client(
        world.session(lambda request: reply_with(make_reply())), postgrest_client_retry=False
    )
    protected = protect(client, breaker=CircuitBreaker(on_event=id, clock=time), retry=retry)
    build = BUILDERS[name]
    assert outcome(world, build(client)) == outcome(world, build(protected))


def reply_with(reply: httpx.Response | Exception) -> httpx.Response:
    if isinstance(reply, Exception):
        raise reply
    return reply


def test_exception_is_the_very_same(world: World, server: Server, bare) -> None:
    """An exception of httpx is raised as the object it was, its request attached."""
    server.will(DOWN)
    with pytest.raises(httpx.ConnectError) as raised:
        world.run(READ(protect(bare, retry=None)).execute())
    assert DOWN is raised.value
    assert "/rest/v1/t" == raised.value.request.url.path


def test_redirects_are_followed(world: World, server: Server, patient) -> None:
    """Redirects are followed if the session does so; the last answer is judged."""
    client = world.client(world.session(server, follow_redirects=True))
    server.will(httpx.Response(307, headers={"location": "/rest/v1/moved"}))
    result = world.run(READ(protect(client, breaker=patient)).execute())
    assert [{"id": 1}] == result.data
    assert "/rest/v1/moved" == server.requests[1].url.path
    assert 1 == patient.get_stats().successes


def test_respx(world: World, patient) -> None:
    """Tests of users that mock HTTP by respx work as before."""
    with respx.mock(base_url=URL) as router:
        route = router.get("/rest/v1/t").respond(json=[{"id": 7}])
        session = world.session_class()
        client = protect(world.client(session), breaker=patient)
        assert [{"id": 7}] == world.run(READ(client).execute()).data
        assert 1 == route.call_count
        close(world, session)


# --- what is judged -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "state"),
    [
        (error(503, "PGRST000"), "open"),
        (error(500, "XX000"), "open"),
        (error(502), "open"),
        (error(540), "open"),
        (error(429), "open"),
        (DOWN, "open"),
        (httpx.ReadTimeout("slow"), "open"),
        (lambda request: httpx.Response(200, html="<html>"), "open"),
        (lambda request: httpx.Response(302, headers={"location": "/login"}), "open"),
        (lambda request: httpx.Response(200, stream=Pieces(httpx.ReadError("x"))), "open"),
        (error(409, "23505"), "closed"),
        (error(406, "PGRST116"), "closed"),
        (error(500, "40001"), "closed"),
        (error(500, "57014"), "closed"),
        (error(401, "PGRST301"), "closed"),
        (httpx.PoolTimeout("ours"), "closed"),
    ],
)
def test_verdicts(world: World, server: Server, *, bare, breaker, reply, state: str) -> None:
    """The service's failures open the circuit, whatever they look like; the caller's do not."""
    server.will(reply)
    outcome(world, READ(protect(bare, breaker=breaker, retry=None)))
    assert state == breaker.get_state()


def test_retry_after_reaches_the_breaker(world: World, server: Server, bare, breaker) -> None:
    """Retry-After, which postgrest's exception does not keep, lengthens the open time."""
    server.will(error(503, "PGRST002", retry_after="77"))
    with pytest.raises(APIError):
        world.run(READ(protect(bare, breaker=breaker, retry=None)).execute())
    assert 77.0 == breaker.get_stats().retry_after


def test_probe_answered_with_4xx_closes(world: World, server: Server, bare, breaker, time) -> None:
    """A probe that PostgREST refuses shows that the service is back."""
    protected = protect(bare, breaker=breaker, retry=None)
    server.will(DOWN, error(409, "23505"))
    outcome(world, READ(protected))
    time.advance(30.0)
    outcome(world, WRITE(protected))
    assert "closed" == breaker.get_state()


def test_each_attempt_is_judged(world: World, server: Server, protected, patient) -> None:
    """Each attempt is judged, not each call."""
    server.will(DOWN, DOWN)
    world.run(READ(protected).execute())
    stats = patient.get_stats()
    assert (2, 1, 2) == (stats.failures, stats.successes, stats.retries)


def test_open_circuit_spares_the_server(world: World, server: Server, bare, breaker) -> None:
    """While open, no request is made."""
    server.will(DOWN)
    protected = protect(bare, breaker=breaker)
    outcome(world, READ(protected))
    for build in BUILDERS.values():
        assert CircuitOpenError is outcome(world, build(protected))[0]
    assert 1 == server.count


# --- retries ------------------------------------------------------------------------------------

# fault, requests that a read makes, requests that a write makes (of three tries at most)
FAULTS: dict[str, tuple[Any, int, int]] = {
    "ConnectError": (DOWN, 3, 3),
    "ConnectTimeout": (httpx.ConnectTimeout("x"), 3, 3),
    "ProxyError": (httpx.ProxyError("x"), 3, 3),
    "PoolTimeout": (httpx.PoolTimeout("x"), 3, 3),
    "ReadError": (httpx.ReadError("x"), 3, 1),
    "ReadTimeout": (httpx.ReadTimeout("x"), 3, 1),
    "WriteError": (httpx.WriteError("x"), 3, 1),
    "WriteTimeout": (httpx.WriteTimeout("x"), 3, 1),
    "RemoteProtocolError": (httpx.RemoteProtocolError("x"), 3, 1),
    "LocalProtocolError": (httpx.LocalProtocolError("x"), 3, 1),
    "UnsupportedProtocol": (httpx.UnsupportedProtocol("x"), 1, 1),
    "TypeError": (TypeError("x"), 1, 1),
    "503 PGRST000": (error(503, "PGRST000"), 3, 3),
    "503 PGRST001": (error(503, "PGRST001"), 3, 1),
    "503 PGRST002": (error(503, "PGRST002"), 3, 3),
    "504 PGRST003": (error(504, "PGRST003"), 3, 3),
    "500 40001": (error(500, "40001"), 3, 3),
    "500 40P01": (error(500, "40P01"), 3, 3),
    "500 55P03": (error(500, "55P03"), 3, 3),
    "500 57014": (error(500, "57014"), 2, 2),
    "503 53300": (error(503, "53300"), 3, 3),
    "503 53100": (error(503, "53100"), 1, 1),
    "503 57P01": (error(503, "57P01"), 3, 3),
    "503 08007": (error(503, "08007"), 3, 1),
    "502": (error(502), 3, 1),
    "503": (error(503), 3, 3),
    "504": (error(504), 3, 1),
    "500": (error(500), 2, 1),
    "520": (error(520), 3, 1),
    "524": (error(524), 1, 1),
    "400 22P02": (error(400, "22P02"), 1, 1),
    "400 P0001": (error(400, "P0001"), 1, 1),
    "401 PGRST303": (error(401, "PGRST303"), 1, 1),
    "403 42501": (error(403, "42501"), 1, 1),
    "404 PGRST205": (error(404, "PGRST205"), 2, 2),
    "406 PGRST116": (error(406, "PGRST116"), 1, 1),
    "409 23505": (error(409, "23505"), 1, 1),
    "402": (error(402), 1, 1),
    "429": (error(429), 1, 1),
    "540": (error(540), 1, 1),
}
READS = ["select", "count, head", "single", "maybe_single", "rpc get", "rpc head"]
# Twice is as good as once, so a lost answer is no reason not to try again.
IDEMPOTENT = ["upsert", "update", "delete, minimal"]
WRITES = ["insert", "delete", "rpc", "schema.rpc"]


@pytest.mark.parametrize(("fault", "reads", "writes"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("name", [*READS, *IDEMPOTENT, *WRITES])
def test_retries(
    world: World, server: Server, *, protected, bare, fault, reads: int, writes: int, name: str
) -> None:
    """Repeated where it can help; inserts and rpc posts only when provably not applied."""
    server.will(*times(9, fault))
    last = outcome(world, BUILDERS[name](protected))
    assert (writes if name in WRITES else reads) == server.count
    server.replies[:] = [fault]
    assert outcome(world, BUILDERS[name](without_retry(bare))) == last


def without_retry(client: Any) -> Any:
    client.postgrest.retry_enabled = False
    return client


@pytest.mark.parametrize("failed", [1, 2])
def test_retry_that_helps(world: World, server: Server, protected, time: Time, failed) -> None:
    """A try that succeeds is the answer, and nothing of the failed ones shows."""
    server.will(*times(failed, error(503, "PGRST000")))
    assert [{"id": 1}] == world.run(READ(protected).execute()).data
    assert failed + 1 == server.count
    assert failed == len(time.naps)


def test_own_retry_of_postgrest_is_off(world: World, server: Server, bare) -> None:
    """Postgrest's own retry, up to 7 s of its own, never runs inside a protected client."""
    protected = protect(bare, retry=None)
    for build in (
        READ,
        BUILDERS["schema.from_"],
        BUILDERS["rpc get"],
        BUILDERS["postgrest.schema.rpc"],
    ):
        server.will(error(503, "PGRST002"))
        assert APIError is outcome(world, build(protected))[0]
    assert 4 == server.count
    assert all("x-retry-count" not in request.headers for request in server.requests)


def test_retry_none(world: World, server: Server, bare, time: Time) -> None:
    """retry=None is one attempt."""
    server.will(DOWN)
    assert httpx.ConnectError is outcome(world, READ(protect(bare, retry=None)))[0]
    assert (1, []) == (server.count, time.naps)


def test_full_jitter(world: World, server: Server, bare, patient, time: Time) -> None:
    """Waits are drawn between 0 and twice the one before, at most wait_max."""
    retry = RetryConfig(attempts=6, wait_initial=0.5, wait_max=2.0, total_timeout=99.0)
    server.will(*times(6, DOWN))
    outcome(world, READ(protect(bare, breaker=patient, retry=retry)))
    limits = [0.5, 1.0, 2.0, 2.0, 2.0]
    assert len(limits) == len(time.naps)
    assert all(0.0 <= nap <= limit for nap, limit in zip(time.naps, limits, strict=True))
    assert len(set(time.naps)) > 1


def test_retry_after_is_waited_for(world: World, server: Server, protected, time: Time) -> None:
    """A try never starts before the server's Retry-After."""
    server.will(error(503, "PGRST002", retry_after="3"))
    world.run(READ(protected).execute())
    assert 2 == server.count
    assert time.naps[0] >= 3.0


def test_retry_after_beyond_the_total(world: World, server: Server, protected, time) -> None:
    """A Retry-After beyond what is left raises the last error at once."""
    server.will(error(503, "PGRST002", retry_after="16"))
    kind, facts = outcome(world, READ(protected))
    assert (APIError, "PGRST002") == (kind, facts["code"])
    assert (1, []) == (server.count, time.naps)


def test_a_second_call_starts_over(world: World, server: Server, protected, time: Time) -> None:
    """Attempts and time are counted for each call anew."""
    for _ in range(3):
        server.will(DOWN, DOWN)
        world.run(READ(protected).execute())
        time.advance(100.0)
    assert 9 == server.count


def test_retry_events(world: World, server: Server, bare, time: Time) -> None:
    """Each retry is told before its wait: attempt, delay and reason."""
    hook = RecordingHook()
    breaker = CircuitBreaker(failure_threshold=99, on_event=hook, clock=time)
    server.will(DOWN, DOWN)
    world.run(READ(protect(bare, breaker=breaker)).execute())
    assert [(1, time.naps[0]), (2, time.naps[1])] == [
        (event.attempt, event.delay) for event in hook.events
    ]
    assert {"no connection"} == {event.reason for event in hook.events}


@pytest.mark.parametrize("fault", [DOWN, error(503, "PGRST000")], ids=["exception", "response"])
def test_opening_circuit_stops_the_retry(world: World, server: Server, bare, time, fault) -> None:
    """When its own failure opens the circuit, a call raises that failure and tries no more."""
    breaker = CircuitBreaker(failure_threshold=2, clock=time)
    server.will(*times(9, fault))
    protected = protect(bare, breaker=breaker, retry=RetryConfig(attempts=5))
    assert CircuitOpenError is not outcome(world, READ(protected))[0]
    assert (2, 1) == (server.count, len(time.naps))
    assert CircuitOpenError is outcome(world, READ(protected))[0]


@pytest.mark.parametrize("fault", [DOWN, error(503, "PGRST000")], ids=["exception", "response"])
def test_circuit_opened_during_the_wait(world, server: Server, protected, time, fault) -> None:
    """When others open the circuit during the wait, the last real error is raised."""
    server.will(*times(9, fault))
    time.during_a_nap = protected.breaker.force_open
    assert outcome(world, READ(protected))[0] in {httpx.ConnectError, APIError}
    assert 1 == server.count


@pytest.mark.parametrize("fault", [DOWN, error(500, "40001"), error(503, "PGRST000")])
def test_probe_is_never_retried(
    world: World, server: Server, *, bare, breaker, time, fault
) -> None:
    """A probe is one request, whatever comes back."""
    protected = protect(bare, breaker=breaker)
    server.will(DOWN, *times(9, fault))
    outcome(world, READ(protected))
    time.advance(30.0)
    outcome(world, READ(protected))
    assert 2 == server.count


def test_half_open_lets_one_in(world: World, server: Server, bare, breaker, time) -> None:
    """While a probe is in flight, other calls are refused."""
    protected = protect(bare, breaker=breaker)
    server.will(DOWN)
    outcome(world, READ(protected))
    time.advance(30.0)
    probe = breaker.acquire()
    assert CircuitOpenError is outcome(world, READ(protected))[0]
    breaker.settle(probe, Classification(verdict="success"))
    assert 1 == server.count
    world.run(READ(protected).execute())


# --- the same breaker around it -----------------------------------------------------------------


def test_nested_in_execute(world: World, server: Server, bare, breaker, time) -> None:
    """execute() around a protected query with the same breaker is one call, and closes again."""
    protected = protect(bare, breaker=breaker, retry=None)
    server.will(DOWN)
    for _ in range(2):
        with pytest.raises((httpx.ConnectError, CircuitOpenError)):
            world.run(breaker.execute(lambda: READ(protected).execute()))
    assert (1, 1, 1) == (server.count, breaker.get_stats().failures, breaker.get_stats().refused)
    time.advance(30.0)
    result = world.run(breaker.execute(lambda: READ(protected).execute()))
    assert [{"id": 1}] == result.data
    assert ("closed", 1) == (breaker.get_state(), breaker.get_stats().successes)


def test_nested_retries_count_once(world: World, server: Server, protected, patient) -> None:
    """Retries inside execute() go on as usual; the whole counts once, by its end."""
    server.will(*times(3, DOWN))
    with pytest.raises(httpx.ConnectError):
        world.run(patient.execute(READ(protected).execute))
    assert (3, 1) == (server.count, patient.get_stats().failures)
    server.will(DOWN)
    world.run(patient.execute(READ(protected).execute))
    assert (1, 1) == (patient.get_stats().failures, patient.get_stats().successes)


def test_nested_probe_is_not_retried(world: World, server: Server, bare, breaker, time) -> None:
    """A probe around a protected query is one request, too."""
    protected = protect(bare, breaker=breaker)
    server.will(*times(9, DOWN))
    outcome(world, READ(protected))
    time.advance(30.0)
    with pytest.raises(httpx.ConnectError):
        world.run(breaker.execute(READ(protected).execute))
    assert 2 == server.count


def test_another_breaker_around(world: World, server: Server, protected, patient, time) -> None:
    """Another breaker around a protected query counts for itself."""
    other = CircuitBreaker(failure_threshold=9, clock=time)
    server.will(*times(3, DOWN))
    with pytest.raises(httpx.ConnectError):
        world.run(other.execute(READ(protected).execute))
    assert (1, 3) == (other.get_stats().failures, patient.get_stats().failures)


def test_guard_around(world: World, server: Server, protected, patient) -> None:
    """guard() around a protected query is one call."""
    server.will(*times(3, DOWN))
    with pytest.raises(httpx.ConnectError), patient.guard():
        world.run(READ(protected).execute())
    assert (3, 1) == (server.count, patient.get_stats().failures)


# --- time ---------------------------------------------------------------------------------------


def asked(time: Time, seconds: float, seen: list[dict[str, float]]) -> Callable[..., Any]:
    """Note how long each phase may take, at the start and after some seconds; then fail."""

    def reply(request: httpx.Request) -> Any:
        timeout: Mapping[str, float] = request.extensions["timeout"]
        seen.append(dict(timeout))
        time.advance(seconds)
        seen.append({phase: timeout[phase] for phase in timeout})
        return DOWN

    return reply


def test_attempt_timeout(world: World, server: Server, patient, time: Time) -> None:
    """Each phase gets what is left of the attempt, or its own limit where that is shorter."""
    usual = httpx.Timeout(connect=3.0, read=60.0, write=5.0, pool=None)
    client = world.client(world.session(server, timeout=usual))
    seen: list[dict[str, float]] = []
    server.will(asked(time, 6.0, seen))
    outcome(world, READ(protect(client, breaker=patient, retry=None)))
    assert [
        {"connect": 3.0, "read": 10.0, "write": 5.0, "pool": 10.0},
        {"connect": 3.0, "read": 4.0, "write": 4.0, "pool": 4.0},
    ] == seen


def test_total_timeout(world: World, server: Server, patient, time: Time) -> None:
    """A later attempt gets what is left of the total; none starts when nothing is left."""
    client = world.client(world.session(server, timeout=None))
    retry = RetryConfig(attempts=9, attempt_timeout=10.0, total_timeout=15.0, wait_initial=0.0)
    seen: list[dict[str, float]] = []
    server.will(*times(9, asked(time, 7.0, seen)))
    outcome(world, READ(protect(client, breaker=patient, retry=retry)))
    assert [10.0, 3.0, 8.0, 1.0, 1.0, 0.001] == [phases["read"] for phases in seen]
    assert 3 == server.count


def test_timeout_never_is_zero(world: World, server: Server, bare, time: Time) -> None:
    """A phase that begins too late gets a moment: 0 would mean "do not wait" to a socket."""
    seen: list[dict[str, float]] = []
    server.will(asked(time, 999.0, seen))
    outcome(world, READ(protect(bare, retry=None)))
    assert {0.001} == set(seen[1].values())


def test_deadline(world: World, server: Server, protected, time: Time) -> None:
    """Within deadline() no phase gets more than what is left of it, and no try starts after it."""
    seen: list[dict[str, float]] = []
    server.will(*times(9, asked(time, 1.0, seen)))
    with deadline(1.5):
        outcome(world, READ(protected))
    assert 1.5 == seen[0]["read"]
    assert 2 == server.count


def test_deadline_that_has_passed(world: World, server: Server, protected, time: Time) -> None:
    """When nothing is left, nothing is sent, nobody is blamed, and it is not tried again."""
    with deadline(1.0):
        time.advance(1.0)
        with pytest.raises(httpx.PoolTimeout, match="deadline"):
            world.run(WRITE(protected).execute())
    assert (0, []) == (server.count, time.naps)
    assert 0 == protected.breaker.get_stats().failures


def test_deadline_ends_with_its_block(world: World, server: Server, protected, time) -> None:
    """After the block, calls have their usual time again."""
    seen: list[dict[str, float]] = []
    with deadline(1.0):
        pass
    time.advance(5.0)
    server.will(asked(time, 0.0, seen))
    world.run(READ(protected).execute())
    assert 5.0 == seen[0]["read"]  # httpx's own, as of the session


def drops(time: Time, count: int, seconds: float) -> Callable[[httpx.Request], httpx.Response]:
    """A body of which a byte arrives now and then, over a transport that waits."""

    def drop() -> bytes:
        time.advance(seconds)
        return b" "

    def reply(request: httpx.Request) -> httpx.Response:
        request.extensions["timeout"].get("read")
        return httpx.Response(200, stream=Pieces(b"[", *times(count, drop), b"]"))

    return reply


def test_drip_that_is_fast_enough(world: World, server: Server, protected, time: Time) -> None:
    """A body in many pieces is fine as long as it is in time."""
    server.will(drops(time, 9, 1.0))
    assert [] == world.run(READ(protected).execute()).data


@pytest.mark.parametrize("status", [200, 201, 206])
@pytest.mark.parametrize("kind", [httpx.ReadError, httpx.ConnectError, httpx.PoolTimeout])
@pytest.mark.parametrize(("build", "count"), [(READ, 3), (WRITE, 1)], ids=["read", "write"])
def test_body_dropped_midway(
    world: World, server: Server, *, protected, status: int, kind, build, count: int
) -> None:
    """What breaks after a 2xx was applied, whatever broke: an insert is not repeated."""
    streams = [Pieces(b'[{"id"', kind("reset")) for _ in range(3)]
    server.will(*(httpx.Response(status, stream=stream) for stream in streams))
    assert kind is outcome(world, build(protected))[0]
    assert count == server.count
    assert all(stream.is_closed for stream in streams[:count])


def test_body_undecodable_after_2xx(world: World, server: Server, protected) -> None:
    """An answer that cannot be decoded was applied, so an insert is not repeated."""
    server.will(
        lambda request: httpx.Response(
            201, headers={"content-encoding": "gzip"}, stream=Pieces(b"no gzip")
        )
    )
    assert httpx.DecodingError is outcome(world, WRITE(protected))[0]
    assert 1 == server.count


@pytest.fixture
def silent_host() -> Iterator[socket.socket]:
    """Give a host that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listening:
        listening.setblocking(False)
        yield listening


def connections(listening: socket.socket) -> int:
    count = 0
    while True:
        try:
            listening.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


@pytest.mark.parametrize(
    ("retry", "build", "count"),
    [
        pytest.param(RetryConfig(total_timeout=0.3), READ, 1, id="total"),
        pytest.param(RetryConfig(total_timeout=0.3), WRITE, 1, id="total, write"),
        pytest.param(RetryConfig(attempt_timeout=0.1, total_timeout=60.0), READ, 3, id="attempts"),
        pytest.param(RetryConfig(attempt_timeout=0.1, total_timeout=60.0), WRITE, 1, id="write"),
    ],
)
def test_silent_host(world: World, silent_host: socket.socket, retry, build, count: int) -> None:
    """A host that never answers ends in ReadTimeout, after one connection per try."""
    session = world.session_class(timeout=None)
    url = f"http://127.0.0.1:{silent_host.getsockname()[1]}"
    protected = protect(world.client(session, url=url), retry=retry)
    assert httpx.ReadTimeout is outcome(world, build(protected))[0]
    assert count == connections(silent_host)
    close(world, session)


def test_silent_host_within_a_deadline(world: World, silent_host: socket.socket) -> None:
    """deadline() ends a call to a host that never answers."""
    session = world.session_class(timeout=None)
    url = f"http://127.0.0.1:{silent_host.getsockname()[1]}"
    protected = protect(world.client(session, url=url))
    with deadline(0.2):
        assert httpx.ReadTimeout is outcome(world, READ(protected))[0]
    assert 1 == connections(silent_host)
    close(world, session)


@contextmanager
def dripping_host(beginning: bytes) -> Iterator[tuple[str, list[None]]]:
    """A host that sends this, and then a byte now and then for ever; and its connections."""
    is_over, served = threading.Event(), []

    class Drip(StreamRequestHandler):
        def handle(self) -> None:
            served.append(None)
            with contextlib.suppress(OSError):  # the caller has had enough
                self.wfile.write(beginning)
                while not is_over.wait(0.02):
                    self.wfile.write(b" ")

    with ThreadingTCPServer(("127.0.0.1", 0), Drip) as host:
        host.daemon_threads = True
        thread = threading.Thread(target=host.serve_forever, args=[0.01])
        thread.start()
        yield f"http://127.0.0.1:{host.server_address[1]}", served
        is_over.set()
        host.shutdown()
        thread.join()


BODY_DRIPS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999999\r\n\r\n["
HEADERS_DRIP = b"HTTP/1.1 200 OK\r\nX-Slow: "


@pytest.mark.parametrize(("build", "count"), [(READ, 3), (WRITE, 1)], ids=["read", "write"])
def test_body_drop_by_drop(world: World, build, count: int) -> None:
    """A body that arrives drop by drop ends with its attempt; an insert is not repeated."""
    session = world.session_class(timeout=None)
    retry = RetryConfig(attempt_timeout=0.1, total_timeout=60.0, wait_initial=0.0)
    with dripping_host(BODY_DRIPS) as (url, served):
        protected = protect(world.client(session, url=url), retry=retry)
        assert httpx.ReadTimeout is outcome(world, build(protected))[0]
        close(world, session)
    assert count == len(served)


def test_headers_drop_by_drop() -> None:
    """An async attempt is interrupted whatever it waits for, and no cancellation is left behind."""
    world = AsyncWorld()
    session = world.session_class(timeout=None)
    retry = RetryConfig(attempt_timeout=0.1, total_timeout=60.0, wait_initial=0.0)
    with dripping_host(HEADERS_DRIP) as (url, served):
        protected = protect(world.client(session, url=url), retry=retry)

        async def call() -> int:
            with pytest.raises(httpx.ReadTimeout):
                await READ(protected).execute()
            await asyncio.sleep(0)
            task = asyncio.current_task()
            assert task is not None
            return task.cancelling()

        assert 0 == world.run(call())
        close(world, session)
        world.close()
    assert 3 == len(served)


# --- as_user() ----------------------------------------------------------------------------------


def test_as_user(world: World, server: Server, protected) -> None:
    """as_user() sends that user's Authorization and the project's key, and nothing else changes."""
    user = protected.as_user("jwt-of-bob")
    assert isinstance(user, world.client_class)
    world.run(READ(protected).execute())
    world.run(READ(user).execute())
    world.run(READ(protected).execute())
    assert [KEY, "jwt-of-bob", KEY] == server.tokens
    assert {KEY} == {request.headers["apikey"] for request in server.requests}


@every_builder
def test_as_user_is_pinned(world: World, server: Server, protected, build) -> None:
    """No auth event on the shared client reaches it, whichever way a query goes."""
    user = protected.as_user("jwt-of-bob")
    world.run(build(user).execute())
    sign_in(world, protected)
    world.run(build(user).execute())
    world.run(build(protected).execute())
    world.run(build(protected.as_user("jwt-of-eve")).execute())
    world.run(build(user).execute())
    bob = "jwt-of-bob"
    assert [bob, bob, "token-of-ada", "jwt-of-eve", bob] == server.tokens


def test_as_user_of_a_user(world: World, server: Server, protected) -> None:
    """as_user() of a user's client is another user's."""
    world.run(READ(protected.as_user("one").as_user("two")).execute())
    assert ["two"] == server.tokens


def test_as_user_shares_the_breaker(world: World, server: Server, bare, breaker) -> None:
    """One user's failure opens the circuit of all: it is the same service."""
    protected = protect(bare, breaker=breaker, retry=None)
    server.will(DOWN)
    outcome(world, READ(protected.as_user("one")))
    for client in (protected, protected.as_user("two")):
        assert CircuitOpenError is outcome(world, READ(client))[0]
    assert 1 == server.count


def test_as_user_shares_the_pool(bare, protected) -> None:
    """All users' requests go through the one session of the original."""
    user = protected.as_user("jwt")
    assert bare.postgrest.session is user.postgrest.session._inner.session
    assert bare.postgrest.session is protected.postgrest.session._inner.session


@pytest.mark.parametrize("service", ["storage", "functions"])
def test_as_user_refuses_other_services(bare, protected, service: str) -> None:
    """Storage and functions of a user's client would act as somebody else, so they refuse."""
    with pytest.raises(ResilienceError, match=service):
        getattr(protected.as_user("jwt"), service)
    assert getattr(bare, service) is getattr(protected, service)


@pytest.mark.parametrize(("jwt", "kind"), [("", ValueError), (None, TypeError), (b"x", TypeError)])
def test_as_user_without_a_token(protected, jwt, kind: type[Exception]) -> None:
    """A missing token is refused: it must not quietly become the project's own identity."""
    with pytest.raises(kind, match="jwt"):
        protected.as_user(jwt)


# --- cancellation -------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["request", "body"])
def test_interrupt(world: World, server: Server, *, bare, breaker, time, where: str) -> None:
    """A KeyboardInterrupt gives the probe's permit back, closes the answer and passes through."""
    protected = protect(bare, breaker=breaker)
    body = Pieces(b"[", SystemExit())
    server.will(DOWN, SystemExit() if where == "request" else httpx.Response(200, stream=body))
    outcome(world, READ(protected))
    time.advance(30.0)
    with pytest.raises(SystemExit):
        world.run(READ(protected).execute())
    assert "half_open" == breaker.get_state()
    assert breaker.acquire().is_probe
    assert where == "request" or body.is_closed


class Hanging(httpx.AsyncByteStream):
    """A body that hangs after its first piece."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.is_closed = False

    async def __aiter__(self):
        yield b"["
        self.began.set()
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.is_closed = True


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("tries", [1, 2], ids=["first try", "second try"])
async def test_canceled(tries: int, time: Time) -> None:
    """Canceling an async call gives its permit back, closes the answer and changes nothing."""
    hanging = Hanging()
    replies = [DOWN] * (tries - 1)

    def reply(request: httpx.Request) -> httpx.Response:
        if replies:
            raise replies.pop()
        return httpx.Response(200, stream=hanging)

    async with httpx.AsyncClient(transport=httpx.MockTransport(reply)) as session:
        client = await AsyncWorld.client_class.create(URL, KEY, options_with(session))
        breaker = CircuitBreaker(failure_threshold=9, clock=time)
        task = asyncio.create_task(READ(protect(client, breaker=breaker)).execute())
        await hanging.began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    stats = breaker.get_stats()
    assert hanging.is_closed
    assert ("closed", tries - 1, 1) == (stats.state, stats.failures, stats.neutral)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_canceled_probe(time: Time) -> None:
    """A canceled probe leaves the circuit half-open, and its permit to the next call."""
    hanging = Hanging()
    replies = [httpx.Response(200, json=[]), httpx.Response(200, stream=hanging)]
    transport = httpx.MockTransport(lambda request: replies.pop())
    async with httpx.AsyncClient(transport=transport) as session:
        client = await AsyncWorld.client_class.create(URL, KEY, options_with(session))
        breaker = CircuitBreaker(failure_threshold=1, clock=time, jitter=0.0)
        protected = protect(client, breaker=breaker)
        breaker.settle(breaker.acquire(), Classification(verdict="failure"))
        time.advance(30.0)
        task = asyncio.create_task(READ(protected).execute())
        await hanging.began.wait()
        with pytest.raises(CircuitOpenError):
            await READ(protected).execute()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert "half_open" == breaker.get_state()
        assert [] == (await READ(protected).execute()).data
    assert "closed" == breaker.get_state()


def options_with(session: httpx.AsyncClient) -> AsyncClientOptions:
    return AsyncClientOptions(httpx_client=session, auto_refresh_token=False)


# --- the session --------------------------------------------------------------------------------


def test_session_is_one_of_httpx(world: World, bare, protected) -> None:
    """The guarded session is an httpx client that shows the original's settings."""
    session = protected.postgrest.session
    assert isinstance(session, world.session_class)
    assert bare.postgrest.session.timeout == session.timeout
    assert bare.postgrest.session.headers is session.headers
    assert not session.is_closed


@pytest.mark.parametrize("verb", ["get", "head", "post", "patch", "delete"])
def test_session_by_hand(world: World, server: Server, protected, patient, verb: str) -> None:
    """Requests made by hand through the guarded session are guarded, too."""
    session = protected.postgrest.session
    response = world.run(getattr(session, verb)(f"{URL}/rest/v1/t", headers={"x": "y"}))
    assert 200 == response.status_code
    assert "y" == server.requests[0].headers["x"]
    assert 1 == patient.get_stats().successes


def test_extensions_by_hand(world: World, server: Server, protected) -> None:
    """Extensions of a request made by hand are kept, beside the time it has."""
    session = protected.postgrest.session
    world.run(session.request("GET", f"{URL}/rest/v1/t", extensions={"sni_hostname": "x"}))
    extensions = server.requests[0].extensions
    assert "x" == extensions["sni_hostname"]
    assert 5.0 == extensions["timeout"]["read"]


def test_closing_the_session(world: World, bare, protected) -> None:
    """Closing the guarded session closes the one it guards."""
    session = protected.postgrest.session
    close(world, session)
    assert bare.postgrest.session.is_closed
    assert RuntimeError is outcome(world, READ(protected))[0]


def own_session_client() -> Client:
    """Make a sync client as the quick start does, without an httpx_client."""
    return Client.create("http://127.0.0.1:9", KEY)


def test_own_session_for_threads() -> None:
    """A sync client without httpx_client gets an HTTP/1.1 session with supabase-py's settings."""
    client = own_session_client()
    session = protect(client).postgrest.session._inner.session
    assert client.postgrest.session is not session
    assert session._transport._pool._http1
    assert not session._transport._pool._http2
    assert session.follow_redirects
    assert httpx.Timeout(client.options.postgrest_client_timeout) == session.timeout
    assert client.postgrest.session._transport._pool._http2  # what is being avoided


def test_own_session_is_one() -> None:
    """The own session is one for all users, before and after auth events."""
    client = own_session_client()
    protected = protect(client)
    user = protected.as_user("jwt")
    before = protected.postgrest.session._inner.session
    client._postgrest = None  # what an auth event does
    assert before is protected.postgrest.session._inner.session
    assert before is user.postgrest.session._inner.session
    assert before is protected.as_user("another").postgrest.session._inner.session


def test_own_session_works(server: Server) -> None:
    """A sync client without httpx_client makes its queries through the own session."""
    with httpserver(json.dumps([{"id": 5}]).encode()) as url:
        protected = protect(Client.create(url, KEY))
        assert [{"id": 5}] == READ(protected).execute().data
        protected.postgrest.session.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_own_session_after_a_fork() -> None:
    """After a fork the child has a session of its own: sharing sockets would mix up answers."""
    protected = protect(own_session_client())
    session = protected.postgrest.session
    before = session._inner.session
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        code = 1
        try:
            code = 0 if session._inner.session is not before else 2
            code = code or (0 if session._inner.session is session._inner.session else 3)
        finally:
            os._exit(code)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert before is session._inner.session


def test_own_session_is_made_once() -> None:
    """Threads that start together get the same session, not one pool each."""
    protected = protect(own_session_client())
    barrier = threading.Barrier(8)
    sessions: list[httpx.Client] = []

    def use() -> None:
        barrier.wait(60.0)
        sessions.append(protected.postgrest.session._inner.session)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 == len({id(session) for session in sessions})


def warned(use: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        use()
    return [str(each.message) for each in caught if each.category is not ResourceWarning]


def test_no_new_warnings(world: World, server: Server) -> None:
    """protect() adds no warning to those that supabase-py gives by itself."""
    session = world.session(server)
    client = world.client(session)
    assert [] == warned(lambda: world.run(READ(protect(client)).execute()))
    bare = warned(lambda: own_session_client().postgrest)
    assert bare == warned(lambda: protect(own_session_client()).postgrest)


@contextmanager
def httpserver(body: bytes) -> Iterator[str]:
    """Run a real HTTP server on loopback that answers every GET with `body`."""

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


# --- what protect() leans on in supabase-py and httpx -------------------------------------------


def test_supabase_sends_by_one_request_call(world: World) -> None:
    """Every builder ends in one call of `session.request` with these arguments."""
    calls: list[tuple[tuple[str, ...], set[str]]] = []

    class Session(world.session_class):
        def request(self, *args: Any, **kwargs: Any) -> Any:
            calls.append((args, set(kwargs)))
            return super().request(*args, **kwargs)

    server = Server()
    session = Session(transport=httpx.MockTransport(server))
    client = world.client(session)
    for build in BUILDERS.values():
        world.run(build(client).execute())
    assert len(BUILDERS) == len(calls) == server.count
    for (method, url), names in calls:
        assert method in {"GET", "HEAD", "POST", "PATCH", "DELETE"}
        assert url.startswith(URL)
        assert {"content", "params", "headers", "auth"} == names
    close(world, session)


def test_supabase_builds_by_the_public_postgrest(world: World, bare) -> None:
    """table, from_, rpc and schema take the public property `postgrest`, each time anew."""
    asked: list[str] = []

    class Watched(world.client_class):
        @property
        def postgrest(self) -> Any:
            asked.append("asked")
            return bare.postgrest

    watched = Watched(URL, KEY)
    watched.table("t"), watched.from_("t"), watched.rpc("f"), watched.schema("s")
    assert 4 == len(asked)


def test_supabase_replaces_postgrest_at_auth_events(world: World, bare) -> None:
    """An auth event throws `client.postgrest` away; the session given by the user stays."""
    before = bare.postgrest
    sign_in(world, bare)
    assert before is not bare.postgrest
    assert before.session is bare.postgrest.session


@pytest.mark.parametrize("kind", [SyncPostgrestClient, AsyncPostgrestClient])
def test_postgrest_takes_a_session(kind) -> None:
    """A postgrest client uses the session it is given, also for another schema."""
    session = (httpx.Client if kind is SyncPostgrestClient else httpx.AsyncClient)()
    client = kind(f"{URL}/rest/v1", http_client=session, retry_enabled=False)
    other = client.schema("other")
    assert client.session is other.session is session
    assert [False, False] == [client.retry_enabled, other.retry_enabled]
    assert session is client.from_("t").select("*").request.session


def test_httpx_asks_for_timeouts_by_phase(world: World) -> None:
    """The request extension `timeout` may be any mapping; each phase asks for its value."""
    phases: list[str] = []

    class Asked(dict):
        def get(self, phase: str, default: object = None) -> Any:
            phases.append(phase)
            return 30.0

    with httpserver(b"[]") as url:
        session = world.session_class()
        request = session.build_request("GET", url, extensions={"timeout": Asked()})
        world.run(session.send(request))
        close(world, session)
    assert {"pool", "connect", "write", "read"} == set(phases)


def test_httpx_lets_a_body_be_replaced(world: World) -> None:
    """The stream of an unread response can be wrapped, and reading goes through the wrapper."""
    session = world.session(lambda request: httpx.Response(200, stream=Pieces(b"a", b"b")))
    response = world.run(session.send(session.build_request("GET", URL), stream=True))
    response.stream = Pieces(b"other")
    body = world.run(response.read() if world.colour == "sync" else response.aread())
    assert b"other" == body


def test_worlds_are_alike() -> None:
    """The two worlds have the same surface, so that a test means the same in both."""
    surfaces = [{name for name in vars(each) if name[0] != "_"} for each in (SyncWorld, AsyncWorld)]
    assert surfaces[0] == surfaces[1]


def test_clock_of_the_breaker_is_its_own(world: World, server: Server, bare) -> None:
    """A breaker on a clock of its own does not disturb the deadlines of calls."""
    clock = FakeClock()
    breaker = CircuitBreaker(failure_threshold=1, clock=clock, jitter=0.0)
    server.will(DOWN)
    protected = protect(bare, breaker=breaker, retry=None)
    outcome(world, READ(protected))
    clock.advance(30.0)
    world.run(READ(protected).execute())
    assert "closed" == breaker.get_state()


def test_classes(world: World) -> None:
    """The colours stay apart: a sync client's protection is sync, an async one's async."""
    expected = {"sync": ProtectedClient, "async": AsyncProtectedClient}
    client = world.client(world.session(Server()))
    assert type(protect(client)) is expected[world.colour]
    assert {Client, AsyncClient} == {SyncWorld.client_class, AsyncWorld.client_class}


# --- redirects ----------------------------------------------------------------------------------


def test_redirected_write(world: World, server: Server, time: Time) -> None:
    """A write that had its effect and was then sent on to a host that is down isn't repeated."""

    def redirect(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(303, headers={"location": "https://elsewhere.test/"})
        raise httpx.ConnectError("down", request=request)

    server.will(redirect, redirect, redirect, redirect)
    session = world.session(server, follow_redirects=True)
    client = protect(world.client(session))
    assert httpx.ConnectError is outcome(world, BUILDERS["rpc"](client))[0]
    assert ["POST", "GET"] == [request.method for request in server.requests]
