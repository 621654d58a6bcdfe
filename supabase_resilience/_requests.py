"""What a request to PostgREST is, and whether it may be sent again.

After a lost answer nobody knows whether a write was applied. Some writes can be repeated all the
same, because doing them twice is doing them once; which ones is said here and nowhere else.
"""

import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

__all__ = ["Target", "by_table", "idempotent", "is_repeatable", "is_within_idempotent", "target_of"]

Kind = Literal["read", "insert", "upsert", "update", "delete", "rpc"]

_is_idempotent: ContextVar[bool] = ContextVar("supabase_resilience_idempotent", default=False)
is_within_idempotent: Callable[[], bool] = _is_idempotent.get
"""Whether this code runs inside `idempotent()`."""
_NO_FILTERS = frozenset({"select", "order", "limit", "offset", "columns", "on_conflict"})


class idempotent:  # noqa: N801 - used like a function: `with idempotent():`
    """Promise that the writes and rpc posts in the block may be repeated.

    Plain inserts and rpc posts are then tried again even after a lost answer. Give inserted rows a
    key of your own: if the first try was applied after all, the database refuses the second one as
    a duplicate (23505), and you get the answer of a success, with the rows as you sent them
    (without defaults of the database). Nothing else changes: what is not retryable is not retried.

    The promise travels in a context variable: it reaches awaits and tasks inside, not threads.
    """

    def __enter__(self) -> Self:
        self._token: Token[bool] = _is_idempotent.set(True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _is_idempotent.reset(self._token)


class Target(NamedTuple):
    """Where a request goes: `schema` and `name` of the table, or of the function if `is_rpc`."""

    method: str
    schema: str
    name: str
    is_rpc: bool


def target_of(method: str, url: Any, headers: Mapping[str, str]) -> Target:
    """Read a target off a request as supabase-py makes it."""
    head, _, name = urlsplit(str(url)).path.rstrip("/").rpartition("/")
    profile = "accept-profile" if method in {"GET", "HEAD"} else "content-profile"
    return Target(method, headers.get(profile, "public"), name, head.endswith("/rpc"))


def by_table(target: Target) -> str:
    """`public.orders`, or `public.rpc/place_order`: the key of one breaker in `CircuitBreakers`."""
    return f"{target.schema}.{'rpc/' if target.is_rpc else ''}{target.name}"


def is_repeatable(method: str, url: Any, options: Mapping[str, Any]) -> bool:
    """Whether a request may be sent again although it may have been applied already.

    Reads, upserts with their conflict key, updates and deletes by filter; all else only within
    `idempotent()`. An update that filters on what it changes (a compare-and-swap on a version, on
    `xmin`) is not: the second try would find nothing and look like a lost race.
    """
    kind = _kind_of(method, url, options.get("headers") or {})
    if is_within_idempotent():
        return True
    if kind == "update":
        return not _filters_on_its_changes(options)
    if kind == "upsert":
        return _has_conflict_key(options)
    return kind in {"read", "delete"}


def _kind_of(method: str, url: Any, headers: Mapping[str, str]) -> Kind:
    if method in {"GET", "HEAD"}:
        return "read"
    if target_of(method, url, headers).is_rpc:
        return "rpc"
    if method == "POST":
        return "upsert" if "resolution=" in headers.get("prefer", "") else "insert"
    return {"PATCH": "update", "DELETE": "delete", "PUT": "upsert"}.get(method, "rpc")  # type: ignore[return-value]


def _filters_on_its_changes(options: Mapping[str, Any]) -> bool:
    filters = {key for key in _params(options) if key not in _NO_FILTERS}
    changed = {str(key) for row in rows_sent(options) for key in row}
    # `or=(…)` and `and=(…)` name columns inside; whoever needs to know can use idempotent().
    return bool(filters & (changed | {"xmin", "or", "and", "not.or", "not.and"}))


def _has_conflict_key(options: Mapping[str, Any]) -> bool:
    """Rows without the key would be inserted again, under a new one."""
    columns = str(_params(options).get("on_conflict", "")).split(",")
    return all(column in row for row in rows_sent(options) for column in columns if column)


def _params(options: Mapping[str, Any]) -> Mapping[str, Any]:
    return options.get("params") or {}


def rows_sent(options: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows in a request's body; none when it is no JSON."""
    try:
        body = json.loads(options.get("content") or b"null")
    except (TypeError, ValueError):
        return []
    rows = body if isinstance(body, list) else [body]
    return [row for row in rows if isinstance(row, dict)]


def is_repeated_insert(method: str, url: Any, options: Mapping[str, Any]) -> bool:
    """Whether a duplicate key now means that an earlier try of this insert was applied."""
    return is_within_idempotent() and _kind_of(method, url, options["headers"]) == "insert"


def answer_as_applied(options: Mapping[str, Any]) -> tuple[int, Any]:
    """Status and JSON that PostgREST would have sent for the insert, defaults aside."""
    headers = options["headers"]
    rows = rows_sent(options)
    if "return=representation" not in headers.get("prefer", ""):
        return 201, None
    return 201, rows[0] if "vnd.pgrst.object" in headers.get("accept", "") else rows
