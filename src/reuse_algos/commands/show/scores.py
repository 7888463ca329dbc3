"""``reuse-algos scores``: how hard the examples are, by what archived runs learned about them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reuse_algos.commands.common import (
    ARCHIVE_HELP,
    Subparsers,
    UsageError,
    add_command,
    add_data,
    add_json,
    archive_path,
    console,
    data_of,
    open_archive,
    positive,
    print_json,
)
from reuse_algos.errors import ReuseAlgosError

if TYPE_CHECKING:
    from rich.console import Console

    from reuse_algos.archive import PriorRun
    from reuse_algos.data.info import DatasetInfo
    from reuse_algos.priors.scores.label_noise import LabelNoise

CRITERION = (
    "area under the margin below 0 (Pleiss et al. 2020, arXiv 2001.10528): over training, the runs gave another class "
    "a higher logit than the label"
)


_FEW_EPOCHS = 5


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "scores",
        "show how hard a run's training examples are, and which labels look wrong",
        "Higher is harder, more uncertain or more informative for every score. Scores: loss, loss_mean, el2n,\n"
        "forgetting, variance, threshold, margin, entropy, grand, grand_last_layer; over all runs and\n"
        "checkpoints together: variation_ratio, mutual_information. They are read from captured signals\n"
        "(loss, correct, logits) or from what `reuse-algos harvest` filled.\n\n"
        "Suspected labels (--noise) are those with an area under the margin below 0 (Pleiss et al. 2020);\n"
        "it needs the captured signal logit_margin, or the logits, of as many epochs as possible.\n\n"
        f"{ARCHIVE_HELP}",
        """
        reuse-algos scores ./archive resnet56-17-0123abcdef
        reuse-algos scores ./archive run-1 run-2 run-3 --score el2n --epoch 10 --aggregate rank
        reuse-algos scores ./archive run-1 --picture scores.png --contact-sheet images.png --noise 20
        reuse-algos scores ./archive run-1 --score forgetting --noise suspects.json --json
        """,
    )
    parser.add_argument("names", metavar="[ARCHIVE] RUN", nargs="+", help="the archive, and ids or names of runs")
    parser.add_argument("--archive", metavar="DIR", dest="archive_option", help="the archive; then all names are runs")
    parser.add_argument("--score", default="loss", metavar="NAME", help="which score (default: loss)")
    parser.add_argument(
        "--epoch", type=int, metavar="N", help="of which epoch, or up to which (default: the last, or all)"
    )
    parser.add_argument(
        "--aggregate", default="mean", metavar="HOW", help="mean of the runs' values, or of their rank (default: mean)"
    )
    parser.add_argument(
        "--mismatch",
        choices=("refuse", "allow"),
        default="refuse",
        help="allow runs on other data than the first one's: examples are matched by key (default: refuse)",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write a histogram: .png, .pdf or .svg")
    parser.add_argument(
        "--contact-sheet", type=Path, metavar="FILE", help="write the easiest and hardest images of each class"
    )
    parser.add_argument(
        "--per-class", type=positive, default=6, metavar="K", help="images of each kind on the sheet (default: 6)"
    )
    parser.add_argument(
        "--noise", metavar="N|FILE", help="list the N most suspect labels, or write all to a .json file"
    )
    add_data(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show the scores, and return 0."""
    _split_names(args)
    data = data_of(args.data)
    # Wrong settings are refused before an archive is read.
    limit, noise_file = _noise_of(args.noise)
    from reuse_algos.compare.show.files import check_file
    from reuse_algos.priors.scores.label_noise import label_noise
    from reuse_algos.priors.scores.run_scores import ScoreSpec, prior_scores, recorded_info, score_uses

    for path in (args.picture, args.contact_sheet):
        check_file(path)
    try:
        spec = ScoreSpec(args.score, args.epoch, args.aggregate)
    except ValueError as error:
        raise UsageError(str(error)) from error
    archive = open_archive(args)
    runs = [archive.run(name) for name in args.runs]
    info = recorded_info(runs[0])
    # Of the first run, whose examples name the rows of all others.
    values_N = prior_scores(runs, spec, info, mismatch=args.mismatch)
    facts = {
        "score": spec.name,
        "epoch": spec.epoch,
        "aggregate": spec.aggregate,
        "runs": [{"run_id": use.run_id, "signals": use.signals, "harvest_seconds": use.harvest_seconds}
                 for use in score_uses(runs, spec, "scores")],
        **summary(values_N, info),
    }  # fmt: skip
    if args.noise is not None:
        noise = label_noise(runs, info, mismatch=args.mismatch)
        # All of them, whatever the terminal shows.
        found = noise_facts(noise, info)
        if noise_file is not None:
            noise_file.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            found["file"] = str(noise_file)
        facts["noise"] = {**found, "examples": found["examples"][:limit]}
    failed = None
    try:
        for kind, path in _pictures(args, data, values_N, info, runs[0], spec.name):
            facts[kind] = path
    except ReuseAlgosError as error:
        failed = error  # the figures are there all the same
    if args.json:
        print_json(facts)
    else:
        _print(facts, console())
    if failed is not None:
        raise failed
    return 0


