"""A breaker around a block, and as a decorator for the four kinds of function that Python has.

A function and a coroutine function are one call each. A generator is one call from its first item
to its end, but the code between its items is the reader's: only the steps run inside the call.
"""

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from types import TracebackType
from typing import Any, ParamSpec, Protocol, Self, TypeVar, cast

from supabase_resilience._calls import Within
from supabase_resilience._circuit import Permit
from supabase_resilience._failure_table import SUCCESS
from supabase_resilience.failures import Classification

P = ParamSpec("P")
T = TypeVar("T")


class Breaker(Protocol):
    """What a decorator needs of a breaker."""

    def execute(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T: ...
    def acquire(self) -> Permit: ...
    def settle(self, permit: Permit, outcome: Classification) -> None: ...
    def judge(self, permit: Permit, error: BaseException) -> None: ...


class Guard:
    """One guarded block; made by `CircuitBreaker.guard()`, good for one use."""

    __slots__ = ("_breaker", "_permit", "_within")

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker

    def __enter__(self) -> Self:
        self._permit = self._breaker.acquire()
        self._within = Within(self._breaker, is_probe=self._permit.is_probe)
        self._within.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._within.__exit__()
        if error is None:
            self._breaker.settle(self._permit, SUCCESS)
        else:
            self._breaker.judge(self._permit, error)


def decorate(breaker: Breaker, fn: Callable[P, T]) -> Callable[P, T]:
    """`fn`, each call of it guarded by `breaker`."""
    if inspect.isasyncgenfunction(fn):
        return cast("Callable[P, T]", _async_generator(breaker, fn))
    if inspect.isgeneratorfunction(fn):
        return cast("Callable[P, T]", _generator(breaker, fn))
    if inspect.iscoroutinefunction(fn):
        return cast("Callable[P, T]", _coroutine(breaker, fn))

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if kwargs:  # kept out of the way of `fallback`, which is execute()'s own
            return breaker.execute(functools.partial(fn, *args, **kwargs))
        return breaker.execute(fn, *args)

    return call


def _coroutine(breaker: Breaker, fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await breaker.execute(functools.partial(fn, *args, **kwargs))

    return call


def _timeless(permit: Permit) -> Permit:
    """A permit of which nobody asks how long it was held: the reader's time counts in it."""
    permit.started_at = None
    return permit


def _generator(
    breaker: Breaker, fn: Callable[..., Generator[Any, Any, Any]]
) -> Callable[..., Generator[Any, Any, Any]]:
    @functools.wraps(fn)
    def generate(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        source = fn(*args, **kwargs)
        permit = _timeless(breaker.acquire())
        step: Callable[[Any], Any] = source.send
        sent: Any = None
        try:
            while True:
                with Within(breaker, is_probe=permit.is_probe):
                    item = step(sent)
                try:
                    step, sent = source.send, (yield item)
                except GeneratorExit:
                    raise
                except BaseException as thrown:  # noqa: BLE001 - it goes on into the source
                    step, sent = source.throw, thrown
        except StopIteration as end:
            breaker.settle(permit, SUCCESS)
            return end.value
        except BaseException as error:
            breaker.judge(permit, error)
            source.close()
            raise

    return generate


def _async_generator(
    breaker: Breaker, fn: Callable[..., AsyncGenerator[Any, Any]]
) -> Callable[..., AsyncGenerator[Any, Any]]:
    @functools.wraps(fn)
    async def generate(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        source = fn(*args, **kwargs)
        permit = _timeless(breaker.acquire())
        step: Callable[[Any], Any] = source.asend
        sent: Any = None
        try:
            while True:
                with Within(breaker, is_probe=permit.is_probe):
                    item = await step(sent)
                try:
                    step, sent = source.asend, (yield item)
                except GeneratorExit:
                    raise
                except BaseException as thrown:  # noqa: BLE001 - it goes on into the source
                    step, sent = source.athrow, thrown
        except StopAsyncIteration:
            breaker.settle(permit, SUCCESS)
        except BaseException as error:
            breaker.judge(permit, error)
            await source.aclose()
            raise

    return generate
