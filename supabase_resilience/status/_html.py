"""Markup that is safe by construction: what is no markup yet is escaped, wherever it comes from."""

from html import escape

__all__ = ["Child", "Html", "join", "tag"]


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | int | None
_VOID = {"link", "meta"}


def join(*children: Child) -> Html:
    """The children side by side; None is nothing."""
    return Html("".join(map(_markup, children)))


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Html:
    """An element. `class_` is `class`, `data_at` is `data-at`; False and None are left out."""
    said = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{said}>" + ("" if name in _VOID else f"{join(*children)}</{name}>"))


def _markup(child: Child) -> str:
    if child is None:
        return ""
    return child if isinstance(child, Html) else escape(str(child))
