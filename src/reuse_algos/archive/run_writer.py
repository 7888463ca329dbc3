"""Writing a run: data files first, each durable when put; then a manifest, which commits them."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import msgspec
from torch import Tensor

from reuse_algos.archive.format.envelope import FORMAT, seal
from reuse_algos.archive.format.generations import check_identity, list_generations, read_final, read_manifest
from reuse_algos.archive.format.manifest import Manifest, decode_manifest, encode_manifest
from reuse_algos.archive.format.metrics import final_meta
from reuse_algos.archive.format.names import data_path, final_path, is_safe_name, manifest_path, run_prefix
from reuse_algos.archive.format.parts import KIND as PARTS
from reuse_algos.archive.format.parts import PARTS_FROM, STABLE, PartedManifest, PartWriter, seal_in_parts
from reuse_algos.archive.format.records import KINDS, FileEntry, FinalRecord, Scalar
from reuse_algos.archive.format.summary import RunSummary, summary_of
from reuse_algos.archive.format.tensors import describe, hash_chunks, tensor_chunks, verify_file
from reuse_algos.archive.index.update import note_change, update_index
from reuse_algos.archive.signals.segments import check_signal
from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.stores.checks import check_sizes
from reuse_algos.archive.upkeep.leases import TRUST_SECONDS, Lease, Stopwatch
from reuse_algos.errors import ArchiveConflictError, ArchiveCorruptError, ArchiveError


def utc_now() -> str:
    """Return the time, ISO 8601 in UTC with microseconds: such texts sort as the times do."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")


