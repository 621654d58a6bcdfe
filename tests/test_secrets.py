"""No secret in what the package tells: logs, events, metrics, pages, reprs, errors, output.

Recognisable secrets are planted wherever an app has any, every part is driven through failures in
both colours, and all that was told is searched. What holds content on purpose is not searched:
`EXEMPT` has each, with its reason.
"""

import asyncio
import contextlib
import logging
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import httpx
import psycopg
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from supabase import AsyncClientOptions, ClientOptions, acreate_client, create_client

from supabase_resilience import (
    Alert,
    AsyncQueueProcessor,
    AsyncResilience,
    CircuitBreaker,
    CircuitBreakers,
    Hooks,
    ListenerError,
    MemoryQueue,
    QueueProcessor,
    Recovery,
    Resilience,
    ResilienceError,
    RetryConfig,
    Rule,
    log_event,
    protect,
    queue_processor,
    realtime_listener,
    server_side_verification,
)
from supabase_resilience.__main__ import main
from supabase_resilience.hooks.otel import OpenTelemetryHook
from supabase_resilience.hooks.prometheus import PrometheusHook
from supabase_resilience.local import LocalSupabase
from supabase_resilience.status import EventLog, _feed, status_app
from supabase_resilience.testing import RecordingHook

from .listener.worlds import SOON, TLS, AsyncWorld, SyncWorld, eventually, sql

ROW, BODY, SAID = "row-4Zt9Qk", "body-4Zt9Qk", "said-4Zt9Qk"
PAYMENT, PASSWORD, FILTER = "payment-4Zt9Qk", "password-4Zt9Qk", "filter-4Zt9Qk"
EXEMPT = {
    "errors of the app, of httpx and of Supabase": "they pass through as they came",
    "dead_letters()": "a person wants to see what was given up on, traceback and all; its repr and "
    "`queue NAME --dead` leave out the data, but for --show-data",
    "Change": "it is the row, handed to a handler; nobody else is given one",
    "Job.data and what on_error is given": "it is the app's own",
    "filter= of a listener": "the app's configuration, told by Realtime when it cannot be used",
    "Report.problems": "keys of rows for a person, in `to_html()` and `summary()`, too; no values",
    "commands: what the app's own module raises on import": "Python would print the same",
}

SCHEMA = f"""
create table orders (id int primary key, note text unique, amount int,
  updated_at timestamptz default clock_timestamp());
create table projects (id int primary key, note text,
  updated_at timestamptz default clock_timestamp());
create view amounts as select id, note::int as id2, updated_at from projects;
alter publication supabase_realtime add table projects;
insert into orders values (1, '{ROW}-1', null), (2, '{ROW}-2', 2);
insert into projects values (1, '{ROW}-p');
select pgmq.create('mails'); select pgmq.create('mails_dead');
create function refuse(said text) returns int language plpgsql as
  $$ begin raise exception 'no: % {ROW}', said; end $$;
"""
QUICK = RetryConfig(attempts=2, wait_initial=0.0)


class Sync(SyncWorld):
    together, queue, run = Resilience, QueueProcessor, staticmethod(asyncio.run)

    def client(self, local: LocalSupabase, key: str | None = None) -> Any:
        self._opened.append(httpx.Client(timeout=10.0, verify=TLS))
        options = ClientOptions(httpx_client=self._opened[-1], headers={"X-Payment": PAYMENT})
        return create_client(local.url, key or local.secret_key, options)


class Async(AsyncWorld):
    together, queue = AsyncResilience, AsyncQueueProcessor

    def client(self, local: LocalSupabase, key: str | None = None) -> Any:
        self._opened.append(httpx.AsyncClient(timeout=10.0, verify=TLS))
        options = AsyncClientOptions(httpx_client=self._opened[-1], headers={"X-Payment": PAYMENT})
        return self.do(acreate_client, local.url, key or local.secret_key, options)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.do(lambda: work)


