"""``reuse-algos drift``: what changed from run to run of a model that is trained again and again."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from reuse_algos.commands.common import (
    Subparsers,
    UsageError,
    add_archive,
    add_command,
    add_json,
    add_tags,
    console,
    open_archive,
    print_json,
    tags_of,
)

if TYPE_CHECKING:
    from reuse_algos.archive import PriorRun


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "drift",
        "compare each run with the one before: its metric, its cost, and the examples that changed their class",
        "The runs are retrainings of one model, oldest first: those that are named, or all that have the\n"
        "tags, in the order of their start. Two runs are compared on the examples that both have archived\n"
        "logits of. With data.rotated the metric is that of the period after the last one trained on.",
        """
        reuse-algos drift ./archive --tag sequence=periods arm=reuse
        reuse-algos drift ./archive --runs model-january,model-february --json
        """,
    )
    add_archive(parser)
    parser.add_argument("--runs", metavar="RUN,RUN", help="ids or unique names, oldest first (default: by --tag)")
    add_tags(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the comparison; 0."""
    from reuse_algos.priors.drift import drift_between, training_period

    archive = open_archive(args)
    # The order of --runs is the user's, that of --tag the archive's.
    if args.runs and args.tag:
        raise UsageError("name the runs by --runs or by --tag, not by both")
    names = [name.strip() for name in args.runs.split(",")] if args.runs else []
    runs = [archive.run(name) for name in names] if names else archive.runs(tags=tags_of(args), order="first")
    if len(runs) < 2:
        raise UsageError(f"a drift is between at least two runs; there are {len(runs)}")
    rows: list[dict[str, Any]] = []
    for number, one in enumerate(runs):
        row = {"run": one.id, "period": training_period(one), **_ends(one)}
        if number:
            # Neighbours only: over many runs every example would have changed at some time.
            found = drift_between(runs[number - 1], one)
            row |= {
                "common": len(found.keys),
                "changed": len(found.changed),
                "learned": found.learned,
                "forgotten": found.forgotten,
                "changed_keys": found.changed.tolist(),
            }
        rows.append(row)
    if args.json:
        print_json(rows)
    else:
        _show(rows)
    return 0


def _ends(one: PriorRun) -> dict[str, Any]:
    cost = one.manifest.cost
    return {
        "metric": one.manifest.monitor,
        "final": one.final_metric() if one.manifest.monitor else None,
        "cost_seconds": cost.train_seconds + cost.setup_seconds,
    }


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None)
    columns = ("run", "period", "final", "cost_seconds", "common", "changed", "learned", "forgotten")
    for name in columns:
        table.add_column("cost" if name == "cost_seconds" else name, justify="left" if name == "run" else "right")
    for row in rows:
        shown = dict(row)
        shown["final"] = "" if row["final"] is None else f"{row['final']:.4f}"
        shown["cost_seconds"] = f"{row['cost_seconds']:.1f} s"
        if "changed" in row:
            # drift_between refuses runs without a common example, so this divides by at least 1.
            shown["changed"] = f"{row['changed']} ({100 * row['changed'] / row['common']:.1f} %)"
        table.add_row(*("" if shown.get(name) is None else str(shown[name]) for name in columns))
    console().print(table)
    if metric := rows[-1]["metric"]:
        console().print(f"final: {metric}; changed, learned, forgotten: of the examples common with the run above")
