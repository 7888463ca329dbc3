"""The Composer algorithm: earlier runs decide which examples this one sees, when, how often and with which weight.

Shapes: N training examples, B rows of a microbatch.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from composer import Event, State
from composer.core import get_precision_context
from composer.loggers import Logger

from reuse_algos.algorithms.base import ReusingAlgorithm
from reuse_algos.algorithms.history_curriculum.durations import check_schedulers, total_batches
from reuse_algos.algorithms.history_curriculum.example_losses import (
    ExampleLosses,
    MeanCheck,
    TaskLosses,
    find_losses,
)
from reuse_algos.algorithms.history_curriculum.own_losses import OwnLosses
from reuse_algos.algorithms.history_curriculum.plans import (
    Candidates,
    EpochPlan,
    Purpose,
    candidates,
    generator,
    merge_losses,
)
from reuse_algos.algorithms.history_curriculum.settings import (
    LOSS_SCORES,
    ActiveBias,
    Curriculum,
    DynamicPrune,
    Focus,
    Prune,
    Strategy,
    Subset,
)
from reuse_algos.algorithms.history_curriculum.strategies import Clock, Planner
from reuse_algos.archive import PriorUse, RunArchive
from reuse_algos.data.example_ids import ExampleIds, refuse_streams
from reuse_algos.data.info import DatasetInfo, infer_info
from reuse_algos.data.sampler import TrackedBatchSampler
from reuse_algos.data.text import example_lengths
from reuse_algos.errors import DataError, ExampleIdError
from reuse_algos.priors.choosing import RunSelection
from reuse_algos.priors.run_scores import ScoreSpec, prior_scores, score_uses
from reuse_algos.sections import fit_section
from reuse_algos.training.first_batch import TaskReader
from reuse_algos.training.interplay import clean_rows, mixes_examples
from reuse_algos.training.loss import with_weights
from reuse_algos.training.outputs import device_of, unwrap_model
from reuse_algos.training.ranks import on_every_rank

__all__ = ["HistoryCurriculum"]

log = logging.getLogger(__name__)

_STRATEGIES = Curriculum | Prune | DynamicPrune | ActiveBias | Focus | Subset
_METRICS = "reuse/history_curriculum/"


class HistoryCurriculum(ReusingAlgorithm):
    r"""Let what earlier runs learned about each example decide what this run sees.

    The order of the train DataLoader is taken over when training starts; what a strategy leaves out is never loaded.
    All epochs of a run are equally long. ``curriculum``, ``active_bias`` and ``focus`` keep the number of batches per
    epoch; ``prune``, ``dynamic_prune`` and ``subset`` make every epoch shorter by the same number, and tell Composer
    so: a ``max_duration`` in epochs is that many shorter epochs, one in batches or samples is what it says, and a
    schedule ends where the recipe says.

    Args:
        archive: A :class:`~reuse_algos.archive.RunArchive` or its path.
        runs: Which prior runs, see :data:`~reuse_algos.priors.choosing.RunSelection`. Default: none, for scores of
            another origin.
        strategy: One of the dataclasses of this package, a mapping with ``name``, or the bare name:
            :class:`Curriculum` (the allowed part of the data grows), :class:`Prune` (a fixed part, by score),
            :class:`DynamicPrune` (some easy examples are left out in turn, the others weigh more),
            :class:`ActiveBias` (uncertain examples more often, or with more weight), :class:`Focus` (in proportion to
            the score), :class:`Subset` (the examples that earlier models disagree on).
        score: Name of a score (:data:`~reuse_algos.priors.run_scores.SCORES`); a mapping with ``name``, ``epoch``
            and ``aggregate`` (:class:`~reuse_algos.priors.run_scores.ScoreSpec`); ``random`` (uniform random numbers, a
            control) or ``length`` (tokens of each text), which read no run; or the scores themselves, float ``[N]`` by
            position, NaN where unknown. Higher is harder. Default: ``loss`` for ``curriculum``, ``dynamic_prune`` and
            ``focus``, ``el2n`` for ``prune``, ``variance`` for ``active_bias``, ``variation_ratio`` for ``subset``.
        unknown: Examples without a score: ``keep`` (they count as harder than all others and are never thinned out),
            ``drop`` (they are not shown) or ``median`` (they get the median score). Default: ``keep``.
        control: ``shuffled_scores`` gives every example the score of another one. Default: none.
        mismatch: ``refuse`` prior runs on other data, or ``allow`` them: what is not common is unknown. Default:
            ``refuse``.
        per_example_loss: (outputs, batch) -> float ``[B]`` with the model's loss as its mean. Only weights and updates
            need it. Default: that of a ``ComposerClassifier`` with a torch loss function, else the plain loss of the
            task that the first batch shows, where it is the model's own.
        dataset: What the train data are. Default: read off the loader's dataset.
        seed: Seed of everything that is drawn. Default: 0.

    Raises:
        ValueError: a setting is unknown to the strategy or out of range.
        RunNotFoundError, SignalNotFoundError, PriorRunMismatchError: at the start of training.
        ExampleIdError: the loader's order cannot be taken over, or another HistoryCurriculum is on.
        DataError: epochs become shorter, and a torch scheduler takes its steps in another unit than ``max_duration``.
        ModelError: losses of single examples are needed and cannot be had; also later, on every rank, where their mean
            turns out to be another number than the model's loss (looked at after the first batch and each epoch).

    Logs ``reuse/history_curriculum/data_in_use`` (share of the examples that may be shown at this batch: in a strategy
    that draws with repetition, share that this epoch shows), ``/mean_score`` of the batch over all ranks,
    ``/never_seen`` (share of the examples not shown yet) and, for ``dynamic_prune`` while it drops,
    ``/dropped_above_mean`` (share of this epoch's dropped examples whose score is now at or above the mean).

    Example:
        .. code-block:: python

            curriculum = HistoryCurriculum("./archive", {"order": "best"}, strategy={"name": "dynamic_prune"})
            Trainer(..., algorithms=[curriculum])
    """

    def __init__(
        self,
        archive: RunArchive | str | os.PathLike[str],
        runs: RunSelection | None = None,
        *,
        strategy: Curriculum | Prune | DynamicPrune | ActiveBias | Focus | Subset | str | Mapping[str, Any],
        score: str | Mapping[str, Any] | ScoreSpec | torch.Tensor | None = None,
        unknown: str = "keep",
        control: str | None = None,
        mismatch: str = "refuse",
        per_example_loss: ExampleLosses | None = None,
        dataset: DatasetInfo | None = None,
        seed: int = 0,
    ) -> None:
        self.strategy: Strategy = fit_section(_STRATEGIES, strategy, "strategy")
        if unknown not in ("keep", "drop", "median"):
            raise ValueError(f"HistoryCurriculum: unknown must be keep, drop or median, got {unknown!r}")
        if control not in (None, "shuffled_scores"):
            raise ValueError(f"HistoryCurriculum: control must be shuffled_scores or left out, got {control!r}")
        self.score = _read_score(self.strategy.default_score if score is None else score)
        if runs is None and isinstance(self.score, ScoreSpec):
            raise ValueError("HistoryCurriculum: name the prior runs to read scores from (runs)")
        super().__init__(archive, () if runs is None else runs, seed=seed, mismatch=mismatch)
        self.update = self._updates(getattr(self.strategy, "update", None))
        self.unknown, self.control = unknown, control
        self.per_example_loss = per_example_loss
        self.dataset = dataset
        self.scores_N: torch.Tensor | None = None
        self._needs_losses = self.update or self.strategy.weights_losses
        self._losses: ExampleLosses | None = None
        self.task_reader = TaskReader()
        self._check: MeanCheck | None = None
        self._prior_N = np.zeros(0)
        self._owner_N: np.ndarray | None = None
        self._uses: list[PriorUse] = []
        self._planner: Planner | None = None
        self._clock = Clock(1, 1, 1)
        self._length = 0
        self._own: OwnLosses | None = None
        self._own_state: Mapping[str, Any] | None = None
        self._seen_N = np.zeros(0, dtype=bool)
        self._current: tuple[int, Candidates, EpochPlan, bool] | None = None

    def _updates(self, wanted: bool | None) -> bool:
        from_losses = isinstance(self.score, ScoreSpec) and self.score.name in LOSS_SCORES
        from_losses = from_losses and self.score.aggregate == "mean"  # type: ignore[union-attr]
        if wanted is None:
            return self.strategy.updates and from_losses
        if wanted and not (from_losses or isinstance(self.score, torch.Tensor)):
            raise ValueError(
                "HistoryCurriculum: update: true goes on with this run's losses, so the score must be one of "
                f"{', '.join(LOSS_SCORES)} (aggregate: mean). Choose one of them, or say update: false"
            )
        return wanted

    # What the engine asks -------------------------------------------------------------------------------------------

    def match(self, event: Event, state: State) -> bool:
        """Answer only: the id events always, the loss where losses of single examples are needed."""
        del state
        if event == Event.AFTER_LOSS:
            return self._needs_losses
        return event in (Event.INIT, Event.BATCH_END, Event.FIT_END, *ExampleIds.EVENTS)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Follow the event."""
        if event == Event.INIT:
            # The last one comes first at AFTER_LOSS, where LabelSmoothing has not put the plain targets back yet.
            self.take_place(state)
        elif event == Event.AFTER_LOSS:
            self._weigh(state)
        elif event == Event.BATCH_END:
            if self._check is not None and not self._check.looked:
                self._check.on_all_ranks()
            self._log_batch(state, logger)
        elif event == Event.FIT_END:
            if self._check is not None:
                self._check.on_all_ranks()
            self.warn_if_idle(logger, "every epoch showed all examples once, with weight 1. Check its settings")
        else:
            if event == Event.FIT_START:
                refuse_streams("HistoryCurriculum", state)
            self.ids.handle(event, state)
            if event == Event.FIT_START:
                self.begin(state)
            elif event == Event.BEFORE_FORWARD and isinstance(self._losses, TaskLosses):
                self._losses.follow(event, state)
            elif event == Event.EPOCH_END:
                if self._check is not None:
                    self._check.on_all_ranks()
                if self._own is not None:
                    self._own.end_epoch()
                    self._current = None

    # Start ----------------------------------------------------------------------------------------------------------

    def start_afresh(self) -> None:
        """INIT: forget what another Trainer did with this algorithm."""
        super().start_afresh()
        self.task_reader.start_afresh()
        self._own, self._own_state = None, None
        self._seen_N = np.zeros(0, dtype=bool)

    def begin(self, state: State) -> None:
        """FIT_START: as for every algorithm; without prior runs where the scores do not come from any."""
        if isinstance(self.score, ScoreSpec):
            super().begin(state)
            return
        began = time.perf_counter()
        on_every_rank(lambda: self.start(state))
        self.setup_seconds += time.perf_counter() - began

    def start(self, state: State) -> None:
        """Read the scores and take over the order of the train DataLoader."""
        loader: Any = state.dataloader
        num_examples = len(loader.dataset)
        info = self._describe_data(loader.dataset, num_examples)
        self._refuse_mixing(state)
        self._refuse_another(state)
        self._losses = self._check = None
        if self._needs_losses:
            self._losses = self.per_example_loss or find_losses(unwrap_model(state.model), self.task_reader)
            self._check = MeanCheck(device_of(state.model))
        self._read_scores(info, num_examples, loader.dataset)
        if self._own is None and self.update:
            self._own = OwnLosses(num_examples, device_of(state.model))
            if self._own_state is not None:
                self._own.load_state_dict(self._own_state)
                self._own_state = None
        if len(self._seen_N) != num_examples:
            self._seen_N = np.zeros(num_examples, dtype=bool)
        start = candidates(self._shuffled(self._prior_N), self.unknown)
        if not len(start.pool):
            raise DataError("no example has a score, and unknown: drop leaves out those without. Choose other runs.")
        labels_N = None if info is None or info.labels is None else info.labels.numpy()
        if self.strategy.needs_labels and labels_N is None:
            raise DataError("class_balance needs the labels of the train data; give them by dataset=DatasetInfo(...).")
        self._planner = self.strategy.build(start, labels_N, update=self.update)
        self._length = self._planner.length(start)
        self._steer(state, loader, num_examples)
        self._current = None
        log.info(
            "%s by %s: %d of %d examples in each epoch of %d batches",
            self.strategy.name,
            self.score.name if isinstance(self.score, ScoreSpec) else "given scores",
            self._length,
            num_examples,
            self._clock.epoch_batches,
        )

    def _describe_data(self, dataset: Any, num_examples: int) -> DatasetInfo:
        info = self.dataset or infer_info(dataset)
        if info.num_examples != num_examples:
            raise DataError(
                f"the train data has {num_examples} examples, but its DatasetInfo {info.num_examples}. Describe the "
                "dataset that the DataLoader has."
            )
        return info

    def _refuse_another(self, state: State) -> None:
        if sum(isinstance(algorithm, HistoryCurriculum) for algorithm in state.algorithms) > 1:
            raise ExampleIdError(
                "there are two HistoryCurriculum algorithms, and only one can decide the order of the train "
                "DataLoader. Keep one of them; scores of several runs come together in its runs."
            )

    def _refuse_mixing(self, state: State) -> None:
        mixing = mixes_examples(state)
        if mixing and self._needs_losses:
            raise ExampleIdError(
                f"{mixing[0]} mixes examples, so no loss belongs to one of them, which {self.strategy.name} needs for "
                f"its {'updates' if self.update else 'weights'}. Remove {mixing[0]}, or choose "
                "update: false with rescale: false, mode: sampling, or a strategy without weights."
            )

    def _read_scores(self, info: DatasetInfo, num_examples: int, dataset: Any) -> None:
        if isinstance(self.score, ScoreSpec):
            values_N = prior_scores(self.prior_runs, self.score, info, mismatch=self.mismatch)
            self._uses = score_uses(self.prior_runs, self.score, "history_curriculum")
        elif isinstance(self.score, torch.Tensor):
            values_N = self.score.detach().to("cpu", torch.float64)
            if values_N.shape != (num_examples,):
                raise DataError(f"scores of shape {tuple(values_N.shape)} were given for {num_examples} examples.")
        elif self.score == "length":
            values_N = example_lengths(dataset)
        else:
            values_N = torch.from_numpy(generator(self.seed, Purpose.RANDOM_SCORES).random(num_examples))
        if bool(torch.isinf(values_N).any()):
            raise DataError("some scores are infinite: the prior run diverged on them. Choose another run or score.")
        if self.strategy.in_proportion and bool((values_N < 0).any()):
            raise DataError(
                f"{self.strategy.name} shows examples in proportion to their score, and some scores are negative "
                f"({float(values_N[values_N < 0].min()):.4g}). Choose another score, such as loss, or strategy: prune."
            )
        self.scores_N = values_N
        self._prior_N = values_N.numpy()
        self._owner_N = None
        if self.control == "shuffled_scores":
            # Whose score each example gets. Those without a score stay without, as many are shown as would be.
            known = np.flatnonzero(~np.isnan(self._prior_N))
            self._owner_N = np.arange(num_examples)
            self._owner_N[known] = generator(self.seed, Purpose.SHUFFLED_SCORES).permutation(known)

    def _shuffled(self, scores_N: np.ndarray) -> np.ndarray:
        return scores_N if self._owner_N is None else scores_N[self._owner_N]

    def _steer(self, state: State, loader: Any, num_examples: int) -> None:
        """Put the plan into the loader, and tell Composer the length of an epoch."""
        tracked = loader.batch_sampler
        assert isinstance(tracked, TrackedBatchSampler)  # ExampleIds put it there
        before, limit = len(loader), state.dataloader_len
        batch_size = tracked.steer(
            lambda epoch: self._plan(epoch)[1].order_M, num_examples=num_examples, length=self._length, seed=self.seed
        )
        plain: Any = tracked.batch_sampler
        full = num_examples // batch_size if plain.drop_last else -(-num_examples // batch_size)
        batches = len(loader)
        if limit is not None and int(limit) < before:  # train_subset_num_batches
            batches, full = min(batches, int(limit)), min(full, int(limit))
        state.dataloader_len = batches
        samples = min(batches * batch_size, len(plain.sampler) * plain.sampler.num_replicas)
        self._clock = Clock(batch_size, batches, total_batches(state, batches, samples, batch_size))
        check_schedulers(state, batches, full)

    # Each epoch -----------------------------------------------------------------------------------------------------

    def _plan(self, epoch: int) -> tuple[Candidates, EpochPlan, bool]:
        """The scores, the plan of an epoch, and whether it changes anything.

        Scores change only when an epoch ends, so the plan of the running one is the same whenever it is asked for.
        """
        assert self._planner is not None
        if self._current is None or self._current[0] != epoch:
            scores_N = self._prior_N if self._own is None else merge_losses(self._prior_N, self._own.known)
            found = candidates(self._shuffled(scores_N), self.unknown)
            plan = self._planner.plan(epoch, found, self._length, self._clock, self.seed)
            self._current = epoch, found, plan, plan.changes(len(scores_N))
        return self._current[1:]

    # Each microbatch ------------------------------------------------------------------------------------------------

    def example_weights(self, state: State, positions_B: torch.Tensor | None = None) -> torch.Tensor | None:
        """Those of the running epoch's plan."""
        weights_N = self._plan(int(state.timestamp.epoch))[1].weights_N
        if weights_N is None:
            return None
        positions_B = self.ids.microbatch.positions if positions_B is None else positions_B
        return torch.from_numpy(weights_N[positions_B.numpy()])

    def example_losses(self) -> ExampleLosses | None:
        """As the weights need them; None where this strategy needs none."""
        return self._losses

    def _weigh(self, state: State) -> None:
        """Weigh the losses of the microbatch, and keep them for the next epoch's scores."""
        assert self._losses is not None
        assert self._check is not None
        if isinstance(self._losses, TaskLosses):
            self._losses.follow(Event.AFTER_LOSS, state)
        weights_B = self.example_weights(state)
        if weights_B is None and self._own is None:
            return
        positions_B = self.ids.microbatch.positions
        with get_precision_context(state.precision, state.precision_config):
            losses_B = self._losses(state.outputs, state.batch)
        self._check.add(state.loss, losses_B, len(positions_B))
        if self._own is not None:
            shown_B = losses_B
            if isinstance(self._losses, TaskLosses):
                shown_B = self._losses.of_examples(state.outputs, state.batch)
            kept = clean_rows(state)  # a loss on another input says nothing of the example's own
            if kept is None:
                self._own.add(positions_B, shown_B)
            else:
                self._own.add(positions_B[kept], shown_B.index_select(0, kept.to(shown_B.device)))
        if weights_B is not None:
            state.loss = with_weights(state.loss, losses_B, weights_B.to(losses_B.device, torch.float32))

    def _log_batch(self, state: State, logger: Logger) -> None:
        """The batch that just ended, over all ranks: every rank knows what all of them were shown."""
        found, plan, changes = self._plan(int(state.timestamp.epoch))
        size = self._clock.batch_size
        place = (int(state.timestamp.batch_in_epoch) - 1) * size
        positions = plan.order_M[place : place + size]
        self._seen_N[positions] = True
        self.batches_applied += int(changes)
        metrics = {
            _METRICS + "data_in_use": float(plan.in_use_M[place]),
            _METRICS + "never_seen": 1.0 - float(np.count_nonzero(self._seen_N)) / len(self._seen_N),
        }
        scores = found.scores_N[positions]
        if plan.dropped_above_mean is not None:
            metrics[_METRICS + "dropped_above_mean"] = plan.dropped_above_mean
        if np.isfinite(scores).any():
            metrics[_METRICS + "mean_score"] = float(scores[np.isfinite(scores)].mean())
        self.log_metrics(metrics, logger)

    # Record and state -----------------------------------------------------------------------------------------------

    def prior_uses(self) -> list[PriorUse]:
        """The signals that the score was read from, with the seconds of the harvests that filled them."""
        return list(self._uses)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on as if it had never stopped.

        With ``update``, every rank must call it together, as Composer's checkpoints do.
        """
        state = super().state_dict()
        state.update(
            seen=torch.from_numpy(self._seen_N.copy()),
            own_losses=self._own_state if self._own is None else self._own.state_dict(),
        )
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        super().load_state_dict(state)
        self._seen_N = torch.as_tensor(state["seen"]).cpu().numpy().copy()
        self._own_state = state["own_losses"]


def _read_score(score: str | Mapping[str, Any] | ScoreSpec | torch.Tensor) -> ScoreSpec | torch.Tensor | str | None:
    """Return the score: None for random numbers, and the text ``length`` as it is, which no run is asked for."""
    if isinstance(score, (ScoreSpec, torch.Tensor)):
        return score
    if isinstance(score, str):
        return None if score == "random" else score if score == "length" else ScoreSpec(score)
    try:
        return ScoreSpec(**score)
    except TypeError as error:
        raise ValueError(
            f"HistoryCurriculum: score takes name, epoch and aggregate, got {', '.join(map(str, score))}"
        ) from error
