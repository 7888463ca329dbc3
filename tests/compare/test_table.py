"""Comparisons of real archives of made-up runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from compare.asking import compare_runs, select_outcomes
from compare.synthetic_runs import METRIC, noisy, write_run
from reuse_algos.archive import (
    DatasetRecord,
    EnvironmentRecord,
    MetricHistory,
    ModelRecord,
    PriorUse,
    RunArchive,
    history_tensors,
)
from reuse_algos.compare import Comparison
from reuse_algos.errors import ArchiveCorruptError, CompareError

X = np.arange(1, 21) / 20


def rising(x: np.ndarray) -> np.ndarray:
    return 0.3 + 0.4 * x


@pytest.fixture
def archive(tmp_path: Path) -> RunArchive:
    return RunArchive(tmp_path / "archive", create=True)


def add_group(archive: RunArchive, method: str, seeds, mean, rng, **fields) -> list[str]:
    return [write_run(archive, method, seed, noisy(rng, mean), **fields) for seed in seeds]


def three_and_three(archive: RunArchive, speed: float, **fields) -> Comparison:
    """Baseline and "quick", which runs along the same curve ``speed`` times as fast and on beyond it."""
    rng = np.random.default_rng(0)
    add_group(archive, "baseline", range(3), rising(X), rng)
    add_group(archive, "quick", range(3), rising(speed * X), rng, **fields)
    return compare_runs(archive)


def test_a_known_speedup_is_recovered(archive: RunArchive) -> None:
    comparison = three_and_three(archive, 1.6)
    baseline, quick = comparison.groups
    assert (comparison.method, comparison.target_source) == ("curves", "baseline mean final")
    assert comparison.target == pytest.approx(baseline.final.estimate) == pytest.approx(0.7, abs=0.01)
    assert (baseline.name, baseline.verdict, baseline.n, baseline.seeds) == ("baseline", "baseline", 3, [0, 1, 2])
    # The baseline's own cost is its whole budget, though some of its runs end below their mean.
    assert baseline.to_target.steps == 2000
    assert baseline.to_target.reached
    assert (baseline.n - baseline.reached) in (1, 2)
    assert (quick.verdict, quick.paired) == ("faster", True)
    assert quick.speedups.get("steps") is not None
    assert quick.speedups.get("cost_seconds") is not None
    for speedup in (quick.speedups.get("steps"), quick.speedups.get("cost_seconds")):  # all runs take 0.1 s per step
        assert speedup.estimate == pytest.approx(1.6, abs=0.1)
        assert 1 < speedup.low <= 1.6 <= speedup.high < 2
    # 2000 / 1.6 = 1250 is not evaluated; 1300 is the first evaluation beyond it.
    assert quick.to_target.steps == 1300
    assert quick.to_target.epochs == 13
    assert quick.to_target.samples == 1300 * 32
    assert quick.to_target.cost_seconds == pytest.approx(130)
    finals = [[run.final for run in group.runs] for group in comparison.groups]
    assert quick.final_difference is not None
    expected = stats.ttest_rel(finals[1], finals[0]).confidence_interval(0.95)
    assert (quick.final_difference.low, quick.final_difference.high) == pytest.approx(tuple(expected))


def test_a_null_archive_shows_no_difference(archive: RunArchive) -> None:
    comparison = three_and_three(archive, 1.0)
    assert comparison.group("quick").verdict == "no difference"


def test_every_cost_counts(archive: RunArchive) -> None:
    """1.6 times fewer steps, but 30 s of set-up and 60 s of harvest on top of 130 s: slower than 200 s in the end."""
    rng = np.random.default_rng(0)
    prior = add_group(archive, "baseline", range(3), rising(X), rng, setup_seconds=1.0)
    uses = [
        PriorUse(run_id=prior[0], algorithm="prior_run_distillation", signals=["logits"], harvest_seconds=25.0),
        PriorUse(run_id=prior[1], algorithm="prior_run_distillation", signals=["logits"], harvest_seconds=35.0),
    ]
    add_group(archive, "quick", range(3), rising(1.6 * X), rng, setup_seconds=30.0, prior_runs=uses)
    quick = compare_runs(archive).group("quick")
    assert quick.speedups.get("steps") is not None
    assert quick.speedups.get("cost_seconds") is not None
    assert quick.speedups.get("steps").verdict == "faster"
    assert quick.to_target.cost_seconds == pytest.approx(130 + 30 + 60)
    assert quick.speedups.get("cost_seconds").estimate == pytest.approx(201 / 220)
    assert quick.verdict == quick.speedups.get("cost_seconds").verdict != "faster"
    assert (quick.setup_seconds, quick.harvest_seconds) == (30.0, 60.0)
    # Without its harvest a later run saves 201 - 160 = 41 s: 60 s are paid back after 60 / 41 runs, and the two prior
    # runs (2 x 201 s) as well after 462 / 41.
    assert quick.break_even is not None
    assert quick.break_even.harvest_runs.estimate == pytest.approx(60 / 41)
    assert quick.break_even.prior_training_seconds == pytest.approx(402)
    assert quick.break_even.prior_training_runs.estimate == pytest.approx(462 / 41)
    # The limits are those of the speed-up: without its harvest a run saves 201 - 201 / r + 60.
    for spent, found in ((60, quick.break_even.harvest_runs), (462, quick.break_even.prior_training_runs)):
        least, most = (
            201 - 201 / ratio + 60
            for ratio in (quick.speedups.get("cost_seconds").low, quick.speedups.get("cost_seconds").high)
        )
        assert 0 < least < 41 < most
        assert (found.low, found.high) == (pytest.approx(spent / most), pytest.approx(spent / least))


def test_break_even_where_it_never_pays_or_can_not_be_known(archive: RunArchive) -> None:
    rng = np.random.default_rng(0)
    add_group(archive, "baseline", range(3), rising(X), rng)
    gone = [PriorUse(run_id="deleted-0123456789", algorithm="warm_start", harvest_seconds=1.0)]
    add_group(archive, "costly", range(3), rising(1.6 * X), rng, setup_seconds=500.0, prior_runs=gone)
    add_group(archive, "short", range(3), rising(0.8 * X), rng, prior_runs=gone)
    comparison = compare_runs(archive)
    costly, short = comparison.group("costly").break_even, comparison.group("short").break_even
    assert costly is not None
    assert short is not None
    assert costly.harvest_runs.estimate == math.inf
    assert math.isnan(costly.prior_training_runs.estimate)
    assert math.isnan(short.harvest_runs.estimate)  # it did not reach the target


def test_a_declared_target_reads_each_run_and_censors(archive: RunArchive) -> None:
    for seed, reaching in enumerate((10, 10, 12)):
        write_run(archive, "baseline", seed, np.where(reaching <= X * 20, 0.8, 0.1))
    for seed, reaching in enumerate((5, 6, 99)):
        write_run(archive, "quick", seed, np.where(reaching <= X * 20, 0.8, 0.1))
    comparison = compare_runs(archive, target=0.75)
    assert (comparison.method, comparison.target_source) == ("runs", "given")
    baseline, quick = comparison.groups
    assert [run.to_target.steps for run in baseline.runs] == [1000, 1000, 1200]
    assert [run.to_target.steps for run in quick.runs] == [500, 600, 2000]
    assert [run.to_target.reached for run in quick.runs] == [True, True, False]
    assert (quick.n, quick.reached, (quick.n - quick.reached)) == (3, 2, 1)
    assert quick.speedups.get("steps") is not None
    assert quick.speedups.get("steps").bound == "<="
    ratio = stats.gmean([1000, 1000, 1200]) / stats.gmean([500, 600, 2000])
    assert quick.speedups.get("steps").estimate == pytest.approx(ratio)
    assert quick.verdict == "no difference"
    assert quick.to_target.steps == pytest.approx((500 + 600 + 2000) / 3)
    assert not quick.to_target.reached
    assert any("1 of 3 runs" in note for note in comparison.notes)
    assert any("before its schedule ended" in note for note in comparison.notes)


def test_less_is_better_for_a_loss(archive: RunArchive) -> None:
    rng = np.random.default_rng(0)
    loss = "loss/eval/total"
    for method, speed in (("baseline", 1.0), ("quick", 1.6)):
        for seed in range(3):
            write_run(archive, method, seed, noisy(rng, 1 - rising(speed * X)), metric=loss, monitor=loss, mode="min")
    comparison = compare_runs(archive)
    assert (comparison.mode, comparison.metric) == ("min", loss)
    assert comparison.group("quick").verdict == "faster"
    given = compare_runs(archive, target=0.35, metric="total")
    assert given.mode == "min"
    assert given.group("quick").verdict == "faster"
    # Read the wrong way round, every run is there at its first evaluation.
    wrong = compare_runs(archive, target=0.35, mode="max")
    assert all(run.to_target.steps == 100 for run in wrong.group("quick").runs)


def test_diverged_runs_stay_in_and_unfinished_ones_are_named(archive: RunArchive) -> None:
    rng = np.random.default_rng(0)
    add_group(archive, "baseline", range(3), rising(X), rng)
    add_group(archive, "quick", range(2), rising(1.6 * X), rng)
    bad = write_run(archive, "quick", 2, [0.3, *[math.nan] * 19], health="diverged")
    died = write_run(archive, "quick", 3, [0.3, 0.4], finish=False)
    untagged = write_run(archive, None, 4, rising(X))
    comparison = compare_runs(archive)
    quick = comparison.group("quick")
    assert bad in quick.run_ids
    assert quick.n == 3
    assert math.isnan(quick.final.estimate)
    assert quick.verdict == "no difference"
    assert not quick.to_target.reached
    assert died not in quick.run_ids
    notes = "\n".join(comparison.notes)
    assert bad in notes
    assert died in notes
    assert untagged in notes


def test_one_run_per_group_is_not_enough(archive: RunArchive) -> None:
    write_run(archive, "baseline", 0, rising(X))
    write_run(archive, "quick", 0, rising(1.6 * X))
    comparison = compare_runs(archive)
    quick = comparison.group("quick")
    assert quick.verdict == "not enough runs"
    assert quick.speedups.get("steps") is not None
    assert quick.speedups.get("steps").estimate == pytest.approx(2000 / 1300)
    assert any("n=1" in note for note in comparison.notes)


def test_pairing_by_seed(archive: RunArchive) -> None:
    rng = np.random.default_rng(0)
    add_group(archive, "baseline", (2, 0, 1), rising(X), rng)
    add_group(archive, "same", (1, 2, 0), rising(1.6 * X), rng)
    add_group(archive, "other", (1, 2, 3), rising(1.6 * X), rng)
    add_group(archive, "twice", (0, 0, 1, 2), rising(1.6 * X), rng)
    comparison = compare_runs(archive)
    assert {group.name: group.paired for group in comparison.groups} == {
        "baseline": None, "other": False, "same": True, "twice": False,
    }  # fmt: skip
    assert comparison.group("same").seeds == [0, 1, 2]
    assert any("twice: 4 runs have only 3 different seeds" in note for note in comparison.notes)
    assert any("each interval holds by itself" in note for note in comparison.notes)
    assert not any(group.paired for group in compare_runs(archive, pairing="none").groups)
    with pytest.raises(CompareError, match=r"do not pair by seed.*\[0, 1, 2\].*'other'.*\[1, 2, 3\]"):
        compare_runs(archive, pairing="seed")


def test_a_difference_in_every_seed_needs_pairing_to_be_seen(archive: RunArchive) -> None:
    rng = np.random.default_rng(0)
    for seed, offset in enumerate((-0.05, 0.0, 0.05)):
        write_run(archive, "baseline", seed, noisy(rng, rising(X) + offset, seed_sd=0.0))
        write_run(archive, "quick", seed, noisy(rng, rising(1.4 * X) + offset, seed_sd=0.0))
    paired, unpaired = (compare_runs(archive, pairing=p).group("quick").speedups["steps"] for p in ("seed", "none"))
    assert paired is not None
    assert unpaired is not None
    assert paired.low > unpaired.low
    assert paired.verdict == "faster"


def test_grouping_keys(archive: RunArchive) -> None:
    rng = np.random.default_rng(0)
    model = {name: ModelRecord(name=name, num_parameters=n) for name, n in (("small", 1), ("large", 2))}
    data = DatasetRecord(name="digits", num_examples=4, fingerprint="f")
    for seed in range(2):
        for name, duration in (("small", "10ep"), ("large", "20ep")):
            write_run(
                archive, "m", seed, noisy(rng, rising(X)), model=model[name], dataset=data,
                recipe={"max_duration": duration, "optimizer": {"lr": 0.1}},
            )  # fmt: skip
    for group_by, groups in {
        "tags.method": {"m"},
        "model.name": {"small", "large"},
        "dataset.name": {"digits"},
        "seed": {"0", "1"},
        "run_name": {"m-0", "m-1"},
        "recipe.max_duration": {"10ep", "20ep"},
        "recipe.optimizer.lr": {"0.1"},
        "model.name,recipe.max_duration": {"small / 10ep", "large / 20ep"},
    }.items():
        assert set(select_outcomes(archive, group_by=group_by).groups) == groups
    for group_by in ("method", "tags.", "model.width", "", "tags.method,"):
        with pytest.raises(CompareError, match=r"cannot be grouped by .*tags\.<key>"):
            compare_runs(archive, group_by=group_by)
    for group_by in ("tags.nope", "recipe.optimizer.lr.deeper", "recipe.nope"):
        with pytest.raises(CompareError, match="4 finished runs .* has " + group_by):
            compare_runs(archive, group_by=group_by)
    comparison = compare_runs(archive, group_by="model.name", baseline="small")
    assert any("model is not the same" in note for note in comparison.notes)


def test_budgets_are_not_mixed(archive: RunArchive) -> None:
    rng = np.random.default_rng(0)
    for budget in (10, 20):
        for method, speed in (("baseline", 1.0), ("quick", 1.6)):
            for seed in range(3):
                curve = noisy(rng, rising(speed * X * 20 / budget)[:budget])
                write_run(archive, method, seed, curve, recipe={"max_duration": f"{budget}ep"})
    with pytest.raises(CompareError, match=r"'baseline' ended after different numbers of steps \(1000, 2000\)"):
        compare_runs(archive)
    both = "tags.method,recipe.max_duration"
    comparison = compare_runs(archive, group_by=both, baseline="baseline / 20ep")
    # Every budget of every method is read as what it is: here 10 epochs of "quick" end beyond 20 of the baseline.
    assert comparison.group("quick / 10ep").verdict == "faster"
    assert any("whose schedule ends after 1000 steps, too" in note for note in comparison.notes)
    given = compare_runs(archive, target=0.45)
    assert any("mixes runs of different budgets" in note for note in given.notes)


def test_tags_select(archive: RunArchive) -> None:
    rng = np.random.default_rng(0)
    for study in ("a", "b"):
        for method in ("baseline", "quick"):
            add_group(archive, method, range(2), rising(X), rng, tags={"study": study})
    assert compare_runs(archive).group("baseline").n == 4
    assert compare_runs(archive, tags={"study": "a"}).group("baseline").n == 2
    assert compare_runs(archive, tags={"study": ["a", "b"]}).group("baseline").n == 4


def test_errors_name_what_is_wrong(archive: RunArchive) -> None:
    with pytest.raises(CompareError, match="no finished runs in"):
        compare_runs(archive)
    write_run(archive, "baseline", 0, rising(X), finish=False)
    with pytest.raises(CompareError, match="1 are not finished"):
        compare_runs(archive)
    first = write_run(archive, "baseline", 0, rising(X))
    with pytest.raises(CompareError, match=r"baseline group 'basline', with groups by tags\.method\. The only"):
        compare_runs(archive, baseline="basline")
    with pytest.raises(CompareError, match=r"the runs have no metric 'MultiAccuracy'.*Did you mean"):
        compare_runs(archive, metric="MultiAccuracy")
    for bad in (math.nan, math.inf):
        with pytest.raises(CompareError, match="must be a number"):
            compare_runs(archive, target=bad)
    with pytest.raises(CompareError, match="between 0 and 1"):
        compare_runs(archive, confidence=1.0)
    with pytest.raises(CompareError, match="tags"):
        compare_runs(archive, tags={"study": "nope"})
    other = write_run(archive, "quick", 0, rising(X), metric="metrics/other/MulticlassAccuracy")
    with pytest.raises(CompareError, match=f"{METRIC} is missing in 1 of the runs: {other}"):
        compare_runs(archive)
    with pytest.raises(CompareError, match="the runs have several metrics 'MulticlassAccuracy'"):
        compare_runs(archive, metric="MulticlassAccuracy")
    write_run(archive, "baseline", 1, rising(X), monitor=None)
    with pytest.raises(CompareError, match="which metric"):
        compare_runs(archive)
    assert first in compare_runs(archive, metric=METRIC, tags={"method": "baseline"}).groups[0].run_ids


def test_a_baseline_that_ended_with_nan_needs_a_target(archive: RunArchive) -> None:
    bad = write_run(archive, "baseline", 0, [0.5, math.nan])
    write_run(archive, "baseline", 1, [0.5, 0.6])
    with pytest.raises(CompareError, match=f"{bad} ended with a value that is not finite"):
        compare_runs(archive)
    baseline = compare_runs(archive, target=0.5).groups[0]
    assert (baseline.reached, (baseline.n - baseline.reached)) == (2, 0)


def test_a_damaged_run_is_not_left_out_in_silence(archive: RunArchive) -> None:
    rng = np.random.default_rng(0)
    ids = add_group(archive, "baseline", range(2), rising(X), rng)
    (path,) = (archive.root / "runs" / ids[1] / "data" / "metrics").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArchiveCorruptError, match=ids[1]):
        compare_runs(RunArchive(archive.root))


def test_the_last_of_several_evaluations_of_a_step_counts(archive: RunArchive) -> None:
    recorded = MetricHistory(
        step=np.array([100, 200, 200]),
        sample=np.array([3200, 6400, 6400]),
        epoch=np.array([1, 2, 2]),
        train_seconds=np.array([10.0, 20.0, 20.0]),
        eval_seconds=np.zeros(3),
        value=np.array([0.1, 0.9, 0.5]),
    )
    history = ("metrics", "history", history_tensors({METRIC: recorded}))
    write_run(archive, "baseline", 0, [0.0], put=[history])
    (run,) = compare_runs(archive, target=0.6).groups[0].runs
    assert run.final == 0.5
    assert not run.to_target.reached


def test_runs_are_compared_on_the_steps_that_they_share(archive: RunArchive) -> None:
    values = rising(X)
    write_run(archive, "baseline", 0, values)
    write_run(archive, "baseline", 1, values[1::2], every=200)
    curve = compare_runs(archive).groups[0]
    assert curve.to_target.steps == 2000
    assert curve.final.estimate == pytest.approx(values[-1])


def test_without_seconds_the_verdict_is_about_steps(archive: RunArchive) -> None:
    comparison = three_and_three(archive, 1.6, seconds_per_step=0.0)
    quick = comparison.group("quick")
    assert quick.speedups.get("cost_seconds") is None
    assert quick.verdict == "faster"
    assert any("about steps only" in note for note in comparison.notes)


def test_notes_on_what_else_differs(archive: RunArchive) -> None:
    rng = np.random.default_rng(0)
    more = {"threads": 2}  # which earlier versions did not record
    for method, machine, batch in (("baseline", {"name": "A"}, 32), ("quick", {"name": "B", **more}, 64)):
        environment = EnvironmentRecord(versions={"torch": "2.7"}, hardware=machine)
        add_group(archive, method, range(3), rising(X), rng, environment=environment, batch=batch)
    notes = "\n".join(compare_runs(archive).notes)
    assert "hardware is not the same in all runs (look at quick), so seconds are not comparable" in notes
    assert "Examples per step differ (baseline: 32; quick: 64)" in notes
    assert "versions" not in notes
    later = EnvironmentRecord(versions={"torch": "2.7"}, hardware={"name": "A", **more})
    add_group(archive, "later", range(3), rising(X), rng, environment=later, batch=32)
    notes = "\n".join(compare_runs(archive).notes)
    assert "hardware is not the same in all runs (look at quick)" in notes, "what is not known cannot differ"


def test_a_flat_baseline_is_charged_only_until_it_is_flat(archive: RunArchive) -> None:
    flat = np.minimum(rising(X), 0.5)
    for seed in range(3):
        write_run(archive, "baseline", seed, flat + 0.001 * seed)
    write_run(archive, "quick", 0, np.minimum(rising(2 * X), 0.6))
    comparison = compare_runs(archive)
    assert comparison.groups[0].to_target.steps == 1000
    assert any("first reached its own final level at step 1000 of 2000" in note for note in comparison.notes)


def test_to_dict_is_json_and_complete(archive: RunArchive) -> None:
    rng = np.random.default_rng(0)
    add_group(archive, "baseline", range(3), rising(X), rng)
    write_run(archive, "bad", 0, [math.nan] * 20, health="diverged")
    comparison = compare_runs(archive)
    plain = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert plain["archive_id"] == archive.archive_id
    baseline, bad = plain["groups"]
    assert baseline["run_ids"] == [run["run_id"] for run in baseline["runs"]]
    assert baseline["seeds"] == [0, 1, 2]
    assert bad["final"]["estimate"] is None
    assert bad["runs"][0]["final"] is None
    assert bad["runs"][0]["to_target"]["reached"] is False
    assert bad["speedups"]["steps"]["high"] is None
    with pytest.raises(KeyError):
        comparison.group("nope")
