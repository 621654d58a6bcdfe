"""The one failure table: what an error or a response says about the service.

A status of 500 or more is the wrong test. A deadlock, a deep recursion in a user's SQL and a
`statement_timeout` all come as 500 from a healthy server, while a wrong key, a paused project or
an HTML page of a proxy come as 4xx and 200. So the table goes by what PostgREST, the gateway or
httpx really said, and nothing else in the package looks at codes.

Where a row comes from: the status map of PostgREST (docs.postgrest.org, "Errors"), PostgreSQL's
appendix of error codes, and Supabase's own pages on HTTP status codes of the platform.
"""

import asyncio
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple

import httpx
from postgrest.exceptions import APIError
from storage3.exceptions import StorageApiError
from supabase import AuthApiError, AuthError, AuthRetryableError, AuthUnknownError, FunctionsError
from websockets.exceptions import ConnectionClosed, InvalidStatus

from supabase_resilience import _clock
from supabase_resilience.errors import CircuitOpenError

__all__ = ["Applied", "Classification", "Scope", "Verdict", "classify"]

Verdict = Literal["success", "failure", "neutral", "throttled", "blocked"]
Applied = Literal["no", "maybe", "yes"]
Scope = Literal["project", "query"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """What an outcome means: for the breaker, for a retry, for the app.

    - `verdict`: `success`, `failure` (speaks against the service), `neutral` (the caller's own
      mistake, or nobody's), `throttled` (429: wait, do not blame) or `blocked` (key, billing,
      paused project: a person has to act).
    - `is_outage`: the one question an app asks: is Supabase not serving right now, whatever I ask?
    - `write_applied`: had a write taken effect? Only `no` makes repeating any write safe.
    - `retryable`: another try of a request that may be repeated can succeed; `retry_once` says
      that a second one cannot.
    - `retry_after`: seconds that the server asked for, or None.
    - `scope`: `query` when only this table or function is affected (a `statement_timeout`).
    - `answered`: PostgREST or Postgres itself spoke, so the service is alive.
    - `connection_lost`: an established connection broke; many calls can share one such event.
    - `reason`: a few words for people, free of row data.
    """

    verdict: Verdict
    reason: str = ""
    is_outage: bool = False
    write_applied: Applied = "no"
    retryable: bool = False
    retry_once: bool = False
    retry_after: float | None = None
    scope: Scope = "project"
    answered: bool = False
    connection_lost: bool = False


def classify(outcome: BaseException | httpx.Response) -> Classification:
    """Say what an exception or a response means, and never raise.

    Accepts whatever supabase-py, httpx or your own code raised, and responses whose body was read.
    A response tells more than the exception made from it: `postgrest.APIError` keeps neither the
    status nor the headers. An exception that is not known counts as a failure; Python's own
    programming errors (TypeError, KeyError, …) and ValueError do not.
    """
    if isinstance(outcome, httpx.Response):
        # Empty or JSON: told by the first byte, as looking into headers costs ten times that.
        if 200 <= outcome.status_code < 300 and _content_of(outcome)[:1] in b"[{":
            return _SUCCESS
        return _of_response(outcome)
    if isinstance(outcome, APIError):
        return _of_error(_Spoken(_text(outcome.code), _text(outcome.message), None))
    return _of_exception(outcome)


# --- rows ---------------------------------------------------------------------------------------


def _failure(reason: str, applied: Applied = "no", **facts: Any) -> Classification:
    facts = {"is_outage": True, "retryable": True, **facts}
    return Classification(verdict="failure", reason=reason, write_applied=applied, **facts)


def _neutral(reason: str, **facts: Any) -> Classification:
    facts = {"answered": True, **facts}
    return Classification(verdict="neutral", reason=reason, **facts)


def _blocked(reason: str) -> Classification:
    return Classification(verdict="blocked", reason=reason, is_outage=True)


def _throttled(reason: str) -> Classification:
    return Classification(verdict="throttled", reason=reason, is_outage=True, retryable=True)


_SUCCESS = Classification(verdict="success", reason="ok", write_applied="yes", answered=True)
_CALLER = _neutral("the request was refused")
_HTML = _failure("an HTML page instead of an answer: something in between replied", "maybe")

# PostgREST's own codes. The rest of PGRST1xx, 2xx and 3xx is the caller's.
_POSTGREST: Mapping[str, Classification] = {
    "PGRST000": _failure("PostgREST cannot connect to the database"),
    # The connection broke inside the transaction; a COMMIT may have been on its way.
    "PGRST001": _failure("PostgREST lost the database connection", "maybe"),
    "PGRST002": _failure("PostgREST has no schema cache yet"),
    "PGRST003": _failure("PostgREST's connection pool is exhausted"),
    "PGRSTX00": _failure("internal error of PostgREST", "maybe", retry_once=True),
    "PGRST300": _blocked("the server has no JWT secret"),
}
# Right after a migration the schema cache is stale for a moment, so one more try is fair.
_NOT_IN_CACHE = _neutral("not in PostgREST's schema cache", retryable=True, retry_once=True)

# SQLSTATEs by code, then by class. A SQLSTATE in the answer means that the transaction was
# aborted: a write was not applied. Exceptions are 08007 and the lost connections of class 08.
_SQLSTATE: Mapping[str, Classification] = {
    "57014": _failure(
        "canceled by statement_timeout",
        scope="query",
        is_outage=False,
        retry_once=True,
        answered=True,
    ),
    "53100": _failure("disk full", retryable=False),
    "53400": _failure("configuration limit exceeded", retryable=False),
    "57P01": _failure("the database is shutting down"),
    "57P02": _failure("the database crashed"),
    "57P03": _failure("the database is starting up"),
    "57P05": _failure("idle session timeout"),
    "08007": _failure("unknown whether the transaction was committed", "maybe"),
    # Hosted projects turn read-only when the disk is nearly full; reads go on working.
    "25006": _failure("the database is read-only", scope="query", retryable=False, answered=True),
    "40001": _neutral("serialization failure", retryable=True),
    "40P01": _neutral("deadlock", retryable=True),
    "55P03": _neutral("lock not available", retryable=True),
    "55006": _neutral("object in use", retryable=True),
}
_SQLSTATE_CLASS: Mapping[str, Classification] = {
    "08": _failure("database connection exception", "maybe"),
    "53": _failure("the database is out of resources"),
    "58": _failure("system error of the database", retry_once=True),
    "XX": _failure("internal error of the database", retry_once=True),
    "HV": _failure(
        "foreign data wrapper", scope="query", is_outage=False, retryable=False, answered=True
    ),
}
_SQL_OF_THE_CALLER = _neutral("refused by the database")

# Codes of Storage, Auth and Edge Functions.
_SERVICE: Mapping[str, Classification] = {
    "SlowDown": _throttled("Storage asks to slow down"),
    "ResourceLocked": _neutral("resource locked", retryable=True),
    "LockTimeout": _neutral("lock timeout", retryable=True),
    "DatabaseTimeout": _failure("Storage's database timed out", "maybe"),
    "DatabaseError": _failure("Storage's database failed", "maybe"),
    "InternalError": _failure("internal error of Storage", "maybe"),
    "over_request_rate_limit": _throttled("Auth's rate limit"),
    "over_email_send_rate_limit": _throttled("Auth's e-mail rate limit"),
    "over_sms_send_rate_limit": _throttled("Auth's SMS rate limit"),
    "unexpected_failure": _failure("Auth failed", "maybe", retry_once=True),
    "BOOT_ERROR": _blocked("the Edge Function does not start"),
    "WORKER_LIMIT": _failure("the Edge Function ran out of resources", "maybe", scope="query"),
    "IDLE_TIMEOUT": _failure("the Edge Function timed out", "maybe", scope="query"),
    "RATE_LIMIT_EXCEEDED": _throttled("rate limit of Edge Functions"),
}

# HTTP statuses of an answer that carries no code of the above: gateways and Cloudflare.
_STATUS: Mapping[int, Classification] = {
    402: _blocked("the project is restricted (402)"),
    423: _neutral("locked", retryable=True),
    429: _throttled("rate limit (429)"),
    500: _failure("500 without a code", "maybe", retry_once=True),
    502: _failure("bad gateway (502)", "maybe"),
    503: _failure("unavailable (503)"),
    504: _failure("gateway timeout (504)", "maybe"),
    520: _failure("the origin answered garbage (520)", "maybe"),
    521: _failure("the origin refuses connections (521)"),
    522: _failure("no connection to the origin in time (522)", "maybe"),
    523: _failure("the origin is unreachable (523)"),
    # Cloudflare gave up after about 100 s; the statement is still running.
    524: _failure("the origin has not answered for 100 s (524)", "maybe", retryable=False),
    525: _failure("TLS handshake with the origin failed (525)"),
    526: _failure("the origin's certificate is invalid (526)"),
    530: _failure("the origin's name does not resolve (530)"),
    540: _blocked("the project is paused (540)"),
    544: _failure("the service timed out (544)", "maybe"),
    546: _failure("the Edge Function ran out of resources (546)", "maybe", scope="query"),
}
_REDIRECT = _blocked("a redirect that leads nowhere: wrong URL or a captive portal")
_UNKNOWN_GATEWAY = _failure("an error without a code", "maybe")

# What gateways say in an error without a code; `APIError` keeps no status to go by.
_MESSAGES: tuple[tuple[re.Pattern[str], Classification], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), row)
    for pattern, row in (
        (r"invalid api key|no api key|no route matched", _blocked("wrong key or URL")),
        (r"exceed_|overdue_payment|project is restricted", _STATUS[402]),
        (r"project is paused", _STATUS[540]),
        (r"rate limit|too many requests", _STATUS[429]),
        (r"upstream server is timing out", _STATUS[504]),
        (r"name resolution failed|failure to get a peer", _STATUS[503]),
        (r"invalid response was received from the upstream", _STATUS[502]),
    )
)

