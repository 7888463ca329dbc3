"""Searches of a sequence: points drawn at random, values dropped rung by rung, and runs that the archive holds."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from compare.synthetic_runs import write_run
from made_sequences import Here, sequence
from reuse_algos.archive import RunArchive
from reuse_algos.errors import RecipeError, SequenceError
from reuse_algos.sections import Faults
from reuse_algos.sequence import Plan, PlannedStep, look_up_states, plan_sequence, run_sequence, sequence_report
from reuse_algos.sequence.planning.halving import rung_duration, rungs_of, survivors
from reuse_algos.sequence.planning.loading import load_sequence
from reuse_algos.sequence.planning.sampling import sampled_points
from reuse_algos.sequence.planning.schema import HalvingConfig, SampleConfig
from reuse_algos.sequence.reporting.render import print_plan

RATES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]


def planned(here: Path, **keys: Any) -> Plan:
    """Eight rates of 16 epochs, searched by halving in one arm and in full in the other."""
    values: dict[str, Any] = {
        "overrides": {"max_duration": "16ep", "device": "cpu"},
        "grid": {"optimizer.lr": RATES},
        "arms": {"full": {}, "halving": {}},
        "baseline": "full",
        "search": {"key": "optimizer.lr", "halving": {"rungs": 3, "eta": 4, "arms": ["halving"]}},
        **keys,
    }
    return plan_sequence(load_sequence(sequence(here, **values)))


def accuracy(rate: float, epochs: int) -> float:
    """Best near 0.1, and better with more epochs."""
    return 0.9 - 0.1 * abs(math.log10(rate / 0.11)) - 0.2 / epochs


class Made:
    """Writes a run of one evaluation an epoch in place of training; the last ones say what was trained."""

    def __init__(self, limit: int = 1000) -> None:
        self.titles: list[str] = []
        self.limit = limit

    def __call__(self, step: PlannedStep, ranks: int) -> int:
        if len(self.titles) == self.limit:
            return 1
        self.titles.append(step.title)
        write(step)
        return 0


def write(step: PlannedStep, *, metric_values: list[float] | None = None, **fields: Any) -> str:
    settings = step.recipe.settings
    rate, epochs = settings.optimizer["lr"], int(str(settings.max_duration).removesuffix("ep"))
    values = [accuracy(rate, epoch) for epoch in range(1, epochs + 1)]
    archive = RunArchive(settings.archive or "", create=True)
    given = {"tags": step.tags, "recipe": step.recipe.record, **fields}
    return write_run(archive, None, settings.seed, metric_values or values, **given)


def run(plan: Plan, made: Made) -> list[str]:
    said: list[str] = []
    run_sequence(plan, launcher=Here(made), say=said.append)
    return said


def test_the_best_quarter_trains_on_and_the_report_counts_all_of_it(tmp_path: Path) -> None:
    plan, made = planned(tmp_path), Made()
    said = run(plan, made)
    trained = [title for title in made.titles if title.startswith("halving")]
    assert len(trained) == 8 + 2 + 1
    assert trained[8:] == ["halving/rung-2_lr-0.1", "halving/rung-2_lr-0.2", "halving/rung-3_lr-0.1"]
    assert sum("dropped" in line for line in said) == 6 + 6 + 1
    durations = {step.rung: step.recipe.settings.max_duration for step in plan.of_arm("halving")}
    assert durations == {1: "1ep", 2: "4ep", 3: "16ep"}
    archive = RunArchive(tmp_path / "archive", create=True)
    states = look_up_states(plan, archive)
    assert sorted({state.state for state in states}) == ["finished", "stopped"]
    report = sequence_report(plan.config, states, archive)
    full, halving = report.arms
    assert halving.total.epochs == 8 * 1 + 2 * 4 + 1 * 16
    assert halving.share["epochs"] == pytest.approx(32 / 128)
    assert report.search is not None
    assert [arm.winner for arm in report.search.arms] == [0.1, 0.1]
    assert [(one.value, one.rung) for one in report.search.arms[1].candidates if one.rung > 1] == [(0.1, 3), (0.2, 2)]
    assert report.search.agreements[0].verdict == "same winner"
    assert (full.best, halving.best) == pytest.approx((accuracy(0.1, 16),) * 2)
    assert halving.final.estimate == pytest.approx(accuracy(0.1, 16)), "only the last rung says how good it ends"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a search trains that nobody kills."""
    made = Made()
    run(planned(tmp_path_factory.mktemp("whole")), made)
    return made.titles


