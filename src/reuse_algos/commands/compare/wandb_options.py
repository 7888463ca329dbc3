"""The options of ``reuse-algos compare`` that send the comparison to Weights & Biases."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from reuse_algos.commands.common import UsageError

if TYPE_CHECKING:
    from reuse_algos.compare.outcomes import Outcomes
    from reuse_algos.compare.result import Comparison
    from reuse_algos.compare.show.wandb import WandbTarget


def add_wandb(parser: argparse.ArgumentParser) -> None:
    """Add --wandb, --wandb-entity and --wandb-name."""
    parser.add_argument(
        "--wandb",
        metavar="PROJECT",
        help="also log the comparison to W&B, as a run of this project with tables, curves, bars and the report, and "
        "make or replace a saved report of the project (needs the extra wandb-report)",
    )
    parser.add_argument("--wandb-entity", metavar="NAME", help="W&B user or team (default: that of the login)")
    parser.add_argument("--wandb-name", metavar="NAME", help="name of the W&B run (default: comparison of <metric>)")


def wandb_target(args: argparse.Namespace) -> WandbTarget | None:
    """Return where to send the comparison, or None; checked before any work is done.

    Raises:
        UsageError: A name or an entity without a project.
        CompareError: W&B cannot be used here.
    """
    if args.wandb is None:
        if args.wandb_entity is not None or args.wandb_name is not None:
            raise UsageError("--wandb-entity and --wandb-name need --wandb PROJECT")
        return None
    from reuse_algos.compare.show.wandb import WandbTarget, check_wandb

    # Importing wandb takes seconds, so it is only done when it is asked for.
    check_wandb()
    return WandbTarget(args.wandb, args.wandb_entity, args.wandb_name)


def send_to_wandb(target: WandbTarget | None, comparison: Comparison, outcomes: Outcomes) -> str | None:
    """Log a comparison and its HTML report.

    Args:
        target: From :func:`wandb_target`; None does nothing.
        comparison: Of any kind.
        outcomes: The runs that it was made from.

    Returns:
        Where it is, in words; None where nothing was asked for.

    Raises:
        CompareError: No user is logged in, or W&B cannot be reached.
    """
    if target is None:
        return None
    from reuse_algos.compare.show.dashboard import dashboard_of
    from reuse_algos.compare.show.page import report_page
    from reuse_algos.compare.show.wandb import log_to_wandb

    return log_to_wandb(dashboard_of(comparison, outcomes), target, html=report_page(comparison, outcomes))
