"""A real Supabase on this machine, without Docker, with faults on demand: `LocalSupabase`.

PostgreSQL, REST, Auth, Queues and Realtime stand behind one URL. The names are loaded on first
use: the pytest plugin and the parts that run as processes live in this package, too, and must not
pay for what they do not use.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from supabase_resilience.local._errors import LocalSupabaseError as LocalSupabaseError
    from supabase_resilience.local._stack import LocalSupabase as LocalSupabase

__all__ = ["LocalSupabase", "LocalSupabaseError"]

_EXTRA = {"filelock", "jwt", "platformdirs", "psycopg", "websockets"}


def __getattr__(name: str) -> Any:
    from supabase_resilience.local._errors import LocalSupabaseError  # noqa: PLC0415  (lazy)

    if name == "LocalSupabaseError":
        return LocalSupabaseError
    if name != "LocalSupabase":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if os.name == "nt":
        raise LocalSupabaseError("LocalSupabase runs on Linux and macOS; on Windows use WSL.")
    try:
        from supabase_resilience.local._stack import LocalSupabase  # noqa: PLC0415  (lazy)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        raise LocalSupabaseError(
            f"LocalSupabase needs {error.name}, which is not installed."
            ' Run `pip install "supabase-resilience[local]"`.'
        ) from error
    return LocalSupabase
