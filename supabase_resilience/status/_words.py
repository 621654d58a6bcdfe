"""Numbers in the units that people think in. `page.js` says durations in the same words."""

__all__ = ["count", "duration", "plural", "precise"]

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def duration(seconds: float) -> str:
    """In one or two units: `12 s`, `3 min`, `2 h 5 min`, `4 d 3 h`; negative ones are 0 s."""
    whole = max(0, int(seconds))
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min"
    if whole < _DAY:
        return _two(whole // _HOUR, "h", whole % _HOUR // _MINUTE, "min")
    return _two(whole // _DAY, "d", whole % _DAY // _HOUR, "h")


def _two(large: int, unit: str, small: int, small_unit: str) -> str:
    return f"{large} {unit} {small} {small_unit}" if small else f"{large} {unit}"


def precise(seconds: float) -> str:
    """Of something quick: `4 ms`, `1.3 s`; from ten seconds on as `duration`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def count(number: int) -> str:
    """With a comma between thousands."""
    return f"{number:,}"


def plural(number: int, one: str, several: str | None = None) -> str:
    """`1 part`, `2 parts`."""
    return f"{count(number)} {one if number == 1 else several or one + 's'}"
