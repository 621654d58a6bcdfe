"""One breaker shared by threads and tasks: permits are counted, nothing is lost or told twice."""

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from supabase_resilience import CircuitBreaker, CircuitOpenError, Classification, FailureRate
from supabase_resilience.events import CallRefused, Event
from supabase_resilience.testing import FakeClock, RecordingHook

pytestmark = pytest.mark.anyio

THREADS = 20
TASKS = 50
DOWN = httpx.ConnectError("no route")
FAILURE = Classification(verdict="failure")
PATIENCE = 60.0  # far more than any of it takes: only a hang ends here


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def restless() -> Iterator[None]:
    """Switch threads as often as Python can, so that a race has every chance."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def half_open(permits: int = 1, **options) -> tuple[CircuitBreaker, RecordingHook]:
    """Give a circuit whose open time is over."""
    clock, hook = FakeClock(), RecordingHook()
    breaker = CircuitBreaker(
        failure_threshold=1,
        half_open_permits=permits,
        jitter=0.0,
        clock=clock,
        on_event=hook,
        **options,
    )
    breaker.settle(breaker.acquire(), FAILURE)
    clock.advance(30.0)
    return breaker, hook


def in_threads(work: Callable[[int], object]) -> list[object]:
    """Let all threads start `work` in the same moment."""
    barrier = threading.Barrier(THREADS)

    def start(number: int) -> object:
        barrier.wait(PATIENCE)
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(start, range(THREADS)))


@pytest.mark.parametrize("permits", [1, 3])
def test_threads_at_half_open(permits: int) -> None:
    """Of 20 threads at once, half_open_permits get in and all others are refused meanwhile."""
    breaker, hook = half_open(permits, close_after=permits)
    all_others_refused = threading.Event()
    refused: list[int] = []

    def call(number: int) -> str:
        try:
            return breaker.execute(wait_for_the_others)
        except CircuitOpenError:
            refused.append(number)
            if len(refused) == THREADS - permits:
                all_others_refused.set()
            return "refused"

    def wait_for_the_others() -> str:
        assert all_others_refused.wait(PATIENCE)
        return "let in"

    assert {"let in": permits, "refused": THREADS - permits} == Counter(in_threads(call))
    assert "closed" == breaker.get_state()
    assert 1 == hook.names.count("circuit.half_opened")
    assert 1 == hook.names.count("circuit.closed")
    assert THREADS - permits == breaker.get_stats().refused


@pytest.mark.parametrize("permits", [1, 3])
async def test_tasks_at_half_open(permits: int) -> None:
    """Of 50 tasks at once, half_open_permits get in and all others are refused meanwhile."""
    breaker, hook = half_open(permits, close_after=permits)
    all_others_refused = asyncio.Event()

    async def probe() -> str:
        await all_others_refused.wait()
        return "let in"

    async def call() -> str:
        try:
            return await breaker.execute(probe)
        except CircuitOpenError:
            if breaker.get_stats().refused == TASKS - permits:
                all_others_refused.set()
            return "refused"

    outcomes = await asyncio.gather(*(call() for _ in range(TASKS)))
    assert {"let in": permits, "refused": TASKS - permits} == Counter(outcomes)
    assert "closed" == breaker.get_state()
    assert 1 == hook.names.count("circuit.closed")


async def test_calls_do_not_wait_for_each_other() -> None:
    """The lock never spans a call: all 20 threads and 50 tasks are inside at the same time."""
    breaker = CircuitBreaker()
    inside = threading.Barrier(THREADS + 1)
    all_tasks_inside = asyncio.Event()
    count = 0

    async def task() -> None:
        nonlocal count
        count += 1
        if count == TASKS:
            all_tasks_inside.set()
        await all_tasks_inside.wait()

    async def tasks() -> None:
        await asyncio.gather(*(breaker.execute(task) for _ in range(TASKS)))
        await asyncio.to_thread(inside.wait, PATIENCE)

    def threads() -> list[object]:
        return in_threads(lambda number: breaker.execute(inside.wait, PATIENCE))

    await asyncio.gather(asyncio.to_thread(threads), tasks())
    assert THREADS + TASKS == breaker.get_stats().successes


async def test_threads_and_tasks_at_half_open() -> None:
    """Threads and tasks share one permit: one of all of them gets in."""
    breaker, _ = half_open()
    let_in: list[int] = []
    done = threading.Event()

    def hold() -> None:
        let_in.append(1)
        assert done.wait(PATIENCE)

    def in_thread(number: int) -> None:
        try:
            breaker.execute(hold)
        except CircuitOpenError:
            note_refusal()

    async def in_task() -> None:
        try:
            await breaker.execute(asyncio.to_thread, hold)
        except CircuitOpenError:
            note_refusal()

    def note_refusal() -> None:
        if breaker.get_stats().refused == THREADS + TASKS - 1:
            done.set()

    await asyncio.gather(
        asyncio.to_thread(in_threads, in_thread), *(in_task() for _ in range(TASKS))
    )
    assert [1] == let_in
    assert "closed" == breaker.get_state()


def test_opens_once() -> None:
    """However many threads fail in the same moment, the circuit opens once and is told once."""
    hook = RecordingHook()
    breaker = CircuitBreaker(failure_threshold=THREADS, on_event=hook)

    def call(number: int) -> None:
        with pytest.raises(httpx.ConnectError):
            breaker.execute(fail)

    in_threads(call)
    assert ["circuit.opened"] == hook.names
    assert (THREADS, 1) == (breaker.get_stats().failures, breaker.get_stats().opened)


def fail() -> None:
    raise DOWN


def test_counts_add_up() -> None:
    """No success, failure, neutral outcome or refusal of any thread is lost."""
    breaker = CircuitBreaker(failure_threshold=10**9, on_event=id)
    rounds = 300

    def call(number: int) -> None:
        for _ in range(rounds):
            breaker.execute(int)
            with pytest.raises(httpx.ConnectError):
                breaker.execute(fail)
            with pytest.raises(TypeError):
                breaker.execute(int, None)

    in_threads(call)
    stats, each = breaker.get_stats(), THREADS * rounds
    assert (each, each, each) == (stats.successes, stats.failures, stats.neutral)
    breaker.force_open()
    in_threads(lambda number: [refused(breaker) for _ in range(rounds)])
    assert each == breaker.get_stats().refused


def refused(breaker: CircuitBreaker) -> None:
    with pytest.raises(CircuitOpenError):
        breaker.acquire()


def test_events_are_told_one_at_a_time_and_in_order() -> None:
    """Changes are told one at a time, and a closing always before the next opening."""
    names: list[str] = []
    overlaps: list[str] = []
    running = threading.Lock()

    def hook(event: Event) -> None:
        if isinstance(event, CallRefused):
            return
        if not running.acquire(blocking=False):
            overlaps.append(event.name)
            return
        names.append(event.name)
        running.release()

    breaker = CircuitBreaker(failure_threshold=1, on_event=hook)

    def open_and_close(number: int) -> None:
        for _ in range(100):
            try:
                breaker.settle(breaker.acquire(), FAILURE)
            except CircuitOpenError:
                breaker.reset()

    in_threads(open_and_close)
    breaker.reset()
    opened = breaker.get_stats().opened
    assert [] == overlaps
    assert ["circuit.opened", "circuit.closed"] * opened == names


def test_share_opens_once() -> None:
    """By a share, too, the circuit opens once, with the very failure that completes it."""
    hook = RecordingHook()
    rule = FailureRate(threshold=1.0, minimum_calls=THREADS)
    breaker = CircuitBreaker(trip=rule, clock=FakeClock(), on_event=hook)

    def call(number: int) -> None:
        with pytest.raises(httpx.ConnectError):
            breaker.execute(fail)

    in_threads(call)
    assert ["circuit.opened"] == hook.names
    assert (THREADS, 1) == (breaker.get_stats().current_failures, breaker.get_stats().opened)


@pytest.mark.parametrize("trip", [None, FailureRate(threshold=1.0)], ids=["count", "share"])
@pytest.mark.parametrize("is_marking", [False, True])
def test_nested_calls_of_many_threads(trip: FailureRate | None, *, is_marking: bool) -> None:
    """Among calls of other threads, each nested call is told from each that is not."""
    breaker = CircuitBreaker(failure_threshold=10**9, trip=trip, on_event=id)
    if is_marking:
        breaker.mark_calls()
    rounds = 200

    def call(number: int) -> None:
        for _ in range(rounds):
            breaker.execute(breaker.execute, breaker.execute, int)
            breaker.execute(int)
            with pytest.raises(httpx.ConnectError):
                breaker.execute(breaker.execute, fail)

    in_threads(call)
    stats, each = breaker.get_stats(), THREADS * rounds
    assert (2 * each, each, 0) == (stats.successes, stats.failures, stats.neutral)


async def test_nested_calls_of_many_tasks() -> None:
    """The same holds for tasks, and for the threads beside them."""
    breaker = CircuitBreaker(failure_threshold=10**9, on_event=id)
    rounds = 20

    async def pause() -> None:
        await asyncio.wait([asyncio.ensure_future(asyncio.to_thread(breaker.execute, int))])

    async def inner() -> None:
        await breaker.execute(pause)

    async def call() -> None:
        for _ in range(rounds):
            await breaker.execute(inner)
            breaker.execute(int)

    await asyncio.gather(*(call() for _ in range(TASKS)))
    # Each round: the nested call, the plain one, and the one in a thread, which is another call.
    assert 3 * TASKS * rounds == breaker.get_stats().successes
    breaker.execute(int)
    assert breaker.execute(breaker.acquire).is_nested
    assert not breaker.acquire().is_nested
