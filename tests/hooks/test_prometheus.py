"""PrometheusHook: what a scrape reads, from one process and from several."""

import multiprocessing
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families
from supabase import ClientOptions, create_client

from supabase_resilience import CircuitBreakers, Hooks, QueueProcessor, Resilience, protect
from supabase_resilience.events import AlertCleared, AlertFired, GapRecovered, PassCompleted
from supabase_resilience.hooks._metrics import METRICS
from supabase_resilience.hooks.prometheus import PrometheusHook
from supabase_resilience.testing import FakeClock, RecordingHook, drain_queue

SECRET = "4711-a-secret"


@pytest.fixture
def hook():
    return PrometheusHook(CollectorRegistry())


def scraped(hook):
    body, content_type = hook.render()
    assert content_type.startswith("text/plain; version=")
    return series(body.decode())


def series(body):
    """What Prometheus would store: values by name and labels."""
    families = text_string_to_metric_families(body)
    samples = [sample for family in families for sample in family.samples]
    prefix = "supabase_resilience_"
    return {
        (each.name.removeprefix(prefix), *sorted(each.labels.values())): each.value
        for each in samples
    }


def test_a_scrape_has_every_metric(hook, stats):
    """Prometheus's own parser reads it, and finds kind and help of each."""
    hook.observe(stats)
    families = {
        family.name: family for family in text_string_to_metric_families(hook.render()[0].decode())
    }
    for metric in METRICS:
        family = families[metric.full_name.removesuffix("_total")]
        assert (metric.kind, metric.help) == (family.type, family.documentation)


def test_statistics_become_series(hook, stats):
    """Gauges are as they are; counters grow by what is new."""
    hook.observe(stats)
    more = replace(stats["breaker:supabase"], state="closed", cause=None, refused=45)
    hook.observe(stats | {"breaker:supabase": more})
    found = scraped(hook)
    assert 45 == found["circuit_calls_total", "refused", "supabase"]
    assert 1 == found["circuit_state", "closed", "supabase"]
    assert 0 == found["circuit_state", "open", "supabase"]
    assert 0 == found["circuit_cause", "failure", "supabase"]


def test_what_the_server_knows_can_be_handed_in(hook, server):
    """The age of the oldest job is not in local statistics."""
    hook.observe({"queue:mails": server})
    found = scraped(hook)
    assert 345 == found["queue_oldest_age_seconds", "mails"]
    assert 11 == found["queue_jobs", "mails", "ready"]
    assert ("queue_jobs", "dead", "mails") not in found


def test_events_with_a_duration_are_measured(hook):
    """A gap, a pass; and an alert of the app while it fires."""
    hook(GapRecovered(listener="public.projects", changes=3, seconds=0.4))
    hook(PassCompleted(table="orders", rows=9, violations=0, fixed=0, open=0, seconds=50.0))
    hook(AlertFired(alert="problems", seconds=60.0))
    found = scraped(hook)
    assert 0.4 == found["listener_catch_up_duration_seconds_sum", "projects"]
    assert 1 == found["verification_pass_duration_seconds_bucket", "60.0", "orders"]
    assert 1 == found["alert_firing", "problems"]
    hook(AlertCleared(alert="problems", seconds=90.0))
    assert 0 == scraped(hook)["alert_firing", "problems"]


def test_a_protected_call_is_measured(hook):
    """By method, and by whether it returned or raised; what is in rows and filters is nowhere."""

    def answer(request):
        if "boom" in str(request.url):
            raise httpx.ConnectError(SECRET)
        return httpx.Response(200, json=[{"email": SECRET}])

    session = httpx.Client(transport=httpx.MockTransport(answer))
    bare = create_client("http://supabase.test", SECRET, ClientOptions(httpx_client=session))
    client = protect(bare, breaker=CircuitBreakers(on_event=Hooks(RecordingHook(), hook)))
    client.table("users").select("*").eq("email", SECRET).execute()
    with pytest.raises(httpx.ConnectError):
        client.table("boom").insert({"email": SECRET}).execute()
    with Resilience(client) as app:
        hook.observe(app.get_stats())
    found = scraped(hook)
    assert 1 == found["call_duration_seconds_count", "GET", "returned", "supabase"]
    assert 1 == found["call_duration_seconds_count", "POST", "raised", "supabase"]
    assert 1 == found["circuit_calls_total", "success", "supabase"]
    assert SECRET not in hook.render()[0].decode()


