"""LocalSupabase: the parts of the local stack, started in order and ended in the reverse one.

Each part is a process of its own, so that each can be killed alone. A guardian is told of the
stack's directory before it exists, so that nothing stays behind even when this process is killed.
"""

import asyncio
import atexit
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from supabase_resilience.local._assembly import Options, Parts, assemble
from supabase_resilience.local._child import check_owner
from supabase_resilience.local._errors import LocalSupabaseError
from supabase_resilience.local._faults import Faults, check_pattern
from supabase_resilience.local._node import say_on_stderr
from supabase_resilience.local._postgres import Postgres
from supabase_resilience.local._schema import Script
from supabase_resilience.local._services import Realtime, Rest


class LocalSupabase:
    """A Supabase project on this machine that is empty at first and leaves nothing behind.

    It listens on loopback only, and PostgreSQL trusts every local user: it is for tests and demos
    on a machine you trust. `with` (or `async with`) starts and stops it; everything else on it is a
    plain function. It belongs to the process that started it: a fork can use the URL and the keys,
    not the controls. What goes wrong raises `LocalSupabaseError`.

    - `schema`: SQL text, a `Path` to it, or a sequence of these; each runs as the role `postgres`
      in a transaction of its own.
    - `port`: where the URL listens; 0 takes any free port.
    - `pgmq_sql`: the SQL of another pgmq version, as text or `Path`.
    - `max_rows`: the most rows that a request is answered with.
    - `schemas`: what the API exposes; the first is the default.
    - `subscribe_delay`: seconds between Realtime's reply to a join and "Subscribed to PostgreSQL".
    - `progress`: told one line when something takes long, such as the first use's installation.

    The environment variable SUPABASE_RESILIENCE_PG_DSN names a running PostgreSQL to use instead.
    """

    def __init__(
        self,
        *,
        schema: Script | Sequence[Script] = (),
        port: int = 0,
        pgmq_sql: Script | None = None,
        max_rows: int = 1000,
        schemas: Sequence[str] = ("public", "pgmq_public"),
        subscribe_delay: float = 0.0,
        progress: Callable[[str], None] = say_on_stderr,
    ) -> None:
        self._options = Options(
            schema=schema,
            port=port,
            pgmq_sql=pgmq_sql,
            max_rows=max_rows,
            schemas=schemas,
            subscribe_delay=subscribe_delay,
            progress=progress,
        )
        self._owner = 0
        self._running: Parts | None = None
        self._cleanup = ExitStack()

    # --- life ---

    def start(self) -> None:
        """Start everything; returns when the URL serves. A start that fails leaves nothing behind.

        Raises `LocalSupabaseError` when it runs already, or cannot start; the message says why and
        what to do.
        """
        if self._running is not None:
            raise LocalSupabaseError(
                "this LocalSupabase runs already; make another one for a second project"
            )
        with ExitStack() as cleanup:
            parts = assemble(self._options, cleanup)
            self._cleanup = cleanup.pop_all()
        self._running = parts
        self._owner = os.getpid()
        atexit.register(self.stop)

    def stop(self) -> None:
        """End everything and remove every trace.

        Does nothing when it is not running, or in a fork of the process that started it.
        """
        if self._running is None or self._owner != os.getpid():
            return
        self._running = None
        atexit.unregister(self.stop)
        self._cleanup.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        starting = asyncio.ensure_future(asyncio.to_thread(self.start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread goes on whatever happens here, so what it starts must be ended.
            await asyncio.gather(starting, return_exceptions=True)
            await asyncio.to_thread(self.stop)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.shield(asyncio.to_thread(self.stop))

    # --- what an app needs ---

    @property
    def url(self) -> str:
        """What `create_client` takes as the project's URL."""
        return f"http://127.0.0.1:{self._parts.gateway.port}"

    @property
    def publishable_key(self) -> str:
        """The key of the role `anon`."""
        return self._parts.keys.publishable

    @property
    def secret_key(self) -> str:
        """The key of the role `service_role`, which row level security does not bind."""
        return self._parts.keys.secret

    @property
    def dsn(self) -> str:
        """The connection string of the role `postgres`: it owns the schema and is no superuser."""
        return self._parts.postgres.dsn

    @property
    def admin_dsn(self) -> str:
        """The superuser's connection string, for what Supabase itself would do."""
        return self._parts.postgres.admin_dsn

    def jwt(
        self,
        *,
        sub: str | None = None,
        role: str = "authenticated",
        expires_in: float = 3600.0,
        **claims: Any,
    ) -> str:
        """Return a user's access token, signed as Auth would.

        `expires_in` is in seconds; a negative one makes a token that has expired.
        """
        if sub is not None:
            claims["sub"] = sub
        issuer = f"{self.url}/auth/v1"
        return self._parts.keys.token(
            issuer=issuer, role=role, expires_in=expires_in, claims=claims
        )

    @property
    def directory(self) -> Path:
        """Where the logs of its parts are (`*.log`) while it runs."""
        return self._parts.directory

    # --- what a test needs ---

    @property
    def faults(self) -> Faults:
        """Make calls fail in front of healthy servers."""
        return Faults(self._controls.gateway)

    @property
    def postgres(self) -> Postgres:
        """The database server: stop it, kill it, start it again."""
        return self._controls.postgres

    @property
    def rest(self) -> Rest:
        """REST and Auth: kill it, start it again."""
        return self._controls.rest

    @property
    def realtime(self) -> Realtime:
        """Realtime: kill it, start it again, make it misbehave."""
        return self._controls.realtime

    def requests(self, *, match: str = ".*", method: str | None = None) -> int:
        """Return how many requests have reached the URL so far.

        `match` is a regular expression, searched in path and query; `method` narrows it to one
        HTTP method. WebSocket upgrades count, and so do requests that met a fault. To count those
        of a period, take the difference. The latest 100,000 different requests are remembered.
        """
        check_pattern(match)
        method = method.upper() if method else None
        return int(self._controls.gateway.ask("requests", match=match, method=method))

    @property
    def _parts(self) -> Parts:
        if self._running is None:
            raise LocalSupabaseError(
                "this LocalSupabase is not running: use it inside `with LocalSupabase() as local:`,"
                " or call start()"
            )
        return self._running

    @property
    def _controls(self) -> Parts:
        parts = self._parts
        check_owner(self._owner)
        return parts
