"""Verify a table each night, and tell the result where people see it.

Run it: `python examples/05_verify_nightly.py`. It needs no account: it starts a local Supabase and
a chat's webhook. It ends with the report's exit code, 1 here, because a person has to look at one
order: let cron, or a job of your CI, run it, and it alarms whoever looks after these.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
from supabase import Client, create_client

from supabase_resilience import Rule, protect, server_side_verification
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
select i, 'completed', case when i % 50 <> 0 then now() end, case when i <> 123 then 'pay_' || i end
from generate_series(1, 500) i;
"""

RULES = [
    Rule(
        "completed orders have a date",
        violates=lambda q: q.eq("status", "completed").is_("completion_date", "null"),
        fix=lambda order: {"completion_date": order["updated_at"]},
    ),
    Rule(  # without a fix: only a person knows what happened
        "completed orders are paid",
        violates=lambda q: q.eq("status", "completed").is_("payment_id", "null"),
    ),
]


def nightly(supabase: Client, webhook: str) -> int:
    """One pass; 0 when all is well, 1 when something is left to do, 2 when the pass failed."""
    report = server_side_verification(supabase, "orders", rules=RULES, grace=1.0).run_once()
    if report.violations or report.failure:
        # At most 3,000 characters: Slack, Discord and Teams take it as it is.
        httpx.post(webhook, json={"text": report.summary()}, timeout=10.0).raise_for_status()
    return report.exit_code


# --- the staging ----------------------------------------------------------------------------------


class Chat(BaseHTTPRequestHandler):
    """The webhook of a chat: it shows what it is sent."""

    def do_POST(self) -> None:
        """Take a message."""
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print("\n".join(f"chat | {line}" for line in message["text"].splitlines()), flush=True)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Be quiet."""


def main() -> int:
    chat = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=chat.serve_forever, daemon=True).start()
    webhook = f"http://127.0.0.1:{chat.server_port}/"
    with LocalSupabase(schema=SCHEMA) as local:
        supabase = protect(create_client(local.url, local.secret_key))
        for night in ("first", "second"):
            print(f"the {night} night", flush=True)
            code = nightly(supabase, webhook)
            print(f"exit code {code}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
