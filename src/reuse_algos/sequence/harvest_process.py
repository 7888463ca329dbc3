"""The process that harvests a run of a sequence, and ends at once when the sequence that started it is gone."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from reuse_algos.errors import ReuseAlgosError
from reuse_algos.harvest import harvest
from reuse_algos.recipe.compose import load_recipe
from reuse_algos.sequence.harvests import attack_of
from reuse_algos.sequence.schema import HarvestConfig
from reuse_algos.sequence.step_process import follow_parent

__all__ = ["harvest_run"]

_WHERE_DATA_LIES = ("root", "path", "download")  # may be somewhere else than when the run was recorded


def harvest_run(recipe: str | Path, run_id: str, signal: str, config: HarvestConfig) -> None:
    """Harvest one signal of a step's run.

    Args:
        recipe: the step's recipe file, which says where the archive and the data are, and on which device to compute.
        run_id: the run.
        signal: what to harvest.
        config: how.

    Raises:
        ReuseAlgosError: as :func:`reuse_algos.harvest.harvest`.
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
        data={name: getattr(settings.data, name) for name in _WHERE_DATA_LIES},
        progress=False,
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
