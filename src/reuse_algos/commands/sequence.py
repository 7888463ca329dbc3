"""``reuse-algos sequence``: runs one after the other, with and without reuse, and what each way cost."""

from __future__ import annotations

import argparse
import sys

from reuse_algos.commands.common import (
    Subparsers,
    add_command,
    add_json,
    console,
    positive,
    print_json,
    printable,
    seconds_of,
)

_DETAILS = """\
FILE names recipes, what differs from step to step (seeds, learning rates, amounts of data), and the
arms: the same steps with and without the algorithms that reuse earlier runs. It is a YAML file, or
the name of one that comes with the library, such as sequences/five_seeds. Its values are changed by
key=value.

Each step is a process of its own, which sees the archive of those before it. Whatever is killed can
be started again with the same command: finished steps are not trained again, an interrupted one
goes on from its checkpoint. When all are finished, it prints the report and trains nothing.
Signals that an arm names under harvest are harvested of each of its runs before a step that reuses
it starts.

With --jobs, steps that do not reuse each other are trained side by side; they share the machine, so
their seconds tell less. When a --time-limit is up, the steps that are being trained are ended, and
the exit code is 3: the same command goes on with what is left.

With --launcher ray or slurm the steps run on a cluster, --jobs of them at a time, with what each
recipe asks for (resources: {gpus: 1, cpus: 4}). The archive must be one that all nodes see, and so
must the folder where a step is to go on after its node died. Studies (benchmarks/study.py) and the
commands that only read an archive need no launcher."""

_LEFT = 3


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "sequence",
        "train a sequence of runs with and without reuse, and compare the total costs",
        _DETAILS,
        """
        reuse-algos sequence yamls/sequences/five_seeds.yaml --dry-run
        reuse-algos sequence sequences/five_seeds grid.seed=[1,2] --archive /tmp/archive
        reuse-algos sequence sequences/five_seeds overrides.max_duration=5ep --json
        reuse-algos sequence sequences/five_seeds --jobs 2 --time-limit 50m
        """,
    )
    parser.add_argument("file", metavar="FILE", help="file of the sequence")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that replace those of the file")
    parser.add_argument("--archive", metavar="DIR", help="folder or URL of the archive, in place of the file's")
    parser.add_argument("--dry-run", action="store_true", help="check every recipe, load its data, list the steps")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="steps trained side by side (default: 1)")
    parser.add_argument(
        "--launcher",
        choices=("local", "ray", "slurm"),
        default="local",
        help="where the steps run: on this machine, on a running Ray cluster, or on Slurm (default: local)",
    )
    parser.add_argument("--time-limit", type=seconds_of, metavar="TIME", help="such as 90s, 9m or 1.5h")
    add_json(parser)
    parser.set_defaults(
        run=run,
        kept="finished steps stay in the archive, and the same command goes on with the others",
    )


def run(args: argparse.Namespace) -> int:
    """Run, or go on with, a sequence, and return 0 when all of it is finished, 3 when the time was up before."""
    from reuse_algos.archive import RunArchive
    from reuse_algos.recipe.building.data_check import check_data
    from reuse_algos.recipe.shipped import recipe_path
    from reuse_algos.sequence import (
        load_sequence,
        look_up_states,
        plan_sequence,
        print_plan,
        print_report,
        run_sequence,
        sequence_report,
    )
    from reuse_algos.sequence.launchers import find_launcher
    from reuse_algos.sequence.progress import open_for_reading
    from reuse_algos.sequence.reporting.render import plan_records

    config = load_sequence(recipe_path(args.file), args.overrides, archive=args.archive)
    plan = plan_sequence(config)
    if args.dry_run:
        states = look_up_states(plan, open_for_reading(config.archive))
        # Before anything is printed, as an error must leave stdout empty for --json.
        checked = check_data((f"{step.arm}/{step.name}", step.recipe) for step in plan.steps)
        if args.json:
            print_json({"name": config.name, "archive": config.archive, "steps": plan_records(states)})
        else:
            print_plan(states, console())
            print("\n".join(map(printable, checked)))
        return 0
    # With --json stdout holds one value and nothing else.
    progress = sys.stderr if args.json else sys.stdout
    states = run_sequence(
        plan,
        jobs=args.jobs,
        time_limit=args.time_limit,
        launcher=find_launcher(args.launcher, config.folder),
        say=lambda line: print(printable(line), file=progress, flush=True),
    )
    left = sum(found.state not in ("finished", "stopped") for found in states)
    if left:
        print(f"{left} of {len(states)} steps are left; the same command goes on with them", file=progress, flush=True)
        return _LEFT
    # Opened again: the jobs are other processes, and have committed since.
    report = sequence_report(config, states, RunArchive(config.archive, read_only=True))
    if args.json:
        print_json(report.to_dict())
    else:
        print_report(report, console())
    return 0