@pytest.mark.parametrize("after", [5, 9, 18])
def test_a_search_that_was_killed_decides_as_it_would_have(tmp_path: Path, whole: list[str], after: int) -> None:
    plan, first, second = planned(tmp_path), Made(after), Made()
    with pytest.raises(SequenceError, match="failed"):
        run(plan, first)
    run(plan, second)
    assert [*first.titles, *second.titles] == whole
    run(plan, nothing := Made())
    assert nothing.titles == []


def test_runs_of_other_studies_are_not_trained_again(tmp_path: Path) -> None:
    plan = planned(tmp_path, arms={"halving": {}}, baseline=None)
    held = {step.title: write(step, tags={"study": "old"}) for step in plan.steps[2:4]}
    made = Made()
    said = run(plan, made)
    assert not set(held) & set(made.titles)
    assert f"[3/24] halving/rung-1_lr-0.05: the archive holds it ({held[plan.steps[2].title]})" in said
    archive = RunArchive(tmp_path / "archive", create=True)
    report = sequence_report(plan.config, look_up_states(plan, archive), archive)
    assert [step.held for step in report.arms[0].steps].count(True) == 2
    assert any("the archive held 2 of its steps" in note for note in report.notes)
    again, all_of_it = planned(tmp_path, arms={"halving": {}}, baseline=None, name="more", use_held=False), Made()
    run(again, all_of_it)
    assert len(all_of_it.titles) == 8 + 2 + 1


def test_an_archived_curve_at_a_constant_rate_counts_in_every_rung(tmp_path: Path) -> None:
    overrides = {"max_duration": "16ep", "device": "cpu", "scheduler": None}
    plan = planned(tmp_path, arms={"halving": {}}, baseline=None, overrides=overrides)
    for step in plan.steps[-8:]:
        write(step, tags={"study": "old"})
    run(plan, made := Made())
    assert made.titles == []
    archive = RunArchive(tmp_path / "archive", create=True)
    states = {state.step.title: state for state in look_up_states(plan, archive)}
    first, last = states["halving/rung-1_lr-0.1"], states["halving/rung-3_lr-0.1"]
    assert first.run is not None
    assert first.run.id == getattr(last.run, "id", None)
    metric = first.run.manifest.monitor or ""
    assert (first.final(metric), last.final(metric)) == pytest.approx((accuracy(0.1, 1), accuracy(0.1, 16)))
    # Under a schedule that decays, what a longer run had on its way is not what a short one ends at.
    decayed = planned(tmp_path, arms={"halving": {}}, baseline=None, name="decayed")
    run(decayed, made := Made())
    assert len(made.titles) == 8 + 2 + 1


def test_later_rungs_may_be_taught_by_the_one_before(tmp_path: Path) -> None:
    taught = {
        "algorithms": {
            "prior_run_distillation": {
                "runs": {"tags": {"sequence": "${name}", "rung": "previous"}, "order": "best", "limit": 1}
            }
        }
    }
    search = {"key": "optimizer.lr", "halving": {"rungs": 2, "eta": 4, "later": taught}}
    plan = planned(tmp_path, arms={"halving": {}}, baseline=None, search=search)
    first, later = plan.steps[0], plan.steps[-1]
    assert first.recipe.settings.algorithms == {}
    asked = later.recipe.settings.algorithms["prior_run_distillation"]["runs"]
    assert asked["tags"] == {"sequence": "tiny", "rung": "1"}
    assert (first.tags["rung"], later.tags["rung"]) == ("1", "2")
    run(plan, made := Made())
    assert len(made.titles) == 8 + 2


