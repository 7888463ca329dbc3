"""``reuse-algos compare --wandb``: what the command sends is what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from compare.synthetic_runs import noisy, write_run
from reuse_algos.archive import RunArchive
from reuse_algos.cli import main
from wandb_files import OfflineRun, keep_offline

CURVE = 0.8 - 0.5 * np.arange(1, 9) ** -0.7


def test_budgets_and_their_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_offline(tmp_path, monkeypatch)
    archive, rng = RunArchive(tmp_path / "archive", create=True), np.random.default_rng(1)
    for seed in (1, 2, 3):
        for budget in (2, 4, 8):
            write_run(archive, "baseline", seed, noisy(rng, CURVE[:budget]))
            write_run(archive, "dis/tilled", seed, noisy(rng, CURVE[:budget] + 0.06))
            write_run(archive, "shuffled", seed, noisy(rng, CURVE[:budget]), tags={"control_of": "dis/tilled"})
    words = ["compare", str(archive.root), "--budgets", "--price-per-hour", "3.6", "--json"]
    assert main([*words, "--wandb", "proj", "--wandb-name", "mine"]) == 0
    shown = json.loads(capsys.readouterr().out)
    run = OfflineRun(tmp_path)

    assert (run.header.project, run.header.display_name) == ("proj", "mine")
    (files,) = [files for (_, kind), files in run.artifacts.items() if kind == "comparison"]
    assert json.loads(files["comparison.json"]) == shown
    assert b"</html>" in files["report.html"]
    groups = {group["name"]: group for group in shown["groups"]}
    assert list(groups) == ["baseline", "dis/tilled", "shuffled"]
    for name, group in groups.items():
        assert run.summary[f"{name}/verdict"] == group["verdict"]
        assert run.summary[f"{name}/sentence"] == group["sentence"]
        assert run.summary[f"{name}/n"] == 3
    best = groups["dis/tilled"]
    for axis in ("steps", "cost_seconds", "dollars"):
        assert run.summary[f"dis/tilled/speedup_{axis}"] == best["speedups"][axis]["estimate"]
        assert run.summary[f"dis/tilled/speedup_{axis}_low"] == best["speedups"][axis]["low"]
        row = next(row for row in run.table("tables/groups") if row["group"] == "dis/tilled")
        assert row[f"{axis}_to_target"] == best["cost_to_target"][axis]["estimate"]
        bar = next(row for row in run.table(f"speedup/{axis}_table") if row["group"] == "dis/tilled")
        assert (bar["value"], bar["high"]) == tuple(best["speedups"][axis][key] for key in ("estimate", "high"))
        line = [
            (row["step"], row["lineVal"])
            for row in run.table(f"budgets/{axis}_table")
            if row["lineKey"] == "dis/tilled"
        ]
        assert line == [(point["costs"][axis], point["final"]["estimate"]) for point in best["points"]]
    assert [row["step"] for row in run.table("budgets/steps_table") if row["lineKey"] == "baseline"] == [200, 400, 800]
    points = run.table("tables/points")
    assert len(points) == 9
    assert [row["pareto_steps"] for row in points if row["group"] == "dis/tilled"] == [
        point["on_pareto_front"]["steps"] for point in best["points"]
    ]
    runs = [row["final"] for row in run.table("tables/runs") if row["group"] == "dis/tilled"]
    assert runs == [value for point in best["points"] for value in point["values"]]
    assert {row["control_of"] for row in run.table("tables/groups")} == {None, "dis/tilled"}
    assert run.config["method"] == "budgets"
    assert run.config["price_per_hour"] == 3.6


def test_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    assert main(["compare", str(archive.root), "--wandb-name", "x"]) != 0
    assert "need --wandb PROJECT" in capsys.readouterr().err
