"""`sql NAME`: the SQL of an optional migration, or with `--remove` the way back, to read and run.

What there is, is what lies in the package's `sql/`: `NAME.sql` beside `NAME_remove.sql`.
"""

import argparse
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

__all__ = ["register"]

_REMOVE = "_remove.sql"


def register(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "sql",
        help="print the SQL of an optional migration",
        description="Print the SQL of an optional migration; run it in Supabase's SQL editor, or "
        "keep it among your migrations. It may be run again at any time.",
    )
    parser.add_argument("name", choices=_names(), help="which migration")
    parser.add_argument(
        "--remove", action="store_true", help="print the SQL that takes it back instead"
    )
    parser.set_defaults(run=_run)


def _names() -> list[str]:
    paths = (path.name for path in _directory().iterdir())
    return sorted(path.removesuffix(_REMOVE) for path in paths if path.endswith(_REMOVE))


def _directory() -> Traversable:
    return files("supabase_resilience") / "sql"


def _run(options: argparse.Namespace) -> int:
    file = f"{options.name}{_REMOVE if options.remove else '.sql'}"
    print((_directory() / file).read_text(encoding="utf-8"), end="")
    return 0
