"""Read the runs of an archive for a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from reuse_algos.archive.format.metrics import infer_mode, resolve_metric
from reuse_algos.compare.outcomes import History, LeftOut, Outcome, Outcomes
from reuse_algos.compare.question import Mode, Question
from reuse_algos.errors import CompareError, ReuseAlgosError, SignalNotFoundError

if TYPE_CHECKING:
    from reuse_algos.archive import PriorRun, RunArchive

INSTRUMENTS = "instruments/"
"""Readings of :class:`~reuse_algos.callbacks.TrainingInstruments` are metrics of this prefix."""

READ_INSIDE = (INSTRUMENTS, "forecast/")

GROUP_KEYS = "tags.<key>, run_name, model.name, dataset.name, seed or recipe.<dotted path>"


def _look_up(run: PriorRun, path: str) -> object:
    head, _, rest = path.partition(".")
    manifest = run.manifest
    if head == "tags" and rest:
        return manifest.tags.get(rest)
    if path in ("run_name", "seed"):
        return getattr(manifest, path)
    if path in ("model.name", "dataset.name"):
        record = getattr(manifest, head)
        return None if record is None else record.name
    if head == "recipe" and rest:
        node: object = manifest.recipe
        for part in rest.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node
    raise CompareError(f"runs cannot be grouped by {path!r}: use {GROUP_KEYS}, or several of them with commas between")


def group_of(run: PriorRun, group_by: str) -> str | None:
    """Return the name of a run's group, or None if it lacks a value.

    ``group_by`` is one of :data:`GROUP_KEYS`, or several joined by commas; the name then joins the values with " / ".

    Raises:
        CompareError: ``group_by`` names something else.
    """
    # A seed of 0 is a value; only None is missing.
    values = [_look_up(run, path.strip()) for path in group_by.split(",")]
    return None if any(value is None for value in values) else " / ".join(str(value) for value in values)


def choose_metric(runs: Sequence[PriorRun], metric: str | None) -> str:
    """Return the full name of the metric to compare by.

    Args:
        runs: All runs of the comparison.
        metric: A full name, or its last part (:func:`~reuse_algos.archive.format.metrics.resolve_metric`); None takes
            the monitor that all runs share.

    Raises:
        CompareError: No common monitor, or an unknown or ambiguous name.
    """
    # Of all runs: a metric that one of them lacks is an error of its own, with its name.
    known = sorted({name for run in runs for name in run.metric_names})
    if metric is None:
        monitors = sorted({run.manifest.monitor or "" for run in runs})
        if len(monitors) == 1 and monitors[0]:
            return monitors[0]
        said = "no run names one" if monitors == [""] else "the runs name " + ", ".join(m or "none" for m in monitors)
        raise CompareError(f"which metric? There is no common monitor ({said}). Known metrics: {', '.join(known)}")
    try:
        return resolve_metric(metric, known, "the runs have")
    except SignalNotFoundError as error:
        raise CompareError(str(error)) from error


def read_outcome(run: PriorRun, metric: str, group: str = "") -> Outcome | None:
    """Read one run, or return None if it has no value of the metric.

    Where a step was evaluated more than once, as at the end of an epoch and of the run, the last evaluation counts.

    Args:
        run: A run of an archive.
        metric: Full name.
        group: Name of its group. Default: empty.
    """
    try:
        history = run.metric(metric)
    except SignalNotFoundError:
        return None
    step = np.asarray(history.step, dtype=np.int64)
    if step.size == 0:
        return None
    # np.unique gives first occurrences, so look from the end.
    _, from_end = np.unique(step[::-1], return_index=True)
    keep = step.size - 1 - from_end
    manifest = run.manifest
    harvest = sum((use.harvest_seconds for use in manifest.prior_runs), 0.0)
    seconds = np.asarray(history.train_seconds, dtype=np.float64)[keep]
    samples = np.asarray(history.sample, dtype=np.int64)[keep]
    values = np.asarray(history.value, dtype=np.float64)[keep]
    # The recipe's own words are the budget's label: 5ep says more than 250 steps.
    duration = (manifest.recipe or {}).get("max_duration")
    return Outcome(
        group=group,
        seed=manifest.seed,
        budget=f"{step[keep][-1]}ba" if duration is None else str(duration),
        steps=float(step[keep][-1]),
        samples=float(samples[-1]),
        final=float(values[-1]),
        train_seconds=float(seconds[-1]),
        setup_seconds=manifest.cost.setup_seconds,
        harvest_seconds=harvest,
        # Those of the whole run, which may have trained on after the metric's last value.
        flops=manifest.cost.train_flops if samples[-1] >= manifest.progress.sample else None,
        prior_run_ids=tuple(sorted({use.run_id for use in manifest.prior_runs})),
        run_id=run.id,
        control_of=manifest.tags.get("control_of"),
        role=manifest.tags.get("role"),
        health=manifest.health,
        history=History(
            steps=step[keep],
            samples=samples,
            epochs=np.asarray(history.epoch, dtype=np.int64)[keep],
            train_seconds=seconds,
            cost_seconds=seconds + (manifest.cost.setup_seconds + harvest),
            values=values,
        ),
        manifest=manifest,
        readings=readings_of(run, READ_INSIDE),
    )


def readings_of(run: PriorRun, prefixes: tuple[str, ...]) -> dict[str, list[tuple[int, float]]]:
    """Return full name -> (step, value) of a run's metrics whose names begin so.

    Args:
        run: A run of an archive.
        prefixes: Such as ``instruments/``.
    """
    found = {}
    for name in run.metric_names:
        if name.startswith(prefixes):
            rows = run.metric(name)
            pairs = zip(rows.step.tolist(), rows.value.tolist(), strict=True)
            found[name] = [(int(step), float(value)) for step, value in pairs]
    return found


def read_outcomes(archive: RunArchive, question: Question, tags: Mapping[str, Any] | None = None) -> Outcomes:
    """Read all finished runs of an archive; diverged ones take part.

    Runs with the tag ``role: prior`` were trained to be reused, and are not a method to compare: they are left out,
    unless ``tags`` or the grouping key ask for the role.

    Args:
        archive: Where the runs are; it is only read.
        question: Its ``group_by``, ``metric`` and ``mode``.
        tags: Read only runs with these tags (a list of values means any of them). Default: None, all.

    Raises:
        CompareError: No runs; an unknown metric or grouping key; a run without the metric.
    """
    # Unfinished ones too, to say how many are left out: they may have died of what is compared.
    found = archive.runs(tags=tags, order="first", unfinished=True, unhealthy=True)
    groups: dict[str, list[PriorRun]] = {}
    without_key, reused = [], []
    # Whoever groups or selects by the role wants to see these runs.
    by_role = "role" in (tags or {}) or "tags.role" in question.group_by
    for run in (run for run in found if run.finished):
        name = group_of(run, question.group_by)
        # A run that was trained to be reused is not a method, but the cost of one.
        if run.tags.get("role") == "prior" and not by_role:
            reused.append(run.id)
        elif name is None:
            without_key.append(run.id)
        else:
            groups.setdefault(name, []).append(run)
    left_out = LeftOut([run.id for run in found if not run.finished], without_key, reused)
    if not groups:
        raise CompareError(_nothing(archive, question.group_by, tags, left_out))
    members = [run for group in groups.values() for run in group]
    metric = choose_metric(members, question.metric)
    runs = _read(groups, lambda run, name: read_outcome(run, metric, name), metric)
    return Outcomes(
        runs=runs,
        metric=metric,
        mode=question.mode or _recorded_mode(members, metric),
        group_by=question.group_by,
        archive=archive.location,
        archive_id=archive.archive_id,
        prior_seconds=_prior_seconds(archive, runs),
        left_out=left_out,
    )


def _recorded_mode(runs: Sequence[PriorRun], metric: str) -> Mode:
    # Runs that disagree about the direction are read by the name, as if none had said it.
    modes: set[Mode] = {run.manifest.monitor_mode for run in runs if run.manifest.monitor == metric}
    return modes.pop() if len(modes) == 1 else infer_mode(metric)


def _nothing(archive: RunArchive, group_by: str, tags: Any, left_out: LeftOut) -> str:
    which = f" with the tags {dict(tags)}" if tags else ""
    if left_out.without_key:
        runs = f"{len(left_out.without_key)} finished runs{which}"
        tag = next((key[len("tags.") :] for key in group_by.split(",") if key.startswith("tags.")), None)
        tagged = f", or tag them: RunRecorder(..., tags={{{tag!r}: 'mine'}}), or tags.{tag}=mine in a recipe"
        return (
            f"none of the {runs} in {archive.location} has {group_by}: group by another key (--group-by run_name)"
            f"{tagged if tag else ''}"
        )
    hint = f" ({len(left_out.unfinished)} are not finished)" if left_out.unfinished else ""
    hint += f" ({len(left_out.reused)} with the tag role: prior are left out)" if left_out.reused else ""
    return (
        f"there are no finished runs{which} in {archive.location}{hint}; `reuse-algos runs {archive.location} --all` "
        "lists every run"
    )


def _read(
    groups: Mapping[str, Sequence[PriorRun]], read: Callable[[PriorRun, str], Outcome | None], metric: str
) -> list[Outcome]:
    outcomes, missing = [], []
    for name, runs in groups.items():
        for run in runs:
            outcome = read(run, name)
            if outcome is None:
                missing.append(f"{run.id} ({name})")
            else:
                outcomes.append(outcome)
    if missing:
        raise CompareError(
            f"metric {metric} is missing in {len(missing)} of the runs: {', '.join(missing[:10])}"
            f"{', ...' if len(missing) > 10 else ''}. Compare by a metric that all have, or select runs by tags."
        )
    return outcomes


def _prior_seconds(archive: RunArchive, runs: Sequence[Outcome]) -> dict[str, float]:
    found = {}
    there = set(archive.run_ids(uncommitted=True))  # a run that is not there is looked for by name, among all
    for run_id in sorted({run_id for run in runs for run_id in run.prior_run_ids} & there):
        try:
            cost = archive.run(run_id).manifest.cost
        except ReuseAlgosError:  # damaged, or deleted since
            continue
        found[run_id] = cost.train_seconds + cost.setup_seconds
    return found