class Watch(logging.Handler):
    """Hears all that is told, with every hook there is, and searches it."""

    def __init__(self, local: LocalSupabase) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
        self.local = local
        self.jwt = local.jwt(sub="00000000-0000-0000-0000-00000000000a")
        self.seen: list[tuple[str, str]] = []
        self.events, self.recent = RecordingHook(), EventLog(1000, level=0)
        self.metrics = PrometheusHook(CollectorRegistry())
        self.spans, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        otel = OpenTelemetryHook(MeterProvider([self.reader]), tracers)
        self.hook = Hooks(log_event, self.events, self.recent, self.metrics, otel)

    # --- hearing ---

    def emit(self, record: logging.LogRecord) -> None:
        self.see("log", self.format(record))
        self.see("log record", vars(record))

    def see(self, where: str, *things: Any) -> None:
        """Take note of how things look in print."""
        for thing in things:
            self.seen += [(where, str(thing)), (where, repr(thing))]

    def raised(self, error: BaseException) -> None:
        """Take note of an error with all that a traceback shows, if it is one of ours."""
        if isinstance(error, ResilienceError):
            self.see(f"traceback of {type(error).__name__}", error)
            self.seen.append(
                (f"traceback of {type(error).__name__}", "".join(traceback.format_exception(error)))
            )

    # --- judging ---

    def kinds(self) -> set[str]:
        return {where for where, _ in self.seen}

    def leaks(self) -> set[tuple[str, str, str]]:
        """What was told where, and a little of what is around it."""
        signature = self.local.secret_key.rpartition(".")[2]
        secrets = {
            "row": ROW,
            "body": BODY,
            "message": SAID,
            "header": PAYMENT,
            "password": PASSWORD,
            "key": signature,
            "public key": self.local.publishable_key.rpartition(".")[2],
            "jwt": self.jwt.rpartition(".")[2],
            "filter": FILTER,
        }
        for event in self.events.events:
            self.see("event", event)
        self.see("event log", self.recent.events(), self.recent.failures())
        for span in self.spans.get_finished_spans():
            self.seen.append(("span", span.to_json()))
        data = self.reader.get_metrics_data()
        if data is not None:
            self.seen.append(("otel metrics", data.to_json()))
        self.seen.append(("prometheus", self.metrics.render()[0].decode()))
        return {
            (name, where, text[max(0, at - 150) : at + 50])
            for where, text in self.seen
            for name, secret in secrets.items()
            if (at := text.find(secret)) >= 0
        }


class Scene:
    """A world of one colour, with a watch on it."""

    def __init__(self, world: Any, local: LocalSupabase) -> None:
        self.world, self.local = world, local
        self.watch = Watch(local)
        self.told = {"on_event": self.watch.hook}

    def attempt(self, method: Callable[..., Any], *given: Any, **named: Any) -> Exception | None:
        """Call it where it lives; the error, which the watch has seen."""
        try:
            self.world.do(method, *given, **named)
        except Exception as error:  # noqa: BLE001 - whatever it is
            self.watch.raised(error)
            return error
        return None

    def protected(self, breaker: CircuitBreaker | CircuitBreakers | None = None) -> Any:
        breaker = breaker or CircuitBreakers(
            failure_threshold=1, reset_timeout=0.01, max_reset_timeout=0.01, **self.told
        )
        return protect(self.world.client(self.local), breaker=breaker, retry=QUICK)

    def look(self, *parts: Any, **options: Any) -> None:
        """All that statistics, health and the status app say of parts."""
        app = self.world.do(self.world.together, *parts, **options, **self.told)
        self.watch.metrics.observe(app.get_stats())
        self.watch.hook.observe(app.get_stats())
        self.watch.see("repr", app, app.parts, *app.parts.values(), *parts)
        self.watch.see("stats", app.get_stats(), app.health())
        for path, text in self.world.run(pages(app, self.watch)):
            self.watch.seen.append((path, text))


async def pages(app: Any, watch: Watch) -> list[tuple[str, str]]:
    """What the status app answers, and the first of its stream of events."""
    served = status_app(app, events=watch.recent, metrics=watch.metrics)
    transport = httpx.ASGITransport(served)
    paths = ("/", "/status.json", "/metrics", "/readyz", "/livez", "/events")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as session:
        return [(path, (await session.get(path)).text) for path in paths]


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSupabase]:
    """One stack for this file."""
    with LocalSupabase(schema=[SCHEMA, sql("queue")]) as stack:
        yield stack


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def scene(request, local, monkeypatch) -> Iterator[Scene]:
    """Both colours."""
    monkeypatch.setattr(_feed, "_LIFE", 0.05)  # an event stream ends by itself
    logger, made = logging.getLogger("supabase_resilience"), request.param()
    scene = Scene(made, local)
    before = logger.level
    logger.setLevel(logging.DEBUG)
    for each in (logger, logging.getLogger("asyncio")):
        each.addHandler(scene.watch)
    yield scene
    for each in (logger, logging.getLogger("asyncio")):
        each.removeHandler(scene.watch)
    logger.setLevel(before)
    local.faults.clear()
    made.close()


