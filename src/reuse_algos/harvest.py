"""Filling a run's signals after the fact: its archived model looks at its training data once more."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from composer.core import Precision, get_precision_context
from composer.models import ComposerModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.utils.data import DataLoader, Dataset

from reuse_algos.algorithms.archived_model import ModelFactory, archived_model
from reuse_algos.algorithms.outputs import logits_of
from reuse_algos.algorithms.prior_run_distillation.teachers import signal_name
from reuse_algos.algorithms.prior_runs import open_archive
from reuse_algos.archive import FileEntry, HarvestRecord, Manifest, PriorRun, RunArchive, RunWriter, encode_top_k
from reuse_algos.callbacks.provenance import hardware_name
from reuse_algos.data.datasets import DataConfig, load_datasets
from reuse_algos.data.device_loader import DeviceImages, device_dataloader
from reuse_algos.data.info import infer_info
from reuse_algos.data.views import ExampleView, ViewPolicy
from reuse_algos.errors import DataError, PriorRunMismatchError, SignalNotFoundError, nearest

__all__ = ["HARVESTABLE", "HarvestResult", "harvest"]

HARVESTABLE = ("logits",)
_BATCH_SIZE = 512


@dataclass(frozen=True)
class HarvestResult:
    """What a harvest did.

    Attributes:
        run_id: the run whose signals were filled.
        signal: name of the signal, ``logits`` or ``logits.<weights>``.
        views: view numbers that are now complete.
        computed: view numbers that this call computed; the others were there.
        rows: rows written by this call.
        bytes: bytes written by this call.
        seconds: seconds that this call took, loading of data and model included.
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
    progress: bool = True,
) -> HarvestResult:
    """Run an archived model over its training data and store its logits, view by view, in the run.

    The model runs in evaluation mode without gradient. Each view is committed when it is complete, so an interrupted
    harvest goes on where it stopped; its cost is added to the run's record.

    Args:
        archive: the archive or its path.
        run_id: the run, by id or unique name.
        signals: what to fill; ``logits``.
        views: how many views of each example, from number 0 on. Default: as many as the recipe's ``num_views``.
        weights: which archived weights look at the data.
        top_k: keep the K largest logits and the mass of the rest; None: all, as float16.
        batch_size: examples at once.
        device: where to compute. Default: a GPU where there is one.
        precision: Composer's name of it, such as ``amp_bf16``. Default: that of the run's recipe, or fp32.
        data: changes to the recipe's ``data`` section, such as another ``root`` or ``path``.
        dataset: the training data, for runs without a recipe: map-style, deterministic or a ``ViewedDataset``.
        model: the architecture, for runs whose record does not say how to build it.
        output_key: where the logits lie in the model's outputs.
        input_key: where the inputs lie in a batch, for models that are plain modules.
        progress: show a progress bar.

    Returns:
        What was done and what it cost.

    Raises:
        RunNotFoundError, SignalNotFoundError: no such run, weights or signal.
        PriorRunMismatchError: the run has not ended, the data are not those that it was trained on, the weights do not
            fit, or the signal is kept in another encoding.
        DataError: the data cannot be loaded, or it is not said how many views are wanted.
        ArchiveError: the archive cannot be written.
    """
    for name in signals:
        if name not in HARVESTABLE:
            raise SignalNotFoundError(f"no signal {name!r} can be harvested.{nearest(name, HARVESTABLE)}")
    began = time.perf_counter()
    archive = open_archive(archive)
    run = archive.run(run_id)
    if not run.finished:
        raise PriorRunMismatchError(
            f"run {run.id} has not ended: it is still training, which a harvest would stop, or it died. Let it end, or "
            "resume it."
        )
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    train, policy = _training_data(run, views, data, dataset, target)
    module = archived_model(run, weights, factory=model).to(target)
    signal = signal_name(weights)
    done = _complete_views(run, signal, top_k)
    todo = [view for view in range(views or policy.num_views) if view not in done]
    compute = _Forward(module, target, precision or (run.manifest.recipe or {}).get("precision"), input_key, output_key)
    store = _Store(archive, run, signal, weights, policy, top_k)
    size = batch_size or _BATCH_SIZE
    rows = written = 0
    with _bar(progress) as bar:
        num_batches = -(-len(train) // size)  # type: ignore[arg-type]
        task = bar.add_task(f"harvest {signal} of {run.id}", total=len(todo) * num_batches)
        for view in todo:
            parts = []
            for batch in _batches(train, view, size):
                parts.append(compute(batch))
                bar.advance(task)
            entry = store.commit(view, torch.cat(parts), time.perf_counter() - began - store.seconds)
            rows, written = rows + entry.tensors["ids"].shape[0], written + entry.bytes
    return HarvestResult(
        run_id=run.id,
        signal=signal,
        views=sorted({*done, *todo}),
        computed=todo,
        rows=rows,
        bytes=written,
        seconds=time.perf_counter() - began,
    )


def _training_data(
    run: PriorRun,
    views: int | None,
    changes: Mapping[str, Any] | None,
    dataset: Dataset | None,
    device: torch.device,
) -> tuple[Dataset, ViewPolicy]:
    """The data that the run was trained on, with the views that are wanted."""
    record = run.manifest.dataset
    if dataset is None:
        section = (run.manifest.recipe or {}).get("data")
        if section is None:
            raise DataError(f"run {run.id} has no recipe that says what its data were; give them as dataset=...")
        config = DataConfig(**{**section, **(changes or {})})
        config.num_views = views or config.num_views
        if config.num_views == 0 and config.augment != "none":
            raise DataError(
                f"run {run.id} was trained with random augmentation without end ({config.augment}); say how many views "
                "of each example to harvest: --views 32"
            )
        dataset = load_datasets(config, device).train
    info = infer_info(dataset)
    if record is None or info.fingerprint != record.fingerprint:
        there = f"{record.name} with {record.num_examples} examples" if record else "unknown data"
        raise PriorRunMismatchError(
            f"run {run.id} was trained on {there} (fingerprint {record.fingerprint[:12] if record else '-'}), the data "
            f"at hand are {info.name} with {info.num_examples} (fingerprint {info.fingerprint[:12]}). Signals must "
            "come from the same examples."
        )
    policy = getattr(dataset, "view_policy", None)
    if not isinstance(policy, ViewPolicy) or policy.num_views == 0:
        raise DataError("the dataset has no numbered views; wrap it in ViewedDataset(dataset, ViewPolicy(seed, views))")
    if views is not None and views > policy.num_views:
        raise DataError(f"{views} views are asked for, but the dataset has {policy.num_views}")
    known = (record.view_seed, record.transform)
    if record.transform != "unknown" and known != (policy.seed, policy.transform):
        raise PriorRunMismatchError(
            f"run {run.id} has views (seed, transform) {known}, the data at hand {(policy.seed, policy.transform)}."
        )
    return dataset, policy


def _complete_views(run: PriorRun, signal: str, top_k: int | None) -> set[int]:
    """Views that an earlier harvest completed.

    Raises:
        PriorRunMismatchError: the signal is kept in another encoding, and one signal has one.
    """
    complete = set()
    for entry in run.manifest.files:
        if (entry.kind, entry.name) != ("signals", signal):
            continue
        kept = entry.tensors["values"].shape[-1] if entry.meta.get("encoding") == "top_k" else None
        if kept != top_k:
            raise PriorRunMismatchError(
                f"run {run.id} keeps {signal} with top_k={kept}, and a signal has one encoding. Harvest with "
                f"top_k={kept} (None: all logits)."
            )
        if entry.meta.get("source") == "harvest":
            complete.add(int(entry.meta["slot"]))  # type: ignore[arg-type]
    return complete


def _batches(dataset: Dataset, view: int, batch_size: int) -> Iterator[Any]:
    count = len(dataset)  # type: ignore[arg-type]
    lists = [
        [ExampleView(position, view) for position in range(start, min(start + batch_size, count))]
        for start in range(0, count, batch_size)
    ]
    if isinstance(dataset, DeviceImages):
        yield from device_dataloader(dataset, batch_sampler=lists)
    else:
        yield from DataLoader(dataset, batch_sampler=lists, generator=torch.Generator().manual_seed(0))


class _Forward:
    """Logits of a batch, on the CPU."""

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        precision: str | None,
        input_key: str | int,
        output_key: str | int | None,
    ) -> None:
        self._module, self._device = module, device
        self._precision = Precision(precision or "fp32")
        self._input_key, self._output_key = input_key, output_key

    def __call__(self, batch: Any) -> torch.Tensor:
        batch = _to_device(batch, self._device)
        inputs = batch if isinstance(self._module, ComposerModel) else batch[self._input_key]
        with torch.no_grad(), get_precision_context(self._precision):
            return logits_of(self._module(inputs), self._output_key).float().cpu()


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: _to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_to_device(value, device) for value in batch)
    return batch


