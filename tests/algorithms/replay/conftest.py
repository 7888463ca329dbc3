"""The archive of these tests is the one of runs on images, with perturbations."""

from __future__ import annotations

import pytest

from reuse_algos.archive import RunArchive


@pytest.fixture
def archive(replays: RunArchive) -> RunArchive:
    return replays
