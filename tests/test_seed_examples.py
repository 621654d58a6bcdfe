"""The six examples of the original system, line by line in our names, on a local Supabase.

The original was TypeScript, with camelCase options in milliseconds and a client that does not fail
in Python's way; `ORIGINAL_TO_OURS` says what is called what here. The translations are plain on
purpose: README and `examples/` show what is better done otherwise here.
"""

import asyncio
import contextlib
import inspect
import io
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from supabase import AsyncClientOptions, ClientOptions, acreate_client, create_client

from supabase_resilience import (
    Alert,
    AsyncQueueProcessor,
    AsyncRealtimeListener,
    AsyncServerSideVerification,
    Change,
    CircuitBreaker,
    Job,
    QueueProcessor,
    RealtimeListener,
    Resilience,
    ServerSideVerification,
    queue_processor,
)
from supabase_resilience.__main__ import main
from supabase_resilience.events import AlertFired
from supabase_resilience.local import LocalSupabase
from supabase_resilience.testing import FakeClock, RecordingHook

SCHEMA = """
create table profiles (id int primary key, name text);
create table preferences (id int primary key references profiles, newsletter bool not null);
create table projects (id int primary key, name text);
create table orders (
  id int primary key, status text not null, completion_date timestamptz, payment_id text
);
create table payments (id text primary key, order_id int not null, amount int not null);
alter publication supabase_realtime add table projects, payments;
"""
QUEUE = "select supabase_resilience_queue_create('onboarding')"
SOON = 30.0  # far more than any of it takes: only a hang ends here
_PAUSE = threading.Event()

# What is called what: of which of ours, the original's name, ours, and what to know besides.
MS = "there milliseconds, here seconds"
ORIGINAL_TO_OURS: list[tuple[Callable[..., Any], str, str, str]] = [
    (CircuitBreaker, "failureThreshold", "failure_threshold", ""),
    (CircuitBreaker, "resetTimeout", "reset_timeout", MS),
    (CircuitBreaker, "onOpen", "on_open", ""),
    (CircuitBreaker, "onHalfOpen", "on_half_open", ""),
    (CircuitBreaker, "onClose", "on_close", ""),
    (CircuitBreaker.execute, "fallback", "fallback", "there of the breaker, here of each call"),
    (CircuitBreaker, "execute(fn)", "execute", ""),
    (CircuitBreaker, "getState()", "get_state", "`closed`, `open`, `half_open`"),
    (CircuitBreaker, "getStats()", "get_stats", ""),
    (QueueProcessor, "concurrency", "concurrency", ""),
    (QueueProcessor, "maxRetries", "max_retries", ""),
    (QueueProcessor, "retryDelay", "retry_delay", f"{MS}; it grows, fixed with `backoff=1.0`"),
    (QueueProcessor, "onError(error, item)", "on_error", "called with the error and a `Job`"),
    (QueueProcessor, "enqueue(item, priority)", "enqueue", ""),
    (QueueProcessor.enqueue, "priority", "priority", "higher first, as there"),
    (QueueProcessor, "getStats()", "get_stats", ""),
    (RealtimeListener, "onChange(name, handler)", "on_change", "called with a `Change`"),
    (RealtimeListener, "removeListener(name)", "remove_listener", ""),
    (RealtimeListener, "start()", "start", ""),
    (RealtimeListener, "stop()", "stop", ""),
    (RealtimeListener, "isActive()", "is_active", ""),
    (Change, "payload.new", "new", ""),
    (Change, "payload.old", "old", ""),
    (Change, "payload.eventType", "type", ""),
    (ServerSideVerification, "dataValidator(row)", "data_validator", "better: `rules=`"),
    (ServerSideVerification, "fixMissingData(id)", "fix_missing_data", "better: a rule's `fix=`"),
    (ServerSideVerification, "interval", "interval", MS),
    (ServerSideVerification, "batchSize", "batch_size", "to begin with: it follows the server"),
    (ServerSideVerification, "start()", "start", ""),
    (ServerSideVerification, "stop()", "stop", ""),
    (ServerSideVerification, "getStats()", "get_stats", "with `problem_count`"),
]


