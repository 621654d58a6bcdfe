"""OpenTelemetryHook: the metrics and spans for OpenTelemetry (extra `otel`).

It knows the API only; which SDK collects, and where it sends, is the app's choice.
"""

import os
from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from functools import partial
from types import TracebackType
from typing import Any

from supabase_resilience._clock import monotonic
from supabase_resilience._telling import Attributes, logger
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
    from opentelemetry.context import Context
    from opentelemetry.metrics import (
        CallbackOptions,
        Counter,
        Histogram,
        Meter,
        MeterProvider,
        Observation,
    )
    from opentelemetry.trace import Span, Status, StatusCode, Tracer, TracerProvider
except ImportError as _missing:
    raise ImportError(
        'OpenTelemetryHook needs opentelemetry-api. Run `pip install "supabase-resilience[otel]"`.'
    ) from _missing

__all__ = ["OpenTelemetryHook"]

# An empty one would be taken for that of whoever hands it over.
_NOTHING_AROUND = Context({NAMESPACE: None})
_ERROR = Status(StatusCode.ERROR)
_FAILED = "the span of %s failed"
_AT_ONCE = 64
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

    spans_never_raise = True

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
    """The instruments of the table.

    A duration is kept in mind and handed to the SDK with others, as one by one costs three times as
    much in the midst of a call: when many are waiting, and before anything is collected. So each
    collection has all of them.
    """

    def __init__(self, meter: Meter) -> None:
        self._looks = Looks()
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}
        self._gauges: dict[str, dict[Labels, Observation]] = {}
        self._waiting: deque[tuple[Histogram, float, dict[str, str], Context]] = deque()
        for metric in METRICS:
            self._make(metric, meter)
        self._of_span = {
            name: _Durations(metric, self._histograms[metric.name]) for name, metric in of_spans()
        }
        self._of_event: dict[type[Event], list[Metric[Any]]] = {}
        for kind, metric in of_events():
            self._of_event.setdefault(kind, []).append(metric)
        if hasattr(os, "register_at_fork"):  # what waits is the parent's
            os.register_at_fork(after_in_child=self._waiting.clear)

    def _make(self, metric: Metric[Any], meter: Meter) -> None:
        name, path, unit, about = metric.name, _name(metric), metric.unit, metric.help
        if metric.kind == "counter":
            self._counters[name] = meter.create_counter(path, unit, about)
        elif metric.kind == "gauge":
            self._gauges[name] = {}
            callback = partial(self._read, self._gauges[name])
            meter.create_observable_gauge(path, [callback], unit, about)
        else:
            self._histograms[name] = meter.create_histogram(
                path, unit, about, explicit_bucket_boundaries_advisory=metric.buckets
            )

    def _read(self, gauge: dict[Labels, Observation], _: CallbackOptions) -> Iterable[Observation]:
        self._hand_over()
        return list(gauge.values())

    def count(self, event: Event) -> None:
        for metric in self._of_event.get(type(event), ()):
            if metric.read is not None:
                for labels, number in metric.read(event).items():
                    if number is not None:
                        self._write(metric, labels, number)

    def observe(self, stats: Statistics) -> None:
        for metric, labels, value in self._looks.look(stats):
            self._write(metric, labels, value)

    def took(self, name: str, attributes: Attributes, seconds: float, *, raised: bool) -> None:
        durations = self._of_span.get(name)
        if durations is not None:
            labels = durations.labels(attributes)[raised]
            within = context.get_current() or _NOTHING_AROUND
            self._waiting.append((durations.histogram, seconds, labels, within))
            if len(self._waiting) >= _AT_ONCE:
                self._hand_over()

    def _hand_over(self) -> None:
        with suppress(IndexError):  # the last one is gone
            while True:
                histogram, seconds, labels, within = self._waiting.popleft()
                histogram.record(seconds, labels, within)

    def _write(self, metric: Metric[Any], labels: Labels, number: float) -> None:
        attributes = dict(zip(metric.labels, labels, strict=True))
        if metric.kind == "counter":
            self._counters[metric.name].add(number, attributes)
        elif metric.kind == "gauge":
            self._gauges[metric.name][labels] = Observation(number, attributes)
        else:
            self._histograms[metric.name].record(number, attributes)


class _Durations:
    """What the durations of one kind of span are called, by the names in the span."""

    def __init__(self, metric: Metric[Any], histogram: Histogram) -> None:
        self.histogram = histogram
        self._names = metric.labels[:-1]
        self._labels: dict[tuple[str, ...], tuple[dict[str, str], dict[str, str]]] = {}

    def labels(self, attributes: Attributes) -> tuple[dict[str, str], dict[str, str]]:
        """Those of one that returned, and of one that raised."""
        values = tuple([str(attributes.get(name, "")) for name in self._names])
        found = self._labels.get(values)
        if found is None:
            of_part = (short(values[0]), *values[1:])
            same = dict(zip(self._names, of_part, strict=True))
            found = {**same, "outcome": "returned"}, {**same, "outcome": "raised"}
            self._labels[values] = found
        return found


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

    def __enter__(self) -> None:
        try:
            if self._tracer is not None:
                facts = {_KEYS[key]: value for key, value in self._attributes.items()}
                span = self._span = self._tracer.start_span(self._name, attributes=facts)
                self._token = context.attach(trace.set_span_in_context(span))
        except Exception:
            logger.exception(_FAILED, self._name)
        self._began = monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._end(kind, monotonic() - self._began)
        except Exception:
            logger.exception(_FAILED, self._name)

    def _end(self, kind: type[BaseException] | None, seconds: float) -> None:
        span = self._span
        # In another task than it began in, it is not current, and there is nothing to undo.
        if span is not None and trace.get_current_span() is span:
            context.detach(self._token)
        if self._meters is not None:
            self._meters.took(self._name, self._attributes, seconds, raised=kind is not None)
        if span is not None:
            if kind is not None:
                span.set_attribute("error.type", _type_name(kind))
                span.set_status(_ERROR)
            span.end()


class _Keys(dict[str, str]):
    """The names of attributes, each made once."""

    def __missing__(self, key: str) -> str:
        self[key] = f"{NAMESPACE}.{key}"
        return self[key]


_KEYS = _Keys()


def _type_name(kind: type[BaseException]) -> str:
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"
