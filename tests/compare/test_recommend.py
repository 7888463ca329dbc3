"""What is recommended, and when there is not enough evidence for it."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from compare.asking import recommend_from_archive, recommend_runs
from compare.budget_records import level, records, study
from reuse_algos.archive import RunArchive
from reuse_algos.compare import Outcome, Recommendation
from reuse_algos.compare.question import Axis
from reuse_algos.compare.show.terminal import recommendation_table
from reuse_algos.errors import CompareError
from reuse_algos.presets import preset

BASELINE = records("baseline", (10, 20, 40, 80))
QUICK = records("quick", (5, 10, 20, 40), 2.0)
QUICKER = records("quicker", (5, 10, 20, 40), 4.0)


def recommend(*groups, target: float = level(40), **options) -> Recommendation:
    return recommend_runs(
        [run for group in groups for run in group], target=target, metric="acc", mode="max", **options
    )


def reasons(found: Recommendation, name: str) -> str:
    return " ".join(next(c for c in found.candidates if c.name == name).lacking)


def test_the_cheapest_is_recommended_with_its_evidence() -> None:
    found = recommend(BASELINE, QUICK, QUICKER, price_per_hour=36.0)
    assert found.choice == "quicker"
    assert [(c.name, c.standing) for c in found.candidates] == [
        ("quicker", "recommended"),
        ("quick", "cheaper than the baseline"),
        ("baseline", "baseline"),
    ]
    best = found.candidates[0]
    assert best.steps.estimate == pytest.approx(200)  # 10 epochs of 20 steps are as good as 40 plain ones
    assert best.cost is not None
    assert best.cost.estimate == pytest.approx(20.0)
    assert best.cost.low < 20.0 < best.cost.high
    assert best.dollars is not None
    assert best.dollars.estimate == pytest.approx(0.2)
    assert best.speedup is not None
    assert best.speedup.estimate == pytest.approx(4.0)
    assert best.speedup.low > 1.0
    assert best.evidence[0].run_ids == ["quicker-10-0", "quicker-10-1", "quicker-10-2"]
    assert best.evidence[0].seeds == [0, 1, 2]
    assert best.sure_budget == "20ep"
    assert found.decision_confidence == pytest.approx(0.975)
    assert found.sentence.startswith(
        "Train quicker for 200 steps (10ep): it is predicted to reach acc 0.607698 with 4.00"
    )


def test_controls_are_never_recommended() -> None:
    control = [dataclasses.replace(run, control_of="quick") for run in QUICKER]
    found = recommend(BASELINE, QUICK, control)
    assert found.choice == "quick"
    assert [c.name for c in found.candidates] == ["quick", "baseline"]
    assert any("never recommended: quicker" in note for note in found.notes)


def test_two_seeds_are_not_enough() -> None:
    found = recommend(BASELINE, [run for run in QUICK if run.seed != 1])
    assert (found.choice, found.candidates[1].standing) == (None, "not enough evidence")
    assert "too few different seeds" in reasons(found, "quick")
    assert found.sentence.startswith("Not enough evidence")
    repeated = [dataclasses.replace(run, seed=0) for run in QUICK]
    assert "1 at 20ep" in reasons(recommend(BASELINE, repeated), "quick")
    of_baseline = recommend([run for run in BASELINE if run.seed != 1], QUICK)
    assert "Of the baseline: baseline has too few" in reasons(of_baseline, "quick")


def test_nothing_is_extrapolated() -> None:
    found = recommend(BASELINE, QUICK, target=0.99)
    assert found.choice is None
    assert "nothing is extrapolated" in reasons(found, "quick")
    assert "nothing is extrapolated" in found.sentence
    # The baseline may fall short: a technique that gets there is cheaper than all that was tried of the baseline.
    short = recommend(BASELINE[:-3], QUICK, target=level(60))
    assert short.choice == "quick"
    assert short.candidates[0].speedup is not None
    assert short.candidates[0].speedup.bound == ">="
    assert "at least" in short.sentence


def law(group: str, budgets: tuple[int, ...], factor: float, **fields: object) -> list[Outcome]:
    """Errors of ``factor * steps ** -0.5`` at 2 s an epoch, with a spread of about 2 % over three seeds."""
    return [
        dataclasses.replace(run, final=1 - factor * run.steps**-0.5 * (1 + 0.02 * ((run.seed or 0) - 1)), **fields)
        for run in records(group, budgets)
    ]


def test_a_budget_that_was_not_trained_is_forecast_with_its_cost() -> None:
    plain, quick = law("baseline", (5, 10, 20, 40), 6.0), law("quick", (5, 10, 20, 40), 4.0)
    target = 1 - 4.0 * 1600**-0.5  # of quick after 80 epochs of 20 steps, twice its largest budget
    found = recommend(plain, quick, target=target)
    assert found.choice is None
    made = next(one for one in found.candidates if one.name == "quick").forecast
    assert made is not None
    assert made.steps.estimate == pytest.approx(1600, rel=1e-2)
    assert made.steps.low < 1600 < made.steps.high < 2400
    assert made.cost is not None
    assert made.cost.estimate == pytest.approx(160, rel=1e-2)
    assert abs(made.error) < 1e-6
    assert "Next, train quick for about 16" in found.sentence
    assert "which no run has shown" in found.sentence
    dear = recommend(plain, quick, target=target, price_per_hour=36).sentence
    assert re.search(r"steps at a cost of \S+.* \(from \S+.* to \S+.*\), \$1\.[56]\d: it is predicted", dear)
    of_loss = [dataclasses.replace(run, final=1 - run.final) for run in (*plain, *quick)]
    asked = recommend_runs(of_loss, target=1 - target, metric="loss", mode="min")
    assert "Next, train quick for about 16" in asked.sentence
    # Neither far ahead, nor from two budgets, nor where a run reaches the target.
    two_budgets = (plain[-6:], quick[-6:])
    for groups, aim in (((plain, quick), 1 - 4.0 * 16000**-0.5), (two_budgets, target), ((plain, quick), 0.8)):
        assert "Next, train" not in recommend(*groups, target=aim).sentence


@pytest.mark.parametrize(("changes", "said"), [({}, "same_data"), ({"when": {"stop": "1dur"}}, None)])
def test_the_preset_of_what_is_recommended_is_named(changes: dict, said: str | None) -> None:
    """The runs' own choice is beside the preset's values, and a changed value makes it another setting."""
    section = {**preset("same_data")["prior_run_distillation"], "runs": {"tags": {"a": "b"}}, **changes}
    trained = SimpleNamespace(recipe={"algorithms": {"prior_run_distillation": section}})
    found = recommend(BASELINE, [dataclasses.replace(run, manifest=trained) for run in QUICK])
    assert found.preset == said
    assert ("In a recipe: preset: same_data." in found.sentence) == (said is not None)
    assert recommend(BASELINE, QUICK).preset is None


def test_diagnoses_and_forecasts_of_runs_are_quoted() -> None:
    alpha = [(step, -0.999) for step in range(1, 9)]
    read = {"instruments/alpha": alpha, "forecast/50pct/end_loss_error": [(100, -0.04)]}
    # The end was 0.96 / 0.96 = 1, which is in the first interval and not in the second.
    interval = {"forecast/50pct/end_loss": [(50, 0.96)], "forecast/50pct/end_loss_low": [(50, 0.9)]}
    limits = {1: {**interval, "forecast/50pct/end_loss_high": [(50, 1.1)]}}
    limits[2] = {**interval, "forecast/50pct/end_loss_high": [(50, 0.99)]}
    slow = [
        dataclasses.replace(run, readings={**read, **limits.get(run.seed, {})} if run.seed else {}) for run in QUICK
    ]
    notes = recommend(BASELINE, slow).notes
    (said,) = [note for note in notes if "learning rate is too small" in note]
    assert said.startswith("quick, 8 of 12 runs: ")
    assert said.endswith("The median distance of alpha from -1 of 8 readings is 0.001; 8 of them are at most 0.02.")
    held = "(n = 8; the end was in 4 of 8 intervals)"
    assert f"quick: forecasts of the loss at the end were off by 4.0% after 50 % of a run {held}, as medians." in notes


def test_a_target_below_the_smallest_budget() -> None:
    found = recommend(BASELINE, QUICKER, target=level(15))
    assert found.choice == "quicker"
    assert found.candidates[0].bound == "<="
    assert "100 steps (5ep) or fewer" in found.sentence
    nothing = recommend(BASELINE, QUICK, target=level(5))
    assert nothing.choice is None
    assert "Of the baseline" not in reasons(nothing, "quick")
    # A comparison would call it at least 2 times as quick: the two must not disagree in words.
    assert "both at the target with their smallest budgets already (5ep, 10ep)" in reasons(nothing, "quick")


def test_an_interval_that_does_not_separate_from_the_baseline() -> None:
    twin = [dataclasses.replace(run, group="twin") for run in BASELINE]
    found = recommend(BASELINE, twin)
    assert found.choice is None
    assert "not clearly cheaper than baseline" in reasons(found, "twin")
    assert "baseline itself is predicted to need 800 steps (40ep)." in found.sentence


def test_a_mean_that_gets_there_without_being_sure() -> None:
    loose = [dataclasses.replace(run, final=run.final + (run.seed or 0) * 0.05 - 0.05) for run in QUICK]
    assert "not clearly so at its largest budget" in reasons(recommend(BASELINE, loose, target=level(75)), "quick")
    lost = [dataclasses.replace(run, final=math.nan) if run.seed == 1 else run for run in QUICK]
    assert "nothing is extrapolated" in reasons(recommend(BASELINE, lost), "quick")


def test_a_baseline_that_only_just_gets_there_can_be_beaten() -> None:
    """It is surely at the target at none of its budgets, and that is no reason against those that are."""
    found = recommend(BASELINE, QUICKER, target=level(80))
    assert found.choice == "quicker"
    assert "not clearly so" in reasons(found, "baseline")
    speedup = found.candidates[0].speedup
    assert speedup is not None
    assert speedup.estimate == pytest.approx(4.0)
    assert (speedup.low > 1.0, speedup.high) == (True, math.inf)


def test_harvests_count_and_may_be_shared() -> None:
    dear = [dataclasses.replace(run, harvest_seconds=60.0) for run in QUICK]
    assert recommend(BASELINE, dear).choice is None  # 40 + 60 seconds against 80
    assert recommend(BASELINE, dear, later_runs=10).choice == "quick"  # 40 + 6
    prior = [dataclasses.replace(run, prior_run_ids=("p",)) for run in QUICK]
    paid = recommend(BASELINE, prior, prior_seconds={"p": 500.0}, later_runs=10, count_prior_training=True)
    assert paid.choice is None  # 40 + 50
    assert recommend(BASELINE, prior, prior_seconds={"p": 500.0}, later_runs=10).choice == "quick"


def test_without_seconds_it_goes_by_steps() -> None:
    found = recommend([dataclasses.replace(run, train_seconds=0.0) for run in (*BASELINE, *QUICK)])
    assert (found.axis, found.choice) == ("steps", "quick")
    assert any("counted in steps" in note for note in found.notes)


def test_two_that_are_alike_are_said_to_be() -> None:
    twin = [dataclasses.replace(run, group="twin") for run in QUICK]
    assert recommend(BASELINE, QUICK, twin).sentence.endswith(" Not clearly dearer: twin.")
    assert "dearer" not in recommend(BASELINE, QUICK, QUICKER).sentence


def test_of_two_that_cost_the_same_the_better_comes_first() -> None:
    """Both are at the target with their smallest budget, which is all that is known of their cost."""
    best = [dataclasses.replace(run, group="zz best", final=run.final + 0.05) for run in QUICK]
    baseline = records("baseline", (5, 10, 20, 40))
    found = recommend(baseline, QUICK, best, target=level(9))
    assert found.choice == "zz best"
    assert "Not clearly dearer: quick." in found.sentence
    worse = [dataclasses.replace(run, group="a worse", final=run.final - 0.001) for run in QUICK]
    losses = [dataclasses.replace(run, final=-run.final) for run in (*baseline, *QUICK, *worse)]
    assert recommend_runs(losses, target=-level(9), metric="loss", mode="min").choice == "quick"


@pytest.mark.parametrize(
    ("axis", "word"), [("steps", "fewer steps"), ("dollars", "fewer dollars"), ("samples", "examples")]
)
def test_the_axis_can_be_chosen(axis: Axis, word: str) -> None:
    dear = [dataclasses.replace(run, harvest_seconds=60.0) for run in QUICK]
    found = recommend(BASELINE, dear, judge_by=axis, price_per_hour=3600.0)
    assert found.axis == axis
    assert word in found.sentence
    assert found.choice == (None if axis == "dollars" else "quick")  # 40 + 60 seconds against 80
    assert not any("counted in steps" in note for note in found.notes)


def test_an_axis_that_is_not_known() -> None:
    known = [dataclasses.replace(run, flops=1e9 * run.steps) for run in BASELINE]
    found = recommend(known, QUICK, judge_by="flops")
    assert (found.choice, found.axis) == (None, "flops")
    assert "What quick costs in FLOPs is not known." in reasons(found, "quick")
    with pytest.raises(CompareError, match="FLOPs is not known: judge by steps"):
        recommend(BASELINE, QUICK, judge_by="flops")
    with pytest.raises(CompareError, match="judged by dollars without the price of an hour"):
        recommend(BASELINE, QUICK, judge_by="dollars")
    with pytest.raises(CompareError, match="cannot be judged by 'minutes'"):
        recommend(BASELINE, QUICK, judge_by="minutes")


def test_errors() -> None:
    with pytest.raises(CompareError, match="Did you mean 'baseline'"):
        recommend(BASELINE, QUICK, baseline="basline")
    with pytest.raises(CompareError, match="must be a number"):
        recommend(BASELINE, QUICK, target=math.inf)
    with pytest.raises(CompareError, match="confidence"):
        recommend(BASELINE, QUICK, confidence=0.0)


def test_an_archive_json_and_the_terminal(tmp_path_factory: pytest.TempPathFactory) -> None:
    archive = RunArchive(tmp_path_factory.mktemp("runs") / "archive", create=True)
    study(archive)
    found = recommend_from_archive(archive, target=0.6, price_per_hour=2.0)
    assert found.choice == "distilled"
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["candidates"][0]["evidence"][0]["run_ids"] == found.candidates[0].evidence[0].run_ids
    out = io.StringIO()
    Console(file=out, width=100, highlight=False, markup=False).print(recommendation_table(found))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    for word in ("Train distilled for about", "recommended", "seeds 0, 1, 2", "about half of all runs", "dollars"):
        assert word in text


@pytest.mark.parametrize("target", [28, 40])
def test_picking_the_best_of_many_useless_techniques_finds_none(target: int) -> None:
    rng = np.random.default_rng(5)
    chosen = 0
    for _ in range(40):
        runs = [
            Outcome("baseline" if g == 0 else f"idea {g}", seed, f"{b}ep", b, b, level(b) + rng.normal(0, 0.004), b)
            for g in range(6)
            for b in (10, 20, 40)
            for seed in range(3)
        ]
        chosen += recommend(runs, target=level(target)).choice is not None
    assert chosen <= 3  # 2.5 % are allowed; 3 of 40 or fewer then have a probability of 98 %
