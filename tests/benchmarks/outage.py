"""What an outage of ten seconds does afterwards: retries alone keep a server down for ever.

`make bench-outage` plays it with the real client in virtual time (`virtual_time.py`), followed by
the herd at re-opening (`herd.py`) and the load on a dead server (`dead_server.py`). The server
answers one request after the other, and goes on answering those whose askers have given up: that
work is wasted, and is what keeps it down. Without retries the queue of the outage is gone after
(demand * outage - capacity * timeout) / (capacity - demand) seconds; with N retries a call it only
shrinks while demand * (N + 1) < capacity.
"""

import argparse
import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import dead_server
import herd
import httpx
from supabase import AsyncClient, AsyncClientOptions, acreate_client
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_none,
    wait_random_exponential,
)
from virtual_time import now, pause, pause_until, play

from supabase_resilience import CircuitBreaker, CircuitOpenError, FailureRate, RetryConfig, protect

PROCESSES = 20
WELL = 0.95
"""The share of a second's calls that are answered in time, from which on it counts as normal."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Rates are per second, times in seconds."""

    demand: int = 200
    capacity: int = 300
    timeout: float = 1.0
    outage_at: int = 10
    outage_ends: int = 20
    ends: int = 90

    def recovery_without_retries(self) -> float:
        backlog = self.demand * (self.outage_ends - self.outage_at)
        return (backlog - self.capacity * self.timeout) / (self.capacity - self.demand)


class Server(httpx.AsyncBaseTransport):
    """First come, first served; it stalls during the outage, and forgets nobody."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._free_at = 0.0
        self.arrivals: Counter[int] = Counter()
        self.wasted = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.arrivals[int(now())] += 1
        patience = request.extensions["timeout"]["read"]
        wait = self._enqueue() - now()
        if wait > patience:
            self.wasted += 1
            await pause(patience)
            raise httpx.ReadTimeout("no answer in time", request=request)
        await pause(wait)
        return httpx.Response(200, json=[])

    def _enqueue(self) -> float:
        """When the answer to a request that arrives now will be ready."""
        begin = max(now(), self._free_at)
        if self._world.outage_at <= begin < self._world.outage_ends:
            begin = self._world.outage_ends
        self._free_at = begin + 1 / self._world.capacity
        return self._free_at


@dataclass
class Ledger:
    """What became of the calls, by the second in which they began."""

    world: World
    asked: Counter[int] = field(default_factory=Counter)
    answered: Counter[int] = field(default_factory=Counter)
    refused: int = 0

    async def record(self, query: Callable[[], Awaitable[object]]) -> None:
        second = int(now())
        self.asked[second] += 1
        try:
            await query()
        except CircuitOpenError:
            self.refused += 1
        except httpx.TimeoutException:
            pass
        else:
            self.answered[second] += 1

    def back_to_normal(self) -> int | None:
        """Seconds from the end of the outage until nearly every call is answered, and stays so."""
        seconds = range(self.world.outage_ends, self.world.ends)
        bad = [each for each in seconds if self.answered[each] < WELL * self.asked[each]]
        if bad and bad[-1] == seconds[-1]:
            return None
        return bad[-1] + 1 - self.world.outage_ends if bad else 0

    def share_answered(self, since: int, until: int) -> float:
        seconds = range(since, until)
        answered = sum(self.answered[each] for each in seconds)
        return answered / sum(self.asked[each] for each in seconds)


# --- who asks -----------------------------------------------------------------------------------

Query = Callable[[], Awaitable[object]]
Asker = Callable[[AsyncClient, World], Query]


def profile(client: AsyncClient) -> Query:
    async def query() -> object:
        return await client.table("profiles").select("*").eq("id", 1).execute()

    return query


def no_retry(client: AsyncClient, _: World) -> Query:
    """supabase-py as it is: it repeats lost connections and 503, but no timeouts."""
    return profile(client)


def naive_retry(client: AsyncClient, _: World) -> Query:
    return _once_more(profile(client), wait=wait_none())


def jittered_retry(client: AsyncClient, _: World) -> Query:
    waits = RetryConfig()
    jitter = wait_random_exponential(waits.wait_initial, max=waits.wait_max)
    return _once_more(profile(client), wait=jitter)


def _once_more(query: Query, *, wait: Any) -> Query:
    retrying = AsyncRetrying(
        stop=stop_after_attempt(2),
        retry=retry_if_exception_type(httpx.TimeoutException),
        wait=wait,
        reraise=True,
    )
    return lambda: retrying.copy()(query)


def budgeted_retry(client: AsyncClient, world: World) -> Query:
    """Ours with a circuit that never opens, to show what the budget does by itself."""
    return _protected(client, world, failure_threshold=1_000_000_000)


def ours(client: AsyncClient, world: World) -> Query:
    trip = FailureRate(threshold=0.5, window=5.0)
    return _protected(client, world, trip=trip, reset_timeout=5.0)


def ours_in_processes(client: AsyncClient, world: World) -> Query:
    """Each learns of the outage by itself, and probes by itself."""
    take_turns = itertools.cycle([ours(client, world) for _ in range(PROCESSES)])
    return lambda: next(take_turns)()  # noqa: PLW0108 - another one at each call


def _protected(client: AsyncClient, world: World, **options: Any) -> Query:
    breaker = CircuitBreaker(clock=now, on_event=herd.tell_nobody, **options)
    retry = RetryConfig(attempts=2, attempt_timeout=world.timeout)
    return profile(protect(client, breaker=breaker, retry=retry))


ROWS: dict[str, Asker] = {
    "no retry (supabase-py: timeouts are not repeated)": no_retry,
    "naive retry, at once": naive_retry,
    "retry with full jitter": jittered_retry,
    "retry with full jitter and our budget": budgeted_retry,
    "protect(): the same and our breaker": ours,
    f"protect() in {PROCESSES} processes": ours_in_processes,
}


# --- the play -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the table shows of one row."""

    back_to_normal: int | None
    peak: int
    wasted: int
    requests: int
    refused: int
    goodput_during: float
    goodput_after: float


