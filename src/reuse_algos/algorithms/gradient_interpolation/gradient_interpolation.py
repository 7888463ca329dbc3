"""The Composer algorithm: a model with the time as an input is trained to be right a step ahead, too.

Legend: B rows of a microbatch, t times, d a step in time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from composer import Algorithm, Event, State
from composer.core import get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from reuse_algos.algorithms.gradient_interpolation.interpolation import ascend_delta, interpolate
from reuse_algos.data.hashing import uniform_floats, view_hash
from reuse_algos.data.nested import with_item
from reuse_algos.data.seeding import seeded_rng
from reuse_algos.errors import DataError, ModelError, PriorRunMismatchError
from reuse_algos.models.time_conditioned import TimeConditioned, time_of, with_time
from reuse_algos.training.interplay import BatchEffects, hides_inputs, mixes_examples
from reuse_algos.training.loss import add_to_loss, total_of
from reuse_algos.training.outputs import unwrap_model
from reuse_algos.training.parameters.kept_state import kept_state

_SALT_DELTA = 51  # of view_hash: keeps this draw apart from those of other modules
_NEAR = 0.02  # of the clamp: nearer to 0 or to the clamp than this, the step is drawn again
_PASSES = 6  # forward passes that a pass with tangents and its backward pass cost, about


class GradientInterpolation(Algorithm, BatchEffects):
    r"""Add the loss of ``F(x, t - d) + d dF/dt(x, t - d)`` to a model with the time as an input (Nasery et al. 2021).

    The loss becomes ``l(z, y) + weight * l(F(x, t), y)``. The step d is one number for all rows, moved by a few steps
    of ascent on ``l(z, y)``: where the model, continued in a straight line, is most wrong. It goes on from batch to
    batch, and is drawn again between ``-spread`` and ``spread`` when it has come near 0 or the clamp. The draw is a
    function of seed and batch, so a run resumes bit by bit; ranks use the mean of their derivatives, and agree on d.

    Needs no archive. Put ``PriorRunWarmStart`` beside it to start from the run of the period before.

    Args:
        weight: Weight of the plain loss, at least 0. Default: 1.
        steps: Ascent steps for each microbatch, at least 0. Default: 5.
        rate: Rate of the ascent, above 0. Default: 0.05.
        clamp: Largest absolute step, in units of the time input, above 0. Default: 0.5.
        spread: Bound on a step that is drawn again, above 0 and at most ``clamp``. Default: 0.1.
        seed: Seed of the draws. Default: 0.
        input_key: Where the inputs lie in a batch. Default: 0.

    Raises:
        ValueError: A setting is out of its range.
        ModelError: At the start: the model has no :class:`~reuse_algos.models.time_conditioned.TimeConditioned`.
        DataError: In the first batch: the inputs have no float column or channel for the time.
        PriorRunMismatchError: At the start: another algorithm mixes examples or hides the inputs.

    Logs ``reuse/gradient_interpolation/delta`` and ``/loss``, the loss at the extrapolation.
    """

    def __init__(
        self,
        weight: float = 1.0,
        *,
        steps: int = 5,
        rate: float = 0.05,
        clamp: float = 0.5,
        spread: float = 0.1,
        seed: int = 0,
        input_key: str | int = 0,
    ) -> None:
        if weight < 0 or steps < 0 or rate <= 0 or not 0 < spread <= clamp:
            raise ValueError(
                "GradientInterpolation needs weight and steps of at least 0, a rate above 0, and a spread above 0 and "
                f"at most the clamp, got weight={weight}, steps={steps}, rate={rate}, spread={spread}, clamp={clamp}"
            )
        self.weight, self.steps, self.rate, self.clamp, self.spread = weight, steps, rate, clamp, spread
        self.seed, self.input_key = seed, input_key
        self.delta = 0.0
        self.samples = 0
        self._loss = float("nan")

    @property
    def find_unused_parameters(self) -> bool:
        """Every parameter takes part in the plain pass."""
        return False

    def match(self, event: Event, state: State) -> bool:
        """Return true at the start, at each loss, and at the end of each batch."""
        return event in (Event.INIT, Event.FIT_START, Event.AFTER_LOSS, Event.BATCH_END)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Check at the start; add the loss; report."""
        if event == Event.INIT:
            self.delta, self.samples = 0.0, 0
        elif event == Event.FIT_START:
            self._check(state)
        elif event == Event.AFTER_LOSS:
            with get_precision_context(state.precision, state.precision_config):
                self._add(state)
        else:
            self.samples = int(state.timestamp.sample)
            logger.log_metrics(
                {"reuse/gradient_interpolation/delta": self.delta, "reuse/gradient_interpolation/loss": self._loss}
            )

    def extra_flops(self, flops_per_example: int) -> float | None:
        """Return the FLOPs of the passes with tangents so far, each with its backward pass."""
        return float(_PASSES * (self.steps + 1) * flops_per_example * self.samples)

    def _check(self, state: State) -> None:
        if mixing := [*mixes_examples(state), *hides_inputs(state)]:
            raise PriorRunMismatchError(
                f"{mixing[0]} leaves no example of one time. Remove {mixing[0]} or GradientInterpolation."
            )
        model = unwrap_model(state.model)
        if not any(isinstance(module, TimeConditioned) for module in model.modules()):
            raise ModelError(
                f"{type(model).__name__} does not take the time as an input. Wrap its network: TimeConditioned(net, "
                "size), or in a recipe model: {time: 8} with data that have the time as their last channel."
            )

    def _add(self, state: State) -> None:
        inputs = state.batch_get_item(self.input_key)
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.dim() < 2 or inputs.shape[1] < 2:
            raise DataError(
                f"GradientInterpolation needs float inputs [B, C, ...] under input_key={self.input_key!r} whose last "
                "column or channel is the time."
            )
        model: Any = unwrap_model(state.model)
        batch = state.batch

        def loss_of(delta: Tensor) -> Tensor:
            def forward(times_B: Tensor) -> Tensor:
                return model(with_item(batch, self.input_key, with_time(inputs, times_B)))

            outputs = interpolate(forward, time_of(inputs), delta.to(inputs))
            return total_of(model.loss(outputs, batch))

        number = int(state.timestamp.batch)
        self._draw_again(number)
        # Passes beside the training's own leave no trace; what layers draw in them (dropout) has seeds of its own.
        with kept_state(model, inputs.device), seeded_rng(int(_hash(self.seed, number, 1))):
            model.eval()
            self.delta = ascend_delta(
                loss_of, self.delta, steps=self.steps, rate=self.rate, limit=self.clamp, average=_over_ranks(inputs)
            )
        with kept_state(model, inputs.device), seeded_rng(int(_hash(self.seed, number, 2))):
            added = loss_of(torch.tensor(self.delta, dtype=torch.float64))
        self._loss = float(added.detach())
        state.loss = add_to_loss(state.loss, added, scale=self.weight, part="interpolation", shown=added.detach())

    def _draw_again(self, number: int) -> None:
        # Near 0 the extrapolation says what the plain pass says; at the clamp the ascent has nowhere to go.
        near = _NEAR * self.clamp
        if abs(self.delta) < near or abs(self.delta) > self.clamp - near:
            share = float(uniform_floats(_hash(self.seed, number, 0)))
            self.delta = (2 * share - 1) * self.spread

    def state_dict(self) -> dict[str, Any]:
        """Return the step in time and the examples so far."""
        return {**super().state_dict(), "delta": self.delta, "samples": self.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the checkpoint's step in time."""
        self.delta, self.samples = float(state["delta"]), int(state["samples"])


def _hash(seed: int, number: int, use: int) -> Tensor:
    return view_hash(seed, torch.tensor(number), torch.tensor(use), _SALT_DELTA)


def _over_ranks(inputs: Tensor) -> Callable[[Tensor], Tensor] | None:
    if dist.get_world_size() == 1:
        return None

    def average(slope: Tensor) -> Tensor:
        total = slope.to(inputs.device, torch.float32)
        dist.all_reduce(total)
        return total / dist.get_world_size()

    return average
