"""A Trainer that shards its model by FSDP (the second version, on two gloo ranks): what works, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forked_python import launch
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from toy import blobs, epoch_loader, mlp, trainer


@pytest.mark.ranks
def test_recorder_and_cached_teachers_work_with_fsdp_and_the_rest_is_refused(tmp_path: Path) -> None:
    teacher = RunRecorder(tmp_path, run_name="teacher", signals={"logits": {}})
    trainer(epoch_loader(blobs()), mlp(), callbacks=[teacher]).fit()
    done = launch(2, str(Path(__file__).parent / "ranks" / "shard.py"), str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "result.json").read_text())
    whole, sharded = found["whole"], found["sharded"]
    assert (whole["parts"], sharded["parts"]) == (False, True)
    assert len(sharded["losses"]["distillation"]) > 0
    for name, losses in whole["losses"].items():
        assert sharded["losses"][name] == pytest.approx(losses, rel=1e-4), name
    assert found["recorded"]["losses"] == found["plain"]["losses"], "a recorder changes nothing"
    assert found["plain"]["losses"]["loss/train/total"][-1] < found["plain"]["losses"]["loss/train/total"][0]

    runs = {run.run_name: run for run in RunArchive(tmp_path).runs(unfinished=True)}
    assert set(runs) == {"teacher", "whole", "sharded", "recorded"}, "what is refused leaves no run"
    for name in ("whole", "sharded"):
        signal = runs[name].signal("logits")
        assert [int(signal.seen(slot).sum()) for slot in signal.slots] == [64] * len(signal.slots)
        assert [use.run_id for use in runs[name].manifest.prior_runs] == [runs["teacher"].id]
    assert runs["sharded"].manifest.model.parameters == runs["whole"].manifest.model.parameters
    assert "weights: []" in found["weights"]
    assert "shards the model over its ranks" in found["weights"]
    assert "loads whole tensors" in found["warm start"]
    assert "without FSDP" in found["compression"]
