"""How many rows a page asks for, and which part of the keys a scan goes through."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from supabase_resilience._queries import Condition

__all__ = ["KeyRange", "PageSize"]

TARGET = 0.5
"""Seconds a page may take, as in pt-table-checksum: far below every statement timeout."""
_SMALLEST = 10
_LARGEST = 1000
"""Supabase's API returns no more, and says nothing about it."""
_GROWTH = 1.5


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The rows whose first key column is above `after` and at most `upto`; None is no bound.

    JSON-able, so it can travel as the data of a job.
    """

    after: Any = None
    upto: Any = None

    def conditions(self, column: str) -> list[Condition]:
        """As PostgREST wants it."""
        above = [] if self.after is None else [(column, "gt", str(self.after))]
        return above if self.upto is None else [*above, (column, "lte", str(self.upto))]

    def to_json(self) -> dict[str, Any]:
        """For a job, or a cursor."""
        return {"after": self.after, "upto": self.upto}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "KeyRange":
        """Read it back."""
        return cls(saved["after"], saved["upto"])

    @classmethod
    def between(cls, bounds: Sequence[Any]) -> "list[KeyRange]":
        """The ranges that lie between these cuts, with those at both ends."""
        return [
            cls(after, upto) for after, upto in zip([None, *bounds], [*bounds, None], strict=True)
        ]


class PageSize:
    """Grows while pages are quick, shrinks when they are slow, and halves at a timeout."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._largest = max(size, _LARGEST)

    def took(self, seconds: float) -> None:
        """A page that was followed by another one came back."""
        if seconds > TARGET:
            self.size = max(min(self.size, _SMALLEST), int(self.size * TARGET / seconds))
        elif seconds < TARGET / 2:
            self.size = min(self._largest, max(self.size + 1, int(self.size * _GROWTH)))

    def timed_out(self) -> bool:
        """A page took too long; False when it cannot be any smaller."""
        if self.size <= 1:
            return False
        self.size = max(1, self.size // 2)
        self._largest = max(self.size, _SMALLEST)
        return True
