"""What a catch-up asks the API for, written down without I/O.

A plan is a generator: it yields one of these, is sent the answer's rows, and tells the followers on
its way. So each procedure is written once, for clients of both colours.
"""

import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from supabase_resilience.listener._changes import Key, Shape, key_list

__all__ = ["Plan", "Read", "Rpc", "Select", "Wait", "after", "conditions_of", "named", "with_keys"]

T = TypeVar("T")

Condition = tuple[str, str, str]
"""Column, operator and value of PostgREST: `("id", "gt", "7")`."""


class Rpc(NamedTuple):
    """A function of the schema `public`."""

    function: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Select:
    """Rows of the listener's table; no columns are all, `any_of` is the value of PostgREST's `or`."""

    columns: Sequence[str] = ()
    where: Sequence[Condition] = ()
    any_of: str | None = None
    order: Sequence[str] = ()
    is_descending: bool = False
    limit: int | None = None


class Wait(NamedTuple):
    """Let time pass."""

    seconds: float


Read = Rpc | Select | Wait
Plan = Generator[Read, Any, T]

# An `in` list of 100 UUIDs makes an URL of 4 KB; gateways refuse them from 16 KB on.
KEYS_PER_READ = 100


def after(columns: Sequence[str], row: Mapping[str, Any]) -> str:
    """PostgREST's `or` for the rows that come after `row` in the order of `columns`."""
    steps = []
    for position, column in enumerate(columns):
        equal = [f"{named(each)}.eq.{quoted(row[each])}" for each in columns[:position]]
        steps.append(_all_of([*equal, f"{named(column)}.gt.{quoted(row[column])}"]))
    return ",".join(steps)


def with_keys(shape: Shape, keys: Sequence[Key], *, where: Sequence[Condition] = ()) -> Select:
    """The rows that have one of these keys."""
    if len(shape.key) == 1:
        values = ",".join(quoted(key) for key in keys)
        return Select(where=[(shape.key[0], "in", f"({values})"), *where])
    parts = (zip(shape.key, key_list(key, len(shape.key)), strict=True) for key in keys)
    any_of = (
        _all_of([f"{named(column)}.eq.{quoted(value)}" for column, value in key]) for key in parts
    )
    return Select(where=where, any_of=",".join(any_of))


def named(column: str) -> str:
    """The name of a column inside `select`, `order` or `or`."""
    return column if re.fullmatch(r"[A-Za-z_]\w*", column) else quoted(column)


def quoted(value: Any) -> str:
    """A value inside `in.(…)` or `or=(…)`, where commas and brackets have a meaning."""
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _all_of(conditions: Sequence[str]) -> str:
    return conditions[0] if len(conditions) == 1 else f"and({','.join(conditions)})"


def conditions_of(filter: str | None) -> list[Condition]:  # noqa: A002 - Realtime's own word
    """A filter of Realtime (`status=eq.open,amount=gt.100`) as conditions of PostgREST.

    Raises `ValueError` for what is no such filter.
    """
    if filter is None:
        return []
    return [_condition(part, filter) for part in _Splitter().split(filter)]


def _condition(part: str, whole: str) -> Condition:
    column, equals, rest = part.partition("=")
    operator, dot, value = rest.partition(".")
    if operator == "not":
        negated, dot, value = value.partition(".")
        operator = f"not.{negated}"
    if not (column and equals and operator and dot):
        raise ValueError(
            f"filter must be like 'column=operator.value', AND written as a comma, got {whole!r}"
        )
    return column.strip(), operator, value


@dataclass
class _Splitter:
    """Splits at commas, but for those inside of brackets and quotes."""

    depth: int = 0
    is_quoted: bool = False
    parts: list[str] = field(default_factory=lambda: [""])

    def split(self, text: str) -> list[str]:
        for character in text:
            if character == '"':
                self.is_quoted = not self.is_quoted
            elif not self.is_quoted:
                self.depth += (character == "(") - (character == ")")
            if character == "," and self.depth == 0 and not self.is_quoted:
                self.parts.append("")
            else:
                self.parts[-1] += character
        return self.parts
