"""CircuitBreaker: leave a sick service alone, and try it again gently.

A breaker never waits, so one class serves threads and tasks alike; all that differs is who awaits
the result. Its state machine (`_circuit.py`) is under one short lock that never spans a call. While
the circuit is closed and nothing fails, that lock isn't even taken: a call reads one immutable
permit and counts itself on an atomic counter.
"""

import inspect
import itertools
import os
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

from supabase_resilience import _clock
from supabase_resilience._budget import RetryBudget
from supabase_resilience._calls import Within, current_call, enclosing_call, is_inside
from supabase_resilience._checks import check_callable, check_number, check_optional
from supabase_resilience._circuit import Circuit, CircuitSettings, Permit, State
from supabase_resilience._decorate import Guard, decorate
from supabase_resilience._failure_table import SUCCESS
from supabase_resilience._telling import logger
from supabase_resilience.errors import CircuitOpenError
from supabase_resilience.events import (
    CallRefused,
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    Event,
    Hook,
    RetryScheduled,
    log_event,
)
from supabase_resilience.failures import Classification, Outcome, classify
from supabase_resilience.trip import FailureRate

__all__ = ["RELEASED", "BreakerStats", "CircuitBreaker", "Guard", "Permit", "State"]

P = ParamSpec("P")
T = TypeVar("T")
Fallback = Callable[[CircuitOpenError], T]

_DEFAULT_CLASSIFY = classify
# What most functions return; to ask other types costs more than the rest of a call.
_PLAIN_TYPES = frozenset({bool, int, float, str, bytes, list, tuple, dict, set})
_SLOW = Classification(verdict="failure", reason="slow call", answered=True)
RELEASED = Classification(verdict="neutral", reason="no verdict")


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerStats:
    """One moment of a breaker; counts are since its construction, times are in seconds.

    `failures`, `throttled` and `blocked` are outcomes that speak against the service, `neutral`
    those that say nothing (the caller's own mistakes, canceled calls, further connection losses
    of one burst), `refused` the calls that were not made. `current_failures` is what counts towards
    opening now: failures in a row, or in the window. `retries_refused` were not made for want of
    budget; `budget_left` is how many could be made now (None: no limit). `retry_after` is None
    unless open. `cause` and `reason` say why it opened last, as `CircuitOpened` does; None while
    closed.
    """

    name: str
    state: State
    seconds_in_state: float
    current_failures: int
    successes: int
    failures: int
    neutral: int
    throttled: int
    blocked: int
    refused: int
    retries: int
    retries_refused: int
    budget_left: float | None
    opened: int
    closed: int
    retry_after: float | None
    cause: str | None
    reason: str | None


