"""What the tests of the migrations work with: the command, the API, a table of a test's own."""

import contextlib
import io
from typing import Any

import httpx
import psycopg
from supabase import ClientOptions, create_client

from supabase_resilience.__main__ import main
from supabase_resilience.local import LocalSupabase


def sql(*arguments: str) -> str:
    """What `sql` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert 0 == main(["sql", *arguments])
    return printed.getvalue()


class Api:
    """Calls functions as one of the API's roles."""

    def __init__(self, local: LocalSupabase, session: httpx.Client) -> None:
        options = ClientOptions(httpx_client=session)
        self.service = create_client(local.url, local.secret_key, options)
        self.anon = create_client(local.url, local.publishable_key, options)

    def call(self, function: str, *, client: Any = None, **given: Any) -> Any:
        """As service_role, unless another client is named."""
        named = {f"p_{name}": value for name, value in given.items()}
        called = (client or self.service).rpc(f"supabase_resilience_{function}", named)
        return called.execute().data


class Shop:
    """One table of a test's own, and what was recorded of it."""

    def __init__(self, database: psycopg.Connection[Any], api: Api, name: str) -> None:
        self.database = database
        self.api = api
        self.schema, self.name = "public", name

    @property
    def table(self) -> str:
        """The table as SQL and the command take it."""
        return psycopg.sql.Identifier(self.schema, self.name).as_string()

    def run(self, query: str, *given: Any) -> list[tuple[Any, ...]]:
        """Run SQL as the owner; `{}` is the table."""
        done = self.database.execute(query.replace("{}", self.table).encode(), given or None)
        return done.fetchall() if done.description else []

    def one(self, query: str, *given: Any) -> Any:
        """The only value."""
        return self.run(query, *given)[0][0]

    def follow(self, *arguments: str) -> None:
        """Run what the command prints for the table."""
        self.database.execute(sql("listener", "--table", self.table, *arguments).encode())

    def create(self, columns: str = "id int primary key, note text", *arguments: str) -> None:
        """Make the table and follow it."""
        self.run(f"create table {{}} ({columns})")
        self.follow(*arguments)

    def horizon(self, **given: Any) -> Any:
        """How the table is followed, and where a reader goes on."""
        return self.api.call("horizon", schema=self.schema, table=self.name, **given)

    def tombstones(self, since: int = 0, **given: Any) -> list[Any]:
        """Whatever was deleted."""
        return self._read("tombstones", since, given)

    def changes(self, since: int = 0, **given: Any) -> list[Any]:
        """Whatever changed."""
        return self._read("changes", since, given)

    def _read(self, function: str, since: int, given: dict[str, Any]) -> list[Any]:
        return list(
            self.api.call(function, schema=self.schema, table=self.name, since=since, **given)
        )

    def deleted(self) -> list[tuple[Any, bool]]:
        """The keys of the tombstones, and whether each is alive."""
        return [(each["key"], each["alive"]) for each in self.tombstones()]
