"""Texts as a map-style dataset of token ids, all of one length, and the lengths of any dataset's examples.

Shapes: N examples, T positions, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from reuse_algos.data.examples.content import Content
from reuse_algos.data.info import DatasetInfo, key_of_path
from reuse_algos.data.seeding import seeded_rng
from reuse_algos.data.text.corpora import Corpus
from reuse_algos.data.text.vocabulary import PADDING, Vocabulary
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import DataError

IGNORED = -100
"""Label of a position that does not count, as Hugging Face's losses have it."""

_INPUTS = "input_ids"
_MASK = "attention_mask"


def corpus_info(corpus: Corpus, name: str) -> DatasetInfo:
    """Return keys, labels, class names and content of a corpus.

    Raises:
        DataError: A key belongs to several texts.
    """
    keys = [key if isinstance(key, int) else key_of_path(key) for key in corpus.keys]
    texts = corpus.texts
    content = Content(lambda position: texts[position].encode(), cheap=True, about="text")
    labels = torch.tensor(corpus.labels, dtype=torch.int64)
    return DatasetInfo(name, torch.tensor(keys, dtype=torch.int64), labels, corpus.class_names, content=content)


class TextDataset(Dataset[dict[str, Tensor]]):
    """Token ids of texts: ``input_ids`` and ``attention_mask`` int64 ``[T]``, and ``labels``.

    Every text has one view, so that archived logits are true for it as they are.

    Args:
        texts: The N texts.
        info: Their identity.
        vocabulary: Numbers their tokens.
        max_tokens: T.
        learn: ``labels``: ``labels`` is a class number. ``tokens``: it is the tokens themselves, int64 ``[T]``, with
            :data:`IGNORED` at padding; the shift by one is the model's. Default: ``labels``.
        view_seed: Seed that the one view is known by. Default: 0.

    Attributes:
        info: For ``tokens`` without labels, and with the vocabulary as class names: a class is a token.
        lengths: int64 ``[N]``: tokens of each text, without padding.
        view_policy: One view.

    Raises:
        DataError: The number of texts is another one than that of the keys.
    """

    def __init__(
        self,
        texts: Sequence[str],
        info: DatasetInfo,
        vocabulary: Vocabulary,
        max_tokens: int,
        learn: str = "labels",
        view_seed: int = 0,
    ) -> None:
        if len(texts) != info.num_examples:
            raise DataError(f"{len(texts)} texts were given for {info.num_examples} keys.")
        self.vocabulary = vocabulary
        self._ids_NT = torch.full((len(texts), max_tokens), PADDING, dtype=torch.int64)
        self.lengths = torch.zeros(len(texts), dtype=torch.int64)
        for row, text in enumerate(texts):
            ids = vocabulary.encode(text, max_tokens)
            self._ids_NT[row, : len(ids)] = torch.tensor(ids)
            self.lengths[row] = len(ids)
        if learn == "tokens":
            info = DatasetInfo(info.name, info.keys, None, vocabulary.tokens, info.key_kind, info.content)
        self.info = info
        self.view_policy = ViewPolicy(view_seed, 1, "none")

    def __len__(self) -> int:
        return len(self._ids_NT)

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        # A sampler that follows views yields (position, view), and there is one view.
        position = int(index[0]) if isinstance(index, tuple) else int(index)
        ids_T = self._ids_NT[position]
        mask_T = (torch.arange(len(ids_T)) < self.lengths[position]).long()
        if self.info.labels is None:
            labels = ids_T.masked_fill(mask_T == 0, IGNORED)
        else:
            labels = self.info.labels[position]
        return {_INPUTS: ids_T, _MASK: mask_T, "labels": labels}


def example_lengths(dataset: Any, count: int | None = None) -> Tensor:
    """Return the length of each example of a map-style dataset in tokens: float64 ``[N]``.

    It is the number of 1s of ``attention_mask`` where examples have one, else the number of ``input_ids``. Datasets of
    this library know it; of others every example is read once, without moving a global generator.

    Args:
        dataset: The dataset.
        count: How many examples it has. Default: its length, which for a stream is that of one rank.

    Raises:
        DataError: Examples are not mappings with ``input_ids``.
    """
    # A subset has the same inner dataset, and other rows.
    if isinstance(inner := getattr(dataset, "dataset", dataset), TextDataset) and len(inner) == len(dataset):
        return inner.lengths.double()
    lengths = []
    for position in range(len(dataset) if count is None else count):
        # A random transform must not use up random numbers of the run.
        with seeded_rng(0):
            example = dataset[position]
        if not isinstance(example, Mapping) or _INPUTS not in example:
            raise DataError(
                f"score: length counts the tokens of examples that are mappings with {_INPUTS!r}; example {position} "
                f"is a {type(example).__name__}. Give the lengths themselves: score=torch.tensor([...])."
            )
        # Padding does not count.
        if _MASK in example:
            lengths.append(float(torch.as_tensor(example[_MASK]).sum()))
        else:
            lengths.append(float(len(example[_INPUTS])))
    return torch.tensor(lengths, dtype=torch.float64)
