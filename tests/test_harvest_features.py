"""Harvested features: what the head of the archived model is given, in the views that were asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.models import ComposerClassifier
from torch import nn

from cached_heads import digits
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.cli import main
from reuse_algos.data.views import ExampleView, ViewedDataset
from reuse_algos.errors import ModelError
from reuse_algos.harvest import harvest
from toy import epoch_loader, mlp, record_run, trainer, viewed


def _harvest(archive: Path, run_id: str, **arguments: Any) -> Any:
    settings = {"signals": ("features",), "dataset": viewed(), "model": mlp, "progress": False, **arguments}
    (result,) = harvest(archive, run_id, **settings)
    return result


def _expected(archive: Path, weights: str, view: int) -> torch.Tensor:
    """By the layers in front of the last one, without any code of the harvest."""
    model = mlp()
    run = RunArchive(archive).runs()[0]
    model.load_state_dict({name: value.clone() for name, value in run.weights(weights).items()})
    x = torch.stack([viewed()[ExampleView(i, view)][0] for i in range(64)])
    with torch.no_grad():
        return model.eval().module[:-1](x)  # type: ignore[index,operator]


def test_features_are_what_the_head_is_given(tmp_path: Path) -> None:
    run_id = record_run(tmp_path, weights=("last", "2ep"))
    for weights, signal in (("last", "features"), ("2ep", "features.ep0002")):
        result = _harvest(tmp_path, run_id, weights=weights, batch_size=10)
        assert (result.signal, result.views, result.rows) == (signal, [0, 1], 128)
        kept = RunArchive(tmp_path).run(run_id).signal(signal)
        for view in range(2):
            values, seen = kept.dense(view)
            assert bool(seen.all())
            assert values.dtype == torch.float32
            torch.testing.assert_close(values, _expected(tmp_path, weights, view), rtol=0, atol=1e-6)
            assert kept.slot_meta(view)["transform"] == "noise(0.3)"
    assert RunArchive(tmp_path).verify().ok
    run = RunArchive(tmp_path).run(run_id)
    assert sorted(h.signal for h in run.manifest.harvests) == ["features", "features.ep0002"]


def test_goes_on_view_by_view(tmp_path: Path) -> None:
    run_id = record_run(tmp_path)

    class Stops(ViewedDataset):
        def __getitem__(self, index: Any) -> Any:
            if index.view == 1 and index.position == 40:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    whole: Any = viewed()
    with pytest.raises(KeyboardInterrupt):
        _harvest(tmp_path, run_id, dataset=Stops(whole.dataset, whole.view_policy, whole.info))
    result = _harvest(tmp_path, run_id)
    assert (result.computed, result.views) == ([1], [0, 1])
    assert _harvest(tmp_path, run_id).computed == []


def test_plain_features_take_the_place_of_augmented_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "archive"
    one, _ = digits(archive, "prior")
    one.fit()
    one.close()
    command = ["harvest", str(archive), "prior", "--signals", "features", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)[0]["views"] == [0, 1, 2]
    assert main([*command, "--plain"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["views"] == [0]
    kept = RunArchive(archive).run("prior").signal("features")
    assert (kept.slots, kept.slot_meta(0)["transform"]) == ([0], "none")
    # A run without augmentation trains on them, and one with it does not.
    head = "{prior_run_warm_start: {runs: prior, trainable: {freeze: backbone}, source: cached}}"
    one, steps = digits(archive, "plain", head, "data.augment=none")
    one.fit()
    one.close()
    assert {shape[1] for shape in steps.shapes} == {16}
    one, _ = digits(archive, "augmented", head)
    with pytest.raises(ValueError, match="has features of views with .*'none'.* --views 3"):
        one.fit()
    one.close()


@pytest.mark.parametrize("options", [["--plain"], ["--signals", "features", "--plain", "--views", "2"]])
def test_plain_goes_with_features_alone(tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["harvest", str(tmp_path), "prior", *options]) == 2
    assert "--plain belongs to --signals features" in capsys.readouterr().err
    with pytest.raises(ValueError, match="plain is for the signal features"):
        harvest(record_archive(tmp_path), "baseline-1", plain=True, progress=False)


def record_archive(path: Path) -> Path:
    record_run(path, epochs=1)
    return path


class Pooled(nn.Module):
    """A 1 x 1 convolution for a head, and an average behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Conv1d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)[:, :, None]).mean(2)


def _headless() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Unflatten(1, (4, 2)), nn.AvgPool1d(2), nn.Flatten())


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Pooled, "are not what its head .Conv1d. returned"),
        (_headless, "no linear layer or 1 x 1 convolution with 4 outputs"),
    ],
)
def test_the_last_step_must_be_the_head(tmp_path: Path, net: Any, message: str) -> None:
    def model() -> ComposerClassifier:
        return ComposerClassifier(net(), num_classes=4)

    recorder = RunRecorder(tmp_path, run_name="odd")
    one = trainer(epoch_loader(viewed()), model(), callbacks=[recorder], max_duration="1ba")
    one.fit()
    one.close()
    with pytest.raises(ModelError, match=message):
        _harvest(tmp_path, "odd", model=model)
    assert RunArchive(tmp_path).run("odd").signal_names == []
