"""Which generations a run has, and reading them."""

from __future__ import annotations

from typing import NamedTuple

from reuse_algos.archive.format.envelope import MAX_SEALED_BYTES, unseal
from reuse_algos.archive.format.manifest import Manifest, decode_manifest
from reuse_algos.archive.format.names import IDENTITY, final_path, manifest_generation, manifest_path, run_prefix
from reuse_algos.archive.format.records import ArchiveRecord, FinalRecord
from reuse_algos.archive.stores.base import Store
from reuse_algos.errors import ArchiveCorruptError

__all__ = [
    "Latest",
    "find_latest",
    "list_generations",
    "read_final",
    "read_identity",
    "read_latest",
    "read_manifest",
    "read_record",
]


def list_generations(store: Store, run_id: str) -> list[int]:
    """Return the committed generations of a run, ascending; empty if it does not exist."""
    names = store.list(f"{run_prefix(run_id)}/manifests")
    return [generation for name in names if (generation := manifest_generation(name)) is not None]


def read_identity(store: Store) -> str | None:
    """Return the id of the archive in a store; None if there is no archive.

    Raises:
        ArchiveCorruptError: Its record is damaged.
        ArchiveVersionError: It was made by a newer major version.
    """
    data = store.get(IDENTITY, MAX_SEALED_BYTES)
    return None if data is None else unseal(data, ArchiveRecord, f"{store.location}/{IDENTITY}").archive_id


def read_record(store: Store, path: str) -> bytes:
    """Read a sealed file that must be there.

    Raises:
        ArchiveCorruptError: It is missing, or larger than a record may be.
    """
    data = store.get(path, MAX_SEALED_BYTES)
    if data is None:
        raise ArchiveCorruptError(f"{store.location}/{path} is missing: the archive is damaged")
    return data


def read_manifest(store: Store, run_id: str, generation: int) -> Manifest:
    """Read one generation.

    Raises:
        ArchiveCorruptError: It is missing or damaged.
        ArchiveVersionError: It was written in a newer major format.
    """
    return decode_manifest(read_record(store, manifest_path(run_id, generation)), run_id, generation)


def read_final(store: Store, run_id: str) -> FinalRecord | None:
    """Read the record that the run ended; None while it has not.

    Raises:
        ArchiveCorruptError: It is damaged or another run's.
        ArchiveVersionError: It was written in a newer major format.
    """
    path = final_path(run_id)
    data = store.get(path, MAX_SEALED_BYTES)
    if data is None:
        return None
    record = unseal(data, FinalRecord, path)
    if record.run_id != run_id:
        raise ArchiveCorruptError(f"{store.location}/{path} is in the wrong place: it is of run {record.run_id!r}")
    return record


class Latest(NamedTuple):
    """A run's highest generation as it was read, neither checked nor decoded, and the record that the run ended."""

    run_id: str
    generation: int
    data: bytes
    final: FinalRecord | None

    def manifest(self) -> Manifest:
        """Check and decode it.

        Raises:
            ArchiveCorruptError: It is damaged.
            ArchiveVersionError: It was written in a newer major format.
        """
        return decode_manifest(self.data, self.run_id, self.generation)


def read_latest(store: Store, run_id: str) -> tuple[Manifest, FinalRecord | None] | None:
    """Read a run's highest generation and whether it ended; None if the run does not exist.

    Raises:
        ArchiveCorruptError: It is damaged, or generations that were there are gone.
        ArchiveVersionError: It was written in a newer major format.
    """
    latest = find_latest(store, run_id)
    return latest and (latest.manifest(), latest.final)


def find_latest(store: Store, run_id: str) -> Latest | None:
    """Find a run's highest generation and whether it ended; None if the run does not exist.

    There is no falling back to an older generation: a commit is complete once it can be seen, so a highest one that
    cannot be read is damage.

    Raises:
        ArchiveCorruptError: The record of the end is damaged, or generations that were there are gone.
        ArchiveVersionError: It was written in a newer major format.
    """
    try:
        return _find_latest(store, run_id)
    except ArchiveCorruptError:
        if read_final(store, run_id) is None and not list_generations(store, run_id):
            return None  # it was removed at this moment
        raise


def _find_latest(store: Store, run_id: str) -> Latest | None:
    final = read_final(store, run_id)  # before the listing, which then cannot be the older of the two
    generations = list_generations(store, run_id)
    latest = generations[-1] if generations else 0
    if final is not None and final.generation > latest:
        path = manifest_path(run_id, final.generation)
        raise ArchiveCorruptError(f"{store.location}/{path} is missing: the run ended with it, so it was deleted")
    return Latest(run_id, latest, read_record(store, manifest_path(run_id, latest)), final) if latest else None
