"""From texts to token ids, with a vocabulary that is built from the training texts. Nothing is fetched from anywhere.

Shapes: V tokens of the vocabulary, T positions of an example.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from reuse_algos.data.info import key_of_path

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[BEGIN]", "[END]")
PADDING, _UNKNOWN, _BEGIN, _END = range(4)

_WORDS = re.compile(r"\w+|[^\w\s]")


def _split_text(text: str, level: str) -> list[str]:
    """Return the tokens of a text in NFC: words and marks in lower case (``word``), or characters (``char``)."""
    plain = unicodedata.normalize("NFC", text)
    return list(plain) if level == "char" else _WORDS.findall(plain.lower())


def token_keys(tokens: Sequence[str]) -> Tensor:
    """Return what identifies each token whatever its number: int64 ``[V]``, 8 bytes of blake2b of its text."""
    return torch.tensor([key_of_path(token) for token in tokens], dtype=torch.int64)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and their numbers.

    Attributes:
        tokens: The V tokens by number. The first four are ``[PAD]``, ``[UNK]``, ``[BEGIN]`` and ``[END]``.
        level: How texts are split, ``word`` or ``char``.
    """

    tokens: tuple[str, ...]
    level: str

    @classmethod
    def of(cls, texts: Iterable[str], level: str, size: int) -> Vocabulary:
        """Return the vocabulary of texts: the most frequent tokens, in order of the alphabet where equally frequent.

        Args:
            texts: The training texts, and no others: evaluation must not decide what a model can read.
            level: ``word`` or ``char``.
            size: Most tokens to keep, the special ones included.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(_split_text(text, level))
        # A text that spells [PAD] must not give it a second number.
        for special in SPECIAL_TOKENS:
            counts.pop(special, None)
        ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        return cls((*SPECIAL_TOKENS, *(token for token, _ in ordered[: size - len(SPECIAL_TOKENS)])), level)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Return the ids of a text: ``[BEGIN]``, its tokens, ``[END]``; at most ``max_tokens``.

        A text that is too long is cut and has no ``[END]``. An empty one is ``[BEGIN] [END]``: it stays an example.
        """
        numbers = self._numbers
        ids = [numbers.get(token, _UNKNOWN) for token in _split_text(text, self.level)[: max_tokens - 1]]
        return [_BEGIN, *ids, _END][:max_tokens]
