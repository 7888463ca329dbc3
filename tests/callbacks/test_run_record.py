"""What of several ranks and epochs stays in the record."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reuse_algos.archive import DatasetRecord, FileEntry, Manifest, RunArchive
from reuse_algos.callbacks.recorder.run_record import RunRecord

META = {"slot": 0, "view": 0, "source": "capture", "encoding": "dense", "num_classes": 2, "whole_epoch": True}


def test_epochs_between_two_commits_replace_each_other_on_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1's first epoch comes behind rank 0's second one in the list of files, and is older all the same."""
    archive = RunArchive(tmp_path / "archive", create=True)
    record = RunRecord.start(archive, "two ranks")
    other = archive.join_run(record.run_id, 1)
    ids = {0: torch.tensor([0, 2]), 1: torch.tensor([1, 3])}

    def rows(rank: int, epoch: int) -> dict[str, torch.Tensor]:
        return {"ids": ids[rank], "values": torch.full((2, 2), 10.0 * epoch + rank)}

    theirs = [other.put("signals", "logits", rows(1, epoch), {**META, "epoch": epoch, "rank": 1}) for epoch in (0, 1)]
    for epoch in (0, 1):
        record.put("signals", "logits", rows(0, epoch), **META, epoch=epoch)
    monkeypatch.setattr("reuse_algos.callbacks.recorder.run_record.on_every_rank", lambda work: [work(), theirs])

    def describe(files: list[FileEntry]) -> Manifest:
        return Manifest(files=files, dataset=DatasetRecord(name="toy", num_examples=4, fingerprint="f" * 64))

    record.commit(describe, lambda: None)
    values, seen = archive.run(record.run_id).signal("logits").dense(0)
    assert seen.tolist() == [True] * 4
    assert values[:, 0].tolist() == [10.0, 11.0, 10.0, 11.0]
