"""``reuse-algos zero-shot``: classes given by texts, found for images through known pairs."""

from __future__ import annotations

import argparse
import math
from typing import Any

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
        "zero-shot",
        "classify images by texts through the archived features of two runs, without training",
        "Examples of the two runs are pairs where their keys are equal; images without a text are classified\n"
        "(ASIF, Norelli et al. 2023). Both runs need the signal features (reuse-algos harvest --signals\n"
        "features --plain). FILE has one class a line: its name, a tab, and the keys of archived texts that\n"
        "stand for it, with commas between; or it is an .npz file with names and features.",
        """
        reuse-algos zero-shot ./archive --images images-run --texts texts-run --prompts classes.txt
        reuse-algos zero-shot ./archive --images i --texts t --prompts classes.txt --k 200 --explain 17,18
        """,
    )
    add_archive(parser)
    parser.add_argument("--images", required=True, metavar="RUN", help="run that encoded the images")
    parser.add_argument("--texts", required=True, metavar="RUN", help="run that encoded their texts")
    parser.add_argument("--prompts", required=True, metavar="FILE", help="what stands for each class")
    parser.add_argument("--k", type=positive, default=800, help="pairs that describe an example (default: 800)")
    parser.add_argument("--power", type=float, default=8.0, help="exponent of the similarities (default: 8)")
    parser.add_argument("--without", metavar="KEYS", default="", help="keys of pairs to leave out, commas between")
    parser.add_argument("--explain", metavar="KEYS", default="", help="keys of images whose deciding pairs are named")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Classify; 0."""
    from reuse_algos.pairs import read_prompts, zero_shot

    if not 0 < args.power < math.inf:
        raise UsageError(f"--power must be a finite number above 0, not {args.power}")
    archive = open_archive(args)
    images, texts = archive.run(args.images), archive.run(args.texts)
    if images.id == texts.id:
        raise UsageError(
            f"--images and --texts both name run {images.id}: an image is paired with its text, not with itself"
        )
    prompts = read_prompts(args.prompts, texts)
    # Read before the work, so that a typo is not found after it.
    explained, without = _keys("--explain", args.explain), _keys("--without", args.without)
    found = zero_shot(images, texts, prompts, k=args.k, power=args.power, without=without)
    classes = found.classes.tolist()
    counts = {name: classes.count(number) for number, name in enumerate(prompts.names)}
    reasons = {key: [one._asdict() for one in found.decided_by(key)] for key in explained}
    if args.json:
        print_json(
            {
                "anchors": len(found.space.keys),
                "images": len(found.keys),
                "accuracy": found.accuracy,
                "counts": counts,
                "none": classes.count(-1),
                "classes": {
                    str(key): prompts.names[number] if number >= 0 else None
                    for key, number in zip(found.keys.tolist(), classes, strict=True)
                },
                "decided_by": {str(key): reason for key, reason in reasons.items()},
            }
        )
    else:
        _show(found, counts, reasons)
    return 0


def _show(found: Any, counts: dict[str, int], reasons: dict[int, list[dict[str, Any]]]) -> None:
    right = "" if found.accuracy is None else f"; {100 * found.accuracy:.1f} % of those with a known class are right"
    out = console()
    out.print(f"{len(found.keys)} images by {len(found.space.keys)} pairs{right}")
    for name, count in counts.items():
        out.print(f"  {name}: {count}")
    if fits_none := int((found.classes < 0).sum()):
        out.print(f"  fits no class: {fits_none}")
    for key, reason in reasons.items():
        number = int(found.classes[found.keys == key][0])
        name = found.prompts.names[number] if number >= 0 else "none"
        said = ", ".join(f"{one['key']} ({one['share']:.3f})" for one in reason)
        out.print(f"image {key}: {name}, decided by the pairs {said or '-'}", soft_wrap=True)


def _keys(option: str, text: str) -> list[int]:
    try:
        keys = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise UsageError(f"{option} needs keys with commas between, not {text!r}") from None
    # Keys are int64, and torch cannot hold others.
    if wrong := [key for key in keys if not -(1 << 63) <= key < 1 << 63]:
        raise UsageError(f"{option}: {wrong[0]} is not a key, which is a whole number of 64 bits")
    return keys
