"""The slots of an archived signal as presentations in time: what was said of every example at one moment.

A captured slot is one epoch of training; the slots of one harvest are views of the examples, all shown to the same
weights. Shapes: N training examples of the run, B of them, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reuse_algos.archive import PriorRun, Signal, weights_name

_EPOCH_NAME = re.compile(r"ep(\d{4,9})", re.ASCII)


@dataclass(frozen=True)
class Presentation:
    """One moment at which a signal has rows.

    Attributes:
        epoch: Whole epochs that the run had trained: the number of the running epoch (from 0) for captured slots, the
            epoch of the weights for harvested ones.
        harvested: Whether a harvest filled it.
        signal: Name of the archived signal, such as ``logits`` or ``logits.ep0005``.
        slots: Its slots; several are views of the examples at the same weights.
    """

    epoch: int
    harvested: bool
    signal: str
    slots: tuple[int, ...]


def harvested_name(signal: str, weights: str) -> str:
    """Return the name of a harvested signal: ``el2n`` of the last weights, ``el2n.ep0005`` of those of an epoch."""
    return signal if weights == "last" else f"{signal}.{weights_name(weights)}"


def weights_epoch(run: PriorRun, weights: str) -> int:
    """Return how many whole epochs the run had trained when it kept these weights.

    ``ep0005`` says so itself, ``last`` are those at the end, and ``best`` those of the monitor's first best value.
    """
    weights = weights_name(weights)
    if numbered := _EPOCH_NAME.fullmatch(weights):
        return int(numbered[1])
    monitor = run.manifest.monitor
    if weights == "best" and monitor in run.metric_names:
        _, row = run.best_metric(monitor)
        if row >= 0:
            return int(run.metric(monitor).epoch[row])
    return run.manifest.progress.epoch


class PresentationReader:
    """Reads the signals of one run by presentation.

    Args:
        run: The run.
    """

    def __init__(self, run: PriorRun) -> None:
        self.run = run
        self._signals: dict[str, Signal] = {}

    def signal(self, name: str) -> Signal:
        """Return the archived signal, opened once."""
        if name not in self._signals:
            self._signals[name] = self.run.signal(name)
        return self._signals[name]

    def presentations(self, base: str) -> list[Presentation]:
        """Return all that is kept of a signal, of whatever weights, by rising epoch; captured before harvested."""
        found: dict[tuple[int, bool, str], list[int]] = {}
        for name in self.run.signal_names:
            if name != base and not name.startswith(f"{base}."):
                continue
            signal = self.signal(name)
            for slot in signal.slots:
                meta = signal.slot_meta(slot)
                harvested = meta.get("source") == "harvest"
                weights = name[len(base) + 1 :] or "last"
                epoch = weights_epoch(self.run, weights) if harvested else int(meta.get("epoch", slot))
                found.setdefault((epoch, harvested, name), []).append(slot)
        return [Presentation(*key, tuple(slots)) for key, slots in sorted(found.items(), key=lambda item: item[0])]

    def rows(self, presentation: Presentation, positions_B: Tensor) -> list[Tensor]:
        """Return rows of some examples, one tensor for each slot: float64 ``[B, ...]``, NaN where not seen."""
        signal = self.signal(presentation.signal)
        parts = []
        for slot in presentation.slots:
            values, seen_B = signal.gather(positions_B, torch.full_like(positions_B, slot))
            # In float64, which has a NaN where whole numbers have none.
            values = values.to(torch.float64)
            values[~seen_B] = torch.nan
            parts.append(values)
        return parts


def latest_first(presentations: Sequence[Presentation]) -> list[Presentation]:
    """Sort by falling epoch; at equal epochs a harvest, which knows every example, comes first."""
    return sorted(presentations, key=lambda one: (one.epoch, one.harvested), reverse=True)


def in_time(presentations: Sequence[Presentation]) -> list[Presentation]:
    """Return a history of one kind, captured or harvested, whichever has more moments, by rising epoch."""
    # The two are not mixed: captured rows come from augmented examples and a model in training mode.
    harvested = one_per_epoch([one for one in presentations if one.harvested])
    captured = [one for one in presentations if not one.harvested]
    return harvested if len(harvested) > len(captured) else captured


def one_per_epoch(presentations: Sequence[Presentation]) -> list[Presentation]:
    """Return the first of each epoch, such as ``last`` of the names ``last`` and ``ep0006`` of the same weights."""
    first: dict[int, Presentation] = {}
    for one in presentations:
        first.setdefault(one.epoch, one)
    return list(first.values())
