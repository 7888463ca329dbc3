"""Row 25: whatever happens to the index and to what a host remembers, no run is lost and no selection is wrong."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from reuse_algos.archive import RunArchive, history_tensors
from reuse_algos.archive.format.names import shard_runs
from reuse_algos.archive.index import catalog, update
from reuse_algos.archive.index.shards import decode_shard, encode_shard

from ..small_runs import MONITOR, history, manifest_of, rewrite
from ..traced_os import die_at
from .outcome import Outcome, Tally, spread
from .survival import traced

RUNS = 24


class Truth:
    """An archive, and what its runs say, kept beside it."""

    def __init__(self, root: Path, draw: random.Random) -> None:
        self.root, self.draw = root, draw
        self.archive = RunArchive(root, create=True)
        self.runs: dict[str, tuple[str, float]] = {}
        self.old = root.with_name(root.name + "-older")
        for number in range(RUNS):
            self.add(number)
            if number == RUNS // 2:
                shutil.copytree(root / "index", self.old)

    def add(self, number: int) -> str:
        value, tag = round(self.draw.random(), 6), self.draw.choice("ab")
        writer = self.archive.start_run(f"run-{number}", created_at=f"2026-01-01T00:{number % 60:02d}:00+00:00")
        entry = writer.put("metrics", "history", history_tensors({MONITOR: history([value])}))
        writer.commit(manifest_of([entry], tags={"t": tag}))
        writer.finish()
        self.runs[writer.run_id] = (tag, value)
        return writer.run_id

    def shards(self) -> list[str]:
        return sorted(item.path for item in self.archive._store.walk("index") if shard_runs(item.path) is not None)

    def databases(self) -> list[Path]:
        return sorted(Path(os.environ["XDG_CACHE_HOME"]).glob("reuse_algos/index/*.sqlite"))

    def lie(self, change: Callable[[list[Any]], list[Any]], *, keep: bool = False) -> None:
        """Put other summaries in the place of every shard, well sealed."""
        for path in self.shards():
            shard = decode_shard(path, (self.root / path).read_bytes(), self.archive.archive_id)
            where, data = encode_shard(self.archive.archive_id, change(list(shard.runs)), [path] if keep else [])
            if not keep:
                (self.root / path).unlink()
            (self.root / where).write_bytes(data)

    def check(self, tally: Tally, what: str) -> None:
        """Ask for selections, twice: what is remembered must be as right as what is read."""
        for time in ("first", "again"):
            try:
                reader = RunArchive(self.root)
                for tag in "ab":
                    ranked = sorted((-value, run_id) for run_id, (t, value) in self.runs.items() if t == tag)
                    found = [run.id for run in reader.runs(tags={"t": tag}, order="best", limit=5)]
                    wanted = [run_id for _, run_id in ranked[:5]]
                    if found != wanted:
                        tally.tear(f"{what}, {time}: {found} for {wanted}")
                there = {summary.run_id for summary in reader.summaries(unfinished=True, unhealthy=True)}
                if there != self.runs.keys():
                    tally.lose(f"{what}, {time}: {there ^ self.runs.keys()}")
                chosen = {run.run_id for run in reader.summaries(where="accuracy>=0.5 and not tags.t=c")}
                if chosen != {run_id for run_id, (_, value) in self.runs.items() if value >= 0.5}:
                    tally.tear(f"{what}, {time}: a filter chose {chosen}")
            except Exception as error:
                tally.lose(f"{what}, {time}: {error!r}")


def _set(**fields: Any) -> Callable[[Truth], None]:
    def change(runs: list[Any]) -> list[Any]:
        return [msgspec.structs.replace(runs[0], **fields), *runs[1:]]

    return lambda truth: truth.lie(change)


def _swap(truth: Truth) -> None:
    def change(runs: list[Any]) -> list[Any]:
        finals = [run.finals for run in runs]
        return [msgspec.structs.replace(run, finals=other) for run, other in zip(runs, reversed(finals), strict=True)]

    truth.lie(change)


def _remake(change: Callable[[bytes], bytes]) -> Callable[[Truth], None]:
    def apply(truth: Truth) -> None:
        for path in truth.shards():
            rewrite(truth.root / path, change)

    return apply


def _database(change: Callable[[bytes], bytes]) -> Callable[[Truth], None]:
    def apply(truth: Truth) -> None:
        for path in truth.databases():
            path.write_bytes(change(path.read_bytes()))

    return apply


def _sql(statement: str) -> Callable[[Truth], None]:
    def apply(truth: Truth) -> None:
        for path in truth.databases():
            with contextlib.closing(sqlite3.connect(path)) as database, database:
                database.executescript(statement)

    return apply


def _remove(truth: Truth) -> None:
    run_id = max(truth.runs, key=lambda run: truth.runs[run][1])
    truth.archive.remove_run(run_id)
    del truth.runs[run_id]


def _replace(truth: Truth) -> None:
    """An ended run is resumed, and says something else."""
    run_id = max(truth.runs, key=lambda run: truth.runs[run][1])
    writer, base = truth.archive.resume_run(run_id)
    entry = writer.put("metrics", "history", history_tensors({MONITOR: history([0.001])}))
    tag = "a" if truth.runs[run_id][0] == "b" else "b"
    writer.commit(msgspec.structs.replace(base, files=[entry], tags={"t": tag}))
    truth.runs[run_id] = (tag, 0.001)


def _older(truth: Truth) -> None:
    shutil.rmtree(truth.root / "index")
    shutil.copytree(truth.old, truth.root / "index")


def _killed(truth: Truth) -> None:
    """A process is killed while it writes the index: at some change of the disk, or of the host's database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forking beside torch's idle threads; the child uses none of them
        child = os.fork()
    if child == 0:
        try:
            shutil.rmtree(truth.root / "index")
            with traced(die_at(truth.draw.randrange(8))):
                update.update_index(truth.archive._store, truth.archive.archive_id, everything=True)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(child, 0)


