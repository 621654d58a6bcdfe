"""What the status app answers: probes, JSON, metrics, the page."""

import json
import sys
import threading
import tomllib
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from supabase_resilience import Alert, CircuitBreaker, MemoryQueue, QueueProcessor, Resilience
from supabase_resilience._clock import monotonic
from supabase_resilience.hooks.prometheus import PrometheusHook
from supabase_resilience.status import EventLog, status_app
from supabase_resilience.status._page import verdict
from supabase_resilience.testing import FakeClock, drain_queue

from .conftest import eventually

PARTS = ["breaker:supabase", "queue:mails"]
ALL_PATHS = ["livez", "readyz", "status.json", "metrics", "", "events"]


# --- probes ---------------------------------------------------------------------------------------


def test_an_open_circuit_is_degraded_and_ready(world):
    """Restarting or unplugging the app would not bring Supabase back."""
    client = world.client()
    world.breaker.force_open()
    answer = client.get("readyz")
    assert (200, "degraded") == (answer.status_code, answer.json()["status"])
    assert {"breaker:supabase": "degraded", "queue:mails": "ok"} == answer.json()["parts"]
    assert (200, {"alive": True}) == (
        client.get("livez").status_code,
        client.get("livez").json(),
    )


def test_a_failing_part_is_not_ready(sync_world):
    """One that is stopped takes no work; the app is alive all the same."""
    client = sync_world.client()
    sync_world.queue.stop()
    assert (503, "failing") == (
        client.get("readyz").status_code,
        client.get("readyz").json()["status"],
    )
    assert 200 == client.get("livez").status_code


def test_one_part_can_be_asked_for(sync_world):
    """Readiness of a part is its own, and a name that nobody has is told."""
    client = sync_world.client()
    sync_world.queue.stop()
    assert 200 == client.get("readyz?part=breaker:supabase").status_code
    assert 503 == client.get("readyz?part=queue:mails").status_code
    answer = client.get("readyz?part=queue:nails")
    assert (404, PARTS) == (answer.status_code, answer.json()["parts"])


def test_a_thread_that_died_is_not_alive(sync_world):
    """A restart helps there, and only there."""
    client = sync_world.client()
    assert 200 == client.get("livez").status_code
    dead = threading.Thread(target=lambda: None)
    dead.start()
    dead.join()
    living, sync_world.resilience._thread = sync_world.resilience._thread, dead
    assert (503, {"alive": False}) == (
        client.get("livez").status_code,
        client.get("livez").json(),
    )
    sync_world.resilience._thread = living


def test_looks_that_are_overdue_are_not_alive(world):
    """A loop that stands still is as bad as a dead one."""
    client = world.client()
    watch = world.resilience._watch
    eventually(lambda: watch.looked_at is not None)
    watch.looked_at = monotonic() - 4 * 3600
    assert 503 == client.get("livez").status_code
    watch.looked_at = monotonic()
    assert 200 == client.get("livez").status_code


def test_who_has_stopped_on_purpose_is_alive(sync_world):
    """A probe must not kill what is just finishing."""
    client = sync_world.client()
    sync_world.resilience.stop()
    assert 200 == client.get("livez").status_code


# --- JSON and metrics -----------------------------------------------------------------------------


def test_json_has_all_that_is_known(world):
    """Health, statistics, what the queues hold, alerts, failures and events, with a version."""
    log = EventLog()
    client = world.client(events=log, title="orders")
    told = client.get("status.json").json()
    assert (1, "orders", True, []) == (
        told["version"],
        told["title"],
        told["is_active"],
        told["alerts_firing"],
    )
    assert PARTS == [part["part"] for part in told["health"]["parts"]]
    assert PARTS == list(told["stats"])
    assert ([], []) == (told["failures"], told["events"])
    asked = eventually(lambda: client.get("status.json").json()["queues"]["queue:mails"]["at"])
    assert asked > 0


def test_a_failure_is_told_by_its_type(ask):
    """Neither the job's data nor what its error says is anywhere."""
    log, clock = EventLog(), FakeClock()
    queue = QueueProcessor(
        _fail, store=MemoryQueue("mails", clock=clock), max_retries=0, on_event=log, clock=clock
    )
    queue.enqueue({"card": "4711-of-ada"})
    drain_queue(queue)
    client = ask(status_app(Resilience(queue), events=log))
    text, page = client.get("status.json").text, client.get("").text
    told = json.loads(text)
    assert ["ValueError"] == [each["why"] for each in told["failures"]]
    assert ["error"] == [each["severity"] for each in told["events"]]
    assert "ValueError" in page
    assert "4711-of-ada" not in text + page


def _fail(data):
    raise ValueError(f"no such card: {data['card']}")


def test_metrics_are_those_of_the_hook(world):
    """Prometheus's own parser reads them, and they are of now."""
    client = world.client(metrics=PrometheusHook(CollectorRegistry()))
    world.breaker.force_open()
    answer = client.get("metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples = [
        sample
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.labels.get("state") == "forced_open"
    ]
    assert [1.0] == [sample.value for sample in samples]


def test_metrics_tell_what_the_queues_hold(sync_world):
    """How long the oldest job waits is known to the queue alone, and is asked at a scrape."""
    client = sync_world.client(metrics=PrometheusHook(CollectorRegistry()))

    def names():
        families = text_string_to_metric_families(client.get("metrics").text)
        return {sample.name for family in families for sample in family.samples}

    eventually(lambda: "supabase_resilience_queue_depth" in names())


def test_without_a_hook_there_are_no_metrics(sync_world):
    """The answer says what to do."""
    answer = sync_world.client().get("metrics")
    assert (404, True) == (answer.status_code, "PrometheusHook" in answer.text)


