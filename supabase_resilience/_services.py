"""Storage, Auth and Edge Functions: which requests are theirs, and what their answers mean.

The failure table knows codes and statuses, not who spoke. The same 429 is a limit of the whole
project from a gateway, of one endpoint from Auth, and a function's own business from a function.
This module adds what follows from the speaker, and does no I/O.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
from supabase import ClientOptions

from supabase_resilience._checks import check_seconds
from supabase_resilience._failure_table import SUCCESS
from supabase_resilience.breaker import CircuitBreaker
from supabase_resilience.failures import Classification, classify
from supabase_resilience.retry import RetryConfig

__all__ = ["Retry", "Service", "Services", "Timeout"]

Timeout = float | httpx.Timeout
Retry = RetryConfig | Mapping[str, RetryConfig] | None

# supabase-py's own defaults; Auth has that of httpx.
_TIMEOUTS: Mapping[str, Timeout] = {
    "storage": ClientOptions.storage_client_timeout,
    "auth": 5.0,
    "functions": ClientOptions.function_client_timeout,
}
# A transfer takes as long as its size asks for; a host that falls silent in the middle is the
# service's timeout to find.
_LONGEST_TRANSFER = 600.0
# The first match counts: a stored object may be called anything.
_PATH = re.compile(r"/(rest|storage|auth|functions)/v1(?:/|$)")

_READS = frozenset({"GET", "HEAD"})
_READS_BY_POST = re.compile(r"/storage/v1/object/(?:list|list-v2|sign)/")
_SENDS_BY_GET = re.compile(r"/auth/v1/reauthenticate$")  # it mails a code


class Service:
    """One guarded service: its breaker, its numbers, what its requests and answers mean."""

    __slots__ = ("breaker", "name", "retry", "timeout")

    def __init__(
        self, name: str, breaker: CircuitBreaker, retry: RetryConfig, timeout: httpx.Timeout
    ) -> None:
        self.name: str = name
        self.breaker: CircuitBreaker = breaker
        self.retry: RetryConfig = retry
        self.timeout: httpx.Timeout = timeout
        breaker.mark_calls()

    def timed(self, request: httpx.Request) -> Any:
        """Who holds the timeout of a request as httpx's clients do: what it brings, or this."""
        brought = request.extensions.get("timeout")
        return self if brought is None else _Own(httpx.Timeout(None, **brought))

    def is_repeatable(self, request: httpx.Request) -> bool:
        """Whether sending it twice does what sending it once does."""
        path = request.url.path
        if request.method in _READS:
            return not _SENDS_BY_GET.search(path)
        if self.name != "storage":
            return False
        return bool(_READS_BY_POST.search(path)) or _is_upsert(request)

    def is_refresh(self, request: httpx.Request) -> bool:
        """Whether Auth is asked for a new session in exchange for a refresh token."""
        url = request.url
        is_token = self.name == "auth" and url.path.endswith("/token")
        return is_token and url.params.get("grant_type") == "refresh_token"

    def meaning_of(self, response: httpx.Response) -> Classification:
        """What the service says by this answer; a `classify` of the user's own has the last word.

        The body need not have been read.
        """
        meaning = self.breaker.classify(response)
        if meaning.verdict == "success" or self.breaker.classify is not classify:
            return meaning
        if response.status_code == 304 or response.next_request is not None:
            return SUCCESS  # "not modified", and a redirect that the caller wants to see
        if self.name == "auth":
            return meaning
        if response.is_success:
            return SUCCESS  # objects and functions may well be HTML
        return _said_by_a_function(meaning, response) if self.name == "functions" else meaning


class _Own(NamedTuple):
    timeout: httpx.Timeout


def _is_upsert(request: httpx.Request) -> bool:
    return bool(request.headers.get("x-upsert", "").lower() == "true")


def _said_by_a_function(meaning: Classification, response: httpx.Response) -> Classification:
    """A function answers what it likes, also after half of its work."""
    meaning = replace(meaning, write_applied="maybe")
    is_its_own = (
        response.status_code <= 500
        or response.headers.get("sb-error-code") == "EDGE_FUNCTION_ERROR"
    )
    return replace(meaning, scope="query", answered=True) if is_its_own else meaning


class Services:
    """The three services by their names."""

    __slots__ = ("_by_name", "breakers")

    def __init__(
        self,
        breakers: Mapping[str, CircuitBreaker] | None,
        retry: Retry,
        timeouts: Mapping[str, Timeout] | None,
    ) -> None:
        _check_each("breakers", breakers, CircuitBreaker)
        _check_each("timeouts", timeouts, int | float | httpx.Timeout)
        if not isinstance(retry, RetryConfig | None):
            _check_each("retry", retry, RetryConfig)
        self._by_name = {
            name: _service(name, breakers or {}, retry, httpx.Timeout(timeout))
            for name, timeout in {**_TIMEOUTS, **(timeouts or {})}.items()
        }
        self.breakers: Mapping[str, CircuitBreaker] = MappingProxyType(
            {name: service.breaker for name, service in self._by_name.items()}
        )

    def of(self, url: httpx.URL) -> Service | None:
        """Whose URL it is; None for PostgREST and for anything else."""
        path = url.path
        if path.startswith("/rest/v1/"):  # most are; this is all that they pay
            return None
        found = _PATH.search(path)
        return self._by_name.get(found[1]) if found else None

    def set_timeout(self, request: httpx.Request, options: Mapping[str, Any]) -> None:
        """Give a request its service's timeout, unless the options that made it name another."""
        given = options.get("timeout", httpx.USE_CLIENT_DEFAULT)
        if given is not httpx.USE_CLIENT_DEFAULT or "timeout" in (options.get("extensions") or ()):
            return
        if service := self.of(request.url):
            request.extensions["timeout"] = service.timeout.as_dict()


def _service(
    name: str, breakers: Mapping[str, CircuitBreaker], retry: Retry, timeout: httpx.Timeout
) -> Service:
    # Not `or`: whatever a breaker may become, none is false by accident.
    breaker = breakers[name] if name in breakers else CircuitBreaker(name)
    if isinstance(retry, RetryConfig):
        return Service(name, breaker, retry, timeout)
    config = _config_for(name, timeout)
    config = replace(config, attempts=1) if retry is None else retry.get(name, config)
    return Service(name, breaker, config, timeout)


def _config_for(name: str, timeout: httpx.Timeout) -> RetryConfig:
    """The usual one, with room for what the timeout of the service allows."""
    phases = [_LONGEST_TRANSFER if each is None else each for each in timeout.as_dict().values()]
    room = _LONGEST_TRANSFER if name == "storage" else max(phases)
    usual = RetryConfig()
    return replace(
        usual,
        attempt_timeout=max(usual.attempt_timeout, room),
        total_timeout=max(usual.total_timeout, room),
    )


def _check_each(argument: str, given: Any, kind: Any) -> None:
    """None, or a mapping from names of services to values of a kind."""
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise TypeError(f"{argument} must be a mapping by service, got {given!r}")
    for name, value in given.items():
        if name not in _TIMEOUTS:
            known = ", ".join(_TIMEOUTS)
            raise ValueError(f"{argument} names {name!r}, which is none of the services: {known}")
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"{argument}[{name!r}] is of the wrong type: {value!r}")
        if isinstance(value, int | float):
            check_seconds(f"{argument}[{name!r}]", value)
