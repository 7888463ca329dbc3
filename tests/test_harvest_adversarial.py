"""Harvested perturbations: against the same made by hand, resumed, replaced, refused, and by the command."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from reuse_algos import train
from reuse_algos.archive import PriorRun, RunArchive, RunWriter, dequantize, quantize
from reuse_algos.archive.signals.rows import TENSORS
from reuse_algos.cli import main
from reuse_algos.data import DataConfig, ExampleView, ViewedDataset, ViewPolicy, load_datasets
from reuse_algos.data.images.device_loader import DeviceImages, WorkerImages
from reuse_algos.errors import DataError, PriorRunMismatchError, SignalNotFoundError
from reuse_algos.harvest import HarvestResult, harvest
from reuse_algos.models import build_model
from reuse_algos.training.attacks import Attack, perturb, pixel_room, random_targets
from toy import mlp, record_run, viewed

N, VIEWS = 200, 2
DATA = {"name": "digits", "train_examples": N, "batch_size": 20, "augment": "crop", "num_views": VIEWS}
BASELINE = Path(__file__).parents[1] / "yamls/digits/baseline.yaml"
STRONG = Attack("pgd", 0.1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with one run of a recipe: 200 digits in two views."""
    archive = tmp_path_factory.mktemp("recorded") / "archive"
    changes = [f"data.{key}={value}" for key, value in DATA.items()]
    signals = "callbacks={run_recorder: {weights: [last, 3ep]}}"
    quiet = [f"archive={archive}", "device=cpu", "progress_bar=false", "run_name=digits", "max_duration=8ep"]
    assert train.main([str(BASELINE), *changes, *quiet, signals]) == 0
    return archive


@pytest.fixture
def archive(recorded: Path, tmp_path: Path) -> Path:
    return shutil.copytree(recorded, tmp_path / "archive")


def adversarial(archive: Path, attack: Attack | None = STRONG, **arguments: Any) -> HarvestResult:
    (result,) = harvest(
        archive, "digits", signals=["adversarial"], attack=attack, progress=False, device="cpu", **arguments
    )
    return result


def the_run(archive: Path) -> PriorRun:
    return RunArchive(archive).run("digits")


def images(**changes: Any) -> DeviceImages:
    data = load_datasets(DataConfig(**{**DATA, **changes})).train
    assert isinstance(data, DeviceImages)
    return data


def model_of(run: PriorRun, weights: str = "last") -> nn.Module:
    record = run.manifest.model
    assert record is not None
    assert record.config is not None
    model = build_model(record.config)
    model.load_state_dict({name: value.clone() for name, value in run.weights(weights).items()})
    return model.module.eval()  # type: ignore[union-attr,return-value]


def view_of(data: DeviceImages, view: int) -> tuple[Tensor, Tensor]:
    return data.__getitems__([ExampleView(i, view) for i in range(len(data))])


def rows_of(run: PriorRun, view: int, name: str = "adversarial") -> Tensor:
    rows, seen = run.signal(name).dense(view)
    assert bool(seen.all())
    return rows


