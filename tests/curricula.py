"""Helpers of the tests of HistoryCurriculum: the table of strategies, and what a run showed."""

from __future__ import annotations

from typing import Any

import torch
from composer import Algorithm, Event, State
from composer.loggers import InMemoryLogger
from torch.utils.data import Dataset

from reuse_algos.algorithms import HistoryCurriculum
from reuse_algos.archive import RunArchive
from reuse_algos.data.example_ids import ExampleIds
from shorthand import sections
from toy import blobs, epoch_loader, mlp, trainer, viewed

N, BATCH = 64, 16

# Examples per epoch follow from the settings (dynamic_prune: from the number below the mean, see `_length`).
ROWS: dict[str, dict[str, Any]] = {
    "curriculum": {"strategy": "curriculum", "start_fraction": 0.25, "full_data_at": 0.5},
    "curriculum, hard first": {"strategy": "curriculum", "order": "hard_first", "pacing": "step"},
    "prune": {"strategy": "prune", "keep": 0.5, "offset": 0.1},
    "prune, balanced": {"strategy": "prune", "keep": 0.75, "class_balance": True, "score": "forgetting"},
    "dynamic_prune": {"strategy": "dynamic_prune", "prune_rate": 0.6, "stop": "0.7dur"},
    "dynamic_prune, fixed scores": {
        "strategy": "dynamic_prune",
        "prune_rate": 0.4,
        "update": False,
        "score": "entropy",
    },
    "active_bias, sampling": {"strategy": "active_bias"},
    "active_bias, weighting": {"strategy": "active_bias", "mode": "weighting", "score": "threshold"},
    "focus": {"strategy": "focus"},
    "subset": {"strategy": "subset", "examples": 40, "score": "mutual_information"},
}


class Started(Algorithm):
    """Whether an epoch was started."""

    seen = False

    def match(self, event: Event, state: State) -> bool:
        return event == Event.EPOCH_START

    def apply(self, event: Event, state: State, logger: Any) -> None:
        self.seen = True


class IgnoredTargets(Dataset):
    """Blobs, some of whose labels are ignored (-100), which nothing says beforehand."""

    def __init__(self, ignored: set[int], dtype: torch.dtype = torch.float32, label: int = -100) -> None:
        self.blobs, self.ignored, self.dtype, self.label = blobs(N), ignored, dtype, label

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        x, y = self.blobs[index]
        return x.to(self.dtype), (torch.tensor(self.label) if index in self.ignored else y)


class Seen(Algorithm):
    """Keeps which examples each batch held, and in which view."""

    def __init__(self) -> None:
        self.ids = ExampleIds()
        self.batches: list[list[int]] = []
        self.views: list[list[int]] = []

    def match(self, event: Event, state: State) -> bool:
        return event in ExampleIds.EVENTS

    def apply(self, event: Event, state: State, logger: Any) -> None:
        self.ids.handle(event, state)
        if event == Event.BEFORE_TRAIN_BATCH:
            self.batches.append(self.ids.batch.positions.tolist())
            self.views.append(self.ids.batch.views.tolist())


def curriculum(archive: RunArchive, **settings: Any) -> HistoryCurriculum:
    runs = settings.pop("runs", {"tags": {"method": "baseline"}, "order": "first"})
    return HistoryCurriculum(archive, runs, **sections("curriculum", settings))


def fit(
    algorithms: list[Any], *, data: Any = None, loader: Any = None, **arguments: Any
) -> tuple[Any, Seen, InMemoryLogger]:
    seen, logger = Seen(), InMemoryLogger()
    one = trainer(
        loader or epoch_loader(data or viewed(), BATCH),
        arguments.pop("model", None) or mlp(5),
        algorithms=[*algorithms, seen],
        loggers=[logger],
        **{"max_duration": "4ep", **arguments},
    )
    one.fit()
    one.close()
    return one, seen, logger


def series(logger: InMemoryLogger, name: str) -> list[float]:
    return [float(value) for _, value in logger.data[f"reuse/history_curriculum/{name}"]]
