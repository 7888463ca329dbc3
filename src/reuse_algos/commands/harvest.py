"""``reuse-algos harvest``: let an archived model fill signals that its run did not capture."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from reuse_algos.commands.common import (
    Subparsers,
    UsageError,
    add_archive,
    add_command,
    add_data,
    add_json,
    console,
    data_of,
    open_archive,
    positive,
    print_json,
)

# Options, and the fields of an attack that they set.
_FIELDS = {
    "attack": "method",
    "epsilon": "epsilon",
    "steps": "steps",
    "step_size": "step_size",
    "norm": "norm",
    "targeted": "targeted",
    "attack_seed": "seed",
}


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "harvest",
        "pass a run's training data through its archived model and keep the signals",
        "Signals: logits, features and adversarial (of the views that the run was trained on), and the\n"
        "scores el2n, grand and grand_last_layer (of the examples without augmentation, unless --views is\n"
        "given). Those of other weights than the last are kept beside them, such as el2n.ep0005; the\n"
        "logits of several weights are the members of an ensemble (reuse-algos scores --score\n"
        "mutual_information).\n\n"
        "features are what the model's last layer is given, for later runs that train that layer alone\n"
        "(prior_run_warm_start with freeze: backbone and source: cached); with --plain they are of the\n"
        "examples without augmentation. They are kept as float32, 4 bytes a number.\n\n"
        "adversarial keeps perturbations of the images that fool the archived model. Their sizes are those of\n"
        "pixels from 0 to 1, whatever the normalisation; a signal is of one attack, and --replace makes it\n"
        "again.\n\n"
        "A recipe in an archive is somebody's word. The files that it names are opened with --trust-data\n"
        "only; otherwise name the data with --data name=cifar100 --data root=FOLDER. The digits need\n"
        "neither.\n\n"
        "With --shards any number of processes, on any machines (an array of Slurm, tasks of Ray), each\n"
        "compute one part by --shard; the same command without --shard puts the parts together in one\n"
        "commit, and computes those that are missing. The rows are those of one process bit for bit. With\n"
        "--launcher one command does all of it.\n\n"
        "The seconds it takes are recorded with the run, and count in every comparison of runs that use\n"
        "the signals.",
        """
        reuse-algos harvest ./archive resnet56-17-0123abcdef --signals logits --views 32 --trust-data
        reuse-algos harvest ./archive resnet56-17-0123abcdef --signals logits --weights best --json
        reuse-algos harvest ./archive resnet56-17-0123abcdef --signals el2n,grand --weights ep0005,ep0010
        reuse-algos harvest ./archive resnet56-17 --signals features --plain
        reuse-algos harvest ./archive resnet56-17 --signals adversarial --attack pgd --epsilon 8/255
        reuse-algos harvest resnet56-17-0123abcdef --archive ./archive --views 32
        reuse-algos harvest ./archive resnet56-17 --shards 16 --shard 3 --parts ./parts
        reuse-algos harvest ./archive resnet56-17 --shards 16 --parts ./parts
        reuse-algos harvest ./archive resnet56-17 --shards 16 --parts ./parts --launcher ray --jobs 8
        """,
    )
    add_archive(parser)
    parser.add_argument("run_id", metavar="RUN", help="id or unique name of the run")
    parser.add_argument(
        "--signals",
        metavar="NAMES",
        action="append",
        default=[],
        help="signals to fill, with commas between: logits, el2n, grand, grand_last_layer, features, adversarial "
        "(default: logits)",
    )
    parser.add_argument(
        "--views",
        type=positive,
        metavar="N",
        help="views 0 to N-1 of each example (default: those of the run, for scores the plain one)",
    )
    parser.add_argument("--plain", action="store_true", help="features of the examples without augmentation")
    parser.add_argument(
        "--weights", default="last", metavar="NAMES", help="which weights, with commas between (default: last)"
    )
    parser.add_argument("--top-k", type=positive, metavar="K", help="keep the K largest logits (default: all)")
    parser.add_argument(
        "--memory", type=positive, metavar="MIB", help="bound on the gradients that grand holds at once (default: 256)"
    )
    parser.add_argument("--batch-size", type=positive, metavar="B", help="examples per forward pass")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--precision", metavar="NAME", help="such as amp_bf16 (default: that of the run's recipe)")
    add_data(parser)
    parser.add_argument(
        "--replace",
        action="store_true",
        help="harvest again what is there; the first new view takes the place of all of the signal",
    )
    _add_shards(parser)
    _add_attack(parser)
    add_json(parser)
    parser.set_defaults(
        run=run,
        kept="the views that were finished stay in the archive, and the same command goes on with the others",
    )


def _add_shards(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("of several processes")
    group.add_argument("--shards", type=positive, metavar="N", help="split each view into N parts")
    group.add_argument(
        "--shard",
        type=int,
        metavar="I",
        help="compute part I (0 to N-1) alone and commit nothing (default: put all parts together)",
    )
    group.add_argument("--parts", metavar="FOLDER", help="where the parts lie until then; all processes see it")
    group.add_argument(
        "--launcher",
        choices=("local", "ray", "slurm"),
        help="compute the parts in processes of this machine, a running Ray cluster or Slurm, then put them together",
    )
    group.add_argument("--jobs", type=positive, default=1, metavar="K", help="parts at a time (default: 1)")


def _shards_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return how the harvest is split up, as an argument of ``harvest``."""
    if args.shards is None:
        if args.shard is not None or args.parts is not None or args.launcher is not None:
            raise UsageError("--shard, --parts and --launcher belong to --shards N")
        return {}
    if args.parts is None:
        raise UsageError("--shards needs --parts FOLDER, where the parts lie until they are put together")
    from reuse_algos.harvest import Shards

    try:
        return {"shards": Shards(args.parts, args.shards, args.shard)}
    except ValueError as error:
        raise UsageError(str(error)) from error


