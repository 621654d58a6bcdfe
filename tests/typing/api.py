"""What a type checker must know about the public names; checked, never run.

`mypy --strict` and pyright in strict mode read this file: each `assert_type` is a promise.
"""

# As for mypy, so for pyright: an error that is expected here has to be one.
# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping
from typing import assert_type

from postgrest import APIResponse, AsyncPostgrestClient, SyncPostgrestClient
from postgrest._async.request_builder import AsyncSelectRequestBuilder
from postgrest._sync.request_builder import SyncSelectRequestBuilder
from postgrest.base_request_builder import SingleAPIResponse
from supabase import AsyncClient, Client

from supabase_resilience import (
    AsyncProtectedClient,
    AsyncQueueProcessor,
    BreakersStats,
    BreakerStats,
    CircuitBreaker,
    CircuitBreakers,
    CircuitOpenError,
    Classification,
    Event,
    FailureRate,
    Job,
    MemoryQueue,
    ProtectedClient,
    QueueMetrics,
    QueueProcessor,
    QueueStats,
    RetryConfig,
    SupabaseQueue,
    Target,
    by_table,
    classify,
    current_job,
    deadline,
    idempotent,
    protect,
    queue_processor,
)
from supabase_resilience.breaker import Guard, State
from supabase_resilience.testing import FakeClock, RecordingHook


def protected(client: Client, breaker: CircuitBreaker) -> None:
    """A protected client is of the colour of its client, and a client itself."""
    ours = protect(client)
    assert_type(ours, ProtectedClient)
    as_theirs: Client = ours
    assert_type(protect(as_theirs, breaker=breaker, retry=None), ProtectedClient)
    assert_type(protect(client, retry=RetryConfig(attempts=1)), ProtectedClient)
    assert_type(ours.breaker, CircuitBreaker | CircuitBreakers)
    assert_type(ours.as_user("jwt"), ProtectedClient)
    assert_type(ours.postgrest, SyncPostgrestClient)
    query = ours.table("t").select("*").eq("id", 1)
    assert_type(query, SyncSelectRequestBuilder)
    assert_type(query.execute(), APIResponse)
    assert_type(breaker.execute(query.execute), APIResponse)
    assert_type(breaker.execute(lambda: ours.table("t").select("*").execute()), APIResponse)


async def protected_async(client: AsyncClient, breaker: CircuitBreaker) -> None:
    """The same for the async colour; what is awaited keeps its type."""
    ours = protect(client, breaker=breaker)
    assert_type(ours, AsyncProtectedClient)
    as_theirs: AsyncClient = ours
    assert_type(protect(as_theirs), AsyncProtectedClient)
    assert_type(ours.as_user("jwt"), AsyncProtectedClient)
    assert_type(ours.postgrest, AsyncPostgrestClient)
    query = ours.table("t").select("*").eq("id", 1)
    assert_type(query, AsyncSelectRequestBuilder)
    assert_type(await query.execute(), APIResponse)
    assert_type(await breaker.execute(query.execute), APIResponse)
    assert_type(await breaker.execute(lambda: ours.rpc("f").execute()), SingleAPIResponse)


def refused(client: Client | AsyncClient) -> None:
    """What makes no sense is an error before the program runs."""
    protect("client")  # type: ignore[call-overload] # pyright: ignore[reportCallIssue,reportArgumentType]
    if isinstance(client, Client):
        protect(client, retry=3)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue,reportArgumentType]
    CircuitBreaker("name", 5)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    CircuitBreaker(on_open=lambda event: None)  # type: ignore[arg-type,misc] # pyright: ignore[reportArgumentType]
    RetryConfig(3)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


def add(a: int, b: str = "") -> float:
    """Add."""
    return a + len(b)


async def add_later(a: int, *, b: str = "") -> float:
    """Add, later."""
    return add(a, b)


async def execute(breaker: CircuitBreaker) -> None:
    """What is executed keeps the function's type, awaitable when it is."""
    assert_type(breaker.execute(add, 1, b="x"), float)
    assert_type(await breaker.execute(add_later, 1, b="x"), float)
    assert_type(breaker.execute(add, 1, fallback=lambda refusal: 0.0), float)
    assert_type(await breaker.execute(add_later, 1, fallback=later), float)


async def later(refusal: CircuitOpenError) -> float:
    """Answer a refusal."""
    return refusal.retry_after or 0.0


async def guard(breaker: CircuitBreaker) -> None:
    """A guard is a plain `with`."""
    with breaker.guard() as guarded:
        assert_type(guarded, Guard)
        await add_later(1)


