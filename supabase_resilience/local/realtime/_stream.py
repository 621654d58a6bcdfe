"""From the WAL's messages to the subscribers: transactions, rates, and faults that lose changes.

What is lost is read all the same, so that every fault begins and ends at a known place in the WAL.
"""

import asyncio
import logging
import secrets
from typing import Final

import psycopg
from psycopg import sql

from supabase_resilience.local.realtime._catalog import Catalog
from supabase_resilience.local.realtime._database import Database
from supabase_resilience.local.realtime._fanout import Commit, Fanout
from supabase_resilience.local.realtime._pgoutput import Begin, Change, Decoder, Marker, Relation
from supabase_resilience.local.realtime._rates import Rate
from supabase_resilience.local.realtime._settings import Settings

_CATCH_UP_TIMEOUT: Final = 5.0
_EMIT_MARK: Final = sql.SQL("SELECT pg_logical_emit_message(true, 'realtime', %s::bytea)")

_log = logging.getLogger(__name__)


class ChangeStream:
    """Takes what the WAL reader reads. While `losing`, nobody is told of changes."""

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        fanout: Fanout,
        events: Rate,
        settings: Settings,
    ) -> None:
        self.losing = False
        self._database = database
        self._catalog = catalog
        self._fanout = fanout
        self._events = events
        self._settings = settings
        self._decoder = Decoder()
        self._commit = Commit(0, "", 0)
        self._too_many = False
        self._marks: dict[bytes, asyncio.Event] = {}

    async def consume(self, message: bytes) -> None:
        """Do what the message asks for."""
        record = self._decoder.decode(message)
        if isinstance(record, Change):
            if not self.losing and not self._too_many:
                await self._fanout.deliver(record, self._commit)
        elif isinstance(record, Begin):
            self._begin(record)
        elif isinstance(record, Relation):
            self._catalog.forget(record.oid)
        elif isinstance(record, Marker) and record.content in self._marks:
            self._marks[record.content].set()

    async def catch_up(self) -> None:
        """Return when the WAL has been consumed to where it ends now, or cannot be any more."""
        mark = secrets.token_bytes(8)
        self._marks[mark] = asyncio.Event()
        try:
            async with asyncio.timeout(_CATCH_UP_TIMEOUT):
                await self._database.rows(_EMIT_MARK, (mark,))
                await self._marks[mark].wait()
        except (TimeoutError, psycopg.Error) as error:
            _log.warning("did not reach the end of the WAL: %s", type(error).__name__)
        finally:
            del self._marks[mark]

    def _begin(self, begin: Begin) -> None:
        self._commit = Commit.of(begin)
        # Asked once a transaction, which so comes whole or not at all.
        self._too_many = self._events.is_above(self._settings.max_events_per_second)
