"""The one failure table: what an error or a response says about the service.

A status of 500 or more is the wrong test. A deadlock, a deep recursion in a user's SQL and a
`statement_timeout` all come as 500 from a healthy server, while a wrong key, a paused project or
an HTML page of a proxy come as 4xx and 200. So the table (`_failure_table.py`) goes by what
PostgREST, the gateway or httpx really said, and nothing else in the package looks at codes.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import httpx
from postgrest.exceptions import APIError
from realtime.exceptions import RealtimeHTTPError
from storage3.exceptions import StorageApiError
from supabase import (
    AuthApiError,
    AuthError,
    AuthRetryableError,
    FunctionsError,
    FunctionsRelayError,
)
from websockets.exceptions import InvalidStatus

from supabase_resilience import _clock
from supabase_resilience._failure_table import (
    CALLER,
    CANCELED,
    CLOSED_CLIENT,
    CORRUPTED,
    HTML,
    LONG_URL,
    MESSAGES,
    NOT_IN_CACHE,
    OTHER,
    POSTGREST,
    REDIRECT,
    RELAY,
    SERVICE,
    SQL_OF_THE_CALLER,
    SQLSTATE,
    SQLSTATE_CLASS,
    STATUS,
    SUCCESS,
    TRANSPORT,
    UNKNOWN,
    UNKNOWN_GATEWAY,
    Applied,
    Classification,
    Scope,
    Verdict,
    blocked,
    failure,
)
from supabase_resilience.errors import CircuitOpenError

__all__ = ["Applied", "Classification", "Outcome", "Scope", "Verdict", "classify", "words_of"]

Outcome = BaseException | httpx.Response


def classify(outcome: Outcome) -> Classification:
    """Say what an exception or a response means, and never raise.

    Accepts whatever supabase-py, httpx or your own code raised, and responses whose body was read.
    A response tells more than the exception made from it: `postgrest.APIError` keeps neither the
    status nor the headers. An exception that is not known counts as a failure; Python's own
    programming errors (TypeError, KeyError, …) and ValueError do not, other than unreadable JSON.
    A group of exceptions means the worst that any of them means.
    """
    if isinstance(outcome, httpx.Response):
        return SUCCESS if is_plain_success(outcome) else _of_response(outcome)
    if isinstance(outcome, APIError):
        return _of_error(_spoken_in(outcome))
    return _of_exception(outcome)


# PostgREST's, and PostgreSQL's where it speaks of the schema, a role or the server, not of data.
_NAMES_ONLY = re.compile(r"PGRST(?!100)|(08|25|26|28|34|3D|3F|42|53|54|55|57|58)...")


def words_of(error: APIError) -> str:
    """What it says, for logs and pages; its code and what that means where it may quote a value.

    PostgreSQL quotes what it cannot read (class 22), and `RAISE` says what it is told to say.
    """
    code = _text(error.code)
    if _NAMES_ONLY.match(code):
        return _text(error.message) or code
    reason = classify(error).reason
    return f"{reason} ({code})" if code and code not in reason else reason


# --- reading an outcome -------------------------------------------------------------------------


class _Spoken(NamedTuple):
    """What an error says of itself: its code, its message, its HTTP status where known."""

    code: str | None
    message: str
    status: int | None
    of_postgrest: bool = False


def is_plain_success(response: httpx.Response) -> bool:
    """Whether it is a 2xx with JSON or nothing inside: what nearly every response is.

    Told by the first byte, as looking into the headers costs ten times that.
    """
    try:
        return 200 <= response.status_code < 300 and response.content[:1] in b"[{"
    except httpx.StreamError:  # nobody has read it
        return False


def _of_response(response: httpx.Response) -> Classification:
    status = response.status_code
    if 200 <= status < 300:
        return HTML if _is_foreign_html(response) else SUCCESS
    spoken = _spoken_by(response)
    found = _of_error(spoken)
    if spoken.code == "25006" and _is_read(response):
        return replace(CALLER, reason="the function writes, but was called with GET")
    if status == 520 and _is_long(response):
        return replace(CALLER, reason="the URL is too long (520)")
    after = retry_after_of(response.headers)
    return found if after is None else replace(found, retry_after=after)


def _is_foreign_html(response: httpx.Response) -> bool:
    """PostgREST may serve HTML from a function, but then it says so in a header of its own."""
    headers = response.headers
    if not headers.get("content-type", "").lower().startswith("text/html"):
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
    return request is not None and len(str(request.url)) > LONG_URL


def _request_of(response: httpx.Response) -> httpx.Request | None:
    try:
        return response.request
    except RuntimeError:  # a response made by hand has none
        return None


def _spoken_in(error: APIError) -> _Spoken:
    # supabase-py fills in the keys that were not sent, so only values tell who spoke.
    of_postgrest = error.details is not None or error.hint is not None
    return _Spoken(_text(error.code), _text(error.message), None, of_postgrest)


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
    # Auth sends a number as `code` and the word as `error_code`; Storage has it in `error`.
    for key in ("error_code", "code", *(["error"] if "statusCode" in body else [])):
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
        date = parsedate_to_datetime(http_date)
        # The oldest of the forms names no zone; all of them are UTC.
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError, TypeError, IndexError):
        return None


def _of_error(spoken: _Spoken) -> Classification:
    code = spoken.code
    if code:
        found = _of_code(code)
        if found is not None:
            return found
        if spoken.of_postgrest:  # RAISE with a code of the user's own
            return SQL_OF_THE_CALLER
    for pattern, row in MESSAGES:
        if pattern.search(spoken.message):
            return row
    return UNKNOWN_GATEWAY if spoken.status is None else _of_status(spoken.status)


def _of_code(code: str) -> Classification | None:
    if code.startswith("PGRST"):
        not_found = NOT_IN_CACHE if code.startswith("PGRST2") else CALLER
        return POSTGREST.get(code, not_found)
    if code in SERVICE:
        return SERVICE[code]
    if re.fullmatch(r"[1-5]\d\d", code):
        return _of_status(int(code))
    if re.fullmatch(r"[0-9A-Z]{5}", code):
        by_class = SQLSTATE_CLASS.get(code[:2], SQL_OF_THE_CALLER)
        return SQLSTATE.get(code, by_class)
    return None


def _of_status(status: int) -> Classification:
    if status in STATUS:
        return STATUS[status]
    if status >= 500:
        return failure(f"HTTP status {status}", "maybe")
    return REDIRECT if 300 <= status < 400 else CALLER


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
        return CANCELED
    return _of_service_error(error) or _of_type(error)


def _of_service_error(error: Exception) -> Classification | None:
    """Errors of httpx, Storage, Auth, Functions and Realtime that carry a status."""
    if isinstance(error, httpx.HTTPStatusError):
        return _of_response(error.response)
    if isinstance(error, InvalidStatus):
        return _of_handshake(error.response.status_code)
    response = _response_behind(error)
    if response is not None and not isinstance(error, AuthRetryableError):
        return _of_response(response)
    if isinstance(error, AuthApiError | StorageApiError | FunctionsError | RealtimeHTTPError):
        status = _text(error.status)
        number = int(status) if re.fullmatch(r"[1-5]\d\d", status) else None
        code = _text(getattr(error, "code", None)) or None
        found = _of_error(_Spoken(code, "", number))
        return RELAY if found is CALLER and isinstance(error, FunctionsRelayError) else found
    return None


def _response_behind(error: Exception) -> httpx.Response | None:
    """supabase-py raises its errors from httpx's, which knows the headers and the whole body."""
    if not isinstance(error, AuthError | StorageApiError | FunctionsError):
        return None
    link = error.__cause__
    for _ in range(3):  # Storage raises from the parser's error, when the body was no JSON
        if isinstance(link, httpx.HTTPStatusError):
            return link.response
        link = link and link.__context__
    return None