# Edges of hosted projects answer 520 to URLs beyond about 16 KB: the caller's, not the origin's.
_LONG_URL = 16_000

_SENT = "lost the answer"
_TRANSPORT: tuple[tuple[type[Exception], Classification], ...] = (
    (httpx.ConnectError, _failure("no connection")),
    (httpx.ConnectTimeout, _failure("no connection in time")),
    (httpx.ProxyError, _failure("the proxy refused")),
    # Our own pool is exhausted: the request was never sent and the service is not to blame.
    (
        httpx.PoolTimeout,
        _neutral("no free connection in the pool", is_outage=True, retryable=True, answered=False),
    ),
    (httpx.WriteTimeout, _failure("could not send in time", "maybe")),
    (httpx.WriteError, _failure("broke while sending", "maybe", connection_lost=True)),
    (httpx.ReadTimeout, _failure("no answer in time", "maybe")),
    (httpx.ReadError, _failure(_SENT, "maybe", connection_lost=True)),
    (httpx.CloseError, _failure(_SENT, "maybe", connection_lost=True)),
    (httpx.RemoteProtocolError, _failure(_SENT, "maybe", connection_lost=True)),
    (
        httpx.LocalProtocolError,
        _neutral(
            "protocol error on our side", write_applied="maybe", retryable=True, answered=False
        ),
    ),
    (httpx.UnsupportedProtocol, _neutral("unsupported protocol", answered=False)),
    (httpx.TooManyRedirects, _REDIRECT),
    # PostgREST commits before it answers: an unreadable 2xx was applied.
    (httpx.DecodingError, _failure("unreadable answer", "yes")),
    (httpx.TransportError, _failure("transport error", "maybe")),
    (httpx.InvalidURL, _neutral("invalid URL", answered=False)),
    (httpx.StreamError, _neutral("misused stream", answered=False)),
)
_OTHER: tuple[tuple[type[BaseException], Classification], ...] = (
    (AuthRetryableError, _failure("Auth is not reachable", "maybe")),
    (AuthUnknownError, _failure("Auth answered something unreadable", "maybe")),
    (AuthError, _neutral("Auth refused", answered=False)),
    (ConnectionClosed, _failure("websocket closed", "maybe", connection_lost=True)),
    (json.JSONDecodeError, _failure("unreadable answer", "maybe")),
    (socket.gaierror, _failure("the name does not resolve")),
    (ConnectionError, _failure("connection error", "maybe", connection_lost=True)),
    (TimeoutError, _failure("timed out", "maybe")),
    *(
        (programming_error, _neutral("programming error", answered=False))
        for programming_error in (
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            NameError,
            AssertionError,
            ImportError,
            NotImplementedError,
            SyntaxError,
        )
    ),
)
_UNKNOWN = _failure("unknown exception", "maybe", is_outage=False, retryable=False)
_CANCELED = _neutral("canceled", write_applied="maybe", answered=False)
# What httpx and h2 raise when one HTTP/2 client is shared by threads, or used after close().
_MISUSED_CLIENT = re.compile(r"client has been closed|changed during iteration|changed size")