def test_a_job_is_measured(hook):
    """How long it waited, and how long each attempt took."""

    def handle(data):
        if data == "bad":
            raise ValueError(SECRET)

    clock = FakeClock()
    processor = QueueProcessor(handle, max_retries=1, clock=clock, on_event=hook)
    processor.enqueue("good")
    processor.enqueue("bad")
    drain_queue(processor)
    hook.observe({"queue:memory": processor.get_stats()})
    found = scraped(hook)
    assert 1 == found["job_wait_seconds_count", "memory"]
    assert 1 == found["job_duration_seconds_count", "memory", "returned"]
    assert 2 == found["job_duration_seconds_count", "memory", "raised"]
    assert 1 == found["jobs_total", "dead", "memory"]
    assert SECRET not in hook.render()[0].decode()


def test_spans_of_tables_are_called_as_their_parts(hook):
    """The usual schema goes without saying, as in the names of parts."""
    facts = {"listener": "public.projects", "handler": "notify", "type": "INSERT"}
    with hook.span("listener.handler", facts):
        pass
    found = scraped(hook)
    key = ("listener_handler_duration_seconds_count", "notify", "projects", "returned")
    assert 1 == found[key]


def test_an_unknown_span_is_not_measured(hook):
    """A newer driver may have more of them."""
    before = scraped(hook)
    with hook.span("something.else", {"breaker": "supabase"}):
        pass
    assert before == scraped(hook)


def test_a_measurement_that_fails_changes_nothing(hook, monkeypatch, caplog):
    """The work goes on, and its own error passes; the failure is logged."""

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("prometheus_client.Histogram.observe", fail)
    with pytest.raises(KeyError), hook.span("resilience.call", {"breaker": "b", "method": "GET"}):
        raise KeyError
    assert "could not be measured" in caplog.text


def test_one_hook_for_each_registry():
    """A second one is refused, with what to do, and the first one goes on."""
    registry = CollectorRegistry()
    hook = PrometheusHook(registry)
    with pytest.raises(ValueError, match="use one PrometheusHook"):
        PrometheusHook(registry)
    assert ("alert_firing",) not in scraped(hook)
    PrometheusHook(registry, namespace="another")


def test_a_refused_hook_leaves_nothing_behind():
    """A metric of the app's own is in the way: ours that were there before it are taken back."""
    registry = CollectorRegistry()
    Gauge("supabase_resilience_alert_firing", "The app's own.", registry=registry)
    with pytest.raises(ValueError, match="already"):
        PrometheusHook(registry)
    assert ["supabase_resilience_alert_firing"] == [each.name for each in registry.collect()]


# --- several processes ----------------------------------------------------------------------

CHILD = """
import sys
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
from conftest import BREAKER
from supabase_resilience.hooks.prometheus import PrometheusHook
from prometheus_client import CollectorRegistry

hook = PrometheusHook(CollectorRegistry())
with hook.span("resilience.call", {"breaker": "supabase", "method": "GET"}):
    pass
hook.observe({"breaker:supabase": replace(BREAKER, successes=int(sys.argv[2]))})
hook.observe({"breaker:supabase": replace(BREAKER, successes=int(sys.argv[2]) + 1)})
if sys.argv[3] == "scrape":
    sys.stdout.buffer.write(hook.render()[0])
else:
    print("ready", flush=True)
    sys.stdin.readline()
"""


def test_a_scrape_has_what_all_processes_count(tmp_path):
    """Under gunicorn any of the workers may be asked: counters add up, states are counted."""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent)]
    with subprocess.Popen(
        [*command, "100", "wait"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as other:
        assert "ready\n" == other.stdout.readline()
        body = subprocess.run(
            [*command, "10", "scrape"], env=environment, capture_output=True, text=True, check=True
        ).stdout
        other.communicate("end\n")
    found = series(body)
    assert 101 + 11 == found["circuit_calls_total", "success", "supabase"]
    assert 2 == found["circuit_state", "open", "supabase"]
    assert 2 == found["call_duration_seconds_count", "GET", "returned", "supabase"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_can_look(hook, stats):
    """A lock that somebody held at that moment does not hold up the child."""
    context = multiprocessing.get_context("fork")
    with hook._looks._locked():
        child = context.Process(target=hook.observe, args=(stats,))
        child.start()
        child.join(30)
    assert 0 == child.exitcode


def test_resilience_shows_its_statistics(hook, caplog):
    """Also through `Hooks`; another hook that cannot take them is logged, and in nobody's way."""

    def broken(_):
        raise RuntimeError("full")

    other = RecordingHook()
    other.observe = broken
    breakers = CircuitBreakers()
    breakers.project.execute(str)
    seen = threading.Event()

    class Seen(RecordingHook):
        def observe(self, _):
            seen.set()

    with Resilience(breakers, on_event=Hooks(other, hook, Seen())):
        assert seen.wait(30)
    assert 1 == scraped(hook)["circuit_calls_total", "success", "supabase"]
    assert "failed to observe" in caplog.text