def test_every_name_of_the_original_has_one_here():
    """Each of ours is a parameter or a member of what it is said to belong to."""
    for owner, original, ours, _ in ORIGINAL_TO_OURS:
        known = {*inspect.signature(owner).parameters, *dir(owner)}
        assert ours in known, f"{original}: {owner.__qualname__} has no {ours}"


def as_markdown() -> str:
    """The table for README: `python tests/test_seed_examples.py` prints it."""
    rows = [
        f"| {owner.__qualname__} | `{original}` | `{ours}` | {note} |"
        for owner, original, ours, note in ORIGINAL_TO_OURS
    ]
    return "\n".join(["| of | there | here | |", "|---|---|---|---|", *rows])


# --- the stage ------------------------------------------------------------------------------------


class Stage:
    """A Supabase, a client for it as any app makes one, and what the database itself says."""

    def __init__(self, local: LocalSupabase) -> None:
        self.local = local
        self.session = httpx.Client(timeout=10.0)
        options = ClientOptions(httpx_client=self.session)
        self.supabase = create_client(local.url, local.secret_key, options)
        self.database = psycopg.connect(local.dsn, autocommit=True)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.database.execute(query).fetchall()

    def run(self, query: str) -> None:
        self.database.execute(query)

    def in_an_outage(self, table: str) -> contextlib.ExitStack:
        """Supabase answers 503 for this table until the end of the `with`."""
        fault = self.local.faults.add(match=f"/rest/v1/{table}", times=None, status=503)
        ended = contextlib.ExitStack()
        ended.callback(fault.remove)
        return ended

    def close(self) -> None:
        self.database.close()
        self.session.close()


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSupabase]:
    with contextlib.redirect_stdout(io.StringIO()) as migration:
        assert 0 == main(["sql", "queue"])
    with LocalSupabase(schema=[SCHEMA, migration.getvalue(), QUEUE]) as running:
        yield running


@pytest.fixture
def stage(local) -> Iterator[Stage]:
    made = Stage(local)
    local.faults.clear()
    made.run("truncate profiles, preferences, projects, orders, payments")
    yield made
    made.close()


def eventually(condition: Callable[[], Any], said: Callable[[], Any] = str) -> Any:
    """What `condition` returns once that is true; fails with what `said` returns."""
    end = time.monotonic() + SOON
    while not (result := condition()):
        assert time.monotonic() < end, f"it never came: {said()}"
        _PAUSE.wait(0.01)
    return result


async def eventually_async(condition: Callable[[], Any]) -> None:
    await asyncio.to_thread(eventually, condition)


# --- 1. a circuit breaker around saveUserProfile --------------------------------------------------


def test_save_user_profile(stage):
    """Saved and read back; in an outage the circuit opens and the fallback answers; then closes."""
    told: list[str] = []
    clock = FakeClock()
    breaker = CircuitBreaker(
        failure_threshold=3,
        reset_timeout=30.0,  # 30000 there
        on_open=lambda: told.append("open"),
        on_half_open=lambda: told.append("half open"),
        on_close=lambda: told.append("closed"),
        clock=clock,
    )

    def save_user_profile(user_id: int, name: str) -> Any:
        def save() -> Any:
            profiles = stage.supabase.table("profiles")
            profiles.upsert({"id": user_id, "name": name}).execute()
            profiles = stage.supabase.table("profiles")
            return profiles.select("*").eq("id", user_id).maybe_single().execute().data

        return breaker.execute(save, fallback=lambda refusal: {"id": user_id, "pending": True})

    assert {"id": 1, "name": "Ada"} == save_user_profile(1, "Ada")
    assert "closed" == breaker.get_state()
    with stage.in_an_outage("profiles"):
        for _ in range(3):
            with pytest.raises(Exception, match="503"):
                save_user_profile(1, "Grace")
        assert "open" == breaker.get_state()
        assert {"id": 1, "pending": True} == save_user_profile(1, "Grace")
    clock.advance(60.0)
    assert {"id": 1, "name": "Grace"} == save_user_profile(1, "Grace")
    assert "closed" == breaker.get_state()
    assert ["open", "half open", "closed"] == told
    assert [(1, "Grace")] == stage.rows("select id, name from profiles")


# --- 2. the onboarding queue behind an API route --------------------------------------------------


