"""The manifest: what one generation of a run says about itself.

Writing it is the commit; it lists every file that is part of the run. Its parts are in
:mod:`reuse_algos.archive.format.records`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from reuse_algos.archive.format.envelope import FORMAT, seal, unseal
from reuse_algos.archive.format.labels import check_labels
from reuse_algos.archive.format.names import data_attempt, data_path, manifest_path
from reuse_algos.archive.format.records import (
    CostRecord,
    Count,
    DatasetRecord,
    EnvironmentRecord,
    FileEntry,
    HarvestRecord,
    Integer,
    Label,
    ModelRecord,
    PriorUse,
    Progress,
    Struct,
    Tags,
    TaskRecord,
)
from reuse_algos.errors import ArchiveCorruptError

MAX_SETTINGS_BYTES = 1 << 20
"""The most that a recipe, or the keyword arguments of a model, may take: they are read, compared and shown whole."""


class Manifest(Struct, frozen=True, kw_only=True, tag_field="record", tag="manifest"):
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
        model: Its model.
        environment: Where it ran.
        progress: How far it had trained.
        cost: What it had cost so far.
        monitor: Full name of the metric that orders runs, such as ``"metrics/eval/MulticlassAccuracy"``.
        monitor_mode: Whether more or less of it is better.
        health: ``"diverged"`` after NaN or Inf, ``"empty"`` before anything was trained, else ``"ok"``.
        harvests: Passes over the data that filled signals afterwards.
        prior_runs: What it used of earlier runs.
        decisions: What algorithms decided by themselves, with the reason, by the algorithm's name.
        task: What kind of problem it learned, or None where that is not known (always so before format 1.2).
        files: Every data file that is part of this generation.
    """

    format: tuple[int, int] = FORMAT
    archive_id: str = ""
    run_id: str = ""
    run_name: Label = ""
    generation: Count = 0
    attempt: Count = 0
    write_id: Label = ""
    created_at: Label = ""
    committed_at: Label = ""
    tags: Tags = msgspec.field(default_factory=dict)
    seed: Integer | None = None
    recipe: dict[str, Any] | None = None
    dataset: DatasetRecord | None = None
    model: ModelRecord | None = None
    environment: EnvironmentRecord | None = None
    progress: Progress = Progress()
    cost: CostRecord = CostRecord()
    monitor: Label | None = None
    monitor_mode: Literal["max", "min"] = "max"
    health: Literal["ok", "diverged", "empty"] = "ok"
    harvests: list[HarvestRecord] = msgspec.field(default_factory=list)
    prior_runs: list[PriorUse] = msgspec.field(default_factory=list)
    decisions: Tags = msgspec.field(default_factory=dict)
    task: TaskRecord | None = None
    files: list[FileEntry] = msgspec.field(default_factory=list)


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest as a sealed file.

    JSON has no NaN and no infinity. In the free-form parts (``recipe`` and the model's ``config``) they are written as
    YAML spells them: ``".nan"``, ``".inf"``, ``"-.inf"``.

    Raises:
        ArchiveError: It holds what JSON cannot, or breaks the bounds or the layout.
    """
    where = manifest_path(manifest.run_id, manifest.generation)
    sealed = seal(plain_manifest(manifest), where)
    # Checked as a reader does, so that what is written can be read.
    _check(manifest, manifest.run_id, manifest.generation, where, len(sealed))
    return sealed


def plain_manifest(manifest: Manifest) -> Manifest:
    """Return a manifest whose free-form parts hold only what JSON can, after a check of its name and tags.

    Raises:
        ArchiveError: A name or a tag holds a control character.
    """
    check_labels(manifest.run_name, manifest.tags)
    model = manifest.model and msgspec.structs.replace(manifest.model, config=_plain(manifest.model.config))
    return msgspec.structs.replace(manifest, recipe=_plain(manifest.recipe), model=model)


def decode_manifest(data: bytes, run_id: str, generation: int) -> Manifest:
    """Decode and check the manifest file of one generation of a run.

    Raises:
        ArchiveCorruptError: It is damaged, of another run or generation, or names files outside its run.
        ArchiveVersionError: It was written in a newer major format.
    """
    where = manifest_path(run_id, generation)
    manifest = unseal(data, Manifest, where)
    _check(manifest, run_id, generation, where, len(data))
    return manifest


def _plain(value: Any) -> Any:
    """Return free-form settings with every number that JSON lacks spelled as in YAML."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return value


def _has_huge_integer(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_huge_integer, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_huge_integer, value))
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _check(manifest: Manifest, run_id: str, generation: int, where: str, size: int) -> None:
    if (manifest.run_id, manifest.generation) != (run_id, generation):
        raise ArchiveCorruptError(
            f"{where} is in the wrong place: it is generation {manifest.generation} of run {manifest.run_id!r}"
        )
    for name, settings in (("recipe", manifest.recipe), ("model", manifest.model and manifest.model.config)):
        if _has_huge_integer(settings):
            raise ArchiveCorruptError(f"{where} has {name} settings with an integer of more than 64 bits")
        # The whole manifest is larger than its settings, so most need no encoding.
        found = len(msgspec.json.encode(settings)) if size > MAX_SETTINGS_BYTES else 0
        if found > MAX_SETTINGS_BYTES:
            raise ArchiveCorruptError(
                f"{where} has {name} settings of {found} bytes; at most {MAX_SETTINGS_BYTES} are archived"
            )
    for entry in manifest.files:
        attempt = data_attempt(entry.path)
        # A path follows from the other fields, so that no manifest can name a file outside its run.
        if attempt is None or entry.path != data_path(entry.kind, entry.name, attempt, entry.sha256):
            raise ArchiveCorruptError(f"{where} names a file outside the layout: {entry.path[:200]!r}")
