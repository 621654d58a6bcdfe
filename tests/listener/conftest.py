"""A local Supabase for each file of tests, and both colours of a listener on it."""

from collections.abc import Iterator

import pytest

from supabase_resilience.listener import _pacing, _passes, _recoverer
from supabase_resilience.local import LocalSupabase

from .worlds import AsyncWorld, Bench, SyncWorld, World, sql

_SCHEMA = """
create function touch() returns trigger language plpgsql as $$
begin new.updated_at := clock_timestamp(); return new; end $$;
create table first (id bigint primary key);
"""


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSupabase]:
    """A local Supabase that has our migrations."""
    common = sql("listener", "--table", "first")
    with LocalSupabase(schema=[_SCHEMA, common, sql("cursors")]) as stack:
        yield stack


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is worth a wait that only spares a server."""
    monkeypatch.setattr(_pacing, "_FIRST", 0.05)
    monkeypatch.setattr(_recoverer, "_LEAST_PAUSE", 0.02)
    monkeypatch.setattr(_passes, "_UNTIL_CONFIRMED", 0.1)


@pytest.fixture(params=[SyncWorld, AsyncWorld], ids=["sync", "async"])
def world(request) -> World:
    """Every test that asks for it holds in both colours."""
    return request.param()


@pytest.fixture
def bench(world, local, quick, caplog) -> Iterator[Bench]:
    """Tables and listeners of this test's own; no fault outlives it, and no part has failed."""
    made = Bench(world, local)
    yield made
    local.faults.clear()
    heal(local)
    made.close()
    assert [] == [record.getMessage() for record in caplog.get_records("call") if record.exc_info]


def heal(local: LocalSupabase) -> None:
    """End what a test did to the servers."""
    local.postgres.start()
    local.rest.start()
    local.realtime.start()
    local.realtime.refuse(None)
    local.realtime.stall(False)
    local.realtime.lose_changes(False)
