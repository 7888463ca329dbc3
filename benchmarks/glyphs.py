"""Pictures of the glyphs of DejaVu Sans with the script as the class: real data that needs no download.

matplotlib brings the font, and Python names each character: "GREEK SMALL LETTER ALPHA" is of the class Greek. Writes
one ``.npz`` file in the layout of Keras, uint8 ``[N, 28, 28]``, a tenth of each class as the test part. The same file
every time.

    python benchmarks/glyphs.py glyphs.npz
"""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.font_manager import get_font

SIDE = 28
CLASSES = ("LATIN", "GREEK", "CYRILLIC", "ARABIC", "GEORGIAN", "ARMENIAN", "CANADIAN", "BRAILLE", "BOX", "MATHEMATICAL")
"""First words of the characters' names, each with 90 glyphs or more."""


def picture(font: object, code: int) -> np.ndarray | None:
    """Return a glyph as uint8 ``[28, 28]``, centred, or None where there is nothing to see."""
    font.clear()  # type: ignore[attr-defined]
    font.set_text(chr(code), 0.0)  # type: ignore[attr-defined]
    font.draw_glyphs_to_bitmap(antialiased=True)  # type: ignore[attr-defined]
    drawn = np.asarray(font.get_image())[:SIDE, :SIDE]  # type: ignore[attr-defined]
    if not drawn.any():
        return None
    image = np.zeros((SIDE, SIDE), np.uint8)
    top, left = (SIDE - drawn.shape[0]) // 2, (SIDE - drawn.shape[1]) // 2
    image[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return image


def main(path: str) -> None:
    """Write the file."""
    font = get_font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"))
    font.set_size(18, 72)
    images, labels = [], []
    for code in sorted(font.get_charmap()):
        word = unicodedata.name(chr(code), " ").split()[:1]
        if word and word[0] in CLASSES and (image := picture(font, code)) is not None:
            images.append(image)
            labels.append(CLASSES.index(word[0]))
    x, y = np.stack(images), np.array(labels)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order], y[order]
    rank = np.array([(y[:place] == label).sum() for place, label in enumerate(y)])
    test = rank < np.bincount(y)[y] // 10
    np.savez(
        path,
        x_train=x[~test],
        y_train=y[~test],
        x_test=x[test],
        y_test=y[test],
        class_names=np.array([word.title() for word in CLASSES]),
    )
    print(f"{path}: {int((~test).sum())} training and {int(test.sum())} test pictures of {len(CLASSES)} scripts")


if __name__ == "__main__":
    main(sys.argv[1])
