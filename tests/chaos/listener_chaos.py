"""The run: writers write, faults strike, and in the end everybody must hold what is there.

Where a fault strikes is tied to how many statements were executed, so that a slow machine meets as
many as a quick one. Of each fault a row is written that nobody may miss: until everybody has it.
"""

import logging
import random
import statistics
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import NamedTuple, Self

from listener_crowd import Crowd, View
from listener_faults import Faults
from listener_plan import Blow, Op, Transaction, blows, transactions
from listener_world import FILL, Truth, difference, world
from listener_writers import Effects, Pace, Scribe, Writer
from report import Line, exactly, info

from supabase_resilience.local import LocalSupabase

_ROWS = 200
_AHEAD = 150  # statements that writers may be ahead of the next fault


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of everything; `pause` between a writer's transactions, and the rest in seconds."""

    ops: int
    faults: int
    writers: int
    pause: float
    catch_up_interval: float
    patience: float
    seed: int


class Heal(NamedTuple):
    """From the end of a fault until everybody knew what was written meanwhile."""

    kind: str
    seconds: float | None


class Complaints(logging.Handler):
    """What the listener, or asyncio of its tasks, logs as an error: nothing may be."""

    _LOGGERS = ("supabase_resilience", "asyncio")

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(logging.Formatter().format(record))

    def __enter__(self) -> Self:
        for name in self._LOGGERS:
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._LOGGERS:
            logging.getLogger(name).removeHandler(self)


class Watch(threading.Thread):
    """Waits until everybody knows the rows that were written for it."""

    def __init__(self, crowd: Crowd) -> None:
        super().__init__(daemon=True)
        self._crowd = crowd
        self._waiting: dict[int, tuple[str, float]] = {}
        self._ended = threading.Event()
        self.heals: list[Heal] = []

    def expect(self, key: int, kind: str) -> None:
        self._waiting[key] = kind, time.monotonic()

    def run(self) -> None:
        while not self._ended.wait(0.05):
            for key, (kind, since) in list(self._waiting.items()):
                if self._crowd.know(key):
                    del self._waiting[key]
                    self.heals.append(Heal(kind, time.monotonic() - since))

    def end(self) -> None:
        self._ended.set()
        self.join()
        self.heals += [Heal(kind, None) for kind, _ in self._waiting.values()]


