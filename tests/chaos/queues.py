"""Queues under fire, on a local Supabase: `make chaos-queue` prints what was lost, and why.

Worker processes are killed, told to stop or frozen while requests and answers get lost and servers
restart. Ends with exit code 1 when a line is not as it must be. `--seed` decides where the blows
fall.
"""

import argparse
import itertools
import sys
import tempfile
from functools import partial
from pathlib import Path

import lease
import rolling
import storm
from report import Line, played, show

SCENARIOS, MODES, COLOURS = ("storm", "sigterm", "lease"), ("stock", "migrated"), ("sync", "async")


def play(scenario: str, mode: str, colour: str, given: argparse.Namespace) -> list[Line]:
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        directory = Path(name)
        if scenario == "storm":
            return storm.run(storm_plan(mode, colour, given), directory)
        if scenario == "sigterm":
            return rolling.run(rolling_plan(mode, colour, given), directory)
        timeout = min(given.visibility_timeout, 5.0)
        plan = lease.Plan(mode=mode, colour=colour, visibility_timeout=timeout)
        return lease.run(plan, directory)


def storm_plan(mode: str, colour: str, given: argparse.Namespace) -> storm.Plan:
    return storm.Plan(
        mode=mode,
        colour=colour,
        jobs=given.jobs,
        workers=given.workers,
        kills=given.kills,
        restarts=given.restarts,
        lost=given.lost,
        outage=given.outage,
        concurrency=given.concurrency,
        visibility_timeout=given.visibility_timeout,
        patience=given.patience,
        seed=given.seed,
    )


def rolling_plan(mode: str, colour: str, given: argparse.Namespace) -> rolling.Plan:
    return rolling.Plan(
        mode=mode,
        colour=colour,
        terms=given.terms,
        workers=given.workers,
        concurrency=given.concurrency,
        visibility_timeout=given.visibility_timeout,
        shutdown_timeout=10.0,
        slow=0.1,
        seed=given.seed,
    )


def chosen(given: str, all_of_them: tuple[str, ...]) -> tuple[str, ...]:
    return all_of_them if given == "all" else (given,)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", choices=("all", *SCENARIOS), default="all")
    parser.add_argument("--mode", choices=("all", *MODES), default="all")
    parser.add_argument("--colour", choices=("all", *COLOURS), default="all")
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=8, help="of each worker")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--restarts", type=int, default=5, help="of PostgreSQL, and of REST")
    parser.add_argument(
        "--lost", type=float, default=0.05, help="share of requests, and of answers"
    )
    parser.add_argument("--outage", type=float, default=60.0, help="of the dependency, seconds")
    parser.add_argument("--visibility-timeout", type=float, default=10.0)
    parser.add_argument("--terms", type=int, default=40, help="workers to stop by SIGTERM")
    parser.add_argument("--patience", type=float, default=1800.0, help="seconds for a storm")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    is_met = True
    for scenario, mode, colour in itertools.product(
        chosen(given.scenario, SCENARIOS),
        chosen(given.mode, MODES),
        chosen(given.colour, COLOURS),
    ):
        lines = played(partial(play, scenario, mode, colour, given))
        show(f"{scenario}, {mode}, {colour}, seed {given.seed}", lines)
        is_met = is_met and all(line.is_met for line in lines)
    sys.exit(0 if is_met else 1)


if __name__ == "__main__":
    main()
