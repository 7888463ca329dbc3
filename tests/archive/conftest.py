"""An isolated archive, and small but complete runs to put in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pytest

from reuse_algos.archive import RunArchive

from .small_runs import (
    MONITOR,
    NUM_CLASSES,
    NUM_EXAMPLES,
    files_below,
    history,
    manifest_of,
    put_files,
    rewrite,
    use_everything,
)

__all__ = [
    "MONITOR",
    "NUM_CLASSES",
    "NUM_EXAMPLES",
    "MakeRun",
    "files_below",
    "history",
    "manifest_of",
    "put_files",
    "rewrite",
    "use_everything",
]


@pytest.fixture(autouse=True)
def _own_verification_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("reuse_algos.archive.stores.cache._seen", set())


@pytest.fixture(autouse=True)
def _no_real_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk would take most of the time; the simulated power loss shows that the syncs are right."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def archive(tmp_path: Path) -> RunArchive:
    return RunArchive(tmp_path / "archive", create=True)


class MakeRun(Protocol):
    def __call__(
        self,
        run_name: str = "toy",
        *,
        values: Sequence[float] = (0.5, 0.75),
        finished: bool = True,
        created_at: str | None = None,
        **fields: object,
    ) -> str: ...


@pytest.fixture
def make_run(archive: RunArchive) -> MakeRun:
    """Commit a small run and return its id."""

    def make(
        run_name: str = "toy",
        *,
        values: Sequence[float] = (0.5, 0.75),
        finished: bool = True,
        created_at: str | None = None,
        **fields: object,
    ) -> str:
        writer = archive.start_run(run_name, created_at=created_at)
        writer.commit(manifest_of(put_files(writer, values), **fields))
        if finished:
            writer.finish()
        return writer.run_id

    return make
