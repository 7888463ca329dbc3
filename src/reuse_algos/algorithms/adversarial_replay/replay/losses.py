"""What replayed rows add to the loss.

Legend: B rows of a microbatch, K classes, R rows of them replayed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from composer import State
from composer.core import get_precision_context
from composer.utils.batch_helpers import batch_get
from torch import Tensor, nn

from reuse_algos.algorithms.adversarial_replay.checks import refuse_other_outputs
from reuse_algos.algorithms.adversarial_replay.replay.forward import Replay
from reuse_algos.algorithms.adversarial_replay.replay.rows import nothing_of
from reuse_algos.algorithms.adversarial_replay.sums import ReplaySums
from reuse_algos.data.nested import take_rows, with_item
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.first_batch.task_reader import targets_of
from reuse_algos.training.interplay import example_losses, example_weights
from reuse_algos.training.loss import add_to_loss, total_of, with_weights
from reuse_algos.training.outputs import logits_of, unwrap_model


def look_at_rows(state: State, replay: Replay, sums: ReplaySums, *, appends: bool, keys: BatchKeys) -> Tensor | None:
    """Compute the loss of the replayed rows by the targets of their clean ones, and what is logged (BEFORE_LOSS).

    Args:
        state: Of the trainer.
        replay: The replayed rows of the microbatch, whose outputs are there.
        sums: Of the batch; what is logged goes in.
        appends: Whether the rows come on top of their clean ones.
        keys: Where inputs, targets and logits lie.

    Returns:
        The loss of appended rows, a scalar with gradient; None where rows take the place of their clean ones.

    Raises:
        TaskError: No row can be right or wrong by its largest logit.
    """
    model: Any = unwrap_model(state.model)
    targets_B = targets_of(state.batch, keys.target)
    added = None
    with get_precision_context(state.precision, state.precision_config):
        if appends:
            # Their batch again, as LabelSmoothing may have changed the targets since the forward pass.
            inputs_RCHW = batch_get(replay.batch, keys.input)
            batch = with_item(take_rows(state.batch, replay.rows_R, replay.num_rows), keys.input, inputs_RCHW)
            loss = model.loss(replay.outputs, batch)
            added = _weighed_loss(state, replay.rows_R, replay.outputs, batch, loss)
            sums.add_adversarial_loss(added, len(replay.rows_R))
        else:
            _add_losses_apart(model, state, replay, sums)
    outputs_BK, adversarial_RK = (logits_of(outputs, keys.output) for outputs in (state.outputs, replay.outputs))
    refuse_other_outputs(outputs_BK, targets_B)
    rows_R = replay.rows_R.to(outputs_BK.device, non_blocking=True)
    if appends:
        sums.add_pairs(outputs_BK[rows_R], adversarial_RK, targets_B[rows_R])
    else:
        kept_K = replay.kept_K.to(outputs_BK.device, non_blocking=True)
        sums.add_rows(outputs_BK[kept_K], targets_B[kept_K], adversarial_RK, targets_B[rows_R])
    return added


@torch.no_grad()
def _add_losses_apart(model: Any, state: State, replay: Replay, sums: ReplaySums) -> None:
    """Add the losses of the rows that stayed clean and of the replayed ones, for the log (mode ``replace``)."""
    # The model's loss is one number for both kinds of rows, so it is asked once more for each.
    for rows, add in ((replay.kept_K, sums.add_clean_loss), (replay.rows_R, sums.add_adversarial_loss)):
        if len(rows):
            parts = (take_rows(part, rows, replay.num_rows) for part in (state.outputs, state.batch))
            add(total_of(model.loss(*parts)), len(rows))


def _weighed_loss(state: State, rows_R: Tensor, outputs: Any, batch: Any, loss: Any) -> Tensor:
    """Return the loss of replayed rows as one number, with the weights that a curriculum gives to their examples."""
    weights_B, losses = example_weights(state), example_losses(state)
    if weights_B is not None and losses is not None:
        losses_R = losses(outputs, batch)
        loss = with_weights(loss, losses_R, weights_B[rows_R].to(losses_R.device, torch.float32))
    return total_of(loss)


def with_idle_parameters(loss: Any, parameters: Iterable[nn.Parameter]) -> Any:
    """Return the loss, to which the parameters contribute nothing: their gradients are zeros, not missing.

    Args:
        loss: A tensor, a mapping (with or without ``total``) or a tuple of tensors.
        parameters: What had no part in the forward pass.
    """
    # DistributedDataParallel waits for every parameter's gradient in every backward pass.
    parameters = list(parameters)
    return add_to_loss(loss, nothing_of(parameters)) if parameters else loss
