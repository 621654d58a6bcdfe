"""The worker processes of a run: started, killed, told to stop, replaced; each by its own pid."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from worker import Setup

SCRIPT = str(Path(__file__).with_name("worker.py"))
A_MINUTE = 60.0


class Worker:
    """One process; what it says is in a file, so that nothing is lost when it is killed."""

    def __init__(self, setup: Setup, directory: Path) -> None:
        self.number = setup.number
        self._said, self._log = (directory / f"{setup.number}.{end}" for end in ("out", "err"))
        with self._said.open("wb") as out, self._log.open("wb") as err:
            command = [sys.executable, SCRIPT, json.dumps(asdict(setup))]
            self._process = subprocess.Popen(command, stdout=out, stderr=err)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def said(self, what: str) -> list[dict[str, Any]]:
        lines = self._said.read_text(encoding="utf-8").splitlines(keepends=True)
        told = [json.loads(line) for line in lines if line.endswith("\n")]
        return [each for each in told if each["what"] == what]

    def signal(self, number: int) -> None:
        if self.is_alive:
            self._process.send_signal(number)

    def end(self, number: int, within: float) -> float | None:
        """Send a signal and wait, as `wait` does."""
        self.signal(number)
        return self.wait(within)

    def wait(self, within: float) -> float | None:
        """The seconds until it ended; None (and a kill) when that took too long."""
        begun = time.monotonic()
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None
        return time.monotonic() - begun


class Crew:
    """So many workers, each replaced by a new one when it is gone."""

    def __init__(self, setup: Setup, size: int, directory: Path) -> None:
        self._setup = setup
        self._directory = directory
        self.everybody: list[Worker] = []
        self.on_duty = [self._new() for _ in range(size)]

    def _new(self) -> Worker:
        setup = replace(self._setup, number=len(self.everybody))
        self.everybody.append(Worker(setup, self._directory))
        return self.everybody[-1]

    def replace(self, place: int) -> None:
        self.on_duty[place] = self._new()

    def replace_the_fallen(self) -> int:
        """How many had ended by themselves, which nobody should."""
        fallen = [place for place, worker in enumerate(self.on_duty) if not worker.is_alive]
        for place in fallen:
            self.replace(place)
        return len(fallen)

    def kill(self, place: int) -> None:
        self.on_duty[place].end(signal.SIGKILL, A_MINUTE)
        self.replace(place)

    def end_all(self, within: float) -> bool:
        """Whether all of them ended in order, in time."""
        for worker in self.on_duty:
            worker.signal(signal.SIGTERM)
        times = [worker.wait(within) for worker in self.on_duty]  # a second signal would abort
        return None not in times

    def said(self, what: str) -> list[dict[str, Any]]:
        return [each for worker in self.everybody for each in worker.said(what)]


def wait_until(condition: Callable[[], object], what: str, within: float = A_MINUTE) -> None:
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {within:g} s")
        threading.Event().wait(0.05)
