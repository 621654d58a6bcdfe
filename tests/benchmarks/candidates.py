"""The breakers that `breakers.py` compares, each wrapped around a function in the way it means it.

Every breaker is fresh, closed, and stays open for an hour once it opens. Those that are not
installed are left out.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any

from supabase_resilience import CircuitBreaker, Event, FailureRate

Wrap = Callable[[Callable[[], Any]], Callable[[], Any]]

AN_HOUR = 3600.0
THRESHOLD = 5


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """`sync` and `for_async` wrap a function in a new breaker; None where there is no such mode."""

    name: str
    sync: Wrap | None
    for_async: Wrap | None


def plain() -> Candidate:
    return Candidate(name="no breaker", sync=lambda fn: fn, for_async=lambda fn: fn)


class HandWritten:
    """A counter under a lock, looked at before and after each call: the floor."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._opened_at: float | None = None

    def execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._check()
        try:
            result = fn(*args, **kwargs)
        except Exception:
            self._fail()
            raise
        self._succeed()
        return result

    async def execute_async(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._check()
        try:
            result = await fn(*args, **kwargs)
        except Exception:
            self._fail()
            raise
        self._succeed()
        return result

    def _check(self) -> None:
        with self._lock:
            if self._opened_at is not None and time.monotonic() - self._opened_at < AN_HOUR:
                raise RuntimeError("open")

    def _succeed(self) -> None:
        with self._lock:
            self._failures = 0

    def _fail(self) -> None:
        with self._lock:
            self._failures += 1
            if self._failures >= THRESHOLD:
                self._opened_at = time.monotonic()


def floor() -> Candidate:
    return Candidate(
        name="floor: counter under a lock",
        sync=lambda fn: _through(HandWritten().execute, fn),
        for_async=lambda fn: _through(HandWritten().execute_async, fn),
    )


def _through(execute: Callable[..., Any], fn: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: execute(fn)


# --- ours ---------------------------------------------------------------------------------------


def consecutive() -> Candidate:
    return _ours("ours, consecutive: execute(fn)")


def windowed() -> Candidate:
    return _ours("ours, FailureRate(window=30.0): execute(fn)", trip=FailureRate(window=30.0))


def _ours(name: str, **options: Any) -> Candidate:
    def wrap(fn: Callable[[], Any]) -> Callable[[], Any]:
        breaker = CircuitBreaker(
            reset_timeout=AN_HOUR, max_reset_timeout=AN_HOUR, on_event=_tell_nobody, **options
        )
        return _through(breaker.execute, fn)

    return Candidate(name=name, sync=wrap, for_async=wrap)


def _tell_nobody(_: Event) -> None:
    """Refusals are told one by one; writing them somewhere is no part of the breaker."""


# --- peers --------------------------------------------------------------------------------------


def pybreaker() -> Candidate:
    """Its async is for Tornado; a coroutine function would be judged before it has run."""
    pybreaker = import_module("pybreaker")

    def wrap(fn: Callable[[], Any]) -> Callable[[], Any]:
        return _through(pybreaker.CircuitBreaker(THRESHOLD, AN_HOUR).call, fn)

    return Candidate(name="pybreaker", sync=wrap, for_async=None)


def circuitbreaker() -> Candidate:
    circuitbreaker = import_module("circuitbreaker")

    def wrap(fn: Callable[[], Any]) -> Callable[[], Any]:
        return circuitbreaker.CircuitBreaker(THRESHOLD, AN_HOUR).decorate(fn)

    return Candidate(name="circuitbreaker", sync=wrap, for_async=wrap)


def aiobreaker() -> Candidate:
    aiobreaker = import_module("aiobreaker")

    def breaker() -> Any:
        return aiobreaker.CircuitBreaker(THRESHOLD, timedelta(seconds=AN_HOUR))

    return Candidate(
        name="aiobreaker",
        sync=lambda fn: _through(breaker().call, fn),
        for_async=lambda fn: _through(breaker().call_async, fn),
    )


def purgatory() -> Candidate:
    purgatory = import_module("purgatory")

    def wrap(fn: Callable[[], Any]) -> Callable[[], Any]:
        return purgatory.SyncCircuitBreakerFactory(THRESHOLD, AN_HOUR)("b")(fn)

    def wrap_async(fn: Callable[[], Any]) -> Callable[[], Any]:
        return purgatory.AsyncCircuitBreakerFactory(THRESHOLD, AN_HOUR)("b")(fn)

    return Candidate(name="purgatory", sync=wrap, for_async=wrap_async)


def hyx() -> Candidate:
    hyx = import_module("hyx.circuitbreaker")

    def wrap(fn: Callable[[], Any]) -> Callable[[], Any]:
        guard = hyx.consecutive_breaker(failure_threshold=THRESHOLD, recovery_time_secs=AN_HOUR)
        return guard(fn)

    return Candidate(name="hyx", sync=None, for_async=wrap)


def interlock() -> Candidate:
    interlock = import_module("interlock")

    config = interlock.Config(wait_duration_in_open=AN_HOUR)
    return _interlock("interlock-cb, last 100 calls", interlock, config)


def interlock_windowed() -> Candidate:
    interlock = import_module("interlock")

    config = interlock.Config(
        wait_duration_in_open=AN_HOUR, window_type=interlock.WindowType.TIME_BASED, window_size=30
    )
    return _interlock("interlock-cb, window of 30 s", interlock, config)


def _interlock(name: str, interlock: Any, config: Any) -> Candidate:
    def wrap(fn: Callable[[], Any]) -> Callable[[], Any]:
        return interlock.CircuitBreaker(name="b", config=config)(fn)

    return Candidate(name=name, sync=wrap, for_async=wrap)


def nopanic() -> Candidate:
    nopanic = import_module("nopanic")

    def wrap(fn: Callable[[], Any]) -> Callable[[], Any]:
        return nopanic.circuit_breaker(window=30.0, reset_timeout=AN_HOUR)(fn)

    return Candidate(name="nopanic, window of 30 s", sync=wrap, for_async=wrap)


PEERS: tuple[Callable[[], Candidate], ...] = (
    pybreaker,
    circuitbreaker,
    aiobreaker,
    purgatory,
    hyx,
    interlock,
    interlock_windowed,
    nopanic,
)


def installed_peers() -> tuple[list[Candidate], list[str]]:
    """The peers that can be measured here, and the names of the others."""
    found, missing = [], []
    for make in PEERS:
        try:
            found.append(make())
        except ImportError as error:
            missing.append(str(error.name).partition(".")[0])
    return found, sorted(set(missing))
