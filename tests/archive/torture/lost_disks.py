"""Rows 21 and 22: a disk that goes away under a writer, and a writer that is suspended for longer than files live."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from reuse_algos.archive import RunArchive
from reuse_algos.archive.upkeep import leases
from reuse_algos.errors import ArchiveError, ArchiveWarning

from ..dict_store import Clock
from ..small_runs import manifest_of, put_files, use_everything
from .outcome import Outcome, Tally, spread
from .survival import traced


def unmounted(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """The archive's directory becomes an empty one at each change of the disk in a commit, an end and a copy."""
    tally = Tally()
    for name, action in (("commit", _commit), ("end", _end), ("copy", _copy)):
        total = _Case(folder / f"{name}-counted", action, None).changes
        for at in spread(total, count, seed):
            tally.tries += 1
            case = _Case(folder / f"{name}-{at}", action, at)
            what = f"{name}, unmounted at change {at} of {total}"
            if case.error is not None and not isinstance(case.error, ArchiveError):
                tally.miss(f"{what}: {case.error!r}")
            if case.error is None and not case.is_there():
                tally.lose(f"{what}: it was acknowledged, and is not there")
            for problem in RunArchive(case.root).verify().problems:
                tally.tear(f"{what}: {problem}")
            try:
                with traced(), suppress(ArchiveError):
                    action(case)
                use_everything(RunArchive(case.root), case.writer.run_id)
            except Exception as error:
                tally.lose(f"{what}: afterwards {error!r}")
    return tally.outcome()


class _Case:
    """A run of one generation, and one action during which the disk goes away."""

    def __init__(self, folder: Path, action: Callable[[_Case], object], at: int | None) -> None:
        self.root, self.aside = folder / "archive", folder / "mounted elsewhere"
        self.error: Exception | None = None
        with traced():
            self.archive = RunArchive(self.root, create=True)
            self.source = RunArchive(folder / "source", create=True)
            for archive in (self.source, self.archive):  # the last one's is kept
                self.writer = archive.start_run("toy")
                self.writer.commit(manifest_of(put_files(self.writer)))
        self.copied = self.source.run_ids()[0]
        self.is_there: Callable[[], bool] = lambda: False

        def unmount(index: int, kind: str) -> None:
            del kind
            if index == at:
                self.root.rename(self.aside)
                self.root.mkdir()

        with traced(unmount) as operations:
            try:
                action(self)
            except Exception as error:
                self.error = error
        self.changes = operations.count
        if self.aside.exists():
            self.root.rename(folder / "the empty one")
            self.aside.rename(self.root)


def _commit(case: _Case) -> None:
    generation = case.writer.commit(manifest_of(put_files(case.writer, epoch=1))).generation
    case.is_there = lambda: RunArchive(case.root).run(case.writer.run_id).manifest.generation == generation


def _end(case: _Case) -> None:
    case.writer.finish()
    case.is_there = lambda: RunArchive(case.root).run(case.writer.run_id).finished


def _copy(case: _Case) -> None:
    if problems := case.source.copy_to(RunArchive(case.root) if case.aside.exists() else case.archive).problems:
        raise ArchiveError(str(problems))
    case.is_there = lambda: case.copied in RunArchive(case.root).run_ids()


def suspended(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """A writer sleeps for a day between its look and the manifest, and the collector takes each of the new files."""
    tally = Tally()
    kinds = ("weights", "signals")
    ways = [(before, kind) for before in range(4) for kind in kinds]
    for before, kind in (ways[at] for at in spread(len(ways), count, seed)):
        tally.tries += 1
        with traced():
            _suspend(folder / f"{before}-{kind}", before, kind, tally)
    return tally.outcome()


@contextmanager
def _clock() -> Iterator[Clock]:
    module, clock = cast(Any, leases), Clock()
    real, module.time = module.time, clock
    try:
        yield clock
    finally:
        module.time = real


def _suspend(root: Path, before: int, kind: str, tally: Tally) -> None:
    archive = RunArchive(root, create=True)
    what = f"{kind} gone, {before} sound generations"
    with _clock() as clock:
        writer = archive.start_run("toy")
        for epoch in range(before):
            writer.commit(manifest_of(put_files(writer, epoch=epoch)))
        files = put_files(writer, epoch=before)
        (gone,) = (entry for entry in files if entry.kind == kind)
        store = archive._store
        real = store.put_if_absent

        def put(path: str, chunks: Any) -> None:
            if "/manifests/" in path:  # the writer has looked, and goes to sleep
                clock.sleep(24 * 3600)
                (root / "runs" / writer.run_id / gone.path).unlink()
            real(path, chunks)

        store.put_if_absent = put  # type: ignore[method-assign]
        try:
            writer.commit(manifest_of(files))
        except ArchiveError as error:
            tally.check(Path(gone.path).name in str(error), f"{what}: the file is not named: {error}")
        else:
            tally.lose(f"{what}: the commit was acknowledged")
        del store.put_if_absent
    paths = [problem.path for problem in archive.verify().problems]
    tally.check(paths == [f"runs/{writer.run_id}/{gone.path}"], f"{what}: verify found {paths}")
    reader = RunArchive(root)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            use_everything(reader, writer.run_id)
            generation = reader.run(writer.run_id).manifest.generation
        except ArchiveError as error:
            tally.check(before == 0 and Path(gone.path).name in str(error), f"{what}: {error!r}")
            return
    texts = [str(one.message) for one in said if issubclass(one.category, ArchiveWarning)]
    parts = (writer.run_id, f"generation {before + 1} cannot be used", Path(gone.path).name, f"generation {before} is")
    tally.check(generation == before, f"{what}: generation {generation} is read")
    tally.check(len(texts) == 1 and all(part in texts[0] for part in parts), f"{what}: said {texts}")
    resumed, base = archive.resume_run(writer.run_id, before)  # as its checkpoint says
    resumed.commit(manifest_of(put_files(resumed, epoch=before)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use_everything(RunArchive(root), writer.run_id)
    tally.check(base.generation == before, f"{what}: it was resumed from generation {base.generation}")
