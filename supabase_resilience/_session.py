"""The guarded HTTP session: one request through breaker, timeouts and retries, in both colours.

`Guard` holds the decisions that both share; the two sessions only carry them out. A session is a
subclass of httpx's client class that borrows everything but `request()` from the one it guards.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, cast

import httpx

from supabase_resilience import _clock
from supabase_resilience._circuit import Permit
from supabase_resilience.breaker import CircuitBreaker
from supabase_resilience.deadline import deadline_at
from supabase_resilience.errors import CircuitOpenError
from supabase_resilience.failures import Classification, classify
from supabase_resilience.retry import Attempt, RetryConfig, Schedule

__all__ = ["AsyncGuardedSession", "Guard", "GuardedSession"]

_READS = frozenset({"GET", "HEAD"})


class Guard:
    """What all calls of a protected client share: the breaker, the numbers, the decisions."""

    __slots__ = ("breaker", "config")

    def __init__(self, breaker: CircuitBreaker, config: RetryConfig) -> None:
        self.breaker = breaker
        self.config = config

    def answered(self, permit: Permit, method: str, response: httpx.Response) -> Attempt | None:
        """Judge an attempt by its response and give its permit back; None for a success."""
        meaning = classify(response)
        self.breaker.settle(permit, meaning)
        if meaning.verdict == "success":
            return None
        return Attempt(meaning, may_repeat=_may_repeat(permit, method, meaning), response=response)

    def failed(
        self, permit: Permit, method: str, error: Exception, response: httpx.Response | None
    ) -> Attempt:
        """Judge an attempt by its exception; `response` if one had begun to arrive."""
        meaning = classify(error)
        if response is not None and response.is_success:
            # PostgREST commits before it answers, so what broke midway was applied.
            meaning = replace(meaning, write_applied="yes")
        self.breaker.settle(permit, meaning)
        return Attempt(meaning, may_repeat=_may_repeat(permit, method, meaning), error=error)

    def schedule(self, countdown: "Countdown") -> Schedule:
        """When to try again after a first failure."""
        return Schedule(self.config, self.breaker, countdown.ends_at)


def _may_repeat(permit: Permit, method: str, meaning: Classification) -> bool:
    """A probe is never repeated; a write only when it was provably not applied."""
    if permit.is_probe or not meaning.retryable:
        return False
    return method in _READS or meaning.write_applied == "no"


class Countdown(Mapping[str, float | None]):
    """The time that one call has left: in all, and for the attempt that is under way.

    It is also the timeout of each phase of the request, as httpx's request extension `timeout`:
    httpcore asks for one as its phase begins, and gets no more than what is left of the attempt.
    Four fixed phases of ten seconds each would make an attempt of forty.
    """

    __slots__ = ("_attempt_ends_at", "_attempt_timeout", "_usual", "ends_at")

    def __init__(self, usual: httpx.Timeout, config: RetryConfig) -> None:
        now = _clock.monotonic()
        limit = deadline_at()
        ends_at = now + config.total_timeout
        self.ends_at = ends_at if limit is None else min(ends_at, limit)
        self._attempt_timeout = config.attempt_timeout
        self._attempt_ends_at = 0.0
        self._usual = usual

    def start_attempt(self) -> None:
        """Begin an attempt now, or refuse to when nothing is left."""
        now = _clock.monotonic()
        if now >= self.ends_at:
            # Nothing was sent: not the service's fault, and any write may be repeated.
            raise httpx.PoolTimeout("the deadline passed before the request was sent")
        self._attempt_ends_at = min(now + self._attempt_timeout, self.ends_at)

    def check(self) -> None:
        """Refuse the next piece of a body that arrives drop by drop."""
        if _clock.monotonic() >= self._attempt_ends_at:
            raise httpx.ReadTimeout("the answer took too long to arrive in full")

    def __getitem__(self, phase: str) -> float | None:
        """The seconds that `phase` may take from now on."""
        usual = self._usual.as_dict()[phase]
        # Never 0: to a socket that would mean "do not wait", which is another error.
        left = max(self._attempt_ends_at - _clock.monotonic(), 0.001)
        return left if usual is None else min(left, usual)

    def __iter__(self) -> Iterator[str]:
        return iter(self._usual.as_dict())

    def __len__(self) -> int:
        return len(self._usual.as_dict())


# --- sync ---------------------------------------------------------------------------------------


class GuardedSession(httpx.Client):
    """An `httpx.Client` that is the one `inner()` answers, with a guard around `request()`."""

    def __init__(self, inner: Callable[[], httpx.Client], guard: Guard) -> None:
        self._inner = inner
        self._guard = guard

    def __getattr__(self, name: str) -> Any:
        return _borrowed(self, name)

    def close(self) -> None:
        """Close the guarded session's connections."""
        self._inner().close()

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
        session = self._inner()
        countdown = Countdown(session.timeout, self._guard.config)
        timed = {"timeout": countdown}
        options["extensions"] = {**extensions, **timed} if extensions else timed
        made = self._attempt(session, countdown, method, url, auth, follow_redirects, options)
        if isinstance(made, httpx.Response):
            return made
        if made.may_repeat:
            retryer = self._guard.schedule(countdown).blocking(time.sleep)
            attempt = partial(
                self._attempt, session, countdown, method, url, auth, follow_redirects, options
            )
            return cast("httpx.Response", retryer(partial(next, _attempts(made, attempt))).result())
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
            countdown.start_attempt()
            response = session.send(
                session.build_request(method, url, **options),
                stream=True,
                auth=auth,
                follow_redirects=follow_redirects,
            )
            response.stream = _Body(cast("httpx.SyncByteStream", response.stream), countdown)
            response.read()
        except Exception as error:  # noqa: BLE001 - it is judged, and raised by Attempt.result()
            attempt = guard.failed(permit, method, error, response)
            if response is not None:
                response.close()
            return attempt
        except BaseException:
            guard.breaker.release(permit)
            if response is not None:
                response.close()
            raise
        return guard.answered(permit, method, response) or response