def in_memory(stage: Stage, process: Callable[[Any], None], **options: Any) -> QueueProcessor:
    """As the original: the jobs die with the process."""
    return QueueProcessor(process, **options)


def durable(stage: Stage, process: Callable[[Any], None], **options: Any) -> QueueProcessor:
    """The one line that makes it survive the process; the worker may be another one."""
    return queue_processor(stage.supabase, "onboarding", process, **options)


@pytest.mark.parametrize("make_queue", [in_memory, durable])
def test_onboarding(stage, make_queue):
    """The route only enqueues; the worker makes profile and preferences and sends the mail."""
    mails: list[int] = []
    errors: list[tuple[str, int]] = []

    def send_welcome_mail(user: dict[str, Any]) -> None:
        if user["id"] == 2 and not errors:
            raise ValueError("the mail was not accepted")
        mails.append(user["id"])

    def onboard_user(user: dict[str, Any]) -> None:
        profile = {"id": user["id"], "name": user["name"]}
        stage.supabase.table("profiles").upsert(profile).execute()
        preferences = {"id": user["id"], "newsletter": True}
        stage.supabase.table("preferences").upsert(preferences).execute()
        send_welcome_mail(user)

    def on_error(error: Exception, job: Job) -> None:
        errors.append((str(error), job.data["id"]))

    queue = make_queue(
        stage,
        onboard_user,
        concurrency=1,
        max_retries=3,
        retry_delay=0.02,  # 20 there
        backoff=1.0,
        on_error=on_error,
    )
    queue.pause()  # so that all have come when the first is taken
    app = FastAPI()

    @app.post("/api/onboarding", status_code=202)
    def route(user: dict[str, Any]) -> dict[str, Any]:
        return {"queued": queue.enqueue(user, 10 if user["plan"] == "pro" else 0)}

    with queue:
        users = [{"id": id_, "name": f"User {id_}", "plan": "free"} for id_ in (1, 2, 3)]
        for user in [*users, {"id": 4, "name": "User 4", "plan": "pro"}]:
            assert 202 == asyncio.run(post(app, "/api/onboarding", user))
        queue.resume()
        eventually(lambda: queue.get_stats().succeeded == 4, queue.get_stats)
    assert [4, 1] == mails[:2]
    assert [1, 2, 3, 4] == sorted(mails)
    assert [("the mail was not accepted", 2)] == errors
    stats = queue.get_stats()
    assert (4, 1, 1, 0) == (stats.enqueued, stats.failed, stats.retried, stats.dead)
    joined = "select p.id, newsletter from profiles p join preferences using (id) order by p.id"
    assert [(id_, True) for id_ in (1, 2, 3, 4)] == stage.rows(joined)


async def post(app: FastAPI, path: str, body: Any) -> int:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as web:
        return (await web.post(path, json=body)).status_code


# --- 3. the project list --------------------------------------------------------------------------


def test_project_list(stage):
    """What changes in the database changes in the list, until the handler is removed."""
    stage.run("insert into projects values (1, 'one'), (2, 'two')")
    projects = stage.supabase.table("projects").select("*").order("id").execute().data
    listener = RealtimeListener(stage.supabase, "projects", event="UPDATE")

    def update_project(change: Change) -> None:
        for place, project in enumerate(projects):
            if project["id"] == change.new["id"]:
                projects[place] = dict(change.new)

    seen: list[str] = []
    listener.on_change("project-list", update_project)
    listener.on_change("log", lambda change: seen.append(change.new["name"]))
    listener.start()
    listener.ready(SOON)
    assert listener.is_active()
    stage.run("update projects set name = 'changed' where id = 2")
    eventually(lambda: projects[1]["name"] == "changed" and seen, listener.get_stats)
    assert listener.remove_listener("project-list")
    stage.run("update projects set name = 'unheard' where id = 1")
    eventually(lambda: seen == ["changed", "unheard"], listener.get_stats)
    assert [{"id": 1, "name": "one"}, {"id": 2, "name": "changed"}] == projects
    listener.stop()
    assert not listener.is_active()


# --- 4. orders are verified -----------------------------------------------------------------------

