"""Moments on the page: said as an age that the browser keeps counting.

A snapshot says ages, which are other ones each second; a page that nothing else changes on should
stay the same, so an age becomes the moment it counts from.
"""

from datetime import UTC, datetime

from supabase_resilience.status._html import Html, tag
from supabase_resilience.status._words import duration

__all__ = ["Moments", "Steady"]

_SAME = 1.5


class Steady:
    """Remembers moments, so that one that was computed from an age does not tremble."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def __call__(self, key: str, moment: float) -> int:
        """`moment` in whole seconds, or what it was before if that is about the same."""
        known = self._known.get(key)
        if known is None or abs(known - moment) > _SAME:
            known = self._known[key] = round(moment)
        return known


class Moments:
    """The moments of one snapshot that was taken at the Unix time `now`."""

    def __init__(self, now: float, steady: Steady) -> None:
        self.now = now
        self._steady = steady

    def since(self, moment: float) -> Html:
        """How long ago it was, counted on."""
        whole = int(moment)
        return tag("time", duration(self.now - whole), datetime=_iso(whole), data_since=whole)

    def ago(self, key: str, age: float | None) -> Html | None:
        """The same of something that is `age` seconds old; `key` names it between snapshots."""
        return None if age is None else self.since(self._steady(key, self.now - age))

    def left(self, key: str, seconds: float) -> Html:
        """How long it takes until then, counted down."""
        until = self._steady(key, self.now + seconds)
        return tag("time", duration(until - self.now), datetime=_iso(until), data_until=until)

    def clock(self, moment: float) -> Html:
        """The time of the day, UTC."""
        when = datetime.fromtimestamp(moment, UTC)
        return tag("time", when.strftime("%H:%M:%S"), datetime=_iso(int(moment)))


def _iso(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