def summary(values_N: Any, info: DatasetInfo) -> dict[str, Any]:
    """Return number, mean, quartiles and hardest example, of all examples and of each class.

    Args:
        values_N: Float64 tensor of scores, NaN where unknown.
        info: The examples.
    """
    import numpy as np

    values, keys = values_N.numpy(), info.keys.numpy()

    def describe(members: Any) -> dict[str, Any]:
        known = members[np.isfinite(values[members])]
        # A class without known scores still has its row.
        if not len(known):
            return {"n": 0, "mean": None, "quartiles": None, "hardest": None}
        hardest = known[values[known].argmax()]
        return {
            "n": len(known),
            "mean": float(values[known].mean()),
            "quartiles": np.quantile(values[known], [0.25, 0.5, 0.75]).tolist(),
            "hardest": {"key": int(keys[hardest]), "score": float(values[hardest])},
        }

    classes = []
    if info.labels is not None:
        labels = info.labels.numpy()
        classes = [{"class": name, **describe(np.flatnonzero(labels == number))}
                   for number, name in enumerate(class_names(info))]  # fmt: skip
    return {
        "data": info.name,
        "num_examples": len(values),
        "unknown": int((~np.isfinite(values)).sum()),
        "all": describe(np.arange(len(values))),
        "classes": classes,
    }


def noise_facts(noise: LabelNoise, info: DatasetInfo) -> dict[str, Any]:
    """Return the suspected labels as plain data, the most suspect first."""
    names = class_names(info)
    assert info.labels is not None  # label_noise has refused data without labels
    examples = [
        {
            "key": int(info.keys[position]),
            "position": position,
            "label": names[int(info.labels[position])],
            "predicted": names[noise.instead_N[position]] if noise.instead_N[position] >= 0 else None,
            "margin": float(noise.margins_N[position]),
        }
        for position in noise.suspects().tolist()
    ]
    return {"criterion": CRITERION, "epochs": noise.presentations, "suspects": len(examples), "examples": examples}


def class_names(info: DatasetInfo) -> list[str]:
    """Return the names of the classes; their numbers where they have none."""
    return list(info.class_names) if info.class_names else [str(number) for number in range(info.num_classes or 0)]


def _split_names(args: argparse.Namespace) -> None:
    """Tell the archive from the runs."""
    args.archive, args.runs = None, args.names
    # The first name is the archive where it is a folder, or where nothing else names one.
    if args.archive_option is None and (len(args.names) > 1 or Path(args.names[0]).is_dir()):
        import os

        from reuse_algos.commands.common import ARCHIVE_VARIABLE

        if Path(args.names[0]).is_dir() or not os.environ.get(ARCHIVE_VARIABLE):
            args.archive, args.runs = args.names[0], args.names[1:]
    archive_path(args)  # says what is missing
    if not args.runs:
        raise UsageError(f"which run? `reuse-algos runs {args.archive}` lists what is there")


def _noise_of(text: str | None) -> tuple[int | None, Path | None]:
    """Return how many suspects to list (None: all), and the file to write."""
    if text is None:
        return None, None
    if text.isdecimal() and int(text) > 0:
        return int(text), None
    if text.endswith(".json"):
        return 20, Path(text)
    raise UsageError(f"--noise needs a whole number of at least 1, or a file that ends in .json; got {text!r}")


