"""Each alert rule in a real fault: quiet before, firing while something is broken, quiet after.

Real parts run on a `LocalSupabase` that is broken and mended, and the registry of their
`PrometheusHook` is scraped before, twice during, and after. Prometheus (promtool) judges these
scrapes on a time line of hours: what counters grew between the two scrapes of the fault they go on
to grow each minute, what stood still between them stands still, and ages go on.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry

from supabase_resilience import (
    Alert,
    CircuitBreaker,
    CircuitBreakers,
    Hooks,
    Recovery,
    Resilience,
    RetryConfig,
    Rule,
    protect,
    queue_processor,
    realtime_listener,
    server_side_verification,
)
from supabase_resilience._clock import wall
from supabase_resilience.hooks._rules import alert_rules
from supabase_resilience.hooks.prometheus import PrometheusHook
from supabase_resilience.listener import _recoverer
from supabase_resilience.local import LocalSupabase
from supabase_resilience.testing import RecordingHook

from .listener.worlds import SOON, SyncWorld, eventually, sql

RULES = Path(__file__).parents[1] / "deploy" / "prometheus-rules.yml"
PROMTOOL = shutil.which("promtool")
# Rules that no fault of this file makes fire, each with the reason.
EXCUSED: dict[str, str] = {}

SCHEMA = """
create table orders (id int primary key, note text, updated_at timestamptz default now());
create table projects (id int primary key, updated_at timestamptz default clock_timestamp());
alter publication supabase_realtime add table projects;
insert into orders select i, 'fine' from generate_series(1, 120) i;
insert into projects values (1);
select pgmq.create('mails'); select pgmq.create('mails_dead');
create function report() returns int language sql as 'select 1';
"""
ONCE = RetryConfig(attempts=1)
SOON_AGAIN = 0.05
SHORT, LONG = 20, 200  # minutes of a fault
SAME = 0.001  # seconds: two readings of two clocks are never equal
BEFORE, AFTER = 30, 7 * 60 + 30

# --- what a story is told with --------------------------------------------------------------------


class Stage:
    """The stack, what breaks it, and the parts of one story, all told to one hook."""

    def __init__(self, local: LocalSupabase, patch: pytest.MonkeyPatch) -> None:
        self.local = local
        self.patch = patch
        self.world = SyncWorld()
        self.recorded = RecordingHook()
        self.registry = CollectorRegistry()
        self.metrics = PrometheusHook(self.registry)
        self.told = {"on_event": Hooks(self.metrics, self.recorded)}
        self.scrapes: list[Scrape] = []
        self._app = Resilience()
        self._queues: dict[str, Any] = {}

    def run(self, *parts: Any, alerts: tuple[Alert, ...] = ()) -> Resilience:
        """Start the parts as one app."""
        self._app = Resilience(*parts, alerts=alerts, check_every=SOON_AGAIN, **self.told)
        self._queues = {
            name: part for name, part in self._app.parts.items() if name.startswith("queue:")
        }
        self._app.start()
        return self._app

    def scrape(self) -> None:
        """What Prometheus would get now."""
        self.metrics.observe(self._app.get_stats())
        for name, queue in self._queues.items():
            if queue.get_stats().is_reachable:
                self.metrics.observe({name: queue.metrics()})
        self.scrapes.append(Scrape.of(self.registry))

    def times(self) -> Iterator[int]:
        """The two scrapes of a fault, some intervals of the parts apart."""
        yield 1
        ends_at = self.scrapes[-1].at + 6 * SOON_AGAIN
        eventually(lambda: wall() >= ends_at)
        yield 2

    def protected(self, breaker: CircuitBreaker | CircuitBreakers, **options: Any) -> Any:
        options = {"retry": ONCE, **options}
        client = self.world.client(self.local, options.pop("key", None))
        return protect(client, breaker=breaker, **options)

    def breaker(self, **options: Any) -> CircuitBreaker:
        options = {"failure_threshold": 1, "reset_timeout": SOON_AGAIN, **options, **self.told}
        return CircuitBreaker("db", **options)

    def verification(self, **options: Any) -> Any:
        options = {"interval": SOON_AGAIN, "grace": 0.0, "batch_size": 1000, **options}
        client = options.pop("client", None) or self.world.client(self.local)
        return server_side_verification(client, "orders", **options, **self.told)

    def listener(self, **options: Any) -> Any:
        options = {"recovery": Recovery.by_column("updated_at", overlap=0.1), **options}
        client = self.world.client(self.local)
        made = realtime_listener(client, "projects", **options, **self.told)
        made.on_change("mine", lambda _: None)
        return made

    def sql(self, query: str) -> None:
        with psycopg.connect(self.local.admin_dsn, autocommit=True) as owner:
            owner.execute(query.encode())

    def write(self) -> None:
        """Change the row that the listener follows."""
        self.sql("update projects set updated_at = clock_timestamp()")

    def close(self) -> None:
        self.local.faults.clear()
        self.local.postgres.start()
        self.local.realtime.start()
        self.local.realtime.lose_changes(False)
        self._app.stop(0.0)
        self.world.close()


Steps = Iterator[None]
Story = Callable[[Stage], Steps]
Firing = Mapping[int, set[str]]


@dataclass
class Told:
    """A story yields before, twice during, and after its fault; what fires after how long."""

    story: Story
    firing: Firing


STORIES: dict[str, Told] = {}


def fires(*names: str, later: tuple[str, ...] = ()) -> Callable[[Story], Story]:
    """All that fires after 20 minutes, and what does besides after hours of the same."""
    firing = {SHORT: {*names}} | ({LONG: {*names, *later}} if later else {})

    def register(story: Story) -> Story:
        STORIES[story.__name__] = Told(story, firing)
        return story

    return register


def ask(client: Any, table: str = "orders") -> bool:
    """Whether a query works."""
    try:
        client.table(table).select("id").limit(1).execute()
    except Exception:  # noqa: BLE001 - it is broken, or refused
        return False
    return True


# --- circuits -------------------------------------------------------------------------------------


@fires("SupabaseCircuitOpen breaker=db")
def forced_open(stage: Stage) -> Steps:
    """Somebody has opened the circuit by hand, and forgotten it."""
    breaker = stage.breaker()
    client = stage.protected(breaker)
    stage.run(client)
    assert ask(client)
    yield
    breaker.force_open()
    for _ in range(2):
        assert not ask(client)
        yield
    breaker.reset()
    assert ask(client)
    yield


@fires("SupabaseBlocked breaker=db", "SupabaseCircuitOpen breaker=db")
def paused_project(stage: Stage) -> Steps:
    """The project is paused (HTTP status 540), and restored."""
    breaker = stage.breaker(max_reset_timeout=SOON_AGAIN)
    client = stage.protected(breaker)
    stage.run(client)
    assert ask(client)
    yield
    stage.local.faults.add(status=540, times=None)
    for _ in range(2):
        eventually(lambda: not ask(client) and "blocked" == breaker.get_stats().cause)
        yield
    stage.local.faults.clear()
    eventually(lambda: ask(client))
    yield


@fires("SupabaseTableCircuitOpen breaker=db")
def slow_function(stage: Stage) -> Steps:
    """One function runs into the statement timeout, until somebody makes it quick again."""
    options = {"failure_threshold": 1, "reset_timeout": SOON_AGAIN, **stage.told}
    breakers = CircuitBreakers(name="db", **options)
    client = stage.protected(breakers, key=stage.local.publishable_key)
    stage.run(client)

    def call() -> bool:
        try:
            client.rpc("report").execute()
        except Exception:  # noqa: BLE001 - it is too slow, or refused
            return False
        return True

    assert call()
    yield
    stage.sql(
        """
        alter role anon set statement_timeout = '50ms';
        create or replace function report() returns int language sql
          as 'select 1 from pg_sleep(30)';
        """
    )
    stage.local.rest.reload()
    for _ in range(2):
        eventually(lambda: not call() and breakers.get_stats().by_key)
        yield
    stage.sql(
        """
        alter role anon reset statement_timeout;
        create or replace function report() returns int language sql as 'select 1';
        """
    )
    stage.local.rest.reload()
    eventually(call)
    yield


@fires("SupabaseRetryShareHigh breaker=db")
def every_second_call_fails(stage: Stage) -> Steps:
    """A gateway that fails each call once; nobody notices but by the time that calls take."""
    breaker = stage.breaker(failure_threshold=100, retry_budget=None)
    client = stage.protected(breaker, retry=RetryConfig(wait_initial=0.0))
    stage.run(client)
    assert ask(client)
    yield
    for _ in range(2):
        for _ in range(3):
            stage.local.faults.add(status=503)
            assert ask(client)
        yield
    assert ask(client)
    yield


# --- all at once ----------------------------------------------------------------------------------


@fires(
    "SupabaseCircuitOpen breaker=db",
    "SupabaseQueueUnreachable queue=mails",
    "SupabaseCatchUpOverdue listener=projects",
    later=("SupabaseVerificationOverdue verification=orders",),
)
def database_down(stage: Stage) -> Steps:
    """PostgreSQL is stopped, and started again."""
    breaker = stage.breaker()
    client = stage.protected(breaker)
    app = stage.run(
        client,
        queue_processor(client, "mails", print, **stage.told),
        stage.listener(catch_up_interval=SOON_AGAIN),
        stage.verification(rules=[Rule("noted", check=bool)], client=client),
    )
    eventually(lambda: "ok" == app.health().status and ask(client))
    eventually(lambda: app.get_stats()["verification:orders"].passes)
    eventually(lambda: app.get_stats()["listener:projects"].catch_ups)
    yield
    stage.local.postgres.stop()
    for _ in stage.times():
        assert not ask(client)
        eventually(lambda: ["degraded"] * 4 == [part.status for part in app.health().parts])
        yield
    stage.local.postgres.start()
    passes = app.get_stats()["verification:orders"].passes
    eventually(lambda: ask(client) and "ok" == app.health().status)
    eventually(lambda: app.get_stats()["verification:orders"].passes > passes)
    yield


# --- queues ---------------------------------------------------------------------------------------


@fires("SupabaseDeadLetters queue=mails")
def handler_raises(stage: Stage) -> Steps:
    """A handler that cannot take what it is given, until that ends."""

    def handle(data: str) -> None:
        if data == "bad":
            raise ValueError(data)

    mails = queue_processor(
        stage.world.client(stage.local), "mails", handle, max_retries=0, **stage.told
    )
    stage.run(mails)
    yield from _jobs(mails, "bad")


@fires("SupabaseJobsWait queue=mails")
def too_few_workers(stage: Stage) -> Steps:
    """Jobs that had waited for ten minutes when their turn came; then there is no backlog."""
    mails = queue_processor(stage.world.client(stage.local), "mails", print, **stage.told)
    stage.run(mails)

    def wait_long() -> None:
        stage.sql(
            """
            insert into pgmq.q_mails (vt, enqueued_at, message)
              select now(), now() - interval '10 min', '"late"' from generate_series(1, 3)
            """
        )

    yield from _jobs(mails, "fine", wait_long)


def _jobs(mails: Any, data: str, more: Callable[[], object] = list) -> Steps:
    """A good job before, other jobs in the fault, a good one after."""

    def done() -> int:
        stats = mails.get_stats()
        return stats.succeeded + stats.dead

    mails.enqueue("fine")
    eventually(done)
    yield
    for _ in range(2):
        before = done()
        mails.enqueue(data)
        more()
        eventually(lambda before=before: mails.metrics().ready == 0 and done() > before)
        eventually(lambda: mails.get_stats().in_flight == 0)
        yield
    before = done()
    mails.enqueue("fine")
    eventually(lambda: done() > before)
    yield


@fires("SupabaseQueueOld queue=mails")
def workers_paused(stage: Stage) -> Steps:
    """A queue that was paused by hand, and resumed."""
    mails = queue_processor(stage.world.client(stage.local), "mails", print, **stage.told)
    stage.run(mails)
    yield
    mails.pause()
    mails.enqueue("waits")
    for _ in range(2):
        before = stage.scrapes[-1].values.get(OLDEST) or 0.0
        eventually(lambda before=before: (mails.metrics().oldest_age or 0.0) > before)
        yield
    mails.resume()
    eventually(lambda: mails.get_stats().succeeded)
    yield


# --- listeners ------------------------------------------------------------------------------------


@fires("SupabaseListenerNotLive listener=projects")
def realtime_down(stage: Stage) -> Steps:
    """Realtime is stopped; what was missed is found by reading, but later."""
    listener = stage.listener(catch_up_interval=SOON_AGAIN)
    stage.run(listener)
    listener.ready(SOON)
    yield
    stage.local.realtime.kill()
    for _ in stage.times():
        eventually(lambda: listener.get_stats().state != "live")
        yield
    stage.local.realtime.start()
    listener.ready(SOON)
    eventually(lambda: listener.get_stats().state == "live")
    yield


@fires("SupabaseListenerRefused listener=projects")
def unpublished(stage: Stage) -> Steps:
    """The table falls out of the publication, and somebody puts it back and restarts the app."""
    listener = stage.listener(catch_up_interval=SOON_AGAIN)
    stage.run(listener)
    listener.ready(SOON)
    yield
    stage.sql("alter publication supabase_realtime drop table projects")
    stage.local.realtime.abort()
    for _ in stage.times():
        eventually(lambda: listener.get_stats().state == "refused")
        yield
    stage.sql("alter publication supabase_realtime add table projects")
    listener.stop()
    listener.start()
    listener.ready(SOON)
    yield


@fires("SupabaseRealtimeLosesChanges listener=projects")
def deaf_connection(stage: Stage) -> Steps:
    """Realtime tells of no change, on a connection that looks healthy."""
    stage.patch.setattr(_recoverer, "_LAG", 1.0)  # of 5 seconds
    listener = stage.listener(catch_up_interval=SOON_AGAIN)
    stage.run(listener)

    def settle() -> None:
        # So many that whatever still counts as late before them is lost after them.
        before = listener.get_stats().catch_ups
        eventually(lambda: listener.get_stats().catch_ups > before + 30)
        listener.ready(SOON)

    settle()
    yield
    stage.local.realtime.lose_changes()
    for _ in range(2):
        before = listener.get_stats()
        eventually(lambda before=before: stage.write() or listener.get_stats().lost > before.lost)
        # It makes its connection anew, in case that was the reason.
        eventually(lambda before=before: listener.get_stats().connects > before.connects)
        listener.ready(SOON)
        yield
    stage.local.realtime.catch_up()
    stage.local.realtime.lose_changes(False)
    settle()
    yield


@fires("SupabaseChangesSkipped handler=careless,listener=projects")
def handler_skips(stage: Stage) -> Steps:
    """A handler that raises, of a listener that goes on without it."""
    listener = stage.listener(on_handler_error="skip", catch_up_interval=SOON_AGAIN)
    broken: list[bool] = []

    def handle(_: object) -> None:
        if broken:
            raise ValueError("broken")

    listener.on_change("careless", handle)
    stage.run(listener)
    listener.ready(SOON)
    yield
    broken.append(True)
    for _ in stage.times():
        before = listener.get_stats().handlers["careless"].skipped
        stage.write()
        eventually(lambda before=before: listener.get_stats().handlers["careless"].skipped > before)
        yield
    broken.clear()
    yield


# --- verifications --------------------------------------------------------------------------------


def a_pass(verification: Any) -> Any:
    """The statistics after a whole pass that begins now."""
    before = verification.get_stats().passes
    return eventually(
        lambda: (stats := verification.get_stats()).passes > before + 1 and stats,
        verification.get_stats,
    )


def is_noted(row: Mapping[str, Any]) -> bool:
    return row["note"] is not None


@fires(later=("SupabaseVerificationNeverDone verification=orders",))
def never_verified(stage: Stage) -> Steps:
    """The table cannot be read from the start."""
    stage.local.faults.add(match="/orders", status=503, times=None)
    orders = stage.verification(rules=[Rule("noted", check=is_noted)])
    stage.run(orders)
    for _ in range(3):
        eventually(lambda: orders.get_stats().reason)
        yield
    stage.local.faults.clear()
    a_pass(orders)
    yield


@fires(
    "SupabaseViolations rule=noted,verification=orders",
    "SupabaseAppAlert alert=problems",
)
def rows_that_cannot_be_fixed(stage: Stage) -> Steps:
    """More than 100 rows break a rule that nobody has a fix for; then a person repairs them.

    The app's own alert on what is open fires once, and is over once. One on all that was ever found
    fires once, too, and is not over, as what was found stays found; here only the app hears of it.
    """
    orders = stage.verification(rules=[Rule("noted", check=is_noted)])
    ever = RecordingHook()
    alerts = (
        Alert("problems", when=lambda stats: stats["verification:orders"].open > 100),
        Alert(
            "ever",
            when=lambda stats: stats["verification:orders"].problem_count > 100,
            tell=ever,
        ),
    )
    app = stage.run(orders, alerts=alerts)
    assert 0 == a_pass(orders).open
    yield
    stage.sql("update orders set note = null")
    for _ in range(2):
        assert 120 == a_pass(orders).open
        eventually(lambda: ("problems", "ever") == app.alerts_firing())
        yield
    stage.sql("update orders set note = 'fine'")
    assert 0 == a_pass(orders).open
    eventually(lambda: ("ever",) == app.alerts_firing())
    a_pass(orders)
    yield
    assert ["alert.fired"] == ever.names
    told = [name for name in stage.recorded.names if name.startswith("alert.")]
    assert ["alert.fired", "alert.cleared"] == told


@fires(
    "SupabaseFixingAborted verification=orders", "SupabaseViolations rule=noted,verification=orders"
)
def too_many_to_fix(stage: Stage) -> Steps:
    """More rows are broken than may be fixed in a pass; then a person repairs them."""
    rule = Rule("noted", check=is_noted, fix=lambda _: {"note": "fixed"})
    orders = stage.verification(rules=[rule], max_fixes=0)
    stage.run(orders)
    a_pass(orders)
    yield
    stage.sql("update orders set note = null where id <= 3")
    for _ in range(2):
        assert a_pass(orders).last_report.aborted
        yield
    stage.sql("update orders set note = 'fine'")
    assert 0 == a_pass(orders).open
    yield


@fires(
    "SupabaseFixesFight verification=orders", "SupabaseViolations rule=noted,verification=orders"
)
def app_changes_what_is_fixed(stage: Stage) -> Steps:
    """Whenever a row is about to be fixed, the app writes it again, as broken as before."""

    def fix(row: Mapping[str, Any]) -> dict[str, Any]:
        stage.sql(f"update orders set updated_at = clock_timestamp() where id = {row['id']}")
        return {"note": "fixed"}

    orders = stage.verification(rules=[Rule("noted", check=is_noted, fix=fix)])
    stage.run(orders)
    a_pass(orders)
    yield
    stage.sql("update orders set note = null where id <= 3")
    for _ in range(2):
        before = orders.get_stats().cas_lost
        eventually(lambda before=before: a_pass(orders).cas_lost > before)
        assert orders.get_stats().open
        yield
    stage.sql("update orders set note = 'fine'")
    assert 0 == a_pass(orders).open
    yield


# --- the time line --------------------------------------------------------------------------------


@dataclass
class Scrape:
    """The values of all series at one moment."""

    at: float
    values: dict[str, float] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, registry: CollectorRegistry) -> "Scrape":
        made = cls(wall())
        for family in registry.collect():
            for sample in family.samples:
                labels = {"job": "app", **sample.labels}
                inside = ",".join(f"{key}={json.dumps(value)}" for key, value in labels.items())
                series = f"{sample.name}{{{inside}}}"
                made.values[series] = sample.value
                made.kinds[series] = _kind(sample.name, family.type)
        return made


def _kind(name: str, kind: str) -> str:
    if name.endswith("_timestamp_seconds"):
        return "moment"
    if name.endswith("_created"):
        return "gauge"
    return "age" if name.endswith("_age_seconds") else "gauge" if kind == "gauge" else "counter"


OLDEST = 'supabase_resilience_queue_oldest_age_seconds{job="app",queue="mails"}'


def timeline(series: str, scrapes: list[Scrape], minutes: int) -> str:
    """The values of a series, one a minute, in the notation of promtool."""
    before, first, second, after = [scrape.values.get(series) for scrape in scrapes]
    kind = next(each.kinds[series] for each in scrapes if series in each.kinds)
    fault = range(minutes)
    if kind == "moment":
        return _moments(series, scrapes, minutes)
    if kind == "counter":
        growth = (second or 0.0) - (first or 0.0)
        during = [None if first is None else first + growth * minute for minute in fault]
        last = during[-1]
        end = after if second is None or last is None else last + (after or 0.0) - second
    elif kind == "age" and (second or 0.0) > (first or 0.0):
        during, end = [(second or 0.0) + 60.0 * minute for minute in fault], after
    else:
        during, end = [(first, second)[minute % 2] for minute in fault], after
    return _notation([before] * BEFORE + during + [end] * AFTER)


def _moments(series: str, scrapes: list[Scrape], minutes: int) -> str:
    """When something happened last: as long ago as in the scrape, or at a time that stands."""
    ages = [
        None if (value := scrape.values.get(series)) is None else scrape.at - value
        for scrape in scrapes
    ]
    moved = (scrapes[2].values.get(series) or 0.0) - (scrapes[1].values.get(series) or 0.0)
    stands = moved < SAME
    phases = [(0, BEFORE, ages[0])]
    phases += [(BEFORE, BEFORE + minutes, ages[2])]
    phases += [(BEFORE + minutes, BEFORE + minutes + AFTER, ages[3])]
    values: list[float | None] = []
    for begin, end, age in phases:
        is_fixed = stands and begin == BEFORE
        for minute in range(begin, end):
            at = begin if is_fixed else minute
            values.append(None if age is None else at * 60.0 - age)
    return _notation(values)


def _notation(values: list[float | None]) -> str:
    return " ".join("_" if value is None else repr(value) for value in values)


LABELS = "alertname, alert, breaker, handler, listener, queue, rule, verification"


def judgement(minute: int, expected: set[str]) -> dict[str, Any]:
    """What promtool has to find at a minute."""
    samples = []
    for each in expected:
        name, _, labels = each.partition(" ")
        pairs = [f"alertname={json.dumps(name)}"]
        pairs += ['{}="{}"'.format(*pair.split("=")) for pair in labels.split(",")]
        samples.append({"labels": "{" + ", ".join(pairs) + "}", "value": 1})
    firing = f'count by ({LABELS}) (ALERTS{{alertstate="firing"}})'
    return {"eval_time": f"{minute}m", "expr": firing, "exp_samples": samples}


def judge(scrapes: list[Scrape], firing: Firing, file: Path) -> str:
    """What promtool says: nothing, if exactly these alerts fire in the fault, and none else."""
    minutes = max(firing)
    names = sorted({series for scrape in scrapes for series in scrape.values})
    quiet = (BEFORE - 1, BEFORE + minutes + AFTER - 1)
    test = {
        "interval": "1m",
        "input_series": [
            {"series": name, "values": timeline(name, scrapes, minutes)} for name in names
        ],
        "promql_expr_test": [
            *(judgement(minute, set()) for minute in quiet),
            *(judgement(BEFORE + minute - 1, expected) for minute, expected in firing.items()),
        ],
    }
    file.write_text(json.dumps({"rule_files": [str(RULES)], "tests": [test]}))  # YAML, too
    done = subprocess.run(
        [str(PROMTOOL), "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    said = re.findall(r"(?:time: |exp: |got: ).*", done.stdout + done.stderr)
    return "" if done.returncode == 0 else "\n".join(said)


# --- the tests ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSupabase]:
    """One stack for this file."""
    with LocalSupabase(schema=[SCHEMA, sql("queue")]) as stack:
        yield stack


@pytest.fixture
def stage(local: LocalSupabase, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """For one story; whatever it has broken is mended afterwards."""
    made = Stage(local, monkeypatch)
    yield made
    made.close()


def test_every_rule_is_in_a_story_or_excused() -> None:
    """None is shipped that no fault makes fire, without a reason."""
    told = {
        each.split(" ")[0] for told in STORIES.values() for each in told.firing[max(told.firing)]
    }
    rules = {
        rule.name for rule in alert_rules(catch_up_interval=60.0, verification_interval=3600.0)
    }
    assert rules == told | set(EXCUSED)
    assert set() == told & set(EXCUSED)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not here: install Prometheus")
@pytest.mark.parametrize("name", STORIES)
def test_exactly_these_alerts_fire_in_the_fault(stage: Stage, name: str, tmp_path: Path) -> None:
    """None before it, these during it, and none when it is over."""
    told = STORIES[name]
    for _ in told.story(stage):
        stage.scrape()
    assert 4 == len(stage.scrapes)
    assert "" == judge(stage.scrapes, told.firing, tmp_path / "story.yml")
