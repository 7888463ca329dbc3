"""The ``text:`` section of a recipe's data: how texts become tokens, and what is learned from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TEXT_NAMES = ("bbc_news", "fortunes", "city_names", "glyph_names", "text_files")
"""Datasets of texts, by name."""


@dataclass(frozen=True)
class TextConfig:
    """How texts become tokens.

    Attributes:
        level: ``word`` (words and single marks, in lower case) or ``char`` (characters as they are). Default: ``word``.
        max_tokens: Length T of every example, at least 4. Longer texts are cut, shorter ones are padded. Default: 128.
        vocabulary: Most tokens that are told apart, the 4 special ones included, at least 8. The rarer ones become
            ``[UNK]``. Default: 8192.
        learn: ``labels`` (one label for each text) or ``tokens`` (each token from those before it: a language model).
            Default: ``labels``.
        held_out: Share of the texts that is kept for evaluation where the data come without a part for it, above 0 and
            below 1. Default: 0.2.

    Raises:
        ValueError: A value is out of its range.
    """

    level: str = "word"
    max_tokens: int = 128
    vocabulary: int = 8192
    learn: str = "labels"
    held_out: float = 0.2

    def __post_init__(self) -> None:
        checks: tuple[tuple[str, Any, bool, str], ...] = (
            ("level", self.level, self.level in ("word", "char"), "word or char"),
            ("max_tokens", self.max_tokens, 4 <= self.max_tokens <= 1 << 16, "from 4 to 65536"),
            ("vocabulary", self.vocabulary, 8 <= self.vocabulary <= 1 << 20, "from 8 to 1048576"),
            ("learn", self.learn, self.learn in ("labels", "tokens"), "labels or tokens"),
            ("held_out", self.held_out, 0 < self.held_out < 1, "above 0 and below 1"),
        )
        for key, value, good, wanted in checks:
            if not good:
                raise ValueError(f"{key} must be {wanted}, got {value!r}")
