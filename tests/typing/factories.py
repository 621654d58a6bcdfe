"""Each factory gives the colour of its client, and takes no option that is not there.

Checked by `mypy --strict` and pyright in strict mode, never run. Protected clients are clients: the
overloads are proved for them, too.
"""

# As for mypy, so for pyright: an error that is expected here has to be one.
# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Mapping
from typing import Any, assert_type

import httpx
from supabase import AsyncClient, AsyncClientOptions, Client, ClientOptions

from supabase_resilience import (
    Alert,
    AsyncProtectedClient,
    AsyncQueueProcessor,
    AsyncRealtimeListener,
    AsyncResilience,
    AsyncResilientHttpClient,
    AsyncServerSideVerification,
    Change,
    CircuitBreaker,
    FileCursor,
    Health,
    Hooks,
    Job,
    KeyRange,
    ListenerStats,
    LiveTable,
    ProtectedClient,
    QueueProcessor,
    RealtimeListener,
    Recovery,
    Report,
    Resilience,
    ResilientHttpClient,
    RetryConfig,
    Rule,
    ServerSideVerification,
    VerificationStats,
    log_event,
    protect,
    queue_processor,
    realtime_listener,
    resilient_async_http_client,
    resilient_http_client,
    server_side_verification,
)
from supabase_resilience.testing import FakeClock, RecordingHook

# What is done with a change, a job, a row.


def hear(change: Change) -> None:
    """Hear of a change."""
    assert_type(change.new, Mapping[str, Any])


async def hear_later(change: Change) -> None:
    """Hear of a change, on an event loop."""
    hear(change)


def failed(error: Exception, job: Job) -> None:
    """Hear of a failed attempt."""
    assert_type(job.attempt, int)
    assert_type(error, Exception)


async def failed_later(error: Exception, job: Job) -> None:
    """Hear of a failed attempt, on an event loop."""
    failed(error, job)


def is_right(row: dict[str, Any]) -> bool:
    """Judge a row."""
    return bool(row["status"] != "completed")


def repair(key: int) -> None:
    """Repair the row of this key."""


async def repair_later(key: int) -> None:
    """Repair the row of this key, on an event loop."""


# protect


def protected(
    client: Client,
    later: AsyncClient,
    ours: ProtectedClient,
    ours_later: AsyncProtectedClient,
    breaker: CircuitBreaker,
) -> None:
    """Sync stays sync and async async, protected for the second time or not."""
    assert_type(protect(client), ProtectedClient)
    assert_type(protect(later), AsyncProtectedClient)
    assert_type(protect(ours, breaker=breaker), ProtectedClient)
    assert_type(protect(ours_later, retry=RetryConfig(attempts=1)), AsyncProtectedClient)
    protect(client, no_such_option=1)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    protect(client, breaker="supabase")  # type: ignore[call-overload] # pyright: ignore[reportCallIssue,reportArgumentType]
    protect(client, breaker)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]


# queue_processor


def queue(
    client: Client,
    later: AsyncClient,
    ours: ProtectedClient,
    ours_later: AsyncProtectedClient,
) -> None:
    """Handlers of both kinds for the async colour; a coroutine for nobody to await is an error."""
    assert_type(queue_processor(client, "q", print, on_error=failed), QueueProcessor)
    assert_type(queue_processor(ours, "q", None), QueueProcessor)
    assert_type(queue_processor(later, "q", print, on_error=failed), AsyncQueueProcessor)
    assert_type(
        queue_processor(ours_later, "q", repair_later, on_error=failed_later, clock=FakeClock()),
        AsyncQueueProcessor,
    )
    queue_processor(client, "q", print, retry_delay="1 s")  # type: ignore[call-overload] # pyright: ignore[reportCallIssue,reportArgumentType]
    queue_processor(later, "q", print, maxRetries=3)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    queue_processor("client", "q", print)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue,reportArgumentType]
    queue_processor(client, "q")  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    queue_processor(client, "q", print, store=None)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]


# realtime_listener


def listener(
    client: Client,
    later: AsyncClient,
    ours: ProtectedClient,
    ours_later: AsyncProtectedClient,
) -> None:
    """A listener takes its words one by one, so that a misspelt one is an error."""
    made = realtime_listener(client, "projects", event="UPDATE", recovery=Recovery.versioned())
    assert_type(made, RealtimeListener)
    assert_type(realtime_listener(ours, "projects", id_column=("a", "b")), RealtimeListener)
    assert_type(realtime_listener(later, "projects", start_from="now"), AsyncRealtimeListener)
    assert_type(
        realtime_listener(ours_later, "projects", on_handler_error="skip", overflow="recover"),
        AsyncRealtimeListener,
    )
    assert_type(made.get_stats(), ListenerStats)
    assert_type(made.is_active(), bool)
    assert_type(made.remove_listener("mail"), bool)
    made.on_change("mail", hear)
    made.on_change(hear)  # type: ignore[call-arg,arg-type] # pyright: ignore[reportCallIssue]
    realtime_listener(client, "projects", event="update")  # type: ignore[call-overload] # pyright: ignore[reportCallIssue,reportArgumentType]
    realtime_listener(client, "projects", recovery="versioned")  # type: ignore[call-overload] # pyright: ignore[reportCallIssue,reportArgumentType]
    realtime_listener(client, "projects", start_from="the end")  # type: ignore[call-overload] # pyright: ignore[reportCallIssue,reportArgumentType]
    realtime_listener(client, "projects", table="orders")  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    realtime_listener(later, "projects", interval=60.0)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]


