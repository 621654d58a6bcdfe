"""Guarded httpx clients: Storage, Auth and Functions through supabase-py, in both colours."""

import asyncio
import json
import socket
import time as clock
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from storage3.exceptions import StorageApiError
from supabase import AuthApiError, AuthRetryableError, FunctionsHttpError
from supabase.lib.client_options import AsyncClientOptions, SyncClientOptions
from supabase_auth import AsyncMemoryStorage, SyncMemoryStorage

from supabase_resilience import (
    CircuitBreaker,
    CircuitOpenError,
    Classification,
    RetryConfig,
    classify,
    deadline,
    idempotent,
    protect,
)
from supabase_resilience.http import resilient_async_http_client, resilient_http_client
from supabase_resilience.local import LocalSupabase
from supabase_resilience.testing import FakeClock

from .contract.conftest import Time
from .contract.worlds import TOKEN, URL, AsyncWorld, Pieces, SyncWorld, World

PASSWORD = {"email": "ada@x.test", "password": "correct horse"}
CALLS: dict[str, Callable[[Any], Any]] = {
    "auth": lambda c: c.auth.sign_in_with_password(PASSWORD),
    "storage": lambda c: c.storage.from_("b").download("x.txt"),
    "functions": lambda c: c.functions.invoke("hello"),
}
ERRORS = {"auth": AuthRetryableError, "storage": StorageApiError, "functions": FunctionsHttpError}
each_service = pytest.mark.parametrize("service", CALLS)
FILE = "/storage/v1/object/b/x"
DOWN, LOST = httpx.ConnectError("no route"), httpx.ReadTimeout("nothing came")


