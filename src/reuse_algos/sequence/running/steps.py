"""One step of a sequence: it is trained, and what its arm says is harvested of its run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

import yaml

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.errors import SequenceError
from reuse_algos.sequence.launchers.base import Job, Launcher
from reuse_algos.sequence.planning.harvests import Harvest, missing_harvests
from reuse_algos.sequence.planning.plan import Plan, PlannedStep
from reuse_algos.sequence.progress import CHECKPOINTS, LOG, RECIPE, StepState, trained_state
from reuse_algos.sequence.running.halt import Halt
from reuse_algos.sequence.running.lease import LeaseKey

_LAST_LINES = 12


class _Dumper(yaml.SafeDumper):
    """Texts in quotes, since YAML 1.1, which PyYAML writes, takes other words for numbers than YAML 1.2 does."""


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


@dataclass
class StepWork:
    """Does the jobs of one step: to train it, and to harvest each signal of its run.

    Attributes:
        plan: The sequence.
        archive: Where the runs are.
        halt: Says when to end.
        launcher: Runs the jobs.
        lease: The sequence's lease, which the jobs watch.
    """

    plan: Plan
    archive: RunArchive
    halt: Halt
    launcher: Launcher
    lease: LeaseKey

    def complete(self, found: StepState, tell: Callable[[str], None]) -> StepState:
        """Train a step unless it is trained, and harvest what its run lacks; unless the time is up before.

        Args:
            found: The step, and what has become of it so far.
            tell: Told what begins after the training.
        """
        if found.run is None:
            found = self._train(found.step)
        # One job for each signal: what is harvested is committed, and a kill loses one signal at most.
        while found.run is not None and (missing := missing_harvests(found.run, found.step.harvests)):
            if self.halt.now:
                break
            tell(f"harvests {missing[0].name}")
            run = self._harvest(found.step, found.run, missing[0])
            if run is None:
                break
            found = trained_state(found.step, run)
        return found

    def _train(self, step: PlannedStep) -> StepState:
        _write_recipe(step)
        status = self.halt.run(self.launcher, Job(step, self.plan.config.ranks, self.lease))
        # A job that was ended reports a failure that is not one.
        if status and self.halt.now:
            return StepState(step, "interrupted")
        if status:
            raise _failed(step, step.title, status)
        # A diverged run is a result of the step, too, and must not be trained again.
        found = self.archive.runs(tags={key: step.tags[key] for key in ("sequence", "arm", "step")}, unhealthy=True)
        if not found:
            raise SequenceError(
                f"{step.title} ended without an error, but {self.archive.location} has no finished run of it. "
                f"{_end_of_log(step)}"
            )
        drop_checkpoints(step)
        return trained_state(step, found[0])

    def _harvest(self, step: PlannedStep, run: PriorRun, harvest: Harvest) -> PriorRun | None:
        """Return the run with one more signal; None where the time was up before its end."""
        _write_recipe(step)
        # On one rank: a harvest splits its work by shards, not by ranks.
        status = self.halt.run(self.launcher, Job(step, 1, self.lease, run.id, harvest))
        if status and self.halt.now:
            return None
        what = f"the harvest of {harvest.name} of {step.title}"
        if status:
            raise _failed(step, what, status)
        # The job wrote a newer generation; the one at hand does not know it.
        harvested = self.archive.run(run.id)
        if missing_harvests(harvested, [harvest]):
            raise SequenceError(f"{what} ended without an error and without all views. {_end_of_log(step)}")
        return harvested


def _write_recipe(step: PlannedStep) -> None:
    step.folder.mkdir(parents=True, exist_ok=True)
    partly = step.folder / f"{RECIPE}.part"
    partly.write_text(yaml.dump(step.values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
    # A job must never read half of a recipe.
    partly.replace(step.folder / RECIPE)


def _failed(step: PlannedStep, what: str, status: int) -> SequenceError:
    return SequenceError(
        f"{what} failed (exit status {status}). {_end_of_log(step)}\n"
        "Once its cause is gone, the same command goes on from here"
    )


def drop_checkpoints(step: PlannedStep) -> None:
    """Remove the checkpoints of a step that is trained: what later runs need of it is in the archive."""
    shutil.rmtree(step.folder / CHECKPOINTS, ignore_errors=True)


def _end_of_log(step: PlannedStep) -> str:
    path = step.folder / LOG
    try:
        lines = path.read_text(errors="replace").splitlines()[-_LAST_LINES:]
    except OSError:
        return ""
    return "\n".join([f"The end of {path}:", *(f"  {line}" for line in lines)])