BROKEN_ORDERS = """
insert into orders values
  (1, 'completed', null, 'pay_1'), (2, 'completed', now(), null), (3, 'open', null, null),
  (4, 'completed', '2024-05-01', 'pay_4')
"""


def is_complete(order: dict[str, Any]) -> bool:
    """What the original's `dataValidator` asks."""
    if order["status"] != "completed":
        return True
    return order["completion_date"] is not None and order["payment_id"] is not None


def repair_of(order: dict[str, Any]) -> dict[str, Any]:
    """What an order lacks."""
    return {
        "completion_date": order["completion_date"] or datetime.now(UTC).isoformat(),
        "payment_id": order["payment_id"] or f"pay_{order['id']}",
    }


def test_orders_are_verified(stage):
    """Completed orders get their date and payment, all others stay as they are."""
    stage.run(BROKEN_ORDERS)

    def fix_missing_data(order_id: int) -> None:
        orders = stage.supabase.table("orders").select("*").eq("id", order_id).execute()
        stage.supabase.table("orders").update(repair_of(orders.data[0])).eq(
            "id", order_id
        ).execute()

    verification = ServerSideVerification(
        stage.supabase,
        "orders",
        data_validator=is_complete,
        fix_missing_data=fix_missing_data,
        interval=3600.0,  # 3600000 there
        batch_size=100,
        grace=0.05,
    )
    verification.start()
    assert verification.is_active()
    eventually(lambda: verification.get_stats().passes, verification.get_stats)
    verification.stop()
    assert not verification.is_active()
    stats = verification.get_stats()
    assert (4, 2, 2, 0) == (stats.rows, stats.problem_count, stats.fixed, stats.open)
    assert REPAIRED == stage.rows(ORDERS)


ORDERS = "select id, completion_date is not null, payment_id from orders order by id"
REPAIRED = [(1, True, "pay_1"), (2, True, "pay_2"), (3, False, None), (4, True, "pay_4")]

# --- 5. a payment, with all four ------------------------------------------------------------------


def test_process_payment(stage):
    """What cannot be written is queued, written later and told of; the order is repaired."""
    stage.run("insert into orders values (7, 'completed', null, null)")
    breaker = CircuitBreaker("payments", failure_threshold=1)
    told: list[str] = []

    def write_payment(payment: dict[str, Any]) -> None:
        stage.supabase.table("payments").upsert(payment).execute()

    retries = QueueProcessor(write_payment, max_retries=5, retry_delay=0.02)
    listener = RealtimeListener(stage.supabase, "payments")
    listener.on_change("receipt", lambda change: told.append(change.new["id"]))

    def complete_order(order_id: int) -> None:
        paid = stage.supabase.table("payments").select("*").eq("order_id", order_id).execute()
        order = {"completion_date": "2024-05-01", "payment_id": paid.data[0]["id"]}
        stage.supabase.table("orders").update(order).eq("id", order_id).execute()

    verification = ServerSideVerification(
        stage.supabase,
        "orders",
        data_validator=is_complete,
        fix_missing_data=complete_order,
        grace=0.05,
    )

    def process_payment(order_id: int, amount: int) -> str:
        payment = {"id": f"pay_{order_id}", "order_id": order_id, "amount": amount}
        try:
            breaker.execute(write_payment, payment)
        except Exception:  # noqa: BLE001 - the original's: whatever it is, try again later
            retries.enqueue(payment, 10)
            return "queued"
        return "paid"

    with Resilience(breaker, retries, listener):
        listener.ready(SOON)
        with stage.in_an_outage("payments"):
            assert "queued" == process_payment(7, 100)  # the write fails, and opens the circuit
            assert "open" == breaker.get_state()
            assert "queued" == process_payment(8, 200)  # refused at once
        eventually(lambda: retries.get_stats().succeeded == 2, retries.get_stats)
        eventually(lambda: {"pay_7", "pay_8"} <= set(told), listener.get_stats)
        assert 1 == verification.run_once().fixed
    assert 0 == retries.get_stats().dead
    paid = stage.rows("select id, order_id, amount from payments order by id")
    assert [("pay_7", 7, 100), ("pay_8", 8, 200)] == paid
    assert [(7, True, "pay_7")] == stage.rows(ORDERS)


