"""A listener on an event loop: the parts wired together, started and stopped as one.

Both public classes drive it: the async one on the caller's loop, the sync one on a thread's.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from supabase_resilience._clock import Clock, monotonic
from supabase_resilience._identity import Identity
from supabase_resilience._telling import logger, tell
from supabase_resilience.errors import CircuitOpenError, ListenerError, ResilienceError
from supabase_resilience.events import Event
from supabase_resilience.listener._changes import Change, Shape
from supabase_resilience.listener._follower import Follower
from supabase_resilience.listener._generation import Binding, Generation
from supabase_resilience.listener._handlers import Runner, handler_at_work
from supabase_resilience.listener._log import LOG_SCHEMA, LOG_TABLE, LogShape
from supabase_resilience.listener._passes import Passes
from supabase_resilience.listener._positions import Positions
from supabase_resilience.listener._reader import Reader
from supabase_resilience.listener._recoverer import Recoverer
from supabase_resilience.listener._recovery import Ledger, LiveLedger, LogLedger, RowLedger
from supabase_resilience.listener._refusals import Refusal, of_api
from supabase_resilience.listener._settings import Settings
from supabase_resilience.listener._stats import Counts, HandlerStats, ListenerStats
from supabase_resilience.listener._status import Status
from supabase_resilience.listener._stream import Stream
from supabase_resilience.listener._supervisor import Supervisor
from supabase_resilience.listener._tokens import Tokens

__all__ = ["Engine", "Handler", "require_recovery"]

Handler = Callable[[Change], Any]
Way = Literal["task", "thread"]
_RESTART_AFTER = 1.0
_SAVE_EVERY = 1.0


class Engine:
    """One listener. All methods are called on its event loop, `stats()` also from elsewhere."""

    def __init__(
        self,
        settings: Settings,
        *,
        url: str,
        apikey: str,
        identity: Identity[Any],
        reader: Reader,
        tokens: Tokens,
        clock: Clock = monotonic,
    ) -> None:
        self.settings = settings
        self._url = url
        self._apikey = apikey
        self._clock = clock
        self._shape = _shape_of(settings)
        self._counts = Counts()
        self._status = Status(settings.name, self._counts, tell=self.tell, clock=clock)
        self._positions = Positions(settings, self.tell)
        self._stream = Stream(
            settings,
            self._shape,
            self._counts,
            tell=self.tell,
            clock=clock,
            want_catch_up=self._want,
            want_reads=self._want_reads,
        )
        self._reader = reader
        self._tokens = tokens
        self._supervisor = Supervisor(
            self._generation,
            lambda: identity.bearer,
            tokens,
            self._status,
            self._counts,
            ping_interval=settings.ping_interval,
            clock=clock,
            want_catch_up=self._want,
        )
        self._recoverer = self._make_recoverer()
        self._runners: dict[str, Runner] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._fatal: BaseException | None = None
        self._moved = asyncio.Event()
        self.stopped = asyncio.Event()

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; does nothing when it runs."""
        if self._status.state != "stopped":
            return
        # What waits belongs to the loop it waited on, and this may be another one.
        if self.stopped.is_set():
            self.stopped = asyncio.Event()
        self._moved = asyncio.Event()
        self._positions.begin()
        self._recoverer = self._make_recoverer()
        self._fatal = None
        self._status.started()
        self._spawn("supervisor", self._supervisor.run)
        if self._recoverer is not None:
            self._spawn("recoverer", self._recover)
        if self.settings.cursor is not None:
            self._spawn("keeper", self._keep_positions)
        for name, runner in self._runners.items():
            self._spawn_runner(name, runner)

    async def stop(self, within: float) -> bool:
        """End after the changes that are being handled; False if some outlasted that.

        A handler that calls this is not waited for, as it waits for this.
        """
        for runner in self._runners.values():
            runner.stop()
        caller = handler_at_work()
        running = [
            task
            for name, task in self._tasks.items()
            if name.startswith("handler ") and task is not caller
        ]
        late = (await asyncio.wait(running, timeout=within))[1] if running else set()
        await self._end_tasks(but=asyncio.current_task())
        await self._positions.save(self._stream.followers)
        self._status.stopped()
        self._renew_runners()
        self.stopped.set()
        return not late

    async def _end_tasks(self, *, but: "asyncio.Task[Any] | None") -> None:
        ending = [task for task in self._tasks.values() if task is not but]
        self._tasks.clear()
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def ready(self) -> None:
        """Return when it is; raises `ListenerError` for what a person has to set right."""
        while True:
            await self._status.wait_ready()
            if self._recoverer is None or not any(
                follower.is_beginning for follower in self._stream.followers.values()
            ):
                return
            await self._status.wait_change()

    async def ended(self) -> None:
        """Return when it was stopped; raises what no handler may raise and one did."""
        await self.stopped.wait()
        self.raise_fatal()

    def raise_fatal(self) -> None:
        """Raise the KeyboardInterrupt or SystemExit of a handler."""
        if self._fatal is not None:
            raise self._fatal

    @property
    def state(self) -> str:
        """In one word."""
        return self._status.state

    # --- handlers ---------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        handler: Handler | None,
        *,
        way: Way | None = None,
        inline: Callable[[Change], None] | None = None,
    ) -> Follower:
        """A new follower of the stream, and unless `handler` is None a task that calls it.

        One with `inline` keeps the whole table: it begins at the beginning and forgets no key.
        """
        if name in self._stream.followers:
            raise ListenerError(
                f"there is a handler named {name!r} already; remove_listener({name!r}) first"
            )
        follower = Follower(
            name,
            self._ledger(remembers_all=inline is not None),
            self._shape,
            wants=None if inline or self.settings.event == "*" else self.settings.event,
            limit=self.settings.buffer_size,
            blocks=self.settings.overflow == "block",
            starts_now=inline is None and self.settings.start_from == "now",
            inline=inline,
            is_kept=inline is None and self.settings.cursor is not None,
        )
        if self._recoverer is None:
            follower.is_behind = False
        elif self._positions.is_loaded:
            self._resume(follower)
        self._stream.followers[name] = follower
        if handler is not None:
            self._add_runner(follower, handler, way)
        self._want_reads()
        return follower

    def remove(self, name: str) -> bool:
        """Forget a follower; False if there is none."""
        if self._stream.followers.pop(name, None) is None:
            return False
        if (runner := self._runners.pop(name, None)) is not None:
            runner.stop()
        self._stream.drain()
        return True

    def progressed(self, follower: Follower) -> None:
        """A handler has made room."""
        self._stream.drain()
        if follower.is_kept:
            self._moved.set()
        if follower.is_behind and not follower.waiting:
            self._want_reads()

    def _add_runner(self, follower: Follower, handler: Handler, way: Way | None) -> None:
        runner = Runner(
            follower,
            handler,
            self.settings,
            self._counts,
            way=way,
            tell=self.tell,
            progressed=lambda: self.progressed(follower),
        )
        follower.on_news(runner.wake)
        self._runners[follower.name] = runner
        if self._status.state != "stopped":
            self._spawn_runner(follower.name, runner)

    def _renew_runners(self) -> None:
        """A stopped runner stays stopped; another start needs others."""
        for runner in list(self._runners.values()):
            self._add_runner(runner.follower, runner.handler, runner.way)

    def _ledger(self, *, remembers_all: bool) -> Ledger:
        recovery = self.settings.recovery
        if recovery is None:
            return LiveLedger()
        if recovery.level == "change_log":
            return LogLedger()
        is_versioned = recovery.level == "versioned"
        if remembers_all or recovery.key_diff:
            return RowLedger(is_versioned=is_versioned, limit=None)
        return RowLedger(is_versioned=is_versioned)

    # --- parts ------------------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        """To the user's hook, whose errors change nothing."""
        tell(self.settings.on_event, event)

    def stats(self) -> ListenerStats:
        """A snapshot."""
        counts, now = self._counts, self._clock()
        return ListenerStats(
            table=self.settings.name,
            state=self._status.state,
            reason=self._status.reason,
            received=counts.received,
            lost=counts.lost,
            caught_up=counts.caught_up,
            connects=counts.connects,
            gaps=counts.gaps,
            catch_ups=counts.catch_ups,
            resyncs=counts.resyncs,
            last_change_age=_age(now, counts.last_change),
            last_catch_up_age=_age(now, counts.last_catch_up),
            handlers={
                f.name: self._handler_stats(f) for f in list(self._stream.followers.values())
            },
        )

    def _handler_stats(self, follower: Follower) -> HandlerStats:
        return HandlerStats(
            delivered=follower.delivered,
            failed=self._counts.failed.get(follower.name, 0),
            skipped=self._counts.skipped.get(follower.name, 0),
            caught_up=follower.caught_up,
            waiting=follower.waiting,
            dropped=follower.dropped,
            is_behind=follower.is_behind,
        )

    def _generation(self, on_ready: Callable[[], None]) -> Generation:
        return Generation(
            self._url,
            self._apikey,
            _binding_of(self.settings),
            self._shape,
            on_change=self._stream.arrived,
            on_ready=on_ready,
        )

    def _make_recoverer(self) -> Recoverer | None:
        recovery = self.settings.recovery
        if recovery is None:
            return None
        log = LogShape(self._shape) if self.settings.is_log else None
        passes = Passes(self._shape, recovery, self.settings.conditions(), log=log)
        return Recoverer(
            self.settings,
            passes,
            self._stream,
            self._status,
            self._counts,
            reader=self._reader,
            tell=self.tell,
            clock=self._clock,
            meaning=self._meaning,
            renew=self._supervisor.renew,
            done=self._save,
        )

    async def _keep_positions(self) -> None:
        """Save soon after a handler has come to a new one, and not more often than that."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            await self._save()
            await asyncio.sleep(_SAVE_EVERY)

    async def _save(self) -> None:
        await self._positions.save(self._stream.followers)

    def _meaning(self, error: Exception) -> Refusal:
        if isinstance(error, ResilienceError) and not isinstance(error, CircuitOpenError):
            return Refusal("permanent", str(error))
        level = self.settings.recovery.level if self.settings.recovery else ""
        refusal = of_api(error, self._shape, level)
        if refusal.kind == "token" and self._tokens.can_renew:
            self._supervisor.renew("the token was refused")
            return refusal._replace(kind="passing")
        return refusal

    def _want(self, reason: str) -> None:
        if self._recoverer is not None:
            self._recoverer.want(reason)
        else:
            self._status.caught_up(self._status.epoch)

    def _want_reads(self) -> None:
        if self._recoverer is not None:
            self._recoverer.want_reads()

    async def _recover(self) -> None:
        if self._recoverer is None:
            return
        while not self._positions.is_loaded:
            await self._load()
        await self._recoverer.run()

    async def _load(self) -> None:
        try:
            await self._positions.load()
        except Exception as error:  # noqa: BLE001 - it is the user's store, and may be out
            refusal = self._meaning(error)
            if refusal.kind != "passing":
                self._status.refused("catch_up", refusal)
            await asyncio.sleep(_RESTART_AFTER)
            return
        for follower in self._stream.followers.values():
            self._resume(follower)

    def _resume(self, follower: Follower) -> None:
        position = self._positions.of(follower.name)
        if position is not None and follower.is_kept:
            follower.resume(position)

    # --- tasks ------------------------------------------------------------------------------------

    def _spawn(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._tasks[name] = asyncio.ensure_future(self._keep(name, work))

    async def _keep(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """These tasks end only when canceled: an error of ours must not make the app deaf."""
        while True:
            try:
                await work()
            except Exception:
                logger.exception("the listener's %s failed and begins anew", name)
            await asyncio.sleep(_RESTART_AFTER)

    def _spawn_runner(self, name: str, runner: Runner) -> None:
        self._tasks[f"handler {name}"] = asyncio.ensure_future(self._run_handler(runner))

    async def _run_handler(self, runner: Runner) -> None:
        """What is no `Exception` (SystemExit, KeyboardInterrupt) ends the listener.

        It must not leave this task: asyncio would end its loop at once, amid everything.
        """
        try:
            await runner.run()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - raised by run()
            self._fatal = error
            self.stopped.set()


def require_recovery(engine: Engine) -> None:
    """Raises `ValueError` for a listener that reads nothing."""
    if engine.settings.recovery is None:
        raise ValueError("a LiveTable needs a listener with a recovery, which reads the rows")


def _shape_of(settings: Settings) -> Shape:
    is_versioned = settings.recovery is not None and settings.recovery.level == "versioned"
    return Shape(
        settings.schema,
        settings.table,
        settings.key,
        version="sync_ver" if is_versioned else None,
        xid="sync_xid" if is_versioned else None,
    )


def _binding_of(settings: Settings) -> Binding:
    if settings.is_log:
        return Binding(LOG_SCHEMA, LOG_TABLE, "INSERT", f"table_name=eq.{settings.table}")
    # With a recovery all events are needed to know what the handlers know.
    event = settings.event if settings.recovery is None else "*"
    return Binding(settings.schema, settings.table, event, settings.filter)


def _age(now: float, at: float | None) -> float | None:
    return None if at is None else max(0.0, now - at)
