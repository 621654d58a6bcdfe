"""Parts in memory as one, in both colours, and a client of the app that tells how they are."""

import asyncio
import threading
import time

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from supabase_resilience import (
    AsyncQueueProcessor,
    AsyncResilience,
    CircuitBreaker,
    MemoryQueue,
    QueueProcessor,
    Resilience,
)
from supabase_resilience.status import status_app
from supabase_resilience.testing import FakeClock

SOON = 30.0  # far more than any of it takes: only a hang ends here


_PAUSE = threading.Event()


def eventually(condition, said=str):
    """What `condition` returns once that is true; fails with what `said` returns."""
    end = time.monotonic() + SOON
    while not (result := condition()):
        assert time.monotonic() < end, f"it never came: {said()}"
        _PAUSE.wait(0.02)
    return result


class Client:
    """Asks an ASGI app on an event loop that runs all the time."""

    def __init__(self, app, base_url: str = "http://test/") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        transport = httpx.ASGITransport(app)
        self._session = httpx.AsyncClient(transport=transport, base_url=base_url)

    def do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(SOON)

    def request(self, method: str, path: str, **options) -> httpx.Response:
        return self.do(self._session.request(method, path, **options))

    def get(self, path: str, **options) -> httpx.Response:
        return self.request("GET", path, **options)

    def close(self) -> None:
        self.do(self._session.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class World:
    """A breaker and a queue in memory, as one, behind an app that is mounted at `/ops`."""

    def __init__(self, *, is_async: bool) -> None:
        self.breaker = CircuitBreaker(name="supabase", failure_threshold=1, clock=FakeClock())
        if is_async:
            self.queue = AsyncQueueProcessor(handle_async, store=MemoryQueue("mails"))
            self.resilience = AsyncResilience(self.breaker, self.queue, check_every=3600.0)
        else:
            self.queue = QueueProcessor(handle, store=MemoryQueue("mails"))
            self.resilience = Resilience(self.breaker, self.queue, check_every=3600.0)
        self._is_async = is_async
        self._client: Client | None = None

    def client(self, **options) -> Client:
        """A client of the app; from now on the parts run."""
        app = Starlette(routes=[Mount("/ops", status_app(self.resilience, **options))])
        self._client = Client(app, "http://test/ops/")
        self._do("start")
        return self._client

    def _do(self, name: str) -> None:
        method = getattr(self.resilience, name)
        if self._is_async:
            self._client.do(method())
        else:
            method()

    def close(self) -> None:
        if self._client is not None:
            self._do("stop")
            self._client.close()


def handle(_) -> None:
    raise ValueError("who is 4711?")


async def handle_async(_) -> None:
    handle(_)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def world(request):
    """Every test that asks for it holds in both colours."""
    made = World(is_async=request.param)
    yield made
    made.close()


@pytest.fixture
def sync_world():
    """For what has no colour."""
    made = World(is_async=False)
    yield made
    made.close()


@pytest.fixture
def ask():
    """Makes a client of an app of the test's own."""
    made = []

    def make(app) -> Client:
        made.append(Client(app))
        return made[-1]

    yield make
    for client in made:
        client.close()
