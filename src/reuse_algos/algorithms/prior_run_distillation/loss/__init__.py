"""The distillation terms: formulas, strength, and the loss section of a recipe."""
