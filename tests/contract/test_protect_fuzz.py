"""A guard never hides or changes a result or an exception, whatever comes: by Hypothesis.

`test_protect.py` compares one answer, repeated for ever, for every builder. Here are answers that
change from try to try, bytes that are hardly HTTP, and users' own functions (`classify`, `key`,
hooks) that answer nonsense or fail; and below `protect()`, the breaker around any function at all.
"""

import asyncio
import re
import xmlrpc.client
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any, get_args

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supabase_resilience import (
    CircuitBreaker,
    CircuitBreakers,
    CircuitOpenError,
    Classification,
    FailureRate,
    RetryConfig,
    protect,
)
from supabase_resilience.failures import Applied, Scope, Verdict

from .conftest import Time
from .test_protect import BUILDERS, DOWN, READ, REPLIES, WRITE, close, outcome, reply_with
from .worlds import Server, World, error

fuzzed = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
Make = Callable[[], httpx.Response | Exception]
NAMES = sorted(BUILDERS)


class Script:
    """Answers from a list, its last entry for ever; and knows which came last."""

    def __init__(self, replies: list[Make]) -> None:
        self._replies = replies
        self.count = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.count += 1
        return reply_with(self.last())

    @property
    def last(self) -> Make:
        return self._replies[min(self.count, len(self._replies)) - 1]


def bare_outcome(world: World, reply: Make, name: str) -> tuple[Any, ...]:
    """What a client without protection gives for one answer."""
    session = world.session(lambda request: reply_with(reply()))
    client = world.client(session, postgrest_client_retry=False)
    return outcome(world, BUILDERS[name](client))


# --- answers ------------------------------------------------------------------------------------

BREAKERS: dict[str, Callable[..., CircuitBreaker | CircuitBreakers]] = {
    "patient": partial(CircuitBreaker, failure_threshold=100, retry_budget=None),
    "strict": partial(CircuitBreaker, failure_threshold=1),
    "rate": partial(CircuitBreaker, trip=FailureRate(minimum_calls=2, slow_after=1e-9)),
    "of calls": partial(CircuitBreaker, trip=FailureRate(calls=3, minimum_calls=2)),
    "set": partial(CircuitBreakers, failure_threshold=2),
    "strict set": partial(CircuitBreakers, failure_threshold=1, limit=1),
}


@fuzzed
@given(
    replies=st.lists(REPLIES, min_size=1, max_size=4),
    name=st.sampled_from(NAMES),
    kind=st.sampled_from(sorted(BREAKERS)),
)
def test_last_answer_counts(world: World, time: Time, replies, name: str, kind: str) -> None:
    """However many tries, in whatever order of answers: the outcome is that of the last one."""
    script = Script(replies)
    breaker = BREAKERS[kind](on_event=id, clock=time)
    client = world.client(world.session(script), postgrest_client_retry=False)
    protected = protect(client, breaker=breaker, retry=RetryConfig(attempts=3, wait_initial=0.0))
    found = outcome(world, BUILDERS[name](protected))
    assert 1 <= script.count <= 3
    assert bare_outcome(world, script.last, name) == found


@fuzzed
@given(
    replies=st.lists(REPLIES, min_size=1, max_size=4),
    name=st.sampled_from(NAMES),
    kind=st.sampled_from(sorted(BREAKERS)),
)
def test_calls_one_after_the_other(world: World, time: Time, replies, name: str, kind: str) -> None:
    """Each call gives its own answer's outcome, or is refused without a request."""
    script = Script(replies)
    breaker = BREAKERS[kind](on_event=id, clock=time)
    client = world.client(world.session(script), postgrest_client_retry=False)
    build = partial(BUILDERS[name], protect(client, breaker=breaker, retry=None))
    for _ in range(4):
        before = script.count
        found = outcome(world, build())
        if found[0] is CircuitOpenError:
            assert before == script.count
            time.advance(7.0)
        else:
            assert before + 1 == script.count
            assert bare_outcome(world, script.last, name) == found


