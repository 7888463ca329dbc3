"""The records that an archive keeps as sealed JSON, other than the manifest, and the parts of a manifest.

Readers ignore fields that they do not know, so a minor version may add fields and kinds of files.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from reuse_algos.archive.format.envelope import FORMAT
from reuse_algos.archive.format.names import SAFE_NAME

KINDS = ("weights", "metrics", "signals", "dataset", "parts")

MAX_LABEL, MAX_TEXT = 512, 4096  # characters

Label = Annotated[str, msgspec.Meta(max_length=MAX_LABEL)]
"""A name that is shown whole: of a run, a tag, a metric."""

Tags = Annotated[
    dict[Label, Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]],
    msgspec.Meta(max_length=1000),
]
"""Every selection reads the tags of every run, so one run must not hold 100,000 of them."""

# Far beyond what any run costs, and small enough that sums over runs stay finite. Negative seconds are read, as a clock
# that was set back left some in records of older versions.
Seconds = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]
Flops = Annotated[float, msgspec.Meta(ge=0, le=1e40)]

# JSON may hold an integer of 400 digits, which no float, tensor or database can.
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Scalar = str | Integer | float | bool | None
Name = Annotated[str, msgspec.Meta(pattern=rf"\A{SAFE_NAME}\Z")]


class Struct(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records: immutable, built by keyword, decoded with unknown fields ignored.

    Those that are files have a tag, by which one in the place of another is noticed although its fields would do.
    """


class TensorInfo(Struct, frozen=True, kw_only=True):
    """Type and shape of one tensor.

    Attributes:
        dtype: The name that safetensors gives it, such as ``"F32"`` or ``"I64"``.
        shape: Its sizes, slowest first; ``()`` for a scalar.
    """

    dtype: str
    shape: tuple[Count, ...]


class FileEntry(Struct, frozen=True, kw_only=True):
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


class DatasetRecord(Struct, frozen=True, kw_only=True):
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
    view_seed: Integer | None = None
    num_views: Count = 0
    transform: str = "unknown"


class TaskRecord(Struct, frozen=True, kw_only=True):
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
    class_dim: Integer = 1
    ignore_index: Integer | None = None
    shift: bool = False


class ModelRecord(Struct, frozen=True, kw_only=True):
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


class EnvironmentRecord(Struct, frozen=True, kw_only=True):
    """Where a run ran: versions of the software, a description of the hardware, the commit of the code."""

    versions: dict[str, str]
    hardware: dict[str, str | Integer | float | None]
    git_commit: str | None = None


class Progress(Struct, frozen=True, kw_only=True):
    """How far a run had trained: whole epochs, batches and examples."""

    epoch: Count = 0
    batch: Count = 0
    sample: Count = 0


class CostRecord(Struct, frozen=True, kw_only=True):
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

    train_seconds: Seconds = 0.0
    eval_seconds: Seconds = 0.0
    setup_seconds: Seconds = 0.0
    overhead_seconds: Seconds = 0.0
    train_flops: Flops | None = None


class HarvestRecord(Struct, frozen=True, kw_only=True):
    """One pass of the run's model over its training data that filled a signal afterwards, and what it took."""

    signal: str
    views: list[Integer]
    weights: str
    seconds: Seconds
    hardware: str


class PriorUse(Struct, frozen=True, kw_only=True):
    """What this run used of an earlier one: weights, signals, and its share of harvest seconds."""

    run_id: str
    algorithm: str
    weights: list[str] = []
    signals: list[str] = []
    harvest_seconds: Seconds = 0.0


class FinalRecord(Struct, frozen=True, kw_only=True, tag_field="record", tag="final"):
    """``final.json``: the run ended by itself, and which generation was its last one then."""

    format: tuple[int, int] = FORMAT
    run_id: str
    generation: Count
    status: str = "finished"
    ended_at: str


class ArchiveRecord(Struct, frozen=True, kw_only=True, tag_field="record", tag="archive"):
    """``archive.json``: the archive's identity."""

    format: tuple[int, int] = FORMAT
    archive_id: str
    created_at: str


class LeaseRecord(Struct, frozen=True, kw_only=True, tag_field="record", tag="lease"):
    """A sign of life of a writer. When it was written, by the store's clock, is all that counts."""

    format: tuple[int, int] = FORMAT
    run_id: str
    attempt: Count


class MarkerRecord(Struct, frozen=True, kw_only=True, tag_field="record", tag="marker"):
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


class ThinnedRecord(Struct, frozen=True, kw_only=True, tag_field="record", tag="thinned"):
    """The generations of an ended run before this one were deleted."""

    format: tuple[int, int] = FORMAT
    run_id: str
    generation: Count


class ChangeRecord(Struct, frozen=True, kw_only=True, tag_field="record", tag="change"):
    """An ended run was committed again, and says something else than it did when it ended."""

    format: tuple[int, int] = FORMAT
    run_id: str