class Wire(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """What the clients talk to: it takes each body, but for a request without a connection."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.bodies: list[bytes] = []
        self.timeouts: list[dict[str, float | None]] = []
        self.replies: list[Any] = []

    def will(self, *replies: Any) -> None:
        """Answer the next requests so: a status, a response, an exception, or a function."""
        self.replies.extend(replies)

    @property
    def count(self) -> int:
        return len(self.requests)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        reply = self._begin(request)
        if not isinstance(reply, httpx.ConnectError):
            self.bodies.append(b"".join(request.stream))
        return self._end(reply, request)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        reply = self._begin(request)
        if not isinstance(reply, httpx.ConnectError):
            self.bodies.append(b"".join([piece async for piece in request.stream]))
        if reply is HANG:
            await asyncio.Event().wait()
        return self._end(reply, request)

    def _begin(self, request: httpx.Request) -> Any:
        self.requests.append(request)
        self.timeouts.append(dict(request.extensions["timeout"]))
        return self.replies.pop(0) if self.replies else usual_reply

    def _end(self, reply: Any, request: httpx.Request) -> httpx.Response:
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, int):
            return httpx.Response(reply)
        return reply if isinstance(reply, httpx.Response) else reply(request)


HANG = object()
STORED: dict[str, Any] = {
    "list": [],
    "list-v2": {"hasNext": False, "folders": [], "objects": []},
    "sign": {"signedURL": "/object/sign/b/x?token=t"},
}


def copy_of(response: httpx.Response) -> httpx.Response:
    """The same answer, good for another request."""
    return httpx.Response(response.status_code, content=response.content, headers=response.headers)


def usual_reply(request: httpx.Request) -> httpx.Response:
    """What the service answers when it is well."""
    path = request.url.path
    if path.startswith("/auth/v1/token"):
        return httpx.Response(200, json=TOKEN)
    if path.startswith("/auth/v1/user"):
        return httpx.Response(200, json=TOKEN["user"])
    if path.startswith("/storage/v1") and request.method in {"POST", "PUT"}:
        return httpx.Response(200, json=STORED.get(path.split("/")[4], {"Key": "b/x", "Id": "1"}))
    if path.startswith("/rest/v1"):
        return httpx.Response(200, json=[])
    return httpx.Response(200, content=b"done")


@pytest.fixture(params=[SyncWorld, AsyncWorld], ids=["sync", "async"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Give one of the two colours of supabase-py."""
    world = request.param()
    yield world
    world.close()


@pytest.fixture
def async_world() -> Iterator[AsyncWorld]:
    """For what tasks do."""
    world = AsyncWorld()
    yield world
    world.close()


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    """Replace clock and pauses of the package; code of others keeps its own."""
    time = Time()
    monkeypatch.setattr("supabase_resilience._clock.monotonic", time)
    monkeypatch.setattr(clock, "sleep", time.pause)
    monkeypatch.setattr(asyncio, "sleep", time.pause_async)
    return time


def session_of(world: World, wire: Any, **options: Any) -> Any:
    make = resilient_http_client if world.colour == "sync" else resilient_async_http_client
    session = make(**({} if wire is None else {"transport": wire}), **options)
    world._sessions.append(session)
    return session


@pytest.fixture
def session(world: World, wire: Wire, time: Time) -> Any:
    """Give a guarded HTTP client as it is made by default."""
    return session_of(world, wire)


@pytest.fixture
def client(world: World, session: Any) -> Any:
    """Give a supabase-py client on it."""
    return world.client(session)


def use(world: World, client: Any, service: str) -> Any:
    return world.run(CALLS[service](client))


def in_pieces(world: World, *pieces: bytes) -> Any:
    """A body that can be had once."""

    async def apieces() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return iter(pieces) if world.colour == "sync" else apieces()


def send(world: World, session: Any, method: str, path: str, **options: Any) -> httpx.Response:
    return world.run(session.request(method, f"{URL}{path}", **options))


def stats(session: Any, service: str) -> Any:
    return session.breakers[service].get_stats()


# --- breakers of their own ----------------------------------------------------------------------


@each_service
def test_a_refusal_reaches_the_caller_unchanged(world, wire, session, client, service) -> None:
    """An open circuit refuses through supabase-py with our own error, and nothing is sent."""
    session.breakers[service].force_open()
    with pytest.raises(CircuitOpenError) as told:
        use(world, client, service)
    assert (service, None) == (told.value.breaker, told.value.retry_after)
    assert CircuitOpenError is type(told.value)
    assert 0 == wire.count


@each_service
def test_failures_open_the_circuit_of_one_service_alone(world, wire, time, service) -> None:
    """Five answers of 502 open one circuit; the two others and PostgREST go on."""
    session = session_of(world, wire, retry=None)
    client = world.client(session)
    wire.will(*[502] * 5)
    for _ in range(5):
        with pytest.raises(ERRORS[service]):
            use(world, client, service)
    with pytest.raises(CircuitOpenError):
        use(world, client, service)
    assert 5 == wire.count
    for other in CALLS.keys() - {service}:
        use(world, client, other)
        assert ("closed", 1) == (stats(session, other).state, stats(session, other).successes)
    world.run(client.table("t").select("*").execute())


@each_service
def test_a_probe_is_not_repeated_and_closes_it(world, wire, time, service) -> None:
    """After the open time one request goes out, once; when it succeeds the circuit is closed."""
    breaker = CircuitBreaker(service, failure_threshold=1, jitter=0.0, clock=time)
    client = world.client(session_of(world, wire, breakers={service: breaker}))
    wire.will(DOWN, DOWN)
    for sent in (1, 2):
        with pytest.raises((httpx.ConnectError, AuthRetryableError)):
            use(world, client, service)
        assert ("open", sent) == (breaker.get_state(), wire.count)
        time.advance(60.0)
    use(world, client, service)
    assert "closed" == breaker.get_state()


def test_a_probe_that_was_answered_closes_without_a_repetition(world, wire, time) -> None:
    """A locked object and a function's own 500 prove that the service is back; once is enough."""
    for service, reply in {"storage": 423, "functions": 500}.items():
        breaker = CircuitBreaker(service, failure_threshold=1, jitter=0.0, clock=time)
        session = session_of(world, wire, breakers={service: breaker})
        wire.will(504, reply)
        send(world, session, "GET", f"/{service}/v1/x")
        time.advance(60.0)
        before = wire.count
        assert reply == send(world, session, "GET", f"/{service}/v1/x").status_code
        assert ("closed", 1) == (breaker.get_state(), wire.count - before)


def test_breakers_can_be_given_and_read(world, wire, time) -> None:
    """A breaker that is given is used, the others are made; all can be read by name."""
    mine = CircuitBreaker("files")
    session = session_of(world, wire, breakers={"storage": mine})
    assert mine is session.breakers["storage"]
    assert ["auth", "files", "functions"] == sorted(b.name for b in session.breakers.values())
    use(world, world.client(session), "storage")
    assert 1 == mine.get_stats().successes


def test_queries_pass_untouched(world, wire, session, client) -> None:
    """Nothing that PostgREST answers is counted or repeated, and its timeout is its own."""
    wire.will(500, 429, 200)
    for _ in range(2):
        with pytest.raises(Exception, match=r".*"):
            world.run(client.table("t").insert({"id": 1}).execute())
    assert [0, 0, 0] == [b.get_stats().successes for b in session.breakers.values()]
    assert [0, 0, 0] == [b.get_stats().failures for b in session.breakers.values()]
    assert {120.0} == set(wire.timeouts[0].values())


def test_works_with_protect(world, wire, session, client) -> None:
    """A protected client on it has queries and services guarded, each request once."""
    protected = protect(client, breaker=CircuitBreaker(), retry=None)
    world.run(protected.table("t").select("*").execute())
    assert 10.0 == max(wire.timeouts[-1].values())
    for service in CALLS:
        use(world, protected, service)
    assert 4 == wire.count
    assert 1 == protected.breaker.get_stats().successes
    assert [1, 1, 1] == [b.get_stats().successes for b in session.breakers.values()]


@each_service
def test_a_use_inside_a_call_of_the_same_breaker_is_that_call(
    world, wire, session, client, service
) -> None:
    """`breaker.execute()` around a call takes one permit and counts one outcome."""
    breaker = session.breakers[service]
    world.run(breaker.execute(lambda: CALLS[service](client)))
    assert 1 == breaker.get_stats().successes
    wire.will(*[502] * 3)
    with pytest.raises(ERRORS[service]):
        world.run(breaker.execute(lambda: CALLS[service](client)))
    assert 1 == breaker.get_stats().failures


def test_a_task_inside_a_call_is_part_of_it(async_world, wire) -> None:
    """Also a task that the call starts, from the first call on."""
    breaker = CircuitBreaker("storage")
    session = session_of(async_world, wire, breakers={"storage": breaker})

    async def in_a_task() -> Any:
        return await asyncio.create_task(session.get(f"{URL}{FILE}"))

    async_world.run(breaker.execute(in_a_task))
    assert (1, 1) == (wire.count, breaker.get_stats().successes)


# --- results and errors are supabase-py's -------------------------------------------------------


def outcome(world: World, client: Any, service: str) -> tuple[Any, ...]:
    try:
        return ("returned", use(world, client, service))
    except Exception as error:  # noqa: BLE001 - it is compared
        return (type(error), error.args)


REPLIES = [
    200,
    204,
    400,
    404,
    409,
    429,
    500,
    503,
    httpx.Response(400, json={"statusCode": "404", "error": "not_found", "message": "m"}),
    httpx.Response(400, json={"code": 400, "error_code": "invalid_credentials", "msg": "m"}),
    httpx.Response(200, html="<h1>x</h1>"),
    DOWN,
    LOST,
]


@each_service
@pytest.mark.parametrize("reply", REPLIES, ids=str)
def test_same_result_or_error(world, wire, time, service, reply) -> None:
    """What comes back is what comes back without us."""
    bare = world.client(world.session(lambda _: None, timeout=5.0))
    bare_session = world._sessions[-1]
    bare_session._transport = wire
    guarded = world.client(session_of(world, wire, retry=None))

    for _ in range(2):
        wire.will(copy_of(reply) if isinstance(reply, httpx.Response) else reply)
    assert outcome(world, bare, service) == outcome(world, guarded, service)
    ours, theirs = ((r.method, r.url, r.headers) for r in wire.requests)
    assert ours == theirs
    assert len(set(wire.bodies)) <= 1


# --- what an answer says about a service ---------------------------------------------------------


def auth_error(status: int, code: str) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(status, json={"code": status, "error_code": code, "msg": "m"})


def counts(session: Any, service: str) -> tuple[str, int, int]:
    """State, failures of any kind, and outcomes that say nothing."""
    now = stats(session, service)
    return now.state, now.failures + now.throttled + now.blocked, now.neutral


LIMITS = ("over_request_rate_limit", "over_email_send_rate_limit", "over_sms_send_rate_limit")


@pytest.mark.parametrize("code", LIMITS)
def test_a_limit_of_one_user_does_not_lock_out_all(world, wire, session, client, code) -> None:
    """Auth's own limits concern an endpoint, an address or a user; they are not tried again."""
    wire.will(auth_error(429, code))
    with pytest.raises(AuthApiError):
        use(world, client, "auth")
    assert 1 == wire.count
    assert ("closed", 0, 1) == counts(session, "auth")
    use(world, client, "auth")


@pytest.mark.parametrize("service", ["auth", "storage"])
def test_a_limit_of_the_gateway_opens_at_once(world, wire, session, client, service) -> None:
    """A 429 that no service has signed means all requests; its Retry-After is the open time."""
    wire.will(lambda _: httpx.Response(429, headers={"retry-after": "120"}))
    with pytest.raises(Exception, match=r".*"):
        use(world, client, service)
    assert 1 == wire.count
    assert ("open", 1, 0) == counts(session, service)
    assert stats(session, service).retry_after > 100


@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(401, json={"message": "Invalid API key"}),
        httpx.Response(402, json={"error": "exceed_credits"}),
        httpx.Response(404),
        httpx.Response(429, json={"error": "rate limit of another service"}),
        httpx.Response(500, text="TypeError: x is undefined"),
        httpx.Response(503, headers={"sb-error-code": "EDGE_FUNCTION_ERROR"}),
        httpx.Response(302, headers={"location": "https://elsewhere.test/"}),
        httpx.Response(546, json={"code": "WORKER_LIMIT", "message": "m"}),
    ],
    ids=lambda reply: str(reply.status_code),
)
def test_what_a_function_says_concerns_it_alone(world, wire, time, reply) -> None:
    """Whatever one function answers, the others are called."""
    session = session_of(world, wire, follow_redirects=False)
    wire.will(copy_of(reply))
    assert reply.status_code == send(world, session, "POST", "/functions/v1/one").status_code
    state, against, _ = counts(session, "functions")
    assert ("closed", 0) == (state, against)


