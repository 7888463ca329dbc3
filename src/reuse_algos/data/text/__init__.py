"""Texts as data: corpora by name, a vocabulary from the training texts, and datasets of token ids."""

from __future__ import annotations

from reuse_algos.data.text.config import TEXT_NAMES, TextConfig
from reuse_algos.data.text.corpora import Corpus, load_corpus
from reuse_algos.data.text.dataset import TextDataset, example_lengths
from reuse_algos.data.text.vocabulary import Vocabulary, token_keys

__all__ = [
    "TEXT_NAMES",
    "Corpus",
    "TextConfig",
    "TextDataset",
    "Vocabulary",
    "example_lengths",
    "load_corpus",
    "token_keys",
]
