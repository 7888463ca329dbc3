"""Teachers from the archive label a pool of images: a run that trained nothing, whose logits are theirs.

Legend: N images of the pool, B of a block, C classes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.utils.data import Dataset

from reuse_algos.archive import (
    CostRecord,
    FileEntry,
    HarvestRecord,
    Manifest,
    PriorRun,
    PriorUse,
    RunArchive,
    RunWriter,
    weights_name,
)
from reuse_algos.callbacks.recorder.facts.provenance import environment, hardware_name
from reuse_algos.callbacks.recorder.facts.state_facts import dataset_record, examples_of
from reuse_algos.data.datasets.load import DataConfig, LoadedData, load_datasets
from reuse_algos.data.info import infer_info
from reuse_algos.data.text.config import TEXT_NAMES
from reuse_algos.data.views import declared_views
from reuse_algos.errors import ArchiveConflictError, DataError, PriorRunMismatchError
from reuse_algos.harvest.computations import ArchivedForward, compute_device
from reuse_algos.harvest.harvest_store import encode_rows
from reuse_algos.harvest.passes import view_batches
from reuse_algos.harvest.training_data import load_run_data
from reuse_algos.priors.choosing import match_classes, open_archive, select_runs
from reuse_algos.priors.model import archived_model
from reuse_algos.priors.pseudo_labels import refuse_shared, unlabelled
from reuse_algos.priors.scores.formulas import GRADIENT_BYTES
from reuse_algos.training.tasks.recorded_task import task_of

_BLOCK = 1 << 16  # rows of a commit: what an interrupted labelling loses at most
_NORMALISATION = 0.02  # of a deviation: samples of one source differ by less, other sources by more


@dataclass(frozen=True)
class LabelConfig:
    """How a pool is labelled: the section ``label`` of a recipe.

    Attributes:
        runs: The teachers, see :data:`~reuse_algos.priors.choosing.RunSelection`. Several are averaged.
        keep: Scores kept for each image, the largest ones, at least 1; all where there are fewer classes. Default: 10.
        weights: Which archived weights look at the pool. Default: ``last``.
        batch_size: Images of a forward pass. Default: 512.
        precision: Composer's name of it, such as ``amp_bf16``. Default: None, that of each teacher's recipe.
        trust_data: Open the files that a teacher's archived recipe names, to compare its pixels with the pool's. Needed
            where the pool is another dataset than the teacher's. Default: False.
    """

    runs: Any
    keep: int = 10
    weights: str = "last"
    batch_size: int = 512
    precision: str | None = None
    trust_data: bool = False

    def __post_init__(self) -> None:
        for name in ("keep", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class LabelResult:
    """What labelling a pool made.

    Attributes:
        run_id: The pool's run.
        rows: Images that have scores.
        computed: Images that this call scored; the others were there.
        bytes: Bytes of the scores.
        seconds: Seconds that the passes of the teachers took, all calls together.
        teachers: Ids of the teachers.
    """

    run_id: str
    rows: int
    computed: int
    bytes: int
    seconds: float
    teachers: list[str]


def label_pool(
    archive: RunArchive | str | os.PathLike[str],
    config: LabelConfig,
    pool: DataConfig,
    *,
    name: str,
    tags: Mapping[str, str] | None = None,
    recipe: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
) -> LabelResult:
    """Score every image of a pool with archived teachers, and archive the scores as a run of their own.

    The run's dataset is the pool without labels, its logits are those of the teacher (of several teachers the logarithm
    of their mean probability), its prior runs are the teachers. It is ``empty``, as it trained nothing, so queries for
    prior runs pass it over. Blocks of 65,536 images are committed one by one: a labelling that was interrupted goes on
    where it stopped when it is called again with the same arguments.

    Args:
        archive: The archive or its path.
        config: Teachers, and how many scores are kept.
        pool: The training part of this data is the pool; its labels are not looked at, and images are not augmented.
            Its evaluation part must be the student's.
        name: Name of the pool's run, which no finished run may have.
        tags: Labels to select and group runs by. Default: none.
        recipe: Settings to record. Default: the pool's data section and how it was labelled.
        device: Where to compute. Default: a GPU where there is one.

    Returns:
        What was made, and what it cost.

    Raises:
        ArchiveConflictError: A run of this name is there, or an unfinished one was made from other settings.
        RunNotFoundError, SignalNotFoundError: There are no such teachers or weights.
        PriorRunMismatchError: A teacher has not ended or has other classes, image shapes or pixels than the pool.
        DataError: The pool cannot be loaded, or shares images with its evaluation data.
        ModelError: There is no such device or precision, or a teacher's model cannot be built.
    """
    archive = open_archive(archive)
    target = compute_device(device)
    teachers = select_runs(archive, config.runs)
    if pool.name in TEXT_NAMES:
        raise DataError(f"data.name: {pool.name!r} is a dataset of texts, and pools are of images.")
    # The pool is seen once and whole, whatever the section says of training.
    plain = replace(pool, augment="none", pseudo_labels=None, resample="natural", drop_last=False)
    loaded = load_datasets(plain, target)
    # The run must not tell students the true labels of the pool.
    info = unlabelled(infer_info(loaded.train))
    refuse_shared(info, infer_info(loaded.eval))
    for teacher in teachers:
        check_teacher(teacher, loaded, plain, trust_data=config.trust_data)
    settings = dict(recipe or {"data": _plain(pool), "label": _plain(config)})
    work = _Work(archive, config, loaded.train, teachers, target)
    data = dataset_record(info, declared_views(loaded.train))
    manifest = Manifest(
        run_name=name,
        tags=dict(tags or {}),
        recipe=settings,
        dataset=msgspec.structs.replace(data, num_classes=loaded.num_classes),
        task=teachers[0].manifest.task,
        environment=environment(),
        cost=CostRecord(train_flops=labelling_flops(teachers, info.num_examples)),
        health="empty",
        prior_runs=[
            PriorUse(run_id=run.id, algorithm="label", weights=[weights_name(config.weights)]) for run in teachers
        ],
    )
    return work.do(name, manifest, examples_of(info))


class _Work:
    """One call of :func:`label_pool`."""

    def __init__(
        self,
        archive: RunArchive,
        config: LabelConfig,
        dataset: Dataset,
        teachers: Sequence[PriorRun],
        device: torch.device,
    ) -> None:
        self.archive, self.config, self.dataset, self.teachers = archive, config, dataset, teachers
        self.device = device
        self._forwards: list[ArchivedForward] = []

    def do(self, name: str, fresh: Manifest, examples: dict[str, Tensor]) -> LabelResult:
        """Score what has no scores yet, block by block, and end the run."""
        # Before the run is opened: a teacher that cannot be computed must not leave half a run behind.
        self._forwards = [
            teacher_forward(run, self.device, self.config.weights, self.config.precision) for run in self.teachers
        ]
        writer, manifest, done_N = self._open(name, fresh, examples)
        computed = 0
        # Committed block by block, so that an interrupted call goes on from the last one.
        for block in torch.arange(len(done_N)).split(_BLOCK):
            todo = block[~done_N[block]]
            if len(todo):
                began = time.perf_counter()
                entry = self._put(writer, todo)
                manifest = writer.commit(self._with(manifest, entry, time.perf_counter() - began))
                computed += len(todo)
        if not manifest.files or manifest.generation == 0:
            raise DataError(f"the pool of {name} has no images")
        writer.finish()
        scores = [entry for entry in manifest.files if entry.kind == "signals"]
        return LabelResult(
            writer.run_id,
            # Counted in the archive, which knows the blocks of earlier calls as well.
            rows=sum(entry.tensors["ids"].shape[0] for entry in scores),
            computed=computed,
            bytes=sum(entry.bytes for entry in scores),
            seconds=sum(harvest.seconds for harvest in manifest.harvests),
            teachers=[run.id for run in self.teachers],
        )

    def _open(self, name: str, fresh: Manifest, examples: dict[str, Tensor]) -> tuple[RunWriter, Manifest, Tensor]:
        """Return the writer of a new run, or of the unfinished one of this name, and which images have scores."""
        count = len(examples["keys"])
        there = self.archive.runs(run_name=name, unfinished=True, unhealthy=True)
        for run in there:
            same = (run.manifest.recipe, run.manifest.dataset) == (_as_recorded(fresh.recipe), fresh.dataset)
            if (
                run.finished
                or not same
                or {use.run_id for use in run.manifest.prior_runs} != {teacher.id for teacher in self.teachers}
            ):
                raise ArchiveConflictError(
                    f"{self.archive.location} has a run named {name!r} already ({run.id}"
                    f"{'' if run.finished else ', unfinished and made from other settings'}). Choose another name, or "
                    f"remove it: reuse-algos rm {self.archive.location} {run.id}"
                )
        if there:
            writer, manifest = self.archive.resume_run(there[0].id)
            return writer, manifest, self.archive.run(there[0].id).signal("logits").seen(0)
        writer = self.archive.start_run(name)
        entry = writer.put("dataset", "examples", examples)
        return writer, msgspec.structs.replace(fresh, files=[entry]), torch.zeros(count, dtype=torch.bool)

    def _put(self, writer: RunWriter, positions_B: Tensor) -> FileEntry:
        scores_BC = self._scores(positions_B)
        keep = self.config.keep
        columns, meta = encode_rows("logits", scores_BC, keep if keep < scores_BC.shape[1] else None)
        policy = declared_views(self.dataset)
        facts = {"slot": 0, "epoch": 0, "view": 0, "source": "harvest", "weights": weights_name(self.config.weights)}
        facts["transform"] = policy.transform if policy is not None else "unknown"
        return writer.put("signals", "logits", {"ids": positions_B, **columns}, {**facts, **meta})

    def _with(self, manifest: Manifest, entry: FileEntry, seconds: float) -> Manifest:
        # One record grows, so that a student pays for all calls and not for the last.
        before = sum(harvest.seconds for harvest in manifest.harvests)
        harvest = HarvestRecord(
            signal="logits",
            views=[0],
            weights=weights_name(self.config.weights),
            seconds=before + seconds,
            hardware=hardware_name(),
        )
        return msgspec.structs.replace(manifest, harvests=[harvest], files=[*manifest.files, entry])

    def _scores(self, positions_B: Tensor) -> Tensor:
        """Return the teachers' logits of some images, float32 ``[B, C]`` on the CPU."""
        return mean_logits(self._forwards, self.dataset, positions_B, self.config.batch_size)


