"""Row 23: one odd run in a shared archive is that run's trouble: it is named, and the others' commands work."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch

from reuse_algos.archive import PriorRun, RunArchive, StoredObject
from reuse_algos.errors import ArchivePermissionError, ReuseAlgosError

from ..small_runs import MONITOR, history, manifest_of, put_files, rewrite
from .hostile import sealed
from .outcome import Outcome, Tally, spread
from .survival import traced

Change = Callable[[Path], None]

DIGITS = b"9" * 400


def _manifest(change: Callable[[dict[str, Any]], object]) -> Change:
    """Change the fields of the newest manifest, and seal it again."""

    def apply(run: Path) -> None:
        path = run / "manifests" / "g000001.json"
        fields = msgspec.json.decode(path.read_bytes())["content"]
        change(fields)
        rewrite(path, lambda _: sealed(msgspec.json.encode(fields).replace(b'"DIGITS"', DIGITS)))

    return apply


def _history_meta(value: object) -> Change:
    def change(fields: dict[str, Any]) -> None:
        for entry in fields["files"]:
            if entry["kind"] == "metrics":
                entry["meta"] = {f"final/{MONITOR}": value}

    return _manifest(change)


def _replace_by(make: Callable[[Path], object]) -> Change:
    """Put something else in the place of the manifest."""

    def apply(run: Path) -> None:
        path = run / "manifests" / "g000001.json"
        path.unlink()
        make(path)

    return apply


def _stray_file(run: Path) -> None:
    shutil.rmtree(run)
    run.write_bytes(b"not a run")


def _nothing(run: Path) -> None:
    del run


ODDITIES: dict[str, Change] = {
    "a run that this user may not read": _nothing,
    "a stray file among the runs": _stray_file,
    "last value of 400 digits": _history_meta("DIGITS"),
    "recipe with 400 digits": _manifest(lambda fields: fields.update(recipe={"lr": ["DIGITS"]})),
    "seed of 400 digits": _manifest(lambda fields: fields.update(seed="DIGITS")),
    "batch of 400 digits": _manifest(lambda fields: fields["progress"].update(batch="DIGITS")),
    "slot of 400 digits": _manifest(lambda fields: fields["files"][-1]["meta"].update(slot="DIGITS")),
    "cost of -1e308": _manifest(lambda fields: fields["cost"].update(train_seconds=-1e308)),
    "FLOPs of 1e308": _manifest(lambda fields: fields["cost"].update(train_flops=1e308)),
    "100,000 tags": _manifest(lambda fields: fields.update(tags={str(tag): "x" for tag in range(100_000)})),
    "a tag of 2 MB": _manifest(lambda fields: fields.update(tags={"study": "x" * (2 << 20)})),
    "the name of a tag of 2 MB": _manifest(lambda fields: fields.update(tags={"x" * (2 << 20): "study"})),
    "a run name of 2 MB": _manifest(lambda fields: fields.update(run_name="x" * (2 << 20))),
    "a monitor of 2 MB": _manifest(lambda fields: fields.update(monitor="x" * (2 << 20))),
    "a recipe of 8 MB": _manifest(lambda fields: fields.update(recipe={"x": "y" * (8 << 20)})),
    "model settings of 8 MB": _manifest(
        lambda fields: fields.update(model={"name": "m", "config": {"y": "z" * 2**23}})
    ),
    "control characters": _manifest(lambda fields: fields.update(tags={"a\n\x9b2J": "\u202eb"}, run_name="\x1b[2J")),
    "a time that is none": _manifest(lambda fields: fields.update(created_at="\uffff")),
    "a newer format": _manifest(lambda fields: fields.update(format=[2, 0])),
    "a manifest that is a folder": _replace_by(Path.mkdir),
    "a manifest that is a FIFO": _replace_by(os.mkfifo),
    "a manifest that is a link": _replace_by(lambda path: path.symlink_to("/etc/hostname")),
    "an end that is noise": lambda run: rewrite(run / "final.json", lambda _: b"noise"),
    "a damaged manifest": lambda run: rewrite(run / "manifests" / "g000001.json", lambda data: data[:-9]),
    "a marker that is noise": lambda run: ((run / "gc").mkdir(), (run / "gc/0123456789abcdef.json").write_bytes(b"x")),
    "malformed history": _nothing,
}


class _Refusing:
    """A store of which one run may not be read by this user, as with a umask of 077."""

    def __init__(self, archive: RunArchive, run_id: str) -> None:
        self._store, self._run = archive._store, f"runs/{run_id}"
        self.concurrency, self.can_delete = 1, True

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if name not in ("get", "open", "stream", "size", "list", "walk", "put_if_absent", "delete"):
            return real

        def call(path: str, *arguments: Any) -> Any:
            self._check(path)
            return real(path, *arguments)

        return call

    def walk(self, prefix: str) -> Iterator[StoredObject]:
        self._check(prefix)
        return self._store.walk(prefix)

    def _check(self, path: str) -> None:
        if path == self._run or path.startswith(f"{self._run}/"):
            raise ArchivePermissionError(f"cannot read {path}: Permission denied")


def case(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """Each oddity (``count`` of them, all for None) beside two good runs, under every command's calls."""
    tally = Tally()
    names = list(ODDITIES)
    for name in (names[at] for at in spread(len(names), count, seed)):
        tally.tries += 1
        with traced(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _try(folder / f"archive-{tally.tries}", name, tally)
    return tally.outcome()


def _try(root: Path, name: str, tally: Tally) -> None:
    archive = RunArchive(root, create=True)
    good = [_run(archive, "good"), _run(archive, "other")]
    odd = _run(archive, "odd", malformed=name == "malformed history")
    ODDITIES[name](root / "runs" / odd)

    def opened(where: Path = root) -> RunArchive:
        found = RunArchive(where)
        if name == "a run that this user may not read":
            found._store = _Refusing(found, odd)  # type: ignore[assignment]
        return found

    def attempt(what: str, action: Callable[[], object]) -> None:
        try:
            seen = action()
        except Exception as error:
            tally.lose(f"{name}: {what}: {error!r}")
        else:
            tally.check(seen is True, f"{name}: {what}: {seen}")

    for order in ("latest", "first", "best"):
        metric = MONITOR if order == "best" else None

        def select(order: Any = order, metric: str | None = metric) -> object:
            reader = opened()
            runs = reader.runs(order=order, metric=metric, unfinished=True, unhealthy=True)
            for run in runs:
                _use(run, run.id == odd)
            ids = {run.id for run in runs}
            named = odd in ids or odd in reader.faults
            return (ids - {odd} == set(good) and set(reader.faults) <= {odd} and named) or (ids, reader.faults)

        attempt(order, select)
    attempt("by name", lambda: opened().run("good").id == good[0])
    attempt("run_ids", lambda: set(good) <= set(opened().run_ids()))
    attempt("verify", lambda: {problem.run_id for problem in opened().verify().problems} <= {odd})

    def collect() -> object:
        report = opened().collect_garbage()
        return {problem.run_id for problem in report.problems} <= {odd} and report.runs >= len(good)

    attempt("gc", collect)

    def copy() -> object:
        target = RunArchive(root.with_name(root.name + "-copy"), create=True)
        report = opened().copy_to(target)
        there = {run.id for run in target.runs(run_name="good")} | {run.id for run in target.runs(run_name="other")}
        return there == set(good) and {problem.run_id for problem in report.problems} <= {odd}

    attempt("copy", copy)


def _run(archive: RunArchive, name: str, *, malformed: bool = False) -> str:
    writer = archive.start_run(name)
    files = put_files(writer)
    if malformed:
        columns = {f"{MONITOR}/{field}": torch.zeros(3) for field in history([1.0])._fields[:-1]}
        columns[f"{MONITOR}/value"] = torch.tensor([0.5, 0.75], dtype=torch.float64)
        files[1] = writer.put("metrics", "history", columns)
    writer.commit(manifest_of(files))
    writer.finish()
    return writer.run_id


def _use(run: PriorRun, odd: bool) -> None:
    """Read what commands read. A sound run must be whole; an odd one may refuse in the library's words."""
    assert abs(run.manifest.cost.train_seconds) < 1e15
    try:
        run.final_metric()
        run.metric(MONITOR)
        run.signal("logits")
        run.weights()
    except ReuseAlgosError:
        if not odd:
            raise