class Storm:
    """One run."""

    def __init__(self, plan: Plan, local: LocalSupabase) -> None:
        self._plan = plan
        self._truth = Truth(local)
        self._crowd = Crowd(local, catch_up_interval=plan.catch_up_interval)
        self._faults = Faults(local, self._crowd.tokens, self._crowd.loop)
        self._watch = Watch(self._crowd)
        self._pace = Pace()
        self._scribe = Scribe(local.dsn)
        self._writers = self._make_writers(local)
        self._struck: Counter[str] = Counter()
        self._complaints = Complaints()

    def _make_writers(self, local: LocalSupabase) -> list[Writer]:
        plan, made = self._plan, []
        for number in range(plan.writers):
            share = plan.ops * (number + 1) // plan.writers - plan.ops * number // plan.writers
            work = transactions(f"{plan.seed}/{number}", share, pause=plan.pause)
            made.append(Writer(local.dsn, work, self._pace))
        return made

    def run(self) -> list[Line]:
        begun = time.monotonic()
        with self._complaints:
            self._crowd.start()
            try:
                self._watch.start()
                self._blow()
                return self._judge(begun, caught_up=self._settle())
            finally:
                self._crowd.stop()

    def _blow(self) -> None:
        for writer in self._writers:
            writer.start()
        self._strike_all()
        for writer in self._writers:
            writer.join()

    # --- faults ---

    def _strike_all(self) -> None:
        chance = random.Random(f"{self._plan.seed}/faults")
        for blow in blows(f"{self._plan.seed}/blows", self._plan.faults, self._plan.ops):
            self._pace.allow(blow.at + _AHEAD)
            self._pace.wait_until(blow.at, self._plan.patience)
            self._strike(blow, chance)
        self._pace.allow(2 * self._plan.ops)

    def _strike(self, blow: Blow, chance: random.Random) -> None:
        key = -sum(self._struck.values()) - 1
        self._struck[blow.kind] += 1

        def during() -> None:
            self._scribe.commit(Transaction([Op("insert", key, key, 999)]))
            if blow.inner is not None:
                self._strike(blow.inner, chance)

        self._faults.strike(blow.kind, chance, during)
        self._watch.expect(key, blow.kind)

    # --- the end ---

    def _settle(self) -> float | None:
        """The seconds until everybody holds what is there, None if that took too long."""
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < self._plan.patience:
            if not any(map(any, map(self._difference, self._crowd.views))) and self._is_log_told():
                return passed
            threading.Event().wait(0.25)
        return None

    def _difference(self, view: View) -> tuple[int, int, int]:
        rows = self._truth.rows(view.table).items()
        return difference({key: row for key, row in rows if view.passes(row)}, dict(view.rows))

    def _is_log_told(self) -> bool:
        seen = {seq for seq, _ in list(self._crowd.entries.told)}
        return all(seq in seen for seq, *_ in self._truth.entries())

    def _judge(self, begun: float, *, caught_up: float | None) -> list[Line]:
        threading.Event().wait(self._plan.catch_up_interval + 2.0)  # for a late ghost
        self._watch.end()
        self._show_faults()
        stats = self._crowd.stats().values()
        return [
            exactly("faults", self._plan.faults, sum(self._struck.values())),
            exactly("statements", self._plan.ops, self._pace.done),
            info("transactions committed", len(self._committed())),
            info("transactions aborted by PostgreSQL", self._aborted()),
            *self._log_lines(),
            exactly("everybody caught up at the end", True, caught_up is not None),
            info("seconds until then", None if caught_up is None else round(caught_up, 1)),
            *(self._view_line(view) for view in self._crowd.views),
            *self._copy_lines(),
            exactly("errors logged", 0, len(self._complaints.told)),
            *(
                info("of these", told.replace("\n", " ")[:500])
                for told in self._complaints.told[:3]
            ),
            exactly("handlers sent back to the beginning", 0, sum(each.resyncs for each in stats)),
            info("changes received live", sum(each.received for each in stats)),
            info("lost by Realtime on a healthy connection", sum(each.lost for each in stats)),
            info("found by reading", sum(each.caught_up for each in stats)),
            info("connections", sum(each.connects for each in stats)),
            info("gaps", sum(each.gaps for each in stats)),
            info("catch-ups", sum(each.catch_ups for each in stats)),
            info("events", ", ".join(f"{n} {kind}" for kind, n in self._crowd.events.items())),
            info("seconds", round(time.monotonic() - begun)),
        ]

    def _view_line(self, view: View) -> Line:
        found = "/".join(map(str, self._difference(view)))
        return exactly(f"{view.name}: wrong/missing/ghosts", "0/0/0", found)

    def _copy_lines(self) -> list[Line]:
        lines = []
        for colour, copy in self._crowd.copies.items():
            lines += [
                exactly(f"versioned, {colour}: told out of order", 0, copy.out_of_order),
                info(f"versioned, {colour}: told twice", copy.twice),
            ]
        return lines

    # --- the log ---

    def _committed(self) -> dict[int, Effects]:
        scribes = [self._scribe, *(writer.scribe for writer in self._writers)]
        return {xid: effects for each in scribes for xid, effects in each.committed.items()}

    def _aborted(self) -> int:
        return sum(writer.scribe.aborted for writer in self._writers)

    def _log_lines(self) -> list[Line]:
        entries, told = self._truth.entries(), self._crowd.entries.told
        by_xid: dict[int, Effects] = defaultdict(list)
        for _, xid, op, key in entries:
            by_xid[xid].append((op, key))
        numbers, seen = {seq for seq, *_ in entries}, {seq for seq, _ in told}
        written = {xid: effects for xid, effects in self._committed().items() if effects}
        return [
            info("changes in the log", len(entries)),
            exactly("the log is what the writers committed", True, by_xid == written),
            exactly("change_log: missing", 0, len(numbers - seen)),
            exactly("change_log: told twice", 0, sum(told.values()) - len(told)),
            exactly("change_log: told and not there", 0, len(seen - numbers)),
        ]

    def _show_faults(self) -> None:
        print(f"\n### Each fault of seed {self._plan.seed}\n")
        print("| fault | struck | healed after s: median | slowest | |\n|---|---:|---:|---:|---|")
        for kind, count in sorted(self._struck.items()):
            known = [heal.seconds for heal in self._watch.heals if heal.kind == kind]
            times = [seconds for seconds in known if seconds is not None]
            numbers = f"{statistics.median(times):.2f} | {max(times):.2f}" if times else " | "
            print(f"| {kind} | {count} | {numbers} | {'' if None not in known else 'NEVER'} |")


def run(plan: Plan) -> list[Line]:
    with world() as local:
        with local.postgres.connect() as connection:
            connection.execute(FILL.encode(), (_ROWS,))
        return Storm(plan, local).run()
