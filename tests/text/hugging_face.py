"""Small Hugging Face models and texts that several tests share."""

from __future__ import annotations

from typing import Any

import torch
from composer.metrics.nlp import LanguageCrossEntropy
from composer.models import HuggingFaceModel
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.views import ViewPolicy

N, T, V, LABELS, B = 16, 8, 20, 3, 8


class Sentences(Dataset):
    """Token ids with padding. ``learn`` says what the labels are: of sentences, of tokens, or the tokens themselves."""

    def __init__(self, learn: str, length: int = N) -> None:
        generator = torch.Generator().manual_seed(3)
        self.ids = torch.randint(4, V, (length, T), generator=generator)
        self.real = 3 + torch.arange(length) % (T - 2)
        self.mask = (torch.arange(T) < self.real[:, None]).long()
        self.ids = self.ids * self.mask
        self.learn = learn
        self.info = DatasetInfo("sentences", 100 + torch.arange(length))
        self.view_policy = ViewPolicy(0, 1, "none")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        row = index[0] if isinstance(index, tuple) else index
        ids, mask = self.ids[row], self.mask[row]
        labels = {
            "sentences": self.ids[row, 0] % LABELS,
            "tokens": (ids % LABELS).masked_fill(mask == 0, -100),
            "language": ids.masked_fill(mask == 0, -100),
        }[self.learn]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def sentences(learn: str, length: int = N) -> DataLoader:
    return DataLoader(Sentences(learn, length), batch_size=B)


def hugging_face(learn: str, seed: int = 0, dropout: float = 0.0) -> HuggingFaceModel:
    """A model from its configuration, without dropout so that training and evaluation agree."""
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    bert = transformers.BertConfig(vocab_size=V, max_position_embeddings=T, num_labels=LABELS, **sizes, **drop)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if learn == "sentences":
            inner: Any = transformers.BertForSequenceClassification(bert)
        elif learn == "tokens":
            inner = transformers.BertForTokenClassification(bert)
        else:
            gone = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
            inner = transformers.GPT2LMHeadModel(
                transformers.GPT2Config(vocab_size=V, n_positions=T, n_embd=16, n_layer=1, n_head=2, **gone)
            )
    metric = MulticlassAccuracy(LABELS, average="micro") if learn == "sentences" else LanguageCrossEntropy()
    return HuggingFaceModel(inner, use_logits=True, metrics=[metric])
