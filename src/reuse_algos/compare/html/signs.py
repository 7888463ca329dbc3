"""How groups are told apart in plots: by colour and by shape, so that neither is needed alone."""

from __future__ import annotations

from reuse_algos.compare.html.markup import Html, el
from reuse_algos.compare.html.values import Value

__all__ = ["FRONT_SIGN", "colour_class", "mark_element", "percent", "shape_of", "swatch"]

_COLOURS = 8  # of the style sheet; the first is the baseline's
_SHAPES = (
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z",
    "M-4.5,-4.5h9v9h-9z",
    "M0,-6l6,6l-6,6l-6,-6z",
    "M0,-6l5.6,10h-11.2z",
    "M0,6l5.6,-10h-11.2z",
    "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
)

FRONT_SIGN = el("span", class_="dots", aria_hidden="true")  # sign of the Pareto front


def percent(share: float) -> str:
    """A share of the width or height, as SVG writes it."""
    return f"{100 * share:.3f}%"


def colour_class(number: int, control: bool) -> str:
    """Class of a colour: 0 is the baseline's own; the others come round again, each time with another shape."""
    return f"s{number and 1 + (number - 1) % (_COLOURS - 1)}{' control' if control else ''}"


def shape_of(colour: int) -> str:
    """Outline of the sign of a colour, around the origin."""
    return _SHAPES[colour % len(_SHAPES)]


def swatch(colour: int, control: bool) -> Html:
    """The sign of a group beside its name."""
    line = el("line", x1=0, x2=26, y1=7, y2=7, class_="line")
    shape = el("svg", el("path", d=shape_of(colour), class_="shape"), x=13, y=7, overflow="visible")
    kind = f"swatch {colour_class(colour, control)}"
    return el("svg", line, shape, width=26, height=14, aria_hidden="true", class_=kind)


def mark_element(label: str, x: float, y: float, value: Value, shape: str, kind: str) -> Html:
    """A sign at a place (shares of width and height) that can be pointed at.

    Args:
        label: what it says; a script turns it into a tip.
        x: from the left.
        y: from the top.
        value: the number that it stands for.
        shape: of :func:`shape_of`.
        kind: further classes.
    """
    return el(
        "svg",
        el("title", label),
        el("circle", r=12, class_="ring"),
        el("path", d=shape, class_="shape"),
        x=percent(x),
        y=percent(y),
        overflow="visible",
        class_=f"mark {kind}",
        role="img",
        tabindex=-1,
        data_json=value.where,
        data_value=value.exact,
    )