# --- bytes --------------------------------------------------------------------------------------


class Wire(ThreadingTCPServer):
    """Sends back the same bytes to every request, and hangs up."""

    daemon_threads = True
    answer = b""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hand)


class Hand(StreamRequestHandler):
    server: Wire

    def handle(self) -> None:
        with suppress(OSError):
            head = b""
            while (line := self.rfile.readline()) not in {b"\r\n", b""}:
                head += line
            length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            self.rfile.read(int(length[1]) if length else 0)
            self.wfile.write(self.server.answer)


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    """Give a server that says anything."""
    with Wire() as server:
        thread = Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


NAMES_OF_HEADERS = st.sampled_from(
    [
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"transfer-encoding",
        b"retry-after",
        b"proxy-status",
        b"date",
        b"content-range",
        b"location",
        b"set-cookie",
    ]
) | st.binary(min_size=1, max_size=6)
VALUES_OF_HEADERS = st.binary(max_size=20) | st.sampled_from(
    [
        b"application/json",
        b"text/html; charset=klingon",
        b"chunked",
        b"gzip",
        b"0",
        b"3",
        b"99999999999999999999",
        b"-1",
        b"Thu, 99 Foo 2026 99:99:99 GMT",
        b"PostgREST; error=57014",
        b"\xff\xfe",
    ]
)
HEADS = st.builds(
    lambda status, headers: (
        b"HTTP/1.1 %d Reason\r\n" % status
        + b"".join(b"%s: %s\r\n" % header for header in headers)
        + b"\r\n"
    ),
    st.integers(100, 999),
    st.lists(st.tuples(NAMES_OF_HEADERS, VALUES_OF_HEADERS), max_size=4),
)
BODIES = st.binary(max_size=30) | st.sampled_from(
    [b"[]", b'[{"id": 1}]', b"{}", b"null", b"2\r\n[]\r\n0\r\n\r\n", b"<html>", b"[" * 2000]
)
ANSWERS = st.builds(lambda head, body: head + body, HEADS, BODIES) | st.binary(max_size=40)


@pytest.fixture
def clients(world: World, wire: Wire) -> Iterator[list[Any]]:
    """Give a client without and one with protection, which keep no connection for another call."""
    session = world.session_class(timeout=5.0, limits=httpx.Limits(max_keepalive_connections=0))
    url = f"http://127.0.0.1:{wire.server_address[1]}"
    bare = world.client(session, url=url, postgrest_client_retry=False)
    yield [bare, protect(bare, breaker=CircuitBreakers(on_event=id), retry=None)]
    close(world, session)


@fuzzed
@given(answer=ANSWERS, build=st.sampled_from([READ, WRITE]))
def test_any_bytes(world: World, wire: Wire, *, clients: list[Any], answer: bytes, build) -> None:
    """Whatever bytes come back over a real connection, the outcome is the bare client's."""
    wire.answer = answer
    bare, protected = clients
    expected = outcome(world, build(bare))
    bare.postgrest.session.cookies.clear()  # else the first answer's reach the second call
    protected.breaker.reset()
    assert expected == outcome(world, build(protected))
    bare.postgrest.session.cookies.clear()


# --- functions of the user's --------------------------------------------------------------------

FACTS = st.builds(
    dict,
    verdict=st.sampled_from(get_args(Verdict)),
    reason=st.sampled_from(["", "unique violation", "any"]),
    is_outage=st.booleans(),
    write_applied=st.sampled_from(get_args(Applied)),
    retryable=st.booleans(),
    retry_once=st.booleans(),
    retry_after=st.sampled_from([None, 0.0, 1.0, 1e9, -1.0, float("inf"), float("nan")]),
    scope=st.sampled_from(get_args(Scope)),
    answered=st.booleans(),
    connection_lost=st.booleans(),
)


