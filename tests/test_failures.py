"""The failure table: what each answer and each exception means, as a caller of supabase-py sees it.

The table stands here as data. An answer is sent through a real query builder over a fake transport,
so that both forms of it are judged: the response, and the `APIError` that supabase-py makes of it.
"""

import asyncio
import gzip
import json
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import anyio
import h2.exceptions
import httpx
import pytest
import websockets.exceptions
from hypothesis import given, settings
from hypothesis import strategies as st
from postgrest import APIError, SyncPostgrestClient
from realtime import AuthorizationError, NotConnectedError, RealtimeHTTPError
from storage3.exceptions import StorageApiError
from supabase import (
    AuthApiError,
    AuthRetryableError,
    AuthSessionMissingError,
    AuthUnknownError,
    Client,
    ClientOptions,
    FunctionsHttpError,
    FunctionsRelayError,
    create_client,
)
from websockets.datastructures import Headers as WebsocketHeaders
from websockets.http11 import Response as WebsocketResponse

from supabase_resilience import CircuitOpenError, Classification, _clock, classify

URL = "http://localhost"
ROW_DATA = "Key (email)=(someone@example.org) already exists"


class Meaning(NamedTuple):
    """The columns of the table; see `Classification` for each."""

    verdict: str
    is_outage: bool = False
    write_applied: str = "no"
    retryable: bool = False
    retry_once: bool = False
    scope: str = "project"


CALLER = Meaning("neutral")
CONTENTION = Meaning("neutral", retryable=True)
NOT_IN_CACHE = Meaning("neutral", retryable=True, retry_once=True)
OUTAGE = Meaning("failure", is_outage=True, retryable=True)
AMBIGUOUS = OUTAGE._replace(write_applied="maybe")
ONCE = OUTAGE._replace(retry_once=True)
AMBIGUOUS_ONCE = AMBIGUOUS._replace(retry_once=True)
FINAL = OUTAGE._replace(retryable=False)
READ_ONLY = FINAL._replace(scope="query")
STILL_RUNNING = AMBIGUOUS._replace(retryable=False)
SLOW_QUERY = Meaning("failure", retryable=True, retry_once=True, scope="query")
FOREIGN_DATA = Meaning("failure", scope="query")
THROTTLED = Meaning("throttled", is_outage=True, retryable=True)
# A limit of Auth for one endpoint, address or user: nobody else's, and no use in trying again.
OWN_LIMIT = Meaning("throttled", is_outage=True, scope="query")
BLOCKED = Meaning("blocked", is_outage=True)
UNKNOWN = Meaning("failure", write_applied="maybe")
CANCELED = Meaning("neutral", write_applied="maybe")
CORRUPTED = Meaning("neutral", write_applied="maybe", retryable=True)


def meaning_of(found: Classification) -> Meaning:
    return Meaning(*(getattr(found, field) for field in Meaning._fields))


# --- codes of PostgREST and of PostgreSQL --------------------------------------------------------

# code, the HTTP status that PostgREST gives it, what it means
CODES: tuple[tuple[str, int, Meaning], ...] = (
    ("PGRST000", 503, OUTAGE),
    ("PGRST001", 503, AMBIGUOUS),
    ("PGRST002", 503, OUTAGE),
    ("PGRST003", 504, OUTAGE),
    ("PGRSTX00", 500, AMBIGUOUS_ONCE),
    ("PGRST100", 400, CALLER),
    ("PGRST101", 405, CALLER),
    ("PGRST103", 416, CALLER),
    ("PGRST105", 405, CALLER),
    ("PGRST106", 406, CALLER),
    ("PGRST111", 500, CALLER),
    ("PGRST112", 500, CALLER),
    ("PGRST116", 406, CALLER),
    ("PGRST117", 405, CALLER),
    ("PGRST121", 500, CALLER),
    ("PGRST124", 400, CALLER),
    ("PGRST128", 400, CALLER),
    ("PGRST200", 400, NOT_IN_CACHE),
    ("PGRST201", 300, NOT_IN_CACHE),
    ("PGRST202", 404, NOT_IN_CACHE),
    ("PGRST203", 300, NOT_IN_CACHE),
    ("PGRST204", 400, NOT_IN_CACHE),
    ("PGRST205", 404, NOT_IN_CACHE),
    ("PGRST300", 500, BLOCKED),
    ("PGRST301", 401, CALLER),
    ("PGRST302", 401, CALLER),
    ("PGRST303", 401, CALLER),
    ("57014", 500, SLOW_QUERY),
    ("53300", 503, OUTAGE),
    ("53200", 503, OUTAGE),
    ("53100", 503, FINAL),
    ("53400", 500, FINAL),
    ("40001", 500, CONTENTION),
    ("40P01", 500, CONTENTION),
    ("55P03", 500, CONTENTION),
    ("55006", 500, CONTENTION),
    ("57P01", 503, OUTAGE),
    ("57P02", 500, OUTAGE),
    ("57P03", 500, OUTAGE),
    ("57P05", 500, OUTAGE),
    ("08000", 503, AMBIGUOUS),
    ("08001", 503, AMBIGUOUS),
    ("08003", 503, AMBIGUOUS),
    ("08004", 503, AMBIGUOUS),
    ("08006", 503, AMBIGUOUS),
    ("08P01", 503, AMBIGUOUS),
    ("08007", 503, AMBIGUOUS),
    ("23505", 409, CALLER),
    ("23503", 409, CALLER),
    ("23502", 400, CALLER),
    ("23514", 400, CALLER),
    ("22P02", 400, CALLER),
    ("22023", 401, CALLER),
    ("42703", 400, CALLER),
    ("42P01", 404, CALLER),
    ("42883", 404, CALLER),
    ("428C9", 400, CALLER),
    ("42501", 403, CALLER),
    ("28000", 403, CALLER),
    ("28P01", 403, CALLER),
    ("0L000", 403, CALLER),
    ("0P000", 403, CALLER),
    ("P0001", 400, CALLER),
    ("P0002", 500, CALLER),
    ("P0003", 500, CALLER),
    ("P0004", 500, CALLER),
    ("PT402", 402, CALLER),
    ("PT409", 409, CALLER),
    ("PT429", 429, CALLER),
    ("PT503", 503, CALLER),
    ("42P17", 500, CALLER),
    ("21000", 500, CALLER),
    ("54001", 500, CALLER),
    ("2D000", 500, CALLER),
    ("38000", 500, CALLER),
    ("39000", 500, CALLER),
    ("3B000", 500, CALLER),
    ("F0000", 500, CALLER),
    ("09000", 500, CALLER),
    ("HV000", 500, FOREIGN_DATA),
    ("HV00N", 500, FOREIGN_DATA),
    ("XX000", 500, ONCE),
    ("XX001", 500, ONCE),
    ("58030", 500, ONCE),
    ("58P01", 500, ONCE),
)

