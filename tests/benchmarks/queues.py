"""What the queue costs and keeps: `make bench-queue` prints each measure beside its bar.

In memory against bare workers and the in-memory modes of other queues; over Supabase Queues against
a hand-written loop and aimq; the order of starts under load; the polling of an idle fleet. The
peers go into a throw-away environment. Ratios are of one run, in which all take turns.
"""

import argparse
import os
import platform
import warnings

import queues_durable
import queues_memory
import queues_polling
from judged import Line, show_judged

PARTS = ("memory", "durable", "polling")


def run(given: argparse.Namespace) -> list[Line]:
    lines: list[Line] = []
    if "memory" in given.parts:
        lines += queues_memory.run(
            queues_memory.Effort(
                rounds=given.rounds,
                jobs=given.jobs,
                concurrency=given.concurrency,
                kept=given.kept,
            )
        )
    if "durable" in given.parts:
        lines += queues_durable.run(
            queues_durable.Effort(
                rounds=given.durable_rounds,
                jobs=given.durable_jobs,
                concurrency=given.concurrency,
                waiting=given.waiting,
                urgent=given.urgent,
            )
        )
    if "polling" in given.parts:
        fleet = queues_polling.Fleet(workers=given.workers, queues=10, jobs=given.polled_jobs)
        lines += queues_polling.run(fleet, seed=given.seed)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=7, help="in memory")
    parser.add_argument("--jobs", type=int, default=50_000, help="in memory, a round")
    parser.add_argument("--kept", type=int, default=1_000_000, help="jobs, to see what is left")
    parser.add_argument("--durable-rounds", type=int, default=5)
    parser.add_argument("--durable-jobs", type=int, default=2_000, help="a round")
    parser.add_argument("--waiting", type=int, default=100_000, help="jobs before the urgent ones")
    parser.add_argument("--urgent", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=1_000, help="that are idle")
    parser.add_argument("--polled-jobs", type=int, default=300, help="sent to idle workers")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # some peers use what Python has deprecated
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores")
    show_judged(run(given))


if __name__ == "__main__":
    main()
