"""What is asked of a set of runs. Every check of what is asked stands here, so that the engine can rely on it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal, get_args

from reuse_algos.compare.estimates.interval import CONFIDENCE
from reuse_algos.errors import CompareError, nearest

if TYPE_CHECKING:
    from reuse_algos.compare.outcomes import Outcome

Mode = Literal["max", "min"]
Pairing = Literal["auto", "seed", "none"]
Over = Literal["training", "budgets", "ends"]
Axis = Literal["steps", "samples", "train_seconds", "cost_seconds", "amortised_seconds", "flops", "dollars"]
"""A way to count cost.

* ``steps``, ``samples``: batches trained, and examples drawn from the data. Passes of live teachers and appended rows
  come on top of both; ``flops`` and the seconds have them.
* ``train_seconds``: training only, evaluation excluded.
* ``cost_seconds``: training, set-up, and all of the harvests that the run used.
* ``amortised_seconds``: the same with the harvests (and, if asked for, the training of its prior runs) shared among
  :attr:`Costs.later_runs` runs.
* ``flops``: of training as archived, see :class:`~reuse_algos.archive.CostRecord`. Harvests are in the seconds only.
* ``dollars``: ``cost_seconds`` at :attr:`Costs.price_per_hour`.
"""

AXES: tuple[Axis, ...] = get_args(Axis)
"""All axes, in the order in which they are shown."""


@dataclass(frozen=True)
class Costs:
    """How cost is counted.

    Args:
        judge_by: Axis of the verdict. On a machine that is shared with other work, seconds tell less than ``steps`` or
            ``flops``. Default: None, ``cost_seconds`` (``amortised_seconds`` for a recommendation), or ``steps`` where
            seconds are not known.
        price_per_hour: Dollars for an hour of the hardware. Default: None, dollars are not counted.
        later_runs: Among how many runs harvests are shared in ``amortised_seconds``. Default: None, 5 (1 for a
            recommendation: The next run counts all of its own harvest).
        count_prior_training: Whether the training of the prior runs is shared among them, too. Default: False.

    Raises:
        CompareError: An unknown axis, or a price or a number of runs that makes no sense.
    """

    judge_by: Axis | None = None
    price_per_hour: float | None = None
    later_runs: int | None = None
    count_prior_training: bool = False

    def __post_init__(self) -> None:
        if self.judge_by is not None and self.judge_by not in AXES:
            raise CompareError(f"runs cannot be judged by {self.judge_by!r}. Choose one of {', '.join(AXES)}")
        if self.later_runs is not None and self.later_runs < 1:
            raise CompareError(f"costs must be shared among at least 1 later run, got {self.later_runs}")
        price = self.price_per_hour
        if price is not None and not (math.isfinite(price) and price > 0):
            raise CompareError(f"the price of an hour must be a positive number, got {price}")
        if self.judge_by == "dollars" and price is None:
            raise CompareError("runs cannot be judged by dollars without the price of an hour")


@dataclass(frozen=True)
class Question:
    """What is asked.

    Args:
        group_by: ``tags.<key>``, ``run_name``, ``model.name``, ``dataset.name``, ``seed`` or ``recipe.<dotted path>``;
            several joined by commas group by all of them (``tags.method,recipe.max_duration``: "distilled / 10ep").
            Default: ``tags.method``.
        baseline: Name of the group to compare with. Default: empty, the group whose runs all have the tag ``role:
            baseline``, else the one that is called ``baseline``.
        over: ``training`` reads each run over its training, with one budget per group. ``budgets`` reads the last value
            of each run only, and compares curves over several budgets per group. ``ends`` compares last values and no
            costs. Default: ``training``.
        target: Metric value that counts as reached, **fixed before the runs were seen**. Default: None, the baseline's
            mean final metric (at its largest budget).
        metric: Full name or unique last part. Default: None, the monitor that the runs share.
        mode: Whether more (``max``) or less (``min``) is better. Default: None, as the runs' monitor says, else by the
            name.
        pairing: ``auto`` pairs runs by seed where both groups have the same seeds, ``seed`` insists on it, ``none``
            never pairs. Default: ``auto``.
        confidence: Of every interval, two-sided. Default: 0.95.
        costs: How cost is counted. Default: ``Costs()``.

    Raises:
        CompareError: A target that is not a number, a confidence outside (0, 1), or an unknown ``over``, ``mode`` or
            ``pairing``.
    """

    group_by: str = "tags.method"
    baseline: str = ""
    over: Over = "training"
    target: float | None = None
    metric: str | None = None
    mode: Mode | None = None
    pairing: Pairing = "auto"
    confidence: float = CONFIDENCE
    costs: Costs = field(default_factory=Costs)

    def __post_init__(self) -> None:
        if not 0.0 < self.confidence < 1.0:
            raise CompareError(f"the confidence must be between 0 and 1, got {self.confidence}")
        if self.target is not None and not math.isfinite(self.target):
            raise CompareError(f"the target must be a number, got {self.target}")
        for name, value, known in (
            ("over", self.over, Over),
            ("mode", self.mode, Mode),
            ("pairing", self.pairing, Pairing),
        ):
            # Literal binds type checkers only, and these come from command lines and YAML files as well.
            if value is not None and value not in get_args(known):
                raise CompareError(f"{name} must be one of {', '.join(get_args(known))}, not {value!r}")

    def check(self, groups: Mapping[str, Sequence[Outcome]]) -> None:
        """Check that the runs can answer the question.

        Args:
            groups: The runs by group.

        Raises:
            CompareError: No run is in the baseline group; a run trained for no steps; costs are counted in a way that
                only a comparison over budgets knows; within training and without a target, a group has runs of several
                budgets, or a baseline run ended with a value that is not finite.
        """
        # Over training only steps and seconds are read, so other costs would be ignored.
        unknown = [f.name for f in fields(Costs) if getattr(self.costs, f.name) != f.default]
        if unknown and self.over != "budgets":
            options = ", ".join("--" + name.replace("_", "-") for name in unknown)
            raise CompareError(f"{options}: only with --budgets (over: budgets)")
        if self.baseline not in groups:
            raise _no_baseline(self.baseline, groups, self.group_by)
        for run in (run for group in groups.values() for run in group):
            if self.over == "budgets" and not (math.isfinite(run.steps) and run.steps > 0):
                raise CompareError(
                    f"run {run.run_id or run.seed} of {run.group!r} trained for {run.steps} steps: remove it"
                )
        if self.over != "training" or self.target is not None:
            return
        for name, group in groups.items():
            # Within training a group has one mean curve, and so one budget.
            budgets = sorted({int(run.steps) for run in group})
            if len(budgets) > 1:
                raise CompareError(
                    f"the runs of group {name!r} ended after different numbers of steps "
                    f"({', '.join(map(str, budgets))}), so the group has no one budget. Compare over budgets "
                    f"(--budgets, over: budgets), or group by the budget as well ({self.group_by},"
                    "recipe.max_duration), or declare a target."
                )
        bad = [run.run_id for run in groups[self.baseline] if not math.isfinite(run.final)]
        if bad:
            raise no_final(f": {', '.join(bad)} ended with a value that is not finite")

    def of_next_run(self) -> Question:
        """Return the question that a recommendation asks: over budgets, and with a target.

        Raises:
            CompareError: There is no target.
        """
        if self.target is None:
            raise CompareError(
                "a recommendation needs a target: say which value of the metric the next run is to reach"
            )
        return replace(self, over="budgets")

    def paired(self, fits: bool, seeds: str) -> bool:
        """Return whether runs are compared in pairs.

        Args:
            fits: Whether they pair by seed.
            seeds: The seeds of both sides, for the message.

        Raises:
            CompareError: They do not, and the question insists on it.
        """
        if self.pairing == "seed" and not fits:
            raise CompareError(f"runs do not pair by seed: {seeds}")
        return fits and self.pairing != "none"

    def check_axis(self, axis: Axis, known: Collection[Axis]) -> None:
        """Check that the baseline's cost is known on the axis that decides.

        Args:
            axis: The axis.
            known: Axes on which its cost is known.

        Raises:
            CompareError: It is not.
        """
        if axis not in known:
            what = {"flops": "FLOPs", "samples": "examples"}.get(axis, axis.replace("_", " "))
            why = "say the price of an hour" if axis == "dollars" else "judge by steps"
            raise CompareError(f"what the runs of {self.baseline} cost in {what} is not known: {why}")


def no_final(why: str) -> CompareError:
    """Return the error for a baseline whose mean final metric does not exist.

    Args:
        why: The rest of the sentence, with the runs or the budget.
    """
    return CompareError(f"the baseline has no mean final metric{why}. Declare a target.")


def _no_baseline(baseline: str, groups: Collection[str], group_by: str) -> CompareError:
    known = "" if len(groups) > 1 else f" The only group is {next(iter(groups))}." if groups else " There is no group."
    return CompareError(
        f"no run is in the baseline group {baseline!r}, with groups by {group_by}.{known or nearest(baseline, groups)} "
        "Name the baseline (--baseline GROUP), or give its runs the tag role: baseline (RunRecorder(..., tags={'role': "
        "'baseline'}), or tags.role=baseline in a recipe)."
    )