@pytest.mark.parametrize("status", [502, 503, 504, 522])
def test_a_gateway_without_functions_counts(world, wire, time, status) -> None:
    """A 5xx that the function has not signed speaks against Edge Functions as a whole."""
    session = session_of(world, wire, retry=None)
    wire.will(status)
    send(world, session, "POST", "/functions/v1/one")
    assert ("closed", 1, 0) == counts(session, "functions")


def test_html_is_strange_from_auth_alone(world, wire, time) -> None:
    """Objects and functions may be HTML; from Auth it means that somebody else answered."""
    session = session_of(world, wire, retry=None)
    for service, path in {"storage": "/object/b/x", "functions": "/f", "auth": "/user"}.items():
        wire.will(httpx.Response(200, html="<h1>x</h1>"))
        send(world, session, "GET", f"/{service}/v1{path}")
    assert [1, 1, 0] == [stats(session, s).successes for s in ("storage", "functions", "auth")]
    assert 1 == stats(session, "auth").failures


def test_not_modified_and_a_wanted_redirect_are_successes(world, wire, session) -> None:
    """A 304, and a redirect that the caller has asked to see, are the answers asked for."""
    wire.will(304, httpx.Response(302, headers={"location": "https://provider.test/"}))
    etag = {"headers": {"if-none-match": '"1"'}}
    assert 304 == send(world, session, "GET", FILE, **etag).status_code
    login = send(world, session, "GET", "/auth/v1/authorize", follow_redirects=False)
    assert 302 == login.status_code
    assert [1, 1] == [stats(session, s).successes for s in ("storage", "auth")]


def test_a_classify_of_the_users_has_the_last_word(world, wire, time) -> None:
    """With a classify of one's own a function's 500 counts, and a 200 may be a failure."""

    def strict(outcome: Any) -> Classification:
        found = classify(outcome)
        if found.verdict == "success" and b"done" in outcome.content:
            return Classification(verdict="failure", reason="not what I want")
        return found

    breakers = {"functions": CircuitBreaker("functions", classify=strict)}
    session = session_of(world, wire, breakers=breakers, retry=None)
    wire.will(500)
    for _ in range(2):
        send(world, session, "POST", "/functions/v1/one")
    assert 2 == stats(session, "functions").failures


def test_the_callers_mistakes_are_nobodys_failure(world, wire, session, client) -> None:
    """A wrong password and a missing object say nothing against the services."""
    wire.will(
        auth_error(400, "invalid_credentials"),
        httpx.Response(400, json={"statusCode": "404", "error": "not_found", "message": "m"}),
    )
    for service, error in (("auth", AuthApiError), ("storage", StorageApiError)):
        with pytest.raises(error):
            use(world, client, service)
        assert ("closed", 0, 1) == counts(session, service)


# --- repeating ----------------------------------------------------------------------------------


def file_of(tmp: Path) -> Path:
    path = tmp / "x.txt"
    path.write_bytes(b"content")
    return path


