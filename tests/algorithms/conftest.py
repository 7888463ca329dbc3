"""One archive for all tests of PriorRunDistillation, which only read it."""

from __future__ import annotations

import pytest

from reuse_algos.archive import RunArchive
from reuse_algos.harvest import harvest
from toy import mlp, record_run, viewed


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> RunArchive:
    """Two baseline runs whose two views are harvested."""
    path = tmp_path_factory.mktemp("archive")
    for seed in (1, 2):
        run_id = record_run(path, seed=seed, weights=("last", "best", "2ep"), epochs=6)
        harvest(path, run_id, dataset=viewed(), model=mlp, progress=False)
    return RunArchive(path, create=True)
