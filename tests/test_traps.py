"""Traps that circuit breakers in use today fall into, each as a test of ours by threads and tasks.

A docstring says what must hold, and then who fails at it: a release of another package where this
was seen, or an issue where its users tell it. Each trap is set for both rules of tripping.
"""

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest

from supabase_resilience import CircuitBreaker, CircuitOpenError, FailureRate
from supabase_resilience.testing import FakeClock, RecordingHook

DOWN = httpx.ConnectError("no route")
PATIENCE = 20.0  # seconds; far more than any of it takes, so that only a hang ends here


class Threads:
    """Calls of plain functions, each on a thread of its own."""

    def call(self, breaker: CircuitBreaker, error: BaseException | None = None) -> None:
        """Make one call, which raises `error` if there is one."""
        in_thread(lambda: breaker.execute(end, error))

    def make_call(self, breaker: CircuitBreaker, work: Callable[[], None]) -> None:
        """Make one call that does some work."""
        in_thread(lambda: breaker.execute(work))

    def decorated(self, breaker: CircuitBreaker, error: Exception | None) -> None:
        """Make one call of a decorated function."""
        breaker(end)(error)

    def streamed(self, breaker: CircuitBreaker, error: Exception) -> list[int]:
        """Read a decorated generator that yields two items and then raises."""

        @breaker
        def stream() -> Iterator[int]:
            yield from (1, 2)
            raise error

        items: list[int] = []
        with pytest.raises(type(error)):
            items.extend(stream())
        return items

    def cancel(self, breaker: CircuitBreaker, way: str) -> None:
        """Interrupt one call, made by `execute` or in a `guard`."""

        def guarded() -> None:
            with breaker.guard():
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            breaker.execute(end, KeyboardInterrupt()) if way == "execute" else guarded()

    def crowd(self, breaker: CircuitBreaker, size: int) -> int:
        """Make `size` calls at once that end only when each is inside or refused; count inside."""
        inside: list[int] = []
        refused: list[int] = []
        everybody = threading.Event()
        start = threading.Barrier(size)

        def arrive(where: list[int]) -> None:
            where.append(1)
            if len(inside) + len(refused) == size:
                everybody.set()

        def hold() -> None:
            arrive(inside)
            assert everybody.wait(PATIENCE)

        def call(_: int) -> None:
            start.wait(PATIENCE)
            try:
                breaker.execute(hold)
            except CircuitOpenError:
                arrive(refused)

        with ThreadPoolExecutor(size) as pool:
            list(pool.map(call, range(size)))
        return len(inside)

    @contextmanager
    def pending(
        self, breaker: CircuitBreaker, error: Exception | None = None, *, count: int = 1
    ) -> Iterator[None]:
        """Calls that begin before the block, and end after it."""
        begun, over = threading.Barrier(count + 1), threading.Event()

        def call() -> None:
            begun.wait(PATIENCE)
            assert over.wait(PATIENCE)
            end(error)

        with ThreadPoolExecutor(count) as pool:
            calls = [pool.submit(breaker.execute, call) for _ in range(count)]
            begun.wait(PATIENCE)
            try:
                yield
            finally:
                over.set()
            assert [error] * count == [each.exception(PATIENCE) for each in calls]


