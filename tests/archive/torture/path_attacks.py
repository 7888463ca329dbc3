"""Row 8: archives whose names, links and odd files would lead out of their directory."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import torch

from reuse_algos.archive import RunArchive, VerifyReport
from reuse_algos.archive.stores import local
from reuse_algos.errors import ArchiveError, ArchiveWarning, ExampleIdError, RunNotFoundError, SignalNotFoundError

from ..small_runs import manifest_of, put_files
from .fuzzing import questions
from .hostile import BAD_FIELDS, BAD_IDS, BAD_PATHS, HASH, change_entry
from .outcome import Outcome, Tally, spread
from .survival import traced

REFUSALS = (ArchiveError, RunNotFoundError, SignalNotFoundError, ExampleIdError)
Attack = Callable[[RunArchive, Path], str | None]
"""Changes an archive of one good run, given a folder outside it; returns the run's id if it must not be readable."""

MORE_PATHS = [
    f"data/weights/..%2f..%2flast-1-{HASH}.safetensors",
    f"data/weights/..%252flast-1-{HASH}.safetensors",
    f"data/weights/last-1-{HASH}.safetensors::$DATA",
    f"data/weights/last-1-{HASH}.safetensors.",
    f"data/weights./last-1-{HASH}.safetensors",
    f"data/weights/l\u0430st-1-{HASH}.safetensors",
    f"data/weights/last-1-{HASH}.safetensors\u202e",
    f"data/weights/la\u0301st-1-{HASH}.safetensors",
    f"data/Weights/last-1-{HASH}.safetensors",
    f"\\\\server\\share\\last-1-{HASH}.safetensors",
    f"data/weights/\u2025/last-1-{HASH}.safetensors",
    f"data/weights/\u2215last-1-{HASH}.safetensors",
    "../outside/secret.safetensors",
    "../../outside/secret.safetensors",
    "../../../outside/secret.safetensors",
    "/proc/self/environ",
    "data/" + "a/" * 4000 + "b",
]