class RunWriter:
    """Writes one run, or one rank's part of it. Made by :class:`~reuse_algos.archive.run_archive.RunArchive`.

    Args:
        store: The archive's store.
        archive_id: The archive's identity.
        run_id: The run.
        attempt: Which start or resumption of the run this is, from 1.
        run_name: The name its user gave it.
        created_at: When the run was first started.
        generation: The highest generation that exists, 0 for a new run; None for a writer that only puts files.
        ended: What the run said when it ended, if it has: the index may know it so. Default: None.
    """

    def __init__(
        self,
        store: Store,
        archive_id: str,
        run_id: str,
        attempt: int,
        *,
        run_name: str = "",
        created_at: str = "",
        generation: int | None = None,
        ended: RunSummary | None = None,
    ) -> None:
        self.run_id = run_id
        self.attempt = attempt
        self.run_name = run_name
        self._store = store
        self._archive_id = archive_id
        self._created_at = created_at
        self._generation = generation
        self._ended = ended
        self._committed = False
        self._parts: PartWriter | None = None
        self._token = secrets.token_hex(8)  # begins every write id of this writer
        self._lease = Lease(store, run_id, attempt, self._token)
        self._commits = 0

    @property
    def generation(self) -> int:
        """The generation of the last commit, or, before the first, the highest that there was; 0 for none."""
        return self._generation or 0

    def put(
        self, kind: str, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Scalar] | None = None
    ) -> FileEntry:
        """Write a data file. It is durable on return, and part of the run once a manifest lists the returned entry.

        Files are named by their content: putting the same twice is harmless. May be called from several threads.

        Args:
            kind: ``"weights"``, ``"metrics"``, ``"signals"`` or ``"dataset"``.
            name: 1 to 128 of ``A-Z a-z 0-9 . _ -``, the first a letter or digit.
            tensors: On any device. They must not change until this returns.
            meta: Facts about the file; for signals see :class:`~reuse_algos.archive.signals.segments.Segment`.

        Raises:
            ArchiveError: The arguments cannot be archived, or the file could not be written.
        """
        if kind not in KINDS or not is_safe_name(name):
            raise ArchiveError(
                f"cannot archive {kind!r} {name!r}: kinds are {', '.join(KINDS)}, and names have 1 to 128 of "
                "A-Z a-z 0-9 . _ - and begin with a letter or digit"
            )
        # Refuses types that cannot be archived before a byte is copied from a device.
        infos = describe(tensors)
        # Copied from a device once, as checks, hash and file all need the numbers.
        tensors = {key: tensor.detach().cpu() for key, tensor in tensors.items()}
        if kind == "signals" and (fault := check_signal(meta or {}, tensors)):
            raise ArchiveError(f"cannot archive the signal {name!r}: {fault}")
        if kind == "metrics":
            # The last values stand in the manifest, so that a selection by metric opens no file.
            meta = {**final_meta(tensors), **(meta or {})}
        chunks = tensor_chunks(tensors)
        size, sha256 = hash_chunks(chunks)
        path = data_path(kind, name, self.attempt, sha256)
        entry = FileEntry(
            kind=kind, name=name, path=path, bytes=size, sha256=sha256, tensors=infos, meta=dict(meta or {})
        )
        began = Stopwatch()
        try:
            self._store.put_if_absent(self._path(entry), chunks)
        except ArchiveConflictError:
            verify_file(self._store, self._path(entry), entry)  # the same content was put before; is it sound?
        else:
            self._lease.note_put(self._path(entry), began)
        return entry

    def renew_lease(self) -> None:
        """Show that this writer is alive, so that what it has put but not committed yet is not collected as garbage.

        To be called now and then where commits are far apart. It does nothing if this writer put something in the last
        quarter of an hour. May be called from several threads.

        Raises:
            ArchiveError: The lease could not be written.
        """
        self._lease.renew_if_due()

    def commit(self, manifest: Manifest) -> Manifest:
        """Make a new generation of the run, durable and visible to readers when this returns.

        Args:
            manifest: Its identity fields (``format``, ``archive_id``, ``run_id``, ``run_name``, ``generation``,
                ``attempt``, ``write_id``, ``created_at``, ``committed_at``) are replaced.

        Returns:
            The manifest as readers see it.

        Raises:
            ArchiveConflictError: Another attempt took over this run, or it was removed. This one must stop.
            ArchiveError: The manifest names a file that is not there or is being deleted, or holds what JSON cannot, or
                could not be written.
        """
        # A put that must not replace anything makes this number the lock: of two committers one wins.
        generation = self._require_committer() + 1
        if any(entry.kind == PARTS for entry in manifest.files[-1:]):  # of a run that is resumed: they are made again
            files = [entry for entry in manifest.files if entry.kind != PARTS]
            manifest = msgspec.structs.replace(manifest, files=files)
        parted, fresh = self._in_parts(manifest)
        # What this writer has committed goes only with the whole run, whose manifests go first.
        files = {self._path(entry): entry.bytes for entry in fresh}
        checked = self._lease.guard(files.keys(), lambda unsure: self._check_files(manifest, files, unsure))
        while True:
            self._commits += 1
            manifest = msgspec.structs.replace(
                manifest,
                format=FORMAT,
                archive_id=self._archive_id,
                run_id=self.run_id,
                run_name=self.run_name,
                generation=generation,
                attempt=self.attempt,
                write_id=f"{self._token}-{self._commits}",
                created_at=self._created_at,
                committed_at=utc_now(),
            )
            sealed = encode_manifest(manifest) if parted is None else seal_in_parts(parted, manifest)
            # In between, readers doubt what still holds; the other way round they would believe what no longer does.
            self._note_change(manifest)
            try:
                self._store.put_if_absent(manifest_path(self.run_id, generation), [sealed])
            except ArchiveConflictError:
                if not self._is_mine(generation):
                    raise
                # An earlier commit of this writer failed after it had become visible. Go on behind it.
                generation += 1
            else:
                self._generation = generation
                self._committed = True
                self._lease.note_committed(files)
                if self._parts is not None:
                    self._parts.fresh = []
                if checked.seconds() > TRUST_SECONDS:  # suspended before the put: files may have been collected
                    self._check_sizes({self._path(entry): entry.bytes for entry in manifest.files} | files)
                return decode_manifest(sealed, self.run_id, generation) if parted is None else manifest

    def _in_parts(self, manifest: Manifest) -> tuple[PartedManifest | None, Sequence[FileEntry]]:
        """Return a manifest of many files in parts (None for any other), and the files that are new in it."""
        if self._parts is None:
            if len(manifest.files) < PARTS_FROM or sum(e.kind in STABLE for e in manifest.files) < PARTS_FROM:
                return None, manifest.files
            self._parts = PartWriter(self.put)
        # The identity of the run is in a part too.
        named = {"run_id": self.run_id, "run_name": self.run_name, "created_at": self._created_at}
        parted, new = self._parts.add(msgspec.structs.replace(manifest, archive_id=self._archive_id, **named))
        return parted, [*new, *self._parts.fresh]

    def finish(self, status: str = "finished") -> None:
        """Record that the run ended by itself. Calling it twice is harmless.

        Raises:
            ArchiveConflictError: Another attempt took over this run.
            ArchiveError: Nothing was committed yet, or the record could not be written.
        """
        generation = self._require_committer()
        if not self._committed:
            raise ArchiveError(f"run {self.run_id} cannot be finished: this attempt has committed nothing")
        generations = list_generations(self._store, self.run_id)
        # Reading one's own commits back is the only way to learn of a removal.
        if not generations:
            raise ArchiveConflictError(f"run {self.run_id} was removed from {self._store.location}; stop this process")
        if generations[-1] > generation:
            raise ArchiveConflictError(f"run {self.run_id} cannot be finished here: another attempt took over this run")
        # The generation is named, so that a reader can tell a lost one from a run that went on.
        record = FinalRecord(run_id=self.run_id, generation=generation, status=status, ended_at=utc_now())
        path = final_path(self.run_id)
        try:
            self._store.put_if_absent(path, [seal(record, path)])
        except ArchiveConflictError:
            read_final(self._store, self.run_id)  # raises if it is not a sound record of this run
        # Ended runs rarely change, so this is the moment to summarise them.
        update_index(self._store, self._archive_id)

    def _note_change(self, manifest: Manifest) -> None:
        """Say in the index that an ended run says something else from now on, before it does."""
        if self._ended is None:
            return
        final = FinalRecord(run_id=self.run_id, generation=1, ended_at=self._ended.ended_at or "")
        if not summary_of(manifest, final).says_the_same(self._ended):
            note_change(self._store, self.run_id, self._token, self._commits)

    def _require_committer(self) -> int:
        if self._generation is None:
            raise ArchiveError(f"this writer joined run {self.run_id} to put files; the rank that started it commits")
        return self._generation

    def _check_files(self, manifest: Manifest, files: Mapping[str, int], unsure: AbstractSet[str]) -> None:
        """Check the files that a manifest lists and that may not be there."""
        # Before the first commit all of them, as those of a resumed run are old; later those that this writer has not
        # committed.
        check_identity(self._store, self._archive_id, f"run {self.run_id} cannot be committed")
        if self._generation and self._store.size(manifest_path(self.run_id, self._generation)) is None:
            raise ArchiveConflictError(f"run {self.run_id} was removed from {self._store.location}; stop this process")
        self._check_sizes({path: size for path, size in files.items() if path in unsure or not self._generation})
        if manifest.dataset is None and any(entry.kind == "signals" for entry in manifest.files):
            raise ArchiveError(f"run {self.run_id} cannot be committed: it has signals but no record of its dataset")

    def _check_sizes(self, sizes: Mapping[str, int]) -> None:
        try:
            check_sizes(self._store, sizes)
        except ArchiveCorruptError as error:
            raise ArchiveError(f"run {self.run_id} cannot be committed: {error}") from error

    def _is_mine(self, generation: int) -> bool:
        """Return whether this writer made a generation; raise if another attempt did."""
        winner = read_manifest(self._store, self.run_id, generation)
        if winner.write_id.startswith(f"{self._token}-"):
            return True
        raise ArchiveConflictError(
            f"another attempt took over this run: generation {generation} of {self.run_id} was committed by attempt "
            f"{winner.attempt}, this is attempt {self.attempt}; stop this process"
        )

    def _path(self, entry: FileEntry) -> str:
        return f"{run_prefix(self.run_id)}/{entry.path}"
