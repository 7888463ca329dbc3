"""Numbers on the page: each one says where the embedded JSON has it, so that page and JSON can be held together."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reuse_algos.compare.html.markup import Html, el, join
from reuse_algos.compare.render import format_seconds
from reuse_algos.compare.results import json_safe
from reuse_algos.compare.statistics import Bound, Speedup

__all__ = [
    "BOUND_WORDS",
    "Numbers",
    "Value",
    "format_amount",
    "format_count",
    "format_number",
    "format_ratio",
    "format_times",
    "speedup_words",
]

BOUND_WORDS: dict[Bound, str] = {"": "", "<=": "at most ", ">=": "at least ", "?": ""}
"""What stands in front of a speed-up that is only a limit."""


def format_number(value: float) -> str:
    """A metric as people read it: ``0.9580``, ``1234``; ``not finite`` where it is not."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def _limit(value: float) -> str:
    return format_number(value) if math.isfinite(value) else "-∞" if value < 0 else "∞"


def format_count(value: float) -> str:
    """Steps, examples, FLOPs: ``750``, ``12,500``, ``1.25e+12``."""
    if not math.isfinite(value):
        return "?"
    return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}"


def format_times(value: float) -> str:
    """A ratio with two digits; ``∞`` where it has no limit, and 0 is 0."""
    if math.isnan(value):
        return "?"
    return "∞" if math.isinf(value) else "0" if value == 0.0 else f"{value:.2f}"


def format_ratio(value: float, digits: int = 2) -> str:
    """A ratio with its sign of multiplication; ``digits`` 0 for as few as it needs."""
    return f"{format_times(value) if digits else format(value, 'g')}\u00d7"


def speedup_words(speedup: Speedup) -> str:
    """A speed-up in a line of plain text: ``at most 0.80x [0, 0.95]``, or ``not known``."""
    if not speedup.known:
        return "not known"
    limits = f" [{format_times(speedup.low)}, {format_times(speedup.high)}]"
    bare = speedup.low == 0.0 and speedup.high == math.inf
    return f"{BOUND_WORDS[speedup.bound]}{format_ratio(speedup.estimate)}{'' if bare else limits}"


def format_amount(axis: str, value: float) -> str:
    """A cost on an axis: seconds with a unit, dollars with a sign, else a count."""
    if axis.endswith("seconds"):
        return format_seconds(value)
    if axis == "dollars":
        return f"${value:,.2f}" if value >= 1 else f"${value:.3g}"
    return format_count(value)


@dataclass(frozen=True)
class Value:
    """One number and its place in the embedded JSON (a JSON pointer, RFC 6901)."""

    raw: float | None
    where: str

    @property
    def number(self) -> float:
        """As a float; NaN where there is none."""
        return math.nan if self.raw is None else float(self.raw)

    @property
    def exact(self) -> str:
        """As the JSON writes it; ``null`` where it is not finite."""
        return json.dumps(json_safe(self.raw))

    def show(self, text: str) -> Html:
        """The number as ``text``, with its exact value and its place."""
        return el("data", text, value=self.exact, data_json=self.where)


class Numbers:
    """Looks numbers up in the records that the embedded JSON was made from.

    Args:
        roots: by the name of each top-level key of the embedded JSON, the dataclass, mapping or list behind it.
    """

    def __init__(self, roots: Mapping[str, Any]) -> None:
        self._roots = roots

    def at(self, *path: str | int) -> Value:
        """The number at a path of field names, keys and positions. None stays None."""
        node: Any = self._roots
        for part in path:
            indexed = isinstance(node, Mapping | Sequence)
            node = node[part] if indexed else getattr(node, str(part))
        return Value(node, "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path))

    def record(self, *path: str | int) -> Any:
        """What is at a path, whatever it is."""
        return self.at(*path).raw

    def number(self, *path: str | int) -> Html:
        """A metric."""
        value = self.at(*path)
        return value.show(format_number(value.number))

    def count(self, *path: str | int) -> Html:
        """A whole number."""
        value = self.at(*path)
        return value.show(format_count(value.number))

    def seconds(self, *path: str | int) -> Html:
        """Seconds, with a unit."""
        value = self.at(*path)
        return value.show(format_seconds(value.number))

    def amount(self, axis: str, *path: str | int) -> Html:
        """A cost, as :func:`format_amount` writes it."""
        value = self.at(*path)
        return value.show("?" if value.raw is None else format_amount(axis, value.number))

    def interval(self, *path: str | int, signed: bool = False) -> Html:
        """``0.9580 [0.9488, 0.9671]`` of an ``Interval``; without limits where there are none."""
        estimate, low, high = (self.at(*path, name) for name in ("estimate", "low", "high"))
        if math.isnan(estimate.number):
            return estimate.show("not known")
        shown = [estimate.show(f"{estimate.number:+.4f}" if signed else format_number(estimate.number))]
        if math.isfinite(low.number) or math.isfinite(high.number):
            limits = (_limit(v.number) for v in (low, high))
            pair = [v.show(text) for v, text in zip((low, high), limits, strict=True)]
            shown += [el("span", " [", pair[0], ", ", pair[1], "]", class_="limits")]
        return join(shown)

    def cost(self, axis: str, *path: str | int, bound: str = "") -> Html:
        """``2.5 min [2.1 min, 3 min]`` of an ``Interval`` of costs; ``bound`` (``<=`` or ``>=``) goes in front."""
        if self.record(*path) is None:
            return self.at(*path).show("not known")
        estimate, low, high = (self.at(*path, name) for name in ("estimate", "low", "high"))
        if math.isnan(estimate.number):
            return estimate.show("not known")
        words = {"<=": "at most ", ">=": "more than "}.get(bound, "")
        shown = [join([words, estimate.show(format_amount(axis, estimate.number))])]
        if low.number > 0 or math.isfinite(high.number):
            ends = (format_amount(axis, v.number) if math.isfinite(v.number) else "∞" for v in (low, high))
            pair = [v.show(text) for v, text in zip((low, high), ends, strict=True)]
            shown += [el("span", " [", pair[0], ", ", pair[1], "]", class_="limits")]
        return join(shown)

    def speedup(self, *path: str | int) -> Html:
        """``1.67x [1.20, 3.35]`` of a ``Speedup``; ``not known`` where neither side's cost to the target is."""
        estimate, low, high = (self.at(*path, name) for name in ("estimate", "low", "high"))
        speedup: Speedup = self.record(*path)
        if not speedup.known:
            return el("span", "not known", class_="quiet")
        shown = [join([BOUND_WORDS[speedup.bound], estimate.show(format_ratio(estimate.number))])]
        if not (low.number == 0.0 and high.number == math.inf):
            pair = [low.show(format_times(low.number)), high.show(format_times(high.number))]
            shown += [el("span", " [", pair[0], ", ", pair[1], "]", class_="limits")]
        return join(shown)