def case(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """Each attack (``count`` of them, all for None) on an archive of its own, used, verified and written to."""
    tally = Tally()
    attacks = _attacks()
    names = list(attacks)
    for name in (names[at] for at in spread(len(names), count, seed)):
        tally.tries += 1
        own = folder / f"attack-{tally.tries}"
        outside = own / "outside"
        outside.mkdir(parents=True)
        with traced():
            archive = RunArchive(own / "archive", create=True)
            RunArchive(own / "copy", create=True)
            good = _good_run(archive)
            refused = attacks[name](archive, outside)
        (outside / "secret").write_bytes(b"secret")
        before = _snapshot(outside)
        with watching(archive.root) as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore", ArchiveWarning)  # which says that the hostile run is left out
            for fault in _use(archive, good, refused):
                tally.miss(f"{name}: {fault}")
        for path in opened:
            tally.miss(f"{name}: {path} was opened")
        tally.check(_snapshot(outside) == before, f"{name}: something outside was changed")
        shutil.rmtree(own)
    return tally.outcome()


def _use(archive: RunArchive, good: str, refused: str | None) -> list[str]:
    """Read, verify, write and list; returns what should not have worked, and what should have."""
    faults = []
    if refused is not None:
        run_id = refused
        try:
            run = archive.run(run_id)
            for question in questions(run):
                question()
        except REFUSALS:
            pass
        except Exception as error:
            faults.append(repr(error))
        else:
            faults.append("everything could be read")
        if archive.verify(run_id).ok:
            faults.append("verify found nothing")
        writes: list[Callable[[], object]] = [
            lambda: put_files(archive.join_run(run_id, 1), epoch=9),
            lambda: archive.join_run(run_id, 1).put("weights", "last", {"layer.weight": torch.ones(3, 4)}),
            lambda: archive.resume_run(run_id)[0].finish(),
            lambda: archive.collect_garbage(delete=True, min_age_seconds=3600),
            lambda: archive.copy_to(RunArchive(archive.root.parent / "copy"), [run_id]),
            lambda: archive.remove_run(run_id, force=True),
        ]
        for write in writes:
            with suppress(*REFUSALS):
                write()
    else:
        for run_id in BAD_IDS:
            uses = [
                archive.remove_run,
                archive.run,
                archive.resume_run,
                archive.verify,
                lambda run_id: archive.join_run(run_id, 1),
            ]
            for use in uses:
                try:
                    answer = use(run_id)
                except REFUSALS:
                    continue
                if not isinstance(answer, VerifyReport) or answer.ok:  # of an archive that cannot even be listed
                    faults.append(f"{run_id[:20]!r} was taken for a run")
    try:
        archive.verify()
    except Exception as error:
        faults.append(f"verify: {error!r}")
    if (archive.root / "runs").is_symlink():
        return faults
    try:
        archive.run(good).weights()
    except Exception as error:
        faults.append(f"the good run: {error!r}")
    return faults


def _good_run(archive: RunArchive) -> str:
    writer = archive.start_run("toy")
    writer.commit(manifest_of(put_files(writer)))
    writer.finish()
    return writer.run_id


def _attacks() -> dict[str, Attack]:
    attacks: dict[str, Attack] = {}
    entries: list[dict[str, object]] = [{"path": path} for path in [*BAD_PATHS, *MORE_PATHS]]
    entries += [dict(fields) for fields in BAD_FIELDS]
    for number, fields in enumerate(entries):
        attacks[f"entry {number} {str(fields)[:60]!r}"] = lambda archive, _, fields=fields: _entry(archive, fields)
    parts = [
        "",
        "data",
        "data/weights",
        "data/signals",
        "manifests",
        "manifests/g000001.json",
        "final.json",
        "weights file",
    ]
    kinds = {"link": _link, "dangling link": _dangling, "relative link": _relative_link, "link to itself": _loop}
    for part in parts:
        for kind, replace in kinds.items():
            attacks[f"{kind} for {part or 'the run'}"] = lambda archive, outside, part=part, replace=replace: _replaced(
                archive, outside, part, replace
            )
    files = ["manifests/g000001.json", "final.json", "weights file"]
    odd = {"FIFO": _fifo, "socket": _socket, "directory": _directory, "device": _device, "link to a device": _zero}
    for part in files:
        for kind, replace in odd.items():
            attacks[f"{kind} for {part}"] = lambda archive, outside, part=part, replace=replace: _replaced(
                archive, outside, part, replace
            )
    attacks["ids that are paths"] = lambda archive, outside: None
    attacks["link for all runs"] = _linked_runs
    attacks["hard link for the weights file"] = _hard_link
    attacks["links to runs beside it"] = _links_beside
    return attacks


def _entry(archive: RunArchive, fields: dict[str, object]) -> str:
    run_id = _good_run(archive)
    change_entry(archive, archive.run(run_id).manifest, **fields)
    return run_id


def _replaced(archive: RunArchive, outside: Path, part: str, replace: Callable[[Path, Path], None]) -> str:
    """A run of which a part was moved outside, with sound content, and something else put in its place."""
    run_id = _good_run(archive)
    run = archive.root / "runs" / run_id
    target = next((run / "data/weights").iterdir()) if part == "weights file" else run / part
    moved = outside / "moved"
    shutil.move(target, moved)
    replace(target, moved)
    return run_id


def _link(target: Path, moved: Path) -> None:
    target.symlink_to(moved)


def _relative_link(target: Path, moved: Path) -> None:
    target.symlink_to(os.path.relpath(moved, target.parent))


def _dangling(target: Path, moved: Path) -> None:
    target.symlink_to(moved.parent / "absent")


def _loop(target: Path, moved: Path) -> None:
    target.symlink_to(target.name)


def _fifo(target: Path, moved: Path) -> None:
    os.mkfifo(target)


def _directory(target: Path, moved: Path) -> None:
    target.mkdir()


def _zero(target: Path, moved: Path) -> None:
    target.symlink_to("/dev/zero")


def _device(target: Path, moved: Path) -> None:
    try:
        os.mknod(target, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:  # only the superuser makes devices
        _zero(target, moved)


def _socket(target: Path, moved: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(target.parent, os.O_RDONLY)
        try:  # by this way, since the names of sockets are short
            server.bind(f"/proc/self/fd/{here}/{target.name}")
        finally:
            os.close(here)


def _linked_runs(archive: RunArchive, outside: Path) -> str:
    run_id = _good_run(archive)
    shutil.move(archive.root / "runs", outside / "runs")
    (archive.root / "runs").symlink_to(outside / "runs")
    return run_id


def _hard_link(archive: RunArchive, outside: Path) -> str:
    run_id = _good_run(archive)
    target = next((archive.root / "runs" / run_id / "data/weights").iterdir())
    target.unlink()
    (outside / "precious").write_bytes(b"precious")
    os.link(outside / "precious", target)
    return run_id


def _links_beside(archive: RunArchive, outside: Path) -> str:
    run_id = _good_run(archive)
    shutil.move(archive.root / "runs" / run_id, outside / "run")
    for name in (run_id, "another", "..."):
        (archive.root / "runs" / name).symlink_to(outside / "run")
    return run_id


def _snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything about what is in a folder."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return found


class _WatchedOS:
    """``os``, with the real path of everything that is opened noted."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, *arguments: Any, **options: Any) -> int:
        descriptor = os.open(*arguments, **options)
        self._note(os.readlink(f"/proc/self/fd/{descriptor}"))
        return descriptor

    def fsync(self, descriptor: int) -> None:
        """Not really: it takes long."""


_note_absolute: Callable[[str], None] | None = None
_hooked = False


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _note_absolute is not None and event == "open" and isinstance(arguments[0], str) and arguments[0][:1] == "/":
        _note_absolute(os.path.realpath(arguments[0]))


@contextmanager
def watching(root: Path) -> Iterator[list[str]]:
    """Note what is opened outside of an archive, by the store or by anything else in this process."""
    global _note_absolute, _hooked
    outside = root.parent / "outside"
    opened: list[str] = []

    def note(path: str) -> None:
        if not Path(path).is_relative_to(root) and not Path(path).is_relative_to(root.parent / "copy"):
            opened.append(path)

    def note_absolute(path: str) -> None:
        if Path(path).is_relative_to(outside) or path.startswith("/dev/"):
            opened.append(path)

    if not _hooked:
        sys.addaudithook(_audit)
        _hooked = True
    real = local.os
    cast(Any, local).os, _note_absolute = _WatchedOS(note), note_absolute
    try:
        yield opened
    finally:
        cast(Any, local).os, _note_absolute = real, None
