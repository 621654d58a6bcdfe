"""A breaker as a decorator of functions, coroutine functions and both kinds of generators."""

import asyncio
import contextlib
import gc
import inspect
from collections.abc import AsyncGenerator, Callable, Generator

import httpx
import pytest

from supabase_resilience import CircuitBreaker, CircuitOpenError
from supabase_resilience.testing import FakeClock

pytestmark = pytest.mark.anyio

DOWN = httpx.ConnectError("no route")


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def breaker(clock: FakeClock) -> CircuitBreaker:
    return CircuitBreaker(failure_threshold=1, jitter=0.0, clock=clock)


def half_open(breaker: CircuitBreaker, clock: FakeClock) -> None:
    with pytest.raises(httpx.ConnectError), breaker.guard():
        raise DOWN
    clock.advance(30.0)


def took_the_permit(breaker: CircuitBreaker) -> bool:
    """Whether some probe still holds the only permit."""
    try:
        breaker.release(breaker.acquire())
    except CircuitOpenError:
        return True
    return False


# --- what decorating keeps ----------------------------------------------------------------------


def function(a: int, *, b: int = 2) -> int:
    """Say something."""
    return a + b


async def coroutine(a: int, *, b: int = 2) -> int:
    """Say something."""
    return a + b


def generator(a: int, *, b: int = 2) -> Generator[int]:
    """Say something."""
    yield a + b


async def async_generator(a: int, *, b: int = 2) -> AsyncGenerator[int]:
    """Say something."""
    yield a + b


@pytest.mark.parametrize("fn", [function, coroutine, generator, async_generator])
def test_wraps(breaker: CircuitBreaker, fn: Callable[..., object]) -> None:
    """The decorated function keeps name, docstring, signature and its kind."""
    decorated = breaker(fn)
    assert fn is decorated.__wrapped__
    for ask in (inspect.getdoc, inspect.signature, lambda each: each.__qualname__):
        assert ask(fn) == ask(decorated)
    for ask in (
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
        asyncio.iscoroutinefunction,
    ):
        assert ask(fn) == ask(decorated)


async def test_arguments_and_results(breaker: CircuitBreaker) -> None:
    """Arguments go in and results come out, in all four kinds."""
    assert 4 == breaker(function)(1, b=3)
    assert 4 == await breaker(coroutine)(1, b=3)
    assert [4] == list(breaker(generator)(1, b=3))
    assert [4] == [item async for item in breaker(async_generator)(1, b=3)]


async def test_argument_called_fallback(breaker: CircuitBreaker) -> None:
    """A parameter named `fallback` is the function's, though execute() has one of that name."""

    @breaker
    def plain(fallback: str) -> str:
        return fallback

    @breaker
    async def awaited(*, fallback: str) -> str:
        return fallback

    assert "mine" == plain(fallback="mine")
    assert "mine" == await awaited(fallback="mine")


def test_method(breaker: CircuitBreaker) -> None:
    """A method can be decorated."""

    class Repository:
        @breaker
        def get(self, key: str) -> tuple[object, str]:
            return self, key

    repository = Repository()
    assert (repository, "a") == repository.get("a")


@pytest.mark.parametrize("nonsense", [None, "fn", 5])
def test_refuses_what_cannot_be_called(breaker: CircuitBreaker, nonsense: object) -> None:
    """Only something callable can be decorated."""
    with pytest.raises(TypeError, match="fn must be callable"):
        breaker(nonsense)


async def test_function_and_coroutine_are_guarded(breaker: CircuitBreaker) -> None:
    """A failing call opens the circuit, and the next ones are refused without being made."""
    calls: list[int] = []

    @breaker
    def plain() -> None:
        calls.append(1)
        raise DOWN

    @breaker
    async def awaited() -> None:
        plain.__wrapped__()

    for error in (httpx.ConnectError, CircuitOpenError):
        with pytest.raises(error):
            plain()
    breaker.reset()
    for error in (httpx.ConnectError, CircuitOpenError):
        pending = awaited()
        with pytest.raises(error):
            await pending
    assert 2 == len(calls)


async def test_recursion_is_one_call(breaker: CircuitBreaker) -> None:
    """A decorated function that calls itself is one call."""

    @breaker
    def count_down(left: int) -> int:
        return left and count_down(left - 1)

    @breaker
    async def count_down_later(left: int) -> int:
        return left and await count_down_later(left - 1)

    assert (0, 0) == (count_down(3), await count_down_later(3))
    assert 2 == breaker.get_stats().successes


