"""What a listener is told when it is made, checked."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from supabase_resilience._checks import check_callable, check_count, check_seconds, check_text
from supabase_resilience._queries import Condition
from supabase_resilience.events import Hook
from supabase_resilience.listener._levels import Recovery
from supabase_resilience.listener._reads import conditions_of

__all__ = ["EventKind", "OnHandlerError", "Overflow", "Settings", "StartFrom", "TokenSource"]

EventKind = Literal["*", "INSERT", "UPDATE", "DELETE"]
StartFrom = Literal["now", "beginning"]
Overflow = Literal["recover", "block"]
OnHandlerError = Literal["retry", "skip"]
TokenSource = str | Callable[[], str | Awaitable[str]] | None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of `RealtimeListener` and `AsyncRealtimeListener`; see there."""

    table: str
    schema: str
    event: EventKind
    filter: str | None
    id_column: str | Sequence[str]
    recovery: Recovery | None
    start_from: StartFrom
    cursor: Any
    token: TokenSource
    catch_up_interval: float
    ping_interval: float
    buffer_size: int
    overflow: Overflow
    on_handler_error: OnHandlerError
    on_event: Hook

    def __post_init__(self) -> None:
        check_text("table", self.table)
        check_text("schema", self.schema)
        _check_choice("event", self.event, ("*", "INSERT", "UPDATE", "DELETE"))
        _check_choice("start_from", self.start_from, ("now", "beginning"))
        _check_choice("overflow", self.overflow, ("recover", "block"))
        _check_choice("on_handler_error", self.on_handler_error, ("retry", "skip"))
        check_seconds("catch_up_interval", self.catch_up_interval)
        check_seconds("ping_interval", self.ping_interval)
        check_count("buffer_size", self.buffer_size)
        check_callable("on_event", self.on_event)
        self._check_key()
        self._check_recovery()
        self._check_filter()
        if self.token is not None and not callable(self.token):
            check_text("token", self.token)
        if self.cursor is not None and not (
            hasattr(self.cursor, "load") and hasattr(self.cursor, "save")
        ):
            raise TypeError(f"cursor must be a cursor store, got {self.cursor!r}")

    def _check_key(self) -> None:
        if not isinstance(self.id_column, str | tuple | list):
            raise TypeError(
                f"id_column must be a string or a tuple of strings, got {self.id_column!r}"
            )
        if not self.key:
            raise ValueError("id_column must not be empty")
        for column in self.key:
            check_text("id_column", column)

    def _check_recovery(self) -> None:
        if self.recovery is None:
            if self.cursor is not None:
                raise ValueError("cursor needs a recovery: without one there is nothing to resume")
            if self.start_from == "beginning":
                raise ValueError("start_from='beginning' needs a recovery, which reads the rows")
        elif not isinstance(self.recovery, Recovery):
            raise TypeError(f"recovery must be a Recovery or None, got {self.recovery!r}")
        elif self.is_log and self.filter is not None:
            raise ValueError(
                "filter cannot be used with Recovery.change_log(), which keeps the changes of all "
                "rows; look at change.new and change.old in the handler"
            )

    def _check_filter(self) -> None:
        if self.filter is not None:
            check_text("filter", self.filter)
        self.conditions()

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the key."""
        return (self.id_column,) if isinstance(self.id_column, str) else tuple(self.id_column)

    @property
    def name(self) -> str:
        """How events call the listener."""
        return f"{self.schema}.{self.table}"

    @property
    def is_log(self) -> bool:
        """Whether it follows the change log instead of the table."""
        return self.recovery is not None and self.recovery.level == "change_log"

    def conditions(self) -> list[Condition]:
        """The filter as PostgREST wants it."""
        return conditions_of(self.filter)


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
