"""The page's content as server-sent events; all who look at it share one rendering.

A stream ends by itself after a while and the browser comes back: a server that shuts down waits
for open connections, and would wait for a viewer for ever.
"""

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from supabase_resilience import _clock
from supabase_resilience.status import _page
from supabase_resilience.status._html import Html
from supabase_resilience.status._moments import Steady
from supabase_resilience.status._snapshot import Snapshot

__all__ = ["Feed", "View"]

_EVERY = 1.0
_BEAT = 3.0
_LIFE = 20.0
# What the browser counts by itself; no name can look like it, as names are escaped.
_AGES = re.compile(r"(<time [^>]*>)[^<]*")


@dataclass(frozen=True, slots=True)
class View:
    """A rendering; `version` is another one as soon as anything but an age is.

    `message` is what a browser needs of it, as an event.
    """

    version: str
    snapshot: Snapshot
    content: Html
    message: bytes


class Feed:
    """Looks at most once a second, however many ask."""

    def __init__(self, take: Callable[[], Snapshot]) -> None:
        self._take = take
        self._steady = Steady()
        # The same number of another process is another version.
        self._prefix = secrets.token_hex(4)
        self._number = 0
        self._looked_at = 0.0
        self._fingerprint = ""
        self._view: View | None = None

    def look(self) -> View:
        """The view now, or of a second ago."""
        now = _clock.monotonic()
        if self._view is None or now - self._looked_at >= _EVERY:
            self._looked_at = now
            self._view = self._render(self._take())
        return self._view

    def _render(self, snapshot: Snapshot) -> View:
        content = _page.content(snapshot, self._steady)
        fingerprint = _AGES.sub(r"\1", content)
        if fingerprint == self._fingerprint and self._view is not None:
            # All who look have it, but for the ages, which they count.
            return replace(self._view, snapshot=snapshot, content=content)
        self._fingerprint = fingerprint
        self._number += 1
        version = f"{self._prefix}-{self._number}"
        return View(version, snapshot, content, _message(version, snapshot, content))

    async def stream(self, seen: str | None) -> AsyncIterator[bytes]:
        """Events for one who has `seen` a version: `state` when it is another, else `beat`s.

        Ends after twenty seconds; the browser asks for the next ones.
        """
        yield b"retry: 500\n\n"
        ends_at = _clock.monotonic() + _LIFE
        told_at = -_BEAT
        while (now := _clock.monotonic()) < ends_at:
            view = self.look()
            if view.version != seen:
                seen, told_at = view.version, now
                yield view.message
            elif now - told_at >= _BEAT:
                told_at = now
                yield f"event: beat\ndata: {view.snapshot['at']:.3f}\n\n".encode()
            await asyncio.sleep(_EVERY)


def _message(version: str, snapshot: Snapshot, content: Html) -> bytes:
    told = {
        "at": snapshot["at"],
        "title": _page.window_title(snapshot),
        "icon": _page.favicon(_page.status(snapshot)),
        "said": _page.headline(snapshot),
        "html": content,
    }
    return f"id: {version}\nevent: state\ndata: {json.dumps(told)}\n\n".encode()
