"""Reads of untyped JSON: a value of the wrong shape counts as if it were missing."""

from typing import Any, TypeGuard


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    """Tell whether it is a JSON object."""
    return isinstance(value, dict)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Tell whether it is a JSON list."""
    return isinstance(value, list)


def as_object(value: Any) -> dict[str, Any]:
    """Return the object, or an empty one."""
    return value if is_object(value) else {}


def as_list(value: Any) -> list[Any]:
    """Return the list, or an empty one."""
    return value if is_list(value) else []


def as_text(value: Any) -> str:
    """Return the string, or an empty one."""
    return value if isinstance(value, str) else ""


def as_flag(value: Any) -> bool:
    """Return whether it is true, or the word true."""
    return str(value).lower() == "true"
