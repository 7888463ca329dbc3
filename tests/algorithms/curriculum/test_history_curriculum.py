"""HistoryCurriculum in a real Trainer: one table of strategies, and what holds for every row of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from composer import Algorithm, Event, State
from composer.optim import CosineAnnealingScheduler, CosineAnnealingWithWarmupScheduler, MultiStepScheduler
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
)
from torch.utils.data import DataLoader

from curricula import BATCH, ROWS, N, Seen, Started, curriculum, fit, series
from reuse_algos.algorithms import HistoryCurriculum
from reuse_algos.archive import RunArchive
from reuse_algos.data.sampler import EpochSampler
from reuse_algos.errors import DataError
from toy import epoch_loader, mlp, trainer, viewed

LENGTHS = {"prune": 32, "prune, balanced": 48, "subset": 40}
CONTROLS: dict[str, dict[str, Any]] = {
    "itself": {},
    "shuffled scores": {"shuffled": True},
    "random": {"score": "random"},
}
# Settings with which each strategy shows every example once, with weight 1.


def _length(name: str, algorithm: HistoryCurriculum, settings: dict[str, Any]) -> int:
    """Examples of an epoch, from the settings and the scores alone."""
    if settings["strategy"] != "dynamic_prune":
        return LENGTHS.get(name, N)
    assert algorithm.scores_N is not None
    easy = int((algorithm.scores_N < algorithm.scores_N.mean()).sum())
    if algorithm.update:
        easy = min(easy, N // 2)
    return N - round(settings.get("prune_rate", 0.5) * easy)


# Every row -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("name", ROWS)
def test_trains_with_the_stated_number_of_examples(archive: RunArchive, name: str, control: str) -> None:
    settings = {**ROWS[name], **CONTROLS[control]}
    if settings.pop("shuffled", False):
        settings["score"] = {"name": settings.get("score"), "shuffled": True}
    algorithm = curriculum(archive, **settings)
    one, seen, logger = fit([algorithm], max_duration="2ep")
    length = _length(name, algorithm, settings)
    batches = -(-length // BATCH)
    assert [len(batch) for batch in seen.batches] == (
        [BATCH] * (length // BATCH) + [length % BATCH] * (length % BATCH > 0)
    ) * 2
    assert (int(one.state.timestamp.batch), int(one.state.timestamp.sample)) == (2 * batches, 2 * length)
    assert int(one.state.dataloader_len) == batches
    assert algorithm.batches_applied > 0
    # What is logged is what was shown.
    shown = np.zeros(N, dtype=bool)
    for i, (batch, never) in enumerate(zip(seen.batches, series(logger, "never_seen"), strict=True)):
        shown[batch] = True
        assert never == pytest.approx(1 - shown.mean()), i
    assert all(0 < share <= 1 for share in series(logger, "data_in_use"))
    assert len(series(logger, "mean_score")) == 2 * batches
    if not algorithm.update:
        assert algorithm.scores_N is not None
        means = [float(algorithm.scores_N[batch].mean()) for batch in seen.batches]
        if control != "shuffled scores":
            assert series(logger, "mean_score") == pytest.approx(means)


@pytest.mark.parametrize("name", ROWS)
def test_the_order_is_that_of_the_seed_and_of_no_global_generator(archive: RunArchive, name: str) -> None:
    def batches(seed: int, global_seed: int) -> list[list[int]]:
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        loader = epoch_loader(viewed(), BATCH, seed=global_seed)
        settings = {"loader": loader, "lr": 0.0, "max_duration": "2ep"}
        return fit([curriculum(archive, **ROWS[name], seed=seed)], **settings)[1].batches

    first = batches(1, 1)
    assert batches(1, 2) == first
    assert batches(2, 1) != first


# The meaning of the recipe -------------------------------------------------------------------------------------------


def _rates(algorithms: list[Any], scheduler: Any, data: Any, **arguments: Any) -> list[float]:
    """The learning rate of every batch."""

    class Rates(Algorithm):
        def __init__(self) -> None:
            self.values: list[float] = []

        def match(self, event: Event, state: State) -> bool:
            return event in (Event.BEFORE_FORWARD, Event.FIT_END)

        def apply(self, event: Event, state: State, logger: Any) -> None:
            self.values.append(state.optimizers[0].param_groups[0]["lr"])

    rates = Rates()
    fit([*algorithms, rates], data=data, schedulers=scheduler, **arguments)
    return rates.values


@pytest.mark.parametrize(
    "scheduler",
    [
        CosineAnnealingScheduler(),
        CosineAnnealingWithWarmupScheduler(t_warmup="1ep"),
        MultiStepScheduler(milestones=["0.5dur", "3ep"]),
    ],
    ids=["cosine", "warm-up", "steps"],
)
@pytest.mark.parametrize(
    ("duration", "names"), [("4ep", ["dynamic_prune", "focus"]), ("14ba", ["focus"]), ("200sp", ["dynamic_prune"])]
)
def test_schedules_end_where_the_recipe_says(
    archive: RunArchive, scheduler: Any, duration: str, names: list[str]
) -> None:
    """The rates are those of plain training on a data set of the shorter length: the recipe's, to the last batch."""
    if isinstance(scheduler, CosineAnnealingWithWarmupScheduler) and duration == "200sp":
        scheduler = CosineAnnealingWithWarmupScheduler(t_warmup="48sp")  # Composer wants the same units
    for name in names:  # one with shorter epochs, and one with full ones
        settings = ROWS[name]
        algorithm = curriculum(archive, **settings)
        rates = _rates([algorithm], scheduler, None, max_duration=duration)
        length = _length(name, algorithm, settings)
        assert rates == _rates([], scheduler, viewed(length), max_duration=duration), name
        if duration == "4ep" and isinstance(scheduler, CosineAnnealingScheduler):
            steps = 4 * -(-length // BATCH)
            # Composer sets the rate of a batch from the time before the last one.
            assert rates[-1] == pytest.approx(0.1 * 0.5 * (1 + np.cos(np.pi * (steps - 1) / steps)))


def _chained(optimizer: Any, steps: int) -> LRScheduler:
    return ChainedScheduler([LambdaLR(optimizer, lambda step: 1 - step / (2 * steps))], optimizer=optimizer)


def _in_turn(optimizer: Any, steps: int) -> LRScheduler:
    parts = [LinearLR(optimizer, 0.1, total_iters=steps // 4), CosineAnnealingLR(optimizer, steps - steps // 4)]
    return SequentialLR(optimizer, parts, milestones=[steps // 4])


TORCH: dict[str, Callable[[Any, int], LRScheduler]] = {
    "one cycle": lambda optimizer, steps: OneCycleLR(optimizer, 1.0, total_steps=steps + 1),
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
    "polynomial": lambda optimizer, steps: PolynomialLR(optimizer, steps, power=2.0),
    "milestones": lambda optimizer, steps: MultiStepLR(optimizer, [steps // 2, 3 * steps // 4]),
    "lambda": lambda optimizer, steps: LambdaLR(optimizer, lambda step: 1 - step / (2 * steps)),
    "chained": _chained,
    "in turn": _in_turn,
}


def _torch_rates(algorithms: list[Any], name: str, steps: int, duration: str, every_batch: bool) -> list[float]:
    """The rates of a training of 64 examples in batches of 16, with a torch scheduler made for so many steps."""
    model = mlp(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    settings = {"optimizers": optimizer, "step_schedulers_every_batch": every_batch, "max_duration": duration}
    return _rates(algorithms, TORCH[name](optimizer, steps), None, model=model, **settings)


PRUNED = {"strategy": "prune", "keep": 0.5}
TORCH_WARNING = pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # SequentialLR gives it


@TORCH_WARNING
@pytest.mark.parametrize("name", TORCH)
def test_torch_schedulers_that_count_full_epochs_are_refused(archive: RunArchive, name: str) -> None:
    started = Started()
    # 8 epochs of 4 batches would be 32 steps, and 16 are made.
    with pytest.raises(DataError, match=r"2 batches here instead of 4: .* Set max_duration='16ba'"):
        _torch_rates([curriculum(archive, **PRUNED), started], name, 32, "8ep", True)
    assert not started.seen


@TORCH_WARNING
@pytest.mark.parametrize("name", ["one cycle", "in turn"])
def test_torch_schedulers_give_their_whole_schedule_as_the_message_says(archive: RunArchive, name: str) -> None:
    by_batch = _torch_rates([curriculum(archive, **PRUNED)], name, 8, "8ba", True)
    assert by_batch == _torch_rates([], name, 8, "8ba", True)
    by_epoch = _torch_rates([curriculum(archive, **PRUNED)], name, 4, "4ep", False)
    assert by_epoch[:-1:2] == _torch_rates([], name, 4, "4ep", False)[:-1:4]
    # 16 batches are 8 epochs now and were 4.
    with pytest.raises(DataError, match=r"step after every epoch, .* Set max_duration in epochs"):
        _torch_rates([curriculum(archive, **PRUNED)], name, 4, "16ba", False)
    # Epochs of full length are no reason to refuse anything.
    _torch_rates([curriculum(archive, strategy="focus")], name, 8, "1ep", True)


def test_durations_mean_what_they_say(archive: RunArchive) -> None:
    for duration, batches, samples in (("10ba", 10, 160), ("100sp", 7, 112), ("3ep", 6, 96)):
        one, _, _ = fit([curriculum(archive, strategy="prune", keep=0.5)], max_duration=duration)
        assert (int(one.state.timestamp.batch), int(one.state.timestamp.sample)) == (batches, samples)


def test_train_subset_num_batches_still_holds(archive: RunArchive) -> None:
    for keep, batches in ((0.9, 3), (0.25, 1)):
        one, _, _ = fit([curriculum(archive, strategy="prune", keep=keep)], train_subset_num_batches=3)
        assert int(one.state.timestamp.batch) == 4 * batches


def test_a_second_fit_goes_on(archive: RunArchive) -> None:
    algorithm, seen = curriculum(archive, **ROWS["dynamic_prune"]), Seen()
    one = trainer(epoch_loader(viewed(), BATCH), mlp(5), algorithms=[algorithm, seen], max_duration="2ep")
    one.fit()
    first = len(seen.batches)
    one.fit(duration="2ep")
    assert len(seen.batches) == 2 * first
    assert seen.batches[first:] != seen.batches[:first]


# Loaders and views ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"shuffle": True},
        {"shuffle": False},
        {"shuffle": True, "drop_last": True},
        {"sampler": EpochSampler(N, seed=5)},
        {"sampler": torch.utils.data.DistributedSampler(range(N), num_replicas=1, rank=0)},  # type: ignore[arg-type]
        {"shuffle": True, "num_workers": 1, "persistent_workers": True},
    ],
    ids=["shuffle", "in order", "drop_last", "epoch sampler", "distributed sampler", "workers"],
)
def test_takes_over_the_order_of_ordinary_loaders(archive: RunArchive, arguments: dict[str, Any]) -> None:
    loaded: list[int] = []
    data = viewed()
    inner = data.dataset  # type: ignore[attr-defined]
    if not arguments.get("num_workers"):
        fetch = type(inner).__getitem__

        class Counting(type(inner)):  # type: ignore[misc]
            def __getitem__(self, index: int) -> Any:
                loaded.append(index)
                return fetch(self, index)

        data.dataset = Counting(inner.dataset)  # type: ignore[attr-defined]
        data.kept = {}  # type: ignore[attr-defined]  # whatever other tests have loaded
    algorithm = curriculum(archive, strategy="prune", keep=0.6, score="loss")
    _, seen, _ = fit([algorithm], loader=DataLoader(data, batch_size=BATCH, **arguments), max_duration="2ep")
    assert algorithm.scores_N is not None
    kept = set(torch.argsort(algorithm.scores_N)[-38:].tolist())
    shown = {i for batch in seen.batches for i in batch}
    if arguments.get("drop_last"):
        assert [len(batch) for batch in seen.batches] == [BATCH, BATCH] * 2
        assert shown <= kept
    else:
        assert shown == kept
        assert [len(batch) for batch in seen.batches] == [BATCH, BATCH, 6] * 2
    if not arguments.get("num_workers"):
        held = {number * N // 8 for number in range(8)}  # read at the start of an epoch, to see that they stay the same
        assert set(loaded) == shown | held, "nothing else that is left out is loaded"


def test_an_example_that_comes_again_is_shown_in_its_next_view(archive: RunArchive) -> None:
    settings = {"strategy": "focus", "score": torch.arange(N).double(), "seed": 2}
    _, seen, _ = fit([curriculum(archive, **settings)], data=viewed(num_views=3), max_duration="2ep")
    for epoch in range(2):
        views: dict[int, list[int]] = {}
        for batch, shown in zip(seen.batches[4 * epoch :][:4], seen.views[4 * epoch :][:4], strict=True):
            for i, view in zip(batch, shown, strict=True):
                views.setdefault(i, []).append(view)
        assert max(len(v) for v in views.values()) == 2
        assert all(v == [(epoch + k) % 3 for k in range(len(v))] for v in views.values())
