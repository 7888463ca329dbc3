"""Examples whose label is probably wrong, found in what prior runs said while they trained.

Shapes: N examples of the current data, B of them, T presentations, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reuse_algos.archive import PriorRun
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import RunNotFoundError, SignalNotFoundError
from reuse_algos.priors.advice import harvest_command
from reuse_algos.priors.choosing import match_classes, match_examples
from reuse_algos.priors.presentations import Presentation, PresentationReader, in_time
from reuse_algos.priors.scores import formulas

_CHUNK = 8192  # rows of 1,000 classes are 64 MB as float64


@dataclass(frozen=True, eq=False)
class LabelNoise:
    """How much the runs spoke against each label.

    Attributes:
        margins_N: The area under the margin, float64 on the CPU; the lower, the more suspect. NaN: unknown.
        instead_N: int64, the class other than the label to which the runs' logits gave the highest mean probability;
            -1: unknown.
        presentations: For each run, over how many epochs (or checkpoints) the area was taken.
    """

    margins_N: Tensor
    instead_N: Tensor
    presentations: list[int]

    def suspects(self) -> Tensor:
        """Return positions of the suspected examples, int64, most suspect first: those with a margin below 0.

        There the runs preferred, on the average over training, another class to the label.
        """
        order_N = torch.argsort(self.margins_N, stable=True)  # NaN comes last
        return order_N[self.margins_N[order_N] < 0]


def label_noise(runs: Sequence[PriorRun], info: DatasetInfo, *, mismatch: str = "refuse") -> LabelNoise:
    """Return the area under the margin of each example, the mean over runs.

    Pleiss et al. 2020, "Identifying Mislabeled Data using the Area Under the Margin Ranking" (arXiv 2001.10528),
    equations 1 and 2: the mean over the epochs of ``z_y - max_{k != y} z_k``. A wrong label is learned late and against
    the gradients of similar examples, so its margin stays low for long. The authors set the limit by threshold samples,
    which need a class and a training of their own; here it is 0 (see :meth:`LabelNoise.suspects`).

    The margins are those of the captured signal ``logit_margin``, or else of ``logits``; of the latter a run keeps one
    epoch for each view. The more epochs, and the earlier they begin, the better: a network that has learned a wrong
    label by heart no longer says so.

    Args:
        runs: Prior runs with ``logit_margin`` or ``logits``, at least one.
        info: The current train data, with labels.
        mismatch: As for :func:`~reuse_algos.priors.scores.run_scores.prior_scores`.

    Raises:
        SignalNotFoundError: A run has neither, or the labels are not known.
        PriorRunMismatchError: As :func:`~reuse_algos.priors.choosing.match_examples`.
        RunNotFoundError: No runs are given.
    """
    if not runs:
        raise RunNotFoundError("suspected labels are found in prior runs; name at least one.")
    if info.labels is None:
        raise SignalNotFoundError(f"the labels of {info.name} are not known, so none of them can be suspected.")
    sources = []
    for run in runs:
        match_classes(run, None, info.class_names)
        rows_N = match_examples(run, info, mismatch)
        reader = PresentationReader(run)
        logits = in_time(reader.presentations("logits"))
        margins = in_time(reader.presentations("logit_margin")) or logits
        if not margins:
            raise SignalNotFoundError(
                f"suspected labels are read from logit_margin or logits, and run {run.id} has neither (its signals: "
                f"{', '.join(run.signal_names) or 'none'}). Record runs with run_recorder signals: {{logit_margin: "
                "{}, logits: {last_epochs: 1}}, or fill the logits of several checkpoints: "
                f"{harvest_command(run, 'logits', weights=run.weight_names)}."
            )
        sources.append(_Source(reader, margins, logits, rows_N))
    margins_N, instead = [], []
    for positions_B in torch.arange(info.num_examples).split(_CHUNK):
        labels_B = info.labels[positions_B]
        parts = [source.margins(positions_B, labels_B) for source in sources]
        margins_N.append(formulas.mean_known(torch.stack(parts)))
        seen = [source.probabilities(positions_B) for source in sources if source.logits]
        instead.append(
            _best_other(formulas.mean_known(torch.stack(seen)), labels_B) if seen else -torch.ones_like(labels_B)
        )
    return LabelNoise(torch.cat(margins_N), torch.cat(instead), [len(source.margins_of) for source in sources])


@dataclass(frozen=True, eq=False)
class _Source:
    """What one run says: margins of all epochs, logits of some."""

    reader: PresentationReader
    margins_of: list[Presentation]
    logits: list[Presentation]
    rows_N: Tensor | None

    def margins(self, positions_B: Tensor, labels_B: Tensor) -> Tensor:
        """Return the mean over presentations: float64 ``[B]``."""
        moments = []
        for presentation in self.margins_of:
            views = self._rows(presentation, positions_B)
            # Captured margins are numbers already; logits become margins first.
            if self.margins_of is self.logits:
                views = [formulas.logit_margin(logits_BC, labels_B) for logits_BC in views]
            moments.append(formulas.mean_known(torch.stack(views)))
        return formulas.mean_known(torch.stack(moments))

    def probabilities(self, positions_B: Tensor) -> Tensor:
        """Return the mean over presentations: float64 ``[B, C]``."""
        # Added up as they are read: the probabilities of all epochs together would not fit into memory.
        total_BC = count_B = torch.zeros(())
        for presentation in self.logits:
            views = [logits_BC.softmax(1) for logits_BC in self._rows(presentation, positions_B)]
            mean_BC = formulas.mean_known(torch.stack(views))
            count_B = count_B + ~mean_BC.isnan().any(1)
            total_BC = total_BC + mean_BC.nan_to_num()
        return total_BC / count_B[:, None]

    def _rows(self, presentation: Presentation, positions_B: Tensor) -> list[Tensor]:
        prior_B = positions_B if self.rows_N is None else self.rows_N[positions_B]
        views = self.reader.rows(presentation, prior_B.clamp_min(0))
        for values in views:
            values[prior_B < 0] = torch.nan
        return views


def _best_other(probabilities_BC: Tensor, labels_B: Tensor) -> Tensor:
    is_label_BC = torch.arange(probabilities_BC.shape[1]) == labels_B[:, None]
    unknown_B = probabilities_BC.isnan().any(1)
    # The label gets less than any probability, so that it is never the answer.
    return probabilities_BC.nan_to_num().masked_fill(is_label_BC, -1.0).argmax(1).masked_fill(unknown_B, -1)
