"""Numbers on the page: each one says where the embedded JSON has it, so that page and JSON can be held together."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from reuse_algos.compare.estimates.interval import Speedup
from reuse_algos.compare.result import json_safe
from reuse_algos.compare.show.words import (
    BOUND_WORDS,
    format_amount,
    format_count,
    format_number,
    format_runs,
    format_seconds,
    format_times,
)

# Control characters (but tab and newline) and those that change the direction of text: what they hide must be seen.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

Path = str | int


def visible(text: str) -> str:
    """Return a text with control characters, marks of direction and lone surrogates as codes.

    Names of groups and runs come from archives that others may have written.
    """
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


@dataclass(frozen=True)
class Value:
    """One number and its place in the embedded JSON (a JSON pointer, RFC 6901)."""

    raw: Any
    where: str

    @property
    def number(self) -> float:
        """The number as a float; NaN where there is none."""
        return math.nan if self.raw is None else float(self.raw)

    @property
    def exact(self) -> str:
        """The number as the JSON writes it; ``null`` where it is not finite."""
        return json.dumps(json_safe(self.raw))

    def show(self, text: str) -> Markup:
        """Return the number as ``text``, with its exact value and its place."""
        return Markup('<data value="{}" data-json="{}">{}</data>').format(self.exact, visible(self.where), text)


def _limits(low: Value, high: Value, texts: Sequence[str]) -> Markup:
    return Markup('<span class="limits"> [{}, {}]</span>').format(low.show(texts[0]), high.show(texts[1]))


def _limit(value: float) -> str:
    return format_number(value) if math.isfinite(value) else "-∞" if value < 0 else "∞"


class Numbers:
    """Looks numbers up in the records that the embedded JSON was made from.

    Args:
        roots: By the name of each top-level key of the embedded JSON, the dataclass, mapping or list behind it.
    """

    def __init__(self, roots: Mapping[str, Any]) -> None:
        self._roots = roots

    def at(self, *path: Path) -> Value:
        """Return the number at a path of field names, keys and positions. None stays None."""
        node: Any = self._roots
        for part in path:
            # Records are dataclasses with mappings and lists inside.
            indexed = isinstance(node, Mapping | Sequence)
            node = node[part] if indexed else getattr(node, str(part))
        return Value(node, "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path))

    def number(self, *path: Path) -> Markup:
        """Return a metric."""
        value = self.at(*path)
        return value.show(format_number(value.number))

    def count(self, *path: Path) -> Markup:
        """Return a whole number."""
        value = self.at(*path)
        return value.show(format_count(value.number))

    def figure(self, *path: Path) -> Markup:
        """Return a number with four significant digits, ``-`` where it is not finite."""
        value = self.at(*path)
        text = str(value.raw) if isinstance(value.raw, int) else f"{value.number:.4g}"
        return value.show(text if math.isfinite(value.number) else "-")

    def seconds(self, *path: Path) -> Markup:
        """Return seconds, with a unit."""
        value = self.at(*path)
        return value.show(format_seconds(value.number))

    def amount(self, axis: str, *path: Path) -> Markup:
        """Return a cost, ``?`` where it is not known."""
        value = self.at(*path)
        return value.show(format_amount(axis, value.raw))

    def seed(self, *path: Path) -> Markup | str:
        """Return a seed, ``-`` where there is none."""
        value = self.at(*path)
        return "-" if value.raw is None else value.show(str(value.raw))

    def interval(self, *path: Path, signed: bool = False) -> Markup | str:
        """Return ``0.9580 [0.9488, 0.9671]`` of an ``Interval``; without limits where there are none."""
        if self.at(*path).raw is None:
            return ""
        estimate, low, high = (self.at(*path, name) for name in ("estimate", "low", "high"))
        if math.isnan(estimate.number):
            return estimate.show("not known")
        shown = estimate.show(format_number(estimate.number, "+" if signed else ""))
        if math.isfinite(low.number) or math.isfinite(high.number):
            shown += _limits(low, high, [_limit(low.number), _limit(high.number)])
        return shown

    def cost(self, axis: str, *path: Path, bound: str = "") -> Markup:
        """Return ``2.5 min [2.1 min, 3 min]`` of an ``Interval`` of costs.

        Args:
            axis: How they are counted.
            path: Of the interval.
            bound: ``<=`` or ``>=`` if the estimate is only a limit. Default: empty.
        """
        estimate, low, high = (self.at(*path, name) for name in ("estimate", "low", "high"))
        if math.isnan(estimate.number):
            return estimate.show("not known")
        words = {"<=": "at most ", ">=": "more than "}.get(bound, "")
        shown = Markup(words) + estimate.show(format_amount(axis, estimate.number))
        if low.number > 0 or math.isfinite(high.number):
            texts = [format_amount(axis, v.number) if math.isfinite(v.number) else "∞" for v in (low, high)]
            shown += _limits(low, high, texts)
        return shown

    def speedup(self, *path: Path) -> Markup:
        """Return ``1.67× [1.20, 3.35]`` of a ``Speedup``; ``not known`` where neither side's cost is."""
        estimate, low, high = (self.at(*path, name) for name in ("estimate", "low", "high"))
        speedup: Speedup = self.at(*path).raw
        if not speedup.known:
            return Markup('<span class="quiet">not known</span>')
        shown = Markup(BOUND_WORDS[speedup.bound]) + estimate.show(f"{format_times(estimate.number)}\u00d7")
        if not (low.number == 0.0 and high.number == math.inf):
            shown += _limits(low, high, [format_times(low.number), format_times(high.number)])
        return shown

    def until_paid(self, *path: Path) -> Markup:
        """Return after how many later runs something is paid back, with limits."""
        value, low, high = (self.at(*path, name) for name in ("estimate", "low", "high"))
        if math.isnan(value.number):
            return value.show("not known")
        if value.number <= 0.0:
            return value.show("at once")
        whole = 0 if math.isinf(value.number) else math.ceil(value.number - 1e-9)
        words = value.show(f"{whole} later run{'' if whole == 1 else 's'}" if whole else "never")
        return words + _limits(low, high, [format_runs(low.number), format_runs(high.number)])
