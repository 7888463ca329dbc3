"""Row 14: an object store that fails, forbids, hangs up, tears, loses its answers, or replaces what it should not."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

from reuse_algos.archive import RunArchive, open_store
from reuse_algos.errors import (
    ArchiveConflictError,
    ArchiveCorruptError,
    ArchiveError,
    ArchivePermissionError,
    ArchiveWarning,
)

from ..faulty_proxy import FAULTS, FaultyProxy, Request, ignore_conditions
from ..moto_server import MotoServer
from ..small_runs import MONITOR, manifest_of, put_files
from .outcome import Outcome, Tally, spread

GENERATIONS = 2
LARGE = (17 << 20) + 5  # goes up in two parts
Commit = tuple[str, int]
"""Id of a run, and a generation whose commit was acknowledged."""

Fault = Callable[[Request], str | None]


def case(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """Each fault at each request of a run that is recorded, selected and read, and of a large upload.

    Args:
        folder: For the cache of fetched files.
        count: How many of them; None for all.
        seed: Which.
    """
    tally = Tally()
    server = MotoServer()
    try:
        with serving(server, folder) as faulty:
            _each_request(faulty, count, seed, tally)
            _changed_bytes(faulty, count, seed, tally)
            _large_uploads(faulty, count, seed, tally)
        with serving(server, folder, change=ignore_conditions) as faulty:
            _without_conditions(faulty, tally)
    finally:
        server.close()
    return tally.outcome()


@dataclass
class Faulty:
    """A server, a proxy before it, and a folder for caches of fetched files."""

    server: MotoServer
    proxy: FaultyProxy
    folder: Path

    def fresh(self, fault: Fault = lambda request: None) -> str:
        """An empty place for an archive, under a fault; nothing of what was fetched before is in a cache."""
        self.proxy.reset()
        os.environ["XDG_CACHE_HOME"] = str(self.folder / secrets.token_hex(6))
        location = f"s3://{self.server.new_bucket()}/archive"
        self.proxy.reset(fault)
        return location


@contextmanager
def serving(
    server: MotoServer, folder: Path, *, change: Callable[[Request], None] = lambda request: None
) -> Iterator[Faulty]:
    """A proxy before a server, as the environment names it, with credentials."""
    proxy = FaultyProxy(server.port, change=change)
    settings = {**server.environment, "AWS_ENDPOINT_URL": proxy.url, "XDG_CACHE_HOME": str(folder)}
    others = [name for name in os.environ if name.startswith(("AWS_", "S3_"))]
    with mock.patch.dict(os.environ, settings):
        for name in others:
            if name not in settings:
                del os.environ[name]
        try:
            yield Faulty(server, proxy, folder)
        finally:
            proxy.close()


def write_and_read(location: str, acknowledge: Callable[[str, int], None]) -> None:
    """Commit a run in two generations, select it as another process would, and read all of it."""
    writer = RunArchive(location, create=True).start_run("toy")
    for epoch in range(GENERATIONS):
        files = put_files(writer, values=[0.25 * (epoch + 1)] * (epoch + 1), epoch=epoch)
        acknowledge(writer.run_id, writer.commit(manifest_of(files, seed=epoch)).generation)
    writer.finish()
    read(location, writer.run_id, GENERATIONS)


class WrongDataError(Exception):
    """What was read is not what was written, and no error said so."""


def read(location: str, run_id: str, generation: int) -> None:
    """Read a run from another store object, and compare it with what :func:`write_and_read` wrote."""
    (run,) = RunArchive(location, read_only=True).runs(unfinished=True)
    epoch = generation - 1
    generator = torch.Generator().manual_seed(epoch)
    logits = torch.randn(12, 5, generator=generator).half()
    weight = torch.randn(3, 4, generator=generator)
    right = (
        run.id == run_id
        and run.manifest.generation == generation
        and run.metric(MONITOR).value.tolist() == [0.25 * generation] * generation
        and torch.equal(run.weights()["layer.weight"], weight)
        and torch.equal(run.signal("logits").dense(epoch)[0], logits)
    )
    if not right:
        raise WrongDataError(f"{location}: {run_id} at generation {generation}")


def _try(faulty: Faulty, fault: Fault) -> tuple[Exception | None, list[str], list[Commit], str]:
    """Write and read under a fault: what was raised, what was warned of, what was acknowledged, and where it was."""
    commits: list[Commit] = []
    location = faulty.fresh(fault)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            write_and_read(location, lambda *commit: commits.append(commit))
        except Exception as error:
            return error, [str(warning.message) for warning in caught], commits, location
    return None, [str(warning.message) for warning in caught], commits, location


def _afterwards(faulty: Faulty, location: str, commits: list[Commit], tally: Tally, when: str) -> None:
    """All that was acknowledged is there, nothing half there, and the archive can be used."""
    faulty.proxy.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ArchiveWarning)
        try:
            archive = RunArchive(location, create=True)
            for problem in archive.verify().problems:
                tally.tear(f"{when}, afterwards: {problem}")
            if commits:
                run_id, acknowledged = commits[-1]
                read(location, run_id, max(acknowledged, archive.run(run_id).manifest.generation))
            writer = archive.start_run("next")
            writer.commit(manifest_of(put_files(writer)))
        except WrongDataError as error:
            tally.tear(f"{when}, afterwards: {error!r}")
        except Exception as error:
            tally.lose(f"{when}, afterwards: {error!r}")


def _each_request(faulty: Faulty, count: int | None, seed: int, tally: Tally) -> None:
    """One fault, once: it is survived, unless access was denied, which is said to be so."""
    error, *_ = _try(faulty, lambda request: None)
    if error is not None:
        raise error
    total = len(faulty.proxy.requests)
    tally.notes["requests of the script"] = total
    pairs = [(fault, number) for fault in FAULTS for number in range(total)]
    for fault, number in (pairs[at] for at in spread(len(pairs), count, seed)):
        tally.tries += 1
        when = f"{fault} at request {number}"
        error, warned, commits, location = _try(
            faulty, lambda request, fault=fault, number=number: fault if request.number == number else None
        )
        said = [str(error), *warned]
        if isinstance(error, WrongDataError):
            tally.tear(f"{when}: {error}")
        elif fault == "403":
            # That a writer's mark of being alive could not be removed need not be said: it goes stale by itself. Nor
            # that it could not list the runs for the index, which is a cache; a reader that cannot list them raises.
            request = faulty.proxy.requests[number]
            unsaid = request.method == "POST" or "prefix=archive%2Fruns%2F&" in f"{request.path}&"
            denied = isinstance(error, ArchivePermissionError) or any("permission denied" in text for text in said)
            good = denied or (unsaid and error is None)
            tally.check(good, f"{when}: {error!r} {warned}")
        else:
            tally.check(error is None and not warned, f"{when}: {error!r} {warned}")
        _afterwards(faulty, location, commits, tally, when)


def _changed_bytes(faulty: Faulty, count: int | None, seed: int, tally: Tally) -> None:
    """Bytes that change on their way up or down are noticed; up, and down into the cache, they are sent again."""
    _try(faulty, lambda request: None)
    objects = [request for request in faulty.proxy.requests if "?" not in request.path]
    places = [request.number for request in objects if request.method in ("PUT", "GET")]
    for number in (places[at] for at in spread(len(places), count, seed)):
        tally.tries += 1

        def fault(request: Request, number: int = number) -> str | None:
            return ("corrupt" if request.method == "PUT" else "corrupt answer") if request.number == number else None

        error, warned, commits, location = _try(faulty, fault)
        when = f"changed bytes at request {number}"
        if isinstance(error, WrongDataError):
            tally.tear(f"{when}: {error}")
        else:
            # A sealed record is read once: it says itself that it is damaged, and the run is left out.
            left_out = any("is damaged" in text for text in warned)
            good = (
                error is None or isinstance(error, ArchiveCorruptError) or (left_out and isinstance(error, ValueError))
            )
            tally.check(good, f"{when}: {error!r} {warned}")
        _afterwards(faulty, location, commits, tally, when)


def _large_uploads(faulty: Faulty, count: int | None, seed: int, tally: Tally) -> None:
    """A large upload that fails or is cut off at any request is complete or not there, and can be done again."""
    data = bytes(range(256)) * (LARGE // 256) + bytes(LARGE % 256)

    def upload(fault: Fault) -> tuple[ArchiveError | None, bytes | None, str]:
        location = faulty.fresh(fault)
        try:
            open_store(location, create=True, read_only=False).put_if_absent("large", [memoryview(data)])
            error = None
        except ArchiveError as found:
            error = found
        faulty.proxy.fault = lambda request: None
        store = open_store(location, create=True, read_only=True)
        there = b"".join(store.stream("large")) if store.size("large") is not None else None
        return error, there, location

    upload(lambda request: None)
    total = len(faulty.proxy.requests)
    faults = [*FAULTS, "corrupt", "killed"]
    sends = [request.method == "PUT" for request in faulty.proxy.requests]
    pairs = [(fault, number) for fault in faults for number in range(total) if fault != "corrupt" or sends[number]]
    for fault, number in (pairs[at] for at in spread(len(pairs), count, seed)):
        tally.tries += 1
        when = f"large upload, {fault} at request {number}"

        def at(request: Request, fault: str = fault, number: int = number) -> str | None:
            if fault == "killed":
                return "reset" if request.number >= number else None
            return fault if request.number == number else None

        error, there, location = upload(at)
        if there not in (None, data):
            tally.tear(f"{when}: {len(there or b'')} bytes are there, {error!r}")
        elif error is None and there is None:
            tally.lose(when)
        elif fault == "403":
            tally.check(error is None or isinstance(error, ArchivePermissionError), f"{when}: {error!r}")
        else:
            tally.check(error is None or fault == "killed", f"{when}: {error!r}")
            tally.check(not isinstance(error, ArchiveConflictError), f"{when}: {error!r}")
        if there is None:
            faulty.proxy.reset()
            open_store(location, create=True, read_only=False).put_if_absent("large", [data])


def _without_conditions(faulty: Faulty, tally: Tally) -> None:
    """A store that ignores If-None-Match is used, and it is said once that two writers are not kept apart."""
    tally.tries += 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = open_store(faulty.fresh(), create=True, read_only=False)
        store.put_if_absent("a", [b"first"])
        store.put_if_absent("b", [b"other"])
        for content in (b"first", b"second"):
            try:
                store.put_if_absent("a", [content])
                tally.miss("a store without If-None-Match: an object was replaced")
            except ArchiveConflictError:
                pass
        if store.get("a", 9) != b"first":
            tally.tear("a store without If-None-Match: an object was replaced")
    said = [warning for warning in caught if "one writer per run only" in str(warning.message)]
    tally.check(len(said) == 1, f"a store without If-None-Match: {len(said)} warnings")
