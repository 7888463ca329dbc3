"""Every comparison of the results files and of a demo's archive is what it was before there was one engine.

The fixture was written by the engines of commit fa1e0c9: 285 runs and 28 comparisons from ``benchmarks/results``, and
the records of the runs of a demo with 18 comparisons. Numbers are held to 1e-9; sentences and notes are held by other
tests. None of these groups is without spread, so that the one interval that changed
(``test_groups_without_spread_have_one_interval``) does not show here.
"""

from __future__ import annotations

import json
import lzma
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compare.asking import (
    compare_archive_budgets,
    compare_budgets,
    compare_runs,
    recommend_from_archive,
    recommend_runs,
)
from reuse_algos.archive import Manifest, MetricHistory, RunArchive, history_tensors
from reuse_algos.compare import Outcome

GOLDEN: dict[str, Any] = json.loads(lzma.decompress((Path(__file__).parent / "golden.json.xz").read_bytes()))
PROSE = {"sentence", "notes", "lacking", "archive", "archive_id"}
# What moved when all kinds of comparison got one tree.
MOVED = {"speedup_steps": ("speedups", "steps"), "speedup_cost": ("speedups", "cost_seconds")}


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where the new JSON does not say what the old one said; further keys are allowed."""
    if isinstance(old, dict):
        found = []
        for key, value in old.items():
            if key in PROSE:
                continue
            if key in MOVED:
                first, second = MOVED[key]
                found += differences(value, new[first].get(second), f"{path}/{first}/{second}")
            else:
                found += differences(value, new[key], f"{path}/{key}") if key in new else [f"missing: {path}/{key}"]
        return found
    if isinstance(old, list):
        if len(old) != len(new):
            return [f"length: {path}"]
        return [one for k, (a, b) in enumerate(zip(old, new, strict=True)) for one in differences(a, b, f"{path}/{k}")]
    if path == "/target" and isinstance(old, float):
        # A typed target is the value that tables print so: 0.95 is met by the float32 number 0.949999988.
        return [] if abs(old - new) < 5e-5 else [f"{path}: {old} is {new}"]
    if isinstance(old, (int, float)) and isinstance(new, (int, float)):
        return [] if math.isclose(old, new, rel_tol=1e-9, abs_tol=1e-12) else [f"{path}: {old} is {new}"]
    return [] if old == new else [f"{path}: {old} is {new}"]


@pytest.mark.parametrize("number", range(len(GOLDEN["cases"])))
def test_results_files(number: int) -> None:
    case = GOLDEN["cases"][number]
    # JSON has no NaN: a run without a final value diverged.
    fields = [{k: math.nan if k == "final" and v is None else v for k, v in one.items()} for one in GOLDEN["runs"]]
    runs = [Outcome(**{**fields[k], "prior_run_ids": tuple(fields[k]["prior_run_ids"])}) for k in case["runs"]]
    ask = compare_budgets if case["kind"] == "budgets" else recommend_runs
    found = ask(runs, prior_seconds=GOLDEN["prior_seconds"], **case["asked"]).to_dict()
    assert differences(case["json"], found) == []


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunArchive, dict[str, str]]:
    """An archive with the demo's records, and its run ids by the new ones."""
    archive = RunArchive(tmp_path_factory.mktemp("demo"), create=True)
    old_ids: dict[str, str] = {}
    for one in GOLDEN["archive"]["runs"]:
        text = json.dumps(one["manifest"])
        for new, old in old_ids.items():
            text = text.replace(old, new)
        writer = archive.start_run(one["manifest"]["run_name"])
        tensors = history_tensors(
            {
                name: MetricHistory(**{k: [math.nan if v is None else v for v in vs] for k, vs in history.items()})
                for name, history in one["metrics"].items()
            }
        )
        manifest = msgspec.convert(json.loads(text), Manifest)
        writer.commit(msgspec.structs.replace(manifest, files=[writer.put("metrics", "history", tensors)]))
        writer.finish()
        old_ids[writer.run_id] = one["run_id"]
    return archive, old_ids


@pytest.mark.parametrize("number", range(len(GOLDEN["archive_cases"])))
def test_demo(number: int, demo: tuple[RunArchive, dict[str, str]]) -> None:
    archive, old_ids = demo
    case = GOLDEN["archive_cases"][number]
    ask = {"runs": compare_runs, "budgets": compare_archive_budgets, "recommend": recommend_from_archive}[case["kind"]]
    text = json.dumps(ask(archive, **case["asked"]).to_dict())
    for new, old in old_ids.items():
        text = text.replace(new, old)
    assert differences(case["json"], json.loads(text)) == []
