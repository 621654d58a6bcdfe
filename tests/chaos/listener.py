"""Listeners under fire, on a local Supabase: `make chaos-listener` prints what is wrong at the end.

Servers die, connections and changes get lost, tokens expire, our own process is killed, while
writers go on. Ends with exit code 1 when a line is not as it must be. `--seed` decides what is
written and where faults fall.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial

import listener_calm
import listener_chaos
import listener_handlers
import listener_heal
import listener_sink
from report import Line, played, show


def faults(given: argparse.Namespace, seed: int) -> list[Line]:
    return listener_chaos.run(
        listener_chaos.Plan(
            ops=given.ops,
            faults=given.faults,
            writers=given.writers,
            pause=given.pause,
            catch_up_interval=given.interval or 2.0,
            patience=given.patience,
            seed=seed,
        )
    )


def sink(given: argparse.Namespace, seed: int) -> list[Line]:
    plan = listener_sink.Plan(
        ops=given.sink_ops,
        kills=given.kills,
        fails=0.05,
        pause=given.pause,
        patience=given.patience,
        seed=seed,
    )
    return listener_sink.run(plan, given.kinds)


def heal(given: argparse.Namespace, seed: int) -> list[Line]:
    return listener_heal.run(
        listener_heal.Plan(
            rounds=given.rounds,
            rows=given.rows,
            catch_up_interval=given.interval or 5.0,
            patience=given.patience,
            seed=seed,
        )
    )


def handlers(given: argparse.Namespace, _: int) -> list[Line]:
    return listener_handlers.run(
        listener_handlers.Plan(rounds=3, sleeps=10.0, buffer=250, patience=given.patience)
    )


def calm(given: argparse.Namespace) -> listener_calm.Plan:
    return listener_calm.Plan(
        turned_away=given.turned_away,
        bare=min(given.turned_away / 10, 5.0),
        idle=given.idle,
        catch_up_interval=given.interval or 60.0,
        patience=given.patience,
    )


def storm(given: argparse.Namespace, _: int) -> list[Line]:
    return listener_calm.storm(calm(given))


def idle(given: argparse.Namespace, _: int) -> list[Line]:
    return listener_calm.idle(calm(given))


SCENARIOS: dict[str, Callable[[argparse.Namespace, int], list[Line]]] = {
    "faults": faults,
    "sink": sink,
    "heal": heal,
    "storm": storm,
    "idle": idle,
    "handlers": handlers,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", choices=("all", *SCENARIOS), default="faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1, help="so many, one after the other")
    parser.add_argument("--ops", type=int, default=10_000, help="statements of all writers")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.06, help="of a writer, seconds")
    parser.add_argument("--sink-ops", type=int, default=2000, help="statements, for each kind")
    parser.add_argument("--kills", type=int, default=20, help="of our own process, for each kind")
    parser.add_argument("--kinds", type=int, default=4, help="of processes with a sink")
    parser.add_argument("--rounds", type=int, default=3, help="of every fault that must heal")
    parser.add_argument("--rows", type=int, default=1000, help="missed by each")
    parser.add_argument("--turned-away", type=float, default=60.0, help="seconds")
    parser.add_argument("--idle", type=float, default=180.0, help="seconds")
    parser.add_argument("--interval", type=float, help="between catch-ups, seconds")
    parser.add_argument("--patience", type=float, default=120.0, help="until caught up, seconds")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    is_met = True
    for seed in range(given.seed, given.seed + given.seeds):
        for scenario in SCENARIOS if given.scenario == "all" else (given.scenario,):
            lines = played(partial(SCENARIOS[scenario], given, seed))
            show(f"{scenario}, seed {seed}", lines)
            is_met = is_met and all(line.is_met for line in lines)
    sys.exit(0 if is_met else 1)


if __name__ == "__main__":
    main()
