"""Where the jobs of a sequence run: on this machine, or by another :class:`Launcher`."""

from reuse_algos.sequence.launchers.base import Job, Launcher
from reuse_algos.sequence.launchers.local import LocalLauncher

__all__ = ["Job", "Launcher", "LocalLauncher"]