SESSION = {"refresh_token": "old"}
UPSERT = {"upsert": "true"}
REPEATS: list[tuple[str, Callable[[Any, Path], Any], Any, int]] = [
    ("download", lambda c, _: c.storage.from_("b").download("x"), LOST, 2),
    ("download", lambda c, _: c.storage.from_("b").download("x"), 503, 2),
    ("list", lambda c, _: c.storage.from_("b").list(), LOST, 2),
    ("list_v2", lambda c, _: c.storage.from_("b").list_v2(), 502, 2),
    ("sign", lambda c, _: c.storage.from_("b").create_signed_url("x", 60), LOST, 2),
    ("remove", lambda c, _: c.storage.from_("b").remove(["x"]), LOST, 1),
    ("move", lambda c, _: c.storage.from_("b").move("x", "y"), LOST, 1),
    ("move", lambda c, _: c.storage.from_("b").move("x", "y"), DOWN, 2),
    ("upload", lambda c, _: c.storage.from_("b").upload("x", b"content"), LOST, 1),
    ("upload", lambda c, _: c.storage.from_("b").upload("x", b"content"), DOWN, 2),
    ("upload", lambda c, _: c.storage.from_("b").upload("x", b"content"), 503, 2),
    ("upsert", lambda c, _: c.storage.from_("b").upload("x", b"content", UPSERT), LOST, 2),
    ("update", lambda c, _: c.storage.from_("b").update("x", b"content"), LOST, 1),
    ("update", lambda c, _: c.storage.from_("b").update("x", b"content"), 503, 2),
    ("file", lambda c, tmp: c.storage.from_("b").upload("x", file_of(tmp)), DOWN, 2),
    ("file", lambda c, tmp: c.storage.from_("b").upload("x", file_of(tmp)), 503, 1),
    ("file upsert", lambda c, t: c.storage.from_("b").upload("x", file_of(t), UPSERT), LOST, 1),
    ("sign in", lambda c, _: CALLS["auth"](c), LOST, 1),
    ("sign in", lambda c, _: CALLS["auth"](c), 503, 2),
    ("sign in", lambda c, _: CALLS["auth"](c), DOWN, 2),
    ("refresh", lambda c, _: c.auth.refresh_session("old"), LOST, 1),
    ("refresh", lambda c, _: c.auth.refresh_session("old"), httpx.ReadError("reset"), 1),
    ("refresh", lambda c, _: c.auth.refresh_session("old"), 502, 1),
    ("refresh", lambda c, _: c.auth.refresh_session("old"), DOWN, 2),
    ("get_user", lambda c, _: c.auth.get_user("jwt"), LOST, 2),
    ("invoke", lambda c, _: c.functions.invoke("f"), LOST, 1),
    ("invoke", lambda c, _: c.functions.invoke("f"), 503, 1),
    ("invoke", lambda c, _: c.functions.invoke("f"), 429, 1),
    ("invoke", lambda c, _: c.functions.invoke("f"), DOWN, 2),
    ("invoke get", lambda c, _: c.functions.invoke("f", {"method": "GET"}), LOST, 2),
    ("invoke get", lambda c, _: c.functions.invoke("f", {"method": "GET"}), 503, 2),
]


@pytest.mark.parametrize(
    ("call", "reply", "expected"),
    [row[1:] for row in REPEATS],
    ids=[f"{name}-{reply}" for name, _, reply, _ in REPEATS],
)
def test_what_is_repeated(  # noqa: PLR0917
    world, wire, client, tmp_path, call, reply, expected
) -> None:
    """A request is repeated when it can do no harm, or when the first provably did nothing."""
    wire.will(reply)
    if expected == 1:
        with pytest.raises(Exception, match=r".*"):
            world.run(call(client, tmp_path))
    else:
        world.run(call(client, tmp_path))
    assert expected == wire.count


def test_uploads_are_repeated_whole(world, wire, client, tmp_path) -> None:
    """What is sent the second time is what was to be sent the first time."""
    wire.will(DOWN, 503)
    world.run(client.storage.from_("b").upload("x", b"content"))
    assert wire.bodies[0] == wire.bodies[1]
    assert b"content" in wire.bodies[1]
    wire.will(DOWN)
    world.run(client.storage.from_("b").upload("x", file_of(tmp_path)))
    assert b"content" in wire.bodies[2]


def test_an_iterator_is_sent_once(world, wire, session) -> None:
    """A body that can be had only once is sent again only when none of it was taken."""
    wire.will(503, DOWN)
    for status in (503, 200):
        response = send(world, session, "POST", FILE, content=in_pieces(world, b"con", b"tent"))
        assert status == response.status_code
    assert [b"content", b"content"] == wire.bodies


def test_mailing_a_code_is_not_repeated(world, wire, session) -> None:
    """`reauthenticate` sends a mail, though it is a GET."""
    wire.will(LOST)
    with pytest.raises(httpx.ReadTimeout):
        send(world, session, "GET", "/auth/v1/reauthenticate")
    assert 1 == wire.count


def test_idempotent_allows_repeating(world, wire, client) -> None:
    """Within `idempotent()` a function is called again even after a lost answer."""
    wire.will(LOST, 503)
    with idempotent():
        assert b"done" == world.run(client.functions.invoke("f"))
    assert 3 == wire.count


def test_retry_none_means_one_attempt(world, wire, time) -> None:
    """Without retries nothing is sent twice."""
    client = world.client(session_of(world, wire, retry=None))
    wire.will(DOWN)
    with pytest.raises(httpx.ConnectError):
        use(world, client, "storage")
    assert 1 == wire.count


def test_retry_by_service(world, wire, time) -> None:
    """A RetryConfig for one service leaves the others at their usual."""
    retry = {"functions": RetryConfig(attempts=1)}
    client = world.client(session_of(world, wire, retry=retry))
    wire.will(DOWN)
    with pytest.raises(httpx.ConnectError):
        use(world, client, "functions")
    wire.will(DOWN)
    use(world, client, "storage")
    assert 3 == wire.count