@fuzzed
@given(
    facts=FACTS,
    reply=REPLIES,
    name=st.sampled_from(NAMES),
    kind=st.sampled_from(sorted(BREAKERS)),
)
def test_any_classification(
    world: World, time: Time, *, facts, reply: Make, name: str, kind: str
) -> None:
    """Whatever a user's `classify` says, the outcome stays what it was."""
    script = Script([reply])
    breaker = BREAKERS[kind](on_event=id, clock=time, classify=lambda _: Classification(**facts))
    client = world.client(world.session(script), postgrest_client_retry=False)
    protected = protect(client, breaker=breaker, retry=RetryConfig(wait_initial=0.0))
    assert bare_outcome(world, reply, name) == outcome(world, BUILDERS[name](protected))


def broken(*_: object) -> Any:
    raise ZeroDivisionError


KEYS: dict[str, Callable[[Any], Any]] = {"raises": broken, "unhashable": lambda target: [target]}
SLOW_QUERY = error(500, "57014")


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("build", [READ, WRITE], ids=["read", "write"])
def test_broken_key(world: World, server: Server, bare, *, time, key, build) -> None:
    """A `key` that fails changes no outcome, and keeps no permit of the project's."""
    breakers = CircuitBreakers(key, failure_threshold=1, jitter=0.0, clock=time, on_event=id)
    protected = protect(bare, breaker=breakers, retry=None)
    server.will(SLOW_QUERY)
    expected = bare_outcome(world, lambda: SLOW_QUERY(httpx.Request("GET", "/")), "select")
    assert expected == outcome(world, build(protected))
    time.advance(30.0)  # the table's own circuit may have opened
    server.will(DOWN)
    assert httpx.ConnectError is outcome(world, build(protected))[0]
    assert CircuitOpenError is outcome(world, build(protected))[0]
    time.advance(30.0)
    assert [{"id": 1}] == world.run(build(protected).execute()).data
    assert "closed" == breakers.get_state()


def test_key_that_breaks_later(world: World, server: Server, bare, time: Time) -> None:
    """A `key` that fails once a table has its own circuit hides no answer and wedges no probe."""
    keys = ["t"]
    breakers = CircuitBreakers(
        lambda _: keys.pop(), failure_threshold=1, jitter=0.0, clock=time, on_event=id
    )
    protected = protect(bare, breaker=breakers, retry=None)
    server.will(SLOW_QUERY)
    outcome(world, READ(protected))
    assert 1 == len(breakers)
    breakers.project.settle(breakers.project.acquire(), Classification(verdict="failure"))
    time.advance(30.0)
    assert [{"id": 1}] == world.run(READ(protected).execute()).data
    assert "closed" == breakers.get_state()


@pytest.mark.parametrize("name", ["on_event", "on_open", "on_half_open", "on_close"])
@pytest.mark.parametrize("reply", [DOWN, SLOW_QUERY, error(429), error(503)])
def test_broken_functions(world: World, server: Server, bare, *, time, name: str, reply) -> None:
    """A hook that fails changes no outcome, in an outage and after it."""
    breakers = CircuitBreakers(failure_threshold=1, jitter=0.0, clock=time, **{name: broken})
    protected = protect(bare, breaker=breakers, retry=None)
    server.will(reply)
    first = outcome(world, READ(protected))
    time.advance(30.0)
    assert [{"id": 1}] == world.run(READ(protected).execute()).data
    server.will(reply)
    assert first == outcome(world, READ(protected))


# --- any function -------------------------------------------------------------------------------


class Proxy:
    """Has every attribute, as proxies of remote objects do."""

    def __getattr__(self, name: str) -> Any:
        return name


