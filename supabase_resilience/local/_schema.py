"""What a database holds before its user comes: Supabase's own objects, then the user's schema."""

import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg

from supabase_resilience.local._errors import LocalSupabaseError
from supabase_resilience.local._postgres import OWNER, Postgres

Script = str | Path
_SQL = Path(__file__).parent / "sql"
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_MAKES_PUBLICATION = re.compile(
    r'create\s+publication\s+"?supabase_realtime"?(\s|;|$)', re.IGNORECASE
)


def read_scripts(schema: Script | Sequence[Script]) -> list[tuple[str, str]]:
    """Return the name and the text of each script; a `str` is SQL, a `Path` is a file of it.

    Raises `LocalSupabaseError` for a path that is no readable file.
    """
    scripts = [schema] if isinstance(schema, str | Path) else schema
    return [_read(script, f"schema[{index}]") for index, script in enumerate(scripts)]


def read_pgmq(pgmq_sql: Script | None) -> str:
    """Return the SQL that installs pgmq: the given one, or that of the package of this name."""
    if pgmq_sql is not None:
        return _read(pgmq_sql, "pgmq_sql")[1]
    spec = importlib.util.find_spec("pgmq")
    if spec is None or spec.origin is None:
        raise LocalSupabaseError(
            "Queues need the package pgmq, which brings their SQL. Run"
            ' `pip install "supabase-resilience[local]"`, or give the SQL as pgmq_sql.'
        )
    return (Path(spec.origin).parent / "sql" / "pgmq.sql").read_text(encoding="utf-8")


def make_project(postgres: Postgres, pgmq: str) -> None:
    """Make the database what a fresh Supabase project is."""
    with postgres.connect() as superuser:
        _run(superuser, "Supabase's roles", _own("roles.sql", "auth.sql"))
        with postgres.connect(OWNER) as owner:
            # The owner's, so that the user's schema may make queues.
            _run(owner, "pgmq's SQL", pgmq)
            _run(owner, "Supabase's queues", _own("pgmq_public.sql", "publication.sql"))
        _run(superuser, "Supabase's triggers", _own("reload.sql"))


def run_schema(postgres: Postgres, scripts: list[tuple[str, str]]) -> None:
    """Run the user's scripts as the role `postgres`, each in a transaction of its own.

    Raises `LocalSupabaseError` that names the script, the line and PostgreSQL's message.
    """
    if not scripts:
        return
    with postgres.connect(OWNER) as owner:
        if any(_makes_publication(text) for _, text in scripts):
            owner.execute("drop publication supabase_realtime")
        for name, text in scripts:
            _run(owner, name, text)


def _makes_publication(text: str) -> bool:
    return _MAKES_PUBLICATION.search(_COMMENT.sub(" ", text)) is not None


def _own(*names: str) -> str:
    return "\n".join((_SQL / name).read_text(encoding="utf-8") for name in names)


def _read(script: Script, name: str) -> tuple[str, str]:
    if isinstance(script, str):
        return name, script
    try:
        return str(script), script.read_text(encoding="utf-8-sig")
    except IsADirectoryError:
        raise LocalSupabaseError(
            f"{script} is a directory: give its files, such as sorted(path.glob('*.sql'))"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise LocalSupabaseError(f"{name} cannot be read: {error}") from None


def _run(connection: psycopg.Connection[Any], name: str, text: str) -> None:
    try:
        # Without parameters it goes as one message, which PostgreSQL runs as one transaction.
        connection.execute(text.encode())
    except psycopg.Error as error:
        raise LocalSupabaseError(" ".join(_explain(error, name, text))) from None


def _explain(error: psycopg.Error, name: str, text: str) -> Iterator[str]:
    told = error.diag
    message = told.message_primary or str(error).strip()
    line = ""
    if told.statement_position is not None:
        line = f", line {text.count(chr(10), 0, int(told.statement_position) - 1) + 1}"
    yield f"{name}{line}: {message} ({error.sqlstate})."
    if told.message_hint:
        yield told.message_hint
    if re.search(r'extension ".*" is not available', message):
        yield (
            "The PostgreSQL of the wheel has its own extensions and pgvector. For others, name a"
            " server that has them in SUPABASE_RESILIENCE_PG_DSN."
        )
