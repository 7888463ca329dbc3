"""The documented table of tasks and techniques, cell by cell: what it says runs, and what it refuses is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import DataSpec
from test_tasks import N, X, _fit
from torch.utils.data import DataLoader

from replaying import put_deltas
from reuse_algos.algorithms import (
    AdversarialReplay,
    AdversarialTraining,
    Freezing,
    HistoryCurriculum,
    MixTraining,
    PriorRunDistillation,
    PriorRunWarmStart,
)
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.dense import SceneConfig, load_boxes
from reuse_algos.errors import ReuseAlgosError
from reuse_algos.models import build_model
from reuse_algos.training.tasks.task import KINDS
from toy import trainer

ROOT = Path(__file__).parents[2]
SCORES = ("loss", "el2n", "forgetting")
LOSSES = ("kl", "mse", "channel_wise")


def _table(page: str) -> dict[str, dict[str, str]]:
    """Return the cells of the page's table whose first column is the task: by task and column, without footnotes."""
    lines = (ROOT / page).read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| task |"))
    found = {}
    head = _cells(lines[start])
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = _cells(line)
        found[name] = dict(zip(head[1:], cells, strict=True))
    return found


def _cells(line: str) -> list[str]:
    cells = [re.sub(r"\]\([^)]*\)|[`\[\]]", "", cell).strip() for cell in line.strip("|").split("|")]
    return [re.sub(r" \(\w\)$", "", cell) for cell in cells]


TABLE = _table("docs/guides/techniques.md")


def test_the_tables_are_complete_and_say_the_same() -> None:
    readme = _table("README.md")
    assert list(TABLE) == list(readme) == list(KINDS)
    for name, cells in readme.items():
        for column in ("PriorRunDistillation", "HistoryCurriculum", "AdversarialReplay"):
            ours = TABLE[name][column].replace("scores that you give", "given scores").split(",")[:3]
            assert cells[column].split(",") == [one for one in ours if "without" not in one], (name, column)


def _record(folder: Path, name: str, signals: dict[str, Any]) -> str:
    recorder = RunRecorder(folder, run_name="prior", signals=signals)
    if name == "detection":
        _detect(callbacks=[recorder], seed=1)
    else:
        _fit(name, seed=1, callbacks=[recorder], lr=0.1, max_duration="2ep")
    assert recorder.run_id is not None
    return recorder.run_id


def _detect(*algorithms: Any, callbacks: Any = (), seed: int = 2) -> Any:
    """Train a small detector for two batches."""
    data, _ = load_boxes("digit_boxes", SceneConfig(train=8, eval=4, size=32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model({"name": "tiny_fcos", "width": 16}, 11, (1, 32, 32))
    loader = DataLoader(data, batch_size=4, collate_fn=data.collate_fn)
    spec = DataSpec(loader, get_num_samples_in_batch=lambda batch: len(batch[0]))
    one = trainer(spec, model, algorithms=list(algorithms), callbacks=list(callbacks), max_duration="1ep", lr=0.01)
    one.fit()
    return model


def _run(name: str, *algorithms: Any) -> Any:
    return _detect(*algorithms) if name == "detection" else _fit(name, *algorithms)[0]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each task, with the signals that its row of the table speaks of, perturbations and boxes."""
    found = {}
    for name in KINDS:
        found[name] = folder = tmp_path_factory.mktemp(name)
        signals = {"logits": {}, "loss": {}, "correct": {}}
        if name == "detection":
            signals = {}
        elif name == "regression":
            del signals["correct"]
        run_id = _record(folder, name, signals)
        if name != "detection":
            delta = (torch.rand(1, *X.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1) * 0.03
            put_deltas(RunArchive(folder), run_id, delta)
        else:
            sure = torch.tensor([4.0, 4, 12, 12, 0.9, 1]).expand(1, 8, 32, 6)
            put_deltas(RunArchive(folder), run_id, sure, name="boxes", meta={})
            put_deltas(RunArchive(folder), run_id, torch.full((1, 8, 32), 0.9), name="gt_scores", meta={})
    return found


def _reads(archive: Path, name: str, column: str, cell: str) -> list[tuple[Any, bool]]:
    """Return the algorithms that a cell speaks of, and whether it says that they run."""
    pixels = {"pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3}
    if column == "PriorRunDistillation":
        wanted = cell.split(", ") if cell != "no" else []
        assert set(wanted) <= set(LOSSES)
        asked = LOSSES if wanted else LOSSES[:1]
        return [(PriorRunDistillation(archive, "prior", loss=loss, when={}), loss in wanted) for loss in asked]
    if column == "HistoryCurriculum":
        wanted = SCORES if cell == "all scores" else cell.split(", ")
        given = HistoryCurriculum(
            archive, strategy="prune", score=torch.arange(8.0 if name == "detection" else float(N))
        )
        asked = SCORES[:1] if name == "detection" else SCORES
        own = [(HistoryCurriculum(archive, "prior", strategy="prune", score=one), one in wanted) for one in asked]
        return [(given, True), *own]
    if column == "AdversarialReplay":
        replay = AdversarialReplay(archive, "prior", pixels={"mean": [0.0] * 3, "std": [1.0] * 3})
        return [(replay, cell.startswith("yes"))]
    if column == "AdversarialTraining":
        return [(AdversarialTraining(0.03, steps=1, **pixels), cell == "yes")]
    if column == "MixTraining":
        return [(MixTraining(archive, "prior", threshold=0.0), cell == "yes")]
    assert column == "PriorRunWarmStart, Freezing"
    some = "head.*" if name == "detection" else "net.1.bias"
    return [(PriorRunWarmStart(archive, "prior"), cell == "yes"), (Freezing(some), cell == "yes")]


@pytest.mark.parametrize("column", next(iter(TABLE.values())))
@pytest.mark.parametrize("name", KINDS)
def test_every_cell_is_what_happens(archives: dict[str, Path], name: str, column: str) -> None:
    """Two batches; what does nothing warns, and a warning is an error here."""
    for algorithm, runs in _reads(archives[name], name, column, TABLE[name][column]):
        if runs:
            _run(name, algorithm)
            continue
        with pytest.raises(ReuseAlgosError, match=rf"detect|{name}|el2n|forgetting|targets are whole") as refused:
            _run(name, algorithm)
        assert "pixel" not in str(refused.value), "the task is named before its pixels are asked for"
        assert "keys: {output" not in str(refused.value)