# --- generators, one body for both kinds --------------------------------------------------------


class Sync:
    """Drives a generator; `None` is its end."""

    def decorate(self, breaker: CircuitBreaker, body: Callable[[], Generator]) -> Callable:
        return breaker(body)

    async def step(self, step: Callable, *sent: object) -> object:
        try:
            return step(*sent)
        except StopIteration:
            return None

    async def next(self, reader: Generator) -> object:
        return await self.step(reader.__next__)

    async def send(self, reader: Generator, value: object) -> object:
        return await self.step(reader.send, value)

    async def throw(self, reader: Generator, error: BaseException) -> object:
        return await self.step(reader.throw, error)

    async def close(self, reader: Generator) -> None:
        reader.close()


class Async:
    """Drives an async generator whose steps are those of a generator; `None` is its end."""

    def decorate(self, breaker: CircuitBreaker, body: Callable[[], Generator]) -> Callable:
        @breaker
        async def generate() -> AsyncGenerator:
            source = body()
            step, value = source.send, None
            try:
                while True:
                    item = step(value)
                    try:
                        step, value = source.send, (yield item)
                    except GeneratorExit:
                        source.close()
                        raise
                    except BaseException as thrown:  # noqa: BLE001 - goes into the source
                        step, value = source.throw, thrown
            except StopIteration:
                return

        return generate

    async def next(self, reader: AsyncGenerator) -> object:
        return await anext(reader, None)

    async def send(self, reader: AsyncGenerator, value: object) -> object:
        return await reader.asend(value)

    async def throw(self, reader: AsyncGenerator, error: BaseException) -> object:
        return await reader.athrow(error)

    async def close(self, reader: AsyncGenerator) -> None:
        await reader.aclose()


@pytest.fixture(params=[Sync, Async], ids=["generator", "async generator"])
def kind(request: pytest.FixtureRequest) -> Sync | Async:
    return request.param()


async def test_items_sent_and_thrown(breaker: CircuitBreaker, kind) -> None:
    """What the reader sends or throws reaches the generator, as if it were not decorated."""
    got: list[object] = []

    def body():
        got.append((yield 1))
        try:
            yield 2
        except LookupError as error:
            got.append(error)
        yield 3

    reader, error = kind.decorate(breaker, body)(), LookupError()
    assert 1 == await kind.next(reader)
    assert 2 == await kind.send(reader, "sent")
    assert 3 == await kind.throw(reader, error)
    assert await kind.next(reader) is None
    assert ["sent", error] == got
    assert ("closed", 1) == (breaker.get_state(), breaker.get_stats().successes)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError(), SystemExit()])
async def test_canceled_at_a_yield(breaker: CircuitBreaker, kind, error: BaseException) -> None:
    """A cancellation thrown in is seen by the generator as what it is, and counts nothing."""
    seen: list[BaseException] = []

    def body():
        try:
            yield 1
        except BaseException as thrown:
            seen.append(thrown)
            raise

    reader = kind.decorate(breaker, body)()
    await kind.next(reader)
    with pytest.raises(type(error)):
        await kind.throw(reader, error)
    assert [error] == seen
    assert ("closed", 0) == (breaker.get_state(), breaker.get_stats().failures)


def test_return_value(breaker: CircuitBreaker) -> None:
    """The value that a generator returns comes through `yield from`."""

    @breaker
    def body():
        yield 1
        return "the end"

    def outer():
        return (yield from body())

    reader = outer()
    next(reader)
    with pytest.raises(StopIteration) as end:
        next(reader)
    assert "the end" == end.value.value


async def test_breaks_midway(breaker: CircuitBreaker, kind) -> None:
    """A generator that breaks between two items is a failure, raised as it came."""

    def body():
        yield 1
        raise DOWN

    reader = kind.decorate(breaker, body)()
    await kind.next(reader)
    assert "closed" == breaker.get_state()
    with pytest.raises(httpx.ConnectError) as raised:
        await kind.next(reader)
    assert DOWN is raised.value
    assert "open" == breaker.get_state()


