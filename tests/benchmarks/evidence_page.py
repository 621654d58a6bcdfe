"""BENCHMARKS.md: a section for each program, and a summary that is made from the sections alone.

The page is read back the way it was written, so one program can be run again and the rest stays.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import evidence_chaos
from evidence_tables import Verdict, verdicts

_SECTION = re.compile(r"^## ((?:bench|chaos)-[\w-]+)$", re.MULTILINE)
_FACT = re.compile(r"^- ([A-Z][\w ]+): (.+)$", re.MULTILINE)
_FACTS = {"Command", "Exit code", "On"}
_HEAD = """\
# Benchmarks and chaos runs

What the package costs, beside its peers, and what it keeps while servers and processes are killed.
`make bench` and `make chaos` write this page anew; what somebody writes into it is gone after the
next run. Each line can be run again with the command beside it, and `make bench ONLY=queue` or
`make chaos ONLY=queue` runs one program again and replaces its section here. All comparisons are
of one run on one machine, in which both sides take turns: ratios carry over to other machines,
times do not. `make bench-breaker` and `make bench-queue` measure in environments of their own, with
the newest versions that are allowed.
"""


@dataclass(frozen=True)
class Section:
    """One program and its last run; `text` is what the page holds below its heading."""

    target: str
    text: str

    @cached_property
    def facts(self) -> dict[str, str]:
        _, facts, *_ = [*self.text.split("\n\n", 2), ""]
        return dict(_FACT.findall(facts))

    @property
    def command(self) -> str:
        return self.facts["Command"]

    @property
    def has_failed(self) -> bool:
        return self.facts["Exit code"] != "0"

    @property
    def is_chaos(self) -> bool:
        return self.target.startswith("chaos-")

    @cached_property
    def verdicts(self) -> list[Verdict]:
        return verdicts(self.text)

    @cached_property
    def judged(self) -> list[Verdict]:
        return [line for line in self.verdicts if line.must]


def read(page: str) -> dict[str, Section]:
    """The sections of a page, by the names of their targets; what is none of ours is left out."""
    _, *parts = _SECTION.split(page)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    found = {target: Section(target, text.strip()) for target, text in pairs}
    return {target: each for target, each in found.items() if each.facts.keys() >= _FACTS}


def write(targets: Sequence[str], known: Mapping[str, Section]) -> str:
    """The page: the summary first, then the sections in the order of the targets."""
    sections = [known[target] for target in targets if target in known]
    missing = [target for target in targets if target not in known]
    parts = [
        _HEAD.strip(),
        *_machines(sections),
        "## Result",
        _result(sections, missing),
        *_missed(sections),
        *_bars([each for each in sections if not each.is_chaos]),
        *_chaos([each for each in sections if each.is_chaos]),
        *(f"## {each.target}\n\n{each.text}" for each in sections),
    ]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- the summary --------------------------------------------------------------------------------


def _machines(sections: Sequence[Section]) -> list[str]:
    by_machine: dict[str, list[Section]] = defaultdict(list)
    for each in sections:
        by_machine[each.facts["On"]].append(each)
    if len(by_machine) == 1:
        return [f"All of it on: {machine}." for machine in by_machine]
    return [
        f"On {machine}: {', '.join(each.target for each in of)}."
        for machine, of in by_machine.items()
    ]


def _result(sections: Sequence[Section], missing: Sequence[str]) -> str:
    judged = [line for each in sections for line in each.judged]
    failed = [f"{each.command} (exit code {each.facts['Exit code']})"
              for each in sections if each.has_failed]  # fmt: skip
    unmeasured = sum(line.is_unmeasured for line in judged)
    lines = [f"- Bars met: {sum(line.is_met is True for line in judged)} of {len(judged)}."]
    if unmeasured:
        lines.append(f"- **Not measured: {unmeasured}.**")
    if failed:
        lines.append(f"- **Ended with an error: {', '.join(failed)}.**")
    if missing:
        lines.append(f"- **Not run: {', '.join(f'`make {target}`' for target in missing)}.**")
    return "\n".join(lines)


def _missed(sections: Sequence[Section]) -> list[str]:
    rows = [
        (_named(each, line), line.must, line.here or "not measured", each.command)
        for each in sections
        for line in each.judged
        if not line.is_met
    ]
    head = ("missed", "bar", "reached", "command")
    return ["Missed, or not measured:", table(head, rows)] if rows else []


def _named(section: Section, line: Verdict) -> str:
    return f"{line.title}: {line.measure}" if section.is_chaos else line.measure


def _bars(sections: Sequence[Section]) -> list[str]:
    rows = [(*row, each.command) for each in sections for row in _folded(each.judged)]
    head = ("measure", "bar", "reached", "met", "command")
    return ["### Benchmarks", table(head, rows)] if rows else []


def _chaos(sections: Sequence[Section]) -> list[str]:
    rows = [
        (*row, each.command) for each in sections for row in evidence_chaos.summary(each.verdicts)
    ]
    if not rows:
        return []
    return ["### Chaos", table((*evidence_chaos.HEAD, "command"), rows), evidence_chaos.LEGEND]


# --- many lines with one bar --------------------------------------------------------------------


def _folded(lines: Iterable[Verdict]) -> list[tuple[str, ...]]:
    """A row for each bar: lines that differ in what stands behind the colon share the worst one."""
    groups: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for line in lines:
        stem, colon, _ = line.measure.partition(": ")
        groups[stem if colon and _value(line) is not None else line.measure, line.must].append(line)
    return [_row(stem, of) for (stem, _), of in groups.items()]


def _row(stem: str, lines: Sequence[Verdict]) -> tuple[str, ...]:
    worst = min(lines, key=_margin) if len(lines) > 1 else lines[0]
    name = worst.measure
    if len(lines) > 1:
        name = f"{stem}: the worst of {len(lines)}, {worst.measure.partition(': ')[2]}"
    return name, worst.must, worst.here, worst.verdict


def _margin(line: Verdict) -> float:
    """The more, the better."""
    value = _value(line) or 0.0
    return value if line.must.startswith(">=") else -value


def _value(line: Verdict) -> float | None:
    """None for what is no number beside a limit."""
    if line.must[:2] not in {">=", "<="}:
        return None
    try:
        return float(line.here.replace(",", ""))
    except ValueError:
        return None
