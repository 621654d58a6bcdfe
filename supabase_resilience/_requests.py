"""What a request to PostgREST is, and whether it may be sent again.

After a lost answer nobody knows whether a write was applied. Some writes can be repeated all the
same, because doing them twice is doing them once; which ones is said here and nowhere else.
"""

import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import lru_cache
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import parse_qsl, unquote

__all__ = [
    "Target",
    "answer_as_applied",
    "by_table",
    "idempotent",
    "is_repeatable",
    "is_repeated_insert",
    "is_within_idempotent",
    "target_of",
]

Kind = Literal["read", "insert", "upsert", "update", "delete", "rpc"]
_WRITES: Mapping[str, Kind] = {"PATCH": "update", "DELETE": "delete", "PUT": "upsert"}

# How many blocks are around. Not in the object, so that one may be shared by tasks, or nested in
# itself.
_is_idempotent: ContextVar[int] = ContextVar("supabase_resilience_idempotent", default=0)
is_within_idempotent: Callable[[], int] = _is_idempotent.get
"""Whether this code runs inside `idempotent()`."""
_READS = frozenset({"GET", "HEAD"})
_NO_FILTERS = frozenset({"select", "order", "limit", "offset", "columns", "on_conflict"})
# They name columns inside; whoever needs to know can use idempotent().
_GROUPS = frozenset({"or", "and", "not.or", "not.and"})


