"""The charts of a comparison: metric against cost, the Pareto front, and what later runs share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from reuse_algos.compare.estimates.interval import mean_interval
from reuse_algos.compare.kinds.training import shared_steps
from reuse_algos.compare.outcomes import Outcome, Outcomes
from reuse_algos.compare.question import Axis
from reuse_algos.compare.reading import INSTRUMENTS
from reuse_algos.compare.result import Comparison, Group
from reuse_algos.compare.show.drawing import Chart, Look, Series, axis_title, drawn_axes, looks_of
from reuse_algos.compare.show.words import format_amount, format_number, format_times, short

_LATER_RUNS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100)


def charts_of(comparison: Comparison, outcomes: Outcomes, axes: Sequence[Axis] | None = None) -> list[Chart]:
    """Return metric against cost, one chart per axis.

    Args:
        comparison: What to draw.
        outcomes: The runs that it was made from.
        axes: Axes to draw. Default: None, :func:`drawn_axes`.
    """
    groups, metric = outcomes.groups, short(comparison.metric)
    charts = []
    for axis in drawn_axes(comparison) if axes is None else axes:
        series: list[Series] = []
        for look in looks_of(comparison):
            group = comparison.groups[look.index]
            if comparison.method == "budgets":
                series.append(_budget_series(look, group, axis))
            else:
                series += _training_series(look, group, groups[look.name], axis, comparison)
        over = comparison.method == "budgets"
        title = axis_title(axis, comparison)
        charts.append(
            Chart(
                key=axis,
                title=f"{metric} against {title}",
                x_title=f"{title} (logarithmic)" if over else title,
                y_title=f"final {metric}" if over else metric,
                series=series,
                log=over,
                level=comparison.target,
                level_name=f"target {format_number(comparison.target)}",
            )
        )
    return charts


def _limits(low: float, high: float) -> str:
    return f" [{format_number(low)}, {format_number(high)}]" if math.isfinite(low) else ""


def _budget_series(look: Look, group: Group, axis: Axis) -> Series:
    # A logarithmic axis has no place for 0.
    points = [(p, cost) for p in group.points if (cost := p.costs.get(axis)) is not None and cost > 0]
    return Series(
        name=look.name,
        look=look,
        x=[cost for _, cost in points],
        y=[p.final.estimate for p, _ in points],
        low=[p.final.low for p, _ in points],
        high=[p.final.high for p, _ in points],
        labels=[
            f"{look.name}, {p.budget} (n={p.n})\n{format_amount(axis, cost)}: {format_number(p.final.estimate)}"
            + _limits(p.final.low, p.final.high)
            for p, cost in points
        ],
        hollow=[look.control] * len(points),
        line=True,
        counts=[p.used and math.isfinite(p.final.estimate) for p, _ in points],
    )


def _training_series(
    look: Look, group: Group, runs: Sequence[Outcome], axis: Axis, comparison: Comparison
) -> list[Series]:
    # A mean over some of the runs would jump where one of them was not evaluated.
    steps = shared_steps(runs)
    rows = [np.searchsorted(o.curve.steps, steps) for o in runs]
    values_RK = np.stack([o.curve.values[row] for o, row in zip(runs, rows, strict=True)])
    xs = [getattr(o.curve, axis).astype(np.float64) for o in runs]
    # Seconds differ from run to run, so a step is drawn at their mean.
    x_K = np.stack([x[row] for x, row in zip(xs, rows, strict=True)]).mean(axis=0)
    found = [mean_interval(values_R, comparison.confidence) for values_R in values_RK.T]
    series = [
        Series(
            name=f"{look.name} (n={group.n})",
            look=look,
            x=x_K.tolist(),
            y=[one.estimate for one in found],
            low=[one.low for one in found],
            high=[one.high for one in found],
            labels=[
                f"{look.name}, {format_amount(axis, x)}\n{format_number(one.estimate)}" + _limits(one.low, one.high)
                for x, one in zip(x_K.tolist(), found, strict=True)
            ],
            line=True,
            band=True,
            runs=[
                {"run_id": o.run_id, "x": x.tolist(), "y": o.curve.values.tolist()}
                for o, x in zip(runs, xs, strict=True)
            ],
        )
    ]
    if group.to_target is not None and group.to_target.reached:
        x = float(getattr(group.to_target, axis))
        label = f"{look.name} reaches the target\n{format_amount(axis, x)}"
        series.append(Series("", look, [x], [comparison.target], labels=[label], hollow=[look.control]))
    return series


def pareto(comparison: Comparison) -> list[Chart]:
    """Return all points with the Pareto front of their means, one chart per axis; none but over budgets."""
    if comparison.method != "budgets":
        return []
    metric, charts = short(comparison.metric), []
    for axis in drawn_axes(comparison):
        front = sorted(
            (cost, point.final.estimate)
            for point in comparison.points
            if point.on_pareto_front.get(axis) and (cost := point.costs.get(axis)) is not None and cost > 0
        )
        stairs: list[tuple[float, float]] = []
        for cost, value in front:
            # Between two points of a front the cheaper one is the best that is known.
            stairs += [(cost, stairs[-1][1])] if stairs else []
            stairs.append((cost, value))
        first = Look(0, "Pareto front", 0)
        series = [Series(first.name, first, [x for x, _ in stairs], [y for _, y in stairs], line=True, front=True)]
        for look in looks_of(comparison):
            plain = _budget_series(look, comparison.groups[look.index], axis)
            on = [p.on_pareto_front[axis] for p in comparison.groups[look.index].points if (p.costs.get(axis) or 0) > 0]
            labels = [
                f"{text}\non the Pareto front" * here or text for text, here in zip(plain.labels, on, strict=True)
            ]
            hollow = [not here for here in on]
            series.append(Series(look.name, look, plain.x, plain.y, labels=labels, hollow=hollow))
        title = axis_title(axis, comparison)
        charts.append(
            Chart(
                axis,
                f"Pareto front of {metric} against {title}",
                f"{title} (logarithmic)",
                f"final {metric}",
                series,
                True,
            )
        )
    return charts


def readings_charts(comparison: Comparison, outcomes: Outcomes) -> list[Chart]:
    """Return what instruments read over the steps, one chart per reading, a line per run; empty without readings.

    Args:
        comparison: What to draw.
        outcomes: The runs that it was made from.
    """
    groups = outcomes.groups
    names = dict.fromkeys(name for run in outcomes.runs for name in run.readings if name.startswith(INSTRUMENTS))
    charts = []
    for name in names:
        word = name.removeprefix(INSTRUMENTS).replace("_", " ")
        series = []
        for look in looks_of(comparison):
            lines = [run.readings[name] for run in groups[look.name] if run.readings.get(name)]
            for number, rows in enumerate(lines):
                x, y = [float(step) for step, _ in rows], [value for _, value in rows]
                labels = [f"{look.name}, step {step}\n{word}: {value:.4g}" for step, value in rows]
                unknown = [math.nan] * len(x)
                # One name for all runs of a group keeps the legend short.
                shown = look.name if number == 0 else ""
                series.append(Series(shown, look, x, y, unknown, unknown, labels, line=True, band=True))
        if series and "/" not in word:  # sizes of gradients are maps
            charts.append(Chart(word, f"{word} over the steps", "steps", word, series, log=False))
    return charts


def amortisation(comparison: Comparison) -> Chart | None:
    """Return the cost of K later runs with reuse, work done once included, as a share of K baseline runs; or None."""
    whole = _cost_of(comparison.groups[0])
    series = []
    for look in looks_of(comparison):
        group = comparison.groups[look.index]
        known = group.break_even
        # The cost of a side that is only a limit does not tell what is paid back.
        if known is None or group.target_bound or comparison.groups[0].target_bound:
            continue
        # Work done once is taken out of each run and shared among all.
        each = _cost_of(group) - known.harvest_seconds
        once = {"harvest": known.harvest_seconds}
        if known.prior_training_seconds > 0:
            once["harvest and prior runs"] = known.harvest_seconds + known.prior_training_seconds
        for counted, seconds in once.items():
            if seconds <= 0 or not math.isfinite(each + seconds + whole) or whole <= 0:
                continue
            share = [(k * each + seconds) / (k * whole) for k in _LATER_RUNS]
            labels = [
                f"{look.name}, {counted} counted\n{k} later runs: {format_times(s)} of the cost"
                for k, s in zip(_LATER_RUNS, share, strict=True)
            ]
            shown = Look(look.index, look.name, look.colour, control=counted != "harvest")
            hollow = [shown.control] * len(share)
            series.append(
                Series(f"{look.name}: {counted}", shown, [float(k) for k in _LATER_RUNS], share, labels=labels,
                       hollow=hollow, line=True)
            )  # fmt: skip
    if not series:
        return None
    return Chart(
        key="amortisation",
        title="Cost of later runs with reuse, as a share of plain runs",
        x_title="later runs that share it",
        y_title="cost, as a share of as many baseline runs",
        series=series,
        log=True,
        level=1.0,
        level_name="break-even",
    )


def _cost_of(group: Group) -> float:
    if group.to_target is not None:
        return group.to_target.cost_seconds
    cost = group.cost_to_target.get("cost_seconds")
    return math.nan if cost is None else cost.estimate
