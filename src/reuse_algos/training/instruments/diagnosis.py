"""What the readings of a run say in words, each sentence with the numbers that it rests on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import bdtrc

Series = Mapping[str, Sequence[tuple[int, float]]]
"""Name of a reading -> (step, value) in the order of steps."""

# The distance is taken on both sides of -1: with momentum, steps of a good rate often go uphill on their own batch and
# end far below -1. Useless small rates had a median distance of at most 0.0014, useful ones of 0.18 and more
# (benchmarks/instruments.py).
_SMALL_DISTANCE = 0.02
# On digits a diverging rate had a median of 0.31, so this was not reached: a step that ends here gives back a quarter
# of its gain.
_LARGE_ALPHA = 0.5
_NOISY = 10.0  # noise scale in batches: the error is then three times as long as the gradient
_LATE = 0.8  # to stop within the last fifth would save little
_LAZY_KERNEL = 0.05
_LAZY_POINTS = 0.01
_LEARNED = 0.1  # every network is near its linearisation before it has learned
_FEWEST = 5  # a median of fewer readings is that of single batches
# A median of few noisy readings crosses a bound by chance. Of 822 ways to read the archived runs of good rates less
# often, 94 had a median noise scale beyond its bound, and 3 a sign test (benchmarks/results/instruments.jsonl).
_CHANCE = 0.05


@dataclass(frozen=True)
class Finding:
    """One thing that the readings say of a run.

    Attributes:
        name: ``rate_too_small``, ``rate_too_large``, ``diverged``, ``batch_too_small``, ``stopped_too_late`` or
            ``as_good_as_linear``.
        words: The finding, a sentence.
        evidence: The numbers, a sentence; never empty.
    """

    name: str
    words: str
    evidence: str


def diagnose(readings: Series) -> list[Finding]:
    """Return what the readings of one run say of it; empty where nothing stands out, or where too little was read.

    Args:
        readings: Names as :func:`~reuse_algos.training.instruments.reading.read_step` gives them. Missing ones are
            passed over.
    """
    found = [_diverged(readings), _rate(readings), _batch(readings), _late(readings), _linear(readings)]
    return [finding for finding in found if finding is not None]


def _diverged(readings: Series) -> Finding | None:
    wrong = next((step for step, value in readings.get("gradient_norm", ()) if not math.isfinite(value)), None)
    if wrong is None:
        return None
    return Finding("diverged", "The run diverged.", f"The gradient norm is not a finite number at step {wrong}.")


def _rate(readings: Series) -> Finding | None:
    values = _finite(readings, "alpha")
    if len(values) < _FEWEST:
        return None
    distances = [abs(value + 1) for value in values]
    if small := _most(distances, [value <= _SMALL_DISTANCE for value in distances]):
        words = "The learning rate is too small: steps end close to where they began."
        evidence = f"The median distance of alpha from -1 of {small} at most {_SMALL_DISTANCE}."
        return Finding("rate_too_small", words, evidence)
    if large := _most(values, [value >= _LARGE_ALPHA for value in values]):
        words = "The learning rate is too large: steps end far up the other side of the valley."
        return Finding("rate_too_large", words, f"The median alpha of {large} at least {_LARGE_ALPHA}.")
    return None


def _batch(readings: Series) -> Finding | None:
    sizes, scales = _finite(readings, "batch_size"), _finite(readings, "noise_scale", infinite=True)
    if len(scales) < _FEWEST or not sizes:
        return None
    size = statistics.median(sizes)
    noisy = _most(scales, [value >= _NOISY * size for value in scales], " examples")
    if noisy is None:
        return None
    tests = _finite(readings, "norm_test")
    norm = f"; the median norm test is {statistics.median(tests):.3g}" if tests else ""
    return Finding(
        "batch_too_small",
        f"The batch is small for its noise: a batch of {size:.0f} examples says little of the gradient.",
        f"The median noise scale of {noisy} {_NOISY:.0f} times the batch or more{norm}.",
    )


def _late(readings: Series) -> Finding | None:
    series = [(step, value) for step, value in readings.get("early_stopping", ()) if math.isfinite(value)]
    if len(series) < _FEWEST:
        return None
    last = series[-1][0]
    # One reading is noisy: the criterion must stay above 0 from there to the end.
    start = next((at for at in range(len(series)) if all(value > 0 for _, value in series[at:])), None)
    if start is None or series[start][0] > _LATE * last or len(series) - start < 2:
        return None
    return Finding(
        "stopped_too_late",
        f"Training could have stopped near step {series[start][0]} of {last}.",
        f"The early-stopping criterion is above 0 in all {len(series) - start} readings from step {series[start][0]} "
        f"on ({series[start][1]:.3g} there, {series[-1][1]:.3g} at step {last}).",
    )


def _linear(readings: Series) -> Finding | None:
    names = ("kernel_distance", "accuracy", "linearised_accuracy", "initial_accuracy")
    if not all(readings.get(name) for name in names):
        return None
    kernel, accuracy, straight, first = (readings[name][-1][1] for name in names)
    if not (kernel <= _LAZY_KERNEL and straight >= accuracy - _LAZY_POINTS and accuracy >= first + _LEARNED):
        return None
    return Finding(
        "as_good_as_linear",
        "The run is as good as a linear model in the features of its initial weights.",
        f"At step {readings[names[0]][-1][0]} the kernel distance is {kernel:.3g}, and the linearised network has an "
        f"accuracy of {straight:.1%} where the network itself has {accuracy:.1%} (initially {first:.1%}).",
    )


def _finite(readings: Series, name: str, *, infinite: bool = False) -> list[float]:
    values = (value for _, value in readings.get(name, ()))
    return [value for value in values if math.isfinite(value) or (infinite and value == math.inf)]


def _most(values: Sequence[float], beyond: Sequence[bool], unit: str = "") -> str | None:
    """Return the median and the counts in words if most values lie beyond a bound; None if chance could do that.

    A sign test: half of the values would lie beyond a bound that is their true median.
    """
    count, total = sum(beyond), len(values)
    if bdtrc(count - 1, total, 0.5) > _CHANCE:
        return None
    middle = statistics.median(values)
    shown = "infinite" if middle == math.inf else f"{middle:.3g}{unit}"
    return f"{total} readings is {shown}; {count} of them are"
