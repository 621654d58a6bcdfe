"""A queue on the functions that every project has: six of them, in the schema `pgmq_public`.

They can neither extend a lease nor give one back, and know no fence. So a retry is a new message
with the same job in it, sent before the old one is deleted: a crash in between leaves a duplicate,
never a loss.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from supabase_resilience.queues._decisions import lane_of
from supabase_resilience.queues._jobs import DeadLetter, Job, QueueMetrics, Settlement
from supabase_resilience.queues._rpc import Call, Plan, letter_of, message_of, rounded_up
from supabase_resilience.queues._store import Exchange

__all__ = ["Stock", "read"]

# The API returns no more rows than this by default; what it cut off would be leased unseen.
_MOST_ROWS = 1000
_GLANCE = 2.0
_PAGE, _PAGE_LEASE = 100, 30.0
# Letting a lease lapse costs nothing, but each delivery counts; then a new message starts from 0.
_MOST_LAPSES = 3


def read(queue: str, *, lease: float, limit: int) -> Call:
    """Take up to `limit` messages for `lease` seconds; 0 leaves them where they are."""
    arguments = {
        "queue_name": queue,
        "sleep_seconds": rounded_up(lease),
        "n": min(limit, _MOST_ROWS),
    }
    return Call("pgmq_public", "read", arguments)


def _send(
    queue: str, messages: Sequence[Mapping[str, Any]], delay: float, *, is_repeatable: bool = True
) -> Call:
    arguments: dict[str, Any] = {"queue_name": queue, "sleep_seconds": rounded_up(delay)}
    if len(messages) == 1:
        arguments["message"] = messages[0]
        return Call("pgmq_public", "send", arguments, is_repeatable)
    arguments["messages"] = messages
    return Call("pgmq_public", "send_batch", arguments, is_repeatable)


def _delete(queue: str, message_id: int) -> Call:
    return Call("pgmq_public", "delete", {"queue_name": queue, "message_id": message_id})


class Stock:
    """The plans of a queue in stock mode."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._dead = f"{name}_dead"

    def send(self, lane: str, jobs: Sequence[Job], delay: float) -> Plan[list[str]]:
        """Add jobs; not repeatable, as a lost answer may mean that they were added."""
        if jobs:
            messages = [message_of(job) for job in jobs]
            yield _send(self._name + lane, messages, delay, is_repeatable=False)
        return [job.id for job in jobs]

    def exchange(
        self, lane: str, settled: Sequence[Settlement], limit: int, oldest: int, lease: float
    ) -> Plan[Exchange]:
        """One call after another; `oldest` means nothing here, all go by age."""
        del oldest
        for settlement in settled:
            yield from self._settle(self._name + lane, settlement)
        jobs = (yield from self._take(lane, limit, lease)) if limit > 0 else []
        return Exchange([each.job.message_id for each in settled], jobs)

    def _settle(self, queue: str, settlement: Settlement) -> Plan[None]:
        job = settlement.job
        if settlement.kind == "retry":
            yield _send(queue, [job.to_message(attempts=job.attempt)], settlement.delay)
        elif settlement.kind == "postponed":
            if _may_lapse(settlement):
                return
            yield _send(queue, [job.to_message()], settlement.delay)
        elif settlement.kind == "dead":
            yield _send(self._dead, [letter_of(settlement)], 0.0)
        yield _delete(queue, job.message_id)

    def _take(self, lane: str, limit: int, lease: float) -> Plan[list[Job]]:
        rows = yield read(self._name + lane, lease=lease, limit=limit)
        jobs = [Job.from_row(row, self._name, lane) for row in rows]
        return sorted(jobs, key=lambda job: job.message_id)

    def extend(self, lane: str, jobs: Sequence[Job], lease: float) -> Plan[Collection[int]]:
        """Cannot be done here: those whose lease has not run out are still ours."""
        del lane, lease
        yield from ()
        return [job.message_id for job in jobs if (job.lease_left() or 0.0) > 0]

    def dead_letters(self, limit: int) -> Plan[list[DeadLetter]]:
        """Read without a lease: they stay in sight. As many as the API returns at most (1,000)."""
        letters = yield from self._look(0.0, limit)
        return sorted(letters, key=lambda letter: letter.message_id or 0)

    def replay(self, id: str, lanes: Sequence[tuple[int, str]]) -> Plan[bool]:  # noqa: A002
        """Send it, then delete it, with its copies."""
        found = yield from self._find(id)
        if found:
            job = found[0].to_job()
            yield _send(self._name + lane_of(job.priority, lanes), [job.to_message()], 0.0)
        for letter in found:
            yield _delete(self._dead, letter.message_id or 0)
        return bool(found)

    def _find(self, id: str) -> Plan[list[DeadLetter]]:  # noqa: A002
        """A look without a lease shows the oldest; those behind them are seen page by page.

        Who pages hides what was seen for a moment, also from the next replay.
        """
        seen: set[int | None] = set()
        letters = yield from self._look(0.0)
        while not (found := [letter for letter in letters if letter.id == id]):
            letters = yield from self._look(_GLANCE)
            new = {letter.message_id for letter in letters} - seen
            if not new:
                break
            seen |= new
        return found

    def _look(self, lease: float, limit: int = _MOST_ROWS) -> Plan[list[DeadLetter]]:
        rows = yield read(self._dead, lease=lease, limit=limit)
        return [DeadLetter.from_row(row, self._name) for row in rows]

    def purge_dead_letters(self) -> Plan[int]:
        """Delete one by one, until none is left."""
        total = 0
        while True:
            rows = yield read(self._dead, lease=_PAGE_LEASE, limit=_PAGE)
            count = 0
            for row in rows:
                count += (yield _delete(self._dead, int(row["msg_id"]))) is True
            total += count
            if not count:
                return total

    def metrics(self, lanes: Sequence[str]) -> Plan[QueueMetrics]:
        """Nothing can be known."""
        del lanes
        yield from ()
        return QueueMetrics(queue=self._name, ready=None, delayed=None, oldest_age=None, dead=None)


def _may_lapse(settlement: Settlement) -> bool:
    job = settlement.job
    left = job.lease_left() or 0.0
    return job.deliveries < _MOST_LAPSES and settlement.delay <= left