# --- answers without such a code -----------------------------------------------------------------


class Answer(NamedTuple):
    """An answer of something in front of PostgREST, and what it means."""

    id: str
    status: int
    body: str | dict[str, Any]
    meaning: Meaning
    as_error: Meaning | None = None  # where the exception tells less than the response

    @property
    def content(self) -> bytes:
        text = self.body if isinstance(self.body, str) else json.dumps(self.body)
        return text.encode()


PAGE = "<html><body>Something went wrong</body></html>"
GARBLED_UPSTREAM = {"message": "An invalid response was received from the upstream server"}

ANSWERS = (
    Answer("wrong-key", 401, {"message": "Invalid API key", "hint": "Double check"}, BLOCKED),
    Answer("no-key", 401, {"message": "No API key found in request"}, BLOCKED),
    Answer("no-route", 404, {"message": "no Route matched with those values"}, BLOCKED),
    Answer("quota", 402, {"message": "exceed_egress_quota"}, BLOCKED),
    Answer("overdue", 402, {"error": "x", "message": "overdue_payment"}, BLOCKED),
    Answer("restricted-page", 402, PAGE, BLOCKED),
    Answer("paused-page", 540, PAGE, BLOCKED),
    Answer("paused-json", 540, {"message": "Project is paused"}, BLOCKED),
    Answer("redirect", 302, "", BLOCKED),
    Answer("moved", 301, PAGE, BLOCKED),
    Answer("rate-limit-text", 429, "slow down", THROTTLED),
    Answer("rate-limit-json", 429, {"message": "API rate limit exceeded"}, THROTTLED),
    Answer("500-page", 500, PAGE, AMBIGUOUS_ONCE),
    Answer("502-page", 502, PAGE, AMBIGUOUS),
    Answer("502-json", 502, GARBLED_UPSTREAM, AMBIGUOUS),
    Answer("503-page", 503, PAGE, OUTAGE),
    Answer("503-name", 503, {"message": "name resolution failed"}, OUTAGE),
    Answer("503-peer", 503, {"message": "failure to get a peer from the ring-balancer"}, OUTAGE),
    Answer("504-json", 504, {"message": "The upstream server is timing out"}, AMBIGUOUS),
    Answer("504-numeric-code", 504, {"code": 504, "message": "x"}, AMBIGUOUS),
    Answer("504-array", 504, "[]", AMBIGUOUS),
    Answer("520-page", 520, PAGE, AMBIGUOUS),
    Answer("521-page", 521, PAGE, OUTAGE),
    Answer("522-page", 522, PAGE, AMBIGUOUS),
    Answer("523-page", 523, PAGE, OUTAGE),
    Answer("524-page", 524, PAGE, STILL_RUNNING),
    Answer("525-page", 525, PAGE, OUTAGE),
    Answer("526-page", 526, PAGE, OUTAGE),
    Answer("530-page", 530, PAGE, OUTAGE),
    Answer("544-text", 544, "timed out", AMBIGUOUS),
    Answer("599-text", 599, "", AMBIGUOUS),
    Answer("400-text", 400, "no", CALLER),
    Answer("418-empty", 418, "", CALLER),
    # A function of the user raised with SQLSTATE 'PGRST' and a code of its own making.
    Answer(
        "own-code",
        503,
        {"code": "out_of_stock", "message": ROW_DATA, "details": None, "hint": "restock"},
        CALLER,
    ),
    # supabase-py drops the status, and fills in the keys that PostgREST would have sent.
    Answer(
        "own-code-alone",
        503,
        {"code": "out_of_stock", "message": ROW_DATA, "details": None, "hint": None},
        CALLER,
        as_error=AMBIGUOUS,
    ),
    Answer("unknown-401", 401, {"message": "who are you"}, CALLER, as_error=AMBIGUOUS),
    Answer("unknown-503", 503, {"message": "tired"}, OUTAGE, as_error=AMBIGUOUS),
    Answer("unknown-429", 429, {"message": "tired"}, THROTTLED, as_error=AMBIGUOUS),
    Answer("no-message", 540, {"error": "tired"}, BLOCKED, as_error=AMBIGUOUS),
)