def test_a_search_in_which_everything_diverges_has_no_winner(tmp_path: Path) -> None:
    plan = planned(tmp_path, arms={"halving": {}}, baseline=None)
    for step in plan.steps[:8]:
        write(step, health="diverged", metric_values=[0.5, math.nan])
    archive = RunArchive(tmp_path / "archive", create=True)
    states = look_up_states(plan, archive)
    assert [state.state for state in states] == ["finished"] * 8 + ["stopped"] * 16
    report = sequence_report(plan.config, states, archive)
    assert report.search is not None
    assert report.search.arms[0].winner is None
    assert math.isnan(report.arms[0].best)


def test_the_plan_says_that_later_rungs_are_not_all_trained(tmp_path: Path) -> None:
    out = Console(file=io.StringIO(), width=200)
    print_plan(look_up_states(planned(tmp_path), RunArchive(tmp_path / "made", create=True)), out)
    said = out.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined]  # a StringIO
    assert said.startswith("32 of 32 steps are still to be trained; 16 of them are of later rungs")


def test_rungs_by_hand() -> None:
    rungs = rungs_of(HalvingConfig(rungs=3, eta=4))
    assert [rung_duration("40ep", rung) for rung in rungs] == ["3ep", "10ep", "40ep"]
    assert rung_duration(40, rungs[1]) == "10ep"
    assert rung_duration("${a}", rungs[1]) is None
    finals = {"a": [0.1], "b": [0.3, math.nan], "c": [0.2, 0.6], "d": [0.3], "e": [0.3]}
    assert survivors(finals, 2, "max") == ["c", "d"]
    assert survivors(finals, 2, "min") == ["a", "d"]
    assert survivors({"a": [math.nan], "b": [math.inf]}, 2, "max") == []


def test_a_sample_fills_the_logarithms_evenly() -> None:
    faults = Faults("here")
    over = {"optimizer": {"lr": [1e-4, 1.0]}, "optimizer.weight_decay": [1e-6, 1e-2]}
    points = sampled_points(SampleConfig(over=over, count=16, seed=3), "sample", faults)
    assert len(points) == 16
    for key in ("optimizer.lr", "optimizer.weight_decay"):
        logs = np.sort(np.log10([point[key] for point in points]))
        cells = np.floor((logs - (-4 if key == "optimizer.lr" else -6)) / 4 * 16)
        assert cells.tolist() == list(range(16)), "one value in each sixteenth, as of a digital net"
    assert sampled_points(SampleConfig(over=over, count=5, seed=3), "sample", faults) == points[:5]
    assert sampled_points(SampleConfig(over=over, count=16, seed=4), "sample", faults) != points


def test_sampled_values_are_steps_beside_the_grid(tmp_path: Path) -> None:
    sample = {"over": {"optimizer.lr": [0.01, 1.0]}, "count": 4}
    plan = planned(tmp_path, grid={"seed": [1, 2]}, sample=sample, arms={"a": {}}, baseline=None, search="optimizer.lr")
    rates = [step.recipe.settings.optimizer["lr"] for step in plan.steps]
    assert len(plan.steps) == 8
    assert rates[:4] == rates[4:]
    assert len(set(rates)) == 4
    assert plan.steps[0].name == f"seed-1_lr-{rates[0]}"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sample": {"over": {"optimizer.lr": [0, 1]}}}, "sample.over.optimizer.lr: must be two bounds above 0"),
        ({"sample": {"count": 3}}, "sample.over: missing"),
        ({"sample": {"over": {"optimizer.lr": [0.1, 1.0]}}}, "optimizer.lr: is in the grid, too"),
        ({"search": {"halving": {}}}, "search.key: missing"),
        ({"search": {"key": "optimizer.lr", "halving": {"eta": 1}}}, "search.halving.eta: must be at least 2"),
        (
            {"search": {"key": "optimizer.lr", "halving": {"arms": ["ful"]}}},
            "there is no arm 'ful'.* mean 'full'",
        ),
        ({"search": {"key": "optimizer.lr", "halving": {"rung": 2}}}, "search.halving.rung"),
        (
            {"search": {"key": "optimizer.lr", "halving": {"rungs": 6}}},
            r"equal budgets \(1ep, 1ep, 1ep, 1ep, 4ep, 16ep\)",
        ),
        (
            {"overrides": {"max_duration": "1dur"}, "search": {"key": "optimizer.lr", "halving": {}}},
            "max_duration: halving needs such as 40ep",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        planned(tmp_path, **keys)
