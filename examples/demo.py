"""One app, one sick Supabase, twice: a whole app on the four patterns, and supabase-py alone.

`make demo` runs it. It starts a local Supabase and sends the same visitors through both clients
while the database stops, Realtime is killed, REST answers 503 and connections drop. Behind the
protected one work a queue, a listener and a verification, and the same outage goes over them. It
needs no account and no network, and ends by itself. With SUPABASE_URL and SUPABASE_KEY set,
visitors come to the protected app on that project for ten seconds, and nothing is broken on
purpose.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

from supabase import Client, PostgrestAPIError, create_client

from supabase_resilience import (
    CircuitBreaker,
    CircuitOpenError,
    Event,
    LiveTable,
    MemoryQueue,
    QueueProcessor,
    Recovery,
    Resilience,
    Rule,
    classify,
    protect,
    queue_processor,
    realtime_listener,
    server_side_verification,
)
from supabase_resilience.events import PassCompleted
from supabase_resilience.local import LocalSupabase

USERS = 50
COLUMNS = "(id int primary key, name text not null, visits int not null)"
STARTED = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - STARTED:6.1f} s  {text}", flush=True)


def tell(event: Event) -> None:
    """The app's own story, in the timeline: what changes its state, not what befalls one call."""
    if event.name in TOLD or (isinstance(event, PassCompleted) and event.violations):
        facts = [getattr(event, each, None) for each in ("breaker", "queue", "listener", "table")]
        what = next(each for each in facts if each)
        reason = getattr(event, "reason", "")
        say(f"    >> {event.name.replace('.', ' ')}, {what}{': ' + reason if reason else ''}")


# --- the app --------------------------------------------------------------------------------------


class App:
    """A web app that saves a user's profile at each visit, and never turns a visitor away."""

    def __init__(
        self, name: str, client: Client, table: str, badges: "Badges | None" = None
    ) -> None:
        self.name = name
        self.table = table
        self._client = client
        self._badges = badges
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
        if self._badges is not None:
            self._badges.visited(number)
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


class Badges:
    """The rest of the app: each fifth visit earns a badge, and a page shows all badges, live."""

    def __init__(self, url: str, key: str) -> None:
        self.breaker = CircuitBreaker(
            reset_timeout=2.0,  # short, to see it; usually 30 s
            on_close=self._go_on,
            on_event=tell,
        )
        self.client = client = protect(create_client(url, key), breaker=self.breaker)
        self.queue = queue_processor(client, "badges", self._award, concurrency=2, on_event=tell)
        # While Supabase takes no jobs they wait in memory.
        self.late = QueueProcessor(self.queue.enqueue, store=MemoryQueue("late"), on_event=tell)
        self.listener = realtime_listener(
            client, "badges", recovery=Recovery.versioned(), on_event=tell
        )
        self.page = LiveTable(self.listener)
        self.verification = server_side_verification(
            client,
            "badges",
            rules=[
                Rule(
                    "badges have a level",
                    violates=lambda q: q.is_("level", "null"),
                    fix=lambda badge: {"level": level_of(badge["id"])},
                )
            ],
            interval=2.0,  # usually an hour
            grace=0.5,
            on_event=tell,
        )
        parts = (client, self.late, self.queue, self.listener, self.verification)
        self.app = Resilience(*parts, on_event=tell, check_every=0.25)

    def visited(self, number: int) -> None:
        """Never waits, and never fails because of an outage."""
        if number % 5 == 0:
            self.late.enqueue({"id": number})

    def _go_on(self) -> None:
        """Supabase is back: what waited for it need not wait for the end of its break."""
        self.late.resume()
        self.queue.resume()

    def _award(self, badge: dict[str, Any]) -> None:
        """The queue's handler: done twice it is as good as once."""
        row = {**badge, "level": level_of(badge["id"])}
        self.client.table("badges").upsert(row).execute()


def level_of(visit: int) -> str:
    return "gold" if visit % 25 == 0 else "silver"