class idempotent:  # noqa: N801 - used like a function: `with idempotent():`
    """Promise that the writes and rpc posts in the block may be repeated.

    Plain inserts and rpc posts are then tried again even after a lost answer. Give inserted rows a
    key of your own: if the first try was applied after all, the database refuses the second one as
    a duplicate (23505), and you get the answer of a success, with the rows as you sent them
    (without defaults of the database). A row that brings an `id` is known by it: when another of
    its values is the duplicate, you are told. Nothing else changes: what is not retryable is not
    retried.

    The promise travels in a context variable: it reaches awaits and tasks inside, not threads.
    """

    def __enter__(self) -> Self:
        _is_idempotent.set(_is_idempotent.get() + 1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _is_idempotent.set(_is_idempotent.get() - 1)


class Target(NamedTuple):
    """Where a request goes: `schema` and `name` of the table, or of the function if `is_rpc`."""

    method: str
    schema: str
    name: str
    is_rpc: bool


def target_of(method: str, url: Any, headers: Mapping[str, str]) -> Target:
    """Read a target off a request as supabase-py makes it."""
    method = method.upper()
    profile = "accept-profile" if method in _READS else "content-profile"
    return _target(method, str(url).partition("?")[0], headers.get(profile, "public"))


@lru_cache(maxsize=256)
def _target(method: str, path: str, schema: str) -> Target:
    head, _, name = path.rstrip("/").rpartition("/")
    return Target(method, schema, unquote(name), head.endswith("/rpc"))


def by_table(target: Target) -> str:
    """`public.orders`, or `public.rpc/place_order`: the key of one breaker in `CircuitBreakers`."""
    return f"{target.schema}.{'rpc/' if target.is_rpc else ''}{target.name}"


def is_repeatable(method: str, url: Any, options: Mapping[str, Any]) -> bool:
    """Whether a request may be sent again although it may have been applied already.

    It may when twice does what once does, and the second answer is as good as the first: reads,
    upserts with their conflict key, updates by filter, deletes that tell no rows; all else only
    within `idempotent()`. What would find nothing the second time, and so look as if it had done
    nothing, is left to the caller: an update that filters on what it changes (a compare-and-swap
    on a version, on `xmin`), a delete that tells the rows it deleted, an upsert that ignores
    duplicates and tells which rows were new.
    """
    if is_within_idempotent():
        return True
    headers = options.get("headers") or {}
    kind = _kind_of(method, url, headers)
    if kind == "update":
        return not _filters_on_its_changes(url, options)
    if kind == "upsert":
        is_told = "resolution=ignore-duplicates" in _prefer(headers) and _tells_rows(headers)
        return _has_conflict_key(url, options) and not is_told
    return kind == "read" or (kind == "delete" and not _tells_rows(headers))


def _kind_of(method: str, url: Any, headers: Mapping[str, str]) -> Kind:
    method, _, _, is_rpc = target_of(method, url, headers)
    if method in _READS:
        return "read"
    if is_rpc:
        return "rpc"
    if method == "POST":
        return "upsert" if "resolution=" in headers.get("prefer", "") else "insert"
    return _WRITES.get(method, "rpc")


def _filters_on_its_changes(url: Any, options: Mapping[str, Any]) -> bool:
    changed = {str(key) for row in rows_sent(options) for key in row}
    filters = _params(url, options).keys() - _NO_FILTERS
    columns = {_column_of(each) for each in filters}
    return not changed or bool(columns & (changed | {"xmin"}) or filters & _GROUPS)


def _column_of(name: str) -> str:
    """The column in `column`, `"column"` or `column->>key`."""
    return name.partition("->")[0].strip('"')


def _has_conflict_key(url: Any, options: Mapping[str, Any]) -> bool:
    """Rows without the key would be inserted again, under a new one; NULLs never conflict.

    Without `on_conflict` it is the primary key, whose columns a request does not tell: `id`, or it
    is not known.
    """
    columns = [_column_of(each.strip()) for each in _conflict_columns(url, options)]
    rows = rows_sent(options)
    has_all = all(row.get(column) is not None for row in rows for column in columns)
    return bool(rows) and has_all


def _conflict_columns(url: Any, options: Mapping[str, Any]) -> list[str]:
    return str(_params(url, options).get("on_conflict") or "id").split(",")


def _tells_rows(headers: Mapping[str, str]) -> bool:
    """Whether the answer shows the rows that were touched, as supabase-py asks for by default."""
    return "return=representation" in _prefer(headers)


def _prefer(headers: Mapping[str, str]) -> str:
    return headers.get("prefer", "")


def _params(url: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    in_url = parse_qsl(str(url).partition("?")[2], keep_blank_values=True)
    return {**dict(in_url), **(options.get("params") or {})}


def rows_sent(options: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows in a request's body; none when it is no JSON."""
    body = options.get("json")
    try:
        body = json.loads(options.get("content") or b"null") if body is None else body
    except (TypeError, ValueError):
        return []
    rows = body if isinstance(body, list) else [body]
    return [row for row in rows if isinstance(row, dict)]


def is_repeated_insert(
    method: str, url: Any, options: Mapping[str, Any], duplicate: str | bytes
) -> bool:
    """Whether a duplicate key now means that an earlier try of this insert was applied.

    `duplicate` is the body of the answer that says so.
    """
    if not is_within_idempotent():
        return False
    is_insert = _kind_of(method, url, options.get("headers") or {}) == "insert"
    return is_insert and _is_about_the_key(rows_sent(options), duplicate)


def _is_about_the_key(rows: list[Mapping[str, Any]], duplicate: str | bytes) -> bool:
    """Another value of a row that is taken was taken before, and the row was never inserted."""
    if not any("id" in row for row in rows):
        return True
    try:
        said = json.loads(duplicate)
    except ValueError:
        return False
    if not isinstance(said, dict):
        return False
    key = "Key (id)=" in str(said.get("details"))
    return key or '_pkey"' in str(said.get("message"))


def answer_as_applied(options: Mapping[str, Any]) -> tuple[int, Any]:
    """Status and JSON that PostgREST would have sent for the insert, defaults aside."""
    headers = options.get("headers") or {}
    rows = rows_sent(options)
    if "return=representation" not in headers.get("prefer", ""):
        return 201, None
    is_single = "vnd.pgrst.object" in headers.get("accept", "") and len(rows) == 1
    return 201, rows[0] if is_single else rows
