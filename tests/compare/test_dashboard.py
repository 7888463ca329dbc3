"""The dashboard and its way into W&B: every figure is the comparison's own, read back from the file that W&B wrote."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb

from compare.asking import compare_runs, select_outcomes
from compare.synthetic_runs import METRIC, noisy, write_run
from reuse_algos.archive import PriorUse, RunArchive
from reuse_algos.compare import Comparison, Outcomes
from reuse_algos.compare.show import dashboard as dashboard_module
from reuse_algos.compare.show.dashboard import dashboard_of
from reuse_algos.compare.show.saved_report import saved_report_of
from reuse_algos.compare.show.wandb import WandbTarget, log_to_wandb
from reuse_algos.errors import CompareError
from wandb_files import OfflineRun, end_wandb, keep_offline

MEAN = [0.30, 0.50, 0.60, 0.66, 0.69, 0.70]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What a test told W&B through the environment ends with it."""
    yield
    end_wandb()


@pytest.fixture
def made(tmp_path: Path) -> tuple[Comparison, Outcomes]:
    """A baseline, a faster group with hostile letters in its name that used a prior run, and a hopeless one."""
    archive, rng = RunArchive(tmp_path / "archive", create=True), np.random.default_rng(0)
    prior = write_run(archive, None, 9, MEAN)
    use = PriorUse(run_id=prior, algorithm="distillation", harvest_seconds=4.0)
    for seed in (1, 2, 3):
        write_run(archive, "baseline", seed, noisy(rng, MEAN))
        better = noisy(rng, [x + 0.1 for x in MEAN])
        write_run(archive, 'fa/st "<x>', seed, better, prior_runs=[use], setup_seconds=2.0)
        write_run(archive, "hopeless", seed, [0.1, float("nan")])
    selection = select_outcomes(archive)
    return compare_runs(archive, selection=selection), selection


