"""The guarded HTTP session: one request through breaker, timeouts and retries, in both colours.

`Guard` holds the decisions that both share; the two sessions only carry them out. A session is a
subclass of httpx's client class that borrows everything but `request()` from the one it guards.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import httpx

from supabase_resilience import _clock
from supabase_resilience._circuit import Permit
from supabase_resilience._countdown import Countdown, StrictCountdown
from supabase_resilience.breaker import CircuitBreaker
from supabase_resilience.errors import CircuitOpenError
from supabase_resilience.failures import Classification
from supabase_resilience.retry import Attempt, RetryConfig, Schedule

__all__ = ["AsyncGuardedSession", "Guard", "GuardedSession"]

C_co = TypeVar("C_co", bound=httpx.Client | httpx.AsyncClient, covariant=True)
_READS = frozenset({"GET", "HEAD"})
# While the next attempt was waited for, the circuit opened or the time ran out: then the last real
# error is what counts.
_LOST_IN_WAITING = (CircuitOpenError, httpx.PoolTimeout)
_TOO_LATE = "the answer has not arrived in full in time"


class HasSession(Protocol[C_co]):
    """Whoever holds the session to guard, and may replace it."""

    @property
    def session(self) -> C_co:
        """The session to use now."""
        ...


class Guard:
    """What all calls of a protected client share: the breaker, the numbers, the decisions."""

    __slots__ = ("_classify", "breaker", "config")

    def __init__(self, breaker: CircuitBreaker, config: RetryConfig) -> None:
        self.breaker = breaker
        self.config = config
        self._classify = breaker.classify

    def answered(self, permit: Permit, method: str, response: httpx.Response) -> Attempt | None:
        """Judge an attempt by its response and give its permit back; None for a success."""
        meaning = self._classify(response)
        self.breaker.settle(permit, meaning)
        if meaning.verdict == "success":
            return None
        return Attempt(meaning, may_repeat=_may_repeat(permit, method, meaning), response=response)

    def failed(
        self, permit: Permit, method: str, error: Exception, response: httpx.Response | None
    ) -> Attempt:
        """Judge an attempt by its exception; `response` if one had begun to arrive."""
        meaning = self._classify(error)
        if response is not None and response.is_success:
            # PostgREST commits before it answers, so what broke midway was applied.
            meaning = replace(meaning, write_applied="yes")
        self.breaker.settle(permit, meaning)
        return Attempt(meaning, may_repeat=_may_repeat(permit, method, meaning), error=error)

    def schedule(self, countdown: Countdown) -> Schedule:
        """When to try again after a first failure."""
        return Schedule(self.config, self.breaker, countdown.ends_at)


def _may_repeat(permit: Permit, method: str, meaning: Classification) -> bool:
    """A probe is never repeated; a write only when it was provably not applied."""
    if permit.is_probe or not meaning.retryable:
        return False
    return method in _READS or meaning.write_applied == "no"


# --- sync ---------------------------------------------------------------------------------------


class GuardedSession(httpx.Client):
    """An `httpx.Client` that is the session of `inner`, with a guard around `request()`."""

    def __init__(self, inner: HasSession[httpx.Client], guard: Guard) -> None:
        self._inner = inner
        self._guard = guard

    def __getattr__(self, name: str) -> Any:
        return _borrowed(self, name)

    def close(self) -> None:
        """Close the guarded session's connections."""
        self._inner.session.close()

    def request(
        self,
        method: str,
        url: Any,
        *,
        auth: Any = httpx.USE_CLIENT_DEFAULT,
        follow_redirects: Any = httpx.USE_CLIENT_DEFAULT,
        extensions: Any = None,
        **options: Any,
    ) -> httpx.Response:
        """One logical call: one attempt, and more of them where that is right."""
        session = self._inner.session
        countdown = Countdown(session.timeout, self._guard.config)
        timed = {"timeout": countdown}
        options["extensions"] = {**extensions, **timed} if extensions else timed
        made = self._attempt(session, countdown, method, url, auth, follow_redirects, options)
        if not isinstance(made, Attempt):
            return made
        if made.may_repeat:
            retryer = self._guard.schedule(countdown).blocking(time.sleep)
            attempt = partial(
                self._attempt, session, countdown, method, url, auth, follow_redirects, options
            )
            return cast(
                "httpx.Response",
                retryer(partial(next, _attempts(made, countdown, attempt))).result(),
            )
        return cast("httpx.Response", made.result())

    def _attempt(  # noqa: PLR0917 - the arguments of httpx, and the time they have
        self,
        session: httpx.Client,
        countdown: Countdown,
        method: str,
        url: Any,
        auth: Any,
        follow_redirects: Any,
        options: dict[str, Any],
    ) -> httpx.Response | Attempt:
        guard = self._guard
        permit = guard.breaker.acquire()
        response: httpx.Response | None = None
        try:
            response = session.send(
                session.build_request(method, url, **options),
                stream=True,
                auth=auth,
                follow_redirects=follow_redirects,
            )
            if countdown.was_asked:
                response.stream = _Body(cast("httpx.SyncByteStream", response.stream), countdown)
            response.read()
        except Exception as error:  # noqa: BLE001 - it is judged, and raised by Attempt.result()
            made = guard.failed(permit, method, error, response)
        except BaseException:
            guard.breaker.release(permit)
            _close(response)
            raise
        else:
            return guard.answered(permit, method, response) or response
        _close(response)
        return made


