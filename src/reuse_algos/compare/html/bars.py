"""Speed-ups as horizontal bars from 1 on a logarithmic axis, each with its limits, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reuse_algos.compare.html.markup import Child, Html, el
from reuse_algos.compare.html.scales import Scale, log_scale
from reuse_algos.compare.html.sections import Look
from reuse_algos.compare.html.signs import colour_class, mark_element, percent, shape_of, swatch
from reuse_algos.compare.html.values import Numbers, Value, format_ratio, speedup_words
from reuse_algos.compare.statistics import Speedup

__all__ = ["HOW_TO_READ", "Bar", "bar_plot", "speedup_bar"]

HOW_TO_READ = (
    "To the right of the line a group needs less than the baseline. An arrow is a limit not known. A mark without a "
    "bar is only a limit, as in “at most 2”; where there is no mark either, nothing is known."
)
"""What to say above speed-ups."""


@dataclass(frozen=True)
class Bar:
    """One ratio with its limits.

    Attributes:
        name: of the group.
        colour: number of its colour.
        control: hollow, in the colour of its technique.
        value: the ratio; None where it is not known, so that only its limits are drawn.
        filled: whether a bar leads to it, or it is only a mark.
        low: lower limit, 0 where there is none.
        high: upper limit, infinite where there is none.
        shown: the same in words, with its places in the JSON.
        label: what its mark says when pointed at.
    """

    name: str
    colour: int
    control: bool
    value: Value | None
    filled: bool
    low: float
    high: float
    shown: Child
    label: str


def speedup_bar(look: Look, words: str, numbers: Numbers, *path: str | int) -> Bar:
    """The bar of one speed-up.

    Args:
        look: of its group.
        words: what it is counted in.
        numbers: that hold it.
        path: of the ``Speedup`` in them.
    """
    speedup: Speedup = numbers.record(*path)
    return Bar(
        name=look.name,
        colour=look.colour,
        control=look.control,
        value=numbers.at(*path, "estimate") if speedup.known else None,
        filled=speedup.drawn,
        low=speedup.low,
        high=speedup.high,
        shown=numbers.speedup(*path),
        label=f"{look.name}\nspeed-up in {words}: {speedup_words(speedup)}",
    )


def bar_plot(name: str, bars: Sequence[Bar], axis_title: str) -> Html:
    """Ratios as horizontal bars, each with its limits.

    A limit that is not known runs to the end of the axis.

    Args:
        name: of the plot, for those who do not see it.
        bars: from top to bottom.
        axis_title: what the ratios are.
    """
    limits = [limit for bar in bars for limit in (bar.low, bar.high)]
    limits += [bar.value.number for bar in bars if bar.value is not None]
    scale = log_scale(limits, around=1.0, most=32.0)
    rows = []
    for bar in bars:
        words = el(
            "div",
            el("span", swatch(bar.colour, bar.control), " ", bar.name, class_="bar-name"),
            el("span", bar.shown, class_="bar-value"),
            class_="bar-words",
        )
        drawn = el("svg", _vertical(scale, 1.0, "level"), *_bar(bar, scale), height=28, class_="bar")
        rows.append(el("li", words, drawn, class_=colour_class(bar.colour, bar.control)))
    ticks = []
    for number, tick in enumerate(scale.ticks):
        kind = "tick other" if number % 2 and tick != 1.0 and len(scale.ticks) > 4 else "tick"
        ticks.append(
            el(
                "text",
                format_ratio(tick, digits=0),
                x=percent(scale.place(tick)),
                y=14,
                text_anchor="middle",
                class_=kind,
            )
        )
    return el(
        "div",
        el("div", el("ul", *rows, class_="bars"), class_="area", role="group", aria_label=name),
        el("svg", *ticks, height=18, class_="bar-axis", aria_hidden="true"),
        el("div", axis_title, class_="x-title"),
        class_="chart",
    )


def _vertical(scale: Scale, value: float, kind: str) -> Html:
    at = percent(scale.place(value))
    return el("line", x1=at, x2=at, y1="0", y2="100%", class_=kind)


def _bar(bar: Bar, scale: Scale) -> list[Html]:
    parts = []
    one, low, high = scale.place(1.0), scale.place(bar.low), scale.place(bar.high)
    if bar.value is not None and bar.filled:
        at = scale.place(bar.value.number)
        parts.append(el("rect", x=percent(min(one, at)), width=percent(abs(at - one)), y=8, height=12, class_="fill"))
    parts.append(el("line", x1=percent(low), x2=percent(high), y1=14, y2=14, class_="whisker"))
    for limit, place, inside in ((bar.low, low, bar.low > scale.low), (bar.high, high, bar.high < scale.high)):
        # A limit on the axis ends in a stroke; one beyond it, or unknown, in an arrow.
        arrow = "M-7,-5L0,0L-7,5" if limit > 1.0 else "M7,-5L0,0L7,5"
        end = el("path", d="M0,-6V6" if inside else arrow, class_="whisker")
        parts.append(el("svg", end, x=percent(place), y=14, overflow="visible"))
    if bar.value is not None:
        at = scale.place(bar.value.number)
        parts.append(mark_element(bar.label, at, 0.5, bar.value, shape_of(bar.colour), ""))
    return parts
