"""Trainings that are killed, ranks that fail, runs that diverge: the record is sound, or there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from archive.torture import mismatches, trainings, unhealthy
from reuse_algos.archive import RunArchive
from toy import record_run


@pytest.mark.ranks
@pytest.mark.usefixtures("forked")
def test_where_one_rank_fails_all_raise_and_nothing_is_committed(tmp_path: Path) -> None:
    """One try with a rank that is killed, one with a rank whose disk is full."""
    outcome = trainings.failing_ranks(tmp_path, count=2)
    assert (outcome.tries, outcome.ok) == (2, True), outcome


@pytest.mark.usefixtures("forked")
def test_a_killed_and_resumed_training_is_bit_equal(tmp_path: Path) -> None:
    outcome = trainings.resumed(tmp_path, count=1, kills=2)
    assert (outcome.tries, outcome.notes["kills"], outcome.ok) == (1, 2, True), outcome


def test_runs_that_went_wrong_are_stored_exactly_and_do_not_teach(tmp_path: Path) -> None:
    outcome = unhealthy.case(tmp_path)
    assert (outcome.tries, outcome.ok) == (5, True), outcome


def test_runs_that_do_not_fit_are_refused_or_remapped(tmp_path: Path) -> None:
    outcome = mismatches.case(tmp_path)
    assert (outcome.tries, outcome.ok) == (18, True), outcome


def test_the_comparison_notices_a_difference(tmp_path: Path) -> None:
    """A control: of runs of another seed nothing is bit-equal."""
    run_ids = [record_run(tmp_path, seed=seed, epochs=1) for seed in (1, 2)]
    runs = [RunArchive(tmp_path).run(run_id) for run_id in run_ids]
    assert trainings.differences(runs[0], runs[0]) == []
    found = trainings.differences(*runs)
    assert "last 0.weight" in str(found) or "last module.0.weight" in str(found), found
    assert {"signal logits", "signal loss", "metric loss/train/total"} <= set(found)
