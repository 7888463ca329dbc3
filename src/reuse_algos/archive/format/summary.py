"""What is known of a run without opening it: the fields by which runs are selected, ordered and listed.

A manifest lists every file and every parameter of a run. Here those parts are checked and skipped, not built. The
summaries of runs that ended are kept together in the index (:mod:`reuse_algos.archive.index`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from reuse_algos.archive.format.envelope import unseal
from reuse_algos.archive.format.manifest import Manifest
from reuse_algos.archive.format.metrics import final_of, final_value, metric_names, spelled
from reuse_algos.archive.format.names import manifest_path
from reuse_algos.archive.format.records import CostRecord, FinalRecord, Integer, Label, Progress, Scalar, Tags
from reuse_algos.errors import ArchiveCorruptError

Mode = Literal["max", "min"]
Health = Literal["ok", "diverged", "empty"]


class _File(msgspec.Struct, frozen=True):
    """One entry of the list of files; the two parts that grow with the run are left as JSON."""

    kind: str
    name: str
    path: str
    bytes: int
    tensors: msgspec.Raw
    meta: msgspec.Raw = msgspec.Raw(b"{}")


class ManifestHead(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="manifest"):
    """The fields of a manifest that a summary is made of."""

    format: tuple[int, int]
    run_id: str
    run_name: Label
    generation: int
    created_at: Label
    committed_at: Label = ""
    tags: Tags = {}
    seed: Integer | None = None
    monitor: Label | None = None
    monitor_mode: Mode = "max"
    health: Health = "ok"
    progress: Progress = Progress()
    cost: CostRecord = CostRecord()
    files: list[_File] = []


# Written as an array, not a mapping: 100,000 of them are read in a tenth of a second. New fields come at the end.
class RunSummary(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is known of a run without opening it.

    Attributes:
        run_id: Unique within the archive.
        generation: The generation that it was made of; a later harvest adds generations and changes nothing else here.
        run_name: The name its user gave it.
        created_at: When the run was started, ISO 8601 in UTC.
        committed_at: When that generation was committed.
        ended_at: When the run ended by itself; None while it has not.
        health: ``"ok"``, ``"diverged"`` or ``"empty"``.
        monitor: Full name of the metric that orders runs, or None.
        monitor_mode: Whether more or less of it is better.
        seed: Of the run.
        epoch: Whole epochs trained.
        batch: Batches trained.
        train_seconds: Seconds of training, evaluation excluded.
        tags: Words to select it by.
        finals: The last value of each recorded metric; NaN and infinity spelled as in YAML, None where the manifest (of
            an older version) does not say it.
    """

    run_id: str
    generation: int
    run_name: Label
    created_at: Label
    committed_at: Label
    ended_at: Label | None
    health: Health
    monitor: Label | None
    monitor_mode: Mode
    seed: Integer | None
    epoch: int
    batch: int
    train_seconds: float
    tags: Tags
    finals: dict[str, float | str | None]

    @property
    def finished(self) -> bool:
        """Whether the run ended by itself."""
        return self.ended_at is not None

    def final(self, name: str) -> float | None:
        """Return the last value of a metric, given its full name; None where there is none, or it is not said."""
        return final_value(self.finals.get(name))

    def says_the_same(self, other: RunSummary) -> bool:
        """Return whether two summaries of a run agree in all but what a later harvest changes."""
        return self.lasting_part() == other.lasting_part()

    def lasting_part(self) -> RunSummary:
        """Return this summary without what a later harvest changes."""
        # A later harvest commits again, which counts the generation up and gives a new date.
        return msgspec.structs.replace(self, generation=0, committed_at="")


def summarise(head: ManifestHead, final: FinalRecord | None) -> RunSummary:
    """Return the summary of a run, given the head of its newest generation and the record that it ended.

    Raises:
        ArchiveCorruptError: The entry of the metrics history is malformed.
    """
    return _summary(head, final, _finals(head))


def decode_head(data: bytes, run_id: str, generation: int) -> ManifestHead:
    """Check the manifest file of one generation for damage, and decode the fields that a summary needs.

    Raises:
        ArchiveCorruptError: It is damaged, or of another run or generation.
        ArchiveVersionError: It was written in a newer major format.
    """
    where = manifest_path(run_id, generation)
    head = unseal(data, ManifestHead, where)
    if (head.run_id, head.generation) != (run_id, generation):
        raise ArchiveCorruptError(
            f"{where} is in the wrong place: it is generation {head.generation} of run {head.run_id!r}"
        )
    return head


def summary_of(manifest: Manifest, final: FinalRecord | None) -> RunSummary:
    """Return the summary of a run that is open; see :func:`summarise`."""
    history = next((f for f in reversed(manifest.files) if (f.kind, f.name) == ("metrics", "history")), None)
    finals = {} if history is None else _values(history.tensors, history.meta)
    return _summary(manifest, final, finals)


def _finals(head: ManifestHead) -> dict[str, float | str | None]:
    history = next((f for f in reversed(head.files) if (f.kind, f.name) == ("metrics", "history")), None)
    if history is None:
        return {}
    try:
        tensors = msgspec.json.decode(history.tensors, type=dict[str, msgspec.Raw])
        meta = msgspec.json.decode(history.meta, type=dict[str, Scalar])
    except ValueError as error:
        where = manifest_path(head.run_id, head.generation)
        raise ArchiveCorruptError(f"{where} is not what it should be: {error}") from error
    return _values(tensors, meta)


def _values(names: Iterable[str], meta: Mapping[str, Scalar]) -> dict[str, float | str | None]:
    values = {name: final_of(meta, name) for name in metric_names(names)}
    # Spelled again, as the summary itself is kept as JSON.
    return {name: None if value is None else spelled(value) for name, value in values.items()}


def _summary(
    head: ManifestHead | Manifest, final: FinalRecord | None, finals: dict[str, float | str | None]
) -> RunSummary:
    return RunSummary(
        run_id=head.run_id,
        generation=head.generation,
        run_name=head.run_name,
        created_at=head.created_at,
        committed_at=head.committed_at,
        ended_at=None if final is None else final.ended_at,
        health=head.health,
        monitor=head.monitor,
        monitor_mode=head.monitor_mode,
        seed=head.seed,
        epoch=head.progress.epoch,
        batch=head.progress.batch,
        train_seconds=head.cost.train_seconds,
        tags=head.tags,
        finals=finals,
    )
