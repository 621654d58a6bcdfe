"""What a listener counts, and the snapshot of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Counts", "HandlerStats", "ListenerState", "ListenerStats"]

ListenerState = Literal["stopped", "connecting", "catching_up", "live", "refused"]


@dataclass(frozen=True, slots=True)
class HandlerStats:
    """One handler: changes `delivered` (it returned), `failed` calls, `skipped` changes.

    `caught_up` were read, not live; `waiting` are in its queue; `dropped` were there when it
    overflowed, and are read again when it `is_behind` no more.
    """

    delivered: int
    failed: int
    skipped: int
    caught_up: int
    waiting: int
    dropped: int
    is_behind: bool


@dataclass(frozen=True, slots=True)
class ListenerStats:
    """A listener at one moment, counted since it was made.

    - `state`: `stopped`, `connecting`, `catching_up`, `live`, or `refused` by what a person must
      set right. `reason`: what that is; else why the connection is gone, or why catching up fails
      (None: nothing is wrong).
    - `received`: live changes. `lost`: changes that Realtime did not deliver on a healthy
      connection. `caught_up`: changes found by reading, the lost ones among them.
    - `connects`: connections made. `gaps`: times when changes may have been missed.
      `catch_ups`: completed ones. `resyncs`: handlers sent back to the beginning.
    - `last_change_age`: seconds since a live change came, None before the first.
      `last_catch_up_age`: the same of the last completed catch-up.
    """

    table: str
    state: ListenerState
    reason: str | None
    received: int
    lost: int
    caught_up: int
    connects: int
    gaps: int
    catch_ups: int
    resyncs: int
    last_change_age: float | None
    last_catch_up_age: float | None
    handlers: Mapping[str, HandlerStats]


@dataclass(slots=True)
class Counts:
    """The numbers behind `ListenerStats`."""

    received: int = 0
    lost: int = 0
    caught_up: int = 0
    connects: int = 0
    gaps: int = 0
    catch_ups: int = 0
    resyncs: int = 0
    last_change: float | None = None
    last_catch_up: float | None = None
    failed: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
