"""Hands events to the user's hook, whose errors change nothing."""

import logging
from collections.abc import Callable

from supabase_resilience.events import Event, Hook

__all__ = ["teller"]

_logger = logging.getLogger("supabase_resilience")


def teller(hook: Hook) -> Callable[[Event], None]:
    """A function that tells the hook an event."""

    def tell(event: Event) -> None:
        try:
            hook(event)
        except Exception:
            _logger.exception("on_event raised for %s", event.name)

    return tell
