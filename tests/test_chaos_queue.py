"""The chaos run, small: what `make chaos-queue` proves at length holds for a few hundred jobs, too.

Workers are processes of their own on a local Supabase. What is asserted are counts; each run prints
its table, and ends with 1 when a line of it is not as it must be.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parent / "chaos" / "queues.py"
EVERY_WORLD = [(mode, colour) for mode in ("stock", "migrated") for colour in ("sync", "async")]


def play(scenario: str, mode: str, colour: str, *options: str) -> dict[str, str]:
    """The lines of the table: what was measured, and the value."""
    command = [sys.executable, str(CHAOS), "--scenario", scenario, "--mode", mode]
    done = subprocess.run(
        [*command, "--colour", colour, *options], capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return dict(re.findall(r"^\| ([^|]+?) \| [^|]* \| ([^|]*?) \|", done.stdout, re.MULTILINE))


@pytest.mark.parametrize(("mode", "colour"), [("stock", "async"), ("migrated", "sync")])
def test_nothing_is_lost_in_a_storm(mode, colour):
    """Kills, restarts, lost requests and an outage: each job has its effect, and once."""
    told = play(
        "storm", mode, colour, "--jobs", "300", "--workers", "2", "--kills", "4",
        "--restarts", "1", "--outage", "3", "--visibility-timeout", "3",
    )  # fmt: skip
    expected = {
        "jobs enqueued": "300",
        "jobs lost": "0",
        "dead letters": "0",
        "unexplained": "0",
        "workers killed with SIGKILL": "4",
    }
    assert expected == {name: told[name] for name in expected}


@pytest.mark.parametrize(("mode", "colour"), [("stock", "sync"), ("migrated", "async")])
def test_a_deployment_loses_and_repeats_nothing(mode, colour):
    """Workers that are told to stop finish what they have, in time."""
    told = play("sigterm", mode, colour, "--terms", "6", "--workers", "2")
    expected = {
        "workers stopped by SIGTERM": "6",
        "of these, with exit code 0": "6",
        "jobs lost": "0",
        "duplicate deliveries": "0",
    }
    assert expected == {name: told[name] for name in expected}


@pytest.mark.parametrize(("mode", "colour"), EVERY_WORLD)
def test_a_lost_lease_is_noticed(mode, colour):
    """The late acknowledgement leaves the message to the worker that has it now."""
    told = play("lease", mode, colour, "--visibility-timeout", "2")
    expected = {
        "counted by the first worker": "1",
        "messages its late acknowledgement left alone": "1",
        "effects": "1",
    }
    assert expected == {name: told[name] for name in expected}
