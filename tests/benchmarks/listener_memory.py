"""What a listener holds after very many events of a table with 10,000 rows: as much as before."""

import asyncio
import contextlib
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judged import Line, at_most, show_table
from listener_clients import LEVELS, Open, ours
from listener_server import LIVE_KEYS, Blaster, blaster

from supabase_resilience.listener import LiveTable

_PARTS = 10
_WARM = 3  # parts after which everything has its size
_FLAT = 4.0  # MB; an allocator is never quite still


async def pause(seconds: float) -> None:
    """Let the others work."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How many events each."""

    events: int


def resident() -> float:
    """MB of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


async def grow(
    server: Blaster, level: str, events: int, setup: Callable[[Any], object]
) -> list[float]:
    """The memory after each part of the events."""
    opened = ours(LEVELS[level], catch_up_interval=0.05)
    async with opened(server.url) as client:
        kept = await _on_loop(setup, client)
        sizes = []
        for _ in range(_PARTS):
            client.count.expect(events // _PARTS)
            server.blast(events // _PARTS)
            await client.count.wait()
            await _catch_up(client, server)
            sizes.append(resident())
        del kept
        return sizes


async def _on_loop(setup: Callable[[Any], object], client: Open) -> object:
    return setup(client.listener)


async def _catch_up(client: Open, server: Blaster) -> None:
    """All transactions have ended: a log forgets which of them it has told."""
    if client.rest is None or not client.listener.get_stats().catch_ups:
        return
    client.rest.xid = server.xid
    before = client.listener.get_stats().catch_ups
    while client.listener.get_stats().catch_ups < before + 2:
        await pause(0.05)


KINDS: dict[str, tuple[str, Callable[[Any], object]]] = {
    **{level: (level, lambda _: None) for level in LEVELS},
    "versioned, with a LiveTable": ("versioned", LiveTable),
}


def run(effort: Effort) -> list[Line]:
    rows, lines = [], []
    for name, (level, setup) in KINDS.items():
        with blaster() as server:
            sizes = asyncio.run(grow(server, level, effort.events, setup))
        grown = sizes[-1] - sizes[_WARM - 1]
        rows.append((name, *(f"{size:.1f}" for size in sizes), f"{grown:+.1f}"))
        lines.append(at_most(f"memory: {name}, MB grown after {_WARM}/{_PARTS}", _FLAT, grown))
    parts = [f"{effort.events * (n + 1) // _PARTS:,}" for n in range(_PARTS)]
    head = (f"{LIVE_KEYS:,} rows; MB after events", *parts, "grown")
    show_table("Memory of the process", head, rows)
    return lines