def owner(local: LocalSupabase, query: str) -> None:
    with psycopg.connect(local.admin_dsn, autocommit=True) as connection:
        connection.execute(query.encode())


def fail(*_: object) -> Any:
    """What an app may do wrong: raise with a row in the message, while another error is handled."""
    try:
        raise KeyError(ROW)  # noqa: TRY301
    except KeyError:
        raise ValueError(f"bad row: {SAID}")  # noqa: B904 - so it is


# --- queries --------------------------------------------------------------------------------------

FAULTS: dict[str, dict[str, Any]] = {
    "outage": {"status": 503, "body": {"message": f"no {ROW}"}},
    "throttled": {"status": 429, "headers": {"Retry-After": "0"}, "body": {"message": ROW}},
    "blocked": {"status": 401, "body": {"message": f"Invalid API key {ROW}"}},
    "html": {
        "status": 502,
        "body": f"<html>{ROW}</html>",
        "headers": {"Content-Type": "text/html"},
    },
    "database": {
        "status": 500,
        "body": {"message": ROW, "code": "57014", "details": BODY, "hint": None},
    },
    "lost": {"drop": "after"},
    "cut": {"drop": "body"},
}


def test_queries_that_fail(scene: Scene) -> None:
    """Failures of each class, refusals, and hooks of the app's own that raise themselves."""
    client = scene.protected()
    users = client.as_user(scene.watch.jwt)
    for fault in FAULTS.values():
        for each in (client, users):
            scene.local.faults.add(**fault, times=2)
            query = each.table("orders").select("*").eq("note", FILTER)
            assert scene.attempt(query.execute)
            scene.attempt(query.execute)
            scene.local.faults.clear()
    row = {"id": 3, "note": f"{ROW}-1"}
    for build in (
        lambda: client.table("orders").insert(row),
        lambda: client.table("orders").upsert({"id": "x", "note": ROW}),
        lambda: client.rpc("refuse", {"said": BODY}),
        lambda: client.table("nowhere").select("*").eq("note", FILTER),
    ):
        assert scene.attempt(build().execute)
    scene.watch.see("repr", client, users, client.table("orders"))
    scene.look(client)
    assert set() == scene.watch.leaks()


def test_functions_of_the_app_that_raise(scene: Scene) -> None:
    """`classify`, `key`, the hooks of a breaker, conditions of alerts, hooks, fallbacks."""
    breaker = CircuitBreaker(
        "own",
        failure_threshold=1,
        classify=fail,
        on_open=fail,
        on_event=Hooks(scene.watch.hook, fail),
    )
    breakers = CircuitBreakers(key=fail, failure_threshold=1, on_event=fail)
    for each in (breaker, breakers):
        client = scene.protected(each)
        scene.local.faults.add(status=503, times=4)
        for _ in range(2):
            assert scene.attempt(client.table("orders").select("*").execute)
        scene.local.faults.clear()
    assert scene.attempt(breaker.execute, fail)
    app = scene.world.do(
        scene.world.together,
        breaker,
        alerts=[Alert("own", when=fail), Alert("told", when=bool, tell=fail)],
        check_every=0.01,
        **scene.told,
    )
    scene.world.do(app.start)
    eventually(app.alerts_firing)
    scene.world.do(app.stop)
    scene.look(breaker, breakers)
    assert "log" in scene.watch.kinds()
    assert set() == scene.watch.leaks()


# --- queues ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["memory", "supabase"])
def test_jobs_that_fail(scene: Scene, store: str) -> None:
    """Handlers and `on_error` that raise, dead letters, what no queue can hold."""
    options = {"max_retries": 1, "retry_delay": 0.0, "on_error": fail, **scene.told}
    handler = scene.world.handler(fail)
    if store == "memory":
        mails = scene.world.do(scene.world.queue, handler, store=MemoryQueue("mails"), **options)
    else:
        owner(scene.local, "truncate pgmq.q_mails, pgmq.q_mails_dead")
        mails = queue_processor(scene.protected(), "mails", handler, **options)
    scene.world.do(mails.start)
    for given in ({"card": BODY}, {BODY}, {"card": f"{BODY}\0"}, {"card": f"{BODY}\ud800"}):
        scene.attempt(mails.enqueue, given, dedupe_key=None)
    scene.attempt(mails.enqueue, BODY, delay="soon")
    eventually(lambda: mails.get_stats().dead)
    scene.attempt(mails.replay, "no such letter")
    letters = eventually(lambda: scene.world.do(mails.dead_letters))  # counted before it is sent
    assert BODY in str(letters[0].data)  # exempt, and wanted: but not in print
    scene.watch.see("repr", mails, *letters, scene.world.do(mails.metrics))
    scene.look(mails)
    scene.world.do(mails.stop)
    assert set() == scene.watch.leaks()


