"""HTML elements from Python: every text and every attribute is escaped, unless it is markup made here already."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["Child", "Html", "el", "join", "scroll_table", "visible"]

_VOID = frozenset({"br", "link", "meta"})
# Control characters (but tab and newline) and those that change the direction of text: what they hide must be seen.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Html(str):
    """Markup that needs no escaping. Only :func:`el` and :func:`join` make it."""

    __slots__ = ()


Child = str | int | None
"""What stands inside an element: :class:`Html` as it is, other text escaped, None not at all."""


def visible(text: str) -> str:
    """A text with control characters, marks of direction and lone surrogates as codes: names may be a stranger's."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _plain(child: Child) -> str:
    if child is None:
        return ""
    return child if isinstance(child, Html) else escape(visible(str(child)), quote=True)


def join(children: Iterable[Child], between: str = "") -> Html:
    """Children one after the other; ``between`` is a text, too."""
    return Html(_plain(between).join(_plain(child) for child in children if child is not None))


def el(name: str, *children: Child, **attributes: Child | bool) -> Html:
    """An element.

    Args:
        name: of the element.
        children: see :data:`Child`.
        attributes: a trailing underscore is dropped and others become hyphens (``class_``, ``data_json``). None and
            False leave the attribute out, True gives it without a value.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{escape(visible(str(value)), quote=True)}"')
    start = f"<{' '.join(parts)}>"
    return Html(start if name in _VOID else f"{start}{join(children)}</{name}>")


def scroll_table(caption: str, head: Sequence[Child], rows: Iterable[Sequence[Child]], *, words: int = 1) -> Html:
    """A table in a box of its own, which scrolls where the table is wider than the page.

    Args:
        caption: what it shows.
        head: one title per column.
        rows: one cell per column; the first one names the row.
        words: how many columns from the left hold words; the others hold numbers and stand to the right.
    """

    def kind(column: int) -> str | None:
        return None if column < words else "n"

    heads = (el("th", title, scope="col", class_=kind(column)) for column, title in enumerate(head))
    body = []
    for first, *others in rows:
        cells = (el("td", cell, class_=kind(column)) for column, cell in enumerate(others, start=1))
        body.append(el("tr", el("th", first, scope="row"), *cells))
    table = el("table", el("caption", caption), el("thead", el("tr", *heads)), el("tbody", *body))
    # Focusable, so that it can be scrolled by keyboard; then it needs a name.
    return el("div", table, class_="scroll", tabindex=0, role="region", aria_label=caption)
