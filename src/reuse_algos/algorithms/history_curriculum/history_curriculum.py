"""The Composer algorithm: earlier runs decide which examples this one sees, when, how often and with which weight.

Shapes: N training examples, B rows of a microbatch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from composer import Event, State
from composer.loggers import Logger

from reuse_algos.algorithms.base import ReusingAlgorithm, refuse_another
from reuse_algos.algorithms.history_curriculum.epochs import Epochs
from reuse_algos.algorithms.history_curriculum.example_losses import CheckedLosses, ExampleLosses, find_losses
from reuse_algos.algorithms.history_curriculum.own_losses import OwnLosses
from reuse_algos.algorithms.history_curriculum.scores import Score, find_scores, goes_on, read_score, score_owners
from reuse_algos.algorithms.history_curriculum.strategies import (
    ActiveBias,
    Curriculum,
    DynamicPrune,
    Focus,
    Prune,
    Strategy,
    Subset,
)
from reuse_algos.archive import PriorUse, RunArchive
from reuse_algos.data.example_ids import ExampleIds, read_steered_ids
from reuse_algos.data.info import DatasetInfo, infer_info
from reuse_algos.data.streams import StreamIds, stream_info
from reuse_algos.data.streams.steering import release_stream
from reuse_algos.errors import DataError, ExampleIdError
from reuse_algos.priors.choosing import RunSelection
from reuse_algos.priors.scores.run_scores import ScoreSpec, score_uses
from reuse_algos.sections import fit_section
from reuse_algos.training.first_batch.task_reader import TaskReader
from reuse_algos.training.interplay import clean_rows, mixes_examples
from reuse_algos.training.loss import with_weights
from reuse_algos.training.outputs import device_of, unwrap_model
from reuse_algos.training.ranks import on_every_rank
from reuse_algos.training.window import Window

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
        score: :class:`Score`, a mapping of its fields, or the bare name of a score
            (:data:`~reuse_algos.priors.scores.run_scores.SCORES`); ``random`` (uniform random numbers, a control) or
            ``length`` (tokens of each text), which read no run; or the scores themselves, float ``[N]`` by position,
            NaN where unknown. Higher is harder. Default: ``loss`` for ``curriculum``, ``dynamic_prune`` and ``focus``,
            ``el2n`` for ``prune``, ``variance`` for ``active_bias``, ``variation_ratio`` for ``subset``.
        unknown: Examples without a score: ``keep`` (they count as harder than all others and are never thinned out),
            ``drop`` (they are not shown) or ``median`` (they get the median score). Default: ``keep``.
        when: :class:`~reuse_algos.training.window.Window`, the part of training in which the strategy is on, in whole
            epochs; in the others, of the same length, all examples are shown in turn. Default: all of it, and for
            ``dynamic_prune`` up to ``0.875dur``.
        mismatch: ``refuse`` prior runs on other data, or ``allow`` them: what is not common is unknown. Default:
            ``refuse``.
        per_example_loss: (outputs, batch) -> float ``[B]`` with the model's loss as its mean. Only weights and updates
            need it. Default: that of a ``ComposerClassifier`` with a torch loss function, else the plain loss of the
            task that the first batch shows, where it is the model's own.
        dataset: What the train data are. Default: read off the loader's dataset.
        seed: Seed of everything that is drawn. Default: 0.

    Raises:
        ValueError: A setting is unknown to the strategy or out of range.
        RunNotFoundError, SignalNotFoundError, PriorRunMismatchError: At the start of training.
        ExampleIdError: The loader's order cannot be taken over, or another HistoryCurriculum is on.
        DataError: Epochs become shorter, and a torch scheduler takes its steps in another unit than ``max_duration``.
        ModelError: Losses of single examples are needed and cannot be had; also later, on every rank, where their mean
            turns out to be another number than the model's loss (looked at after the first batch and each epoch).

    Logs ``reuse/history_curriculum/data_in_use``, ``/mean_score``, ``/never_seen`` and ``/dropped_above_mean``. The
    card beside this file defines each.

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
        score: str | Mapping[str, Any] | Score | torch.Tensor | None = None,
        unknown: str = "keep",
        when: Window | Mapping[str, Any] | None = None,
        mismatch: str = "refuse",
        per_example_loss: ExampleLosses | None = None,
        dataset: DatasetInfo | None = None,
        seed: int = 0,
    ) -> None:
        self.strategy: Strategy = fit_section(_STRATEGIES, strategy, "strategy")
        if unknown not in ("keep", "drop", "median"):
            raise ValueError(f"HistoryCurriculum: unknown must be keep, drop or median, got {unknown!r}")
        self.when: Window = self.strategy.when if when is None else fit_section(Window, when, "when")
        if self.when.every_n_batches != 1:
            raise ValueError("HistoryCurriculum: a strategy decides whole epochs, so when has no every_n_batches")
        self.score, self._shuffled = read_score(score, self.strategy.default_score)
        if runs is None and isinstance(self.score, ScoreSpec):
            raise ValueError("HistoryCurriculum: name the prior runs to read scores from (runs)")
        super().__init__(archive, () if runs is None else runs, seed=seed, mismatch=mismatch)
        self.update = goes_on(self.score, self.strategy)
        self.unknown = unknown
        self.per_example_loss = per_example_loss
        self.dataset = dataset
        self.task_reader = TaskReader()
        self.scores_N: torch.Tensor | None = None
        self.epochs: Epochs | None = None
        self.own: OwnLosses | None = None
        self._losses: CheckedLosses | None = None
        self._uses: list[PriorUse] = []
        self._own_state: Mapping[str, Any] | None = None
        self._seen_N = np.zeros(0, dtype=bool)

    def match(self, event: Event, state: State) -> bool:
        """Return true for the id events, and for the loss where losses of single examples are needed."""
        if self.stands_aside(event):
            return False
        if event == Event.AFTER_LOSS:
            return self._losses is not None
        return event in (Event.INIT, Event.BATCH_END, Event.FIT_END, *ExampleIds.EVENTS)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Follow the event."""
        if event == Event.FIT_START:
            # Before the ids are followed, whose advice for streams (ids in the batch) cannot help here.
            read_steered_ids("HistoryCurriculum", state, self.ids)
        if event in ExampleIds.EVENTS:
            self.ids.handle(event, state)
        if self._losses is not None:
            self._losses.follow(event, state)
        if event == Event.INIT:
            # The last one comes first at AFTER_LOSS, where LabelSmoothing has not put the plain targets back yet.
            self.take_place(state)
        elif event == Event.FIT_START:
            self.begin(state)
        elif event == Event.AFTER_DATALOADER and self.epochs is not None:
            self.epochs.check(int(state.timestamp.batch_in_epoch), self.ids.batch.positions)
        elif event == Event.AFTER_LOSS:
            self._weigh(state)
        elif event == Event.BATCH_END:
            self._log_batch(state, logger)
        elif event == Event.EPOCH_END and self.epochs is not None:
            self.epochs.end_epoch(int(state.timestamp.epoch))
        elif event == Event.FIT_END:
            release_stream(state.dataloader)
            self.warn_if_idle(logger, "every epoch showed all examples once, with weight 1. Check its settings")

    def start_afresh(self) -> None:
        """Forget what another Trainer did with this algorithm (INIT)."""
        super().start_afresh()
        self.task_reader.start_afresh()
        self.epochs, self.own, self._own_state, self._losses = None, None, None, None
        self._seen_N = np.zeros(0, dtype=bool)

    def begin(self, state: State) -> None:
        """Load from the prior runs, or without any where the scores do not come from runs (FIT_START)."""
        # Scores that are given, random or lengths read no run, so there is none to choose and to pin.
        if isinstance(self.score, ScoreSpec):
            super().begin(state)
            return
        began = time.perf_counter()
        on_every_rank(lambda: self.start(state))
        self.setup_seconds += time.perf_counter() - began

    def start(self, state: State) -> None:
        """Read the scores and take over the order of the train DataLoader."""
        loader: Any = state.dataloader
        # Every check comes before the loader is changed, so that an error leaves the Trainer as it was.
        info = _described(loader.dataset, self.dataset)
        self.ids.info = None if self.ids.id_key is None else info  # the ids of a stream are keys of its examples
        needs_losses = self.update or self.strategy.weights_losses
        if needs_losses:
            _refuse_mixing(state, f"{self.strategy.name} needs for its {'updates' if self.update else 'weights'}")
        refuse_another(state, HistoryCurriculum, "decide the order of the train DataLoader", "scores of several runs")
        self._losses = None
        if needs_losses:
            losses = self.per_example_loss or find_losses(unwrap_model(state.model), self.task_reader)
            self._losses = CheckedLosses(losses, device_of(state.model))
        self.scores_N = find_scores(
            self.score, self.prior_runs, info, self.strategy, loader.dataset, seed=self.seed, mismatch=self.mismatch
        )
        if isinstance(self.score, ScoreSpec):
            self._uses = score_uses(self.prior_runs, self.score, "history_curriculum")
        # Kept over a second fit; a checkpoint is read as soon as the number of examples is known.
        if self.own is None and self.update:
            self.own = OwnLosses(info.num_examples, device_of(state.model))
            if self._own_state is not None:
                self.own.load_state_dict(self._own_state)
                self._own_state = None
        if len(self._seen_N) != info.num_examples:
            self._seen_N = np.zeros(info.num_examples, dtype=bool)
        prior_N, labels_N = self.scores_N.numpy(), None if info.labels is None else info.labels.numpy()
        owner_N = score_owners(prior_N, self.seed) if self._shuffled else None
        settings: dict[str, Any] = {"when": self.when, "unknown": self.unknown, "seed": self.seed}
        self.epochs = Epochs(prior_N, self.strategy, labels_N, self.own, owner_N=owner_N, **settings)
        self.epochs.steer(state, loader)

    # Each batch -----------------------------------------------------------------------------------------------------

    def example_weights(self, state: State, positions_B: torch.Tensor | None = None) -> torch.Tensor | None:
        """Return the weights of the running epoch's plan; see ``BatchEffects``."""
        assert self.epochs is not None
        weights_N = self.epochs.plan(int(state.timestamp.epoch)).plan.weights_N
        if weights_N is None:
            return None
        positions_B = self.ids.microbatch.positions if positions_B is None else positions_B
        return torch.from_numpy(weights_N[positions_B.numpy()])

    def example_losses(self) -> ExampleLosses | None:
        """Return what the weights need; None where this strategy has none."""
        return None if self._losses is None else self._losses.losses

    def _weigh(self, state: State) -> None:
        """Weigh the losses of the microbatch, and keep them for the next epoch's scores."""
        assert self._losses is not None
        weights_B = self.example_weights(state)
        if weights_B is None and self.own is None:
            return
        positions_B = self.ids.microbatch.positions
        losses_B, shown_B = self._losses.of_microbatch(state, len(positions_B))
        if self.own is not None:
            kept = clean_rows(state)  # a loss on another input says nothing of the example's own
            if kept is not None:
                positions_B, shown_B = positions_B[kept], shown_B.index_select(0, kept.to(shown_B.device))
            self.own.add(positions_B, shown_B)
        if weights_B is not None:
            state.loss = with_weights(state.loss, losses_B, weights_B.to(losses_B.device, torch.float32))

    def _log_batch(self, state: State, logger: Logger) -> None:
        """Log the batch that just ended, over all ranks."""
        # Without asking them: the plan says what every rank was shown.
        assert self.epochs is not None
        found, plan, changes = self.epochs.plan(int(state.timestamp.epoch))
        size = self.epochs.clock.batch_size
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
        """Return the signals that the score was read from, with the seconds of the harvests that filled them."""
        return list(self._uses)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on as if it had never stopped.

        With ``update``, every rank must call it together, as Composer's checkpoints do.
        """
        own = self._own_state if self.own is None else self.own.state_dict()
        return {**super().state_dict(), "seen": torch.from_numpy(self._seen_N.copy()), "own_losses": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        super().load_state_dict(state)
        self._seen_N = torch.as_tensor(state["seen"]).cpu().numpy().copy()
        self._own_state = state["own_losses"]


def _described(dataset: Any, info: DatasetInfo | None) -> DatasetInfo:
    """Return the given description, or what the dataset says of itself; refuse one of another length."""
    if isinstance(dataset, StreamIds):
        read = stream_info(dataset, content=info is None)
        if info is not None and not torch.equal(info.keys, read.keys):
            raise DataError(
                f"the DatasetInfo has {info.num_examples} keys that are not those of the stream's {read.num_examples} "
                "samples in their order. Give dataset=stream_info(dataset, labels)."
            )
        return info or read
    info = info or infer_info(dataset)
    if info.num_examples != len(dataset):
        raise DataError(
            f"the train data has {len(dataset)} examples, but its DatasetInfo {info.num_examples}. Describe the "
            "dataset that the DataLoader has."
        )
    return info


def _refuse_mixing(state: State, what_for: str) -> None:
    if mixing := mixes_examples(state):
        raise ExampleIdError(
            f"{mixing[0]} mixes examples, so no loss belongs to one of them, which {what_for}. Remove {mixing[0]}, or "
            "choose update: false with rescale: false, mode: sampling, or a strategy without weights."
        )
