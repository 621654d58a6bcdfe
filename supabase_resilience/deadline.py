"""`with deadline(2.0):` gives everything inside two seconds, all attempts and waits together.

It is a promise to whoever waits for *us*: a web request that must answer in two seconds gains
nothing from a query that may take fifteen. It travels in a context variable, so it holds across
function calls, awaits and tasks started inside, but not in threads (give those one of their own).
"""

from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Self

from supabase_resilience import _clock
from supabase_resilience._checks import check_seconds

__all__ = ["deadline", "deadline_at"]

_Outer = tuple[float | None, "_Outer | None"]

_at: ContextVar[float | None] = ContextVar("supabase_resilience_deadline", default=None)
# What to go back to. Not in the object, so that one may be shared by tasks, or nested in itself.
_outer: ContextVar[_Outer | None] = ContextVar("supabase_resilience_outer_deadline", default=None)


class deadline:  # noqa: N801 - used like a function: `with deadline(2.0):`
    """Cap every attempt, wait and retry of protected calls inside the block.

    `seconds` counts from entering the block. Within another deadline the earlier one holds. It
    does not interrupt code of yours: it is what protected calls look at. A call that starts when
    nothing is left raises `httpx.PoolTimeout` without sending anything.

    Raises `ValueError` when `seconds` is not above 0, `TypeError` when it is no number.
    """

    def __init__(self, seconds: float) -> None:
        check_seconds("seconds", seconds)
        self._seconds = seconds

    def __enter__(self) -> Self:
        outer = _at.get()
        at = _clock.monotonic() + self._seconds
        _outer.set((outer, _outer.get()))
        _at.set(at if outer is None else min(at, outer))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        at, further = _outer.get() or (None, None)
        _at.set(at)
        _outer.set(further)


deadline_at: Callable[[], float | None] = _at.get
"""When the deadline around this code passes, on the monotonic clock; None without one."""
