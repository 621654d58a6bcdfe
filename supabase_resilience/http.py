"""Guarded httpx clients for supabase-py's `httpx_client`: Storage, Auth and Edge Functions.

All services but Realtime share the one `httpx_client` of a client's options, and every request of
theirs passes its public `send()`. Here `send()` hands each to its service, which has a breaker of
its own; requests to PostgREST pass untouched, as they are `protect()`'s.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, cast

import httpx
from supabase import ClientOptions

from supabase_resilience._countdown import Countdown, StrictCountdown
from supabase_resilience._exchange import Exchange, Watched
from supabase_resilience._services import Retry, Services, Timeout
from supabase_resilience._session import (
    _TOO_LATE,
    _aclose,
    _async_attempts,
    _attempts,
    _Body,
    _close,
)
from supabase_resilience.breaker import CircuitBreaker
from supabase_resilience.retry import Attempt

__all__ = [
    "AsyncResilientHttpClient",
    "ResilientHttpClient",
    "resilient_async_http_client",
    "resilient_http_client",
]

_USUAL: Mapping[str, Any] = {}
_DEFAULTS: Mapping[str, Any] = {
    "timeout": ClientOptions.postgrest_client_timeout,
    "follow_redirects": True,
}


def resilient_http_client(
    *,
    breakers: Mapping[str, CircuitBreaker] | None = None,
    retry: Retry = _USUAL,
    timeouts: Mapping[str, Timeout] | None = None,
    **options: Any,
) -> "ResilientHttpClient":
    """An `httpx.Client` that leaves a sick Storage, Auth or Edge Functions alone, each by itself.

    For `ClientOptions(httpx_client=resilient_http_client())`. Queries pass untouched: guard them
    with `protect()`, which works on the same client.

    - `breakers`: by service, `storage`, `auth` and `functions`; what is missing is made with its
      defaults. All are in the client's `breakers`: `client.breakers["auth"].get_stats()`.
    - `retry`: one `RetryConfig` for all, or a mapping by service; None means one attempt. By
      default each service has the usual one, with room for its timeout, and Storage with ten
      minutes for a transfer. Within that, `deadline()` holds.
    - `timeouts`: seconds, or an `httpx.Timeout`, by service: the limit for each phase of a request
      (connecting, each piece sent or read). By default supabase-py's own: storage 20, auth 5,
      functions 5. `timeout` is PostgREST's: 120.
    - `options` are those of `httpx.Client`. Redirects are followed, as supabase-py does; the API
      key goes along to the same origin only. `http2=True` is refused: an HTTP/2 session of httpx
      breaks when threads share it, and Auth refreshes its tokens in one.

    Repeated is what can be repeated: GET and HEAD, listing and signing files, uploads with
    `upsert`, and what was provably not done, such as a request without a connection; within
    `idempotent()` everything. Uploads from a file or an iterator are not repeated once a part of
    them was sent, and an answer of an Edge Function never proves that nothing was done.

    An answer that is streamed is judged, and bounded by `retry`, until its headers are there. A
    body that breaks afterwards counts as a failure of its own.

    Some answers count for nobody else: limits of Auth for one endpoint, address or user (so a
    flood of codes does not lock everybody out), and what an Edge Function itself answers, its 500
    included. A `classify` of your own on a breaker has the last word on that.

    Refused calls raise `CircuitOpenError` through supabase-py unchanged. Only for a refused token
    refresh Auth raises its `AuthRetryableError`, from which it keeps the session and tries again.

    Not for use across a fork: make one in each process, as with every httpx client. Raises
    `ValueError` or `TypeError`, naming the argument, for one that makes no sense.
    """
    if options.get("http2"):
        raise ValueError(
            "http2=True is not for a sync client: threads that share an HTTP/2 session of httpx "
            "break it, and Auth refreshes tokens in a thread of its own; leave it out"
        )
    services = Services(breakers, retry, timeouts)
    return ResilientHttpClient(services, **{**_DEFAULTS, **options})


def resilient_async_http_client(
    *,
    breakers: Mapping[str, CircuitBreaker] | None = None,
    retry: Retry = _USUAL,
    timeouts: Mapping[str, Timeout] | None = None,
    **options: Any,
) -> "AsyncResilientHttpClient":
    """The same for tasks, for `AsyncClientOptions(httpx_client=resilient_async_http_client())`.

    All of `resilient_http_client()` holds, but that `http2=True` is allowed (by default it is off).
    """
    services = Services(breakers, retry, timeouts)
    return AsyncResilientHttpClient(services, **{**_DEFAULTS, **options})


# --- sync ---------------------------------------------------------------------------------------


class ResilientHttpClient(httpx.Client):
    """An `httpx.Client` with guarded services; made by `resilient_http_client()`."""

    def __init__(self, services: Services, **options: Any) -> None:
        super().__init__(**options)
        self._services = services

    @property
    def breakers(self) -> Mapping[str, CircuitBreaker]:
        """The breakers in use: of `storage`, `auth` and `functions`."""
        return self._services.breakers

    def build_request(self, method: str, url: Any, **options: Any) -> httpx.Request:
        """As httpx does; where no timeout is given, with that of the service."""
        request = super().build_request(method, url, **options)
        self._services.set_timeout(request, options)
        return request

    def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        auth: Any = httpx.USE_CLIENT_DEFAULT,
        follow_redirects: Any = httpx.USE_CLIENT_DEFAULT,
    ) -> httpx.Response:
        """As httpx does, guarded when the request is one of a guarded service."""
        service = self._services.of(request.url)
        if service is None:
            return super().send(
                request, stream=stream, auth=auth, follow_redirects=follow_redirects
            )
        send = partial(
            super().send, request, stream=True, auth=auth, follow_redirects=follow_redirects
        )
        countdown = Countdown(service.timed(request), service.retry)
        with Exchange(service, request, countdown, httpx.SyncByteStream) as exchange:
            return _Call(exchange, send, is_streamed=stream).run()

    def _redirect_headers(
        self, request: httpx.Request, url: httpx.URL, method: str
    ) -> httpx.Headers:
        return _without_key_elsewhere(super()._redirect_headers(request, url, method), request, url)


class _Call:
    """One request of a sync client, tried as often as that is right."""

    def __init__(
        self, exchange: Exchange, send: partial[httpx.Response], *, is_streamed: bool
    ) -> None:
        self._exchange = exchange
        self._send = send
        self._is_streamed = is_streamed
        self._unread: httpx.Response | None = None

    def run(self) -> httpx.Response:
        exchange = self._exchange
        made = self._attempt()
        if not isinstance(made, Attempt):
            return made
        if made.may_repeat:
            retryer = exchange.schedule().blocking(time.sleep)
            attempts = _attempts(made, exchange.countdown, self._attempt, _as_it_is)
            made = retryer(partial(next, attempts))
        return cast("httpx.Response", made.result())

    def _attempt(self) -> httpx.Response | Attempt:
        exchange = self._exchange
        permit = exchange.acquire()
        response: httpx.Response | None = None
        try:
            _close(self._unread)
            response = self._send()
            if not self._is_streamed:
                self._read(response)
        except Exception as error:  # noqa: BLE001 - it is judged, and raised by Attempt.result()
            made = exchange.failed(permit, error)
        except BaseException:
            exchange.release(permit)
            _close(response)
            raise
        else:
            if self._is_streamed:
                response.stream = Watched(response.stream, partial(exchange.broke, permit))
                self._unread = response
            return exchange.answered(permit, response) or response
        _close(response)
        return made

    def _read(self, response: httpx.Response) -> None:
        countdown = self._exchange.countdown
        if countdown.was_asked:
            response.stream = _Body(cast("httpx.SyncByteStream", response.stream), countdown)
        response.read()


# --- async --------------------------------------------------------------------------------------


class AsyncResilientHttpClient(httpx.AsyncClient):
    """An `httpx.AsyncClient` with guarded services; made by `resilient_async_http_client()`."""

    def __init__(self, services: Services, **options: Any) -> None:
        super().__init__(**options)
        self._services = services

    @property
    def breakers(self) -> Mapping[str, CircuitBreaker]:
        """The breakers in use: of `storage`, `auth` and `functions`."""
        return self._services.breakers

    def build_request(self, method: str, url: Any, **options: Any) -> httpx.Request:
        """As httpx does; where no timeout is given, with that of the service."""
        request = super().build_request(method, url, **options)
        self._services.set_timeout(request, options)
        return request

    async def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        auth: Any = httpx.USE_CLIENT_DEFAULT,
        follow_redirects: Any = httpx.USE_CLIENT_DEFAULT,
    ) -> httpx.Response:
        """As httpx does, guarded when the request is one of a guarded service."""
        service = self._services.of(request.url)
        if service is None:
            return await super().send(
                request, stream=stream, auth=auth, follow_redirects=follow_redirects
            )
        send = partial(
            super().send, request, stream=True, auth=auth, follow_redirects=follow_redirects
        )
        countdown = StrictCountdown(service.timed(request), service.retry)
        with Exchange(service, request, countdown, httpx.AsyncByteStream) as exchange:
            call = _AsyncCall(exchange, countdown, send, is_streamed=stream)
            return await call.run()

    def _redirect_headers(
        self, request: httpx.Request, url: httpx.URL, method: str
    ) -> httpx.Headers:
        return _without_key_elsewhere(super()._redirect_headers(request, url, method), request, url)


class _AsyncCall:
    """One request of an async client, tried as often as that is right."""

    def __init__(
        self,
        exchange: Exchange,
        countdown: StrictCountdown,
        send: partial[Any],
        *,
        is_streamed: bool,
    ) -> None:
        self._exchange = exchange
        self._countdown = countdown
        self._send = send
        self._is_streamed = is_streamed
        self._unread: httpx.Response | None = None

    async def run(self) -> httpx.Response:
        exchange = self._exchange
        made = await self._attempt()
        if not isinstance(made, Attempt):
            return made
        if made.may_repeat:
            retryer = exchange.schedule().awaiting(asyncio.sleep)
            tries = _async_attempts(made, exchange.countdown, self._attempt, _as_it_is)
            async with aclosing(tries) as attempts:

                async def next_attempt() -> Attempt:
                    return await anext(attempts)

                made = cast("Attempt", await retryer(next_attempt))
        return cast("httpx.Response", made.result())

    async def _attempt(self) -> httpx.Response | Attempt:
        exchange = self._exchange
        permit = exchange.acquire()
        response: httpx.Response | None = None
        try:
            await _aclose(self._unread)
            response = cast("httpx.Response", await self._send())
            if not self._is_streamed:
                await response.aread()
        except Exception as error:  # noqa: BLE001 - it is judged, and raised by Attempt.result()
            made = exchange.failed(permit, error)
        except BaseException as error:
            if not (isinstance(error, asyncio.CancelledError) and self._countdown.has_struck()):
                exchange.release(permit)
                await _aclose(response)
                raise
            made = exchange.failed(permit, httpx.ReadTimeout(_TOO_LATE))
        else:
            if self._is_streamed:
                response.stream = Watched(response.stream, partial(exchange.broke, permit))
                self._unread = response
            return exchange.answered(permit, response) or response
        finally:
            if self._countdown.was_asked:
                self._countdown.stop()
        await _aclose(response)
        return made


# --- both ---------------------------------------------------------------------------------------


def _as_it_is(made: Attempt, **_: Any) -> Attempt:
    return made


def _without_key_elsewhere(
    headers: httpx.Headers, request: httpx.Request, url: httpx.URL
) -> httpx.Headers:
    """The API key is as secret as `Authorization`, which httpx drops where the origin changes."""
    before = (request.url.scheme, request.url.host, request.url.port)
    after = (url.scheme, url.host, url.port)
    is_upgrade = before == ("http", url.host, None) and after == ("https", url.host, None)
    if before != after and not is_upgrade:
        headers.pop("apiKey", None)
    return headers
