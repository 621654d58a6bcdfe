"""What of the server's behaviour can be set, with the values of the real one where tests allow.

One object is shared by the server's parts, which read it when they need it; so a change counts from
then on. The owner of the process keeps its own copy, for the next process.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, TypedDict


class SettingChanges(TypedDict, total=False):
    """Some of the settings."""

    subscribe_delay: float
    join_error_delay: float
    connect_error_delay: float
    idle_timeout: float
    cdc_patience: float
    publication_check: float
    rate_window: float
    max_events_per_second: float | None
    max_joins_per_second: float | None
    max_connections: int | None
    max_channels: int


@dataclass(slots=True, kw_only=True)
class Settings:
    """Times are in seconds, rates are averages over `rate_window`; None is no limit.

    Raises `ValueError` for what makes no sense, and `TypeError` for a name that is unknown.
    """

    subscribe_delay: float = 0.0
    """Between the reply to a join and "Subscribed to PostgreSQL"; the real server's is up to 3."""
    join_error_delay: float = 0.0
    """Before a join is refused; its socket does nothing else meanwhile. Really 5."""
    connect_error_delay: float = 0.0
    """Before a connection is refused. Really 2."""
    idle_timeout: float = 60.0
    """A socket whose client is silent for longer is closed."""
    cdc_patience: float = 100.0
    """An outage of PostgreSQL that is longer stops the stream of changes, see `kill_cdc`."""
    publication_check: float = 60.0
    """Between two looks at the published tables."""
    rate_window: float = 60.0
    """What rates are averages of, in twelve parts; only whole parts count."""
    max_events_per_second: float | None = None
    """Changes times their subscribers; above it changes are lost. Really 100."""
    max_joins_per_second: float | None = None
    """Above it joins and connections are refused. Really 100."""
    max_connections: int | None = None
    """Sockets with a channel; more are refused. Really 200."""
    max_channels: int = 100
    """Channels of one socket; more are refused."""

    def __post_init__(self) -> None:
        for name in ("subscribe_delay", "join_error_delay", "connect_error_delay", "cdc_patience"):
            _check(name, getattr(self, name), at_least_zero=True)
        for name in ("idle_timeout", "publication_check", "rate_window", "max_channels"):
            _check(name, getattr(self, name))
        for name in ("max_events_per_second", "max_joins_per_second", "max_connections"):
            if getattr(self, name) is not None:
                _check(name, getattr(self, name))

    def change(self, changes: SettingChanges) -> None:
        """Set these, or raise and set none."""
        replace(self, **changes)
        for name, value in changes.items():
            setattr(self, name, value)


def _check(name: str, value: Any, *, at_least_zero: bool = False) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0 or (value == 0 and not at_least_zero):
        least = "from 0 on" if at_least_zero else "above 0"
        raise ValueError(f"{name} must be a number {least}, got {value!r}")