def ask(
    status: int,
    content: bytes = b"",
    headers: dict[str, str] | None = None,
    *,
    method: str = "GET",
    filters: int = 0,
) -> tuple[httpx.Response, Any]:
    """Send a query that gets this answer; returns the response and what `execute()` made of it."""
    seen: list[httpx.Response] = []
    reply = httpx.Response(status, headers=headers, content=content)
    session = httpx.Client(
        transport=httpx.MockTransport(lambda _: reply), event_hooks={"response": [seen.append]}
    )
    table = SyncPostgrestClient(URL, http_client=session, retry_enabled=False).from_("orders")
    if method == "POST":
        query = table.insert({"id": 1})
    else:
        query = table.select("*", head=method == "HEAD").in_("id", ["1" * 100] * filters)
    try:
        made: Any = query.execute()
    except APIError as error:
        made = error
    return seen[0], made


def proxy_status(code: str) -> dict[str, str]:
    return {"Proxy-Status": f"PostgREST; error={code}", "Content-Type": "application/json"}


def body_of(code: str) -> bytes:
    said = {"code": code, "message": ROW_DATA, "details": ROW_DATA, "hint": None}
    return json.dumps(said).encode()


SENT: dict[str, Callable[[str, int], tuple[httpx.Response, Any]]] = {
    "write": lambda code, status: ask(status, body_of(code), proxy_status(code), method="POST"),
    "read": lambda code, status: ask(status, body_of(code), proxy_status(code)),
    "without-header": lambda code, status: ask(status, body_of(code)),
    "head": lambda code, status: ask(status, b"", proxy_status(code), method="HEAD"),
}
ids_of_codes = [row[0] for row in CODES]
ids_of_answers = [row.id for row in ANSWERS]


@pytest.mark.parametrize("way", SENT)
@pytest.mark.parametrize(("code", "status", "meaning"), CODES, ids=ids_of_codes)
def test_code_in_response(code: str, status: int, meaning: Meaning, way: str) -> None:
    """A code means the same in the body, in `Proxy-Status` or in both, whatever its status."""
    response, _ = SENT[way](code, status)
    assert meaning == meaning_of(classify(response))


@pytest.mark.parametrize("way", SENT)
@pytest.mark.parametrize(("code", "status", "meaning"), CODES, ids=ids_of_codes)
def test_code_in_api_error(code: str, status: int, meaning: Meaning, way: str) -> None:
    """The `APIError` of a code means what its response means."""
    _, error = SENT[way](code, status)
    assert isinstance(error, APIError)
    assert meaning == meaning_of(classify(error))


@pytest.mark.parametrize(("code", "status", "meaning"), CODES, ids=ids_of_codes)
def test_code_of_a_living_service(code: str, status: int, meaning: Meaning) -> None:
    """A code that doesn't speak against the project shows that it is alive: a probe may close."""
    is_alive = meaning.verdict == "neutral" or meaning.scope == "query"
    for outcome in SENT["write"](code, status):
        assert is_alive == classify(outcome).answered


@pytest.mark.parametrize(("code", "status", "meaning"), CODES, ids=ids_of_codes)
def test_no_row_data_in_reasons(code: str, status: int, meaning: Meaning) -> None:
    """Nothing of messages or details, which quote rows, gets into a classification."""
    for outcome in SENT["read"](code, status):
        assert "someone" not in repr(classify(outcome))


@pytest.mark.parametrize("answer", ANSWERS, ids=ids_of_answers)
def test_answer_as_response(answer: Answer) -> None:
    """An answer of a gateway goes by what it says, then by its status."""
    response, _ = ask(answer.status, answer.content)
    assert answer.meaning == meaning_of(classify(response))


@pytest.mark.parametrize("answer", ANSWERS, ids=ids_of_answers)
def test_answer_as_api_error(answer: Answer) -> None:
    """The exception means the same, or, where it lost the status, the careful guess."""
    _, error = ask(answer.status, answer.content)
    assert isinstance(error, APIError)
    assert (answer.as_error or answer.meaning) == meaning_of(classify(error))


def test_two_rows_where_one_was_asked_for() -> None:
    """The error that supabase-py makes itself, of a successful answer, is the caller's."""
    reply = httpx.Response(200, json=[{"id": 1}, {"id": 2}])
    session = httpx.Client(transport=httpx.MockTransport(lambda _: reply))
    query = SyncPostgrestClient(URL, http_client=session).from_("orders").select("*").maybe_single()
    with pytest.raises(APIError) as caught:
        query.execute()
    assert CALLER == meaning_of(classify(caught.value))


# --- answers that depend on more than themselves -------------------------------------------------


@pytest.mark.parametrize(
    ("method", "meaning"), [("GET", CALLER), ("HEAD", CALLER), ("POST", READ_ONLY)]
)
def test_read_only_database(method: str, meaning: Meaning) -> None:
    """25006 is the server's on a write; on a read it is a function that should not write."""
    content = b"" if method == "HEAD" else body_of("25006")
    response, _ = ask(405, content, proxy_status("25006"), method=method)
    assert meaning == meaning_of(classify(response))


def test_read_only_database_as_api_error() -> None:
    """An `APIError` does not know its method, so 25006 is taken for a read-only database."""
    assert READ_ONLY == meaning_of(classify(ask(405, body_of("25006"), method="POST")[1]))