def mean_logits(
    forwards: Sequence[ArchivedForward], dataset: Dataset, positions_B: Tensor, batch_size: int = 512
) -> Tensor:
    """Return the logits of one model, or the logarithm of the mean probability of several.

    Args:
        forwards: The models, at least one.
        dataset: The images; the first view of each is looked at.
        positions_B: int64: which of them, in order.
        batch_size: Images of a forward pass. Default: 512.

    Returns:
        float32 ``[B, C]`` on the CPU.
    """
    parts = []
    for batch, _ in view_batches(dataset, 0, batch_size, positions_B):
        each = [forward("logits", batch, None) for forward in forwards]
        # Probabilities are averaged and not logits, whose scales differ between teachers.
        parts.append(each[0] if len(each) == 1 else torch.stack(each).softmax(-1).mean(0).log())
    return torch.cat(parts)


def teacher_forward(
    run: PriorRun, device: torch.device, weights: str = "last", precision: str | None = None
) -> ArchivedForward:
    """Return what looks at images with an archived model.

    Args:
        run: The teacher.
        device: Where to compute.
        weights: Name of its archived weights. Default: ``last``.
        precision: Composer's name of it. Default: None, that of the teacher's recipe.

    Raises:
        ModelError, PriorRunMismatchError: The model cannot be built, see
            :func:`~reuse_algos.priors.model.archived_model`.
    """
    module = archived_model(run, weights).to(device)
    precision = precision or (run.manifest.recipe or {}).get("precision")
    return ArchivedForward(module, device, precision, 0, None, GRADIENT_BYTES, task_of(run.manifest))


