"""Forecasts of archived runs, their calibration, and what is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reuse_algos.archive import (
    CostRecord,
    DatasetRecord,
    EnvironmentRecord,
    Manifest,
    MetricHistory,
    ModelRecord,
    Progress,
    RunArchive,
    history_tensors,
)
from reuse_algos.callbacks import RunForecast, RunRecorder
from reuse_algos.cli import main
from reuse_algos.errors import NoEffectWarning, NotEnoughEvidenceError
from reuse_algos.predict import backtest, batch_sweep, forecast_run, histories, summarise
from reuse_algos.predict.evidence import budget_curve, points_over, sized_runs, speed_of, trials_of
from reuse_algos.predict.forecast import conformal_factor, end_seconds
from toy import blobs, checkpointed, loader, trainer

LOSS, ACCURACY = "loss/train/total", "metrics/eval/MulticlassAccuracy"


def write(
    archive: RunArchive,
    name: str,
    losses: Sequence[float],
    *,
    every: int = 10,
    step_seconds: float = 0.5,
    recipe: dict[str, Any] | None = None,
    accuracy: Sequence[float] = (),
    workers: int = 1,
    hardware: str = "cpu",
    flops: int = 1000,
    batch: int = 8,
    finish: bool = True,
    machine: dict[str, int] | None = None,
    config: dict[str, Any] | None = None,
    **fields: Any,
) -> str:
    steps = every * torch.arange(1, len(losses) + 1)

    def rows(values: Sequence[float]) -> MetricHistory:
        return MetricHistory(
            steps.numpy(),
            (batch * steps).numpy(),
            torch.arange(1, len(losses) + 1).numpy(),
            (step_seconds * steps).double().numpy(),
            (0.0 * steps).double().numpy(),
            np.asarray(values, dtype=np.float64),
        )

    writer = archive.start_run(name)
    metrics = {LOSS: rows(losses), **({ACCURACY: rows(accuracy)} if len(accuracy) else {})}
    files = [writer.put("metrics", "history", history_tensors(metrics))]
    total = int(steps[-1])
    writer.commit(
        Manifest(
            files=files,
            recipe={"optimizer": {"lr": 0.1}, "scheduler": None} if recipe is None else recipe,
            dataset=DatasetRecord(name="toy", num_examples=100, fingerprint="f" * 64),
            model=ModelRecord(name="net", flops_per_example=flops, config=config),
            environment=EnvironmentRecord(
                versions={}, hardware={"name": hardware, "world_size": workers, **(machine or {})}
            ),
            progress=Progress(batch=total, sample=batch * total, epoch=len(losses)),
            cost=CostRecord(train_seconds=step_seconds * total),
            monitor=ACCURACY if len(accuracy) else None,
            **fields,
        )
    )
    if finish:
        writer.finish()
    return writer.run_id


def curve(generator: np.random.Generator, rows: int = 40) -> np.ndarray:
    """A curve of the Optimus form with its own coefficients and 2 % noise."""
    b0, b1, b2 = generator.uniform([0.01, 0.4, 0.1], [0.05, 0.6, 0.3])
    steps = 10 * np.arange(1, rows + 1)
    return (1 / (b0 * steps + b1) + b2) * (1 + 0.02 * generator.standard_normal(rows))


@pytest.fixture(scope="module")
def thirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predict") / "archive"
    archive, generator = RunArchive(path, create=True), np.random.default_rng(0)
    for number in range(30):
        write(archive, f"run-{number}", curve(generator).tolist())
    return path


def test_every_run_is_forecast_and_intervals_cover(thirty: Path) -> None:
    rows = summarise(backtest(histories(RunArchive(thirty, read_only=True))))
    assert [(row.fraction, row.num_runs) for row in rows] == [(0.25, 30), (0.5, 30), (0.75, 30)]
    for row in rows:
        assert row.coverage >= 0.85
        assert row.error[0] < row.baseline_error[0]
    assert rows[0].error[0] < 0.1 < 0.4 < rows[0].baseline_error[0]
    assert rows[2].seconds_error[1] == pytest.approx(0, abs=1e-9)


def test_command_prints_the_same_numbers(thirty: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot, page = tmp_path / "forecasts.png", tmp_path / "forecasts.html"
    files = ["--plot", str(plot), "--html", str(page)]
    assert main(["predict", "loss-curve", str(thirty), "--json", *files]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["forecasts"]) == 90
    for row in found["errors_of_forecasts"]:
        tests = [test for test in found["forecasts"] if round(test["fraction"], 2) == row["fraction"]]
        assert row["coverage"] == np.mean([test["low"] <= test["measured"] <= test["high"] for test in tests])
        assert row["error_median"] == pytest.approx(np.median([abs(t["value"] / t["measured"] - 1) for t in tests]))
    assert plot.read_bytes()[:4] == b"\x89PNG"
    _numbers_are_those_of_the_json(page.read_text(), found["forecasts"])


def _numbers_are_those_of_the_json(text: str, rows: list[dict[str, Any]]) -> None:
    """Each number of a page names its place in the page's JSON, which holds the rows that the command printed."""
    data = json.loads(re.findall(r'id="report-data">(.*?)</script>', text, re.DOTALL)[0])
    assert rows in data["tables"]
    shown = re.findall(r'<data value="([^"]*)" data-json="([^"]*)">', text)
    shown += [(value, where) for where, value in re.findall(r'data-json="([^"]*)" data-value="([^"]*)"', text)]
    assert len(shown) > 300
    for written, where in shown:
        here: Any = data
        for part in where.split("/")[1:]:
            here = here[int(part) if isinstance(here, list) else part]
        assert here == json.loads(written), where
    assert "https://" not in text


