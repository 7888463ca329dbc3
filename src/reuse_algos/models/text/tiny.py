"""``tiny_bert``, a classifier of texts, and ``tiny_gpt``, a causal language model.

Devlin et al. 2019 (arXiv 1810.04805) and Radford et al. 2019, as the package transformers implements them, with a few
hundred thousand parameters: they train on a CPU within minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from composer.metrics import CrossEntropy
from composer.metrics.nlp import LanguageCrossEntropy
from composer.models import ComposerModel, HuggingFaceModel
from torchmetrics.classification import MulticlassAccuracy

from reuse_algos.errors import ModelError
from reuse_algos.models.text.tokens import name_tokens

TEXT_MODELS = ("tiny_bert", "tiny_gpt")

_LEARNS = {"tiny_bert": "labels", "tiny_gpt": "tokens"}
_WIDTH, _DEPTH, _WIDTH_OF_HEAD = 64, 2, 32
_BOUNDS = {"vocabulary": (2, 1 << 20), "max_tokens": (2, 1 << 16), "width": (2, 4096), "depth": (1, 128)}


class TextModel(HuggingFaceModel):
    """A Hugging Face model that knows how it was built.

    Args:
        model: The transformer.
        reuse_config: What :func:`~reuse_algos.models.build_model` takes to build the same architecture again.
        metrics: For training and evaluation.
        eval_metrics: For evaluation instead of ``metrics``.
    """

    def __init__(self, model: Any, reuse_config: dict[str, Any], metrics: list[Any], eval_metrics: list[Any]) -> None:
        super().__init__(model, use_logits=True, metrics=metrics, eval_metrics=eval_metrics)
        self.reuse_config = reuse_config
        self.num_classes = int(reuse_config["num_classes"])


def text_model_shape(width: int | None, depth: int | None) -> tuple[int, int]:
    """Return width and depth, with defaults of 64 and 2 where they are None."""
    return _WIDTH if width is None else width, _DEPTH if depth is None else depth


def build_text_model(
    name: str, num_classes: int, inputs: Mapping[str, Any], width: int | None = None, depth: int | None = None
) -> ComposerModel:
    """Build a transformer from its configuration, with random weights drawn from torch's global generator.

    Args:
        name: One of :data:`TEXT_MODELS`.
        num_classes: Classes of ``tiny_bert``. ``tiny_gpt`` has one class for each token.
        inputs: ``vocabulary`` (V) and ``max_tokens`` (T); with data of this library also ``learn`` and ``token_keys``
            (int64 ``[V]``), which are kept with the weights.
        width: Size of the hidden vectors, 2 to 4,096, split into heads of 32 where that divides it. Default: 64.
        depth: Layers, 1 to 128. Default: 2.

    Raises:
        ModelError: The package transformers is missing, a size is out of its range, or the data are for the other kind
            of model.
    """
    if missing := [key for key in ("vocabulary", "max_tokens") if not isinstance(inputs.get(key), int)]:
        raise ModelError(
            f"Model {name!r} reads texts, and {' and '.join(missing)} of the data are not known. Take a dataset of "
            "texts, such as data.name: text_files."
        )
    learn = inputs.get("learn", _LEARNS[name])
    if learn != _LEARNS[name]:
        other = next(one for one in TEXT_MODELS if one != name)
        raise ModelError(
            f"Model {name!r} learns {_LEARNS[name]}, and the data say data.text.learn: {learn}. Take model: {other}, "
            f"or learn: {_LEARNS[name]}."
        )
    width, depth = text_model_shape(width, depth)
    sizes = {"vocabulary": inputs["vocabulary"], "max_tokens": inputs["max_tokens"], "width": width, "depth": depth}
    for key, value in sizes.items():
        low, high = _BOUNDS[key]
        if not low <= value <= high:
            raise ModelError(f"Model {name!r}: {key} must be from {low} to {high}, not {value}.")
    if name == "tiny_gpt":
        num_classes = sizes["vocabulary"]
    try:
        make = _gpt if name == "tiny_gpt" else _bert
        network = make(sizes, num_classes)
    except ImportError as error:
        raise ModelError(f"Model {name!r} needs the package transformers. Install reuse-algos[nlp].") from error
    if name == "tiny_gpt":
        metrics, eval_metrics = [LanguageCrossEntropy()], [LanguageCrossEntropy()]
    else:
        accuracy = MulticlassAccuracy(num_classes=num_classes, average="micro")
        metrics, eval_metrics = [accuracy], [accuracy.clone(), CrossEntropy()]
    model = TextModel(network, {"name": name, "num_classes": num_classes, **sizes}, metrics, eval_metrics)
    keys_V = inputs.get("token_keys")
    # Without keys the buffer is there all the same: archived weights that have it must fit.
    name_tokens(model, torch.zeros(sizes["vocabulary"], dtype=torch.int64) if keys_V is None else keys_V)
    return model


def _heads(width: int) -> int:
    return width // _WIDTH_OF_HEAD if width % _WIDTH_OF_HEAD == 0 else 1


def _bert(sizes: Mapping[str, int], num_classes: int) -> Any:
    from transformers import BertConfig, BertForSequenceClassification  # type: ignore[import-not-found]

    config = BertConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=_heads(sizes["width"]),
        intermediate_size=4 * sizes["width"],
        max_position_embeddings=sizes["max_tokens"],
        num_labels=num_classes,
        # As data.text.Vocabulary numbers [PAD].
        pad_token_id=0,
    )
    return BertForSequenceClassification(config)


def _gpt(sizes: Mapping[str, int], num_classes: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel  # type: ignore[import-not-found]

    config = GPT2Config(
        vocab_size=num_classes,
        n_positions=sizes["max_tokens"],
        n_embd=sizes["width"],
        n_layer=sizes["depth"],
        n_head=_heads(sizes["width"]),
        # As data.text.Vocabulary numbers [BEGIN] and [END].
        bos_token_id=2,
        eos_token_id=3,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)
