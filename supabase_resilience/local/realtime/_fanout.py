"""Brings each change to the subscribers that may see it.

The rules are those of the real server: filters first, then column privileges per role, then row
level security per subscriber; a DELETE shows keys to everyone, for its row cannot be checked any
more. Records are built as JSON text once per role and column selection.
"""

import json
import logging
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

import psycopg
from psycopg import sql

from supabase_resilience.local.realtime._catalog import Catalog, Projection, Table, TableColumn
from supabase_resilience.local.realtime._database import Database
from supabase_resilience.local.realtime._pgoutput import ABSENT, Begin, Change, Row
from supabase_resilience.local.realtime._phoenix import Frame, to_json
from supabase_resilience.local.realtime._rates import Rate
from supabase_resilience.local.realtime._settling import Settling
from supabase_resilience.local.realtime._sockets import Channel
from supabase_resilience.local.realtime._subscriptions import Subscription, Subscriptions
from supabase_resilience.local.realtime._visibility import is_visible, typed

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MOST_RECORD_BYTES: Final = 1024 * 1024
_MOST_VALUE_BYTES: Final = 64

_log = logging.getLogger(__name__)

Receiver = tuple[Channel, Subscription]
T = TypeVar("T")
Json = dict[str, str]


@dataclass(frozen=True, slots=True)
class Commit:
    """The transaction that a change belongs to; `timestamp` is for clients."""

    lsn: int
    timestamp: str
    xid: int

    @classmethod
    def of(cls, begin: Begin) -> "Commit":
        """Read it from the transaction's first message."""
        moment = _EPOCH + timedelta(microseconds=begin.committed_at)
        iso = moment.replace(tzinfo=None).isoformat(timespec="milliseconds")
        return cls(begin.commit_lsn, f"{iso}Z", begin.xid)


