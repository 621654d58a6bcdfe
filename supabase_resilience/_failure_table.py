"""The failure table itself: what each code, status, message and exception means.

Where a row comes from: the status map of PostgREST (docs.postgrest.org, "Errors"), PostgreSQL's
appendix of error codes, and Supabase's own pages on HTTP status codes of the platform. Which row
an outcome belongs to is said in `failures.py`.
"""

import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx
from realtime.exceptions import AuthorizationError, NotConnectedError
from supabase import AuthError, AuthRetryableError, AuthUnknownError
from websockets.exceptions import ConnectionClosed

Verdict = Literal["success", "failure", "neutral", "throttled", "blocked"]
Applied = Literal["no", "maybe", "yes"]
Scope = Literal["project", "query"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """What an outcome means: for the breaker, for a retry, for the app.

    - `verdict`: `success`, `failure` (speaks against the service), `neutral` (the caller's own
      mistake, or nobody's), `throttled` (429: wait, do not blame) or `blocked` (key, billing,
      paused project: a person has to act).
    - `is_outage`: the one question an app asks: is Supabase not serving this now, through no fault
      of the request?
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


def failure(reason: str, applied: Applied = "no", **facts: Any) -> Classification:
    facts = {"is_outage": True, "retryable": True, **facts}
    return Classification(verdict="failure", reason=reason, write_applied=applied, **facts)


def neutral(reason: str, **facts: Any) -> Classification:
    facts = {"answered": True, **facts}
    return Classification(verdict="neutral", reason=reason, **facts)


def blocked(reason: str, *, scope: Scope = "project") -> Classification:
    return Classification(verdict="blocked", reason=reason, is_outage=True, scope=scope)


def throttled(reason: str, **facts: Any) -> Classification:
    facts = {"is_outage": True, "retryable": True, **facts}
    return Classification(verdict="throttled", reason=reason, **facts)


SUCCESS = Classification(verdict="success", reason="ok", write_applied="yes", answered=True)
CALLER = neutral("the request was refused")
HTML = failure("an HTML page instead of an answer: something in between replied", "maybe")

# PostgREST's own codes. The rest of PGRST1xx, 2xx and 3xx is the caller's.
POSTGREST: Mapping[str, Classification] = {
    "PGRST000": failure("PostgREST cannot connect to the database"),
    # The connection broke inside the transaction; a COMMIT may have been on its way.
    "PGRST001": failure("PostgREST lost the database connection", "maybe"),
    "PGRST002": failure("PostgREST has no schema cache yet"),
    "PGRST003": failure("PostgREST's connection pool is exhausted"),
    "PGRSTX00": failure("internal error of PostgREST", "maybe", retry_once=True),
    "PGRST300": blocked("the server has no JWT secret"),
}
# Right after a migration the schema cache is stale for a moment, so one more try is fair.
NOT_IN_CACHE = neutral("not in PostgREST's schema cache", retryable=True, retry_once=True)

# SQLSTATEs by code, then by class. A SQLSTATE in the answer means that the transaction was
# aborted: a write was not applied. Exceptions are 08007 and the lost connections of class 08.
DUPLICATE = neutral("unique violation")
SQLSTATE: Mapping[str, Classification] = {
    "23505": DUPLICATE,
    "57014": failure(
        "canceled by statement_timeout",
        scope="query",
        is_outage=False,
        retry_once=True,
        answered=True,
    ),
    "53100": failure("disk full", retryable=False),
    "53400": failure("configuration limit exceeded", retryable=False),
    "57P01": failure("the database is shutting down"),
    "57P02": failure("the database crashed"),
    "57P03": failure("the database is starting up"),
    "57P05": failure("idle session timeout"),
    "08007": failure("unknown whether the transaction was committed", "maybe"),
    # Hosted projects turn read-only when the disk is nearly full; reads go on working.
    "25006": failure("the database is read-only", scope="query", retryable=False, answered=True),
    "40001": neutral("serialization failure", retryable=True),
    "40P01": neutral("deadlock", retryable=True),
    "55P03": neutral("lock not available", retryable=True),
    "55006": neutral("object in use", retryable=True),
}
SQLSTATE_CLASS: Mapping[str, Classification] = {
    "08": failure("database connection exception", "maybe"),
    "53": failure("the database is out of resources"),
    "58": failure("system error of the database", retry_once=True),
    "XX": failure("internal error of the database", retry_once=True),
    "HV": failure(
        "foreign data wrapper", scope="query", is_outage=False, retryable=False, answered=True
    ),
}
SQL_OF_THE_CALLER = neutral("refused by the database")

OWN_LIMIT = throttled("a rate limit of Auth", scope="query", retryable=False, answered=True)
# Codes of Storage, Auth and Edge Functions.
SERVICE: Mapping[str, Classification] = {
    "SlowDown": throttled("Storage asks to slow down"),
    "ResourceLocked": neutral("resource locked", retryable=True),
    "LockTimeout": neutral("lock timeout", retryable=True),
    "DatabaseTimeout": failure("Storage's database timed out", "maybe"),
    "DatabaseError": failure("Storage's database failed", "maybe"),
    "InternalError": failure("internal error of Storage", "maybe"),
    # Per endpoint, address or user: whoever asks for too many codes must not keep everybody else
    # from signing in, and another try meets the same limit.
    "over_request_rate_limit": OWN_LIMIT,
    "over_email_send_rate_limit": OWN_LIMIT,
    "over_sms_send_rate_limit": OWN_LIMIT,
    "unexpected_failure": failure("Auth failed", "maybe", retry_once=True),
    "BOOT_ERROR": blocked("the Edge Function does not start", scope="query"),
    "WORKER_LIMIT": failure("the Edge Function ran out of resources", "maybe", scope="query"),
    "IDLE_TIMEOUT": failure("the Edge Function timed out", "maybe", scope="query"),
    "RATE_LIMIT_EXCEEDED": throttled("rate limit of Edge Functions"),
}

# HTTP statuses of an answer that carries no code of the above: gateways and Cloudflare.
STATUS: Mapping[int, Classification] = {
    304: neutral("not modified"),
    402: blocked("the project is restricted (402)"),
    423: neutral("locked", retryable=True),
    429: throttled("rate limit (429)"),
    500: failure("500 without a code", "maybe", retry_once=True),
    502: failure("bad gateway (502)", "maybe"),
    503: failure("unavailable (503)"),
    504: failure("gateway timeout (504)", "maybe"),
    520: failure("the origin answered garbage (520)", "maybe"),
    521: failure("the origin refuses connections (521)"),
    522: failure("no connection to the origin in time (522)", "maybe"),
    523: failure("the origin is unreachable (523)"),
    # Cloudflare gave up after about 100 s; the statement is still running.
    524: failure("the origin has not answered for 100 s (524)", "maybe", retryable=False),
    525: failure("TLS handshake with the origin failed (525)"),
    526: failure("the origin's certificate is invalid (526)"),
    530: failure("the origin's name does not resolve (530)"),
    540: blocked("the project is paused (540)"),
    544: failure("the service timed out (544)", "maybe"),
    546: failure("the Edge Function ran out of resources (546)", "maybe", scope="query"),
}
REDIRECT = blocked("a redirect that leads nowhere: wrong URL or a captive portal")
UNKNOWN_GATEWAY = failure("an error without a code", "maybe")
RELAY = failure("the Edge Function was not reached", "maybe", scope="query")

# What gateways say in an error without a code; `APIError` keeps no status to go by.
MESSAGES: tuple[tuple[re.Pattern[str], Classification], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), row)
    for pattern, row in (
        (r"invalid api key|no api key|no route matched", blocked("wrong key or URL")),
        (r"exceed_|overdue_payment|project is restricted", STATUS[402]),
        (r"project is paused", STATUS[540]),
        (r"rate limit|too many requests", STATUS[429]),
        (r"upstream server is timing out", STATUS[504]),
        (r"name resolution failed|failure to get a peer", STATUS[503]),
        (r"invalid response was received from the upstream", STATUS[502]),
    )
)

# Edges of hosted projects answer 520 to URLs beyond about 16 KB: the caller's, not the origin's.
LONG_URL = 16_000

SENT = "lost the answer"
TRANSPORT: tuple[tuple[type[Exception], Classification], ...] = (
    (httpx.ConnectError, failure("no connection")),
    (httpx.ConnectTimeout, failure("no connection in time")),
    (httpx.ProxyError, failure("the proxy refused")),
    # Our own pool is exhausted: the request was never sent and the service is not to blame.
    (
        httpx.PoolTimeout,
        neutral("no free connection in the pool", is_outage=True, retryable=True, answered=False),
    ),
    (httpx.WriteTimeout, failure("could not send in time", "maybe")),
    (httpx.WriteError, failure("broke while sending", "maybe", connection_lost=True)),
    (httpx.ReadTimeout, failure("no answer in time", "maybe")),
    (httpx.ReadError, failure(SENT, "maybe", connection_lost=True)),
    (httpx.CloseError, failure(SENT, "maybe", connection_lost=True)),
    (httpx.RemoteProtocolError, failure(SENT, "maybe", connection_lost=True)),
    (
        httpx.LocalProtocolError,
        neutral(
            "protocol error on our side", write_applied="maybe", retryable=True, answered=False
        ),
    ),
    (httpx.UnsupportedProtocol, neutral("unsupported protocol", answered=False)),
    (httpx.TooManyRedirects, REDIRECT),
    # PostgREST commits before it answers: an unreadable 2xx was applied.
    (httpx.DecodingError, failure("unreadable answer", "yes")),
    (httpx.TransportError, failure("transport error", "maybe")),
    (httpx.InvalidURL, neutral("invalid URL", answered=False)),
    (httpx.StreamError, neutral("misused stream", answered=False)),
)
OTHER: tuple[tuple[type[BaseException], Classification], ...] = (
    (AuthRetryableError, failure("Auth is not reachable", "maybe")),
    (AuthUnknownError, failure("Auth answered something unreadable", "maybe")),
    (AuthError, neutral("Auth refused", answered=False)),
    (AuthorizationError, neutral("Realtime refused the channel", answered=False)),
    (NotConnectedError, neutral("Realtime is not connected yet", answered=False)),
    (ConnectionClosed, failure("websocket closed", "maybe", connection_lost=True)),
    # It may be the service's answer or a text of the app's own: too little to call it an outage.
    (json.JSONDecodeError, failure("unreadable JSON", "maybe", is_outage=False)),
    (socket.gaierror, failure("the name does not resolve")),
    (ConnectionError, failure("connection error", "maybe", connection_lost=True)),
    (TimeoutError, failure("timed out", "maybe")),
    *(
        (programming_error, neutral("programming error", answered=False))
        for programming_error in (
            TypeError,
            ValueError,
            LookupError,
            ArithmeticError,
            AttributeError,
            NameError,
            AssertionError,
            ImportError,
            NotImplementedError,
            SyntaxError,
        )
    ),
)
UNKNOWN = failure("unknown exception", "maybe", is_outage=False, retryable=False)
CANCELED = neutral("canceled", write_applied="maybe", answered=False)
CORRUPTED = neutral(
    "the HTTP client is broken: threads share an HTTP/2 session",
    write_applied="maybe",
    retryable=True,
    answered=False,
)
CLOSED_CLIENT = neutral("the HTTP client is closed", answered=False)
