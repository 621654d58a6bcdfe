"""`sql NAME`: the SQL of an optional migration, or with `--remove` the way back, to read and run.

What there is, is what lies in the package's `sql/`: `NAME.sql` beside `NAME_remove.sql`. That of
`listener` is followed by a part for each table, a template that is filled in here: names from the
command line become SQL in this file only, always quoted.
"""

import argparse
import functools
import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

__all__ = ["register"]

_REMOVE = "_remove.sql"
_LISTENER = "listener"
_NAME_LIMIT = 63  # bytes of a PostgreSQL name
_NAME = r'(?:"(?:[^"]|"")+"|[^",.]+)'
_INTERVAL = re.compile(r"0*[1-9]\d{0,5} +(second|minute|hour|day|week|month)s?")
_NOTE = """\
-- Run it statement by statement, not in one transaction: it makes an index CONCURRENTLY. An attempt
-- that fails leaves an invalid index behind: drop it, then run that statement again.
--
"""


@dataclass(frozen=True, slots=True)
class _Table:
    schema: str
    name: str

    @property
    def sql(self) -> str:
        return f"{_identifier(self.schema)}.{_identifier(self.name)}"


def register(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "sql",
        help="print the SQL of an optional migration",
        description="Print the SQL of an optional migration; run it in Supabase's SQL editor, or "
        "keep it among your migrations. It may be run again at any time.",
    )
    names = parser.add_subparsers(title="migrations", metavar="NAME", required=True)
    for name in _names():
        migration = names.add_parser(name, help=f"see `sql {name} --help`")
        migration.add_argument(
            "--remove", action="store_true", help="print the SQL that takes it back instead"
        )
        if name == _LISTENER:
            _add_listener_options(migration)
        else:
            migration.set_defaults(run=functools.partial(_plain, name))


def _names() -> list[str]:
    paths = (path.name for path in _directory().iterdir())
    return sorted(path.removesuffix(_REMOVE) for path in paths if path.endswith(_REMOVE))


def _directory() -> Traversable:
    return files("supabase_resilience") / "sql"


def _read(file: str) -> str:
    return (_directory() / file).read_text(encoding="utf-8")


def _plain(name: str, options: argparse.Namespace) -> int:
    print(_read(f"{name}{_REMOVE if options.remove else '.sql'}"), end="")
    return 0


# --- listener -------------------------------------------------------------------------------------


def _add_listener_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--table",
        type=_table,
        action="append",
        default=[],
        dest="tables",
        metavar="[SCHEMA.]TABLE",
        help="a table to follow, spelled as it is; may be given several times; with --remove: not "
        "to follow any more (none: take back everything)",
    )
    parser.add_argument(
        "--recovery",
        choices=["versioned", "change-log"],
        default="versioned",
        help="find again every row's final state (the default), or every change",
    )
    parser.add_argument(
        "--key",
        type=_key,
        default=("id",),
        metavar="COLUMN[,COLUMN]",
        help="the primary key of the tables (id)",
    )
    parser.add_argument(
        "--retention",
        type=_interval,
        default="7 days",
        metavar="INTERVAL",
        help="how long deletes and changes are kept (7 days); who is away for longer reads all",
    )
    parser.add_argument(
        "--concurrently",
        action="store_true",
        help="make indexes without holding up writers, as statements outside of any transaction",
    )
    parser.set_defaults(run=functools.partial(_listener, parser))


def _table(text: str) -> _Table:
    parts = re.fullmatch(rf"(?:({_NAME})\.)?({_NAME})", text.strip())
    if parts is None:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not the name of a table; write orders, shop.orders or shop."a.b"'
        )
    return _Table(_name(parts[1] or "public"), _name(parts[2]))


def _key(text: str) -> tuple[str, ...]:
    if re.fullmatch(rf"{_NAME}(,{_NAME})*", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of columns; write id or a,b")
    columns = tuple(_name(column) for column in re.findall(_NAME, text))
    if len(set(columns)) < len(columns):
        raise argparse.ArgumentTypeError(f"{text!r} names a column twice")
    return columns


def _name(text: str) -> str:
    """A name as PostgreSQL has it: what is not in quotes is taken as it is, too."""
    name = text.strip()
    if name.startswith('"'):
        name = name[1:-1].replace('""', '"')
    if not name or not name.isprintable() or len(name.encode()) > _NAME_LIMIT:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a name: that has 1 to {_NAME_LIMIT} bytes, all printable"
        )
    return name


def _interval(text: str) -> str:
    if _INTERVAL.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an interval; write a number and a unit, for example '7 days'"
        )
    return text


def _listener(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    tables = list(dict.fromkeys(options.tables))
    if options.remove:
        print(_removal(tables), end="")
        return 0
    if not tables:
        parser.error("name at least one table to follow, for example --table public.orders")
    print(_migration(tables, options), end="")
    return 0


def _removal(tables: list[_Table]) -> str:
    if not tables:
        return _read(f"{_LISTENER}{_REMOVE}")
    return "".join(
        f"-- Takes back what was made for {table.sql}, with sync_ver and sync_xid.\n"
        "select supabase_resilience.unfollow"
        f"({_literal(table.schema)}, {_literal(table.name)});\n"
        for table in tables
    )


def _migration(tables: list[_Table], options: argparse.Namespace) -> str:
    is_versioned = options.recovery == "versioned"
    template = _read(f"{_LISTENER}_table_{options.recovery.replace('-', '_')}.sql")
    parts = [_read(f"{_LISTENER}.sql")]
    for table in tables:
        parts.append(template.format(**_values(table, options.key, options.retention)))
        if is_versioned:
            parts.append(_index(table, options.key, concurrently=options.concurrently))
    parts.append("\nnotify pgrst, 'reload schema';\n")
    note = _NOTE if is_versioned and options.concurrently else ""
    return note + "".join(parts)


def _values(table: _Table, key: tuple[str, ...], retention: str) -> dict[str, str]:
    columns = [_identifier(column) for column in key]
    literals = ", ".join(map(_literal, key))
    return {
        "table": table.sql,
        "schema_name": _literal(table.schema),
        "table_name": _literal(table.name),
        "key": f"array[{literals}]",
        "key_literals": literals,
        "old_key": ", ".join(f"old.{column}" for column in columns),
        "new_key": ", ".join(f"new.{column}" for column in columns),
        "retention": _literal(retention),
    }


def _index(table: _Table, key: tuple[str, ...], *, concurrently: bool) -> str:
    how = "concurrently if not exists" if concurrently else "if not exists"
    columns = ", ".join(map(_identifier, ("sync_xid", *key)))
    name = _identifier(_index_name(table, key))
    return f"create index {how} {name}\n  on {table.sql} ({columns});\n"


def _index_name(table: _Table, key: tuple[str, ...]) -> str:
    name = "_".join([table.name, "sync_xid", *key, "idx"])
    if len(name.encode()) <= _NAME_LIMIT:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{table.name.encode()[:40].decode(errors='ignore')}_sync_{digest}"


# --- names and values as SQL ----------------------------------------------------------------------


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