class Fanout:
    """Sends changes to channels, and counts them once for each subscription."""

    def __init__(
        self, database: Database, catalog: Catalog, subscriptions: Subscriptions, events: Rate
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._subscriptions = subscriptions
        self._events = events
        self._settling = Settling(database)

    async def deliver(self, change: Change, commit: Commit) -> None:
        """Tell everyone who is subscribed and may know; lost if PostgreSQL goes away meanwhile."""
        receivers = [
            (channel, subscription)
            for channel, subscription in self._subscriptions.of_table(change.relation.oid)
            if subscription.wants(change, commit.lsn)
        ]
        for role, group in _grouped(receivers, _role).items():
            try:
                await self._to_role(change, commit, role, group)
            except psycopg.Error as error:
                _log.warning("lost a change of table %s: %s", change.relation.oid, error.sqlstate)

    async def _to_role(
        self, change: Change, commit: Commit, role: str, receivers: list[Receiver]
    ) -> None:
        table = await self._table(change, commit, role)
        if not table.columns:
            return
        problem = _problem(change, table)
        if problem:
            self._send(receivers, _problem_data(change, problem))
            return
        receivers = [receiver for receiver in receivers if receiver[1].passes(change)]
        if table.row_security and change.kind != "DELETE":
            await self._settling.wait(commit.xid)
            receivers = await self._permitted(change, table, receivers)
        if receivers:
            await self._to_permitted(change, commit, table, receivers)

    async def _table(self, change: Change, commit: Commit, role: str) -> Table:
        oid = change.relation.oid
        if not self._catalog.knows(oid, role):
            await self._settling.wait(commit.xid)
        return await self._catalog.table(oid, role)

    async def _permitted(
        self, change: Change, table: Table, receivers: list[Receiver]
    ) -> list[Receiver]:
        key = _primary_key(change, table)
        permitted: list[Receiver] = []
        for group in _grouped(receivers, _claims).values():
            claims = group[0][0].claims
            if await is_visible(self._database, change.relation, table, key, claims):
                permitted += group
        return permitted

    async def _to_permitted(
        self, change: Change, commit: Commit, table: Table, receivers: list[Receiver]
    ) -> None:
        new = await self._encode(change, table, _with_old_toast(change))
        old = await self._encode(change, table, change.old)
        if change.kind == "DELETE" and table.row_security:
            old = {
                column.name: old[column.name] for column in table.primary_key if column.name in old
            }
        for select, group in _grouped(receivers, _select).items():
            shown = table.projection(select)
            self._send(group, _data(change, commit, shown, new, old))

    def _send(self, receivers: list[Receiver], data: str) -> None:
        self._events.add(len(receivers))
        for channel, group in _grouped(receivers, _channel).items():
            ids = ",".join(str(subscription.id) for _, subscription in group)
            payload = f'{{"data":{data},"ids":[{ids}]}}'
            channel.send(Frame(channel.topic, "postgres_changes", payload))

    async def _encode(self, change: Change, table: Table, row: Row | None) -> Json:
        """Return the JSON of each value that the WAL carries."""
        encoded: Json = {}
        asked: list[tuple[TableColumn, str]] = []
        for wal_column, value in zip(change.relation.columns, row or (), strict=False):
            column = table.columns.get(wal_column.name)
            if column is None or value is ABSENT:
                continue
            if value is None:
                encoded[column.name] = "null"
            elif column.encode is not None:
                encoded[column.name] = column.encode(value)
            else:
                asked.append((column, value))
        return encoded | await self._ask(asked) if asked else encoded

    async def _ask(self, values: list[tuple[TableColumn, str]]) -> Json:
        casts = (
            sql.SQL("to_jsonb(%s::text::{})::text").format(typed(column.type_sql))
            for column, _ in values
        )
        statement = sql.SQL("SELECT {}").format(sql.SQL(", ").join(casts))
        (row,) = await self._database.rows(statement, [text for _, text in values])
        return dict(zip((column.name for column, _ in values), row, strict=True))


def _problem(change: Change, table: Table) -> str | None:
    if change.kind == "DELETE":
        return None
    if not table.primary_key:
        return "Error 400: Bad Request, no primary key"
    if not all(column.selectable for column in table.primary_key):
        return "Error 401: Unauthorized"
    return None


def _problem_data(change: Change, problem: str) -> str:
    empty = ("" if change.old is None else '"old_record":{},') + '"record":{},'
    return _envelope(change, "[]", "null", problem, empty)


def _primary_key(change: Change, table: Table) -> dict[str, str]:
    names = {column.name for column in table.primary_key}
    columns = zip(change.relation.columns, change.new or (), strict=False)
    return {
        column.name: value
        for column, value in columns
        if column.name in names and isinstance(value, str)
    }


def _with_old_toast(change: Change) -> Row | None:
    """Fill in what an UPDATE left untouched, if the old row has it (REPLICA IDENTITY FULL)."""
    if change.new is None or change.old is None:
        return change.new
    pairs = zip(change.new, change.old, strict=True)
    return tuple(old if new is ABSENT else new for new, old in pairs)


def _data(change: Change, commit: Commit, shown: Projection, new: Json, old: Json) -> str:
    too_large = change.size > _MOST_RECORD_BYTES
    if too_large:
        new, old = _small_values(new), _small_values(old)
    records = ""
    if change.kind != "INSERT":
        records += f'"old_record":{_record(shown, old)},'
    if change.kind != "DELETE":
        records += f'"record":{_record(shown, new)},'
    problem = "Error 413: Payload Too Large" if too_large else None
    return _envelope(change, shown.header, f'"{commit.timestamp}"', problem, records)


def _small_values(record: Json) -> Json:
    return {name: value for name, value in record.items() if _is_small(value)}


def _is_small(value: str) -> bool:
    # The size of NULL is NULL, which the real server takes for too large.
    return value != "null" and len(value.encode()) <= _MOST_VALUE_BYTES


def _record(shown: Projection, values: Json) -> str:
    pairs = [shown.prefixes[name] + values[name] for name in shown.names if name in values]
    return "{" + ",".join(pairs) + "}"


def _envelope(
    change: Change, columns: str, timestamp: str, problem: str | None, records: str
) -> str:
    errors = "null" if problem is None else to_json([problem])
    relation = change.relation
    return (
        f'{{"columns":{columns},"commit_timestamp":{timestamp},"errors":{errors},{records}'
        f'"schema":{to_json(relation.schema)},"table":{to_json(relation.table)},'
        f'"type":"{change.kind}"}}'
    )


K = TypeVar("K", bound=Hashable)


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _channel(receiver: Receiver) -> Channel:
    return receiver[0]


def _role(receiver: Receiver) -> str:
    return str(receiver[0].claims["role"])


def _claims(receiver: Receiver) -> str:
    return json.dumps(receiver[0].claims, sort_keys=True)


def _select(receiver: Receiver) -> tuple[str, ...] | None:
    return receiver[1].select
