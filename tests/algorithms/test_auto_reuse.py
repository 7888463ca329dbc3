"""AutoReuse: the decision as a table, and a Trainer in each situation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import DataSpec
from torch.utils.data import DataLoader

from reuse_algos import AutoReuse
from reuse_algos.algorithms import PriorRunDistillation, PriorRunWarmStart
from reuse_algos.algorithms.auto_reuse import RunFacts, decide
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.views import ViewedDataset, ViewPolicy
from reuse_algos.presets import PRESETS, preset
from toy import NUM_CLASSES, NoisyDataset, blobs, epoch_loader, mlp, record_run, trainer, viewed

RUN = RunFacts("a", 64, same_data=True, common=64, same_classes=True, same_model=True, can_teach=True, has_weights=True)
PART = replace(RUN, num_examples=32, same_data=False, common=32)
OTHER = replace(RUN, same_data=False, common=0)

TABLE: list[tuple[str, list[RunFacts] | None, str, tuple[str, ...], str]] = [
    ("unknown examples", None, "nothing", (), "the train examples cannot be told apart"),
    ("empty", [], "nothing", (), "the archive has no finished run"),
    (
        "same",
        [RUN],
        "same_data",
        ("a",),
        "1 prior run is of the same model on the same data; PriorRunDistillation learns from a",
    ),
    (
        "the best three teach",
        [replace(RUN, id=name, score=score) for name, score in zip("abcde", (0.1, 0.5, None, 0.4, 0.3), strict=True)],
        "same_data",
        ("b", "d", "e"),
        "5 prior runs are of the same model on the same data; PriorRunDistillation learns from b, d, e",
    ),
    (
        "the same model comes before another",
        [replace(RUN, id="b", same_model=False, score=0.9), replace(RUN, score=0.1)],
        "same_data",
        ("a",),
        "the same model",
    ),
    ("another model", [replace(RUN, same_model=False)], "other_architecture", ("a",), "another model on the same data"),
    ("nothing kept", [replace(RUN, can_teach=False)], "nothing", (), "none has logits or weights to learn from"),
    ("grown", [PART], "grown_data", ("a",), "which have grown since; PriorRunWarmStart starts from its weights"),
    ("most of it", [PART, replace(PART, id="b", num_examples=48, common=48)], "grown_data", ("b",), "knows 75%"),
    ("same before grown", [PART, replace(RUN, id="b")], "same_data", ("b",), "the same data"),
    ("grown without weights", [replace(PART, has_weights=False)], "nothing", (), "none has weights of this model"),
    ("grown, another model", [replace(PART, same_model=False)], "nothing", (), "none has weights of this model"),
    ("half of it is gone", [replace(PART, common=20)], "nothing", (), "20 of its 32 examples"),
    ("other data", [OTHER], "nothing", (), "no prior run is on these data"),
    ("classes", [replace(RUN, same_classes=False)], "nothing", (), "the classes have changed: no prior run of 1"),
]


@pytest.mark.parametrize(
    ("facts", "situation", "runs", "reason"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_decisions(facts: list[RunFacts] | None, situation: str, runs: tuple[str, ...], reason: str) -> None:
    decision = decide(facts, 64, PRESETS)
    assert (decision.situation, decision.runs) == (situation, runs)
    assert reason in decision.reason
    assert decision.acts == (situation in PRESETS)


def test_what_was_not_shown_to_help_is_not_chosen() -> None:
    decision = decide([replace(RUN, same_model=False)], 64, {"same_data"})
    assert (decision.situation, decision.runs) == ("nothing", ())
    assert "could teach" in decision.reason
    assert "PriorRunDistillation by hand" in decision.reason
    kinds = [decide([run], 64).situation for run in (RUN, PART, replace(RUN, same_model=False))]
    assert kinds == ["same_data", "grown_data", "other_architecture"], "what SHOWN names"


def test_a_preset_is_a_copy() -> None:
    preset("same_data")["prior_run_distillation"]["loss"]["weight"] = 100
    assert preset("same_data") == PRESETS["same_data"] != {"prior_run_distillation": {}}
    with pytest.raises(ValueError, match="preset must be one of same_data, grown_data"):
        preset("other_data")


def _data(length: int = 64, names: str = "abcd") -> Any:
    """The first examples of the blobs, in seeded views."""
    info = DatasetInfo("blobs", torch.arange(length), torch.arange(length) % NUM_CLASSES, tuple(names))
    return ViewedDataset(NoisyDataset(blobs(length)), ViewPolicy(seed=3, num_views=2, transform="noise(0.3)"), info)


def _fit(algorithm: Any, archive: Path, model: Any = None, data: Any = None, **arguments: Any) -> Any:
    recorder = RunRecorder(archive, run_name=arguments.pop("name", "later"))
    one = trainer(
        epoch_loader(data or _data()),
        model or mlp(5),
        algorithms=[algorithm],
        callbacks=[recorder],
        **{"max_duration": "2ep", **arguments},
    )
    one.fit()
    one.close()
    return one.state.model, RunArchive(archive).run(str(recorder.run_id)).manifest


def _plain(archive: Path) -> dict[str, torch.Tensor]:
    """What training without any algorithm gives, recorded elsewhere."""
    one = trainer(epoch_loader(_data()), mlp(5), callbacks=[RunRecorder(archive / "plain")], max_duration="2ep")
    one.fit()
    return one.state.model.state_dict()


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_an_empty_archive_does_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing but what plain training does."""
    reuse = AutoReuse(tmp_path)
    model, manifest = _fit(reuse, tmp_path)
    assert "reuse_algos: AutoReuse nothing: the archive has no finished run" in capsys.readouterr().err
    assert manifest.decisions == {"auto_reuse": "nothing: the archive has no finished run"}
    assert manifest.prior_runs == []
    assert _same(model.state_dict(), _plain(tmp_path))


