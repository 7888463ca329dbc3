"""The harvest itself: pass after pass of an archived model over its training data."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import Dataset

from reuse_algos.archive import FileEntry, PriorRun, RunArchive, weights_name
from reuse_algos.archive.signals.packed import BITS
from reuse_algos.archive.signals.success import success_rates
from reuse_algos.data.images.device_loader import dataloader_of
from reuse_algos.data.info import infer_info
from reuse_algos.data.views import ExampleView, ViewPolicy, declared_views
from reuse_algos.errors import PriorRunMismatchError, SignalNotFoundError, nearest
from reuse_algos.harvest.adversarial import ADVERSARIAL, AttackSettings, attack_settings, attack_view
from reuse_algos.harvest.computations import HARVESTABLE, ArchivedForward, compute_device, gradient_rows
from reuse_algos.harvest.harvest_store import Attempt, Encoded, SignalStore, complete_views, encode_rows
from reuse_algos.harvest.shards import Shards
from reuse_algos.harvest.training_data import plain_data, viewed_data
from reuse_algos.priors.choosing import open_archive
from reuse_algos.priors.model import ModelFactory, archived_model
from reuse_algos.priors.presentations import harvested_name
from reuse_algos.priors.scores.formulas import GRADIENT_BYTES
from reuse_algos.training.attacks import Attack
from reuse_algos.training.tasks.recorded_task import task_of

OF_VIEWS = ("logits", "features", ADVERSARIAL)
"""Signals that are of the views of training unless otherwise asked; scores are of the plain examples."""

_BATCH_SIZE = 512
_SMALL_BATCH = 16


@dataclass(frozen=True)
class HarvestResult:
    """What a harvest did to one signal.

    Attributes:
        run_id: The run whose signals were filled.
        signal: Name of the archived signal, such as ``logits``, ``logits.<weights>`` or ``el2n.<weights>``.
        views: View numbers that are now complete.
        computed: View numbers that this call computed; the others were there.
        rows: Rows written by this call.
        bytes: Bytes written by this call.
        seconds: Seconds that this took, loading of data and (with the first signal) of the model included.
        rates: ``clean_accuracy``, ``success`` and ``success_quantized`` of ``adversarial`` over all examples of the
            computed views. Default: none, for other signals.
    """

    run_id: str
    signal: str
    views: list[int]
    computed: list[int]
    rows: int
    bytes: int
    seconds: float
    rates: dict[str, float] = field(default_factory=dict)


def harvest(
    archive: RunArchive | str | os.PathLike[str],
    run_id: str,
    *,
    signals: Sequence[str] = ("logits",),
    views: int | None = None,
    weights: str = "last",
    top_k: int | None = None,
    attack: Attack | None = None,
    bits: int | None = None,
    plain: bool = False,
    replace: bool = False,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    data: Mapping[str, Any] | None = None,
    dataset: Dataset | None = None,
    model: ModelFactory | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    output_key: str | int | None = None,
    input_key: str | int = 0,
    memory_bytes: int = GRADIENT_BYTES,
    shards: Shards | None = None,
    progress: bool = True,
    trust_data: bool = False,
) -> list[HarvestResult]:
    """Run an archived model over its training data and store what it says, view by view, in the run.

    The model runs in evaluation mode. ``logits`` are those of the views that the run was trained on. The scores
    ``el2n``, ``grand`` and ``grand_last_layer`` (see :mod:`reuse_algos.priors.scores`) look at each example once,
    without augmentation as in Paul et al. 2021, unless ``views`` are asked for; of a given ``dataset`` at its view 0.
    Signals of the last weights have those names, those of others the name of the weights behind a dot
    (``el2n.ep0005``), and their ``epoch`` is that of the weights. Each view is committed when it is complete, so an
    interrupted harvest goes on where it stopped; its cost is added to the run's record, the set-up with the first
    signal that is computed. Each view's meta has the ``seconds`` that it took until it was written (the first one's
    with the set-up). The seconds of a view that was interrupted are added to the record where the same call had
    completed another view of the signal; those of a first view, and those of a process that was killed, are nowhere.

    ``features`` are what the head of the model is given (:mod:`reuse_algos.algorithms.prior_run_warm_start`), float32
    ``[N, D]`` for each view of the training, or with ``plain`` for the examples without augmentation: a later run that
    freezes everything else trains on them.

    ``adversarial`` keeps a perturbation of the pixels of every example in every view of the training, one that makes
    the archived model wrong about it (:mod:`reuse_algos.training.attacks`). The shares of examples that are fooled,
    before and after the perturbations were cut to a few bits, are kept as well.

    Args:
        archive: The archive or its path.
        run_id: The run, by id or unique name.
        signals: What to fill, of ``logits``, ``el2n``, ``grand``, ``grand_last_layer``, ``features``,
            ``adversarial``, and of detectors ``boxes`` and ``gt_scores``; one pass for each. Default: ``logits``.
        views: How many views of each example, from number 0 on. Default: for logits, features and adversarial as many
            as the recipe's ``num_views``, for scores the plain example.
        weights: Which archived weights look at the data. Default: ``last``.
        top_k: How many of the largest logits to keep, with the mass of the rest. Default: None, all, as float16.
        attack: How to perturb, for adversarial. Default: 5 steps of PGD within 8/255 of every pixel.
        bits: 2, 4 or 8 bits for a number, for adversarial. Default: 2 for ``linf``, 8 for ``l2``.
        plain: Take features of each example once, without augmentation. Default: False.
        replace: Harvest again what is there. The first new view takes the place of all harvested views of the signal
            and of their cost. Default: False.
        batch_size: Examples at once. Default: 512; for ``grand`` as many as ``memory_bytes`` allow, from 16 on.
        device: Where to compute. Default: a GPU where there is one.
        precision: Composer's name of it, such as ``amp_bf16``. Default: that of the run's recipe, or fp32.
        data: Changes to the recipe's ``data`` section, such as another ``root`` or ``path``. Default: none.
        dataset: The training data, for runs without a recipe: map-style, deterministic or a ``ViewedDataset``. Default:
            what the recipe describes.
        model: The architecture. Default: as the run's record describes it.
        collate_fn: What makes a batch of a list of examples, as in the loader of the training; detectors and padded
            texts need it. Default: the dataset's own ``collate_fn``, or torch's ``default_collate``.
        output_key: Where the logits lie in the model's outputs. Default: the tensor, or what is called ``logits``.
        input_key: Where the inputs lie in a batch, for models that are plain modules. Default: 0.
        memory_bytes: Bound on the gradients of single examples that ``grand`` holds at once (the activations come on
            top); at least one is held. Default: 256 MiB.
        shards: Parts that other processes compute or have computed, see :class:`~reuse_algos.harvest.shards.Shards`;
            not for adversarial. The rows are the same bit for bit, and the seconds of all parts are recorded. Default:
            None, this process computes everything.
        progress: Show a progress bar. Default: True.
        trust_data: Open the files, and download the data, that the archived recipe names. Without it ``data`` must name
            them (or ``dataset`` be given), unless they are the embedded digits. Default: False.

    Returns:
        For each signal what was done and what it cost.

    Raises:
        RunNotFoundError, SignalNotFoundError: There are no such run, weights or signal.
        PriorRunMismatchError: The run has not ended, the data are not those that it was trained on, the weights do not
            fit, or the signal is kept in another encoding or was made by another attack.
        DataError: The data cannot be loaded or made into batches, have no labels or no known pixel space, or it is not
            said how many views are wanted.
        ModelError: The model has no logits, no linear last layer, logits that are not its head's, or no gradient with
            respect to its inputs.
        ValueError: ``attack`` or ``bits`` are given without the signal adversarial, ``plain`` without features or with
            ``views``, or bits are out of range.
        ArchiveError: The archive cannot be written.
    """
    for name in signals:
        if name not in HARVESTABLE:
            raise SignalNotFoundError(f"no signal {name!r} can be harvested.{nearest(name, HARVESTABLE)}")
    # All arguments are checked before the archive is opened: a harvest may wait in a queue for hours.
    if ADVERSARIAL not in signals and (attack is not None or bits is not None):
        raise ValueError(f"attack and bits belong to the signal {ADVERSARIAL}; harvested are {', '.join(signals)}")
    if plain and ("features" not in signals or views is not None):
        raise ValueError(f"plain is for the signal features, without views; harvested are {', '.join(signals)}")
    if shards is not None and ADVERSARIAL in signals:
        raise ValueError(f"the signal {ADVERSARIAL} cannot be harvested in shards; harvested are {', '.join(signals)}")
    if bits is not None and bits not in BITS:
        raise ValueError(f"bits must be one of {BITS}, not {bits!r}")
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
    target = compute_device(device)
    # Every pass is prepared before the first one runs, so that what cannot be done is refused at once.
    work: list[_Pass] = []
    loaded: dict[bool, tuple[Dataset, ViewPolicy]] = {}
    for signal in dict.fromkeys(signals):
        once = views is None and (signal not in OF_VIEWS or (plain and signal == "features"))
        # Signals of the same views share their data, which may take minutes to load.
        if once not in loaded:
            loaded[once] = (
                plain_data(run, data, dataset, target, trust_data=trust_data)
                if once
                else viewed_data(run, views, data, dataset, target, trust_data=trust_data)
            )
        train, policy = loaded[once]
        kept = top_k if signal == "logits" else None
        made = attack_settings(train, attack or Attack(), bits) if signal == ADVERSARIAL else None
        transform = None if signal == "logits" else policy.transform
        done = complete_views(run, harvested_name(signal, weights), kept, transform, made, replace=replace)
        wanted = range(1 if once else views or policy.num_views)
        store = SignalStore(attempt, signal, weights, policy, shown_in_training=not once, replace=replace)
        work.append(
            _Pass(signal, train, done, [view for view in wanted if view not in done], store, kept, made, collate_fn)
        )
    module = archived_model(run, weights, factory=model).to(target)
    precision = precision or (run.manifest.recipe or {}).get("precision")
    compute = ArchivedForward(module, target, precision, input_key, output_key, memory_bytes, task_of(run.manifest))
    results = []
    with _bar(progress) as bar:
        for one in work:
            name = harvested_name(one.signal, weights)
            size = batch_size or _default_batch_size(one.signal, gradient_rows(module, memory_bytes))
            task = bar.add_task(f"harvest {name} of {run.id}", total=len(one.todo) * len(one.train))  # type: ignore[arg-type]
            entries = []
            for view in one.todo:
                split = None if shards is None else _Split(shards, attempt, _about(run, name, one, view, precision))
                try:
                    made = _rows(one, view, compute, size, lambda count, task=task: bar.advance(task, count), split)
                except BaseException:  # an interrupt too: its seconds were taken all the same
                    one.store.interrupted()
                    raise
                if made is not None:
                    entries.append(one.store.commit(view, *made))
                    if split is not None:
                        split.shards.clear(split.about)
            now = time.perf_counter()
            results.append(_result(run.id, name, one, entries, now - began))
            began = now
    return results


@dataclass(frozen=True)
class _Pass:
    """One signal: the data, the views that are there, those to compute, where they go, and what is to be kept."""

    signal: str
    train: Dataset
    done: set[int]
    todo: list[int]
    store: SignalStore
    top_k: int | None
    made: AttackSettings | None
    collate_fn: Callable[[list[Any]], Any] | None

    def batches(
        self, view: int, batch_size: int, positions: torch.Tensor | None = None
    ) -> Iterator[tuple[Any, torch.Tensor | None]]:
        """Yield the batches of a view, each with the labels of its examples where they are known."""
        return view_batches(self.train, view, batch_size, positions, self.collate_fn)


@dataclass(frozen=True)
class _Split:
    """The parts of one view: how many, whose clock counts their seconds, and what they are of."""

    shards: Shards
    attempt: Attempt
    about: dict[str, Any]


def _about(run: PriorRun, name: str, one: _Pass, view: int, precision: str | None) -> dict[str, Any]:
    """Return what tells the parts of one view from those of another harvest."""
    weights = one.store.weights
    # By content: weights of one name may differ between two generations of a run.
    hashes = [file.sha256 for file in run.manifest.files if (file.kind, file.name) == ("weights", weights)]
    fingerprint = infer_info(one.train).fingerprint
    policy = declared_views(one.train)
    return {
        "run": run.id, "signal": name, "view": view, "weights": hashes, "data": fingerprint,
        "transform": None if policy is None else policy.transform, "precision": precision,
    }  # fmt: skip


def _rows(
    one: _Pass,
    view: int,
    compute: ArchivedForward,
    batch_size: int,
    advance: Callable[[int], None],
    split: _Split | None,
) -> Encoded | None:
    """Return a view of a signal as it is archived; None where only a part of it is computed."""
    if one.made is not None:
        batches = one.batches(view, batch_size)
        return attack_view(one.made, compute, infer_info(one.train).keys, view, batches, advance)

    def parts(positions: torch.Tensor | None) -> Iterator[torch.Tensor]:
        for batch, labels_B in one.batches(view, batch_size, positions):
            rows = compute(one.signal, batch, labels_B)
            advance(len(rows))
            yield rows

    if split is None:
        return encode_rows(one.signal, torch.cat(list(parts(None))), one.top_k)
    count = len(one.train)  # type: ignore[arg-type]
    rows_N = split.shards.rows(split.about, count, batch_size, parts, split.attempt.add)
    return None if rows_N is None else encode_rows(one.signal, rows_N, one.top_k)


def _result(run_id: str, name: str, one: _Pass, entries: Sequence[FileEntry], seconds: float) -> HarvestResult:
    rates = success_rates([entry.meta for entry in entries]) if one.made is not None else {}
    return HarvestResult(
        run_id,
        name,
        views=sorted({*one.done, *one.todo}),
        computed=one.todo,
        rows=sum(entry.tensors["ids"].shape[0] for entry in entries),
        bytes=sum(entry.bytes for entry in entries),
        seconds=seconds,
        rates={key: value for key, value in rates.items() if value is not None},
    )


def _default_batch_size(signal: str, gradients: int) -> int:
    """Return how many examples are looked at together."""
    # Gradients of large models take long, and the bar should move; single examples would load the data one by one.
    return min(_BATCH_SIZE, max(_SMALL_BATCH, gradients)) if signal == "grand" else _BATCH_SIZE


def view_batches(
    dataset: Dataset,
    view: int,
    batch_size: int,
    positions: torch.Tensor | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> Iterator[tuple[Any, torch.Tensor | None]]:
    """Yield the batches of a view, each with the labels of its examples where they are known.

    Args:
        dataset: Images on a device, or any map-style dataset that takes ``ExampleView``.
        view: Number of the view.
        batch_size: Examples of a batch.
        positions: Which examples, in order; int64 on the CPU. Default: None, all of them.
        collate_fn: What makes a batch of a list of examples. Default: the dataset's own, or torch's.
    """
    labels_N = infer_info(dataset).labels
    count = len(dataset)  # type: ignore[arg-type]
    parts = (torch.arange(count) if positions is None else positions).split(batch_size)
    lists = [[ExampleView(position, view) for position in part.tolist()] for part in parts]
    own: dict[str, Any] = {} if collate_fn is None else {"collate_fn": collate_fn}
    for batch, part in zip(dataloader_of(dataset, batch_sampler=lists, **own), parts, strict=True):
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
