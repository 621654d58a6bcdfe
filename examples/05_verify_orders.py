"""Find orders that are not what they should be, and set them right without racing the app.

Run it: `python examples/05_verify_orders.py`. It needs no account: it starts a local Supabase with
2,000 orders, some of them broken, a payment provider, and an app that goes on writing meanwhile.
"""

import json
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from supabase import Client, create_client

from supabase_resilience import SKIP, Rule, protect, server_side_verification
from supabase_resilience.local import LocalSupabase

SCHEMA = """
create table orders (
  id int primary key,
  status text not null,
  completion_date timestamptz,
  payment_id text,
  updated_at timestamptz not null default now()
);
insert into orders (id, status, completion_date, payment_id)
select i, case when i % 4 = 0 then 'completed' else 'open' end,
  case when i % 4 = 0 and i % 40 <> 0 then now() end,  -- 50 completed ones have no date
  case when i % 4 = 0 and i % 100 <> 0 then 'pay_' || i end  -- 20 have no payment
from generate_series(1, 2000) i;
"""


def main(local: LocalSupabase, provider_url: str) -> None:
    """Look, fix, look again."""
    supabase = protect(create_client(local.url, local.secret_key))

    def payment_of(order: int) -> str | None:
        answer = httpx.get(f"{provider_url}/orders/{order}", timeout=2.0).raise_for_status()
        payment: str | None = answer.json()["payment_id"]
        return payment

    def find_payment(order: dict[str, Any]) -> Any:
        payment = payment_of(order["id"])
        return SKIP if payment is None else {"payment_id": payment}

    verification = server_side_verification(
        supabase,
        "orders",
        rules=[
            Rule(  # judged by the database: only broken rows travel
                "completed orders have a date",
                violates=lambda q: q.eq("status", "completed").is_("completion_date", "null"),
                fix=lambda order: {"completion_date": order["updated_at"]},
            ),
            Rule(  # judged here, row by row; the fix asks somebody else
                "completed orders are paid",
                check=lambda order: order["status"] != "completed" or order["payment_id"],
                fix=find_payment,
            ),
        ],
        grace=1.0,  # longer than the app takes from its first write of an order to its last
        batch_size=500,
    )
    app = threading.Thread(target=complete_orders, args=(local,))
    app.start()
    report = verification.run_once(dry_run=True)
    print(f"dry run: {report.violations} violations, nothing written")
    report = verification.run_once()
    app.join()
    print(report)
    its_own = supabase.table("orders").select("id").eq("completion_date", APP_DATE).execute().data
    print(f"orders that the app has completed meanwhile: {len(its_own)} of {APP} as it wrote them")
    with tempfile.TemporaryDirectory() as directory:
        page = Path(directory) / "orders.html"
        page.write_text(report.to_html(), encoding="utf-8")
        print(f"a page to forward: {page.name}, {page.stat().st_size // 1024} KB")
    after = verification.run_once()
    print(f"afterwards: {after.open} open, exit code {after.exit_code}")


APP = 40
APP_DATE = "2026-01-02T03:04:05Z"


def complete_orders(local: LocalSupabase) -> None:
    """The app: it completes an order in two steps, and between them it breaks both rules."""
    supabase: Client = create_client(local.url, local.secret_key)
    orders = supabase.table("orders")
    for number in range(1, 4 * APP, 4):
        orders.update({"status": "completed"}).eq("id", number).execute()
        done = {"completion_date": APP_DATE, "payment_id": f"pay_{number}"}
        orders.update(done).eq("id", number).execute()


class Provider(BaseHTTPRequestHandler):
    """The payment provider: it knows the payment of each order but for every 500th."""

    def do_GET(self) -> None:
        """Answer `/orders/7`."""
        order = int(self.path.rsplit("/", 1)[1])
        body = json.dumps({"payment_id": f"pay_{order}" if order % 500 else None}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with LocalSupabase(schema=SCHEMA) as stack:
        main(stack, f"http://127.0.0.1:{server.server_port}")
