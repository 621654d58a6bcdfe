"""The token that a listener sends, renewed before it expires."""

import asyncio
import base64
import binascii
import inspect
import json
from collections.abc import Callable

from supabase_resilience._checks import is_async
from supabase_resilience._clock import wall
from supabase_resilience.errors import ListenerError
from supabase_resilience.listener._settings import TokenSource

__all__ = ["Tokens"]

_EARLY = 60.0


class Tokens:
    """`current` is what to send instead of the key, None for the key itself."""

    def __init__(self, source: TokenSource, now: Callable[[], float] = wall) -> None:
        self._source = source
        self._now = now
        self.current: str | None = source if isinstance(source, str) else None
        self._due: float | None = None

    @property
    def can_renew(self) -> bool:
        """Whether there is somebody to ask for another one."""
        return callable(self._source)

    @property
    def is_due(self) -> bool:
        """Whether it is time to renew it."""
        return self._due is not None and self._now() >= self._due

    async def renew(self) -> None:
        """Ask for a token; raises what the source raises, `ListenerError` for what is none."""
        if not callable(self._source):
            return
        token = self._source() if is_async(self._source) else await asyncio.to_thread(self._source)
        if inspect.isawaitable(token):
            token = await token
        if not isinstance(token, str) or not token:
            raise ListenerError("token() returned no token; it must return a non-empty string")
        self.current = token
        expiry = _expiry(token)
        if expiry is None:
            self._due = None
        else:
            left = expiry - self._now()
            self._due = expiry - min(_EARLY, max(left, 0) / 4)


def _expiry(token: str) -> float | None:
    """When a JWT expires; None if it does not say."""
    try:
        claims = token.split(".")[1]
        decoded = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        return float(decoded["exp"])
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
        return None
