"""The data of a recipe, with the labels that archived teachers gave where it asks for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from composer import Algorithm

from reuse_algos.algorithms.gradient_interpolation import PeriodOrder
from reuse_algos.algorithms.pseudo_labels import PoolUse
from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.data.datasets.load import DataConfig, LoadedData, load_datasets
from reuse_algos.data.datasets.pseudo import PseudoLabels
from reuse_algos.data.info import infer_info
from reuse_algos.priors.choosing import choose_runs
from reuse_algos.priors.pseudo_labels import choose_pairs
from reuse_algos.recipe.interpolation import resolve
from reuse_algos.recipe.source import parse_yaml, read_text
from reuse_algos.sections import Faults, fit_fields


@dataclass(frozen=True)
class Pool:
    """A pool that a recipe trains on.

    Attributes:
        run: The pool's run.
        asked: How many images and classes.
        algorithm: Keeps account of it.
    """

    run: PriorRun
    asked: PseudoLabels
    algorithm: PoolUse


def data_section(path: str | Path) -> DataConfig:
    """Read the section ``data`` of a YAML file, such as a recipe; its other keys are only there for ``${...}``.

    Raises:
        RecipeError: There is no such file or section, or the section is wrong.
    """
    faults = Faults(str(path))
    text = read_text(path, faults)
    raw = None if text is None else parse_yaml(text, faults)
    if not len(faults) and not (isinstance(raw, dict) and isinstance(raw.get("data"), dict)):
        faults.add("data", "missing. Write for example data: {name: digits, train_examples: 50, train_rest: true}")
    faults.raise_if_any()
    resolved = resolve(raw if isinstance(raw, dict) else {}, faults)
    config = DataConfig(**fit_fields(resolved.values["data"], DataConfig, "data", faults))
    faults.raise_if_any()
    config.check()
    return config


def pool_of(config: DataConfig, archive: RunArchive | str | None) -> Pool | None:
    """Return the pool that a data section names, the same generation of its run on every rank; None without one.

    Raises:
        RunNotFoundError: There is no such run.
    """
    asked = config.pseudo_labels
    if asked is None:
        return None
    assert isinstance(archive, RunArchive)
    # Chosen on one rank for all: a run that is committed meanwhile must not give two ranks two pools.
    [(run_id, generation)] = choose_runs(archive, asked.run)
    run = archive.open_run(run_id, generation)
    return Pool(run, asked, PoolUse(archive, run))


def watchers(config: DataConfig, pool: Pool | None) -> list[Algorithm]:
    """Return the algorithms that hold a run to its data: to its pool, and to the order of periods."""
    found: list[Algorithm] = [] if pool is None else [pool.algorithm]
    return found if config.rotated is None else [*found, PeriodOrder(config.rotated.period)]


def load_recipe_data(config: DataConfig, pool: Pool | None, device: torch.device) -> LoadedData:
    """Load the data of a recipe.

    Args:
        config: The ``data:`` section.
        pool: What :func:`pool_of` found.
        device: Where data that is held on the device goes.

    Raises:
        DataError: The data cannot be loaded as asked, or the pool shares images with the evaluation data.
        PriorRunMismatchError: The pool is another one than was labelled.
    """
    if pool is None:
        return load_datasets(config, device)
    # drop_last would refuse a pool that is smaller than a batch.
    # Loaded twice: which images have labels is known only when all of them have been looked at.
    whole = load_datasets(replace(config, pseudo_labels=None, drop_last=False))
    chosen = choose_pairs(
        pool.run,
        infer_info(whole.train),
        infer_info(whole.eval),
        pool.asked,
        num_classes=whole.num_classes,
    )
    return load_datasets(config, device, chosen)