class CircuitBreaker:
    """Refuse calls to a service that keeps failing, and close again once a probe succeeds.

    After `failure_threshold` failures without a success between them the circuit opens: calls
    raise `CircuitOpenError` at once. After `reset_timeout` seconds it lets `half_open_permits`
    probes through; `close_after` successful ones close it, a failed one opens it again. The call
    that trips it raises its own error. One object serves threads and tasks at once.

    Its limit is the process: two processes learn of an outage each for itself, and a forked child
    goes on with a copy of its own.

    - `failure_threshold`: consecutive failures that open the circuit; or `trip`: a `FailureRate`
      that takes the place of that count.
    - `reset_timeout`: seconds open before a probe may pass. `growth` multiplies it at each
      re-opening until the circuit has closed, up to `max_reset_timeout`. A `Retry-After` of the
      server can only lengthen it, up to the same limit. `jitter` then lengthens the result by up
      to that share, so that many clients do not come back in the same instant.
    - `half_open_permits`, `close_after`: probes at a time, successful probes needed to close.
    - `probe_timeout`: seconds after which a probe that has not returned forfeits its permit
      (None: `reset_timeout`), so that a hanging probe cannot keep the circuit half-open.
    - `retry_budget`: how many retries a success pays for, in calls made through it by a protected
      client, with a reserve of 10 (None: no limit). So retries add at most that share of load.
    - `classify`: says what an exception means, see `Classification`; a protected client asks it
      about each `httpx.Response`, too. Throttled (429) opens at once; blocked (key, billing, paused
      project) opens at once for `max_reset_timeout`; failures of one query alone (`scope="query"`)
      are not held against the project.
    - `on_open`, `on_half_open`, `on_close`: called without arguments after the change; `on_event`
      is told every `Event`. All run outside the lock; what they raise is logged, no more.
    - `clock`: seconds that never jump back; tests pass a fake one.

    Raises `ValueError` or `TypeError`, naming the argument, for one that makes no sense.
    """

    def __init__(
        self,
        name: str = "supabase",
        *,
        failure_threshold: int = 5,
        reset_timeout: float = 30.0,
        trip: FailureRate | None = None,
        half_open_permits: int = 1,
        close_after: int = 1,
        probe_timeout: float | None = None,
        max_reset_timeout: float = 300.0,
        growth: float = 1.0,
        jitter: float = 0.1,
        retry_budget: float | None = 0.1,
        classify: Callable[[Outcome], Classification] = classify,
        on_open: Callable[[], object] | None = None,
        on_half_open: Callable[[], object] | None = None,
        on_close: Callable[[], object] | None = None,
        on_event: Hook = log_event,
        clock: _clock.Clock = _clock.monotonic,
    ) -> None:
        settings = CircuitSettings(
            name=name,
            failure_threshold=failure_threshold,
            reset_timeout=reset_timeout,
            trip=trip,
            half_open_permits=half_open_permits,
            close_after=close_after,
            probe_timeout=probe_timeout,
            max_reset_timeout=max_reset_timeout,
            growth=growth,
            jitter=jitter,
        )
        check_optional(partial(check_number, at_least=0.0), "retry_budget", retry_budget)
        check_callable("classify", classify)
        check_optional(check_callable, "on_open", on_open)
        check_optional(check_callable, "on_half_open", on_half_open)
        check_optional(check_callable, "on_close", on_close)
        check_callable("on_event", on_event)
        check_callable("clock", clock)
        self.name = name
        self.classify: Callable[[Outcome], Classification] = (
            classify if classify is _DEFAULT_CLASSIFY else _never_raising(classify)
        )
        self._hooks: dict[type[Event], Callable[[], object] | None] = {
            CircuitOpened: on_open,
            CircuitHalfOpened: on_half_open,
            CircuitClosed: on_close,
        }
        self.on_event = on_event
        self._clock = clock
        # Guarded by _lock, but for three reads on the healthy path: `permit`, `failures` and
        # `state` are one attribute each, so a read sees a whole value, be it old or new (on
        # free-threaded Python, too). Either is right: a call that starts on an old permit is
        # fenced by its generation when it ends.
        self._circuit = Circuit(settings, clock())
        self._window = self._circuit.window
        self._budget = RetryBudget(retry_budget)
        self._retries = 0
        self._retries_refused = 0
        self._successes_read = 0
        # One step of `next()` on a count is atomic, unlike `+= 1`: with the GIL, and without it,
        # too (since CPython 3.13, gh-117657).
        self._successes = itertools.count()
        # Calls of execute() that left no mark in the context (see `is_inside`). Numbers that are
        # equal prove that none is in progress, so that the next one is inside of none. A late
        # store to `_ended` can only make them differ, which costs a look and is never wrong.
        self._is_marking = False
        self._started = itertools.count()
        self._ends = itertools.count(1)
        self._ended = 0
        self._plain_calls: int | None = None
        self._may_be_inside = True
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._pid = os.getpid()

    def __repr__(self) -> str:
        """Show the name and the state."""
        return f"<CircuitBreaker {self.name!r} {self.get_state()}>"

    # --- making calls ---------------------------------------------------------------------------

    def execute(
        self,
        fn: Callable[..., T],
        /,
        *args: Any,
        fallback: Fallback[T] | None = None,
        **kwargs: Any,
    ) -> T:
        """Call `fn(*args, **kwargs)` and return what it returns, unless the circuit is open.

        `fn` may return a value or anything awaitable; what is awaited is judged when it ends.
        While the circuit is open `fn` isn't called: `fallback(error)` answers if there is one,
        else `CircuitOpenError` is raised (at the `await`, when `fn` is a coroutine function).
        Where a plain function returns something awaitable, let the fallback do so, too.
        Exceptions of `fn` pass through. A use of the same breaker inside `fn`, such as a query of
        a client protected by it, is part of this one call; in tasks that `fn` starts, this holds
        once a protected client, an HTTP client or a guard uses the breaker.
        """
        permit = self._circuit.permit
        if permit is None or self._is_marking:
            return self._execute_with_permit(fn, args, kwargs, fallback)
        if next(self._started) != self._ended and is_inside(self, _PLAIN_WAYS):
            return self._execute_nested(fn, args, kwargs)
        _running: object = self
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - _failed() raises it
            _running = None
            self._ended = next(self._ends)
            return self._failed(permit, error, fallback)
        _running = None
        if (
            result is not None
            and type(result) not in _PLAIN_TYPES
            and hasattr(type(result), "__await__")  # _is_awaitable(), without a call
        ):
            return cast("T", self._finish_plain(cast("Any", result), permit, fallback))
        self._ended = next(self._ends)
        if self._circuit.failures or self._window is not None:
            self._succeed(permit)
        next(self._successes)
        return result

    async def _finish_plain(
        self, awaitable: Awaitable[T], permit: Permit, fallback: Fallback[T] | None
    ) -> T:
        _running: object = self
        try:
            result = await awaitable
        except BaseException as error:  # noqa: BLE001 - _failed() raises it
            _running = None
            self._ended = next(self._ends)
            return cast("T", await _awaited(self._failed(permit, error, fallback)))
        _running = None
        self._ended = next(self._ends)
        if self._circuit.failures or self._window is not None:
            self._succeed(permit)
        next(self._successes)
        return result

    def _execute_nested(
        self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> T:
        """Just call: the call around this one is judged."""
        try:
            return fn(*args, **kwargs)
        finally:
            self._ended = next(self._ends)

    def _execute_with_permit(
        self,
        fn: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        fallback: Fallback[T] | None,
    ) -> T:
        try:
            permit = self.acquire()
        except CircuitOpenError as refusal:
            return self._refused(fn, refusal, fallback)
        try:
            with Within(self, is_probe=permit.is_probe):
                result = fn(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - _failed() raises it
            return self._failed(permit, error, fallback)
        if _is_awaitable(result):
            return cast("T", self._finish(cast("Any", result), permit, fallback))
        self.settle(permit, SUCCESS)
        return result

    async def _finish(
        self, awaitable: Awaitable[T], permit: Permit, fallback: Fallback[T] | None
    ) -> T:
        try:
            with Within(self, is_probe=permit.is_probe):
                result = await awaitable
        except BaseException as error:  # noqa: BLE001 - _failed() raises it
            return cast("T", await _awaited(self._failed(permit, error, fallback)))
        self.settle(permit, SUCCESS)
        return result

    def _failed(self, permit: Permit, error: BaseException, fallback: Fallback[T] | None) -> T:
        """Judge the error and raise it; a refusal from within `fn` is the fallback's, too."""
        self.judge(permit, error)
        if fallback is not None and isinstance(error, CircuitOpenError):
            return fallback(error)
        try:
            raise error
        finally:
            # Or error, traceback and this frame keep each other, and the caller's frames, alive.
            del error

    def _refused(
        self, fn: Callable[..., T], refusal: CircuitOpenError, fallback: Fallback[T] | None
    ) -> T:
        if inspect.iscoroutinefunction(fn):
            return cast("T", _refuse_later(refusal, fallback))
        if fallback is not None:
            return fallback(refusal)
        try:
            raise refusal
        finally:
            del refusal  # as in _failed()

    def guard(self) -> Guard:
        """Guard a block, also around an `await`: `with breaker.guard(): await query.execute()`.

        Entering raises `CircuitOpenError` while open; what leaves the block is its outcome.
        """
        return Guard(self)

    def __call__(self, fn: Callable[P, T]) -> Callable[P, T]:
        """Guard every call of a function, coroutine function or (async) generator function.

        A generator is judged when it ends: one that breaks midway is a failure, one that its
        reader leaves early is not.
        """
        check_callable("fn", fn)
        return decorate(self, fn)

    # --- asking and steering --------------------------------------------------------------------

    def get_state(self) -> State:
        """`closed`, `open`, `half_open`, `forced_open` or `disabled`.

        A circuit whose open time is over says `open` until a call comes along as its probe.
        """
        return self._circuit.state

    def get_stats(self) -> BreakerStats:
        """An immutable snapshot; local and O(1)."""
        with self.locked():
            circuit, counts, now = self._circuit, self._circuit.counts, self._clock()
            successes = self._count_successes()
            is_open = circuit.state == "open"
            return BreakerStats(
                name=self.name,
                state=circuit.state,
                seconds_in_state=max(0.0, now - circuit.since),
                current_failures=circuit.current_failures(now),
                successes=successes,
                failures=counts["failure"],
                neutral=counts["neutral"],
                throttled=counts["throttled"],
                blocked=counts["blocked"],
                refused=counts["refused"],
                retries=self._retries,
                retries_refused=self._retries_refused,
                budget_left=self._budget.left(successes),
                opened=counts["opened"],
                closed=counts["closed"],
                retry_after=max(0.0, circuit.open_until - now) if is_open else None,
                cause=circuit.cause,
                reason=circuit.reason,
            )

    def force_open(self) -> None:
        """Refuse every call until `reset()`, however long that takes."""
        with self.locked():
            self._circuit.force_open(self._clock())
        self._tell()

    def disable(self) -> None:
        """Let every call pass unjudged until `reset()`."""
        with self.locked():
            self._circuit.disable(self._clock())
        self._tell()

    def reset(self) -> None:
        """Close the circuit and forget the failures; calls in flight are not counted any more."""
        with self.locked():
            self._circuit.close(self._clock())
        self._tell()

    # --- for drivers: one permit per attempt ----------------------------------------------------

    def acquire(self) -> Permit:
        """Take a permit for one call, or raise `CircuitOpenError`.

        Each permit goes back through `settle()`, `judge()` or `release()`. Inside a call of this
        same breaker it belongs to that call: it is always granted, and never judged by itself.
        """
        if self._may_be_inside or current_call.get() is not None:
            nested = self._find_call_around()
            if nested is not None:
                return nested
        permit = self._circuit.permit
        if permit is not None:
            return permit
        with self.locked():
            permit, retry_after = self._circuit.admit(self._clock())
        self._tell()
        if permit is None:
            self._notify(CallRefused(breaker=self.name, retry_after=retry_after))
            raise CircuitOpenError(self.name, retry_after)
        return permit

    def _find_call_around(self) -> Permit | None:
        self.mark_calls()
        outer = enclosing_call(self)
        if outer is not None:
            return Permit(-1, -1, is_probe=outer.is_probe, is_nested=True)
        self._may_be_inside = self._ended < cast("int", self._plain_calls)
        if self._may_be_inside and is_inside(self, _PLAIN_WAYS):
            return Permit(-1, -1, is_nested=True)
        return None

    def mark_calls(self) -> None:
        """Say that more than `execute()` uses this breaker: then calls mark their context.

        A mark reaches all that a call starts, tasks too; without, only calls and awaits are seen.
        """
        if self._plain_calls is None:
            with self.locked():
                if self._plain_calls is None:
                    self._is_marking = True
                    self._plain_calls = next(self._started)

    def settle(self, permit: Permit, outcome: Classification) -> None:
        """Give a permit back with the outcome of its call."""
        if permit.is_nested:
            return
        if outcome.verdict == "success":
            if not (permit.started_at is not None and self._is_slow(permit)):
                if self._circuit.failures or permit.is_probe or self._window is not None:
                    self._succeed(permit)
                next(self._successes)
                return
            outcome = _SLOW
        with self.locked():
            self._circuit.count(permit, outcome, self._clock())
        self._tell()

    def judge(self, permit: Permit, error: BaseException) -> None:
        """Give a permit back with what its call raised; a cancellation is never a verdict."""
        self.settle(permit, self.classify(error) if isinstance(error, Exception) else RELEASED)

    def release(self, permit: Permit) -> None:
        """Give a permit back without a verdict: the call was canceled, or never made."""
        self.settle(permit, RELEASED)

    def may_retry(self, *, connection_lost: bool = False) -> bool:
        """Pay for one retry; False when the budget is spent, and the error should be raised.

        Calls that lost their connection in the same burst share one payment, as they count as one
        failure.
        """
        with self.locked():
            is_paid = connection_lost and self._circuit.echoes > 0
            self._circuit.echoes -= is_paid
            may = is_paid or self._budget.spend(self._count_successes())
            self._retries += may
            self._retries_refused += not may
            return may

    def retrying(self, *, attempt: int, delay: float, reason: str) -> None:
        """Tell of a retry that a driver is about to wait for."""
        event = RetryScheduled(breaker=self.name, attempt=attempt, delay=delay, reason=reason)
        self._notify(event)

    # --- plumbing -------------------------------------------------------------------------------

    def _succeed(self, permit: Permit) -> None:
        now = self._clock()
        is_news = permit is self._circuit.permit
        if is_news and self._window is not None and self._window.add_success_unlocked(now):
            return
        with self.locked():
            self._circuit.succeed(permit, now)
        self._tell()

    def _is_slow(self, permit: Permit) -> bool:
        return self._circuit.is_slow(permit, self._clock())

    def _count_successes(self) -> int:
        """All successes so far; a counter can only be read by counting. Wants the lock."""
        self._successes_read += 1
        return next(self._successes) - self._successes_read + 1

    def locked(self) -> threading.Lock:
        """The lock around the state, one that is good after a fork, too."""
        if os.getpid() != self._pid:
            # A thread of the parent may have held the locks, and its probes are not ours.
            self._lock, self._telling = threading.Lock(), threading.Lock()
            self._circuit.forget_probes()
            self._pid = os.getpid()
        return self._lock

    def _tell(self) -> None:
        """Tell what happened, in order and outside the lock; one thread tells for all."""
        untold = self._circuit.untold
        while untold and self._telling.acquire(blocking=False):
            try:
                while untold:
                    self._notify(untold.popleft())
            finally:
                self._telling.release()

    def _notify(self, event: Event) -> None:
        for hook in (self._hooks.get(type(event)), partial(self.on_event, event)):
            try:
                if hook is not None:
                    hook()
            except Exception:
                logger.exception("a hook failed on %s", event.name)


def _never_raising(
    classify: Callable[[Outcome], Classification],
) -> Callable[[Outcome], Classification]:
    """A user's `classify`; where it fails, the built-in one answers in its place."""

    def classified(outcome: Outcome) -> Classification:
        try:
            meaning = classify(outcome)
            if not isinstance(meaning, Classification):
                raise TypeError(f"classify must return a Classification, got {meaning!r}")  # noqa: TRY301
        except Exception:
            logger.exception("classify failed; the built-in one is asked instead")
            return _DEFAULT_CLASSIFY(outcome)
        return meaning

    return classified


async def _refuse_later(refusal: CircuitOpenError, fallback: Fallback[Any] | None) -> Any:
    if fallback is not None:
        return await _awaited(fallback(refusal))
    try:
        raise refusal
    finally:
        del refusal  # as in _failed()


async def _awaited(value: Any) -> Any:
    return await value if _is_awaitable(value) else value


def _is_awaitable(value: object) -> bool:
    """Asked of the type, as `await` does: a proxy may claim any attribute for its own."""
    return hasattr(type(value), "__await__")


# The functions whose calls leave their mark in a local variable.
_PLAIN_WAYS = (CircuitBreaker.execute.__code__, CircuitBreaker._finish_plain.__code__)  # noqa: SLF001
