"""What a hook adds to a protected query, over an in-memory transport.

`make bench-hooks` runs it. The hooks take turns within each round, in an order of its own, so that
the ratios hold on a noisy machine: each is the median of all rounds.
"""

import argparse
import asyncio
import gc
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from judged import at_most, ratio, show_judged, show_table
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry
from supabase import AsyncClientOptions, ClientOptions, acreate_client, create_client

from supabase_resilience import CircuitBreakers, Hook, log_event, protect
from supabase_resilience.hooks.otel import OpenTelemetryHook
from supabase_resilience.hooks.prometheus import PrometheusHook

URL, KEY = "http://supabase.test", "sb_secret_key"
NONE, LOGGING, PROMETHEUS = "none", "logging", "Prometheus"
METRICS, SPANS = "OpenTelemetry, metrics", "OpenTelemetry, spans"
BOTH = "OpenTelemetry, metrics and spans"
# As many as durations are handed over to OpenTelemetry at once: each round has its share of that.
QUERIES = 64
BARS = {LOGGING: 1.1, PROMETHEUS: 1.1, METRICS: 1.1, SPANS: 1.25}
Times = dict[str, list[float]]


class Nowhere(SpanExporter):
    """Takes spans as a collector does, without sending them."""

    def export(self, spans: Any) -> SpanExportResult:
        assert all(isinstance(span, ReadableSpan) for span in spans)
        return SpanExportResult.SUCCESS


def make_hooks() -> dict[str, Hook]:
    """Each with what an app would have: the real SDK, spans sent in batches by its thread."""
    return {
        NONE: lambda _: None,
        LOGGING: log_event,
        PROMETHEUS: PrometheusHook(CollectorRegistry()),
        METRICS: OpenTelemetryHook(meters(), traces=False),
        SPANS: OpenTelemetryHook(tracer_provider=tracers(), metrics=False),
        BOTH: OpenTelemetryHook(meters(), tracers()),
    }


def meters() -> MeterProvider:
    return MeterProvider([InMemoryMetricReader()])


def tracers() -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return provider


def answer(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=[{"id": 1}], headers={"content-range": "0-0/*"})


def query(client: Any) -> Any:
    return client.table("profiles").select("*").eq("id", 1).execute()


def turns(names: list[str], number: int) -> list[str]:
    """Another order in each round: whoever follows the same one always has its cache's state."""
    return random.Random(number).sample(names, len(names))


def measure_sync(rounds: int, queries: int) -> Times:
    session = httpx.Client(transport=httpx.MockTransport(answer))
    clients = {
        name: protect(
            create_client(URL, KEY, ClientOptions(httpx_client=session)),
            breaker=CircuitBreakers(on_event=hook),
        )
        for name, hook in make_hooks().items()
    }

    def run(name: str) -> None:
        for _ in range(queries):
            query(clients[name])

    return interleave(run, list(clients), rounds, queries)


async def measure_async(rounds: int, queries: int) -> Times:
    session = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    clients = {
        name: protect(
            await acreate_client(URL, KEY, AsyncClientOptions(httpx_client=session)),
            breaker=CircuitBreakers(on_event=hook),
        )
        for name, hook in make_hooks().items()
    }

    async def run(name: str) -> None:
        for _ in range(queries):
            await query(clients[name])

    return await interleave_async(run, list(clients), rounds, queries)


def interleave(run: Callable[[str], None], names: list[str], rounds: int, queries: int) -> Times:
    times: Times = {name: [] for name in names}
    for name in names:
        run(name)
    for number in range(rounds):
        for name in turns(names, number):
            begun = time.perf_counter()
            run(name)
            times[name].append((time.perf_counter() - begun) / queries)
        gc.collect()
    return times


async def interleave_async(
    run: Callable[[str], Awaitable[None]], names: list[str], rounds: int, queries: int
) -> Times:
    times: Times = {name: [] for name in names}
    for name in names:
        await run(name)
    for number in range(rounds):
        for name in turns(names, number):
            begun = time.perf_counter()
            await run(name)
            times[name].append((time.perf_counter() - begun) / queries)
        gc.collect()
    return times


def show(colour: str, times: Times) -> None:
    none = times[NONE]
    show_table(
        f"A protected query, {colour}",
        ("hook", "fastest µs", "median µs", "ratio to none"),
        [
            (
                name,
                f"{min(each) * 1e6:.1f}",
                f"{statistics.median(each) * 1e6:.1f}",
                f"{ratio(each, none):.3f}",
            )
            for name, each in times.items()
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--queries", type=int, default=QUERIES)
    options = parser.parse_args()
    gc.disable()
    results = {
        "sync": measure_sync(options.rounds, options.queries),
        "async": asyncio.run(measure_async(options.rounds, options.queries)),
    }
    for colour, times in results.items():
        show(colour, times)
    show_judged(
        [
            at_most(
                f"{colour} query, x no hook: {name}", bar, ratio(times[name], times[NONE]), digits=3
            )
            for colour, times in results.items()
            for name, bar in BARS.items()
        ]
    )


if __name__ == "__main__":
    main()