# --- the staging ----------------------------------------------------------------------------------

CALLS_PER_SECOND = 20
# On a project of yours the demo writes into a table of its own, never into `profiles`.
TABLE_OF_YOUR_PROJECT = "demo_profiles"
EARLIER = 15  # badges that are there before the demo begins, with negative numbers
PROFILES = f"create table profiles {COLUMNS}; create table plain_profiles {COLUMNS};"
BADGES = """
create table badges (id int primary key, level text);
insert into badges select -i, 'silver' from generate_series(1, 15) i;
select pgmq.create('badges'), pgmq.create('badges_dead');
"""
TOLD = {
    *("circuit.opened", "circuit.half_opened", "circuit.closed"),
    *("queue.paused", "queue.resumed", "queue.unreachable", "queue.reachable"),
    *("listener.lost", "listener.ready", "verification.pass_paused", "verification.pass_resumed"),
}


class Traffic:
    """Visitors that come at a steady pace, however long the earlier ones wait."""

    def __init__(self, apps: list[App], each_second: Callable[[], object] | None = None) -> None:
        self._apps = apps
        self._each_second = each_second
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
                if self._each_second is not None:
                    self._each_second()
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
        self,
        what: str,
        seconds: float,
        begin: Callable[[], Any],
        end: Callable[[], Any],
        late: Callable[[], Any] | None = None,
    ) -> None:
        """Sick for `seconds`, then well again for four; `late` comes in the middle."""
        say(f"--- {what} ---")
        with self._counted():
            begin()
            self._traffic.flow(seconds)
        for app in self._apps:
            app.watch_for_success()
        end()
        well_again = time.monotonic()
        say("--- it is well again ---")
        self._traffic.flow(2.0)
        if late is not None:
            late()
        self._traffic.flow(2.0)
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


