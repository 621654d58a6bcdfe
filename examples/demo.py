"""One app, one sick Supabase, twice: behind `protect()`, and with supabase-py alone.

`make demo` runs it. It starts a local Supabase and sends the same traffic through both clients
while the database stops, REST answers 503 and connections drop. It needs no account and no
network, and ends by itself. With SUPABASE_URL and SUPABASE_KEY set, the protected app runs against
that project for ten seconds, and nothing is broken on purpose.
"""

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

from supabase import Client, PostgrestAPIError, create_client

from supabase_resilience import CircuitBreaker, CircuitOpenError, Event, classify, protect
from supabase_resilience.local import LocalSupabase

CALLS_PER_SECOND = 20
USERS = 50
# On a project of yours the demo writes into a table of its own, never into `profiles`.
TABLE_OF_YOUR_PROJECT = "demo_profiles"
COLUMNS = "(id int primary key, name text not null, visits int not null)"
STARTED = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - STARTED:6.1f} s  {text}", flush=True)


class App:
    """A web app that saves a user's profile at each visit, and never turns a visitor away."""

    def __init__(self, name: str, client: Client, table: str) -> None:
        self.name = name
        self.table = table
        self._client = client
        self._lock = threading.Lock()
        # Guarded by _lock.
        self._not_saved_yet: dict[int, dict[str, Any]] = {}
        self._outcomes: Counter[str] = Counter()
        self._waiting = 0
        self._last_report: Counter[str] = Counter()
        self._newest: dict[int, int] = {}
        self._first_saved_at: float | None = None
        self.worst_wait = 0.0

    def save_user_profile(self, user_id: int, profile: dict[str, Any]) -> dict[str, Any] | None:
        """Load, save, read back; raises what supabase-py raises, or that the circuit is open."""
        profiles = self._client.table(self.table)
        profiles.select("*").eq("id", user_id).maybe_single().execute()
        profiles.upsert({"id": user_id, **profile}).execute()
        saved = profiles.select("*").eq("id", user_id).maybe_single().execute()
        return saved.data if saved else None  # type: ignore[return-value]

    def visit(self, number: int) -> None:
        """One visitor: answered by Supabase, or by the fallback."""
        user_id = number % USERS
        profile = {"name": f"user {user_id}", "visits": number}
        begun = time.monotonic()
        with self._lock:
            self._waiting += 1
            self._newest[user_id] = number
        outcome = self._answer(user_id, profile)
        with self._lock:
            self._waiting -= 1
            self._outcomes[outcome] += 1
            self.worst_wait = max(self.worst_wait, time.monotonic() - begun)

    def _answer(self, user_id: int, profile: dict[str, Any]) -> str:
        try:
            self.save_user_profile(user_id, profile)
        except CircuitOpenError:
            self._keep(user_id, profile)
            return "refused"
        except Exception as error:
            if not classify(error).is_outage:
                raise  # a bug of ours: a fallback would hide it
            self._keep(user_id, profile)
            return "failed"
        with self._lock:
            self._first_saved_at = self._first_saved_at or time.monotonic()
        return "saved"

    def _keep(self, user_id: int, profile: dict[str, Any]) -> None:
        """The fallback: remember the newest profile of each user, to save it later."""
        with self._lock:
            kept = self._not_saved_yet.get(user_id, profile)
            self._not_saved_yet[user_id] = max(kept, profile, key=lambda each: each["visits"])

    def watch_for_success(self) -> None:
        """From now on, remember when the first profile is saved."""
        with self._lock:
            self._first_saved_at = None

    def first_success_after(self, moment: float) -> str:
        """How long after `moment` the first profile was saved."""
        with self._lock:
            at = self._first_saved_at
        return "not yet" if at is None else f"{max(0.0, at - moment):.1f} s"

    def catch_up(self) -> int:
        """Save what the fallback kept, unless a newer visit has been saved since; how many."""
        in_database = self._visits_in_database()
        late = {
            user_id: profile
            for user_id, profile in self._not_saved_yet.items()
            if profile["visits"] > in_database.get(user_id, -1)
        }
        for user_id, profile in late.items():
            self._client.table(self.table).upsert({"id": user_id, **profile}).execute()
        return len(late)

    def lost(self) -> int:
        """How many users' newest visit is not in the database."""
        in_database = self._visits_in_database()
        return sum(in_database.get(user, -1) < newest for user, newest in self._newest.items())

    def _visits_in_database(self) -> dict[int, int]:
        rows: Any = self._client.table(self.table).select("id, visits").execute().data
        return {row["id"]: row["visits"] for row in rows}

    def report(self) -> str:
        """What came in since the last report."""
        with self._lock:
            new = self._outcomes - self._last_report
            self._last_report = Counter(self._outcomes)
            parts = [f"{new[kind]:2} {kind}" for kind in ("saved", "refused", "failed")]
            return " ".join(parts) + f" {self._waiting:3} waiting"

    def total(self, *kinds: str) -> int:
        """How many visits ended in one of these ways."""
        with self._lock:
            return sum(self._outcomes[kind] for kind in kinds)


class Traffic:
    """Visitors that come at a steady pace, however long the earlier ones wait."""

    def __init__(self, apps: list[App]) -> None:
        self._apps = apps
        self._visits = 0
        self._pool = ThreadPoolExecutor(max_workers=400)
        self._pending: list[Any] = []

    def flow(self, seconds: float) -> None:
        """Let visitors come for so long, and report every second."""
        ends_at = time.monotonic() + seconds
        next_report = time.monotonic() + 1.0
        while (now := time.monotonic()) < ends_at:
            self._visits += 1
            self._pending += [self._pool.submit(app.visit, self._visits) for app in self._apps]
            if now >= next_report:
                next_report += 1.0
                say("   ".join(app.report().ljust(45) for app in self._apps))
            time.sleep(1 / CALLS_PER_SECOND)

    def finish(self) -> None:
        """Wait for those who still wait; a visit that failed by a bug of ours raises here."""
        wait(self._pending)
        for visit in self._pending:
            visit.result()
        self._pool.shutdown()


