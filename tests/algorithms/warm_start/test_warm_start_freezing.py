"""What trains, how fast and from when on: freezing, groups of the optimizer, two ranks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Algorithm, Event, State
from composer.algorithms import BlurPool
from composer.models import ComposerClassifier
from composer.optim import CosineAnnealingWithWarmupScheduler, DecoupledSGDW, MultiStepScheduler
from torch import nn
from torch.optim.lr_scheduler import StepLR

from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.errors import ModelError
from reuse_algos.training.parameters.trainable import TrainablePart
from toy import epoch_loader, mlp, trainer
from warming import Weights, fit, resumable, same, trainer_with, warm

HEAD = {"module.3.weight", "module.3.bias"}
IDLE = "module.0.bias"  # what it adds, batch norm subtracts again: its gradient is 0 and it need not move
COMPILED = {"compile_config": {"backend": "aot_eager"}}


def _moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("arguments", [{}, COMPILED], ids=["eager", "compiled"])
def test_a_frozen_backbone_does_not_move_at_all(archive: RunArchive, arguments: Any) -> None:
    # Weight decay and momentum would move what is in the optimizer; train mode would move the statistics.
    model = mlp(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    seen = Weights()
    one = trainer_with(optimizer, model, [warm(archive, freeze="backbone")], [seen], **arguments)
    one.fit()
    for later in seen.later:
        assert _moved(seen.first, later) == HEAD
    assert seen.with_gradient == [HEAD] * len(seen.later)
    inside = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert inside == {id(p) for name, p in model.named_parameters() if name in HEAD}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == HEAD


def test_evaluation_between_batches_does_not_thaw_the_statistics(archive: RunArchive) -> None:
    model, seen = mlp(5), Weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    one = trainer_with(optimizer, model, [warm(archive, freeze=["0.*", "1.*"])], [seen], eval_interval="1ba")
    one.fit()
    assert _moved(seen.first, seen.later[-1]) == HEAD
    model.train()
    assert all(module.training for module in model.modules()), "an ordinary train() is not tampered with"


def test_a_layer_of_which_only_a_part_is_frozen_keeps_its_statistics_moving(archive: RunArchive) -> None:
    _, seen, _ = fit([warm(archive, freeze="1.weight")], max_duration="2ba")
    assert set(seen.first) - _moved(seen.first, seen.later[-1]) == {"module.1.weight", IDLE}


def test_statistics_without_parameters_belong_to_the_backbone() -> None:
    net = nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Linear(6, 4))
    model = ComposerClassifier(net, num_classes=4)

    class Freeze(Algorithm):
        """The part by itself, without any archive."""

        part = TrainablePart(freeze="backbone")

        def match(self, event: Event, state: State) -> bool:
            return event in (Event.INIT, Event.FIT_START, Event.BEFORE_FORWARD)

        def apply(self, event: Event, state: State, logger: Any) -> None:
            {
                Event.INIT: self.part.arrange,
                Event.FIT_START: self.part.hold,
                Event.BEFORE_FORWARD: self.part.keep_statistics,
            }[event](state)

    # No parameter is in the backbone here, so a pattern that also names the statistics would be needed.
    with pytest.raises(ModelError, match="freeze: 'backbone' matches nothing"):
        fit([Freeze()], model)
    deeper = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 4))
    Freeze.part = TrainablePart(freeze="backbone")
    _, seen, _ = fit([Freeze()], ComposerClassifier(deeper, num_classes=4), max_duration="2ba")
    assert _moved(seen.first, seen.later[-1]) == {"module.2.weight", "module.2.bias"}


def _schedule(kind: str) -> Any:
    return {
        "steps": MultiStepScheduler(milestones=["4ba"], gamma=0.1),
        "cosine": CosineAnnealingWithWarmupScheduler(t_warmup="2ba"),
    }[kind]


@pytest.mark.parametrize("kind", ["steps", "cosine"])
def test_rates_of_parts_follow_composer_s_schedules(archive: RunArchive, kind: str) -> None:
    _, plain, _ = fit([], schedulers=_schedule(kind))
    rates = {"head": 1.0, "0.*": 0.1, "backbone": 0.5}
    one, seen, _ = fit([warm(archive, learning_rates=rates)], schedulers=_schedule(kind))
    names = {id(p): name for name, p in one.state.model.named_parameters()}
    groups = [sorted(names[id(p)] for p in group["params"]) for group in one.state.optimizers[0].param_groups]
    assert groups == [
        ["module.0.bias", "module.0.weight"],
        ["module.1.bias", "module.1.weight"],
        ["module.3.bias", "module.3.weight"],
    ]
    assert len(plain.rates) == len(seen.rates) == 8
    assert len({rate for (rate,) in plain.rates}) > 1
    for (rate,), found in zip(plain.rates, seen.rates, strict=True):
        assert found == pytest.approx([0.1 * rate, 0.5 * rate, rate], rel=1e-12)


def test_a_rate_is_what_the_update_is_multiplied_by(archive: RunArchive) -> None:
    # The first step of momentum SGD is rate * gradient, so the steps of two runs compare exactly.
    steps = []
    for factor in (1.0, 0.25):
        _, seen, _ = fit([warm(archive, learning_rates={"0.*": factor})], max_duration="1ba")
        steps.append({name: seen.later[0][name] - seen.first[name] for name in seen.first})
    torch.testing.assert_close(steps[1]["module.0.weight"], 0.25 * steps[0]["module.0.weight"], rtol=1e-3, atol=1e-7)
    assert torch.equal(steps[1]["module.3.weight"], steps[0]["module.3.weight"])


def test_decoupled_weight_decay_reckons_from_the_part_s_own_rate(archive: RunArchive) -> None:
    model, seen = mlp(5), Weights()
    optimizer = DecoupledSGDW(model.parameters(), lr=0.1, weight_decay=0.01)
    algorithm = warm(archive, learning_rates={"0.*": 0.1})
    trainer_with(optimizer, model, [algorithm], [seen], max_duration="1ba").fit()
    assert [(group["lr"], group["initial_lr"]) for group in optimizer.param_groups] == [
        (pytest.approx(0.01), pytest.approx(0.01)),
        (0.1, 0.1),
    ]


@pytest.mark.parametrize("arguments", [{}, COMPILED], ids=["eager", "compiled"])
def test_unfreezing(archive: RunArchive, arguments: Any) -> None:
    algorithm = warm(archive, freeze="backbone", learning_rates={"backbone": 0.5}, unfreeze_at="4ba")
    one, seen, log = fit([algorithm], schedulers=_schedule("steps"), **arguments)
    everything = {name for name, _ in mlp().named_parameters()}
    assert seen.with_gradient == [HEAD] * 4 + [everything] * 4
    assert _moved(seen.first, seen.later[3]) == HEAD
    assert _moved(seen.later[3], seen.later[4]) == set(seen.first) - {IDLE}
    _, plain, _ = fit([], schedulers=_schedule("steps"))
    rates = [rate for (rate,) in plain.rates]
    assert rates[4] == 0.1, "Composer takes the step of 4ba one batch later"
    assert rates[5] == pytest.approx(0.01)
    for batch, found in enumerate(seen.rates):
        assert found == pytest.approx([rates[batch]] if batch < 4 else [rates[batch], 0.5 * rates[batch]]), batch
    inside = [id(p) for group in one.state.optimizers[0].param_groups for p in group["params"]]
    assert sorted(inside) == sorted(id(p) for p in one.state.model.parameters())
    frozen = [float(value) for _, value in log.data["reuse/warm_start/frozen"]]
    assert frozen == [pytest.approx(144 / 212), 0.0]


OPTIMIZERS = {"plain sgd": partial(torch.optim.SGD, lr=0.1), "adamw": partial(torch.optim.AdamW, lr=0.01)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)  # the settings table has momentum
@pytest.mark.parametrize("stop", [2, 3])
def test_resumes_bit_equal_on_both_sides_of_unfreezing(
    archive: RunArchive, tmp_path: Path, stop: int, optimizer: str
) -> None:
    def run(folder: str, stop: int | None) -> Weights:
        algorithm = warm(archive, freeze="backbone", learning_rates={"1.*": 0.3}, unfreeze_at="3ba")
        made = OPTIMIZERS[optimizer]
        return resumable(algorithm, tmp_path / folder, stop, made, schedulers=_schedule("cosine"))

    straight = run("straight", None)
    run("stopped", stop)
    later = run("stopped", None)
    assert len(later.later) == 8 - stop
    assert later.rates == straight.rates[stop:]
    assert all(same(a, b) for a, b in zip(later.later, straight.later[stop:], strict=True))


def _skipping(archive: RunArchive, folder: Path, stop: int | None, unfreeze_at: str | None) -> tuple[Weights, Any]:
    query = {"tags": {"method": "late"}, "order": "first", "limit": 1, "if_empty": "skip"}
    rates = {"freeze": "backbone", "learning_rates": {"1.*": 0.3}, "unfreeze_at": unfreeze_at}
    algorithm = warm(archive, runs=query, **rates)
    return resumable(algorithm, folder, stop, OPTIMIZERS["adamw"], schedulers=_schedule("cosine")), algorithm


def _finish_late(archive: RunArchive) -> None:
    recorder = RunRecorder(archive, run_name="late", tags={"method": "late"}, weights=("last",))
    one, _, _ = fit([], callbacks=[recorder])
    one.close()


@pytest.mark.parametrize("unfreeze_at", [None, "3ba"])
@pytest.mark.parametrize("found", [False, True], ids=["found none at first", "found one at first"])
def test_a_resumed_run_trains_what_its_first_part_trained(tmp_path: Path, found: bool, unfreeze_at: str | None) -> None:
    """Whether another run finished in between, or the run that it began from is gone."""
    with_run, empty = RunArchive(tmp_path / "runs", create=True), RunArchive(tmp_path / "empty", create=True)
    if found:
        _finish_late(with_run)
        first, then = with_run, empty
    else:
        first = then = with_run
    straight, _ = _skipping(first, tmp_path / "straight", None, unfreeze_at)
    _skipping(first, tmp_path / "stopped", 2, unfreeze_at)
    if not found:
        _finish_late(with_run)
    later, algorithm = _skipping(then, tmp_path / "stopped", None, unfreeze_at)
    assert (algorithm.skipped is None) == found
    assert len(later.later) == 6
    assert later.rates == straight.rates[2:]
    assert later.with_gradient == straight.with_gradient[2:]
    assert len(later.with_gradient[0]) == (len(HEAD) if found else len(list(mlp(5).parameters())))
    assert all(same(a, b) for a, b in zip(later.later, straight.later[2:], strict=True))


def test_what_would_not_work_is_refused_early(archive: RunArchive) -> None:
    model = mlp(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    algorithm = warm(archive, freeze="backbone", unfreeze_at="1ep")
    one = trainer_with(optimizer, model, [algorithm], [], schedulers=StepLR(optimizer, 1))
    with pytest.raises(ModelError, match="cannot take them in"):
        one.fit()
    with pytest.raises(ModelError, match="nothing to train"):
        fit([warm(archive, freeze="*")])
    headless = ComposerClassifier(nn.Sequential(nn.Linear(6, 9)), num_classes=4)
    with pytest.raises(
        ModelError,
        match="with 4 outputs, so its head cannot be found. Name it by a pattern .* in PriorRunWarmStart",
    ):
        fit([warm(archive, freeze="backbone")], headless)


@pytest.mark.filterwarnings("ignore:.*BlurPool.*", "ignore:.*blurpool.*")
def test_surgery_after_the_groups_were_made_is_refused(archive: RunArchive) -> None:
    def net() -> ComposerClassifier:
        layers = nn.Sequential(nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(256, 4))
        return ComposerClassifier(layers, num_classes=4)

    images = torch.utils.data.TensorDataset(torch.randn(16, 16, 8, 8), torch.arange(16) % 4)
    surgery = BlurPool(replace_convs=True, replace_maxpools=False, min_channels=1)
    with pytest.raises(ModelError, match="another algorithm changed the model's parameters"):
        trainer(epoch_loader(images), net(), algorithms=[warm(archive, learning_rates={"head": 2.0}), surgery]).fit()
