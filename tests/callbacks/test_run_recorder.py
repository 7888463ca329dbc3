"""RunRecorder in a real Trainer: what it keeps, when it commits, and that a resumed record is the straight one."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Callback, Evaluator, State
from composer.algorithms import EMA, SAM, CutOut, MixUp
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader

from forked_python import launch
from reuse_algos.algorithms import PriorRunDistillation
from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.example_ids import ExampleIds
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import ArchivePermissionError, ArchiveWarning, ExampleIdError
from reuse_algos.training.batch_keys import BatchKeys
from toy import NUM_CLASSES, DictModel, NoisyDataset, blobs, epoch_loader, mlp, record_run, trainer, viewed

ALL = {"logits": {}, "loss": {}, "correct": {}}


class Oracle(Callback):
    """Collects (epoch, view, id) -> (logits, target) beside the recorder, without its code."""

    def __init__(self) -> None:
        self.ids = ExampleIds()
        self.rows: dict[tuple[int, int, int], tuple[torch.Tensor, int]] = {}

    def run_event(self, event: Any, state: State, logger: Any) -> None:
        if event in ExampleIds.EVENTS:
            self.ids.handle(event, state)
        super().run_event(event, state, logger)

    def after_forward(self, state: State, logger: Any) -> None:
        examples = self.ids.microbatch
        for i, (position, view) in enumerate(zip(examples.positions.tolist(), examples.views.tolist(), strict=True)):
            row = state.outputs[i].detach().clone(), int(state.batch[1][i])
            self.rows[int(state.timestamp.epoch), view, position] = row


def _record(
    archive: Path, *, algorithms: Any = (), callbacks: Any = (), model: Any = None, fit: Any = None, **settings: Any
) -> PriorRun:
    recipe = settings.pop("recipe", None)
    recorder = RunRecorder(archive, **{"run_name": "run", **settings})
    recorder.recipe = recipe
    one = trainer(
        epoch_loader(viewed()),
        model or mlp(1),
        algorithms=list(algorithms),
        callbacks=[recorder, *callbacks],
        eval_dataloader=DataLoader(blobs(32, seed=9), batch_size=32),
        **{"max_duration": "4ep", **(fit or {})},
    )
    one.fit()
    assert recorder.run_id is not None
    return RunArchive(archive).run(recorder.run_id)


def test_signals_are_the_rows_of_the_forward_pass(tmp_path: Path) -> None:
    oracle = Oracle()
    signals = {"logits": {"last_epochs": 2}, "loss": {}, "correct": {"last_epochs": 1}}
    run = _record(tmp_path, callbacks=[oracle], signals=signals, fit={"device_train_microbatch_size": 4})
    assert (run.signal("logits").slots, run.signal("loss").slots, run.signal("correct").slots) == (
        [0, 1],
        [0, 1, 2, 3],
        [3],
    )
    for epoch in (2, 3):
        view = epoch % 2
        logits, seen = run.signal("logits").dense(view)
        assert bool(seen.all())
        expected = torch.stack([oracle.rows[epoch, view, i][0] for i in range(64)])
        assert torch.equal(logits, expected.half())
    for epoch in range(4):
        loss, _ = run.signal("loss").dense(epoch)
        logits = torch.stack([oracle.rows[epoch, epoch % 2, i][0] for i in range(64)])
        targets = torch.tensor([oracle.rows[epoch, epoch % 2, i][1] for i in range(64)])
        z = logits.double()
        by_hand = torch.logsumexp(z, 1) - z[torch.arange(64), targets]
        torch.testing.assert_close(loss.double(), by_hand, atol=1e-6, rtol=0)
    correct, _ = run.signal("correct").dense(3)
    assert correct.tolist() == (logits.argmax(1) == targets).int().tolist()


def test_top_k_logits(tmp_path: Path) -> None:
    oracle = Oracle()
    run = _record(tmp_path, callbacks=[oracle], signals={"logits": {"last_epochs": 2, "top_k": 2}})
    logits, _ = run.signal("logits").gather(torch.arange(64), torch.ones(64).long())
    expected = torch.stack([oracle.rows[3, 1, i][0] for i in range(64)])
    p, q = torch.softmax(expected, 1), torch.softmax(logits, 1)
    top = expected.topk(2).indices
    torch.testing.assert_close(p.gather(1, top), q.gather(1, top), atol=2e-3, rtol=0)


def test_metrics_weights_and_provenance(tmp_path: Path) -> None:
    class Truth(Callback):
        """Keeps what evaluation saw, and when."""

        rows: list[tuple[int, int, float]]
        weights: list[dict[str, torch.Tensor]]

        def __init__(self) -> None:
            self.rows, self.weights = [], []

        def eval_end(self, state: State, logger: Any) -> None:
            value = float(state.eval_metrics["eval"]["MulticlassAccuracy"].compute())
            self.rows.append((int(state.timestamp.batch), int(state.timestamp.sample), value))
            self.weights.append({name: value.clone() for name, value in state.model.state_dict().items()})

    truth = Truth()
    run = _record(
        tmp_path,
        callbacks=[truth],
        weights=("last", "best", "2ep"),
        tags={"method": "baseline"},
        recipe={"optimizer": {"lr": 0.1}},
        signals=ALL,
    )
    history = run.metric("metrics/eval/MulticlassAccuracy")
    assert list(zip(history.step.tolist(), history.sample.tolist(), history.value.tolist(), strict=True)) == truth.rows
    assert history.epoch.tolist() == [1, 2, 3, 4]
    assert np.all(np.diff(history.train_seconds) > 0)
    assert run.manifest.monitor == "metrics/eval/MulticlassAccuracy"
    assert run.metric("loss/train/total").value[-1] < run.metric("loss/train/total").value[0]
    best = int(np.argmax([value for _, _, value in truth.rows]))
    assert run.weight_names == ["best", "ep0002", "ep0004", "last"]
    for name, index in (("last", 3), ("best", best), ("2ep", 1), ("ep0004", 3)):
        archived = run.weights(name)
        assert archived.keys() == truth.weights[index].keys()
        assert all(torch.equal(value, truth.weights[index][key]) for key, value in archived.items())
    manifest = run.manifest
    assert run.finished
    assert (manifest.health, manifest.tags, manifest.seed) == ("ok", {"method": "baseline"}, 17)
    assert manifest.recipe == {"optimizer": {"lr": 0.1}}
    assert (manifest.progress.epoch, manifest.progress.batch, manifest.progress.sample) == (4, 16, 256)
    # Linear(6, 16) and Linear(16, 4), a multiply-add counted as two.
    assert manifest.model is not None
    assert manifest.model.flops_per_example == 2 * (6 * 16 + 16 * 4)
    assert manifest.cost.train_flops == 3 * 2 * (6 * 16 + 16 * 4) * 256
    assert manifest.model.num_parameters == 6 * 16 + 16 + 2 * 16 + 16 * 4 + 4
    assert manifest.dataset is not None
    assert (manifest.dataset.num_views, manifest.dataset.view_seed, manifest.dataset.transform) == (2, 3, "noise(0.3)")
    assert manifest.environment is not None
    assert manifest.environment.versions["torch"] == torch.__version__.split("+")[0]
    assert 0 < manifest.cost.overhead_seconds < manifest.cost.train_seconds + manifest.cost.eval_seconds + 5
    assert RunArchive(tmp_path).verify().ok


def test_recording_changes_nothing(tmp_path: Path) -> None:
    def weights(callbacks: list[Callback]) -> dict[str, torch.Tensor]:
        data = DataLoader(blobs(), batch_size=16, shuffle=True)  # global generators: order and views
        one = trainer(data, mlp(1), callbacks=callbacks, max_duration="3ep")
        one.fit()
        return one.state.model.state_dict()

    plain, recorded = weights([]), weights([RunRecorder(tmp_path, signals=ALL, weights=("best", "1ep"))])
    assert all(torch.equal(value, recorded[name]) for name, value in plain.items())


def test_views_of_random_augmentation_are_unknown(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, run_name="plain", signals={"logits": {"last_epochs": 1}})
    data = NoisyDataset(blobs())  # shows another example at each reading
    data.targets = data.dataset.tensors[1]  # type: ignore[attr-defined]
    trainer(DataLoader(data, batch_size=16, shuffle=True), mlp(1), callbacks=[recorder]).fit()
    run = RunArchive(tmp_path).run("plain")
    signal = run.signal("logits")
    assert signal.slots == [1]  # the epoch stands for the view
    assert signal.slot_meta(1)["view"] == -1
    assert run.manifest.dataset is not None
    assert run.manifest.dataset.transform == "unknown"


def test_data_without_augmentation_have_one_view(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, run_name="plain", signals={"logits": {"last_epochs": 1}})
    trainer(DataLoader(blobs(), batch_size=16, shuffle=True), mlp(1), callbacks=[recorder]).fit()
    run = RunArchive(tmp_path).run("plain")
    signal = run.signal("logits")
    assert signal.slots == [0]
    assert signal.slot_meta(0)["view"] == 0
    assert run.manifest.dataset is not None
    assert run.manifest.dataset.transform == "none"
    assert torch.equal(run.labels(), torch.arange(64) % NUM_CLASSES)  # type: ignore[arg-type]


def test_drop_last_leaves_rows_unseen(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, run_name="short", signals={"loss": {}})
    trainer(
        DataLoader(blobs(60), batch_size=16, drop_last=True), mlp(1), callbacks=[recorder], max_duration="1ep"
    ).fit()
    assert int(RunArchive(tmp_path).run("short").signal("loss").seen(0).sum()) == 48


def test_ema_weights_are_the_evaluated_ones(tmp_path: Path) -> None:
    class Evaluated(Callback):
        last: dict[str, torch.Tensor]

        def eval_batch_end(self, state: State, logger: Any) -> None:
            self.last = {name: value.clone() for name, value in state.model.state_dict().items()}

    seen = Evaluated()
    run = _record(tmp_path, algorithms=[EMA(half_life="4ba")], callbacks=[seen], weights=("last", "best"))
    assert all(torch.equal(value, seen.last[name]) for name, value in run.weights("last").items())


def test_evaluation_after_the_end_belongs_to_the_record(tmp_path: Path) -> None:
    run = _record(tmp_path, fit={"eval_interval": "1dur", "max_duration": "10ba"}, weights=("best", "last"))
    assert run.finished
    assert run.metric("metrics/eval/MulticlassAccuracy").step.tolist() == [10]
    assert run.weight_names == ["best", "last"]


def test_standalone_evaluation_is_not_recorded(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, run_name="run")
    data = DataLoader(blobs(32, seed=9), batch_size=32)
    one = trainer(epoch_loader(viewed()), mlp(1), callbacks=[recorder], eval_dataloader=data)
    one.fit()
    before = RunArchive(tmp_path).run("run").manifest
    one.eval(eval_dataloader=Evaluator(label="other", dataloader=data))
    assert RunArchive(tmp_path).run("run").manifest == before


@pytest.mark.parametrize(("lr", "health"), [(1e30, "diverged"), (0.1, "ok")])
def test_diverged_runs_are_kept_exactly_and_not_chosen(tmp_path: Path, lr: float, health: str) -> None:
    run = _record(tmp_path, fit={"lr": lr})
    archive = RunArchive(tmp_path, create=True)
    assert run.health == health
    assert [r.id for r in archive.runs()] == ([] if health == "diverged" else [run.id])
    assert [r.id for r in archive.runs(unhealthy=True)] == [run.id]
    if health == "diverged":
        assert math.isnan(run.metric("loss/train/total").value[-1])


def test_a_window_needs_a_duration_in_epochs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_duration=.* does not give the epochs"):
        _record(tmp_path, signals={"loss": {"last_epochs": 1}}, fit={"max_duration": "128sp"})


def test_data_without_identity_can_be_recorded_without_signals(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            return iter(blobs()[i] for i in range(64))

        def __len__(self) -> int:
            return 64

    recorder = RunRecorder(tmp_path, run_name="run")
    trainer(DataLoader(Stream(), batch_size=16), mlp(1), callbacks=[recorder], max_duration="4ba").fit()
    run = RunArchive(tmp_path).run("run")
    assert run.finished
    assert run.manifest.dataset is None
    algorithm = PriorRunDistillation(tmp_path, "run", source="live", loss="kl", when={})
    trainer(DataLoader(Stream(), batch_size=16), mlp(2), algorithms=[algorithm], max_duration="4ba").fit()
    assert algorithm.batches_applied == 4


def test_ids_in_the_batch_are_keys(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            x, y = blobs().tensors
            return iter({"x": x[i], "y": y[i], "id": 100 + i} for i in reversed(range(64)))

    info = DatasetInfo("stream", torch.arange(100, 164), torch.arange(64) % NUM_CLASSES)
    oracle = mlp(1)
    recorder = RunRecorder(
        tmp_path, run_name="run", signals={"correct": {}}, dataset=info, keys=BatchKeys(target="y", ids="id")
    )
    model = DictModel(oracle.module, num_classes=NUM_CLASSES)
    trainer(DataLoader(Stream(), batch_size=64), model, callbacks=[recorder], max_duration="1ba", lr=0.0).fit()
    run = RunArchive(tmp_path).run("run")
    with torch.no_grad():
        x, y = blobs().tensors
        expected = (mlp(1).train()((x, None)).argmax(1) == y).to(torch.uint8)
    assert torch.equal(run.signal("correct").dense(0)[0], expected)
    assert run.keys().tolist() == list(range(100, 164))


@pytest.mark.filterwarnings("ignore:SAM has known issues")
def test_flops_are_not_known_where_composer_changes_what_a_step_is(tmp_path: Path) -> None:
    """SAM sends every example through the model twice."""
    recorder = RunRecorder(tmp_path, run_name="run")
    trainer(epoch_loader(blobs()), mlp(1), algorithms=[SAM()], callbacks=[recorder], max_duration="1ba").fit()
    manifest = RunArchive(tmp_path).run("run").manifest
    assert manifest.model is not None
    assert manifest.model.flops_per_example == 2 * (6 * 16 + 16 * 4)
    assert manifest.cost.train_flops is None


def test_flops_of_torchs_own_transformer_layers_are_counted(tmp_path: Path) -> None:
    """In evaluation mode they take a fast kernel that torch's counter does not know. By hand: T = 3, D = 2, F = 4."""
    layer = nn.TransformerEncoderLayer(2, 2, dim_feedforward=4, dropout=0.0, batch_first=True)
    net = nn.Sequential(nn.Unflatten(1, (3, 2)), layer, nn.Flatten(), nn.Linear(6, NUM_CLASSES))
    model, recorder = ComposerClassifier(net, num_classes=NUM_CLASSES), RunRecorder(tmp_path, run_name="run")
    trainer(epoch_loader(blobs()), model, callbacks=[recorder], max_duration="1ba").fit()
    found = RunArchive(tmp_path).run("run").manifest.model
    projections, products, dense, head = 2 * 3 * 4 * 2 * 2, 2 * 2 * 3 * 3 * 2, 2 * 2 * 3 * 2 * 4, 2 * 6 * NUM_CLASSES
    assert found is not None
    assert found.flops_per_example == projections + products + dense + head
    assert torch.backends.mha.get_fastpath_enabled()


