"""Where jobs run: on this machine, or by another :class:`Launcher`."""

import os
from pathlib import Path

from reuse_algos.sequence.launchers.base import Job, Launcher, Work
from reuse_algos.sequence.launchers.local import LocalLauncher
from reuse_algos.sequence.launchers.ray_tasks import RayLauncher
from reuse_algos.sequence.launchers.slurm import SlurmLauncher

__all__ = ["Job", "Launcher", "LocalLauncher", "RayLauncher", "SlurmLauncher", "Work", "find_launcher"]


def find_launcher(name: str, folder: str | os.PathLike[str]) -> Launcher | None:
    """Return the launcher of a name; None for ``local``, which is everybody's default.

    Args:
        name: ``local``, ``ray`` or ``slurm``.
        folder: Where a launcher may keep files; all nodes see it.

    Raises:
        SequenceError: The launcher's package is not installed, or there is no cluster.
    """
    if name == "ray":
        return RayLauncher()
    return SlurmLauncher(Path(folder) / "slurm") if name == "slurm" else None
