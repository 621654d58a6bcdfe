"""What a pass asks its driver to do, written down without I/O.

A pass is a generator that yields these and is sent what came of it; an error that waiting does not
heal is thrown into it. So each procedure is written once for both colours.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from supabase_resilience._queries import Condition, Rpc, Select
from supabase_resilience.verification._rules import Rule

__all__ = ["Begin", "Call", "Command", "Count", "Get", "Page", "Plan", "Read", "Wait", "Write"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Read:
    """Rows; with `rule` only those that violate it. The answer is a list."""

    select: Select
    rule: Rule | None = None


class Begin(NamedTuple):
    """Send a read and go on; the answer is a ticket."""

    read: Read


class Get(NamedTuple):
    """The `Page` of a ticket."""

    ticket: Any


class Page(NamedTuple):
    """Rows, and the seconds that the server took for them."""

    rows: list[dict[str, Any]]
    seconds: float


class Count(NamedTuple):
    """About how many rows there are; the answer is a number or None."""


@dataclass(frozen=True, slots=True)
class Write:
    """Set columns of at most one row; the answer is the rows that were written."""

    patch: Mapping[str, Any]
    where: Sequence[Condition]
    key: Sequence[str]


class Call(NamedTuple):
    """A function of the user; the answer is what it returned."""

    function: Callable[..., Any]
    argument: Any


class Wait(NamedTuple):
    """Let time pass."""

    seconds: float


Command = Read | Begin | Get | Count | Write | Call | Wait | Rpc
Plan = Generator[Command, Any, T]
