"""PriorRunDistillation in a real Trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, Event, State
from composer.algorithms import EMA, ChannelsLast, CutMix, LabelSmoothing, MixUp, SelectiveBackprop
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader

from reuse_algos.algorithms import PriorRunDistillation
from reuse_algos.algorithms.prior_run_distillation.teachers import CachedTeachers, LiveTeachers
from reuse_algos.archive import RunArchive
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.views import ExampleView, ViewedDataset, ViewPolicy
from reuse_algos.errors import (
    ArchiveCorruptError,
    ExampleIdError,
    ModelError,
    NoEffectWarning,
    PriorRunMismatchError,
    RunNotFoundError,
    SignalNotFoundError,
)
from reuse_algos.harvest import harvest
from toy import NUM_CLASSES, DictModel, blobs, epoch_loader, mlp, record_run, trainer, viewed


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> RunArchive:
    """Two baseline runs whose two views are harvested."""
    path = tmp_path_factory.mktemp("archive")
    for seed in (1, 2):
        run_id = record_run(path, seed=seed, weights=("last", "best", "2ep"), epochs=6)
        harvest(path, run_id, dataset=viewed(), model=mlp, progress=False)
    return RunArchive(path)


class Watch(Callback):
    """Keeps what the forward pass saw and gave, and the loss that went backward."""

    def __init__(self) -> None:
        self.inputs: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []
        self.losses: list[Any] = []

    def after_forward(self, state: State, logger: Any) -> None:
        self.inputs.append(
            copy.deepcopy(state.batch[0] if isinstance(state.batch, (tuple, list)) else state.batch["x"])
        )
        outputs = state.outputs
        self.outputs.append((outputs["logits"] if isinstance(outputs, dict) else outputs).detach().clone())

    def before_backward(self, state: State, logger: Any) -> None:
        self.losses.append(copy.deepcopy(_detached(state.loss)))


def _detached(loss: Any) -> Any:
    if isinstance(loss, dict):
        return {key: value.detach().clone() for key, value in loss.items()}
    if isinstance(loss, (tuple, list)):
        return tuple(part.detach().clone() for part in loss)
    return loss.detach().clone()


def _distil(archive: RunArchive, **arguments: Any) -> PriorRunDistillation:
    runs = arguments.pop("runs", {"tags": {"method": "baseline"}, "order": "first"})
    return PriorRunDistillation(archive, runs, **arguments)


def _fit(
    algorithms: list[Any], model: Any = None, *, data: Any = None, **arguments: Any
) -> tuple[Any, Watch, InMemoryLogger]:
    watch, log = Watch(), InMemoryLogger()
    one = trainer(
        epoch_loader(data or viewed()),
        model or mlp(5),
        algorithms=algorithms,
        callbacks=[watch],
        loggers=[log],
        **{"max_duration": "1ep", **arguments},
    )
    one.fit()
    return one, watch, log


def _series(log: InMemoryLogger, name: str) -> list[float]:
    return [float(value) for _, value in log.data[name]]


def _teacher(archive: RunArchive, index: int, weights: str = "last") -> nn.Module:
    """The archived model, loaded without any code of the algorithm."""
    run = archive.runs(order="first")[index]
    model = mlp()
    model.load_state_dict({name: value.clone() for name, value in run.weights(weights).items()})
    return model.eval()


@torch.no_grad()
def _kl(student: torch.Tensor, teachers: list[torch.Tensor], temperature: float = 4.0) -> float:
    p = torch.stack([torch.softmax(t.double() / temperature, 1) for t in teachers]).mean(0)
    q = torch.log_softmax(student.double() / temperature, 1)
    return float((p * (p.log() - q)).sum(1).mean() * temperature**2)


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
    _, plain, _ = _fit([make() for make in others], max_duration="1ba")
    algorithm = _distil(archive, source="live", weight=0.7)
    made = [make() for make in others]
    _, watch, log = _fit([algorithm, *made] if first else [*made, algorithm], max_duration="1ba")
    assert torch.equal(plain.outputs[0], watch.outputs[0])
    with torch.no_grad():
        teachers = [_teacher(archive, i)((watch.inputs[0], None)) for i in range(2)]
    term = _kl(watch.outputs[0], teachers)
    expected = 0.3 * float(plain.losses[0]) + 0.7 * term
    assert float(watch.losses[0]) == pytest.approx(expected, rel=1e-6)
    assert _series(log, "reuse/distillation/loss")[0] == pytest.approx(term, rel=1e-6)


def test_mse_keeps_the_whole_cross_entropy(archive: RunArchive) -> None:
    _, plain, _ = _fit([], max_duration="1ba")
    _, watch, _ = _fit([_distil(archive, source="live", loss="mse", weight=2.0, combine="mean")], max_duration="1ba")
    with torch.no_grad():
        mixed = sum(_teacher(archive, i)((watch.inputs[0], None)) for i in range(2)) / 2
    expected = float(plain.losses[0]) + 2.0 * float(((watch.outputs[0] - mixed) ** 2).mean())
    assert float(watch.losses[0]) == pytest.approx(expected, rel=1e-6)


def test_microbatches_give_the_same_gradient(archive: RunArchive) -> None:
    def weights(microbatch: int) -> dict[str, torch.Tensor]:
        model = ComposerClassifier(nn.Linear(6, NUM_CLASSES), num_classes=NUM_CLASSES)
        nn.init.constant_(model.module.weight, 0.1)  # type: ignore[arg-type]
        nn.init.zeros_(model.module.bias)  # type: ignore[arg-type]
        one, _, _ = _fit(
            [_distil(archive, combine="mixup", source="live", teacher_model=mlp)],
            model,
            device_train_microbatch_size=microbatch,
        )
        return one.state.model.state_dict()

    whole, parts = weights(16), weights(4)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-6, rtol=0)


def test_dict_and_tuple_losses(archive: RunArchive) -> None:
    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        return {"x": torch.stack([x for x, _ in rows]), "y": torch.stack([y for _, y in rows])}

    class TupleModel(DictModel):
        def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().loss(outputs, batch)["total"]
            return loss, 0.5 * loss

    for kind in (DictModel, TupleModel):
        results = []
        for algorithms in (
            [],
            [_distil(archive, source="live", weight=0.5, teacher_model=lambda: DictModel(mlp().module, num_classes=4))],
        ):
            watch = Watch()
            data = epoch_loader(viewed(), collate_fn=collate)
            trainer(
                data, kind(mlp(5).module, num_classes=4), algorithms=algorithms, callbacks=[watch], max_duration="1ba"
            ).fit()
            results.append(watch)
        plain, watch = results
        with torch.no_grad():
            teachers = [_teacher(archive, i)((watch.inputs[0], None)) for i in range(2)]
        term = _kl(watch.outputs[0], teachers)
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
    _, watch, log = _fit([_distil(archive, runs=run.id, weights=["2ep", "last"], source="live")], max_duration="1ba")
    with torch.no_grad():
        teachers = [_teacher(archive, 0, name)((watch.inputs[0], None)) for name in ("ep0002", "last")]
    assert _series(log, "reuse/distillation/loss")[0] == pytest.approx(_kl(watch.outputs[0], teachers), abs=1e-6)


# The teachers --------------------------------------------------------------------------------------------------------


def test_teachers_stay_as_they_were_archived(archive: RunArchive, tmp_path: Path) -> None:
    algorithm = _distil(archive, source="live")
    one, _, _ = _fit([algorithm], save_folder=str(tmp_path), save_filename="end.pt")
    assert isinstance(algorithm.teachers, LiveTeachers)
    student = one.state.model
    for index, module in enumerate(algorithm.teachers._modules):
        archived = _teacher(archive, index).state_dict()
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
        _fit([_distil(archive, source=source, combine="mixup", seed=3)], max_duration="2ep")
        for source in ("live", "cached")
    )
    assert isinstance(cached[0].state.algorithms[0].teachers, CachedTeachers)
    losses = [_series(log, "reuse/distillation/loss") for _, _, log in (live, cached)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)  # logits are kept as float16
    for name, value in live[0].state.model.state_dict().items():
        torch.testing.assert_close(value, cached[0].state.model.state_dict()[name], atol=2e-3, rtol=2e-3)
    assert _series(cached[2], "reuse/distillation/coverage") == [1.0] * 8


def test_top_k_keeps_the_probabilities_of_the_largest(archive: RunArchive, tmp_path: Path) -> None:
    run_id = record_run(tmp_path, signals=None)
    harvest(tmp_path, run_id, dataset=viewed(), model=mlp, top_k=NUM_CLASSES - 1, progress=False)
    # With all but one class kept, the remaining mass is that class: the cache must equal the live teacher.
    losses = []
    for source in ("live", "cached"):
        _, _, log = _fit([_distil(RunArchive(tmp_path), runs=run_id, source=source)])
        losses.append(_series(log, "reuse/distillation/loss"))
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    with pytest.raises(PriorRunMismatchError, match="MSE needs all of them"):
        _fit([_distil(RunArchive(tmp_path), runs=run_id, source="cached", loss="mse")])


def test_auto_takes_the_cache_only_where_it_is_true(archive: RunArchive) -> None:
    def kind(algorithms: list[Any], data: Any = None, **arguments: Any) -> type:
        one, _, _ = _fit([_distil(archive), *algorithms], data=data, max_duration="1ba", **arguments)
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
    algorithm = _distil(archive, **settings)
    _, _, log = _fit([algorithm], max_duration="2ep")
    assert [i for i, on in enumerate(_series(log, "reuse/distillation/active")) if on] == list(active)
    assert algorithm.batches_applied == len(list(active))


def test_batches_without_the_term_have_the_plain_loss(archive: RunArchive) -> None:
    _, plain, _ = _fit([], lr=0.0)
    _, watch, _ = _fit([_distil(archive, every_n_batches=2)], lr=0.0)
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
    algorithm = _distil(archive, stop_when_better=True, source="live", teacher_model=mlp)
    one, _, log = _fit(
        [algorithm], Perfect(mlp(5).module, num_classes=4), eval_dataloader=evaluation, max_duration="3ep"
    )
    assert _series(log, "reuse/distillation/active") == [1.0] * 4 + [0.0] * 8
    state = algorithm.state_dict()
    again = _distil(archive, stop_when_better=True)
    again.load_state_dict(state)
    assert not again.is_active(one.state)


def test_warns_when_it_had_no_effect(archive: RunArchive) -> None:
    with pytest.warns(NoEffectWarning, match="had no effect: it was never on between start=5ep"):
        _fit([_distil(archive, start="5ep")])


def test_agreement_is_the_share_of_equal_predictions(archive: RunArchive) -> None:
    run = archive.runs(order="first")[0]
    _, watch, log = _fit([_distil(archive, runs=run.id, source="live")], max_duration="1ba")
    with torch.no_grad():
        teacher = _teacher(archive, 0)((watch.inputs[0], None))
    share = float((teacher.argmax(1) == watch.outputs[0].argmax(1)).float().mean())
    assert _series(log, "reuse/distillation/agreement")[0] == pytest.approx(share)
    assert _series(log, "reuse/distillation/teacher_seconds")[0] > 0


# Precision, compile, memory format -----------------------------------------------------------------------------------


class Bf16(ComposerClassifier):
    """Autocast inside the model, since Composer's own amp_bf16 needs a GPU."""

    def forward(self, batch: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(batch)


def test_bf16_outputs_are_compared_in_float32(archive: RunArchive) -> None:
    def model() -> Bf16:
        return Bf16(mlp(5).module, num_classes=NUM_CLASSES)

    _, watch, log = _fit([_distil(archive, source="live", teacher_model=model)], model(), max_duration="1ba")
    assert watch.outputs[0].dtype == torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        teachers = [_teacher(archive, i)((watch.inputs[0], None)).float() for i in range(2)]
    expected = _kl(watch.outputs[0], teachers)
    assert _series(log, "reuse/distillation/loss")[0] == pytest.approx(expected, abs=1e-6)
    assert watch.losses[0].dtype == torch.float32


def test_compiled_student(archive: RunArchive) -> None:
    results = [
        _series(_fit([_distil(archive, source="live")], **arguments)[2], "reuse/distillation/loss")
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
    algorithm = PriorRunDistillation(tmp_path, "images", source="live", weight=0.5)
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
    teacher = algorithm.teachers._modules[0]
    conv = next(p for p in teacher.parameters() if p.dim() == 4)
    assert conv.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = _kl(watch.outputs[0], [teacher((watch.inputs[0], None))])
    assert _series(log, "reuse/distillation/loss")[0] == pytest.approx(expected, abs=1e-6)


# Bad input -----------------------------------------------------------------------------------------------------------


def _relabelled() -> Any:
    info = viewed().info  # type: ignore[attr-defined]
    other = viewed()
    other.info = DatasetInfo(info.name, info.keys, info.labels.roll(1), info.class_names)  # type: ignore[attr-defined]
    return other


def _renamed() -> Any:
    info = viewed().info  # type: ignore[attr-defined]
    other = viewed()
    other.info = DatasetInfo(info.name, info.keys, info.labels, ("a", "b", "d", "c"))  # type: ignore[attr-defined]
    return other


@pytest.mark.parametrize(
    ("settings", "fit", "error", "message"),
    [
        ({"runs": "baselin-1"}, {}, RunNotFoundError, "baseline-1"),
        ({"runs": {"tags": {"method": "nothing"}}}, {}, RunNotFoundError, "no finished run in .* matches"),
        ({"runs": []}, {}, RunNotFoundError, "list of prior runs is empty"),
        ({"runs": {"tag": {}}}, {}, ValueError, "unknown key 'tag'. Did you mean 'tags'"),
        ({"source": "live", "weights": "ep0099"}, {}, SignalNotFoundError, "ep0099"),
        (
            {},
            {"data": viewed(length=48)},
            PriorRunMismatchError,
            "with 64 examples .* with 48 .* 48 examples are common",
        ),
        (
            {},
            {"data": _relabelled()},
            PriorRunMismatchError,
            "64 examples are common by key, 64 of them with another label",
        ),
        ({"mismatch": "allow"}, {"data": _relabelled()}, PriorRunMismatchError, "nothing to reuse"),
        ({"mismatch": "allow"}, {"data": _renamed()}, PriorRunMismatchError, "class 2 is 'c' there and 'd' here"),
        ({"source": "live"}, {"model": mlp(num_classes=5)}, PriorRunMismatchError, "has 4 classes, this run has 5"),
        ({"source": "live"}, {"model": mlp(hidden=8)}, PriorRunMismatchError, "differs from this model in 7 tensors"),
        (
            {"source": "live", "teacher_model": lambda: mlp(hidden=8)},
            {},
            PriorRunMismatchError,
            "do not fit the module",
        ),
        ({"source": "cached"}, {"data": viewed(num_views=3)}, PriorRunMismatchError, "for 2 of the 3 views.*harvest"),
        ({"source": "cached", "weights": "best"}, {}, PriorRunMismatchError, "no signal 'logits.best'"),
    ],
)
def test_bad_input(archive: RunArchive, settings: Any, fit: Any, error: type[Exception], message: str) -> None:
    fit = dict(fit)
    with pytest.raises(error, match=message):
        _fit([_distil(archive, **settings)], fit.pop("model", None), **fit)


@pytest.mark.parametrize("mixer", [MixUp, CutMix])
@pytest.mark.parametrize("mismatch", ["refuse", "allow"])
def test_cached_logits_are_refused_for_mixed_inputs(archive: RunArchive, mixer: Any, mismatch: str) -> None:
    with pytest.raises(PriorRunMismatchError, match="changes the inputs.* Use source: live"):
        _fit([_distil(archive, source="cached", mismatch=mismatch), mixer()])


def test_cached_logits_need_ids_but_live_teachers_do_not(archive: RunArchive) -> None:
    def pruned(source: str) -> InMemoryLogger:
        _, _, log = _fit([_distil(archive, source=source), SelectiveBackprop(start=0.0, interrupt=0)])
        return log

    with pytest.raises(ExampleIdError, match="SelectiveBackprop removes rows"):
        pruned("cached")
    assert _series(pruned("live"), "reuse/distillation/coverage") == [1.0] * 4


def test_random_augmentation_needs_a_declared_mismatch(archive: RunArchive) -> None:
    data = viewed(num_views=0)
    with pytest.raises(PriorRunMismatchError, match="not a known view.*mismatch: allow"):
        _fit([_distil(archive, source="cached")], data=data)
    _, _, log = _fit([_distil(archive, source="cached", mismatch="allow")], data=data)
    assert _series(log, "reuse/distillation/coverage") == [1.0] * 4


def test_grown_data_uses_what_is_known(archive: RunArchive) -> None:
    grown = ViewedDataset(
        viewed(96).dataset,
        ViewPolicy(seed=3, num_views=2, transform="noise(0.3)"),  # type: ignore[attr-defined]
        DatasetInfo("blobs", torch.arange(96).flip(0), torch.arange(96).flip(0) % NUM_CLASSES, tuple("abcd")),
    )
    with pytest.raises(PriorRunMismatchError, match="64 examples are common by key, 0 of them with another label"):
        _fit([_distil(archive, source="cached")], data=grown)
    _, _, log = _fit([_distil(archive, source="cached", mismatch="allow")], data=grown)
    coverage = _series(log, "reuse/distillation/coverage")
    assert sum(coverage) * 16 == pytest.approx(64)


def test_ids_in_the_batch_find_their_rows(archive: RunArchive) -> None:
    """Keys in the batch, in another order and from another number on, get the logits of their examples."""
    views = viewed()
    keys = torch.arange(64).flip(0) + 1000
    info = DatasetInfo("blobs", keys, keys.sub(1000) % NUM_CLASSES, tuple("abcd"))

    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        return {
            "x": torch.stack([x for x, _, _ in rows]),
            "y": torch.tensor([y for _, y, _ in rows]),
            "id": torch.tensor([i for _, _, i in rows]),
        }

    class Keyed(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, position: int) -> Any:
            return views[ExampleView(position, 0)][0], position % NUM_CLASSES, 1000 + position

    prior = RunArchive(archive.root)
    run = prior.runs(order="first")[0]
    shifted = DatasetInfo("blobs", torch.arange(64), torch.arange(64) % NUM_CLASSES, tuple("abcd"))
    assert run.manifest.dataset is not None
    assert shifted.fingerprint == run.manifest.dataset.fingerprint
    algorithm = _distil(archive, runs=run.id, source="cached", mismatch="allow", id_key="id", dataset=info)
    data = DataLoader(Keyed(), batch_size=16, collate_fn=collate)
    model = DictModel(mlp(5).module, num_classes=NUM_CLASSES)
    one = trainer(data, model, algorithms=[algorithm], max_duration="1ba")
    with pytest.raises(PriorRunMismatchError, match="nothing to reuse"):
        one.fit()  # no key is common with the prior run
    info = DatasetInfo("blobs", torch.arange(64).flip(0), torch.arange(64).flip(0) % NUM_CLASSES, tuple("abcd"))

    class SameKeys(Keyed):
        def __getitem__(self, position: int) -> Any:
            x, y, key = super().__getitem__(position)
            return x, y, key - 1000

    watch, log = Watch(), InMemoryLogger()
    algorithm = _distil(archive, runs=run.id, source="cached", mismatch="allow", id_key="id", dataset=info)
    data = DataLoader(SameKeys(), batch_size=16, collate_fn=collate, shuffle=True)
    model = DictModel(mlp(5).module, num_classes=NUM_CLASSES)
    one = trainer(data, model, algorithms=[algorithm], callbacks=[watch], loggers=[log], max_duration="1ba")
    one.fit()
    with torch.no_grad():
        expected = _kl(watch.outputs[0], [_teacher(archive, 0)((watch.inputs[0], None))])
    # Slots are used in turn where views are not known: epoch 0 reads slot 0, which is the view that the data show.
    assert _series(log, "reuse/distillation/loss")[0] == pytest.approx(expected, rel=5e-3)


def test_partly_cached_batches_do_not_depend_on_microbatches(archive: RunArchive) -> None:
    def losses(microbatch: int) -> list[float]:
        grown = ViewedDataset(
            viewed(96).dataset,  # type: ignore[attr-defined]
            ViewPolicy(seed=3, num_views=2, transform="noise(0.3)"),
            DatasetInfo("blobs", torch.arange(96), torch.arange(96) % NUM_CLASSES, tuple("abcd")),
        )
        model = ComposerClassifier(nn.Linear(6, NUM_CLASSES), num_classes=NUM_CLASSES)
        nn.init.constant_(model.module.weight, 0.1)  # type: ignore[arg-type]
        nn.init.zeros_(model.module.bias)  # type: ignore[arg-type]
        algorithm = _distil(archive, source="cached", mismatch="allow")
        _, _, log = _fit([algorithm], model, data=grown, device_train_microbatch_size=microbatch)
        assert 0 < min(_series(log, "reuse/distillation/coverage")) < 1
        return _series(log, "loss/train/total")

    assert losses(16) == pytest.approx(losses(4), rel=1e-5)


def test_a_second_fit_goes_on(archive: RunArchive) -> None:
    for source in ("live", "cached"):
        algorithm = _distil(archive, source=source)
        one, _, _ = _fit([algorithm], max_duration="1ep")
        one.fit(duration="1ep")
        assert algorithm.batches_applied == 8
        if source == "cached":
            assert isinstance(algorithm.teachers, CachedTeachers)
            assert algorithm.teachers.slots_used == {0, 1}


def test_teachers_are_built_without_the_student_s_generator(archive: RunArchive) -> None:
    def factory() -> ComposerClassifier:
        torch.rand(3)
        return mlp()

    orders = []
    for algorithms in ([], [_distil(archive, source="live", teacher_model=factory)]):
        watch = Watch()
        trainer(
            DataLoader(viewed(), batch_size=16, shuffle=True),
            mlp(5),
            algorithms=algorithms,
            callbacks=[watch],
            max_duration="1ba",
        ).fit()
        orders.append(watch.inputs[0])
    assert torch.equal(*orders)


def test_the_goal_of_stop_when_better_follows_the_metric(archive: RunArchive) -> None:
    evaluation = DataLoader(blobs(32, seed=9), batch_size=32)
    algorithm = _distil(archive, stop_when_better=True, monitor="metrics/eval/CrossEntropy")
    _fit([algorithm], eval_dataloader=evaluation, lr=0.0)
    assert not algorithm.passed_teacher, "an untrained student has the larger cross entropy"
    with pytest.raises(SignalNotFoundError, match="F1"):
        _fit([_distil(archive, stop_when_better=True, monitor="metrics/eval/F1")])


def test_a_weight_of_zero_has_no_effect(archive: RunArchive) -> None:
    with pytest.warns(NoEffectWarning):
        _fit([_distil(archive, weight=0.0)])


def test_half_a_cache_is_not_taken_by_itself(tmp_path: Path) -> None:
    run_id = record_run(tmp_path, epochs=1, num_views=1, signals={"logits": {}})
    recorded = RunArchive(tmp_path).run(run_id)
    assert bool(recorded.signal("logits").seen(0).all())
    from reuse_algos.callbacks import RunRecorder

    recorder = RunRecorder(tmp_path, run_name="half", signals={"logits": {}})
    trainer(epoch_loader(viewed(num_views=1)), mlp(1), callbacks=[recorder], max_duration="2ba").fit()
    for run, kind in ((run_id, CachedTeachers), ("half", LiveTeachers)):
        algorithm = PriorRunDistillation(tmp_path, run)
        _fit([algorithm], data=viewed(num_views=1), max_duration="1ba")
        assert isinstance(algorithm.teachers, kind)


@pytest.mark.parametrize(("source", "kind"), [("live", "weights"), ("cached", "signals")])
def test_corrupt_file(tmp_path: Path, source: str, kind: str) -> None:
    run_id = record_run(tmp_path)
    (damaged,) = [
        p for p in (tmp_path / "runs" / run_id / "data" / kind).glob("*") if p.name.startswith(("last", "logits"))
    ][:1]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.chmod(0o644)
    damaged.write_bytes(bytes(content))
    with pytest.raises(ArchiveCorruptError, match=rf"{run_id}.*{damaged.name}"):
        _fit([_distil(RunArchive(tmp_path), runs=run_id, source=source)])
    assert not RunArchive(tmp_path).verify().ok


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "cache"}, "source must be one of auto, live, cached, got 'cache'"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"weight": 1.5}, r"weight must be in \[0, 1\]"),
        ({"every_n_batches": 0}, "every_n_batches must be at least 1"),
        ({"mismatch": "maybe"}, "mismatch must be 'refuse' or 'allow'"),
    ],
)
def test_settings_out_of_range(archive: RunArchive, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _distil(archive, **settings)


def test_no_way_to_build_the_teacher(archive: RunArchive) -> None:
    from reuse_algos.algorithms.archived_model import archived_model

    with pytest.raises(ModelError, match="give its architecture"):
        archived_model(archive.runs()[0], "last")


def test_match_only_answers(archive: RunArchive) -> None:
    algorithm = _distil(archive)
    one = trainer(epoch_loader(viewed()), mlp(5), algorithms=[algorithm])
    before = dict(vars(algorithm))
    for event in Event:
        algorithm.match(event, one.state)
    assert all(vars(algorithm)[key] is value for key, value in before.items())
