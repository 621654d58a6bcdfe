"""A table for a person: columns that line up, and nothing in a cell that moves the terminal."""

from collections.abc import Sequence

__all__ = ["table"]

_GAP = "  "


def table(head: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None) -> str:
    """Lines of text without a last newline; lines end at `width` characters, if given."""
    cells = [head, *([_plain(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = (
        _GAP.join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
    return "\n".join(line if width is None else _cut(line, width) for line in lines)


def _plain(cell: object) -> str:
    # What an error says may hold anything, also a terminal's own commands.
    text = "".join(each if each.isprintable() else " " for each in str(cell))
    return " ".join(text.split())


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"