class _Store:
    """Adds harvested views to the run, one commit for each."""

    def __init__(
        self, archive: RunArchive, run: PriorRun, signal: str, weights: str, policy: ViewPolicy, top_k: int | None
    ) -> None:
        self.seconds = 0.0
        self._signal, self._weights, self._policy, self._top_k = signal, weights, policy, top_k
        self._archive, self._run_id = archive, run.id
        self._writer: RunWriter | None = None
        self._manifest: Manifest = run.manifest
        self._record: HarvestRecord | None = None

    def commit(self, view: int, logits_NC: torch.Tensor, seconds: float) -> FileEntry:
        """Write one view and its cost."""
        if self._writer is None:
            self._writer, self._manifest = self._archive.resume_run(self._run_id)
        limit = torch.finfo(torch.float16).max
        rows = (
            encode_top_k(logits_NC, self._top_k)
            if self._top_k
            else {"values": logits_NC.clamp(-limit, limit).to(torch.float16)}
        )
        meta = {
            "slot": view,
            "epoch": self._manifest.progress.epoch,
            "view": view,
            "source": "harvest",
            "weights": self._weights,
            "encoding": "top_k" if self._top_k else "dense",
            "num_classes": logits_NC.shape[1],
        }
        entry = self._writer.put("signals", self._signal, {"ids": torch.arange(len(logits_NC)), **rows}, meta)
        self.seconds += seconds
        earlier = [h for h in self._manifest.harvests if h != self._record]
        self._record = HarvestRecord(
            signal=self._signal,
            views=[*(self._record.views if self._record else []), view],
            weights=self._weights,
            seconds=self.seconds,
            hardware=hardware_name(),
        )
        dataset = self._manifest.dataset
        assert dataset is not None
        if dataset.transform == "unknown":
            # The run's own loader did not say what its views were; from now on these are the views of its signals.
            dataset = msgspec.structs.replace(dataset, view_seed=self._policy.seed, transform=self._policy.transform)
        files = [
            old
            for old in self._manifest.files
            if (old.kind, old.name, old.meta.get("slot"), old.meta.get("source"))
            != ("signals", self._signal, view, "harvest")
        ]
        self._manifest = self._writer.commit(
            msgspec.structs.replace(
                self._manifest, dataset=dataset, harvests=[*earlier, self._record], files=[*files, entry]
            )
        )
        return entry


def _bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