def test_a_queue_that_is_refused(scene: Scene) -> None:
    """A missing one, and a key without rights: errors of ours, made from those of PostgREST."""
    anon = scene.world.client(scene.local, scene.local.publishable_key)
    missing = queue_processor(scene.protected(), "no_such_queue", fail, **scene.told)
    foreign = queue_processor(anon, "mails", fail, **scene.told)
    for each in (missing, foreign):
        assert isinstance(scene.attempt(each.enqueue, {"card": BODY}), ResilienceError)
        assert isinstance(scene.attempt(each.start), ResilienceError)
    scene.look(missing, foreign)
    assert set() == scene.watch.leaks()


# --- listeners ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["retry", "skip"])
def test_handlers_of_a_listener_that_raise(scene: Scene, mode: Any) -> None:
    """Live and caught-up changes, with the token of a user."""
    listener = realtime_listener(
        scene.protected(),
        "projects",
        recovery=Recovery.by_column("updated_at", overlap=0.1),
        start_from="beginning",
        token=lambda: scene.watch.jwt,
        on_handler_error=mode,
        **scene.told,
    )
    scene.world.do(listener.on_change, "mine", scene.world.handler(fail))
    scene.world.do(listener.start)
    scene.attempt(listener.ready, SOON)
    eventually(lambda: listener.get_stats().handlers["mine"].failed)
    scene.local.realtime.abort()
    eventually(lambda: "listener.lost" in scene.watch.events.names)
    scene.watch.see("repr", listener)
    scene.look(listener)
    scene.world.do(listener.stop)
    assert set() == scene.watch.leaks()


def _refused_listeners() -> dict[str, tuple[str, dict[str, Any]]]:
    by_column = Recovery.by_column("updated_at")
    return {
        "a token that cannot be had": ("projects", {"token": fail, "recovery": by_column}),
        "a token that is none": ("projects", {"token": lambda: f"x.{SAID}", "recovery": by_column}),
        "a filter": ("projects", {"filter": "id=eq.many", "recovery": by_column}),
        "a view that cannot be read": (
            "amounts",
            {"recovery": by_column, "start_from": "beginning"},
        ),
    }


@pytest.mark.parametrize("name", _refused_listeners())
def test_a_listener_that_is_refused(scene: Scene, name: str) -> None:
    """By Realtime, by PostgREST with a value in its message, by the app's own function."""
    table, options = _refused_listeners()[name]
    listener = realtime_listener(scene.world.client(scene.local), table, **options, **scene.told)
    scene.world.do(listener.on_change, "mine", scene.world.handler(print))
    assert scene.attempt(listener.start) or eventually(
        lambda: (
            {"listener.refused", "listener.catch_up_failed"} & {*scene.watch.events.names}
            or listener.get_stats().reason
        )
    )
    assert isinstance(scene.attempt(listener.ready, 0.5), ListenerError | TimeoutError)
    scene.look(listener)
    scene.world.do(listener.stop)
    assert set() == scene.watch.leaks()


# --- verifications --------------------------------------------------------------------------------


