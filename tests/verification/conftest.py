"""A local Supabase for each file of tests, and both colours of a verification on it."""

from collections.abc import Iterator

import pytest

from supabase_resilience.local import LocalSupabase

from .worlds import AsyncWorld, Bench, SyncWorld, World, sql

_SCHEMA = """
create schema shop;
grant usage on schema shop to public;
create table first (id bigint primary key);
"""


@pytest.fixture(scope="session")
def local() -> Iterator[LocalSupabase]:
    """A local Supabase that has our migrations."""
    schema = [_SCHEMA, sql("listener", "--table", "first"), sql("cursors"), sql("verification")]
    with LocalSupabase(schema=schema, schemas=("public", "pgmq_public", "shop")) as stack:
        yield stack


@pytest.fixture(params=[SyncWorld, AsyncWorld], ids=["sync", "async"])
def world(request) -> World:
    """Every test that asks for it holds in both colours."""
    return request.param()


@pytest.fixture
def bench(world, local) -> Iterator[Bench]:
    """Tables and verifications of this test's own; no fault outlives it."""
    made = Bench(world, local)
    yield made
    local.faults.clear()
    local.postgres.start()
    local.rest.start()
    made.close()
