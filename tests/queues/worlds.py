"""The two colours of a durable queue behind one face, and what tests do with it."""

import asyncio
import contextvars
from importlib.resources import files
from typing import Any

import httpx
import psycopg
from supabase import AsyncClientOptions, ClientOptions, acreate_client, create_client

from supabase_resilience import _clock
from supabase_resilience.local import LocalSupabase
from supabase_resilience.queues._jobs import DeadLetter, Job, Settlement, new_id
from supabase_resilience.queues._supabase import AsyncSupabaseQueue, SupabaseQueue

MIGRATION = (files("supabase_resilience") / "sql" / "queue.sql").read_text(encoding="utf-8")
REMOVAL = (files("supabase_resilience") / "sql" / "queue_remove.sql").read_text(encoding="utf-8")

# Made once: nothing here speaks TLS, but each session would read all certificates anew.
TLS = httpx.create_ssl_context()


class Face:
    """A store whose methods return their results, whatever its colour."""

    def __init__(self, world: "World", store: Any) -> None:
        self._world = world
        self.store = store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)
        return lambda *given, **named: self._world.run(method(*given, **named))


class SyncWorld:
    """`Client` and `SupabaseQueue`."""

    queue_class: Any = SupabaseQueue

    def __init__(self) -> None:
        self._opened: list[httpx.Client] = []

    def client(self, local: LocalSupabase, key: str | None = None) -> Any:
        session = httpx.Client(timeout=30.0, verify=TLS)
        self._opened.append(session)
        settings = ClientOptions(httpx_client=session)
        return create_client(local.url, key or local.secret_key, settings)

    def queue(self, client: Any, name: str, **options: Any) -> Any:
        return Face(self, self.queue_class(client, name, **options))

    def run(self, result: Any) -> Any:
        return result

    def close(self) -> None:
        for session in self._opened:
            session.close()


class AsyncWorld:
    """`AsyncClient` and `AsyncSupabaseQueue`, each call run to its end on one loop."""

    queue_class: Any = AsyncSupabaseQueue

    def __init__(self) -> None:
        self._opened: list[httpx.AsyncClient] = []
        self._runner = asyncio.Runner()

    def client(self, local: LocalSupabase, key: str | None = None) -> Any:
        session = httpx.AsyncClient(timeout=30.0, verify=TLS)
        self._opened.append(session)
        settings = AsyncClientOptions(httpx_client=session)
        return self.run(acreate_client(local.url, key or local.secret_key, settings))

    def queue(self, client: Any, name: str, **options: Any) -> Any:
        return Face(self, self.queue_class(client, name, **options))

    def run(self, result: Any) -> Any:
        if not hasattr(result, "__await__"):
            return result
        return self._runner.run(result, context=contextvars.copy_context())

    def close(self) -> None:
        for session in self._opened:
            self.run(session.aclose())
        self._runner.close()


World = SyncWorld | AsyncWorld


def migrate(local: LocalSupabase, sql: str) -> None:
    """Run a migration; return when the API has seen it."""
    with psycopg.connect(local.dsn, autocommit=True) as owner:
        owner.execute(sql.encode())
    local.rest.reload()


# --- what tests send and say ----------------------------------------------------------------------


def job(data: Any = None, **options: Any) -> Job:
    return Job(new_id(), data, enqueued_at=_clock.wall(), **options)


def take(queue: Any, limit: int = 10, lane: str = "", *, oldest: int = 0, lease: float = 30) -> Any:
    return queue.exchange(lane, [], limit=limit, oldest=oldest, lease=lease).jobs


def settle(queue: Any, kind: Any, job: Job, delay: float = 0.0, **note: str) -> Any:
    """What is settled after one settlement."""
    settlement = Settlement(
        kind=kind, job=job, delay=delay, letter=letter_for(job, **note) if kind == "dead" else None
    )
    return [*queue.exchange(job.lane, [settlement], limit=0, oldest=0, lease=30).settled]


def letter_for(job: Job, **note: str) -> DeadLetter:
    said = {"reason": "failed 4 times", "error": "ValueError", "traceback": "Traceback …", **note}
    return DeadLetter(
        id=job.id,
        data=job.data,
        queue=job.queue,
        priority=job.priority,
        attempts=job.attempt,
        enqueued_at=job.enqueued_at,
        died_at=1_800_000_000.0,
        **said,
    )


def rows(database: Any, name: str) -> list[Any]:
    """Message, delay and reads of all messages, by age."""
    query = (
        f'select message, vt - enqueued_at, read_ct, msg_id from pgmq."q_{name}" order by msg_id'
    )
    return database.execute(query).fetchall()


def sql_of(error: BaseException) -> str:
    """The SQL that an error advises."""
    lines = str(error).splitlines()[1:]
    assert lines, f"no SQL in: {error}"
    return "\n".join(lines)
