"""What a verification is told when it is made, checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from typing import Any

from supabase_resilience._checks import (
    check_callable,
    check_count,
    check_number,
    check_optional,
    check_seconds,
    check_text,
)
from supabase_resilience.events import Hook
from supabase_resilience.verification._pass import Way
from supabase_resilience.verification._rules import Rule, check_rules

__all__ = ["Settings", "Window"]


class Window:
    """The hours of a day in which to work, by this machine's clock; may span midnight."""

    def __init__(self, begin: time, end: time) -> None:
        self._begin = begin
        self._end = end

    @classmethod
    def of(cls, value: Any) -> "Window | None":
        """Read `("01:00", "05:00")`; raises `ValueError` and `TypeError` for anything else."""
        if value is None:
            return None
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
            raise TypeError(f"only_between must be two times, ('01:00', '05:00'), got {value!r}")
        try:
            begin, end = (time.fromisoformat(each) for each in value)
        except (TypeError, ValueError):
            raise ValueError(
                f"only_between must be two times like '01:00', got {value!r}"
            ) from None
        if begin == end:
            raise ValueError(f"only_between must be two different times, got {value!r}")
        return cls(begin, end)

    def seconds_until(self, now: datetime) -> float:
        """How long to wait for it, 0 within it."""
        moment = now.time()
        inside = (
            self._begin <= moment < self._end
            if self._begin < self._end
            else moment >= self._begin or moment < self._end
        )
        if inside:
            return 0.0
        start = now.replace(
            hour=self._begin.hour,
            minute=self._begin.minute,
            second=self._begin.second,
            microsecond=0,
        )
        return (start - now).total_seconds() % 86_400


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of `ServerSideVerification` and `AsyncServerSideVerification`; see there."""

    table: str
    schema: str
    id_column: str | Sequence[str]
    rules: Sequence[Rule]
    data_validator: Callable[[dict[str, Any]], Any] | None
    fix_missing_data: Callable[[Any], Any] | None
    interval: float
    batch_size: int
    grace: float
    ranges: int
    dry_run: bool
    max_fixes: int
    max_share: float
    changed_since: str | None
    overlap: float
    full_every: int
    lease: str | None
    cursor: Any
    throttle: Callable[[], Any] | None
    only_between: Any
    on_event: Hook

    def __post_init__(self) -> None:
        check_text("table", self.table)
        check_text("schema", self.schema)
        _check_key(self.id_column)
        check_seconds("interval", self.interval)
        check_number("grace", self.grace, at_least=0)
        check_number("overlap", self.overlap, at_least=0)
        check_number("max_share", self.max_share, at_least=0)
        for name in ("batch_size", "ranges", "full_every"):
            check_count(name, getattr(self, name))
        check_count("max_fixes", self.max_fixes, at_least=0)
        for name in ("data_validator", "fix_missing_data", "throttle"):
            check_optional(check_callable, name, getattr(self, name))
        for name in ("changed_since", "lease"):
            check_optional(check_text, name, getattr(self, name))
        check_callable("on_event", self.on_event)
        Window.of(self.only_between)
        if isinstance(self.rules, Rule | str) or not isinstance(self.rules, Sequence):
            raise TypeError(f"rules must be a sequence of Rule, got {self.rules!r}")
        check_rules(self.all_rules())
        if self.cursor is not None and not (
            hasattr(self.cursor, "load") and hasattr(self.cursor, "save")
        ):
            raise TypeError(f"cursor must be a cursor store, got {self.cursor!r}")

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the key."""
        return (self.id_column,) if isinstance(self.id_column, str) else tuple(self.id_column)

    @property
    def name(self) -> str:
        """How events and reports call the table."""
        return f"{self.schema}.{self.table}"

    def all_rules(self) -> list[Rule]:
        """The rules, with the one made of `data_validator`."""
        if self.data_validator is None:
            return list(self.rules)
        return [*self.rules, Rule("data_validator", check=self.data_validator)]

    def way(self, *, is_dry_run: bool) -> Way:
        """How a pass goes about it."""
        return Way(
            rules=self.all_rules(),
            fix_missing_data=self.fix_missing_data,
            page_size=self.batch_size,
            grace=self.grace,
            is_dry_run=is_dry_run or self.dry_run,
        )


def _check_key(id_column: Any) -> None:
    if not isinstance(id_column, str | Sequence):
        raise TypeError(f"id_column must be a string or a tuple of them, got {id_column!r}")
    columns = [id_column] if isinstance(id_column, str) else id_column
    for column in columns or ("",):
        check_text("id_column", column)
    if len(set(columns)) < len(columns):
        raise ValueError(f"id_column must name each column once, got {id_column!r}")
