"""Where the jobs of a sequence run: on this machine, or by another :class:`Launcher`."""

from reuse_algos.sequence.launchers.base import Job, Launcher
from reuse_algos.sequence.launchers.local import LocalLauncher
from reuse_algos.sequence.launchers.ray_tasks import RayLauncher
from reuse_algos.sequence.launchers.slurm import SlurmLauncher

__all__ = ["Job", "Launcher", "LocalLauncher", "RayLauncher", "SlurmLauncher"]
