"""The replication connection: every committed change, read from the WAL as it happens.

The slot is temporary, as the real server's: what is committed while nobody reads is lost. psycopg
has no replication API, so the copy stream is driven through its libpq layer.
"""

import asyncio
import logging
import secrets
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Final

import psycopg
from psycopg import sql
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn

from supabase_resilience.local.realtime._database import Connection, connect
from supabase_resilience.local.realtime._settings import Settings

_POSTGRES_EPOCH: Final = 946_684_800
_FIRST_DELAY: Final = 0.1
_LONGEST_DELAY: Final = 1.0
_BATCH: Final = 256

_log = logging.getLogger(__name__)


class StartError(RuntimeError):
    """The server cannot start; the message says what to do."""


class LongOutageError(RuntimeError):
    """PostgreSQL was away for longer than the reader's patience."""


class WalReader:
    """Hands each pgoutput message to `consume`, at most once, in order of commit."""

    def __init__(
        self,
        dsn: str,
        publication: str,
        consume: Callable[[bytes], Awaitable[None]],
        settings: Settings,
    ) -> None:
        self._dsn = dsn
        self._publication = publication
        self._consume = consume
        self._settings = settings
        self._connection: Connection | None = None
        self._trouble = ""
        self.is_open = False

    async def open(self, *, patience: float) -> None:
        """Start reading. Raises `StartError` if that cannot be within `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                await self._connect(give_up_on=(StartError, psycopg.ProgrammingError))
        except TimeoutError:
            raise StartError(
                f"PostgreSQL could not be read within {patience:g} s; check that it runs and that "
                f"the DSN is right ({self._trouble or 'no answer'})"
            ) from None
        except psycopg.Error as error:
            raise StartError(f"PostgreSQL refused to be read: {error}") from None

    async def try_open(self) -> bool:
        """Start reading if that can be now; tell whether it could."""
        try:
            await self._start()
        except (psycopg.Error, StartError) as error:
            self._trouble = str(error).strip()
        finally:
            if not self.is_open:  # Half a start, also when it was cancelled, keeps a slot.
                await self._disconnect()
        return self.is_open

    async def run(self) -> None:
        """Follow the WAL until cancelled, across restarts of PostgreSQL.

        Raises `LongOutageError` if one takes too long.
        """
        try:
            while True:
                if self._connection is not None:
                    await self._follow(self._connection.pgconn)
                await self._disconnect()
                await self._reconnect()
        finally:
            await self._disconnect()

    async def _reconnect(self) -> None:
        try:
            async with asyncio.timeout(self._settings.cdc_patience):
                await self._connect()
        except TimeoutError:
            raise LongOutageError from None
        _log.warning("following the WAL again; changes in between are lost")

    async def _connect(self, give_up_on: tuple[type[Exception], ...] = ()) -> None:
        delay = _FIRST_DELAY
        while True:
            try:
                await self._start()
            except give_up_on:
                raise
            except (psycopg.Error, StartError) as error:
                self._trouble = str(error).strip()
                await self._disconnect()
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY)
            else:
                return

    async def _disconnect(self) -> None:
        self.is_open = False
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _start(self) -> None:
        self._connection = await connect(self._dsn, replication="database")
        await _require_logical_wal(self._connection)
        slot = f"supabase_realtime_{secrets.token_hex(6)}"
        await self._connection.execute(
            sql.SQL(
                "CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT"
            ).format(sql.Identifier(slot))
        )
        start = sql.SQL(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {}, "
            "messages 'true')"
        ).format(sql.Identifier(slot), sql.Literal(f'"{self._publication}"'))
        await _start_copy(self._connection.pgconn, start.as_bytes(self._connection))
        self.is_open = True

    async def _follow(self, pgconn: PGconn) -> None:
        """Consume what comes until the stream ends."""
        try:
            while True:
                await self._consume_next(pgconn)
        except psycopg.Error as error:
            _log.warning("lost the replication stream: %s", type(error).__name__)

    async def _consume_next(self, pgconn: PGconn) -> None:
        batch = _received(pgconn)
        if not batch:
            await _readable(pgconn.socket)
            pgconn.consume_input()
            return
        # Confirm before handing over: a stopping PostgreSQL waits for it, and what is confirmed
        # too early is lost with the slot anyway.
        _confirm(pgconn, batch)
        for data in batch:
            if data[:1] == b"w":
                await self._consume(data[25:])
        await asyncio.sleep(0)


async def _require_logical_wal(connection: Connection) -> None:
    row = await (await connection.execute("SHOW wal_level")).fetchone()
    level = row[0] if row else "unknown"
    if level != "logical":
        raise StartError(
            f"PostgreSQL runs with wal_level = {level}: set wal_level = logical in "
            "postgresql.conf and restart PostgreSQL"
        )


async def _start_copy(pgconn: PGconn, command: bytes) -> None:
    pgconn.send_query(command)
    pgconn.flush()
    while pgconn.is_busy():
        await _readable(pgconn.socket)
        pgconn.consume_input()
    result = pgconn.get_result()
    if result is None or result.status != ExecStatus.COPY_BOTH:
        raise psycopg.OperationalError("PostgreSQL did not start the replication stream")


async def _readable(socket: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    # Watched only while waiting: data that is there already would keep the loop spinning.
    loop.add_reader(socket, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(socket)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _received(pgconn: PGconn) -> list[bytes]:
    batch: list[bytes] = []
    while len(batch) < _BATCH:
        size, data = pgconn.get_copy_data(1)
        if size < 0:
            raise psycopg.OperationalError("PostgreSQL ended the replication stream")
        if size == 0:
            break
        batch.append(bytes(data))
    return batch


def _confirm(pgconn: PGconn, batch: list[bytes]) -> None:
    position = max(map(_position, batch))
    now = int((time.time() - _POSTGRES_EPOCH) * 1_000_000)
    pgconn.put_copy_data(b"r" + struct.pack(">QQQqB", position, position, position, now, 0))
    pgconn.flush()


def _position(data: bytes) -> int:
    """Return how far the WAL has been sent, as a data or a keepalive message tells."""
    offset = 9 if data[:1] == b"w" else 1
    (position,) = struct.unpack_from(">Q", data, offset)
    return int(position)
