"""Makes supabase-py's builders from reads that were written down, for clients of both colours."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from supabase_resilience._identity import Identity
from supabase_resilience._queries import Condition, Rpc, Select, named

__all__ = ["Builders"]

Narrow = Callable[[Any], Any]


class Builders:
    """The builders for one table, under a pinned identity; `execute()` them."""

    def __init__(self, identity: Identity[Any], schema: str, table: str) -> None:
        self._identity = identity
        self._schema = schema
        self._table = table

    def rpc(self, call: Rpc) -> Any:
        """A call of a function in the schema `public`."""
        return self._identity.api("public").rpc(call.function, dict(call.arguments))

    def select(self, read: Select, narrow: Narrow | None = None) -> Any:
        """Rows; `narrow` may add filters."""
        columns = [each if each == "*" else named(each) for each in read.columns]
        query = self._from().select(*(columns or ["*"]))
        if narrow is not None:
            query = narrow(query)
        query = _where(query, read.where)
        if read.any_of is not None:
            query = query.or_(read.any_of)
        for column in read.order:
            query = query.order(named(column), desc=read.is_descending)
        if read.offset:
            query = query.offset(read.offset)
        return query if read.limit is None else query.limit(read.limit)

    def count(self) -> Any:
        """About how many rows there are: exact for small tables, the planner's guess for others."""
        return self._from().select("*", count="estimated").limit(1)

    def update(
        self, patch: Mapping[str, Any], where: Sequence[Condition], key: Sequence[str]
    ) -> Any:
        """Set columns of at most one row, and tell its key."""
        query = self._from().update(dict(patch)).max_affected(1)
        return _where(query, where).select(*map(named, key))

    def _from(self) -> Any:
        return self._identity.api(self._schema).from_(self._table)


def _where(query: Any, where: Sequence[Condition]) -> Any:
    for column, operator, value in where:
        query = query.filter(column, operator, value)
    return query
