"""Makes the bindings of a channel live, and tells it when they are.

The reply to a join comes first; "Subscribed to PostgreSQL" follows some time later, and only what
is committed after it is certain to be delivered. One bad binding leaves the whole channel without
changes, as in the real server.
"""

import asyncio
from typing import Final

import psycopg
from psycopg import sql

from supabase_resilience.local.realtime._bindings import BindingError, binding_id, parse_binding
from supabase_resilience.local.realtime._cdc import Cdc
from supabase_resilience.local.realtime._compiler import Compiler
from supabase_resilience.local.realtime._database import Database
from supabase_resilience.local.realtime._phoenix import system
from supabase_resilience.local.realtime._settings import Settings
from supabase_resilience.local.realtime._sockets import Channel
from supabase_resilience.local.realtime._subscriptions import Subscription, Subscriptions

_NOW: Final = sql.SQL("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::int8")


class Subscriber:
    """Turns bindings into subscriptions."""

    def __init__(
        self,
        database: Database,
        compiler: Compiler,
        subscriptions: Subscriptions,
        cdc: Cdc,
        settings: Settings,
    ) -> None:
        self._database = database
        self._compiler = compiler
        self._subscriptions = subscriptions
        self._cdc = cdc
        self._settings = settings

    async def subscribe(self, channel: Channel) -> None:
        """Make the channel's bindings live and tell it; keep trying while PostgreSQL is away."""
        try:
            for params in channel.config.bindings:
                parse_binding(params)  # Unreadable ones are refused at once.
            await asyncio.sleep(self._settings.subscribe_delay)
            while not await self._try(channel):
                _tell(channel, "error", '{:error, "Too many database timeouts"}')
                await self._cdc.flowing()
        except BindingError as error:
            self._subscriptions.remove(channel)
            _tell(channel, "error", str(error))

    async def _try(self, channel: Channel) -> bool:
        # Without a replication slot nothing would be delivered yet.
        if not await self._cdc.revive():
            return False
        try:
            subscriptions = await self._subscriptions_of(channel)
        except psycopg.OperationalError:
            return False
        if not self._cdc.is_flowing:  # The slot was lost while PostgreSQL was asked.
            return False
        self._subscriptions.set(channel, subscriptions)
        _tell(channel, "ok", "Subscribed to PostgreSQL")
        return True

    async def _subscriptions_of(self, channel: Channel) -> list[Subscription]:
        role = str(channel.claims["role"])
        bindings = [(binding_id(b), parse_binding(b)) for b in channel.config.bindings]
        tables = [await self._compiler.compile(binding, role) for _, binding in bindings]
        since = int((await self._database.rows(_NOW))[0][0])
        return [
            Subscription(id_, binding.event, binding.select, since, filters)
            for (id_, binding), filters in zip(bindings, tables, strict=True)
        ]


def _tell(channel: Channel, status: str, text: str) -> None:
    topic, join_ref = channel.topic, channel.join_ref
    channel.send(system(topic, join_ref, text, status=status, extension="postgres_changes"))
