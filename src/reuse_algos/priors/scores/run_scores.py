"""Scores of the current run's examples, read from the signals that prior runs archived.

Where each score comes from (the first source that there is):

==========================  ===========================================================================================
score                       sources
==========================  ===========================================================================================
``loss``, ``loss_mean``     captured ``loss``; else the cross entropy of ``logits``
``el2n``                    harvested ``el2n``; else ``logits``
``grand``,                  harvested signals of that name
``grand_last_layer``
``forgetting``              captured ``correct``; else the largest of the ``logits`` against the label
``variance``,               captured ``loss``, whose ``exp(-loss)`` is the probability of the label; else ``logits``
``threshold``
``margin``, ``entropy``     ``logits``, captured or harvested
``variation_ratio``,        ``logits`` of all runs together: each harvested checkpoint is a member, or, in a run
``mutual_information``      without harvested logits, each captured epoch; of each epoch of a run one member
==========================  ===========================================================================================

Scores of one moment (``loss``, ``el2n``, ``margin``, ``entropy``, the gradient norms) are those of the chosen epoch, or
of the last one that knows the example. Scores of a history (the others) take every epoch, or those up to the chosen
one; of captured and harvested presentations they take the kind of which there are more. Several views at the same
weights count as their mean, and of several names for the weights of one epoch (``last`` and ``ep0006``) one counts.

Scores from logits that were kept by ``top_k`` are approximate: the mass beyond the K largest is spread evenly over the
other classes, which matters above all for ``loss``, ``el2n`` and ``margin`` of examples whose label is not among the K.

Shapes: N examples of the current data, P of a prior run, T presentations, M members, C classes, R runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from reuse_algos.archive import PriorRun, PriorUse
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import PriorRunMismatchError, RunNotFoundError, SignalNotFoundError, nearest
from reuse_algos.priors.advice import harvest_command
from reuse_algos.priors.choosing import match_examples
from reuse_algos.priors.presentations import Presentation, PresentationReader, in_time, latest_first, one_per_epoch
from reuse_algos.priors.scores import formulas
from reuse_algos.priors.scores.score_tasks import check_task, of_classes

AGGREGATES = ("mean", "rank")

# From rows of a signal and labels to one number per row.
_Rows = Callable[[Tensor, Tensor], Tensor]

# Logits that are looked at together, as float64.
_CHUNK_BYTES = 64 << 20


class _Source(NamedTuple):
    """A signal, how one of its rows becomes the number that the score is made of, and whether that takes the label."""

    signal: str
    number: _Rows
    labelled: bool = True


class _Recipe(NamedTuple):
    """How a score is made: sources by falling preference, and the function of a history (None: one moment)."""

    sources: tuple[_Source, ...]
    history: Callable[[Tensor], Tensor] | None = None
    least: int = 1


def _as_is(values_B: Tensor, labels_B: Tensor) -> Tensor:
    return values_B


def _where_labelled(correct_B: Tensor, labels_B: Tensor) -> Tensor:
    """Return captured answers; NaN where there is no label, since nothing can be right there."""
    return correct_B.masked_fill(labels_B < 0, torch.nan)


def _is_correct(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return 1 or 0, NaN for a row that is not known."""
    correct_B = (logits_BC.nan_to_num().argmax(1) == labels_B).double()
    return _where_labelled(correct_B.masked_fill(logits_BC.isnan().any(1), torch.nan), labels_B)


def _forgetting(correct_TN: Tensor) -> Tensor:
    # Of several views at the same weights at least half must be right.
    return formulas.forgetting((correct_TN >= 0.5).double().masked_fill(correct_TN.isnan(), torch.nan))


_LOSS = (_Source("loss", _as_is, False), _Source("logits", formulas.cross_entropy))
_PROBABILITY = (
    _Source("loss", lambda losses_B, _: torch.exp(-losses_B), False),
    _Source("logits", formulas.true_probability),
)
_RECIPES: dict[str, _Recipe] = {
    "loss": _Recipe(_LOSS),
    "loss_mean": _Recipe(_LOSS, formulas.loss_mean),
    "el2n": _Recipe((_Source("el2n", _as_is, False), _Source("logits", formulas.el2n))),
    "forgetting": _Recipe((_Source("correct", _where_labelled, False), _Source("logits", _is_correct)), _forgetting, 2),
    "variance": _Recipe(_PROBABILITY, formulas.variance, 2),
    "threshold": _Recipe(_PROBABILITY, formulas.threshold),
    "margin": _Recipe((_Source("logits", formulas.margin),)),
    "entropy": _Recipe((_Source("logits", lambda logits_BC, _: formulas.entropy(logits_BC), False),)),
    "grand": _Recipe((_Source("grand", _as_is, False),)),
    "grand_last_layer": _Recipe((_Source("grand_last_layer", _as_is, False),)),
}
_ENSEMBLES: dict[str, Callable[[Tensor], Tensor]] = {
    "variation_ratio": formulas.variation_ratio,
    "mutual_information": formulas.mutual_information,
}
ENSEMBLE_SCORES = tuple(_ENSEMBLES)
SCORES = (*_RECIPES, *ENSEMBLE_SCORES)