def _attempts(made: Attempt, attempt: Callable[[], httpx.Response | Attempt]) -> Iterator[Attempt]:
    """The attempt already made, then new ones; a success is one more."""
    while True:
        yield made
        try:
            made = Attempt.of(attempt())
        except CircuitOpenError:  # it opened during the wait: the last real error counts
            made = made.final()


class _Body(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, countdown: Countdown) -> None:
        self._stream = stream
        self._countdown = countdown

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            yield piece
            self._countdown.check()

    def close(self) -> None:
        self._stream.close()


# --- async --------------------------------------------------------------------------------------


class AsyncGuardedSession(httpx.AsyncClient):
    """An `httpx.AsyncClient` that is the one `inner()` answers, with a guard around `request()`."""

    def __init__(self, inner: Callable[[], httpx.AsyncClient], guard: Guard) -> None:
        self._inner = inner
        self._guard = guard

    def __getattr__(self, name: str) -> Any:
        return _borrowed(self, name)

    async def aclose(self) -> None:
        """Close the guarded session's connections."""
        await self._inner().aclose()

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
        session = self._inner()
        countdown = Countdown(session.timeout, self._guard.config)
        timed = {"timeout": countdown}
        options["extensions"] = {**extensions, **timed} if extensions else timed
        made = await self._attempt(session, countdown, method, url, auth, follow_redirects, options)
        if isinstance(made, httpx.Response):
            return made
        if made.may_repeat:
            retryer = self._guard.schedule(countdown).awaiting(asyncio.sleep)
            attempt = partial(
                self._attempt, session, countdown, method, url, auth, follow_redirects, options
            )
            async with aclosing(_async_attempts(made, attempt)) as attempts:

                async def next_attempt() -> Attempt:
                    return await anext(attempts)

                return cast("httpx.Response", (await retryer(next_attempt)).result())
        return cast("httpx.Response", made.result())

    async def _attempt(  # noqa: PLR0917 - the arguments of httpx, and the time they have
        self,
        session: httpx.AsyncClient,
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
            countdown.start_attempt()
            response = await session.send(
                session.build_request(method, url, **options),
                stream=True,
                auth=auth,
                follow_redirects=follow_redirects,
            )
            response.stream = _AsyncBody(cast("httpx.AsyncByteStream", response.stream), countdown)
            await response.aread()
        except Exception as error:  # noqa: BLE001 - it is judged, and raised by Attempt.result()
            attempt = guard.failed(permit, method, error, response)
            if response is not None:
                await response.aclose()
            return attempt
        except BaseException:
            guard.breaker.release(permit)
            if response is not None:
                await response.aclose()
            raise
        return guard.answered(permit, method, response) or response


async def _async_attempts(
    made: Attempt, attempt: Callable[[], Awaitable[httpx.Response | Attempt]]
) -> AsyncGenerator[Attempt, None]:
    """The attempt already made, then new ones; a success is one more."""
    while True:
        yield made
        try:
            made = Attempt.of(await attempt())
        except CircuitOpenError:  # it opened during the wait: the last real error counts
            made = made.final()


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, countdown: Countdown) -> None:
        self._stream = stream
        self._countdown = countdown

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            yield piece
            self._countdown.check()

    async def aclose(self) -> None:
        await self._stream.aclose()


def _borrowed(session: Any, name: str) -> Any:
    """An attribute of the session behind; a half-made object (copy, pickle) has none yet."""
    inner = vars(session).get("_inner")
    if inner is None:
        raise AttributeError(name)
    return getattr(inner(), name)
