"""Which scores of examples are defined for which task, and one-logit answers as softmaxes of two classes.

Shapes: B examples, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reuse_algos.archive import PriorRun
from reuse_algos.errors import TaskError
from reuse_algos.priors.presentations import PresentationReader

# Tasks with one answer for each example: a softmax, of 0 and z where there is one logit z.
_OF_ONE_ANSWER = ("multiclass", "binary")


def check_task(run: PriorRun, score: str, signal: str, reader: PresentationReader) -> None:
    """Refuse scores that are not defined for the task of a run, as it recorded it or its logits show it.

    Raises:
        TaskError: ``loss`` and ``loss_mean`` of a recorded loss are defined for every task, ``forgetting`` of recorded
            answers for all but regression, and the others for one answer for each example.
    """
    kind = getattr(getattr(run.manifest, "task", None), "kind", None)
    if signal in ("correct", "el2n", "grand", "grand_last_layer") or (signal == "loss" and score.startswith("loss")):
        return  # the signal itself is the number, and its own task was asked when it was made
    choose = "" if score == "loss" else f" and choose score: loss instead of {score}"
    advice = f"Record runs with run_recorder signals: {{loss: {{}}}}{choose}."
    if kind is not None and kind not in _OF_ONE_ANSWER:
        raise TaskError(f"{score!r} of {signal} is not defined for the task {kind!r} of run {run.id}. {advice}")
    if signal != "logits":
        return
    shape = reader.signal(signal).row_shape
    if len(shape) > 1 or (kind is None and shape in ((), (1,))):
        raise TaskError(
            f"the score {score!r} needs the logits of one softmax for each example; those of run {run.id} have shape "
            f"{shape} (positions, or one number). {advice}"
        )


def of_classes(logits_B: Tensor) -> Tensor:
    """Return logits ``[B, C]``; one logit z of a yes-or-no question is a softmax of 0 and z."""
    logits_BC = logits_B.unsqueeze(1) if logits_B.dim() == 1 else logits_B
    if logits_BC.shape[1] > 1:
        return logits_BC
    # What is not known stays NaN in both columns.
    return torch.cat([torch.zeros_like(logits_BC).where(~logits_BC.isnan(), torch.nan), logits_BC], 1)
