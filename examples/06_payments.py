"""Take payments, charge nobody twice and lose none while everything below fails: a whole app.

Run it: `python examples/06_payments.py`. It needs no account: all that it breaks, it starts itself.
"""

import json
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import httpx
from supabase import create_client

from supabase_resilience import (
    Alert,
    Change,
    CircuitBreaker,
    Event,
    Hooks,
    QueueProcessor,
    Recovery,
    Resilience,
    Rule,
    classify,
    current_job,
    deadline,
    idempotent,
    log_event,
    protect,
    queue_processor,
    realtime_listener,
    server_side_verification,
)
from supabase_resilience.local import LocalSupabase

SCHEMA = """
create table orders (id int primary key, amount int, status text default 'open', payment_id text);
-- One payment for an order, however often somebody asks for it: their key is the same.
create table payments (id int primary key, amount int, status text default 'new', payment_id text);
select pgmq.create('charges'), pgmq.create('charges_dead');
-- The payment and the job that charges it, in one transaction: there is never one of them alone.
create function request_payment(id int, amount int) returns void language sql as $$
  with new as (insert into payments values ($1, $2) on conflict do nothing returning *)
  select pgmq.send('charges', jsonb_build_object('id', new.id, 'amount', new.amount)) from new;
$$;
revoke execute on function request_payment from public, anon, authenticated;
"""

# --- the app --------------------------------------------------------------------------------------


class Shop:
    """What a process makes once, and what its code does with it."""

    def __init__(self, url: str, key: str, services: str, alerts: list[Event]) -> None:
        self.services = httpx.Client(base_url=services, timeout=2.0)  # the provider, and mail
        self.provider = CircuitBreaker("provider", failure_threshold=1, reset_timeout=0.5)
        self.late = QueueProcessor(self.request)  # in memory: it dies with the process
        breaker = CircuitBreaker(reset_timeout=0.5, on_close=self.late.resume)  # usually 30 s
        self.supabase = supabase = protect(create_client(url, key), breaker=breaker)
        self.charges = queue_processor(supabase, "charges", self.charge, concurrency=4)
        self.payments = realtime_listener(supabase, "payments", recovery=Recovery.versioned())
        self.payments.on_change("customers", self.tell_customer)
        rules = [
            Rule(
                "paid orders are completed",
                violates=lambda q: q.eq("status", "open").not_.is_("payment_id", "null"),
                fix=lambda _: {"status": "completed"},
            ),
            Rule(
                "completed orders are paid",
                violates=lambda q: q.eq("status", "completed").is_("payment_id", "null"),
                fix=self.bill,
            ),
        ]  # each hour, and 5 s later for what is broken, are more usual than 2 s and 0.5 s
        self.orders = server_side_verification(
            supabase, "orders", rules=rules, interval=2.0, grace=0.5
        )
        watched = [  # problems are counted since the start: that alert stays until the next deploy
            Alert("orders", when=lambda s: s["verification:orders"].problem_count > 100),
            Alert("charges stand still", when=lambda s: s["queue:charges"].reason, hold=1.5),
        ]
        parts = (supabase, self.provider, self.late, self.charges, self.payments, self.orders)
        page = Hooks(log_event, alerts.append)  # and whoever is on duty
        self.app = Resilience(*parts, alerts=watched, on_event=page, check_every=0.2)

    def process_payment(self, order_id: int, amount: int) -> str:
        """What the customer is told at once; never that it failed because something was down."""
        payment = {"id": order_id, "amount": amount}
        try:
            with deadline(2.0):  # nobody waits longer
                self.request(payment)
        except Exception as error:
            if not classify(error).is_outage:  # our own mistake: a fallback would only hide it
                raise
            self.late.enqueue(payment)  # goes on asking until Supabase is back
            return "accepted, will be confirmed"
        return "being charged"

    def request(self, payment: dict[str, Any]) -> None:
        """Write the payment, and with it its job; with the same key again, it does nothing."""
        with idempotent():  # so it may be repeated when the answer is lost
            self.supabase.rpc("request_payment", payment).execute()

    def charge(self, payment: dict[str, Any]) -> None:
        """The handler of `charges`: may run more than once for a payment, as any job."""
        with self.provider.guard():  # while it is open the job waits, and spends no attempt
            done = self.ask("charges", payment, key=current_job().id)  # the same in each attempt
        orders, payments = self.supabase.table("orders"), self.supabase.table("payments")
        orders.update({"status": "completed", **done}).eq("id", payment["id"]).execute()
        payments.update({"status": "paid", **done}).eq("id", payment["id"]).execute()

    def tell_customer(self, change: Change) -> None:
        """A handler of changes: it may be told one twice, so the mail has a key, too."""
        if change.new.get("status") == "paid":
            self.ask("mails", {"id": change.key}, key=f"order {change.key} is paid")

    def bill(self, order: dict[str, Any]) -> dict[str, Any]:
        """The fix for an order that was completed unpaid: it is open until it is paid."""
        self.process_payment(order["id"], order["amount"])
        return {"status": "open"}

    def ask(self, what: str, body: dict[str, Any], key: str) -> dict[str, Any]:
        """Ask another service, which does a thing once per key."""
        answer = self.services.post(what, json=body, headers={"Idempotency-Key": key})
        return dict(answer.raise_for_status().json())


