"""Run under the composer launcher: every strategy's batches and metrics, as this rank saw them; resuming; refusing."""

import contextlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from composer.utils import dist
from torch import nn

from curricula import BATCH, IgnoredTargets, N, Seen, Stop, curriculum, fit, follow_all, series
from reuse_algos.archive import RunArchive
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import ModelError
from toy import NUM_CLASSES, NUM_FEATURES, checkpointed, epoch_loader, mlp, trainer, viewed

SCORES = torch.linspace(0.1, 2.0, N).double()


def run(archive: RunArchive, folder: Path, stop: "int | None") -> Any:
    """Batches, mean scores and weights of a run that goes by its own losses."""
    settings = {"strategy": "dynamic_prune", "prune_rate": 0.6, "full_data_from": 0.7, "update": True}
    seen, logger = Seen(), InMemoryLogger()
    one = trainer(
        epoch_loader(viewed(), BATCH),
        mlp(5),
        algorithms=[curriculum(archive, **settings, score=SCORES), seen, *([] if stop is None else [Stop(stop)])],
        loggers=[logger],
        **checkpointed(folder, save_interval="1ba", max_duration="4ep"),
    )
    with contextlib.suppress(KeyboardInterrupt):
        one.fit()
    one.close()
    return seen.batches, series(logger, "mean_score"), list(one.state.model.state_dict().values())


def resume_all(archive: RunArchive, folder: Path) -> dict[int, list[bool]]:
    """Whether batches, mean scores and weights of a resumed run are those of one that never stopped."""
    batches, scores, weights = run(archive, folder / "straight", None)
    found = {}
    for stop in (1, 4, 6):
        run(archive, folder / f"stopped-{stop}", stop)
        dist.barrier()
        later, means, ours = run(archive, folder / f"stopped-{stop}", None)
        equal = all(torch.equal(a, b) for a, b in zip(weights, ours, strict=True))
        found[stop] = [later == batches[stop:], means == scores[-len(means) :] and len(means) > 0, equal]
    return found


def refuse(archive: RunArchive) -> str:
    """The error of this rank, where only one rank sees the example that has no target."""
    info = DatasetInfo("blobs", torch.arange(N), torch.arange(N) % NUM_CLASSES, tuple("abcd"))
    settings = {"strategy": "active_bias", "mode": "weighting", "score": SCORES, "dataset": info}
    loader = epoch_loader(IgnoredTargets({5}), BATCH)
    model = ComposerClassifier(nn.Linear(NUM_FEATURES, NUM_CLASSES), num_classes=NUM_CLASSES)
    try:
        fit([curriculum(archive, **settings)], loader=loader, model=model, max_duration="2ep")
    except ModelError as error:
        return str(error)
    return "trained"


def main() -> None:
    warnings.simplefilter("ignore")
    dist.initialize_dist("cpu")
    folder = Path(sys.argv[1])
    archive = RunArchive(folder / "archive", create=True)
    result: dict[str, Any] = dict(follow_all(archive))
    result["resumed"] = resume_all(archive, folder)
    result["refused"] = refuse(archive)
    (folder / f"{dist.get_global_rank()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