def test_the_last_answer_is_returned(world, wire, session) -> None:
    """When all attempts fail, the caller gets what the last of them answered."""
    wire.will(502, 503, 504)
    assert 504 == send(world, session, "GET", FILE).status_code
    assert (3, 2) == (wire.count, stats(session, "storage").retries)


def test_a_circuit_that_opens_meanwhile_ends_the_retries(world, wire, time) -> None:
    """The last real error is what the caller gets, not a refusal."""
    breaker = CircuitBreaker("storage", failure_threshold=1)
    session = session_of(world, wire, breakers={"storage": breaker})
    wire.will(503)
    assert 503 == send(world, session, "GET", FILE).status_code
    assert 1 == wire.count


def test_a_circuit_opened_during_a_pause_ends_the_retries(world, wire, time, session) -> None:
    """The answer to the last attempt that was made still arrives, readable."""
    time.during_a_nap = session.breakers["storage"].force_open
    wire.will(httpx.Response(503, stream=Pieces(b"busy")))
    assert (503, b"busy") == read_streamed(world, session, FILE)
    assert 1 == wire.count


# --- refreshing a session -----------------------------------------------------------------------


def test_a_refused_refresh_is_a_network_failure_to_auth(world, session, client) -> None:
    """Auth raises its own retryable error for it, which comes from our refusal."""
    session.breakers["auth"].force_open()
    with pytest.raises(AuthRetryableError, match="Circuit breaker is OPEN") as told:
        world.run(client.auth.refresh_session("old"))
    assert isinstance(told.value.__cause__, CircuitOpenError)
    assert classify(told.value).is_outage


def test_a_refused_refresh_signs_nobody_out(world, wire, session) -> None:
    """A client that starts while the circuit is open keeps its stored session."""
    storage = SyncMemoryStorage() if world.colour == "sync" else AsyncMemoryStorage()
    client = world.client(session, storage=storage, auto_refresh_token=True)
    expired = {**TOKEN, "expires_at": 1}
    world.run(storage.set_item(client.auth._storage_key, json.dumps(expired)))
    session.breakers["auth"].force_open()
    world.run(start(client))
    if client.auth._refresh_token_timer:
        client.auth._refresh_token_timer.cancel()
    assert world.run(storage.get_item(client.auth._storage_key)) is not None


def start(client: Any) -> Any:
    """Read the stored session, as an app does that starts."""
    return client.auth.initialize()


# --- time ---------------------------------------------------------------------------------------


def test_timeouts_are_supabases_own(world, wire, session, client) -> None:
    """Each phase has 20 s with Storage and 5 s with Auth and Functions, as without us."""
    for service in ("storage", "auth", "functions"):
        use(world, client, service)
    assert [{20.0}, {5.0}, {5.0}] == [set(each.values()) for each in wire.timeouts]
    assert httpx.Timeout(120.0) == session.timeout


def test_timeouts_can_be_given_by_service(world, wire, time) -> None:
    """A longer timeout of a service makes room in its attempts; a request's own comes first."""
    timeouts = {"functions": 60, "auth": httpx.Timeout(3.0, read=None)}
    session = session_of(world, wire, timeouts=timeouts, timeout=7.0)
    client = world.client(session)
    use(world, client, "functions")
    use(world, client, "auth")
    send(world, session, "GET", FILE, timeout=1.0)
    send(world, session, "GET", FILE, extensions={"timeout": {"read": 2.0}})
    world.run(client.table("t").select("*").execute())
    long = 600.0
    assert [60.0, 60.0, 60.0, 60.0] == list(wire.timeouts[0].values())
    assert {"connect": 3.0, "read": long, "write": 3.0, "pool": 3.0} == wire.timeouts[1]
    assert {1.0} == set(wire.timeouts[2].values())
    assert {"connect": long, "read": 2.0, "write": long, "pool": long} == wire.timeouts[3]
    assert {7.0} == set(wire.timeouts[4].values())


def test_attempts_and_the_whole_are_bounded(world, wire, time) -> None:
    """An attempt gets no more than its own limit, the last one no more than is left."""
    retry = RetryConfig(attempts=3, attempt_timeout=3.0, total_timeout=5.0, wait_initial=0.0)
    session = session_of(world, wire, retry=retry)

    def slow(_: httpx.Request) -> httpx.Response:
        time.advance(3.0)
        return httpx.Response(503)

    wire.will(slow, slow, slow)
    assert 503 == send(world, session, "GET", FILE).status_code
    assert [3.0, 2.0] == [each["read"] for each in wire.timeouts]


def test_a_deadline_holds(world, wire, session, client, time) -> None:
    """Within `deadline()` no phase gets more than what is left, and nothing starts after it."""
    with deadline(1.0):
        use(world, client, "storage")
        time.advance(2.0)
        with pytest.raises(httpx.PoolTimeout):
            use(world, client, "storage")
    assert [1.0] == [each["read"] for each in wire.timeouts]
    assert 0 == stats(session, "storage").failures


def test_a_request_is_left_as_it_was(world, wire, session, time) -> None:
    """The caller's request object comes back with its own timeout and body."""
    request = session.build_request("POST", f"{URL}{FILE}", content=in_pieces(world, b"x"))
    body, timeout = request.stream, request.extensions["timeout"]
    response = world.run(session.send(request))
    time.advance(5000.0)
    assert (body, timeout) == (request.stream, request.extensions["timeout"])
    assert timeout == response.request.extensions["timeout"]


