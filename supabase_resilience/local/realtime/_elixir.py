"""Elixir's `inspect`, as far as Realtime's error messages show it to clients."""

import json
from typing import Any


def inspect(term: Any) -> str:
    """Write a JSON-like value the way Elixir prints it (tuples in braces, maps as `%{}`)."""
    if term is None:
        return "nil"
    if isinstance(term, bool):
        return str(term).lower()
    if isinstance(term, dict):
        pairs = (f"{inspect(key)} => {inspect(value)}" for key, value in _sorted_items(term))
        return f"%{{{', '.join(pairs)}}}"
    if isinstance(term, list | tuple):
        inside = ", ".join(map(inspect, _items(term)))
        return f"[{inside}]" if isinstance(term, list) else f"{{{inside}}}"
    return json.dumps(term, ensure_ascii=False)


def _sorted_items(term: Any) -> list[tuple[str, Any]]:
    return sorted(term.items())


def _items(term: Any) -> list[Any]:
    return list(term)
