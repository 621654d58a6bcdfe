"""What a processor of either colour is made of, and what it decides without waiting.

The drivers share one `Core`: its numbers, its list of jobs in hand, its books, and how far it is in
its life. They add who runs a handler, and how the rest waits.
"""

import itertools
import os
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from supabase_resilience import _clock
from supabase_resilience._checks import check_count, check_number, check_text
from supabase_resilience._telling import JOB, Attributes, spanned
from supabase_resilience.errors import QueueError
from supabase_resilience.events import Hook, MigrationOutdated
from supabase_resilience.queues._books import Books, QueueState, QueueStats
from supabase_resilience.queues._decisions import Lanes, Settings
from supabase_resilience.queues._jobs import (
    Job,
    QueueMetrics,
    Settlement,
    current_job,
    new_origin,
)
from supabase_resilience.queues._memory import MemoryQueue
from supabase_resilience.queues._store import Abilities

__all__ = ["FOREVER", "Core", "by_lane", "reset_after_fork"]

FOREVER = float("inf")
_LARGEST_PRIORITY = 2**31 - 1
OUTDATED = "run the SQL of `python -m supabase_resilience sql queue` again"
NO_STRICT_ORDER = (
    "strict_order over Supabase Queues needs the migration, or the lease of a job that waits in "
    "its place would run out: run the SQL of `python -m supabase_resilience sql queue`"
)


class Named(Protocol):
    """Any store: here, all that matters of it is its name."""

    @property
    def name(self) -> str:
        """The queue's name."""
        ...


