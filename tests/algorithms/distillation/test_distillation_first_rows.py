"""What the first batch shows of cached logits: are they those of these examples, and what their model says?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import DataSpec
from composer.models import ComposerClassifier
from torch import nn

from distilling import Scaled, distil, fit, teacher
from reuse_algos import RunRecorder
from reuse_algos.archive import RunArchive
from reuse_algos.errors import DataError, PriorRunMismatchError
from reuse_algos.harvest import harvest
from toy import NUM_CLASSES, NoisyDataset, blobs, epoch_loader, mlp, record_run, trainer, viewed


class _Doubled(Scaled):
    factor = 2.0


def test_harvested_logits_are_what_their_model_says(archive: RunArchive) -> None:
    algorithm = distil(archive, source="cached")
    fit([algorithm], max_duration="1ba")
    report = str(algorithm.lessons.report)
    assert report.startswith("4 views are the same when read twice; 4 rows of the first batch are the examples")
    first = archive.runs(order="first")[0].id
    assert f"16 rows of run {first} are 0.0% off its weights 'last', and 100% have the same answer" in report


def test_harvested_logits_of_something_else_are_refused_before_the_first_step(tmp_path: Path) -> None:
    run_id = record_run(tmp_path, signals=None)
    harvest(tmp_path, run_id, dataset=viewed(), model=_Doubled, progress=False)
    student = mlp(5)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(PriorRunMismatchError, match=r"16 rows of run .* are 100.0% off .* so the inputs are not those"):
        fit([distil(RunArchive(tmp_path), source="cached")], student)
    assert torch.equal(student.module[0].weight, before["module.0.weight"])  # type: ignore[index]
    algorithm = distil(RunArchive(tmp_path), source="cached", mismatch="allow")
    fit([algorithm], max_duration="1ba")
    assert "100.0% off" in str(algorithm.lessons.report)


def test_largest_logits_of_something_else_are_refused(tmp_path: Path) -> None:
    """Of top_k the answers are compared."""

    class Turned(_Doubled):
        def forward(self, x: Any) -> torch.Tensor:
            return -super().forward(x)

    run_id = record_run(tmp_path, signals=None)
    harvest(tmp_path, run_id, dataset=viewed(), model=Turned, top_k=3, progress=False)
    with pytest.raises(PriorRunMismatchError, match=r"and \d% have the same answer\. They were harvested"):
        fit([distil(RunArchive(tmp_path), source="cached", temperature=1.0)])


def test_captured_logits_may_differ_and_it_is_said(tmp_path: Path) -> None:
    record_run(tmp_path, epochs=6)
    algorithm = distil(RunArchive(tmp_path), source="cached")
    fit([algorithm], max_duration="1ba")
    report = str(algorithm.lessons.report)
    assert "they were captured in training, 1 epochs before its end, so they may differ" in report


def test_what_cannot_be_compared_is_said(tmp_path: Path, archive: RunArchive) -> None:
    """A run without weights, and a student of another architecture, whose prior run does not say how it was built."""
    record_run(tmp_path, weights=())
    for home, model in ((RunArchive(tmp_path), mlp(5)), (archive, mlp(5, hidden=8))):
        algorithm = distil(home, source="cached")
        fit([algorithm], model, max_duration="1ba")
        assert "no model compared: " in str(algorithm.lessons.report)


def test_the_check_leaves_the_student_and_the_generators_alone(tmp_path: Path) -> None:
    """Bit by bit what a run gets whose prior run has no weights to compare with; the model has dropout."""
    students = []
    for weights in (("last",), ()):
        record_run(tmp_path / str(len(weights)), weights=weights)
        model = mlp(5)
        net = ComposerClassifier(nn.Sequential(*model.module, nn.Dropout(0.3)), num_classes=NUM_CLASSES)
        fit([distil(RunArchive(tmp_path / str(len(weights))), source="cached")], net)
        students.append(net.state_dict())
    for name, value in students[0].items():
        assert torch.equal(value, students[1][name]), name


@pytest.mark.parametrize("source", ["cached", "auto"])
def test_transforms_of_the_batch_are_refused(archive: RunArchive, source: str) -> None:
    """The cache is true for the dataset's views, and the batch does not hold them; live teachers see what is there."""

    def data() -> DataSpec:
        def noisy(batch: Any) -> Any:
            return batch[0] + torch.randn(batch[0].shape), batch[1]

        return DataSpec(epoch_loader(viewed()), batch_transforms=noisy)

    def run(algorithm: Any) -> nn.Module:
        model = mlp(5)
        trainer(data(), model, algorithms=[algorithm], max_duration="1ba").fit()
        return model

    with pytest.raises(
        DataError, match=r"cached logits need to know what each row is, but the inputs at \[0\] are not"
    ):
        run(distil(archive, source=source))
    run(distil(archive, source="live"))


def test_data_without_augmentation_need_no_wrapper(tmp_path: Path) -> None:
    """A plain dataset whose examples stay the same has one view: what was captured or harvested is looked up."""
    recorder = RunRecorder(tmp_path, signals={"logits": {"last_epochs": 1}})
    fit([], mlp(1), data=blobs(), max_duration="2ep", callbacks=[recorder])
    run = RunArchive(tmp_path).run(str(recorder.run_id))
    assert run.manifest.dataset is not None
    assert (run.manifest.dataset.num_views, run.manifest.dataset.transform) == (1, "none")
    algorithm = distil(RunArchive(tmp_path), runs=[run.id], source="auto")
    fit([algorithm], data=blobs())
    assert algorithm.lessons.cached is not None
    harvest(tmp_path, run.id, dataset=blobs(), model=mlp(), replace=True)
    of_model = teacher(RunArchive(tmp_path), 0)((blobs().tensors[0], None)).detach()
    kept = RunArchive(tmp_path).run(run.id).signal("logits").dense(0)[0].float()
    torch.testing.assert_close(kept, of_model, atol=2e-3, rtol=2e-3)  # kept in half precision
    noisy = distil(RunArchive(tmp_path), runs=[run.id], source="cached", mismatch="refuse")
    with pytest.raises(PriorRunMismatchError):
        fit([noisy], data=NoisyDataset(blobs()))
