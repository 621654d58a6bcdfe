"""How many requests a dead server still gets: from supabase-py alone, and from protected clients.

Both are the real clients; only the server and the time are played. Each read is asked on time,
whether or not those before it have ended. supabase-py by itself sends a read four times within
seven seconds when the connection fails or the answer is 503; it does not repeat timeouts.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from postgrest import APIError
from supabase import AsyncClient, AsyncClientOptions, acreate_client
from virtual_time import now, pause, pause_until, play

from supabase_resilience import (
    CircuitBreakers,
    CircuitOpenError,
    Event,
    FailureRate,
    protect,
)


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """`clients` ask `rate` reads per second for `seconds`.

    Only `sample` of them are played and the count is multiplied: a dead server treats all alike,
    and each has a breaker of its own.
    """

    clients: int = 100
    sample: int = 10
    rate: int = 10
    seconds: int = 60


class DeadServer(httpx.AsyncBaseTransport):
    """Fails in one of the ways of a server that is down, and counts what it gets."""

    def __init__(self, how: str) -> None:
        self._how = how
        self.requests = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        if self._how == "refuses connections":
            raise httpx.ConnectError("connection refused", request=request)
        if self._how == "answers 503":
            return httpx.Response(503, text="upstream connect error")
        await pause(request.extensions["timeout"]["read"])
        raise httpx.ReadTimeout("no answer in time", request=request)


WAYS = ("refuses connections", "answers 503", "accepts and never answers")


def bare(client: AsyncClient) -> AsyncClient:
    return client


def defaults(client: AsyncClient) -> AsyncClient:
    """What `protect()` makes by itself, apart from its clock."""
    return protect(client, breaker=CircuitBreakers(clock=now, on_event=tell_nobody))


def failure_rate(client: AsyncClient) -> AsyncClient:
    breakers = CircuitBreakers(trip=FailureRate(), clock=now, on_event=tell_nobody)
    return protect(client, breaker=breakers)


def tell_nobody(_: Event) -> None:
    """The table tells."""


Make = Callable[[AsyncClient], AsyncClient]
ROWS: dict[str, Make] = {
    "supabase-py alone": bare,
    "protect(), all defaults": defaults,
    "protect(), FailureRate()": failure_rate,
}


async def count_requests(crowd: Crowd, make: Make, how: str) -> int:
    """How many requests the whole crowd sends."""
    server = DeadServer(how)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(crowd.sample):
            tasks.create_task(_ask(crowd, make, server, tasks))
    return server.requests * crowd.clients // crowd.sample


async def _ask(crowd: Crowd, make: Make, server: DeadServer, tasks: asyncio.TaskGroup) -> None:
    options = AsyncClientOptions(httpx_client=httpx.AsyncClient(transport=server, timeout=120.0))
    client = make(await acreate_client("http://supabase.test", "sb_secret_key", options))
    begun = now() + random.random() / crowd.rate
    for number in range(crowd.rate * crowd.seconds):
        await pause_until(begun + number / crowd.rate)
        tasks.create_task(_read(client))


async def _read(client: AsyncClient) -> None:
    try:
        await client.table("profiles").select("*").eq("id", 1).execute()
    except (CircuitOpenError, httpx.TransportError, APIError):
        return


def show(crowd: Crowd, requests: dict[str, dict[str, int]]) -> None:
    print(
        f"\n### A dead server, {crowd.clients} clients with a breaker each, each asking "
        f"{crowd.rate} reads/s for {crowd.seconds} s: requests it gets\n"
    )
    print(f"| the server | {' | '.join(WAYS)} |\n|---|{'---:|' * len(WAYS)}")
    alone = requests["supabase-py alone"]
    for name, row in requests.items():
        cells = (f"{row[way]:,} ({row[way] / alone[way]:.2%})" for way in WAYS)
        print(f"| {name} | {' | '.join(cells)} |")
    print(
        f"\nCounted at the transport, until the last retry is over; {crowd.sample} clients are "
        f"played and multiplied. Of a connection refused or a 503, supabase-py sends a read 4 "
        f"times; of a timeout (120 s) once, while protect() stops waiting after 10 s."
    )


def main(crowd: Crowd, seed: int) -> float:
    """Returns what the defaults send of what supabase-py sends, when connections are refused."""
    requests = {
        name: {way: play(count_requests(crowd, make, way), seed=seed) for way in WAYS}
        for name, make in ROWS.items()
    }
    show(crowd, requests)
    protected, alone = requests["protect(), all defaults"], requests["supabase-py alone"]
    return protected[WAYS[0]] / alone[WAYS[0]]


if __name__ == "__main__":
    main(Crowd(), seed=1)
