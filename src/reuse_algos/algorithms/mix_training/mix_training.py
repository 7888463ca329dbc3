"""The Composer algorithm: strong views with targets that an archived detector has corrected."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from composer import Event, State
from composer.core import get_precision_context
from composer.loggers import Logger
from torch import Tensor

from reuse_algos.algorithms.base import ReusingAlgorithm
from reuse_algos.algorithms.mix_training.boxes import mixed_targets, strong_view
from reuse_algos.archive import PriorUse, RunArchive
from reuse_algos.archive.signals.signal import Signal
from reuse_algos.data.example_ids import ExampleIds
from reuse_algos.data.info import DatasetInfo, infer_info
from reuse_algos.errors import PriorRunMismatchError, SignalNotFoundError, TaskError
from reuse_algos.priors.advice import harvest_command
from reuse_algos.priors.choosing import RunSelection, match_examples
from reuse_algos.training.loss import add_to_loss, total_of
from reuse_algos.training.tasks.recorded_task import refuse_other_tasks

_SIGNALS = ("boxes", "gt_scores")


class MixTraining(ReusingAlgorithm):
    r"""Train each image in a strong view, too, with boxes that an archived detector keeps, drops and adds.

    Xu et al. 2021, "Training object detectors with mixture supervision". The published teacher is a moving average of
    the model; here it is what a prior run's ``boxes`` and ``gt_scores`` say, so no teacher runs while training. The
    loss becomes :math:`L + w L_{strong}`, each the sum of the detector's losses.

    Args:
        archive: A :class:`~reuse_algos.archive.RunArchive` or its path.
        runs: The prior run, whose signals ``boxes`` and ``gt_scores`` were harvested; of several the first one counts.
        weight: w, above 0. Default: 2.0.
        threshold: Score above which a pseudo-box is added, and a true box kept, from 0 to 1. Default: 0.9.
        overlap: IoU from 0 to 1 above which a pseudo-box takes a true box's place. Default: 0.5.
        control: ``shuffled`` gives each image the boxes and scores of another one. Default: none.
        mismatch: ``refuse`` a prior run on other data, or ``allow`` it: images that are not common go without a strong
            view. Default: ``refuse``.
        dataset: What the train data are. Default: read off the loader's dataset.
        seed: Seed of the strong views. Default: 0.

    Raises:
        ValueError: A setting is out of its range.
        SignalNotFoundError, PriorRunMismatchError: At the start of training; also where no archived score is above the
            threshold.
        TaskError: In the first batch: it is not a pair of lists, of images and of mappings with boxes.

    Logs ``reuse/mix_training/loss`` (the strong views'), ``/kept`` (share of the true boxes that are left) and
    ``/added`` (pseudo-boxes for each image).
    """

    place = 3

    def __init__(
        self,
        archive: RunArchive | str | os.PathLike[str],
        runs: RunSelection,
        *,
        weight: float = 2.0,
        threshold: float = 0.9,
        overlap: float = 0.5,
        control: str | None = None,
        mismatch: str = "refuse",
        dataset: DatasetInfo | None = None,
        seed: int = 0,
    ) -> None:
        if not weight > 0:
            raise ValueError(f"MixTraining: weight must be above 0, got {weight}")
        for key, value in (("threshold", threshold), ("overlap", overlap)):
            if not 0 <= value <= 1:
                raise ValueError(f"MixTraining: {key} must be from 0 to 1, got {value}")
        if control not in (None, "shuffled"):
            raise ValueError(f"MixTraining: control must be shuffled or left out, got {control!r}")
        super().__init__(archive, runs, seed=seed, mismatch=mismatch)
        self.weight, self.threshold, self.overlap, self.control = weight, threshold, overlap, control
        self.dataset = dataset
        self._signals: dict[str, Signal] = {}
        self._rows_N = self._keys_N = torch.zeros(0, dtype=torch.int64)
        self._sums: list[tuple[float, int, int, int, int]] = []

    def match(self, event: Event, state: State) -> bool:
        """Answer only: the id events, and the loss of every microbatch."""
        return event in (Event.INIT, Event.AFTER_LOSS, Event.BATCH_END, Event.FIT_END, *ExampleIds.EVENTS)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Follow the event."""
        if event == Event.INIT:
            self.take_place(state)
        elif event == Event.AFTER_LOSS:
            self._add_strong_views(state)
        elif event == Event.BATCH_END:
            self._log(logger)
        elif event == Event.FIT_END:
            self.warn_if_idle(logger, "no image of the training data is one of the prior run's")
        else:
            self.ids.handle(event, state)
            if event == Event.FIT_START:
                self.begin(state)

    def start(self, state: State) -> None:
        """Read the prior run's boxes and match its images with the current ones."""
        run = self.prior_runs[0]
        refuse_other_tasks([run], "MixTraining", ("detection",))
        for name in _SIGNALS:
            if name not in run.signal_names:
                raise SignalNotFoundError(
                    f"MixTraining is for detectors, and run {run.id} has no signal {name!r}, it has "
                    f"{run.signal_names}. Where the run's model is a detector, fill it: "
                    f"{harvest_command(run, 'boxes,gt_scores')}."
                )
            self._signals[name] = run.signal(name)
        self._check_threshold(run.id)
        info = self.dataset or infer_info(state.dataloader.dataset)  # type: ignore[union-attr]
        rows = match_examples(run, info, self.mismatch)
        self._rows_N = torch.arange(info.num_examples) if rows is None else rows
        if self.control == "shuffled":
            order = np.random.default_rng([self.seed % 2**63, 1]).permutation(info.num_examples)
            self._rows_N = self._rows_N[torch.from_numpy(order)]
        self._keys_N = info.keys

    def _check_threshold(self, run_id: str) -> None:
        """Refuse a threshold above every archived score: strong views without a box would teach that there is none."""
        boxes, scores = (signal.dense(signal.slots[0])[0] for signal in (self._signals[name] for name in _SIGNALS))
        found, true = (float(part.max()) if part.numel() else 0.0 for part in (boxes[..., 4], scores))
        if max(found, true) <= self.threshold:
            raise PriorRunMismatchError(
                f"MixTraining: threshold is {self.threshold}, and no score of run {run_id} is above it: the highest of "
                f"its boxes is {found:.2f}, and at a true box {true:.2f}. No strong view would have a box. Set a lower "
                "threshold, or take a better detector."
            )

    def _add_strong_views(self, state: State) -> None:
        """Run the model on the strong views of the microbatch, and add their losses."""
        images, targets = _lists(state.batch)
        positions = self.ids.microbatch.positions
        rows = self._rows_N[positions]
        slot = torch.full_like(rows, self._signals["boxes"].slots[0])
        # A signal refuses positions below 0; images that the run did not have are passed over below.
        found, seen = self._signals["boxes"].gather(rows.clamp_min(0), slot)
        scores, _ = self._signals["gt_scores"].gather(rows.clamp_min(0), slot)
        views: list[Tensor] = []
        wanted: list[dict[str, Tensor]] = []
        true = kept = added = 0
        for place, (image, target) in enumerate(zip(images, targets, strict=True)):
            if rows[place] < 0 or not bool(seen[place]):
                continue
            boxes, labels = target["boxes"], target["labels"]
            scores_M = scores[place, : len(boxes)].float().to(boxes.device)
            if len(scores_M) < len(boxes):
                raise PriorRunMismatchError(
                    f"an image has {len(boxes)} boxes, and gt_scores of run {self.prior_runs[0].id} has room for "
                    f"{scores.shape[1]}. Harvest it on these data."
                )
            pseudo = found[place].float().to(boxes.device)
            rule = {"threshold": self.threshold, "overlap": self.overlap}
            mixed, classes = mixed_targets(boxes, labels, scores_M, pseudo, **rule)
            number = int((pseudo[:, 4] > self.threshold).sum())
            true, kept, added = true + len(boxes), kept + len(mixed) - number, added + number
            # By the image's key: its view depends neither on its place in the batch nor on the ranks.
            key = int(self._keys_N[positions[place]]) % 2**63
            rng = np.random.default_rng([self.seed % 2**63, int(state.timestamp.batch), key])
            view, mixed, classes = strong_view(image, mixed, classes, rng)
            views.append(view)
            wanted.append({"boxes": mixed, "labels": classes})
        if not views:
            return
        with get_precision_context(state.precision, state.precision_config):
            outputs = state.model((views, wanted))
        # A detector's losses are means over the images that it is given; this term is one over the whole microbatch.
        strong = total_of(outputs) * (len(views) / len(images))
        state.loss = add_to_loss(state.loss, self.weight * strong, part="mix_training")
        self._sums.append((float(strong.detach()) * len(images), len(images), true, kept, added))

    def _log(self, logger: Logger) -> None:
        """Log the batch that just ended, of this rank."""
        if not self._sums:
            return
        loss, images, true, kept, added = (sum(column) for column in zip(*self._sums, strict=True))
        self._sums = []
        self.batches_applied += 1
        metrics = {"loss": loss / images, "kept": kept / max(1, true), "added": added / images}
        self.log_metrics({f"reuse/mix_training/{name}": value for name, value in metrics.items()}, logger)

    def prior_uses(self) -> list[PriorUse]:
        """Return what was used of the prior run, with the seconds of its harvests."""
        run = self.prior_runs[0]
        seconds = sum((one.seconds for one in run.manifest.harvests if one.signal in _SIGNALS), 0.0)
        return [PriorUse(run_id=run.id, algorithm="mix_training", signals=list(_SIGNALS), harvest_seconds=seconds)]


def _lists(batch: Any) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    good = isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, list | tuple) for part in batch)
    if not good or not all(isinstance(one, dict) and {"boxes", "labels"} <= one.keys() for one in batch[1]):
        raise TaskError(
            f"MixTraining is for detectors, whose batches are a list of images and a list of mappings with boxes and "
            f"labels; this one is a {type(batch).__name__}."
        )
    return list(batch[0]), list(batch[1])