def decorated(breaker: CircuitBreaker) -> None:
    """A decorated function keeps parameters and result."""
    call: Callable[[int, str], float] = breaker(add)
    assert_type(breaker(add)(1, b="x"), float)
    assert_type(call(1, "x"), float)
    breaker(add)("no number")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


async def decorated_async(breaker: CircuitBreaker) -> None:
    """A decorated coroutine function and both kinds of generators, too."""

    @breaker
    async def coroutine(a: int) -> float:
        return a

    @breaker
    def generator(a: int) -> Iterator[int]:
        yield a

    @breaker
    async def async_generator(a: int) -> AsyncIterator[int]:
        yield a

    assert_type(await coroutine(1), float)
    assert_type(list(generator(1)), list[int])
    assert_type([item async for item in async_generator(1)], list[int])


class Repository:
    """A class whose methods are guarded."""

    breaker = CircuitBreaker()

    @breaker
    def get(self, key: str) -> int:
        """Get a number."""
        return len(key)

    def use(self) -> None:
        """A decorated method is called as before."""
        assert_type(self.get("key"), int)


def asked(breaker: CircuitBreaker) -> None:
    """What a breaker says is typed to the word."""
    assert_type(breaker.get_state(), State)
    assert_type(breaker.get_stats(), BreakerStats)
    assert_type(breaker.get_stats().retry_after, float | None)
    assert_type(classify(Exception()), Classification)
    with deadline(2.0) as within:
        assert_type(within, deadline)
    hook = RecordingHook()
    assert_type(hook.events, list[Event])
    CircuitBreaker("db", on_event=hook, clock=FakeClock(), on_open=hook.events.clear)


def tripped() -> None:
    """A rule is given by name, and is no number."""
    rule = FailureRate(threshold=0.5, window=30.0, minimum_calls=20, slow_after=None, calls=None)
    CircuitBreaker(trip=rule, retry_budget=None)
    CircuitBreakers(trip=rule)
    FailureRate(0.5)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    CircuitBreaker(trip=0.5)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def schema_of(target: Target) -> str:
    """Name a circuit by the schema."""
    return target.schema


def breakers(client: Client) -> None:
    """A set of breakers takes the options of one, each of its own type."""
    made = CircuitBreakers(schema_of, limit=10, failure_threshold=3, on_event=RecordingHook())
    CircuitBreakers(by_table, name="db")
    CircuitBreakers(lambda target: None if target.is_rpc else target.name)
    assert_type(protect(client, breaker=made), ProtectedClient)
    assert_type(made.project, CircuitBreaker)
    assert_type(made.get_state(), State)
    assert_type(made.get_stats(), BreakersStats)
    assert_type(made.get_stats().project, BreakerStats)
    assert_type(made.get_stats().by_key, Mapping[Hashable, BreakerStats])
    assert_type(made.project.get_stats().budget_left, float | None)
    CircuitBreakers(failure_threshold="3")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    CircuitBreakers(no_such_option=3)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


async def promised(client: Client, later: AsyncClient) -> None:
    """The promise is a plain `with`, around either colour."""
    with idempotent() as promise:
        assert_type(promise, idempotent)
        client.table("t").insert({"id": 1}).execute()
        await later.table("t").insert({"id": 1}).execute()


def handle(data: dict[str, int]) -> None:
    """A handler says what it takes; JSON does not."""


def queues(client: Client) -> None:
    """A queue is of the colour of its client, protected or not."""
    assert_type(queue_processor(client, "q", handle), QueueProcessor)
    made = queue_processor(protect(client), "q", handle, concurrency=4, lanes={10: "_high"})
    assert_type(made, QueueProcessor)
    assert_type(QueueProcessor(None, store=SupabaseQueue(client, "q")), QueueProcessor)
    assert_type(QueueProcessor(handle, store=MemoryQueue()).enqueue({"id": 1}, 5), str)
    assert_type(made.enqueue_many([1, 2], delay=1.0), list[str])
    assert_type(made.stop(drain=True, timeout=1.0), bool)
    assert_type(made.get_stats(), QueueStats)
    assert_type(made.metrics(), QueueMetrics)
    assert_type(current_job(), Job)
    with made as entered:
        assert_type(entered, QueueProcessor)
    queue_processor(client, "q", handle, no_such_option=1)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]


async def queues_async(client: AsyncClient) -> None:
    """The same for the async colour."""
    made = queue_processor(client, "q", handle, max_retries=0)
    assert_type(made, AsyncQueueProcessor)
    assert_type(queue_processor(protect(client), "q", None), AsyncQueueProcessor)
    assert_type(await made.enqueue({"id": 1}), str)
    assert_type(await made.metrics(), QueueMetrics)
    assert_type(await made.join(timeout=1.0), bool)
    async with made as entered:
        assert_type(entered, AsyncQueueProcessor)