def test_decayed_runs_are_forecast_by_their_shape_only(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    generator, recipe = np.random.default_rng(1), {"optimizer": {}, "scheduler": {"name": "cosine_with_warmup"}}
    shape = np.linspace(1, 0.1, 20) ** 2
    for number in range(10):
        losses = generator.uniform(1, 3) * shape * (1 + 0.01 * generator.standard_normal(20))
        write(archive, f"run-{number}", losses.tolist(), recipe=recipe)
    runs = histories(archive)
    tests = backtest(runs)
    assert {test.forecast.method for test in tests} == {"shape"}
    assert max(test.error for test in tests) < 0.08
    assert all(test.covered is not None for test in tests)
    with pytest.raises(NotEnoughEvidenceError, match="assumes a constant one"):
        forecast_run(runs[0], 300, method="curve")
    with pytest.raises(NotEnoughEvidenceError, match="no earlier finished run"):
        forecast_run(runs[0], 300)
    with pytest.raises(NotEnoughEvidenceError, match="learning rate of run"):
        sized_runs(runs)
    with pytest.raises(NotEnoughEvidenceError, match="at least 5 lengths"):
        budget_curve(runs)


def test_conformal_factor_is_an_order_statistic() -> None:
    assert math.isnan(conformal_factor([0.1] * 8))
    assert conformal_factor([0.1], 0.5) == pytest.approx(math.exp(0.1))
    assert conformal_factor([0.1, -0.3, *[0.05] * 7]) == pytest.approx(math.exp(0.3))
    assert conformal_factor([*np.linspace(0.01, 0.19, 19)]) == pytest.approx(math.exp(0.18))


def test_a_slow_start_is_not_multiplied() -> None:
    seconds = [0.0, 100.0, 110.0, 120.0, 130.0]
    assert end_seconds([0, 10, 20, 30, 40], seconds, 100) == pytest.approx(190)


def test_bad_archives_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone, odd = RunArchive(tmp_path / "alone", create=True), RunArchive(tmp_path / "odd", create=True)
    one = write(alone, "one", [1.0, 0.8, 0.7, 0.65])
    for number in range(3):
        write(odd, f"nan-{number}", [1.0, math.nan, 0.5, 0.4, 0.3], health="diverged")
    for place, said in ((alone, "at least 5 points"), (odd, "diverged")):
        assert main(["predict", "loss-curve", str(place.root)]) == 2
        assert said in capsys.readouterr().err
    assert main(["predict", "speed", str(alone.root)]) == 2
    assert "two or more numbers of workers" in capsys.readouterr().err
    assert main(["predict", "size", str(alone.root), "--flops", "1e6", "--end-step", "100"]) == 2
    assert "at least 5 points" in capsys.readouterr().err
    assert main(["predict", "loss-curve", str(alone.root), "--run", one, "--end-step", "20"]) == 2
    assert "before the end" in capsys.readouterr().err
    assert main(["predict", "loss-curve", str(alone.root), "--run", one]) == 2
    assert "does not say at which step" in capsys.readouterr().err
    assert main(["predict", "loss-curve", str(alone.root), "--budgets"]) == 2
    assert "at least 5 lengths, got 1 (40 steps)" in capsys.readouterr().err
    for words, said in (
        (["loss-curve", "--level", "1.5"], "between 0 and 1"),
        (["loss-curve", "--run", one, "--budgets"], "give one of them"),
        (["speed", "--price-per-hour", "-1"], "not a number above 0"),
        (["speed", "--run", one], "speed does not read --run, which is for loss-curve"),
        (["size", "--steps", "9"], "does not read --steps, which is for speed, layers"),
        (["loss-curve", "--metric", "loss/train"], "Did you mean 'loss/train/total'?"),
        (["layers", "--model", "resnet20", "--exchange", "rings"], "Did you mean 'ring'"),
        (["layers", "--model", "resnet20", "--batch", "2", "--workers", "4"], "4 workers cannot share a --batch of 2"),
        (["layers", "--model", "resnet20", "--device", "k80", "--peak-gflops", "9"], "stands for both"),
        (["layers", "--model", "resnet20", "--percent", "2"], "a share in (0, 1]"),
        (["layers", "--model", "resnet20", "--peak-gflops", "0"], "not a number above 0"),
    ):
        assert main(["predict", words[0], str(alone.root), *words[1:]]) == 2
        assert said in capsys.readouterr().err


def test_a_run_is_forecast_to_the_end_that_its_recipe_names(
    thirty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    losses = [1 / (0.01 * step + 1) for step in range(10, 70, 10)]
    for name, duration in (("epochs", "20ep"), ("batches", "200ba"), ("ended", "6ep")):
        recipe = {"optimizer": {"lr": 0.1}, "scheduler": None, "max_duration": duration}
        write(archive, name, losses, recipe=recipe, finish=name == "ended")
    for name in ("epochs", "batches"):
        assert main(["predict", "loss-curve", str(archive.root), "--run", name, "--json"]) == 0
        made = json.loads(capsys.readouterr().out)["forecast"]
        assert (made["end_step"], made["value"]) == (200, pytest.approx(1 / 3, rel=1e-3))
    assert main(["predict", "loss-curve", str(archive.root), "--run", "ended"]) == 2
    assert "ended at step 60" in capsys.readouterr().err


def test_mixed_runs_are_refused(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    for workers, hardware, batch in ((1, "a", 8), (2, "b", 8), (2, "a", 16)):
        write(archive, "run", [1, 0.9, 0.8], workers=workers, hardware=hardware, batch=batch)
    one, other, larger = histories(archive)
    with pytest.raises(NotEnoughEvidenceError, match="different kinds of hardware: a, b"):
        speed_of([one, other])
    with pytest.raises(NotEnoughEvidenceError, match="different global batches, from 8 to 16"):
        speed_of([one, larger])


def test_size_command_gives_a_loss_only_where_the_curve_describes_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Losses of the form of Optimus give an end with limits; those that fall exponentially give the time alone."""
    steps = np.arange(10, 410, 10)
    forms = {"form": lambda b: 1 / (b * steps + 0.5) + 0.2, "by-heart": lambda b: 3 * np.exp(-2 * b * steps)}
    for name, form in forms.items():
        archive = RunArchive(tmp_path / name, create=True)
        for flops in (1000, 2000, 4000, 8000):
            losses = form(0.002 * flops**0.25).tolist()
            write(archive, "run", losses, flops=flops, step_seconds=1e-4 * flops, batch=8)
        command = ["predict", "size", str(archive.root), "--flops", "3000", "--end-step", "400"]
        assert main([*command, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        made, true = found["forecast"], float(form(0.002 * 3000**0.25)[-1])
        assert made["step_seconds"] == pytest.approx(0.3, rel=1e-3)
        assert main(command) == 0
        said = " ".join(capsys.readouterr().out.split())
        if name == "form":
            assert made["end_loss"] == pytest.approx(true, rel=0.01)
            assert made["low"] <= true <= made["high"]
            assert found["fits"]["interval_holds_a_like_size_in"] == "4 of 5"
        else:
            assert (made["end_loss"], made["low"], made["high"]) == (None, None, None)
            assert found["fits"]["curves_miss_their_own_ends_by_a_factor_of"] > 2
            assert "Not enough evidence for its loss" in said


def test_speed_command_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    for workers in (1, 2):
        losses = [1 / (0.01 * step + 1) for step in range(10, 70, 10)]
        write(archive, "run", losses, workers=workers, step_seconds=0.8 / workers + 0.1)
    command = ["predict", "speed", str(archive.root), "--workers", "1", "2", "4", "--steps", "3600"]
    assert main([*command, "--price-per-hour", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["speed"]
    assert [row["kind"] for row in rows] == ["measured", "measured", "predicted"]
    assert [row["error"] for row in rows[:2]] == pytest.approx([0, 0], abs=1e-9)
    assert rows[0]["cost"] == pytest.approx(0.9 * 2)
    # Strictly below 0.7 at the row of step 50; below 0.5, which no run reached, the curve is at step 100.
    for goal, steps, kind in (("0.7", 50, "measured"), ("0.5", 100, "predicted")):
        assert main([*command[:-2], "--goal", goal, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["steps_to_goal"]["steps"], found["steps_to_goal"]["kind"]) == (
            pytest.approx(steps, rel=1e-3),
            kind,
        )
        assert found["speed"][0]["seconds"] == pytest.approx(0.9 * steps, rel=1e-3)
    assert main([*command, "--goal", "0.85"]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert main([*command[:-2], "--goal", "-1"]) == 2
    assert "level off before -1" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["synchronous", "asynchronous"])
def test_speed_with_parameter_servers(tmp_path: Path, capsys: pytest.CaptureFixture[str], scheme: str) -> None:
    """Runs of the form of Optimus, at six settings, predict the speed and the cost of settings that were not run."""

    def seconds(w: int, p: int) -> float:
        if scheme == "synchronous":
            return 0.05 * 8 / w + 0.1 + 0.2 * w / p + 0.03 * w + 0.02 * p
        return (0.9 + 0.2 * w / p + 0.03 * w + 0.02 * p) / w

    archive = RunArchive(tmp_path / "archive", create=True)
    for w, p in ((1, 1), (2, 1), (4, 1), (4, 2), (8, 2), (8, 4)):
        write(archive, "run", [3, 2, 1.0], workers=w, step_seconds=seconds(w, p), tags={"servers": str(p)})
    command = ["predict", "speed", str(archive.root), "--exchange", scheme, "--steps", "3600", "--price-per-hour", "2"]
    assert main([*command, "--workers", "4", "6", "16", "--servers", "2", "4", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fit"]["scheme"] == scheme
    kinds = {(row["workers"], row["servers"]): row["kind"] for row in found["speed"]}
    assert (kinds[4, 2], kinds[6, 2], kinds[6, 8], kinds[16, 2]) == ("measured", "between", "predicted", "predicted")
    for row in found["speed"]:
        w, p = row["workers"], row["servers"]
        assert 1 / row["steps_per_second"] == pytest.approx(seconds(w, p), rel=1e-6)
        assert row["cost"] == pytest.approx(seconds(w, p) * 2 * (w + p), rel=1e-6)
    best = max(found["speed"], key=lambda row: row["steps_per_second"])
    picture = tmp_path / "speed.svg"
    assert main([*command, "--workers", "4", "6", "16", "--servers", "2", "4", "8", "--plot", str(picture)]) == 0
    assert "within what was measured, 4 servers" in picture.read_text()
    said = " ".join(capsys.readouterr().out.split())
    assert f"The fastest of these: {best['workers']} workers and {best['servers']} servers, with" in said
    for wrong, said in (
        (["--servers", "2"], "give --exchange synchronous or asynchronous"),
        (["--exchange", "ring"], "'ring' for speed. Known: all_reduce, asynchronous, synchronous"),
        ([], "had parameter servers (1), so its speed is not one of the exchange all_reduce"),
    ):
        assert main(["predict", "speed", str(archive.root), *wrong]) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_workers_that_share_cores_are_not_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On two cores, two processes of one thread have a core each; two of two threads, or four of one, have not."""
    cores = {"cpu_count": 2, "gpu_count": 0}

    def answer(name: str, *runs: tuple[int, float, dict[str, int]]) -> tuple[int, Any, str]:
        archive = RunArchive(tmp_path / name, create=True)
        for workers, seconds, machine in runs:
            write(archive, "run", [3, 2, 1.0], workers=workers, step_seconds=seconds, machine={**cores, **machine})
        status = main(["predict", "speed", str(archive.root), "--workers", "1", "2", "4", "--json"])
        said = capsys.readouterr()
        return status, json.loads(said.out) if said.out else None, said.err

    one, two = (1, 0.02, {"threads": 1, "local_world_size": 1}), (2, 0.011, {"threads": 1, "local_world_size": 2})
    status, found, _ = answer("apart", one, two)
    assert (status, [row["workers"] for row in found["speed"]]) == (0, [1, 2])
    (left,) = found["not_predicted"]
    assert left == {
        "workers": 4,
        "why": "the machine of these runs has room for 2: more workers share its cores, not predictable",
    }
    _, found, _ = answer("crowded", one, (2, 0.045, {"threads": 2, "local_world_size": 2}))
    assert [(row["workers"], row["kind"]) for row in found["speed"]] == [(1, "measured"), (2, "measured")]
    assert "shared the cores of one machine" in found["not_predicted"][0]["why"]
    # Older records have neither threads nor the number of processes of one machine: torch takes all cores.
    _, found, _ = answer("older", (1, 0.02, {}), (2, 0.045, {}))
    assert [row["workers"] for row in found["not_predicted"]] == [4]
    _, found, _ = answer("machines", one, (2, 0.011, {"threads": 1, "local_world_size": 1}))
    assert [row["kind"] for row in found["speed"]] == ["measured", "measured", "predicted"]
    _, found, _ = answer("gpus", *((n, 0.02 / n, {"gpu_count": 4, "local_world_size": n}) for n in (1, 2)))
    assert [row["kind"] for row in found["speed"]] == ["measured", "measured", "predicted"]
    served = RunArchive(tmp_path / "served", create=True)
    for workers, servers in ((1, 1), (1, 2), (2, 1), (2, 2), (1, 4)):
        machine = {**cores, "threads": 1, "local_world_size": workers}
        write(
            served, "run", [3, 2, 1.0], workers=workers, step_seconds=0.02 / workers + 0.01 / servers, machine=machine,
            tags={"servers": str(servers)},
        )  # fmt: skip
    command = ["predict", "speed", str(served.root), "--exchange", "synchronous", "--servers", "1", "2"]
    assert main([*command, "--workers", "2", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["workers"], row["servers"]) for row in found["not_predicted"]] == [(4, 1), (4, 2)]
    assert main([*command, "--workers", "2", "4"]) == 0
    assert "not predicted, as they would share hardware: 4 workers" in " ".join(capsys.readouterr().out.split())
    told = RunArchive(tmp_path / "told", create=True)
    recipe = {"optimizer": {"lr": 0.1}, "device": "cpu"}
    write(told, "run", [3, 2, 1.0], workers=4, recipe=recipe, machine={**cores, "gpu_count": 4, "local_world_size": 4})
    assert histories(told)[0].shares_hardware, "on the cores of a machine with GPUs"
    status = main(["predict", "speed", str(tmp_path / "crowded"), "--workers", "4", "8"])
    assert (status, "not predictable. Ask for numbers of --workers" in capsys.readouterr().err) == (2, True)


@pytest.mark.parametrize("threads", [1, 2])
def test_strong_scaling_stands_beside_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], threads: int
) -> None:
    """Two processes of one thread on two cores are predicted; two of two threads shared the cores and are not."""
    archive = RunArchive(tmp_path / "archive", create=True)
    config = {"name": "digits_cnn", "num_classes": 10, "image_shape": [1, 8, 8]}
    command = ["predict", "layers", "--model", "digits_cnn", "--classes", "10", "--input", "1", "8", "8", "--json"]
    assert main([*command, "--batch", "1"]) == 0
    flops = round(json.loads(capsys.readouterr().out)["total"]["gigaflops"] * 1e9)
    for workers, seconds in ((1, 0.02), (2, 0.016)):
        machine = {"cpu_count": 2, "gpu_count": 0, "threads": threads, "local_world_size": workers}
        write(
            archive, "run", [3, 2, 1.0], workers=workers, step_seconds=seconds, flops=flops, machine=machine,
            config=config,
        )  # fmt: skip
    device = ["--peak-gflops", "1000", "--bandwidth-gbs", "1000", "--network-gbits", "1000", "--workers", "1", "2"]
    assert main([*command[:2], str(archive.root), *command[2:], "--batch", "8", *device]) == 0
    found = json.loads(capsys.readouterr().out)
    one, two = found["strong_scaling"]
    assert one["examples_per_second"] == pytest.approx(8 / 0.02)
    assert (one["measured_examples_per_second"], two["measured_examples_per_second"]) == pytest.approx((400, 500))
    if threads == 1:
        assert two["examples_per_second"] == pytest.approx(800, rel=0.01)
        assert two["error"] == pytest.approx(two["examples_per_second"] / 500 - 1)
        assert "not_predicted" not in found
    else:
        assert (two["examples_per_second"], two["speedup"], two["error"]) == (None, None, None)
        assert "shared the cores of one machine" in found["not_predicted"][0]["why"]


def study(archive: RunArchive, scheduler: Any = None) -> None:
    for batch, needed in ((4, 30), (8, 20), (16, 14), (32, 12)):
        for rate, more in ((0.01, 3), (0.1, 0), (1.0, 2)):
            reach = needed + more
            accuracy = [0.5] * (reach - 1) + [0.99] * (40 - reach + 1)
            optimizer = {"lr": rate, "momentum": 0.9}
            recipe = {"optimizer": optimizer, "data": {"batch_size": batch}, "scheduler": scheduler}
            write(archive, "run", [1.0] * 40, every=1, accuracy=accuracy, batch=batch, recipe=recipe)


def test_sweep_command_on_known_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    study(archive)
    command = ["sweep", "batch-size", str(archive.root), "--goal", "0.95", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["batch"]: row["steps"] for row in found["steps_to_result"]} == {4: 30, 8: 20, 16: 14, 32: 12}
    assert {row["best_value"] for row in found["steps_to_result"]} == {0.1}
    assert [row["linear_rule"] for row in found["steps_to_result"]] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert {round(row["effective_rate"], 9) for row in found["steps_to_result"]} == {1.0}
    assert found["noise_scale"]["noise"] > 0
    # No run of 1 example reaches 0.95, so the rules start from 4; it is named in the terminal too.
    for rate in (0.01, 0.1, 1.0):
        recipe = {"optimizer": {"lr": rate, "momentum": 0.9}, "data": {"batch_size": 1}, "scheduler": None}
        write(archive, "run", [1.0] * 40, every=1, accuracy=[0.5] * 40, batch=1, recipe=recipe)
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["perfect"] for row in found["steps_to_result"]] == [None, 30, 15, 7.5, 3.75]
    assert [row["linear_rule"] for row in found["steps_to_result"]] == [None, *map(pytest.approx, (0.1, 0.2, 0.4, 0.8))]
    assert {"batch": 1, "flag": "0 of 3 trials reached the goal; two are needed"} in found["flags"]
    assert main(command[:-1]) == 0
    assert "0 of 3 trials reached the goal" in capsys.readouterr().out
    assert main([*command[:3], "--goal", "1.5"]) == 2
    assert "none of 15 runs reached" in capsys.readouterr().err
    assert main([*command, "--over", "data.batch"]) == 2
    assert "Did you mean 'data.batch_size'" in capsys.readouterr().err


