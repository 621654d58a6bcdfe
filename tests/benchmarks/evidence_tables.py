"""What a program printed, as Markdown blocks: its tables, their verdicts, and nothing of this run.

The same reading serves twice: for what a program has just printed, and for a section that is read
back from BENCHMARKS.md, so the page needs no second file beside it.
"""

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_PROJECT = Path(__file__).parents[2]
_VERDICT_HEADS = {("measure", "must reach", "here", ""), ("measure", "must be", "here", "")}
_MET = {"yes": True, "NO": False}
_SAID_BY_THE_PAGE = re.compile(r"Python \d+\.\d+\S*, .*")
_LOCAL = re.compile(r"\b(127\.0\.0\.1|localhost|\[::1\]):\d+")
_ADDRESS = re.compile(r"https?://(?!127\.0\.0\.1|localhost|\[::1\])[^\s|`'\")]+")
_PATH = re.compile(r"(?<![\w.:~>/-])/([\w.+-]+)((?:/[\w.+@-]+)*)")


class Table(NamedTuple):
    """A table below its heading; cells are text."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A line of a table that judges; `must` is empty for what is only told."""

    title: str
    measure: str
    must: str
    here: str
    verdict: str

    @property
    def is_met(self) -> bool | None:
        """None when nothing is asked of it, or when it could not be measured."""
        return _MET.get(self.verdict) if self.must else None

    @property
    def is_unmeasured(self) -> bool:
        return bool(self.must) and self.verdict not in _MET


def tables(text: str) -> list[Table]:
    title, found = "", []
    for kind, lines in _blocks(text):
        if kind == "heading":
            title = lines[0].lstrip("# ")
        elif kind == "table" and len(lines) > 1:
            head, _, *rows = map(_cells, lines)
            found.append(Table(title, head, rows))
    return found


def verdicts(text: str) -> list[Verdict]:
    return [
        Verdict(title=table.title, measure=row[0], must=row[1], here=row[2], verdict=row[3])
        for table in tables(text)
        if table.head in _VERDICT_HEADS
        for row in table.rows
        if len(row) == len(table.head)
    ]


def tidied(printed: str) -> str:
    """Headings, tables and notes, a blank line between them, without what the page says itself."""
    kept = [line for line in printed.splitlines() if not _SAID_BY_THE_PAGE.fullmatch(line)]
    return "\n\n".join("\n".join(lines) for _, lines in _blocks(cleaned("\n".join(kept))))


def cleaned(text: str) -> str:
    """The text without paths of this machine, ports, and addresses of other machines."""
    text = text.replace(f"{_PROJECT}{os.sep}", "")
    text = _ADDRESS.sub("(address)", _LOCAL.sub(r"\1:PORT", text))
    return _PATH.sub(_without_directories, text)


def _without_directories(found: re.Match[str]) -> str:
    """Only what exists here is a path: `/rest/v1/items` is none."""
    top, rest = found.groups()
    is_path = rest and Path(f"/{top}").is_dir()
    return f"…/{rest.rpartition('/')[2]}" if is_path else found[0]


def _blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """Neighbouring lines of one kind; blank lines only part them."""
    for kind, lines in itertools.groupby(text.splitlines(), key=_kind):
        if kind:
            yield kind, [line.rstrip() for line in lines]


def _kind(line: str) -> str:
    if line.startswith("|"):
        return "table"
    if line.startswith("### "):
        return "heading"
    return "text" if line.strip() else ""


def _cells(line: str) -> tuple[str, ...]:
    inner = line.strip().removeprefix("|").removesuffix("|")
    return tuple(cell.strip() for cell in inner.split("|"))
