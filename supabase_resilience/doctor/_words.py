"""Names and values as SQL and as arguments of a command, always quoted: fixes are copied as is."""

import re
import shlex
from collections.abc import Iterable

__all__ = ["columns", "identifier", "literal", "migration_command", "relation"]

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")


def identifier(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def relation(schema: str, table: str) -> str:
    """A table as SQL has it."""
    return f"{identifier(schema)}.{identifier(table)}"


def columns(names: Iterable[str]) -> str:
    """A list of columns as SQL has it."""
    return ", ".join(map(identifier, names))


def literal(text: str) -> str:
    """A string as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def migration_command(schema: str, table: str, level: str, key: Iterable[str]) -> str:
    """The command that prints the listener's migration of a table."""
    arguments = ["--table", f"{_argument(schema)}.{_argument(table)}"]
    if level == "change_log":
        arguments += ["--recovery", "change-log"]
    names = list(key)
    if names != ["id"]:
        arguments += ["--key", ",".join(map(_argument, names))]
    return "python -m supabase_resilience sql listener " + shlex.join(arguments)


def _argument(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else identifier(name)
