"""What a run says about itself: typed, versioned records, kept as sealed JSON.

A :class:`Manifest` is one generation of a run. Writing it is the commit; it lists every file that is part of the run.
Readers ignore fields that they do not know, so a minor version may add fields and kinds of files.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import msgspec

from reuse_algos.archive.format.envelope import FORMAT, seal, unseal
from reuse_algos.archive.format.names import SAFE_NAME, data_attempt, data_path, manifest_path
from reuse_algos.errors import ArchiveCorruptError

__all__ = [
    "FORMAT",
    "KINDS",
    "ArchiveRecord",
    "CostRecord",
    "DatasetRecord",
    "EnvironmentRecord",
    "FileEntry",
    "FinalRecord",
    "HarvestRecord",
    "LeaseRecord",
    "Manifest",
    "MarkerRecord",
    "ModelRecord",
    "PriorUse",
    "Progress",
    "TaskRecord",
    "TensorInfo",
    "decode_manifest",
    "encode_manifest",
]

KINDS = ("weights", "metrics", "signals", "dataset")

Scalar = str | int | float | bool | None
Count = Annotated[int, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(pattern=rf"\A{SAFE_NAME}\Z")]


class _Struct(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records: immutable, built by keyword, decoded with unknown fields ignored.

    Those that are files have a tag, by which one in the place of another is noticed although its fields would do.
    """


class TensorInfo(_Struct, frozen=True, kw_only=True):
    """Type and shape of one tensor.

    Attributes:
        dtype: The name that safetensors gives it, such as ``"F32"`` or ``"I64"``.
        shape: Its sizes, slowest first; ``()`` for a scalar.
    """

    dtype: str
    shape: tuple[Count, ...]


class FileEntry(_Struct, frozen=True, kw_only=True):
    """One data file of a run.

    Attributes:
        kind: One of :data:`KINDS`. (A newer minor version may know more.)
        name: What it is called within its kind, such as ``"last"`` for weights or ``"logits"`` for a signal.
        path: Relative to the run: ``data/<kind>/<name>-<attempt>-<first 16 digits of sha256>.safetensors``.
        bytes: Exact size.
        sha256: Of the whole file, 64 lower-case hex digits.
        tensors: What the file must hold, no more and no less.
        meta: Facts about the file; for signals see :class:`~reuse_algos.archive.signals.segments.Segment`.
    """

    kind: Name
    name: Name
    path: str
    bytes: Count
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    tensors: dict[str, TensorInfo]
    meta: dict[str, Scalar] = {}


class DatasetRecord(_Struct, frozen=True, kw_only=True):
    """The training data of a run. Keys and labels are in the file of kind ``dataset`` named ``examples``.

    Attributes:
        name: What the dataset is called.
        num_examples: N; positions are 0 to N-1.
        fingerprint: Hash over name, N, keys, labels and, where ``key_fingerprint`` is there, the content of a sample:
            equal fingerprints mean the same examples in the same order.
        key_fingerprint: The same hash without content. None in runs of older versions, which recorded no content, and
            where it could not be read.
        key_kind: What the keys are: ``id``, ``path`` or ``position``. None in runs of older versions.
        class_names: One name per class, where known.
        num_classes: Number of classes, where it is a classification task.
        labels_known: Whether the file holds labels.
        view_seed: Seed of the views; with ``num_views`` and ``transform`` it says what a view number means.
        num_views: Number of different views; 0 for ordinary random augmentation.
        transform: Stable description of the augmentation.
    """

    name: str
    num_examples: Count
    fingerprint: str
    key_fingerprint: str | None = None
    key_kind: str | None = None
    class_names: list[str] | None = None
    num_classes: Count | None = None
    labels_known: bool = False
    view_seed: int | None = None
    num_views: Count = 0
    transform: str = "unknown"


