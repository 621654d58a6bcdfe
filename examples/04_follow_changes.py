"""Keep a project list right while Realtime dies, loses changes and comes back.

Run it: `python examples/04_follow_changes.py`. It needs no account: it starts a local Supabase,
changes projects, and breaks Realtime meanwhile. `04_follow_changes_async.py` is the same on an
event loop.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from supabase import Client, create_client

from supabase_resilience import Change, LiveTable, Recovery, realtime_listener
from supabase_resilience.local import LocalSupabase

SCHEMA = "create table projects (id int primary key, name text not null, status text not null);"


def migration() -> str:
    """The SQL of `python -m supabase_resilience sql listener --table public.projects`."""
    command = [sys.executable, "-m", "supabase_resilience", "sql", "listener"]
    return subprocess.check_output([*command, "--table", "public.projects"], text=True)


def announce(change: Change) -> None:
    """A handler: it may be told a change twice, and must bear that."""
    print(f"  {change.type} of project {change.key}, {change.source}")


def demo(local: LocalSupabase) -> None:
    """Follow the table through three kinds of loss."""
    supabase = create_client(local.url, local.secret_key)
    listener = realtime_listener(supabase, "projects", recovery=Recovery.versioned())
    table = LiveTable(listener)  # the three lines: a list that is always right
    listener.on_change("announce", announce)
    with listener:
        listener.ready()
        print("live")
        save(supabase, 1, "Apollo", "planned")
        wait_for(lambda: 1 in table.rows)

        print("Realtime is killed; two changes and a delete happen meanwhile")
        local.realtime.kill()
        save(supabase, 1, "Apollo", "active")
        save(supabase, 2, "Gemini", "planned")
        save(supabase, 3, "Mercury", "done")
        supabase.table("projects").delete().eq("id", 3).execute()
        local.realtime.start()
        wait_for(lambda: show(table.rows) == {1: "Apollo (active)", 2: "Gemini (planned)"})

        print("the connection is cut")
        local.realtime.abort()
        supabase.table("projects").delete().eq("id", 2).execute()
        wait_for(lambda: show(table.rows) == {1: "Apollo (active)"})
        stats = listener.get_stats()
    print(f"the list is right: {show(table.rows)}")
    print(f"{stats.gaps} gaps, {stats.caught_up} changes caught up")


def save(supabase: Client, number: int, name: str, status: str) -> None:
    """What the app does somewhere else."""
    row = {"id": number, "name": name, "status": status}
    supabase.table("projects").upsert(row).execute()


def show(rows: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """What a page would show."""
    return {key: f"{row['name']} ({row['status']})" for key, row in sorted(rows.items())}


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return when it is so."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("it did not become so")
        time.sleep(0.05)


if __name__ == "__main__":
    with LocalSupabase(schema=SCHEMA + migration()) as stack:
        demo(stack)
