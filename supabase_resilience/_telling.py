"""Hands an event to the user's hook, whose errors change nothing."""

import logging

from supabase_resilience.events import Event, Hook

__all__ = ["tell"]

_logger = logging.getLogger("supabase_resilience")


def tell(hook: Hook, event: Event) -> None:
    """Tell the hook; what it raises is logged."""
    try:
        hook(event)
    except Exception:
        _logger.exception("on_event failed for %s", event.name)
