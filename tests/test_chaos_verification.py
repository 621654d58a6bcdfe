"""The chaos run of verification, small: what `make chaos-verification` proves at length.

Apps, verifiers and servers are real ones. What is asserted are counts; each run prints its table,
and ends with 1 when a line of it is not as it must be.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CHAOS = Path(__file__).parent / "chaos" / "verification.py"
RUNS = {
    "race, sync": "--seconds 2 --orders 1000 --broken 40 --grace 1",
    "race, async": "--seconds 2 --orders 1000 --broken 40 --grace 1",
    "control, async": "--seconds 2 --orders 1000 --broken 20",
    "lease, sync": "--broken 60 --lease 1.5",
    "outage, async": "--orders 3000 --broken 60 --pause 0.2",
    "crash, sync": "--orders 3000 --broken 60 --kills 1 --pause 0.4",
}


def play(run: str, options: str) -> dict[str, str]:
    """The lines of the table: what was measured, and the value."""
    scenario, colour = run.split(", ")
    command = [sys.executable, str(CHAOS), "--scenario", scenario, "--colour", colour]
    done = subprocess.run([*command, *options.split()], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    return dict(re.findall(r"^\| ([^|]+?) \| [^|]* \| ([^|]*?) \|", done.stdout, re.MULTILINE))


@pytest.fixture(scope="module")
def told() -> Callable[[str], dict[str, str]]:
    """Play all runs, four side by side, since most of their time they wait."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        played = {run: pool.submit(play, run, options) for run, options in RUNS.items()}
    return lambda run: played[run].result()


def of(told: dict[str, str], expected: dict[str, str]) -> dict[str, str]:
    return {name: told[name] for name in expected}


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_race_with_the_app_is_never_run(told, colour):
    """What the app is writing is left alone, what it has left half-way is fixed."""
    expected = {
        "app values destroyed": "0",
        "orders that were really broken, fixed": "40",
        "needless fixes": "0",
    }
    assert expected == of(told(f"race, {colour}"), expected)


def test_without_a_grace_the_race_would_be_lost(told):
    """Compare-and-swap alone destroys nothing, and yet makes fixes that nobody needed."""
    lines = told("control, async")
    assert "0" == lines["app values destroyed"]
    assert "0" != lines["needless fixes, steps of up to 0.4 s, without a grace"]


def test_a_frozen_holder_of_the_lease_fixes_nothing_when_it_wakes(told):
    """Its fix in flight is refused by its token; the other one fixes each violation once."""
    expected = {
        "its fix in flight that arrived late, and was refused by its token": "1",
        "fixes it has begun after waking": "0",
        "fixes in all": "60",
        "violations fixed more than once": "0",
    }
    assert expected == of(told("lease, sync"), expected)


def test_a_pass_goes_on_when_its_servers_are_back(told):
    """Each row is checked once, and each violation fixed once, through kills and lost answers."""
    expected = {
        "servers killed in mid-pass": "4",
        "rows checked": "3,000",
        "fixes, by the database": "60",
        "violations fixed more than once": "0",
    }
    assert expected == of(told("outage, async"), expected)


def test_a_verifier_that_is_killed_leaves_its_place_to_the_next_one(told):
    """Nothing is fixed twice, nothing is left."""
    expected = {
        "verifiers killed in mid-pass": "1",
        "violations fixed": "60",
        "violations fixed more than once": "0",
    }
    assert expected == of(told("crash, sync"), expected)
