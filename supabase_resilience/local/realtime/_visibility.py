"""Row level security: whether a subscriber may see a row.

The row is looked up by primary key with the subscriber's role and claims, as the real server does;
so the answer is about the row as it is now, not as it was when it changed.
"""

import json
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from supabase_resilience.local.realtime._catalog import Table
from supabase_resilience.local.realtime._database import Database
from supabase_resilience.local.realtime._pgoutput import Relation
from supabase_resilience.local.realtime._tokens import Claims

_AS_SUBSCRIBER = sql.SQL("""
    BEGIN;
    SELECT set_config('request.jwt.claims', {claims}, true),
           set_config('request.jwt.claim.sub', {sub}, true),
           set_config('request.jwt.claim.role', {role}, true),
           set_config('role', {role}, true);
    SELECT EXISTS (SELECT FROM {table} WHERE {key});
    ROLLBACK
""")


async def is_visible(
    database: Database, relation: Relation, table: Table, key: dict[str, str], claims: Claims
) -> bool:
    """Tell whether the policies show the row with this key; False if asking them fails."""
    statement = _AS_SUBSCRIBER.format(
        claims=json.dumps(claims),
        sub=str(claims.get("sub", "")),
        role=str(claims["role"]),
        table=sql.Identifier(relation.schema, relation.table),
        key=sql.SQL(" AND ").join(_equals(table, name, value) for name, value in key.items()),
    )
    try:
        rows = await database.rows(statement)
    except psycopg.OperationalError:
        raise
    except psycopg.Error:
        return False
    return bool(rows and rows[-1][0])


def _equals(table: Table, name: str, value: str) -> sql.Composable:
    cast = typed(table.columns[name].type_sql)
    return sql.SQL("{} = {}::text::{}").format(sql.Identifier(name), value, cast)


def typed(type_sql: str) -> sql.SQL:
    """Splice a type's name, which PostgreSQL's own `format_type` has quoted."""
    trusted: Any = type_sql
    name: LiteralString = trusted
    return sql.SQL(name)
