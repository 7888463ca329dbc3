"""HistoryCurriculum: what it refuses at the start, what it notices later, and lengths that do not come out even."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader

from curricula import BATCH, IgnoredTargets, N, Started, curriculum, fit, series
from reuse_algos.algorithms.history_curriculum.example_losses import MeanCheck
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import DataError, ExampleIdError, ModelError
from toy import NUM_CLASSES, NUM_FEATURES, Stop, checkpointed, epoch_loader, finish, mlp, trainer, viewed

WEIGHTING = {"strategy": "active_bias", "mode": "weighting", "score": torch.linspace(0.1, 3.0, N).double()}

SMOOTHED = nn.CrossEntropyLoss(label_smoothing=0.1)  # the plain loss of no task, so its own function is asked


def _info(labels: torch.Tensor | None) -> DatasetInfo:
    return DatasetInfo("blobs", torch.arange(N), labels, None)


def _model(loss_fn: Any = None, dtype: torch.dtype = torch.float32) -> ComposerClassifier:
    torch.manual_seed(1)
    loss = {} if loss_fn is None else {"loss_fn": loss_fn}
    model = ComposerClassifier(nn.Linear(NUM_FEATURES, NUM_CLASSES, dtype=dtype), num_classes=NUM_CLASSES, **loss)
    model.get_metrics = lambda is_train=False: {}  # they cannot take labels below 0
    return model


# Losses that are no mean ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss_fn",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1.0, 1.0, 3.0])),
        functools.partial(F.cross_entropy, weight=torch.tensor([1.0, 1.0, 1.0, 3.0])),
    ],
)
def test_class_weights_are_refused_before_the_first_batch(archive: RunArchive, loss_fn: Any) -> None:
    started = Started()
    with pytest.raises(ModelError, match="class weights: it divides by .* per_example_loss"):
        fit([curriculum(archive, **WEIGHTING), started], model=_model(loss_fn))
    assert not started.seen
    fit([curriculum(archive, strategy="focus", score=WEIGHTING["score"])], model=_model(loss_fn), max_duration="1ba")


@pytest.mark.parametrize(("label", "loss_fn"), [(-100, None), (2, nn.CrossEntropyLoss(ignore_index=2))])
def test_ignored_targets_are_left_out_of_the_mean_that_is_weighed(
    archive: RunArchive, label: int, loss_fn: Any
) -> None:
    """The check of every batch holds the mean of the losses against the model's, which ignores these rows."""
    algorithm = curriculum(archive, **WEIGHTING, dataset=_info(None))
    loader = epoch_loader(IgnoredTargets({5, 40}, label=label), BATCH)
    fit([algorithm], loader=loader, model=_model(loss_fn), max_duration="2ep")
    assert algorithm.batches_applied == 8


@pytest.mark.parametrize("batch", range(4))
def test_ignored_targets_that_nobody_told_of_are_noticed(archive: RunArchive, batch: int) -> None:
    """Wherever in the epoch the only one is: after the first batch, or at the end of the epoch."""
    algorithm = curriculum(archive, **WEIGHTING, dataset=_info(None))
    _, seen, _ = fit([algorithm], data=viewed(), model=_model(SMOOTHED), max_duration="1ep")
    ignored = {seen.batches[batch][3]}
    again = curriculum(archive, **WEIGHTING, dataset=_info(None))
    one = trainer(
        epoch_loader(IgnoredTargets(ignored), BATCH), _model(SMOOTHED), algorithms=[again], max_duration="2ep"
    )
    with pytest.raises(ModelError, match="class weights, ignored targets or a further term"):
        one.fit()
    # In the last batch of the epoch Composer has counted the epoch when it ends.
    assert int(one.state.timestamp.batch) == (1 if batch == 0 else 4)