class Watch:
    """Looks at the badges from outside: their health in the timeline, and in the end the truth."""

    def __init__(self, badges: Badges, client: Client) -> None:
        self._badges = badges
        self._client = client
        self._last_told = ""
        self.broken = 0

    def tell_health(self) -> None:
        """When it is not what it was."""
        ill = [part.part for part in self._badges.app.health().parts if part.status != "ok"]
        health = f"{self.health()}{': ' if ill else ''}{', '.join(ill)}"
        if health != self._last_told:
            self._last_told = health
            say(f"    health: {health}")

    def health(self) -> str:
        """The worst of all parts."""
        return self._badges.app.health().status

    def break_rows(self) -> None:
        """What somebody's script does behind the app's back, to the badges of earlier days."""
        rows = self._client.table("badges").update({"level": None}).lt("id", 0).execute().data
        self.broken = len(rows)
        say(f"--- a script breaks {self.broken} rows; Realtime is started only now ---")

    def settle(self, seconds: float = 20.0) -> None:
        """Let the badges come to an end; what has not by then is told as lost, wrong or broken."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at and (
            self.lost() or self.wrong() or self.left_broken() or self.health() != "ok"
        ):
            time.sleep(0.2)

    def _rows(self) -> dict[int, str | None]:
        rows: Any = self._client.table("badges").select("*").execute().data
        return {row["id"]: row["level"] for row in rows}

    def earned(self) -> int:
        """Badges of all visits."""
        return self._badges.late.get_stats().enqueued

    def lost(self) -> int:
        """Badges that were earned and are not there."""
        return self.earned() - (len(self._rows()) - EARLIER)

    def wrong(self) -> int:
        """Rows that the page shows otherwise than they are, or not at all."""
        shown = {key: row["level"] for key, row in self._badges.page.rows.items()}
        return len(set(shown.items()) ^ set(self._rows().items()))

    def left_broken(self) -> int:
        """Badges without their level."""
        return sum(level != level_of(number) for number, level in self._rows().items())


def migration(*arguments: str) -> str:
    command = [sys.executable, "-m", "supabase_resilience", "sql", *arguments]
    return subprocess.check_output(command, text=True)


def demo() -> None:
    logging.getLogger("realtime").setLevel(logging.CRITICAL)  # the listener tells it, too
    migrations = [migration("queue"), migration("listener", "--table", "public.badges")]
    with LocalSupabase(schema=[PROFILES, BADGES, *migrations]) as local:
        badges = Badges(local.url, local.secret_key)
        watch = Watch(badges, create_client(local.url, local.secret_key))
        protected = App("protect()", badges.client, "profiles", badges)
        other = create_client(local.url, local.secret_key)
        plain = App("supabase-py alone", other, "plain_profiles")
        traffic = Traffic([protected, plain], watch.tell_health)
        sickness = Sickness(local, traffic, [protected, plain])
        with badges.app:
            badges.listener.ready()
            say(f"local Supabase at {local.url}; {CALLS_PER_SECOND} visits a second to each app")
            print(" " * 10 + "   ".join(name.ljust(45) for name in (protected.name, plain.name)))
            traffic.flow(2.0)
            outage(local, sickness, watch)
            traffic.finish()
            late = [app.catch_up() for app in (protected, plain)]
            watch.settle()
            watch.tell_health()
            summary(sickness, protected, plain, badges.breaker, late)
            summary_of_badges(badges, watch)


def outage(local: LocalSupabase, sickness: Sickness, watch: Watch) -> None:
    """Three kinds of it, one after the other."""
    faults = local.faults

    def break_both() -> None:
        local.postgres.stop()
        local.realtime.kill()

    def break_rows() -> None:
        watch.break_rows()
        local.realtime.start()

    sickness.strike(
        "the database stops, Realtime is killed", 5.0, break_both, local.postgres.start, break_rows
    )
    sickness.strike(
        "REST answers 503, Retry-After: 2",
        4.0,
        lambda: faults.add(match="/rest/", status=503, headers={"Retry-After": "2"}, times=None),
        faults.clear,
    )
    sickness.strike(
        "connections drop",
        4.0,
        lambda: faults.add(match="/rest/", drop="before", times=None),
        faults.clear,
    )


def row(label: str, *values: object) -> None:
    print(f"  {label:44}" + "".join(f"{value!s:>20}" for value in values))


def summary(
    sickness: Sickness, protected: App, plain: App, breaker: CircuitBreaker, late: list[int]
) -> None:
    both = (protected, plain)
    sent = [sickness.requests[app.name] for app in both]
    print()
    row("", *(app.name for app in both))
    row("visits answered by Supabase", *(app.total("saved") for app in both))
    row("visits answered by the fallback", *(app.total("refused", "failed") for app in both))
    row("  of these refused by the circuit, at once", *(app.total("refused") for app in both))
    row("the longest wait of a visitor", *(f"{app.worst_wait:.2f} s" for app in both))
    row("requests to the sick server", *sent)
    row("profiles saved late, from the fallback", *late)
    row("profiles lost, or overwritten by older ones", *(app.lost() for app in both))
    stats = breaker.get_stats()
    spared = sent[1] - sent[0]
    print(
        f"\n  The sick server was spared {spared} of {sent[1]} requests "
        f"({100 * spared / max(1, sent[1]):.0f} %). The circuit opened {stats.opened} times, "
        f"refused {stats.refused} calls, and is {stats.state} now.\n"
    )


def summary_of_badges(badges: Badges, watch: Watch) -> None:
    row("jobs taken, also while Supabase was sick", watch.earned())
    row("  of these handled", watch.earned() - watch.lost())
    row("jobs lost", watch.lost())
    row("changes missed by Realtime, and caught up", badges.listener.get_stats().caught_up)
    row("rows that the page shows wrong, or not", watch.wrong())
    row("rows broken behind the app's back", watch.broken)
    row("  of these fixed", badges.verification.get_stats().fixed)
    row("rows wrong in the end", watch.left_broken())
    row("health in the end", watch.health())


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
