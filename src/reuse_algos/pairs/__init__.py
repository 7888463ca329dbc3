"""Two archived encoders of different modalities made one classifier, without training."""

from reuse_algos.pairs.relative_space import Decision, RelativeSpace, archived_features, relative_rows
from reuse_algos.pairs.zero_shot import Prompts, ZeroShot, read_prompts, zero_shot

__all__ = [
    "Decision",
    "Prompts",
    "RelativeSpace",
    "ZeroShot",
    "archived_features",
    "read_prompts",
    "relative_rows",
    "zero_shot",
]
