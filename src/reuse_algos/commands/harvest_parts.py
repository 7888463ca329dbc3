"""The parts of a harvest as jobs of a launcher: each computes one part, and commits nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from reuse_algos.errors import SequenceError
from reuse_algos.recipe.building.resources import Resources
from reuse_algos.remote_job import RemoteJob
from reuse_algos.sequence.launchers import Launcher, LocalLauncher, find_launcher
from reuse_algos.sequence.running.halt import Halt

_LAST_LINES = 12


@dataclass(frozen=True)
class PartJob:
    """One part of a harvest.

    Attributes:
        words: The command's arguments that compute it.
        number: Which part, from 0.
        log: The file to which its output is appended.
        resources: What a cluster sets aside for it.
    """

    words: tuple[str, ...]
    number: int
    log: Path
    resources: Resources

    @property
    def title(self) -> str:
        """A name for messages."""
        return f"part {self.number} of the harvest"

    @property
    def command(self) -> list[str]:
        """The command that computes the part on this machine."""
        return [sys.executable, *self._arguments()]

    def remote(self) -> RemoteJob:
        """Return what another machine needs to compute the part."""
        return RemoteJob(title=self.title, arguments=tuple(self._arguments()), folder=str(Path.cwd()))

    def _arguments(self) -> list[str]:
        # Both are read again by the command's own parser: the later --shard counts.
        return ["-m", "reuse_algos.piped", *self.words, "--shard", str(self.number)]


def compute_parts(
    words: Sequence[str], *, shards: int, folder: Path, launcher: str | Launcher, jobs: int, gpus: int
) -> None:
    """Compute all parts of a harvest, several at a time; a part that is there is not computed again.

    Args:
        words: The command's arguments, from its name on.
        shards: How many parts.
        folder: Where the parts lie, and the logs of those that compute them.
        launcher: Where they are computed: ``local``, ``ray``, ``slurm`` or a launcher.
        jobs: Parts at a time.
        gpus: GPUs for each part.

    Raises:
        SequenceError: A part failed (the end of its log is in the message), or cannot be started. Other parts stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # None stands for this machine.
    found = find_launcher(launcher, folder) if isinstance(launcher, str) else launcher
    runs_on, halt = found or LocalLauncher(), Halt()
    parts = [PartJob(tuple(words), k, folder / f"part-{k:05d}.log", Resources(gpus=gpus)) for k in range(shards)]

    def compute(part: PartJob) -> None:
        if halt.now:  # another part has failed
            return
        part.log.unlink(missing_ok=True)
        try:
            status = halt.run(runs_on, part)
        except BaseException:
            halt.stop(0.0)
            raise
        if status and not halt.now:
            halt.stop(0.0)
            lines = part.log.read_text(errors="replace").splitlines()[-_LAST_LINES:] if part.log.exists() else []
            raise SequenceError(
                "\n  ".join([f"{part.title} failed (exit status {status}). The end of {part.log}:", *lines])
                + "\nParts that are done stay. Once its cause is gone, the same command goes on with the others"
            )
        if not status:
            part.log.unlink(missing_ok=True)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(compute, part) for part in parts]
        try:
            for one in futures:
                one.result()
        except BaseException:  # Ctrl-C, for one: no part may outlive this process
            halt.stop(0.0)
            raise
