"""What a pass of verification costs and holds: `make bench-verification` prints the ratios.

A table of a million rows on a LocalSupabase, gone through by a hand-written keyset loop and by
ours, in one range and in four; the same rule in the database, where only broken rows travel; and
the memory that a pass takes. All of them take turns, in one run.
"""

import argparse
import os
import platform

import verification_memory
import verification_speed
import verification_table
from judged import Line, show_judged

PARTS = ("memory", "speed")


def run(given: argparse.Namespace) -> list[Line]:
    lines: list[Line] = []
    with verification_table.stack(given.rows) as local:
        if "memory" in given.parts:  # first: a process that has held much already tells little
            lines += verification_memory.run(local)
        if "speed" in given.parts:
            effort = verification_speed.Effort(
                rows=given.rows, page=given.page, rounds=given.rounds
            )
            lines += verification_speed.run(local, effort)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--page", type=int, default=1_000, help="rows")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores")
    show_judged(run(given))


if __name__ == "__main__":
    main()
