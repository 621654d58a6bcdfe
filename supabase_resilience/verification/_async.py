"""AsyncServerSideVerification: passes over a table, as tasks on an event loop."""

import asyncio
import functools
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from supabase import AsyncClient

from supabase_resilience._builders import Builders
from supabase_resilience._checks import check_count, check_number
from supabase_resilience._clock import Clock, monotonic
from supabase_resilience._identity import Token, check_token, identity_of, wrong_client
from supabase_resilience._signals import handled_signals
from supabase_resilience._telling import tell
from supabase_resilience.cursors import call_store
from supabase_resilience.errors import VerificationError
from supabase_resilience.events import Hook, log_event
from supabase_resilience.verification._async_hands import AsyncHands
from supabase_resilience.verification._core import Core, PassRun
from supabase_resilience.verification._paging import KeyRange
from supabase_resilience.verification._patience import explained
from supabase_resilience.verification._report import Report
from supabase_resilience.verification._rules import Rule
from supabase_resilience.verification._settings import Settings
from supabase_resilience.verification._stats import VerificationState, VerificationStats

__all__ = ["AsyncServerSideVerification"]

_SAVE_EVERY = 2.0
_LEASE_AGAIN = 5.0
_RELEASE_WITHIN = 2.0


class AsyncServerSideVerification:
    """Finds the rows of a table that break a rule, and fixes them without racing the app.

    ```python
    verification = AsyncServerSideVerification(
        client,
        "orders",
        rules=[
            Rule(
                "completed orders have a date",
                violates=lambda q: q.eq("status", "completed").is_("completion_date", "null"),
                fix=lambda row: {"completion_date": row["updated_at"]},
            )
        ],
    )
    print(await verification.run_once())
    ```

    A row that looks broken is looked at again after `grace` seconds. Only if nobody has written it
    and it is still broken, it is fixed, by a compare-and-swap, and looked at once more. So an app
    that writes in several steps is not interfered with, as long as its steps take less than
    `grace`; and whatever it writes is never overwritten.

    - `client`: an `AsyncClient`; one made by `protect()` lends its breaker and retries. Its key
      (or the user of `as_user()`, or `token`) is pinned. It sees what row level security shows it.
    - `table`, `schema` (None: the client's), `id_column`: the primary key, a tuple if composite.
    - `rules`: see `Rule`. `data_validator`: a rule of that name, True for a row that is right.
    - `fix_missing_data(id)`: your own repair, for rules without `fix`. It is confirmed and
      verified, but neither swapped nor fenced: it may meet a write of the app.
    - `interval`: seconds from the end of a pass to the next; the first begins with `start()`.
    - `batch_size`: rows per page to begin with. Pages grow and shrink to half a second each.
    - `ranges`: parts of the keys that are gone through side by side.
    - `dry_run`: writes nothing. `max_fixes`: per pass. `max_share`: when more than that share of
      the rows breaks a rule (and more than 20), the rule is taken for wrong: nothing more is fixed.
    - `changed_since`: a column that grows with each write, or `sync_xid` of the listener's
      migration: passes look only at what has changed, `overlap` seconds more, and at everything
      each `full_every` passes.
    - `lease`: a name; of all that use it one verifies at a time. Needs our migration.
    - `cursor`: a store that keeps where a pass is, for a new process to go on from.
    - `throttle`: called before each page; True or seconds make it wait.
    - `only_between`: two times, `("01:00", "05:00")`, by this machine's clock.

    Raises `ValueError` and `TypeError` for arguments that make no sense.
    """

    def __init__(
        self,
        client: AsyncClient,
        table: str,
        *,
        schema: str | None = None,
        id_column: str | Sequence[str] = "id",
        rules: Sequence[Rule] = (),
        data_validator: Callable[[dict[str, Any]], Any] | None = None,
        fix_missing_data: Callable[[Any], Any] | None = None,
        interval: float = 3600.0,
        batch_size: int = 50,
        grace: float = 5.0,
        ranges: int = 1,
        dry_run: bool = False,
        max_fixes: int = 1000,
        max_share: float = 0.2,
        changed_since: str | None = None,
        overlap: float = 30.0,
        full_every: int = 24,
        lease: str | None = None,
        cursor: Any = None,
        token: Token = None,
        throttle: Callable[[], Any] | None = None,
        only_between: Sequence[str] | None = None,
        on_event: Hook = log_event,
        clock: Clock = monotonic,
    ) -> None:
        if not isinstance(client, AsyncClient):
            raise TypeError(wrong_client(client, AsyncClient, "ServerSideVerification"))
        check_token(token)
        settings = Settings(
            table=table,
            schema=client.options.schema if schema is None else schema,
            id_column=id_column,
            rules=rules,
            data_validator=data_validator,
            fix_missing_data=fix_missing_data,
            interval=interval,
            batch_size=batch_size,
            grace=grace,
            ranges=ranges,
            dry_run=dry_run,
            max_fixes=max_fixes,
            max_share=max_share,
            changed_since=changed_since,
            overlap=overlap,
            full_every=full_every,
            lease=lease,
            cursor=cursor,
            throttle=throttle,
            only_between=only_between,
            on_event=on_event,
        )
        self._settings = settings
        self._clock = clock
        self._tell = functools.partial(tell, on_event)
        self._builders = Builders(
            identity_of(client, token, unguarded="verification"), settings.schema, table
        )
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._pid = os.getpid()
        self._core = Core(self._settings, clock=self._clock, tell=self._tell)
        self._hands = AsyncHands(
            self._builders,
            self._core,
            clock=self._clock,
            tell=self._core.tell,
            resting=self._keep_place,
        )
        self._saved_at = 0.0
        self._is_in_pass = False
        self._task: asyncio.Task[None] | None = None
        self._asked_to_stop = asyncio.Event()

    def _leave_parent(self) -> None:
        """A fork has no part in what its parent was doing: neither its pass nor its lease."""
        if self._pid != os.getpid():
            self._begin_anew()

    def __repr__(self) -> str:
        """Show what it verifies, and how that goes."""
        return f"<AsyncServerSideVerification {self._settings.name} {self._state()}>"

    # --- passes -----------------------------------------------------------------------------------

    async def run_once(self, *, dry_run: bool = False) -> Report:
        """One pass, here and now; resumes one that was interrupted, if there is a cursor.

        An outage of Supabase is waited out. Raises `VerificationError` for what a person has to set
        right (an unknown table or column, a missing migration, a lease that another holds, a pass
        that is under way already); the report of a pass that failed amid the rows says so.
        """
        return await self._here_and_now(dry_run=dry_run)

    async def key_ranges(self, count: int) -> list[KeyRange]:
        """Cut the keys into ranges of about as many rows each, to be verified by `run_range()`.

        They are JSON-able (`to_json()`, `KeyRange.from_json()`), so that they can be the jobs of a
        queue, for workers anywhere.
        """
        check_count("count", count)
        self._leave_parent()
        return await self._hands.run(self._core.key_ranges(count))

    async def run_range(self, key_range: KeyRange, *, dry_run: bool = False) -> Report:
        """Verify one range; the reports of all ranges add up with `+`. Raises as `run_once()`."""
        return await self._here_and_now(dry_run=dry_run, only=key_range)

    async def _here_and_now(self, *, dry_run: bool, only: KeyRange | None = None) -> Report:
        self._leave_parent()
        try:
            return await self._one_pass(dry_run=dry_run, only=only)
        finally:
            if not self.is_active():
                await self._release()

    async def _one_pass(self, *, dry_run: bool, only: KeyRange | None = None) -> Report:
        if self._is_in_pass:
            raise VerificationError(f"a pass over {self._settings.name} is under way already")
        self._is_in_pass = True
        try:
            await self._take_lease()
            return await self._whole_pass(dry_run=dry_run, only=only)
        finally:
            self._is_in_pass = False

    async def _take_lease(self) -> None:
        lease = self._core.lease
        if lease is not None and not await self._hands.run(lease.acquire()):
            raise VerificationError(f"another runner holds the lease {lease.name!r}")

    async def _whole_pass(self, *, dry_run: bool, only: KeyRange | None) -> Report:
        run: PassRun | None = None
        try:
            is_whole = self._core.is_whole(dry_run=dry_run, only=only)
            saved = self._core.resume(await self._load_place()) if is_whole else None
            run = await self._hands.run(self._core.begin(dry_run=dry_run, only=only, saved=saved))
            await self._hands.run_all([part.run() for part in run.ranges])
        except asyncio.CancelledError:
            if run is not None:
                await self._keep_place(at_once=True)
                self._core.end(run, VerificationError("stopped before the pass was complete"))
            raise
        except Exception as error:
            failure = explained(error, self._settings.name)
            if run is None:
                raise failure from error
            await self._keep_place(at_once=True)
            report = self._core.end(run, failure)
            if isinstance(failure, VerificationError):
                raise failure from error
            return report
        report = self._core.end(run, None)
        if run.is_whole:
            await self._keep_place(at_once=True)
        return report

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin a first pass at once, in the background, then one per `interval`."""
        self._leave_parent()
        if self.is_active():
            return
        self._asked_to_stop.clear()
        self._task = asyncio.ensure_future(self._live())

    async def stop(self, timeout: float = 10.0) -> bool:  # noqa: ASYNC109
        """End the pass; the cursor is kept. False if that took longer than `timeout` seconds."""
        check_number("timeout", timeout, at_least=0)
        self._leave_parent()
        self._asked_to_stop.set()
        task = self._task
        if task is None or task is asyncio.current_task():
            return True
        task.cancel()
        await asyncio.wait([task], timeout=timeout)
        return task.done()

    def request_stop(self) -> None:
        """Make `run()` stop; can be called in a rule or a signal handler."""
        self._asked_to_stop.set()

    def pause(self) -> None:
        """Wait before the next page."""
        self._hands.going.clear()

    def resume(self) -> None:
        """Go on."""
        self._hands.going.set()

    async def run(self, shutdown_timeout: float = 25.0) -> None:
        """Verify until SIGTERM, SIGINT or `request_stop()`, then `stop()` within the timeout."""
        check_number("shutdown_timeout", shutdown_timeout, at_least=0)
        loop = asyncio.get_running_loop()

        def stop_soon() -> None:
            loop.call_soon_threadsafe(self.request_stop)

        with handled_signals(stop_soon):
            await self.start()
            try:
                await self._asked_to_stop.wait()
            finally:
                await self.stop(shutdown_timeout)

    def is_active(self) -> bool:
        """Whether it was started and not stopped, in this process."""
        task = self._task
        return self._pid == os.getpid() and task is not None and not task.done()

    def get_stats(self) -> VerificationStats:
        """A snapshot, from memory."""
        self._leave_parent()
        return self._core.stats(self._state())

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        await self.stop()

    async def _live(self) -> None:
        wait = 0.0
        try:
            while not await self._is_asked_to_stop(wait):
                wait = self._settings.interval
                try:
                    await self._one_pass(dry_run=False)
                except VerificationError as error:
                    wait = min(wait, self._after(error))
                except Exception as error:  # noqa: BLE001 - the next pass may do
                    self._core.failed(error)
        finally:
            await self._release()

    async def _is_asked_to_stop(self, within: float) -> bool:
        try:
            async with asyncio.timeout(within):
                await self._asked_to_stop.wait()
        except TimeoutError:
            return False
        return True

    def _after(self, error: VerificationError) -> float:
        self._core.failed(error)
        return _LEASE_AGAIN if self._core.lease is not None else self._settings.interval

    async def _release(self) -> None:
        lease = self._core.lease
        if lease is None or not lease.is_held:
            return
        try:
            async with asyncio.timeout(_RELEASE_WITHIN):
                await self._hands.run(lease.release())
        except Exception as error:  # noqa: BLE001 - it lapses
            self._core.failed(error)

    def _state(self) -> VerificationState:
        if self._core.run is not None:
            return "verifying" if self._hands.going.is_set() else "paused"
        return "waiting" if self.is_active() else "stopped"

    # --- the cursor -------------------------------------------------------------------------------

    async def _load_place(self) -> Any:
        cursor = self._settings.cursor
        if cursor is None:
            return None
        return await call_store(cursor.load)

    async def _keep_place(self, *, at_once: bool = False) -> None:
        cursor = self._settings.cursor
        if cursor is None or not (at_once or self._clock() - self._saved_at >= _SAVE_EVERY):
            return
        self._saved_at = self._clock()
        place = self._core.place()
        if place is not None:
            try:
                await call_store(cursor.save, place)
            except Exception as error:  # noqa: BLE001 - it is the user's store, and may be out
                self._core.not_saved(error)
