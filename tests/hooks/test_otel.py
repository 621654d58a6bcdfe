"""OpenTelemetryHook: the SDK's own in-memory ends see metrics and spans."""

import asyncio

import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from supabase import AsyncClientOptions, acreate_client

from supabase_resilience import CircuitBreakers, QueueProcessor, protect
from supabase_resilience.events import AlertFired, JobSucceeded
from supabase_resilience.hooks._metrics import METRICS
from supabase_resilience.hooks.otel import OpenTelemetryHook
from supabase_resilience.testing import FakeClock, drain_queue

SECRET = "4711-a-secret"
CALL = {"breaker": "supabase", "method": "GET", "table": "orders"}


class World:
    """A hook with the SDK behind it."""

    def __init__(self, **options):
        self.reader, self.exporter = InMemoryMetricReader(), InMemorySpanExporter()
        self.meters, self.tracers = MeterProvider([self.reader]), TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.hook = OpenTelemetryHook(self.meters, self.tracers, **options)

    @property
    def spans(self):
        return self.exporter.get_finished_spans()

    def metrics(self):
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        found = [each for of in data.resource_metrics for each in of.scope_metrics]
        return {metric.name: metric for scope in found for metric in scope.metrics}

    def points(self, name):
        """By the values of their attributes, sorted."""
        points = self.metrics()[f"supabase_resilience.{name}"].data.data_points
        return {tuple(sorted(each.attributes.values())): each for each in points}


@pytest.fixture
def world():
    made = World()
    yield made
    made.tracers.shutdown()
    made.meters.shutdown()


# --- metrics --------------------------------------------------------------------------------------


def test_the_metrics_are_those_of_the_table(world, stats):
    """Their names lack what the way to Prometheus adds, so that they are the same there."""
    world.hook.observe(stats)
    found = world.metrics()
    adds = {"counter": "_total", "gauge": "", "histogram": ""}
    units = {"s": "_seconds"}
    for metric in METRICS:
        name = metric.name.removesuffix("_ratio").removesuffix("_total").removesuffix("_seconds")
        assert metric.name in {
            f"{name}{units.get(metric.unit, '')}{adds[metric.kind]}",
            f"{name}_ratio",
        }
        if metric.kind == "counter":
            point = found[f"supabase_resilience.{name}"]
            assert (metric.unit, metric.help) == (point.unit, point.description)


def test_statistics_become_points(world, stats):
    """Counters grow by what is new, gauges are as they are."""
    world.hook.observe(stats)
    world.hook.observe(stats)
    assert 100 == world.points("circuit_calls")["success", "supabase"].value
    assert 1 == world.points("circuit_state")["open", "supabase"].value
    assert (
        1 == world.points("verification_open_violations")["error", "orders", "total_matches"].value
    )


def test_events_are_measured(world):
    """How long a job waited, and an alert that fires."""
    event = JobSucceeded(queue="mails", job="1", attempt=1, waited=7.0, seconds=0.1)
    world.hook(event)
    world.hook(AlertFired(alert="problems", seconds=60.0))
    assert 7.0 == world.points("job_wait")[("mails",)].sum
    assert 1 == world.points("alert_firing")[("problems",)].value


@pytest.mark.parametrize("calls", [1, 200])
def test_each_collection_has_all_durations(world, calls):
    """Few or many: none of them waits for others."""
    for _ in range(calls):
        with world.hook.span("resilience.call", CALL):
            pass
    point = world.points("call_duration")["GET", "returned", "supabase"]
    assert calls == point.count
    assert 0.005 == point.explicit_bounds[0]


def test_durations_belong_to_the_trace_around_them(world):
    """Not to that of whoever happens to hand them over to the SDK."""
    tracer = world.tracers.get_tracer("app")
    call = world.hook.span("resilience.call", CALL)
    with tracer.start_as_current_span("request") as request, call:
        pass
    with world.hook.span("resilience.call", CALL | {"method": "POST"}):
        pass
    with tracer.start_as_current_span("a collection in the midst of another request"):
        points = world.points("call_duration")
    (exemplar,) = points["GET", "returned", "supabase"].exemplars
    assert request.get_span_context().trace_id == exemplar.trace_id
    assert 0 == len(points["POST", "returned", "supabase"].exemplars)


# --- spans ----------------------------------------------------------------------------------------


def test_a_call_has_one_internal_span(world):
    """With the names of breaker and table; what runs inside is its child."""
    inner = world.tracers.get_tracer("httpx")
    with world.hook.span("resilience.call", CALL), inner.start_as_current_span("GET"):
        pass
    request, call = world.spans
    assert ("resilience.call", SpanKind.INTERNAL) == (call.name, call.kind)
    assert call.context.span_id == request.parent.span_id
    assert {
        "supabase_resilience.breaker": "supabase",
        "supabase_resilience.method": "GET",
        "supabase_resilience.table": "orders",
    } == dict(call.attributes)


