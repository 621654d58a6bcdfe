"""The `postgres_changes` bindings of a join: what a client asks to be told of.

Shapes and error messages are Realtime's, since clients and their tests look at both.
"""

import json
import zlib
from dataclasses import dataclass
from typing import Any, Final

from supabase_resilience.local.realtime._elixir import inspect
from supabase_resilience.local.realtime._filters import FilterError, FilterSpec, parse_filters
from supabase_resilience.local.realtime._shapes import as_list

_EVENTS: Final = frozenset({"INSERT", "UPDATE", "DELETE"})
_ID_RANGE: Final = 1 << 27


class BindingError(ValueError):
    """The binding cannot be subscribed; the message is the one that the client is sent."""


@dataclass(frozen=True, slots=True)
class Binding:
    """One binding: `*` stands for every schema or table, `select` None for every column."""

    event: str
    schema: str
    table: str
    filters: tuple[FilterSpec, ...] = ()
    select: tuple[str, ...] | None = None

    def describe(self) -> str:
        """List the parameters the way Realtime's messages do."""
        filters = [spec.as_term() for spec in self.filters]
        select = None if self.select is None else list(self.select)
        return (
            f"[event: {self.event}, schema: {self.schema}, table: {self.table}, "
            f"filters: {inspect(filters)}, select: {inspect(select)}]"
        )


def binding_id(params: dict[str, Any]) -> int:
    """Return the number of a binding; equal bindings share one, in every channel."""
    canonical = json.dumps(params, sort_keys=True)
    return zlib.crc32(canonical.encode()) % _ID_RANGE or 1


def parse_binding(params: dict[str, Any]) -> Binding:
    """Read one binding of a join. Raises `BindingError`."""
    select = _parse_select(params.get("select"))
    schema, table = _parse_target(params)
    if select is not None and "*" in {schema, table}:
        raise BindingError(
            "Column selection is not supported for wildcard subscriptions. "
            "Provide an explicit schema and table name."
        )
    return Binding(_parse_event(params.get("event")), schema, table, _parse_filter(params), select)


def _parse_event(event: Any) -> str:
    name = event.upper() if isinstance(event, str) else "*"
    return name if name in _EVENTS else "*"


def _parse_target(params: dict[str, Any]) -> tuple[str, str]:
    given = {key: params[key] for key in ("schema", "table", "filter") if key in params}
    complete = "filter" not in given or {"schema", "table"} <= given.keys()
    texts = all(isinstance(value, str) for value in given.values())
    if not given or not complete or not texts:
        raise BindingError(
            "No subscription params provided. Please provide at least a `schema` or `table` "
            f"to subscribe to: {inspect(params)}"
        )
    return given.get("schema", "public"), given.get("table", "*")


def _parse_filter(params: dict[str, Any]) -> tuple[FilterSpec, ...]:
    try:
        return parse_filters(params.get("filter", ""))
    except FilterError as error:
        raise BindingError(f"Error parsing `filter` params: {error}") from None


def _parse_select(select: Any) -> tuple[str, ...] | None:
    if isinstance(select, str):
        raise BindingError(
            "Error parsing `select` params: expected a list of column name strings, "
            'e.g. select: ["col1", "col2"]'
        )
    names = [name for name in as_list(select) if isinstance(name, str)]
    return tuple(names) or None
