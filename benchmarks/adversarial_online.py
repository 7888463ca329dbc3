"""AdvProp as it was published, for ``adversarial.py``: each step makes its perturbations, against the current model.

Legend: B rows of a microbatch, R of them perturbed, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any

import torch
from composer import State
from composer.core import get_precision_context
from composer.utils import batch_get
from torch import Tensor

from reuse_algos.algorithms import AdversarialReplay
from reuse_algos.data.info import DatasetInfo
from reuse_algos.training.attacks import Attack, attacked, perturb
from reuse_algos.training.outputs import logits_of, unwrap_model


class OnlineAdvProp(AdversarialReplay):
    """The same rows, losses and batch norms as in a replay, and an attack at every step instead of a look-up.

    As in Xie et al. 2020 the attack sees the model in evaluation mode through the auxiliary batch norms (where they are
    split), so it moves no statistics.
    """

    attack: Attack
    keys_N: Tensor  # of the training examples

    @classmethod
    def instead_of(cls, replay: AdversarialReplay, attack: Attack) -> OnlineAdvProp:
        """Make a replay that a trainer was built with, and that has not started yet, an online attack."""
        replay.__class__ = cls
        assert isinstance(replay, cls)
        replay.attack = attack
        return replay

    def begin(self, state: State) -> None:
        """Needs no prior run."""
        self.start(state)

    def load_perturbations(self, state: State, info: DatasetInfo) -> None:
        """There are none; random starts are drawn by the examples' keys."""
        del state
        self.keys_N = info.keys

    def extra_flops(self, flops_per_example: int) -> float | None:
        """Leave the passes of the attacks uncounted."""
        del flops_per_example

    def adversarial_inputs(self, state: State, rows_R: Tensor) -> Tensor | None:
        """Attack the rows; their random start is another one in each epoch."""
        assert self.pixels is not None
        model: Any = unwrap_model(state.model)
        clean_BCHW: Any = batch_get(state.batch, self.keys.input)
        targets_B: Any = batch_get(state.batch, self.keys.target)
        places_R = rows_R.to(clean_BCHW.device)
        inputs_RCHW, labels_R = clean_BCHW[places_R], targets_B[places_R]
        keys_R = self.keys_N[self.ids.microbatch.positions[rows_R]]
        epochs_R = torch.full_like(keys_R, int(state.timestamp.epoch))
        with get_precision_context(state.precision, state.precision_config), attacked(model, auxiliary=True):
            delta_RCHW = perturb(
                lambda inputs: logits_of(model((inputs, labels_R)), self.keys.output),
                inputs_RCHW,
                labels_R,
                self.attack,
                self.pixels,
                keys_B=keys_R,
                views_B=epochs_R,
            )
        return self.pixels.add(inputs_RCHW, delta_RCHW)
