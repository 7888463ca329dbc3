"""The pictures of ``reuse-algos scores``: a histogram, and a contact sheet of easy and hard images.

Shapes: N examples, K images per class and end, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reuse_algos.compare.show.figures import plain_text
from reuse_algos.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reuse_algos.data.datasets.load import LoadedData

_SIDE = 48
_LARGEST_SIDE = 64
_GAP = 2
_SKEWED = 20.0
_MOST_CLASSES = 100
"""A sheet of more rows would be taller than a PNG file can be."""


def histogram(values_N: NDArray[np.float64], labels_N: NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """Draw how the scores are distributed, and the quartiles of each class.

    Args:
        values_N: Scores, NaN where unknown; at least one is known.
        labels_N: Number of the class of each example.
        names: Of the classes.
        title: Above the picture.

    Returns:
        A figure that belongs to no window and no pyplot state.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, max(4.0, 0.16 * len(names) + 1.5)), layout="constrained")
    left, right = figure.subplots(1, 2)
    known_N = np.isfinite(values_N)
    shown = values_N[known_N]
    # Where the largest score is far off, a linear axis would show one bar.
    log = bool((shown > 0).all() and shown.max() > _SKEWED * np.median(shown))
    left.hist(shown, bins=np.geomspace(shown.min(), shown.max(), 51) if log else 50, color="C0")
    left.axvline(float(np.median(values_N[known_N])), color="black", ls="--", lw=1.0, label="median")
    left.set_xlabel("score, logarithmic" if log else "score")
    left.set_ylabel("examples")
    left.legend(fontsize="small")
    rows = [number for number in range(len(names)) if bool((known_N & (labels_N == number)).any())]
    quartiles = np.array([np.quantile(values_N[known_N & (labels_N == row)], [0.25, 0.5, 0.75]) for row in rows])
    places = np.arange(len(rows))
    right.hlines(places, quartiles[:, 0], quartiles[:, 2], color="C0", lw=4, alpha=0.5)
    right.plot(quartiles[:, 1], places, "o", color="C0", ms=4)
    right.set_yticks(places, [plain_text(names[row]) for row in rows], fontsize=7)
    right.invert_yaxis()
    right.set_xlabel("score: quartiles and median of each class")
    if log:
        # A few hard examples would press all others into one bar.
        left.set_xscale("log")
        right.set_xscale("log")
    right.grid(alpha=0.25)
    figure.suptitle(plain_text(title), fontsize="medium")
    return figure


def ends_of_classes(
    values_N: NDArray[np.float64], labels_N: NDArray[np.int64], num_classes: int, per_class: int
) -> dict[int, tuple[list[int], list[int]]]:
    """Return for each class with known scores the positions of its easiest and of its hardest examples."""
    ends = {}
    for number in range(num_classes):
        members = np.flatnonzero(np.isfinite(values_N) & (labels_N == number))
        # Stable, so that equal scores give the same sheet every time.
        order = members[np.argsort(values_N[members], kind="stable")]
        if len(order):
            ends[number] = order[:per_class].tolist(), order[::-1][:per_class].tolist()
    return ends


def image_reader(loaded: LoadedData) -> Any:
    """Return a function from position to image: uint8 ``[H, W, 3]``, as it was before it was normalised."""
    from reuse_algos.data.views import ExampleView

    mean, std = (np.asarray(numbers, dtype=np.float32)[:, None, None] for numbers in (loaded.mean, loaded.std))

    def read(position: int) -> NDArray[np.uint8]:
        pixels = loaded.train[ExampleView(position, 0)][0].cpu().numpy()
        if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
            raise DataError(f"a contact sheet needs images [1 or 3, H, W], the examples are {pixels.shape}")
        # Rounding undoes the float arithmetic of the normalisation, so the bytes are those of the file.
        pixels_HWC = np.clip((pixels * std + mean) * 255, 0, 255).round().astype(np.uint8).transpose(1, 2, 0)
        return np.broadcast_to(pixels_HWC, (*pixels_HWC.shape[:2], 3))

    return read


def contact_sheet(
    ends: Mapping[int, tuple[Sequence[int], Sequence[int]]],
    names: Sequence[str],
    read: Any,
    title: str,
    said: Mapping[int, str] | None = None,
) -> Figure:
    """Draw one row for each class: its easiest images from the left, its hardest from the right.

    Args:
        ends: See :func:`ends_of_classes`.
        names: Of the classes.
        read: From position to image, see :func:`image_reader`.
        title: Above the sheet.
        said: What the model says of images that it takes for another class, by position; it is written on them.
            Default: None, nothing is known.
    """
    from matplotlib.figure import Figure

    said, notes = said or {}, []
    shown = list(ends)[:_MOST_CLASSES]
    per_end = max(max(len(easy), len(hard)) for easy, hard in (ends[number] for number in shown))
    first = _scaled(read(ends[shown[0]][0][0]))
    height, width = first.shape[0] + _GAP, first.shape[1] + _GAP
    columns = 2 * per_end
    middle = width // 2
    canvas = np.full((len(shown) * height, columns * width + middle, 3), 255, dtype=np.uint8)
    for row, number in enumerate(shown):
        easy, hard = ends[number]
        places = [(column, position) for column, position in enumerate(easy)]
        places += [(columns - 1 - column, position) for column, position in enumerate(hard)]
        for column, position in places:
            # Images of another size than the first are cut to its cell.
            image = _scaled(read(position))[: height - _GAP, : width - _GAP]
            x = column * width + (middle if column >= per_end else 0)
            canvas[row * height : row * height + image.shape[0], x : x + image.shape[1]] = image
            if position in said:
                notes.append((x + 1, row * height + image.shape[0] - 2, said[position]))
    figure = Figure(figsize=(canvas.shape[1] / 100 + 1.5, canvas.shape[0] / 100 + 0.8), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(canvas, interpolation="nearest")
    for x, y, text in notes:
        look = {"facecolor": "black", "alpha": 0.6, "pad": 0.5, "linewidth": 0}
        axes.text(x, y, plain_text(text), fontsize=5, color="#ff9d8a", va="bottom", clip_on=True, bbox=look)
    axes.set_yticks(
        [(row + 0.5) * height for row in range(len(shown))], [plain_text(names[n]) for n in shown], fontsize=7
    )
    half = per_end * width
    axes.set_xticks([half / 2, half * 1.5 + middle], ["easiest (first: the easiest)", "hardest (last: the hardest)"])
    axes.tick_params(length=0, labelsize=7)
    for side in axes.spines.values():
        side.set_visible(False)
    cut = f"; the first {len(shown)} of {len(ends)} classes" if len(shown) < len(ends) else ""
    wrong = "; written on an image: what the model takes it for" if notes else ""
    figure.suptitle(plain_text(title + cut + wrong), fontsize="small")
    return figure


def _scaled(image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Enlarge small images by a whole number, and thin out large ones, so that a sheet stays readable."""
    side = max(image_HWC.shape[:2])
    if side > _LARGEST_SIDE:
        step = -(-side // _LARGEST_SIDE)
        return image_HWC[::step, ::step]
    # Whole numbers keep pixels sharp.
    factor = max(1, _SIDE // side)
    return image_HWC.repeat(factor, 0).repeat(factor, 1)