class Sickness:
    """Breaks the local Supabase in turn, and counts what reaches it meanwhile."""

    def __init__(self, local: LocalSupabase, traffic: Traffic, apps: list[App]) -> None:
        self._local = local
        self._traffic = traffic
        self._apps = apps
        self.requests: Counter[str] = Counter()

    def strike(
        self, what: str, seconds: float, begin: Callable[[], Any], end: Callable[[], Any]
    ) -> None:
        """Sick for `seconds`, then well again for three."""
        say(f"--- {what} ---")
        with self._counted():
            begin()
            self._traffic.flow(seconds)
        for app in self._apps:
            app.watch_for_success()
        end()
        well_again = time.monotonic()
        say("--- it is well again ---")
        self._traffic.flow(4.0)
        firsts = [f"{app.name} {app.first_success_after(well_again)}" for app in self._apps]
        say(f"    first success after: {', '.join(firsts)}")

    @contextmanager
    def _counted(self) -> Iterator[None]:
        before = {app.name: self._count(app) for app in self._apps}
        yield
        for app in self._apps:
            self.requests[app.name] += self._count(app) - before[app.name]

    def _count(self, app: App) -> int:
        return self._local.requests(match=rf"^/rest/v1/{app.table}\b")


def tell(event: Event) -> None:
    """The breaker's own story, in the timeline; refusals and retries are only counted."""
    if event.name in {"circuit.opened", "circuit.half_opened", "circuit.closed"}:
        reason = getattr(event, "reason", "")
        say(f"    >> {event.name.replace('.', ' ')}{': ' + reason if reason else ''}")


def demo() -> None:
    schema = [f"create table {table} {COLUMNS}" for table in ("profiles", "plain_profiles")]
    breaker = CircuitBreaker(reset_timeout=2.0, on_event=tell)
    with LocalSupabase(schema=schema) as local:
        one, two = (create_client(local.url, local.secret_key) for _ in range(2))
        protected = App("protect()", protect(one, breaker=breaker), "profiles")
        plain = App("supabase-py alone", two, "plain_profiles")
        apps = [protected, plain]
        traffic = Traffic(apps)
        sickness = Sickness(local, traffic, apps)
        say(
            f"local Supabase at {local.url}; {CALLS_PER_SECOND} visits a second through each client"
        )
        print(" " * 10 + "   ".join(app.name.ljust(45) for app in apps))
        traffic.flow(2.0)
        sickness.strike("the database stops", 6.0, local.postgres.stop, local.postgres.start)
        sickness.strike(
            "REST answers 503, Retry-After: 2",
            5.0,
            lambda: local.faults.add(
                match="/rest/", status=503, headers={"Retry-After": "2"}, times=None
            ),
            local.faults.clear,
        )
        sickness.strike(
            "connections drop",
            5.0,
            lambda: local.faults.add(match="/rest/", drop="before", times=None),
            local.faults.clear,
        )
        traffic.finish()
        summary(sickness, protected, plain, breaker)


def summary(sickness: Sickness, protected: App, plain: App, breaker: CircuitBreaker) -> None:
    def row(label: str, *values: object) -> None:
        print(f"  {label:44}" + "".join(f"{value!s:>20}" for value in values))

    both = (protected, plain)
    sent = [sickness.requests[app.name] for app in both]
    print()
    row("", *(app.name for app in both))
    row("visits answered by Supabase", *(app.total("saved") for app in both))
    row("visits answered by the fallback", *(app.total("refused", "failed") for app in both))
    row("  of these refused by the circuit, at once", *(app.total("refused") for app in both))
    row("the longest wait of a visitor", *(f"{app.worst_wait:.2f} s" for app in both))
    row("requests to the sick server", *sent)
    row("profiles saved late, from the fallback", *(app.catch_up() for app in both))
    row("profiles lost, or overwritten by older ones", *(app.lost() for app in both))
    stats = breaker.get_stats()
    spared = sent[1] - sent[0]
    print(
        f"\n  The sick server was spared {spared} of {sent[1]} requests "
        f"({100 * spared / max(1, sent[1]):.0f} %). The circuit opened {stats.opened} times, "
        f"refused {stats.refused} calls, and is {stats.state} now."
    )


def run_on_your_project(url: str, key: str) -> int:
    client = protect(create_client(url, key), breaker=CircuitBreaker(on_event=tell))
    app = App("protect()", client, TABLE_OF_YOUR_PROJECT)
    try:
        client.table(app.table).select("id").limit(1).execute()
    except PostgrestAPIError as error:
        print(f"{error.message}\nThe demo needs a table:  create table {app.table} {COLUMNS};")
        return 1
    traffic = Traffic([app])
    say(f"ten seconds of {CALLS_PER_SECOND} visits a second into {app.table}")
    traffic.flow(10.0)
    traffic.finish()
    late = app.catch_up()
    say(f"{app.total('saved')} saved, {late} late, longest wait {app.worst_wait:.2f} s")
    client.table(app.table).delete().lt("id", USERS).execute()
    return 0


def main() -> int:
    url, key = os.environ.get("SUPABASE_URL"), os.environ.get("SUPABASE_KEY")
    if url and key:
        return run_on_your_project(url, key)
    demo()
    return 0


if __name__ == "__main__":
    sys.exit(main())