async def test_refused_at_the_first_item(breaker: CircuitBreaker, kind) -> None:
    """While open, a generator is refused when its first item is asked for, and never started."""
    started: list[int] = []

    def body():
        started.append(1)
        yield 1

    breaker.force_open()
    reader = kind.decorate(breaker, body)()
    with pytest.raises(CircuitOpenError):
        await kind.next(reader)
    assert [] == started


async def test_left_early(breaker: CircuitBreaker, clock: FakeClock, kind) -> None:
    """A generator that its reader leaves is closed, is no failure and gives its permit back."""
    cleaned_up: list[int] = []

    def body():
        try:
            yield 1
            yield 2
        finally:
            cleaned_up.append(1)

    half_open(breaker, clock)
    reader = kind.decorate(breaker, body)()
    await kind.next(reader)
    assert took_the_permit(breaker)
    await kind.close(reader)
    assert [1] == cleaned_up
    assert not took_the_permit(breaker)
    assert "half_open" == breaker.get_state()


async def test_cleanup_that_fails(breaker: CircuitBreaker, clock: FakeClock, kind) -> None:
    """A cleanup that raises keeps no permit."""

    def body():
        try:
            yield 1
        finally:
            raise LookupError("in the cleanup")

    half_open(breaker, clock)
    reader = kind.decorate(breaker, body)()
    await kind.next(reader)
    with pytest.raises(LookupError):
        await kind.close(reader)
    assert not took_the_permit(breaker)


async def test_never_started(breaker: CircuitBreaker, clock: FakeClock, kind) -> None:
    """A generator that nobody reads takes no permit."""
    half_open(breaker, clock)
    reader = kind.decorate(breaker, generator_body)()
    await kind.close(reader)
    assert not took_the_permit(breaker)


def generator_body():
    yield 1


@pytest.mark.parametrize("fn", [generator, async_generator])
async def test_wrong_arguments(breaker: CircuitBreaker, clock: FakeClock, fn) -> None:
    """Arguments that do not fit raise TypeError and keep no permit."""
    half_open(breaker, clock)
    reader = breaker(fn)(no="such argument")
    with pytest.raises(TypeError):
        next(reader) if fn is generator else await anext(reader)
    assert not took_the_permit(breaker)


async def test_probe_closes_at_its_end(breaker: CircuitBreaker, clock: FakeClock, kind) -> None:
    """A generator is judged when it ends, not by its first item."""
    half_open(breaker, clock)
    reader = kind.decorate(breaker, generator_body)()
    await kind.next(reader)
    assert "half_open" == breaker.get_state()
    assert await kind.next(reader) is None
    assert "closed" == breaker.get_state()


async def test_reader_is_outside(breaker: CircuitBreaker, kind) -> None:
    """Steps of the generator are inside the call; what the reader does between them is not."""
    inside: list[bool] = []

    def body():
        inside.append(breaker.acquire().is_nested)
        yield 1
        inside.append(breaker.acquire().is_nested)

    reader = kind.decorate(breaker, body)()
    await kind.next(reader)
    assert not breaker.acquire().is_nested
    assert await kind.next(reader) is None
    assert [True, True] == inside


async def test_two_generators_at_once(breaker: CircuitBreaker, kind) -> None:
    """Generators read in turns are calls of their own."""
    make = kind.decorate(breaker, generator_body)
    readers = [make(), make()]
    for _ in range(2):
        for reader in readers:
            await kind.next(reader)
    assert 2 == breaker.get_stats().successes


def test_forgotten_generator(breaker: CircuitBreaker, clock: FakeClock) -> None:
    """A generator that is dropped midway gives its permit back."""
    half_open(breaker, clock)
    next(breaker(generator_body)())
    gc.collect()
    assert not took_the_permit(breaker)


async def test_context_managers(breaker: CircuitBreaker) -> None:
    """A decorated generator may become a context manager; what its block raises is judged."""

    @contextlib.contextmanager
    @breaker
    def connection():
        yield "connected"

    @contextlib.asynccontextmanager
    @breaker
    async def connection_later():
        yield "connected"

    with connection() as value:
        assert "connected" == value
    async with connection_later() as value:
        assert "connected" == value
    assert 2 == breaker.get_stats().successes
    with pytest.raises(httpx.ConnectError), connection():
        raise DOWN
    assert "open" == breaker.get_state()
    breaker.reset()
    with pytest.raises(httpx.ConnectError):
        async with connection_later():
            raise DOWN
    assert "open" == breaker.get_state()
