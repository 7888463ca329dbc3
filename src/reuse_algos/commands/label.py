"""``reuse-algos label``: archived teachers label a pool of images for the students that come after them."""

from __future__ import annotations

import argparse
import dataclasses

from reuse_algos.commands.common import (
    Subparsers,
    UsageError,
    add_archive,
    add_command,
    add_json,
    console,
    open_archive,
    positive,
    print_json,
)


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "label",
        "score an unlabelled pool of images with archived models, for later runs to train on",
        "The pool is the training part of the data that FILE describes: a YAML file with a section data, such\n"
        "as the student's recipe. Its labels are not looked at. The scores are archived as a run that trained\n"
        "nothing, and students name it in data.pseudo_labels. Several teachers are averaged.\n\n"
        "A pool that shares images with the evaluation part of the same data is refused. What was interrupted\n"
        "goes on where it stopped when the same command is given again.",
        """
        reuse-algos label ./archive digits-teacher-1 --data pool.yaml --keep 10 --name pool-1
        reuse-algos label ./archive teacher-1,teacher-2 --data pool.yaml --name pool-2 --weights best
        """,
    )
    add_archive(parser)
    parser.add_argument("run_ids", metavar="RUN[,RUN]", help="ids or unique names of the teachers")
    parser.add_argument("--data", metavar="FILE", required=True, help="YAML file whose section data describes the pool")
    parser.add_argument(
        "--keep", type=positive, default=10, metavar="K", help="scores kept for each image, the largest (default: 10)"
    )
    parser.add_argument("--name", required=True, metavar="NAME", help="name of the pool's run")
    parser.add_argument("--weights", default="last", metavar="NAME", help="which weights (default: last)")
    parser.add_argument("--batch-size", type=positive, default=512, metavar="B", help="images per forward pass")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--precision", metavar="NAME", help="such as amp_bf16 (default: that of a teacher's recipe)")
    parser.add_argument(
        "--trust-data",
        action="store_true",
        help="open the files that a teacher's archived recipe names, where the pool is another dataset than its own",
    )
    add_json(parser)
    parser.set_defaults(
        run=run,
        kept="the blocks that were committed stay in the archive, and the same command goes on behind them",
    )


def run(args: argparse.Namespace) -> int:
    """Label a pool; 0."""
    from reuse_algos.harvest import LabelConfig, label_pool
    from reuse_algos.recipe.building.recipe_data import data_section

    runs = [name.strip() for name in args.run_ids.split(",")]
    if "" in runs:
        raise UsageError(f"RUN[,RUN] has an empty name: {args.run_ids!r}")
    done = label_pool(
        open_archive(args, read_only=False),
        LabelConfig(runs, args.keep, args.weights, args.batch_size, args.precision, args.trust_data),
        data_section(args.data),
        name=args.name,
        device=args.device,
    )
    if args.json:
        print_json(dataclasses.asdict(done))
    else:
        console().print(
            f"{done.run_id}: {done.rows} images scored by {', '.join(done.teachers)}, {done.computed} of them now; "
            f"{done.seconds:.1f} s",
            soft_wrap=True,
        )
    return 0