# --- the staging ----------------------------------------------------------------------------------

DATA = """
insert into orders select i, i, 'completed', 'pay_' || i from generate_series(1, 1000) i;
insert into orders select i, i from generate_series(1001, 1060) i;
"""
TO_PAY = 60 + 3  # three more are imported, as completed, and nobody has paid them


class Services(BaseHTTPRequestHandler):
    """The provider and the mail service: a thing once per key, and each 16th answer is lost."""

    done: ClassVar[dict[str, dict[str, int]]] = {"/charges": {}, "/mails": {}}
    asked_again: ClassVar[Counter[str]] = Counter()
    provider_is_down = False

    def do_POST(self) -> None:
        """Do it, unless it is done."""
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["id"]
        done, key = self.done[self.path], self.headers["Idempotency-Key"]
        if Services.provider_is_down and self.path == "/charges":
            self.send_error(503)
        elif key in done or (len(done) + 1) % 16:
            self.asked_again[self.path] += key in done
            done[key] = order
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"payment_id": f"pay_{order}"}).encode())
        else:
            done[key] = order  # and the connection is lost

    def log_message(self, *_: object) -> None:
        """Be quiet."""


def customers_pay(shop: Shop, first: int, last: int) -> None:
    answers: Counter[str] = Counter()
    for order in range(first, last + 1):
        answers[shop.process_payment(order, order)] += 1
        time.sleep(0.05)
    print("\n".join(f"{times} customers are told: {what}" for what, times in answers.items()))


def show_health(shop: Shop, when: str) -> None:
    health = shop.app.health()
    print(f"health {when}: {health.status}")
    for part in [each for each in health.parts if each.reason]:
        print(f"  {part.part}: {part.reason}")


def outage(local: LocalSupabase, shop: Shop) -> None:
    local.faults.add(match="/rpc/request_payment", drop="after")  # done, and never told
    customers_pay(shop, 1001, 1020)
    print("the provider goes down")
    Services.provider_is_down = True
    customers_pay(shop, 1021, 1030)
    print("the database stops, Realtime is killed")
    local.postgres.stop()
    local.realtime.kill()
    customers_pay(shop, 1031, 1050)
    show_health(shop, "during the outage")
    local.postgres.start()
    Services.provider_is_down = False
    print("all but Realtime is back, and somebody's script breaks orders")
    orders = create_client(local.url, local.secret_key).table("orders")
    orders.update({"status": "open"}).lte("id", 110).execute()
    unpaid = {"amount": 7, "status": "completed"}
    orders.insert([{"id": number, **unpaid} for number in (1061, 1062, 1063)]).execute()
    customers_pay(shop, 1051, 1060)
    local.realtime.start()


def is_over(shop: Shop) -> bool:
    is_calm = shop.app.health().status == "ok" and shop.app.alerts_firing() == ("orders",)
    return is_calm and len(Services.done["/mails"]) >= TO_PAY


def count(shop: Shop, alerts: list[Event]) -> None:
    orders = shop.supabase.table("orders").select("id").gt("id", 1000).eq("status", "completed")
    paid = shop.supabase.table("payments").select("id").eq("status", "paid").execute().data
    print(f"orders completed: {len(orders.execute().data)} of {TO_PAY}")
    print(f"payments: {len(paid)}, of these asked for later: {shop.late.get_stats().succeeded}")
    for what, done in Services.done.items():
        print(f"{what[1:]}: {len(done)} for {len(set(done.values()))} orders,", end=" ")
        print(f"asked for again: {Services.asked_again[what]}")
    print(f"changes that Realtime did not tell: {shop.payments.get_stats().caught_up} caught up")
    problems, told = shop.orders.get_stats(), Counter(event.name for event in alerts)
    print(f"broken orders: {problems.problem_count} found, {problems.open} left")
    print(f"alerts: {told['alert.fired']} fired, {told['alert.cleared']} over")


def main() -> None:
    logging.basicConfig(stream=sys.stdout, format="   >> %(message)s")
    logging.getLogger("supabase_resilience").setLevel(logging.INFO)
    logging.getLogger("realtime").setLevel(logging.CRITICAL)  # the listener tells it, too
    server = HTTPServer(("127.0.0.1", 0), Services)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    services, alerts = f"http://127.0.0.1:{server.server_port}", list[Event]()
    sql = [sys.executable, "-m", "supabase_resilience", "sql"]
    parts = (["queue"], ["listener", "--table", "public.payments"])
    migrations = [subprocess.check_output([*sql, *part], text=True) for part in parts]
    with LocalSupabase(schema=[SCHEMA, DATA, *migrations]) as local:
        shop = Shop(local.url, local.secret_key, services, alerts)
        with shop.app:
            shop.payments.ready()
            show_health(shop, "before")
            outage(local, shop)
            ends_at = time.monotonic() + 60.0
            while not is_over(shop) and time.monotonic() < ends_at:
                time.sleep(0.1)
            show_health(shop, "afterwards")
        count(shop, alerts)


if __name__ == "__main__":
    main()
