"""Local Supabases with the versions of pgmq that count, and both colours of a queue on them."""

import itertools
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from supabase_resilience.local import LocalSupabase

from .worlds import AsyncWorld, SyncWorld, World

_names = (f"jobs{number}" for number in itertools.count(1))


@pytest.fixture(scope="session")
def pgmq_sql(tmp_path_factory) -> Callable[[str], str | None]:
    """Return the SQL of a version of pgmq; None for that of the installed package."""

    def read(version: str) -> str | None:
        if version == "installed":
            return None
        if version == "1.11.1":
            return _of_wheel("pgmq==1.1.3", tmp_path_factory.mktemp("pgmq"))
        text = (Path(__file__).parent / "old_pgmq.sql").read_text(encoding="utf-8")
        return text.replace("-- 1.5.1: ", "") if version == "1.5.1" else text

    return read


def _of_wheel(requirement: str, directory: Path) -> str:
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", requirement]
    done = subprocess.run(
        [*download, "--dest", directory], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"{requirement} cannot be had: {done.stderr.strip()[-200:]}")
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read("pgmq/sql/pgmq.sql").decode()


@pytest.fixture(scope="module", params=["installed", "1.11.1", "1.5.1", "1.4.4"])
def local(request, pgmq_sql) -> Iterator[LocalSupabase]:
    """A local Supabase with one of the versions of pgmq."""
    with LocalSupabase(pgmq_sql=pgmq_sql(request.param)) as stack:
        yield stack


@pytest.fixture(autouse=True)
def _well_again(request):
    """No fault outlives its test."""
    yield
    if "local" in request.fixturenames:
        request.getfixturevalue("local").faults.clear()


@pytest.fixture(params=[SyncWorld, AsyncWorld], ids=["sync", "async"])
def world(request) -> Iterator[World]:
    """Every test that asks for it holds in both colours."""
    made = request.param()
    yield made
    made.close()


@pytest.fixture
def database(local) -> Iterator[psycopg.Connection[Any]]:
    """The database as its owner sees it."""
    with psycopg.connect(local.dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def name(database) -> str:
    """The name of a queue of this test's own, which has dead letters, too."""
    name = next(_names)
    database.execute("select pgmq.create(%s)", [name])
    database.execute("select pgmq.create(%s)", [f"{name}_dead"])
    return name


@pytest.fixture
def client(world, local) -> Any:
    """A client with the secret key."""
    return world.client(local)


@pytest.fixture
def queue(world, client, name) -> Any:
    """The queue of that name, for that client."""
    return world.queue(client, name)
