"""A listener without a socket or a clock: the real decisions, in a model of what surrounds them.

`History` makes one random history of writes, late and lost changes, catch-ups that are interleaved
with both, slow handlers and restarts; at its end what the handlers were told must add up to the
table. Real are the stream, the followers, their ledgers, and the plans of the catch-ups.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, cast

from supabase_resilience.listener._changes import Change, Shape
from supabase_resilience.listener._follower import Follower, Position
from supabase_resilience.listener._levels import Recovery
from supabase_resilience.listener._log import LogShape
from supabase_resilience.listener._passes import Outcome, Passes
from supabase_resilience.listener._reads import Plan, Wait
from supabase_resilience.listener._recovery import Ledger, LogLedger, RowLedger
from supabase_resilience.listener._settings import Settings
from supabase_resilience.listener._stats import Counts
from supabase_resilience.listener._stream import Stream

from .model_database import (
    LONGEST,
    SCHEMA,
    TABLE,
    Database,
    Row,
    frame_of,
    log_frame_of,
    passes,
)

LAG = 5.0  # seconds until a change has come live or is lost
OVERLAP = LONGEST + LAG + 1


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is special in a history.

    `ledger` and `stream` are the rules that decide; `is_early` begins to read before the stream
    does, and `is_lossy` loses changes and cuts connections.
    """

    level: Literal["versioned", "by_column", "change_log"] = "versioned"
    key_diff: bool = False
    filter: str | None = None
    start_from: Literal["now", "beginning"] = "beginning"
    is_lossy: bool = True
    is_early: bool = False
    restarts: bool = False
    inline: bool = False
    overflow: Literal["recover", "block"] = "recover"
    buffer_size: int = 1000
    followers: int = 1
    steps: int = 300
    ledger: Callable[[], Ledger] | None = None
    stream: type[Stream] = Stream
    passes: type[Passes] = Passes

    @property
    def recovery(self) -> Recovery:
        if self.level == "change_log":
            return Recovery.change_log()
        if self.level == "versioned":
            return Recovery.versioned(key_diff=self.key_diff, max_delete_share=1.0)
        return Recovery.by_column(
            "at", overlap=OVERLAP, key_diff=self.key_diff, max_delete_share=1.0
        )

    @property
    def tells_deletes(self) -> bool:
        return self.level != "by_column" or self.key_diff

    def settings(self) -> Settings:
        return Settings(
            table=TABLE,
            schema=SCHEMA,
            event="*",
            filter=self.filter,
            id_column="id",
            recovery=self.recovery,
            start_from=self.start_from,
            cursor=None,
            token=None,
            catch_up_interval=60.0,
            ping_interval=10.0,
            buffer_size=self.buffer_size,
            overflow=self.overflow,
            on_handler_error="retry",
            on_event=lambda event: None,
        )

    def new_ledger(self) -> Ledger:
        if self.ledger is not None:
            return self.ledger()
        if self.level == "change_log":
            return LogLedger()
        return RowLedger(is_versioned=self.level == "versioned", limit=None)


class Consumer:
    """What a handler has made of what it was told; it outlives a restart of the process."""

    def __init__(self, *, is_log: bool) -> None:
        self.is_log = is_log
        self.rows: dict[Any, Any] = {}
        self.numbers: list[int] = []
        self._newest: dict[Any, int] = {}
        self.saved: dict[str, Any] | None = None
        self.is_started = False
        self.ready_at: int | None = None  # after how many entries of the log

    def handle(self, change: Change) -> None:
        if change.version is not None:
            self.numbers.append(change.version)
        if self.is_log and self._is_older(change):
            return
        if change.type in {"INSERT", "UPDATE"}:
            self.rows[change.key] = change.new
        else:
            self.rows.pop(change.key, None)

    def _is_older(self, change: Change) -> bool:
        """In a change log, what was lost is told after what came later."""
        version = change.version or 0  # 0 is a row of the table itself, which comes first
        if 0 < version < self._newest.get(change.key, 0):
            return True
        self._newest[change.key] = version
        return False


