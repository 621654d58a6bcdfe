"""One local Supabase for these tests, and the two colours of client on it."""

import asyncio
import contextvars
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from supabase import AsyncClientOptions, ClientOptions, acreate_client, create_client

from supabase_resilience import protect
from supabase_resilience.local import LocalSupabase

SCHEMA = """
create table profiles (id int primary key, name text);
create table visits (id bigint generated always as identity primary key, note text);
create table notes (id int primary key, owner uuid not null);
alter table notes enable row level security;
create policy own on notes for all to authenticated using (owner = auth.uid());
"""


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSupabase]:
    """A running local Supabase; each test leaves it well and its tables as it likes."""
    with LocalSupabase(schema=SCHEMA) as stack:
        yield stack


@pytest.fixture(autouse=True)
def _well_again(request):
    """No fault outlives its test."""
    yield
    if "local" in request.fixturenames:
        stack = request.getfixturevalue("local")
        stack.faults.clear()
        stack.postgres.start()


class SyncWorld:
    """A protected `Client`."""

    def __init__(self) -> None:
        self._opened: list[httpx.Client] = []

    def client(self, local: LocalSupabase, **options: Any) -> Any:
        session = httpx.Client(timeout=30.0)
        self._opened.append(session)
        settings = ClientOptions(httpx_client=session)
        return protect(create_client(local.url, local.secret_key, settings), **options)

    def run(self, builder: Any) -> Any:
        return builder.execute()

    def close(self) -> None:
        for session in self._opened:
            session.close()


class AsyncWorld:
    """A protected `AsyncClient`, each call run to its end on one loop."""

    def __init__(self) -> None:
        self._opened: list[httpx.AsyncClient] = []
        self._runner = asyncio.Runner()

    def client(self, local: LocalSupabase, **options: Any) -> Any:
        session = httpx.AsyncClient(timeout=30.0)
        self._opened.append(session)
        settings = AsyncClientOptions(httpx_client=session)
        client = self._runner.run(acreate_client(local.url, local.secret_key, settings))
        return protect(client, **options)

    def run(self, builder: Any) -> Any:
        # In the caller's own context, or a deadline() around the call would not reach it.
        return self._runner.run(builder.execute(), context=contextvars.copy_context())

    def close(self) -> None:
        for session in self._opened:
            self._runner.run(session.aclose())
        self._runner.close()


@pytest.fixture(params=[SyncWorld, AsyncWorld], ids=["sync", "async"])
def world(request) -> Iterator[SyncWorld | AsyncWorld]:
    """Every test that asks for it holds in both colours."""
    made = request.param()
    yield made
    made.close()


@pytest.fixture
def sync_world() -> Iterator[SyncWorld]:
    """For what threads do."""
    made = SyncWorld()
    yield made
    made.close()