class Tasks:
    """Calls of coroutine functions, each in a task of its own on one loop."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def close(self) -> None:
        """End the loop."""
        self._runner.close()

    def call(self, breaker: CircuitBreaker, error: BaseException | None = None) -> None:
        """Make one call, which raises `error` if there is one."""
        self._runner.run(breaker.execute(end_later, error))

    def make_call(self, breaker: CircuitBreaker, work: Callable[[], None]) -> None:
        """Make one call that does some work."""

        async def work_later() -> None:
            await asyncio.sleep(0)
            work()

        self._runner.run(breaker.execute(work_later))

    def decorated(self, breaker: CircuitBreaker, error: Exception | None) -> None:
        """Make one call of a decorated coroutine function."""
        self._runner.run(breaker(end_later)(error))

    def streamed(self, breaker: CircuitBreaker, error: Exception) -> list[int]:
        """Read a decorated async generator that yields two items and then raises."""

        @breaker
        async def stream() -> Any:
            for item in (1, 2):
                yield item
            raise error

        items: list[int] = []

        async def read() -> None:
            async for item in stream():
                items.append(item)  # noqa: PERF401 - those before the error count

        with pytest.raises(type(error)):
            self._runner.run(read())
        return items

    def cancel(self, breaker: CircuitBreaker, way: str) -> None:
        """Cancel the task of one call, made by `execute` or in a `guard`, while it waits."""

        async def scene() -> None:
            begun = asyncio.Event()

            async def work() -> None:
                begun.set()
                await asyncio.Event().wait()

            async def guarded() -> None:
                with breaker.guard():
                    await work()

            call = breaker.execute(work) if way == "execute" else guarded()
            task = asyncio.create_task(as_coroutine(call))
            await asyncio.wait_for(begun.wait(), PATIENCE)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        self._runner.run(scene())

    def crowd(self, breaker: CircuitBreaker, size: int) -> int:
        """Make `size` calls at once that end only when each is inside or refused; count inside."""

        async def scene() -> int:
            inside: list[int] = []
            refused: list[int] = []
            everybody = asyncio.Event()

            def arrive(where: list[int]) -> None:
                where.append(1)
                if len(inside) + len(refused) == size:
                    everybody.set()

            async def hold() -> None:
                arrive(inside)
                await asyncio.wait_for(everybody.wait(), PATIENCE)

            async def call() -> None:
                try:
                    await breaker.execute(hold)
                except CircuitOpenError:
                    arrive(refused)

            await asyncio.gather(*(call() for _ in range(size)))
            return len(inside)

        return self._runner.run(scene())

    @contextmanager
    def pending(
        self, breaker: CircuitBreaker, error: Exception | None = None, *, count: int = 1
    ) -> Iterator[None]:
        """Calls that begin before the block, and end after it."""
        loop = self._runner.get_loop()
        begun, over = asyncio.Barrier(count + 1), asyncio.Event()

        async def work() -> None:
            await begun.wait()
            await asyncio.wait_for(over.wait(), PATIENCE)
            end(error)

        async def start() -> list[asyncio.Task[None]]:
            tasks = [asyncio.create_task(as_coroutine(breaker.execute(work))) for _ in range(count)]
            await asyncio.wait_for(begun.wait(), PATIENCE)
            return tasks

        tasks = self._runner.run(start())
        try:
            yield
        finally:
            loop.call_soon(over.set)
            ends = self._runner.run(as_coroutine(asyncio.wait_for(all_of(tasks), PATIENCE)))
        assert [error] * count == ends


def end(error: BaseException | None) -> None:
    if error is not None:
        raise error


async def end_later(error: BaseException | None) -> None:
    end(error)


async def as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


async def all_of(tasks: list[asyncio.Task[None]]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


def in_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(PATIENCE)


@pytest.fixture(params=[Threads, Tasks], ids=["threads", "tasks"])
def callers(request: pytest.FixtureRequest) -> Iterator[Threads | Tasks]:
    """Every trap is set for threads and for tasks."""
    made = request.param()
    yield made
    if isinstance(made, Tasks):
        made.close()


@pytest.fixture
def clock() -> FakeClock:
    """Return the clock of the breakers."""
    return FakeClock()


@pytest.fixture
def hook() -> RecordingHook:
    """Return what the breakers tell."""
    return RecordingHook()


TRIPS: dict[str, Callable[[int], dict[str, Any]]] = {
    "consecutive": lambda count: {"failure_threshold": count},
    "rate": lambda count: {"trip": FailureRate(threshold=1.0, window=60.0, minimum_calls=count)},
    "of calls": lambda count: {
        "trip": FailureRate(threshold=1.0, calls=count, minimum_calls=count)
    },
}


@pytest.fixture(params=TRIPS.values(), ids=TRIPS)
def make(request, clock: FakeClock, hook: RecordingHook) -> Callable[..., CircuitBreaker]:
    """Make a breaker that opens at the `count`th failure in a row, by each rule of tripping."""

    def make(count: int = 1, **options: Any) -> CircuitBreaker:
        options = {"jitter": 0.0, "clock": clock, "on_event": hook, **options}
        return CircuitBreaker(**request.param(count), **options)

    return make


def trip(callers: Threads | Tasks, breaker: CircuitBreaker) -> None:
    while breaker.get_state() == "closed":
        with pytest.raises(httpx.ConnectError):
            callers.call(breaker, DOWN)


def half_open(callers: Threads | Tasks, breaker: CircuitBreaker, clock: FakeClock) -> None:
    """Open the circuit and let its open time pass: the next call is its probe."""
    trip(callers, breaker)
    clock.advance(30.0)


# --- the lock -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 50])
def test_calls_do_not_queue_up_behind_a_lock(callers, make, size: int) -> None:
    """Calls of a closed circuit are all under way at once.

    pybreaker 1.4.1 holds its lock during the call: 8 threads of 20 ms take 163 ms instead of 21.
    """
    assert size == callers.crowd(make(), size)


# --- half-open ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 50])
def test_half_open_is_no_stampede(callers, make, clock, size: int) -> None:
    """Of 50 calls that arrive at half-open, one gets in and closes the circuit.

    circuitbreaker 2.1.3, aiobreaker 1.2.0, purgatory 3.0.1, hyx 0.0.2 and pyresilience 0.4.1 let
    all 50 in, fluxgate 0.9.4 four of them at random; ten other projects have had the bug reported.
    """
    breaker = make()
    half_open(callers, breaker, clock)
    assert 1 == callers.crowd(breaker, size)
    assert "closed" == breaker.get_state()


def test_threads_and_tasks_share_the_one_probe(make, clock) -> None:
    """While a thread's call is the probe, a task's is refused by the same object.

    purgatory and fluxgate have a class for each, hyx has async only: two breakers, two probes.
    """
    threads, tasks, breaker = Threads(), Tasks(), make()
    half_open(threads, breaker, clock)
    with threads.pending(breaker):
        assert 0 == tasks.crowd(breaker, 10)
    assert "closed" == breaker.get_state()
    tasks.close()


@pytest.mark.parametrize("way", ["execute", "guard"])
def test_canceled_probe_is_no_success(callers, make, clock, way: str) -> None:
    """A canceled probe does not close the circuit: nobody knows whether the service is back.

    hyx 0.0.2 and circuitbreaker 2.1.3 close on it, and so does Polly (its default predicate leaves
    cancellation out, which counts as an outcome that is not handled: a success).
    """
    breaker = make()
    half_open(callers, breaker, clock)
    callers.cancel(breaker, way)
    assert "half_open" == breaker.get_state()


@pytest.mark.parametrize("way", ["execute", "guard"])
def test_canceled_probe_is_no_failure(callers, make, clock, way: str) -> None:
    """A canceled probe does not open the circuit for another `reset_timeout` either.

    purgatory 3.0.1 counts it as a failure, and so does pybreaker 1.4.1 (`except BaseException`).
    """
    breaker = make()
    half_open(callers, breaker, clock)
    callers.cancel(breaker, way)
    assert 1 == breaker.get_stats().opened


@pytest.mark.parametrize("way", ["execute", "guard"])
def test_canceled_probe_gives_its_permit_back(callers, make, clock, way: str) -> None:
    """After canceled probes exactly one call gets in, and closes the circuit.

    After one, fluxgate 0.9.4 lets 38 of 60 in.
    """
    breaker = make()
    half_open(callers, breaker, clock)
    for _ in range(3):
        callers.cancel(breaker, way)
    assert 1 == callers.crowd(breaker, 10)
    assert "closed" == breaker.get_state()


def test_probe_that_never_returns(callers, make, clock) -> None:
    """A hanging probe forfeits its permit after `probe_timeout`, and its late end changes nothing.

    resilience4j was stuck in half-open for ever (#903, #2289). interlock-cb 2.8.2 and nopanic 0.3.0
    still are: they give back the permit of a canceled probe, not of one that hangs.
    """
    breaker = make(probe_timeout=5.0)
    half_open(callers, breaker, clock)
    with callers.pending(breaker, DOWN):
        assert 0 == callers.crowd(breaker, 5)
        clock.advance(5.0)
        assert 1 == callers.crowd(breaker, 5)
        assert "closed" == breaker.get_state()
    assert "closed" == breaker.get_state()


def test_hanging_service_gets_one_probe_at_a_time(callers, make, clock) -> None:
    """However often calls come, a service that hangs gets one request per `probe_timeout`.

    safe-client-gateway let everyone in at half-open, and a hanging service got 17 times the load,
    as its probes failed no sooner than by their timeout (#3442).
    """
    breaker = make(probe_timeout=5.0)
    half_open(callers, breaker, clock)
    with callers.pending(breaker, DOWN):
        for _ in range(10):
            assert 0 == callers.crowd(breaker, 10)
            clock.advance(0.4)


def test_failing_hook_does_not_wedge(callers, make, clock) -> None:
    """Hooks that raise at each change change nothing: the circuit opens, probes and closes.

    opossum had four ways to be stuck in half-open for good (#119, #276, #385, #484).
    """

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    breaker = make(on_open=broken, on_half_open=broken, on_close=broken, on_event=broken)
    for _ in range(2):
        half_open(callers, breaker, clock)
        callers.call(breaker)
        assert "closed" == breaker.get_state()


# --- results that come late ---------------------------------------------------------------------


def test_success_from_before_the_outage(callers, make) -> None:
    """A call that began before the circuit opened does not close it by its success.

    circuitbreaker 2.1.3 goes from open to closed on it.
    """
    breaker = make()
    with callers.pending(breaker):
        trip(callers, breaker)
    assert "open" == breaker.get_state()


def test_success_from_before_the_outage_is_no_probe(callers, make, clock) -> None:
    """It does not close a half-open circuit either, nor free the permit of the probe under way.

    circuitbreaker 2.1.3 closes on any success, whenever its call began.
    """
    breaker = make()
    with callers.pending(breaker, count=5):
        half_open(callers, breaker, clock)
        assert breaker.acquire().is_probe
    assert "half_open" == breaker.get_state()
    assert 0 == callers.crowd(breaker, 5)


def test_failures_from_before_the_outage(callers, make, clock) -> None:
    """Failures of calls from before an outage do not open the circuit that has closed since.

    nopanic 0.3.0 looks whether the state is the one the call was admitted in: closed, and closed
    again after an outage, look the same to it. Only a generation number tells them apart.
    """
    breaker = make(3)
    with callers.pending(breaker, TimeoutError(), count=5):
        half_open(callers, breaker, clock)
        callers.call(breaker)
        assert "closed" == breaker.get_state()
    assert "closed" == breaker.get_state()
    assert 1 == breaker.get_stats().opened


# --- what is no verdict -------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["execute", "guard"])
def test_cancellations_do_not_open(callers, make, way: str) -> None:
    """Users who leave say nothing about the service: any number of cancellations is neutral.

    Three of them open purgatory 3.0.1.
    """
    breaker = make(3)
    for _ in range(10):
        callers.cancel(breaker, way)
    assert ("closed", 10) == (breaker.get_state(), breaker.get_stats().neutral)


@pytest.mark.parametrize("way", ["execute", "guard"])
def test_cancellations_do_not_forgive(callers, make, way: str) -> None:
    """Cancellations between failures do not reset the count of failures.

    To circuitbreaker 2.1.3 each one is a success; hyx 0.0.2 takes it for one in `async with`.
    """
    breaker = make(3)
    for _ in range(2):
        with pytest.raises(httpx.ConnectError):
            callers.call(breaker, DOWN)
        callers.cancel(breaker, way)
    with pytest.raises(httpx.ConnectError):
        callers.call(breaker, DOWN)
    assert "open" == breaker.get_state()


def test_mistakes_of_the_caller_do_not_forgive(callers, make) -> None:
    """An exception that is not the service's fault is neither a failure nor a success.

    To circuitbreaker 2.1.3 any excluded exception is a success, as it is to interlock-cb's HTTP
    classifier: bad requests keep a circuit closed over a dead service.
    """
    breaker = make(3)
    for _ in range(2):
        for error in (DOWN, KeyError("x")):
            with pytest.raises(type(error)):
                callers.call(breaker, error)
    with pytest.raises(httpx.ConnectError):
        callers.call(breaker, DOWN)
    assert "open" == breaker.get_state()


# --- what is one --------------------------------------------------------------------------------


def test_decorated_failures_count(callers, make) -> None:
    """A failure under the decorator counts, whichever kind of function it decorates.

    Under pybreaker 1.4.1 `async def` always succeeds: the coroutine was made, and never looked at.
    """
    breaker = make(3)
    for _ in range(3):
        with pytest.raises(httpx.ConnectError):
            callers.decorated(breaker, DOWN)
    with pytest.raises(CircuitOpenError):
        callers.decorated(breaker, None)


def test_stream_that_breaks_midway(callers, make) -> None:
    """A stream that breaks after its first items is a failure.

    To interlock-cb 2.8.2 an async generator is a success at once, when it is made.
    """
    breaker = make(2)
    for _ in range(2):
        assert [1, 2] == callers.streamed(breaker, DOWN)
    assert ("open", 2) == (breaker.get_state(), breaker.get_stats().failures)


def test_tripping_call_tells_its_own_error(callers, make) -> None:
    """The call that opens the circuit raises what it met, as the very object it was.

    pybreaker 1.4.1 raises `CircuitBreakerError` instead, which hides that the call was made.
    """
    breaker = make()
    with pytest.raises(httpx.ConnectError) as raised:
        callers.call(breaker, DOWN)
    assert DOWN is raised.value
    assert "open" == breaker.get_state()


def test_one_lost_connection_is_one_failure(callers, make) -> None:
    """When one connection that carries many calls breaks, that is one failure.

    All peers count each call: one HTTP/2 GOAWAY, which every healthy gateway sends at a restart,
    opens their circuits.
    """
    breaker = make(2)
    with callers.pending(breaker, httpx.RemoteProtocolError("GOAWAY"), count=20):
        pass
    stats = breaker.get_stats()
    assert ("closed", 1, 19) == (stats.state, stats.failures, stats.neutral)


# --- calls within calls -------------------------------------------------------------------------


def nested_uses(breaker: CircuitBreaker, way: str) -> None:
    """Fail twice by the same breaker, and take it well."""
    for _ in range(2):
        with suppress(httpx.ConnectError):
            if way == "execute":
                breaker.execute(end, DOWN)
            else:
                with breaker.guard():
                    raise DOWN


@pytest.mark.parametrize("others", ["", "beside others"])
@pytest.mark.parametrize("way", ["execute", "guard"])
def test_uses_within_a_call_are_that_call(callers, make, way: str, others: str) -> None:
    """What a call does by its own breaker, however often, is part of that one call: a success.

    Counted one by one they open the circuit from inside a call that succeeds; and at half-open the
    inner ones would be refused, as the outer call holds the only permit.
    """
    breaker = make(2)

    def work() -> None:
        if others:
            in_thread(lambda: breaker.release(breaker.acquire()))
        nested_uses(breaker, way)

    callers.make_call(breaker, work)
    stats = breaker.get_stats()
    assert ("closed", 1, 0) == (stats.state, stats.successes, stats.failures)


# --- time ---------------------------------------------------------------------------------------


JUMPING_CLOCK = """
import time
wall, jump = time.time, 0.0
time.time = lambda: wall() + jump  # before anybody can take a copy of it

from supabase_resilience import CircuitBreaker, CircuitOpenError, Classification

breaker = CircuitBreaker(failure_threshold=1, reset_timeout=100.0, jitter=0.0, on_event=id)
breaker.settle(breaker.acquire(), Classification(verdict="failure"))
for jump in (-1e6, 1e6):
    try:
        breaker.acquire()
    except CircuitOpenError as refusal:
        print(round(refusal.retry_after, -1))
"""


def test_wall_clock_that_jumps() -> None:
    """Setting the wall clock neither makes an outage last nor ends it early.

    pybreaker, aiobreaker, purgatory, hyx and fluxgate measure the open time by the wall clock, and
    aiobreaker mixes UTC with local time.
    """
    program = [sys.executable, "-c", JUMPING_CLOCK]
    said = subprocess.run(program, capture_output=True, check=True, text=True).stdout
    assert ["100.0", "100.0"] == said.split()


def test_refusal_says_when(callers, make, clock) -> None:
    """A refusal carries the seconds to wait, as a number.

    pybreaker has them in its message only, purgatory, fluxgate and pyresilience not at all.
    """
    breaker = make()
    trip(callers, breaker)
    clock.advance(12.5)
    with pytest.raises(CircuitOpenError) as refusal:
        callers.call(breaker)
    assert 17.5 == refusal.value.retry_after


def test_server_that_says_when(callers, make, clock) -> None:
    """A server's `Retry-After` keeps the circuit open for as long as it asks.

    No breaker for Python hears it.
    """
    breaker = make()
    request = httpx.Request("GET", "https://project.supabase.test")
    answer = httpx.Response(503, headers={"Retry-After": "120"}, request=request)
    with pytest.raises(httpx.HTTPStatusError):
        callers.call(breaker, httpx.HTTPStatusError("503", request=request, response=answer))
    clock.advance(119.9)
    with pytest.raises(CircuitOpenError):
        callers.call(breaker)
    clock.advance(0.1)
    callers.call(breaker)
    assert "closed" == breaker.get_state()


def test_herd_does_not_return_in_one_instant() -> None:
    """Breakers that opened in the same second re-open spread over a share of the open time.

    Of the breakers for Python, only fluxgate's knows jitter.
    """
    clock = FakeClock()
    waits = set()
    for _ in range(100):
        breaker = CircuitBreaker(failure_threshold=1, clock=clock, on_event=id)
        trip(Threads(), breaker)
        waits.add(breaker.get_stats().retry_after)
    assert len(waits) > 90
    assert all(30.0 <= wait <= 33.0 for wait in waits)


# --- by hand, and in the logs -------------------------------------------------------------------


def test_force_open_does_not_time_out(callers, make, clock) -> None:
    """A circuit opened by hand stays open until it is closed by hand.

    pybreaker's `open()` ends with the usual timeout.
    """
    breaker = make()
    breaker.force_open()
    clock.advance(1e6)
    assert 0 == callers.crowd(breaker, 5)
    breaker.reset()
    assert 5 == callers.crowd(breaker, 5)


def test_outage_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand refused calls log nothing: the outage is told once, when the circuit opens.

    litellm logged a line for each (#40620).
    """
    breaker = CircuitBreaker(failure_threshold=1)
    with caplog.at_level(logging.DEBUG, logger="supabase_resilience"):
        trip(Threads(), breaker)
        for _ in range(1000):
            with pytest.raises(CircuitOpenError):
                breaker.acquire()
    assert ["circuit.opened"] == [record.message.split()[0] for record in caplog.records]
