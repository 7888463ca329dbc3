"""Run under the composer launcher: train a recipe, and end the process as a kill would after a number of batches.

Arguments: the number of batches, the recipe, and what changes it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from reuse_algos.recipe.build import build_trainer
from reuse_algos.recipe.compose import load_recipe
from toy import EndsProcess


def main() -> None:
    batch, recipe, *overrides = sys.argv[1:]
    trainer = build_trainer(load_recipe(recipe, overrides))
    trainer.state.callbacks.append(EndsProcess(int(batch)))
    trainer.fit()


if __name__ == "__main__":
    main()
