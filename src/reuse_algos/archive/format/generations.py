"""Which generations a run has, and reading them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from reuse_algos.archive.format.envelope import MAX_SEALED_BYTES, unseal
from reuse_algos.archive.format.manifest import Manifest, decode_manifest
from reuse_algos.archive.format.names import (
    IDENTITY,
    final_path,
    manifest_generation,
    manifest_path,
    run_prefix,
    safe_names,
)
from reuse_algos.archive.format.parts import expanded_manifest
from reuse_algos.archive.format.records import ArchiveRecord, FinalRecord
from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.stores.checks import MissingFileError
from reuse_algos.errors import ArchiveCorruptError, ArchiveError

MOST_STEPS = 16
"""How many damaged generations a reader passes over before it refuses the run."""


class ListedFile(Protocol):
    """A file that a manifest lists: its path, relative to the run, and its size in bytes."""

    @property
    def path(self) -> str:
        """The path."""
        ...

    @property
    def bytes(self) -> int:
        """The size."""
        ...


class HasFiles(Protocol):
    """What lists files: a manifest or its summary."""

    @property
    def files(self) -> Sequence[ListedFile]:
        """The files."""
        ...


ManifestT = TypeVar("ManifestT", bound=HasFiles)


def list_runs(store: Store) -> list[str]:
    """Return the sorted names of what may be runs; odd names, which no run has, are passed over."""
    return safe_names(store.list("runs"))


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


def check_identity(store: Store, archive_id: str | None, refusal: str) -> None:
    """Make sure that a store is still the archive that it was, before anything becomes visible in it.

    An unmounted disk leaves an empty directory in its place, and what is committed there is lost.

    Args:
        store: The archive's store.
        archive_id: The id that it had.
        refusal: The beginning of the error, such as ``"run a cannot be committed"``.

    Raises:
        ArchiveError: It is another archive, or none.
    """
    if (found := read_identity(store)) != archive_id:
        what = "holds no archive" if found is None else f"is the archive {found}"
        raise ArchiveError(
            f"{refusal}: {store.location} {what}, but it was the archive {archive_id}: is its disk mounted?"
        )


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
    return decode_manifest(read_whole(store, run_id, generation), run_id, generation)


def read_whole(store: Store, run_id: str, generation: int) -> bytes:
    """Read the manifest file of one generation, put together of its parts if it has any.

    Raises:
        ArchiveCorruptError: It is missing or damaged.
        ArchiveVersionError: It was written in a newer major format.
    """
    return whole_of(store, run_id, generation, read_record(store, manifest_path(run_id, generation)))


def whole_of(store: Store, run_id: str, generation: int, data: bytes) -> bytes:
    """Return a manifest file that was read, put together of its parts if it has any."""
    prefix = run_prefix(run_id)
    return expanded_manifest(data, run_id, generation, lambda path: store.get(f"{prefix}/{path}", MAX_SEALED_BYTES))


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
    # A sealed file of another run is sound in itself, and says nothing of this one.
    if record.run_id != run_id:
        raise ArchiveCorruptError(f"{store.location}/{path} is in the wrong place: it is of run {record.run_id!r}")
    return record


class Latest(NamedTuple):
    """A generation of a run as readers get it, not decoded in full.

    Attributes:
        run_id: The run.
        generation: The newest generation that is sound.
        data: Its manifest file.
        final: The record that the run ended; None while it has not, and for a generation before the last one.
        newest: The newest generation that there should be.
        fault: Why that one was passed over, if it is another one. Default: None.
    """

    run_id: str
    generation: int
    data: bytes
    final: FinalRecord | None
    newest: int
    fault: ArchiveCorruptError | None = None

    def manifest(self) -> Manifest:
        """Check and decode it.

        Raises:
            ArchiveCorruptError: It is damaged.
            ArchiveVersionError: It was written in a newer major format.
        """
        return decode_manifest(self.data, self.run_id, self.generation)


def read_latest(store: Store, run_id: str) -> tuple[Manifest, FinalRecord | None] | None:
    """Read a run's highest generation and whether it ended, for a writer that goes on behind it.

    Returns:
        None if the run does not exist.

    Raises:
        ArchiveCorruptError: It is damaged, or generations that were there are gone.
        ArchiveVersionError: It was written in a newer major format.
    """
    # What is damaged must be looked at by somebody before anything is built on it.
    found = find_sound(store, run_id, decode_manifest, most_steps=0)
    return found and (found[1], found[0].final)


def find_sound(
    store: Store, run_id: str, decode: Callable[[bytes, str, int], ManifestT], *, most_steps: int = MOST_STEPS
) -> tuple[Latest, ManifestT] | None:
    """Find the newest generation of a run that is sound, for a reader.

    A damaged manifest is passed over, and so is one of a run that has not ended that names a file which is not there. A
    newer format is not damage, and is never passed over.

    Args:
        store: The archive's store.
        run_id: The run.
        decode: Decodes a manifest file of a run and a generation.
        most_steps: How many generations to step back. It bounds what a hostile run costs. Default: 16.

    Returns:
        The generation, and what ``decode`` made of it; None if the run does not exist.

    Raises:
        ArchiveCorruptError: No generation is sound; this is the fault of the newest one. Or the record of the end is.
        ArchiveVersionError: It was written in a newer major format.
    """
    final = read_final(store, run_id)  # before the listing, which then cannot be the older of the two
    last = final.generation if final is not None else 0
    fault: ArchiveCorruptError | None = None
    generations = set(list_generations(store, run_id)) | ({last} if last else set())
    for generation in sorted(generations, reverse=True)[: most_steps + 1]:
        try:
            data = _read_generation(store, run_id, generation, last)
            try:
                found = decode(data, run_id, generation)
            except ArchiveCorruptError:
                # Bytes can change on their way. Nobody steps back for that, so the file is fetched once more.
                data = _read_generation(store, run_id, generation, last)
                found = decode(data, run_id, generation)
            # A writer that was suspended for longer than the collector waits may have committed files that are gone.
            # The files of the generation with which a run ended were looked at by its writer, and are not listed again.
            if most_steps and (fault is not None or generation > last):
                _check_there(store, run_id, found.files)
        except ArchiveCorruptError as error:
            fault = fault or error
        else:
            return Latest(
                run_id, generation, data, final if generation >= last else None, max(generations), fault
            ), found
    # The run may have been removed while it was read.
    if fault is not None and (read_final(store, run_id) is not None or list_generations(store, run_id)):
        raise fault
    return None  # there was nothing, or it was removed at this moment


def _read_generation(store: Store, run_id: str, generation: int, last: int) -> bytes:
    path = manifest_path(run_id, generation)
    data = store.get(path, MAX_SEALED_BYTES)
    if data is None:
        why = "the run ended with it, so it was deleted" if generation == last else "the archive is damaged"
        raise ArchiveCorruptError(f"{store.location}/{path} is missing: {why}")
    return whole_of(store, run_id, generation, data)


def _check_there(store: Store, run_id: str, files: Sequence[ListedFile]) -> None:
    """Make sure that the files of a generation are there, by one listing.

    Raises:
        MissingFileError: One is not there, or has another size.
    """
    prefix = run_prefix(run_id)
    there = {found.path: found.size for found in store.walk(f"{prefix}/data")} if files else {}
    for entry in files:
        path = f"{prefix}/{entry.path}"
        if there.get(path) != entry.bytes:
            size = f"has {there[path]} bytes, the manifest says {entry.bytes}" if path in there else "is missing"
            raise MissingFileError(f"{store.location}/{path} {size}")
