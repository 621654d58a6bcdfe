"""PrometheusHook: the metrics for prometheus-client (extra `prometheus`).

Plain counters, gauges and histograms, no collector that asks at scrape time: only those work when
gunicorn runs the app in several processes.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from supabase_resilience._clock import monotonic
from supabase_resilience._telling import Attributes, logger
from supabase_resilience.events import Event
from supabase_resilience.hooks._looks import Looks, Statistics
from supabase_resilience.hooks._metrics import (
    METRICS,
    NAMESPACE,
    Metric,
    of_events,
    of_spans,
    short,
)

try:
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        REGISTRY,
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        generate_latest,
    )
    from prometheus_client.multiprocess import MultiProcessCollector
except ImportError as _missing:
    raise ImportError(
        "PrometheusHook needs prometheus-client."
        ' Run `pip install "supabase-resilience[prometheus]"`.'
    ) from _missing

__all__ = ["PrometheusHook"]

Instrument = Counter | Gauge | Histogram
_NOT_MEASURED = "%s could not be measured"
_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"


class PrometheusHook:
    """Metrics of all parts: `on_event=Hooks(log_event, hook)`, and `hook.observe()` now and then.

    Durations are measured as work happens; all else is read from the statistics at each
    `observe(resilience.get_stats())`, which is also when counters grow. One hook serves all parts
    of a process, from any thread.

    - `registry`: where the metrics live (None: prometheus-client's own, with the app's others).
    - `namespace`: what their names begin with; the alert rules and the dashboard know the default.

    With `PROMETHEUS_MULTIPROC_DIR` set, each process has its own hook and observes its own parts;
    any of them can `render()` the numbers of all. A state then says in how many processes it is so.
    Call `prometheus_client.multiprocess.mark_process_dead(pid)` when a process ends, or what it
    said last stays.

    Labels are names of parts and words of closed sets. Parts of the same name share what is
    measured as work happens; give them different ones. Raises `ValueError` when the registry has
    these metrics already.
    """

    spans_never_raise = True

    def __init__(
        self, registry: CollectorRegistry | None = None, *, namespace: str = NAMESPACE
    ) -> None:
        self._registry = REGISTRY if registry is None else registry
        self._instruments = _make_all(self._registry, namespace)
        self._looks = Looks()
        self._of_event: dict[type[Event], list[Metric[Any]]] = {}
        for kind, metric in of_events():
            self._of_event.setdefault(kind, []).append(metric)
        self._of_span = {name: _Timers(self._histogram(metric)) for name, metric in of_spans()}

    def _histogram(self, metric: Metric[Any]) -> tuple[Histogram, tuple[str, ...]]:
        instrument = self._instruments[metric.name]
        assert isinstance(instrument, Histogram)  # noqa: S101 - so says the table
        return instrument, metric.labels[:-1]

    def __call__(self, event: Event) -> None:
        """Count an event, if it is one that has a metric."""
        for metric in self._of_event.get(type(event), ()):
            if metric.read is not None:
                for labels, number in metric.read(event).items():
                    if number is not None:
                        _write(self._instruments[metric.name].labels(*labels), number)

    def span(self, name: str, attributes: Attributes) -> AbstractContextManager[None]:
        """Measure a call, a handler or a batch: what is in the block, however it ends."""
        try:
            timers = self._of_span.get(name)
            return _UNMEASURED if timers is None else timers.start(attributes)
        except Exception:
            logger.exception(_NOT_MEASURED, name)
            return _UNMEASURED

    def observe(self, stats: Statistics) -> None:
        """Take over what the parts count: `observe(resilience.get_stats())`.

        What only the server knows is taken over, too, when it is handed in, from one process of
        the app: `observe({"queue:mail": processor.metrics()})`.
        """
        for metric, labels, value in self._looks.look(stats):
            _write(self._instruments[metric.name].labels(*labels), value)

    def render(self) -> tuple[bytes, str]:
        """The body and the content type of an answer to `GET /metrics`.

        It has all metrics of the registry, the app's own, too; with `PROMETHEUS_MULTIPROC_DIR`
        set, those of all processes.
        """
        registry = self._registry
        if _MULTIPROCESS in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST


def _write(instrument: Instrument, number: float) -> None:
    if isinstance(instrument, Gauge):
        instrument.set(number)
    elif isinstance(instrument, Counter):
        instrument.inc(number)
    else:
        instrument.observe(number)


def _make_all(registry: CollectorRegistry, namespace: str) -> dict[str, Instrument]:
    made: dict[str, Instrument] = {}
    try:
        for metric in METRICS:
            made[metric.name] = _make(metric, registry, namespace)
    except ValueError as error:
        for instrument in made.values():
            registry.unregister(instrument)
        raise ValueError(
            f"this registry has {namespace} metrics already: use one PrometheusHook for all parts,"
            " or give each its own CollectorRegistry"
        ) from error
    return made


def _make(metric: Metric[Any], registry: CollectorRegistry, namespace: str) -> Instrument:
    facts: dict[str, Any] = {
        "name": metric.name,
        "documentation": metric.help,
        "labelnames": metric.labels,
        "namespace": namespace,
        "registry": registry,
    }
    if metric.kind == "counter":
        return Counter(**facts)
    if metric.kind == "gauge":
        return Gauge(**facts, multiprocess_mode=metric.merge)
    return Histogram(**facts, buckets=metric.buckets)


# --- spans ----------------------------------------------------------------------------------------


class _Timers:
    """The timers of one kind of span: looking up a series costs more than a measurement."""

    def __init__(self, histogram: tuple[Histogram, tuple[str, ...]]) -> None:
        self._histogram, self._names = histogram
        self._ends: dict[tuple[str, ...], tuple[Callable[[float], None], ...]] = {}

    def start(self, attributes: Attributes) -> "_Timer":
        labels = tuple([str(attributes.get(name, "")) for name in self._names])
        ends = self._ends.get(labels)
        if ends is None:
            of_part = (short(labels[0]), *labels[1:])
            series = (self._histogram.labels(*of_part, end) for end in ("returned", "raised"))
            ends = self._ends[labels] = tuple(each.observe for each in series)
        return _Timer(ends)


class _Timer(AbstractContextManager[None]):
    __slots__ = ("_began", "_ends")

    def __init__(self, ends: tuple[Callable[[float], None], ...]) -> None:
        self._ends = ends

    def __enter__(self) -> None:
        self._began = monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._ends[kind is not None](monotonic() - self._began)
        except Exception:  # a full disk, where several processes share files
            logger.exception(_NOT_MEASURED, "a span")


class _Unmeasured(AbstractContextManager[None]):
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


_UNMEASURED = _Unmeasured()