def test_sweep_of_any_value_counts_what_a_goal_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    study(archive)
    command = ["sweep", "value", str(archive.root), "--over", "data.batch_size", "--json"]

    def asked(*words: str) -> list[Any]:
        assert main([*command, *words]) == 0
        return [row["outcome"] for row in json.loads(capsys.readouterr().out)["best_values"]]

    goal = ["--tune", "optimizer.lr", "--goal", "0.95"]
    assert asked(*goal) == [30, 20, 14, 12]
    assert asked(*goal, "--of", "seconds") == [15, 10, 7, 6]
    dollars = [*goal, "--of", "dollars", "--price-per-hour", "3600"]
    assert asked(*dollars) == pytest.approx([15, 10, 7, 6])
    assert asked() == pytest.approx([0.99] * 4)
    assert asked("--of", "steps") == [40] * 4
    assert main([*command, *goal]) == 0
    assert json.loads(capsys.readouterr().out)["flags"] == []
    assert main(command) == 0
    assert "also differ in optimizer.lr" in capsys.readouterr().out
    # Without --tune the three rates are averaged like seeds, and it is said.
    assert asked("--goal", "0.95") == pytest.approx([30 + 5 / 3, 20 + 5 / 3, 14 + 5 / 3, 12 + 5 / 3])
    for words, said in (
        (command[:3], "needs --over"),
        ([*command, "--goal", "0.95", "--of", "metric"], "name one with --of"),
        ([*command, "--of", "dollars"], "go together"),
        ([*command, "--goal", "1.5"], "no run at any of 4 values reached"),
        ([*command[:4], "data.size"], "no 'data.size'"),
        (["sweep", "strength", *command[2:], "--goal", "1"], "strength does not read --goal"),
    ):
        assert main(words) == 2
        assert said in capsys.readouterr().err


