"""Keep a project list right while Realtime dies, loses changes and comes back; on an event loop.

Run it: `python examples/04_follow_changes_async.py`. It needs no account: it starts a local
Supabase, changes projects, and breaks Realtime meanwhile.
"""

import asyncio
import subprocess
import sys
from collections.abc import Callable

from supabase import AsyncClient, acreate_client

from supabase_resilience import LiveTable, Recovery, realtime_listener
from supabase_resilience.local import LocalSupabase

SCHEMA = "create table projects (id int primary key, name text not null, status text not null);"


def migration() -> str:
    """The SQL of `python -m supabase_resilience sql listener --table public.projects`."""
    command = [sys.executable, "-m", "supabase_resilience", "sql", "listener"]
    return subprocess.check_output([*command, "--table", "public.projects"], text=True)


async def demo(local: LocalSupabase) -> None:
    """Follow the table through a loss that nobody is told of."""
    supabase = await acreate_client(local.url, local.secret_key)
    listener = realtime_listener(
        supabase, "projects", recovery=Recovery.versioned(), catch_up_interval=2.0
    )
    table = LiveTable(listener)
    async with listener:
        await listener.ready()
        watching = asyncio.create_task(watch(table))
        await save(supabase, 1, "Apollo")
        await wait_for(lambda: 1 in table.rows)

        print("Realtime drops every change, as it does above the plan's rate; it tells nobody")
        local.realtime.lose_changes(on=True)
        await save(supabase, 2, "Gemini")
        await wait_for(lambda: 2 in table.rows)
        local.realtime.lose_changes(on=False)
        await wait_for(lambda: listener.get_stats().lost == 1)
        print("the next catch-up found it, and counted what Realtime had lost: 1")
    await watching
    print(f"the list is right: {sorted(row['name'] for row in table.rows.values())}")


async def watch(table: LiveTable) -> None:
    """What a page would do: show the list anew after each change, until the listener stops."""
    async for change in table.changes():
        print(f"  {change.type} of project {change.key}, {change.source}: {len(table.rows)} in all")


async def save(supabase: AsyncClient, number: int, name: str) -> None:
    """What the app does somewhere else."""
    row = {"id": number, "name": name, "status": "planned"}
    await supabase.table("projects").insert(row).execute()


async def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return when it is so."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


if __name__ == "__main__":
    with LocalSupabase(schema=SCHEMA + migration()) as stack:
        asyncio.run(demo(stack))