def test_long_url_is_the_callers() -> None:
    """520 for a URL beyond 16 KB is the caller's mistake, for a short one the origin's."""
    assert CALLER == meaning_of(classify(ask(520, PAGE.encode(), filters=200)[0]))
    assert AMBIGUOUS == meaning_of(classify(ask(520, PAGE.encode(), filters=1)[0]))


@pytest.mark.parametrize("status", [200, 201, 204, 206])
@pytest.mark.parametrize("content", [b"", b"[]", b'{"id": 1}', b"7", b'"text"', b"a,b\n1,2"])
def test_success(status: int, content: bytes) -> None:
    """Any 2xx is a success, whatever format was asked for; a write has been applied."""
    found = classify(httpx.Response(status, content=content))
    assert Meaning("success", write_applied="yes") == meaning_of(found)
    assert found.answered


@pytest.mark.parametrize("kind", ["text/html", "text/html; charset=utf-8", "Text/HTML"])
def test_html_page_instead_of_an_answer(kind: str) -> None:
    """200 with an HTML page is an outage that supabase-py takes for a success."""
    response, made = ask(200, PAGE.encode(), {"Content-Type": kind})
    assert made.data == PAGE
    assert AMBIGUOUS == meaning_of(classify(response))


@pytest.mark.parametrize("header", ["Content-Range", "Content-Profile"])
def test_html_of_a_function(header: str) -> None:
    """HTML that PostgREST itself serves, from a function of the user, is a success."""
    response, _ = ask(200, PAGE.encode(), {"Content-Type": "text/html", header: "*/*"})
    assert classify(response).verdict == "success"


@pytest.mark.parametrize(
    ("header", "meaning"),
    [
        ("PostgREST; error=57014", SLOW_QUERY),
        ('postgrest;error="57014"', SLOW_QUERY),
        ("Cloudflare; error=dns_timeout, PostgREST; error=57014", SLOW_QUERY),
        ("PostgREST; fwd=miss; error=57014", SLOW_QUERY),
        ("Cloudflare; error=57014", AMBIGUOUS_ONCE),
        ("PostgREST, Cloudflare; error=57014", AMBIGUOUS_ONCE),
        ("", AMBIGUOUS_ONCE),
    ],
)
def test_proxy_status(header: str, meaning: Meaning) -> None:
    """Only PostgREST's own member of `Proxy-Status` names the code."""
    response, _ = ask(500, b"", {"Proxy-Status": header}, method="HEAD")
    assert meaning == meaning_of(classify(response))


def test_response_that_nobody_has_read() -> None:
    """A response is judged by its status as long as its body is unread."""
    response = httpx.Response(503, stream=httpx.ByteStream(body_of("40001")))
    assert OUTAGE == meaning_of(classify(response))


# --- Retry-After ---------------------------------------------------------------------------------

NOW = "Fri, 01 Jan 2027 00:00:00 GMT"
IN_A_MINUTE = "Fri, 01 Jan 2027 00:01:00 GMT"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "  7 "}, 7.0),
        ({"Retry-After": "-7"}, None),
        ({"Retry-After": "7.5"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "9" * 400}, None),
        ({"Retry-After": "Fri, 99 Jan 2027 00:00:00 GMT"}, None),
        ({"Retry-After": IN_A_MINUTE, "Date": NOW}, 60.0),
        ({"Retry-After": NOW, "Date": IN_A_MINUTE}, 0.0),
        ({"Retry-After": "Friday, 01-Jan-27 00:01:00 GMT", "Date": NOW}, 60.0),
        ({"Retry-After": "Fri Jan  1 00:01:00 2027", "Date": NOW}, 60.0),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    """`Retry-After` is read in all forms that HTTP allows; nonsense counts as absent."""
    assert expected == classify(ask(503, b"", headers)[0]).retry_after


