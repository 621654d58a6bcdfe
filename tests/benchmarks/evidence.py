"""The evidence: `make bench` and `make chaos` run every program and write BENCHMARKS.md anew.

Each program is run by its own make target, so the command beside its tables is the one that was
run. A program that fails does not stop the others: its section says so, and the exit code is 1 at
the end. A bar that is missed is no failure of a benchmark; the page says it on top.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import evidence_page
import machine
from evidence_page import Section
from evidence_tables import cleaned, tidied

ROOT = Path(__file__).parents[2]
PAGE = "BENCHMARKS.md"
LAST_LINES = 20
# What the make above has passed on: a command must say by itself what it runs.
_NOT_INHERITED = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "ONLY", "ARGS"} | {
    "SCENARIO",
    "SEED",
    "SEEDS",
}


@dataclass(frozen=True, kw_only=True)
class Program:
    """A make target; `variables` are set unless somebody sets them otherwise."""

    target: str
    about: str
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def kind(self) -> str:
        return self.target.partition("-")[0]

    @property
    def name(self) -> str:
        return self.target.partition("-")[2]

    def command(self, given: Mapping[str, str]) -> list[str]:
        variables = {**dict(self.variables), **given}
        return ["make", self.target, *(f"{name}={value}" for name, value in variables.items())]


PROGRAMS = (
    Program(target="bench-protect", about="What `protect()` adds to a query."),
    Program(target="bench-breaker", about="What a breaker costs, beside its peers and a floor."),
    Program(target="bench-outage", about="What retries and breakers do after an outage."),
    Program(target="bench-queue", about="What the queue costs, beside its peers."),
    Program(target="bench-listener", about="What a listener costs over the bare Realtime client."),
    Program(target="bench-verification", about="What a pass of verification costs and holds."),
    Program(target="bench-hooks", about="What each hook adds to a query."),
    Program(target="chaos-queue", about="Queues under fire: what was lost or repeated, and why."),
    Program(
        target="chaos-listener",
        about="Listeners under fire: what somebody holds that is not so.",
        variables=(("SCENARIO", "all"),),
    ),
    Program(target="chaos-verification", about="Verification under fire: what was broken."),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a program printed, and how it ended; times in seconds."""

    began: datetime
    seconds: float
    load: str
    code: int
    printed: str
    complained: str


def prove(
    programs: Sequence[Program],
    chosen: Sequence[Program],
    *,
    directory: Path = ROOT,
    given: Mapping[str, str] | None = None,
) -> bool:
    """Run the chosen ones and replace their sections; returns whether all of them ended with 0."""
    page, machine_line = directory / PAGE, machine.described()
    targets = [program.target for program in programs]
    ended_well = True
    for program in chosen:
        command = program.command(given or {})
        done = run(command, directory)
        known = evidence_page.read(page.read_text(encoding="utf-8")) if page.exists() else {}
        text = told(program.about, command, done, machine_line)
        known[program.target] = Section(program.target, text)
        # After each one, so that nothing is gone when the next one is interrupted.
        page.write_text(evidence_page.write(targets, known), encoding="utf-8")
        ended_well = ended_well and not done.code
    return ended_well


def run(command: Sequence[str], directory: Path) -> Run:
    """Run a command to its end; its progress and what it prints are shown meanwhile."""
    began, load, before = datetime.now(UTC), machine.load(), time.monotonic()
    say(f"{began:%H:%M:%S} UTC  {shown(command)}")
    printed: list[str] = []
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints,
        subprocess.Popen(
            [command[0], "--silent", "--no-print-directory", *command[1:]],
            cwd=directory,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=complaints,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        for line in process.stdout or ():
            printed.append(line)
            print(line, end="", flush=True)
        code = process.wait()
        complaints.seek(0)
        complained = complaints.read()
    seconds = time.monotonic() - before
    say(f"{datetime.now(UTC):%H:%M:%S} UTC  exit code {code} after {seconds:.0f} s")
    return Run(
        began=began,
        seconds=seconds,
        load=load,
        code=code,
        printed="".join(printed),
        complained=complained,
    )


def shown(command: Sequence[str]) -> str:
    """As one would type it."""
    pairs = (each.partition("=") for each in command)
    return " ".join(f"{name}{equals}{shlex.quote(value) if value else ''}"
                    for name, equals, value in pairs)  # fmt: skip


def say(progress: str) -> None:
    print(f"=== {progress}", file=sys.stderr, flush=True)


def environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    return {**inherited, "PYTHONUNBUFFERED": "1"}


def told(about: str, command: Sequence[str], done: Run, machine_line: str) -> str:
    """The text of a section."""
    facts = {
        "Command": f"`{shown(command)}`",
        "Ran": f"{done.began:%Y-%m-%d %H:%M} UTC, for {done.seconds:.0f} s",
        "Exit code": str(done.code),
        "Load before": done.load or "not known",
        "On": machine_line,
    }
    parts = [about, "\n".join(f"- {name}: {fact}" for name, fact in facts.items())]
    if done.code:
        parts.append(last_words(done))
    return "\n\n".join([*parts, tidied(done.printed)]).strip()


def last_words(done: Run) -> str:
    """The end of what it complained of, or of what it printed when it did not."""
    lines = (done.complained.strip() or done.printed.strip()).splitlines()[-LAST_LINES:]
    indented = "\n".join(f"    {line}" for line in cleaned("\n".join(lines)).splitlines())
    return f"**It ended with exit code {done.code}.** Its last lines:\n\n{indented}"


def arguments(programs: Sequence[Program]) -> tuple[list[Program], dict[str, str]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("bench", "chaos"))
    parser.add_argument("--only", default="", help="names of programs; all of the kind if empty")
    parser.add_argument("given", nargs="*", metavar="NAME=VALUE", help="variables for make")
    options = parser.parse_intermixed_args()
    of_kind = {each.name: each for each in programs if each.kind == options.kind}
    names = re.split(r"[\s,]+", options.only.strip()) if options.only.strip() else list(of_kind)
    if unknown := [name for name in names if name not in of_kind]:
        parser.error(f"no {options.kind} program {', '.join(unknown)}: {', '.join(of_kind)}")
    pairs = (each.partition("=") for each in options.given)
    given = {name: value for name, _, value in pairs if value}
    if "ARGS" in given and len(names) > 1:
        parser.error("ARGS are options of one program: say which one with ONLY")
    return [of_kind[name] for name in names], given


def main() -> None:
    chosen, given = arguments(PROGRAMS)
    sys.exit(0 if prove(PROGRAMS, chosen, given=given) else 1)


if __name__ == "__main__":
    main()
