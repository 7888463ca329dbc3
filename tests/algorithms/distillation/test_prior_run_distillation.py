"""PriorRunDistillation in a real Trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.algorithms import EMA, ChannelsLast, CutMix, LabelSmoothing, MixUp
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from composer.optim import CosineAnnealingScheduler, LinearScheduler, LinearWithWarmupScheduler
from torch import nn
from torch.utils.data import DataLoader

from distilling import Watch, distil, fit, kl, series, teacher
from reuse_algos.algorithms import PriorRunDistillation
from reuse_algos.algorithms.prior_run_distillation.teachers.sources import CachedTeachers, LiveTeachers
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import NoEffectWarning, PriorRunMismatchError
from reuse_algos.harvest import harvest
from toy import NUM_CLASSES, DictModel, blobs, checkpointed, epoch_loader, keyed, mlp, record_run, trainer, viewed

# The loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "others",
    [
        [],
        [lambda: MixUp(alpha=0.4)],
        [lambda: MixUp(alpha=0.4, interpolate_loss=True)],
        [lambda: LabelSmoothing(0.2)],
        [lambda: LabelSmoothing(0.2), lambda: EMA(half_life="2ba")],
    ],
    ids=["alone", "mixup", "mixup interpolating the loss", "label smoothing", "ema"],
)
@pytest.mark.parametrize("first", [True, False], ids=["listed first", "listed last"])
def test_loss_is_exact_beside_composer_s_algorithms(archive: RunArchive, others: list[Any], first: bool) -> None:
    torch.manual_seed(0)
    _, plain, _ = fit([make() for make in others], max_duration="1ba")
    algorithm = distil(archive, source="live", weight=0.7)
    made = [make() for make in others]
    _, watch, log = fit([algorithm, *made] if first else [*made, algorithm], max_duration="1ba")
    assert torch.equal(plain.outputs[0], watch.outputs[0])
    with torch.no_grad():
        teachers = [teacher(archive, i)((watch.inputs[0], None)) for i in range(2)]
    term = kl(watch.outputs[0], teachers)
    expected = 0.3 * float(plain.losses[0]) + 0.7 * term
    assert float(watch.losses[0]) == pytest.approx(expected, rel=1e-6)
    assert series(log, "reuse/distillation/loss")[0] == pytest.approx(term, rel=1e-6)


def test_mse_keeps_the_whole_cross_entropy(archive: RunArchive) -> None:
    _, plain, _ = fit([], max_duration="1ba")
    _, watch, _ = fit([distil(archive, source="live", loss="mse", weight=2.0, combine="mean")], max_duration="1ba")
    with torch.no_grad():
        mixed = sum(teacher(archive, i)((watch.inputs[0], None)) for i in range(2)) / 2
    expected = float(plain.losses[0]) + 2.0 * float(((watch.outputs[0] - mixed) ** 2).mean())
    assert float(watch.losses[0]) == pytest.approx(expected, rel=1e-6)


def test_dict_and_tuple_losses(archive: RunArchive) -> None:
    class TupleModel(DictModel):
        def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().loss(outputs, batch)["total"]
            return loss, 0.5 * loss

    for kind in (DictModel, TupleModel):
        results = []
        for algorithms in (
            [],
            [distil(archive, source="live", weight=0.5, teacher_model=lambda: DictModel(mlp().module, num_classes=4))],
        ):
            watch = Watch()
            data = epoch_loader(viewed(), collate_fn=keyed)
            trainer(
                data, kind(mlp(5).module, num_classes=4), algorithms=algorithms, callbacks=[watch], max_duration="1ba"
            ).fit()
            results.append(watch)
        plain, watch = results
        with torch.no_grad():
            teachers = [teacher(archive, i)((watch.inputs[0], None)) for i in range(2)]
        term = kl(watch.outputs[0], teachers)
        if kind is DictModel:
            loss = watch.losses[0]
            assert set(loss) == {"total", "cross_entropy", "distillation"}
            assert float(loss["total"]) == pytest.approx(0.5 * float(plain.losses[0]["total"]) + 0.5 * term, abs=1e-6)
        else:
            assert float(sum(watch.losses[0])) == pytest.approx(
                0.5 * float(sum(plain.losses[0])) + 0.5 * term, abs=1e-6
            )


def test_several_checkpoints_of_one_run_teach(archive: RunArchive) -> None:
    run = archive.runs(order="first")[0]
    _, watch, log = fit([distil(archive, runs=run.id, weights=["2ep", "last"], source="live")], max_duration="1ba")
    with torch.no_grad():
        teachers = [teacher(archive, 0, name)((watch.inputs[0], None)) for name in ("ep0002", "last")]
    assert series(log, "reuse/distillation/loss")[0] == pytest.approx(kl(watch.outputs[0], teachers), abs=1e-6)


# The teachers --------------------------------------------------------------------------------------------------------


def test_teachers_stay_as_they_were_archived(archive: RunArchive, tmp_path: Path) -> None:
    algorithm = distil(archive, source="live")
    one, _, _ = fit([algorithm], save_folder=str(tmp_path), save_filename="end.pt")
    assert isinstance(algorithm.teachers, LiveTeachers)
    student = one.state.model
    for index, module in enumerate(algorithm.teachers._modules):
        archived = teacher(archive, index).state_dict()
        assert all(torch.equal(value, archived[name]) for name, value in module.state_dict().items())
        assert not any(m.training for m in module.modules())
        assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
        assert all(module is not inner for inner in student.modules())
    optimized = {id(p) for group in one.state.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in student.parameters()}
    saved = torch.load(tmp_path / "end.pt", weights_only=False)["state"]
    assert saved["model"].keys() == mlp().state_dict().keys()


def test_cached_equals_live_on_the_same_views(archive: RunArchive) -> None:
    live, cached = (
        fit([distil(archive, source=source, combine="mixup", seed=3)], max_duration="2ep")
        for source in ("live", "cached")
    )
    assert isinstance(cached[0].state.algorithms[0].teachers, CachedTeachers)
    losses = [series(log, "reuse/distillation/loss") for _, _, log in (live, cached)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)  # logits are kept as float16
    for name, value in live[0].state.model.state_dict().items():
        torch.testing.assert_close(value, cached[0].state.model.state_dict()[name], atol=2e-3, rtol=2e-3)
    assert series(cached[2], "reuse/distillation/coverage") == [1.0] * 8


def test_top_k_keeps_the_probabilities_of_the_largest(archive: RunArchive, tmp_path: Path) -> None:
    run_id = record_run(tmp_path, signals=None)
    harvest(tmp_path, run_id, dataset=viewed(), model=mlp, top_k=NUM_CLASSES - 1, progress=False)
    # With all but one class kept, the remaining mass is that class: the cache must equal the live teacher.
    losses = []
    for source in ("live", "cached"):
        _, _, log = fit([distil(RunArchive(tmp_path), runs=run_id, source=source)])
        losses.append(series(log, "reuse/distillation/loss"))
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    with pytest.raises(PriorRunMismatchError, match="MSE and a scale need all of them"):
        fit([distil(RunArchive(tmp_path), runs=run_id, source="cached", loss="mse")])


def test_auto_takes_the_cache_only_where_it_is_true(archive: RunArchive) -> None:
    def kind(algorithms: list[Any], data: Any = None, **arguments: Any) -> type:
        one, _, _ = fit([distil(archive), *algorithms], data=data, max_duration="1ba", **arguments)
        return type(next(a for a in one.state.algorithms if isinstance(a, PriorRunDistillation)).teachers)

    assert kind([]) is CachedTeachers
    assert kind([MixUp()]) is LiveTeachers
    more_views = viewed(num_views=3)
    assert kind([], more_views) is LiveTeachers
    other = viewed()
    other.view_policy = ViewPolicy(seed=4, num_views=2, transform="noise(0.3)")  # type: ignore[attr-defined]
    assert kind([], other) is LiveTeachers


# When it is on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "active"),
    [
        ({}, range(8)),
        ({"every_n_batches": 3}, [0, 3, 6]),
        ({"start": "1ep"}, range(4, 8)),
        ({"stop": "0.25dur"}, [0, 1]),
        ({"start": "3ba", "stop": "1ep"}, [3]),
    ],
)
def test_schedule(archive: RunArchive, settings: dict[str, Any], active: Any) -> None:
    algorithm = distil(archive, **settings)
    _, _, log = fit([algorithm], max_duration="2ep")
    assert [i for i, on in enumerate(series(log, "reuse/distillation/active")) if on] == list(active)
    assert algorithm.batches_applied == len(list(active))


def test_schedulers_change_weight_and_temperature_at_every_batch(archive: RunArchive) -> None:
    """Eight batches: the weight falls linearly over the first half, T from 4 to 1 along half a cosine."""
    shares = [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0]
    temperatures = [1 + 3 * (1 + math.cos(math.pi * t / 8)) / 2 for t in range(8)]
    algorithm = distil(
        archive,
        source="live",
        weight_scheduler=LinearScheduler(t_max="0.5dur"),
        temperature_scheduler=CosineAnnealingScheduler(alpha_f=0.25),
    )
    settings: dict[str, Any] = {"lr": 0.0, "max_duration": "2ep"}
    with pytest.warns(NoEffectWarning):
        _, plain, _ = fit([distil(archive, source="live", weight=0.0)], **settings)
    _, watch, log = fit([algorithm], **settings)
    assert series(log, "reuse/distillation/weight") == pytest.approx([0.9 * share for share in shares])
    assert series(log, "reuse/distillation/temperature") == pytest.approx(temperatures)
    teachers = [teacher(archive, i) for i in range(2)]
    assert series(log, "reuse/distillation/active") == [1.0] * 4 + [0.0] * 4
    assert algorithm.extra_flops(1) == 4 * 2 * 16 * 2 * (6 * 16 + 16 * 4), "no pass of a teacher that has no weight"
    for i, (own, loss) in enumerate(zip(plain.losses, watch.losses, strict=True)):
        with torch.no_grad():
            term = kl(watch.outputs[i], [t((watch.inputs[i], None)) for t in teachers], temperatures[i])
        weight = 0.9 * shares[i]
        assert float(loss) == pytest.approx((1 - weight) * float(own) + weight * term, rel=1e-5)
    assert algorithm.batches_applied == 4


def test_a_scheduler_may_end_where_the_term_does(archive: RunArchive) -> None:
    """T would be 0 from the third batch on, where the term is off."""
    algorithm = distil(archive, temperature_scheduler=LinearScheduler(t_max="0.25dur"), stop="0.25dur")
    _, _, log = fit([algorithm], max_duration="2ep")
    assert series(log, "reuse/distillation/active") == [1.0] * 2 + [0.0] * 6
    assert series(log, "reuse/distillation/temperature")[:2] == [4.0, 2.0]


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"weight_scheduler": LinearScheduler(alpha_i=2.0)}, r"weight must be in \[0, 1\], got 1.8"),
        ({"weight_scheduler": LinearScheduler(alpha_f=-0.5)}, r"weight must be in \[0, 1\], got -"),
        (
            {"temperature_scheduler": LinearWithWarmupScheduler("1ep", alpha_f=0.5)},
            r"temperature must be in \[0.01, 1000\], got 0.0",
        ),
        (
            {"temperature_scheduler": LinearScheduler(t_max="5ba")},
            r"temperature must be in \[0.01, 1000\], got 0.0",
        ),
        ({"weight_scheduler": LinearScheduler(t_max="10sec")}, "LinearScheduler cannot say .* Wall clock"),
        ({"weight_scheduler": LinearScheduler(t_max="0dur")}, "LinearScheduler cannot say .*division by zero"),
    ],
)
def test_schedulers_that_leave_the_range_are_refused_before_the_first_batch(
    archive: RunArchive, scheduler: dict[str, Any], message: str
) -> None:
    algorithm = distil(archive, **scheduler)
    one = trainer(epoch_loader(viewed()), mlp(5), algorithms=[algorithm], max_duration="2ep")
    with pytest.raises(ValueError, match=message):
        one.fit()
    assert int(one.state.timestamp.batch) == 0


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({"source": "cached"}, 0),
        ({"source": "live"}, 2 * 128),
        ({"source": "live", "combine": "sample", "every_n_batches": 2}, 64),
        ({"source": "live", "stop": "3ba"}, 2 * 48),
    ],
)
def test_passes_of_live_teachers_are_counted_over_a_resume(
    archive: RunArchive, tmp_path: Path, settings: dict[str, Any], passes: int
) -> None:
    """Teachers and student have two layers, 6 -> 16 -> 4; a multiply-add is two FLOPs, a training step three passes."""
    each = 2 * (6 * 16 + 16 * 4)
    for last in ("2ba", "8ba"):
        recorder = RunRecorder(tmp_path / "archive", run_name="student")
        one = trainer(
            epoch_loader(viewed()),
            mlp(5),
            algorithms=[distil(archive, **settings)],
            callbacks=[recorder],
            **checkpointed(tmp_path / "checkpoints", save_interval="2ba", max_duration=last),
        )
        one.fit()
        one.close()
    last_run = RunArchive(tmp_path / "archive").runs(order="latest", limit=1)[0]
    assert last_run.manifest.progress.batch == 8
    assert last_run.manifest.cost.train_flops == each * (3 * 128 + passes)


def test_batches_without_the_term_have_the_plain_loss(archive: RunArchive) -> None:
    _, plain, _ = fit([], lr=0.0)
    _, watch, _ = fit([distil(archive, every_n_batches=2)], lr=0.0)
    same = [bool(torch.equal(a, b)) for a, b in zip(plain.losses, watch.losses, strict=True)]
    assert same == [False, True, False, True]


def test_stops_once_the_student_is_better(archive: RunArchive) -> None:
    class Perfect(ComposerClassifier):
        """Always right, so it passes every teacher at its first evaluation."""

        def eval_forward(self, batch: Any, outputs: Any = None) -> torch.Tensor:
            return nn.functional.one_hot(batch[1], NUM_CLASSES).float() * 9

    evaluation = DataLoader(blobs(32, seed=9), batch_size=32)
    for run in archive.runs():
        assert run.best_metric()[0] < 1.0, "the fixture's teachers must leave room"
    algorithm = distil(archive, stop_when_better=True, source="live", teacher_model=mlp)
    one, _, log = fit(
        [algorithm], Perfect(mlp(5).module, num_classes=4), eval_dataloader=evaluation, max_duration="3ep"
    )
    assert series(log, "reuse/distillation/active") == [1.0] * 4 + [0.0] * 8
    state = algorithm.state_dict()
    again = distil(archive, stop_when_better=True)
    again.load_state_dict(state)
    assert not again.is_active(one.state)


def test_agreement_is_the_share_of_equal_predictions(archive: RunArchive) -> None:
    run = archive.runs(order="first")[0]
    _, watch, log = fit([distil(archive, runs=run.id, source="live")], max_duration="1ba")
    with torch.no_grad():
        logits = teacher(archive, 0)((watch.inputs[0], None))
    share = float((logits.argmax(1) == watch.outputs[0].argmax(1)).float().mean())
    assert series(log, "reuse/distillation/agreement")[0] == pytest.approx(share)
    assert series(log, "reuse/distillation/teacher_seconds")[0] > 0


# Precision, compile, memory format -----------------------------------------------------------------------------------


class Bf16(ComposerClassifier):
    """Autocast inside the model, since Composer's own amp_bf16 needs a GPU."""

    def forward(self, batch: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(batch)


def test_bf16_outputs_are_compared_in_float32(archive: RunArchive) -> None:
    def model() -> Bf16:
        return Bf16(mlp(5).module, num_classes=NUM_CLASSES)

    _, watch, log = fit([distil(archive, source="live", teacher_model=model)], model(), max_duration="1ba")
    assert watch.outputs[0].dtype == torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        teachers = [teacher(archive, i)((watch.inputs[0], None)).float() for i in range(2)]
    expected = kl(watch.outputs[0], teachers)
    assert series(log, "reuse/distillation/loss")[0] == pytest.approx(expected, abs=1e-6)
    assert watch.losses[0].dtype == torch.float32


def test_compiled_student(archive: RunArchive) -> None:
    results = [
        series(fit([distil(archive, source="live")], **arguments)[2], "reuse/distillation/loss")
        for arguments in ({}, {"compile_config": {"backend": "aot_eager"}})
    ]
    assert results[0] == pytest.approx(results[1], abs=1e-6)


def test_channels_last_and_cutmix(tmp_path: Path) -> None:
    class Images(torch.utils.data.Dataset):
        info = DatasetInfo("images", torch.arange(32), torch.arange(32) % 4)

        def __len__(self) -> int:
            return 32

        def __getitem__(self, index: int) -> Any:
            return torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(index)), index % 4

    def net() -> ComposerClassifier:
        layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        )
        return ComposerClassifier(layers, num_classes=4)

    from reuse_algos.callbacks import RunRecorder

    recorder = RunRecorder(tmp_path, run_name="images")
    trainer(epoch_loader(Images()), net(), callbacks=[recorder], max_duration="1ep").fit()
    algorithm = PriorRunDistillation(tmp_path, "images", source="live", loss={"name": "kl", "weight": 0.5}, when={})
    watch, log = Watch(), InMemoryLogger()
    one = trainer(
        epoch_loader(Images()),
        net(),
        algorithms=[algorithm, ChannelsLast(), CutMix()],
        callbacks=[watch],
        loggers=[log],
        max_duration="1ba",
    )
    one.fit()
    assert isinstance(algorithm.teachers, LiveTeachers)
    module = algorithm.teachers._modules[0]
    conv = next(p for p in module.parameters() if p.dim() == 4)
    assert conv.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = kl(watch.outputs[0], [module((watch.inputs[0], None))])
    assert series(log, "reuse/distillation/loss")[0] == pytest.approx(expected, abs=1e-6)


def test_another_trainer_chooses_its_teachers_again(tmp_path: Path) -> None:
    """A loop over seeds with one algorithm object: each run may learn from those before it, and has its own counts."""

    def recorded(name: str, seed: int, algorithms: list[Any]) -> str:
        recorder = RunRecorder(tmp_path, run_name=name)
        one = trainer(
            epoch_loader(viewed()), mlp(seed), algorithms=algorithms, callbacks=[recorder], max_duration="1ep"
        )
        one.fit()
        one.close()
        assert recorder.run_id is not None
        return recorder.run_id

    first = recorded("one", 1, [])
    algorithm = distil(RunArchive(tmp_path), runs={"order": "latest", "limit": 1}, source="live")
    second = recorded("two", 2, [algorithm])
    assert [use.run_id for use in algorithm.prior_uses()] == [first]
    applied, flops = algorithm.batches_applied, algorithm.extra_flops(1)
    algorithm.passed_teacher = True
    recorded("three", 3, [algorithm])
    assert [use.run_id for use in algorithm.prior_uses()] == [second]
    assert algorithm.teachers is not None
    assert algorithm.teachers.names == [f"{second}/last"]
    assert flops
    assert algorithm.extra_flops(1) == flops
    assert algorithm.batches_applied == applied