# --- 6. statistics of all four --------------------------------------------------------------------


def test_statistics(stage):
    """A dashboard reads numbers of all four, and more than 100 problems raise an alert."""
    stage.run("insert into orders select i, 'completed', null, 'p' from generate_series(1, 101) i")
    breaker = CircuitBreaker("payments")
    queue = QueueProcessor(None)
    listener = RealtimeListener(stage.supabase, "projects")
    verification = ServerSideVerification(
        stage.supabase, "orders", data_validator=is_complete, grace=0.0
    )
    breaker.execute(stage.supabase.table("orders").select("id").limit(1).execute)
    queue.enqueue({"id": 1})
    verification.run_once()

    def dashboard() -> dict[str, Any]:
        return {
            "circuit": breaker.get_state(),
            "failures": breaker.get_stats().failures,
            "waiting": queue.get_stats().waiting,
            "listening": listener.is_active(),
            "problems": verification.get_stats().problem_count,
        }

    shown = {"circuit": "closed", "failures": 0, "waiting": 1, "listening": False, "problems": 101}
    assert shown == dashboard()
    alerts = RecordingHook()
    many = Alert("orders", when=lambda stats: stats["verification:orders"].problem_count > 100)
    with Resilience(breaker, queue, listener, verification, alerts=[many], on_event=alerts) as app:
        fired = eventually(lambda: [e for e in alerts.events if isinstance(e, AlertFired)])
        assert {"breaker:payments", "queue:memory", "listener:projects"} < set(app.get_stats())
    assert ["orders"] == [event.alert for event in fired]


# --- on an event loop -----------------------------------------------------------------------------


def test_process_payment_async(stage):
    """The fifth in async code: what does I/O is awaited, handlers may be async, nothing else."""
    stage.run("insert into orders values (7, 'completed', null, null)")
    asyncio.run(process_payments_async(stage.local.url, stage.local.secret_key, stage.in_an_outage))
    assert [("pay_7", 7, 100)] == stage.rows("select id, order_id, amount from payments")
    assert [(7, True, "pay_7")] == stage.rows(ORDERS)


async def process_payments_async(
    url: str, key: str, in_an_outage: Callable[[str], contextlib.ExitStack]
) -> None:
    async with httpx.AsyncClient(timeout=10.0) as session:
        supabase = await acreate_client(url, key, AsyncClientOptions(httpx_client=session))
        breaker = CircuitBreaker("payments", failure_threshold=1)
        told: list[str] = []

        async def write_payment(payment: dict[str, Any]) -> None:
            await supabase.table("payments").upsert(payment).execute()

        async def complete_order(order_id: int) -> None:
            paid = supabase.table("payments").select("*").eq("order_id", order_id)
            payment_id = (await paid.execute()).data[0]["id"]
            order = {"completion_date": "2024-05-01", "payment_id": payment_id}
            await supabase.table("orders").update(order).eq("id", order_id).execute()

        async def receipt(change: Change) -> None:
            told.append(change.new["id"])

        retries = AsyncQueueProcessor(write_payment, max_retries=5, retry_delay=0.02)
        listener = AsyncRealtimeListener(supabase, "payments")
        listener.on_change("receipt", receipt)
        verification = AsyncServerSideVerification(
            supabase,
            "orders",
            data_validator=is_complete,
            fix_missing_data=complete_order,
            grace=0.05,
        )

        async def process_payment(order_id: int, amount: int) -> str:
            payment = {"id": f"pay_{order_id}", "order_id": order_id, "amount": amount}
            writing: Awaitable[None] = breaker.execute(write_payment, payment)
            try:
                await writing
            except Exception:  # noqa: BLE001 - the original's: whatever it is, try again later
                await retries.enqueue(payment, 10)
                return "queued"
            return "paid"

        async with retries, listener:
            await listener.ready(SOON)
            with in_an_outage("payments"):
                assert "queued" == await process_payment(7, 100)
                assert "open" == breaker.get_state()
            await eventually_async(lambda: retries.get_stats().succeeded == 1)
            await eventually_async(lambda: "pay_7" in told)
            assert 1 == (await verification.run_once()).fixed


if __name__ == "__main__":
    print(as_markdown())  # noqa: T201 - it is asked for
