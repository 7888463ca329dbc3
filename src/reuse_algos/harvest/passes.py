"""The harvest itself: pass after pass of an archived model over its training data."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from reuse_algos.algorithms.archived_model import ModelFactory, archived_model
from reuse_algos.algorithms.presentations import harvested_name
from reuse_algos.algorithms.prior_runs import open_archive
from reuse_algos.archive import RunArchive, weights_name
from reuse_algos.data.device_loader import DeviceImages, device_dataloader
from reuse_algos.data.info import infer_info
from reuse_algos.data.views import ExampleView, ViewPolicy
from reuse_algos.errors import PriorRunMismatchError, SignalNotFoundError, nearest
from reuse_algos.harvest.computations import HARVESTABLE, ArchivedForward, gradient_rows
from reuse_algos.harvest.harvest_store import Attempt, SignalStore, complete_views
from reuse_algos.harvest.training_data import plain_data, viewed_data
from reuse_algos.scores import GRADIENT_BYTES

__all__ = ["HarvestResult", "harvest"]

_BATCH_SIZE = 512
_SMALL_BATCH = 16


@dataclass(frozen=True)
class HarvestResult:
    """What a harvest did to one signal.

    Attributes:
        run_id: the run whose signals were filled.
        signal: name of the archived signal, such as ``logits``, ``logits.<weights>`` or ``el2n.<weights>``.
        views: view numbers that are now complete.
        computed: view numbers that this call computed; the others were there.
        rows: rows written by this call.
        bytes: bytes written by this call.
        seconds: seconds that this took, loading of data and (with the first signal) of the model included.
    """

    run_id: str
    signal: str
    views: list[int]
    computed: list[int]
    rows: int
    bytes: int
    seconds: float


def harvest(
    archive: RunArchive | str | os.PathLike[str],
    run_id: str,
    *,
    signals: Sequence[str] = ("logits",),
    views: int | None = None,
    weights: str = "last",
    top_k: int | None = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    data: Mapping[str, Any] | None = None,
    dataset: Dataset | None = None,
    model: ModelFactory | None = None,
    output_key: str | int | None = None,
    input_key: str | int = 0,
    memory_bytes: int = GRADIENT_BYTES,
    progress: bool = True,
) -> list[HarvestResult]:
    """Run an archived model over its training data and store what it says, view by view, in the run.

    The model runs in evaluation mode. ``logits`` are those of the views that the run was trained on. The scores
    ``el2n``, ``grand`` and ``grand_last_layer`` (see :mod:`reuse_algos.scores`) look at each example once, without
    augmentation as in Paul et al. 2021, unless ``views`` are asked for; of a given ``dataset`` at its view 0. Signals
    of the last weights have those names, those of others the name of the weights behind a dot (``el2n.ep0005``), and
    their ``epoch`` is that of the weights. Each view is committed when it is complete, so an interrupted harvest goes
    on where it stopped; its cost is added to the run's record, the set-up with the first signal that is computed.

    Args:
        archive: the archive or its path.
        run_id: the run, by id or unique name.
        signals: what to fill, of ``logits``, ``el2n``, ``grand``, ``grand_last_layer``; one pass for each.
        views: how many views of each example, from number 0 on. Default: for logits as many as the recipe's
            ``num_views``, for scores the plain example.
        weights: which archived weights look at the data.
        top_k: for logits: keep the K largest and the mass of the rest; None: all, as float16.
        batch_size: examples at once.
        device: where to compute. Default: a GPU where there is one.
        precision: Composer's name of it, such as ``amp_bf16``. Default: that of the run's recipe, or fp32.
        data: changes to the recipe's ``data`` section, such as another ``root`` or ``path``.
        dataset: the training data, for runs without a recipe: map-style, deterministic or a ``ViewedDataset``.
        model: the architecture, for runs whose record does not say how to build it.
        output_key: where the logits lie in the model's outputs.
        input_key: where the inputs lie in a batch, for models that are plain modules.
        memory_bytes: for ``grand``: bound on the gradients of single examples that are held at once (the activations
            come on top); at least one is held.
        progress: show a progress bar.

    Returns:
        For each signal what was done and what it cost.

    Raises:
        RunNotFoundError, SignalNotFoundError: no such run, weights or signal.
        PriorRunMismatchError: the run has not ended, the data are not those that it was trained on, the weights do not
            fit, or the signal is kept in another encoding.
        DataError: the data cannot be loaded, have no labels, or it is not said how many views are wanted.
        ModelError: the model has no logits, or no linear last layer.
        ArchiveError: the archive cannot be written.
    """
    for name in signals:
        if name not in HARVESTABLE:
            raise SignalNotFoundError(f"no signal {name!r} can be harvested.{nearest(name, HARVESTABLE)}")
    began = time.perf_counter()
    archive = open_archive(archive)
    run = archive.run(run_id)
    attempt = Attempt(archive, run)
    if not run.finished:
        raise PriorRunMismatchError(
            f"run {run.id} has not ended: it is still training, which a harvest would stop, or it died. Let it end, or "
            "resume it."
        )
    weights = weights_name(weights)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    work: list[_Pass] = []
    loaded: dict[bool, tuple[Dataset, ViewPolicy]] = {}
    for signal in dict.fromkeys(signals):
        plain = signal != "logits" and views is None
        if plain not in loaded:
            loaded[plain] = (
                plain_data(run, data, dataset, target) if plain else viewed_data(run, views, data, dataset, target)
            )
        kept = top_k if signal == "logits" else None
        train, policy = loaded[plain]
        done = complete_views(
            run, harvested_name(signal, weights), kept, None if signal == "logits" else policy.transform
        )
        wanted = range(1 if plain else views or policy.num_views)
        store = SignalStore(attempt, signal, weights, policy, top_k=kept, shown_in_training=not plain)
        work.append(_Pass(signal, train, done, [view for view in wanted if view not in done], store))
    module = archived_model(run, weights, factory=model).to(target)
    precision = precision or (run.manifest.recipe or {}).get("precision")
    compute = ArchivedForward(module, target, precision, input_key, output_key, memory_bytes)
    results = []
    with _bar(progress) as bar:
        for one in work:
            name = harvested_name(one.signal, weights)
            size = batch_size or _default_batch_size(one.signal, gradient_rows(module, memory_bytes))
            task = bar.add_task(f"harvest {name} of {run.id}", total=len(one.todo) * len(one.train))  # type: ignore[arg-type]
            rows = written = 0
            for view in one.todo:
                parts = []
                for batch, labels_B in _batches(one.train, view, size):
                    parts.append(compute(one.signal, batch, labels_B))
                    bar.advance(task, len(parts[-1]))
                entry = one.store.commit(view, torch.cat(parts))
                rows, written = rows + entry.tensors["ids"].shape[0], written + entry.bytes
            now = time.perf_counter()
            views_done = sorted({*one.done, *one.todo})
            results.append(HarvestResult(run.id, name, views_done, one.todo, rows, written, now - began))
            began = now
    return results


@dataclass(frozen=True)
class _Pass:
    """One signal: the data, the views that are there, those to compute, and where they go."""

    signal: str
    train: Dataset
    done: set[int]
    todo: list[int]
    store: SignalStore


def _default_batch_size(signal: str, gradients: int) -> int:
    """Gradients of large models take long, and the bar should move; but loading single examples would be wasteful."""
    return min(_BATCH_SIZE, max(_SMALL_BATCH, gradients)) if signal == "grand" else _BATCH_SIZE


def _batches(dataset: Dataset, view: int, batch_size: int) -> Iterator[tuple[Any, torch.Tensor | None]]:
    """All batches of a view in order of position, each with the labels of its examples where they are known."""
    labels_N = infer_info(dataset).labels
    count = len(dataset)  # type: ignore[arg-type]
    parts = torch.arange(count).split(batch_size)
    lists = [[ExampleView(position, view) for position in part.tolist()] for part in parts]
    if isinstance(dataset, DeviceImages):
        loader = device_dataloader(dataset, batch_sampler=lists)
    else:
        loader = DataLoader(dataset, batch_sampler=lists, generator=torch.Generator().manual_seed(0))
    for batch, part in zip(loader, parts, strict=True):
        yield batch, None if labels_N is None else labels_N[part]


def _bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
