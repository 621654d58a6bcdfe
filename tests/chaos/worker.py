"""One worker process of the chaos run: `worker.py '{"url": …}'`; it says on stdout what happens.

Its handler asks the dependency, notes the delivery, and stores the job's id with the effect in one
transaction, so that a second delivery has no second effect. A share of the jobs fails once.
"""

import asyncio
import json
import os
import signal
import sys
import uuid
from dataclasses import dataclass, fields
from typing import Any

import httpx
from postgrest.exceptions import APIError
from supabase import acreate_client, create_client

from supabase_resilience import (
    AsyncQueueProcessor,
    AsyncSupabaseQueue,
    CircuitBreaker,
    Event,
    QueueProcessor,
    SupabaseQueue,
    current_job,
    idempotent,
    protect,
)

UNIQUE_VIOLATION = "23505"
TOLD = frozenset(
    {
        "job.lease_lost",
        "job.dead_lettered",
        "queue.paused",
        "queue.resumed",
        "queue.unreachable",
        "queue.reachable",
        "queue.handler_abandoned",
    }
)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a worker is told. One job in `fails_once` fails at its first attempt (0: none)."""

    number: int
    colour: str
    url: str
    key: str
    queue: str
    dependency: str
    concurrency: int
    visibility_timeout: float
    shutdown_timeout: float
    reset_timeout: float
    fails_once: int


def say(what: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"what": what, **facts}) + "\n")
    sys.stdout.flush()


def tell(event: Event) -> None:
    if event.name in TOLD:
        say(event.name, **{each.name: getattr(event, each.name) for each in fields(event)})


def where(setup: Setup, data: dict[str, Any]) -> str:
    """The call of the dependency that this job needs."""
    if data.get("hold"):
        return f"{setup.dependency}/hold/{setup.number}"
    return f"{setup.dependency}/job"


def delivery(setup: Setup, data: dict[str, Any]) -> dict[str, Any]:
    job = current_job()
    return {
        "run": str(uuid.uuid4()),
        "worker": setup.number,
        "job_id": job.id,
        "n": data["n"],
        "message_id": job.message_id,
        "read_ct": job.deliveries,
        "attempt": job.attempt,
    }


def effect(data: dict[str, Any]) -> dict[str, Any]:
    return {"job_id": current_job().id, "n": data["n"]}


def fail_once(setup: Setup, data: dict[str, Any]) -> None:
    if setup.fails_once and data["n"] % setup.fails_once == 0 and current_job().attempt == 1:
        raise ValueError("the first attempt at this job fails")


def is_there_already(error: APIError) -> bool:
    return error.code == UNIQUE_VIOLATION


def breaker(setup: Setup) -> CircuitBreaker:
    return CircuitBreaker(reset_timeout=setup.reset_timeout, on_event=tell)


def options(setup: Setup) -> dict[str, Any]:
    return {
        "concurrency": setup.concurrency,
        "visibility_timeout": setup.visibility_timeout,
        "on_event": tell,
    }


# --- sync ---------------------------------------------------------------------------------------


def work(setup: Setup) -> None:
    client = protect(create_client(setup.url, setup.key), breaker=breaker(setup))
    partner = httpx.Client(timeout=None)

    def handle(data: dict[str, Any]) -> None:
        fail_once(setup, data)
        partner.get(where(setup, data)).raise_for_status()
        with idempotent():
            client.table("deliveries").upsert(delivery(setup, data), on_conflict="run").execute()
            try:
                client.table("effects").insert(effect(data)).execute()
            except APIError as error:
                if not is_there_already(error):
                    raise

    queue = QueueProcessor(handle, store=SupabaseQueue(client, setup.queue), **options(setup))
    say("begins", pid=os.getpid())
    queue.run(shutdown_timeout=setup.shutdown_timeout)
    say("ends", lost_leases=queue.get_stats().lost_leases)


# --- async --------------------------------------------------------------------------------------


async def work_async(setup: Setup) -> None:
    client = protect(await acreate_client(setup.url, setup.key), breaker=breaker(setup))
    partner = httpx.AsyncClient(timeout=None)

    async def handle(data: dict[str, Any]) -> None:
        fail_once(setup, data)
        (await partner.get(where(setup, data))).raise_for_status()
        with idempotent():
            noted = client.table("deliveries").upsert(delivery(setup, data), on_conflict="run")
            await noted.execute()
            try:
                await client.table("effects").insert(effect(data)).execute()
            except APIError as error:
                if not is_there_already(error):
                    raise

    store = AsyncSupabaseQueue(client, setup.queue)
    queue = AsyncQueueProcessor(handle, store=store, **options(setup))
    say("begins", pid=os.getpid())
    await queue.run(shutdown_timeout=setup.shutdown_timeout)
    say("ends", lost_leases=queue.get_stats().lost_leases)


def main() -> None:
    # What comes before `run()` looks after signals finds nothing in hand.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    setup = Setup(**json.loads(sys.argv[1]))
    if setup.colour == "async":
        asyncio.run(work_async(setup))
    else:
        work(setup)


if __name__ == "__main__":
    main()