def test_redirects_leave_no_trace_either(world, wire, session, time) -> None:
    """What a redirect has made of the request has its usual timeout again, too."""
    usual = httpx.Timeout(20.0).as_dict()
    wire.will(redirect(302, f"{URL}/elsewhere"), 200, redirect(302, f"{URL}/elsewhere"))
    followed = send(world, session, "GET", FILE)
    seen = send(world, session, "GET", FILE, follow_redirects=False)
    time.advance(5000.0)
    assert usual == followed.request.extensions["timeout"]
    assert usual == seen.next_request.extensions["timeout"]


def test_an_answer_drop_by_drop_is_bounded(wire, time) -> None:
    """Each piece has the time of a phase, all of them together that of the attempt."""
    world = SyncWorld()
    session = session_of(world, wire, retry=RetryConfig(attempts=1, attempt_timeout=3.0))

    def drop() -> bytes:
        time.advance(2.0)
        return b"."

    wire.will(httpx.Response(200, stream=Pieces(*[drop] * 1000)))
    with pytest.raises(httpx.ReadTimeout, match="in full in time"):
        send(world, session, "GET", FILE)
    assert 1 == stats(session, "storage").failures
    world.close()


# --- streams ------------------------------------------------------------------------------------


def read_streamed(world: World, session: Any, path: str, *, upto: int = 99) -> tuple[int, bytes]:
    """Read an answer piece by piece, or only its first pieces."""
    path = path if path.startswith("http") else f"{URL}{path}"

    def read() -> tuple[int, bytes]:
        with session.stream("GET", path) as response:
            return response.status_code, b"".join(islice(response.iter_raw(), upto))

    async def aread() -> tuple[int, bytes]:
        pieces: list[bytes] = []
        async with session.stream("GET", path) as response:
            async for piece in response.aiter_raw():
                pieces.append(piece)
                if len(pieces) == upto:
                    break
            return response.status_code, b"".join(pieces)

    return world.run(read() if world.colour == "sync" else aread())


def test_a_stream_is_not_read_for_the_caller(world, wire, session) -> None:
    """Of a streamed answer only what the caller takes is read; it was judged by its headers."""
    body = Pieces(b"a", b"b", lambda: pytest.fail("nobody asked for it"))
    wire.will(httpx.Response(200, stream=body))
    assert (200, b"ab") == read_streamed(world, session, FILE, upto=2)
    assert body.is_closed
    assert ("closed", 0, 0) == counts(session, "storage")
    assert 1 == stats(session, "storage").successes


def test_a_stream_that_breaks_counts(world, wire, session) -> None:
    """A body that ends early is raised as it came, and is a failure."""
    wire.will(httpx.Response(200, stream=Pieces(b"a", httpx.ReadError("reset"))))
    with pytest.raises(httpx.ReadError, match="reset"):
        read_streamed(world, session, FILE)
    assert ("closed", 1, 0) == counts(session, "storage")


def test_a_refused_stream_is_tried_again(world, wire, session) -> None:
    """Headers that speak of a failure are enough to repeat; what was unread is closed."""
    first = Pieces(b"busy")
    wire.will(httpx.Response(503, stream=first), httpx.Response(200, stream=Pieces(b"a", b"b")))
    assert (200, b"ab") == read_streamed(world, session, FILE)
    assert first.is_closed


def test_a_streamed_body_has_all_the_time_it_needs(world, wire, session, time) -> None:
    """After the headers only the limit of each piece holds, not that of the attempt."""

    def later() -> bytes:
        time.advance(5000.0)
        limits.append(dict(wire.requests[-1].extensions["timeout"]))
        return b"a"

    limits: list[Any] = []
    wire.will(httpx.Response(200, stream=Pieces(later, later)))
    assert (200, b"aa") == read_streamed(world, session, FILE)
    assert {20.0} == set(limits[0].values())


def test_a_streamed_body_is_not_interrupted(async_world, wire) -> None:
    """A task that reads a stream is left in peace when the time of the attempt is over."""

    async def pieces() -> AsyncIterator[bytes]:
        is_late = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, is_late.set)
        await is_late.wait()
        yield b"late"

    class Body(httpx.AsyncByteStream):
        def __aiter__(self) -> AsyncIterator[bytes]:
            return pieces()

    retry = RetryConfig(attempts=1, attempt_timeout=0.02)
    session = session_of(async_world, wire, retry=retry)
    wire.will(httpx.Response(200, stream=Body()))
    assert (200, b"late") == read_streamed(async_world, session, FILE)


def test_a_body_that_breaks_unstreamed_is_repeated(world, wire, session, client) -> None:
    """A download that was cut is a failed attempt like any other."""
    wire.will(httpx.Response(200, stream=Pieces(b"a", httpx.ReadError("reset"))))
    assert b"done" == use(world, client, "storage")
    assert (2, 1) == (wire.count, stats(session, "storage").failures)


# --- redirects ----------------------------------------------------------------------------------


def redirect(status: int, to: str) -> httpx.Response:
    return httpx.Response(status, headers={"location": to})


@pytest.mark.parametrize(
    ("url", "to", "keeps"),
    [
        (URL, f"{URL}/functions/v1/other", True),
        (URL, "https://elsewhere.test/x", False),
        (URL, f"{URL}:8443/x", False),
        ("http://project.supabase.test", f"{URL}/functions/v1/hello", True),
        (URL, "http://project.supabase.test/functions/v1/hello", False),
    ],
)
def test_the_key_does_not_leave_the_origin(  # noqa: PLR0917
    world, wire, session, url, to, keeps
) -> None:
    """A redirect is followed; key and token go along to the same origin, or to its https."""
    client = world.client(session, url=url)
    wire.will(redirect(307, to))
    assert b"done" == world.run(client.functions.invoke("hello"))
    headers = wire.requests[1].headers
    assert keeps == ("apikey" in headers) == ("authorization" in headers)


