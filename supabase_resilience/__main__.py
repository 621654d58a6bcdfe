"""`python -m supabase_resilience COMMAND`: one module of `cli` per command, loaded when called."""

import argparse
import sys
from collections.abc import Sequence

from supabase_resilience import __version__
from supabase_resilience.cli import doctor, local, monitoring, queue, sql, status, verify, work

__all__ = ["main"]

_ABOUT = "Keep a Python app on Supabase working while something fails."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 when it did what was asked, 1 when not, 2 for misuse."""
    parser = argparse.ArgumentParser(prog="supabase-resilience", description=_ABOUT)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (doctor, local, monitoring, queue, sql, status, verify, work):
        command.register(commands)
    options = parser.parse_args(arguments)
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
