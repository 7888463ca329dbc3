"""AdversarialReplay and what becomes of the model: activation checkpointing, export, interruption, bad data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer.models import ComposerClassifier
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from replaying import (
    BATCH,
    CLASSES,
    EPSILON,
    N,
    both_branches,
    conv_net,
    deltas,
    fit,
    images,
    put_deltas,
    record,
    replay,
)
from reuse_algos.algorithms.adversarial_replay.perturbations import Perturbations
from reuse_algos.archive import ResidentSignal, RunArchive, Signal
from reuse_algos.data.example_ids import TrackExamples
from reuse_algos.errors import DataError, ModelError, PriorRunMismatchError
from reuse_algos.harvest import harvest
from reuse_algos.training.attacks import Attack
from toy import epoch_loader, trainer


def run(algorithms: list[Any], model: Any, **settings: Any) -> dict[str, Tensor]:
    one = trainer(
        epoch_loader(images(), BATCH),
        model,
        algorithms=algorithms,
        callbacks=[TrackExamples()],
        **{"max_duration": "2ep", "lr": 0.1, **settings},
    )
    one.fit()
    return {name: value.clone() for name, value in both_branches(one).items()}


class Checkpointed(nn.Module):
    """The same net, whose layers but the first are called again in the backward pass."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        net: Any = conv_net(5).module
        self.first, self.rest, self.reentrant = net[:2], net[2:], reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None or not self.training:
            return self.rest(self.first(x))
        return checkpoint(self.rest, self.first(x), use_reentrant=self.reentrant)  # type: ignore[return-value]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("settings", [{}, {"mode": "replace"}, {"weight": 1.0}], ids=str)
def test_activation_checkpointing(archive: RunArchive, reentrant: bool, settings: dict[str, Any]) -> None:
    def trained(reentrant: bool | None, algorithms: list[Any], **other: Any) -> dict[str, Tensor]:
        return run(algorithms, ComposerClassifier(Checkpointed(reentrant), num_classes=CLASSES), **other)

    plain = trained(None, [replay(archive, **settings)])
    ours = trained(reentrant, [replay(archive, **settings)])
    for name, value in plain.items():
        if "running" not in name and "tracked" not in name:  # which move twice, as in any checkpointed model
            assert torch.equal(ours[name], value), name
    assert ours["module.rest.2.auxiliary.num_batches_tracked"] == 12
    if settings.get("mode") != "replace":
        still = trained(reentrant, [replay(archive, **settings)], lr=0.0)
        for name, value in trained(reentrant, [], lr=0.0).items():
            assert torch.equal(still[name], value), name


def test_the_model_is_a_plain_one_after_training_and_goes_on(archive: RunArchive) -> None:
    algorithm = replay(archive)

    def start(duration: str, own: Any) -> Any:
        return trainer(
            epoch_loader(images(), BATCH),
            conv_net(5),
            algorithms=[own],
            callbacks=[TrackExamples()],
            max_duration=duration,
        )

    straight, parts = start("2ep", replay(archive)), start("1ep", algorithm)
    straight.fit()
    parts.fit()
    plain = conv_net(5)
    for one in (parts, straight):
        assert one.state.model.state_dict().keys() == plain.state_dict().keys()
        assert len(one.state.optimizers[0].state_dict()["state"]) == len(list(plain.parameters()))
    torch.jit.script(parts.state.model.module)
    parts.fit(duration="1ep")
    expected, found = both_branches(straight), both_branches(parts)
    assert len(found) > len(plain.state_dict())
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert algorithm.batches_applied == 6
    assert algorithm.prior_uses()[0].harvest_seconds == 8.0, "both views by now"


def test_idle_batches_leave_the_auxiliary_branch_alone(archive: RunArchive) -> None:
    """No momentum, no weight decay."""
    ends = [run([replay(archive, stop="2ba")], conv_net(5), max_duration=f"{end}ba") for end in (2, 6)]
    names = [name for name in ends[0] if "auxiliary" in name]
    assert len(names) == 10
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in names)
    assert not torch.equal(ends[0]["module.2.weight"], ends[1]["module.2.weight"])


class Interrupting(nn.Module):
    """As ctrl-C in a notebook."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise KeyboardInterrupt
        return x


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_an_interrupted_forward_pass_leaves_no_hook(archive: RunArchive, mode: str) -> None:
    model: Any = conv_net(5)
    model.module.append(Interrupting())
    with pytest.raises(KeyboardInterrupt):
        run([replay(archive, mode=mode)], model)
    with torch.no_grad():
        assert [len(model.eval()((torch.zeros(2, 3, 6, 6), None))) for _ in range(2)] == [2, 2]


def test_too_few_rows_that_stay_clean(archive: RunArchive) -> None:
    with pytest.raises(ModelError, match=r"1 of 2 rows of a microbatch stay clean.*batch norm needs more"):
        fit([replay(archive, mode="replace")], device_train_microbatch_size=2, max_duration="1ba")


def test_inputs_that_are_no_pixels_of_the_space(archive: RunArchive) -> None:
    with pytest.raises(DataError, match=r"pixels from -4.* not from 0 to 1\. .*pixels.mean and pixels.std"):
        fit([replay(archive, pixels={"mean": [0.0] * 3, "std": [2.0] * 3})], max_duration="1ba")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5])
def test_dense_perturbations_that_are_none(tmp_path: Path, value: float) -> None:
    archive, bad = RunArchive(tmp_path, create=True), deltas(3)
    bad[1, N - 1, 0, 0, 0] = value
    put_deltas(archive, record(tmp_path, "prior"), bad, meta={})  # no attack on record
    with pytest.raises(DataError, match=r"'adversarial' are as large as (inf|1.5), beyond 1, a pixel.*Harvest them"):
        fit([replay(archive, runs="prior")], max_duration="1ba")


def test_perturbations_beyond_their_epsilon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = record(tmp_path, "prior")
    attack = Attack("fgsm", epsilon=EPSILON)
    harvest(tmp_path, run_id, signals=["adversarial"], attack=attack, dataset=images(), model=conv_net, progress=False)
    archive = RunArchive(tmp_path, create=True)
    fit([replay(archive, runs=run_id)], max_duration="1ba")
    real = Signal.slot_meta
    monkeypatch.setattr(Signal, "slot_meta", lambda self, slot: {**real(self, slot), "epsilon": EPSILON / 1.1})
    with pytest.raises(DataError, match=r"as large as 0.0627451, beyond the epsilon of their attack, 0.057041 "):
        fit([replay(archive, runs=run_id)], max_duration="1ba")


def test_another_size_is_told_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = RunArchive(tmp_path, create=True)
    put_deltas(archive, record(tmp_path, "prior"), deltas(3, shape=(3, 8, 8)))

    def refuse(*arguments: Any, **settings: Any) -> ResidentSignal:
        raise AssertionError("loaded")

    monkeypatch.setattr(Signal, "resident", refuse)
    monkeypatch.setattr(Perturbations, "gather", refuse)
    with pytest.raises(PriorRunMismatchError, match=r"this run's images are \(3, 6, 6\)"):
        fit([replay(archive, runs="prior")])
