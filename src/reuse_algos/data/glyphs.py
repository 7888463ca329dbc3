"""Pictures of characters and the characters' names: real pairs of images and texts that need no download.

matplotlib brings the font DejaVu Sans, and Python names each character: "GREEK SMALL LETTER ALPHA".
"""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

SIDE = 28
SCRIPTS = ("LATIN", "GREEK", "CYRILLIC", "ARABIC", "GEORGIAN", "ARMENIAN", "CANADIAN", "BRAILLE", "BOX", "MATHEMATICAL")
"""First words of the characters' names, each with 90 glyphs or more."""


class Glyph(NamedTuple):
    """A character with its picture.

    Attributes:
        code: Number of the character in Unicode.
        name: Its name in Unicode.
        picture: uint8 ``[28, 28]``, centred, white on black.
    """

    code: int
    name: str
    picture: np.ndarray


@cache
def glyphs() -> tuple[Glyph, ...]:
    """Return all characters of DejaVu Sans that have a name and can be seen, in the order of their numbers."""
    # Only data of glyphs needs matplotlib, whose import takes a second.
    import matplotlib
    from matplotlib.font_manager import get_font

    font = get_font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"))
    font.set_size(18, 72)
    found = []
    for code in sorted(font.get_charmap()):
        name = unicodedata.name(chr(code), "")
        if not name:
            continue
        font.clear()
        font.set_text(chr(code), 0.0)
        font.draw_glyphs_to_bitmap(antialiased=True)
        drawn = np.asarray(font.get_image())[:SIDE, :SIDE]
        if not drawn.any():
            continue
        picture = np.zeros((SIDE, SIDE), np.uint8)
        top, left = (SIDE - drawn.shape[0]) // 2, (SIDE - drawn.shape[1]) // 2
        picture[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
        found.append(Glyph(code, name, picture))
    return tuple(found)


def glyphs_of_scripts() -> tuple[list[Glyph], list[int]]:
    """Return the characters of :data:`SCRIPTS`, and the number of each one's script."""
    chosen = [(glyph, SCRIPTS.index(word)) for glyph in glyphs() if (word := glyph.name.split()[0]) in SCRIPTS]
    return [glyph for glyph, _ in chosen], [script for _, script in chosen]
