"""What a pass holds while it goes through the table: a few pages, however long the table is."""

import asyncio
import gc
import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from judged import Line, at_most, show_table
from supabase import acreate_client, create_client
from verification_table import checked, tell_nobody

from supabase_resilience import AsyncServerSideVerification, KeyRange, ServerSideVerification
from supabase_resilience.local import LocalSupabase

_WARM = KeyRange(upto=5_000)  # after which client and pages have their size
_LIMIT = 30.0
OPTIONS: dict[str, Any] = {
    "rules": checked(),
    "batch_size": 1_000,
    "grace": 0.0,
    "on_event": tell_nobody,
}
Sizes = tuple[float, float]
"""MB before the pass, and at its highest."""


def resident() -> float:
    """MB of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


class Scale:
    """Read before each page."""

    def __init__(self) -> None:
        self.most = 0.0

    def __call__(self) -> None:
        self.most = max(self.most, resident())

    def settle(self) -> float:
        gc.collect()
        self.most = resident()
        return self.most


def in_sync(url: str, key: str, ranges: int) -> Sizes:
    scale = Scale()
    verification = ServerSideVerification(
        create_client(url, key), "orders", **OPTIONS, ranges=ranges, throttle=scale
    )
    verification.run_range(_WARM)
    before = scale.settle()
    verification.run_once()
    return before, scale.most


def in_async(url: str, key: str, ranges: int) -> Sizes:
    return asyncio.run(_in_async(url, key, ranges))


async def _in_async(url: str, key: str, ranges: int) -> Sizes:
    scale = Scale()
    verification = AsyncServerSideVerification(
        await acreate_client(url, key), "orders", **OPTIONS, ranges=ranges, throttle=scale
    )
    await verification.run_range(_WARM)
    before = scale.settle()
    await verification.run_once()
    return before, scale.most


COLOURS = {"sync": in_sync, "async": in_async}


def measure(local: LocalSupabase, colour: str, ranges: int) -> Sizes:
    """In a process of its own, which has held nothing before."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as process:
        return process.submit(COLOURS[colour], local.url, local.secret_key, ranges).result()


def run(local: LocalSupabase) -> list[Line]:
    rows, lines = [], []
    for colour, ranges in itertools.product(COLOURS, (1, 4)):
        name = f"{colour}, ranges={ranges}"
        before, most = measure(local, colour, ranges)
        rows.append((name, f"{before:.1f}", f"{most:.1f}", f"{most - before:+.1f}"))
        lines.append(at_most(f"memory: {name}, MB grown", _LIMIT, most - before))
    show_table("Memory of the process", ("a pass", "MB before", "at most", "grown"), rows)
    return lines
