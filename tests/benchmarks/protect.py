"""What `protect()` adds to a query: interleaved with the bare client, over an in-memory transport.

`make bench-protect` runs it. Both clients take turns within each round, so that the ratio holds on
a noisy machine; the table shows the fastest round and the median of all.
"""

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from supabase import AsyncClientOptions, ClientOptions, acreate_client, create_client

from supabase_resilience import protect

URL, KEY = "http://supabase.test", "sb_secret_key"
ROUNDS, QUERIES = 200, 40
Times = dict[str, list[float]]


def answer(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=[{"id": 1}], headers={"content-range": "0-0/*"})


def query(client: Any) -> Any:
    return client.table("profiles").select("*").eq("id", 1).execute()


def measure_sync() -> Times:
    session = httpx.Client(transport=httpx.MockTransport(answer))
    bare = create_client(URL, KEY, ClientOptions(httpx_client=session))

    def run(client: Any) -> None:
        for _ in range(QUERIES):
            query(client)

    return interleave(run, bare, protect(bare))


async def measure_async() -> Times:
    session = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    bare = await acreate_client(URL, KEY, AsyncClientOptions(httpx_client=session))

    async def run(client: Any) -> None:
        for _ in range(QUERIES):
            await query(client)

    return await interleave_async(run, bare, protect(bare))


def interleave(run: Callable[[Any], None], bare: Any, protected: Any) -> Times:
    times: Times = {"bare": [], "protected": []}
    run(bare), run(protected)
    for number in range(ROUNDS):
        pair = [("bare", bare), ("protected", protected)]
        for name, client in pair if number % 2 else reversed(pair):
            begun = time.perf_counter()
            run(client)
            times[name].append((time.perf_counter() - begun) / QUERIES)
    return times


async def interleave_async(
    run: Callable[[Any], Awaitable[None]], bare: Any, protected: Any
) -> Times:
    times: Times = {"bare": [], "protected": []}
    await run(bare), await run(protected)
    for number in range(ROUNDS):
        pair = [("bare", bare), ("protected", protected)]
        for name, client in pair if number % 2 else reversed(pair):
            begun = time.perf_counter()
            await run(client)
            times[name].append((time.perf_counter() - begun) / QUERIES)
    return times


def show(colour: str, times: Times) -> None:
    bare, protected = times["bare"], times["protected"]
    ratio = statistics.median(p / b for b, p in zip(bare, protected, strict=True))
    print(
        f"| {colour} | {min(bare) * 1e6:.1f} | {min(protected) * 1e6:.1f} "
        f"| {min(protected) / min(bare):.3f} | {ratio:.3f} |"
    )


def main() -> None:
    gc.disable()
    print("| select().eq().execute() | bare µs | protected µs | fastest round | median round |")
    print("|---|---:|---:|---:|---:|")
    show("sync", measure_sync())
    show("async", asyncio.run(measure_async()))


if __name__ == "__main__":
    main()
