"""OpenTelemetryHook: the metrics and spans for OpenTelemetry (extra `otel`).

It knows the API only; which SDK collects, and where it sends, is the app's choice.
"""

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from supabase_resilience._clock import monotonic
from supabase_resilience._telling import Attributes
from supabase_resilience.events import Event
from supabase_resilience.hooks._looks import Looks, Statistics
from supabase_resilience.hooks._metrics import (
    METRICS,
    NAMESPACE,
    Labels,
    Metric,
    of_events,
    of_spans,
    short,
)

try:
    from opentelemetry import context, metrics, trace
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider
except ImportError as missing:
    raise ImportError(
        'OpenTelemetryHook needs opentelemetry-api. Run `pip install "supabase-resilience[otel]"`.'
    ) from missing

__all__ = ["OpenTelemetryHook"]

_ERROR = Status(StatusCode.ERROR)
_SUFFIXES = ("_total", "_seconds", "_ratio")


class OpenTelemetryHook:
    """Metrics and spans of all parts: `on_event=Hooks(log_event, hook)`, and `hook.observe()`.

    Spans are INTERNAL, around a call with all its attempts, a queue's job, a listener's handler and
    a request of a verification; the requests themselves are the matter of httpx's instrumentation.
    They carry names of parts and ids, and of an error its type alone, as messages may quote rows.

    The metrics are those of the same table as Prometheus's, named so that they are called the same
    there. Durations are measured as work happens; all else is read from the statistics at each
    `observe(resilience.get_stats())`, which is also when counters grow.

    - `meter_provider`, `tracer_provider`: None is the global one.
    - `metrics`, `traces`: False leaves that half out, and costs nothing.

    One hook serves all parts of a process, from any thread and task.
    """

    def __init__(
        self,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
        *,
        metrics: bool = True,
        traces: bool = True,
    ) -> None:
        self._meters = _Meters(_meter(meter_provider)) if metrics else None
        self._tracer = _tracer(tracer_provider) if traces else None

    def __call__(self, event: Event) -> None:
        """Count an event, if it is one that has a metric."""
        if self._meters is not None:
            self._meters.count(event)

    def span(self, name: str, attributes: Attributes) -> AbstractContextManager[None]:
        """Trace and measure a call, a handler or a batch: what is in the block."""
        return _Block(self._tracer, self._meters, name, attributes)

    def observe(self, stats: Statistics) -> None:
        """Take over what the parts count: `observe(resilience.get_stats())`.

        What only the server knows is taken over, too, when it is handed in, from one process of
        the app: `observe({"queue:mail": processor.metrics()})`.
        """
        if self._meters is not None:
            self._meters.observe(stats)


def _meter(provider: MeterProvider | None) -> Meter:
    return (metrics.get_meter_provider() if provider is None else provider).get_meter(NAMESPACE)


def _tracer(provider: TracerProvider | None) -> Tracer:
    return (trace.get_tracer_provider() if provider is None else provider).get_tracer(NAMESPACE)


# --- metrics --------------------------------------------------------------------------------------


class _Meters:
    """The instruments of the table."""

    def __init__(self, meter: Meter) -> None:
        self._looks = Looks()
        self._instruments = {metric.name: _make(metric, meter) for metric in METRICS}
        self._of_span = dict(of_spans())
        self._of_event: dict[type[Event], list[Metric[Any]]] = {}
        for kind, metric in of_events():
            self._of_event.setdefault(kind, []).append(metric)

    def count(self, event: Event) -> None:
        for metric in self._of_event.get(type(event), ()):
            if metric.read is not None:
                for labels, number in metric.read(event).items():
                    if number is not None:
                        self._write(metric, labels, number)

    def observe(self, stats: Statistics) -> None:
        for metric, labels, value in self._looks.look(stats):
            self._write(metric, labels, value)

    def took(self, name: str, attributes: Attributes, outcome: str, seconds: float) -> None:
        metric = self._of_span.get(name)
        if metric is not None:
            labels = {label: attributes.get(label, "") for label in metric.labels}
            labels[metric.labels[0]] = short(str(labels[metric.labels[0]]))
            labels["outcome"] = outcome
            self._instruments[metric.name].record(seconds, labels)

    def _write(self, metric: Metric[Any], labels: Labels, number: float) -> None:
        instrument = self._instruments[metric.name]
        write = instrument.add if metric.kind == "counter" else instrument.set
        if metric.kind == "histogram":
            write = instrument.record
        write(number, dict(zip(metric.labels, labels, strict=True)))


def _make(metric: Metric[Any], meter: Meter) -> Any:
    name = _name(metric)
    if metric.kind == "counter":
        return meter.create_counter(name, metric.unit, metric.help)
    if metric.kind == "gauge":
        return meter.create_gauge(name, metric.unit, metric.help)
    buckets = metric.buckets
    return meter.create_histogram(
        name, metric.unit, metric.help, explicit_bucket_boundaries_advisory=buckets
    )


def _name(metric: Metric[Any]) -> str:
    """Without what OpenTelemetry's way to Prometheus adds by itself for unit and kind."""
    name = metric.name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return f"{NAMESPACE}.{name}"


# --- spans ----------------------------------------------------------------------------------------


class _Block(AbstractContextManager[None]):
    """What begins and ends: a span, a measurement, or both."""

    __slots__ = ("_attributes", "_began", "_meters", "_name", "_span", "_token", "_tracer")

    def __init__(
        self, tracer: Tracer | None, meters: _Meters | None, name: str, attributes: Attributes
    ) -> None:
        self._tracer, self._meters = tracer, meters
        self._name, self._attributes = name, attributes
        self._span: Span | None = None
        self._token: Any = None

    def __enter__(self) -> None:
        if self._tracer is not None:
            facts = {f"{NAMESPACE}.{key}": value for key, value in self._attributes.items()}
            span = self._tracer.start_span(self._name, kind=SpanKind.INTERNAL, attributes=facts)
            self._span = span
            self._token = context.attach(trace.set_span_in_context(span))
        self._began = monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._meters is not None:
            outcome = "returned" if kind is None else "raised"
            seconds = monotonic() - self._began
            self._meters.took(self._name, self._attributes, outcome, seconds)
        if self._span is not None:
            # In another task than it began in, it is not current, and there is nothing to undo.
            if trace.get_current_span() is self._span:
                context.detach(self._token)
            if kind is not None:
                self._span.set_attribute("error.type", _type_name(kind))
                self._span.set_status(_ERROR)
            self._span.end()


def _type_name(kind: type[BaseException]) -> str:
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
