"""Budget comparisons of records and of real archives of made-up runs."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from compare.asking import compare_archive_budgets, compare_budgets
from compare.budget_records import FLOPS, level, records, study
from compare.synthetic_runs import METRIC, write_run
from reuse_algos.archive import ModelRecord, RunArchive
from reuse_algos.compare import (
    Comparison,
    Outcome,
)
from reuse_algos.compare.show.terminal import comparison_table
from reuse_algos.compare.show.words import format_amount
from reuse_algos.errors import CompareError

BASELINE = records("baseline", (10, 20, 40, 80))
QUICK = records("quick", (5, 10, 20, 40), 2.0)


def compare(*groups, **options) -> Comparison:
    return compare_budgets([run for group in groups for run in group], metric=METRIC, mode="max", **options)


def text_of(comparison: Comparison) -> str:
    out = io.StringIO()
    Console(file=out, width=100, highlight=False, markup=False).print(comparison_table(comparison))
    return out.getvalue()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> RunArchive:
    archive = RunArchive(tmp_path_factory.mktemp("runs") / "archive", create=True)
    study(archive)
    return archive


@pytest.fixture(scope="module")
def comparison(archive: RunArchive) -> Comparison:
    return compare_archive_budgets(archive, price_per_hour=3.6)


def test_a_known_speedup_is_recovered_exactly_at_a_budget() -> None:
    """Twice as quick: 40 epochs of it are as good as 80 plain ones."""
    comparison = compare(BASELINE, records("quick", (10, 20, 40, 80), 2.0))
    baseline, quick = comparison.groups
    assert comparison.target == pytest.approx(level(80))
    assert comparison.target_source == "baseline mean final"
    assert quick.paired
    assert [point.budget for point in quick.points] == ["10ep", "20ep", "40ep", "80ep"]
    for axis in ("steps", "samples", "train_seconds", "cost_seconds", "amortised_seconds"):
        speedup = quick.speedups[axis]
        assert speedup.estimate == pytest.approx(2.0)
        assert 1.5 < speedup.low < 2.0 < speedup.high < 2.5
    assert baseline.speedups == {}
    assert (baseline.verdict, baseline.paired) == ("baseline", None)
    cost = baseline.cost_to_target["cost_seconds"]
    assert cost is not None
    assert cost.estimate == pytest.approx(160.0)
    assert "dollars" not in quick.speedups  # no price
    assert "flops" not in quick.speedups  # not recorded


def test_values_and_intervals_of_points(comparison: Comparison) -> None:
    for group in comparison.groups:
        for point in group.points:
            assert (point.n, len(point.values), point.seeds) == (3, 3, [0, 1, 2])
            test = stats.ttest_1samp(point.values, 0.0).confidence_interval(0.95)
            assert (point.final.low, point.final.high) == pytest.approx((test.low, test.high))
            assert point.final.estimate == pytest.approx(np.mean(point.values))


def test_costs_of_an_archive(archive: RunArchive, comparison: Comparison) -> None:
    distilled = comparison.group("distilled")
    point = distilled.points[1]
    runs = [archive.run(run_id).manifest for run_id in point.run_ids]
    trained = np.array([run.cost.train_seconds for run in runs])
    assert point.budget == "10ep"
    assert point.costs["steps"] == 200
    assert point.costs["samples"] == 6400
    assert point.costs["train_seconds"] == pytest.approx(stats.gmean(trained))
    assert point.costs["cost_seconds"] == pytest.approx(stats.gmean(trained + 1.0 + 20.0))
    assert point.costs["amortised_seconds"] == pytest.approx(stats.gmean(trained + 1.0 + 20.0 / 5))
    assert point.costs["flops"] == pytest.approx(3 * FLOPS * 6400)
    assert point.costs["dollars"] == pytest.approx(stats.gmean(trained + 21.0) / 1000)  # $3.6 an hour
    dollars, seconds = (distilled.speedups[axis] for axis in ("dollars", "cost_seconds"))
    assert (dollars.estimate, dollars.low, dollars.high) == pytest.approx((seconds.estimate, seconds.low, seconds.high))
    assert 2.0 < distilled.speedups["steps"].estimate < 2.8
    assert distilled.verdict == "faster"


def test_prior_training_is_counted_if_asked_for(archive: RunArchive, comparison: Comparison) -> None:
    counted = compare_archive_budgets(archive, count_prior_training=True, later_runs=4)
    point = counted.group("distilled").points[0]
    prior = archive.run(next(iter(archive.run(point.run_ids[0]).manifest.prior_runs)).run_id).manifest.cost
    without = point.costs["cost_seconds"]
    assert without is not None
    assert point.costs["amortised_seconds"] == pytest.approx(without - 20.0 + (20.0 + prior.train_seconds) / 4)
    even = comparison.group("distilled").break_even
    assert even is not None
    ours, theirs = (comparison.group(name).cost_to_target["cost_seconds"] for name in ("distilled", "baseline"))
    assert ours is not None
    assert theirs is not None
    saved = theirs.estimate - (ours.estimate - 20.0)
    assert even.harvest_runs.estimate == pytest.approx(20.0 / saved)
    assert even.prior_training_runs.estimate == pytest.approx((20.0 + prior.train_seconds) / saved)


def test_each_control_stands_after_its_technique(comparison: Comparison) -> None:
    assert [group.name for group in comparison.groups] == ["baseline", "distilled", "a smooth teacher"]
    assert comparison.group("a smooth teacher").control_of == "distilled"
    assert comparison.group("a smooth teacher").verdict != "faster"
    loops = [records(name, (10,), control_of=of) for name, of in (("a", "b"), ("b", "a"), ("c", "nothing"))]
    assert [group.name for group in compare(BASELINE, *loops).groups] == ["baseline", "c", "a", "b"]


def test_pareto_front() -> None:
    comparison = compare(BASELINE, QUICK)
    fronts = {g.name: [p.on_pareto_front["steps"] for p in g.points] for g in comparison.groups}
    # 10, 20 and 40 epochs of "quick" beat plain training of as many; its 40 are as good as 80 plain ones and cheaper.
    assert fronts == {"baseline": [False] * 4, "quick": [True] * 4}
    assert not comparison.groups[1].points[0].on_pareto_front["dollars"]
    dear = [dataclasses.replace(run, harvest_seconds=1000.0) for run in QUICK]
    fronts = {g.name: [p.on_pareto_front["cost_seconds"] for p in g.points] for g in compare(BASELINE, dear).groups}
    assert fronts == {"baseline": [True] * 4, "quick": [False] * 4}
    twins = compare(BASELINE, [dataclasses.replace(run, group="twin") for run in BASELINE])
    assert all(point.on_pareto_front["steps"] for group in twins.groups for point in group.points)


def test_the_front_of_many_points_is_that_of_all_pairs() -> None:
    """Forty groups with ties in cost and in value, against the definition: no other is as cheap and as good."""
    draw = np.random.default_rng(5)
    runs = [
        dataclasses.replace(
            run, group=f"g{n}", final=round(float(draw.uniform(0.5, 0.6)), 2), train_seconds=float(cost)
        )
        for n, cost in enumerate(draw.integers(1, 12, size=40))
        for run in records(f"g{n}", (10,))[:1]
    ]
    runs = [dataclasses.replace(run, seed=seed) for run in runs for seed in range(3)]
    points = [point for group in compare(BASELINE, runs).groups for point in group.points]
    places = [(point.costs["cost_seconds"], point.final.estimate) for point in points]
    fronts = [
        not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in places)  # type: ignore[operator]
        for cost, value in places
    ]
    assert [point.on_pareto_front["cost_seconds"] for point in points] == fronts
    assert 2 <= sum(fronts) < len(fronts)


def test_less_is_better() -> None:
    loss = [dataclasses.replace(run, final=-run.final) for run in (*BASELINE, *QUICK)]
    mirrored = compare_budgets(loss, metric="loss", mode="min")
    straight = compare(BASELINE, QUICK)
    assert mirrored.target == -straight.target
    assert mirrored.group("quick").speedups == straight.group("quick").speedups
    assert mirrored.group("quick").points[0].on_pareto_front == straight.group("quick").points[0].on_pareto_front


def test_a_given_target() -> None:
    comparison = compare(BASELINE, QUICK, target=level(20))
    assert comparison.target_source == "given"
    assert comparison.group("quick").paired is False
    assert comparison.group("quick").speedups["steps"].estimate == pytest.approx(2.0)
    assert comparison.groups[0].target_bound == ""
    beyond = compare(BASELINE, QUICK, target=0.99)
    assert [group.target_bound for group in beyond.groups] == [">=", ">="]
    assert beyond.group("quick").speedups["steps"].bound == "?"
    assert "Nothing can be said" in beyond.group("quick").sentence


def test_sentences_say_verdict_n_and_interval() -> None:
    comparison = compare(BASELINE, records("quick", (5, 10, 20, 40), 2.6), records("slow", (10, 20, 40, 80), 0.5))
    quick, slow = comparison.group("quick"), comparison.group("slow")
    assert quick.sentence.startswith("quick needs 2.")
    assert "times less cost in seconds than baseline to be as good as baseline (95 % interval from " in quick.sentence
    assert quick.sentence.endswith("n = 3, paired by seed).")
    assert slow.verdict == "slower"
    assert "slow needs more cost in seconds" in slow.sentence
    assert "below 1" in slow.sentence
    alone = compare(records("baseline", (10, 20), seeds=(0,)), records("quick", (10, 20), seeds=(0,)))
    assert alone.group("quick").verdict == "not enough runs"
    assert alone.group("quick").sentence.startswith("Not enough runs to say whether quick")


def test_a_busy_machine_is_judged_by_steps() -> None:
    """Seconds that vary by a factor of four hide what steps show."""
    rng = np.random.default_rng(3)
    runs = [
        dataclasses.replace(run, train_seconds=run.train_seconds * float(rng.uniform(1.0, 4.0)))
        for run in (*BASELINE, *records("quick", (5, 10, 20, 40), 2.6))
    ]
    in_seconds, in_steps = compare(runs), compare(runs, judge_by="steps")
    assert (in_seconds.judged_by, in_steps.judged_by) == ("cost_seconds", "steps")
    assert in_seconds.group("quick").verdict == "no difference"
    assert in_steps.group("quick").verdict == "faster"
    assert "times fewer steps than baseline to be as good as baseline" in in_steps.group("quick").sentence
    assert in_seconds.group("quick").speedups == in_steps.group("quick").speedups
    for axis, said in (("minutes", "cannot be judged by 'minutes'. Choose one of steps"), ("dollars", "price of an")):
        with pytest.raises(CompareError, match=said):
            compare(BASELINE, QUICK, judge_by=axis)


def test_batches_of_other_sizes_are_compared_by_examples() -> None:
    """A group that is 2 times as quick in examples, in batches of a quarter: half as quick in steps."""
    plain = records("baseline", (5, 10, 20, 40))
    small = [dataclasses.replace(run, steps=4 * run.steps) for run in records("small", (5, 10, 20, 40), 2.0)]
    last = [dataclasses.replace(run, samples=run.samples - 10) for run in records("last", (5, 10, 20, 40))]
    comparison = compare_budgets([*plain, *small, *last], metric="accuracy", mode="max", judge_by="samples")
    group = comparison.group("small")
    assert group.speedups["samples"].estimate == pytest.approx(2.0)
    assert group.speedups["steps"].estimate == pytest.approx(0.5)
    assert (group.verdict, group.batch_sizes) == ("faster", [8.0] * 4)
    assert comparison.shown_axes[0] == "samples"
    assert "needs 2.00 times fewer examples than baseline" in group.sentence
    (note,) = [note for note in comparison.notes if note.startswith("Batches are not all of one size")]
    assert "one size: baseline (32 examples), small (8). A step is not" in note
    out = io.StringIO()
    Console(file=out, width=100).print(comparison_table(comparison))
    assert any(line.split()[:2] == ["small", "examples"] for line in out.getvalue().splitlines())

    # Judged by something else they are shown, too; where all batches are alike they are not.
    by_steps = compare_budgets([*plain, *small], metric="accuracy", mode="max", judge_by="steps")
    assert by_steps.shown_axes[:2] == ["steps", "samples"]
    alike = compare_budgets([*plain, *last], metric="accuracy", mode="max", judge_by="steps")
    assert "samples" not in alike.shown_axes
    assert not any("of one size" in note for note in alike.notes)
    mixed = compare_budgets([*plain, *records("mixed", (5, 10)), *small_at(20)], metric="accuracy", mode="max")
    assert any("baseline (32 examples), mixed (8 to 32)" in note for note in mixed.notes)


def small_at(*budgets: int) -> list[Outcome]:
    """Runs of the group ``mixed`` in batches of a quarter."""
    return [dataclasses.replace(run, steps=4 * run.steps) for run in records("mixed", budgets)]


def test_passes_that_no_count_of_steps_has_are_named() -> None:
    known = [dataclasses.replace(run, flops=1e9 * run.samples) for run in records("baseline", (5, 10, 20, 40))]
    alike = [dataclasses.replace(run, flops=1e9 * run.samples) for run in records("alike", (5, 10, 20, 40))]
    live = [dataclasses.replace(run, flops=1.5e9 * run.samples) for run in records("live", (5, 10, 20, 40), 2.0)]
    unknown = records("unknown", (5, 10, 20, 40), 2.0)
    for axis, word in (("steps", "steps"), ("samples", "examples")):
        notes = compare_budgets([*known, *alike, *live, *unknown], metric="accuracy", mode="max", judge_by=axis).notes
        assert [note for note in notes if "FLOPs" in note] == [
            "unknown: FLOPs are not known, as of live teachers or appended rows that were not counted. A count of "
            f"{word} has none of these; only the seconds have them.",
            f"live: an example takes 1.5 times the FLOPs that it takes in baseline, which a count of {word} does not "
            "tell; FLOPs and seconds do.",
        ]
    notes = compare_budgets([*known, *live, *unknown], metric="accuracy", mode="max", judge_by="train_seconds").notes
    assert not any("FLOPs" in note for note in notes)


def test_runs_without_seconds_are_compared_by_steps() -> None:
    runs = [dataclasses.replace(run, train_seconds=0.0) for run in (*BASELINE, *QUICK)]
    comparison = compare(runs, price_per_hour=1.0)
    quick = comparison.group("quick")
    assert set(quick.speedups) == {"steps", "samples"}
    assert quick.verdict == quick.speedups["steps"].verdict
    assert quick.cost_to_target["dollars"] is None
    assert any("seconds are not recorded" in note for note in comparison.notes)
    assert "?" in text_of(comparison)


def test_notes() -> None:
    def notes(*groups, **options) -> str:
        return "\n".join(compare(*groups, **options).notes)

    assert "one budget only" in notes(BASELINE[-3:], QUICK)
    assert "too few runs at 80ep (n=1)" in notes(BASELINE, [*QUICK, *records("quick", (80,), 2.0, seeds=(0,))])
    assert "diverged (quick-10-1)" in notes(
        BASELINE, [dataclasses.replace(run, final=math.nan) if run.run_id == "quick-10-1" else run for run in QUICK]
    )
    assert "missing: 2 at 10ep" in notes(BASELINE, [run for run in QUICK if run.run_id != "quick-10-2"])
    assert "different seeds" in notes(BASELINE, [dataclasses.replace(run, seed=1) for run in QUICK])
    assert "Too few runs for a claim: quick at 5ep (n=2)" in notes(BASELINE, [r for r in QUICK if r.seed != 1])
    assert "no partner" in notes(BASELINE, records("quick", (5, 10, 20, 40), 2.0, seeds=(0, 1, 2, 3, 4)))
    flat = [
        dataclasses.replace(run, final=0.6 + (run.seed or 0) * 1e-3 + run.steps * 1e-7) if run.steps > 300 else run
        for run in BASELINE
    ]
    assert "may have been flat by then" in notes(flat, QUICK)
    assert "at most what is shown" in notes(BASELINE, records("slow", (10, 20), 0.5))
    assert "at least what is shown" in notes(BASELINE, records("quick", (40,), 9.0))
    used = [dataclasses.replace(run, prior_run_ids=("gone",)) for run in QUICK]
    assert "cannot be read" in notes(BASELINE, used, count_prior_training=True)


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_thin_budget_changes_nothing_else(seeds: tuple[int, ...]) -> None:
    """However good it is: its limits would be so wide that the group could not be sure of the target any more."""
    more = [*QUICK, *records("quick", (80,), 8.0, seeds=seeds)]
    with_it, without = compare(BASELINE, more).group("quick"), compare(BASELINE, QUICK).group("quick")
    assert with_it.speedups == without.speedups
    assert with_it.paired
    assert [(point.budget, point.used) for point in with_it.points[-2:]] == [("40ep", True), ("80ep", False)]
    assert not any(with_it.points[-1].on_pareto_front.values())
    assert with_it.points[-2].on_pareto_front == without.points[-1].on_pareto_front


def test_a_thin_budget_of_the_baseline_is_not_the_target() -> None:
    comparison = compare([*BASELINE, *records("baseline", (160,), seeds=(0, 1))], QUICK)
    assert comparison.target == pytest.approx(level(80))
    assert "with its largest budget with 3 or more runs (80ep)" in comparison.groups[0].sentence
    assert "mean final value of baseline at 80ep" in " ".join(text_of(comparison).split())


def test_a_budget_and_a_crossing_at_it_cost_the_same() -> None:
    noisy = [dataclasses.replace(run, train_seconds=run.train_seconds * (1 + (run.seed or 0))) for run in BASELINE]
    baseline = compare(noisy, QUICK).groups[0]
    cost = baseline.cost_to_target["cost_seconds"]
    assert cost is not None
    assert baseline.points[-1].costs["cost_seconds"] == pytest.approx(cost.estimate)
    assert cost.estimate == pytest.approx(160 * 6 ** (1 / 3))


def test_runs_that_diverged_early_do_not_move_their_budget() -> None:
    broken = [
        dataclasses.replace(run, steps=10, final=math.nan, health="diverged") if run.run_id != "quick-40-2" else run
        for run in records("quick", (40,), 2.0)
    ]
    quick = compare(BASELINE, [*QUICK[:-3], *broken]).group("quick")
    assert [(point.budget, point.steps) for point in quick.points] == [
        ("5ep", 100),
        ("10ep", 200),
        ("20ep", 400),
        ("40ep", 800),
    ]
    lost = [
        dataclasses.replace(run, steps=10, final=math.nan) if run.budget == "80ep" else run for run in BASELINE[:-1]
    ]
    with pytest.raises(CompareError, match=r"at its largest budget \(80ep\).*not finite"):
        compare([*lost, BASELINE[-1]], QUICK)


def test_what_is_paid_back_is_said_to_be_shown_or_not() -> None:
    quick = [*QUICK, *records("quick", (80,), 2.0)]
    used = [dataclasses.replace(run, prior_run_ids=("prior",)) for run in quick]
    options = {"prior_seconds": {"prior": 100.0}}
    shown = compare(BASELINE, used, **options)
    assert shown.group("quick").break_even.saving_shown
    # As good as 80 epochs (160 s) after 40 (80 s): two runs pay 100 s back. The limits are those of the speed-up.
    paid, ratio = shown.group("quick").break_even.prior_training_runs, shown.group("quick").speedups["cost_seconds"]
    assert paid.estimate == pytest.approx(100 / 80)
    assert paid.low == pytest.approx(100 / (160 - 160 / ratio.high))
    assert paid.high == pytest.approx(100 / (160 - 160 / ratio.low))
    assert f"2 later runs [{paid.low:.3g}, {paid.high:.3g}]" in " ".join(text_of(shown).split())
    assert "Pays back, quick: the prior runs as well (100 s)" in " ".join(text_of(shown).split())
    vague = [dataclasses.replace(run, train_seconds=run.train_seconds * 30.0 ** ((run.seed or 0) - 1)) for run in used]
    comparison = compare(BASELINE, vague, **options)
    assert comparison.group("quick").speedups["cost_seconds"].verdict == "no difference"
    assert "May pay back, quick (its saving is not shown):" in " ".join(text_of(comparison).split())


def test_why_nothing_can_be_said() -> None:
    def said(target: float) -> str:
        return compare(BASELINE, QUICK, target=target).group("quick").sentence

    assert "neither reaches it within its budgets" in said(0.9)
    assert "both are there with their smallest budget already" in said(0.1)


def test_flops_are_those_that_the_runs_recorded(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    model = ModelRecord(name="resnet20", flops_per_example=1000)
    for method, extra, on in (("baseline", 0.0, 0), ("live", 5e5, 0), ("unknown", None, 0), ("trained on", 0.0, 32)):
        for seed in range(2):
            write_run(archive, method, seed, [0.5, 0.6 + 0.01 * seed], model=model, extra_flops=extra, trained_on=on)
    comparison = compare_archive_budgets(archive)
    found = {group.name: group.points[0].costs["flops"] for group in comparison.groups}
    examples = 2 * 100 * 32
    assert found == {
        "baseline": pytest.approx(3000 * examples),
        "live": pytest.approx(3000 * examples + 5e5),
        "unknown": None,
        "trained on": None,
    }


def test_runs_that_are_there_to_be_reused_are_not_compared(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    for method in ("baseline", "prior"):
        for seed in range(2):
            write_run(
                archive, method, seed, [0.5, 0.6 + 0.01 * seed], tags={"role": "prior"} if method == "prior" else {}
            )
    comparison = compare_archive_budgets(archive)
    assert [group.name for group in comparison.groups] == ["baseline"]
    assert any("trained to be reused (role: prior): prior-" in note for note in comparison.notes)
    asked = compare_archive_budgets(archive, tags={"role": "prior"}, baseline="prior")
    assert [group.name for group in asked.groups] == ["prior"]
    with pytest.raises(CompareError, match=r"no finished runs.*2 with the tag role: prior are left out"):
        compare_archive_budgets(archive, tags={"method": "prior"})


def test_budgets_by_steps_where_no_recipe_says_more(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    for method, speed in (("baseline", 1.0), ("quick", 2.0)):
        for epochs in (10, 20):
            for seed in range(2):
                write_run(archive, method, seed, [level(speed * epochs) + seed * 0.001], every=epochs * 20)
    comparison = compare_archive_budgets(archive)
    assert [point.budget for point in comparison.group("quick").points] == ["200ba", "400ba"]


def test_two_names_of_one_number_of_steps_are_one_point() -> None:
    renamed = [
        dataclasses.replace(run, budget="1600ba") if (run.seed, run.steps) == (0, 1600) else run for run in BASELINE
    ]
    points = compare(renamed, QUICK).groups[0].points
    assert [point.n for point in points] == [3, 3, 3, 3]
    assert points[-1].budget in ("1600ba = 80ep", "80ep = 1600ba")


def test_errors() -> None:
    with pytest.raises(CompareError, match="Did you mean 'baseline'"):
        compare(BASELINE, QUICK, baseline="basline")
    with pytest.raises(CompareError, match="not finite"):
        compare([dataclasses.replace(run, final=math.nan) for run in BASELINE], QUICK)
    with pytest.raises(CompareError, match="must be a number"):
        compare(BASELINE, QUICK, target=math.nan)
    with pytest.raises(CompareError, match="confidence"):
        compare(BASELINE, QUICK, confidence=1.0)
    with pytest.raises(CompareError, match="price"):
        compare(BASELINE, QUICK, price_per_hour=-1.0)
    with pytest.raises(CompareError, match="later run"):
        compare(BASELINE, QUICK, later_runs=0)
    with pytest.raises(CompareError, match="do not pair by seed"):
        compare(BASELINE, [dataclasses.replace(run, seed=(run.seed or 0) + 7) for run in QUICK], pairing="seed")
    with pytest.raises(CompareError, match="0 steps"):
        compare(BASELINE, [dataclasses.replace(QUICK[0], steps=0)])
    assert compare(BASELINE, QUICK, pairing="none").group("quick").paired is False


def test_json_holds_everything(comparison: Comparison) -> None:
    found = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert found["groups"][1]["name"] == "distilled"
    assert found["groups"][1]["speedups"]["cost_seconds"]["verdict"] == "faster"
    assert found["groups"][2]["speedups"]["steps"]["low"] == 0.0
    assert found["groups"][2]["cost_to_target"]["steps"]["high"] is None
    assert found["price_per_hour"] == 3.6


def test_the_table_fits_and_says_it_all(comparison: Comparison) -> None:
    text = text_of(comparison)
    assert max(map(len, text.splitlines())) <= 100
    for word in (
        "distilled needs",
        "control of distilled",
        "FLOPs",
        "dollars",
        "Pays back, distilled",
        "40ep",
        "Note:",
    ):
        assert word in text
    assert format_amount("dollars", 0.0456) == "$0.0456"
    assert format_amount("flops", 1.5e9) == "1.5e+09"
    assert format_amount("flops", None) == "?"
