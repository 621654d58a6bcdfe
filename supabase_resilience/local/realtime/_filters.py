r"""Filters of a postgres_changes binding: `column=op.value`, comma means AND, `not.` negates.

Parsing and matching are pure. Values are compared as PostgreSQL's text, which `_subscriber` makes
canonical first; only numbers need more. Limits: an enum, interval or network address is ordered
by its text, years beyond 9999 and BC sort wrong, and `match` uses Python's regular expressions.
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from supabase_resilience.local.realtime._elixir import inspect
from supabase_resilience.local.realtime._pgoutput import Absent, Value

PATTERN_OPERATORS: Final = {"like": "~~", "ilike": "~~*", "match": "~", "imatch": "~*"}
OPERATORS: Final = frozenset(
    {"eq", "neq", "lt", "lte", "gt", "gte", "in", "is", "isdistinct", *PATTERN_OPERATORS}
)
IS_KEYWORDS: Final = frozenset({"null", "true", "false", "unknown"})

_NUMBERS: Final = frozenset({20, 21, 23, 26, 700, 701, 1700})
_PADDED: Final = frozenset({1042})

Comparable = str | tuple[int, Decimal]


class FilterError(ValueError):
    """The filter cannot be read; the message is the one that the client is sent."""


@dataclass(frozen=True, slots=True)
class FilterSpec:
    """A filter as the client wrote it; the value of `in` is a PostgreSQL array literal."""

    column: str
    operator: str
    value: str
    negated: bool

    def as_term(self) -> tuple[str, str, str, bool]:
        """Return the tuple that Realtime shows in its messages."""
        return (self.column, self.operator, self.value, self.negated)


def parse_filters(text: str) -> tuple[FilterSpec, ...]:
    """Read a binding's filter; blank text means none. Raises `FilterError`."""
    if not text.strip():
        return ()
    return tuple(_parse_one(part.strip()) for part in _split_top_level(text.strip()))


def _parse_one(part: str) -> FilterSpec:
    if not part:
        raise FilterError("filter must not contain empty segments (check for extra commas)")
    column, equals, rest = part.partition("=")
    if not equals:
        raise FilterError(inspect([part]))
    negated = rest.startswith("not.")
    name, dot, value = rest.removeprefix("not.").partition(".")
    if not dot:
        raise FilterError(inspect([name]))
    if name not in OPERATORS:
        raise FilterError(inspect([name, value]))
    value = _array_literal(value) if name == "in" else _unquote(value)
    return FilterSpec(column, name, value, negated)


def _array_literal(value: str) -> str:
    if value[:1] != "(" or value[-1:] != ")":
        raise FilterError("`in` filter value must be wrapped by parentheses")
    return f"{{{value[1:-1]}}}"


def _unquote(value: str) -> str:
    quoted = re.fullmatch(r'"((?:[^"\\]|\\.)*)"', value, re.DOTALL)
    return re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL) if quoted else value


def _split_top_level(text: str) -> list[str]:
    """Split at the commas outside of parentheses and of quotes that open a value."""
    token = re.compile(r'(?:(?<=[.(,])"(?:[^"\\]|\\.)*"?)|.', re.DOTALL)
    parts, depth = [""], 0
    for piece in token.findall(text):
        depth = max(0, depth + (piece == "(") - (piece == ")"))
        if piece == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter ready to test values: operands are canonical text, several for `in`."""

    spec: FilterSpec
    type_oid: int
    operands: tuple[str | None, ...]
    _test: Callable[[str | None], bool | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_test", _make_test(self))

    def matches(self, value: Value) -> bool:
        """Tell whether a row with this value passes; what the WAL does not carry never does."""
        if isinstance(value, Absent):
            return False
        result = self._test(value)
        return result is not None and result is not self.spec.negated


def _make_test(filter_: Filter) -> Callable[[str | None], bool | None]:
    """Build the operator's test in SQL's three-valued logic; None is unknown."""
    name, operands = filter_.spec.operator, filter_.operands
    comparable = _comparable_of(filter_.type_oid)
    if name == "is":
        return _is_test(operands[0] or "")
    if name in PATTERN_OPERATORS:
        pattern = _pattern(name, operands[0] or "")
        return lambda value: None if value is None else pattern.search(value) is not None
    keys = [None if operand is None else comparable(operand) for operand in operands]
    if name == "isdistinct":
        return lambda value: (None if value is None else comparable(value)) != keys[0]
    if name == "in":
        known = {key for key in keys if key is not None}
        return _membership_test(comparable, known, has_null=None in keys)
    compare = _COMPARISONS[name]
    return lambda value: None if value is None else compare(comparable(value), keys[0])


def _is_test(keyword: str) -> Callable[[str | None], bool | None]:
    if keyword in {"null", "unknown"}:
        return lambda value: value is None
    return lambda value: value == keyword[0]  # Booleans are t and f in the WAL.


def _membership_test(
    comparable: Callable[[str], Comparable], known: set[Comparable], *, has_null: bool
) -> Callable[[str | None], bool | None]:
    def test(value: str | None) -> bool | None:
        if value is None:
            return None
        found = comparable(value) in known
        return None if has_null and not found else found

    return test


def _pattern(name: str, text: str) -> re.Pattern[str]:
    flags = re.IGNORECASE if name in {"ilike", "imatch"} else re.NOFLAG
    if name in {"match", "imatch"}:
        return re.compile(text, flags)
    return re.compile(rf"\A{_like_to_regex(text)}\Z", flags | re.DOTALL)


def _like_to_regex(pattern: str) -> str:
    wildcards = {"%": ".*", "_": "."}
    pieces: list[str] = re.findall(r"\\?.", pattern, re.DOTALL)
    return "".join(wildcards.get(piece) or re.escape(piece[-1]) for piece in pieces)


def _comparable_of(type_oid: int) -> Callable[[str], Comparable]:
    if type_oid in _NUMBERS:
        return _number_key
    if type_oid in _PADDED:
        return str.rstrip
    return str


def _number_key(text: str) -> tuple[int, Decimal]:
    # PostgreSQL holds NaN equal to itself and above everything else.
    return (1, Decimal(0)) if text == "NaN" else (0, Decimal(text))


_COMPARISONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}
