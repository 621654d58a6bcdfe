"""What a run found: each line with the value that it must have, or for information."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Line:
    """`must` is empty for what is only told."""

    measure: str
    must: str
    here: str
    is_met: bool = True


def exactly(measure: str, must: object, here: object) -> Line:
    return Line(measure=measure, must=text(must), here=text(here), is_met=must == here)


def at_most(measure: str, limit: float, here: float) -> Line:
    return Line(measure=measure, must=f"<= {limit:g}", here=f"{here:.2f}", is_met=here <= limit)


def info(measure: str, here: object) -> Line:
    return Line(measure=measure, must="", here=text(here))


def played(play: Callable[[], list[Line]]) -> list[Line]:
    """What it found; when it broke off, a line that says so, and the other scenarios go on."""
    try:
        return play()
    except Exception as error:  # noqa: BLE001 - told in the table, and in full on stderr
        traceback.print_exc()
        why = f"{type(error).__name__}: {error}".splitlines()[0].replace("|", "/")
        return [Line(measure="played to its end", must="yes", here=why, is_met=False)]


def text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show(title: str, lines: Sequence[Line]) -> None:
    print(f"\n### {title}\n\n| measure | must be | here | |\n|---|---:|---:|---|")
    for line in lines:
        verdict = "" if not line.must else "yes" if line.is_met else "NO"
        print(f"| {line.measure} | {line.must} | {line.here} | {verdict} |", flush=True)
