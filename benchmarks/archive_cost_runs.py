"""Archives of very many runs, for ``archive_cost.py``."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from reuse_algos.archive import (
    DatasetRecord,
    Manifest,
    MetricHistory,
    ModelRecord,
    RunArchive,
    TensorInfo,
    history_tensors,
)
from reuse_algos.archive.format.envelope import seal
from reuse_algos.archive.format.manifest import encode_manifest
from reuse_algos.archive.format.names import final_path, manifest_path
from reuse_algos.archive.format.records import FinalRecord
from reuse_algos.callbacks.recorder.facts.provenance import environment

MONITOR = "metrics/eval/MulticlassAccuracy"


def make_runs(path: Path, count: int) -> int:
    """Fill an archive with finished runs of 60 parameters and 40 files; return the bytes of a manifest.

    Selecting opens nothing but the records, so only the first run's data files are there. The records are written
    without waiting for the disk.
    """
    archive = RunArchive(path, create=True)
    template = first_run(archive)
    size = 0
    for number in range(1, count):
        run_id = f"run-{number * 7919 % 1_000_003:07d}"
        finals = {"final/" + MONITOR: number * 0.61803398875 % 1}
        files = [
            msgspec.structs.replace(f, meta={**f.meta, **finals}) if f.kind == "metrics" else f for f in template.files
        ]
        started = f"2025-01-{number % 28 + 1:02d}T00:00:00.{number:06d}+00:00"
        tags = {"study": "cost", "method": f"m{number % 5}"}
        manifest = msgspec.structs.replace(template, run_id=run_id, created_at=started, tags=tags, files=files)
        final = FinalRecord(run_id=run_id, generation=1, ended_at=started)
        where = path / manifest_path(run_id, 1)
        where.parent.mkdir(parents=True)
        size = where.write_bytes(encode_manifest(manifest))
        (path / final_path(run_id)).write_bytes(seal(final, final_path(run_id)))
    return size


def first_run(archive: RunArchive) -> Manifest:
    """Write a real run, as the recorder would have written it, with small files."""
    names = [f"module.stage{i}.block{j}.{part}.weight" for i in range(4) for j in range(3) for part in "abcde"]
    weights = {name: torch.zeros(4, 4) for name in names}
    writer = archive.start_run("first")
    steps = torch.arange(20.0).numpy()
    history = history_tensors({MONITOR: MetricHistory(steps, steps, steps, steps, steps, steps)})
    meta = {"source": "capture", "encoding": "dense", "num_classes": 5, "whole_epoch": True, "rank": 0}
    rows = {"ids": torch.arange(4), "values": torch.zeros(4, 5)}
    files = [
        writer.put("dataset", "examples", {"keys": torch.arange(4)}),
        writer.put("metrics", "history", history),
        writer.put("weights", "last", weights),
        writer.put("weights", "best", weights),
        *(writer.put("signals", "logits", rows, {**meta, "slot": slot, "epoch": slot}) for slot in range(36)),
    ]
    dataset = DatasetRecord(name="random", num_examples=4, fingerprint="f" * 64, num_classes=5)
    model = ModelRecord(name="resnet", parameters={name: TensorInfo(dtype="F32", shape=(4, 4)) for name in names})
    manifest = Manifest(
        dataset=dataset,
        model=model,
        environment=environment(),
        monitor=MONITOR,
        recipe={f"setting{i}": {"a": i, "b": "text"} for i in range(40)},
        tags={"study": "cost", "method": "m0"},
        files=files,
    )
    committed = writer.commit(manifest)
    writer.finish()
    return committed