def test_same_data_as_the_preset_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = record_run(tmp_path)
    reuse = AutoReuse(tmp_path)
    model, manifest = _fit(reuse, tmp_path)
    assert reuse.decision is not None
    assert (reuse.decision.situation, reuse.decision.runs) == ("same_data", (run_id,))
    assert isinstance(reuse.chosen, PriorRunDistillation)
    assert "AutoReuse same_data: 1 prior run is of the same model on the same data" in capsys.readouterr().err
    assert manifest.decisions["auto_reuse"].startswith("same_data: 1 prior run is")
    assert [use.run_id for use in manifest.prior_runs] == [run_id]
    by_hand = PriorRunDistillation(tmp_path, run_id, **preset("same_data")["prior_run_distillation"])
    other, _ = _fit(by_hand, tmp_path, name="by-hand")
    assert _same(model.state_dict(), other.state_dict())


def test_another_architecture_is_taught_by_outputs(tmp_path: Path) -> None:
    record_run(tmp_path)
    reuse = AutoReuse(tmp_path)
    _fit(reuse, tmp_path, mlp(5, hidden=8))
    assert reuse.decision is not None
    assert reuse.decision.situation == "other_architecture"
    assert isinstance(reuse.chosen, PriorRunDistillation)
    assert reuse.chosen.batches_applied == reuse.batches_applied > 0


def test_grown_data_start_from_the_weights(tmp_path: Path) -> None:
    half, _ = _fit(AutoReuse(tmp_path), tmp_path, data=_data(32), name="half")
    reuse = AutoReuse(tmp_path)
    model, manifest = _fit(reuse, tmp_path, lr=0.0)
    assert isinstance(reuse.chosen, PriorRunWarmStart)
    assert "knows 50% of the data" in manifest.decisions["auto_reuse"]
    for name, value in half.named_parameters():
        assert torch.equal(value, dict(model.named_parameters())[name])


@pytest.mark.parametrize(
    ("model", "data", "reason"),
    [
        (None, _data(names="abce"), "the classes have changed"),
        (None, viewed(seed=7), "no prior run is on these data"),
    ],
)
def test_what_was_not_shown_to_help_is_left_alone(tmp_path: Path, model: Any, data: Any, reason: str) -> None:
    record_run(tmp_path)
    reuse = AutoReuse(tmp_path)
    _, manifest = _fit(reuse, tmp_path, model, data)
    assert reuse.chosen is None
    assert reason in manifest.decisions["auto_reuse"]
    assert manifest.prior_runs == []


def test_what_the_first_batch_refuses_is_not_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Batches that are transformed are not the archived views: training is plain from its first step on."""
    run_id = record_run(tmp_path)

    def data() -> DataSpec:
        return DataSpec(epoch_loader(_data()), batch_transforms=lambda batch: (batch[0].abs(), batch[1]))

    weights = []
    for algorithms in ([AutoReuse(tmp_path)], []):
        model = mlp(5)
        trainer(data(), model, algorithms=algorithms, max_duration="1ep").fit()
        weights.append(model.state_dict())
    said = capsys.readouterr().err
    assert (
        f"AutoReuse nothing: same_data: 1 prior run is of the same model on the same data; PriorRunDistillation learns "
        f"from {run_id}, but it does not fit" in said
    )
    assert _same(*weights)


def test_a_dry_run_only_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_run(tmp_path)
    model, manifest = _fit(AutoReuse(tmp_path, dry_run=True), tmp_path)
    assert "AutoReuse would do same_data: 1 prior run is" in capsys.readouterr().err
    assert manifest.decisions["auto_reuse"].startswith("would do same_data")
    assert manifest.prior_runs == []
    assert _same(model.state_dict(), _plain(tmp_path))


@pytest.mark.parametrize("situation", ["same_data", "grown_data", "nothing"])
def test_a_resumed_run_keeps_its_decision(tmp_path: Path, situation: str) -> None:
    """Bit by bit, though the archive has grown since and would now decide otherwise."""
    home = tmp_path / "archive"
    RunArchive(home, create=True)
    if situation == "same_data":
        record_run(home)
    elif situation == "grown_data":
        _fit(AutoReuse(home), home, data=_data(32), name="half")

    def one(folder: str, **settings: Any) -> Any:
        reuse = AutoReuse(home)
        model = mlp(5)
        loader = epoch_loader(_data())
        folder = str(tmp_path / folder)
        trainer(loader, model, algorithms=[reuse], save_folder=folder, save_interval="3ba", **settings).fit()
        return reuse, model.state_dict()

    first, whole = one("a")
    assert first.decision.situation == situation
    record_run(home, seed=7, run_name="since")
    again, resumed = one("b", load_path=str(tmp_path / "a" / "ep0-ba3-rank0.pt"))
    assert again.decision == first.decision
    assert _same(whole, resumed)


def test_runs_can_be_narrowed_down(tmp_path: Path) -> None:
    record_run(tmp_path)
    reuse = AutoReuse(tmp_path, runs={"tags": {"method": "other"}})
    one = trainer(DataLoader(_data(), batch_size=16), mlp(5), algorithms=[reuse], max_duration="1ba")
    one.fit()
    assert reuse.decision is not None
    assert reuse.decision.reason == "the archive has no finished run"
