"""Events per second that a client can take, with the bare client of supabase-py as the measure.

A canned server sends faster than any of them reads; all take turns, round after round.
"""

import asyncio
import gc
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from judged import Line, at_least, ratio, show_table
from listener_clients import LEVELS, Contender, bare, binding_of, ours
from listener_server import Blaster, blaster

_HOW = {"async": "async handler", "thread": "sync handler", "sync": "sync listener"}


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How many rounds, of how many events each."""

    rounds: int
    events: int


class Speed(NamedTuple):
    """Events per second, by the clock and by the processor time of the client's process."""

    clock: float
    processor: float


def contenders() -> dict[str, tuple[Contender, str]]:
    """Each with its level, whose frames the bare client beside it hears, too."""
    return {
        f"{level}, {name}": (ours(recovery, how=how), level)
        for level, recovery in LEVELS.items()
        for how, name in _HOW.items()
    }


async def one_round(contender: Contender, server: Blaster, events: int) -> Speed:
    async with contender(server.url) as client:
        client.count.expect(events)
        gc.collect()
        before = time.process_time()
        server.blast(events)
        seconds = await client.count.wait()
        return Speed(events / seconds, events / (time.process_time() - before))


async def all_rounds(effort: Effort) -> dict[str, list[tuple[Speed, Speed]]]:
    """Of each, next to the bare client right before it: what else the machine does hits both."""
    speeds: dict[str, list[tuple[Speed, Speed]]] = defaultdict(list)
    with blaster() as server:
        for _ in range(effort.rounds):
            for name, (contender, level) in contenders().items():
                alone = await one_round(bare(binding_of(level)), server, effort.events)
                speed = await one_round(contender, server, effort.events)
                speeds[name].append((speed, alone))
    return speeds


def run(effort: Effort) -> list[Line]:
    rows, lines = [], []
    for name, pairs in asyncio.run(all_rounds(effort)).items():
        ours_, alone = ([pair[n].clock for pair in pairs] for n in (0, 1))
        by_processor = statistics.median(a.processor / b.processor for a, b in pairs)
        to_bare = ratio(ours_, alone)
        rates = (f"{statistics.median(each):,.0f}" for each in (ours_, alone))
        rows.append((name, *rates, f"{to_bare:.2f}", f"{by_processor:.2f}"))
        lines.append(at_least(f"events/s: {name}, of the bare client's", 0.9, to_bare))
    head = ("one handler; events/s", "ours", "bare client", "ratio", "by processor time")
    show_table("Throughput", head, rows)
    return lines
