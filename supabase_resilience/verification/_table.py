"""The table that is verified: its key, what a row is recognised by, and how one is written."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from supabase_resilience._queries import Condition, Select, all_of, named, quoted
from supabase_resilience.verification._rules import Rule

__all__ = ["XMIN", "Table"]

XMIN = "xmin"
_LONGEST = 8_000
"""Bytes that keys may take in an URL: gateways refuse those of 16 KB."""


class Table:
    """`key` are the columns of its key.

    Scans read the rows as they are. `xmin`, by which a row is swapped, is read with those that are
    looked at again, and only if `reads_xmin`: a view has none.
    """

    def __init__(self, schema: str, name: str, key: Sequence[str]) -> None:
        self.schema = schema
        self.name = name
        self.key = tuple(key)
        self.reads_xmin = False

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def _columns(self) -> list[str]:
        return ["*", XMIN] if self.reads_xmin else ["*"]

    def key_of(self, row: Mapping[str, Any]) -> Any:
        """The key's value, a tuple if it has several columns."""
        if len(self.key) == 1:
            return row[self.key[0]]
        return tuple(row[column] for column in self.key)

    def stamp(self, row: Mapping[str, Any], rule: Rule) -> Any:
        """What is the same as long as nobody has written the row (or its guard)."""
        if rule.guard is not None:
            return [row[column] for column in rule.guard]
        return self.visible(row)

    def visible(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row as its owner knows it."""
        return {column: value for column, value in row.items() if column != XMIN}

    def with_keys(self, keys: Sequence[Any]) -> Select:
        """The rows that have one of these keys."""
        listed = ",".join(map(self._listed, keys))
        if len(self.key) == 1:
            return Select(self._columns, where=[(self.key[0], "in", f"({listed})")])
        return Select(self._columns, any_of=listed)

    def reads_of(self, keys: Sequence[Any]) -> Iterator[Select]:
        """The same, in as many reads as it takes for their URLs to be short enough."""
        some: list[Any] = []
        length = 0
        for key in keys:
            more = len(quote(self._listed(key)))
            if some and length + more > _LONGEST:
                yield self.with_keys(some)
                some, length = [], 0
            some.append(key)
            length += more
        if some:
            yield self.with_keys(some)

    def _listed(self, key: Any) -> str:
        if len(self.key) == 1:
            return quoted(key)
        pair = zip(self.key, key, strict=True)
        return all_of([f"{named(column)}.eq.{quoted(value)}" for column, value in pair])

    def unchanged(self, row: Mapping[str, Any], rule: Rule) -> list[Condition]:
        """The conditions under which the row is still the one that was judged."""
        columns = rule.guard if rule.guard is not None else (XMIN,)
        guard = [_equals(column, row[column]) for column in columns]
        return [*(_equals(column, row[column]) for column in self.key), *guard]


def _equals(column: str, value: Any) -> Condition:
    if value is None:
        return column, "is", "null"
    if value is True or value is False:
        return column, "is", "true" if value else "false"
    if isinstance(value, dict | list):  # of a jsonb column; an array is no JSON, and is refused
        return column, "eq", json.dumps(value)
    return column, "eq", str(value)
