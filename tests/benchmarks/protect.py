"""What `protect()` adds to a query: interleaved with the bare client, over an in-memory transport.

`make bench-protect` runs it. Both clients take turns within each round, so that the ratio holds on
a noisy machine; the table shows the fastest round and the median of all.
"""

import argparse
import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from judged import at_most, ratio, show_judged, show_table
from supabase import AsyncClientOptions, ClientOptions, acreate_client, create_client

from supabase_resilience import protect

URL, KEY = "http://supabase.test", "sb_secret_key"
ROUNDS, QUERIES = 200, 40
Times = dict[str, list[float]]


def answer(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=[{"id": 1}], headers={"content-range": "0-0/*"})


def query(client: Any) -> Any:
    return client.table("profiles").select("*").eq("id", 1).execute()


def measure_sync(rounds: int) -> Times:
    session = httpx.Client(transport=httpx.MockTransport(answer))
    bare = create_client(URL, KEY, ClientOptions(httpx_client=session))

    def run(client: Any) -> None:
        for _ in range(QUERIES):
            query(client)

    return interleave(run, bare, protect(bare), rounds)


async def measure_async(rounds: int) -> Times:
    session = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    bare = await acreate_client(URL, KEY, AsyncClientOptions(httpx_client=session))

    async def run(client: Any) -> None:
        for _ in range(QUERIES):
            await query(client)

    return await interleave_async(run, bare, protect(bare), rounds)


def interleave(run: Callable[[Any], None], bare: Any, protected: Any, rounds: int) -> Times:
    times: Times = {"bare": [], "protected": []}
    run(bare), run(protected)
    for number in range(rounds):
        pair = [("bare", bare), ("protected", protected)]
        for name, client in pair if number % 2 else reversed(pair):
            begun = time.perf_counter()
            run(client)
            times[name].append((time.perf_counter() - begun) / QUERIES)
    return times


async def interleave_async(
    run: Callable[[Any], Awaitable[None]], bare: Any, protected: Any, rounds: int
) -> Times:
    times: Times = {"bare": [], "protected": []}
    await run(bare), await run(protected)
    for number in range(rounds):
        pair = [("bare", bare), ("protected", protected)]
        for name, client in pair if number % 2 else reversed(pair):
            begun = time.perf_counter()
            await run(client)
            times[name].append((time.perf_counter() - begun) / QUERIES)
    return times


def show(colours: dict[str, Times]) -> None:
    rows = [
        (
            colour,
            f"{min(times['bare']) * 1e6:.1f}",
            f"{min(times['protected']) * 1e6:.1f}",
            f"{min(times['protected']) / min(times['bare']):.3f}",
            f"{ratio(times['protected'], times['bare']):.3f}",
        )
        for colour, times in colours.items()
    ]
    head = (
        "select().eq().execute()",
        "bare µs",
        "protected µs",
        "fastest round",
        "median round",
    )
    show_table("A whole query: a protected client against the bare one", head, rows)


def ratios(colours: dict[str, Times]) -> dict[str, float]:
    return {colour: ratio(times["protected"], times["bare"]) for colour, times in colours.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    gc.disable()
    colours = {"sync": measure_sync(rounds), "async": asyncio.run(measure_async(rounds))}
    show(colours)
    show_judged(
        [
            at_most(f"protect, {colour}, x bare", 1.03, here, digits=3)
            for colour, here in ratios(colours).items()
        ]
    )


if __name__ == "__main__":
    main()
