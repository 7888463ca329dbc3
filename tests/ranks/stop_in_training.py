"""Run under the composer launcher: train a recipe, and end the process as a kill would after a number of batches.

Arguments: the number of batches, the recipe, and what changes it.
"""

import os
import sys

from composer import Callback, Logger, State

from reuse_algos.recipe.build import build_trainer
from reuse_algos.recipe.compose import load_recipe


class Stop(Callback):
    """Ends the process without finishing anything."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def batch_end(self, state: State, logger: Logger) -> None:
        if int(state.timestamp.batch) == self.batch:
            os._exit(9)


def main() -> None:
    batch, recipe, *overrides = sys.argv[1:]
    trainer = build_trainer(load_recipe(recipe, overrides))
    trainer.state.callbacks.append(Stop(int(batch)))
    trainer.fit()


if __name__ == "__main__":
    main()