def _pictures(
    args: argparse.Namespace, data: dict[str, Any], values_N: Any, info: DatasetInfo, first: PriorRun, score: str
) -> Iterator[tuple[str, str]]:
    """Write what is asked for, and yield kind and file of each picture."""
    if args.picture is None and args.contact_sheet is None:
        return
    from reuse_algos.commands.show import score_pictures
    from reuse_algos.compare.show.files import PLOTS, write_file
    from reuse_algos.errors import DataError

    if info.labels is None:
        raise DataError(f"the labels of {info.name} are not known, and the pictures are by class.")
    values, labels, names = values_N.numpy(), info.labels.numpy(), class_names(info)
    ends = score_pictures.ends_of_classes(values, labels, len(names), args.per_class)
    if not ends:
        raise DataError(f"no example of {info.name} has a known score, so there is nothing to draw.")
    title = f"{score} of {info.name} by {len(args.runs)} run{'s' if len(args.runs) > 1 else ''}"
    if args.picture is not None:
        figure = score_pictures.histogram(values, labels, names, title)
        write_file(args.picture, PLOTS, lambda where: figure.savefig(where, dpi=150))
        yield "picture", str(args.picture)
    if args.contact_sheet is not None:
        from reuse_algos.harvest import load_run_data

        # As the file has the images: augmented ones would not show what is hard about them.
        loaded = load_run_data(first, {**data, "augment": "none"}, trust_data=args.trust_data)
        said = _predictions(first, sorted({one for both in ends.values() for end in both for one in end}))
        wrong = {position: names[number] for position, number in said.items() if number != labels[position]}
        sheet = score_pictures.contact_sheet(ends, names, score_pictures.image_reader(loaded), title, wrong)
        write_file(args.contact_sheet, PLOTS, lambda where: sheet.savefig(where, dpi=150))
        yield "contact_sheet", str(args.contact_sheet)


def _predictions(run: PriorRun, positions: list[int]) -> dict[int, int]:
    """Return the class that a run's latest archived logits give each example; none where it has no such logits."""
    import torch

    from reuse_algos.priors.presentations import PresentationReader, latest_first

    reader = PresentationReader(run)
    found = latest_first(reader.presentations("logits"))
    if not found or (run.manifest.task is not None and run.manifest.task.kind != "multiclass"):
        return {}
    views = torch.stack(reader.rows(found[0], torch.tensor(positions)))
    # Views that were not archived are NaN, and the others speak for the example.
    mean_BC = views.softmax(-1).nanmean(0)
    answers = mean_BC.nan_to_num(-1.0).argmax(1).tolist()
    return {
        position: answer
        for position, answer, row in zip(positions, answers, mean_BC, strict=True)
        if not bool(row.isnan().any())
    }


def _print(facts: dict[str, Any], out: Console) -> None:
    from rich.table import Table

    for one in facts["runs"]:
        cost = f" (harvest: {one['harvest_seconds']:.1f} s)" if one["harvest_seconds"] else ""
        out.print(f"{facts['score']} from {', '.join(one['signals'])} of {one['run_id']}{cost}", soft_wrap=True)
    unknown = f", {facts['unknown']} of them unknown" if facts["unknown"] else ""
    out.print(f"{facts['data']}: {facts['num_examples']} examples{unknown}; higher is harder", soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("class", overflow="fold")
    for name in ("n", "mean", "25 %", "median", "75 %", "hardest", "its key"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in [*facts["classes"], {"class": "all", **facts["all"]}]:
        numbers = ["-"] * 6
        if row["n"]:
            hardest = row["hardest"]
            values = (row["mean"], *row["quartiles"], hardest["score"])
            numbers = [*(f"{value:.4g}" for value in values), str(hardest["key"])]
        table.add_row(row["class"], str(row["n"]), *numbers)
    out.print(table)
    if "noise" in facts:
        _print_noise(facts["noise"], out)
    for kind in ("picture", "contact_sheet"):
        if kind in facts:
            out.print(f"{kind.replace('_', ' ')}: {facts[kind]}", soft_wrap=True)


def _print_noise(noise: dict[str, Any], out: Console) -> None:
    from rich.table import Table

    epochs = ", ".join(map(str, noise["epochs"]))
    out.print(f"{noise['suspects']} suspected labels: {noise['criterion']}; epochs looked at: {epochs}", soft_wrap=True)
    if min(noise["epochs"]) < _FEW_EPOCHS:
        out.print(
            "That is few: what a network has learned by heart no longer stands out. Record runs with run_recorder "
            "signals: {logit_margin: {}}.",
            soft_wrap=True,
        )
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in ("key", "label", "predicted", "margin"):
        table.add_column(name, justify="left" if name in ("label", "predicted") else "right", overflow="fold")
    for example in noise["examples"]:
        table.add_row(str(example["key"]), example["label"], example["predicted"] or "-", f"{example['margin']:.3f}")
    if noise["examples"]:
        out.print(table)
    if "file" in noise:
        out.print(f"all suspected labels: {noise['file']}", soft_wrap=True)
