"""Adversarial training: every step learns from examples that were perturbed against the model of that step.

Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018, section 2.1,
https://arxiv.org/abs/1706.06083.

Legend: B examples, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from composer import Algorithm, Event, State
from composer.core import get_precision_context
from composer.loggers import Logger
from torch import Tensor, nn

from reuse_algos.data.example_ids import ExampleIds, keep_views
from reuse_algos.data.images.pixels import PixelSpace, pixel_space_of
from reuse_algos.data.nested import with_item
from reuse_algos.errors import ExampleIdError, PriorRunMismatchError, TaskError
from reuse_algos.training.attacks import Attack, attacked, perturb
from reuse_algos.training.batch_keys import BatchKeys, part_of
from reuse_algos.training.first_batch.task_reader import TaskReader, class_numbers_of
from reuse_algos.training.interplay import BatchEffects, hides_inputs, mixes_examples
from reuse_algos.training.outputs import logits_of, unwrap_model
from reuse_algos.training.parameters.batch_norm import share_statistics


def adversarial_inputs(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    inputs_BCHW: Tensor,
    labels_B: Tensor,
    attack: Attack,
    pixels: PixelSpace,
    *,
    keys_B: Tensor,
    views_B: Tensor,
) -> Tensor:
    """Return the inputs of a batch, perturbed so that the model's loss grows.

    The model is attacked in evaluation mode, so that its batch norm statistics and dropout do not move; the mode of
    each module is put back. No parameter gets a gradient, and nothing is drawn from any generator.

    Args:
        model: The module whose mode is switched.
        forward: From inputs ``[B, C, H, W]`` to logits ``[B, K]``; calls ``model``.
        inputs_BCHW: Clean inputs, floating point.
        labels_B: int64 from 0 to K - 1.
        attack: Strength and method.
        pixels: How the inputs were normalised.
        keys_B: int64, identity of each example, which seeds its random start.
        views_B: int64, another number for another random start of the same example.

    Returns:
        Inputs of the same shape and dtype.

    Raises:
        DataError: The inputs are not valid pixels of this space, or the labels do not fit.
        ModelError: The model has no logits ``[B, K]``, or its outputs do not depend on the inputs.
    """
    with attacked(model):
        delta_BCHW = perturb(forward, inputs_BCHW, labels_B, attack, pixels, keys_B=keys_B, views_B=views_B)
    return pixels.add(inputs_BCHW, delta_BCHW)


class AdversarialTraining(Algorithm, BatchEffects):
    """Train on adversarial examples that are made at every step, against the current model.

    Needs no archive. To start from an archived run, put ``PriorRunWarmStart`` beside it. A step costs one forward and
    one backward pass more for each step of the attack; ``AdversarialReplay`` looks perturbations up instead, which is
    cheaper. Random starts are functions of (seed, example, epoch), so a run resumes bit by bit and ranks
    agree.

    Args:
        epsilon: Radius of the ball, in pixel units of 0 to 1. Default: 8/255.
        method: ``fgsm`` (one step) or ``pgd``. Default: ``pgd``.
        steps: Steps of PGD, at least 1. Default: 5.
        step_size: Length of such a step, in pixel units. Default: ``2.5 * epsilon / steps``.
        norm: ``linf`` or ``l2``. Default: ``linf``.
        seed: Of the random starts. Default: 0.
        pixel_mean: Mean of each channel with which the inputs were normalised. Default: what the dataset says.
        pixel_std: Standard deviation of each channel. Default: what the dataset says.
        input_key: Where the inputs lie in a batch. Default: 0.
        target_key: Where the labels lie in a batch. Default: 1.

    Raises:
        ValueError: A setting is out of its range.
        ExampleIdError: In the first batch: it is not known how the inputs were normalised.
        TaskError: In the first batch: the task is not multiclass, or the inputs are not images.
        PriorRunMismatchError: At the start: another algorithm mixes examples or hides the images.
    """

    def __init__(
        self,
        epsilon: float = 8 / 255,
        *,
        method: Literal["fgsm", "pgd"] = "pgd",
        steps: int = 5,
        step_size: float | None = None,
        norm: Literal["linf", "l2"] = "linf",
        seed: int = 0,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        input_key: str | int = 0,
        target_key: str | int = 1,
    ) -> None:
        self.attack = Attack(method, epsilon, steps, step_size, norm, seed=seed)
        if (pixel_mean is None) != (pixel_std is None):
            raise ValueError("AdversarialTraining: pixel_mean and pixel_std go together, one number for each channel")
        self.given_pixels = None
        if pixel_mean is not None and pixel_std is not None:
            self.given_pixels = PixelSpace(tuple(pixel_mean), tuple(pixel_std))
        self.pixels = self.given_pixels
        self.input_key, self.target_key = input_key, target_key
        self.ids = ExampleIds(None)
        self.task_reader = TaskReader(BatchKeys(input_key, target_key))
        self.samples = 0

    def match(self, event: Event, state: State) -> bool:
        """Return whether examples are to be followed or attacked at this event."""
        if event in (Event.INIT, Event.AFTER_LOSS):
            return event == Event.INIT or self.task_reader.task is None
        return event in ExampleIds.EVENTS or event in (Event.FIT_START, Event.BEFORE_FORWARD, Event.BATCH_END)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Follow the examples; check at the start; attack before each forward pass."""
        if event == Event.INIT:
            self.task_reader.start_afresh()
        # Before the first attack goes backward: what is not defined for the task is refused.
        elif event in TaskReader.EVENTS and self.task_reader.handle(event, state):
            self.task_reader.known.require("AdversarialTraining", ("multiclass",))
        if event == Event.FIT_START:
            self._check(state)
            keep_views(state)
        if event in ExampleIds.EVENTS:
            self.ids.handle(event, state)
        if event == Event.BEFORE_TRAIN_BATCH:
            share_statistics(state.model)  # the attack is in evaluation mode, before DDP shares them
        elif event == Event.BEFORE_FORWARD:
            self._attack(state)
        elif event == Event.BATCH_END:
            self.samples = int(state.timestamp.sample)
            logger.log_metrics({"reuse/adversarial_training/epsilon": self.attack.epsilon})

    @property
    def perturbs_inputs(self) -> bool:
        """Return true: no clean view reaches the model."""
        return True

    def replaced_rows(self, state: State) -> Tensor | None:
        """Return that no row of the microbatch is a clean view, so that the recorder captures none of them."""
        return torch.ones(len(self.ids.microbatch.positions), dtype=torch.bool)

    def extra_flops(self, flops_per_example: int) -> float | None:
        """Return the FLOPs of the attacks so far: a forward pass and the gradient of the inputs, for each step."""
        return 2.0 * self.attack.num_steps * flops_per_example * self.samples

    def _check(self, state: State) -> None:
        self.pixels = self.given_pixels  # another training may have images that are normalised otherwise
        if mixing := [*mixes_examples(state), *hides_inputs(state)]:
            raise PriorRunMismatchError(
                f"{mixing[0]} leaves no image with one label to attack. Remove {mixing[0]} or AdversarialTraining."
            )

    def _images_of(self, batch: Any) -> Tensor:
        inputs_BCHW: Any = _part_or_none(batch, self.input_key)
        if not isinstance(inputs_BCHW, Tensor) or not inputs_BCHW.is_floating_point() or inputs_BCHW.dim() != 4:
            seen = "nothing" if inputs_BCHW is None else f"a {type(inputs_BCHW).__name__}"
            if isinstance(inputs_BCHW, Tensor):
                seen = f"{tuple(inputs_BCHW.shape)} {str(inputs_BCHW.dtype).removeprefix('torch.')}"
            raise TaskError(
                f"AdversarialTraining changes pixels, so its inputs are images [B, C, H, W] in floating point; found "
                f"{seen} at input_key={self.input_key!r}. A small change of a token's id is another token."
            )
        return inputs_BCHW

    def _space_of(self, dataset: Any) -> PixelSpace:
        if (pixels := pixel_space_of(dataset)) is None:
            raise ExampleIdError(
                f"the attack is in pixel units, and {type(dataset).__name__} does not say how its pixels were "
                "normalised. Give AdversarialTraining pixel_mean and pixel_std (one number for each channel, on the "
                "scale 0 to 1; 0 and 1 where the inputs are pixels)."
            )
        return pixels

    def _attack(self, state: State) -> None:
        model: Any = unwrap_model(state.model)
        labels_B = class_numbers_of(state.batch, self.target_key, "AdversarialTraining")
        inputs_BCHW = self._images_of(state.batch)
        if self.pixels is None:
            self.pixels = self._space_of(getattr(state.dataloader, "dataset", None))
        keys_B = self.ids.microbatch.positions.to(inputs_BCHW.device)
        batch = state.batch

        def forward(moved_BCHW: Tensor) -> Tensor:
            # Models take the whole batch.
            return logits_of(model(with_item(batch, self.input_key, moved_BCHW)), None)

        with get_precision_context(state.precision, state.precision_config):
            moved_BCHW = adversarial_inputs(
                model,
                forward,
                inputs_BCHW,
                labels_B,
                self.attack,
                self.pixels,
                keys_B=keys_B,
                # The epoch in place of the view: another random start for the same image in each epoch.
                views_B=torch.full_like(keys_B, int(state.timestamp.epoch)),
            )
        state.batch_set_item(self.input_key, moved_BCHW)


def _part_or_none(batch: Any, key: str | int) -> Any:
    try:
        return part_of(batch, key)
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
