"""Settings of the algorithms in one row: the tests write ``weight=0.5, stop="1ep"``, and get the sections."""

from __future__ import annotations

from typing import Any

from reuse_algos.algorithms.adversarial_replay import Append, Replace, Replayable
from reuse_algos.algorithms.history_curriculum import ActiveBias, Curriculum, DynamicPrune, Focus, Prune, Subset
from reuse_algos.algorithms.prior_run_distillation import (
    KL,
    MSE,
    Auto,
    Cached,
    Live,
    Mean,
    Mixup,
    Sample,
    TeachingWindow,
)
from reuse_algos.algorithms.prior_run_warm_start import Average, Change, Keep, Match, Reset, Trainable
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.window import Window

_KEYS = {"input_key": "input", "target_key": "target", "output_key": "output", "id_key": "ids"}
_TIMES = {name: name for name in ("start", "stop", "every_n_batches")}

# Section -> (the dataclasses by name, or the only one; the parameter that names it; row's name -> field).
_SECTIONS: dict[str, dict[str, tuple[Any, str | None, dict[str, str]]]] = {
    "distillation": {
        "loss": (
            {"kl": KL, "mse": MSE},
            "kl",
            {
                "temperature": "temperature",
                "weight": "weight",
                "weight_scheduler": "weight_scheduler",
                "temperature_scheduler": "temperature_scheduler",
                "base_loss_weight": "base_weight",
            },
        ),
        "combine": (
            {"mean": Mean, "mixup": Mixup, "sample": Sample},
            "mean",
            {"dirichlet_alpha": "alpha", "sample_size": "size"},
        ),
        "source": (
            {"auto": Auto, "live": Live, "cached": Cached},
            "auto",
            {"weights": "weights", "teacher_model": "model"},
        ),
        "when": (TeachingWindow, None, {**_TIMES, "stop_when_better": "stop_when_better"}),
        "keys": (BatchKeys, None, _KEYS),
    },
    "replay": {
        "mode": (
            {"append": Append, "replace": Replace},
            "append",
            {name: name for name in ("fraction", "split_batch_norm", "weight")},
        ),
        "perturbations": (
            Replayable,
            None,
            {"attack_weights": "weights", "recency": "recency", "warn_below": "warn_below", "use": "use"},
        ),
        "when": (Window, None, _TIMES),
        "keys": (BatchKeys, None, _KEYS),
    },
    "warm": {
        "weights": ({"average": Average}, None, {"last_k": "last_k"}),
        "change": (Change, None, {name: name for name in ("shrink", "perturb", "noise", "reset")}),
        "head": ({"keep": Keep, "reset": Reset, "match": Match}, "keep", {"head_pattern": "pattern"}),
        "trainable": (Trainable, None, {name: name for name in ("freeze", "learning_rates", "unfreeze_at")}),
    },
}
_STRATEGIES = {kind.name: kind for kind in (ActiveBias, Curriculum, DynamicPrune, Focus, Prune, Subset)}


def sections(algorithm: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an algorithm's constructor."""
    if algorithm == "curriculum":
        fields = _STRATEGIES[row["strategy"]].__dataclass_fields__ if row.get("strategy") in _STRATEGIES else ()
        own = {key: value for key, value in row.items() if key in fields}
        times = {key: row[key] for key in _TIMES if key in row}
        others = {key: value for key, value in row.items() if key not in own and key not in times}
        if times:
            others["when"] = Window(**times)
        return {**others, "strategy": {"name": row["strategy"], **own}} if own else others
    arguments = dict(row)
    for section, (kinds, default, names) in _SECTIONS[algorithm].items():
        own = {field: arguments.pop(key) for key, field in names.items() if key in arguments}
        if own:
            name = arguments.get(section, default)
            kind = kinds[name] if isinstance(kinds, dict) else kinds
            arguments[section] = kind(**own)
    return arguments