class TaskRecord(_Struct, frozen=True, kw_only=True):
    """What kind of learning problem a run was trained on; since format 1.2.

    Attributes:
        kind: Such as ``multiclass``, ``binary`` or ``token``. (A newer minor version may know more.)
        num_classes: Classes, labels or predicted numbers of an output.
        class_dim: Dimension of the model's outputs that holds them: 1 or -1; 0 where outputs are ``[B]``.
        ignore_index: A class number that did not count as a target, or None.
        shift: Whether position t was judged by the target at t + 1.
    """

    kind: Name
    num_classes: Count
    class_dim: int = 1
    ignore_index: int | None = None
    shift: bool = False


class ModelRecord(_Struct, frozen=True, kw_only=True):
    """The model of a run.

    Attributes:
        name: What the model is called.
        config: Keyword arguments that build it again, or None where the model is the caller's own.
        num_classes: Width of its output, where it is a classifier.
        parameters: Names and shapes of the archived state dict.
        num_parameters: How many numbers are trained.
        flops_per_example: Of one forward pass of one example in training: of the head alone, where it is trained on
            archived features.
    """

    name: str
    config: dict[str, Any] | None = None
    num_classes: Count | None = None
    parameters: dict[str, TensorInfo] = {}
    num_parameters: Count = 0
    flops_per_example: Count | None = None


class EnvironmentRecord(_Struct, frozen=True, kw_only=True):
    """Where a run ran: versions of the software, a description of the hardware, the commit of the code."""

    versions: dict[str, str]
    hardware: dict[str, str | int | float | None]
    git_commit: str | None = None


class Progress(_Struct, frozen=True, kw_only=True):
    """How far a run had trained: whole epochs, batches and examples."""

    epoch: Count = 0
    batch: Count = 0
    sample: Count = 0


class CostRecord(_Struct, frozen=True, kw_only=True):
    """What a run cost, in seconds of wall-clock time and in FLOPs.

    Attributes:
        train_seconds: Training, evaluation excluded.
        eval_seconds: Evaluation.
        setup_seconds: Loading teachers and caches before the first step.
        overhead_seconds: The recorder's own work.
        train_flops: Of training: three forward passes of the model for every example that went through it (a backward
            pass costs about two), and the forward passes of live teachers. None where one of them is not known, or
            where an algorithm of Composer's changes what a step is, as SAM does.
    """

    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    setup_seconds: float = 0.0
    overhead_seconds: float = 0.0
    train_flops: float | None = None


class HarvestRecord(_Struct, frozen=True, kw_only=True):
    """One pass of the run's model over its training data that filled a signal afterwards, and what it took."""

    signal: str
    views: list[int]
    weights: str
    seconds: float
    hardware: str


class PriorUse(_Struct, frozen=True, kw_only=True):
    """What this run used of an earlier one: weights, signals, and its share of harvest seconds."""

    run_id: str
    algorithm: str
    weights: list[str] = []
    signals: list[str] = []
    harvest_seconds: float = 0.0


class Manifest(_Struct, frozen=True, kw_only=True, tag_field="record", tag="manifest"):
    """One committed generation of a run.

    The identity fields (``format`` to ``committed_at``) are filled by :meth:`RunWriter.commit
    <reuse_algos.archive.run.RunWriter.commit>`; a caller sets the rest.

    Attributes:
        format: Major and minor format version.
        archive_id: The archive in which it was written. (A run's directory may be copied into another archive.)
        run_id: The run.
        run_name: The name its user gave it; need not be unique.
        generation: 1, 2, ...; readers take the highest.
        attempt: Counts the times that the run was started or resumed, from 1.
        write_id: Unique per commit; tells a writer whether a manifest is its own.
        created_at: When the run was started, ISO 8601 in UTC.
        committed_at: When this generation was committed.
        tags: Free words to select runs by.
        seed: Of the run.
        recipe: The run's settings.
        dataset: Its training data.
        task: What kind of problem it learned, or None where that is not known (always so before format 1.2).
        model: Its model.
        environment: Where it ran.
        progress: How far it had trained.
        cost: What it had cost so far.
        monitor: Full name of the metric that orders runs, such as ``"metrics/eval/MulticlassAccuracy"``.
        monitor_mode: Whether more or less of it is better.
        health: ``"diverged"`` after NaN or Inf, ``"empty"`` before anything was trained, else ``"ok"``.
        harvests: Passes over the data that filled signals afterwards.
        prior_runs: What it used of earlier runs.
        files: Every data file that is part of this generation.
    """

    format: tuple[int, int] = FORMAT
    archive_id: str = ""
    run_id: str = ""
    run_name: str = ""
    generation: int = 0
    attempt: int = 0
    write_id: str = ""
    created_at: str = ""
    committed_at: str = ""
    tags: dict[str, str] = {}
    seed: int | None = None
    recipe: dict[str, Any] | None = None
    dataset: DatasetRecord | None = None
    task: TaskRecord | None = None
    model: ModelRecord | None = None
    environment: EnvironmentRecord | None = None
    progress: Progress = Progress()
    cost: CostRecord = CostRecord()
    monitor: str | None = None
    monitor_mode: Literal["max", "min"] = "max"
    health: Literal["ok", "diverged", "empty"] = "ok"
    harvests: list[HarvestRecord] = []
    prior_runs: list[PriorUse] = []
    files: list[FileEntry] = []