# --- reading an outcome -------------------------------------------------------------------------


class _Spoken(NamedTuple):
    """What an error says of itself: its code, its message, its HTTP status where known."""

    code: str | None
    message: str
    status: int | None
    of_postgrest: bool = False


def _of_response(response: httpx.Response) -> Classification:
    status = response.status_code
    if 200 <= status < 300:
        return _HTML if _is_foreign_html(response) else _SUCCESS
    spoken = _spoken_by(response)
    found = _of_error(spoken)
    if spoken.code == "25006" and _is_read(response):
        return replace(_CALLER, reason="the function writes, but was called with GET")
    if status == 520 and _is_long(response):
        return replace(_CALLER, reason="the URL is too long (520)")
    after = retry_after_of(response.headers)
    return found if after is None else replace(found, retry_after=after)


def _is_foreign_html(response: httpx.Response) -> bool:
    """PostgREST may serve HTML from a function, but then it says so in a header of its own."""
    headers = response.headers
    if not headers.get("content-type", "").startswith("text/html"):
        return False
    return "content-range" not in headers and "content-profile" not in headers


def _content_of(response: httpx.Response) -> bytes:
    try:
        return response.content
    except httpx.StreamError:  # nobody has read it
        return b""


def _is_read(response: httpx.Response) -> bool:
    request = _request_of(response)
    return request is not None and request.method in {"GET", "HEAD"}


