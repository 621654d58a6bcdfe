"""The chaos run, small: what `make chaos-listener` proves at length holds for a short one, too.

Servers and processes are real and local. What is asserted are counts; each run prints its table,
and ends with 1 when a line of it is not as it must be.
"""

import re
import subprocess
import sys
from pathlib import Path

CHAOS = Path(__file__).parent / "chaos" / "listener.py"
RIGHT = "0/0/0"


def play(scenario: str, *options: str) -> dict[str, str]:
    """The lines of the table: what was measured, and the value."""
    command = [sys.executable, str(CHAOS), "--scenario", scenario, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    return dict(re.findall(r"^\| ([^|]+?) \| [^|]* \| ([^|]*?) \|", done.stdout, re.MULTILINE))


def test_everybody_holds_what_is_there_after_the_faults():
    """One fault of each kind: all copies of the tables are right, of the log nothing is missing."""
    told = play("faults", "--seed", "4", "--ops", "400", "--faults", "14", "--interval", "1")
    found = {value for name, value in told.items() if name.endswith("wrong/missing/ghosts")}
    assert {RIGHT} == found
    expected = {
        "faults": "14",
        "statements": "400",
        "the log is what the writers committed": "yes",
        "change_log: missing": "0",
        "change_log: told twice": "0",
        "change_log: told and not there": "0",
        "errors logged": "0",
    }
    assert expected == {name: told[name] for name in expected}


def test_a_killed_process_resumes_where_its_handler_was():
    """The sink equals the table, though its writer was killed and failed now and then."""
    told = play("sink", "--sink-ops", "200", "--kills", "3", "--kinds", "1")
    name = "versioned, async, cursor in a file"
    assert RIGHT == told[f"{name}: wrong/missing/ghosts"]
    assert "3" == told[f"{name}: processes killed"]