def test_what_w_and_b_has_is_the_comparison(
    made: tuple[Comparison, Outcomes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_offline(tmp_path, monkeypatch)
    comparison, selection = made
    html = "<!doctype html><title>r\u00e9port</title>"
    target = WandbTarget("proj", name="mine")
    place = log_to_wandb(dashboard_of(comparison, selection), target, html=html)
    run = OfflineRun(tmp_path)

    assert place == f"{run.folder} (offline; `wandb sync {run.folder}` sends it)"
    assert (run.header.project, run.header.display_name, run.header.job_type) == ("proj", "mine", "comparison")
    assert run.config["target"] == comparison.target
    assert run.config["archive_id"] == comparison.archive_id
    fast = comparison.group('fa/st "<x>')
    cost = fast.speedups["cost_seconds"]
    assert run.summary[f"{fast.name}/verdict"] == fast.verdict == "faster"
    assert run.summary[f"{fast.name}/n"] == 3
    assert run.summary[f"{fast.name}/final"] == fast.final.estimate
    assert run.summary[f"{fast.name}/speedup_cost_seconds"] == cost.estimate
    assert run.summary[f"{fast.name}/speedup_cost_seconds_low"] == cost.low
    assert run.summary["hopeless/verdict"] == "no difference"
    assert run.summary["hopeless/final"] is None

    groups = {row["group"]: row for row in run.table("tables/groups")}
    assert list(groups) == ["baseline", fast.name, "hopeless"]
    assert groups[fast.name]["speedup_steps_high"] == fast.speedups["steps"].high
    assert groups[fast.name]["cost_seconds_to_target"] == fast.to_target.cost_seconds
    assert fast.break_even is not None
    row, paid = groups[fast.name], fast.break_even.harvest_runs
    assert row["pays_back_harvest_after_runs"] == paid.estimate
    assert (row["pays_back_harvest_after_runs_low"], row["pays_back_harvest_after_runs_high"]) == (paid.low, paid.high)
    assert groups["baseline"]["speedup_cost_seconds"] is None
    assert groups["hopeless"]["target_reached"] is False
    runs = run.table("tables/runs")
    assert [row["run_id"] for row in runs] == [one for group in comparison.groups for one in group.run_ids]
    assert [row["harvest_seconds"] for row in runs if row["group"] == fast.name] == [4.0] * 3
    assert [row["note"] for row in run.table("tables/notes")] == comparison.notes

    # By hand: the mean of three values at each evaluation, against their mean costs.
    values = np.stack([outcome.curve.values for outcome in selection.groups[fast.name]])
    curve = [row for row in run.table("tables/curves") if row["group"] == fast.name]
    assert [row["mean"] for row in curve] == pytest.approx(values.mean(axis=0))
    assert [row["steps"] for row in curve] == [100, 200, 300, 400, 500, 600]
    assert [row["cost_seconds"] for row in curve] == pytest.approx([16.0, 26.0, 36.0, 46.0, 56.0, 66.0])
    half = 4.302652729749462 * values.std(axis=0, ddof=1) / np.sqrt(3)  # scipy.stats.t.ppf(0.975, 2)
    assert [row["mean_high"] for row in curve] == pytest.approx(values.mean(axis=0) + half)

    lines = run.table("curves/train_seconds_table")
    assert run.chart("curves/train_seconds")["panelDefId"] == "wandb/lineseries/v0"
    assert run.chart("curves/train_seconds")["stringSettings"]["xname"] == "train time"
    ours = [(row["step"], row["lineVal"]) for row in lines if row["lineKey"] == f"{fast.name} (n=3)"]
    assert ours == [(row["train_seconds"], row["mean"]) for row in curve]
    ends = [(row["step"], row["lineVal"]) for row in lines if row["lineKey"].startswith("target")]
    assert ends == [(pytest.approx(10.0), comparison.target), (pytest.approx(60.0), comparison.target)]
    bars = {row["group"]: row for row in run.table("speedup/cost_seconds_table")}
    assert run.chart("speedup/cost_seconds")["fieldSettings"] == {"label": "label", "value": "value"}
    assert bars[fast.name]["value"] == cost.estimate
    shown = f"{fast.name}: {cost.estimate:.2f}\u00d7 [{cost.low:.2f}, {cost.high:.2f}]"
    assert bars[fast.name]["label"] == shown

    (files,) = [files for (_, kind), files in run.artifacts.items() if kind == "comparison"]
    assert json.loads(files["comparison.json"]) == comparison.to_dict()
    assert files["report.html"].decode() == html
    saved = json.loads(files["saved_report.json"])
    assert saved == saved_report_of(dashboard_of(comparison, selection), page=True).to_dict()
    # Offline, what the saved report will show is in the run's file.
    shown = {panel["key"] for panel in saved["sections"][0]["panels"]}
    assert shown <= {name.removesuffix("_table") for name in run.last}
    panel = (run.folder / "files" / run.last["report"]["path"]).read_text()
    assert panel == html


def test_curves_that_are_too_long_are_thinned_out_and_keep_their_ends(
    made: tuple[Comparison, Outcomes], monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison, selection = made
    monkeypatch.setattr(dashboard_module, "MAX_ROWS", 10)
    rows = dashboard_of(comparison, selection).tables["curves"].rows
    assert len(rows) <= 10
    assert [row[1] for row in rows if row[0] == "baseline"] == [100, 300, 500, 600]


def test_w_and_b_that_cannot_be_used_is_said_clearly(
    made: tuple[Comparison, Outcomes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison, selection = made
    shown = dashboard_of(comparison, selection)
    keep_offline(tmp_path, monkeypatch)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CompareError, match=r"project 'p': .*api_key not configured.* Log in with `wandb login`"):
        log_to_wandb(shown, WandbTarget("p"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(CompareError, match="cannot be imported .* pip install 'wandb"):
        log_to_wandb(shown, WandbTarget("p"))


def test_a_run_under_way_is_left_alone(
    made: tuple[Comparison, Outcomes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Active:
        name = "training"

    comparison, selection = made
    monkeypatch.setattr(wandb, "run", Active())
    with pytest.raises(CompareError, match="W&B run 'training' is under way"):
        log_to_wandb(dashboard_of(comparison, selection), WandbTarget("p"))


def test_runs_without_common_evaluations_have_no_lines(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    for seed, every in ((1, 100), (2, 70)):
        write_run(archive, "baseline", seed, [0.5, 0.7], every=every)
        write_run(archive, "other", seed, [0.6, 0.8], every=100)
    selection = select_outcomes(archive)
    comparison = compare_runs(archive, selection=selection, target=0.65)
    shown: Any = dashboard_of(comparison, selection)
    assert list(shown.lines["curves/steps"].series) == ["other (n=2)", "target 0.6500"]
    assert shown.config["metric"] == METRIC
