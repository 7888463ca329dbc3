"""The main job on the embedded data: record runs, let the next ones reuse them, and see what it saved.

Everything that is printed is measured here and now.
"""

from __future__ import annotations

from pathlib import Path

from reuse_algos.demo.every_technique import show_every_technique
from reuse_algos.demo.runs import make_room
from reuse_algos.demo.saving import show_saving

__all__ = ["run_demo"]


def run_demo(folder: Path, *, seeds: int | None = None, keep: bool = False, everything: bool = False) -> int:
    """Train small models on handwritten digits with and without reuse, and print what it saved.

    Args:
        folder: Where the archive and the plots go.
        seeds: Runs in each group. Default: 4, or 8 with ``everything``.
        keep: Add to the runs of an earlier demo instead of starting over. Default: False.
        everything: Train all techniques and measure robustness, instead of distillation alone. Default: False.

    Returns:
        The exit status, 0.

    Raises:
        DataError: scikit-learn, which has the digits, is not installed.
        ArchiveConflictError: ``folder`` holds something that is not an earlier demo.
        ReuseAlgosError: A run fails.
    """
    archive = folder / "archive"
    make_room(folder, archive, keep)
    if everything:
        return show_every_technique(folder, archive, seeds=seeds or 8)
    return show_saving(folder, archive, seeds=seeds or 4)
