"""``reuse-algos runs``: list the runs of an archive."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from reuse_algos.commands.common import (
    Subparsers,
    add_archive,
    add_command,
    add_json,
    add_tags,
    console,
    open_archive,
    positive,
    print_json,
    tags_of,
)
from reuse_algos.errors import SignalNotFoundError

if TYPE_CHECKING:
    from reuse_algos.archive import PriorRun


def add_parser(subparsers: Subparsers) -> None:
    """Describe the command's arguments."""
    parser = add_command(
        subparsers,
        "runs",
        "list the runs of an archive",
        "Finished, healthy runs are listed; --all adds those that are still going, died, diverged or\n"
        "trained nothing. --order best goes by the last value of the metric, and leaves out runs where it\n"
        "is not finite.\n\n"
        "--where compares tags.<key>, run_name, health, finished, seed, epoch, batch, train_seconds,\n"
        "created_at or a metric by = != < <= > >= or in (...), joined by and, or, not and parentheses.",
        """
        reuse-algos runs ./archive
        reuse-algos runs ./archive --tag method=baseline study=cifar100 --order best --limit 5
        reuse-algos runs ./archive --where "tags.study=lr and accuracy>0.9" --limit 5
        reuse-algos runs ./archive --all --json
        """,
    )
    add_archive(parser)
    add_tags(parser)
    parser.add_argument(
        "--where", metavar="FILTER", help='only runs that fit, such as "tags.study=lr and accuracy>0.9"'
    )
    parser.add_argument("--order", choices=("best", "latest", "first"), default="latest", help="default: latest")
    parser.add_argument("--limit", type=positive, metavar="N", help="at most N runs")
    parser.add_argument(
        "--metric", metavar="NAME", help="metric to show, and to order by (default: each run's monitor)"
    )
    parser.add_argument("--all", action="store_true", help="also unfinished, diverged and empty runs")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List runs, and return 0."""
    from reuse_algos.compare.show.terminal import narrowest, runs_table

    archive, tags = open_archive(args), tags_of(args)
    metric = args.metric
    if metric is not None:
        from reuse_algos.archive.format.metrics import resolve_metric

        known = {
            name for found in archive.summaries(tags=tags, unfinished=True, unhealthy=True) for name in found.finals
        }
        # Over all runs at once, so that a short name means one metric in every row.
        metric = resolve_metric(metric, sorted(known), "the runs have")
    found = archive.runs(
        where=args.where, tags=tags, order=args.order, metric=metric, limit=args.limit,
        unfinished=args.all, unhealthy=args.all,
    )  # fmt: skip
    values = [final_value(prior, metric) for prior in found]
    if args.json:
        print_json([_summary(prior, value) for prior, value in zip(found, values, strict=True)])
        return 0
    out = console()
    if found:
        table = runs_table(found, values, args.metric)
        # An id is copied to the next command, so a line is rather too long than an id broken.
        out.width = max(out.width, narrowest(table, out))
        out.print(table)
    else:
        # An empty list is often one that --all would fill, and this says so.
        others = (
            0
            if args.all
            else sum(1 for _ in archive.summaries(where=args.where, tags=tags, unfinished=True, unhealthy=True))
        )
        out.print(f"no runs match in {archive.location}" + (f"; --all would show {others}" if others else ""))
    return 0


def final_value(prior: PriorRun, metric: str | None) -> float | None:
    """Return the last value of a metric (of the monitor if None); None if the run does not have it."""
    try:
        return prior.final_metric(metric)
    except SignalNotFoundError:
        return None


def _summary(prior: PriorRun, value: float | None) -> dict[str, object]:
    manifest = prior.manifest
    return {
        "run_id": prior.id,
        "run_name": prior.run_name,
        "finished": prior.finished,
        "health": prior.health,
        "tags": dict(prior.tags),
        "seed": manifest.seed,
        "monitor": manifest.monitor,
        "final_metric": value,
        "epoch": manifest.progress.epoch,
        "batch": manifest.progress.batch,
        "train_seconds": manifest.cost.train_seconds,
        "created_at": manifest.created_at,
        "committed_at": manifest.committed_at,
    }
