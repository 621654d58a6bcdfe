"""Alerts: a condition on the statistics that has to hold for a while, told once, and its end once.

No I/O and no clock: whoever looks brings the numbers and the time.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from supabase_resilience._checks import check_callable, check_number, check_optional, check_text
from supabase_resilience._telling import logger
from supabase_resilience.events import AlertCleared, AlertFired, Hook

__all__ = ["Alert", "AlertBook", "Statistics"]

Statistics = Mapping[str, Any]
Condition = Callable[[Statistics], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    name: str
    when: Condition
    hold: float
    until: Condition | None
    rest: float
    tell: Hook | None


class Alert:
    """Tell once when `when(stats)` has been true for `hold` seconds, and once when it is over.

    ```python
    Alert("orders", when=lambda stats: stats["verification:orders"].open > 100, hold=60)
    ```

    - `stats` is what `Resilience.get_stats()` returns; the condition is looked at every
      `check_every` seconds of the `Resilience` that has the alert, so a state that comes and goes
      between two looks is not seen.
    - It is over when `until(stats)` (None: `when` no more) has been true for `rest` seconds (None:
      as long as `hold`). With `until` below the threshold of `when` it does not flutter:
      `when=lambda s: s["queue:a"].waiting > 1000, until=lambda s: s["queue:a"].waiting < 100`.
    - `tell` is given `AlertFired` and `AlertCleared` (None: the `on_event` of the `Resilience`).
    - A condition that raises counts as neither true nor false; that is logged once.

    Raises `ValueError` or `TypeError`, naming the argument, for one that makes no sense.
    """

    __slots__ = ("settings",)

    def __init__(
        self,
        name: str,
        *,
        when: Condition,
        hold: float = 0.0,
        until: Condition | None = None,
        rest: float | None = None,
        tell: Hook | None = None,
    ) -> None:
        check_text("name", name)
        check_callable("when", when)
        check_number("hold", hold, at_least=0.0)
        check_optional(check_callable, "until", until)
        if rest is not None:
            check_number("rest", rest, at_least=0.0)
        check_optional(check_callable, "tell", tell)
        self.settings: _Settings = _Settings(
            name=name,
            when=when,
            hold=hold,
            until=until,
            rest=hold if rest is None else rest,
            tell=tell,
        )

    @property
    def name(self) -> str:
        """What it is called in events."""
        return self.settings.name

    def __repr__(self) -> str:
        return f"Alert({self.name!r}, hold={self.settings.hold:g})"


class _Watch:
    """One alert between two looks: since when its condition, or its end, has been true."""

    def __init__(self, alert: Alert) -> None:
        self.alert = alert
        self.fired_at: float | None = None
        self._since: float | None = None
        self._was_told_broken = False

    def look(self, stats: Statistics, now: float) -> AlertFired | AlertCleared | None:
        """What is to be told now."""
        settings = self.alert.settings
        is_so = self._ask(stats)
        if is_so is None:
            return None
        if not is_so:
            self._since = None
            return None
        self._since = now if self._since is None else self._since
        held = now - self._since
        if self.fired_at is None:
            return self._fire(now, held) if held >= settings.hold else None
        return self._clear(now) if held >= settings.rest else None

    def _fire(self, now: float, held: float) -> AlertFired:
        self.fired_at, self._since = now, None
        return AlertFired(alert=self.alert.name, seconds=held)

    def _clear(self, now: float) -> AlertCleared:
        seconds = now - (self.fired_at or now)
        self.fired_at = self._since = None
        return AlertCleared(alert=self.alert.name, seconds=seconds)

    def _ask(self, stats: Statistics) -> bool | None:
        """Whether the condition holds, or, once it has fired, whether it is over."""
        settings = self.alert.settings
        try:
            if self.fired_at is None:
                is_so = bool(settings.when(stats))
            elif settings.until is not None:
                is_so = bool(settings.until(stats))
            else:
                is_so = not settings.when(stats)
        except Exception:
            if not self._was_told_broken:
                self._was_told_broken = True
                logger.exception("the condition of alert %r failed", self.alert.name)
            return None
        self._was_told_broken = False
        return is_so


class AlertBook:
    """Several alerts, looked at together."""

    def __init__(self, alerts: Iterable[Alert]) -> None:
        alerts = tuple(alerts)
        for alert in alerts:
            if not isinstance(alert, Alert):
                raise TypeError(f"alerts must be Alert objects, got {alert!r}")
        names = [alert.name for alert in alerts]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"alerts must have different names, got {sorted(twice)} twice")
        self._watches = [_Watch(alert) for alert in alerts]

    def look(
        self, stats: Statistics, now: float
    ) -> list[tuple[Hook | None, AlertFired | AlertCleared]]:
        """What is to be told now, and to whom (None: whoever hears all else)."""
        found = [(watch, watch.look(stats, now)) for watch in self._watches]
        return [(watch.alert.settings.tell, event) for watch, event in found if event is not None]

    def firing(self) -> tuple[str, ...]:
        """The names of those that have fired and are not over."""
        return tuple(w.alert.name for w in self._watches if w.fired_at is not None)
