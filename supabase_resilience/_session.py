"""The guarded HTTP session: one request through breaker, timeouts and retries, in both colours.

`Guard` holds the decisions that both share; the two sessions only carry them out. A session is a
subclass of httpx's client class that borrows everything but `request()` from the one it guards.
"""

import asyncio
import json
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Hashable,
    Iterator,
    Mapping,
)
from contextlib import aclosing
from dataclasses import replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import httpx

from supabase_resilience import _clock
from supabase_resilience._circuit import Permit
from supabase_resilience._countdown import Countdown, StrictCountdown
from supabase_resilience._failure_table import DUPLICATE, SUCCESS
from supabase_resilience._requests import (
    Target,
    answer_as_applied,
    is_repeatable,
    is_repeated_insert,
    target_of,
)
from supabase_resilience._telling import CALL, Attributes, Span, span_of
from supabase_resilience.breaker import RELEASED, CircuitBreaker
from supabase_resilience.breakers import CircuitBreakers, KeyedPermit
from supabase_resilience.errors import CircuitOpenError
from supabase_resilience.failures import Classification, classify, is_plain_success
from supabase_resilience.retry import Attempt, RetryConfig, Schedule

__all__ = ["AsyncGuardedSession", "Guard", "GuardedSession"]

C_co = TypeVar("C_co", bound=httpx.Client | httpx.AsyncClient, covariant=True)
Options = dict[str, Any]
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
    """What all calls of a protected client share: breakers, numbers, and the decisions."""

    __slots__ = ("_classify", "_is_plain", "breaker", "breakers", "config", "sick", "span")

    def __init__(self, breakers: CircuitBreaker | CircuitBreakers, config: RetryConfig) -> None:
        self.breakers: CircuitBreaker | CircuitBreakers = breakers
        self.breaker: CircuitBreaker = (
            breakers.project if isinstance(breakers, CircuitBreakers) else breakers
        )
        self.config: RetryConfig = config
        self._classify = self.breaker.classify
        # One question instead of two for what nearly every response is.
        self._is_plain = is_plain_success if self._classify is classify else _never
        # Empty as long as no table or function has failed on its own; then looking is all it costs.
        self.sick: Mapping[Hashable, CircuitBreaker] = (
            breakers.by_key if isinstance(breakers, CircuitBreakers) else {}
        )
        self.span: Span | None = span_of(self.breaker.on_event)
        self.breaker.mark_calls()

    def attributes(self, method: str, url: Any, options: Options) -> Attributes:
        """What a span of a call says: names, never values."""
        return _attributes(self.breaker.name, target_of(method, url, _headers(options)))

    def acquire(self, method: str, url: Any, options: Options) -> Permit | KeyedPermit:
        """Leave for one attempt while something is `sick`: the project's, and that of its key."""
        target = target_of(method, url, _headers(options))
        permit = self.breaker.acquire()
        if isinstance(self.breakers, CircuitBreakers):
            return self.breakers.acquire(permit, target)
        return permit

    def release(self, permit: Permit | KeyedPermit) -> None:
        """Give it back without a verdict."""
        if isinstance(permit, KeyedPermit):
            permit.settle_key(RELEASED)
            permit = permit.project
        self.breaker.release(permit)

    def answered(
        self,
        permit: Permit | KeyedPermit,
        method: str,
        url: Any,
        options: Options,
        response: httpx.Response,
    ) -> Attempt | None:
        """Judge an attempt by its response and give its permit back; None for a success."""
        if self._is_plain(response) and isinstance(permit, Permit):
            self.breaker.settle(permit, SUCCESS)
            return None
        meaning = _after_redirect(self._classify(response), method, url, response.request)
        may_repeat = self._settle(permit, method, url, options, meaning)
        if meaning.verdict == "success":
            return None
        return Attempt(meaning, may_repeat=may_repeat, response=response)

    def failed(  # noqa: PLR0917 - the parts of a call
        self,
        permit: Permit | KeyedPermit,
        method: str,
        url: Any,
        options: Options,
        error: Exception,
        response: httpx.Response | None,
    ) -> Attempt:
        """Judge an attempt by its exception; `response` if one had begun to arrive."""
        meaning = _after_redirect(self._classify(error), method, url, _request_of(error))
        if response is not None and response.is_success:
            # PostgREST commits before it answers, so what broke midway was applied.
            meaning = replace(meaning, write_applied="yes")
        may_repeat = self._settle(permit, method, url, options, meaning)
        return Attempt(meaning, may_repeat=may_repeat, error=error)

    def _settle(
        self,
        permit: Permit | KeyedPermit,
        method: str,
        url: Any,
        options: Options,
        meaning: Classification,
    ) -> bool:
        """Give a permit back with its outcome; may the attempt be repeated? A probe never is."""
        may_repeat = meaning.retryable and not permit.is_probe
        if isinstance(permit, KeyedPermit):
            may_repeat = permit.settle_key(meaning) and may_repeat
            permit = permit.project
        elif meaning.scope == "query" and isinstance(self.breakers, CircuitBreakers):
            target = target_of(method, url, _headers(options))
            may_repeat = self.breakers.blame(target, meaning) and may_repeat
        self.breaker.settle(permit, meaning)
        return may_repeat and (
            meaning.write_applied == "no" or is_repeatable(method, url, _as_read(options))
        )

    def schedule(self, countdown: Countdown) -> Schedule:
        """When to try again after a first failure."""
        return Schedule(self.config, self.breaker, countdown.ends_at)

    def checked(self, call: "Call", made: Attempt, *, may_be_applied: bool) -> Attempt:
        """A later attempt; one refused as a duplicate of an earlier insert is a success."""
        is_duplicate = may_be_applied and made.meaning.reason == DUPLICATE.reason
        if not is_duplicate or made.response is None:
            return made
        options = _as_read(call.options)
        if not is_repeated_insert(call.method, call.url, options, made.response.content):
            return made
        status, rows = answer_as_applied(options)
        response = httpx.Response(
            status,
            content=b"" if rows is None else json.dumps(rows).encode(),
            headers={"content-type": "application/json"},
            request=made.response.request,
        )
        return Attempt.of(response)


