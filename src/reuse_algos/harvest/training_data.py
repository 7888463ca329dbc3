"""The data that a run was trained on, brought back from its recipe and held against its record.

The recipe in an archive was written by whoever trained the run. Which files are opened and what is downloaded is
therefore taken from it only where the caller says that its author is trusted. What only chooses among examples and
views is always taken, as the fingerprint of the examples is compared afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch.utils.data import Dataset

from reuse_algos.archive import PriorRun
from reuse_algos.data.datasets.load import DataConfig, LoadedData, load_datasets
from reuse_algos.data.examples.identity import same_data
from reuse_algos.data.info import infer_info
from reuse_algos.data.views import ViewedDataset, ViewPolicy, declared_views, views_of
from reuse_algos.errors import DataError, PriorRunMismatchError, nearest

# What is taken of any recipe: it opens nothing and takes no memory of its own.
_HARMLESS: dict[str, type | tuple[type, ...]] = {
    "batch_size": int,
    "augment": str,
    "num_views": int,
    "view_seed": int,
    "drop_last": bool,
    "train_fraction": (float, int),
    "train_examples": int,
    "train_rest": bool,
    "classes": list,
    "labels": str,
}
_EMBEDDED = ("digits", "glyphs")  # come with packages: no path, no download
_MAX_VIEWS = 10_000  # a recipe that others wrote may name so many that a harvest never ends


def viewed_data(
    run: PriorRun,
    views: int | None,
    changes: Mapping[str, Any] | None,
    dataset: Dataset | None,
    device: torch.device,
    *,
    trust_data: bool = False,
) -> tuple[Dataset, ViewPolicy]:
    """Return the run's training data in the views of its training.

    Args:
        run: The run.
        views: How many views are wanted. None takes the recipe's ``num_views``.
        changes: Changes to the recipe's ``data`` section, or the whole of it; None for none.
        dataset: The data, for runs without a recipe; None otherwise.
        device: Where data that is held on the device goes.
        trust_data: Open what the recipe names. Default: False.

    Raises:
        DataError: The data cannot be loaded, have no numbered views, or are named by the recipe only.
        PriorRunMismatchError: They are other examples, or other views of them, than the run was trained on.
    """
    if dataset is None:
        config = _config(run, changes, trust_data)
        config.num_views = views or config.num_views
        if config.num_views == 0 and config.augment != "none":
            raise DataError(
                f"run {run.id} was trained with random augmentation without end ({config.augment}); say how many views "
                "of each example to harvest: --views 32"
            )
        dataset = load_datasets(config, device).train
    dataset, policy = _checked_views(run, dataset, views)
    record = run.manifest.dataset
    assert record is not None  # otherwise the examples would not have been the same
    known = (record.view_seed, record.transform)
    if record.transform != "unknown" and known != (policy.seed, policy.transform):
        raise PriorRunMismatchError(
            f"run {run.id} has views (seed, transform) {known}, the data at hand {(policy.seed, policy.transform)}."
        )
    return dataset, policy


def plain_data(
    run: PriorRun,
    changes: Mapping[str, Any] | None,
    dataset: Dataset | None,
    device: torch.device,
    *,
    trust_data: bool = False,
) -> tuple[Dataset, ViewPolicy]:
    """Return the run's training data in one view, without augmentation where they come from its recipe.

    Args:
        run: The run.
        changes: Changes to the recipe's ``data`` section, or the whole of it; None for none.
        dataset: The data, for runs without a recipe; None otherwise.
        device: Where data that is held on the device goes.
        trust_data: Open what the recipe names. Default: False.

    Raises:
        DataError: The data cannot be loaded, have no numbered views, or are named by the recipe only.
        PriorRunMismatchError: They are other examples than the run was trained on.
    """
    if dataset is None:
        dataset = load_run_data(run, {**(changes or {}), "augment": "none"}, device, trust_data=trust_data).train
    return _checked_views(run, dataset, None)


def load_run_data(
    run: PriorRun,
    changes: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    *,
    trust_data: bool = False,
) -> LoadedData:
    """Load everything that the ``data`` section of a run's recipe describes, and check that it is the run's data.

    Args:
        run: The run.
        changes: Changes to the section, such as another ``root`` or ``augment: none``. Default: None.
        device: Where data that is held on the device goes. Default: ``"cpu"``.
        trust_data: Open the files, and download the data, that the recipe names: whoever wrote the archive chose them.
            Without it ``changes`` must name the data (``name``, ``root``, ``path``, ``image_size``), unless they are
            the embedded digits. Default: False.

    Raises:
        DataError: The run has no recipe, the data are named by the recipe only, or they cannot be loaded.
        PriorRunMismatchError: The data are not those that it was trained on.
    """
    loaded = load_datasets(_config(run, changes, trust_data), device)
    check_same_examples(run, loaded.train)
    return loaded


def check_same_examples(run: PriorRun, dataset: Dataset) -> None:
    """Refuse data that are not the run's training examples in the run's order.

    Raises:
        PriorRunMismatchError: They are not, or the run has no record of its data.
    """
    record, info = run.manifest.dataset, infer_info(dataset)
    if record is None or not same_data(info, record.fingerprint, record.key_fingerprint):
        there = f"{record.name} with {record.num_examples} examples" if record else "unknown data"
        raise PriorRunMismatchError(
            f"run {run.id} was trained on {there} (fingerprint {record.fingerprint[:12] if record else '-'}), the data "
            f"at hand are {info.name} with {info.num_examples} (fingerprint {info.fingerprint[:12]}). Signals must "
            "come from the same examples."
        )


def _config(run: PriorRun, changes: Mapping[str, Any] | None, trust_data: bool) -> DataConfig:
    section = (run.manifest.recipe or {}).get("data")
    if section is None:
        raise DataError(
            f"run {run.id} has no recipe that says what its data were, so they cannot be loaded again. Train with a "
            f"recipe, or give data and model in Python: reuse_algos.harvest.harvest({run.archive!r}, {run.id!r}, "
            "dataset=train_set, model=lambda: model)."
        )
    if not isinstance(section, dict):
        raise DataError(f"the recipe of run {run.id} has a data section that is not a mapping: {section!r:.200}")
    given = dict(changes or {})
    # A recipe in an archive is somebody's word: its paths are not opened unasked.
    if not trust_data:
        section = _harmless(run, section, given)
    settings = {**section, **given}
    known = [field.name for field in fields(DataConfig)]
    if unknown := [key for key in settings if key not in known]:
        raise DataError(f"data.{unknown[0]}: unknown setting.{nearest(unknown[0], known)}")
    return DataConfig(**settings)


def _harmless(run: PriorRun, section: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a recipe's data section that may be taken from anybody."""
    kept = {key: section[key] for key in _HARMLESS if section.get(key) is not None}
    name, side = section.get("name", _EMBEDDED[0]), section.get("image_size")
    wanting = [] if name in _EMBEDDED or "name" in given else [f"name={name}"]
    # A side of 3,000 pixels makes 37 GB of the digits.
    wanting += [f"image_size={side}"] if side is not None and "image_size" not in given else []
    if wanting:
        raise DataError(
            f"the recipe of run {run.id} says that its data are {name!r} ({', '.join(wanting)}), and files are not "
            "opened on the word of an archive. If you trust who wrote it, say --trust-data (trust_data=True); else "
            f"give the data yourself: {' '.join(f'--data {text}' for text in (*wanting, 'root=FOLDER'))}."
        )
    for key, value in kept.items():
        # bool is an int, too: num_views: true is not a number of views.
        whole = isinstance(value, bool) and _HARMLESS[key] is not bool
        if key not in given and (whole or not isinstance(value, _HARMLESS[key])):
            raise DataError(f"the recipe of run {run.id} has data.{key}: {value!r:.100}, which cannot be")
    if "num_views" not in given and kept.get("num_views", 0) > _MAX_VIEWS:
        raise DataError(
            f"the recipe of run {run.id} asks for {kept['num_views']} views of each example; more than {_MAX_VIEWS} "
            "are harvested only if you give their number (--data num_views=N)"
        )
    return {"name": name, **kept}


def _checked_views(run: PriorRun, dataset: Dataset, views: int | None) -> tuple[Dataset, ViewPolicy]:
    """Return the dataset, in a form that takes view numbers, and its views."""
    check_same_examples(run, dataset)
    policy = views_of(dataset)
    if policy is None or policy.num_views == 0:
        raise DataError(
            "the dataset gives other examples each time that it is read, and has no numbered views. Wrap it in "
            "ViewedDataset(dataset, ViewPolicy(seed, views))."
        )
    if views is not None and views > policy.num_views:
        raise DataError(f"{views} views are asked for, but the dataset has {policy.num_views}")
    return (dataset if declared_views(dataset) is not None else ViewedDataset(dataset, policy)), policy
