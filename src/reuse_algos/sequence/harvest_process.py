"""The process that harvests a run of a sequence, and ends at once when the sequence that started it is gone."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from reuse_algos.errors import ReuseAlgosError
from reuse_algos.harvest import harvest
from reuse_algos.sequence.harvests import attack_of
from reuse_algos.sequence.schema import HarvestConfig
from reuse_algos.sequence.step_process import follow_parent

__all__ = ["harvest_run"]


def harvest_run(archive: str, run_id: str, signal: str, config: HarvestConfig, device: str | None = None) -> None:
    """Harvest one signal of a run.

    Args:
        archive: folder or URL.
        run_id: the run.
        signal: what to harvest.
        config: how.
        device: where, by Composer's name (``gpu``); None: a GPU where there is one.

    Raises:
        ReuseAlgosError: as :func:`reuse_algos.harvest.harvest`.
    """
    given: dict[str, Any] = {"plain": config.plain}
    for result in harvest(
        archive,
        run_id,
        signals=[signal],
        views=config.views,
        weights=config.weights,
        top_k=config.top_k,
        attack=attack_of(config),
        bits=config.bits,
        batch_size=config.batch_size,
        device={"gpu": "cuda"}.get(device or "", device),
        progress=False,
        **given,
    ):
        print(
            f"{result.signal}: {result.rows} rows of {len(result.computed)} views, {result.seconds:.1f} s", flush=True
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Harvest as one JSON text says; 1, with its message, for what can be expected to go wrong."""
    (text,) = sys.argv[1:] if arguments is None else arguments
    asked = json.loads(text)
    try:
        harvest_run(**{**asked, "config": HarvestConfig(**asked["config"])})
    except ReuseAlgosError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    follow_parent()
    sys.exit(main())
