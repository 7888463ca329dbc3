"""The archives that the tests of the algorithms read, and do not write."""

from __future__ import annotations

import pytest

from replaying import make_archive
from reuse_algos.archive import RunArchive
from reuse_algos.harvest import harvest
from toy import mlp, record_run, viewed


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> RunArchive:
    """Two baseline runs on blobs, whose two views are harvested: logits, and features for heads."""
    path = tmp_path_factory.mktemp("archive")
    for seed in (1, 2):
        run_id = record_run(path, seed=seed, weights=("last", "best", "2ep"), epochs=6)
        harvest(path, run_id, signals=("logits", "features"), dataset=viewed(), model=mlp, progress=False)
    return RunArchive(path, create=True)


@pytest.fixture(scope="session")
def replays(tmp_path_factory: pytest.TempPathFactory) -> RunArchive:
    """Two runs on images, each with perturbations of our own making."""
    return make_archive(tmp_path_factory.mktemp("replays"))
