"""Our own process is killed while its handler writes into a table: the table must be right at last.

Once per level, colour and cursor store that go together here; each time a new process resumes where
the handler of the killed one had come to.
"""

import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from listener_child import Setup
from listener_plan import transactions
from listener_world import FILL, Truth, difference, world
from listener_writers import Pace, Writer
from report import Line, exactly, info

from supabase_resilience.local import LocalSupabase

SCRIPT = str(Path(__file__).with_name("listener_child.py"))
_KINDS = (
    ("versioned", "async", "file"),
    ("versioned", "sync", "table"),
    ("change_log", "sync", "file"),
    ("change_log", "async", "table"),
)
_AHEAD = 100
_ROWS = 200


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of everything, for each kind; `pause` and `patience` in seconds."""

    ops: int
    kills: int
    fails: float
    pause: float
    patience: float
    seed: int


class Life:
    """One process."""

    def __init__(self, setup: Setup, directory: Path) -> None:
        self._said = directory / f"{setup.life}.out"
        self._log = directory / f"{setup.life}.err"
        with self._said.open("wb") as out, self._log.open("wb") as err:
            command = [sys.executable, SCRIPT, json.dumps(asdict(setup))]
            self._process = subprocess.Popen(command, stdout=out, stderr=err)

    def is_ready(self) -> bool:
        return bool(self._said.read_bytes())

    def wait_until_ready(self, within: float) -> None:
        end = time.monotonic() + within
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"a listener did not start: {self._log.read_text()}")
            threading.Event().wait(0.05)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Run:
    """Of one kind."""

    def __init__(self, plan: Plan, local: LocalSupabase, setup: Setup, directory: Path) -> None:
        self._plan = plan
        self._truth = Truth(local)
        self._setup = setup
        self._directory = directory
        self._pace = Pace()
        work = (transactions(f"{plan.seed}/{n}", plan.ops // 2, pause=plan.pause) for n in (0, 1))
        self._writers = [Writer(local.dsn, each, self._pace) for each in work]
        self._life = Life(setup, directory)
        self._lives = 1

    def run(self) -> list[Line]:
        begun = time.monotonic()
        try:
            self._life.wait_until_ready(self._plan.patience)
            for writer in self._writers:
                writer.start()
            self._kill_all()
            for writer in self._writers:
                writer.join()
            caught_up = self._settle()
        finally:
            self._life.kill()
        wrong = "/".join(map(str, self._difference()))
        name = f"{self._setup.level}, {self._setup.colour}, cursor in a {self._cursor()}"
        return [
            exactly(f"{name}: processes killed", self._plan.kills, self._lives - 1),
            exactly(f"{name}: caught up", True, caught_up),
            exactly(f"{name}: wrong/missing/ghosts", "0/0/0", wrong),
            info(f"{name}: changes or rows", len(self._expected())),
            info(f"{name}: of the log, told again", self._told_again()),
            info(f"{name}: seconds", round(time.monotonic() - begun)),
        ]

    def _cursor(self) -> str:
        return "table" if self._setup.cursor == "table" else "file"

    def _kill_all(self) -> None:
        plan = self._plan
        chance = random.Random(f"{plan.seed}/kills")
        for at in sorted(chance.sample(range(plan.ops // 20, plan.ops), plan.kills)):
            self._pace.allow(at + _AHEAD)
            self._pace.wait_until(at, plan.patience)
            if chance.random() < 0.75:  # the others die while they start
                self._life.wait_until_ready(plan.patience)
            threading.Event().wait(chance.uniform(0.0, 0.5))
            self._life.kill()
            self._life = Life(replace(self._setup, life=self._lives), self._directory)
            self._lives += 1
        self._pace.allow(2 * plan.ops)

    def _settle(self) -> bool:
        end = time.monotonic() + self._plan.patience
        while any(self._difference()):
            if time.monotonic() > end:
                return False
            threading.Event().wait(0.25)
        return True

    def _expected(self) -> dict[int, object]:
        if self._setup.level == "change_log":
            return {seq: True for seq, *_ in self._truth.entries()}
        return dict(self._truth.rows("items"))

    def _difference(self) -> tuple[int, int, int]:
        if self._setup.level == "change_log":
            return difference(self._expected(), dict.fromkeys(self._truth.sink_log(), True))
        return difference(self._truth.rows("items"), self._truth.sink())

    def _told_again(self) -> int:
        told = self._truth.sink_log()
        return sum(told.values()) - len(told)


def run(plan: Plan, kinds: int) -> list[Line]:
    lines: list[Line] = []
    for level, colour, cursor in _KINDS[:kinds]:
        with world() as local, tempfile.TemporaryDirectory(prefix="chaos-") as name:
            directory = Path(name)
            if level == "versioned":
                with local.postgres.connect() as connection:
                    connection.execute(FILL.encode(), (_ROWS,))
            setup = Setup(
                url=local.url,
                key=local.secret_key,
                dsn=local.dsn,
                colour=colour,
                level=level,
                cursor=cursor if cursor == "table" else str(directory / "cursor.json"),
                fails=plan.fails,
                seed=plan.seed,
                life=0,
            )
            lines += Run(plan, local, setup, directory).run()
    return lines
