"""Recipes: a YAML file and overrides, checked as a whole and built into a Composer Trainer."""

from reuse_algos.recipe.build import build_trainer
from reuse_algos.recipe.compose import Recipe, compose_recipe, load_recipe
from reuse_algos.recipe.schema import Settings

__all__ = ["Recipe", "Settings", "build_trainer", "compose_recipe", "load_recipe"]
