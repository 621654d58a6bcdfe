"""Which guarded calls the running code is inside of.

`breaker.execute(lambda: protected.table(…).execute())` passes the same breaker twice. Counted as
two calls it would never close again: at half-open the outer call holds the only permit and the
inner one is refused. So a call marks the context, and the inner use finds itself in it.
"""

import sys
from contextvars import ContextVar
from types import CodeType


class Call:
    """A call of `owner` in progress; `owner` is None once it has ended.

    A task started within a call takes a copy of its context along and can outlive it: clearing
    `owner` ends the call there, too.
    """

    __slots__ = ("is_probe", "outer", "owner")

    def __init__(self, owner: object, outer: "Call | None", *, is_probe: bool = False) -> None:
        self.owner: object | None = owner
        self.is_probe = is_probe
        self.outer = outer


current_call: ContextVar[Call | None] = ContextVar("supabase_resilience_call", default=None)


def enclosing_call(owner: object) -> Call | None:
    """The innermost running call of `owner` around this code."""
    call = current_call.get()
    while call is not None and call.owner is not owner:
        call = call.outer
    return call


class Within:
    """`with Within(owner, is_probe=…):` marks the block as one call of `owner`."""

    __slots__ = ("_call",)

    def __init__(self, owner: object, *, is_probe: bool) -> None:
        self._call = Call(owner, current_call.get(), is_probe=is_probe)

    def __enter__(self) -> None:
        current_call.set(self._call)

    def __exit__(self, *_: object) -> None:
        self._call.owner = None
        current_call.set(self._call.outer)


def is_inside(owner: object, ways: tuple[CodeType, CodeType]) -> bool:
    """Whether a call of `owner` that left no mark is running further up, across awaits.

    Marking the context costs more than the rest of a call, so the plainest calls leave their mark
    in a local variable, `_running`, of the functions `ways`. Looked up only when some call is in
    progress at all.
    """
    call, finish = ways
    frame = sys._getframe(1)  # noqa: SLF001 - documented; there is no other way up
    while frame is not None:
        code = frame.f_code
        # By identity: comparing code objects by value costs more than the rest of the search.
        if (code is call or code is finish) and frame.f_locals.get("_running") is owner:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
