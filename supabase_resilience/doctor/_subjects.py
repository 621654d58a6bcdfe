"""What is to be looked at: the tables and queues of an app's parts, or of names that are given."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from supabase_resilience.cursors import AsyncTableCursor, TableCursor
from supabase_resilience.doctor._keys import role_of_token
from supabase_resilience.listener import AsyncRealtimeListener, RealtimeListener
from supabase_resilience.queues import (
    AsyncQueueProcessor,
    AsyncSupabaseQueue,
    QueueProcessor,
    SupabaseQueue,
)
from supabase_resilience.verification import AsyncServerSideVerification, ServerSideVerification

__all__ = ["QueueUse", "Subjects", "TableUse", "is_part", "named_table", "subjects_of"]

Level = Literal["by_column", "versioned", "change_log"]
_SYNC_COLUMNS = {"sync_xid", "sync_ver"}
_LISTENER_PAGE = 1000
_TABLE_CURSORS = (TableCursor, AsyncTableCursor)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableUse:
    """A table, and what a part does with it.

    - `column`: what a part orders its reads by, so it wants an index; `key` is empty if unknown.
    - `role`: that of the part's own token; None is the key's.
    """

    schema: str
    table: str
    by: Literal["listener", "verification"]
    key: tuple[str, ...] = ()
    level: Level | None = None
    column: str | None = None
    key_diff: bool = False
    event: str = "*"
    filter_columns: tuple[str, ...] = ()
    page: int | None = None
    role: str | None = None
    has_table_cursor: bool = False
    lease: bool = False

    @property
    def name(self) -> str:
        """How findings call it."""
        return f"{self.schema}.{self.table}"

    @property
    def reads_records(self) -> bool:
        """Whether it reads the tombstones or the change log, as service_role alone may."""
        return self.level == "change_log" or (self.level == "versioned" and not self.key_diff)

    @property
    def finds_deletes(self) -> bool:
        """Whether it finds deletes that Realtime does not tell."""
        return self.key_diff or self.level in {"versioned", "change_log"}

    @property
    def published(self) -> tuple[str, str]:
        """The table of which Realtime has to tell."""
        if self.level == "change_log":
            return "supabase_resilience", "changes"
        return self.schema, self.table

    @property
    def needs_secret(self) -> bool:
        """Whether only the secret key may call what it calls."""
        return self.has_table_cursor or self.lease or self.reads_records


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueUse:
    """A queue and its lanes' suffixes.

    - `is_worked_on`: whether its jobs are taken here, or only sent.
    - `needs_migration`: what for, if stock mode is not enough.
    """

    name: str
    lanes: tuple[str, ...] = ()
    is_worked_on: bool = True
    needs_migration: str | None = None

    @property
    def queues(self) -> tuple[str, ...]:
        """The queue, its lanes, and that of its dead letters."""
        named = (self.name, *(self.name + lane for lane in self.lanes), f"{self.name}_dead")
        return tuple(dict.fromkeys(named))


@dataclass(slots=True)
class Subjects:
    """All of them."""

    tables: list[TableUse] = field(default_factory=list)
    queues: list[QueueUse] = field(default_factory=list)

    @property
    def listeners(self) -> list[TableUse]:
        """Those that Realtime serves."""
        return [use for use in self.tables if use.by == "listener"]


def named_table(schema: str, table: str, column: str | None) -> TableUse:
    """A table of which only the name is known, followed by a listener; perhaps by a column."""
    level: Level | None = "by_column" if column else None
    if column in _SYNC_COLUMNS:
        level, column = "versioned", "sync_xid"
    return TableUse(schema=schema, table=table, by="listener", level=level, column=column)


def subjects_of(parts: Iterable[Any]) -> Subjects:
    """Those of parts, and of the parts of a `Resilience`; a breaker or client has none.

    Raises `TypeError` for what is no part.
    """
    found = Subjects()
    for part in _flat(parts):
        if isinstance(part, RealtimeListener | AsyncRealtimeListener):
            found.tables.append(_of_listener(part))
        elif isinstance(part, ServerSideVerification | AsyncServerSideVerification):
            found.tables.append(_of_verification(part))
        elif isinstance(part, QueueProcessor | AsyncQueueProcessor):
            found.queues.extend(_of_processor(part))
        elif isinstance(part, SupabaseQueue | AsyncSupabaseQueue):
            found.queues.append(QueueUse(name=part.name))
        elif not is_part(part):
            raise TypeError(f"there is nothing to look at in a {type(part).__name__}")
    return found


def is_part(thing: Any) -> bool:
    """Whether it is one, or holds some."""
    marks = ("get_stats", "parts", "breaker", "breakers")
    return isinstance(thing, SupabaseQueue | AsyncSupabaseQueue) or (
        not isinstance(thing, type) and any(hasattr(thing, mark) for mark in marks)
    )


def _flat(parts: Iterable[Any]) -> Iterator[Any]:
    for part in parts:
        inside = getattr(part, "parts", None)
        if isinstance(inside, Mapping):
            yield from inside.values()
        else:
            yield part


def _of_listener(part: RealtimeListener | AsyncRealtimeListener) -> TableUse:
    settings = part._engine.settings  # noqa: SLF001 - our own class
    recovery = settings.recovery
    column = None
    if recovery is not None:
        column = {"by_column": recovery.column, "versioned": "sync_xid"}.get(recovery.level)
    return TableUse(
        schema=settings.schema,
        table=settings.table,
        by="listener",
        key=settings.key,
        level=recovery.level if recovery else None,
        column=column,
        key_diff=recovery is not None and recovery.key_diff,
        event=settings.event,
        filter_columns=tuple(condition[0] for condition in settings.conditions()),
        page=_LISTENER_PAGE if recovery and recovery.level != "change_log" else None,
        role=role_of_token(settings.token),
        has_table_cursor=isinstance(settings.cursor, _TABLE_CURSORS),
    )


def _of_verification(part: ServerSideVerification | AsyncServerSideVerification) -> TableUse:
    settings = part._settings  # noqa: SLF001 - our own class
    return TableUse(
        schema=settings.schema,
        table=settings.table,
        by="verification",
        key=settings.key,
        column=settings.changed_since,
        page=settings.batch_size,
        has_table_cursor=isinstance(settings.cursor, _TABLE_CURSORS),
        lease=settings.lease is not None,
    )


def _of_processor(part: QueueProcessor | AsyncQueueProcessor) -> Sequence[QueueUse]:
    store: Any = part._store  # noqa: SLF001 - our own class
    if not isinstance(store, SupabaseQueue | AsyncSupabaseQueue):
        return []  # in memory: nothing of it is in the project
    settings = part._core.settings  # noqa: SLF001
    return [
        QueueUse(
            name=store.name,
            lanes=tuple((settings.lanes or {}).values()),
            is_worked_on=part._core.process is not None,  # noqa: SLF001
            needs_migration="strict_order=True" if settings.strict_order else None,
        )
    ]
