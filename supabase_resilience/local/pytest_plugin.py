"""The pytest fixture `local_supabase`: one local Supabase project for a test session.

Every pytest run of every project that has this package installed loads this file, so it imports
nothing of the stack until a test asks for the fixture.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from supabase_resilience.local import LocalSupabase

_OPTION = "supabase_schema"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the ini option that names the schema's files."""
    parser.addini(
        _OPTION,
        "files of SQL for the fixture local_supabase, one a line, relative to the root directory",
        type="linelist",
        default=[],
    )


@pytest.fixture(scope="session")
def local_supabase_schema(pytestconfig: pytest.Config) -> str | Path | Sequence[str | Path]:
    """What `local_supabase` runs as its schema: the files in `supabase_schema`.

    Override it to give anything else that `LocalSupabase(schema=…)` takes.
    """
    return [pytestconfig.rootpath / line for line in pytestconfig.getini(_OPTION)]


@pytest.fixture(scope="session")
def local_supabase(
    local_supabase_schema: str | Path | Sequence[str | Path],
) -> Iterator["LocalSupabase"]:
    """Give a running `LocalSupabase` that the whole session shares; it is gone afterwards.

    Tests share its rows and its faults: undo what you do to it. Raises `LocalSupabaseError` when it
    cannot start.
    """
    from supabase_resilience.local import LocalSupabase  # noqa: PLC0415  (costs only who uses it)

    with LocalSupabase(schema=local_supabase_schema) as local:
        yield local