def test_flops_that_cannot_be_counted_stop_nothing(tmp_path: Path) -> None:
    class Odd(ComposerClassifier):
        """Cannot be copied."""

        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("there is only one")

    recorder = RunRecorder(tmp_path, run_name="run")
    model = Odd(mlp(1).module, num_classes=NUM_CLASSES)
    one = trainer(epoch_loader(blobs()), model, callbacks=[recorder], max_duration="1ba")
    with pytest.warns(ArchiveWarning, match="FLOPs of the model are not recorded"):
        one.fit()
    manifest = RunArchive(tmp_path).run("run").manifest
    assert manifest.model is not None
    assert (manifest.model.flops_per_example, manifest.cost.train_flops) == (None, None)


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keys": {"targets": "y"}}, "keys.targets: there is no such key. Did you mean 'target'"),
        ({"monitor": {"name": "loss"}}, "monitor.name: there is no such key"),
        ({"keys": "y"}, "keys: must be a section of keys, not 'y'"),
        ({"monitor": {"mode": "best"}}, "mode must be 'max' or 'min', not 'best'"),
        ({"weights": "often"}, "'often' is not 'init', 'last', 'best' or every n epochs"),
        ({"signals": {"logit": {}}}, "no signal 'logit' can be captured. Did you mean 'logits'"),
        ({"signals": {"loss": {"top_k": 3}}}, "unknown setting 'top_k'"),
        ({"signals": {"logits": {"last_epochs": 0}}}, "last_epochs must be a whole number above 0"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunRecorder(tmp_path, **settings)


def test_mixed_examples_have_no_signals(tmp_path: Path) -> None:
    with pytest.raises(ExampleIdError, match="MixUp mixes examples.*harvest"):
        _record(tmp_path, algorithms=[MixUp()], signals=ALL)
    assert RunArchive(tmp_path).run_ids() == []


def test_changed_inputs_are_no_known_view(tmp_path: Path) -> None:
    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 16

        def __getitem__(self, index: int) -> Any:
            return torch.ones(3, 8, 8), index % 4

    recorder = RunRecorder(tmp_path, run_name="run", signals={"logits": {}})
    model = ComposerClassifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), num_classes=4)
    trainer(epoch_loader(Images()), model, algorithms=[CutOut()], callbacks=[recorder], max_duration="1ep").fit()
    assert RunArchive(tmp_path).run("run").signal("logits").slot_meta(0)["view"] == -1


