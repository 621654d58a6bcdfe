"""Waits until a transaction that the WAL shows as committed is so for everyone else.

The WAL is read the moment a commit is on disk, which is a moment before other sessions see it. A
question about its rows or its DDL that is asked in between gets the answer of before.
"""

import asyncio
from typing import Final

from psycopg import sql

from supabase_resilience.local.realtime._database import Database

_SNAPSHOT: Final = sql.SQL("SELECT pg_current_snapshot()::text")
_XIDS: Final = 1 << 32
_PAUSE: Final = 0.001


class Settling:
    """Remembers the last transaction that it has waited for."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._settled: int | None = None

    async def wait(self, xid: int) -> None:
        """Return when queries see what this transaction did; `xid` is the WAL's 32-bit one.

        Raises `psycopg.Error` when PostgreSQL is away.
        """
        if xid == self._settled:
            return
        # PostgreSQL tells nobody of that moment, so it is asked for.
        while not is_settled(await self._snapshot(), xid):  # noqa: ASYNC110
            await asyncio.sleep(_PAUSE)
        self._settled = xid

    async def _snapshot(self) -> str:
        ((snapshot,),) = await self._database.rows(_SNAPSHOT)
        return str(snapshot)


def is_settled(snapshot: str, xid: int) -> bool:
    """Tell whether a finished transaction is over in a snapshot (`xmin:xmax:in,progress`)."""
    _, xmax, running = snapshot.split(":")
    still_running = {int(other) % _XIDS for other in running.split(",") if other}
    ahead = (xid - int(xmax)) % _XIDS < _XIDS // 2  # Xids wrap around: compare their distance.
    return xid not in still_running and not ahead
