"""What a listener costs over the bare Realtime client: `make bench-listener` prints the ratios.

The latency that it adds, on a LocalSupabase; the events per second that it takes, and the memory
that it holds, from a canned server that is faster than its clients. All comparisons are of one run,
in which all take turns.
"""

import argparse
import logging
import os
import platform

import listener_latency
import listener_memory
import listener_throughput
from judged import Line, show_judged

PARTS = ("latency", "throughput", "memory")


def run(given: argparse.Namespace) -> list[Line]:
    lines: list[Line] = []
    if "latency" in given.parts:
        effort = listener_latency.Effort(
            rounds=given.latency_rounds, changes=given.changes, rate=given.rate
        )
        lines += listener_latency.run(effort)
    if "throughput" in given.parts:
        lines += listener_throughput.run(
            listener_throughput.Effort(rounds=given.rounds, events=given.events)
        )
    if "memory" in given.parts:
        lines += listener_memory.run(listener_memory.Effort(events=given.kept))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--latency-rounds", type=int, default=4)
    parser.add_argument("--changes", type=int, default=500, help="a round, for latency")
    parser.add_argument("--rate", type=float, default=100.0, help="changes a second, for latency")
    parser.add_argument("--rounds", type=int, default=5, help="for throughput")
    parser.add_argument("--events", type=int, default=10_000, help="a round, for throughput")
    parser.add_argument("--kept", type=int, default=1_000_000, help="events, for memory")
    given = parser.parse_args()
    logging.disable(logging.ERROR)  # realtime-py tells of each socket that ends
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores")
    show_judged(run(given))


if __name__ == "__main__":
    main()
