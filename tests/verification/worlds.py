"""Both colours of a verification behind one face, tables to verify, and an app that interferes."""

import asyncio
import contextlib
import functools
import io
import itertools
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import psycopg
from supabase import AsyncClientOptions, ClientOptions, acreate_client, create_client

from supabase_resilience import protect
from supabase_resilience.__main__ import main
from supabase_resilience.local import LocalSupabase
from supabase_resilience.testing import RecordingHook
from supabase_resilience.verification import (
    AsyncServerSideVerification,
    Report,
    Rule,
    ServerSideVerification,
)

# Made once: nothing here speaks TLS, but each session would read all certificates anew.
TLS = httpx.create_ssl_context()
SOON = 60.0  # far more than any of it takes: only a hang ends here
SHORT = 0.02  # a grace that is over at once, for tests without an app beside
_PAUSE = threading.Event()
_numbers = itertools.count(1)

COLUMNS = """
id bigint primary key,
status text,
done_at timestamptz,
note text
"""


def eventually(condition: Callable[[], Any]) -> Any:
    """What `condition` returns once that is true."""
    end = time.monotonic() + SOON
    while not (result := condition()):
        assert time.monotonic() < end, "it never came"
        _PAUSE.wait(0.005)
    return result


def sql(*arguments: str) -> str:
    """What the command `sql` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert 0 == main(["sql", *arguments])
    return printed.getvalue()


class Leaping:
    """A clock that goes on by `step` seconds whenever it is looked at: no wait takes long."""

    def __init__(self, step: float = 10.0) -> None:
        self._ticks = itertools.count()
        self._step = step
        self._now = 1000.0

    def __call__(self) -> float:
        return self._now + self._step * next(self._ticks)

    def jump(self, seconds: float) -> None:
        self._now += seconds


# --- colours --------------------------------------------------------------------------------------


class SyncWorld:
    """`Client` and `ServerSideVerification`."""

    is_async = False
    verification_class: Any = ServerSideVerification

    def __init__(self) -> None:
        self._opened: list[httpx.Client] = []

    def client(self, local: LocalSupabase, key: str | None = None, **options: Any) -> Any:
        session = httpx.Client(timeout=30.0, verify=TLS)
        self._opened.append(session)
        settings = ClientOptions(httpx_client=session, **options)
        return create_client(local.url, key or local.secret_key, settings)

    def do(self, method: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Call a method of the verification where that lives."""
        return method(*given, **named)

    def begin(self, method: Callable[..., Any], *given: Any, **named: Any) -> Callable[[], Any]:
        """Call it in the background; what is returned waits for its result."""
        outcome: list[Any] = []

        def call() -> None:
            try:
                outcome.append((method(*given, **named), None))
            except BaseException as error:  # noqa: BLE001 - raised by whoever waits
                outcome.append((None, error))

        thread = threading.Thread(target=call, daemon=True)
        thread.start()

        def result() -> Any:
            thread.join(SOON)
            assert outcome, "it never ended"
            value, error = outcome[0]
            if error is not None:
                raise error
            return value

        return result

    def close(self) -> None:
        for session in self._opened:
            session.close()


class AsyncWorld:
    """`AsyncClient` and `AsyncServerSideVerification`, on a loop that runs all the time."""

    is_async = True
    verification_class: Any = AsyncServerSideVerification

    def __init__(self) -> None:
        self._opened: list[httpx.AsyncClient] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def client(self, local: LocalSupabase, key: str | None = None, **options: Any) -> Any:
        session = httpx.AsyncClient(timeout=30.0, verify=TLS)
        self._opened.append(session)
        settings = AsyncClientOptions(httpx_client=session, **options)
        return self.do(acreate_client, local.url, key or local.secret_key, settings)

    def do(self, method: Callable[..., Any], *given: Any, **named: Any) -> Any:
        return self.begin(method, *given, **named)()

    def begin(self, method: Callable[..., Any], *given: Any, **named: Any) -> Callable[[], Any]:
        async def call() -> Any:
            result = method(*given, **named)
            return await result if hasattr(result, "__await__") else result

        return functools.partial(asyncio.run_coroutine_threadsafe(call(), self._loop).result, SOON)

    def close(self) -> None:
        for session in self._opened:
            self.do(session.aclose)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


World = SyncWorld | AsyncWorld


class Face:
    """A verification whose methods return their results, whatever its colour."""

    def __init__(self, world: World, verification: Any) -> None:
        self.world = world
        self.verification = verification

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self.world.do, getattr(self.verification, name))

    def begin(self, name: str, *given: Any, **named: Any) -> Callable[[], Any]:
        """Call a method in the background."""
        return self.world.begin(getattr(self.verification, name), *given, **named)

    @property
    def stats(self) -> Any:
        return self.verification.get_stats()


# --- a table --------------------------------------------------------------------------------------