class History:
    """One random history."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        self.random = Random(seed)
        self.database = Database(self.random)
        self.settings = case.settings()
        self.consumers = {
            str(number): Consumer(is_log=case.level == "change_log")
            for number in range(case.followers)
        }
        self.on_the_way: deque[Row] = deque()
        self.pass_: _Pass | None = None
        self.wants_pass = True
        self.may_repeat = case.restarts or case.buffer_size < 1000
        self.pace = self.random.choice([0.1, 0.5, 1.0])
        for _ in range(self.random.randrange(40)):
            self.database.work()
        self._polled(is_subscribed=False)
        self._start()

    # --- what happens -----------------------------------------------------------------------------

    def run(self) -> list[str]:
        """What is wrong at the end."""
        # What is wrong is often righted by the next change: many histories have to be short.
        for _ in range(self.random.randrange(self.case.steps)):
            self._step()
        return self._finish()

    def _step(self) -> None:
        draw = self.random.random()
        if draw < 0.4:
            self.database.work()
            self._poll()
        elif draw < 0.65:
            self._deliver()
        elif draw < 0.85:
            self._read()
        elif draw < 0.985:
            if self.random.random() < self.pace:
                self._handle()
        elif draw < 0.99 and self.case.restarts:
            self._start()
        elif self.case.is_lossy:
            self.on_the_way.clear()
            self.wants_pass = True

    def _finish(self) -> list[str]:
        self.database.rest()
        self._poll()
        if self.case.is_lossy:
            self._catch_up()
        while self.on_the_way:
            self._deliver()
        wrong = []
        is_live = not self.case.is_lossy and self.case.filter is None
        if is_live and not self.wants_pass and self.pass_ is None:
            while self._handle():
                pass
            if not any(follower.doubts for follower in self.stream.followers.values()):
                wrong += self._wrong("live")
        for _ in range(3):
            self._catch_up()
        return wrong + self._wrong("caught up")

    # --- the stream -------------------------------------------------------------------------------

    def _poll(self) -> None:
        self._polled(is_subscribed=self.is_subscribed)
        while self.on_the_way and self.database.now - self.on_the_way[0]["at"] > LAG:
            self._deliver()

    def _polled(self, *, is_subscribed: bool) -> None:
        new, self.database.committed = self.database.committed, []
        if is_subscribed:
            self.on_the_way += new
        elif self.random.random() < 0.5:  # Realtime lags, so a bit of the past may come, too
            self.on_the_way += new[-3:]

    def _deliver(self) -> None:
        if not self.on_the_way:
            return
        change = self.on_the_way.popleft()
        if self.case.is_lossy and self.random.random() < 0.15:
            return
        is_cut = self.random.random() < 0.05
        if self.case.level == "change_log":
            self.stream.arrived(log_frame_of(change, is_cut=is_cut))
        elif self._is_seen(change):
            self.stream.arrived(frame_of(change, is_cut=is_cut and change["row"] is not None))

    def _is_seen(self, change: Row) -> bool:
        # Without `replica identity full` a deleted row passes no filter.
        if self.case.filter is None:
            return True
        return change["row"] is not None and passes(change["row"], self.settings.conditions())

    # --- the process ------------------------------------------------------------------------------

    def _start(self) -> None:
        shape = _shape_of(self.case)
        log = LogShape(shape) if self.case.level == "change_log" else None
        self.passes = self.case.passes(
            shape, self.case.recovery, self.settings.conditions(), log=log
        )
        self.stream = self.case.stream(
            self.settings,
            shape,
            Counts(),
            tell=lambda event: None,
            clock=lambda: self.database.now,
            want_catch_up=lambda reason: self._want(),
            want_reads=lambda: None,
        )
        self.pass_ = None
        self._want()
        self.is_subscribed = not self.case.is_early
        self.known: set[Follower] = set()
        if self.random.random() < 0.5:
            self.on_the_way.clear()
        for name, consumer in self.consumers.items():
            self.stream.followers[name] = self._new_follower(name, shape, consumer)

    def _new_follower(self, name: str, shape: Shape, consumer: Consumer) -> Follower:
        follower = Follower(
            name,
            self.case.new_ledger(),
            shape,
            limit=self.case.buffer_size,
            blocks=self.case.overflow == "block",
            starts_now=self.case.start_from == "now",
            inline=consumer.handle if self.case.inline else None,
            is_kept=self.case.restarts,
        )
        if consumer.saved is not None:
            follower.resume(Position.from_json(consumer.saved))
        return follower

    def _want(self) -> None:
        self.wants_pass = True

    def _handle(self) -> bool:
        worked = False
        for name, follower in self.stream.followers.items():
            for change in follower.next(self.random.randrange(1, 4)):
                worked = True
                self.consumers[name].handle(change)
                follower.done([change])
        self.stream.drain()
        if self.random.random() < 0.3:
            self._save()
        return worked

    def _save(self) -> None:
        for name, follower in self.stream.followers.items():
            if follower.is_kept and follower.acked is not None:
                self.consumers[name].saved = follower.acked.to_json()

    # --- catch-ups --------------------------------------------------------------------------------

    def _read(self) -> None:
        """Begin a catch-up, or go one half of a read further: the answer is not made when asked."""
        if self.pass_ is None:
            self._begin()
        elif self.case.is_lossy and self.random.random() < 0.02:
            self.pass_.fail()
            self.may_repeat = True
            self.pass_ = None
            self._want()
        elif self.pass_.step(self.database, self.case.level):
            self._ended(self.pass_)
        self.is_subscribed = self.is_subscribed or self.random.random() < 0.1

    def _begin(self) -> None:
        followers = self.stream.followers.values()
        group = [each for each in followers if not (each.is_behind and each.waiting)]
        if self._is_needed(group):
            self.wants_pass = False
            self.pass_ = _Pass(self.stream, group, self.passes.run(group, self.database.now))
        elif any(follower.doubts for follower in group):
            self.pass_ = _Pass(self.stream, group, self.passes.again(group))

    def _is_needed(self, group: list[Follower]) -> bool:
        if self.wants_pass or any(follower.is_behind for follower in group):
            return True
        return self.case.is_lossy and self.random.random() < 0.5

    def _ended(self, done: "_Pass") -> None:
        self.pass_ = None
        self._save()
        if done.goes_on:
            self._want()
            return
        for follower in done.group:
            if follower not in self.known and not follower.is_behind:
                self.known.add(follower)
                self._is_ready(follower, self.consumers[follower.name])

    def _is_ready(self, follower: Follower, consumer: Consumer) -> None:
        """What a user does once `ready()` has returned."""
        if consumer.ready_at is None:
            consumer.ready_at = len(self.database.entries)
        if self.case.start_from == "now" and not consumer.is_started:
            consumer.rows = self._table()
        elif self.case.start_from == "beginning" and not self.case.key_diff:
            return
        if self.case.filter is not None:
            # Of a row that was told gone and then came and left unseen no second end is told.
            gone = cast("RowLedger", follower.ledger)._gone
            consumer.rows = {key: row for key, row in consumer.rows.items() if key not in gone}
        if self.case.key_diff:
            # A comparison of keys can't tell the end of what was never seen.
            ledger = cast("RowLedger", follower.ledger)
            consumer.rows = {key: row for key, row in consumer.rows.items() if ledger.knows(key)}
        consumer.is_started = True

    def _catch_up(self) -> None:
        """One more, until nobody is behind or in doubt."""
        for _ in range(1000):
            while self._handle():
                pass
            self.wants_pass = self.wants_pass or self.pass_ is None
            self._read()
            while self.pass_ is not None:
                self._read()
                self._handle()
            followers = self.stream.followers.values()
            if not self.wants_pass and not any(
                each.doubts or each.is_behind or each.waiting for each in followers
            ):
                return
        raise AssertionError("it never ends")

    # --- the end ----------------------------------------------------------------------------------

    def _table(self) -> dict[Any, Row]:
        rows = self.database.rows
        conditions = self.settings.conditions()
        return {key: row for key, row in rows.items() if passes(row, conditions)}

    def _wrong(self, when: str) -> list[str]:
        table = self._table()
        wrong = []
        for name, consumer in self.consumers.items():
            found = consumer.rows
            if not self.case.tells_deletes:
                found = {key: found[key] for key in table if key in found}
            wrong += [
                f"{when}, handler {name}, key {key}: {found.get(key)} is {table.get(key)}"
                for key in table.keys() | found.keys()
                if found.get(key) != table.get(key)
            ]
            if self.case.level == "change_log":
                wrong += self._wrong_numbers(when, consumer)
        return wrong

    def _wrong_numbers(self, when: str, consumer: Consumer) -> list[str]:
        """Every entry of the log once, from `ready()` on."""
        told = set(consumer.numbers)
        due = {entry["seq"] for entry in self.database.entries[consumer.ready_at :]}
        repeats = 0 if self.may_repeat else len(consumer.numbers) - len(told)
        return [f"{when}: {len(due - told)} missing, {repeats} twice"] * bool(due - told or repeats)


class _Pass:
    """A plan on its way, between its question and the answer to it."""

    def __init__(self, stream: Stream, group: list[Follower], plan: Plan[Outcome]) -> None:
        self.group = group
        self.goes_on = False
        self._stream = stream
        self._plan = plan
        self._behind = [follower for follower in group if follower.is_behind]
        for follower in group:
            follower.is_behind = False
        self._answer: Any = None
        self._is_answered = False
        stream.hold()
        self._read = next(plan)

    def step(self, database: Database, level: str) -> bool:
        """Make the answer, or hand it over; True at the end."""
        if not self._is_answered:
            self._is_answered = True
            self._answer = None
            if not isinstance(self._read, Wait):
                self._answer = database.answer(self._read, level)
            return False
        self._is_answered = False
        try:
            self._read = self._plan.send(self._answer)
        except StopIteration as end:
            self.goes_on = end.value.goes_on
            if self.goes_on:
                self._set_back()
            self._stream.release()
            return True
        return False

    def fail(self) -> None:
        """A read has failed."""
        self._plan.close()
        self._set_back()
        self._stream.release()

    def _set_back(self) -> None:
        for follower in self._behind:
            follower.is_behind = True


def _shape_of(case: Case) -> Shape:
    is_versioned = case.level == "versioned"
    return Shape(
        SCHEMA,
        TABLE,
        ["id"],
        version="sync_ver" if is_versioned else None,
        xid="sync_xid" if is_versioned else None,
    )


def wrong_seeds(case: Case, seeds: range) -> dict[int, list[str]]:
    """The seeds whose history ends wrongly, and how."""
    found = {seed: History(case, seed).run() for seed in seeds}
    return {seed: wrong for seed, wrong in found.items() if wrong}