def test_the_end_of_training_is_looked_at_too(archive: RunArchive) -> None:
    _, seen, _ = fit([curriculum(archive, **WEIGHTING)], max_duration="1ep")
    loader = epoch_loader(IgnoredTargets({seen.batches[1][0]}), BATCH)
    with pytest.raises(ModelError, match="ignored targets"):
        fit(
            [curriculum(archive, **WEIGHTING, dataset=_info(None))],
            loader=loader,
            model=_model(SMOOTHED),
            max_duration="2ba",
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_of_any_precision_pass(archive: RunArchive, dtype: torch.dtype) -> None:
    for seed in range(2):
        algorithm = curriculum(archive, **WEIGHTING, dataset=_info(None), seed=seed)
        loader = epoch_loader(IgnoredTargets(set(), dtype), BATCH, seed=seed)
        fit([algorithm], loader=loader, model=_model(dtype=dtype), max_duration="1ep")
        assert algorithm.batches_applied == 4


@pytest.mark.parametrize(
    ("dtype", "off", "refused"),
    [
        (torch.float32, 0.5e-3, False),
        (torch.float32, 2e-3, True),
        (torch.bfloat16, 0.02, False),  # 4 * 2 ** -7 is 0.031
        (torch.bfloat16, 0.05, True),
        (torch.float32, torch.nan, True),
    ],
)
def test_the_tolerance_is_that_of_the_dtype(dtype: torch.dtype, off: float, refused: bool) -> None:
    check = MeanCheck(torch.device("cpu"))
    losses = torch.ones(4, dtype=dtype)
    check.add(torch.tensor(1 + off, dtype=dtype), losses, 4)
    check.add(torch.tensor(1, dtype=dtype), losses, 4)
    if refused:
        with pytest.raises(ModelError, match="but the mean of its per-example losses is 1"):
            check.on_all_ranks()
    else:
        check.on_all_ranks()


def test_divergence_is_not_taken_for_a_further_term() -> None:
    check = MeanCheck(torch.device("cpu"))
    check.add(torch.tensor(torch.nan), torch.tensor([1.0, torch.nan]), 2)
    check.add(torch.tensor(torch.inf), torch.tensor([1.0, torch.inf]), 2)
    check.on_all_ranks()


# One order, one length -----------------------------------------------------------------------------------------------


def test_a_second_curriculum_is_refused(archive: RunArchive) -> None:
    both = [curriculum(archive, strategy="prune", keep=0.5), curriculum(archive, strategy="focus")]
    with pytest.raises(ExampleIdError, match="two HistoryCurriculum algorithms"):
        fit(both)


def test_a_last_batch_of_one_row_is_refused_for_batch_norm(archive: RunArchive) -> None:
    started = Started()
    for examples in (17, 1):
        with pytest.raises(DataError, match=f"epochs of {examples} examples .* end in a batch of one row"):
            fit([curriculum(archive, strategy="subset", examples=examples), started])
    assert not started.seen
    # Where no batch norm is, or no such batch, nothing is refused.
    fit([curriculum(archive, strategy="subset", examples=17)], model=_model(), max_duration="1ep")
    loader = DataLoader(viewed(), BATCH, shuffle=True, drop_last=True)
    fit([curriculum(archive, strategy="subset", examples=17)], loader=loader, max_duration="1ep")


def test_durations_in_samples_count_the_ragged_batch_of_every_epoch(archive: RunArchive) -> None:
    """480 samples are 10 epochs of 48: 20 batches of 32 and 16 in turn, and not 15 batches of 32."""
    scores = torch.linspace(0.0, 1.0, N).double()
    settings = {"strategy": "dynamic_prune", "prune_rate": 0.5, "stop": "0.75dur", "score": scores}
    one, _, log = fit([curriculum(archive, **settings)], loader=epoch_loader(viewed(), 32), max_duration="480sp")
    assert int(one.state.timestamp.batch) == 20
    # Three quarters of 10 epochs, in whole epochs: 7 that prune and 3 with all data.
    assert series(log, "data_in_use") == [0.75] * 14 + [1.0] * 6
    # 500 samples: one batch more, of an eleventh epoch; drop_last has 32 samples in an epoch of one batch.
    for loader, duration, batches in (
        (epoch_loader(viewed(), 32), "500sp", 21),
        (DataLoader(viewed(), 32, shuffle=True, drop_last=True), "320sp", 10),
    ):
        algorithm = curriculum(archive, **settings)
        one, _, _ = fit([algorithm], loader=loader, max_duration=duration)
        assert (int(one.state.timestamp.batch), algorithm.epochs.clock.total_batches) == (batches, batches)


@pytest.mark.parametrize(
    "settings",
    [{"strategy": "subset", "examples": 100, "score": "entropy"}, {"strategy": "prune", "keep": 0.6, "offset": 0.5}],
)
def test_windows_beyond_the_data_are_refused_before_the_first_epoch(
    archive: RunArchive, settings: dict[str, Any]
) -> None:
    started = Started()
    with pytest.raises(ValueError, match="only 64 have a score"):
        fit([curriculum(archive, **settings), started])
    assert not started.seen


def test_a_checkpoint_of_other_data_is_refused(archive: RunArchive, tmp_path: Path) -> None:
    def run(length: int, **arguments: Any) -> None:
        algorithm = curriculum(archive, strategy="dynamic_prune", mismatch="allow")
        one = trainer(epoch_loader(viewed(length), BATCH), mlp(5), algorithms=[algorithm], **arguments)
        try:
            one.fit()
        finally:
            one.close()

    run(64, save_folder=str(tmp_path), save_filename="x.pt", save_interval="2ep", max_duration="2ep")
    with pytest.raises(DataError, match="losses of 64 training examples, and the train data has 80"):
        run(80, load_path=str(tmp_path / "x.pt"), max_duration="4ep")


def test_what_is_dropped_above_the_mean_is_logged(archive: RunArchive) -> None:
    """Skewed prior losses, and own ones that are not: those above the mean that are dropped are counted."""
    prior = torch.full((N,), 0.1).double()
    prior[:4] = 9.0
    settings = {"strategy": "dynamic_prune", "prune_rate": 0.75, "stop": "1dur", "score": prior}
    data = viewed(num_views=1)
    model = _model()
    _, seen, log = fit([curriculum(archive, **settings, update=True)], data=data, model=model, lr=0.0)
    # Half of the 64 and not the 60 below the mean count: 24 are dropped and 40 shown, in 3 batches.
    assert [len(batch) for batch in seen.batches] == [16, 16, 8] * 4
    logged = series(log, "dropped_above_mean")
    assert logged[:3] == [0.0] * 3
    with torch.no_grad():
        x, y = map(torch.stack, zip(*((data[i][0], data[i][1]) for i in range(N)), strict=True))
        own = F.cross_entropy(model.module(x), y, reduction="none").double()
    first = sorted({i for batch in seen.batches[:3] for i in batch})
    scale = own[first].mean() / prior[first].mean()
    current = torch.where(torch.isin(torch.arange(N), torch.tensor(first)), own, scale * prior)
    dropped = sorted(set(range(N)) - {i for batch in seen.batches[3:6] for i in batch})
    assert len(dropped) == 24
    assert logged[3:6] == pytest.approx([float((current[dropped] >= current.mean()).double().mean())] * 3)


@pytest.mark.parametrize("stop", [None, 5, 9])
def test_logits_of_a_pruned_run_do_not_pile_up(archive: RunArchive, tmp_path: Path, stop: int | None) -> None:
    """Two views of always the same 32 examples, 2 batches in each of 6 epochs: the last rows of each view stay."""

    def run(stop: int | None) -> None:
        recorder = RunRecorder(tmp_path / "own", signals={"logits": {}})
        algorithms: list[Any] = [curriculum(archive, strategy="prune", keep=0.5)]
        one = trainer(
            epoch_loader(viewed(), BATCH),
            mlp(5),
            algorithms=algorithms if stop is None else [*algorithms, Stop(stop)],
            callbacks=[recorder],
            **checkpointed(tmp_path / "checkpoints", save_interval="1ba", max_duration="6ep"),
        )
        finish(one)

    if stop is not None:
        run(stop)
    run(None)
    (own,) = RunArchive(tmp_path / "own").runs()
    files = [entry for entry in own.manifest.files if entry.kind == "signals"]
    assert sorted((entry.meta["slot"], entry.meta["epoch"]) for entry in files) == [(0, 4), (1, 5)]
    assert [int(own.signal("logits").seen(view).sum()) for view in range(2)] == [32, 32]
