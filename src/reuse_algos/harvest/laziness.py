"""How lazily an archived run learned, from its initial and its last weights.

Legend: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reuse_algos.archive import PriorRun
from reuse_algos.data.images.device_loader import dataloader_of
from reuse_algos.errors import ModelError, SignalNotFoundError
from reuse_algos.harvest.training_data import load_run_data
from reuse_algos.priors.model import archived_model
from reuse_algos.training.first_batch.task_reader import targets_of
from reuse_algos.training.instruments import laziness
from reuse_algos.training.instruments.examples import ExampleLosses, trained_parameters, undisturbed
from reuse_algos.training.instruments.single.batches import first_examples
from reuse_algos.training.outputs import logits_of

_BATCH_SIZE = 256


def laziness_of_run(
    run: PriorRun,
    *,
    examples: int = 64,
    memory_bytes: int = 256 << 20,
    data: Mapping[str, Any] | None = None,
    trust_data: bool = False,
) -> dict[str, float]:
    """Return how far a run's last weights are from the linearisation at its initial ones.

    Args:
        run: A run of a recipe, recorded with ``weights: [init, last]``.
        examples: How many examples of the evaluation data the tangent kernels are of. Default: 64.
        memory_bytes: Bound on the Jacobians that are held at once. Default: 256 MiB.
        data: Changes to the recipe's ``data`` section, such as another ``root``. Default: none.
        trust_data: Open the files, and download the data, that the archived recipe names. Without it ``data`` must name
            them, unless they are the embedded digits. Default: False.

    Returns:
        ``relative_distance`` and ``kernel_distance``; ``initial_accuracy``, ``accuracy`` and ``linearised_accuracy`` on
        all evaluation data, from 0 to 1. The first and the last have the initial weights with the last buffers.

    Raises:
        SignalNotFoundError: The run has no such weights.
        DataError: The run has no recipe, or its data cannot be loaded.
        PriorRunMismatchError: The data are not those of the run.
        ModelError: The run does not classify.
    """
    if missing := sorted({"init", "last"} - set(run.weight_names)):
        raise SignalNotFoundError(
            f"run {run.id} has no weights {' and '.join(missing)}, only {', '.join(run.weight_names) or 'none'}. "
            "Laziness compares the initial with the last ones: train with run_recorder: {weights: [init, last]}."
        )
    loaded = load_run_data(run, {**(data or {}), "augment": "none"}, trust_data=trust_data)
    # archived_model freezes what it returns, and the tangent kernel is of the trained parameters.
    model: Any = archived_model(run, "last").requires_grad_(True)
    initial = trained_parameters(archived_model(run, "init").requires_grad_(True))
    if hasattr(loaded.eval, "collate_fn"):
        raise ModelError(
            f"laziness is read off classifiers, and run {run.id} has batches of its own making, as detectors do."
        )
    right = first_right = straight_right = count = 0
    found: dict[str, float] = {}
    with undisturbed(model):
        for batch in dataloader_of(loaded.eval, _BATCH_SIZE):
            one = ExampleLosses(model, first_examples(batch, _BATCH_SIZE), memory_bytes)
            now = one.parameters

            def logits(values: Mapping[str, Tensor], one: ExampleLosses = one) -> Tensor:
                return logits_of(one.outputs(values))

            with torch.no_grad():
                now_NC = logits(now)
            targets_N = laziness.check_classes(now_NC, targets_of(batch))
            right += int((now_NC.argmax(1) == targets_N).sum())
            first_NC, straight_NC = laziness.linearised(logits, initial, now)
            first_right += int((first_NC.argmax(1) == targets_N).sum())
            straight_right += int((straight_NC.argmax(1) == targets_N).sum())
            count += len(targets_N)
            # The kernels are of the first examples only: they grow with the square of their number.
            if not found:
                few = ExampleLosses(model, first_examples(batch, examples), memory_bytes)
                kernels = [_kernel(few, at, memory_bytes) for at in (initial, now)]
                found = {
                    "relative_distance": laziness.distance(initial, now),
                    "kernel_distance": laziness.kernel_distance(*kernels),
                }
    return {
        **found,
        "initial_accuracy": first_right / count,
        "accuracy": right / count,
        "linearised_accuracy": straight_right / count,
    }


def _kernel(examples: ExampleLosses, at: Mapping[str, Tensor], memory_bytes: int) -> Tensor:
    return laziness.tangent_kernel(
        lambda values, names, rows: examples.jacobian(logits_of, values, names, rows),
        at,
        examples.num_examples,
        memory_bytes,
    )
