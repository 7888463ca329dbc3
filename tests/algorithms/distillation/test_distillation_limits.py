"""PriorRunDistillation where something does not fit: refusals, partial caches, odd loaders, second fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, State
from composer.algorithms import CutMix, MixUp, SelectiveBackprop
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from distilling import Watch, distil, fit, kl, series, teacher
from reuse_algos.algorithms import PriorRunDistillation, PriorRunWarmStart
from reuse_algos.algorithms.prior_run_distillation.teachers.sources import CachedTeachers, LiveTeachers
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
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
from toy import (
    NUM_CLASSES,
    NUM_FEATURES,
    DictModel,
    NoisyDataset,
    blobs,
    epoch_loader,
    mlp,
    record_run,
    trainer,
    viewed,
)


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
    ("settings", "arguments", "error", "message"),
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
def test_bad_input(archive: RunArchive, settings: Any, arguments: Any, error: type[Exception], message: str) -> None:
    arguments = dict(arguments)
    with pytest.raises(error, match=message):
        fit([distil(archive, **settings)], arguments.pop("model", None), **arguments)


@pytest.mark.parametrize("mixer", [MixUp, CutMix])
@pytest.mark.parametrize("mismatch", ["refuse", "allow"])
def test_cached_logits_are_refused_for_mixed_inputs(archive: RunArchive, mixer: Any, mismatch: str) -> None:
    with pytest.raises(PriorRunMismatchError, match="changes the inputs.* Use source: live"):
        fit([distil(archive, source="cached", mismatch=mismatch), mixer()])


def test_cached_logits_need_ids_but_live_teachers_do_not(archive: RunArchive) -> None:
    def pruned(source: str) -> InMemoryLogger:
        _, _, log = fit([distil(archive, source=source), SelectiveBackprop(start=0.0, interrupt=0)])
        return log

    with pytest.raises(ExampleIdError, match="SelectiveBackprop removes rows"):
        pruned("cached")
    assert series(pruned("live"), "reuse/distillation/coverage") == [1.0] * 4


def test_random_augmentation_needs_a_declared_mismatch(archive: RunArchive) -> None:
    data = viewed(num_views=0)
    with pytest.raises(PriorRunMismatchError, match="not a known view.*mismatch: allow"):
        fit([distil(archive, source="cached")], data=data)
    _, _, log = fit([distil(archive, source="cached", mismatch="allow")], data=data)
    assert series(log, "reuse/distillation/coverage") == [1.0] * 4


def test_grown_data_uses_what_is_known(archive: RunArchive) -> None:
    inputs = torch.cat([blobs(64).tensors[0], blobs(32, seed=1).tensors[0]]).flip(0)
    grown = ViewedDataset(
        NoisyDataset(TensorDataset(inputs, torch.arange(96).flip(0) % NUM_CLASSES)),
        ViewPolicy(seed=3, num_views=2, transform="noise(0.3)"),
        DatasetInfo("blobs", torch.arange(96).flip(0), torch.arange(96).flip(0) % NUM_CLASSES, tuple("abcd")),
    )
    with pytest.raises(PriorRunMismatchError, match="64 examples are common by key, 0 of them with another label"):
        fit([distil(archive, source="cached")], data=grown)
    _, _, log = fit([distil(archive, source="cached", mismatch="allow")], data=grown)
    coverage = series(log, "reuse/distillation/coverage")
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

    prior = RunArchive(archive.root, create=True)
    run = prior.runs(order="first")[0]
    shifted = DatasetInfo("blobs", torch.arange(64), torch.arange(64) % NUM_CLASSES, tuple("abcd"))
    assert run.manifest.dataset is not None
    assert shifted.key_fingerprint == run.manifest.dataset.key_fingerprint
    algorithm = distil(archive, runs=run.id, source="cached", mismatch="allow", id_key="id", dataset=info)
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
    algorithm = distil(archive, runs=run.id, source="cached", mismatch="allow", id_key="id", dataset=info)
    data = DataLoader(SameKeys(), batch_size=16, collate_fn=collate, shuffle=True)
    model = DictModel(mlp(5).module, num_classes=NUM_CLASSES)
    one = trainer(data, model, algorithms=[algorithm], callbacks=[watch], loggers=[log], max_duration="1ba")
    one.fit()
    with torch.no_grad():
        expected = kl(watch.outputs[0], [teacher(archive, 0)((watch.inputs[0], None))])
    # Slots are used in turn where views are not known: epoch 0 reads slot 0, which is the view that the data show.
    assert series(log, "reuse/distillation/loss")[0] == pytest.approx(expected, rel=5e-3)


def test_partly_cached_batches_do_not_depend_on_microbatches(archive: RunArchive) -> None:
    def losses(microbatch: int) -> list[float]:
        model = ComposerClassifier(nn.Linear(6, NUM_CLASSES), num_classes=NUM_CLASSES)
        nn.init.constant_(model.module.weight, 0.1)  # type: ignore[arg-type]
        nn.init.zeros_(model.module.bias)  # type: ignore[arg-type]
        algorithm = distil(archive, source="cached", mismatch="allow")
        _, _, log = fit([algorithm], model, data=viewed(96), device_train_microbatch_size=microbatch)
        assert 0 < min(series(log, "reuse/distillation/coverage")) < 1
        return series(log, "loss/train/total")

    assert losses(16) == pytest.approx(losses(4), rel=1e-5)


def test_a_second_fit_goes_on(archive: RunArchive) -> None:
    for source in ("live", "cached"):
        algorithm = distil(archive, source=source)
        one, _, _ = fit([algorithm], max_duration="1ep")
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
    for algorithms in ([], [distil(archive, source="live", teacher_model=factory)]):
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
    algorithm = distil(archive, stop_when_better="metrics/eval/CrossEntropy")
    fit([algorithm], eval_dataloader=evaluation, lr=0.0)
    assert not algorithm.passed_teacher, "an untrained student has the larger cross entropy"
    with pytest.raises(SignalNotFoundError, match="F1"):
        fit([distil(archive, stop_when_better="metrics/eval/F1")])


def test_a_weight_of_zero_has_no_effect(archive: RunArchive) -> None:
    with pytest.warns(NoEffectWarning):
        fit([distil(archive, weight=0.0)])


def test_half_a_cache_is_not_taken_by_itself(tmp_path: Path) -> None:
    run_id = record_run(tmp_path, epochs=1, num_views=1, signals={"logits": {}})
    recorded = RunArchive(tmp_path).run(run_id)
    assert bool(recorded.signal("logits").seen(0).all())
    from reuse_algos.callbacks import RunRecorder

    recorder = RunRecorder(tmp_path, run_name="half", signals={"logits": {}})
    trainer(epoch_loader(viewed(num_views=1)), mlp(1), callbacks=[recorder], max_duration="2ba").fit()
    for run, kind in ((run_id, CachedTeachers), ("half", LiveTeachers)):
        algorithm = PriorRunDistillation(tmp_path, run, when={})
        fit([algorithm], data=viewed(num_views=1), max_duration="1ba")
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
        fit([distil(RunArchive(tmp_path), runs=run_id, source=source)])
    assert not RunArchive(tmp_path).verify().ok


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "cache"}, "source.name: there is no 'cache'.*'cached'"),
        ({"temperature": 0}, "temperature must be in"),
        ({"temperature": 1e-3}, "temperature must be in"),  # T^2 leaves next to no gradient
        ({"temperature": 1e4}, r"\[0.01, 1000\], got 10000"),
        ({"weight": 1.5}, r"weight must be in \[0, 1\]"),
        ({"every_n_batches": 0}, "every_n_batches must be at least 1"),
        ({"mismatch": "maybe"}, "mismatch must be 'refuse' or 'allow'"),
    ],
)
def test_settings_out_of_range(archive: RunArchive, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distil(archive, **settings)


def test_no_way_to_build_the_teacher(archive: RunArchive) -> None:
    from reuse_algos.priors.model import archived_model

    with pytest.raises(ModelError, match="give its architecture"):
        archived_model(archive.runs()[0], "last")


@pytest.mark.parametrize("source", ["live", "cached"])
def test_a_teacher_that_diverged_is_refused_though_it_is_named(tmp_path: Path, source: str) -> None:
    """A query leaves such runs out; an id does not."""

    class Diverged(Callback):
        def epoch_end(self, state: State, logger: Any) -> None:
            with torch.no_grad():
                state.model.module[3].bias.fill_(float("nan"))  # type: ignore[index]

    recorder = RunRecorder(tmp_path, signals={"logits": {}})
    trainer(epoch_loader(viewed(num_views=1)), mlp(1), callbacks=[recorder, Diverged()]).fit()
    student = mlp(5)
    before = student.module[3].weight.clone()  # type: ignore[union-attr]
    source_ = {"name": source, **({"oldest": "1dur"} if source == "cached" else {})}
    with pytest.raises(PriorRunMismatchError, match="hold NaN or Inf|are NaN in 16 of 16 rows"):
        fit([distil(RunArchive(tmp_path), runs=recorder.run_id, source=source_)], student, data=viewed(num_views=1))
    assert torch.equal(student.module[3].weight, before)  # type: ignore[union-attr]


class _Extra(nn.Linear):
    """Has more in its state dict than tensors, and a mask of infinities, as attention layers do."""

    def __init__(self) -> None:
        super().__init__(NUM_FEATURES, NUM_CLASSES)
        self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))

    def get_extra_state(self) -> Any:
        return {"scale": 1}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"scale": 1}


def test_state_that_is_no_tensor_and_masks_of_infinities_are_no_hindrance(tmp_path: Path) -> None:
    def model(seed: int) -> ComposerClassifier:
        torch.manual_seed(seed)
        return ComposerClassifier(nn.Sequential(_Extra()), num_classes=NUM_CLASSES)

    recorder, teacher_ = RunRecorder(tmp_path), model(1)
    trainer(epoch_loader(viewed()), teacher_, callbacks=[recorder]).fit()
    algorithm = distil(RunArchive(tmp_path), runs=recorder.run_id, source="live", temperature=1.0)
    _, watch, _ = fit([algorithm], model(2), max_duration="1ba")
    with torch.no_grad():
        theirs = teacher_.module(watch.inputs[0])
    expected = nn.functional.kl_div(
        watch.outputs[0].log_softmax(1), theirs.log_softmax(1), reduction="batchmean", log_target=True
    )
    assert float(algorithm.latest_metrics["reuse/distillation/loss"]) == pytest.approx(float(expected), abs=1e-6)
    warm = PriorRunWarmStart(tmp_path, str(recorder.run_id))
    started = model(3)
    trainer(epoch_loader(viewed()), started, algorithms=[warm], lr=0.0).fit()
    assert torch.equal(started.module[0].weight, teacher_.module[0].weight)  # type: ignore[index]
