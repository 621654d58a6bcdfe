"""What a chaos run did and kept, scenario by scenario: one row of counts from each of its tables.

The programs name what they counted; here these names are sorted into columns. What a scenario has
no count of stays empty: that is not a zero.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from evidence_tables import Verdict

HEAD = ("scenario", "faults injected", "lost", "duplicates", "needless fixes", "result")
WHOLE, SHORT, OVER = "the number itself", "what is missing to what must be", "what is too much"
LEGEND = """\
Lost: jobs without effect, rows or changes that somebody who listens does not hold as they are, \
values of the app written over, violations left. Duplicates: jobs or changes delivered again, and \
violations fixed again; at-least-once delivery allows the first two, and each of a job has to be \
explained. Needless fixes: of rows that were right; `control` is the race without the grace, and \
has to make some, or the race would prove nothing. An empty cell: the scenario is about something \
else."""


class Count(NamedTuple):
    """Lines whose measure matches as a whole; all of one column and label are added up."""

    column: str
    measure: str
    label: str = ""
    how: str = WHOLE


COUNTS = (
    Count("faults injected", "workers killed with SIGKILL", "processes killed:"),
    Count("faults injected", "restarts of (PostgreSQL|REST)", "servers restarted:"),
    Count("faults injected", "requests lost before, and after the commit", "requests lost:"),
    Count("faults injected", "workers stopped by SIGTERM", "processes stopped:"),
    Count("faults injected", "leases taken away", "leases taken away:"),
    Count("faults injected", "faults", "faults:"),
    Count("faults injected", ".*: processes killed", "processes killed:"),
    Count("faults injected", ".*: healed", "faults:"),
    Count("faults injected", r"connects in .* s", "connects turned away:"),
    Count("faults injected", "orders the app has completed", "orders written in two steps:"),
    Count("faults injected", "verifiers frozen", "processes frozen:"),
    Count("faults injected", "servers killed in mid-pass", "servers killed:"),
    Count("faults injected", "answers lost besides", "answers lost:"),
    Count("faults injected", "verifiers killed in mid-pass", "processes killed:"),
    Count("lost", "jobs lost"),
    Count("lost", "effects", how=SHORT),
    Count("lost", ".*: wrong/missing/ghosts"),
    Count("lost", "change_log: missing"),
    Count("lost", ".*: healed", how=SHORT),
    Count("lost", ".*: changes that the good handler saw", how=SHORT),
    Count("lost", "app values destroyed"),
    Count("lost", "orders still broken"),
    Count("lost", "violations that are left"),
    Count("lost", "violations fixed(, by the report)?", how=SHORT),
    Count("duplicates", "duplicate deliveries"),
    Count("duplicates", "unexplained", "unexplained:"),
    Count("duplicates", "change_log: told twice"),
    Count("duplicates", "versioned, .*: told twice"),
    Count("duplicates", ".*: of the log, told again"),
    Count("duplicates", "(violations )?fixed more than once"),
    Count("needless fixes", "needless fixes.*"),
    Count("needless fixes", "(fixes in all|fixes, by the database|violations fixed)", how=OVER),
)


def summary(lines: Iterable[Verdict]) -> list[tuple[str, ...]]:
    """A row for each scenario, without the command."""
    by_title: dict[str, list[Verdict]] = {}
    for line in lines:
        by_title.setdefault(line.title, []).append(line)
    return [(title, *_columns(of), _result(of)) for title, of in by_title.items()]


def _columns(lines: Sequence[Verdict]) -> list[str]:
    return [_cell(column, lines) for column in HEAD[1:-1]]


def _cell(column: str, lines: Sequence[Verdict]) -> str:
    sums = Counter[str]()
    for count in COUNTS:
        if count.column == column:
            for line in lines:
                if re.fullmatch(count.measure, line.measure):
                    sums[count.label] += _number(count.how, line)
    return ", ".join(f"{label} {number:,}".strip() for label, number in sums.items())


def _number(how: str, line: Verdict) -> int:
    here, must = _sum(line.here), _sum(line.must)
    return {WHOLE: here, SHORT: max(0, must - here), OVER: max(0, here - must)}[how]


def _sum(cell: str) -> int:
    """Of all numbers in a cell: `0/0/0`, `2,010 and 1,997`, `4.00`."""
    return sum(round(float(each)) for each in re.findall(r"\d+(?:\.\d+)?", cell.replace(",", "")))


def _result(lines: Sequence[Verdict]) -> str:
    judged = [line for line in lines if line.must]
    missed = sum(not line.is_met for line in judged)
    return f"FAIL: {missed} of {len(judged)}" if missed else f"PASS: {len(judged)} of {len(judged)}"
