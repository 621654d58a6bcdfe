"""Checks a binding against the database and makes it ready to match changes.

The checks are those of the real server's `realtime.subscription` table, with its messages: a
client learns of a wrong column or value when it subscribes, not by never hearing anything.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import psycopg
from psycopg import sql

from supabase_resilience.local.realtime._bindings import Binding, BindingError
from supabase_resilience.local.realtime._catalog import Catalog, Table, TableColumn
from supabase_resilience.local.realtime._database import Database
from supabase_resilience.local.realtime._filters import (
    IS_KEYWORDS,
    PATTERN_OPERATORS,
    Filter,
    FilterSpec,
)
from supabase_resilience.local.realtime._visibility import typed

_BOOLEAN_OID: Final = 16
_MOST_IN_VALUES: Final = 100

_PUBLISHED: Final = sql.SQL("""
    SELECT format('%%I.%%I', schemaname, tablename)::regclass::oid::int8
      FROM pg_publication_tables
     WHERE pubname = %s
       AND schemaname LIKE %s ESCAPE ''
       AND tablename LIKE %s ESCAPE ''
     ORDER BY 1
""")
_HAS_OPERATOR: Final = sql.SQL(
    "SELECT EXISTS (SELECT FROM pg_operator WHERE oprname = %s AND oprleft = %s::oid)"
)
_CHECK_REGEX: Final = sql.SQL("SELECT '' ~ %s::text")
# format() writes a value the way the WAL does; a cast to text writes booleans differently.
_CANONICAL: Final = sql.SQL("SELECT format('%%s', %s::text::{})")
_CANONICAL_LIST: Final = sql.SQL(
    "SELECT CASE WHEN v IS NOT NULL THEN format('%%s', v) END FROM unnest(%s::text::{}[]) AS v"
)

Filters = Mapping[int, tuple[Filter, ...]]


class Compiler:
    """Asks PostgreSQL about bindings."""

    def __init__(self, database: Database, catalog: Catalog, *, publication: str) -> None:
        self._database = database
        self._catalog = catalog
        self._publication = publication

    async def published(self, schema: str = "*", table: str = "*") -> list[int]:
        """Return the oids of the published tables with that name; `*` stands for any."""
        patterns = ("%" if name == "*" else name for name in (schema, table))
        rows = await self._database.rows(_PUBLISHED, (self._publication, *patterns))
        return [oid for (oid,) in rows]

    async def compile(self, binding: Binding, role: str) -> Filters:
        """Return the binding's filters for each of its tables.

        Raises `BindingError` with the message for the client, `psycopg.OperationalError` when
        PostgreSQL is away.
        """
        try:
            tables = await self.published(binding.schema, binding.table)
            compiled = {oid: await self._for_table(oid, binding, role) for oid in tables}
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            raise BindingError(_exception_message(binding, error)) from None
        if not compiled:
            raise BindingError(
                "Unable to subscribe to changes with given parameters. Please check Realtime is "
                f"enabled for the given connect parameters: {binding.describe()}"
            )
        return compiled

    async def _for_table(self, oid: int, binding: Binding, role: str) -> tuple[Filter, ...]:
        self._catalog.forget(oid)
        table = await self._catalog.table(oid, role)
        filters = [await self._filter(table, spec) for spec in binding.filters]
        for name in binding.select or ():
            if not table.selectable(name):
                _refuse(f"invalid column for select {name}")
        return tuple(filters)

    async def _filter(self, table: Table, spec: FilterSpec) -> Filter:
        if not table.selectable(spec.column):
            _refuse(f"invalid column for filter {spec.column}")
        column = table.columns[spec.column]
        operands = await self._operands(column, spec)
        try:
            return Filter(spec, column.type_oid, operands)
        except re.error as error:
            _refuse(f"invalid regular expression for {spec.operator} filter: {error}")

    async def _operands(self, column: TableColumn, spec: FilterSpec) -> tuple[str | None, ...]:
        if spec.operator == "in":
            return await self._in_operands(column, spec.value)
        if spec.operator == "is":
            _check_is(column, spec.value)
            return (spec.value,)
        if spec.operator in PATTERN_OPERATORS:
            await self._check_pattern(column, spec)
            return (spec.value,)
        statement = _CANONICAL.format(typed(column.type_sql))
        return tuple(text for (text,) in await self._database.rows(statement, (spec.value,)))

    async def _in_operands(self, column: TableColumn, literal: str) -> tuple[str | None, ...]:
        statement = _CANONICAL_LIST.format(typed(column.type_sql))
        rows = await self._database.rows(statement, (literal,))
        if len(rows) > _MOST_IN_VALUES:
            _refuse(f"too many values for `in` filter. Maximum {_MOST_IN_VALUES}")
        return tuple(text for (text,) in rows)

    async def _check_pattern(self, column: TableColumn, spec: FilterSpec) -> None:
        operator = PATTERN_OPERATORS[spec.operator]
        rows = await self._database.rows(_HAS_OPERATOR, (operator, column.type_oid))
        if not rows[0][0]:
            _refuse(
                f"operator {spec.operator} requires a text-compatible column type, "
                f"got {column.type_sql}"
            )
        if spec.operator in {"match", "imatch"}:
            await self._check_regex(spec)

    async def _check_regex(self, spec: FilterSpec) -> None:
        try:
            await self._database.rows(_CHECK_REGEX, (spec.value,))
        except psycopg.DataError as error:
            problem = error.diag.message_primary
            _refuse(f"invalid regular expression for {spec.operator} filter: {problem}")


def _check_is(column: TableColumn, keyword: str) -> None:
    if keyword not in IS_KEYWORDS:
        _refuse("invalid value for is filter: must be null, true, false, or unknown")
    if keyword != "null" and column.type_oid != _BOOLEAN_OID:
        _refuse(f"is {keyword} filter requires a boolean column, got {column.type_sql}")


def _refuse(message: str) -> NoReturn:
    """Refuse as the database function of the real server does."""
    raise _Refusal(message)


class _Refusal(psycopg.errors.RaiseException):
    """A check of ours that failed, with the class that PostgreSQL's RAISE has."""


def _exception_message(binding: Binding, error: psycopg.Error) -> str:
    return (
        "Unable to subscribe to changes with given parameters. An exception happened so please "
        f"check your connect parameters: {binding.describe()}. "
        f"Exception: {describe_error(error)}"
    )


def describe_error(error: psycopg.Error) -> str:
    """Write a database error the way Realtime shows it: code, name, message."""
    kind: Any = next(cls for cls in type(error).__mro__ if cls.__module__ == "psycopg.errors")
    name = re.sub(r"(?<=.)(?=[A-Z])", "_", kind.__name__).lower()
    return f"ERROR {error.sqlstate} ({name}) {error.diag.message_primary or error}"
