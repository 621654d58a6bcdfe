"""The verifier processes of a run, each signalled by its own pid."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crew import wait_until
from verification_child import Setup

SCRIPT = str(Path(__file__).with_name("verification_child.py"))


class Child:
    """One process; what it says is in a file, so that nothing is lost when it is killed."""

    def __init__(self, setup: Setup, directory: Path) -> None:
        self._said = directory / f"{setup.number}.out"
        with self._said.open("wb") as out, (directory / f"{setup.number}.err").open("wb") as err:
            command = [sys.executable, SCRIPT, json.dumps(asdict(setup))]
            self._process = subprocess.Popen(command, stdout=out, stderr=err)

    def said(self, what: str) -> list[dict[str, Any]]:
        lines = self._said.read_text(encoding="utf-8").splitlines(keepends=True)
        told = [json.loads(line) for line in lines if line.endswith("\n")]
        return [each for each in told if each["what"] == what]

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> dict[str, Any]:
        """What it says of its pass; waits for that."""
        wait_until(lambda: self._process.poll() is not None, "a verifier ends", 120.0)
        (ending,) = self.said("ends")
        return ending

    def close(self) -> None:
        if self._process.poll() is None:
            self.kill()
