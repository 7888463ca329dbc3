"""The fields that selection needs. Kept small so that a scan over many runs stays fast.

A manifest lists every file and every parameter of a run. Here those parts are checked and skipped, not built.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from reuse_algos.archive.format.envelope import unseal
from reuse_algos.archive.format.metrics import final_of, metric_names
from reuse_algos.archive.format.names import manifest_path
from reuse_algos.archive.format.records import Label, Scalar, Tags
from reuse_algos.errors import ArchiveCorruptError

__all__ = ["RunSummary", "decode_summary"]


class _File(msgspec.Struct, frozen=True):
    """One entry of the list of files; the two parts that grow with the run are left as JSON."""

    kind: str
    name: str
    path: str
    bytes: int
    tensors: msgspec.Raw
    meta: msgspec.Raw = msgspec.Raw(b"{}")


class RunSummary(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="manifest"):
    """The fields of a manifest by which runs are selected and ordered."""

    format: tuple[int, int]
    run_id: str
    run_name: Label
    generation: int
    created_at: Label
    tags: Tags = {}
    monitor: Label | None = None
    monitor_mode: Literal["max", "min"] = "max"
    health: Literal["ok", "diverged", "empty"] = "ok"
    files: list[_File] = []

    def final_values(self) -> dict[str, float | None]:
        """Return the recorded metrics with their last values; None where an (older) manifest does not say it.

        Raises:
            ArchiveCorruptError: The entry of the metrics history is malformed.
        """
        history = next((f for f in reversed(self.files) if (f.kind, f.name) == ("metrics", "history")), None)
        if history is None:
            return {}
        try:
            tensors = msgspec.json.decode(history.tensors, type=dict[str, msgspec.Raw])
            meta = msgspec.json.decode(history.meta, type=dict[str, Scalar])
        except ValueError as error:
            where = manifest_path(self.run_id, self.generation)
            raise ArchiveCorruptError(f"{where} is not what it should be: {error}") from error
        return {name: final_of(meta, name) for name in metric_names(tensors)}


def decode_summary(data: bytes, run_id: str, generation: int) -> RunSummary:
    """Check the manifest file of one generation for damage, and decode the fields that selection needs.

    Raises:
        ArchiveCorruptError: It is damaged, or of another run or generation.
        ArchiveVersionError: It was written in a newer major format.
    """
    where = manifest_path(run_id, generation)
    summary = unseal(data, RunSummary, where)
    if (summary.run_id, summary.generation) != (run_id, generation):
        raise ArchiveCorruptError(
            f"{where} is in the wrong place: it is generation {summary.generation} of run {summary.run_id!r}"
        )
    return summary