def test_sweep_equals_a_group_by_of_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    archive = RunArchive(tmp_path / "archive", create=True)
    study(archive)
    runs = histories(archive, "monitor")
    frame = pandas.DataFrame(
        [
            {"batch": run.recipe["data"]["batch_size"], "step": step, "value": value}
            for run in runs
            for step, value in zip(run.steps, run.values, strict=True)
        ]
    )
    expected = frame[frame.value > 0.95].groupby("batch").step.min().to_dict()
    sweep = batch_sweep(trials_of(runs, "data.batch_size", "optimizer.lr"), 0.95)
    assert {point.batch: point.steps for point in sweep.points} == expected


def test_sweep_refuses_what_the_record_contradicts(tmp_path: Path) -> None:
    decayed, archive = RunArchive(tmp_path / "decayed", create=True), RunArchive(tmp_path / "archive", create=True)
    study(decayed, {"name": "linear_with_warmup"})
    with pytest.raises(NotEnoughEvidenceError, match="decays towards its own end"):
        trials_of(histories(decayed, "monitor"), "data.batch_size", "optimizer.lr")
    recipe = {"optimizer": {"lr": 0.1}, "data": {"batch_size": 64}}
    write(archive, "run", [1.0] * 5, accuracy=[0.5] * 5, batch=8, recipe=recipe)
    with pytest.raises(NotEnoughEvidenceError, match="says data.batch_size=64, and trained 8"):
        trials_of(histories(archive, "monitor"), "data.batch_size", "optimizer.lr")