def test_what_failed_after_a_redirect_is_not_repeated(world, wire, session, client) -> None:
    """A function that redirects has run; that the target is down is no reason to run it again."""
    wire.will(redirect(303, "https://elsewhere.test/receipt"), DOWN)
    with pytest.raises(httpx.ConnectError):
        world.run(client.functions.invoke("pay"))
    assert ["POST", "GET"] == [request.method for request in wire.requests]
    assert ("closed", 0, 1) == counts(session, "functions")
    wire.will(redirect(303, f"{URL}{FILE}"), 503)
    send(world, session, "POST", FILE, content=b"x")
    assert 4 == wire.count
    assert ("closed", 1, 0) == counts(session, "storage")


# --- cancelling ---------------------------------------------------------------------------------


def test_a_canceled_call_says_nothing(async_world, wire) -> None:
    """A canceled call is no failure, also as a probe: the next call is the probe then."""
    time = Time()
    breaker = CircuitBreaker("storage", failure_threshold=1, jitter=0.0, clock=time)
    session = session_of(async_world, wire, breakers={"storage": breaker}, retry=None)

    async def cancel_it() -> None:
        wire.will(HANG)
        task = asyncio.create_task(session.get(f"{URL}{FILE}"))
        before = wire.count
        while wire.count == before:  # noqa: ASYNC110 - it only lets the task run
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async_world.run(cancel_it())
    assert ("closed", 0, 1) == counts(session, "storage")
    wire.will(503)
    send(async_world, session, "GET", FILE)
    time.advance(60.0)
    async_world.run(cancel_it())
    send(async_world, session, "GET", FILE)
    assert "closed" == breaker.get_state()


