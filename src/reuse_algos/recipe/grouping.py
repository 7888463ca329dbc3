"""Which runs belong together: those whose recipes differ in nothing but the seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from reuse_algos.recipe.compose import Recipe
from reuse_algos.recipe.interpolation import SEED
from reuse_algos.recipe.schema import Settings
from reuse_algos.recipe.source import leaves

NOT_TRAINED_BY = {
    "archive",
    "run_name",
    "tags",
    "loggers",
    "resources",
    "save_folder",
    "save_interval",
    "save_num_checkpoints_to_keep",
    "save_overwrite",
    "autoresume",
    "progress_bar",
    "log_to_console",
    "console_log_interval",
    "python_log_level",
    "dist_timeout",
}
"""Recipe keys that do not affect training (paths, logging, display)."""

_DIGITS = 6
_GROUP_LENGTH = 128  # of W&B


def group_of(recipe: Recipe) -> str:
    """Return a name that recipes share if only their seeds differ, such as ``cifar100-distilled-5ep-3f9a1c``.

    It is made of the values of the tags (each once), the duration, and a few digits that change with whatever else is
    trained, so that two learning rates are two groups. Tags whose text holds ``${seed}`` are left out, and so is the
    tag ``step`` of a sequence's runs: it names one run. Without tags, data and model take their place.
    """
    record = recipe.without_seed
    tags = {
        key: str(value)
        for key, value in record["tags"].items()
        # The step of a sequence may be named by its seed.
        if SEED not in str(value) and not (key == "step" and "sequence" in record["tags"])
    }
    settings = recipe.settings
    duration = settings.max_duration if isinstance(settings.max_duration, str) else f"{settings.max_duration}ep"
    said = tags.values() or (settings.data.name, settings.model.name)
    words = "-".join(word for word in dict.fromkeys(said) if word != duration)
    # Sorted, since the order of keys in a YAML file changes nothing that is trained.
    content = json.dumps([tags, duration, trained_by(record | {"max_duration": duration})], sort_keys=True)
    end = f"{duration}-{hashlib.sha256(content.encode()).hexdigest()[:_DIGITS]}"
    # The words are shortened and not the digits, which are what tells two groups apart.
    words = words[: _GROUP_LENGTH - len(end) - 1]
    return f"{words}-{end}" if words else end


def trained_by(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recipe's record says of the training: dotted key -> value, without defaults.

    Records of earlier versions of the library can be compared too, since a key that has its default is left out.
    """
    defaults = dict(leaves(asdict(Settings())))
    kept = {key: value for key, value in record.items() if key not in NOT_TRAINED_BY}
    plain = json.loads(json.dumps(_without_numbers_of_no_json(kept)))
    return {key: value for key, value in leaves(plain) if key not in defaults or defaults[key] != value}


def _without_numbers_of_no_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_numbers_of_no_json(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_numbers_of_no_json(child) for child in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return ".inf" if value > 0 else "-.inf"  # as the archive spells it
    return ".nan" if isinstance(value, float) and value != value else value
