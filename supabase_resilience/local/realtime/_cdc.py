"""The life of the stream of changes ("change data capture"): it can die while all else goes on.

Then nobody is told: sockets answer, channels stay joined, and hear nothing any more. Who subscribes
afterwards brings the stream back to life, for themselves and not for those of before.
"""

import asyncio
import logging
from contextlib import suppress
from typing import Final

from supabase_resilience.local.realtime._subscriptions import Subscriptions
from supabase_resilience.local.realtime._wal import LongOutageError, WalReader

_RETRY_DELAY: Final = 0.1

_log = logging.getLogger(__name__)


class Cdc:
    """Follows the WAL while it lives."""

    def __init__(self, wal: WalReader, subscriptions: Subscriptions) -> None:
        self._wal = wal
        self._subscriptions = subscriptions
        self._reviving = asyncio.Lock()
        self._alive = asyncio.Event()
        self._dead = asyncio.Event()
        self._life: asyncio.Task[None] | None = None

    @property
    def is_flowing(self) -> bool:
        """Whether a change that is committed now will be read."""
        return self._alive.is_set() and self._wal.is_open

    async def start(self, *, patience: float) -> None:
        """Live. Raises `StartError` if the WAL cannot be read within `patience` seconds."""
        await self._wal.open(patience=patience)
        self._come_alive()

    async def run(self) -> None:
        """See one life after the other to its end; raises what nobody expected."""
        while True:
            await self._alive.wait()
            if self._life is not None:
                await asyncio.wait({self._life})
                self._die(self._life)

    async def kill(self) -> None:
        """Die; does nothing when dead."""
        if self._alive.is_set() and self._life is not None:
            self._life.cancel()
            await self._dead.wait()

    async def revive(self) -> bool:
        """Live again if dead; tell whether changes flow."""
        async with self._reviving:
            if not self._alive.is_set() and await self._wal.try_open():
                self._come_alive()
        return self.is_flowing

    async def flowing(self) -> None:
        """Return when changes flow; looks for it now and then."""
        await asyncio.sleep(_RETRY_DELAY)
        while not await self.revive():  # noqa: ASYNC110  (PostgreSQL tells nobody of its return)
            await asyncio.sleep(_RETRY_DELAY)

    def _come_alive(self) -> None:
        self._life = asyncio.create_task(self._wal.run())
        self._dead.clear()
        self._alive.set()

    def _die(self, life: asyncio.Task[None]) -> None:
        self._alive.clear()
        self._subscriptions.clear()
        self._dead.set()
        _log.warning("the stream of changes is dead until somebody subscribes")
        with suppress(asyncio.CancelledError, LongOutageError):
            life.result()
