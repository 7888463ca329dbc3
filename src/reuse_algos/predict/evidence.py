"""What the runs of an archive say to the forecasts: the plain numbers, or why these runs do not belong together."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from reuse_algos.errors import NotEnoughEvidenceError, nearest
from reuse_algos.predict.cost.speed import Scheme, SpeedModel, fit_speed
from reuse_algos.predict.history import History, recipe_value
from reuse_algos.predict.loss_curve import MIN_POINTS, LossCurve, fit_loss_curve
from reuse_algos.predict.sizes import SizedRun
from reuse_algos.predict.sweeps.batch_size import Trial
from reuse_algos.predict.sweeps.best_values import Attempt

Outcome = Literal["metric", "steps", "seconds", "dollars"]

_DECAYS = (
    "the learning rate of run {} decays towards its own end, so its steps to a goal say little. Use constant rates, or "
    "one run for each budget."
)


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
    budgets = sorted({run.end_step for run in kept})
    if len(budgets) < MIN_POINTS:
        raise NotEnoughEvidenceError(
            f"the curve over budgets needs finished runs of at least {MIN_POINTS} lengths, got {len(budgets)} "
            f"({', '.join(f'{steps:g}' for steps in budgets)} steps). Train with other values of max_duration."
        )
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
            # By relative errors, as the end is what is asked for: squared ones leave it to the first, large losses.
            curve=fit_loss_curve(run.steps, run.losses(), relative=True),
            step_seconds=1 / steps_per_second(run),
            hardware=run.hardware,
            end_step=float(run.steps[-1]),
            end_loss=float(run.losses()[-1]),
        )
        for run in kept
    ]


def speed_of(runs: Sequence[History], scheme: Scheme = "all_reduce") -> SpeedModel:
    """Fit the speed to runs of one model on different numbers of workers, and of parameter servers.

    Args:
        runs: With one global batch, on one kind of hardware.
        scheme: How gradients were exchanged: ``all_reduce``, as Composer does, or by parameter servers ``synchronous``
            or ``asynchronous``. The number of servers of each run is its tag ``servers``. Default: ``all_reduce``.

    Raises:
        NotEnoughEvidenceError: Hardware, model or batch differ; there are too few numbers of workers or of servers; or
            some runs had parameter servers and the scheme is another one.
    """
    kept = finished(runs)
    _same(kept, lambda run: run.hardware, "kinds of hardware")
    _same(kept, lambda run: (run.model, run.flops_per_example), "models")
    for run in kept:
        if (run.servers is None) != (scheme == "all_reduce"):
            said = "has no tag servers" if run.servers is None else f"had parameter servers ({run.servers})"
            raise NotEnoughEvidenceError(
                f"run {run.run_id} {said}, so its speed is not one of the exchange {scheme}. The tag servers says how "
                "many parameter servers a run had; select runs of one exchange (--tag)."
            )
    batches = [run.batch for run in kept]
    if max(batches) > 1.02 * min(batches):  # the last batch of an epoch is shorter
        raise NotEnoughEvidenceError(
            f"the runs have different global batches, from {min(batches):g} to {max(batches):g} examples; select one "
            "(--tag)"
        )
    speeds = [steps_per_second(run) for run in kept]
    servers = None if scheme == "all_reduce" else [run.servers or 1 for run in kept]
    return fit_speed(
        [run.workers for run in kept], speeds, batch=float(np.mean(batches)), servers=servers, scheme=scheme
    )


def shared_hardware(runs: Sequence[History], workers: int) -> str | None:
    """Return why the speed of so many workers cannot be predicted from these runs; None where it can.

    A prediction lets each worker compute its share as fast as one alone. Workers that share the cores of a machine do
    not.

    Args:
        runs: From which it would be predicted.
        workers: How many, beyond what these runs had.
    """
    crowded = next((run for run in runs if run.shares_hardware), None)
    if crowded is not None:
        return f"{crowded.workers} workers of run {crowded.run_id} shared the cores of one machine: not predictable"
    # Runs on one machine alone; with several machines each brings hardware of its own.
    room = min((run.room for run in runs if run.room is not None), default=None)
    one_machine = all(run.local_workers in (None, run.workers) for run in runs)
    if room is not None and one_machine and workers > room and any(run.workers > 1 for run in runs):
        return f"the machine of these runs has room for {room}: more workers share its cores, not predictable"
    return None


def steps_to_goal(runs: Sequence[History], goal: float) -> tuple[float, bool]:
    """Return after how many steps runs pass a goal, and whether all of them did so while they trained.

    Where one of them did not, the number comes from the loss curves that are fitted to the runs.

    Args:
        runs: Of one kind, with the metric of the goal.
        goal: Value of the metric; a run has passed it where it is strictly better.

    Returns:
        The median over the runs, and whether it was measured.

    Raises:
        NotEnoughEvidenceError: A run did not get there, and its rate decays or its curve levels off before the goal.
    """
    kept = finished(runs)
    level = goal if kept[0].mode == "min" else 1.0 - goal
    passed = [run.steps[run.losses() < level] for run in kept]
    if all(map(len, passed)):
        return float(np.median([steps[0] for steps in passed])), True
    for run in kept:
        if run.schedule == "decayed":
            raise NotEnoughEvidenceError(
                f"not all of {len(kept)} runs got past {goal:g}, and the learning rate of run {run.run_id} decays, so "
                "that no curve says when it would"
            )
    steps = float(np.median([fit_loss_curve(run.steps, run.losses()).steps_to(level) for run in kept]))
    if not math.isfinite(steps):
        raise NotEnoughEvidenceError(f"the curves of {len(kept)} runs level off before {goal:g}")
    return steps, False


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
            raise NotEnoughEvidenceError(_DECAYS.format(run.run_id))
        # What the recipe says is held against what was trained.
        batch = _number(run, over)
        # Without drop_last the last batch of each epoch is shorter, so the mean is below what the recipe says.
        if math.isfinite(run.batch) and not batch / 2 < run.batch <= batch * 1.001:
            raise NotEnoughEvidenceError(
                f"run {run.run_id} says {over}={batch:g}, and trained {run.batch:g} examples in a step. Name the path "
                "of the global batch size."
            )
        trials.append(
            Trial(
                round(batch),
                _number(run, tune),
                run.steps.tolist(),
                run.values.tolist(),
                run.diverged,
                run.run_id,
                # Other optimizers have no momentum of this kind, and other settings are not its rate.
                _number(run, "optimizer.momentum") if _is_momentum_rate(run, tune) else None,
            )
        )
    return trials


def _is_momentum_rate(run: History, tune: str) -> bool:
    found = recipe_value(run.recipe, "optimizer.momentum")
    return tune.removeprefix("recipe.") == "optimizer.lr" and found is not None


def attempts_of(
    runs: Sequence[History],
    over: str,
    tune: str | None = None,
    *,
    outcome: Outcome = "metric",
    goal: float | None = None,
    price_per_hour: float = 0.0,
) -> list[Attempt]:
    """Return what each run of a sweep over any setting came to.

    Args:
        runs: With their whole metric. A run that diverged came to nothing.
        over: Path of a number in the recipes, such as ``data.batch_size``.
        tune: Path of a tuned number. Default: None, nothing is tuned.
        outcome: ``metric``, its last value; or ``steps``, ``seconds`` or ``dollars`` of training. Default: ``metric``.
        goal: Value of the metric that ends the count of steps, seconds or dollars: those to the first row that is
            strictly better. Default: None, those of the whole run.
        price_per_hour: Dollars for an hour of one worker. Default: 0.0.

    Raises:
        NotEnoughEvidenceError: A recipe lacks one of the values; or there is a goal, and a learning rate decays.
    """
    found = []
    for run in runs:
        if goal is not None and run.schedule == "decayed":
            raise NotEnoughEvidenceError(_DECAYS.format(run.run_id))
        at, tuned = _number(run, over), None if tune is None else _number(run, tune)
        steps, seconds = run.end_step, run.train_seconds
        if goal is not None:
            sign = 1.0 if run.mode == "max" else -1.0
            rows = np.flatnonzero(sign * run.values > sign * goal)
            steps, seconds = (run.steps[rows[0]], run.seconds[rows[0]]) if len(rows) else (math.inf, math.inf)
        value = {
            "metric": run.values[-1] if len(run.values) else math.nan,
            "steps": steps,
            "seconds": seconds,
            "dollars": seconds / 3600 * run.workers * price_per_hour,
        }[outcome]
        found.append(Attempt(at, tuned, math.nan if run.diverged else float(value)))
    return found


def also_differs(runs: Sequence[History], known: Iterable[str | None]) -> list[str]:
    """Return the paths at which recipes differ beside the known ones, seeds and names.

    Args:
        runs: Of a sweep.
        known: Paths of what is swept and tuned; None is left out.
    """
    left = {*(path.removeprefix("recipe.") for path in known if path), "seed", "run_name", "archive", "save_folder"}
    paths = {path for run in runs for path in _paths(run.recipe)} - left
    return sorted(
        path
        for path in paths
        if not path.startswith("tags.") and len({repr(recipe_value(run.recipe, path)) for run in runs}) > 1
    )


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