def test_archive_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file"):
        RunRecorder(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@contextmanager
def _nobody() -> Iterator[None]:
    """Without root's right to write everywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_read_only_archive() -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "archive"
        run_id = record_run(archive, epochs=1)
        files = {path: path.read_bytes() for path in archive.rglob("*") if path.is_file()}
        os.chmod(folder, 0o755)
        for path in archive.rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        archive.chmod(0o555)
        with _nobody():
            with pytest.raises(ArchivePermissionError, match="archive"):
                record_run(archive, epochs=1)
            assert RunArchive(archive).run(run_id).finished
        assert {path: path.read_bytes() for path in archive.rglob("*") if path.is_file()} == files


@pytest.mark.ranks
def test_two_ranks_record_what_one_does(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "ranks" / "record_and_distil.py"
    runs = {}
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        launch(ranks, str(script), str(folder), check=True)
        runs[ranks] = json.loads((folder / "result.json").read_text())
    one, two = runs[1], runs[2]
    assert one["keys"] == two["keys"]
    assert one["slots"] == two["slots"]
    assert one["seen"] == two["seen"]
    # Other batch-norm batches per rank: the examples must be the same, the numbers need not be.
    np.testing.assert_allclose(one["frozen_logits"], two["frozen_logits"], atol=2e-3)
    for source in ("cached", "live"):
        np.testing.assert_allclose(one["distillation"][source], two["distillation"][source], rtol=1e-4)
    np.testing.assert_allclose(two["distillation"]["cached"], two["distillation"]["live"], rtol=2e-3)
