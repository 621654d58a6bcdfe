"""A queue in Supabase Queues (pgmq), through PostgREST alone, for both colours of supabase-py.

What to call and what the answers mean is written once, in `_plans.py`; the two classes carry it
out. Their identity is pinned when they are made: who signs in on your client later changes nothing.
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

from postgrest.exceptions import APIError
from supabase import AsyncClient, Client

from supabase_resilience._identity import Identity, Token, check_token, identity_of, wrong_client
from supabase_resilience._requests import idempotent
from supabase_resilience.queues._jobs import DeadLetter, Job, QueueMetrics, Settlement
from supabase_resilience.queues._plans import Plans, check_name
from supabase_resilience.queues._rpc import Call, Course, Plan
from supabase_resilience.queues._store import Abilities, Exchange

__all__ = ["AsyncSupabaseQueue", "SupabaseQueue"]

T = TypeVar("T")


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
            raise TypeError(wrong_client(client, Client, "AsyncSupabaseQueue"))
        check_name(name)
        check_token(token)
        self._name = name
        self._plans = Plans(name)
        self._identity: Identity[Any] = identity_of(client, token, unguarded="queue")

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
            raise TypeError(wrong_client(client, AsyncClient, "SupabaseQueue"))
        check_name(name)
        check_token(token)
        self._name = name
        self._plans = Plans(name)
        self._identity: Identity[Any] = identity_of(client, token, unguarded="queue")

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


def _promise_of(call: Call) -> AbstractContextManager[object]:
    return idempotent() if call.is_repeatable else nullcontext()
