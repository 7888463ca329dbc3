"""The process of one job of a sequence: it trains a step, or harvests a signal of a step's run.

A killed sequence must not leave a job behind: the next one resumes the same checkpoint, and two processes would write
one run. So a job ends itself when the pipe that its launcher holds is closed, and when the sequence's lease is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from reuse_algos import train
from reuse_algos.archive import RunArchive
from reuse_algos.errors import ReuseAlgosError
from reuse_algos.harvest import harvest
from reuse_algos.recipe.compose import load_recipe
from reuse_algos.remote_job import LEFT_BEHIND, end_with_pipe
from reuse_algos.sequence.planning.harvests import attack_of
from reuse_algos.sequence.planning.schema import HarvestConfig
from reuse_algos.sequence.running.lease import LeaseKey, outlast

_NOT_STARTED = 2


def harvest_run(recipe: str | Path, run_id: str, signal: str, config: HarvestConfig) -> None:
    """Harvest one signal of a step's run.

    Args:
        recipe: The step's recipe file, which says where the archive and the data are, and on which device to compute.
        run_id: The run.
        signal: What to harvest.
        config: How to harvest it.

    Raises:
        ReuseAlgosError: The run cannot be harvested so, see :func:`reuse_algos.harvest.harvest`.
    """
    settings = load_recipe(recipe).settings
    assert settings.archive is not None
    for result in harvest(
        settings.archive,
        run_id,
        signals=[signal],
        views=config.views,
        weights=config.weights,
        top_k=config.top_k,
        attack=attack_of(config),
        bits=config.bits,
        plain=config.plain,
        batch_size=config.batch_size,
        device={"gpu": "cuda"}.get(settings.device or "", settings.device),
        data=asdict(settings.data),  # the step's own: the data may lie elsewhere now, and the archive is not asked
        progress=False,
    ):
        print(
            f"{result.signal}: {result.rows} rows of {len(result.computed)} views, {result.seconds:.1f} s", flush=True
        )


def main(arguments: Sequence[str] | None = None, ends: Callable[[int], object] = os._exit) -> int:
    """Do the job that one JSON text describes, and return the exit status.

    Args:
        arguments: The JSON text. Default: the process's own arguments.
        ends: Called with an exit status once the sequence is gone. Default: ends the process at once, without
            finishing anything, as a kill would.
    """
    (text,) = sys.argv[1:] if arguments is None else arguments
    asked = json.loads(text)
    key = LeaseKey(**asked.pop("lease"))
    archive_id = asked.pop("archive_id", None)
    # Before anything that takes time: a launcher that dies meanwhile must not leave this behind.
    end_with_pipe(ends)
    # On another machine a local path may be another folder, or none; a run would be committed where nobody looks.
    if archive_id is not None and (fault := _archive_fault(key.archive, archive_id)):
        print(f"error: {fault}", file=sys.stderr)
        return _NOT_STARTED
    _in_background(lambda: outlast(key), ends)
    if "signal" not in asked:
        return train.main([asked["recipe"]])
    try:
        harvest_run(**{**asked, "config": HarvestConfig(**asked["config"])})
    except ReuseAlgosError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _archive_fault(archive: str, expected: str) -> str | None:
    """Return why the sequence's archive cannot be used on this machine.

    Args:
        archive: Its folder or URL.
        expected: Its identity, as the driver sees it.
    """
    place = archive if "://" in archive else str(Path(archive).resolve())
    where = f"{place} on {os.uname().nodename}"
    try:
        found = RunArchive(place, read_only=True).archive_id
    except ReuseAlgosError as error:
        return f"the sequence's archive cannot be seen at {where} ({error}). Use a shared folder or an object store"
    if found != expected:
        return (
            f"{where} is another archive ({found}) than where the sequence was started ({expected}). Use a shared "
            "folder or an object store"
        )
    return None


def _in_background(wait: Callable[[], None], ends: Callable[[int], object]) -> None:
    def watch() -> None:
        wait()
        ends(LEFT_BEHIND)

    threading.Thread(target=watch, name="follow-sequence", daemon=True).start()


if __name__ == "__main__":
    status = main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)