class FinalRecord(_Struct, frozen=True, kw_only=True, tag_field="record", tag="final"):
    """``final.json``: the run ended by itself, and which generation was its last one then."""

    format: tuple[int, int] = FORMAT
    run_id: str
    generation: int
    status: str = "finished"
    ended_at: str


class ArchiveRecord(_Struct, frozen=True, kw_only=True, tag_field="record", tag="archive"):
    """``archive.json``: the archive's identity."""

    format: tuple[int, int] = FORMAT
    archive_id: str
    created_at: str


class LeaseRecord(_Struct, frozen=True, kw_only=True, tag_field="record", tag="lease"):
    """A sign of life of a writer. When it was written, by the store's clock, is all that counts."""

    format: tuple[int, int] = FORMAT
    run_id: str
    attempt: int


class MarkerRecord(_Struct, frozen=True, kw_only=True, tag_field="record", tag="marker"):
    """What of a run is being deleted, so that no writer commits it any more.

    Attributes:
        format: Major and minor format version.
        run_id: The run.
        everything: The whole run is being removed.
        paths: Else these files, relative to the archive.
    """

    format: tuple[int, int] = FORMAT
    run_id: str
    everything: bool = False
    paths: list[str] = []


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest as a sealed file.

    JSON has no NaN and no infinity. In the free-form parts (``recipe`` and the model's ``config``) they are written as
    YAML spells them: ``".nan"``, ``".inf"``, ``"-.inf"``.

    Raises:
        ArchiveError: It holds what JSON cannot, or breaks the bounds or the layout.
    """
    where = manifest_path(manifest.run_id, manifest.generation)
    model = manifest.model and msgspec.structs.replace(manifest.model, config=_plain(manifest.model.config))
    sealed = seal(msgspec.structs.replace(manifest, recipe=_plain(manifest.recipe), model=model), where)
    _check(manifest, manifest.run_id, manifest.generation, where)
    return sealed


def decode_manifest(data: bytes, run_id: str, generation: int) -> Manifest:
    """Decode and check the manifest file of one generation of a run.

    Raises:
        ArchiveCorruptError: It is damaged, of another run or generation, or names files outside its run.
        ArchiveVersionError: It was written in a newer major format.
    """
    where = manifest_path(run_id, generation)
    manifest = unseal(data, Manifest, where)
    _check(manifest, run_id, generation, where)
    return manifest


def _plain(value: Any) -> Any:
    """Free-form settings with every number that JSON lacks spelled as in YAML."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return value


def _check(manifest: Manifest, run_id: str, generation: int, where: str) -> None:
    if (manifest.run_id, manifest.generation) != (run_id, generation):
        raise ArchiveCorruptError(
            f"{where} is in the wrong place: it is generation {manifest.generation} of run {manifest.run_id!r}"
        )
    for entry in manifest.files:
        attempt = data_attempt(entry.path)
        if attempt is None or entry.path != data_path(entry.kind, entry.name, attempt, entry.sha256):
            raise ArchiveCorruptError(f"{where} names a file outside the layout: {entry.path[:200]!r}")
