"""What a durable queue does, whatever its colour: find out what the server can do, then do it so.

The probe is one call; a project without our migration is served in stock mode. Every problem that a
person has to solve is a `QueueError` with the SQL that solves it, before anything is lost.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from postgrest.exceptions import APIError

from supabase_resilience._checks import check_text
from supabase_resilience.errors import QueueError
from supabase_resilience.queues._jobs import DeadLetter, Job, QueueMetrics, Settlement
from supabase_resilience.queues._migrated import VERSION, Migrated, call
from supabase_resilience.queues._queue_errors import missing_queues, quoted
from supabase_resilience.queues._rpc import Plan
from supabase_resilience.queues._stock import Stock, read
from supabase_resilience.queues._store import Abilities, Exchange

__all__ = ["Plans", "check_name"]

# PostgreSQL cuts off what is longer than 63 bytes, and pgmq's own prefixes need 16 of them.
_LONGEST = 47
_DEAD = "_dead"
_CREATE = "public.supabase_resilience_queue_create"


def check_name(name: Any) -> None:
    """Raises `ValueError` or `TypeError` for what can't be the name of a queue."""
    check_text("name", name)
    _check_characters(name)
    longest = _LONGEST - len(_DEAD)
    if len(name.encode()) > longest:
        raise ValueError(
            f"name must have {longest} bytes at most, so that the queue of its dead letters, "
            f"{name + _DEAD!r}, fits into pgmq's {_LONGEST}; got {name!r}"
        )


def _check_characters(name: str) -> None:
    refused = [part for part in ("$", ";", "--", "'", "\0") if part in name]
    if refused:
        raise ValueError(f"pgmq allows no {refused[0]!r} in the name of a queue: {name!r}")


class Plans:
    """The plans of a store; they know what the server can do once one of them has asked it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._dead = name + _DEAD
        self._dialect: Stock | Migrated | None = None

    def check(self, lanes: Sequence[str]) -> Plan[Abilities]:
        """Ask what the server can do, and see that all queues are there."""
        queues = self._queues(lanes)
        abilities, found = yield from self._probe(queues)
        if not abilities.is_migrated:
            yield from self._find_missing(queues)
        elif missing := [queue for queue in queues if not found[queue]["exists"]]:
            raise missing_queues(missing, self._creations(missing))
        return abilities

    def create(self, lanes: Sequence[str]) -> Plan[None]:
        """Make what is missing; raises `QueueError` with the SQL where only a person can."""
        queues = self._queues(lanes)
        abilities, _ = yield from self._probe(queues)
        if not abilities.is_migrated:
            yield from self._find_missing(queues)
            return
        for queue in queues:
            if queue != self._dead:
                has_dead = queue == self._name
                yield call("create", queue_name=queue, with_dead_letters=has_dead)
        yield from self._probe(queues)

    def _queues(self, lanes: Sequence[str]) -> list[str]:
        """The queue, its lanes and that of its dead letters, each once."""
        named = [self._name + lane for lane in lanes]
        for queue in named:
            _check_lane(queue, self._dead)
        return list(dict.fromkeys([self._name, *named, self._dead]))

    def _probe(self, queues: list[str]) -> Plan[tuple[Abilities, Mapping[str, Any]]]:
        """What the server can do, and which queues there are (nothing of these in stock mode)."""
        answer: dict[str, Any]
        try:
            answer = yield call("check", queues=queues)
        except APIError as error:
            if not _has_no_migration(error):
                raise
            answer = {"version": None, "queues": {}}
        version: int | None = answer["version"]
        found: Mapping[str, Any] = answer["queues"]
        if version is None or version < VERSION:
            self._dialect = Stock(self._name)
            return Abilities(outdated_version=version), found
        prepared = {queue for queue in queues if found[queue]["prepared"]}
        self._dialect = Migrated(self._name, prepared)
        return Abilities(is_migrated=True, has_priority=self._name in prepared), found

    def _find_missing(self, queues: Sequence[str]) -> Plan[None]:
        """Take nothing from each, which needs the queue and the rights of a worker."""
        missing: list[str] = []
        for queue in queues:
            try:
                yield read(queue, lease=0.0, limit=0)
            except APIError as error:
                if error.code != "42P01":
                    raise
                missing.append(queue)
        if missing:
            raise missing_queues(missing)

    def _creations(self, missing: Sequence[str]) -> list[str]:
        """The SQL that makes them, with our migration: a queue brings that of its dead letters."""
        makers = dict.fromkeys(self._name if queue == self._dead else queue for queue in missing)
        return [
            f"select {_CREATE}({quoted(queue)}{'' if queue == self._name else ', false'});"
            for queue in makers
        ]

    def _known(self) -> Plan[Stock | Migrated]:
        """How to talk to the server; asks it when nobody has."""
        if self._dialect is None:
            yield from self._probe([self._name])
        return self._dialect or Stock(self._name)

    # --- the rest of a store, in the server's dialect ---

    def send(self, lane: str, jobs: Sequence[Job], delay: float) -> Plan[list[str]]:
        """See `Store.send`."""
        dialect = yield from self._known()
        return (yield from dialect.send(lane, jobs, delay))

    def exchange(
        self, lane: str, settled: Sequence[Settlement], limit: int, oldest: int, lease: float
    ) -> Plan[Exchange]:
        """See `Store.exchange`."""
        dialect = yield from self._known()
        return (yield from dialect.exchange(lane, settled, limit, oldest, lease))

    def extend(self, lane: str, jobs: Sequence[Job], lease: float) -> Plan[Collection[int]]:
        """See `Store.extend`."""
        dialect = yield from self._known()
        return (yield from dialect.extend(lane, jobs, lease))

    def dead_letters(self, limit: int) -> Plan[list[DeadLetter]]:
        """See `Store.dead_letters`."""
        dialect = yield from self._known()
        return (yield from dialect.dead_letters(limit))

    def replay(self, id: str, lanes: Sequence[tuple[int, str]]) -> Plan[bool]:  # noqa: A002
        """See `Store.replay`."""
        dialect = yield from self._known()
        return (yield from dialect.replay(id, lanes))

    def purge_dead_letters(self) -> Plan[int]:
        """See `Store.purge_dead_letters`."""
        dialect = yield from self._known()
        return (yield from dialect.purge_dead_letters())

    def metrics(self, lanes: Sequence[str]) -> Plan[QueueMetrics]:
        """See `Store.metrics`."""
        dialect = yield from self._known()
        return (yield from dialect.metrics(lanes))


def _check_lane(queue: str, dead: str) -> None:
    if queue.lower() == dead.lower():  # pgmq tables have lower-case names
        raise QueueError(f"{queue!r} is the queue of the dead letters; name the lane otherwise")
    try:
        _check_characters(queue)
    except ValueError as error:
        raise QueueError(str(error)) from None
    if len(queue.encode()) > _LONGEST:
        raise QueueError(
            f"{queue!r}, the queue of a lane, is longer than the {_LONGEST} bytes that pgmq "
            "allows; choose a shorter name or suffix"
        )


def _has_no_migration(error: APIError) -> bool:
    """It isn't there, isn't for this key, or its schema isn't served: all is well without it."""
    if error.code in {"PGRST202", "PGRST106"}:
        return True
    return error.code == "42501" and "for function supabase_resilience" in (error.message or "")