def wrong_rate(model: nn.Module, data: DeviceImages, x: Tensor, y: Tensor, delta: Tensor) -> float:
    right = model(x).argmax(1) == y
    fooled = (model(data.pixel_space.add(x, delta)).argmax(1) != y) & right
    return int(fooled.sum()) / int(right.sum())


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize(
    "attack",
    [STRONG, Attack("fgsm", 0.1), Attack("pgd", 0.6, norm="l2"), Attack("pgd", 0.2, targeted="random", seed=3)],
    ids=Attack.describe,
)
def test_rows_are_those_made_by_hand(archive: Path, attack: Attack, bits: int | None) -> None:
    result = adversarial(archive, attack, bits=bits)
    kept_bits = bits or (8 if attack.norm == "l2" else 2)
    run, data = the_run(archive), images()
    model, keys = model_of(run), data.info.keys
    signal = run.signal("adversarial")
    assert (result.views, result.computed, result.rows) == ([0, 1], [0, 1], 2 * N)
    assert (signal.slots, signal.row_shape, signal.row_format.bits) == ([0, 1], (1, 8, 8), kept_bits)
    assert signal.nbytes == 2 * N * (64 * kept_bits // 8 + 4)
    for view in range(VIEWS):
        x, y = view_of(data, view)
        views = torch.full_like(keys, view)
        exact = perturb(model, x, y, attack, data.pixel_space, keys_B=keys, views_B=views)
        packed = quantize(exact, kept_bits, norm=attack.norm, room=pixel_room(x, data.pixel_space))
        kept = dequantize(packed["values"], packed["scale"], kept_bits, (1, 8, 8))
        torch.testing.assert_close(rows_of(run, view), kept, rtol=0, atol=0)
        meta = signal.slot_meta(view)
        if attack.targeted == "none":
            rates = [wrong_rate(model, data, x, y, delta) for delta in (exact, kept)]
        else:
            targets = random_targets(attack.seed, y, 10, keys, views)
            shown = [data.pixel_space.add(x, delta) for delta in (exact, kept)]
            rates = [float((model(one).argmax(1) == targets).double().mean()) for one in shown]
        assert [meta["success"], meta["success_quantized"]] == pytest.approx(rates, abs=1e-12)
        right = round(meta["clean_accuracy"] * N)
        foolable = right if attack.targeted == "none" else N
        assert [meta["num_examples"], meta["num_correct"], meta["num_foolable"]] == [N, right, foolable]
        fooled = [meta["num_fooled"] / foolable, meta["num_fooled_quantized"] / foolable]
        assert fooled == [meta["success"], meta["success_quantized"]]
        assert meta["clean_accuracy"] == pytest.approx(float((model(x).argmax(1) == y).double().mean()), abs=1e-12)
        said = {
            "attack": attack.method, "attack_settings": attack.describe(), "epsilon": attack.epsilon,
            "norm": attack.norm, "steps": attack.num_steps, "step_size": attack.step, "targeted": attack.targeted,
            "bits": kept_bits, "shape": "1x8x8", "encoding": "packed", "source": "harvest", "weights": "last",
            "view": view, "epoch": 8, "transform": "crop(padding=1)", "attack_seed": attack.seed,
            "pixel_mean": repr(data.pixel_space.mean[0]), "pixel_std": repr(data.pixel_space.std[0]),
        }  # fmt: skip
        assert {key: meta[key] for key in said} == said
    assert result.rates["success"] > (0.2 if attack.targeted == "random" else 0.5)
    assert RunArchive(archive).verify().ok
    assert run.finished


@pytest.mark.parametrize("attack", [STRONG, Attack("fgsm", 0.1), Attack("pgd", 0.6, norm="l2")], ids=Attack.describe)
def test_the_default_number_of_bits_keeps_95_percent_of_the_success(archive: Path, attack: Attack) -> None:
    rates = adversarial(archive, attack).rates
    assert rates["success"] > 0.5
    assert rates["success_quantized"] >= 0.95 * rates["success"]


def test_two_bits_without_regard_for_the_edge_of_the_range_would_not(archive: Path) -> None:
    """Why the room is given: black pixels, which are most of a digit, would be pulled up."""
    run, data = the_run(archive), images()
    model = model_of(run)
    x, y = view_of(data, 0)
    exact = perturb(model, x, y, Attack("pgd", 0.05), data.pixel_space, keys_B=data.info.keys)
    rates = [wrong_rate(model, data, x, y, exact)]
    for room in (pixel_room(x, data.pixel_space), None):
        packed = quantize(exact, 2, room=room)
        kept = dequantize(packed["values"], packed["scale"], 2, (1, 8, 8))
        rates.append(wrong_rate(model, data, x, y, kept))
    assert rates[1] >= 0.95 * rates[0] > rates[2]


def test_the_cost_is_recorded(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes while images are read and while a run is committed."""
    clock, read, commit = [0.0], [0, 0], RunWriter.commit

    class Slow(WorkerImages):
        def __getitems__(self, indices: Any) -> Any:
            clock[0] += 100.0
            read[indices[0].view] += 1
            return super().__getitems__(indices)

    def slow_commit(*arguments: Any, **options: Any) -> Any:
        clock[0] += 7.0
        return commit(*arguments, **options)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(RunWriter, "commit", slow_commit)
    result = adversarial(archive, dataset=Slow(images()))
    (record,) = [h for h in the_run(archive).manifest.harvests if h.signal == "adversarial"]
    assert (record.views, record.weights) == ([0, 1], "last")
    signal = the_run(archive).signal("adversarial")
    # The run is resumed before the first view, which is committed before the second one; the last commit comes on top.
    assert sum(signal.slot_meta(view)["seconds"] for view in range(VIEWS)) == record.seconds == 100.0 * sum(read) + 14.0
    assert result.seconds == record.seconds + 7.0


def test_the_seconds_of_an_interrupted_view_are_counted(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the same call completed a view, whose cost they are added to; a first view leaves no trace."""
    from reuse_algos.harvest import harvest_store

    class Slow(Stops):
        first = False

        def __getitems__(self, indices: Any) -> Any:
            if indices[0].view == 1 or self.first:
                clock[0] += 1000.0
                raise KeyboardInterrupt
            return super().__getitems__(indices)

    clock = [0.0]
    original = harvest_store.time.perf_counter
    monkeypatch.setattr(harvest_store.time, "perf_counter", lambda: original() + clock[0])
    before = the_run(archive).manifest
    slow = Slow(images())
    slow.first = True
    with pytest.raises(KeyboardInterrupt):
        adversarial(archive, dataset=slow)
    assert the_run(archive).manifest == before
    with pytest.raises(KeyboardInterrupt):
        adversarial(archive, dataset=Slow(images()))
    (record,) = [h for h in the_run(archive).manifest.harvests if h.signal == "adversarial"]
    assert record.views == [0]
    assert record.seconds > 1000
    assert the_run(archive).signal("adversarial").slot_meta(0)["seconds"] < 1000
    assert the_run(archive).finished
    adversarial(archive)
    assert [h.views for h in the_run(archive).manifest.harvests if h.signal == "adversarial"] == [[0], [1]]


def test_nothing_of_the_model_or_of_generators_moves(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reuse_algos.harvest import passes

    made: list[nn.Module] = []

    def archived_model(*args: Any, **kwargs: Any) -> nn.Module:
        made.append(original(*args, **kwargs))
        return made[-1]

    original = passes.archived_model
    monkeypatch.setattr(passes, "archived_model", archived_model)
    before = torch.get_rng_state()
    adversarial(archive, Attack("pgd", 0.1, targeted="random"))
    assert torch.equal(before, torch.get_rng_state())
    (model,) = made
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    archived = the_run(archive).weights()
    state = model.state_dict()
    assert any("running_mean" in name for name in state)
    assert all(torch.equal(state[name], archived[name]) for name in state)


class Stops(WorkerImages):
    """Fails in the second view."""

    def __getitems__(self, indices: Any) -> Any:
        if indices[0].view == 1:
            raise KeyboardInterrupt
        return super().__getitems__(indices)


def test_goes_on_where_it_stopped(archive: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(archive, tmp_path / "whole")
    adversarial(whole)
    with pytest.raises(KeyboardInterrupt):
        adversarial(archive, dataset=Stops(images()))
    assert the_run(archive).signal("adversarial").slots == [0]
    result = adversarial(archive)
    assert (result.computed, result.views) == ([1], [0, 1])
    assert adversarial(archive).computed == []
    assert [h.views for h in the_run(archive).manifest.harvests if h.signal == "adversarial"] == [[0], [1]]
    for view in range(VIEWS):
        assert torch.equal(rows_of(the_run(archive), view), rows_of(the_run(whole), view))


def test_batches_of_any_size_make_the_same(archive: Path, tmp_path: Path) -> None:
    other = shutil.copytree(archive, tmp_path / "other")
    adversarial(archive)
    adversarial(other, batch_size=33, data={"device_resident": False})
    for view in range(VIEWS):
        same = rows_of(the_run(archive), view) == rows_of(the_run(other), view)
        assert float(same.float().mean()) > 0.999  # a sum in another order may turn the sign of a gradient of 0


def test_other_weights_stand_beside_the_last(archive: Path) -> None:
    adversarial(archive)
    result = adversarial(archive, weights="3ep")
    assert result.signal == "adversarial.ep0003"
    run = the_run(archive)
    assert run.signal("adversarial.ep0003").slot_meta(0)["epoch"] == 3
    assert not torch.equal(rows_of(run, 0), rows_of(run, 0, "adversarial.ep0003"))


@pytest.mark.parametrize(
    ("attack", "bits", "there", "asked"),
    [
        (Attack("pgd", 0.05), None, "pgd.linf, epsilon=0.1, .* in 2 bits", "pgd.linf, epsilon=0.05, .* in 2 bits"),
        (Attack("fgsm", 0.1), None, "pgd", "fgsm.linf, epsilon=0.1. in 2 bits"),
        (STRONG, 4, "in 2 bits", "in 4 bits"),
        (Attack("pgd", 0.1, seed=1), None, "seed=0", "seed=1"),
    ],
)
def test_another_attack_is_refused_unless_it_is_to_replace(
    archive: Path, attack: Attack, bits: int | None, there: str, asked: str
) -> None:
    adversarial(archive)
    before = the_run(archive).manifest
    with pytest.raises(PriorRunMismatchError, match=f"keeps adversarial made by .*{there}.*{asked}.*--replace"):
        adversarial(archive, attack, bits=bits)
    assert the_run(archive).manifest == before
    result = adversarial(archive, attack, bits=bits, replace=True)
    run = the_run(archive)
    assert (result.computed, run.signal("adversarial").slots) == ([0, 1], [0, 1])
    assert run.signal("adversarial").slot_meta(1)["attack_settings"] == attack.describe()
    # What the rows that are gone had cost is not counted against those who use the new ones.
    assert [h.views for h in run.manifest.harvests if h.signal == "adversarial"] == [[0, 1]]
    assert RunArchive(archive).verify().ok
    assert run.finished


def test_a_replacement_that_fails_at_once_loses_nothing(archive: Path) -> None:
    adversarial(archive)
    before = the_run(archive).manifest

    class StopsAtOnce(WorkerImages):
        def __getitems__(self, indices: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adversarial(archive, replace=True, dataset=StopsAtOnce(images()))
    assert the_run(archive).manifest == before
    with pytest.raises(KeyboardInterrupt):  # and after the first view, all is of one attack
        adversarial(archive, Attack("fgsm", 0.1), replace=True, dataset=Stops(images()))
    assert the_run(archive).signal("adversarial").slots == [0]
    assert adversarial(archive, Attack("fgsm", 0.1)).computed == [1]


def test_rows_of_two_image_sizes_do_not_mix(archive: Path) -> None:
    """The same examples and words about their augmentation, at another size."""
    adversarial(archive, views=1)
    before = the_run(archive).manifest
    wide = images(image_size=16, augment="none", num_views=0)
    data = ViewedDataset(wide, ViewPolicy(0, 2, "crop(padding=1)"), wide.info)
    data.pixel_space = images().pixel_space
    with pytest.raises(PriorRunMismatchError, match="Signals must come from the same examples"):
        adversarial(archive, dataset=data)
    assert the_run(archive).manifest == before


def test_other_signals_of_the_run_stay(archive: Path) -> None:
    harvest(archive, "digits", signals=["logits", "el2n"], progress=False)
    files = [entry for entry in the_run(archive).manifest.files if entry.kind == "signals"]
    adversarial(archive)
    adversarial(archive, replace=True)
    assert [f for f in the_run(archive).manifest.files if f.name in ("logits", "el2n")] == files
    names = [h.signal for h in the_run(archive).manifest.harvests]
    assert names == ["logits", "el2n", "adversarial"]


class Plain(TensorDataset):
    """The same examples without a word on their normalisation."""

    def __init__(self, space: Any = None, scale: float = 1.0) -> None:
        data = images()
        x, y = view_of(data, 0)
        super().__init__(x * scale, y)
        self.info, self.view_policy = data.info, data.view_policy
        if space is not None:
            self.pixel_space = space

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index[0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataset": Plain}, DataError, "'digits' does not say how its images were normalised.*pixel_space"),
        (
            {"dataset": lambda: Plain(images().pixel_space, 3.0)},
            DataError,
            "the inputs are pixels from .*, not from 0 to 1",
        ),
        ({"attack": Attack("pgd", 9.0, norm="l2")}, DataError, r"beyond the range: .*\(1, 8, 8\) differ by at most 8"),
        ({"bits": 3}, ValueError, "bits must be one of"),
        ({"signals": ["logits"]}, ValueError, "attack and bits belong to the signal adversarial; .* logits"),
        ({"signals": ["adversary"]}, SignalNotFoundError, "Did you mean 'adversarial'"),
        ({"data": {"train_examples": 100}}, PriorRunMismatchError, "200 examples .*100"),
        ({"data": {"view_seed": 1}}, PriorRunMismatchError, "views"),
        ({"views": 3, "dataset": images}, DataError, "3 views are asked for, but the dataset has 2"),
    ],
)
def test_bad_input(archive: Path, arguments: Any, error: type[Exception], message: str) -> None:
    before = the_run(archive).manifest
    arguments = {"signals": ["adversarial"], "attack": STRONG, "progress": False, **arguments}
    if "dataset" in arguments:
        arguments["dataset"] = arguments["dataset"]()
    with pytest.raises(error, match=message):
        harvest(archive, "digits", **arguments)
    assert the_run(archive).manifest == before


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    run_id = record_run(tmp_path, epochs=1)
    data = viewed()
    with pytest.raises(DataError, match="does not say how its images were normalised"):
        harvest(tmp_path, run_id, signals=["adversarial"], dataset=data, model=mlp, progress=False)
    data.pixel_space = images().pixel_space  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"these images are torch.float32 of shape \(64, 6\)|not inputs of shape"):
        harvest(tmp_path, run_id, signals=["adversarial"], dataset=data, model=mlp, progress=False)


def test_random_augmentation_without_end_asks_for_views(tmp_path: Path) -> None:
    quiet = [f"archive={tmp_path / 'archive'}", "device=cpu", "progress_bar=false", "max_duration=1ep"]
    endless = ["data.augment=crop", "data.train_examples=40", "run_name=digits", "scheduler=null"]
    assert train.main([str(BASELINE), *quiet, *endless, "callbacks={run_recorder: {}}"]) == 0
    with pytest.raises(DataError, match="say how many views of each example to harvest: --views 32"):
        adversarial(tmp_path / "archive")


def test_a_user_s_own_data_and_half_precision(archive: Path) -> None:
    """Any map-style dataset with a pixel space; the recipe's data wrapped here stand for one."""
    inner = images(augment="none", num_views=0)
    wrapped = ViewedDataset(inner, ViewPolicy(0, 2, "crop(padding=1)"), inner.info)
    assert wrapped.pixel_space == inner.pixel_space
    assert adversarial(archive, views=1, dataset=wrapped, precision="amp_bf16").rates["success"] > 0.3


def test_the_command(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(archive)
    options = ["--attack", "pgd", "--epsilon", "25.5/255", "--steps", "3", "--step-size", "0.05", "--attack-seed", "2"]
    argv = ["harvest", path, "digits", "--signals", "adversarial"]
    assert main([*argv, *options, "--views", "1", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "adversarial of digits" in out
    assert "200 rows of 1 views" in out
    meta = the_run(archive).signal("adversarial").slot_meta(0)
    assert meta["attack_settings"] == Attack("pgd", 0.1, 3, 0.05, seed=2).describe()
    rates = f"{100 * meta['success']:.1f} % fool the model, {100 * meta['success_quantized']:.1f} % as they are kept"
    assert rates in out
    assert main([*argv, "--device", "cpu"]) == 2
    assert "--replace" in capsys.readouterr().err
    l2 = ["--attack", "fgsm", "--norm", "l2", "--epsilon", "1", "--targeted", "random", "--bits", "4", "--replace"]
    assert main([*argv, *l2, "--device", "cpu", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["computed"] == [0, 1]
    assert set(result["rates"]) == {"clean_accuracy", "success", "success_quantized"}
    assert main(["show", path, "digits"]) == 0
    out = capsys.readouterr().out
    assert "adversarial  packed in 4 bits" in out
    assert "fgsm(l2, epsilon=1.0, random target, seed=0): " in out
    assert main(["show", path, "digits", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["signals"]["adversarial"]
    assert shown["harvest_seconds"] > 0
    assert (shown["bits"], shown["row_shape"], shown["success"]) == (4, [1, 8, 8], result["rates"]["success"])


def test_show_goes_on_past_a_signal_of_a_newer_version(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if this version knew no packed rows."""
    adversarial(archive, views=1)
    monkeypatch.delitem(TENSORS, "packed")
    assert main(["show", str(archive), "digits"]) == 0
    out = capsys.readouterr().out
    assert "adversarial  packed, " in out
    assert "written by a newer version, which can read it" in out
    assert "MulticlassAccuracy" in out
    assert main(["show", str(archive), "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signals"]["adversarial"]["readable"] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epsilon", "8"], "at most 1 for linf"),
        (["--epsilon", "8/0"], "is not a number above 0, such as 0.03 or 8/255"),
        (["--epsilon", "__import__('os')"], "is not a number above 0"),
        (["--epsilon", "nan"], "is not a number above 0"),
        (["--step-size", "-1"], "is not a number above 0"),
        (["--steps", "0"], "at least 1"),
        (["--attack", "cw"], "invalid choice"),
        (["--attack", "fgsm", "--steps", "3"], "--steps belongs to --attack pgd"),
        (["--attack", "fgsm", "--step-size", "0.1"], "belong to pgd"),
        (["--bits", "3"], "invalid choice"),
        (["--signals", "logits", "--epsilon", "0.1", "--bits", "2"], "--epsilon, --bits belong to --signals adver"),
        (["--norm", "l2", "--epsilon", "100"], "beyond the range"),
    ],
)
def test_the_command_refuses(
    archive: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    signals = [] if "--signals" in options else ["--signals", "adversarial"]
    assert main(["harvest", str(archive), "digits", "--device", "cpu", *signals, *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert "adversarial" not in the_run(archive).signal_names
