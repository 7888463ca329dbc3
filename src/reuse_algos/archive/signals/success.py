"""How successful the perturbations of a signal are: shares of the counts that each of its slots keeps.

A slot's meta has the counts: ``num_examples``; ``num_correct``, those classified rightly when clean; ``num_foolable``,
those that could be fooled (untargeted: the rightly classified ones; with random targets: all); ``num_fooled``, those of
them that the exact perturbations fooled; and ``num_fooled_quantized``, those that the kept ones did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from reuse_algos.archive.format.records import Scalar

RATES = {
    "clean_accuracy": ("num_correct", "num_examples"),
    "success": ("num_fooled", "num_foolable"),
    "success_quantized": ("num_fooled_quantized", "num_foolable"),
}
"""Each share as (what is counted, out of what)."""


def success_rates(slots: Iterable[Mapping[str, Scalar]]) -> dict[str, float | None]:
    """Return the shares of :data:`RATES` over all examples of some slots.

    Args:
        slots: The meta of each slot.

    Returns:
        Every share, from 0 to 1: of the sums, so that each example counts alike whatever slot it is in; None where
        there is nothing to count, or a slot does not say.
    """
    metas = list(slots)
    rates: dict[str, float | None] = {}
    for name, keys in RATES.items():
        part, whole = (_total(metas, key) for key in keys)
        rates[name] = part / whole if part is not None and whole else None
    return rates


def _total(metas: Iterable[Mapping[str, Any]], key: str) -> int | None:
    # A meta comes from a file that somebody else may have written.
    counts = [meta.get(key) for meta in metas]
    known = [count for count in counts if isinstance(count, int) and not isinstance(count, bool)]
    return sum(known) if len(known) == len(counts) else None
