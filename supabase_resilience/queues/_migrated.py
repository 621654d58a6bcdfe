"""A queue on our own functions (`sql/queue.sql`): one call per round trip, and every ack is fenced.

What is in a message never travels back: a job that is settled is named by its message and fence,
and only our part of the envelope is sent along.
"""

from collections.abc import Collection, Sequence
from typing import Any

from supabase_resilience.queues._jobs import ENVELOPE, DeadLetter, Job, QueueMetrics, Settlement
from supabase_resilience.queues._rpc import Call, Plan, in_order, letter_of, message_of
from supabase_resilience.queues._store import Exchange

__all__ = ["VERSION", "Migrated", "call"]

VERSION = 1
"""The oldest version of the migration that this package can use; queue.sql brings this one."""


def call(function: str, *, is_repeatable: bool = True, **arguments: Any) -> Call:
    """One of our functions."""
    return Call("public", f"supabase_resilience_queue_{function}", arguments, is_repeatable)


class Migrated:
    """The plans of a queue that has our migration; those `prepared` are read by priority."""

    def __init__(self, name: str, prepared: Collection[str]) -> None:
        self._name = name
        self._dead = f"{name}_dead"
        self._prepared = prepared

    def send(self, lane: str, jobs: Sequence[Job], delay: float) -> Plan[list[str]]:
        """Add jobs; repeatable when each has a key, since then the second time adds none."""
        if not jobs:
            return []
        ids: list[str] = yield call(
            "send",
            queue_name=self._name + lane,
            messages=[message_of(job) for job in jobs],
            delay=delay,
            is_repeatable=all(job.dedupe_key is not None for job in jobs),
        )
        return ids

    def exchange(
        self, lane: str, settled: Sequence[Settlement], limit: int, oldest: int, lease: float
    ) -> Plan[Exchange]:
        """One call, one transaction."""
        if not settled and limit <= 0:
            return Exchange([], [])
        answer = yield call(
            "exchange",
            queue_name=self._name + lane,
            settled=[_told(settlement) for settlement in settled],
            take=limit,
            oldest=oldest,
            lease=lease,
            by_priority=self._name + lane in self._prepared,
            dead_queue=self._dead,
        )
        jobs = [Job.from_row(row, self._name, lane) for row in answer["jobs"]]
        return Exchange(answer["settled"], in_order(jobs))

    def extend(self, lane: str, jobs: Sequence[Job], lease: float) -> Plan[Collection[int]]:
        """Hold those whose fence is still theirs."""
        held: list[int] = yield call(
            "extend",
            queue_name=self._name + lane,
            held=[{"id": job.message_id, "fence": job.fence} for job in jobs],
            lease=lease,
        )
        return held

    def dead_letters(self, limit: int) -> Plan[list[DeadLetter]]:
        """As they are; nobody's view of them changes."""
        rows = yield call("dead_letters", queue_name=self._name, at_most=limit)
        return [DeadLetter.from_row(row, self._name) for row in rows]

    def replay(self, id: str, lanes: Sequence[tuple[int, str]]) -> Plan[bool]:  # noqa: A002
        """One transaction; a second call would find nothing, so it is not repeatable."""
        named = [{"at_least": at_least, "queue": self._name + lane} for at_least, lane in lanes]
        is_found: bool = yield call(
            "replay", queue_name=self._name, id=id, lanes=named, is_repeatable=False
        )
        return is_found

    def purge_dead_letters(self) -> Plan[int]:
        """One transaction; the count would be lost with the answer, so it is not repeatable."""
        count: int = yield call("purge_dead_letters", queue_name=self._name, is_repeatable=False)
        return count

    def metrics(self, lanes: Sequence[str]) -> Plan[QueueMetrics]:
        """The sums over the queue and its lanes; its oldest ready job."""
        queues = [self._name + lane for lane in dict.fromkeys(("", *lanes))]
        told = yield call("metrics", queues=[*queues, self._dead])
        ages = [told[queue]["oldest_age"] for queue in queues]
        return QueueMetrics(
            queue=self._name,
            ready=sum(told[queue]["ready"] for queue in queues),
            delayed=sum(told[queue]["delayed"] for queue in queues),
            oldest_age=max((float(age) for age in ages if age is not None), default=None),
            dead=told[self._dead]["ready"] + told[self._dead]["delayed"],
        )


def _told(settlement: Settlement) -> dict[str, Any]:
    """What the function is told of a settlement."""
    job = settlement.job
    told: dict[str, Any] = {"id": job.message_id, "fence": job.fence, "kind": settlement.kind}
    if settlement.kind in {"retry", "postponed"}:
        spent = job.attempt if settlement.kind == "retry" else None
        told["delay"] = settlement.delay
        # The message stays, so its deliveries so far must not look like lost ones.
        told["ours"] = job.to_message(attempts=spent, outlived=job.deliveries)[ENVELOPE]
    elif settlement.kind == "dead":
        told["ours"] = letter_of(settlement)[ENVELOPE]
    return told