def _add_attack(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("of the signal adversarial")
    group.add_argument("--attack", choices=("fgsm", "pgd"), help="one step, or several projected ones (default: pgd)")
    group.add_argument(
        "--epsilon", type=_size, metavar="E", help="radius in pixel units of 0 to 1, such as 8/255 (default: 8/255)"
    )
    group.add_argument("--steps", type=positive, metavar="S", help="steps of pgd (default: 5)")
    group.add_argument(
        "--step-size", type=_size, metavar="A", help="length of a step of pgd, such as 2/255 (default: 2.5 E / S)"
    )
    group.add_argument("--norm", choices=("linf", "l2"), help="what E bounds (default: linf)")
    group.add_argument(
        "--targeted", choices=("none", "random"), help="away from the label, or towards a random class (default: none)"
    )
    group.add_argument("--bits", type=int, choices=(2, 4, 8), help="bits for a number (default: 2 for linf, 8 for l2)")
    group.add_argument("--attack-seed", type=int, metavar="SEED", help="of random starts and targets (default: 0)")


def _size(text: str) -> float:
    """Return a number or a fraction above 0, for ``argparse``."""
    from reuse_algos.training.attacks import pixel_size

    try:
        return pixel_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _attack_of(args: argparse.Namespace, signals: list[str]) -> dict[str, Any]:
    """Return what the options say of an attack, as arguments of ``harvest``.

    Raises:
        UsageError: No attack is asked for, or the options do not go together.
    """
    # Only what was said, so that the attack's own defaults hold.
    given = {field: getattr(args, name) for name, field in _FIELDS.items() if getattr(args, name) is not None}
    if "adversarial" not in signals:
        if given or args.bits is not None:
            wrong = [name for name in (*_FIELDS, "bits") if getattr(args, name) is not None]
            options = ", ".join("--" + name.replace("_", "-") for name in wrong)
            raise UsageError(f"{options} belong to --signals adversarial; asked for is {', '.join(signals)}")
        return {}
    # A setting without effect would look as if it had one.
    if given.get("method") == "fgsm" and args.steps is not None:
        raise UsageError("--steps belongs to --attack pgd: fgsm takes one step of length epsilon")
    from reuse_algos.training.attacks import Attack

    try:
        return {"attack": Attack(**given), "bits": args.bits}
    except ValueError as error:
        raise UsageError(str(error)) from error


def run(args: argparse.Namespace) -> int:
    """Harvest, and return 0."""
    signals = _names("--signals", args.signals) or ["logits"]
    weights = _names("--weights", [args.weights])
    data = data_of(args.data)
    attack = _attack_of(args, signals)
    if args.plain and ("features" not in signals or args.views is not None):
        raise UsageError("--plain belongs to --signals features, and goes without --views")
    from reuse_algos.harvest import harvest

    archive = open_archive(args, read_only=False)
    # Looked up once: a second run of that name, committed while this harvests, must not make it ambiguous.
    run_id = archive.run(args.run_id).id
    # The library's own defaults hold for what is not said.
    options: dict[str, Any] = {} if args.memory is None else {"memory_bytes": args.memory << 20}
    flags = {name: True for name in ("plain", "replace", "trust_data") if getattr(args, name)}
    options |= attack | _shards_of(args) | flags
    # Processes that a launcher starts get the same arguments and --shard; they must not start others.
    if args.launcher is not None and args.shard is None:
        from reuse_algos.commands.harvest_parts import compute_parts

        compute_parts(
            args.words,
            shards=args.shards,
            folder=Path(args.parts),
            launcher=args.launcher,
            jobs=args.jobs,
            gpus=1 if (args.device or "").startswith("cuda") else 0,
        )
    results = []
    for name in weights:
        results += harvest(
            archive,
            run_id,
            signals=signals,
            views=args.views,
            weights=name,
            top_k=args.top_k,
            batch_size=args.batch_size,
            device=args.device,
            precision=args.precision,
            data=data or None,
            # A bar would fill a log file, and stand beside what a program reads.
            progress=sys.stderr.isatty() and not args.json,
            **options,
        )
    if args.json:
        print_json([dataclasses.asdict(result) for result in results])
        return 0
    for result in results:
        done = f"{result.rows} rows of {len(result.computed)} views" if result.computed else "nothing was missing"
        done += f"; {len(result.views)} views are complete"
        if args.shard is not None and result.computed:
            done = f"part {args.shard} of {len(result.computed)} views is in {args.parts}, and not committed yet"
        console().print(
            f"{result.signal} of {result.run_id}: {done}; {result.seconds:.1f} s{_rates(result.rates)}", soft_wrap=True
        )
    return 0


def _rates(rates: dict[str, float]) -> str:
    """Return how many examples a harvest of perturbations fooled, for people."""
    if "success" not in rates:
        return ""
    exact, kept = 100 * rates["success"], 100 * rates["success_quantized"]
    return f"; {exact:.1f} % fool the model, {kept:.1f} % as they are kept"


def _names(option: str, texts: list[str]) -> list[str]:
    """Return names that have commas or spaces between, each once."""
    names = [name for text in texts for name in re.split(r"\s*,\s*|\s+", text.strip())]
    if "" in names:
        raise UsageError(f"{option} has an empty name")
    return list(dict.fromkeys(names))
