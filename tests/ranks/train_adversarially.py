"""Run under the composer launcher, or imported: attack each batch, and keep what the model was given, by example.

The learning rate is 0 and the model has no batch norm, so that every rank attacks what one alone would.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from composer import Algorithm, Event, State
from composer.utils import dist
from torch import Tensor

from ranks.attack_while_training import eval_loader, images, linear
from reuse_algos.algorithms import AdversarialTraining
from toy import trainer


class Inputs(Algorithm):
    """Keeps the inputs of each forward pass by the example that they were made of."""

    def __init__(self, attack: AdversarialTraining) -> None:
        self.attack = attack
        self.by_example: dict[int, Tensor] = {}

    def match(self, event: Event, state: State) -> bool:
        del state
        return event == Event.AFTER_FORWARD

    def apply(self, event: Event, state: State, logger: Any) -> None:
        del event, logger
        positions = self.attack.ids.microbatch.positions.tolist()
        self.by_example.update(zip(positions, state.batch[0].detach().clone(), strict=True))


def attacked() -> dict[int, Tensor]:
    """Inputs of one epoch on this rank."""
    attack = AdversarialTraining(0.1, steps=3)
    keep = Inputs(attack)
    one = trainer(eval_loader(images(32, seed=1)), linear(), algorithms=[attack, keep], lr=0.0, max_duration="1ep")
    one.fit()
    one.close()
    return keep.by_example


def main() -> None:
    dist.initialize_dist("cpu")
    torch.save(attacked(), Path(sys.argv[1]) / f"rank{dist.get_global_rank()}.pt")


if __name__ == "__main__":
    main()