# --- who may see it -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ALL_PATHS)
def test_it_only_shows(sync_world, path):
    """Nothing but GET and HEAD is answered."""
    client = sync_world.client(metrics=PrometheusHook(CollectorRegistry()))
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert 405 == client.request(method, path).status_code
    assert 200 == client.request("HEAD", path).status_code


@pytest.mark.parametrize("is_async", [False, True])
def test_only_those_with_leave_see_it(sync_world, is_async):
    """Probes have no credentials and are told a word; all else asks `auth`."""

    def may_see(request):
        return request.headers.get("authorization") == "Bearer staff"

    async def may_see_async(request):
        return may_see(request)

    client = sync_world.client(
        auth=may_see_async if is_async else may_see, metrics=PrometheusHook(CollectorRegistry())
    )
    told = {path: client.get(path).status_code for path in ALL_PATHS}
    assert told == dict.fromkeys(ALL_PATHS, 401) | {"livez": 200, "readyz": 200}
    staff = {"authorization": "Bearer staff"}
    assert 200 == client.get("", headers=staff).status_code
    assert 200 == client.get("status.json", headers=staff).status_code


@pytest.mark.parametrize("path", ["livez", "readyz", "status.json", "metrics", ""])
def test_nobody_keeps_it_or_puts_it_in_a_frame(sync_world, path):
    """Headers forbid caches, frames, and whatever the page does not bring along."""
    headers = sync_world.client().get(path).headers
    policy = headers["content-security-policy"]
    assert "no-store" == headers["cache-control"]
    assert "nosniff" == headers["x-content-type-options"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("given", "options", "error"),
    [
        (CircuitBreaker(), {}, "resilience"),
        (Resilience(), {"events": []}, "events"),
        (Resilience(), {"auth": "secret"}, "auth"),
        (Resilience(), {"title": ""}, "title"),
    ],
)
def test_arguments_that_make_no_sense(given, options, error):
    """They are refused by name."""
    with pytest.raises((TypeError, ValueError), match=error):
        status_app(given, **options)


# --- the page -------------------------------------------------------------------------------------


def test_the_page_is_whole_without_its_script(sync_world):
    """The server renders the state of now, and a browser without JavaScript loads it again."""
    client = sync_world.client(title="orders <worker>")
    assert "All 2 parts work" in client.get("").text
    sync_world.breaker.force_open()
    eventually(lambda: "1 of 2 parts is degraded" in client.get("").text)
    text = client.get("").text
    assert '<noscript><meta http-equiv="refresh"' in text
    assert "orders &lt;worker&gt;" in text
    assert "orders <worker>" not in text


def test_links_stay_inside_of_the_mount(sync_world):
    """The page works under any prefix: no URL on it is absolute."""
    client = sync_world.client(metrics=PrometheusHook(CollectorRegistry()))
    text = client.get("").text
    links = {part.partition('"')[0] for part in text.split('href="')[1:]}
    assert {"status.json", "readyz", "livez", "metrics"} <= links
    assert not any(link.startswith(("/", "http")) for link in links)
    assert "src=" not in text


def test_an_alert_is_on_the_page(ask):
    """All parts may work and something still be wrong."""
    alert = Alert("too many", when=lambda _: True)
    with Resilience(CircuitBreaker(), alerts=[alert], check_every=0.01) as resilience:
        client = ask(status_app(resilience))
        eventually(lambda: "The one part works, 1 alert is firing" in client.get("").text)


def test_what_is_not_started_says_so(ask):
    """Parts that nobody started look like parts that broke."""
    text = ask(status_app(Resilience(CircuitBreaker()))).get("").text
    assert "The parts are not started" in text


def test_the_extra_brings_what_it_needs():
    """Starlette and uvicorn come with `status`."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extra = project["project"]["optional-dependencies"]["status"]
    assert {"starlette", "uvicorn"} == {each.partition(">")[0] for each in extra}


def test_a_missing_extra_is_named(monkeypatch):
    """The hook works without it, the app says what to install."""
    monkeypatch.delitem(sys.modules, "supabase_resilience.status._app")
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.delitem(sys.modules, "starlette.applications")
    from supabase_resilience import status  # noqa: PLC0415

    assert [] == status.EventLog().events()
    with pytest.raises(ImportError, match=r'pip install "supabase-resilience\[status\]"'):
        _ = status.status_app


def test_what_else_is_missing_is_missing(monkeypatch):
    """No other name, and a package that starlette itself lacks is named as it is."""
    from supabase_resilience import status  # noqa: PLC0415

    with pytest.raises(AttributeError, match="has no attribute 'status_ap'"):
        _ = status.status_ap
    monkeypatch.delitem(sys.modules, "supabase_resilience.status._app")
    monkeypatch.setitem(sys.modules, "anyio", None)
    for name in [each for each in sys.modules if each.startswith("starlette")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match="anyio"):
        _ = status.status_app


def test_without_a_part_there_is_nothing_to_watch(ask):
    """Nor is it said that all is well."""
    with Resilience() as resilience:
        assert "There is no part to watch" in ask(status_app(resilience)).get("").text


def test_the_worst_comes_first():
    """Who fails before who is degraded, and each by its number."""

    def parts(*words):
        return {"health": {"parts": [{"status": word} for word in words]}, "alerts_firing": []}

    said = verdict(parts("degraded", "failing", "ok", "degraded"))
    assert "1 of 4 parts is failing, 2 are degraded" == said
    assert "All 2 parts work" == verdict(parts("ok", "ok"))
