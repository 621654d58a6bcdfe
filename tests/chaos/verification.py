"""Verification under fire, on a local Supabase: `make chaos-verification` prints what was broken.

An app that writes in two steps beside a verifier; two verifiers of which the holder of the lease is
frozen; servers and verifiers that are killed in mid-pass. Ends with exit code 1 when a line is not
as it must be. `--seed` decides which rows are broken, and when.
"""

import argparse
import itertools
import sys
import tempfile
from functools import partial
from pathlib import Path

import verification_crash as crash
import verification_lease as lease
import verification_outage as outage
import verification_race as race
from report import Line, played, show

SCENARIOS = ("race", "control", "lease", "outage", "crash")
COLOURS = ("sync", "async")


def play(scenario: str, colour: str, given: argparse.Namespace) -> list[Line]:
    if scenario in {"race", "control"}:
        return race.run(race_plan(scenario, colour, given))
    if scenario == "outage":
        return outage.run(outage_plan(colour, given))
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        if scenario == "lease":
            plan = lease.Plan(colour=colour, broken=given.broken, before=20, lease=given.lease)
            return lease.run(plan, Path(name))
        return crash.run(
            crash.Plan(
                colour=colour, orders=given.orders, broken=given.broken, kills=given.kills,
                pause=given.pause,
            ),
            Path(name),
        )  # fmt: skip


def race_plan(scenario: str, colour: str, given: argparse.Namespace) -> race.Plan:
    is_race = scenario == "race"
    return race.Plan(
        colour=colour,
        seconds=given.seconds if is_race else min(given.seconds, 15.0),
        orders=given.orders,
        broken=given.broken,
        writers=given.writers,
        grace=given.grace if is_race else 0.0,
        seed=given.seed,
    )


def outage_plan(colour: str, given: argparse.Namespace) -> outage.Plan:
    return outage.Plan(
        colour=colour,
        orders=given.orders,
        broken=given.broken,
        lost=given.lost,
        pause=given.pause,
        seed=given.seed,
    )


def chosen(given: str, all_of_them: tuple[str, ...]) -> tuple[str, ...]:
    return all_of_them if given == "all" else (given,)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", choices=("all", *SCENARIOS), default="all")
    parser.add_argument("--colour", choices=("all", *COLOURS), default="all")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the race")
    parser.add_argument("--orders", type=int, default=20_000)
    parser.add_argument("--broken", type=int, default=500)
    parser.add_argument("--writers", type=int, default=16, help="of the app, at a time")
    parser.add_argument("--grace", type=float, default=2.0, help="seconds, in the race")
    parser.add_argument("--lease", type=float, default=10.0, help="seconds")
    parser.add_argument("--lost", type=float, default=0.02, help="share of answers, in outages")
    parser.add_argument("--kills", type=int, default=4, help="of verifiers, one after the other")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds before a page")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    is_met = True
    for scenario, colour in itertools.product(
        chosen(given.scenario, SCENARIOS), chosen(given.colour, COLOURS)
    ):
        lines = played(partial(play, scenario, colour, given))
        show(f"{scenario}, {colour}, seed {given.seed}", lines)
        is_met = is_met and all(line.is_met for line in lines)
    sys.exit(0 if is_met else 1)


if __name__ == "__main__":
    main()
