"""The data that a run was trained on, brought back from its recipe and held against its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import Dataset

from reuse_algos.archive import PriorRun
from reuse_algos.data.datasets.load import DataConfig, LoadedData, load_datasets
from reuse_algos.data.identity import same_data
from reuse_algos.data.info import infer_info
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import DataError, PriorRunMismatchError

__all__ = ["check_same_examples", "load_run_data", "plain_data", "viewed_data"]


def viewed_data(
    run: PriorRun,
    views: int | None,
    changes: Mapping[str, Any] | None,
    dataset: Dataset | None,
    device: torch.device,
) -> tuple[Dataset, ViewPolicy]:
    """The run's training data in the views of its training.

    Args:
        run: the run.
        views: how many views are wanted. None: as many as the recipe's ``num_views``.
        changes: changes to the recipe's ``data`` section.
        dataset: the data, for runs without a recipe.
        device: where data that is held on the device goes.

    Raises:
        DataError: the data cannot be loaded, or have no numbered views.
        PriorRunMismatchError: they are other examples, or other views of them, than the run was trained on.
    """
    if dataset is None:
        config = _config(run, changes)
        config.num_views = views or config.num_views
        if config.num_views == 0 and config.augment != "none":
            raise DataError(
                f"run {run.id} was trained with random augmentation without end ({config.augment}); say how many views "
                "of each example to harvest: --views 32"
            )
        dataset = load_datasets(config, device).train
    policy = _checked_policy(run, dataset, views)
    record = run.manifest.dataset
    assert record is not None  # otherwise the examples would not have been the same
    known = (record.view_seed, record.transform)
    if record.transform != "unknown" and known != (policy.seed, policy.transform):
        raise PriorRunMismatchError(
            f"run {run.id} has views (seed, transform) {known}, the data at hand {(policy.seed, policy.transform)}."
        )
    return dataset, policy


def plain_data(
    run: PriorRun, changes: Mapping[str, Any] | None, dataset: Dataset | None, device: torch.device
) -> tuple[Dataset, ViewPolicy]:
    """The run's training data in one view, without augmentation where they come from its recipe.

    Raises:
        DataError, PriorRunMismatchError: as :func:`viewed_data`.
    """
    if dataset is None:
        dataset = load_run_data(run, {**(changes or {}), "augment": "none"}, device).train
    return dataset, _checked_policy(run, dataset, None)


def load_run_data(
    run: PriorRun, changes: Mapping[str, Any] | None = None, device: torch.device | str = "cpu"
) -> LoadedData:
    """Everything that the ``data`` section of a run's recipe describes; the training examples are those of the run.

    Args:
        run: the run.
        changes: changes to the section, such as another ``root`` or ``augment: none``.
        device: where data that is held on the device goes.

    Raises:
        DataError: the run has no recipe, or the data cannot be loaded.
        PriorRunMismatchError: the data are not those that it was trained on.
    """
    loaded = load_datasets(_config(run, changes), device)
    check_same_examples(run, loaded.train)
    return loaded


def check_same_examples(run: PriorRun, dataset: Dataset) -> None:
    """Refuse data that are not the run's training examples in the run's order.

    Raises:
        PriorRunMismatchError: they are not, or the run has no record of its data.
    """
    record, info = run.manifest.dataset, infer_info(dataset)
    if record is None or not same_data(info, record.fingerprint, record.key_fingerprint):
        there = f"{record.name} with {record.num_examples} examples" if record else "unknown data"
        raise PriorRunMismatchError(
            f"run {run.id} was trained on {there} (fingerprint {record.fingerprint[:12] if record else '-'}), the data "
            f"at hand are {info.name} with {info.num_examples} (fingerprint {info.fingerprint[:12]}). Signals must "
            "come from the same examples."
        )


def _config(run: PriorRun, changes: Mapping[str, Any] | None) -> DataConfig:
    section = (run.manifest.recipe or {}).get("data")
    if section is None:
        raise DataError(
            f"run {run.id} has no recipe that says what its data were, so they cannot be loaded again. Train with a "
            "recipe, or harvest from Python and give the data (dataset=...)."
        )
    return DataConfig(**{**section, **(changes or {})})


def _checked_policy(run: PriorRun, dataset: Dataset, views: int | None) -> ViewPolicy:
    check_same_examples(run, dataset)
    policy = getattr(dataset, "view_policy", None)
    if not isinstance(policy, ViewPolicy) or policy.num_views == 0:
        raise DataError("the dataset has no numbered views; wrap it in ViewedDataset(dataset, ViewPolicy(seed, views))")
    if views is not None and views > policy.num_views:
        raise DataError(f"{views} views are asked for, but the dataset has {policy.num_views}")
    return policy
