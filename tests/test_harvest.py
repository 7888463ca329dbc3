"""Harvest: the archived model looks at its training data once more."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Callback, State
from composer.models import ComposerClassifier

from reuse_algos import cli, train
from reuse_algos.archive import DatasetRecord, Manifest, RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data import DataConfig, infer_info, load_datasets
from reuse_algos.data.views import ExampleView, ViewedDataset, ViewPolicy
from reuse_algos.errors import DataError, ModelError, PriorRunMismatchError, RunNotFoundError, SignalNotFoundError
from reuse_algos.harvest import Shards, harvest, load_run_data
from toy import NUM_CLASSES, blobs, epoch_loader, mlp, record_run, trainer, viewed


def _harvest(archive: Path, run_id: str, **arguments: Any) -> Any:
    (result,) = harvest(archive, run_id, **{"dataset": viewed(), "model": mlp, "progress": False, **arguments})
    return result


def test_logits_are_those_of_the_archived_model(tmp_path: Path) -> None:
    run_id = record_run(tmp_path, weights=("last", "2ep"))
    for weights, signal in (("last", "logits"), ("2ep", "logits.ep0002")):
        result = _harvest(tmp_path, run_id, weights=weights, batch_size=10)
        assert (result.signal, result.views, result.computed, result.rows) == (signal, [0, 1], [0, 1], 128)
        run = RunArchive(tmp_path).run(run_id)
        model = mlp()
        model.load_state_dict({name: value.clone() for name, value in run.weights(weights).items()})
        model.eval()
        data = viewed()
        for view in range(2):
            x = torch.stack([data[ExampleView(i, view)][0] for i in range(64)])
            with torch.no_grad():
                expected = model((x, None))
            values, seen = run.signal(signal).dense(view)
            assert bool(seen.all())
            assert torch.equal(values, expected.half())


class _Deployed(ComposerClassifier):
    """Gives probabilities as soon as it does not train."""

    def __init__(self) -> None:
        super().__init__(mlp().module, num_classes=NUM_CLASSES)

    def forward(self, batch: Any) -> torch.Tensor:
        logits = super().forward(batch)
        return logits if self.training else logits.softmax(1)


@pytest.mark.parametrize("signal", ["logits", "el2n", "grand_last_layer"])
def test_probabilities_of_a_model_that_learned_logits_are_not_harvested(tmp_path: Path, signal: str) -> None:
    run_id = record_run(tmp_path)
    with pytest.raises(ModelError, match="the archived model gives probabilities .* in evaluation mode"):
        _harvest(tmp_path, run_id, model=_Deployed, signals=(signal,))


def test_cost_is_recorded_and_the_record_stays_finished(tmp_path: Path) -> None:
    run_id = record_run(tmp_path)
    result = _harvest(tmp_path, run_id)
    run = RunArchive(tmp_path).run(run_id)
    (harvested,) = run.manifest.harvests
    assert (harvested.signal, harvested.views, harvested.weights) == ("logits", [0, 1], "last")
    assert 0 < harvested.seconds <= result.seconds
    assert run.finished
    assert RunArchive(tmp_path).verify().ok
    # The captured losses are still there; harvested logits stand in for captured ones.
    assert run.signal("loss").slots == [0, 1, 2, 3]
    assert run.signal("logits").slot_meta(0)["source"] == "harvest"


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    run_id = record_run(tmp_path)

    class Stops(ViewedDataset):
        """Fails in the second view."""

        def __getitem__(self, index: Any) -> Any:
            if index.view == 1 and index.position == 40:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    whole = viewed()
    broken = Stops(whole.dataset, whole.view_policy, whole.info)  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        _harvest(tmp_path, run_id, dataset=broken)
    run = RunArchive(tmp_path).run(run_id)
    assert [h.views for h in run.manifest.harvests] == [[0]]
    result = _harvest(tmp_path, run_id)
    assert (result.computed, result.views) == ([1], [0, 1])
    assert _harvest(tmp_path, run_id).computed == []
    run = RunArchive(tmp_path).run(run_id)
    assert [h.views for h in run.manifest.harvests] == [[0], [1]]
    assert [run.signal("logits").slot_meta(v)["source"] for v in (0, 1)] == ["harvest"] * 2


def test_global_generators_are_untouched(tmp_path: Path) -> None:
    run_id = record_run(tmp_path)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    _harvest(tmp_path, run_id)
    assert torch.equal(before, torch.get_rng_state())


def test_plain_run_gets_the_views_of_its_harvest(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, run_name="plain")
    trainer(epoch_loader(blobs()), mlp(1), callbacks=[recorder]).fit()
    data = ViewedDataset(blobs(), ViewPolicy(seed=7, num_views=1, transform="none"))
    # The wrapper must be the same data: its name is that of what it wraps.
    _harvest(tmp_path, "plain", dataset=data)
    record = RunArchive(tmp_path).run("plain").manifest.dataset
    assert record is not None
    assert (record.view_seed, record.transform) == (7, "none")


def test_data_without_augmentation_need_no_wrapper(tmp_path: Path) -> None:
    """They have one view; what draws at random is told from them by reading some examples twice."""
    recorder = RunRecorder(tmp_path, run_name="plain")
    trainer(epoch_loader(blobs()), mlp(1), callbacks=[recorder]).fit()

    class TensorDataset(type(blobs())):  # of the same name: that is part of what data are
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return image + 0.1 * torch.randn_like(image), label

    with pytest.raises(DataError, match="other examples each time that it is read"):
        _harvest(tmp_path, "plain", dataset=TensorDataset(*blobs().tensors))
    _harvest(tmp_path, "plain", dataset=blobs())
    plain = RunArchive(tmp_path).run("plain")
    signal = plain.signal("logits")
    assert signal.slots == [0]
    assert bool(signal.seen(0).all())
    assert plain.manifest.dataset is not None
    assert plain.manifest.dataset.transform == "none"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"signals": ["logit"]}, SignalNotFoundError, "no signal 'logit' can be harvested. Did you mean 'logits'"),
        ({"weights": "ep0099"}, SignalNotFoundError, "ep0099"),
        ({"dataset": None}, DataError, "has no recipe that says what its data were"),
        ({"dataset": viewed(48)}, PriorRunMismatchError, "was trained on blobs with 64 examples .* blobs with 48"),
        ({"dataset": viewed(num_views=0)}, DataError, "no numbered views"),
        (
            {"dataset": ViewedDataset(viewed().dataset, ViewPolicy(4, 2, "noise(0.3)"), viewed().info)},  # type: ignore[attr-defined]
            PriorRunMismatchError,
            r"views \(seed, transform\) \(3, 'noise\(0.3\)'\), the data at hand \(4",
        ),
        ({"model": lambda: mlp(hidden=8)}, PriorRunMismatchError, "do not fit the module"),
    ],
)
def test_bad_input(tmp_path: Path, arguments: Any, error: type[Exception], message: str) -> None:
    run_id = record_run(tmp_path, epochs=1)
    before = RunArchive(tmp_path).run(run_id).manifest
    with pytest.raises(error, match=message):
        _harvest(tmp_path, run_id, **arguments)
    assert RunArchive(tmp_path).run(run_id).manifest == before


def test_another_encoding_is_refused(tmp_path: Path) -> None:
    run_id = record_run(tmp_path)
    with pytest.raises(PriorRunMismatchError, match="keeps logits with top_k=None"):
        _harvest(tmp_path, run_id, top_k=2)
    assert RunArchive(tmp_path).run(run_id).signal("logits").slots == [0, 1]


def test_replacing_harvested_views_leaves_captured_ones_alone(tmp_path: Path) -> None:
    run_id = record_run(tmp_path, signals={"loss": {}})
    _harvest(tmp_path, run_id)
    result = _harvest(tmp_path, run_id, top_k=2, replace=True)
    run = RunArchive(tmp_path).run(run_id)
    assert (result.computed, run.signal("logits").encoding) == ([0, 1], "top_k")
    assert [h.views for h in run.manifest.harvests] == [[0, 1]]
    captured = record_run(tmp_path, seed=2)
    _harvest(tmp_path, captured)
    with pytest.raises(PriorRunMismatchError, match="keeps logits with top_k=None"):
        _harvest(tmp_path, captured, top_k=2, replace=True)
    assert RunArchive(tmp_path).verify().ok


def test_fewer_and_more_views_than_the_dataset_has(tmp_path: Path) -> None:
    run_id = record_run(tmp_path)
    assert _harvest(tmp_path, run_id, views=1).computed == [0]
    with pytest.raises(DataError, match="3 views are asked for, but the dataset has 2"):
        _harvest(tmp_path, run_id, views=3)


def test_a_run_that_still_trains_is_left_alone(tmp_path: Path) -> None:
    class Harvests(Callback):
        def epoch_end(self, state: State, logger: Any) -> None:
            if int(state.timestamp.epoch) == 2:
                with pytest.raises(PriorRunMismatchError, match="has not ended"):
                    _harvest(tmp_path / "archive", recorder.run_id or "", weights="1ep")

    recorder = RunRecorder(tmp_path / "archive", run_name="run", weights=("last", "1ep"))
    trainer(
        epoch_loader(viewed()),
        mlp(1),
        callbacks=[recorder, Harvests()],
        max_duration="3ep",
        save_folder=str(tmp_path / "checkpoints"),
    ).fit()
    assert RunArchive(tmp_path / "archive").run("run").finished


def test_unknown_run(tmp_path: Path) -> None:
    run_id = record_run(tmp_path, epochs=1)
    with pytest.raises(RunNotFoundError, match=run_id):
        _harvest(tmp_path, run_id[:-1])


def test_files_are_opened_on_the_callers_word_only(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    arrays = {f"x_{part}": numbers.integers(0, 256, (8, 8, 8), dtype=np.uint8) for part in ("train", "test")}
    np.savez(tmp_path / "a.npz", **arrays, y_train=np.arange(8) % 2, y_test=np.arange(8) % 2)
    data = {"name": "npz", "path": str(tmp_path / "a.npz"), "batch_size": 4, "image_size": 8}
    info = infer_info(load_datasets(DataConfig(**data)).train)
    archive = RunArchive(tmp_path / "archive", create=True)
    writer = archive.start_run("npz")
    record = DatasetRecord(
        name="npz", num_examples=8, fingerprint=info.fingerprint, key_fingerprint=info.key_fingerprint
    )
    examples = writer.put("dataset", "examples", {"keys": info.keys})
    writer.commit(Manifest(recipe={"data": data}, dataset=record, files=[examples]))
    writer.finish()
    run = archive.run("npz")
    assert load_run_data(run, trust_data=True).info.num_examples == 8
    assert load_run_data(run, data).info.num_examples == 8
    with pytest.raises(DataError, match=r"'npz' \(name=npz, image_size=8\).*--trust-data.*--data name=npz --data"):
        load_run_data(run)
    with pytest.raises(DataError, match="image_size=8"):
        load_run_data(run, {"name": "npz", "path": data["path"]})
    with pytest.raises(DataError, match=r"data\.rot: unknown setting.*root"):
        load_run_data(run, {**data, "rot": "x"})


def test_shards_are_put_together_in_one_commit_with_the_bytes_of_one_process(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    one, other = record_run(tmp_path / "archive", seed=1), record_run(tmp_path / "archive", seed=1)
    given = {"dataset": viewed(), "model": mlp, "progress": False, "batch_size": 10, "replace": True}
    harvest(archive, one, **given)
    for shard in (0, 2):  # 7 batches: parts of 2, 2, 2 and 1
        harvest(archive, other, **given, shards=Shards(tmp_path / "parts", 4, shard))
    before = archive.run(other).manifest
    assert before.generation == archive.run(other).manifest.generation
    assert len(list((tmp_path / "parts").iterdir())) == 4  # two parts of two views
    (torn,) = (tmp_path / "parts").glob("*-0-00002.safetensors")
    kept = torn.read_bytes()
    torn.write_bytes(kept[:-8])
    with pytest.raises(DataError, match="is not a part of a harvest"):
        harvest(archive, other, **given, shards=Shards(tmp_path / "parts", 4))
    torn.write_bytes(kept)
    with pytest.raises(PriorRunMismatchError, match="a part of another harvest: batch_size"):
        harvest(archive, other, **{**given, "batch_size": 20}, shards=Shards(tmp_path / "parts", 4))
    (result,) = harvest(archive, other, **given, shards=Shards(tmp_path / "parts", 4))
    assert (result.rows, result.computed) == (128, [0, 1])
    hashes = []
    for run in (one, other):
        files = archive.run(run).manifest.files
        hashes.append(sorted(file.sha256 for file in files if (file.kind, file.name) == ("signals", "logits")))
    assert len(hashes[0]) >= 2
    assert hashes[0] == hashes[1]
    assert list((tmp_path / "parts").iterdir()) == []
    with pytest.raises(ValueError, match="cannot be harvested in shards"):
        harvest(archive, one, signals=["adversarial"], shards=Shards(tmp_path / "parts", 2))
    with pytest.raises(ValueError, match="a shard is from 0 to 1"):
        Shards(tmp_path, 2, 2)


@pytest.mark.usefixtures("forked")
def test_a_launcher_computes_the_parts_and_names_one_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command: parts in processes of their own, one commit with the bytes of one process."""
    for name in ("one", "other"):
        small = [
            f"archive={tmp_path / name}",
            "seed=1",
            "data.train_examples=60",
            "max_duration=1ep",
            "device=cpu",
            "scheduler=null",
        ]
        assert train.main(["digits/baseline", *small, "run_name=digits"]) == 0
    parts = ["--shards", "3", "--parts", str(tmp_path / "parts"), "--launcher", "local", "--jobs", "2"]
    options = ["--batch-size", "10", "--device", "cpu", "--replace"]
    assert cli.main(["harvest", str(tmp_path / "one"), "digits", *options]) == 0
    assert cli.main(["harvest", str(tmp_path / "other"), "digits", *options, *parts]) == 0
    hashes = []
    for name in ("one", "other"):
        (run,) = RunArchive(tmp_path / name).runs()
        files = run.manifest.files
        hashes.append(sorted(file.sha256 for file in files if (file.kind, file.name) == ("signals", "logits")))
    assert hashes[0] == hashes[1] != []
    assert list((tmp_path / "parts").iterdir()) == []

    capsys.readouterr()
    assert cli.main(["harvest", str(tmp_path / "other"), "digits", *options, *parts, "--weights", "ep0009"]) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"part \d of the harvest failed \(exit status 2\)[\s\S]*ep0009[\s\S]*goes on with the others", said
    )
    one_part = ["--shards", "3", "--shard", "1", "--parts", str(tmp_path / "parts")]
    assert cli.main(["harvest", str(tmp_path / "other"), "digits", *options, *one_part]) == 0
    assert "part 1 of 1 views is in" in capsys.readouterr().out
    assert cli.main(["harvest", str(tmp_path / "other"), "digits", "--launcher", "local"]) == 2
    assert "--launcher belong to --shards N" in capsys.readouterr().err
