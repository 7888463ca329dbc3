"""Run under the composer launcher: every row of the settings table on this rank, and what only ranks can show."""

import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from composer.models import ComposerClassifier
from composer.utils import dist
from torch import nn

import curricula
import replaying
from algorithms.settings import HOMES, RESUMED_ON_RANKS, ROWS, Archives, differing, resume, train
from cached_heads import head_of_blobs
from reuse_algos.archive import RunArchive
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import ModelError
from toy import NUM_CLASSES, NUM_FEATURES, epoch_loader

HEADS: dict[str, dict[str, Any]] = {
    "microbatches": {"device_train_microbatch_size": 3},
    "compiled": {"compile_config": {"backend": "aot_eager"}},
}


def rows(archives: Archives) -> dict[str, Any]:
    """Weights and metrics of each row. The ranks begin with different models: DDP gives all of them the first one's."""
    found = {}
    for name, row in ROWS.items():
        model = HOMES[row.home].still(5 + dist.get_global_rank())
        done = train(row, row.build(archives, **row.ranks), model=model)
        found[name] = {"weights": done.weights, "metrics": done.metrics}
    return found


def resumed(archives: Archives, folder: Path) -> dict[str, list[str]]:
    """Which weights of a resumed run are not those of one that never stopped."""
    found = {}
    for name in RESUMED_ON_RANKS:
        row = ROWS[name]
        whole = train(row, row.build(archives))
        dist.barrier()
        found[name] = differing(whole.weights, resume(row, archives, folder / name, whole.batches // 2 + 1).weights)
    return found


def refused(archive: RunArchive) -> str:
    """The error of this rank, where only one rank sees the example that has no target."""
    N = curricula.N
    info = DatasetInfo("blobs", torch.arange(N), torch.arange(N) % NUM_CLASSES, tuple("abcd"))
    scores = torch.linspace(0.1, 2.0, N).double()
    settings = {"strategy": "active_bias", "mode": "weighting", "score": scores, "dataset": info}
    loader = epoch_loader(curricula.IgnoredTargets({5}), curricula.BATCH)
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.1)  # the plain loss of no task, so its own function is asked
    model = ComposerClassifier(nn.Linear(NUM_FEATURES, NUM_CLASSES), num_classes=NUM_CLASSES, loss_fn=smoothed)
    try:
        curricula.fit([curricula.curriculum(archive, **settings)], loader=loader, model=model, max_duration="1ep")
    except ModelError as error:
        return str(error)
    return "trained"


def heads(archive: RunArchive) -> dict[str, Any]:
    """Losses and weights of a head on live and on cached features."""
    found: dict[str, Any] = {}
    for case, arguments in HEADS.items():
        for source in ("live", "cached"):
            one, steps = head_of_blobs(archive, settings={"source": source}, **arguments)
            one.fit()
            one.close()
            found[f"{case} {source}"] = {"losses": torch.tensor(steps.losses), **steps.weights[-1]}
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    dist.initialize_dist("cpu")
    folder = Path(sys.argv[1])
    archives = {home: RunArchive(location) for home, location in zip(HOMES, sys.argv[2:], strict=True)}
    result = {
        "rows": rows(archives),
        "resumed": resumed(archives, folder),
        "refused": refused(archives["blobs"]),
        "replace": replaying.follow_replace(archives["images"]),
        "part": replaying.follow_part(archives["images"]),
        "branches": replaying.follow_branches(archives["images"]),
        "heads": heads(archives["blobs"]),
    }
    torch.save(result, folder / f"{dist.get_global_rank()}.pt")


if __name__ == "__main__":
    main()
