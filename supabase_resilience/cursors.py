"""Where something keeps how far it has come, so that a new process goes on from there.

A cursor store has two methods: `load()`, what was saved last or None, and `save(value)`, a JSON
object in its place. Your own class with these two, sync or async, is a cursor store, too.
"""

import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from postgrest.exceptions import APIError
from supabase import AsyncClient, Client

from supabase_resilience._checks import check_text, is_async
from supabase_resilience._identity import Token, check_token, identity_of, wrong_client
from supabase_resilience._requests import idempotent
from supabase_resilience.errors import ResilienceError

__all__ = ["AsyncTableCursor", "FileCursor", "MemoryCursor", "TableCursor", "call_store"]

_LOAD = "supabase_resilience_load_cursor"
_SAVE = "supabase_resilience_save_cursor"


async def call_store(method: Callable[..., Any], *arguments: Any) -> Any:
    """Call a store's method on an event loop: one that is not async may block, so on a thread."""
    if is_async(method):
        return await method(*arguments)
    return await asyncio.to_thread(method, *arguments)


class MemoryCursor:
    """In memory: survives a stop and a start, not the process. For tests."""

    def __init__(self) -> None:
        self._saved: str | None = None

    def __repr__(self) -> str:
        """Show the kind only."""
        return "<MemoryCursor>"

    def load(self) -> dict[str, Any] | None:
        """What was saved last."""
        return None if self._saved is None else json.loads(self._saved)

    def save(self, value: Mapping[str, Any]) -> None:
        """Keep it; raises `TypeError` for what is no JSON."""
        self._saved = json.dumps(value)


class FileCursor:
    """In a file, replaced as a whole: a crash leaves the old content or the new, never half.

    For one process on a disk that outlives it. Raises `ValueError` for an empty path.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        check_text("path", os.fspath(path))
        self._path = Path(path)

    def __repr__(self) -> str:
        """Show where."""
        return f"<FileCursor {str(self._path)!r}>"

    def load(self) -> dict[str, Any] | None:
        """What was saved last, None without a file; raises `ResilienceError` for another's file."""
        try:
            value = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ResilienceError(
                f"{self._path} holds no cursor; delete the file to begin anew, or name another"
            )
        return value

    def save(self, value: Mapping[str, Any]) -> None:
        """Replace the file; raises `OSError` when that cannot be, and leaves the old one then."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
                json.dump(value, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self._path)  # noqa: PTH105 - the names are strings
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


class TableCursor:
    """In a table of the project, for processes without a disk of their own.

    Needs our migration (`python -m supabase_resilience sql cursors`) and the secret key. `name` is
    the row: two that save under the same name overwrite each other.

    Raises `TypeError` for an `AsyncClient`, `ValueError` for an empty name.
    """

    def __init__(self, client: Client, name: str, *, token: Token = None) -> None:
        if not isinstance(client, Client):
            raise TypeError(wrong_client(client, Client, "AsyncTableCursor"))
        check_text("name", name)
        check_token(token)
        self._name = name
        self._identity = identity_of(client, token, unguarded="cursor")

    def __repr__(self) -> str:
        """Show which."""
        return f"<TableCursor {self._name!r}>"

    def load(self) -> dict[str, Any] | None:
        """What was saved last; raises `ResilienceError` when the migration is missing."""
        value: dict[str, Any] | None = self._call(_LOAD, {"p_name": self._name})
        return value

    def save(self, value: Mapping[str, Any]) -> None:
        """Keep it; raises `ResilienceError` when the migration is missing."""
        self._call(_SAVE, {"p_name": self._name, "p_value": dict(value)})

    def _call(self, function: str, arguments: dict[str, Any]) -> Any:
        with idempotent():
            try:
                return self._identity.api("public").rpc(function, arguments).execute().data
            except APIError as error:
                _explain(error)
                raise


class AsyncTableCursor:
    """In a table of the project, for processes without a disk of their own.

    Needs our migration (`python -m supabase_resilience sql cursors`) and the secret key. `name` is
    the row: two that save under the same name overwrite each other.

    Raises `TypeError` for a `Client`, `ValueError` for an empty name.
    """

    def __init__(self, client: AsyncClient, name: str, *, token: Token = None) -> None:
        if not isinstance(client, AsyncClient):
            raise TypeError(wrong_client(client, AsyncClient, "TableCursor"))
        check_text("name", name)
        check_token(token)
        self._name = name
        self._identity = identity_of(client, token, unguarded="cursor")

    def __repr__(self) -> str:
        """Show which."""
        return f"<AsyncTableCursor {self._name!r}>"

    async def load(self) -> dict[str, Any] | None:
        """What was saved last; raises `ResilienceError` when the migration is missing."""
        value: dict[str, Any] | None = await self._call(_LOAD, {"p_name": self._name})
        return value

    async def save(self, value: Mapping[str, Any]) -> None:
        """Keep it; raises `ResilienceError` when the migration is missing."""
        await self._call(_SAVE, {"p_name": self._name, "p_value": dict(value)})

    async def _call(self, function: str, arguments: dict[str, Any]) -> Any:
        with idempotent():
            try:
                return (await self._identity.api("public").rpc(function, arguments).execute()).data
            except APIError as error:
                _explain(error)
                raise


def _explain(error: APIError) -> None:
    """Raise an error that says what to do in place of one that no waiting heals."""
    if error.code == "PGRST202":
        raise ResilienceError(
            "the table of cursors is not in the database. Run the SQL that this prints: "
            "python -m supabase_resilience sql cursors"
        ) from error
    if error.code == "42501":
        raise ResilienceError("cursors need the secret key (role service_role)") from error
