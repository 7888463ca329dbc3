"""Planning the copy of one run: what the target has already, and what is to be proven there. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, field

from reuse_algos.archive.format.envelope import MAX_SEALED_BYTES
from reuse_algos.archive.format.generations import list_generations, read_final, read_manifest, read_record, whole_of
from reuse_algos.archive.format.manifest import decode_manifest
from reuse_algos.archive.format.names import final_path, manifest_path, run_prefix
from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.stores.checks import reading
from reuse_algos.archive.upkeep.thinning import first_generation
from reuse_algos.errors import ArchiveConflictError, ArchiveCorruptError, ArchiveError


@dataclass
class Plan:
    """What is to be done for one run.

    Attributes:
        run_id: The run.
        target_id: Identity of the target when the copy began; None for a store without a record of it.
        attempt: Of its newest generation.
        files: Size and sha256 of each data file that has to be proven in the target.
        trusted: Those of them that need no new hash, as a generation that is there lists them.
        pending: Generations to be made visible.
        listed: Size of each data file that these list.
        base: The manifest before these in the target, if there is one.
        held: Files that it lists: as long as it is there, so are they.
        final: Whether to copy the mark that the run ended.
        thinned: The first generation that a thinning left, 1 for none.
    """

    run_id: str
    target_id: str | None
    attempt: int = 1
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    trusted: set[str] = field(default_factory=set)
    pending: list[int] = field(default_factory=list)
    listed: dict[str, int] = field(default_factory=dict)
    base: str | None = None
    held: set[str] = field(default_factory=set)
    final: bool = False
    thinned: int = 1

    @property
    def bytes(self) -> int:
        """Bytes that have to be proven in the target."""
        return sum(size for size, _ in self.files.values())


class Planner:
    """Finds out what is to be done for one run. Writes nothing."""

    def __init__(self, source: Store, target: Store, plan: Plan, recheck: bool, known: set[str]) -> None:
        self._source, self._target, self._run_id = source, target, plan.run_id
        self._recheck, self._known = recheck, known
        self._plan = plan
        self._hashes: dict[str, tuple[int, str]] = {}

    def plan(self) -> Plan | None:
        """Return the plan; None for what was never committed."""
        run_id = self._run_id
        with reading(self._source):
            final = read_final(self._source, run_id)  # before the listing, which then cannot be the older of the two
            generations = list_generations(self._source, run_id)
        if not generations and final is None:
            return None
        highest = max([*generations, final.generation if final else 0])
        with reading(self._target):
            there = set(list_generations(self._target, run_id))
        with reading(self._source):
            first = first_generation(self._source, run_id)
        if first > 1:
            self._plan.thinned = first
        for generation in range(first, highest + 1):
            # What an earlier call proved is not read again: a copy that follows a training asks again and again.
            if generation not in there or manifest_path(run_id, generation) not in self._known:
                self._add(generation, generation in there)
        if self._plan.pending and (before := there & set(range(1, self._plan.pending[0]))):
            self._hold(max(before))
        if final is not None and not (final_path(run_id) in self._known and highest in there):
            with reading(self._source):
                data = read_record(self._source, final_path(run_id))
            self._plan.final = not self._is_there(final_path(run_id), data) and max(there, default=0) <= highest
        return self._plan

    def _add(self, generation: int, visible: bool) -> None:
        path = manifest_path(self._run_id, generation)
        with reading(self._source):
            data = read_record(self._source, path)
            manifest = decode_manifest(whole_of(self._source, self._run_id, generation, data), self._run_id, generation)
        self._plan.attempt = manifest.attempt
        if visible:
            self._is_there(path, data)
        else:
            self._plan.pending.append(generation)
        for entry in manifest.files:
            where = f"{run_prefix(self._run_id)}/{entry.path}"
            if self._hashes.setdefault(where, (entry.bytes, entry.sha256)) != (entry.bytes, entry.sha256):
                raise ArchiveCorruptError(f"{self._source.location}/{path} contradicts another entry about {where}")
            if not visible:
                self._plan.listed[where] = entry.bytes
            if where not in self._known:
                # Also for a visible generation: its file in the target may be damaged, which a copy reports.
                self._plan.files[where] = (entry.bytes, entry.sha256)
                if visible and not self._recheck:
                    self._plan.trusted.add(where)

    def _hold(self, generation: int) -> None:
        self._plan.base = manifest_path(self._run_id, generation)
        with reading(self._source):
            files = read_manifest(self._source, self._run_id, generation).files
        self._plan.held = {f"{run_prefix(self._run_id)}/{entry.path}" for entry in files}

    def _is_there(self, path: str, data: bytes) -> bool:
        """Return whether the target has a record of the source; raise if it has another one."""
        with reading(self._target):
            there = self._target.get(path, MAX_SEALED_BYTES)
        # Byte by byte: two runs of one id may differ in a single field, such as the time of a commit.
        if there not in (None, data):
            raise conflict_of(self._source, self._target, path, self._run_id)
        return there is not None


def conflict_of(source: Store, target: Store, path: str, run_id: str) -> ArchiveConflictError:
    """Return the error that two archives hold different records of this path, with what is known of each."""
    both = " and ".join(_described(store, path, run_id) for store in (source, target))
    return ArchiveConflictError(
        f"run {run_id} is another one in the target: of {path} there are {both}. Nothing was changed; remove the one "
        "that is not wanted"
    )


def _described(store: Store, path: str, run_id: str) -> str:
    try:
        data = read_record(store, path)
        if path == final_path(run_id):
            record = read_final(store, run_id)
            return f"one in {store.location}, ended {record.ended_at}" if record else f"none in {store.location}"
        # The digits of g000007.json.
        generation = int(path[-11:-5])
        manifest = decode_manifest(whole_of(store, run_id, generation, data), run_id, generation)
        return (
            f"one in {store.location}, committed {manifest.committed_at} by attempt {manifest.attempt} in the archive "
            f"{manifest.archive_id[:8]}"
        )
    # The conflict is the news; a record that cannot be read must not hide it.
    except ArchiveError as error:
        return f"one in {store.location} that cannot be read ({error})"