def followed(listener: RealtimeListener) -> None:
    """Changes come typed, from a listener and from a table that it keeps."""
    table = LiveTable(listener)
    for change in listener.changes():
        assert_type(change, Change)
    for change in table.changes():
        assert_type(change, Change)
    assert_type(table.rows[1], Mapping[str, Any])
    with listener as entered:
        assert_type(entered, RealtimeListener)


async def followed_later(listener: AsyncRealtimeListener) -> None:
    """The same on an event loop, with handlers of both kinds."""
    table = LiveTable(listener)
    listener.on_change("later", hear_later)
    listener.on_change("now", hear)
    async for change in listener.changes():
        assert_type(change, Change)
    async for change in table.changes():
        assert_type(change, Change)
    assert_type(await listener.stop(), bool)
    assert_type(listener.get_stats(), ListenerStats)
    async with listener as entered:
        assert_type(entered, AsyncRealtimeListener)


# server_side_verification


def verification(
    client: Client,
    later: AsyncClient,
    ours: ProtectedClient,
    ours_later: AsyncProtectedClient,
) -> None:
    """The short form with a validator and the long one with rules, for each kind of client."""
    made = server_side_verification(
        client, "orders", data_validator=is_right, fix_missing_data=repair, interval=60.0
    )
    assert_type(made, ServerSideVerification)
    rules = [Rule("a", check=is_right), Rule("b", violates=lambda q: q.is_("a", "null"))]
    assert_type(server_side_verification(ours, "orders", rules=rules), ServerSideVerification)
    assert_type(
        server_side_verification(later, "orders", only_between=("01:00", "05:00")),
        AsyncServerSideVerification,
    )
    assert_type(
        server_side_verification(ours_later, "orders", fix_missing_data=repair_later),
        AsyncServerSideVerification,
    )
    assert_type(made.run_once(dry_run=True), Report)
    assert_type(made.key_ranges(4), list[KeyRange])
    assert_type(made.get_stats(), VerificationStats)
    assert_type(made.get_stats().problem_count, int)
    server_side_verification(client, "orders", batch_size="50")  # type: ignore[call-overload] # pyright: ignore[reportCallIssue,reportArgumentType]
    server_side_verification(client, "orders", rules=is_right)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue,reportArgumentType]
    server_side_verification(later, "orders", batchSize=50)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    server_side_verification(client, "orders", 60.0)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    Rule("a", check=is_right, severity="fatal")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    Rule(check=is_right)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


async def verified_later(made: AsyncServerSideVerification) -> None:
    """What asks Supabase is awaited, what answers from memory is not."""
    assert_type(await made.run_once(), Report)
    assert_type(await made.key_ranges(4), list[KeyRange])
    assert_type(made.get_stats(), VerificationStats)
    assert_type(made.is_active(), bool)


# resilient_http_client


def services(breaker: CircuitBreaker) -> None:
    """The HTTP client is one of httpx, and fits where supabase-py takes one."""
    made = resilient_http_client(breakers={"auth": breaker}, timeouts={"storage": 60.0}, retry=None)
    assert_type(made, ResilientHttpClient)
    as_theirs: httpx.Client = made
    ClientOptions(httpx_client=as_theirs)
    later = resilient_async_http_client(retry={"auth": RetryConfig(attempts=1)}, http2=True)
    assert_type(later, AsyncResilientHttpClient)
    AsyncClientOptions(httpx_client=later)
    assert_type(made.breakers, Mapping[str, CircuitBreaker])
    assert_type(later.breakers, Mapping[str, CircuitBreaker])
    resilient_http_client(retry=3)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    resilient_http_client(breakers=breaker)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    resilient_async_http_client(timeouts={"auth": "5 s"})  # type: ignore[dict-item] # pyright: ignore[reportArgumentType]
    ClientOptions(httpx_client=later)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


# Resilience


def together(
    client: ProtectedClient,
    queue: QueueProcessor,
    listener: RealtimeListener,
    verification: ServerSideVerification,
    later: AsyncQueueProcessor,
) -> None:
    """Parts of one colour go together; one of the other is an error."""
    alert = Alert("orders", when=lambda stats: stats["verification:orders"].problem_count > 100)
    made = Resilience(
        client,
        client.breaker,
        queue,
        listener,
        verification,
        resilient_http_client(),
        alerts=[alert],
        on_event=Hooks(log_event, RecordingHook()),
    )
    assert_type(made.health(), Health)
    with made as entered:
        assert_type(entered, Resilience)
    Resilience(client, later)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    Resilience(client, alerts=alert)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    Alert("orders")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


async def together_later(
    client: AsyncProtectedClient,
    queue: AsyncQueueProcessor,
    listener: AsyncRealtimeListener,
    verification: AsyncServerSideVerification,
    sync: ProtectedClient,
) -> None:
    """The same for the async colour."""
    made = AsyncResilience(client, queue, listener, verification, resilient_async_http_client())
    assert_type(made.health(), Health)
    async with made as entered:
        assert_type(entered, AsyncResilience)
    AsyncResilience(sync)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def kept() -> None:
    """A cursor says what it takes."""
    FileCursor(5)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
