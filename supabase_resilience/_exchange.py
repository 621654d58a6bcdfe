"""One request to a guarded service and what became of it: the decisions of both colours.

The request object belongs to the caller and may be used again, so what is changed in it for the
time of the call (its timeout, its body) is put back at the end.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import httpx

from supabase_resilience._circuit import Permit
from supabase_resilience._countdown import Countdown
from supabase_resilience._requests import is_within_idempotent
from supabase_resilience._services import Service
from supabase_resilience.errors import CircuitOpenError
from supabase_resilience.failures import Classification
from supabase_resilience.retry import Attempt, Schedule

__all__ = ["Exchange", "Watched"]


class Exchange:
    """`with Exchange(…) as exchange:` is the time in which a request is sent, once or more."""

    def __init__(
        self, service: Service, request: httpx.Request, countdown: Countdown, body_kind: type
    ) -> None:
        self.countdown = countdown
        self._service = service
        self._request = request
        self._body = request.stream
        self._body_kind = body_kind
        self._usual = service.timed(request).timeout.as_dict()
        self._last: httpx.Response | None = None

    def __enter__(self) -> Self:
        self._request.extensions["timeout"] = self.countdown
        # Of a body of bytes all is known; of any other, whether it can be had again.
        if not isinstance(self._body, httpx.ByteStream) and isinstance(self._body, self._body_kind):
            self._request.stream = _Upload(self._body)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(self._request.stream, _Upload):  # whoever reads a request replaces it, too
            self._request.stream = self._body
        last = self._last
        for request in (self._request, last and last.request, last and last.next_request):
            # A redirect has copied it. A body that is still to come has its usual time, too.
            if request is not None and request.extensions.get("timeout") is self.countdown:
                request.extensions["timeout"] = self._usual

    def acquire(self) -> Permit:
        """Leave for one attempt."""
        try:
            return self._service.breaker.acquire()
        except CircuitOpenError as refusal:
            if self._service.is_refresh(self._request):
                raise _RefreshRefusedError(refusal.breaker, refusal.retry_after) from None
            raise

    def release(self, permit: Permit) -> None:
        """Give it back without a verdict."""
        self._service.breaker.release(permit)

    def answered(self, permit: Permit, response: httpx.Response) -> Attempt | None:
        """Judge an attempt by its response and give its permit back; None for a success."""
        self._last = response
        meaning = self._service.meaning_of(response)
        if meaning.verdict != "success":
            meaning = self._after_redirect(meaning, response.request)
        self._service.breaker.settle(permit, meaning)
        if meaning.verdict == "success":
            return None
        return Attempt(meaning, may_repeat=self._may_repeat(permit, meaning), response=response)

    def failed(self, permit: Permit, error: Exception) -> Attempt:
        """Judge an attempt by its exception and give its permit back."""
        meaning = self._service.breaker.classify(error)
        meaning = self._after_redirect(meaning, _request_of(error))
        self._service.breaker.settle(permit, meaning)
        return Attempt(meaning, may_repeat=self._may_repeat(permit, meaning), error=error)

    def broke(self, permit: Permit, error: Exception) -> None:
        """A streamed body broke after its headers were judged: that counts, too."""
        self._service.breaker.settle(permit, self._service.breaker.classify(error))

    def schedule(self) -> Schedule:
        """When to try again after a first failure."""
        return Schedule(self._service.retry, self._service.breaker, self.countdown.ends_at)

    def _after_redirect(
        self, meaning: Classification, last: httpx.Request | None
    ) -> Classification:
        """What failed was perhaps another request, of another host, after ours had its effect."""
        if last is None or last is self._request:
            return meaning
        meaning = replace(meaning, write_applied="maybe")
        is_elsewhere = last.url.host != self._request.url.host
        return replace(meaning, scope="query") if is_elsewhere else meaning

    def _may_repeat(self, permit: Permit, meaning: Classification) -> bool:
        """A probe is never repeated, nor is a body that is gone."""
        body = self._request.stream
        if permit.is_probe or not meaning.retryable:
            return False
        if isinstance(body, _Upload) and not body.is_whole:
            return False
        if meaning.write_applied == "no" or is_within_idempotent():
            return True
        return self._service.is_repeatable(self._request)


def _request_of(error: Exception) -> httpx.Request | None:
    try:
        return error.request if isinstance(error, httpx.RequestError) else None
    except RuntimeError:  # not told
        return None


class _RefreshRefusedError(CircuitOpenError, RuntimeError):
    """A refusal that Auth takes for a failure of the network.

    From any other error its timer concludes that there is nothing left to refresh, and a client
    that starts with a stored session signs its user out.
    """


class _Upload(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that remembers whether any of it was taken."""

    def __init__(self, body: Any) -> None:
        self._body = body
        self._was_taken = False

    @property
    def is_whole(self) -> bool:
        """Whether it can be sent from its beginning: untouched, or a form that is all in memory."""
        if not self._was_taken:
            return True
        fields = getattr(self._body, "fields", None)
        if fields is None:
            return False
        return all(isinstance(getattr(field, "file", b""), bytes | str) for field in fields)

    def __iter__(self) -> Iterator[bytes]:
        self._was_taken = True
        yield from self._body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._was_taken = True
        async for piece in self._body:
            yield piece


class Watched(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of a streamed response; `broke` is told the error that ends it early."""

    def __init__(self, body: Any, broke: Callable[[Exception], None]) -> None:
        self._body = body
        self._broke = broke

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._body
        except Exception as error:
            self._broke(error)
            raise

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._body:
                yield piece
        except Exception as error:
            self._broke(error)
            raise

    def close(self) -> None:
        self._body.close()

    async def aclose(self) -> None:
        await self._body.aclose()
