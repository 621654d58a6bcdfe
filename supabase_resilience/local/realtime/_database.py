"""A connection for questions to PostgreSQL that heals itself after an outage.

Questions are asked one at a time, each in one round trip, so callers share the connection freely.
Text comes out as the WAL writes it: both kinds of connection use the same session settings.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus

_SETTINGS: Final = (
    "-c timezone=UTC -c datestyle=ISO -c intervalstyle=postgres -c bytea_output=hex "
    "-c extra_float_digits=1 -c client_encoding=UTF8"
)
_CONNECT_TIMEOUT: Final = 5

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Query = LiteralString | sql.SQL | sql.Composed
Rows = list[tuple[Any, ...]]


async def connect(dsn: str, **parameters: str) -> Connection:
    """Open a connection in autocommit whose values read as those in the WAL."""
    session = make_conninfo(
        dsn,
        options=_SETTINGS,
        application_name="supabase_realtime",
        connect_timeout=_CONNECT_TIMEOUT,
        **parameters,
    )
    # Without prepared statements no plan outlives a change of the table it is for.
    return await psycopg.AsyncConnection.connect(session, autocommit=True, prepare_threshold=None)


class Database:
    """Asks PostgreSQL; raises `psycopg.Error` when it refuses or is away."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: Connection | None = None
        self._asking = asyncio.Lock()

    async def rows(self, query: Query, params: Sequence[Any] | None = None) -> Rows:
        """Return the rows of the last statement in `query` that has any."""
        try:
            return await self._ask(query, params)
        except psycopg.OperationalError:
            if self._connection is not None and not self._connection.broken:
                raise
            return await self._ask(query, params)  # Only reads come here: asking twice is safe.

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            await self._connection.close()

    async def _ask(self, query: Query, params: Sequence[Any] | None) -> Rows:
        async with self._asking:
            connection = await self._open()
            try:
                return await _last_rows(await connection.execute(query, params))
            finally:
                # A script that fails half-way leaves its transaction open.
                if connection.info.transaction_status == TransactionStatus.INERROR:
                    await connection.rollback()

    async def _open(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = await connect(self._dsn)
        return self._connection


async def _last_rows(cursor: psycopg.AsyncCursor[tuple[Any, ...]]) -> Rows:
    rows: Rows = []
    while True:
        if cursor.description is not None:
            rows = await cursor.fetchall()
        if not cursor.nextset():
            return rows