def _is_long(response: httpx.Response) -> bool:
    request = _request_of(response)
    return request is not None and len(str(request.url)) > _LONG_URL


def _request_of(response: httpx.Response) -> httpx.Request | None:
    try:
        return response.request
    except RuntimeError:  # a response made by hand has none
        return None


def _spoken_by(response: httpx.Response) -> _Spoken:
    body = _body_of(response)
    code = _proxy_status_code(response.headers) or _code_in(body)
    message = _text(body.get("message") or body.get("msg") or body.get("error"))
    stated = _text(body.get("statusCode"))
    status = int(stated) if re.fullmatch(r"[1-5]\d\d", stated) else response.status_code
    return _Spoken(code, message, status, of_postgrest={"details", "hint"} <= body.keys())


def _body_of(response: httpx.Response) -> dict[str, Any]:
    try:
        body = json.loads(_content_of(response))
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _code_in(body: dict[str, Any]) -> str | None:
    # Auth sends a number as `code` and the word as `error_code`.
    for key in ("error_code", "code"):
        if isinstance(value := body.get(key), str) and value:
            return value
    return None


_PROXY_STATUS = re.compile(r"PostgREST\s*;[^,]*?\berror\s*=\s*\"?([\w.-]+)", re.IGNORECASE)


def _proxy_status_code(headers: httpx.Headers) -> str | None:
    found = _PROXY_STATUS.search(headers.get("proxy-status", ""))
    return found[1] if found else None


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by a `Retry-After` header (RFC 9110 §10.2.3: seconds or an HTTP date).

    A date counts from the server's own `Date` where it sent one, so that a wrong local clock
    does not matter. None when there is no such header or it cannot be read.
    """
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    until = _timestamp(text)
    if until is None:
        return None
    now = _timestamp(headers.get("date", ""))
    return max(0.0, until - (_clock.wall() if now is None else now))


def _timestamp(http_date: str) -> float | None:
    try:
        return parsedate_to_datetime(http_date).timestamp()
    except (ValueError, OverflowError, OSError, TypeError, IndexError):
        return None


def _of_error(spoken: _Spoken) -> Classification:
    code = spoken.code
    if code:
        found = _of_code(code)
        if found is not None:
            return found
        if spoken.of_postgrest:  # RAISE with a code of the user's own
            return _SQL_OF_THE_CALLER
    for pattern, row in _MESSAGES:
        if pattern.search(spoken.message):
            return row
    return _UNKNOWN_GATEWAY if spoken.status is None else _of_status(spoken.status)


def _of_code(code: str) -> Classification | None:
    if code.startswith("PGRST"):
        not_found = _NOT_IN_CACHE if code.startswith("PGRST2") else _CALLER
        return _POSTGREST.get(code, not_found)
    if code in _SERVICE:
        return _SERVICE[code]
    if re.fullmatch(r"[1-5]\d\d", code):
        return _of_status(int(code))
    if re.fullmatch(r"[0-9A-Z]{5}", code):
        by_class = _SQLSTATE_CLASS.get(code[:2], _SQL_OF_THE_CALLER)
        return _SQLSTATE.get(code, by_class)
    return None


def _of_status(status: int) -> Classification:
    if status in _STATUS:
        return _STATUS[status]
    if status >= 500:
        return _failure(f"HTTP status {status}", "maybe")
    return _REDIRECT if 300 <= status < 400 else _CALLER


def _of_exception(error: BaseException) -> Classification:
    if isinstance(error, CircuitOpenError):
        return Classification(
            verdict="neutral",
            reason="the circuit is open",
            is_outage=True,
            retry_after=error.retry_after,
        )
    if isinstance(error, BaseExceptionGroup):
        return _worst_of(error)
    if isinstance(error, asyncio.CancelledError) or not isinstance(error, Exception):
        return _CANCELED
    return _of_service_error(error) or _of_type(error)


def _of_service_error(error: Exception) -> Classification | None:
    """Errors of httpx, Storage, Auth, Functions and Realtime that carry a status."""
    if isinstance(error, httpx.HTTPStatusError):
        return _of_response(error.response)
    if isinstance(error, InvalidStatus):
        return _of_handshake(error.response.status_code)
    if isinstance(error, AuthApiError | StorageApiError | FunctionsError):
        status = _text(error.status)
        number = int(status) if re.fullmatch(r"[1-5]\d\d", status) else None
        code = _text(getattr(error, "code", None)) or None
        return _of_error(_Spoken(code, "", number))
    return None


def _of_handshake(status: int) -> Classification:
    """Realtime refuses a websocket by status: 401 token, 403 suspended, 404 no such tenant."""
    if status in {401, 403, 404}:
        return _blocked(f"Realtime refused the connection ({status})")
    return _of_status(status)


def _of_type(error: Exception) -> Classification:
    for kind, row in (*_TRANSPORT, *_OTHER):
        if isinstance(error, kind):
            return row
    if isinstance(error, RuntimeError) and _MISUSED_CLIENT.search(str(error)):
        return _neutral("the HTTP client was misused", answered=False, write_applied="maybe")
    return _UNKNOWN


_SEVERITY: tuple[Verdict, ...] = ("success", "neutral", "throttled", "failure", "blocked")


def _worst_of(group: BaseExceptionGroup[BaseException]) -> Classification:
    found = [classify(error) for error in group.exceptions]
    return max(found, key=lambda each: _SEVERITY.index(each.verdict))


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