@dataclass(frozen=True)
class ScoreSpec:
    """Which score, of which moment, and how those of several runs become one.

    Attributes:
        name: One of :data:`SCORES`.
        epoch: Whole epochs that the prior runs had trained: the number of a captured epoch (from 0) or of the weights
            that were harvested. Scores of a history take the epochs up to it, ensembles the members of it. None: the
            last one, or all.
        aggregate: ``mean`` of the runs' values, or of their ``rank`` from 0 to 1 (of equal values the mean rank).
            Ensembles are one value for all runs; with ``rank`` they become their ranks.

    Raises:
        ValueError: One of them is unknown or out of range.
    """

    name: str = "loss"
    epoch: int | None = None
    aggregate: str = "mean"

    def __post_init__(self) -> None:
        if self.name not in SCORES:
            raise ValueError(f"there is no score {self.name!r}.{nearest(self.name, SCORES)}")
        if self.aggregate not in AGGREGATES:
            raise ValueError(
                f"scores of several runs cannot be combined by {self.aggregate!r}.{nearest(self.aggregate, AGGREGATES)}"
            )
        if self.epoch is not None and self.epoch < 0:
            raise ValueError(f"the epoch of a score is counted from 0, got {self.epoch}")


def prior_scores(runs: Sequence[PriorRun], spec: ScoreSpec, info: DatasetInfo, *, mismatch: str = "refuse") -> Tensor:
    """Return the score of each current example, from what prior runs archived.

    Args:
        runs: The prior runs, at least one.
        spec: Which score.
        info: The current train data.
        mismatch: ``refuse`` runs on other data, or ``allow`` them: examples are matched by key, and one that no run
            knows, or whose label changed, is NaN.

    Returns:
        float64 ``[N]`` on the CPU by position in the current data. For every score higher is harder, more uncertain or
        more informative (``margin`` is the negative margin). NaN: unknown.

    Raises:
        SignalNotFoundError: A run has no signal to read the score from; the message has the command that fills it.
        PriorRunMismatchError: As :func:`~reuse_algos.priors.choosing.match_examples`.
        RunNotFoundError: No runs are given.
    """
    rows = _match(runs, info, mismatch)
    if spec.name in _ENSEMBLES:
        values_N = _ensemble_score(runs, rows, spec, info.num_examples)
        return formulas.average_ranks(values_N) if spec.aggregate == "rank" else values_N
    values = [_current(_run_score(run, spec), run_rows) for run, run_rows in zip(runs, rows, strict=True)]
    if spec.aggregate == "rank":
        values = [formulas.average_ranks(values_N) for values_N in values]
    return formulas.mean_known(torch.stack(values))


def score_uses(runs: Sequence[PriorRun], spec: ScoreSpec, algorithm: str) -> list[PriorUse]:
    """Return what a score reads of each run: the signals, and the seconds of the harvests that filled them.

    Args:
        runs: The prior runs.
        spec: The score.
        algorithm: Who reads it, such as ``history_curriculum``.

    Raises:
        SignalNotFoundError: As :func:`prior_scores`.
    """
    uses = []
    for run in runs:
        if spec.name in _ENSEMBLES:
            read = _members(PresentationReader(run), spec)
        else:
            read = _Plan.of(run, spec).read
        harvested = {one.signal for one in read if one.harvested}
        uses.append(
            PriorUse(
                run_id=run.id,
                algorithm=algorithm,
                signals=sorted({one.signal for one in read}),
                harvest_seconds=sum((h.seconds for h in run.manifest.harvests if h.signal in harvested), 0.0),
            )
        )
    return uses


def recorded_info(run: PriorRun) -> DatasetInfo:
    """Return the training data of a prior run as it recorded them, to score where there is no current run.

    Raises:
        SignalNotFoundError: The run recorded no data.
    """
    record = run.manifest.dataset
    if record is None:
        raise SignalNotFoundError(
            f"run {run.id} has no record of its data, so there are no examples to score. Record runs with RunRecorder "
            "on a map-style dataset."
        )
    names = None if record.class_names is None else tuple(record.class_names)
    return DatasetInfo(record.name, run.keys(), run.labels(), names)


