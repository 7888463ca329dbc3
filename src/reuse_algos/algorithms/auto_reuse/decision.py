"""What an archive is good for in a situation: facts in, a decision with its reason out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from reuse_algos.presets import PRESETS, SHOWN

_MOST_TEACHERS = 3
"""Three teachers gain over one; each costs a look-up, or a forward pass where it is live."""

_LEAST_COMMON = 0.9
"""Share of a prior run's examples that must be in the current data for these to be its data, grown."""


@dataclass(frozen=True)
class RunFacts:
    """What is known of one prior run beside the current one.

    Attributes:
        id: Of the run.
        num_examples: Of its training data.
        same_data: Whether its examples and labels are those of the current run.
        common: How many of its examples are in the current data, with the same label and content.
        same_classes: Whether its classes are those of the current run.
        same_model: Whether its parameters have the names and shapes of the current model's.
        can_teach: Whether it has logits, or weights of a model that can be built again.
        has_weights: Whether its last weights are archived.
        score: Final value of its monitor, larger is better; None where it has none.
    """

    id: str
    num_examples: int
    same_data: bool
    common: int
    same_classes: bool
    same_model: bool
    can_teach: bool
    has_weights: bool
    score: float | None = None


@dataclass(frozen=True)
class Decision:
    """What is done, with which runs, and why.

    Attributes:
        situation: One of ``same_data``, ``grown_data``, ``other_architecture``, for which there is a preset; or
            ``nothing``.
        runs: Ids of the prior runs that are used.
        reason: In words.
    """

    situation: str
    runs: tuple[str, ...]
    reason: str

    @property
    def acts(self) -> bool:
        """Whether anything is done."""
        return self.situation in PRESETS

    def __str__(self) -> str:
        return f"{self.situation}: {self.reason}"


def decide(runs: Sequence[RunFacts] | None, num_examples: int = 0, situations: Collection[str] = SHOWN) -> Decision:
    """Choose what to do with an archive. Only what has been shown to help in a situation is chosen.

    Runs on the same data come first: the same model's, else another's. Then runs on a part of the data, whose weights
    are a start. Everything else is left alone.

    Args:
        runs: The finished, healthy runs; None: the examples of the current run cannot be told apart.
        num_examples: Of the current training data. Default: 0.
        situations: Those whose preset may be chosen. Default: :data:`~reuse_algos.presets.SHOWN`.

    >>> decide([]).reason
    'the archive has no finished run'
    """
    if runs is None:
        return _nothing("the train examples cannot be told apart, so no prior run can be matched with them")
    if not runs:
        return _nothing("the archive has no finished run")
    alike = [run for run in runs if run.same_classes]
    if not alike:
        return _nothing(
            f"the classes have changed: no prior run of {len(runs)} has this run's, and no preset has been shown to "
            "help there (PriorRunWarmStart with head: match, and PriorRunDistillation with mismatch: allow, can be "
            "tried by hand)"
        )
    same = [run for run in alike if run.same_data]
    for situation, fitting, words in (
        ("same_data", [run for run in same if run.same_model], "the same model on the same data"),
        ("other_architecture", [run for run in same if not run.same_model], "another model on the same data"),
    ):
        # The best by their own last metric; those without a metric come last.
        teachers = sorted((run for run in fitting if run.can_teach), key=_score, reverse=True)[:_MOST_TEACHERS]
        if teachers and situation not in situations:
            return _nothing(
                f"{_prior_runs(fitting)} of {words}, and could teach. The preset for that has not been shown to "
                "help: try PriorRunDistillation by hand"
            )
        if teachers:
            ids = tuple(run.id for run in teachers)
            does = f"PriorRunDistillation learns from {', '.join(ids)}"
            return Decision(situation, ids, f"{_prior_runs(fitting)} of {words}; {does}")
    if same:
        return _nothing(
            f"{_prior_runs(same)} on the same data, and none has logits or weights to learn from (record runs "
            "with weights: [last], or harvest their logits)"
        )
    return _grown(alike, num_examples)


def _grown(runs: Sequence[RunFacts], num_examples: int) -> Decision:
    """Decide where no run is on the same data."""
    parts = [
        run
        for run in runs
        if run.common >= _LEAST_COMMON * run.num_examples and run.common < num_examples and run.common
    ]
    if not parts:
        # Named, so that the user can look at the run that nearly fits.
        most = max(runs, key=lambda run: run.common)
        return _nothing(
            f"no prior run is on these data or a part of them; {most.id} has most in common, {most.common} of its "
            f"{most.num_examples} examples"
        )
    starts = [run for run in parts if run.same_model and run.has_weights]
    if not starts:
        return _nothing(
            f"{_prior_runs(parts)} on a part of these data, and none has weights of this model; no preset has "
            "been shown to help without them"
        )
    # The most examples first: what a start has seen counts for more than how well it did on less.
    start = max(starts, key=lambda run: (run.common, _score(run)))
    share = start.common / num_examples
    does = "PriorRunWarmStart starts from its weights"
    reason = f"run {start.id} knows {share:.0%} of the data, which have grown since; {does}"
    return Decision("grown_data", (start.id,), reason)


def _prior_runs(runs: Sequence[RunFacts]) -> str:
    return "1 prior run is" if len(runs) == 1 else f"{len(runs)} prior runs are"


def _score(run: RunFacts) -> float:
    return float("-inf") if run.score is None else run.score


def _nothing(reason: str) -> Decision:
    return Decision("nothing", (), reason)
