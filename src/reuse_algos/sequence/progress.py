"""How far a sequence has got: which steps the archive holds, and whether they still are what the file says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.archive.stores.opening import open_store
from reuse_algos.errors import ArchiveError, RecipeError, SequenceError
from reuse_algos.recipe.compose import load_recipe
from reuse_algos.sequence.planning.harvests import missing_harvests, remade
from reuse_algos.sequence.planning.plan import Plan, PlannedStep, differences, waits_for

__all__ = [
    "CHECKPOINTS",
    "LOG",
    "RECIPE",
    "StepState",
    "look_up_states",
    "open_for_reading",
    "open_store_of",
    "trained_state",
]

RECIPE = "recipe.yaml"
CHECKPOINTS = "checkpoints"
LOG = "log.txt"


@dataclass(frozen=True)
class StepState:
    """What has become of one step so far.

    Attributes:
        step: the step.
        state: ``finished`` (its run is in the archive, with all that is harvested of it), ``to harvest`` (it is
            trained), ``interrupted`` (it goes on from its checkpoint) or ``to do``.
        run: its run if it is trained.
    """

    step: PlannedStep
    state: Literal["finished", "to harvest", "interrupted", "to do"]
    run: PriorRun | None = None


def open_store_of(location: str) -> Any:
    """Return the store of an archive, to write to; it is made where there is none."""
    return open_store(location, create=True, read_only=False)


def open_for_reading(location: str) -> RunArchive | None:
    """The archive, or None where there is none yet. Nothing is written.

    Raises:
        ArchiveError: what is there cannot be read.
    """
    try:
        store = open_store(location, create=False, read_only=True)
        if store.size("archive.json") is None:
            return None
    except ArchiveError as error:
        if type(error) is ArchiveError and "://" not in location:
            return None  # no such folder; what is there and cannot be read is one of its children
        raise
    return RunArchive(store)


def look_up_states(plan: Plan, archive: RunArchive | None) -> list[StepState]:
    """The state of every step, in the order of the plan.

    Args:
        plan: the sequence.
        archive: where its runs are; None: nowhere yet.

    Raises:
        SequenceError: a finished or interrupted step was trained by another recipe than the file now says, or
            harvested otherwise, a step has two runs, or one is missing whose place later steps have taken (all of these
            are listed).
    """
    runs = _finished_runs(plan, archive)
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
        elif _has_checkpoint(step):
            faults += _changed_while_interrupted(step)
            states.append(StepState(step, "interrupted"))
        else:
            states.append(StepState(step, "to do"))
    faults += _out_of_order(states)
    if faults:
        raise SequenceError("\n  ".join([f"{plan.config.source}: the sequence cannot go on", *faults]))
    return states


def _changed_harvests(step: PlannedStep, run: PriorRun, everything: Sequence[PriorRun]) -> list[str]:
    """Harvests that are not what the file says, and those that come too late for runs that used such a signal."""
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
            f"{'; '.join(changed)}. Undo the change, or harvest the run anew (reuse-algos harvest --replace){also}"
        )
    if late:
        faults.append(
            f"{step.title} (run {run.id}) is still to be harvested of {', '.join(late)}, and runs have used what there "
            f"is of that without ({', '.join(trained)}): those to come would be trained otherwise. Undo the change, or "
            "remove these runs to train their steps again"
        )
    return faults


def trained_state(step: PlannedStep, run: PriorRun) -> StepState:
    """The state of a step whose run is in the archive."""
    return StepState(step, "to harvest" if missing_harvests(run, step.harvests) else "finished", run)


def _has_checkpoint(step: PlannedStep) -> bool:
    """Whether there is something to resume the step from."""
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
    """Steps that would see the runs of later ones, or whose run later ones have had to do without."""
    faults = []
    for index, missing in enumerate(states):
        if missing.run is not None:
            continue
        later = [
            other for other in states[index + 1 :] if other.run is not None and waits_for(other.step, missing.step)
        ]
        if later:
            runs = ", ".join(other.run.id for other in later if other.run is not None)
            faults.append(
                f"{missing.step.title} is not finished, but {len(later)} steps that come after it are, and one reuses "
                f"the other ({runs}). Remove these runs (reuse-algos rm) to train the steps again in order"
            )
    return faults