async def live_through(world: World, asker: Asker) -> Result:
    server, ledger = Server(world), Ledger(world)
    session = httpx.AsyncClient(transport=server, timeout=world.timeout)
    options = AsyncClientOptions(httpx_client=session)
    query = asker(await acreate_client("http://supabase.test", "sb_secret_key", options), world)
    async with asyncio.TaskGroup() as calls:
        for number in range(world.demand * world.ends):
            await pause_until((number + 0.5) / world.demand)
            calls.create_task(ledger.record(query))
    return Result(
        back_to_normal=ledger.back_to_normal(),
        peak=max(server.arrivals.values()),
        wasted=server.wasted,
        requests=server.arrivals.total(),
        refused=ledger.refused,
        goodput_during=ledger.share_answered(world.outage_at, world.outage_ends),
        goodput_after=ledger.share_answered(world.outage_ends, world.ends),
    )


def show(world: World, results: dict[str, Result]) -> None:
    print(
        f"\n### An outage of {world.outage_ends - world.outage_at} s: {world.demand} calls/s, "
        f"the server manages {world.capacity} requests/s, a try waits {world.timeout:g} s\n"
    )
    print(
        "| one retry a call | back to normal after (s) | peak requests/s | requests wasted "
        "| calls refused | answered during | answered after |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, row in results.items():
        back = "never" if row.back_to_normal is None else row.back_to_normal
        print(
            f"| {name} | {back} | {row.peak} | {row.wasted} of {row.requests} | {row.refused} "
            f"| {row.goodput_during:.0%} | {row.goodput_after:.0%} |"
        )
    print(
        f"\nSeconds count from the end of the outage, normal means that {WELL:.0%} of a second's "
        f"calls are answered from then on, and never that this was not reached within "
        f"{world.ends - world.outage_ends} s. By the formula, without retries: "
        f"{world.recovery_without_retries():.0f} s."
    )


def show_judged(results: dict[str, Result], load_on_a_dead_server: float) -> None:
    print("\n### What ours must reach\n\n| measure | must reach | here | |\n|---|---:|---:|---|")
    back = {ROWS[name]: result.back_to_normal for name, result in results.items()}
    after, naive = back[ours], back[naive_retry]
    load = load_on_a_dead_server
    for measure, limit, here, is_met in (
        ("protect(): back to normal after (s)", "<= 10", after, after is not None and after <= 10),
        (
            "naive retry: back to normal",
            "never",
            "never" if naive is None else naive,
            naive is None,
        ),
        ("requests to a dead server, of supabase-py's", "<= 1%", f"{load:.2%}", load <= 0.01),
    ):
        print(f"| {measure} | {limit} | {here} | {'yes' if is_met else 'NO'} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demand", type=int, default=World.demand, help="calls per second")
    parser.add_argument("--capacity", type=int, default=World.capacity, help="requests per second")
    parser.add_argument("--ends", type=int, default=World.ends, help="seconds to play")
    parser.add_argument("--clients", type=int, default=herd.Herd.clients, help="in the herd")
    parser.add_argument(
        "--sample", type=int, default=dead_server.Crowd.sample, help="clients of a dead server"
    )
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    world = World(demand=given.demand, capacity=given.capacity, ends=given.ends)
    results = {name: play(live_through(world, row), seed=given.seed) for name, row in ROWS.items()}
    show(world, results)
    herd.main(herd.Herd(clients=given.clients), seed=given.seed)
    load = dead_server.main(dead_server.Crowd(sample=given.sample), seed=given.seed)
    show_judged(results, load)


if __name__ == "__main__":
    main()
