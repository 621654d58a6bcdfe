"""Events per second that a client can take, with the bare client of supabase-py as the measure.

A canned server sends faster than any of them reads; all take turns, round after round.
"""

import asyncio
import gc
import statistics
from collections import defaultdict
from dataclasses import dataclass

from judged import Line, at_least, ratio, show_table
from listener_clients import LEVELS, Contender, bare, binding_of, ours
from listener_server import Blaster, blaster

_HOW = {"async": "async handler", "thread": "sync handler", "sync": "sync listener"}


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How many rounds, of how many events each."""

    rounds: int
    events: int


def contenders() -> dict[str, tuple[Contender, str]]:
    """Each with the name of the bare client that hears the same frames."""
    made = {
        "bare client, rows": (bare(binding_of("versioned")), ""),
        "bare client, log": (bare(binding_of("change_log")), ""),
    }
    for level, recovery in LEVELS.items():
        peer = "bare client, log" if level == "change_log" else "bare client, rows"
        for how, name in _HOW.items():
            made[f"{level}, {name}"] = ours(recovery, how=how), peer
    return made


async def one_round(contender: Contender, server: Blaster, events: int) -> float:
    async with contender(server.url) as client:
        client.count.expect(events)
        gc.collect()
        server.blast(events)
        return events / await client.count.wait()


async def all_rounds(effort: Effort) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = defaultdict(list)
    with blaster() as server:
        for _ in range(effort.rounds):
            for name, (contender, _) in contenders().items():
                rates[name].append(await one_round(contender, server, effort.events))
    return rates


def run(effort: Effort) -> list[Line]:
    rates = asyncio.run(all_rounds(effort))
    rows, lines = [], []
    for name, (_, peer) in contenders().items():
        to_bare = ratio(rates[name], rates[peer]) if peer else 1.0
        rows.append((name, f"{statistics.median(rates[name]):,.0f}", f"{to_bare:.2f}"))
        if peer:
            lines.append(at_least(f"events/s: {name}, of the bare client's", 0.9, to_bare))
    show_table("Throughput, one handler", ("client", "events/s", "of the bare client's"), rows)
    return lines