# One run --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Which presentations of a run a score is read from, in order of reading."""

    reader: PresentationReader
    source: _Source
    read: list[Presentation]

    @classmethod
    def of(cls, run: PriorRun, spec: ScoreSpec) -> _Plan:
        """Return the first source of the score that the run has.

        Raises:
            SignalNotFoundError: It has none.
        """
        reader, recipe = PresentationReader(run), _RECIPES[spec.name]
        for source in recipe.sources:
            found = reader.presentations(source.signal)
            if recipe.history is None:
                found = [one for one in latest_first(found) if spec.epoch in (None, one.epoch)]
                # A harvest knows every example, so older rows have nothing to add.
                if found and found[0].harvested:
                    found = found[:1]
            else:
                found = in_time([one for one in found if spec.epoch is None or one.epoch <= spec.epoch])
            if len(found) >= recipe.least:
                check_task(run, spec.name, source.signal, reader)
                return cls(reader, source, found)
        raise _not_found(run, spec, reader, recipe)

    def history(self) -> Iterator[Tensor]:
        """Yield the numbers of all presentations for the examples in order, chunk by chunk: float64 ``[T, B]``."""
        labels_P = self._labels()
        for positions_B in self._chunks():
            labels_B = labels_P[positions_B]
            yield torch.stack([self._numbers(one, positions_B, labels_B) for one in self.read])

    def latest(self) -> Tensor:
        """Return the number of the first presentation that knows each example: float64 ``[P]``."""
        labels_P, values = self._labels(), []
        for positions_B in self._chunks():
            labels_B = labels_P[positions_B]
            values_B = torch.full(positions_B.shape, torch.nan, dtype=torch.float64)
            for one in self.read:
                values_B = torch.where(values_B.isnan(), self._numbers(one, positions_B, labels_B), values_B)
                if not bool(values_B.isnan().any()):
                    break
            values.append(values_B)
        return torch.cat(values)

    def _chunks(self) -> Iterator[Tensor]:
        signal = self.reader.signal(self.read[0].signal)
        # Held at once for each example: the rows of one presentation, and one number of each.
        return _chunked(signal.num_examples, (signal.num_classes or 1) + len(self.read))

    def _labels(self) -> Tensor:
        """Return the labels, int64 ``[P]``; zeros where they do not matter."""
        run = self.reader.run
        labels_P = run.labels()
        if labels_P is None and self.source.labelled:
            raise SignalNotFoundError(
                f"run {run.id} recorded no labels, which its {self.source.signal} must be compared with. Record runs "
                "on data whose labels are known (DatasetInfo.labels)."
            )
        return torch.zeros_like(run.keys()) if labels_P is None else labels_P

    def _numbers(self, presentation: Presentation, positions_B: Tensor, labels_B: Tensor) -> Tensor:
        views = self.reader.rows(presentation, positions_B)
        if self.source.signal == "logits":
            views = [of_classes(rows_B) for rows_B in views]
        return formulas.mean_known(torch.stack([self.source.number(rows_B, labels_B) for rows_B in views]))


def _run_score(run: PriorRun, spec: ScoreSpec) -> Tensor:
    """Return float64 ``[P]`` by position in the prior run."""
    plan, history = _Plan.of(run, spec), _RECIPES[spec.name].history
    if history is None:
        return plan.latest()
    return torch.cat([history(part_TB) for part_TB in plan.history()])


def _not_found(run: PriorRun, spec: ScoreSpec, reader: PresentationReader, recipe: _Recipe) -> SignalNotFoundError:
    names = [source.signal for source in recipe.sources]
    kept = {name: sorted({one.epoch for one in reader.presentations(name)}) for name in names}
    has = "; ".join(f"{name} of epochs {', '.join(map(str, epochs))}" for name, epochs in kept.items() if epochs)
    wanted = "" if spec.epoch is None else f" {'up to' if recipe.history else 'of'} epoch {spec.epoch}"
    if recipe.least > 1:
        wanted += f" in at least {recipe.least} epochs"
    return SignalNotFoundError(
        f"the score {spec.name!r} is read from {' or '.join(names)}{wanted}; run {run.id} has "
        f"{has or 'none of it'} (its signals: {', '.join(run.signal_names) or 'none'}; its weights: "
        f"{', '.join(run.weight_names) or 'none'}). {_advice(run, spec, recipe)}"
    )


