"""What was seen, before anybody judges it: plain values, without a row and without a secret."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from supabase_resilience.doctor._keys import Key
from supabase_resilience.doctor._subjects import TableUse

__all__ = [
    "ApiFacts",
    "DatabaseFacts",
    "Installed",
    "RelationFacts",
    "RoleFacts",
    "TableAnswer",
    "Where",
]

Installed = Literal["yes", "no", "forbidden"] | None
"""Whether the key's role can call a migration's functions; None: it could not be seen."""

Where = Literal["there", "missing", "not_exposed", "no_function", "no_pgmq", "forbidden", "unseen"]
"""What became of looking for a queue."""


@dataclass(frozen=True, slots=True)
class TableAnswer:
    """What the API says of a table.

    - `refusal`: the code with which it was refused, and `told`, its text.
    - `missing`: columns that it does not have.
    - `cap`: how many rows it was cut off at, if it was.
    - `horizon`: what the listener's migration says; an error's code where it says nothing.
    """

    refusal: str | None = None
    told: str = ""
    missing: tuple[str, ...] = ()
    cap: int | None = None
    horizon: Mapping[str, Any] | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiFacts:
    """What was seen through the API. `skew` is how far this clock is ahead, in seconds."""

    key: Key
    is_refused: bool = False
    now: float = 0.0
    skew: float | None = None
    rest_version: str | None = None
    tables: Mapping[TableUse, TableAnswer] = field(default_factory=dict)
    queue_version: int | None = None
    queue_migration: Installed = None
    queues: Mapping[str, Where] = field(default_factory=dict)
    cursors: Installed = None
    leases: Installed = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RelationFacts:
    """A table, as the database's catalogue has it; `writes` are inserts, updates and deletes."""

    kind: str
    identity: str
    has_primary_key: bool
    is_published: bool
    has_security: bool
    leading: frozenset[str]
    key: tuple[str, ...]
    writes: int
    subscribers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFacts:
    """A role of the API, and what it may do by table; `timeout` in seconds, 0 is none at all."""

    bypasses: bool
    timeout: float
    may_read: Mapping[tuple[str, str], bool] = field(default_factory=dict)
    has_policy: Mapping[tuple[str, str], bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseFacts:
    """What was seen through a connection. `seconds` is how long writes have been counted for."""

    version: int
    pgmq: str | None
    skew: float
    has_publication: bool
    unpublished_kinds: tuple[str, ...]
    relations: Mapping[tuple[str, str], RelationFacts | None]
    roles: Mapping[str, RoleFacts]
    queues: Mapping[str, bool]
    seconds: float