def test_strength_of_runs_without_an_attack_is_zero(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    write(archive, "clean", [1.0], accuracy=[0.9])
    attacked = {"optimizer": {}, "algorithms": {"adversarial_training": {"epsilon": 0.1}}}
    write(archive, "robust", [1.0], accuracy=[0.8], recipe=attacked)
    runs = histories(archive, "monitor")
    assert points_over(runs, "algorithms.adversarial_training.epsilon") == [(0.0, 0.9), (0.1, 0.8)]
    with pytest.raises(NotEnoughEvidenceError, match="no recipe of 2 runs has"):
        points_over(runs, "algorithms.mixup.alpha")


def fit(callback: RunForecast, epochs: int = 6, **arguments: Any) -> RunForecast:
    trainer(loader(blobs()), max_duration=f"{epochs}ep", callbacks=[callback], **arguments).fit()
    return callback


def test_callback_forecasts_and_says_its_error(tmp_path: Path) -> None:
    callback = RunForecast(at=(0.5,))
    recorder = RunRecorder(tmp_path / "archive", run_name="run")
    trainer(loader(blobs()), max_duration="6ep", callbacks=[callback, recorder]).fit()
    made = callback.forecasts[0.5]
    assert (made.method, made.end_step, made.fraction) == ("curve", 48, 0.5)
    run = RunArchive(tmp_path / "archive", create=True).run(recorder.run_id or "")
    assert run.metric("forecast/50pct/end_loss").value.tolist() == [made.value]
    assert run.metric("forecast/50pct/end_loss").step.tolist() == [24]
    final = run.metric(LOSS).final()
    assert run.metric("forecast/50pct/end_loss_error").final() == pytest.approx(made.value / final - 1)
    assert math.isnan(made.low)


def test_callback_resumes_with_the_same_forecast(tmp_path: Path) -> None:
    straight = fit(RunForecast(at=(0.5,)))
    settings = checkpointed(tmp_path, save_interval="2ep")
    fit(RunForecast(at=(0.99,)), 2, **settings)  # no batch of 16 lies between this share and the end
    resumed = fit(RunForecast(at=(0.5,)), 6, **settings)
    assert resumed.forecasts[0.5].value == straight.forecasts[0.5].value
    assert resumed.state_dict()["highest_rate"] == straight.state_dict()["highest_rate"]


def test_callback_of_a_second_trainer_knows_nothing_of_the_first() -> None:
    callback = fit(RunForecast(at=(0.5,)))
    alone, second = fit(RunForecast(at=(0.5,)), 4), fit(callback, 4)
    assert second.forecasts[0.5].end_step == 32
    assert second.forecasts[0.5].value == alone.forecasts[0.5].value


def test_callback_calibrates_on_the_archive(thirty: Path) -> None:
    made = fit(RunForecast(thirty, at=(0.5,))).forecasts[0.5]
    assert made.low < made.value < made.high


def test_callback_says_where_it_cannot_forecast() -> None:
    with pytest.warns(NoEffectWarning, match="no forecast at 50%.*no earlier finished run"):
        callback = fit(RunForecast(at=(0.5,), schedule="decayed"))
    assert not callback.forecasts


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"at": (1.5,)}, "shares between"), ({"level": 1.0}, "level"), ({"schedule": "cosine"}, "auto, constant or")],
)
def test_callback_refuses_bad_settings(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RunForecast(**arguments)
