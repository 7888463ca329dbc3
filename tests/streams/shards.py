"""Samples that say which ones they are, in the formats of three stream libraries, and a model for them."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from composer.models import ComposerModel
from composer.utils import dist
from filelock import FileLock

from reuse_algos.data.streams import StreamIds, with_ids

KEYS = {"ids": "id", "views": "view", "target": "y"}
BATCH = 8


class Net(ComposerModel):
    """Its logits are a function of the sample's number, so that an archived row shows whose it is."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = torch.nn.Linear(2, 3)

    def forward(self, batch: Any) -> torch.Tensor:
        return self.net(batch["x"])

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return F.cross_entropy(outputs, batch["y"])


def sample(number: int) -> dict[str, Any]:
    return {"x": np.array([number / 64, 1 - number / 128], dtype=np.float32), "y": number % 3}


def write_mds(folder: Path, first: int, count: int, per_shard: int = 8) -> None:
    """Samples ``first`` to ``first + count - 1`` as one stream."""
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"x": "ndarray", "y": "int"}, size_limit=per_shard * 45 + 60) as writer:
        for number in range(first, first + count):
            writer.write(sample(number))


def mds_loader(folders: list[Path], workers: int = 0, **arguments: Any) -> torch.utils.data.DataLoader:
    from streaming import Stream, StreamingDataLoader, StreamingDataset

    streams = [Stream(local=str(folder)) for folder in folders]
    settings = {"shuffle": True, "shuffle_seed": 3, "num_canonical_nodes": 1, "batch_size": BATCH, **arguments}
    # Streaming looks for a free name of shared memory and takes it later: tests of two processes can meet in between.
    # The ranks of one run wait for each other meanwhile, so they must not hold a lock.
    lock = (
        FileLock(Path(tempfile.gettempdir()) / "reuse-algos-streams.lock")
        if dist.get_world_size() == 1
        else nullcontext()
    )
    with lock:
        dataset: StreamIds = with_ids(StreamingDataset)(streams=streams, **settings)
    return StreamingDataLoader(dataset, batch_size=settings["batch_size"], num_workers=workers, collate_fn=collate)


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.stack([np.asarray(one[name]) for one in samples])) for name in samples[0]}


def write_tars(folder: Path, count: int, shards: int = 3) -> list[str]:
    """Samples in WebDataset's layout, ``<number>.json`` in tar files."""
    folder.mkdir()
    names = []
    for shard in range(shards):
        names.append(str(folder / f"shard-{shard}.tar"))
        with tarfile.open(names[-1], "w") as tar:
            for number in range(shard, count, shards):
                row = sample(number)
                data = json.dumps({"x": row["x"].tolist(), "y": row["y"]}).encode()
                info = tarfile.TarInfo(f"{number:04d}.json")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return names