def _close(response: httpx.Response | None) -> None:
    if response is not None:
        response.close()


def _attempts(
    made: Attempt, countdown: Countdown, attempt: Callable[[], httpx.Response | Attempt]
) -> Iterator[Attempt]:
    """The attempt already made, then new ones; a success is one more."""
    while True:
        yield made
        try:
            countdown.start_attempt(_clock.monotonic())
            made = Attempt.of(attempt())
        except _LOST_IN_WAITING:
            made = made.final()


class _Body(httpx.SyncByteStream):
    """A body of which each piece has to arrive before the attempt is over."""

    def __init__(self, stream: httpx.SyncByteStream, countdown: Countdown) -> None:
        self._stream = stream
        self._countdown = countdown

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            yield piece
            if self._countdown.left() <= 0:
                raise httpx.ReadTimeout(_TOO_LATE)

    def close(self) -> None:
        self._stream.close()


# --- async --------------------------------------------------------------------------------------


class AsyncGuardedSession(httpx.AsyncClient):
    """An `httpx.AsyncClient` that is the session of `inner`, with a guard around `request()`."""

    def __init__(self, inner: HasSession[httpx.AsyncClient], guard: Guard) -> None:
        self._inner = inner
        self._guard = guard

    def __getattr__(self, name: str) -> Any:
        return _borrowed(self, name)

    async def aclose(self) -> None:
        """Close the guarded session's connections."""
        await self._inner.session.aclose()

    async def request(
        self,
        method: str,
        url: Any,
        *,
        auth: Any = httpx.USE_CLIENT_DEFAULT,
        follow_redirects: Any = httpx.USE_CLIENT_DEFAULT,
        extensions: Any = None,
        **options: Any,
    ) -> httpx.Response:
        """One logical call: one attempt, and more of them where that is right."""
        session = self._inner.session
        countdown = StrictCountdown(session.timeout, self._guard.config)
        timed = {"timeout": countdown}
        options["extensions"] = {**extensions, **timed} if extensions else timed
        made = await self._attempt(session, countdown, method, url, auth, follow_redirects, options)
        if not isinstance(made, Attempt):
            return made
        if made.may_repeat:
            retryer = self._guard.schedule(countdown).awaiting(asyncio.sleep)
            attempt = partial(
                self._attempt, session, countdown, method, url, auth, follow_redirects, options
            )
            async with aclosing(_async_attempts(made, countdown, attempt)) as attempts:

                async def next_attempt() -> Attempt:
                    return await anext(attempts)

                return cast("httpx.Response", (await retryer(next_attempt)).result())
        return cast("httpx.Response", made.result())

    async def _attempt(  # noqa: PLR0917 - the arguments of httpx, and the time they have
        self,
        session: httpx.AsyncClient,
        countdown: StrictCountdown,
        method: str,
        url: Any,
        auth: Any,
        follow_redirects: Any,
        options: dict[str, Any],
    ) -> httpx.Response | Attempt:
        guard = self._guard
        permit = guard.breaker.acquire()
        response: httpx.Response | None = None
        try:
            response = await session.send(
                session.build_request(method, url, **options),
                stream=True,
                auth=auth,
                follow_redirects=follow_redirects,
            )
            await response.aread()
        except Exception as error:  # noqa: BLE001 - it is judged, and raised by Attempt.result()
            made = guard.failed(permit, method, error, response)
        except BaseException as error:
            if not (isinstance(error, asyncio.CancelledError) and countdown.has_struck()):
                guard.breaker.release(permit)
                await _aclose(response)
                raise
            made = guard.failed(permit, method, httpx.ReadTimeout(_TOO_LATE), response)
        else:
            return guard.answered(permit, method, response) or response
        finally:
            if countdown.was_asked:
                countdown.stop()
        await _aclose(response)
        return made


async def _aclose(response: httpx.Response | None) -> None:
    if response is not None:
        await response.aclose()


async def _async_attempts(
    made: Attempt,
    countdown: Countdown,
    attempt: Callable[[], Awaitable[httpx.Response | Attempt]],
) -> AsyncGenerator[Attempt, None]:
    """The attempt already made, then new ones; a success is one more."""
    while True:
        yield made
        try:
            countdown.start_attempt(_clock.monotonic())
            made = Attempt.of(await attempt())
        except _LOST_IN_WAITING:
            made = made.final()


def _borrowed(session: Any, name: str) -> Any:
    """An attribute of the session behind; a half-made object (copy, pickle) has none yet."""
    inner = vars(session).get("_inner")
    if inner is None:
        raise AttributeError(name)
    return getattr(inner.session, name)
