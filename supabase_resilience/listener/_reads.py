"""What a catch-up asks the API for, written down without I/O.

A plan is a generator: it yields one of these, is sent the answer's rows, and tells the followers on
its way. So each procedure is written once, for clients of both colours.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from supabase_resilience._queries import Condition, Rpc, Select, all_of, named, quoted
from supabase_resilience.listener._changes import Key, Shape, key_list

__all__ = ["Plan", "Read", "Wait", "conditions_of", "with_keys"]

T = TypeVar("T")


class Wait(NamedTuple):
    """Let time pass."""

    seconds: float


Read = Rpc | Select | Wait
Plan = Generator[Read, Any, T]


def with_keys(shape: Shape, keys: Sequence[Key], *, where: Sequence[Condition] = ()) -> Select:
    """The rows that have one of these keys."""
    if len(shape.key) == 1:
        values = ",".join(quoted(key) for key in keys)
        return Select(where=[(shape.key[0], "in", f"({values})"), *where])
    parts = (zip(shape.key, key_list(key, len(shape.key)), strict=True) for key in keys)
    any_of = (
        all_of([f"{named(column)}.eq.{quoted(value)}" for column, value in key]) for key in parts
    )
    return Select(where=where, any_of=",".join(any_of))


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
        operator = f"not.{negated}" if negated else ""
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