def _of_handshake(status: int) -> Classification:
    """Realtime refuses a websocket by status: 401 token, 403 suspended, 404 no such tenant."""
    if status in {401, 403, 404}:
        return blocked(f"Realtime refused the connection ({status})")
    return _of_status(status)


def _of_type(error: Exception) -> Classification:
    for kind, row in (*TRANSPORT, *OTHER):
        if isinstance(error, kind):
            return row
    if type(error).__module__.partition(".")[0] in {"anyio", "h2"}:  # leaked through httpx
        return CORRUPTED
    return _of_runtime_error(error) if isinstance(error, RuntimeError) else UNKNOWN


def _of_runtime_error(error: RuntimeError) -> Classification:
    said = _text(next(iter(error.args), ""))
    if "changed during iteration" in said or "changed size" in said:
        return CORRUPTED
    return CLOSED_CLIENT if "client has been closed" in said else UNKNOWN


_SEVERITY: tuple[Verdict, ...] = ("success", "neutral", "throttled", "failure", "blocked")
_APPLIED: tuple[Applied, ...] = ("no", "maybe", "yes")


def _worst_of(group: BaseExceptionGroup[BaseException]) -> Classification:
    found = [classify(error) for error in group.exceptions]
    return replace(
        max(found, key=_severity),
        is_outage=any(each.is_outage for each in found),
        write_applied=max((each.write_applied for each in found), key=_APPLIED.index),
        retryable=all(each.retryable for each in found),
        retry_once=any(each.retry_once for each in found),
        retry_after=max((each.retry_after for each in found if each.retry_after), default=None),
    )


def _severity(one: Classification) -> tuple[int, bool]:
    return _SEVERITY.index(one.verdict), one.scope == "project"


def _text(value: object) -> str:
    """Texts as they are and small numbers, such as a status; nothing else is worth reading."""
    if isinstance(value, int) and 0 <= value < 1000:
        return str(value)
    return value if isinstance(value, str) else ""