def _junk(truth: Truth) -> None:
    for name in ("000005-" + "0" * 32 + ".json", "x", "000002-short.json"):
        (truth.root / "index" / name).write_bytes(b"junk")
    (truth.root / "index" / "changed" / "nobody").mkdir(parents=True)
    (truth.root / "index" / "changed" / "nobody" / ("0" * 16 + "-1.json")).write_bytes(b"")


def _flip(data: bytes) -> bytes:
    at = len(data) // 3
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


DAMAGES: dict[str, Callable[[Truth], None]] = {
    "nothing": lambda truth: None,
    "no index": lambda truth: shutil.rmtree(truth.root / "index"),
    "one shard is gone": lambda truth: (truth.root / truth.shards()[0]).unlink(),
    "an older index": _older,
    "a truncated shard": _remake(lambda data: data[: len(data) // 2]),
    "an empty shard": _remake(lambda data: b""),
    "a flipped bit": _remake(_flip),
    "a better value": _set(finals={MONITOR: 0.999999}),
    "a worse value": lambda truth: truth.lie(
        lambda runs: [msgspec.structs.replace(run, finals={MONITOR: 1e-6}) for run in runs]
    ),
    "swapped values": _swap,
    "no values": _set(finals={}),
    "another tag": lambda truth: truth.lie(
        lambda runs: [msgspec.structs.replace(run, tags={"t": "a"}) for run in runs]
    ),
    "another metric": _set(finals={"metrics/eval/Other": 0.5}),
    "a diverged run": lambda truth: truth.lie(
        lambda runs: [msgspec.structs.replace(run, health="diverged") for run in runs]
    ),
    "a run that has not ended": _set(ended_at=None),
    "a run that does not exist": _set(run_id="nobody"),
    "one run many times": lambda truth: truth.lie(lambda runs: [runs[0]] * len(runs)),
    "a shard that replaces all": lambda truth: truth.lie(lambda runs: [], keep=True),
    "another host's database": _database(lambda data: data[: len(data) // 2]),
    "an empty database": _database(lambda data: b""),
    "a database of noise": _database(lambda data: b"\x80" * 9000),
    "a flipped byte in the database": _database(_flip),
    "a database of another version": _sql("PRAGMA user_version = 99"),
    "a database without tables": _sql("DROP TABLE own; DROP TABLE shards"),
    "rows that are noise": _sql("UPDATE own SET summary = x'00'; UPDATE shards SET lines = x'00'"),
    "a removed run": _remove,
    "a run that says something else": _replace,
    "a killed writer": _killed,
    "junk": _junk,
}


@contextlib.contextmanager
def _small(cache: Path) -> Iterator[None]:
    """The index as in a large archive, and a host of its own."""
    before = catalog.FEW_RUNS, update.ENOUGH_RUNS, os.environ.get("XDG_CACHE_HOME")
    catalog.FEW_RUNS, update.ENOUGH_RUNS, os.environ["XDG_CACHE_HOME"] = 0, 5, str(cache)
    try:
        with traced(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        catalog.FEW_RUNS, update.ENOUGH_RUNS, old = before
        os.environ.pop("XDG_CACHE_HOME") if old is None else os.environ.update(XDG_CACHE_HOME=old)


def case(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """Each damage (``count`` of them, all for None), on a host that knows the archive and on one that does not."""
    tally = Tally()
    names = list(DAMAGES)
    for name in (names[at] for at in spread(len(names), count, seed)):
        for new_host in (False, True):
            tally.tries += 1
            place = folder / f"{tally.tries}"
            with _small(place / "cache"):
                truth = Truth(place / "archive", random.Random(seed + tally.tries))
                truth.check(tally, "before")
                if new_host:
                    os.environ["XDG_CACHE_HOME"] = str(place / "other")
                    if "database" in name or "rows" in name:
                        truth.check(tally, "on another host")
                DAMAGES[name](truth)
                truth.check(tally, name)
                truth.add(99)  # and it can be written on
                truth.check(tally, f"{name}, and one more run")
    return tally.outcome()


def crowd(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """Four processes end ``count`` runs each, and write the index at the same time, while this one selects."""
    tally = Tally()
    with _small(folder / "cache"):
        truth = Truth(folder / "archive", random.Random(seed))
        children = []
        for number in range(4):
            child = os.fork()
            if child == 0:
                try:
                    truth.draw = random.Random(f"{seed}-{number}")
                    for one in range(count or 25):
                        truth.add(1000 * number + one)
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(child)
        known = set(truth.runs)
        while children:
            done, status = os.waitpid(-1, os.WNOHANG)
            if done in children:
                children.remove(done)
                tally.check(status == 0, "a writer failed")
            tally.tries += 1
            found = {summary.run_id for summary in RunArchive(truth.root).summaries()}
            if known - found:
                tally.lose(f"{known - found} were there before")
            known = found
        tally.notes["runs"] = len(known)
        tally.check(len(known) == RUNS + 4 * (count or 25), f"{len(known)} runs in the end")
        runs = {run.id: (run.tags["t"], run.final_metric()) for run in truth.archive.runs()}
        truth.runs = {run_id: (tag, value) for run_id, (tag, value) in runs.items()}
        truth.check(tally, "after the crowd")
        quick = truth.archive.verify(quick=True)
        tally.check(quick.ok, f"the index is not sound: {quick.problems[:2]}")
    return tally.outcome()
