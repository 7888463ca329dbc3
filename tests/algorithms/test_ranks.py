"""Two ranks (gloo) do what one does. One launch for all algorithms, as starting the processes takes the most time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.settings import HOMES, RESUMED_ON_RANKS, ROWS, Archives, differing, train
from forked_python import launch
from replaying import N, add_part, follow_part, follow_replace, make_archive
from reuse_algos.archive import RunArchive


@pytest.mark.ranks
def test_two_ranks_do_what_one_does(archive: RunArchive, tmp_path: Path) -> None:
    archives = {"blobs": archive, "images": make_archive(tmp_path / "images")}
    add_part(archives["images"], tmp_path / "images")
    script = Path(__file__).parents[1] / "ranks" / "algorithms_on_ranks.py"
    done = launch(2, str(script), str(tmp_path), *(str(archives[home].location) for home in HOMES))
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    _every_row(archives, *(rank["rows"] for rank in ranks))
    for rank in ranks:
        assert rank["resumed"] == {name: [] for name in RESUMED_ON_RANKS}
        assert "ignored targets" in rank["refused"], "every rank raises what one of them found"
    assert len(ranks[0]["branches"]) == 8
    assert ranks[0]["branches"] == ranks[1]["branches"], "DDP kept both branches alike"
    _perturbations(archives["images"], [rank["replace"] for rank in ranks])
    _partly_perturbed(archives["images"], [rank["part"] for rank in ranks])
    _heads(*(rank["heads"] for rank in ranks))


def _every_row(archives: Archives, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    for name, row in ROWS.items():
        alone = train(row, row.build(archives, **row.ranks), model=HOMES[row.home].still(5))
        assert not differing(first[name]["weights"], second[name]["weights"]), name
        assert not differing(first[name]["weights"], alone.weights, atol=1e-5), name
        assert first[name]["metrics"] == second[name]["metrics"], name
        assert first[name]["metrics"] == pytest.approx(alone.metrics, rel=1e-4, abs=1e-5), name


def _perturbations(archive: RunArchive, found: list[dict[str, float]]) -> None:
    """Which rows are replaced depends on the ranks (a share of each rank's rows); what they are shown does not."""
    everything = follow_replace(archive, mode="append", fraction=1.0)
    both = {**found[0], **found[1]}
    assert len(both) == 2 * N // 2
    assert both == pytest.approx({key: everything[key] for key in both}, rel=1e-5)


def _partly_perturbed(archive: RunArchive, found: list[dict[str, Any]]) -> None:
    for weight, expected in follow_part(archive).items():
        ours = [rank[weight] for rank in found]
        assert 0 < sum(expected["rows"]) < N
        assert ours[0]["rows"] == expected["rows"]
        assert ours[0]["weights"] == ours[1]["weights"]
        assert ours[0]["weights"] == pytest.approx(expected["weights"], rel=1e-4, abs=1e-6), "every row counts alike"


def _heads(first: Mapping[str, Mapping[str, Tensor]], second: Mapping[str, Mapping[str, Tensor]]) -> None:
    for case in ("microbatches", "compiled"):
        for rank in (first, second):
            assert not differing(rank[f"{case} live"], rank[f"{case} cached"], atol=1e-5), case
        weights = [{k: v for k, v in rank[f"{case} cached"].items() if k != "losses"} for rank in (first, second)]
        assert not differing(*weights), "the ranks agree"