class Call(NamedTuple):
    """What is sent."""

    method: str
    url: Any
    options: Options


@lru_cache(maxsize=256)
def _attributes(breaker: str, target: Target) -> Attributes:
    where = {} if target.schema == "public" else {"schema": target.schema}
    kind = "function" if target.is_rpc else "table"
    facts = {"breaker": breaker, "method": target.method, **where, kind: target.name}
    return MappingProxyType(facts)  # shared by all that ask for it


def _after_redirect(
    meaning: Classification, method: str, url: Any, last: httpx.Request | None
) -> Classification:
    """What failed was perhaps another request, after the first one had its effect."""
    if last is None or meaning.write_applied != "no":
        return meaning
    is_same = last.method == method and last.url.copy_with(query=None) == httpx.URL(str(url))
    return meaning if is_same else replace(meaning, write_applied="maybe")


def _request_of(error: Exception) -> httpx.Request | None:
    try:
        return error.request if isinstance(error, httpx.RequestError) else None
    except RuntimeError:  # raised by somebody who did not know the request
        return None


def _never(_: httpx.Response) -> bool:
    return False


def _headers(options: Options) -> httpx.Headers:
    headers = options.get("headers")
    return headers if isinstance(headers, httpx.Headers) else httpx.Headers(headers)


def _as_read(options: Options) -> Options:
    """The same, with headers and params as httpx reads them, however they are given."""
    params = httpx.QueryParams(options.get("params"))
    return {**options, "headers": _headers(options), "params": params}


# --- sync ---------------------------------------------------------------------------------------


