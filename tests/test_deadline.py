"""`deadline()` caps what it encloses: across calls, awaits and tasks, and for nobody else."""

import asyncio
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest
from supabase import ClientOptions, create_client

from supabase_resilience import ProtectedClient, RetryConfig, _clock, deadline, protect
from supabase_resilience.deadline import deadline_at
from supabase_resilience.testing import FakeClock

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio, as supabase-py does."""
    return "asyncio"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Put a clock of the test's in the place of the package's."""
    clock = FakeClock(100.0)
    monkeypatch.setattr(_clock, "monotonic", clock)
    return clock


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    assert deadline_at() is None
    yield
    assert deadline_at() is None


def test_none_by_default() -> None:
    """Without a deadline there is none."""
    assert deadline_at() is None


def test_counts_from_entering(clock: FakeClock) -> None:
    """The seconds begin at the `with`, not at construction."""
    limit = deadline(2.0)
    clock.advance(50)
    with limit as entered:
        assert entered is limit
        assert deadline_at() == 152.0
        clock.advance(1)
        assert deadline_at() == 152.0
    assert deadline_at() is None


def test_ends_with_an_exception(clock: FakeClock) -> None:
    """A block that raises ends its deadline, too, and what it raised passes."""
    with pytest.raises(KeyError), deadline(2.0):
        raise KeyError
    assert deadline_at() is None


@pytest.mark.parametrize(("inner", "expected"), [(1.0, 101.0), (60.0, 105.0)])
def test_the_earlier_one_holds(clock: FakeClock, inner: float, expected: float) -> None:
    """A deadline within another can shorten it, never lengthen it."""
    with deadline(5.0):
        with deadline(inner):
            assert expected == deadline_at()
        assert deadline_at() == 105.0


def test_one_object_within_itself(clock: FakeClock) -> None:
    """An object that is entered again while it holds leaves nothing behind."""
    limit = deadline(5.0)
    with limit:
        clock.advance(1)
        with limit:
            assert deadline_at() == 105.0
        assert deadline_at() == 105.0
    assert deadline_at() is None
    with limit:
        assert deadline_at() == 106.0


async def test_one_object_shared_by_tasks(clock: FakeClock) -> None:
    """An object that two tasks are in at once gives each its own deadline back."""
    limit = deadline(5.0)
    outside: dict[str, float | None] = {}
    both_in = asyncio.Barrier(2)

    async def bare() -> None:
        with limit:
            await both_in.wait()
        outside["bare"] = deadline_at()

    async def bounded() -> None:
        with deadline(2.0):
            with limit:
                await both_in.wait()
            outside["bounded"] = deadline_at()

    async with asyncio.TaskGroup() as group:
        group.create_task(bare())
        group.create_task(bounded())
    assert {"bare": None, "bounded": 102.0} == outside


async def test_holds_in_tasks_started_inside(clock: FakeClock) -> None:
    """It travels into awaits and into tasks that start within, and not out of them."""

    async def seen() -> float | None:
        await asyncio.sleep(0)
        return deadline_at()

    async def shortened() -> float | None:
        with deadline(1.0):
            return await seen()

    with deadline(2.0):
        assert await seen() == 102.0
        assert await asyncio.create_task(shortened()) == 101.0
        assert deadline_at() == 102.0
    assert await asyncio.create_task(seen()) is None


def test_not_in_threads(clock: FakeClock) -> None:
    """A thread started inside has no deadline, as its docstring warns."""
    seen: list[float | None] = []
    with deadline(2.0):
        thread = threading.Thread(target=lambda: seen.append(deadline_at()))
        thread.start()
        thread.join()
    assert seen == [None]


@pytest.mark.parametrize(
    ("seconds", "kind", "message"),
    [
        (0, ValueError, "seconds must be more than 0 seconds, got 0"),
        (-1.5, ValueError, "seconds must be more than 0 seconds, got -1.5"),
        (float("nan"), ValueError, "seconds must be finite, got nan"),
        (float("inf"), ValueError, "seconds must be finite, got inf"),
        (None, TypeError, "seconds must be a number, got None"),
        ("2", TypeError, "seconds must be a number, got '2'"),
    ],
)
def test_refuses_nonsense(seconds: float, kind: type[Exception], message: str) -> None:
    """It is refused at construction, before anything runs inside."""
    with pytest.raises(kind) as caught:
        deadline(seconds)
    assert message == str(caught.value)


# --- what it does to a protected call ------------------------------------------------------------


def protected(handle: Callable[[httpx.Request], httpx.Response]) -> ProtectedClient:
    session = httpx.Client(transport=httpx.MockTransport(handle))
    client = create_client("http://localhost", "key", ClientOptions(httpx_client=session))
    return protect(client, retry=RetryConfig(wait_initial=0.0, wait_max=0.0))


def test_nothing_is_sent_after_it(clock: FakeClock) -> None:
    """A call that starts when nothing is left raises `PoolTimeout`: unsent, and nobody's fault."""
    sent: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, json=[])

    client = protected(handle)
    with deadline(2.0):
        client.table("orders").select("*").execute()
        clock.advance(2)
        with pytest.raises(httpx.PoolTimeout, match="the deadline passed"):
            client.table("orders").insert({"id": 1}).execute()
    client.table("orders").select("*").execute()
    assert ["GET", "GET"] == [request.method for request in sent]
    assert client.breaker.get_stats().project.current_failures == 0


def test_caps_every_phase(clock: FakeClock) -> None:
    """Each phase of a request gets no more than what is left of the deadline."""
    given: list[float | None] = []

    def handle(request: httpx.Request) -> httpx.Response:
        timeouts = request.extensions["timeout"]
        given.append(timeouts["connect"])
        clock.advance(0.5)
        given.append(timeouts["read"])
        return httpx.Response(200, json=[])

    with deadline(2.0):
        protected(handle).table("orders").select("*").execute()
    assert given == [2.0, 1.5]


def test_no_retry_beyond_it(clock: FakeClock) -> None:
    """A try that used the time up is the last one, and its own error is raised."""
    sent: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        clock.advance(1.5)
        raise httpx.ConnectError("no connection")

    with deadline(2.0), pytest.raises(httpx.ConnectError):
        protected(handle).table("orders").select("*").execute()
    assert len(sent) == 2