class Core:
    """The settings and the state of a processor; plain attributes, each read in one step.

    `request_stop` is given by the processor: it asks it to stop when there is time.
    """

    request_stop: Callable[[], None]

    def __init__(
        self,
        process: Callable[[Any], object] | None,
        settings: Settings,
        store: MemoryQueue | Named | None,
        on_event: Hook,
        clock: _clock.Clock,
    ) -> None:
        self.process = None if process is None else spanned(on_event, JOB, self._facts, process)
        self.settings = settings
        self.lanes = Lanes(settings.lanes)
        self.clock = clock
        self.is_durable = not (store is None or isinstance(store, MemoryQueue))
        if store is None:
            self.ready = MemoryQueue(clock=clock)
        elif isinstance(store, MemoryQueue):
            self.ready = store
        else:
            self.ready = MemoryQueue(store.name, clock=clock)
        self.name = self.ready.name
        self._on_event = on_event
        self.reset()

    def _facts(self, _: object) -> Attributes:
        job = current_job()
        return {"queue": self.name, "job": job.id, "attempt": job.attempt}

    def reset(self) -> None:
        """As if nothing had been started: that is so after a fork."""
        self._origin, self._numbers = new_origin(), itertools.count(1)
        self.ready.forget_if_forked()
        self.books = Books(self.name, self.settings, self._on_event, self.clock)
        self.abilities: Abilities | None = None
        self.phase: Literal["new", "running", "stopping", "stopped"] = "new"
        # Whether a stop works off what waits, and so whether jobs are taken; whether they are held
        # back by hand.
        self.drains = True
        self.is_taking = False
        self.is_paused = False
        # Asked for by a signal, maybe before anything runs; forgotten once it has stopped.
        self.stop_is_requested = False
        # What a handler raised that ends the process.
        self.fatal: BaseException | None = None

    # --- jobs in ----------------------------------------------------------------------------------

    def new_job(self, data: Any, priority: int, delay: float, key: str | None) -> Job:
        """Check the arguments of `enqueue` and make a job of them."""
        if type(priority) is not int or not -_LARGEST_PRIORITY <= priority <= _LARGEST_PRIORITY:
            check_count("priority", priority, at_least=-_LARGEST_PRIORITY)
            raise ValueError(f"priority must be <= {_LARGEST_PRIORITY}, got {priority!r}")
        if delay:
            check_number("delay", delay, at_least=0.0)
        if key is not None:
            check_text("dedupe_key", key)
        job = Job(f"{self._origin}{next(self._numbers):016x}", data, self.name, _clock.wall())
        if priority:
            job.priority = priority
        if key is not None:
            job.dedupe_key = key
        return job

    def new_jobs(self, items: Iterable[Any], priority: int, delay: float) -> list[Job]:
        """The same for many."""
        return [self.new_job(data, priority, delay, None) for data in items]

    def put(self, jobs: Sequence[Job], delay: float) -> list[str]:
        """Add jobs to the queue in memory."""
        for _ in jobs:
            self.books.count_enqueued()
        return [self.ready.put(job, delay) for job in jobs]

    def needs_priorities(self, priority: int) -> bool:
        """Whether only the migration could respect this priority."""
        return bool(priority) and not self.lanes.thresholds

    def check_priorities(self, abilities: Abilities, priority: int) -> None:
        """Refuse a priority that nobody would respect."""
        if not abilities.has_priority:
            raise QueueError(
                f"the queue {self.name!r} has no priorities, got priority={priority}: give it "
                'lanes, such as lanes={10: "_high"}, or run the SQL of `python -m '
                "supabase_resilience sql queue` and "
                f"`select supabase_resilience_queue_create('{self.name}');`"
            )

    def learned(self, abilities: Abilities) -> None:
        """The server has said what it can do."""
        if abilities.outdated_version is not None:
            self.books.tell(
                MigrationOutdated(part="queue", version=abilities.outdated_version, remedy=OUTDATED)
            )
        if self.settings.strict_order and not abilities.is_migrated:
            raise QueueError(NO_STRICT_ORDER)
        self.abilities = abilities

    @property
    def is_migrated(self) -> bool:
        """Whether our functions are known to be there."""
        return self.abilities is not None and self.abilities.is_migrated

    # --- one job ----------------------------------------------------------------------------------

    @property
    def may_take(self) -> bool:
        """Whether jobs may be started without a second thought."""
        return self.is_taking and not (self.is_paused or self.books.brake.is_on)

    @property
    def looks_twice(self) -> bool:
        """Whether a job may have to be refused before it is run."""
        return self.is_durable or self.settings.max_age is not None

    def start_in(self) -> float | None:
        """Seconds until a job may be started; None: when something has changed."""
        return None if self.is_paused or not self.is_taking else self.books.brake.wait()

    def take_one(self) -> Job | None:
        """A job to be started now, if there is one and it may be."""
        if self.start_in() != 0.0 or not self.books.claim_start():
            return None
        job = self.ready.take()
        if job is None:
            self.books.brake.tried_in_vain()
        return job

    def due_in(self) -> float | None:
        """Seconds until there is something to take; None: when something has changed."""
        wait = self.start_in()
        if wait != 0.0:
            return wait
        due = self.ready.next_due()
        return None if due is None else max(0.001, due - self.clock())

    def is_over(self, *, is_filling: bool) -> bool:
        """Whether workers have nothing more to do, now or later, while jobs may be coming."""
        if self.phase != "stopping":
            return self.phase == "stopped"
        if not self.drains or self.is_paused:
            return True
        if self.is_durable:
            return not (self.ready.waiting or is_filling)
        return not self.ready.unfinished

    @property
    def repeats_in_place(self) -> bool:
        """Whether a job that failed may still be repeated before all others."""
        if self.fatal is not None:
            return False
        is_draining = self.phase == "stopping" and self.drains and not self.is_durable
        return self.phase == "running" or (is_draining and not self.is_paused)

    def keep_place(self, settlement: Settlement) -> Settlement:
        """In strict order, what goes back goes to where it was, and waits no longer than others."""
        if not self.settings.strict_order:
            return settlement
        return replace(settlement, delay=0.0)

    def must_return(self) -> bool:
        """Whether jobs that a durable queue has handed out should not be started now."""
        if self.phase == "stopping" and not self.drains:
            return True
        return self.is_paused or self.books.brake.wait() != 0.0

    def lease_left(self, job: Job) -> float:
        """Seconds for which the job is ours."""
        return FOREVER if job.lease_ends_at is None else job.lease_ends_at - self.clock()

    def check_settled(self, told: Sequence[Settlement], settled: Collection[int]) -> None:
        """Notice what was not ours any more when it was to be settled."""
        for settlement in told:
            job = settlement.job
            # Gone within its lease: an earlier try was applied, and only its answer was lost.
            if job.message_id not in settled and self.lease_left(job) <= 0.0:
                self.books.lost(job)

    def settle_in_memory(self, settlement: Settlement) -> None:
        """Carry out what was decided, for a queue in memory."""
        job = settlement.job
        if settlement.kind == "retry":
            job.attempt += 1
            is_last = not self.settings.strict_order
            self.ready.give_back(job, settlement.delay, is_retry=is_last)
        elif settlement.kind == "postponed":
            self.ready.give_back(job, settlement.delay, is_retry=False)
        else:
            self.ready.end(job, settlement.letter)

    def begin(self) -> None:
        """Take jobs."""
        self.books.brake.tried_in_vain()  # who tried when it was stopped is not heard any more
        self.phase, self.drains, self.is_taking, self.fatal = "running", True, True, None

    def begin_stop(self, *, drain: bool) -> None:
        """Take no more than is there already, if that; what is paused is not worked off."""
        if self.phase == "running":
            self.phase = "stopping"
        self.is_taking = self.drains = self.drains and drain and not self.is_paused

    def end(self) -> None:
        """Take nothing."""
        self.phase, self.is_taking, self.stop_is_requested = "stopped", False, False

    def end_by(self, error: BaseException) -> None:
        """A handler or hook ends the process: what is in hand is finished, and nothing started."""
        self.fatal, self.drains, self.is_taking = error, False, False
        self.request_stop()

    def is_ending(self) -> bool:
        """Whether a stop is under way or a handler has ended the process: no time to start."""
        return self.phase == "stopping" or self.fatal is not None

    def raise_fatal(self) -> None:
        """Let the process end, as a handler wished."""
        error, self.fatal = self.fatal, None
        if error is not None:
            if self.phase == "new":  # nothing runs that could be stopped
                self.stop_is_requested = False
            raise error

    # --- what is known ----------------------------------------------------------------------------

    @property
    def told_state(self) -> QueueState:
        """The state, for people."""
        return "paused" if self.is_paused and self.phase == "running" else self.phase

    def stats(self, held: int) -> QueueStats:
        """The numbers, with `held` jobs of a durable queue in hand."""
        waiting = self.ready.waiting
        in_flight = max(0, held - waiting) if self.is_durable else self.ready.in_hand
        return self.books.stats(state=self.told_state, waiting=waiting, in_flight=in_flight)

    def metrics(self) -> QueueMetrics:
        """The numbers of a queue in memory."""
        ready, delayed, dead = self.ready.counts()
        since = self.ready.oldest_enqueued_at()
        age = None if since is None else max(0.0, _clock.wall() - since)
        return QueueMetrics(
            queue=self.name, ready=ready, delayed=delayed, oldest_age=age, dead=dead
        )

    def replayed(self, id: str, *, is_there: bool) -> None:  # noqa: A002 - the field's own name
        """Say so when there was nothing to replay."""
        if not is_there:
            raise QueueError(f"{self.name!r} has no dead letter {id!r}; dead_letters() lists them")

    @property
    def starts_by_itself(self) -> bool:
        """Whether a first job starts the workers.

        Not when no time passes that they could wait, nor after a handler has ended the process.
        """
        stands_still = getattr(self.clock, "stands_still", False)
        return self.process is not None and self.fatal is None and not stands_still

    def check_process(self) -> None:
        """A producer cannot be started."""
        if self.process is None:
            raise QueueError("this is a producer (process=None): it has nothing to start")

    def refuse_start(self) -> None:
        """A start that did nothing would look like one that worked."""
        raise QueueError(f"{self.name!r} is stopping; start it again when stop() has returned")


class Resettable(Protocol):
    """A processor."""

    def reset(self) -> None:
        """Forget threads, tasks and locks."""
        ...


def reset_after_fork(processor: Resettable) -> None:
    """Let a processor start anew in a forked child: its threads are the parent's, and its jobs."""
    if not hasattr(os, "register_at_fork"):  # nothing forks there
        return
    known = weakref.ref(processor)

    def reset() -> None:
        if (still := known()) is not None:
            still.reset()

    os.register_at_fork(after_in_child=reset)


def by_lane(settlements: Sequence[Settlement]) -> dict[str, list[Settlement]]:
    """Settlements by the lane of their job."""
    parts: dict[str, list[Settlement]] = {}
    for settlement in settlements:
        parts.setdefault(settlement.job.lane, []).append(settlement)
    return parts