class Unbound:
    """Has no attribute yet, and says so in its own way, as context-local proxies do."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("used outside of its context")


class Ambiguous:
    """Is neither true nor false nor equal to anything, as arrays are."""

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")

    __eq__ = __lt__ = __len__ = broken  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


async def coroutine() -> None:
    pass


RESULTS: dict[str, Any] = {
    "None": None,
    "False": False,
    "an exception": DOWN,
    "a class": Proxy,
    "a class of awaitables": asyncio.Future,
    "a coroutine function": coroutine,
    "a proxy": Proxy(),
    "a remote object": xmlrpc.client.ServerProxy("http://127.0.0.1:9"),
    "an unbound proxy": Unbound(),
    "something ambiguous": Ambiguous(),
    "a refusal": CircuitOpenError("x", 1.0),
    "a classification": Classification(verdict="failure"),
}


def throw(error: Exception) -> Any:
    raise error


WAYS: dict[str, Callable[[CircuitBreaker, Callable[..., Any]], Any]] = {
    "execute": lambda breaker, fn: breaker.execute(fn),
    "nested": lambda breaker, fn: breaker.execute(breaker.execute, fn),
    "fallback": lambda breaker, fn: breaker.execute(fn, fallback=throw),
    "decorator": lambda breaker, fn: breaker(fn)(),
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
each_state = pytest.mark.parametrize("state", ["closed", "half_open", "disabled"])


@pytest.fixture
def any_breaker(state: str) -> CircuitBreaker:
    """Give a breaker whose next call is an ordinary one, a probe, or one that is not judged."""
    breaker = CircuitBreaker(failure_threshold=1, reset_timeout=1e-9, jitter=0.0, on_event=id)
    if state == "disabled":
        breaker.disable()
    elif state == "half_open":
        breaker.settle(breaker.acquire(), Classification(verdict="failure"))
    return breaker


@each_way
@each_state
@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
def test_any_result(any_breaker: CircuitBreaker, way, result: Any) -> None:
    """What a function returned comes back as the very object, whatever it is."""
    assert way(any_breaker, lambda: result) is result
    assert 1 == any_breaker.get_stats().successes


@each_way
@each_state
@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
def test_any_awaited_result(any_breaker: CircuitBreaker, way, result: Any) -> None:
    """The same holds for what a coroutine returned."""

    async def fn() -> Any:
        return result

    async def call() -> Any:
        return [await way(any_breaker, fn)]

    [found] = asyncio.run(call())
    assert found is result


class SilentError(Exception):
    """Cannot be printed, compared or hashed."""

    __str__ = __repr__ = __eq__ = broken  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


def linked(error: BaseException) -> BaseException:
    """An exception as it looks after a life: with a cause, a context and notes."""
    error.__cause__, error.__context__ = KeyError("cause"), IndexError("context")
    error.add_note("a note")
    return error


ERRORS: dict[str, Callable[[], BaseException]] = {
    "transport": lambda: httpx.ReadError("lost"),
    "programming": lambda: TypeError("ours"),
    "silent": SilentError,
    "group": lambda: ExceptionGroup("two", [OSError(), httpx.ReadError("lost")]),
    "interrupt": KeyboardInterrupt,
    "exit": lambda: SystemExit(3),
    "refusal of another": lambda: CircuitOpenError("other", None),
    "end of an iteration": lambda: LookupError(StopIteration()),
    "recursion": RecursionError,
    "memory": MemoryError,
}


@each_way
@each_state
@pytest.mark.parametrize("make", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_any_exception(any_breaker: CircuitBreaker, *, way, make, colour: str) -> None:
    """What a function raised comes out as the very object, its cause, context and notes kept."""
    error = linked(make())
    cause, context = error.__cause__, error.__context__

    def fn() -> None:
        raise error

    async def afn() -> None:
        raise error

    async def call() -> None:
        await way(any_breaker, afn)

    caught: list[BaseException] = []
    try:
        way(any_breaker, fn) if colour == "sync" else drive(call())
    except BaseException as raised:  # noqa: BLE001 - any is asked for
        caught.append(raised)
    assert caught[0] is error
    assert cause is error.__cause__
    assert context is error.__context__
    assert ["a note"] == error.__notes__


def drive(coroutine: Any) -> None:
    """Run a coroutine that waits for nothing, without a loop that would catch interrupts."""
    with suppress(StopIteration):
        coroutine.send(None)
