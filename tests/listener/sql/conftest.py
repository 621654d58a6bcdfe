"""A local Supabase for the tests of the migrations, on each PostgreSQL that is here."""

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import psycopg
import pytest

from supabase_resilience.local import LocalSupabase, _binaries

from .shops import Api, Shop, sql

TLS = httpx.create_ssl_context()

_numbers = itertools.count(1)


def _installed(version: str) -> Iterator[Path]:
    """Where a system's own PostgreSQL of that version usually is."""
    for pattern in (
        f"/usr/lib/postgresql/{version}/bin",
        f"/opt/homebrew/opt/postgresql@{version}/bin",
    ):
        if shutil.which("postgres", path=pattern):
            yield Path(pattern)


@pytest.fixture(scope="module", params=["bundled", "15"])
def local(request) -> Iterator[LocalSupabase]:
    """A local Supabase that has all migrations, on the newest and on the oldest PostgreSQL."""
    with contextlib.ExitStack() as stack:
        if request.param != "bundled":
            where = list(_installed(request.param))
            if not where:
                pytest.skip(f"PostgreSQL {request.param} is not here")
            stack.enter_context(patch.object(_binaries, "_in_wheel", lambda: iter(where)))
        common = sql("listener", "--table", "first")
        schema = ["create table first (id int primary key)", common, sql("cursors")]
        yield stack.enter_context(LocalSupabase(schema=schema))


@pytest.fixture
def database(local) -> Iterator[psycopg.Connection[Any]]:
    """The database as its owner sees it, which is no superuser."""
    with psycopg.connect(local.dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def api(local) -> Iterator[Api]:
    """The API, on connections of this test's own."""
    with httpx.Client(timeout=30.0, verify=TLS) as session:
        yield Api(local, session)


@pytest.fixture
def shop(database, api) -> Shop:
    """A table that is not there yet."""
    return Shop(database, api, f"items{next(_numbers)}")