def test_an_interrupted_call_says_nothing(wire) -> None:
    """Ctrl-C is no failure, also while the answer is read; a probe's permit is given back."""
    time, world = Time(), SyncWorld()
    breaker = CircuitBreaker("storage", failure_threshold=1, jitter=0.0, clock=time)
    session = session_of(world, wire, breakers={"storage": breaker}, retry=None)
    closed: list[bool] = []

    class Interrupted(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"half"
            raise KeyboardInterrupt

        def close(self) -> None:
            closed.append(True)

    def interrupt(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    for reply in (interrupt, httpx.Response(200, stream=Interrupted())):
        wire.will(reply)
        with pytest.raises(KeyboardInterrupt):
            send(world, session, "GET", FILE)
    assert ("closed", 0) == counts(session, "storage")[:2]
    assert closed
    wire.will(503)
    send(world, session, "GET", FILE)
    time.advance(60.0)
    wire.will(interrupt)
    with pytest.raises(KeyboardInterrupt):
        send(world, session, "GET", FILE)
    send(world, session, "GET", FILE)
    assert "closed" == breaker.get_state()
    world.close()


def test_a_hanging_attempt_is_interrupted(async_world, wire) -> None:
    """An async attempt ends at its limit whatever it waits for, and counts as a timeout."""
    retry = RetryConfig(attempts=1, attempt_timeout=0.01)
    session = session_of(async_world, wire, retry=retry)
    wire.will(HANG)
    with pytest.raises(httpx.ReadTimeout):
        send(async_world, session, "GET", FILE)
    assert 1 == stats(session, "storage").failures


# --- made as it should be -----------------------------------------------------------------------


def test_made_as_supabase_makes_its_own(world, monkeypatch) -> None:
    """Redirects are followed, proxies of the environment are kept, HTTP/2 is off."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    session = session_of(world, None)
    assert isinstance(session, world.session_class)
    assert session.follow_redirects
    assert {"https://"} == {pattern.pattern for pattern in session._mounts}
    assert not session._transport._pool._http2


def test_http2_is_for_tasks() -> None:
    """Threads break an HTTP/2 session of httpx, and Auth has a thread; tasks may share one."""
    with pytest.raises(ValueError, match="http2=True is not for a sync client"):
        resilient_http_client(http2=True)
    assert resilient_async_http_client(http2=True)._transport._pool._http2


def test_options_are_httpxs(world, wire) -> None:
    """What httpx takes is handed on; what it does not know is refused by it."""
    session = session_of(world, wire, headers={"x-app": "1"}, follow_redirects=False)
    assert ("1", False) == (session.headers["x-app"], session.follow_redirects)
    with pytest.raises(TypeError, match="tiemout"):
        session_of(world, wire, tiemout=1)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"breakers": {"realtime": CircuitBreaker()}}, ValueError, "breakers names 'realtime'"),
        ({"breakers": {"auth": 5}}, TypeError, r"breakers\['auth'\]"),
        ({"breakers": CircuitBreaker()}, TypeError, "breakers must be a mapping"),
        ({"timeouts": {"rest": 5}}, ValueError, "timeouts names 'rest'"),
        ({"timeouts": {"auth": "5"}}, TypeError, r"timeouts\['auth'\]"),
        ({"timeouts": {"auth": -1}}, ValueError, r"timeouts\['auth'\]"),
        ({"timeouts": {"auth": float("nan")}}, ValueError, r"timeouts\['auth'\]"),
        ({"timeouts": 5}, TypeError, "timeouts must be a mapping"),
        ({"retry": 3}, TypeError, "retry must be a mapping"),
        ({"retry": {"storage": 3}}, TypeError, r"retry\['storage'\]"),
        ({"retry": {"stroage": RetryConfig()}}, ValueError, "storage, auth, functions"),
    ],
)
def test_what_makes_no_sense_is_refused(world, options, kind, words) -> None:
    """A mistake is told at construction, by the argument's name."""
    with pytest.raises(kind, match=words):
        session_of(world, None, **options)


def test_paths_below_a_prefix(world, wire, session) -> None:
    """A self-hosted Supabase may live below a path, and an object may be called anything."""
    wire.will(502)
    send(world, session, "POST", "/supabase/storage/v1/object/b/auth/v1/token")
    assert ("closed", 1, 0) == counts(session, "storage")
    wire.will(502)
    send(world, session, "POST", "/rest/v1/rpc/auth/v1/token")
    send(world, session, "POST", "/elsewhere")
    assert ("closed", 0, 0) == counts(session, "auth")


# --- through the local stack --------------------------------------------------------------------


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalSupabase]:
    with LocalSupabase(schema="create table t (id int primary key);") as running:
        yield running


@pytest.fixture
def local(stack: LocalSupabase) -> Iterator[LocalSupabase]:
    """Give a stack that is well, and leave it so."""
    yield stack
    stack.faults.clear()


def local_client(world: World, local: LocalSupabase, **options: Any) -> tuple[Any, Any]:
    """A guarded HTTP client, and a supabase-py client on it."""
    session = session_of(world, None, **options)
    kind = SyncClientOptions if world.colour == "sync" else AsyncClientOptions
    settings = kind(httpx_client=session, auto_refresh_token=False)
    make = world.client_class.create
    return session, world.run(make(local.url, local.publishable_key, settings))


def sign_up(world: World, client: Any) -> Any:
    """A new user's session."""
    credentials = {"email": f"{uuid.uuid4()}@x.test", "password": "correct horse"}
    return world.run(client.auth.sign_up(credentials)).session


def test_auth_of_the_stack(world, local) -> None:
    """Signing up, asking who one is and refreshing work as ever, and are counted."""
    session, client = local_client(world, local)
    first = sign_up(world, client)
    assert first.user.id == world.run(client.auth.get_user()).user.id
    again = world.run(client.auth.refresh_session()).session
    assert first.refresh_token != again.refresh_token
    assert (3, 0) == (stats(session, "auth").successes, stats(session, "auth").failures)


def test_an_outage_of_auth_leaves_queries_alone(world, local) -> None:
    """Auth is refused while it is down, queries go on, and it comes back by itself."""
    time = FakeClock()
    breaker = CircuitBreaker("auth", failure_threshold=2, clock=time)
    _, client = local_client(world, local, breakers={"auth": breaker}, retry=None)
    client = protect(client)
    token = sign_up(world, client).access_token
    fault = local.faults.add(match="/auth/v1/", times=None, status=503)
    for _ in range(2):
        with pytest.raises(AuthRetryableError):
            world.run(client.auth.get_user(token))
    with pytest.raises(CircuitOpenError, match="'auth'"):
        world.run(client.auth.get_user(token))
    assert 2 == fault.count
    world.run(client.table("t").select("*").execute())
    fault.remove()
    time.advance(60.0)
    world.run(client.auth.get_user(token))
    assert "closed" == breaker.get_state()


@pytest.mark.parametrize("drop", ["before", "after", "body"])
def test_a_lost_refresh_is_not_repeated(world, local, drop) -> None:
    """A refresh token is good for one use, so nobody uses it twice for a lost answer."""
    session, client = local_client(world, local)
    sign_up(world, client)
    fault = local.faults.add(match="grant_type=refresh_token", times=None, drop=drop)
    with pytest.raises(AuthRetryableError):
        world.run(client.auth.refresh_session())
    assert (1, 0) == (fault.count, stats(session, "auth").retries)


@pytest.mark.parametrize(
    "what", [{"drop": "after"}, {"drop": "body"}, {"stall": True}, {"status": 503}], ids=str
)
def test_a_lost_read_is_repeated(world, local, what) -> None:
    """Who the user is can be asked twice: after a lost answer, a silence, a 503."""
    session, client = local_client(world, local, timeouts={"auth": httpx.Timeout(30.0, read=1.0)})
    mine = sign_up(world, client)
    fault = local.faults.add(match="/auth/v1/user", **what)
    assert mine.user.id == world.run(client.auth.get_user()).user.id
    now = stats(session, "auth")
    assert (1, 1, 1, 2) == (fault.count, now.failures, now.retries, now.successes)


def test_files_over_a_socket(world, local, tmp_path) -> None:
    """Up and down through real connections; a refused upload of bytes is repeated whole."""
    session, client = local_client(world, local)
    files = client.storage.from_("b")
    local.faults.add(match="/storage/v1/object/b/x", method="POST", status=503)
    local.faults.add(match="/storage/v1/object/b/x", status=200, body={"Key": "b/x", "Id": "1"})
    assert "x" == world.run(files.upload("x", b"content" * 50_000)).path
    local.faults.add(match="/storage/v1/object/b/x", status=200, body={"Key": "b/x", "Id": "1"})
    assert "x" == world.run(files.upload("x", file_of(tmp_path))).path
    local.faults.add(match="/storage/v1/object/b/x", status=200, body="content")
    assert b"content" == world.run(files.download("x"))
    assert 3 == stats(session, "storage").successes


def test_a_stream_over_a_socket(world, local) -> None:
    """A streamed answer arrives in full; one whose connection breaks midway counts."""
    session, client = local_client(world, local)
    token = sign_up(world, client).access_token
    session.headers.update({"apikey": local.publishable_key, "authorization": f"Bearer {token}"})
    path = f"{local.url}/auth/v1/user"
    status, body = read_streamed(world, session, path)
    assert (200, True) == (status, b"@x.test" in body)
    before = stats(session, "auth")
    local.faults.add(match="/auth/v1/user", drop="body")
    with pytest.raises(httpx.RemoteProtocolError):
        read_streamed(world, session, path)
    now = stats(session, "auth")
    assert (1, 1) == (now.successes - before.successes, now.failures - before.failures)


def test_a_refused_connection(world, local) -> None:
    """Nobody listens: even a function is tried again, and the circuit opens."""
    session, _ = local_client(world, local, retry=RetryConfig(wait_initial=0.0))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        for _ in range(2):
            with pytest.raises(httpx.ConnectError):
                world.run(session.post(f"{url}/functions/v1/f"))
        with pytest.raises(CircuitOpenError):
            world.run(session.post(f"{url}/functions/v1/f"))
    assert (5, 3) == (stats(session, "functions").failures, stats(session, "functions").retries)
