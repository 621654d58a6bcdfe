"""One verifier process: `verification_child.py '{"url": …}'`; it says on stdout what happens.

It makes one pass as soon as it gets the lease, or has none; a pass that fails is told, too.
"""

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from supabase import acreate_client, create_client
from verification_world import DATE, dated, every_other

from supabase_resilience import (
    AsyncServerSideVerification,
    Event,
    FileCursor,
    Report,
    Rule,
    ServerSideVerification,
    VerificationError,
)

TOLD = frozenset({"verification.lease_taken", "verification.lease_lost"})
AGAIN = 0.2
Verification = ServerSideVerification | AsyncServerSideVerification


async def pause(seconds: float) -> None:
    """Let the others work."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a verifier is told; 0 and "" mean: without. `gate` is a file that it waits for."""

    number: int
    colour: str
    url: str
    key: str
    grace: float
    page: int
    lease: str = ""
    lease_seconds: float = 0.0
    gate: str = ""
    cursor: str = ""
    pause: float = 0.0


def say(what: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"what": what, **facts}) + "\n")
    sys.stdout.flush()


def tell(event: Event) -> None:
    if event.name in TOLD:
        say(event.name, **{each.name: getattr(event, each.name) for each in fields(event)})


def fix(row: dict[str, Any]) -> dict[str, Any]:
    say("fix", id=row["id"])
    return {"completion_date": DATE}


def rules(setup: Setup) -> list[Rule]:
    """The one for the lease fetches only what is broken, the other fetches everything."""
    if setup.lease:
        pushed = dated()
        return [Rule(pushed.name, violates=pushed.violates, fix=fix)]
    return [Rule("completed orders have a date", check=is_dated, fix=fix)]


def is_dated(row: dict[str, Any]) -> bool:
    return row["status"] != "completed" or row["completion_date"] is not None


def throttle(setup: Setup) -> Callable[[], float]:
    def held() -> float:
        if setup.gate and not Path(setup.gate).exists():
            return AGAIN
        return setup.pause

    return held if not setup.pause else every_other(held)


def options(setup: Setup) -> dict[str, Any]:
    return {
        "rules": rules(setup),
        "grace": setup.grace,
        "batch_size": setup.page,
        "max_share": 1.0,
        "lease": setup.lease or None,
        "cursor": FileCursor(setup.cursor) if setup.cursor else None,
        "throttle": throttle(setup),
        "on_event": tell,
    }


def prepared(verification: Verification, setup: Setup) -> None:
    """Leases are of a minute; here they are over sooner."""
    lease = verification._core.lease
    if lease is not None:
        lease.seconds = setup.lease_seconds


def end(verification: Verification, report: Report | None, error: Exception | None) -> None:
    report = verification.get_stats().last_report if report is None else report
    fates = {} if report is None else dict(next(iter(report.rules.values())).fates)
    why = [] if report is None else sorted({each.reason for each in report.problems})
    rows = 0 if report is None else report.rows
    failure = str(error) if error is not None else report and report.failure
    say("ends", rows=rows, fates=fates, reasons=why, failure=failure)


def is_standby(error: VerificationError) -> bool:
    return "another runner holds the lease" in str(error)


# --- sync ---------------------------------------------------------------------------------------


def verify(setup: Setup) -> None:
    client = create_client(setup.url, setup.key)
    verification = ServerSideVerification(client, "orders", **options(setup))
    prepared(verification, setup)
    say("begins")
    while True:
        try:
            return end(verification, verification.run_once(), None)
        except VerificationError as error:
            if not is_standby(error):
                return end(verification, None, error)
        threading.Event().wait(AGAIN)


# --- async --------------------------------------------------------------------------------------


async def verify_async(setup: Setup) -> None:
    client = await acreate_client(setup.url, setup.key)
    verification = AsyncServerSideVerification(client, "orders", **options(setup))
    prepared(verification, setup)
    say("begins")
    while True:
        try:
            return end(verification, await verification.run_once(), None)
        except VerificationError as error:
            if not is_standby(error):
                return end(verification, None, error)
        await pause(AGAIN)


def main() -> None:
    setup = Setup(**json.loads(sys.argv[1]))
    if setup.colour == "async":
        asyncio.run(verify_async(setup))
    else:
        verify(setup)


if __name__ == "__main__":
    main()
