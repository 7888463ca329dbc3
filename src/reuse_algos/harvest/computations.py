"""What a harvest computes of a batch, by the name of the signal.

Shapes: B rows of a batch, C classes, D features before the last layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from composer.core import Precision, get_precision_context
from composer.models import ComposerModel
from composer.utils import batch_get, batch_set
from torch import nn

from reuse_algos.errors import DataError, ModelError, nearest
from reuse_algos.harvest.boxes import BOX_SIGNALS, box_rows
from reuse_algos.priors.scores import formulas
from reuse_algos.training.first_batch.boxes import refuse_boxes
from reuse_algos.training.outputs import logits_of
from reuse_algos.training.parameters.head import find_head, head_module, pass_of_head
from reuse_algos.training.tasks.eval_outputs import refuse_other_answers
from reuse_algos.training.tasks.task import Task

HARVESTABLE = ("logits", "el2n", "grand", "grand_last_layer", "features", "adversarial", *BOX_SIGNALS)


def compute_device(asked: str | torch.device | None) -> torch.device:
    """Return the device that was asked for, or a GPU where there is one and else the CPU.

    Raises:
        ModelError: There is no such device here.
    """
    try:
        device = torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
        # Only a tensor on it shows that the device is there.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {str(asked)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def gradient_rows(module: nn.Module, memory_bytes: int) -> int:
    """Return how many per-example gradients of a module fit into a number of bytes, at least 1."""
    return max(1, memory_bytes // max(1, sum(p.nbytes for p in module.parameters())))


class ArchivedForward:
    """Looks at batches with an archived model in evaluation mode.

    Args:
        module: The model, on ``device``.
        device: Where to compute.
        precision: Composer's name of it; None: fp32.
        input_key: Where the inputs lie in a batch, for models that are plain modules.
        output_key: Where the logits lie in the model's outputs.
        memory_bytes: Bound on the per-example gradients of ``grand``.
        task: What the run learned, as recorded; it says which dimension of the outputs holds the classes. Default:
            None, for runs whose record has none, and outputs are kept as they are.

    Raises:
        ModelError: Composer does not know the precision.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        precision: str | None,
        input_key: str | int,
        output_key: str | int | None,
        memory_bytes: int,
        task: Task | None = None,
    ) -> None:
        self._module, self._device = module, device
        names = [one.value for one in Precision]
        if (precision or "fp32") not in names:
            raise ModelError(f"unknown precision {precision!r}.{nearest(str(precision), names)}")
        self._precision = Precision(precision or "fp32")
        self._input_key, self._output_key = input_key, output_key
        self._memory_bytes = memory_bytes
        self._task = task
        self._head: nn.Module | None = None
        self._looked = False

    def __call__(self, signal: str, batch: Any, labels_B: torch.Tensor | None) -> torch.Tensor:
        """Return rows of a signal for a batch: float32 on the CPU.

        Args:
            signal: One of :data:`HARVESTABLE` but ``adversarial``, whose rows are made from :meth:`differentiable`.
            batch: As the data loader gives it.
            labels_B: int64; needed for everything but logits and features.

        Returns:
            ``[B, C, ...]`` logits, ``[B, D]`` features, else ``[B]``.

        Raises:
            DataError: There are no labels.
            TaskError: The score is not defined for the run's task, or the outputs are not of it.
            ModelError: The model has no logits ``[B, C]``, or no linear last layer, or its logits are not what its head
                returned, or it gives logits in training and something else in evaluation.
        """
        batch = _to_device(batch, self._device)
        inputs = batch if isinstance(self._module, ComposerModel) else batch[self._input_key]
        # Detectors take lists of images, and have no logits of an example.
        if signal in BOX_SIGNALS:
            return self._boxes(signal, batch)
        refuse_boxes(batch)
        self._look(batch)
        if signal == "logits":
            logits = self._logits(inputs)
            return (logits if self._task is None else self._task.rows(logits).logits_BCX).float().cpu()
        if signal == "features":
            return self._features(inputs).float().cpu()
        if self._task is not None:
            self._task.require(f"the score {signal!r}", ("multiclass",))
        labels_B = self._required(signal, labels_B)
        if signal == "grand":
            return self._gradient_norms(inputs, labels_B).float().cpu()
        if signal == "grand_last_layer":
            return self._last_layer_norms(inputs, labels_B).float().cpu()
        return formulas.el2n(_of_classifier(signal, self._logits(inputs)), labels_B).float().cpu()

    def differentiable(
        self, signal: str, batch: Any, labels_B: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        """Return a batch, and the model as a function of its images, through which gradients go if they are on.

        Args:
            signal: What it is for.
            batch: As the data loader gives it.
            labels_B: int64.

        Returns:
            The inputs, the labels, both on the device, and the function from inputs to logits.

        Raises:
            DataError: There are no labels, or no tensor under ``input_key``.
        """
        batch = _to_device(batch, self._device)
        try:
            inputs_B = batch_get(batch, self._input_key)
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
            raise DataError(f"the batches have nothing under input_key={self._input_key!r}: {error!r}") from error
        if not isinstance(inputs_B, torch.Tensor) or not inputs_B.is_floating_point():
            raise DataError(f"{signal} needs a tensor of floats under input_key={self._input_key!r} of the batches.")

        def forward(inputs_B: torch.Tensor) -> torch.Tensor:
            # A new container each time: a model may keep or change the batch that it gets.
            given = batch_set(copy.copy(batch), self._input_key, inputs_B)
            with get_precision_context(self._precision):
                module_inputs = given if isinstance(self._module, ComposerModel) else inputs_B
                return logits_of(self._module(module_inputs), self._output_key)

        self._look(batch)
        return inputs_B, self._required(signal, labels_B), forward

    def _required(self, signal: str, labels_B: torch.Tensor | None) -> torch.Tensor:
        if labels_B is None:
            raise DataError(
                f"{signal} compares outputs with labels, and the labels of the data are not known. Give the dataset an "
                "info=DatasetInfo(..., labels=...)."
            )
        return labels_B.to(self._device)

    def _boxes(self, signal: str, batch: Any) -> torch.Tensor:
        with torch.no_grad(), get_precision_context(self._precision):
            found = self._module(batch)
        listed = isinstance(found, list) and all(isinstance(one, Mapping) for one in found)
        if not listed or not all({"boxes", "scores", "labels"} <= one.keys() for one in found):
            name = type(self._module).__name__
            raise ModelError(f"{name} finds no boxes, scores and labels, so {signal} has no rows.")
        return box_rows(signal, found, batch[1])

    def _look(self, batch: Any) -> None:
        """Refuse, in the first batch, a model that says something else in evaluation than it learned to say."""
        if self._looked or self._task is None:
            return
        self._looked = True

        def answers() -> torch.Tensor:
            given = copy.deepcopy(batch)  # a model may change the batch that it gets
            return self._logits(given if isinstance(self._module, ComposerModel) else given[self._input_key])

        refuse_other_answers(self._module, self._task, answers(), answers, "the archived model")

    def _logits(self, inputs: Any) -> torch.Tensor:
        with torch.no_grad(), get_precision_context(self._precision):
            return logits_of(self._module(inputs), self._output_key)

    def _gradient_norms(self, inputs: Any, labels_B: torch.Tensor) -> torch.Tensor:
        with get_precision_context(self._precision):
            return formulas.grand(
                self._module,
                inputs,
                labels_B,
                read=lambda outputs: logits_of(outputs, self._output_key).float(),
                memory_bytes=self._memory_bytes,
            )

    def _features(self, inputs: Any) -> torch.Tensor:
        """Return what the head is given: the last linear layer or 1 x 1 convolution with one output for each class."""
        name = type(self._module).__name__
        if self._head is None:
            classes = self._logits(inputs).shape[1]
            found = find_head(self._module, classes)
            if not found:
                raise ModelError(
                    f"{name} has no linear layer or 1 x 1 convolution with {classes} outputs, so it has no head whose "
                    "inputs could be harvested as features."
                )
            self._head = head_module(self._module, found)[1]
        seen = pass_of_head(self._head, lambda: self._logits(inputs))
        # Compared with what the model returned: a scale or a mask behind the head would be missing from its training.
        if seen.logits.shape != seen.outputs.shape or not torch.equal(seen.logits.float(), seen.outputs.float()):
            raise ModelError(
                f"the logits of {name} are not what its head ({type(self._head).__name__}) returned, so a head could "
                "not be trained on its inputs alone. Features are of models whose last step is their head."
            )
        return seen.features

    def _last_layer_norms(self, inputs: Any, labels_B: torch.Tensor) -> torch.Tensor:
        calls: list[tuple[nn.Linear, torch.Tensor, torch.Tensor]] = []

        def keep(layer: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            assert isinstance(layer, nn.Linear)
            # Each call replaces the one before, so that the last layer of the forward pass is left.
            calls[:] = [(layer, arguments[0], output)]

        hooks = [m.register_forward_hook(keep) for m in self._module.modules() if isinstance(m, nn.Linear)]
        try:
            logits_BC = _of_classifier("grand_last_layer", self._logits(inputs))
        finally:
            for hook in hooks:
                hook.remove()
        if not calls or calls[0][2].shape != logits_BC.shape or not torch.equal(calls[0][2], logits_BC):
            raise ModelError(
                f"the logits of {type(self._module).__name__} are not what its last torch.nn.Linear returned, so the "
                "gradient of its last layer has no closed form here. Harvest grand, which works for every model."
            )
        layer, features_BD, _ = calls[0]
        return formulas.grand_last_layer(logits_BC, labels_B, features_BD, bias=layer.bias is not None)


def _of_classifier(signal: str, logits_BC: torch.Tensor) -> torch.Tensor:
    if logits_BC.dim() != 2:
        raise ModelError(f"{signal} is a score of classifiers with logits [B, C]; these are {tuple(logits_BC.shape)}.")
    return logits_BC


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: _to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_to_device(value, device) for value in batch)
    return batch