def test_verifications_that_raise(scene: Scene) -> None:
    """Checks and fixes that raise, fixes that PostgREST refuses, problems that are left."""

    def takes_note(_: object) -> dict[str, Any]:
        return {"note": f"{ROW}-2"}  # which another row has

    has_amount = lambda row: row["amount"] is not None  # noqa: E731 - a rule's check
    rules = [
        [Rule("left", check=has_amount)],
        [Rule("checks", check=fail)],
        [Rule("fixes", check=has_amount, fix=fail)],
        [Rule("refused", check=has_amount, fix=takes_note)],
        [Rule("typed", check=has_amount, fix=lambda _: {"amount": ROW})],
        [Rule("unknown", check=has_amount, fix=lambda _: {ROW: 1})],
        [Rule("pushed", violates=lambda query: query.eq("amount", FILTER))],
        [Rule("guarded", check=has_amount, guard=("nowhere",), fix=takes_note)],
    ]
    client, reports = scene.protected(), 0
    parts = [
        server_side_verification(
            client, "orders", rules=each, grace=0.0, max_share=1.0, **scene.told
        )
        for each in rules
    ]
    parts.append(
        server_side_verification(
            client,
            "orders",
            data_validator=has_amount,
            fix_missing_data=scene.world.handler(fail),
            grace=0.0,
            throttle=scene.world.handler(lambda: 0.0),
            **scene.told,
        )
    )
    for part in parts:
        scene.attempt(part.run_once)
        report = part.get_stats().last_report
        if report is not None:
            reports += 1
            texts = (report, report.summary(), report.to_dict(), report.to_html())
            scene.watch.see("report", *texts, *report.problems)
    assert reports
    scene.look(*parts)
    assert set() == scene.watch.leaks()


# --- commands -------------------------------------------------------------------------------------

APP = """
from supabase import ClientOptions, create_client
import httpx, os
from supabase_resilience import *
session = httpx.Client()
options = ClientOptions(httpx_client=session, headers={"X-Payment": os.environ["PAYMENT"]})
client = create_client(os.environ["SUPABASE_URL"], os.environ["SUPABASE_KEY"], options)

def fail(*_):
    raise ValueError(os.environ["SAID"])

mails = queue_processor(client, "mails", fail, max_retries=0, on_error=fail)
missing = queue_processor(client, "no_such_queue", fail)
orders = server_side_verification(client, "orders", grace=0.0, max_share=1.0, rules=[
    Rule("amounts", check=lambda row: row["amount"] is not None, fix=fail),
    Rule("checks", check=fail)])
guarded = server_side_verification(client, "orders", rules=[
    Rule("guarded", check=bool, guard=("nowhere",), fix=fail)])
app = Resilience(protect(client), mails, orders)
"""
COMMANDS = {
    "work --until-empty APP:mails": 0,
    "work APP:missing": 1,
    "work APP:nothing": 1,
    "verify --once APP:orders": 1,
    "verify --once APP:guarded": 2,
    "verify --once APP:nothing": 2,
    "queue mails": 0,
    "queue mails --dead": 0,
    "queue mails --replay nothing": 1,
    "queue no_such_queue --dead": 1,
    "doctor APP:app": None,
    "doctor APP:app --dsn DSN": None,
    "doctor APP:app --dsn BADDSN --json": None,
    "doctor APP:app --dsn WORSEDSN": 2,
    "doctor APP:nothing": 2,
    "status APP:nothing": 1,
}


@pytest.fixture
def project(local, monkeypatch, tmp_path) -> Iterator[str]:
    """A module of an app whose project is in the environment; its name."""
    name = f"app_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(APP)
    monkeypatch.setenv("SAID", f"{SAID} {ROW}")
    monkeypatch.setenv("PAYMENT", PAYMENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SUPABASE_URL", local.url)
    monkeypatch.setenv("SUPABASE_KEY", local.secret_key)
    yield name
    sys.modules.pop(name).session.close()


def test_commands_that_fail(local: LocalSupabase, project: str, capfd) -> None:
    """Neither on stdout nor on stderr, whatever they end with."""
    watch = Watch(local)
    owner(local, "truncate pgmq.q_mails, pgmq.q_mails_dead")
    owner(local, f"""select pgmq.send('mails', '{{"card": "{BODY}"}}')""")
    dsn = local.dsn.replace("@", f":{PASSWORD}@") if "@" in local.dsn else local.dsn
    dsns = {
        "WORSEDSN": f"postgresql://app:{PASSWORD}@[127.0.0.1/postgres?{PASSWORD}",
        "BADDSN": f"postgresql://app:{PASSWORD}@127.0.0.1:1/postgres",
        "DSN": dsn,
    }
    logging.getLogger("supabase_resilience").addHandler(watch)
    try:
        for line, expected in COMMANDS.items():
            given = line.replace("APP", project)
            for name, value in dsns.items():
                given = given.replace(f" {name}", f" {value}")
            with contextlib.suppress(SystemExit):
                code = main(given.split())
                assert expected in {None, code}, (line, capfd.readouterr())
            out, error = capfd.readouterr()
            watch.seen.append((line, out + error))
    finally:
        logging.getLogger("supabase_resilience").removeHandler(watch)
    assert set() == watch.leaks()
