"""The async twin of 01_survive_an_outage.py: the same app on an AsyncClient.

Run it: `python examples/01_survive_an_outage_async.py`. It needs no account: it starts a local
Supabase, stops its database under the app and starts it again.
"""

import asyncio
from typing import Any

from supabase import acreate_client

from supabase_resilience import (
    AsyncProtectedClient,
    CircuitBreaker,
    CircuitOpenError,
    classify,
    protect,
)
from supabase_resilience.local import LocalSupabase

SCHEMA = "create table profiles (id int primary key, name text not null, city text)"
not_saved_yet: dict[int, dict[str, Any]] = {}


async def save_user_profile(
    supabase: AsyncProtectedClient, user_id: int, profile: dict[str, Any]
) -> str:
    """Save a profile; when Supabase cannot take it now, keep it here and say so."""
    try:
        profiles = supabase.table("profiles")
        await profiles.upsert({"id": user_id, **profile}).execute()
        saved = await profiles.select("*").eq("id", user_id).maybe_single().execute()
    except CircuitOpenError as refusal:  # nothing was sent: answered at once
        not_saved_yet[user_id] = profile
        return f"kept for later; the circuit is open, next try in {refusal.retry_after:.1f} s"
    except Exception as error:
        if not classify(error).is_outage:  # our own mistake: a fallback would only hide it
            raise
        not_saved_yet[user_id] = profile
        return f"kept for later; {classify(error).reason}"
    not_saved_yet.pop(user_id, None)
    return f"saved as {saved.data if saved else None}"


async def main() -> None:
    breaker = CircuitBreaker(
        failure_threshold=3,
        reset_timeout=0.6,  # short, so that you see it; the default is 30 s
        on_event=lambda event: print(f"   >> {event.name}"),
    )
    async with LocalSupabase(schema=SCHEMA) as local:
        client = await acreate_client(local.url, local.secret_key)
        supabase = protect(client, breaker=breaker)
        for turn in range(12):
            if turn == 2:
                print("the database stops")
                local.postgres.stop()
            if turn == 7:
                print("the database is back")
                local.postgres.start()
            ada = {"name": "Ada", "city": "London"}
            print(f"{turn:2}", await save_user_profile(supabase, 7, ada))
            await asyncio.sleep(0.25)


if __name__ == "__main__":
    asyncio.run(main())
