"""Train a study: a grid of methods, budgets and seeds, several runs at a time, whenever and as far as the time allows.

A study is a sequence file (:class:`reuse_algos.sequence.SequenceConfig`): its arms are the methods, and its grid has
``max_duration``, the budgets, and ``seed``. Every run has a schedule of its own that is fully decayed at its budget,
and only its last evaluation counts. Runs that others reuse come first.

Whatever is stopped or killed goes on where it was with the same command: finished runs are in the archive and are not
trained again, an interrupted one goes on from its Composer checkpoint. Each finished run is one JSON line at the end of
``--out``, with everything that is needed to judge it: final metric, every cost, prior runs, recipe, hardware, versions,
commit, archive, command. A file takes the runs of one archive: to train a study again that has a results file in the
repository, name another file.

    python benchmarks/study.py benchmarks/studies/cifar100_small.yaml --jobs 2 --time-limit 50m --out mine.jsonl
    python benchmarks/study.py benchmarks/studies/cifar100_small.yaml overrides.data.name=npz overrides.data.path=c.npz
    python benchmarks/study.py benchmarks/studies/cifar100_small.yaml --arms plain,grown-warm   # and what they reuse
    python benchmarks/study.py benchmarks/studies/cifar100_small.yaml --summary --out mine.jsonl
    python benchmarks/study.py benchmarks/studies/cifar100_small.yaml --summary   # of the file in the repository

Seconds are only as good as the machine is quiet, and with ``--jobs`` runs share it: what a step costs is for
``overhead.py`` to say.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from job_runner import ResultsFile, command_line
from study_file import StudyFile
from study_summary import advice, by_metric, compare_records

from reuse_algos.archive import RunArchive
from reuse_algos.commands.common import console, seconds_of
from reuse_algos.compare.show.terminal import comparison_table
from reuse_algos.errors import ReuseAlgosError
from reuse_algos.recipe.grouping import trained_by
from reuse_algos.sequence import StepState, load_sequence, look_up_states, plan_sequence, run_sequence
from reuse_algos.sequence.progress import open_for_reading

RESULTS = Path(__file__).parent / "results"
_LEFT_STATES = {"to do": "", "interrupted": " (begun)", "to harvest": " (trained, to be harvested)"}
_WHERE_DATA_LIES = ("data.path", "data.root", "data.download")


def record_of(found: StepState, archive_id: str, command: str) -> dict[str, Any]:
    """Return a finished run as a line of the results file.

    Args:
        found: its step, finished.
        archive_id: of the archive that holds it.
        command: that trained it.
    """
    run = found.run
    assert run is not None
    manifest = run.manifest
    metric = manifest.monitor or ""
    where, cost = manifest.environment, manifest.cost
    recipe = {key: value for key, value in trained_by(manifest.recipe or {}).items() if key not in _WHERE_DATA_LIES}
    return {
        "study": run.tags["sequence"],
        "method": run.tags["arm"],
        "step": run.tags["step"],
        "control_of": run.tags.get("control_of"),
        "role": run.tags.get("role"),
        "seed": manifest.seed,
        "budget": found.step.recipe.settings.max_duration,
        "metric": metric,
        "mode": manifest.monitor_mode,
        "final": run.final_metric() if metric else None,
        "finals": {name: run.final_metric(name) for name in run.metric_names if name.startswith("metrics/eval/")},
        "health": manifest.health,
        "steps": manifest.progress.batch,
        "samples": manifest.progress.sample,
        "epochs": manifest.progress.epoch,
        "train_seconds": cost.train_seconds,
        "setup_seconds": cost.setup_seconds,
        "harvest_seconds": sum(use.harvest_seconds for use in manifest.prior_runs),
        "train_flops": cost.train_flops,
        "flops_per_example": None if manifest.model is None else manifest.model.flops_per_example,
        "prior_runs": sorted({use.run_id for use in manifest.prior_runs}),
        "run_id": run.id,
        "archive_id": archive_id,
        "recipe": recipe,
        "hardware": None if where is None else where.hardware,
        "versions": None if where is None else where.versions,
        "commit": None if where is None else where.git_commit,
        "finished": manifest.committed_at,
        "command": command,
    }


def train(options: argparse.Namespace, out: ResultsFile) -> int:
    """Train what the time allows; 3 where runs are left."""
    config = load_sequence(options.study, options.overrides, archive=options.archive)
    plan = plan_sequence(config)
    arms = None if options.arms is None else options.arms.split(",")
    lines = StudyFile(out, config.name)
    there = lines.records()  # before the archive is looked at: it has a run before the file has its line
    archive = open_for_reading(config.archive)
    lines.check(there, plan, look_up_states(plan, archive), archive, arms)
    archive_id = RunArchive(config.archive, create=True).archive_id
    command = command_line(__file__)

    def keep(found: StepState) -> None:
        lines.add(record_of(found, archive_id, command))

    try:
        run_sequence(
            plan,
            jobs=options.jobs,
            time_limit=options.time_limit,
            arms=arms,
            say=lambda line: print(line, flush=True),
            finished=keep,
        )
    finally:
        left = [
            found
            for found in look_up_states(plan, open_for_reading(config.archive))
            if found.state not in ("finished", "stopped")
        ]
        print(f"\n{len(plan.steps) - len(left)} of {len(plan.steps)} runs are finished", flush=True)
        for arm in config.arms:
            names = [f"{found.step.name}{_LEFT_STATES[found.state]}" for found in left
                     if found.step.arm == arm]  # fmt: skip
            if names:
                print(f"  left of {arm}: {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
    needed = {plan.steps[place].title for place in plan.needed(arms)}
    return 3 if any(found.step.title in needed for found in left) else 0


def summarise(options: argparse.Namespace, out: ResultsFile) -> None:
    """Print the budget-accuracy curves of the study's methods and the distances between them."""
    config = load_sequence(options.study, options.overrides)
    arms = None if options.arms is None else options.arms.split(",")
    records = by_metric(StudyFile(out, config.name).records(), options.metric)
    baseline = options.baseline or config.baseline or "plain"
    out_of = console()
    out_of.print(comparison_table(compare_records(records, baseline, arms, judge_by=options.judge_by)))
    if options.no_advice:
        return
    out_of.print("\nWhat these runs recommend")
    for line in advice(records, baseline, arms, judge_by=options.judge_by):
        out_of.print(f"- {line}", markup=False, highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="the study's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values in place of those of the file")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, which share the machine")
    parser.add_argument("--time-limit", type=seconds_of, metavar="TIME", help="such as 9m: stop then, to go on later")
    parser.add_argument("--arms", help="train these only, and what they reuse; separated by commas")
    parser.add_argument("--archive", help="folder or URL of the archive, in place of the file's")
    parser.add_argument("--out", help="results file (default: benchmarks/results/<the file's name>.jsonl)")
    parser.add_argument("--summary", action="store_true", help="only the summary of what is in the results file")
    parser.add_argument("--no-advice", action="store_true", help="summarise without what the runs recommend")
    parser.add_argument("--baseline", help="summarise against this arm, in place of the study's baseline")
    parser.add_argument("--metric", help="summarise by another evaluation metric than the one that orders the runs")
    parser.add_argument("--judge-by", default="steps", help="axis of the verdicts (default: steps)")
    options = parser.parse_intermixed_args(argv)
    out = ResultsFile(options.out or RESULTS / f"{Path(options.study).stem}.jsonl")
    try:
        if not options.summary:
            return train(options, out)
        summarise(options, out)
        return 0
    except ReuseAlgosError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
