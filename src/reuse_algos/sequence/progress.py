"""How far a sequence has got: which steps the archive holds, and whether they still are what the file says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.stores.opening import open_store
from reuse_algos.compare.reading import choose_metric
from reuse_algos.errors import ArchiveNotFoundError, RecipeError, SequenceError
from reuse_algos.recipe.compose import load_recipe
from reuse_algos.sequence.held import held_runs, value_at_end
from reuse_algos.sequence.planning.halving import survivors
from reuse_algos.sequence.planning.harvests import missing_harvests, remade
from reuse_algos.sequence.planning.order import differences, waits_for
from reuse_algos.sequence.planning.plan import Plan, PlannedStep
from reuse_algos.sequence.planning.schema import HalvingConfig, SequenceConfig

RECIPE = "recipe.yaml"
CHECKPOINTS = "checkpoints"
LOG = "log.txt"


@dataclass(frozen=True)
class StepState:
    """What has become of one step so far.

    Attributes:
        step: The step.
        state: One of ``finished`` (its run is in the archive, with all that is harvested of it), ``to harvest`` (it is
            trained), ``interrupted`` (it goes on from its checkpoint), ``to do``, or ``stopped`` (a search by halving
            has dropped its value, so it is not trained).
        run: Its run if it is trained.
        held: Whether the run is of another study, which had trained the same before.
    """

    step: PlannedStep
    state: Literal["finished", "to harvest", "interrupted", "to do", "stopped"]
    run: PriorRun | None = None
    held: bool = False

    def final(self, metric: str) -> float:
        """Return the metric at the step's end; NaN where the run diverged.

        Args:
            metric: Full name.

        Raises:
            ValueError: The step is not trained.
        """
        if self.run is None:
            raise ValueError(f"{self.step.title} is not trained")
        at_end = value_at_end(self.run, self.step, metric) if self.held else None
        return self.run.final_metric(metric) if at_end is None else at_end


def open_store_of(location: str) -> Store:
    """Return the store of an archive, to write to; it is made where there is none."""
    return open_store(location, create=True, read_only=False)


def open_for_reading(location: str) -> RunArchive | None:
    """Return the archive, or None where there is none yet. Nothing is written.

    Raises:
        ArchiveError: What is there cannot be read.
    """
    try:
        store = open_store(location, create=False, read_only=True)
        # A folder that a first run is about to fill: there is nothing to read yet.
        if store.size("archive.json") is None:
            return None
    except ArchiveNotFoundError:
        return None
    return RunArchive(store)


def look_up_states(plan: Plan, archive: RunArchive | None) -> list[StepState]:
    """Return the state of every step, in the order of the plan.

    Args:
        plan: The sequence.
        archive: Where its runs are; None: nowhere yet.

    Raises:
        SequenceError: A finished or interrupted step was trained by another recipe than the file now says, or its
            harvest had other settings, a step has two runs, or one is missing whose place later steps have taken (all
            of these are listed).
    """
    runs = _finished_runs(plan, archive)
    # A search asks for values; a comparison of costs asks for the training itself.
    use_held = plan.config.search is not None if plan.config.use_held is None else plan.config.use_held
    held = held_runs(plan, archive) if use_held and archive is not None else {}
    everything = [run for found in runs.values() for run in found]
    faults: list[str] = []
    states = []
    for step in plan.steps:
        found = runs.get((step.arm, step.name), [])
        if len(found) > 1:
            ids = " and ".join(run.id for run in found)
            faults.append(f"{step.title}: the archive has {len(found)} finished runs of it ({ids}). Remove all but one")
        if found:
            changed = differences(found[0].manifest.recipe or {}, step.recipe.record)
            if changed:
                faults.append(
                    f"{step.title} is finished (run {found[0].id}), and the recipe has changed since: "
                    f"{'; '.join(changed)}. Undo the change, give the sequence another name, or remove the run to "
                    "train the step again"
                )
            faults += _changed_harvests(step, found[0], everything)
            states.append(trained_state(step, found[0]))
        # Only where the sequence has no run of its own, which always counts first.
        elif step.title in held:
            states.append(StepState(step, "finished", held[step.title], held=True))
        elif _has_checkpoint(step):
            faults += _changed_while_interrupted(step)
            states.append(StepState(step, "interrupted"))
        else:
            states.append(StepState(step, "to do"))
    states = drop_losers(plan.config, states)
    faults += _out_of_order(states)
    if faults:
        raise SequenceError("\n  ".join([f"{plan.config.source}: the sequence cannot go on", *faults]))
    return states


def drop_losers(config: SequenceConfig, states: Sequence[StepState]) -> list[StepState]:
    """Return the states, with steps as ``stopped`` whose values a search by halving has dropped.

    A rung decides once all of its steps that were not dropped before are trained.

    Args:
        config: The sequence file.
        states: Every step.

    Raises:
        CompareError: The runs have no metric in common, or not the one that the file names.
    """
    found, search = list(states), config.search
    for arm in config.arms if search is not None else ():
        if search is not None and (halving := search.rungs_in(arm)) is not None:
            _drop_losers(found, arm, search.key, halving, config.metric)
    return found


def _drop_losers(found: list[StepState], arm: str, key: str, halving: HalvingConfig, metric: str | None) -> None:
    own = [k for k, state in enumerate(found) if state.step.arm == arm and state.step.rung is not None]
    # The archive alone says what goes on, so a sequence that was killed decides as it did before.
    for rung in range(1, halving.rungs):
        here = [found[k] for k in own if found[k].step.rung == rung and found[k].state != "stopped"]
        if not here or any(state.run is None for state in here):
            return  # every value has diverged, or the rung is not decided yet
        runs = [state.run for state in here if state.run is not None]
        name = choose_metric(runs, metric)
        finals: dict[str, list[float]] = {}
        for state in here:
            finals.setdefault(_value(state, key), []).append(state.final(name))
        # Mean over the seeds of a value: one lucky seed must not carry it.
        kept = survivors(finals, halving.eta, runs[0].metric_mode(name))
        for k in own:
            state = found[k]
            # What is trained already stays, whatever the search says of it now.
            trained = state.run is not None and not state.held
            if (state.step.rung or 0) > rung and not trained and _value(state, key) not in kept:
                found[k] = StepState(state.step, "stopped")


def _value(state: StepState, key: str) -> str:
    return json.dumps(state.step.point[key], sort_keys=True)


def _changed_harvests(step: PlannedStep, run: PriorRun, everything: Sequence[PriorRun]) -> list[str]:
    """Return faults: harvests that are not what the file says, or too late for runs that used such a signal."""
    if not step.harvests:
        return []
    users: dict[str, list[str]] = {harvest.name: [] for harvest in step.harvests}
    for other in everything:
        for use in other.manifest.prior_runs:
            for signal in users.keys() & set(use.signals) if use.run_id == run.id else ():
                users[signal].append(other.id)
    changed = remade(run, step.harvests)
    late = [one.name for one in missing_harvests(run, step.harvests) if users[one.name]]
    trained = sorted({name for names in users.values() for name in names})
    faults = []
    if changed:
        also = f", and remove the runs that used the old one ({', '.join(trained)})" if trained else ""
        faults.append(
            f"{step.title} is finished (run {run.id}), and what is harvested of it has changed since: "
            f"{'; '.join(changed)}. Undo the change, or harvest the run again (reuse-algos harvest --replace){also}"
        )
    if late:
        faults.append(
            f"{step.title} (run {run.id}) is still to be harvested of {', '.join(late)}, and runs have used what there "
            f"is of that without ({', '.join(trained)}): those to come would be trained otherwise. Undo the change, or "
            "remove these runs to train their steps again"
        )
    return faults


def trained_state(step: PlannedStep, run: PriorRun) -> StepState:
    """Return the state of a step whose run is in the archive."""
    return StepState(step, "to harvest" if missing_harvests(run, step.harvests) else "finished", run)


def _has_checkpoint(step: PlannedStep) -> bool:
    """Return whether there is something to resume the step from."""
    folder = step.folder / CHECKPOINTS
    return folder.is_dir() and any(folder.iterdir())


def _finished_runs(plan: Plan, archive: RunArchive | None) -> Mapping[tuple[str, str], list[PriorRun]]:
    found: dict[tuple[str, str], list[PriorRun]] = {}
    if archive is not None:
        for run in archive.runs(tags={"sequence": plan.config.name}, order="first", unhealthy=True):
            found.setdefault((run.tags.get("arm", ""), run.tags.get("step", "")), []).append(run)
    return found


def _changed_while_interrupted(step: PlannedStep) -> list[str]:
    try:
        then = load_recipe(step.folder / RECIPE).record
    except RecipeError:
        return [f"{step.title} was interrupted, and its recipe cannot be read any more. Remove {step.folder}"]
    changed = differences(then, step.recipe.record)
    before, now = (str(record.get("archive")) for record in (then, step.recipe.record))
    # The archive does not count among what is trained, but an interrupted run must be committed where it began.
    if _place(before) != _place(now):
        changed.append(f"archive was {before} and is now {now}, which has no record of what was trained")
    if not changed:
        return []
    return [
        f"{step.title} was interrupted, and the recipe has changed since: {'; '.join(changed)}. Undo the change, or "
        f"remove {step.folder} to begin the step again"
    ]


def _place(location: str) -> str:
    return location if "://" in location else str(Path(location).resolve())


def _out_of_order(states: Sequence[StepState]) -> list[str]:
    """Return faults: steps that would see the runs of later ones, or whose run later ones have had to do without."""
    faults = []
    for index, missing in enumerate(states):
        if missing.run is not None or missing.state == "stopped":
            continue
        later = [
            other
            for other in states[index + 1 :]
            if other.run is not None and not other.held and waits_for(other.step, missing.step)
        ]
        if later:
            runs = ", ".join(other.run.id for other in later if other.run is not None)
            faults.append(
                f"{missing.step.title} is not finished, but {len(later)} steps that come after it are, and one reuses "
                f"the other ({runs}). Remove these runs (reuse-algos rm) to train the steps again in order"
            )
    return faults