class Table:
    """A table of a test's own, which its owner writes to past the API."""

    def __init__(
        self, local: LocalSupabase, columns: str = COLUMNS, *, schema: str = "public"
    ) -> None:
        self.local = local
        self.schema = schema
        self.name = f"orders{next(_numbers)}"
        self._owner: psycopg.Connection[Any] | None = None
        self.run(f"create table {{}} ({columns})")
        self.offer()

    def offer(self, name: str | None = None) -> None:
        """Let every role of the API use it."""
        self.run(f'grant all on "{self.schema}"."{name or self.name}" to public')
        self.local.rest.reload()

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"

    def run(self, query: str, *given: Any) -> list[tuple[Any, ...]]:
        """Run SQL as the owner; `{}` is the table."""
        text = query.replace("{}", f'"{self.schema}"."{self.name}"')
        done = self._connection().execute(text.encode(), given or None)
        return done.fetchall() if done.description else []

    def fill(self, count: int, broken: Iterable[int] = ()) -> None:
        """Rows from 1 on; those that are broken are done and have no date."""
        self.run(
            """
            insert into {} (id, status, done_at)
            select i, case when i = any(%s) then 'done' else 'open' end, null
            from generate_series(1, %s) i
            """,
            list(broken),
            count,
        )
        self.run("analyze {}")

    def rows(self, columns: str = "id, done_at") -> dict[Any, Any]:
        """What is in the table: its first column to its second."""
        return dict(self.run(f"select {columns} from {{}}"))

    def broken(self) -> list[Any]:
        """The keys of the rows that break `DATED`, in order."""
        query = "select id from {} where status = 'done' and done_at is null order by id"
        return [key for (key,) in self.run(query)]

    def count_writes(self) -> None:
        """From now on each row counts how often it was updated."""
        self.run(
            f"""
            alter table {{}} add writes int not null default 0;
            create function {self.name}_count() returns trigger language plpgsql as
              $$ begin new.writes := old.writes + 1; return new; end $$;
            create trigger count before update on {{}}
              for each row execute function {self.name}_count()
            """
        )
        self.local.rest.reload()

    def _connection(self) -> psycopg.Connection[Any]:
        if self._owner is None or self._owner.broken or self._owner.closed:
            self._owner = psycopg.connect(self.local.dsn, autocommit=True)
        return self._owner

    def close(self) -> None:
        if self._owner is not None:
            self._owner.close()


# --- rules ----------------------------------------------------------------------------------------

DATE = "2026-01-01T00:00:00+00:00"


def is_dated(row: dict[str, Any]) -> bool:
    """Whether what is done has a date."""
    return row["status"] != "done" or row["done_at"] is not None


def is_undated(query: Any) -> Any:
    """The same, for the database: what is done and has none."""
    return query.eq("status", "done").is_("done_at", "null")


def with_date(_: dict[str, Any]) -> dict[str, Any]:
    return {"done_at": DATE}


def dated(**options: Any) -> Rule:
    """What is done has a date; fixed by a date, unless another `fix` is given."""
    options = {"check": is_dated, "fix": with_date, **options}
    return Rule("dated", **options)


# --- all together ---------------------------------------------------------------------------------


class Bench:
    """Makes tables and verifications of one test, and ends them."""

    def __init__(self, world: World, local: LocalSupabase) -> None:
        self.world = world
        self.local = local
        self.hook = RecordingHook()
        self._tables: list[Table] = []
        self._faces: list[Face] = []

    def table(self, columns: str = COLUMNS, **options: Any) -> Table:
        made = Table(self.local, columns, **options)
        self._tables.append(made)
        return made

    def client(self, key: str | None = None, **options: Any) -> Any:
        return self.world.client(self.local, key, **options)

    def protected(self, **options: Any) -> Any:
        return protect(self.client(), **options)

    def verification(self, table: Table | str, *, client: Any = None, **options: Any) -> Face:
        """Without a rule it is given `dated()`."""
        if isinstance(table, Table):
            options = {"schema": table.schema, **options}
        if not {"rules", "data_validator"} & options.keys():
            options["rules"] = [dated()]
        name = table if isinstance(table, str) else table.name
        options = {"grace": SHORT, "max_share": 1.0, "on_event": self.hook, **options}
        made = Face(
            self.world, self.world.verification_class(client or self.client(), name, **options)
        )
        self._faces.append(made)
        return made

    def verify(self, table: Table | str, **options: Any) -> Report:
        """One pass; its report."""
        report: Report = self.verification(table, **options).run_once()
        return report

    def close(self) -> None:
        for face in self._faces:
            face.resume()
            face.stop()
        for table in self._tables:
            table.close()
        self.world.close()


def fates(report: Report) -> dict[str, int]:
    """How many violations had which fate, over all rules."""
    total: dict[str, int] = {}
    for rule in report.rules.values():
        for fate, count in rule.fates.items():
            total[fate] = total.get(fate, 0) + count
    return total
