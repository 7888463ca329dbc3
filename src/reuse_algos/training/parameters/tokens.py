"""Vocabularies of two models: which rows of their embeddings stand for the same token.

Shapes: V tokens here, U tokens there, M tokens in common.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reuse_algos.errors import PriorRunMismatchError
from reuse_algos.models.text import TOKEN_KEYS
from reuse_algos.training.outputs import plain_name, unwrap_model


def common_tokens(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Return which rows of two vocabularies stand for the same token: int64 ``[M]`` here and int64 ``[M]`` there.

    Args:
        theirs: Archived weights, with ``token_keys`` int64 ``[U]`` where they know their tokens.
        ours: The model's tensors, with ``token_keys`` int64 ``[V]`` where it knows its tokens.

    Returns:
        None where one of them does not know its tokens, or both have the same ones.

    Raises:
        PriorRunMismatchError: They have no token in common.
    """
    if TOKEN_KEYS not in theirs or TOKEN_KEYS not in ours:
        return None
    keys_U, keys_V = theirs[TOKEN_KEYS].cpu(), ours[TOKEN_KEYS].cpu()
    if torch.equal(keys_U, keys_V):
        return None
    ordered_U, rows_U = keys_U.sort()
    # A key behind the last one would index outside; the comparison in the next line drops it.
    place_V = torch.searchsorted(ordered_U, keys_V).clamp_(max=len(ordered_U) - 1)
    known_V = ordered_U[place_V] == keys_V
    if not bool(known_V.any()):
        raise PriorRunMismatchError(
            f"the prior run's {len(keys_U)} tokens and this run's {len(keys_V)} have none in common, so no row of the "
            "embedding can be taken over. Start with fresh embeddings: change: {reset: ['*embeddings*']}."
        )
    return known_V.nonzero().flatten(), rows_U[place_V[known_V]]


def token_tensors(model: nn.Module) -> list[str]:
    """Return the names of the tensors with one row for each token: embeddings, and the head of a language model.

    Asked of ``get_input_embeddings`` and ``get_output_embeddings`` of Hugging Face's models. A parameter with several
    names is listed under each.
    """
    plain = unwrap_model(model)
    # Composer's HuggingFaceModel holds the transformer as .model.
    inner = getattr(plain, "model", plain)
    tensors: set[int] = set()
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        layer = getattr(inner, getter, lambda: None)()
        if isinstance(layer, nn.Module):
            tensors.update(id(parameter) for parameter in layer.parameters())
    named = plain.named_parameters(remove_duplicate=False)
    return [plain_name(name) for name, parameter in named if id(parameter) in tensors]


def refuse_other_tokens(teacher: nn.Module, student: nn.Module, name: str) -> None:
    """Refuse a teacher that reads other tokens under the numbers that the student's batches hold.

    Raises:
        PriorRunMismatchError: Both know their tokens, and these differ.
    """
    theirs, ours = dict(teacher.named_buffers()), dict(unwrap_model(student).named_buffers())
    if TOKEN_KEYS not in theirs or TOKEN_KEYS not in ours:
        return
    keys_U, keys_V = theirs[TOKEN_KEYS].cpu(), ours[TOKEN_KEYS].cpu()
    if not torch.equal(keys_U, keys_V):
        raise PriorRunMismatchError(
            f"teacher {name} reads {len(keys_U)} tokens and this run {len(keys_V)}, and the same numbers stand for "
            "other words. Train on the same training texts and data.text, use source: cached, or start from its "
            "weights (prior_run_warm_start), which match by token."
        )
