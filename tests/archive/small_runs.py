"""Small but complete runs, and ways to use and to damage them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from reuse_algos.archive import (
    DatasetRecord,
    FileEntry,
    Manifest,
    MetricHistory,
    RunArchive,
    RunWriter,
    history_tensors,
)

MONITOR = "metrics/eval/MulticlassAccuracy"
NUM_EXAMPLES, NUM_CLASSES = 12, 5


def history(values: Sequence[float]) -> MetricHistory:
    steps = torch.arange(1, len(values) + 1)
    return MetricHistory(
        step=(10 * steps).numpy(),
        sample=(320 * steps).numpy(),
        epoch=steps.numpy(),
        train_seconds=(1.5 * steps).double().numpy(),
        eval_seconds=(0.5 * steps).double().numpy(),
        value=torch.tensor(list(values), dtype=torch.float64).numpy(),
    )


def put_files(writer: RunWriter, values: Sequence[float] = (0.5, 0.75), epoch: int = 0) -> list[FileEntry]:
    """One file of every kind."""
    generator = torch.Generator().manual_seed(epoch)
    logits = torch.randn(NUM_EXAMPLES, NUM_CLASSES, generator=generator).half()
    positions = torch.arange(NUM_EXAMPLES)
    meta = {"slot": epoch, "epoch": epoch, "view": epoch, "source": "capture", "encoding": "dense", "num_classes": 5}
    return [
        writer.put("dataset", "examples", {"keys": positions * 7, "labels": positions % NUM_CLASSES}),
        writer.put("metrics", "history", history_tensors({MONITOR: history(values)})),
        writer.put("weights", "last", {"layer.weight": torch.randn(3, 4, generator=generator)}),
        writer.put("signals", "logits", {"ids": positions, "values": logits}, meta),
    ]


def manifest_of(files: list[FileEntry], **fields: object) -> Manifest:
    dataset = DatasetRecord(name="toy", num_examples=NUM_EXAMPLES, fingerprint="f" * 64, num_classes=NUM_CLASSES)
    return Manifest(**{"dataset": dataset, "monitor": MONITOR, "files": files, **fields})  # type: ignore[arg-type]


def files_below(root: Path) -> Mapping[str, Path]:
    return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file behind the archive's back."""
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(change(data))


def use_everything(archive: RunArchive, run_id: str) -> None:
    """Read every file of a run made by ``make_run``."""
    run = archive.run(run_id)
    run.weights()
    run.signal("logits")
    run.metric(MONITOR)
    run.keys()
