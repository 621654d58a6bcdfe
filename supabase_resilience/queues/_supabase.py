"""A queue in Supabase Queues (pgmq), through PostgREST alone, for both colours of supabase-py.

What to call and what the answers mean is written once, in `_plans.py`; the two classes carry it
out. Their identity is pinned when they are made: who signs in on your client later changes nothing.
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar, cast

from postgrest.exceptions import APIError
from supabase import AsyncClient, Client

from supabase_resilience._requests import idempotent
from supabase_resilience.breaker import CircuitBreaker
from supabase_resilience.events import Event
from supabase_resilience.protect import AsyncProtectedClient, ProtectedClient, protect
from supabase_resilience.queues._jobs import DeadLetter, Job, QueueMetrics, Settlement
from supabase_resilience.queues._plans import Plans, Token, check_name, check_token
from supabase_resilience.queues._rpc import Call, Course, Plan
from supabase_resilience.queues._store import Abilities, Exchange

__all__ = ["AsyncSupabaseQueue", "SupabaseQueue"]

T = TypeVar("T")
P = TypeVar("P", ProtectedClient, AsyncProtectedClient)


class SupabaseQueue:
    """The queue `name` of a project, for `QueueProcessor(process, store=SupabaseQueue(…))`.

    Works on the six functions of `pgmq_public` that Supabase can expose for every project, and
    better with our migration (`python -m supabase_resilience sql queue`), which it finds by itself.

    - `client`: a `Client`; one made by `protect()` lends its breaker and its retries. Its key is
      the queue's identity from now on (that of `as_user()`, if it was made so). Workers need the
      secret key, whose role is `service_role`.
    - `token`: what to send as Authorization instead of the key, or a function that returns it.
    - `name`: up to 42 bytes; dead letters go to `<name>_dead`.

    Raises `TypeError` for an `AsyncClient`, `ValueError` for a name that pgmq can't have.
    """

    def __init__(self, client: Client, name: str, *, token: Token = None) -> None:
        if not isinstance(client, Client):
            raise TypeError(_wrong_client(client, Client, AsyncClient, "AsyncSupabaseQueue"))
        check_name(name)
        check_token(token)
        protected = (
            client
            if isinstance(client, ProtectedClient)
            else protect(client, breaker=_no_breaker(), retry=None)
        )
        self._name = name
        self._plans = Plans(name)
        self._identity = _Identity(protected, token)

    def __repr__(self) -> str:
        """Show which queue it is."""
        return f"<SupabaseQueue {self._name!r}>"

    @property
    def name(self) -> str:
        """The queue's name."""
        return self._name

    def check(self, lanes: Sequence[str] = ()) -> Abilities:
        """Find out what can be done; raises `QueueError` with the SQL for what is missing."""
        return self._run(self._plans.check(lanes))

    def create(self, lanes: Sequence[str] = ()) -> None:
        """Make the queue, its lanes and that of its dead letters, with our migration.

        Without it raises `QueueError` with the SQL to run, as no key may make queues; does nothing
        when they all are there.
        """
        self._run(self._plans.create(lanes))

    def send(self, lane: str, jobs: Sequence[Job], delay: float) -> list[str]:
        """Add jobs in one transaction; the ids, which for a known dedupe key is the first one's.

        A key is known while a job with it waits or runs in that lane; that needs our migration.
        """
        return self._run(self._plans.send(lane, jobs, delay))

    def exchange(
        self, lane: str, settled: Sequence[Settlement], *, limit: int, oldest: int, lease: float
    ) -> Exchange:
        """Settle, then take up to `limit` jobs for `lease` seconds, `oldest` of them by age.

        One call and one transaction with our migration, else one call after another.
        """
        return self._run(self._plans.exchange(lane, settled, limit, oldest, lease))

    def extend(self, lane: str, jobs: Sequence[Job], lease: float) -> Collection[int]:
        """Hold the jobs for `lease` seconds from now; the messages that still are ours.

        Needs our migration: without it a lease cannot be extended.
        """
        return self._run(self._plans.extend(lane, jobs, lease))

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """The oldest dead letters."""
        return self._run(self._plans.dead_letters(limit))

    def replay(self, id: str, lanes: Sequence[tuple[int, str]]) -> bool:  # noqa: A002
        """Send a dead letter back to its lane, all attempts before it; False when there is none."""
        return self._run(self._plans.replay(id, lanes))

    def purge_dead_letters(self) -> int:
        """Delete all dead letters; how many there were."""
        return self._run(self._plans.purge_dead_letters())

    def metrics(self, lanes: Sequence[str] = ()) -> QueueMetrics:
        """The queue and its lanes, summed up."""
        return self._run(self._plans.metrics(lanes))

    def _run(self, plan: Plan[T]) -> T:
        course = Course(plan)
        while course.call is not None:
            try:
                answer = self._execute(course.call)
            except APIError as error:
                course.failed(error)
            else:
                course.answered(answer)
        return course.result

    def _execute(self, call: Call) -> Any:
        api = self._identity.api(call.schema)
        with _promise_of(call):
            return api.rpc(call.function, cast("Any", call.arguments)).execute().data


