"""The record of one run under way: what has been written, by all ranks, and what is visible."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from composer.utils import dist

from reuse_algos.archive import FileEntry, Manifest, RunArchive, RunWriter, header_parts
from reuse_algos.callbacks.signals.capture import SignalCapture
from reuse_algos.errors import ArchiveError
from reuse_algos.training.ranks import on_every_rank, on_rank_zero

_Key = tuple[str, str, int | None, int, int | None]


class RunRecord:
    """Writes data files from every rank and commits them together.

    A file replaces the earlier one of the same kind, name, slot, rank and epoch: the metrics history grows, a partial
    epoch becomes a whole one. Signals of an epoch that showed every example, or all that the slot has rows of, replace
    those of earlier epochs in the same slot, of all ranks; signals of an epoch that was cut short, or that showed other
    examples, stand beside them, and win where both have a row.

    Args:
        archive: Where to write.
        writer: This rank's writer.
        base: The committed state that a resumed run goes on from.
    """

    def __init__(self, archive: RunArchive, writer: RunWriter, base: Manifest | None = None) -> None:
        self.archive = archive
        self.manifest = base
        self._writer = writer
        self._files: dict[_Key, FileEntry] = {_key_of(entry): entry for entry in base.files} if base else {}
        self._fresh: dict[_Key, FileEntry] = {}
        self.first_kept: dict[str, int] = {}

    @classmethod
    def start(cls, archive: RunArchive, run_name: str) -> RunRecord:
        """Open a new run, the same one on every rank."""
        return cls._open(archive, lambda: (archive.start_run(run_name), None))

    @classmethod
    def resume(cls, archive: RunArchive, run_id: str, generation: int) -> RunRecord:
        """Go on with a run as it was at a generation; what was committed after it is dropped."""

        def resume() -> tuple[RunWriter, Manifest]:
            # An older copy of the archive would lose what the checkpoint builds on.
            newest = archive.run(run_id).manifest.generation
            if newest < generation:
                raise ArchiveError(
                    f"run {run_id} cannot go on: the checkpoint belongs to generation {generation}, and the newest one "
                    f"in {archive.location} is {newest}. Copy the rest of the run from where it was recorded "
                    "(`reuse-algos copy`), or give the run another run_name to start a new one"
                )
            return archive.resume_run(run_id, generation)

        return cls._open(archive, resume)

    @classmethod
    def _open(cls, archive: RunArchive, work: Callable[[], tuple[RunWriter, Manifest | None]]) -> RunRecord:
        writers: list[RunWriter] = []

        def open_writer() -> tuple[str, int, Manifest | None]:
            writer, base = work()
            writers.append(writer)
            return writer.run_id, writer.attempt, base

        run_id, attempt, base = on_rank_zero(open_writer)
        return cls(archive, writers[0] if writers else archive.join_run(run_id, attempt), base)

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._writer.run_id

    def put(self, kind: str, name: str, tensors: Mapping[str, torch.Tensor], **meta: Any) -> None:
        """Write one data file of this rank; it becomes visible with the next commit."""
        # Contiguous: the file holds the bytes of a tensor in one run.
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        entry = self._writer.put(kind, name, plain, {**meta, "rank": dist.get_global_rank()})
        self._fresh[_key_of(entry)] = entry

    def put_weights(self, name: str, weights: Mapping[str, torch.Tensor]) -> None:
        """Write a state dict, over as many files as its header needs."""
        parts = header_parts(weights)
        for number, names in enumerate(parts):
            slot = {"slot": number} if len(parts) > 1 else {}
            self.put("weights", name, {key: weights[key] for key in names}, **slot)

    def put_signals(self, capture: SignalCapture | None, complete: Collection[tuple[str, int]] = ()) -> None:
        """Write the rows that this rank has collected in the running epoch.

        Args:
            capture: The rows, or None where no signals are kept.
            complete: Name and slot of those signals that have a row for every example, on all ranks together. Default:
                none of them.
        """
        for segment in [] if capture is None else capture.segments():
            whole = (segment.name, segment.slot) in complete
            meta = {key: value for key, value in segment.meta.items() if key != "rank"} | {"whole_epoch": whole}
            self.put("signals", segment.name, segment.tensors, **meta)

    def commit(
        self,
        describe: Callable[[list[FileEntry]], Manifest],
        prepare: Callable[[], None],
    ) -> None:
        """Make everything written so far visible, on all ranks together or not at all.

        Args:
            describe: Makes the manifest from the list of valid files; runs on rank 0.
            prepare: Writes what is still to be written; runs on every rank.

        Raises:
            ArchiveError: On every rank, where any rank could not write.
        """

        def write() -> list[FileEntry]:
            prepare()
            return list(self._fresh.values())

        # Ranks write first and rank 0 commits behind all of them: what it names must exist.
        each = on_every_rank(write)
        written = [entry for entries in each for entry in entries]
        # Epoch by epoch and not rank by rank: an epoch of one rank must not take out a later one of another.
        for entry in sorted(written, key=lambda entry: int(entry.meta.get("epoch") or 0)):
            self._replace(entry)
        self._fresh.clear()
        for key in [key for key, entry in self._files.items() if self._left_window(entry)]:
            del self._files[key]

        def make_visible() -> Manifest:
            return self._writer.commit(describe(list(self._files.values())))

        self.manifest = on_rank_zero(make_visible)

    def _left_window(self, entry: FileEntry) -> bool:
        """Return whether a signal's file is of an epoch before the window of last epochs."""
        first = self.first_kept.get(entry.name)
        return entry.kind == "signals" and first is not None and int(entry.meta.get("epoch") or 0) < first

    def _replace(self, entry: FileEntry) -> None:
        """Put an entry at the end of the list, since later ones win, and take out what it replaces."""
        self._files.pop(_key_of(entry), None)
        if entry.kind == "signals" and entry.meta.get("whole_epoch"):
            same = (entry.kind, entry.name, entry.meta["slot"])
            old = [
                key
                for key, other in self._files.items()
                if (other.kind, other.name, other.meta.get("slot")) == same
                and other.meta.get("epoch") != entry.meta["epoch"]
            ]
            for key in old:
                del self._files[key]
        self._files[_key_of(entry)] = entry

    def show_life(self) -> None:
        """Keep the garbage collection away from what is written and not yet committed; costs next to nothing."""
        if dist.get_global_rank() == 0:
            with contextlib.suppress(ArchiveError):  # not a reason to stop: the next commit raises what is wrong
                self._writer.renew_lease()

    def finish(self) -> None:
        """Mark the run as ended by itself."""
        on_rank_zero(self._writer.finish)

    def own_signals(self) -> list[FileEntry]:
        """Return the committed signal files of this rank."""
        rank = dist.get_global_rank()
        return [entry for (kind, _, _, of, _), entry in self._files.items() if kind == "signals" and of == rank]

    def read(self, entry: FileEntry) -> dict[str, torch.Tensor]:
        """Return the tensors of a committed file."""
        assert self.manifest is not None
        return self.archive.open_run(self.run_id, self.manifest.generation).read(entry)


def _key_of(entry: FileEntry) -> _Key:
    slot, epoch = (None if value is None else int(value) for value in map(entry.meta.get, ("slot", "epoch")))
    return entry.kind, entry.name, slot, int(entry.meta.get("rank") or 0), epoch
