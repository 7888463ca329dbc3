"""Slurm's commands, as far as submitit calls them, for a site of one node: this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

# What is submitted is started at once. Each task writes the number of its session's process into a file of its name.
_COMMANDS = {
    "sbatch": """
cp "$1" "$SITE/submitted.sh"
echo submitted >> "$SITE/calls"
number=$(grep -c submitted "$SITE/calls")
array=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
if [ -z "$array" ]; then "$SITE/start" "$number"; else
    for task in $(seq 0 "$array"); do "$SITE/start" "${number}_$task"; done
fi
echo "Submitted batch job $number"
""",
    "start": """
export SLURM_JOB_ID="${1%%_*}" SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
case "$1" in *_*) export SLURM_ARRAY_JOB_ID="${1%%_*}" SLURM_ARRAY_TASK_ID="${1##*_}";; esac
setsid sh "$SITE/submitted.sh" > "$SITE/$1.out" 2>&1 &
echo $! > "$SITE/$1.pid"
""",
    "srun": """
while [ "${1#--}" != "$1" ]; do
    case "$1" in --output|--error) shift;; esac
    shift
done
exec "$@"
""",
    "scontrol": 'echo "scontrol $*" >> "$SITE/calls"; "$SITE/start" "$2"',
    "scancel": 'echo "scancel $*" >> "$SITE/calls"; kill -KILL -- "-$(cat "$SITE/$1.pid")"',
    "sacct": "exit 0",
}


class SlurmSite:
    """Slurm's commands in a folder that comes first in ``PATH``.

    Args:
        folder: Where they are put.
        monkeypatch: Undoes the change of the environment.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        for name, text in _COMMANDS.items():
            (folder / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / name).chmod(0o700)
        monkeypatch.setenv("SITE", str(folder))
        monkeypatch.setenv("PATH", str(folder), prepend=":")

    @property
    def calls(self) -> list[str]:
        """What Slurm was asked for."""
        return (self.folder / "calls").read_text().splitlines()

    @property
    def script(self) -> list[str]:
        """The lines of what was last submitted."""
        return (self.folder / "submitted.sh").read_text().splitlines()

    def session(self, task: str) -> int:
        """Number of the process that started a task, and of its session."""
        return int((self.folder / f"{task}.pid").read_text())
