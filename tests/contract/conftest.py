"""Fixtures of the contract: every test that asks for `world` runs as [sync] and as [async]."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from supabase_resilience import CircuitBreaker, RetryConfig, _clock, _session, protect
from supabase_resilience.testing import FakeClock

from .worlds import AsyncWorld, Server, SyncWorld, World

Make = Callable[..., Any]


@pytest.fixture(params=[SyncWorld, AsyncWorld], ids=["sync", "async"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Give one of the two colours of supabase-py."""
    world = request.param()
    yield world
    world.close()


@pytest.fixture
def server() -> Server:
    """Give the server that all clients of a test talk to."""
    return Server()


class Time(FakeClock):
    """The time as the package sees it; waiting moves it on at once."""

    def __init__(self) -> None:
        super().__init__()
        self.naps: list[float] = []
        self.during_a_nap: Callable[[], object] = int

    def pause(self, seconds: float) -> None:
        """Wait without waiting."""
        self.naps.append(seconds)
        self.advance(seconds)
        self.during_a_nap()

    async def pause_async(self, seconds: float) -> None:
        """Do the same in a task."""
        self.pause(seconds)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    """Replace clock and pauses of the package."""
    time = Time()
    monkeypatch.setattr(_clock, "monotonic", time)
    monkeypatch.setattr(_session.time, "sleep", time.pause)
    monkeypatch.setattr(_session.asyncio, "sleep", time.pause_async)
    return time


@pytest.fixture
def bare(world: World, server: Server) -> Any:
    """Give a client without protection."""
    return world.client(world.session(server))


@pytest.fixture
def breaker(time: Time) -> CircuitBreaker:
    """Give a breaker that opens at the first failure."""
    return CircuitBreaker(failure_threshold=1, jitter=0.0, clock=time)


@pytest.fixture
def patient(time: Time) -> CircuitBreaker:
    """Give a breaker that failures do not open."""
    return CircuitBreaker(failure_threshold=1000, jitter=0.0, clock=time)


@pytest.fixture
def protected(bare: Any, patient: CircuitBreaker) -> Any:
    """Give a protected client that retries up to three times."""
    return protect(bare, breaker=patient, retry=RetryConfig())
