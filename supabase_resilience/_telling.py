"""How a part tells the user's hook: of what happened, and of what begins and ends.

A hook is any callable that takes an event. One that is an object may have `span(name, attributes)`
besides, which gives a context manager: it is around each call, job, handler and batch then. One
with `observe(stats)` is shown the statistics of all parts now and then. What a hook raises is
logged and changes nothing.
"""

import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Any, TypeVar, cast

from supabase_resilience._checks import check_callable, is_async
from supabase_resilience.events import Event, Hook

__all__ = [
    "BATCH",
    "CALL",
    "HANDLER",
    "JOB",
    "Attributes",
    "Hooks",
    "Span",
    "logger",
    "show",
    "span_of",
    "spanned",
    "tell",
]

Attributes = Mapping[str, str | int]
Span = Callable[[str, Attributes], AbstractContextManager[Any]]
# The names of spans.
CALL = "resilience.call"
JOB = "queue.job"
HANDLER = "listener.handler"
BATCH = "verification.batch"
Handler = TypeVar("Handler", bound=Callable[..., Any])
_logger = logging.getLogger("supabase_resilience")


_UNSAID = "(its message is not logged: it may hold a row)"


class _DiscreetLogger:
    """Logs where an error of a function of the app's came from and its type, never its message.

    That may have a row in it, as may the error because of which the function was called.
    """

    def exception(self, said: str, *given: object) -> None:
        """Log the error that is being handled."""
        error = sys.exception()
        _logger.error(said, *given, exc_info=error and _unsaid(error), stacklevel=2)


logger = _DiscreetLogger()


def _unsaid(error: BaseException) -> BaseException:
    """An error of the same name and place that says nothing and came from nothing."""
    kind = type(error)
    made = type(kind.__name__, (Exception,), {"__module__": kind.__module__})(_UNSAID)
    return cast("BaseException", made.with_traceback(error.__traceback__))


def tell(hook: Hook, event: Event) -> None:
    """Tell the hook; what it raises is logged."""
    try:
        hook(event)
    except Exception:
        logger.exception("on_event failed for %s", event.name)


class Hooks:
    """Several hooks as one: `on_event=Hooks(log_event, PrometheusHook())`.

    Each is told each event, in the order given; what one raises is logged and keeps no other from
    being told. Spans of those that make any are nested in the same order. `TypeError` for what
    cannot be called.
    """

    spans_never_raise = True

    def __init__(self, *hooks: Hook) -> None:
        for hook in hooks:
            check_callable("hooks", hook)
        self._hooks = hooks
        spans = [span for hook in hooks if (span := span_of(hook)) is not None]
        self.span: Span | None = _nested(spans) if len(spans) > 1 else next(iter(spans), None)

    def __call__(self, event: Event) -> None:
        """Tell them all."""
        for hook in self._hooks:
            tell(hook, event)

    def observe(self, stats: Mapping[str, Any]) -> None:
        """Show statistics to those that want to see them."""
        for hook in self._hooks:
            show(hook, stats)


def show(hook: Hook, stats: Mapping[str, Any]) -> None:
    """Show statistics to a hook that has `observe(stats)`; what it raises is logged."""
    observe = getattr(hook, "observe", None)
    if observe is not None:
        try:
            observe(stats)
        except Exception:
            logger.exception("on_event failed to observe the statistics")


def _nested(spans: list[Span]) -> Span:
    @contextmanager
    def span(name: str, attributes: Attributes) -> Generator[None, None, None]:
        with ExitStack() as stack:
            for each in spans:
                stack.enter_context(each(name, attributes))
            yield

    return span


def span_of(hook: Hook) -> Span | None:
    """What a hook puts around work, made safe; None for one that only hears of events.

    One that has `spans_never_raise` has seen to that itself: a wrapper costs as much as a timer.
    """
    span = getattr(hook, "span", None)
    if span is None or getattr(hook, "spans_never_raise", False):
        return cast("Span | None", span)
    return lambda name, attributes: _Safe(span, name, attributes)


class _Safe(AbstractContextManager[None]):
    """A hook's span: its own errors are logged, those of the work pass."""

    __slots__ = ("_attributes", "_made", "_name", "_span")

    def __init__(self, span: Span, name: str, attributes: Attributes) -> None:
        self._span, self._name, self._attributes = span, name, attributes
        self._made: AbstractContextManager[Any] | None = None

    def __enter__(self) -> None:
        try:
            made = self._span(self._name, self._attributes)
            made.__enter__()
            self._made = made
        except Exception:
            logger.exception("a span of %s failed", self._name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._made is None:
            return
        try:
            self._made.__exit__(kind, error, traceback)
        except Exception as failure:
            if failure is not error:
                logger.exception("a span of %s failed", self._name)


def spanned(
    hook: Hook, name: str, attributes: Callable[..., Attributes], handler: Handler
) -> Handler:
    """The same handler, of the same kind, with the hook's span around each call.

    `attributes` is given what the handler is given. The handler itself, if the hook has no spans.
    """
    span = span_of(hook)
    if span is None:
        return handler
    if is_async(handler):

        async def run_async(*args: Any) -> Any:
            with span(name, attributes(*args)):
                return await handler(*args)

        return cast("Handler", run_async)

    def run(*args: Any) -> Any:
        with ExitStack() as stack:
            stack.enter_context(span(name, attributes(*args)))
            result = handler(*args)
            if inspect.isawaitable(result):  # a plain function that hands out a coroutine
                return _awaited(result, stack.pop_all())
            return result

    return cast("Handler", run)


async def _awaited(result: Awaitable[Any], stack: ExitStack) -> Any:
    with stack:
        return await result
