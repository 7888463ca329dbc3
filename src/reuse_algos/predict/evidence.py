"""What the runs of an archive say to the forecasts: the plain numbers, or why these runs do not belong together."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from reuse_algos.errors import NotEnoughEvidenceError, nearest
from reuse_algos.predict.cost.speed import SpeedModel, fit_speed
from reuse_algos.predict.history import History, recipe_value
from reuse_algos.predict.loss_curve import LossCurve, fit_loss_curve
from reuse_algos.predict.sizes import SizedRun
from reuse_algos.predict.sweeps.batch_size import Trial


def finished(runs: Iterable[History]) -> list[History]:
    """Return the runs that ended by themselves and did not diverge.

    Raises:
        NotEnoughEvidenceError: There is none.
    """
    given = list(runs)
    kept = [run for run in given if run.finished and not run.diverged and len(run.steps)]
    if not kept:
        diverged = sum(run.diverged for run in given)
        raise NotEnoughEvidenceError(f"none of {len(given)} runs ended soundly ({diverged} of them diverged)")
    return kept


def steps_per_second(run: History) -> float:
    """Return the speed of a run in steps per second, from its rows: the median after the first.

    Args:
        run: With its whole history. The first row is left out, as it holds the start (compilation, caches).
    """
    if len(run.steps) < 3:
        return run.steps_per_second
    with np.errstate(divide="ignore", invalid="ignore"):
        # The median: an epoch that shared the machine must not slow the forecast.
        rates = np.diff(run.steps) / np.diff(run.seconds)
    return float(np.median(rates))


def budget_curve(runs: Sequence[History]) -> LossCurve:
    """Fit the loss curve over budgets: the end of each run against its number of steps.

    This is the way out for schedules that decay: each run has had its own to the end.

    Raises:
        NotEnoughEvidenceError: There are fewer budgets, or models differ.
    """
    kept = finished(runs)
    _same(kept, lambda run: run.model, "models")
    return fit_loss_curve([run.end_step for run in kept], [float(run.losses()[-1]) for run in kept])


def sized_runs(runs: Sequence[History]) -> list[SizedRun]:
    """Fit the curve and the speed of each run, for the forecast of an unseen size.

    Args:
        runs: At constant learning rates, on one dataset, with one batch size.

    Raises:
        NotEnoughEvidenceError: A run's learning rate decays, its FLOPs or hardware are not recorded, or batches differ.
    """
    kept = finished(runs)
    for run in kept:
        if run.schedule == "decayed":
            raise NotEnoughEvidenceError(
                f"the learning rate of run {run.run_id} decays, and the loss curve assumes a constant one. Select runs "
                "at a constant rate (--tag)."
            )
        if not run.flops_per_example or not run.hardware:
            raise NotEnoughEvidenceError(f"run {run.run_id} did not record its FLOPs and its hardware")
    # A loss at a step depends on how many examples the steps so far have seen.
    _same(kept, lambda run: round(run.batch), "examples in a step")
    _same(kept, lambda run: run.num_examples, "numbers of training examples")
    return [
        SizedRun(
            flops=float(run.flops_per_example or 0),
            curve=fit_loss_curve(run.steps, run.losses()),
            step_seconds=1 / steps_per_second(run),
            hardware=run.hardware,
            end_step=float(run.steps[-1]),
            end_loss=float(run.losses()[-1]),
        )
        for run in kept
    ]


def speed_of(runs: Sequence[History]) -> SpeedModel:
    """Fit the speed under all-reduce to runs of one model on different numbers of workers.

    Args:
        runs: With one global batch, on one kind of hardware.

    Raises:
        NotEnoughEvidenceError: Hardware, model or batch differ, or there are fewer than two numbers of workers.
    """
    kept = finished(runs)
    _same(kept, lambda run: run.hardware, "kinds of hardware")
    _same(kept, lambda run: (run.model, run.flops_per_example), "models")
    batches = [run.batch for run in kept]
    if max(batches) > 1.02 * min(batches):  # the last batch of an epoch is shorter
        raise NotEnoughEvidenceError(
            f"the runs have different global batches, from {min(batches):g} to {max(batches):g} examples; select one "
            "(--tag)"
        )
    speeds = [steps_per_second(run) for run in kept]
    return fit_speed([run.workers for run in kept], speeds, batch=float(np.mean(batches)))


def trials_of(runs: Sequence[History], over: str, tune: str) -> list[Trial]:
    """Return the trials of a sweep over the batch size.

    Args:
        runs: With their whole validation metric, at constant learning rates.
        over: Path of the global batch size in the recipes, such as ``data.batch_size``.
        tune: Path of the tuned value, such as ``optimizer.lr``.

    Raises:
        NotEnoughEvidenceError: A learning rate decays, a recipe lacks one of the values, or a recorded batch is not
            what was trained.
    """
    trials = []
    for run in runs:
        # A diverged run is a trial that reached nothing; one that still trains may reach the goal yet.
        if not run.finished and not run.diverged:
            continue
        if run.schedule == "decayed":
            raise NotEnoughEvidenceError(
                f"the learning rate of run {run.run_id} decays towards its own end, so its steps to a goal say "
                "little. Use constant rates, or one run for each budget."
            )
        # What the recipe says is held against what was trained.
        batch = _number(run, over)
        # Without drop_last the last batch of each epoch is shorter, so the mean is below what the recipe says.
        if math.isfinite(run.batch) and not batch / 2 < run.batch <= batch * 1.001:
            raise NotEnoughEvidenceError(
                f"run {run.run_id} says {over}={batch:g}, and trained {run.batch:g} examples in a step. Name the path "
                "of the global batch size."
            )
        trials.append(
            Trial(round(batch), _number(run, tune), run.steps.tolist(), run.values.tolist(), run.diverged, run.run_id)
        )
    return trials


def points_over(runs: Sequence[History], over: str) -> list[tuple[float, float]]:
    """Return the value of a recipe and the last value of the metric, for each finished run.

    Args:
        runs: Of an archive.
        over: Path of a number in the recipes, such as ``algorithms.adversarial_training.epsilon``. A run without it
            counts as 0: nothing was added to it.

    Raises:
        NotEnoughEvidenceError: No recipe has the path, or a value is not a number.
    """
    kept = finished(runs)
    if all(recipe_value(run.recipe, over) is None for run in kept):
        near = nearest(over, _paths(kept[0].recipe))
        raise NotEnoughEvidenceError(f"no recipe of {len(kept)} runs has {over!r}.{near}")
    return [
        (0.0 if recipe_value(run.recipe, over) is None else _number(run, over), float(run.values[-1])) for run in kept
    ]


def _number(run: History, path: str) -> float:
    value = recipe_value(run.recipe, path)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if value is None:
        near = nearest(path, _paths(run.recipe))
        raise NotEnoughEvidenceError(f"the recipe of run {run.run_id} has no {path!r}.{near}")
    raise NotEnoughEvidenceError(f"{path} of run {run.run_id} is {value!r}, which is not a number")


def _paths(recipe: Any, prefix: str = "") -> list[str]:
    """Return the dotted paths of all values."""
    if not hasattr(recipe, "items"):
        return [prefix.removesuffix(".")]
    return [path for key, value in recipe.items() for path in _paths(value, f"{prefix}{key}.")]


def _same(runs: Sequence[History], what: Callable[[History], Hashable], words: str) -> None:
    found = {what(run) for run in runs}
    if len(found) > 1:
        raise NotEnoughEvidenceError(
            f"the runs have different {words}: {', '.join(sorted(map(str, found)))}; select runs of one (--tag)"
        )
