"""Run under the composer launcher, or imported: train with instruments and write down what they read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from composer.utils import dist
from torch.utils.data import DataLoader

from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder, TrainingInstruments
from toy import blobs, trainer


def history(folder: Path, sets: tuple[str, ...] = ("economy", "laziness")) -> dict[str, list[float]]:
    """Every reading of a run of two epochs, 8 examples a batch over all ranks."""
    dataset = blobs(32)
    loader = DataLoader(dataset, 8 // dist.get_world_size(), sampler=dist.get_sampler(dataset))
    callback = TrainingInstruments(sets, every="3ba", examples=4)
    one = trainer(loader, callbacks=[RunRecorder(folder, run_name="run"), callback])
    one.fit()
    one.close()
    run = RunArchive(folder).run("run")
    return {name: run.metric(name).value.tolist() for name in run.metric_names if name.startswith("instruments/")}


def main() -> None:
    dist.initialize_dist("cpu")
    folder = Path(sys.argv[1])
    readings = history(folder / "archive")
    if dist.get_global_rank() == 0:
        (folder / "history.json").write_text(json.dumps(readings))


if __name__ == "__main__":
    main()