class GuardedSession(httpx.Client):
    """An `httpx.Client` that is the session of `inner`, with a guard around `request()`."""

    def __init__(self, inner: HasSession[httpx.Client], guard: Guard) -> None:
        self._inner = inner
        self._guard = guard
        if guard.span is not None:
            self.request = _in_span(guard, guard.span, self.request)  # type: ignore[method-assign]

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
        countdown = Countdown(session, self._guard.config)
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
            checked = partial(self._guard.checked, Call(method, url, options))
            return cast(
                "httpx.Response",
                retryer(partial(next, _attempts(made, countdown, attempt, checked))).result(),
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
        options: Options,
    ) -> httpx.Response | Attempt:
        guard = self._guard
        permit = guard.acquire(method, url, options) if guard.sick else guard.breaker.acquire()
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
            made = guard.failed(permit, method, url, options, error, response)
        except BaseException:
            guard.release(permit)
            _close(response)
            raise
        else:
            return guard.answered(permit, method, url, options, response) or response
        _close(response)
        return made


def _in_span(
    guard: Guard, span: Span, request: Callable[..., httpx.Response]
) -> Callable[..., httpx.Response]:
    def request_in_span(method: str, url: Any, **options: Any) -> httpx.Response:
        with span(CALL, guard.attributes(method, url, options)):
            return request(method, url, **options)

    return request_in_span


def _close(response: httpx.Response | None) -> None:
    if response is not None:
        response.close()


def _attempts(
    made: Attempt,
    countdown: Countdown,
    attempt: Callable[[], httpx.Response | Attempt],
    checked: Callable[..., Attempt],
) -> Iterator[Attempt]:
    """The attempt already made, then new ones; a success is one more."""
    may_be_applied = False
    while True:
        yield made
        may_be_applied = may_be_applied or made.meaning.write_applied != "no"
        try:
            countdown.start_attempt(_clock.monotonic())
            made = checked(Attempt.of(attempt()), may_be_applied=may_be_applied)
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
        if guard.span is not None:
            self.request = _in_span_async(guard, guard.span, self.request)  # type: ignore[method-assign] # pyright: ignore[reportAttributeAccessIssue]

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
        countdown = StrictCountdown(session, self._guard.config)
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
            checked = partial(self._guard.checked, Call(method, url, options))
            async with aclosing(_async_attempts(made, countdown, attempt, checked)) as attempts:

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
        options: Options,
    ) -> httpx.Response | Attempt:
        guard = self._guard
        permit = guard.acquire(method, url, options) if guard.sick else guard.breaker.acquire()
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
            made = guard.failed(permit, method, url, options, error, response)
        except BaseException as error:
            if not (isinstance(error, asyncio.CancelledError) and countdown.has_struck()):
                guard.release(permit)
                await _aclose(response)
                raise
            made = guard.failed(
                permit, method, url, options, httpx.ReadTimeout(_TOO_LATE), response
            )
        else:
            return guard.answered(permit, method, url, options, response) or response
        finally:
            if countdown.was_asked:
                countdown.stop()
        await _aclose(response)
        return made


def _in_span_async(
    guard: Guard, span: Span, request: Callable[..., Coroutine[Any, Any, httpx.Response]]
) -> Callable[..., Coroutine[Any, Any, httpx.Response]]:
    async def request_in_span(method: str, url: Any, **options: Any) -> httpx.Response:
        with span(CALL, guard.attributes(method, url, options)):
            return await request(method, url, **options)

    return request_in_span


async def _aclose(response: httpx.Response | None) -> None:
    if response is not None:
        await response.aclose()


async def _async_attempts(
    made: Attempt,
    countdown: Countdown,
    attempt: Callable[[], Awaitable[httpx.Response | Attempt]],
    checked: Callable[..., Attempt],
) -> AsyncGenerator[Attempt, None]:
    """The attempt already made, then new ones; a success is one more."""
    may_be_applied = False
    while True:
        yield made
        may_be_applied = may_be_applied or made.meaning.write_applied != "no"
        try:
            countdown.start_attempt(_clock.monotonic())
            made = checked(Attempt.of(await attempt()), may_be_applied=may_be_applied)
        except _LOST_IN_WAITING:
            made = made.final()


def _borrowed(session: Any, name: str) -> Any:
    """An attribute of the session behind; a half-made object (copy, pickle) has none yet."""
    inner = vars(session).get("_inner")
    if inner is None:
        raise AttributeError(name)
    return getattr(inner.session, name)