@pytest.mark.parametrize("date", [{}, {"Date": "yesterday"}])
def test_retry_after_without_a_date(date: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a readable `Date` the local clock says how far off a `Retry-After` date is."""
    monkeypatch.setattr(_clock, "wall", lambda: 1_798_761_630.0)  # half a minute after NOW
    found = classify(ask(503, b"", {"Retry-After": IN_A_MINUTE, **date})[0])
    assert found.retry_after == 30.0


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="this system cannot change its time zone")
def test_retry_after_without_a_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP dates are UTC: an old-style date, which names no zone, isn't read as local time."""
    headers = {"Retry-After": "Fri Jan  1 00:01:00 2027", "Date": NOW}
    monkeypatch.setenv("TZ", "EST5")
    time.tzset()
    try:
        assert classify(ask(503, b"", headers)[0]).retry_after == 60.0
    finally:
        monkeypatch.undo()
        time.tzset()


def test_retry_after_of_any_refusal() -> None:
    """Whoever sends `Retry-After` is heard, whatever the answer means otherwise."""
    for status in (402, 429, 500, 503, 540):
        assert classify(ask(status, b"", {"Retry-After": "7"})[0]).retry_after == 7.0


def test_api_error_knows_no_retry_after() -> None:
    """`APIError` has no headers, so what the server asked for is known of responses alone."""
    assert classify(ask(503, b"", {"Retry-After": "7"})[1]).retry_after is None


# --- transport and other exceptions --------------------------------------------------------------

EXCEPTIONS: tuple[tuple[BaseException, Meaning], ...] = (
    (httpx.ConnectError("x"), OUTAGE),
    (httpx.ConnectTimeout("x"), OUTAGE),
    (httpx.ProxyError("x"), OUTAGE),
    (httpx.PoolTimeout("x"), Meaning("neutral", is_outage=True, retryable=True)),
    (httpx.WriteError("x"), AMBIGUOUS),
    (httpx.WriteTimeout("x"), AMBIGUOUS),
    (httpx.ReadError("x"), AMBIGUOUS),
    (httpx.ReadTimeout("x"), AMBIGUOUS),
    (httpx.CloseError("x"), AMBIGUOUS),
    (httpx.RemoteProtocolError("Server disconnected"), AMBIGUOUS),
    (httpx.RemoteProtocolError("<ConnectionTerminated error_code:0>"), AMBIGUOUS),
    (httpx.LocalProtocolError("x"), CORRUPTED),
    (httpx.UnsupportedProtocol("x"), CALLER),
    (httpx.InvalidURL("x"), CALLER),
    (httpx.DecodingError("x"), OUTAGE._replace(write_applied="yes")),
    (httpx.TooManyRedirects("x"), BLOCKED),
    (httpx.NetworkError("x"), AMBIGUOUS),
    (httpx.StreamConsumed(), CALLER),
    (h2.exceptions.ProtocolError("x"), CORRUPTED),
    (h2.exceptions.StreamClosedError(3), CORRUPTED),
    (anyio.ClosedResourceError(), CORRUPTED),
    (anyio.BrokenResourceError(), CORRUPTED),
    (RuntimeError("dictionary keys changed during iteration"), CORRUPTED),
    (RuntimeError("dictionary changed size during iteration"), CORRUPTED),
    (RuntimeError("Cannot send a request, as the client has been closed."), CALLER),
    (RuntimeError("something of the app's"), UNKNOWN),
    (socket.gaierror(-2, "x"), OUTAGE),
    (ConnectionResetError("x"), AMBIGUOUS),
    (TimeoutError("x"), AMBIGUOUS),
    (websockets.exceptions.ConnectionClosedError(None, None), AMBIGUOUS),
    (OSError("disk on fire"), UNKNOWN),
    (Exception("x"), UNKNOWN),
    (TypeError("x"), CALLER),
    (ValueError("x"), CALLER),
    (KeyError("x"), CALLER),
    (IndexError("x"), CALLER),
    (AttributeError("x"), CALLER),
    (NameError("x"), CALLER),
    (AssertionError("x"), CALLER),
    (ImportError("x"), CALLER),
    (NotImplementedError("x"), CALLER),
    (CircuitOpenError("db", 5.0), Meaning("neutral", is_outage=True)),
    (asyncio.CancelledError(), CANCELED),
    (KeyboardInterrupt(), CANCELED),
    (SystemExit(1), CANCELED),
    (GeneratorExit(), CANCELED),
)


@pytest.mark.parametrize(
    ("error", "meaning"),
    EXCEPTIONS,
    ids=[f"{type(row[0]).__name__}-{row[0]}" for row in EXCEPTIONS],
)
def test_exception(error: BaseException, meaning: Meaning) -> None:
    """Each exception has its row; what nobody knows is a failure, but no outage."""
    assert meaning == meaning_of(classify(error))


# Base classes, one that is not of a request, and one that is judged by its response.
NO_ROW = {httpx.HTTPError, httpx.RequestError, httpx.CookieConflict, httpx.HTTPStatusError}


def exceptions_of_httpx() -> list[type[Exception]]:
    exported = (getattr(httpx, name) for name in httpx.__all__)
    found = [each for each in exported if isinstance(each, type) and issubclass(each, Exception)]
    return [each for each in found if each not in NO_ROW]


@pytest.mark.parametrize("kind", exceptions_of_httpx())
def test_every_exception_of_httpx_is_known(kind: type[Exception]) -> None:
    """No exception that httpx raises on a request falls through to the unknown ones."""
    assert classify(kind.__new__(kind)).reason != "unknown exception"


def test_lost_connections_are_marked() -> None:
    """What breaks together, an established connection, is told apart from what never was one."""
    lost = {type(error) for error, _ in EXCEPTIONS if classify(error).connection_lost}
    assert lost == {
        httpx.WriteError,
        httpx.ReadError,
        httpx.CloseError,
        httpx.RemoteProtocolError,
        websockets.exceptions.ConnectionClosedError,
        ConnectionResetError,
    }


def test_silence_is_no_sign_of_life() -> None:
    """What happened on our side, or by a refusal of ours, doesn't say that the service is alive."""
    ours = [AuthSessionMissingError(), AuthorizationError("x"), NotConnectedError("push")]
    silent = [*ours, *(error for error, _ in EXCEPTIONS)]
    assert [error for error in silent if classify(error).answered] == []


def test_refusals_of_a_gateway_show_that_it_is_alive() -> None:
    """A plain 4xx comes from something that works; a rate limit or an outage doesn't count so."""
    assert classify(ask(400, b"no")[0]).answered
    assert classify(ask(423, b"no")[0]).answered
    assert not classify(ask(429, b"no")[0]).answered
    assert not classify(ask(503, b"no")[0]).answered


def test_open_circuit_says_when() -> None:
    """A refusal of a breaker carries on how long to wait."""
    assert classify(CircuitOpenError("db", 5.0)).retry_after == 5.0


def test_unreadable_body_was_applied() -> None:
    """An answer whose body cannot be decoded came after the commit."""
    with pytest.raises(httpx.DecodingError) as caught:
        ask_garbled()
    assert classify(caught.value).write_applied == "yes"


def ask_garbled() -> None:
    cut = gzip.compress(b"[]")[:-9] + b"garbage"
    stream = httpx.ByteStream(cut)
    reply = httpx.Response(201, headers={"Content-Encoding": "gzip"}, stream=stream)
    session = httpx.Client(transport=httpx.MockTransport(lambda _: reply))
    SyncPostgrestClient(URL, http_client=session).from_("orders").insert({"id": 1}).execute()


def test_no_server_at_all() -> None:
    """A refused connection, as it really arrives, is an outage and was not applied."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(httpx.ConnectError) as caught:
        SyncPostgrestClient(f"http://127.0.0.1:{port}", http_client=httpx.Client()).from_(
            "orders"
        ).insert({"id": 1}).execute()
    assert OUTAGE == meaning_of(classify(caught.value))


def test_unreadable_json_is_a_failure_but_no_outage() -> None:
    """A body that is no JSON counts; since it may be the app's own text, a job isn't postponed."""
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("<html>")
    assert UNKNOWN._replace(retryable=True) == meaning_of(classify(caught.value))


# --- groups --------------------------------------------------------------------------------------

LOST = httpx.ReadError("x")
MISTAKE = KeyError("x")


@pytest.mark.parametrize(
    ("errors", "meaning"),
    [
        ([MISTAKE], CALLER),
        ([MISTAKE, LOST], AMBIGUOUS._replace(retryable=False)),
        ([httpx.ConnectError("x"), LOST], AMBIGUOUS),
        ([httpx.PoolTimeout("x"), MISTAKE], Meaning("neutral", is_outage=True)),
        ([Exception("x"), httpx.ConnectError("x")], FINAL._replace(write_applied="maybe")),
        ([APIError({"code": "57014"}), httpx.ConnectError("x")], ONCE),
        ([APIError({"code": "429"}), httpx.ConnectError("x")], OUTAGE),
        ([APIError({"code": "540"}), httpx.ConnectError("x")], FINAL._replace(verdict="blocked")),
        ([ExceptionGroup("inner", [LOST]), MISTAKE], AMBIGUOUS._replace(retryable=False)),
    ],
)
def test_group_is_as_bad_as_its_worst(errors: list[Exception], meaning: Meaning) -> None:
    """A group says the worst that any of its errors says, in whatever order they came."""
    assert meaning == meaning_of(classify(ExceptionGroup("x", errors)))
    assert meaning == meaning_of(classify(ExceptionGroup("x", errors[::-1])))


def test_group_of_cancellations() -> None:
    """A canceled group says nothing; an error beside the cancellation does."""
    canceled = asyncio.CancelledError()
    assert CANCELED == meaning_of(classify(BaseExceptionGroup("x", [canceled])))
    assert "failure" == classify(BaseExceptionGroup("x", [canceled, LOST])).verdict


def test_group_waits_for_the_longest() -> None:
    """Of several refusals the longest wait counts."""
    refusals = [CircuitOpenError("a", 2.0), CircuitOpenError("b", 9.0), CircuitOpenError("c", None)]
    assert classify(ExceptionGroup("x", refusals)).retry_after == 9.0


# --- Storage, Auth, Functions, Realtime ----------------------------------------------------------

Call = Callable[[Client], object]


def client_that_gets(reply: httpx.Response | Exception) -> Client:
    def handle(request: httpx.Request) -> httpx.Response:
        if isinstance(reply, Exception):
            raise reply
        return reply

    session = httpx.Client(transport=httpx.MockTransport(handle))
    return create_client(URL, "key", ClientOptions(httpx_client=session))


def error_of(call: Call, reply: httpx.Response | Exception) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever the service raises
        call(client_that_gets(reply))
    return caught.value


def download(client: Client) -> object:
    return client.storage.from_("files").download("a.txt")


def sign_in(client: Client) -> object:
    return client.auth.sign_in_with_password({"email": "a@example.org", "password": "x"})


def invoke(client: Client) -> object:
    return client.functions.invoke("hello")


def storage_error(http: int, status: str, code: str) -> httpx.Response:
    return httpx.Response(http, json={"statusCode": status, "error": code, "message": ROW_DATA})


def auth_error(status: int, code: str) -> httpx.Response:
    return httpx.Response(status, json={"code": status, "error_code": code, "msg": ROW_DATA})


def function_error(status: int, code: str) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "message": ROW_DATA})


RELAY = {"x-relay-error": "true"}
QUERY = AMBIGUOUS._replace(scope="query")

SERVICES: dict[str, tuple[Call, httpx.Response, Meaning]] = {
    "storage-no-key": (download, storage_error(400, "404", "NoSuchKey"), CALLER),
    "storage-denied": (download, storage_error(400, "403", "Unauthorized"), CALLER),
    "storage-duplicate": (download, storage_error(400, "409", "Duplicate"), CALLER),
    "storage-too-large": (download, storage_error(413, "413", "EntityTooLarge"), CALLER),
    "storage-slow-down": (download, storage_error(503, "503", "SlowDown"), THROTTLED),
    "storage-429": (download, httpx.Response(429, text="slow down"), THROTTLED),
    "storage-locked": (download, storage_error(423, "423", "ResourceLocked"), CONTENTION),
    "storage-lock-timeout": (download, storage_error(423, "423", "LockTimeout"), CONTENTION),
    "storage-423": (download, httpx.Response(423), CONTENTION),
    "storage-db-timeout": (download, storage_error(544, "544", "DatabaseTimeout"), AMBIGUOUS),
    "storage-db": (download, storage_error(500, "500", "DatabaseError"), AMBIGUOUS),
    "storage-internal": (download, storage_error(500, "500", "InternalError"), AMBIGUOUS),
    "storage-502-page": (download, httpx.Response(502, html=PAGE), AMBIGUOUS),
    "storage-403-page": (download, httpx.Response(403, html=PAGE), CALLER),
    "storage-paused": (download, httpx.Response(540, html=PAGE), BLOCKED),
    "auth-400": (sign_in, auth_error(400, "invalid_credentials"), CALLER),
    "auth-422": (sign_in, auth_error(422, "validation_failed"), CALLER),
    "auth-429": (sign_in, auth_error(429, "over_request_rate_limit"), OWN_LIMIT),
    "auth-email": (sign_in, auth_error(429, "over_email_send_rate_limit"), OWN_LIMIT),
    "auth-sms": (sign_in, auth_error(429, "over_sms_send_rate_limit"), OWN_LIMIT),
    "auth-500": (sign_in, auth_error(500, "unexpected_failure"), AMBIGUOUS_ONCE),
    "auth-502": (sign_in, httpx.Response(502, html=PAGE), AMBIGUOUS),
    "auth-530": (sign_in, httpx.Response(530, html=PAGE), AMBIGUOUS),
    "auth-540-page": (sign_in, httpx.Response(540, html=PAGE), BLOCKED),
    "auth-544": (sign_in, httpx.Response(544, json={"message": "x"}), AMBIGUOUS),
    "function-500": (invoke, httpx.Response(500, text="boom"), AMBIGUOUS_ONCE),
    "function-502": (invoke, httpx.Response(502, text="boom"), AMBIGUOUS),
    "function-boot": (invoke, function_error(503, "BOOT_ERROR"), BLOCKED._replace(scope="query")),
    "function-limit": (invoke, function_error(546, "WORKER_LIMIT"), QUERY),
    "function-546": (invoke, httpx.Response(546, text="boom"), QUERY),
    "function-idle": (invoke, function_error(504, "IDLE_TIMEOUT"), QUERY),
    "function-429": (invoke, function_error(429, "RATE_LIMIT_EXCEEDED"), THROTTLED),
    "function-404": (invoke, httpx.Response(404, json={"error": "no such function"}), CALLER),
    "relay-200": (invoke, httpx.Response(200, headers=RELAY, text="x"), QUERY),
    "relay-400": (invoke, httpx.Response(400, headers=RELAY, text="x"), QUERY),
    "relay-503": (invoke, httpx.Response(503, headers=RELAY, text="x"), OUTAGE),
}


@pytest.mark.parametrize("name", SERVICES)
def test_error_of_another_service(name: str) -> None:
    """An error that Storage, Auth or Functions raise is judged by the response behind it."""
    call, reply, meaning = SERVICES[name]
    assert meaning == meaning_of(classify(error_of(call, reply)))


@pytest.mark.parametrize("name", [n for n in SERVICES if not n.startswith(("relay", "auth-5"))])
def test_answer_of_another_service(name: str) -> None:
    """A response of Storage, Auth or Functions means what its exception means."""
    _, reply, meaning = SERVICES[name]
    assert meaning._replace(retry_once=False) == meaning_of(classify(reply))._replace(
        retry_once=False
    )


@pytest.mark.parametrize("call", [download, sign_in, invoke])
def test_lost_connection_of_another_service(call: Call) -> None:
    """A broken connection is an outage through every service; Auth wraps it, the others don't."""
    assert AMBIGUOUS == meaning_of(classify(error_of(call, httpx.ReadError("x"))))


@pytest.mark.parametrize("call", [download, sign_in, invoke])
def test_other_services_retry_after(call: Call) -> None:
    """What a service asks for in `Retry-After` is found behind its exception."""
    reply = httpx.Response(429, headers={"Retry-After": "7"}, json={"message": "x"})
    assert classify(error_of(call, reply)).retry_after == 7.0


SERVICE_CODES: dict[str, Meaning] = {
    "SlowDown": THROTTLED,
    "ResourceLocked": CONTENTION,
    "LockTimeout": CONTENTION,
    "DatabaseTimeout": AMBIGUOUS,
    "DatabaseError": AMBIGUOUS,
    "InternalError": AMBIGUOUS,
    "over_request_rate_limit": OWN_LIMIT,
    "over_email_send_rate_limit": OWN_LIMIT,
    "over_sms_send_rate_limit": OWN_LIMIT,
    "unexpected_failure": AMBIGUOUS_ONCE,
    "BOOT_ERROR": BLOCKED._replace(scope="query"),
    "WORKER_LIMIT": QUERY,
    "IDLE_TIMEOUT": QUERY,
    "RATE_LIMIT_EXCEEDED": THROTTLED,
}


@pytest.mark.parametrize("key", ["code", "error_code"])
@pytest.mark.parametrize("code", SERVICE_CODES)
def test_code_of_another_service(code: str, key: str) -> None:
    """The code decides: Storage sends 400 for nearly everything."""
    response = httpx.Response(400, json={key: code, "message": ROW_DATA})
    assert SERVICE_CODES[code] == meaning_of(classify(response))


BARE: tuple[tuple[Exception, Meaning], ...] = (
    (StorageApiError("x", "SlowDown", "503"), THROTTLED),
    (StorageApiError("x", "InternalError", 500), AMBIGUOUS),
    (StorageApiError("x", "NoSuchKey", "404"), CALLER),
    (StorageApiError("x", "", "?"), AMBIGUOUS),
    (AuthApiError("x", 429, "over_request_rate_limit"), OWN_LIMIT),
    (AuthApiError("x", 400, None), CALLER),
    (AuthApiError("x", 540, None), BLOCKED),
    (AuthUnknownError("x", ValueError()), AMBIGUOUS),
    (AuthRetryableError("x", 0), AMBIGUOUS),
    (AuthSessionMissingError(), CALLER),
    (FunctionsHttpError("x", 546), QUERY),
    (FunctionsHttpError("x"), CALLER),
    (FunctionsRelayError("x"), QUERY),
)


@pytest.mark.parametrize(("error", "meaning"), BARE, ids=[repr(row[0]) for row in BARE])
def test_error_of_another_service_alone(error: Exception, meaning: Meaning) -> None:
    """Without the response behind it (it came from another process) an error says enough."""
    assert meaning == meaning_of(classify(error))


def handshake(status: int) -> websockets.exceptions.InvalidStatus:
    return websockets.exceptions.InvalidStatus(
        WebsocketResponse(status, "reason", WebsocketHeaders())
    )


REALTIME: tuple[tuple[Exception, Meaning], ...] = (
    (handshake(401), BLOCKED),
    (handshake(403), BLOCKED),
    (handshake(404), BLOCKED),
    (handshake(429), THROTTLED),
    (handshake(500), AMBIGUOUS_ONCE),
    (handshake(503), OUTAGE),
    (RealtimeHTTPError("x", 429), THROTTLED),
    (RealtimeHTTPError("x", 503), OUTAGE),
    (RealtimeHTTPError("x", 422), CALLER),
    (RealtimeHTTPError("Request timeout"), AMBIGUOUS),
    (AuthorizationError("x"), CALLER),
    (NotConnectedError("push"), CALLER),
)


@pytest.mark.parametrize(("error", "meaning"), REALTIME, ids=[repr(row[0]) for row in REALTIME])
def test_error_of_realtime(error: Exception, meaning: Meaning) -> None:
    """Realtime refuses a websocket by status, and a broadcast over HTTP likewise."""
    assert meaning == meaning_of(classify(error))


def test_http_status_error() -> None:
    """The error of httpx for a status is judged by its response."""
    response = httpx.Response(429, request=httpx.Request("GET", URL), headers={"Retry-After": "7"})
    with pytest.raises(httpx.HTTPStatusError) as caught:
        response.raise_for_status()
    assert THROTTLED == meaning_of(classify(caught.value))
    assert classify(caught.value).retry_after == 7.0


# --- never raises --------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
codes = st.sampled_from([row[0] for row in CODES]) | st.text() | json_values
keys = ["code", "error_code", "message", "msg", "error", "statusCode", "details", "hint"]
bodies = st.dictionaries(st.sampled_from(keys), codes).map(lambda body: json.dumps(body).encode())
header_names = ["retry-after", "date", "proxy-status", "content-type", "content-range"]
header_values = st.binary(max_size=60) | st.sampled_from(
    [NOW.encode(), b"7", b"text/html", b"PostgREST; error=", b'PostgREST; error="57014"']
)


@settings(deadline=None)
@given(
    status=st.integers(100, 999),
    headers=st.lists(st.tuples(st.sampled_from([n.encode() for n in header_names]), header_values)),
    content=st.binary() | bodies,
    method=st.sampled_from([None, "GET", "HEAD", "POST"]),
)
def test_never_raises_on_a_response(
    status: int, headers: list[tuple[bytes, bytes]], content: bytes, method: str | None
) -> None:
    """Any response at all gets a verdict, and only 2xx ever means success."""
    request = httpx.Request(method, URL) if method else None
    found = classify(httpx.Response(status, headers=headers, content=content, request=request))
    assert found.verdict in {"success", "failure", "neutral", "throttled", "blocked"}
    assert found.verdict != "success" or 200 <= status < 300
    assert found.write_applied != "yes" or 200 <= status < 300
    assert found.retry_after is None or found.retry_after >= 0


@settings(deadline=None)
@given(fields=st.dictionaries(st.sampled_from(keys), codes))
def test_never_raises_on_an_api_error(fields: dict[str, Any]) -> None:
    """Any `APIError` at all gets a verdict, and none ever means success."""
    assert classify(APIError(fields)).verdict in {"failure", "neutral", "throttled", "blocked"}


class UnspeakableError(RuntimeError):
    def __str__(self) -> str:
        raise NotImplementedError


@pytest.mark.parametrize("arguments", [(), (7.5,), (b"x",), (object(), "x")])
def test_error_that_cannot_be_printed(arguments: tuple[object, ...]) -> None:
    """An exception whose text cannot be had is an unknown one."""
    assert UNKNOWN == meaning_of(classify(UnspeakableError(*arguments)))


@pytest.mark.parametrize("depth", [50, 200, 500, 900, 5_000, 100_000])
def test_deeply_nested_body(depth: int) -> None:
    """A body made to exhaust the stack is judged by its status."""
    content = b'{"message": ' + b"[" * depth + b"]" * depth + b"}"
    assert OUTAGE == meaning_of(classify(httpx.Response(503, content=content)))


@pytest.mark.parametrize(
    "code",
    [10**4_000, -1, 1e400, object(), ["57014"], {"code": "57014"}],
    ids=["huge", "negative", "infinite", "object", "list", "dict"],
)
def test_code_of_a_strange_type(code: object) -> None:
    """An `APIError` made by hand may hold anything for a code; it's no code then."""
    assert AMBIGUOUS == meaning_of(classify(APIError({"code": code, "message": code})))
