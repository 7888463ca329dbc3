"""An isolated archive, and small but complete runs to put in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pytest
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


@pytest.fixture(autouse=True)
def _own_verification_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("reuse_algos.archive.verified._seen", set())


@pytest.fixture(autouse=True)
def _no_real_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk would take most of the time; the simulated power loss shows that the syncs are right."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def archive(tmp_path: Path) -> RunArchive:
    return RunArchive(tmp_path / "archive")


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


class MakeRun(Protocol):
    def __call__(
        self,
        run_name: str = "toy",
        *,
        values: Sequence[float] = (0.5, 0.75),
        finished: bool = True,
        created_at: str | None = None,
        **fields: object,
    ) -> str: ...


@pytest.fixture
def make_run(archive: RunArchive) -> MakeRun:
    """Commit a small run and return its id."""

    def make(
        run_name: str = "toy",
        *,
        values: Sequence[float] = (0.5, 0.75),
        finished: bool = True,
        created_at: str | None = None,
        **fields: object,
    ) -> str:
        writer = archive.start_run(run_name, created_at=created_at)
        writer.commit(manifest_of(put_files(writer, values), **fields))
        if finished:
            writer.finish()
        return writer.run_id

    return make


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
