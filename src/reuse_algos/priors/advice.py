"""Command lines that errors print: they work as they stand, with the archive's own place."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from reuse_algos.archive import PriorRun


def harvest_command(run: PriorRun, signal: str, *, weights: Iterable[str] = (), views: str | None = None) -> str:
    """Return the command that fills a signal of a run, between backticks.

    Args:
        run: Whose archived model is to make it.
        signal: Its name, or several with commas between.
        weights: Names of archived weights. Default: none, the last ones.
        views: The option that says which views, such as ``--plain`` or ``--views 32``. Default: None, which is
            ``--views 1`` for the logits of a run whose augmentation was random, as such a run has no views of its own.
    """
    record = run.manifest.dataset
    if views is None:
        random = record is not None and record.num_views == 0
        views = "--views 1" if signal == "logits" and random else ""
    names = ",".join(weights)
    parts = ["reuse-algos harvest", shlex.quote(run.archive), run.id, f"--signals {signal}"]
    parts += [f"--weights {names}"] if names else []
    return f"`{' '.join([*parts, views]).rstrip()}`"