def same_pixels(loaded: LoadedData, mean: Sequence[float], std: Sequence[float]) -> bool:
    """Return whether images are brought to the same scale as others, as far as chance among samples lets it be known.

    Args:
        loaded: The images.
        mean: What is subtracted from the others, per channel.
        std: What they are divided by.
    """
    numbers = zip((*loaded.mean, *loaded.std), (*mean, *std), (*loaded.std, *loaded.std), strict=True)
    return all(abs(theirs - ours) <= _NORMALISATION * deviation for theirs, ours, deviation in numbers)


def check_teacher(run: PriorRun, loaded: LoadedData, pool: DataConfig, *, trust_data: bool = False) -> None:
    """Check that an archived model can label these images.

    Args:
        run: The teacher.
        loaded: The images, as they are loaded.
        pool: The section that they were loaded by.
        trust_data: Open the files that the teacher's recipe names, to compare its pixels. Default: False.

    Raises:
        PriorRunMismatchError: The run has not ended, or has other classes, image shapes or pixels than these.
    """
    if not run.finished or run.health != "ok":
        raise PriorRunMismatchError(f"run {run.id} cannot teach: it has not ended, or is {run.health}.")
    match_classes(run, loaded.num_classes, loaded.class_names)
    if (task := task_of(run.manifest)) is not None:
        task.require("labelling a pool", ("multiclass",))
    shape = ((run.manifest.model and run.manifest.model.config) or {}).get("image_shape")
    # Convolutions take other sizes without an error, and answer badly.
    if shape is not None and tuple(shape) != loaded.image_shape:
        raise PriorRunMismatchError(
            f"run {run.id} was trained on images of shape {tuple(shape)}, those of the pool are {loaded.image_shape}. "
            "Set data.image_size."
        )
    recorded = (run.manifest.recipe or {}).get("data")
    if recorded is None or all(recorded.get(key) == getattr(pool, key) for key in ("name", "path")):
        return  # the same source has the same statistics; without a recipe they are not known
    where = {} if recorded["name"] != pool.name else {"root": pool.root}
    own = load_run_data(run, where, trust_data=trust_data)
    if not same_pixels(own, loaded.mean, loaded.std):
        raise PriorRunMismatchError(
            f"run {run.id} was trained on pixels of mean {own.mean} and deviation {own.std}, those of the pool have "
            f"{loaded.mean} and {loaded.std}, so the teacher would see other inputs than it learned from. Put labelled "
            "images and pool in one file, and tell them apart by data.train_examples and data.train_rest."
        )


def labelling_flops(teachers: Sequence[PriorRun], count: int) -> float | None:
    """Return the FLOPs of looking at images with archived models; None where those of a model are not recorded.

    Args:
        teachers: The models.
        count: How many images each looks at.
    """
    each = [run.manifest.model and run.manifest.model.flops_per_example for run in teachers]
    known = [one for one in each if one]
    return float(count * sum(known)) if len(known) == len(each) else None


def _plain(config: Any) -> dict[str, Any]:
    """Return a section as JSON holds it."""
    return _as_recorded(
        {name: getattr(config, name) for name in config.__dataclass_fields__ if getattr(config, name) is not None}
    )


def _as_recorded(settings: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(settings, enc_hook=lambda one: getattr(one, "id", str(one))))