class AsyncSupabaseQueue:
    """The queue `name` of a project, for `AsyncQueueProcessor`.

    Works on the six functions of `pgmq_public` that Supabase can expose for every project, and
    better with our migration (`python -m supabase_resilience sql queue`), which it finds by itself.

    - `client`: an `AsyncClient`; one made by `protect()` lends its breaker and its retries. Its key
      is the queue's identity from now on (that of `as_user()`, if it was made so). Workers need the
      secret key, whose role is `service_role`.
    - `token`: what to send as Authorization instead of the key, or a function that returns it.
    - `name`: up to 42 bytes; dead letters go to `<name>_dead`.

    Raises `TypeError` for a `Client`, `ValueError` for a name that pgmq can't have.
    """

    def __init__(self, client: AsyncClient, name: str, *, token: Token = None) -> None:
        if not isinstance(client, AsyncClient):
            raise TypeError(_wrong_client(client, AsyncClient, Client, "SupabaseQueue"))
        check_name(name)
        check_token(token)
        protected = (
            client
            if isinstance(client, AsyncProtectedClient)
            else protect(client, breaker=_no_breaker(), retry=None)
        )
        self._name = name
        self._plans = Plans(name)
        self._identity = _Identity(protected, token)

    def __repr__(self) -> str:
        """Show which queue it is."""
        return f"<AsyncSupabaseQueue {self._name!r}>"

    @property
    def name(self) -> str:
        """The queue's name."""
        return self._name

    async def check(self, lanes: Sequence[str] = ()) -> Abilities:
        """Find out what can be done; raises `QueueError` with the SQL for what is missing."""
        return await self._run(self._plans.check(lanes))

    async def create(self, lanes: Sequence[str] = ()) -> None:
        """Make the queue, its lanes and that of its dead letters, with our migration.

        Without it raises `QueueError` with the SQL to run, as no key may make queues; does nothing
        when they all are there.
        """
        await self._run(self._plans.create(lanes))

    async def send(self, lane: str, jobs: Sequence[Job], delay: float) -> list[str]:
        """Add jobs in one transaction; the ids, which for a known dedupe key is the first one's.

        A key is known while a job with it waits or runs in that lane; that needs our migration.
        """
        return await self._run(self._plans.send(lane, jobs, delay))

    async def exchange(
        self, lane: str, settled: Sequence[Settlement], *, limit: int, oldest: int, lease: float
    ) -> Exchange:
        """Settle, then take up to `limit` jobs for `lease` seconds, `oldest` of them by age.

        One call and one transaction with our migration, else one call after another.
        """
        return await self._run(self._plans.exchange(lane, settled, limit, oldest, lease))

    async def extend(self, lane: str, jobs: Sequence[Job], lease: float) -> Collection[int]:
        """Hold the jobs for `lease` seconds from now; the messages that still are ours.

        Needs our migration: without it a lease cannot be extended.
        """
        return await self._run(self._plans.extend(lane, jobs, lease))

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        """The oldest dead letters."""
        return await self._run(self._plans.dead_letters(limit))

    async def replay(self, id: str, lanes: Sequence[tuple[int, str]]) -> bool:  # noqa: A002
        """Send a dead letter back to its lane, all attempts before it; False when there is none."""
        return await self._run(self._plans.replay(id, lanes))

    async def purge_dead_letters(self) -> int:
        """Delete all dead letters; how many there were."""
        return await self._run(self._plans.purge_dead_letters())

    async def metrics(self, lanes: Sequence[str] = ()) -> QueueMetrics:
        """The queue and its lanes, summed up."""
        return await self._run(self._plans.metrics(lanes))

    async def _run(self, plan: Plan[T]) -> T:
        course = Course(plan)
        while course.call is not None:
            try:
                answer = await self._execute(course.call)
            except APIError as error:
                course.failed(error)
            else:
                course.answered(answer)
        return course.result

    async def _execute(self, call: Call) -> Any:
        api = self._identity.api(call.schema)
        with _promise_of(call):
            return (await api.rpc(call.function, cast("Any", call.arguments)).execute()).data


# --- what both share ------------------------------------------------------------------------------


class _Identity(Generic[P]):
    """Who the queue is: a client that no auth event reaches."""

    def __init__(self, client: P, token: Token) -> None:
        self._origin: P = client
        self._token = token
        self._pinned: tuple[str | None, P] | None = None
        self._apis: dict[str, tuple[Any, Any]] = {}

    def api(self, schema: str) -> Any:
        """The PostgREST client of a schema; the same one until the client's own is another."""
        postgrest: Any = self.client().postgrest
        known = self._apis.get(schema)
        if known is None or known[0] is not postgrest:
            known = self._apis[schema] = postgrest, postgrest.schema(schema)
        return known[1]

    def client(self) -> P:
        """The client to use now; a new one only when `token()` returns another token."""
        token = self._token() if callable(self._token) else self._token
        pinned = self._pinned
        if pinned is None or pinned[0] != token:
            pinned = self._pinned = token, self._pin(token)
        return pinned[1]

    def _pin(self, token: str | None) -> P:
        origin: P = self._origin
        if token is None and origin._authorization is not None:  # noqa: SLF001 - our own class
            return origin  # made by as_user()
        return origin.as_user(origin.supabase_key if token is None else token)


def _wrong_client(client: object, wanted: type, other: type, instead: str) -> str:
    if isinstance(client, other):
        return f"client must be a supabase {wanted.__name__}, got {client!r}; use {instead} for it"
    return f"client must be a supabase {wanted.__name__}, got {client!r}"


def _no_breaker() -> CircuitBreaker:
    """For a client that asked for no protection: only the timeouts and the pool are wanted."""
    breaker = CircuitBreaker("queue", on_event=_tell_nobody)
    breaker.disable()
    return breaker


def _tell_nobody(_: Event) -> None:
    pass


def _promise_of(call: Call) -> AbstractContextManager[object]:
    return idempotent() if call.is_repeatable else nullcontext()
