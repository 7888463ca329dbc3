"""One row for each algorithm and each way to use it; what test_settings.py asks of a row, it asks of all.

A new algorithm, strategy or mode is one more row here. What is special about it has tests of its own elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from composer import Algorithm
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from composer.optim import LinearScheduler
from torch import Tensor, nn

from curricula import ROWS as STRATEGIES
from curricula import curriculum
from distilling import distil
from replaying import both_branches, conv_net, images, replay
from reuse_algos.algorithms import AdversarialTraining, AutoReuse, FeatureDistillation, Freezing
from reuse_algos.archive import RunArchive
from reuse_algos.data.example_ids import TrackExamples
from toy import Stop, checkpointed, epoch_loader, finish, mlp, trainer, viewed
from warming import warm

BATCH = 16
Archives = Mapping[str, RunArchive]


class _Still(nn.BatchNorm1d):
    """A batch norm that is in evaluation mode always, so that no row depends on the others of its batch."""

    def train(self, mode: bool = True) -> nn.BatchNorm1d:
        del mode
        return super().train(False)


def _still_mlp(seed: int) -> ComposerClassifier:
    model = mlp(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.__class__ = _Still
    return model.train()


@dataclass(frozen=True)
class Home:
    """The data and models of several rows, by the name of their archive.

    Attributes:
        data: The train data.
        model: (seed) -> a model with batch norms of its batch (and dropout).
        still: (seed) -> one whose rows do not depend on each other.
    """

    data: Callable[[], Any]
    model: Callable[[int], ComposerClassifier]
    still: Callable[[int], ComposerClassifier]


HOMES = {
    "blobs": Home(viewed, mlp, _still_mlp),
    "images": Home(images, partial(conv_net, dropout=0.3), partial(conv_net, norm=False)),
}


@dataclass(frozen=True)
class Row:
    """An algorithm with its settings.

    Attributes:
        make: (archive, settings) -> the algorithm.
        settings: Its settings.
        home: Name of its data, models and archive.
        idle: Settings with which it changes nothing; None: there are none.
        says: What it says of that.
        ranks: Settings with which two ranks do what one does.
    """

    make: Callable[..., Algorithm]
    settings: Mapping[str, Any] = field(default_factory=dict)
    home: str = "blobs"
    idle: Mapping[str, Any] | None = None
    says: str = ""
    ranks: Mapping[str, Any] = field(default_factory=dict)

    def build(self, archives: Archives, **changes: Any) -> Algorithm:
        """Return the algorithm with some settings changed."""
        return self.make(archives[self.home], **{**self.settings, **changes})


def _without_archive(kind: Callable[..., Algorithm]) -> Callable[..., Algorithm]:
    return lambda archive, **settings: kind(**settings)


_EVEN = torch.full((64,), 0.3)
_IDLE_STRATEGIES: dict[str, dict[str, Any]] = {
    "curriculum": {"start_fraction": 1.0},
    "prune": {"keep": 1.0, "offset": 0.0},
    "dynamic_prune": {"prune_rate": 0.0},
    "active_bias, sampling": {"score": _EVEN},
    "focus": {"score": _EVEN},
    "subset": {"examples": 64},
}
# An even number of examples in each epoch: an odd one is filled up for the second rank.
_RANK_STRATEGIES: dict[str, dict[str, Any]] = {
    "dynamic_prune": {"prune_rate": 0.5, "update": True, "score": torch.linspace(0.1, 3.0, 64).double()},
    "dynamic_prune, fixed scores": {"prune_rate": 0.5, "score": torch.linspace(0.1, 3.0, 64).double()},
}
_WINDOW = {"idle": {"start": "5ep"}, "says": "between start=5ep"}
_UNTAUGHT = {"idle": {"start": "5ep"}, "says": "no row was taught between start=5ep"}
_BOTH_RUNS = {"runs": ["older", "newer"], "recency": 0.5}
_SHOWN_ONCE = "every epoch showed all examples once, with weight 1"

ROWS: dict[str, Row] = {
    **{
        name: Row(
            curriculum,
            settings,
            idle=_IDLE_STRATEGIES.get(name),
            says=_SHOWN_ONCE,
            ranks=_RANK_STRATEGIES.get(name, {}),
        )
        for name, settings in STRATEGIES.items()
    },
    "distillation, cached": Row(distil, {"source": "cached"}, **_UNTAUGHT),
    "distillation, live": Row(
        distil,
        {"source": "live", "loss": "mse", "weight": 2.0, "weight_scheduler": LinearScheduler(t_max="6ba")},
        **_UNTAUGHT,
    ),
    "distillation, scaled": Row(
        distil,
        {"source": "live", "loss": {"name": "mse", "scale": "teacher", "weight": 4.0, "bound": 0.5}},
        **_UNTAUGHT,
    ),
    "feature distillation": Row(
        FeatureDistillation,
        {"runs": {"order": "first"}, "modules": ["1", "3"], "weight": 0.5, "when": {"stop": "1dur"}},
        idle={"when": {"start": "5ep"}},
        says="no batch lay between start=5ep",
    ),
    "auto reuse": Row(AutoReuse, {}),
    "distillation, sample": Row(distil, {"source": "cached", "combine": "sample", "every_n_batches": 2}, **_UNTAUGHT),
    "distillation, mixup": Row(distil, {"source": "live", "combine": "mixup", "stop": "1ep"}, **_UNTAUGHT),
    "replay, append": Row(replay, {**_BOTH_RUNS, "start": "1ba"}, "images", **_WINDOW, ranks={"fraction": 1.0}),
    "replay, replace": Row(
        replay,
        {**_BOTH_RUNS, "mode": "replace", "every_n_batches": 2},
        "images",
        **_WINDOW,
        ranks={"mode": "append", "fraction": 1.0},
    ),
    "replay, start": Row(
        replay, {**_BOTH_RUNS, "use": "start"}, "images", **_WINDOW, ranks={"fraction": 1.0, "runs": "newer"}
    ),
    "replay, one batch": Row(
        replay, {"split_batch_norm": False}, "images", **_WINDOW, ranks={"fraction": 1.0, "weight": 0.4}
    ),
    "warm start, perturbed": Row(warm, {"shrink": 0.6, "perturb": 0.2, "learning_rates": {"backbone": 0.5}}),
    "warm start, unfreezing": Row(warm, {"freeze": "backbone", "learning_rates": {"1.*": 0.3}, "unfreeze_at": "3ba"}),
    "warm start, unfreezing late": Row(warm, {"freeze": "backbone", "head": "reset", "unfreeze_at": "5ba"}),
    "warm start, features": Row(warm, {"freeze": "backbone", "source": "cached", "head": "reset"}),
    "adversarial training": Row(_without_archive(AdversarialTraining), {"epsilon": 0.05, "steps": 2}, "images"),
    "freezing": Row(_without_archive(Freezing), {"freeze": "backbone", "learning_rates": {"head": 0.5}}),
    "freezing, unfreezing": Row(_without_archive(Freezing), {"freeze": "backbone", "unfreeze_at": "5ba"}),
}

RESUMED_ON_RANKS = ("dynamic_prune", "replay, start", "warm start, unfreezing", "adversarial training")
"""Rows whose state comes from all ranks, or whose optimizer grows."""


class Done(NamedTuple):
    """What came of a training.

    Attributes:
        weights: Of the model, auxiliary batch norms included.
        metrics: What was logged below ``reuse/``, but for seconds: (name, batch) -> value.
        batches: Number of its batches.
        optimizer: The optimizer's tensors.
        state: The algorithm's state, but for seconds.
    """

    weights: dict[str, Tensor]
    metrics: dict[tuple[str, int], float]
    batches: int
    optimizer: list[Tensor]
    state: Any


def train(
    row: Row,
    algorithm: Algorithm | None,
    *,
    stop: int | None = None,
    model: ComposerClassifier | None = None,
    loader: Any = None,
    **arguments: Any,
) -> Done:
    """Train for two epochs, or until the batch with the number ``stop`` is interrupted."""
    home, log = HOMES[row.home], InMemoryLogger()
    algorithms = [one for one in (algorithm, None if stop is None else Stop(stop)) if one is not None]
    one = trainer(
        loader or epoch_loader(home.data(), BATCH),
        model or home.model(5),
        algorithms=algorithms,
        callbacks=[TrackExamples()],  # a training without any algorithm would not show the views in turn
        loggers=[log],
        **{"lr": 0.05, **arguments},
    )
    finish(one)
    # Under DDP, which puts a prefix of its own before every name.
    weights = {name.replace("module.module.", "module."): value.clone() for name, value in both_branches(one).items()}
    metrics = {
        (name, int(time.batch)): float(value)
        for name, values in log.data.items()
        for time, value in values
        if name.startswith("reuse/") and "seconds" not in name
    }
    moments = [value for state in one.state.optimizers[0].state.values() for value in state.values()]
    state = None if algorithm is None else algorithm.state_dict()
    return Done(weights, metrics, int(one.state.timestamp.batch), moments, comparable(state))


def resume(row: Row, archives: Archives, folder: Path, stop: int) -> Done:
    """Interrupt a training after ``stop`` batches, and let another process of the same recipe go on with it."""
    arguments = checkpointed(folder, save_interval=f"{stop}ba")
    train(row, row.build(archives), stop=stop, **arguments)
    return train(row, row.build(archives), **arguments)


def comparable(state: Any) -> Any:
    """The state with tensors as lists, without seconds and addresses."""
    if isinstance(state, Mapping):
        return {key: comparable(value) for key, value in state.items() if "seconds" not in key and key != "repr"}
    if isinstance(state, (tuple, list)):
        return [comparable(value) for value in state]
    if isinstance(state, Tensor):
        return [repr(value) for value in state.flatten().tolist()]  # as text, for NaN equals itself there
    return state


def differing(a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, atol: float = 0.0) -> list[str]:
    """Names of the tensors that differ."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.allclose(a[name].double(), b[name].double(), rtol=0, atol=atol)]