_CAPTURED_ONLY = ("loss", "correct", "logit_margin")


def _advice(run: PriorRun, spec: ScoreSpec, recipe: _Recipe) -> str:
    if "boxes" in run.signal_names:
        return (
            "It is a run of a detector, whose images have no logits and no score. For detectors there is MixTraining."
        )
    if recipe.history is not None:
        captured = recipe.sources[0].signal
        return (
            f"Record runs with run_recorder signals: {{{captured}: {{}}}}, or fill the logits of several checkpoints: "
            f"{harvest_command(run, 'logits', weights=run.weight_names)}."
        )
    weights = () if spec.epoch is None else (f"ep{spec.epoch:04d}",)
    names = [source.signal for source in recipe.sources]
    # Losses and right answers are captured while a run trains; a harvest fills the logits that both follow from.
    signal = next((name for name in names if name not in _CAPTURED_ONLY), "logits")
    return f"Fill it: {harvest_command(run, signal, weights=weights)}."


# Ensembles ------------------------------------------------------------------------------------------------------------


def _members(reader: PresentationReader, spec: ScoreSpec) -> list[Presentation]:
    found = [one for one in reader.presentations("logits") if spec.epoch in (None, one.epoch)]
    return one_per_epoch([one for one in found if one.harvested] or found)


def _ensemble_score(
    runs: Sequence[PriorRun], rows: Sequence[Tensor | None], spec: ScoreSpec, num_examples: int
) -> Tensor:
    """Return what the members in all runs make of each current example: float64 ``[N]``."""
    readers = [PresentationReader(run) for run in runs]
    for reader in readers:
        if _members(reader, spec):
            check_task(reader.run, spec.name, "logits", reader)
    members = [
        (reader, run_rows, one)
        for reader, run_rows in zip(readers, rows, strict=True)
        for one in _members(reader, spec)
    ]
    if len(members) < 2:
        names = ", ".join(run.id for run in runs)
        raise SignalNotFoundError(
            f"the score {spec.name!r} compares at least 2 members, the logits of runs or checkpoints; {names} "
            f"{'has' if len(runs) == 1 else 'have'} {len(members)}"
            f"{'' if spec.epoch is None else f' of epoch {spec.epoch}'}. Name more runs, or fill the logits of more "
            f"checkpoints: {harvest_command(runs[0], 'logits', weights=runs[0].weight_names)}."
        )
    classes = {reader.signal(one.signal).num_classes: reader.run.id for reader, _, one in members}
    if len(classes) > 1:
        shown = "; ".join(f"run {run_id} has {count}" for count, run_id in classes.items())
        raise PriorRunMismatchError(f"an ensemble needs the same classes everywhere: {shown}. Choose other runs.")
    (num_classes,) = classes
    values = []
    for positions_B in _chunked(num_examples, (num_classes or 1) * len(members)):
        probabilities = [_probabilities(reader, one, run_rows, positions_B) for reader, run_rows, one in members]
        values.append(_ENSEMBLES[spec.name](torch.stack(probabilities)))
    return torch.cat(values)


def _probabilities(
    reader: PresentationReader, presentation: Presentation, rows_N: Tensor | None, positions_B: Tensor
) -> Tensor:
    """Return float64 ``[B, C]`` of one member for current positions, the mean over its views; NaN: unknown."""
    prior_B = positions_B if rows_N is None else rows_N[positions_B]
    views = reader.rows(presentation, prior_B.clamp_min(0))
    mean_BC = formulas.mean_known(torch.stack([of_classes(logits_B).softmax(1) for logits_B in views]))
    mean_BC[prior_B < 0] = torch.nan
    return mean_BC


# Helpers --------------------------------------------------------------------------------------------------------------


def _match(runs: Sequence[PriorRun], info: DatasetInfo, mismatch: str) -> list[Tensor | None]:
    if not runs:
        raise RunNotFoundError("scores are read from prior runs; name at least one.")
    return [match_examples(run, info, mismatch) for run in runs]


def _current(values_P: Tensor, rows_N: Tensor | None) -> Tensor:
    """Return ``[N, ...]`` by current position of ``[P, ...]`` by prior position."""
    if rows_N is None:
        return values_P
    values_N = values_P[rows_N.clamp_min(0)]
    values_N[rows_N < 0] = torch.nan
    return values_N


def _chunked(num_examples: int, numbers_per_row: int) -> Iterator[Tensor]:
    """Yield positions, int64 ``[B]``, as many at a time as keep within the bound."""
    yield from torch.arange(num_examples).split(max(1, _CHUNK_BYTES // (8 * numbers_per_row)))
