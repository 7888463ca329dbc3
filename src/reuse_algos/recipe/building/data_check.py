"""A look at the data of recipes before anything is trained: as training will load them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

import torch

from reuse_algos.errors import RecipeError, ReuseAlgosError
from reuse_algos.recipe.building.recipe_data import load_recipe_data
from reuse_algos.recipe.compose import Recipe


def check_data(recipes: Iterable[tuple[str, Recipe]]) -> list[str]:
    """Load each data section once, and return what it gives, in words.

    A section whose labels come from a run of a pool is left for training, as that run may not be there yet.

    Args:
        recipes: Where each recipe is used, for messages, and the recipe.

    Raises:
        RecipeError: Data cannot be loaded as asked; all faults are listed.
    """
    said: dict[str, str] = {}
    faults: list[str] = []
    for where, recipe in recipes:
        config = recipe.settings.data
        # Steps of a sequence mostly share their data, and loading it takes seconds.
        key = json.dumps(dataclasses.asdict(config), sort_keys=True, default=str)
        if key in said or config.pseudo_labels is not None:
            continue
        # Before it is loaded, so that a section that several recipes share is tried once, also where it fails.
        said[key] = ""
        try:
            data = load_recipe_data(config, None, torch.device("cpu"))
        except ReuseAlgosError as error:
            faults.append(f"{where}: {error}")
            continue
        classes = "" if data.num_classes is None else f", {data.num_classes} classes"
        held_out = f", {len(data.eval)} to evaluate" if data.eval is not None else ""  # type: ignore[arg-type]
        said[key] = f"data: {config.name}, {data.info.num_examples} examples to train{held_out}{classes}"
    if faults:
        raise RecipeError("\n  ".join([f"{len(faults)} data sections cannot be loaded", *faults]))
    return list(dict.fromkeys(line for line in said.values() if line))
