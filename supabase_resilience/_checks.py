"""Refuse arguments that make no sense, at construction, naming the argument and the value."""

import inspect
import sys
from collections.abc import Callable
from typing import Any


def check_text(name: str, value: Any) -> None:
    """A non-empty string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r}")
    if not value:
        raise ValueError(f"{name} must not be empty")


def check_count(name: str, value: Any, *, at_least: int = 1) -> None:
    """A whole number of at least `at_least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be >= {at_least}, got {value!r}")


def check_number(name: str, value: Any, *, at_least: float) -> None:
    """A finite number of at least `at_least`."""
    _check_finite(name, value)
    if value < at_least:
        raise ValueError(f"{name} must be >= {at_least:g}, got {value!r}")


def check_seconds(name: str, value: Any) -> None:
    """A finite number of seconds above 0."""
    _check_finite(name, value)
    if value <= 0:
        raise ValueError(f"{name} must be more than 0 seconds, got {value!r}")


def check_callable(name: str, value: Any) -> None:
    """Something that can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {value!r}")


def is_async(function: object) -> bool:
    """Whether a call of it has to be awaited; an object may be a function, too."""
    call = getattr(function, "__call__", None)  # noqa: B004 - is it async, not: is it callable
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def check_optional(check: Callable[[str, Any], None], name: str, value: Any) -> None:
    """None, or what `check` accepts."""
    if value is not None:
        check(name, value)


def _check_finite(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not -sys.float_info.max <= value <= sys.float_info.max:  # NaN is neither
        raise ValueError(f"{name} must be finite, got {value!r}")
