"""The cursors of a listener's handlers, in the store that the user has given."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from supabase_resilience.cursors import call_store
from supabase_resilience.errors import ListenerError
from supabase_resilience.events import CursorNotSaved, Event
from supabase_resilience.listener._follower import Follower, Position
from supabase_resilience.listener._settings import Settings

__all__ = ["Positions"]

_FORMAT = 1


class Positions:
    """Which position each handler has acknowledged; `load()` first, then `of()` and `save()`."""

    def __init__(self, settings: Settings, tell: Callable[[Event], None]) -> None:
        self._store = settings.cursor
        self._name = settings.name
        self._about = {
            "format": _FORMAT,
            "table": settings.name,
            "recovery": settings.recovery.level if settings.recovery else None,
        }
        self._tell = tell
        self._saved: dict[str, Any] = {}
        self._turn = asyncio.Lock()
        self.is_loaded = self._store is None

    def begin(self) -> None:
        """The listener starts, perhaps on another loop: a lock belongs to the one it waited on."""
        self._turn = asyncio.Lock()

    async def load(self) -> None:
        """Read them; raises `ListenerError` for a cursor of something else."""
        found = await call_store(self._store.load)
        if found is not None:
            saved = self._handlers_in(found)
            self._check(saved)
            self._saved = dict(saved)
        self.is_loaded = True

    def of(self, name: str) -> Position | None:
        """Where a handler stood, None when it is new."""
        saved = self._saved.get(name)
        return None if saved is None else Position.from_json(saved)

    async def save(self, followers: Mapping[str, Follower]) -> None:
        """Keep those that have moved; what cannot be kept now is kept the next time."""
        if self._store is None or not self.is_loaded:
            return
        async with self._turn:  # an older position must not overtake a newer one
            moved = {
                name: follower.acked.to_json()
                for name, follower in followers.items()
                if follower.is_kept and follower.acked is not None
            }
            positions = {**self._saved, **moved}
            if positions == self._saved:
                return
            try:
                await call_store(self._store.save, {**self._about, "handlers": positions})
            except Exception as error:  # noqa: BLE001 - it is the user's store
                self._tell(CursorNotSaved(table=self._name, reason=type(error).__name__))
            else:
                self._saved = positions

    def _handlers_in(self, found: Mapping[str, Any]) -> Mapping[str, Any]:
        if {key: found.get(key) for key in self._about} != self._about:
            raise ListenerError(
                f"the cursor of {self._name} was saved by another listener: it is for "
                f"{found.get('table')!r} with recovery {found.get('recovery')!r}. Give each "
                "listener a cursor of its own, or delete this one to begin anew"
            )
        handlers: Mapping[str, Any] = found["handlers"]
        return handlers

    def _check(self, saved: Mapping[str, Any]) -> None:
        for name, position in saved.items():
            try:
                Position.from_json(position)
            except ValueError as error:
                raise ListenerError(
                    f"the cursor of {self._name} is damaged at {name!r}: {error}. Restore it, or "
                    "delete it to begin anew"
                ) from error
