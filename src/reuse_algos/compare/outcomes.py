"""What the comparison takes from each run: its group, its metric over time, and every cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from reuse_algos.compare.estimates.interval import FloatArray
from reuse_algos.compare.question import Mode
from reuse_algos.errors import CompareError


@dataclass(frozen=True)
class History:
    """A run's metric and cost at its K evaluations, in order of steps.

    Attributes:
        steps: Batches trained so far [K], int64, strictly ascending.
        samples: Examples trained so far [K].
        epochs: Whole epochs trained so far [K].
        train_seconds: Training time so far [K], evaluation excluded.
        cost_seconds: The same with set-up and harvest.
        values: The metric [K]; NaN and infinities are kept.
    """

    steps: npt.NDArray[np.int64]
    samples: npt.NDArray[np.int64]
    epochs: npt.NDArray[np.int64]
    train_seconds: FloatArray
    cost_seconds: FloatArray
    values: FloatArray

    def first_at(self, target: float, mode: Mode) -> int | None:
        """Return the index of the first evaluation at or beyond ``target``, or None. NaN is never beyond."""
        reached = self.values >= target if mode == "max" else self.values <= target
        # An infinite accuracy is beyond every target, and only says that the run diverged.
        reached &= np.isfinite(self.values)
        return int(np.argmax(reached)) if reached.any() else None


@dataclass(frozen=True)
class Outcome:
    """One run that ended, from an archive or from a line of a results file.

    Attributes:
        group: The method.
        seed: None if it was not recorded.
        budget: Label, such as "5ep". Runs of a group with equal labels or equal steps are one point of its curve.
        steps: Batches trained.
        samples: Examples trained; 0 where not known.
        final: The metric at the end, as recorded; NaN or infinite for a diverged run.
        train_seconds: Training, evaluation excluded; 0 where not known.
        setup_seconds: Before the first step.
        harvest_seconds: Of the harvests that this run used, in full.
        flops: Of training, as :class:`~reuse_algos.archive.CostRecord` has them; None where not known.
        prior_run_ids: The runs that it used.
        run_id: Of itself.
        control_of: Name of the group that its group is a control of.
        role: The tag ``role``, such as ``baseline``; None without it.
        pair: What runs of two groups must have in common to be compared as a pair; None takes the seed.
        health: ``"ok"`` or ``"diverged"``; diverged runs stay in every comparison.
        history: The metric over training; None where only the end is known.
        manifest: Of the run, for checks of what else differs; None where there is none.
        readings: What instruments and forecasts read while it trained: full name -> (step, value).
    """

    group: str
    seed: int | None
    budget: str
    steps: float
    samples: float
    final: float
    train_seconds: float
    setup_seconds: float = 0.0
    harvest_seconds: float = 0.0
    flops: float | None = None
    prior_run_ids: tuple[str, ...] = ()
    run_id: str = ""
    control_of: str | None = None
    role: str | None = None
    pair: str | None = None
    health: str = "ok"
    history: History | None = field(default=None, compare=False)
    manifest: Any = field(default=None, compare=False)
    readings: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict, compare=False)

    @property
    def pair_key(self) -> str | int | None:
        """What pairs it with a run of another group: ``pair``, else the seed."""
        return self.seed if self.pair is None else self.pair

    @property
    def upfront_seconds(self) -> float:
        """Cost before the first step: set-up and harvest."""
        return self.setup_seconds + self.harvest_seconds

    @property
    def curve(self) -> History:
        """The history.

        Raises:
            CompareError: Only the end of the run is known.
        """
        if self.history is None:
            raise CompareError(f"run {self.run_id} has no values over its training: compare over budgets instead")
        return self.history


@dataclass(frozen=True)
class LeftOut:
    """Ids of runs that take no part.

    Attributes:
        unfinished: Still going, or died.
        without_key: They lack the grouping key.
        reused: Trained to be reused (tag ``role: prior``).
    """

    unfinished: Sequence[str] = ()
    without_key: Sequence[str] = ()
    reused: Sequence[str] = ()


@dataclass(frozen=True)
class Outcomes:
    """The runs of a comparison.

    Attributes:
        runs: Of all groups.
        metric: What :attr:`Outcome.final` is, full name.
        mode: Whether more or less of it is better.
        group_by: What the groups are, for the heading.
        archive: Where the runs are, for the heading. Default: empty.
        archive_id: Identity of that archive. Default: empty.
        prior_seconds: Training and set-up seconds of each prior run that is known, by run id.
        left_out: The runs that take no part.
    """

    runs: Sequence[Outcome]
    metric: str
    mode: Mode
    group_by: str = "group"
    archive: str = ""
    archive_id: str = ""
    prior_seconds: Mapping[str, float] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def groups(self) -> dict[str, list[Outcome]]:
        """Runs by group, each sorted by what pairs them, seed and run id."""
        groups: dict[str, list[Outcome]] = {}
        # One order for all groups, so that paired runs stand at the same place.
        for run in sorted(self.runs, key=lambda run: (run.pair or "", run.seed is None, run.seed or 0, run.run_id)):
            groups.setdefault(run.group, []).append(run)
        return groups

    def prior_training(self, run_ids: Sequence[str]) -> float:
        """Return the seconds that training these prior runs took; NaN if that of one is not known."""
        # One unknown run makes the sum NaN: a part of it would look like the whole.
        return sum((self.prior_seconds.get(run_id, math.nan) for run_id in run_ids), 0.0)
