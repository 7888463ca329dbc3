"""Which token each row of a model's embedding stands for, kept with the weights.

Shapes: V tokens of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reuse_algos.errors import ModelError

TOKEN_KEYS = "token_keys"
"""Name of the buffer. It is in the state dict, so archived weights say which rows belong to which token."""


def name_tokens(model: nn.Module, keys_V: Tensor) -> None:
    """Say which token each row of a model's embedding stands for.

    A later run with another vocabulary can then start from the rows of the tokens that both know, and a live teacher
    that reads other tokens is refused.

    Args:
        model: A ComposerModel, such as a ``HuggingFaceModel``.
        keys_V: int64 ``[V]``, one number for each token that is the same in every vocabulary, such as
            :func:`~reuse_algos.data.text.token_keys`.

    Raises:
        ModelError: The keys are not int64 ``[V]``.
    """
    if keys_V.dtype != torch.int64 or keys_V.dim() != 1:
        raise ModelError(f"token keys must be int64 [V], not {keys_V.dtype} of shape {tuple(keys_V.shape)}")
    model.register_buffer(TOKEN_KEYS, keys_V.clone())