def test_an_error_is_told_by_its_type_alone(world):
    """Its message may quote a row."""
    for error in (ValueError(SECRET), httpx.ReadTimeout(SECRET)):
        with pytest.raises(type(error)), world.hook.span("resilience.call", CALL):
            raise error
    builtin, other = world.spans
    assert "ValueError" == builtin.attributes["error.type"]
    assert "httpx.ReadTimeout" == other.attributes["error.type"]
    for span in world.spans:
        assert StatusCode.ERROR == span.status.status_code
        assert SECRET not in span.to_json()
    assert 2 == world.points("call_duration")["GET", "raised", "supabase"].count


def test_spans_of_tasks_do_not_mix(world):
    """Each task's span is under that task's own."""

    async def call(number):
        own = world.hook.span("resilience.call", CALL | {"table": f"t{number}"})
        tracer = world.tracers.get_tracer("app")
        with tracer.start_as_current_span(f"request {number}"), own:
            await asyncio.sleep(0)

    async def main():
        await asyncio.gather(*map(call, range(3)))

    asyncio.run(main())
    names = {span.context.span_id: span.name for span in world.spans}
    calls = [span for span in world.spans if span.name == "resilience.call"]
    assert 3 == len(calls)
    for span in calls:
        number = span.attributes["supabase_resilience.table"].removeprefix("t")
        assert f"request {number}" == names[span.parent.span_id]


def test_a_span_that_ends_in_another_context_is_quiet(world, caplog):
    """A plain function may hand out a coroutine that is awaited elsewhere."""
    span = world.hook.span("queue.job", {"queue": "mails", "job": "1", "attempt": 1})

    async def begin():
        span.__enter__()

    asyncio.run(begin())
    span.__exit__(None, None, None)
    assert ["queue.job"] == [each.name for each in world.spans]
    assert "" == caplog.text
    assert not get_current_span().get_span_context().is_valid


def test_a_protected_query_has_its_span(world):
    """From the client to the exporter; no value of filters or rows is in it."""

    def answer(_):
        return httpx.Response(200, json=[{"email": SECRET}])

    async def main():
        session = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        options = AsyncClientOptions(httpx_client=session)
        bare = await acreate_client("http://supabase.test", SECRET, options)
        client = protect(bare, breaker=CircuitBreakers(on_event=world.hook))
        await client.table("users").select("*").eq("email", SECRET).execute()
        await client.schema("shop").rpc("total", {"email": SECRET}).execute()

    asyncio.run(main())
    query, function = world.spans
    assert "users" == query.attributes["supabase_resilience.table"]
    assert "total" == function.attributes["supabase_resilience.function"]
    assert "shop" == function.attributes["supabase_resilience.schema"]
    assert not any(SECRET in span.to_json() for span in world.spans)
    assert SECRET not in world.reader.get_metrics_data().to_json()


def test_a_job_has_a_span_for_each_attempt(world):
    """With its id and the number of the attempt."""

    def handle(_):
        raise ValueError(SECRET)

    processor = QueueProcessor(handle, max_retries=1, clock=FakeClock(), on_event=world.hook)
    job = processor.enqueue(SECRET)
    drain_queue(processor)
    assert [(job, attempt, "ValueError") for attempt in (1, 2)] == [
        (
            span.attributes["supabase_resilience.job"],
            span.attributes["supabase_resilience.attempt"],
            span.attributes["error.type"],
        )
        for span in world.spans
    ]
    assert not any(SECRET in span.to_json() for span in world.spans)


@pytest.mark.parametrize(("half", "other"), [("traces", "metrics"), ("metrics", "traces")])
def test_either_half_can_be_left_out(half, other, stats):
    """Without metrics there are spans, and the other way round."""
    world = World(**{half: False})
    world.hook.observe(stats)
    with world.hook.span("resilience.call", CALL):
        pass
    assert {"traces": bool(world.spans), "metrics": bool(world.metrics())} == {
        half: False,
        other: True,
    }


def test_an_sdk_that_fails_changes_nothing(world, monkeypatch, caplog):
    """The work goes on, and its own error passes; the failure is logged."""

    def fail(*_, **__):
        raise RuntimeError("no ids left")

    monkeypatch.setattr(world.hook._tracer, "start_span", fail, raising=False)
    with pytest.raises(KeyError), world.hook.span("resilience.call", CALL):
        raise KeyError
    assert "the span of resilience.call failed" in caplog.text
    assert 1 == world.points("call_duration")["GET", "raised", "supabase"].count
