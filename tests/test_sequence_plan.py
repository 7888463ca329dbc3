"""From a sequence file to its steps: grids, arms, merging, and every fault at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from made_sequences import QUERY, REUSE, planned, sequence
from reuse_algos.errors import RecipeError
from reuse_algos.sequence import load_sequence, plan_sequence
from reuse_algos.sequence.planning.order import differences, fingerprint


def test_steps_alternate_between_the_arms_and_each_knows_where_it_belongs(tmp_path: Path) -> None:
    plan = planned(tmp_path, "grid.optimizer.lr=[0.1,0.01]")
    assert [step.title for step in plan.steps][:4] == [
        "without/seed-1_lr-0.1",
        "reuse/seed-1_lr-0.1",
        "without/seed-1_lr-0.01",
        "reuse/seed-1_lr-0.01",
    ]
    assert len(plan.steps) == 8
    last = plan.steps[-1]
    assert last.point == {"seed": 2, "optimizer.lr": 0.01}
    settings = last.recipe.settings
    assert (settings.seed, settings.optimizer["lr"], settings.optimizer["momentum"]) == (2, 0.01, 0.9)
    assert settings.tags == {
        "study": "tiny", "method": "reuse", "sequence": "tiny", "arm": "reuse", "step": "seed-2_lr-0.01",
    }  # fmt: skip
    assert (settings.run_name, settings.archive) == ("tiny-reuse-seed-2_lr-0.01", str(tmp_path / "archive"))
    assert settings.save_folder == str(tmp_path / "work/reuse/seed-2_lr-0.01/checkpoints")
    assert settings.autoresume


def test_first_step_of_an_arm_is_trained_as_first_says(tmp_path: Path) -> None:
    first, second = planned(tmp_path).of_arm("reuse")
    assert (first.recipe.settings.max_duration, first.recipe.settings.algorithms) == ("2ep", {})
    options = second.recipe.settings.algorithms["prior_run_distillation"]
    assert second.recipe.settings.max_duration == "1ep"
    assert options["runs"] == {"tags": {"sequence": "tiny", "arm": "reuse"}, "order": "first"}
    assert (first.special, second.special) == (True, False)


def test_null_does_not_pass_for_taking_an_algorithm_out(tmp_path: Path) -> None:
    overrides = {"algorithms.label_smoothing": {"smoothing": 0.2}}
    arms = {"a": {}, "b": {"overrides": {"algorithms.label_smoothing": False}}}
    a, b = (planned(tmp_path, overrides=overrides, arms=arms, baseline="a").of_arm(name)[0] for name in "ab")
    assert (list(a.recipe.settings.algorithms), list(b.recipe.settings.algorithms)) == (["label_smoothing"], [])
    arms["b"]["overrides"]["algorithms.label_smoothing"] = None
    with pytest.raises(RecipeError, match="algorithms.label_smoothing: null over an entry with options: write false"):
        planned(tmp_path, overrides=overrides, arms=arms, baseline="a")
    arms, grid = {"a": {}, "b": {"grid": {"data.nope": [1]}}}, {"algorithms.label_smoothing": [None]}
    # Found in the values of a grid as well, beside all other faults.
    with pytest.raises(
        RecipeError, match=r"(?s)sequence.yaml: 2 errors.*\n  a/.*: algorithms.label_smoothing: null over"
    ):
        planned(tmp_path, overrides=overrides, arms=arms, grid=grid)


def test_without_and_reuse_differ_only_in_what_the_arm_says(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    without, reuse = plan.of_arm("without"), plan.of_arm("reuse")
    assert fingerprint(without[0].recipe.record) == fingerprint(reuse[0].recipe.record)
    changed = differences(without[1].recipe.record, reuse[1].recipe.record)
    assert changed[-1] == 'max_duration was "2ep" and is now "1ep"'
    assert all(line.startswith(("algorithms.prior_run_distillation.", "max_duration")) for line in changed)


def test_later_overrides_win_section_by_section(tmp_path: Path) -> None:
    steps = [
        {"name": "plain"},
        {"name": "big", "overrides": {"optimizer.lr": 0.5, "data": {"batch_size": 10}}, "tags": {"study": "mine"}},
        {"name": "seeds", "grid": {"seed": [7, 8]}},
    ]
    arms = {"a": {"overrides": {"optimizer": {"lr": 0.2, "momentum": 0.8}}, "tags": {"method": "m"}}}
    plan = planned(tmp_path, "overrides.data.batch_size=30", steps=steps, arms=arms, grid={})
    assert [step.name for step in plan.steps] == ["plain", "big", "seeds_seed-7", "seeds_seed-8"]
    settings = [step.recipe.settings for step in plan.steps]
    assert [s.optimizer["lr"] for s in settings] == [0.2, 0.5, 0.2, 0.2]
    assert {s.optimizer["momentum"] for s in settings} == {0.8}
    assert [s.data.batch_size for s in settings] == [30, 10, 30, 30]
    assert [s.data.train_examples for s in settings] == [60] * 4
    assert [(s.tags["study"], s.tags["method"]) for s in settings][:2] == [("tiny", "m"), ("mine", "m")]
    assert [s.seed for s in settings] == [1, 1, 7, 8]


def test_another_scheduler_takes_the_place_of_the_old(tmp_path: Path) -> None:
    scheduler = {"name": "exponential", "gamma": 0.9}
    changes = {
        "scheduler": scheduler,
        "optimizer": {"name": "sgd", "lr": 0.3},
        "data": {"name": "npz", "path": "x.npz"},
    }
    arms = {"without": {}, "other": {"overrides": changes}}
    plan = planned(tmp_path, arms=arms, overrides={"scheduler": {"t_warmup": "0.1dur"}, "device": "cpu"})
    plain, other = plan.of_arm("without")[0].recipe.settings, plan.of_arm("other")[0].recipe.settings
    assert plain.scheduler == {"name": "cosine_with_warmup", "t_warmup": "0.1dur"}
    assert other.scheduler == scheduler
    assert other.optimizer == {**plain.optimizer, "lr": 0.3}
    assert (other.data.name, other.data.path, other.data.batch_size) == ("npz", "x.npz", plain.data.batch_size)


def test_recipes_may_lie_beside_the_sequence_and_keep_their_own_interpolations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.yaml").write_text(
        "model: {name: digits_cnn, width: 4}\nmax_duration: 1ep\ntags: {who: 'run-${seed}'}\n"
        "optimizer: {name: sgd, lr: 0.1}\ncallbacks: {run_recorder: {}}\n"
    )
    monkeypatch.setenv("SECRET", "hunter2")
    plan = planned(
        tmp_path,
        recipe="own.yaml",
        arms={"a": {"tags": {"key": "${oc.env:SECRET}", "of": "${name}", "s": "\\${seed}"}}},
        overrides={},
    )
    step = plan.steps[1]
    assert step.recipe.settings.tags["who"] == "run-2"
    assert step.recipe.settings.tags["s"] == "2"
    assert step.recipe.settings.tags["of"] == "tiny"
    assert step.recipe.settings.tags["key"] == "hunter2"
    # What comes from the environment may be a secret: it does not reach the disk.
    assert step.values["tags"]["key"] == "${oc.env:SECRET}"
    assert step.recipe.record["tags"]["key"] == "${oc.env:SECRET}"


def test_odd_values_get_names_of_their_own(tmp_path: Path) -> None:
    plan = planned(tmp_path, grid={"data.classes": [[1, 2], [1, 3]], "scheduler": [None]}, arms={"a": {}})
    names = [step.name for step in plan.steps]
    assert len(set(names)) == 2
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.") for name in names)
    assert plan.steps[1].recipe.settings.data.classes == [1, 3]


def faults_of(here: Path, *overrides: str, **keys: object) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        planned(here, *overrides, **keys)
    return [line.strip() for line in str(caught.value).splitlines()]


def test_all_faults_of_the_file_at_once(tmp_path: Path) -> None:
    faults = faults_of(
        tmp_path, "ranks=0", name="no/slash", archiv="x", arms={"withuot": {"firts": {}}}, baseline="without",
        steps=[{"nam": "a"}], source="x",
    )  # fmt: skip
    assert faults[0].endswith("7 errors in the recipe")
    text = "\n".join(faults)
    assert "archiv: there is no such key. Did you mean 'archive'" in text
    assert "arms.withuot.firts: there is no such key. Did you mean 'first'" in text
    assert "steps.0.nam: there is no such key. Did you mean 'name'" in text
    assert "baseline: there is no arm 'without'. Did you mean 'withuot'?" in text
    assert "ranks: must be between 1 and 1024, not 0" in text
    assert "name: must be letters, digits" in text
    assert "source: there is no such key" in text


def test_all_faults_of_the_recipes_at_once(tmp_path: Path) -> None:
    faults = faults_of(
        tmp_path,
        overrides={"optimizer.learning_rate": 1, "archive": "x", "tags": {"a": "b"}},
        grid={"sed": [1], "max_duration": "2ep"},
        tags={"arm": "mine"},
        arms={"a": {}},
    )
    text = "\n".join(faults)
    assert "overrides.archive: is set by the sequence and cannot be set here" in text
    assert "overrides.tags: write them as tags" in text
    assert "tags.arm: is set by the sequence and cannot be set here" in text
    assert "grid.max_duration: must be a list of values to try, not '2ep'" in text
    assert "a/sed-1: sed: there is no such key. Did you mean 'seed'" in text
    assert "a/sed-1: optimizer.learning_rate: SGD has no such option. Known: " in text


def test_no_silent_fallback_for_a_first_step_without_prior_runs(tmp_path: Path) -> None:
    arm = {key: value for key, value in REUSE.items() if key != "first"}
    text = "\n".join(faults_of(tmp_path, arms={"without": {}, "reuse": arm}))
    assert (
        "reuse/seed-1: algorithms.prior_run_distillation.runs: no step before it has the tags {sequence: tiny, "
        "arm: reuse}, so there is nothing to reuse. Give arms.reuse.first: {}" in text
    )
    assert "reuse/seed-2" not in text
    # The steps of an arm that is written before it are before it, so their runs will be there.
    other = {"overrides": {"algorithms": {"prior_run_distillation": {"runs": {"tags": {"sequence": "tiny"}}}}}}
    assert len(planned(tmp_path, arms={"without": {}, "reuse": other}).steps) == 4
    assert "nothing to reuse" in "\n".join(faults_of(tmp_path, arms={"reuse": other, "without": {}}))
    later = {"first": {}, "overrides": {"algorithms": {"prior_run_distillation": {"runs": {**QUERY, "run_name": "x"}}}}}
    assert "Change the query" in "\n".join(faults_of(tmp_path, arms={"reuse": later}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"arms": {}}, "arms: missing"),
        ({"arms": [1]}, "arms: must be a section"),
        ({"arms": {"a/b": {}}}, "arms.a/b: must be letters"),
        ({"steps": []}, "steps: must be a list of steps"),
        ({"name": None}, "name: missing"),
        ({"recipe": None}, "recipe: missing, and steps.0 of without names none"),
        ({"recipe": "digits/basline"}, "Did you mean 'digits/baseline'"),
        ({"recipe": "none.yaml"}, "there is no such file"),
        ({"search": "sed"}, "search: 'sed' is not in the grid of without/seed-1. Did you mean 'seed'?"),
        ({"steps": [{"name": "a"}, {"name": "a"}]}, "two steps of the name 'a_seed-1'"),
        ({"steps": [{"grid": {"seed": [1]}}]}, "steps.0.grid.seed: is in the grid of all steps, too"),
        ({"steps": [{"recipe": "digits/short"}], "arms": {"a": {"recipe": "digits/baseline"}}}, "both say what to"),
        ({"grid": {"run_name": ["a"]}}, "grid.run_name: is set by the sequence"),
        ({"overrides": {"callbacks": {"run_recorder": False}}}, "callbacks.run_recorder: missing"),
        ({"folder": "${nope}"}, "there is no key 'nope'"),
    ],
)
def test_what_cannot_be_planned_is_refused(keys: dict[str, object], message: str, tmp_path: Path) -> None:
    assert message in "\n".join(faults_of(tmp_path, **keys))


def test_a_file_that_is_no_sequence(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("[1, 2]")
    with pytest.raises(RecipeError, match="must be a mapping of keys"):
        load_sequence(path)
    with pytest.raises(RecipeError, match="no such file"):
        load_sequence(tmp_path / "sequenc.yaml")


def test_another_archive_is_another_one_wherever_the_file_names_it(tmp_path: Path) -> None:
    path = sequence(tmp_path, folder="${archive}/work", tags={"kept_in": "${archive}"})
    config = load_sequence(path, ["archive=first"], archive="s3://bucket/second")
    assert (config.archive, config.folder) == ("s3://bucket/second", "s3://bucket/second/work")
    assert config.tags == {"kept_in": "s3://bucket/second"}


def test_fingerprint_is_of_the_training_only(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    moved = plan_sequence(load_sequence(sequence(tmp_path, folder=str(tmp_path / "other"), name="renamed")))
    same = [fingerprint(step.recipe.record) for step in plan.of_arm("without")]
    assert same == [fingerprint(step.recipe.record) for step in moved.of_arm("without")]
    assert len(set(same)) == 2
    slower = planned(tmp_path, "overrides.optimizer.lr=0.05")
    assert not {fingerprint(step.recipe.record) for step in slower.of_arm("without")} & set(same)


def _prior_and_method(tmp_path: Path, runs: object) -> list[str]:
    reuse = {
        "overrides": {"algorithms": {"prior_run_distillation": {"runs": runs, "loss": {"name": "mse", "weight": 0.5}}}}
    }
    arms = {"method": reuse, "plain": {}, "prior": {"grid": {"seed": [7, 8]}}}
    return [step.title for step in planned(tmp_path, arms=arms).steps]


def test_runs_of_another_arm_come_before_what_reuses_them(tmp_path: Path) -> None:
    method, plain = ["method/seed-1", "method/seed-2"], ["plain/seed-1", "plain/seed-2"]
    all_of_it = _prior_and_method(tmp_path, {"tags": {"sequence": "${name}", "arm": "prior"}})
    assert all_of_it == ["prior/seed-7", "prior/seed-8", method[0], plain[0], method[1], plain[1]]
    one_each = _prior_and_method(tmp_path, {"run_name": "${name}-prior-seed-8"})
    assert one_each == ["prior/seed-8", method[0], plain[0], "prior/seed-7", method[1], plain[1]]
    by_name = _prior_and_method(tmp_path, "${name}-prior-seed-8")
    assert by_name == one_each
    # One that fits its own arm as well means those before it.
    history = _prior_and_method(tmp_path, {"tags": {"study": "${name}"}})
    assert history == [method[0], plain[0], "prior/seed-7", method[1], plain[1], "prior/seed-8"]


def test_the_same_seed_of_another_arm_is_named_by_the_recipes_own_seed(tmp_path: Path) -> None:
    titles = _prior_and_method(tmp_path, {"run_name": "${name}-prior-seed-1\\${seed}"})
    assert titles[:3] == ["method/seed-1", "plain/seed-1", "prior/seed-7"]
    runs = {"run_name": "${name}-prior-seed-\\${seed}"}
    reuse = {
        "overrides": {"algorithms": {"prior_run_distillation": {"runs": runs, "loss": {"name": "mse", "weight": 0.5}}}}
    }
    arms = {"method": reuse, "prior": {"grid": {"seed": [2, 1]}}}
    steps = [step.title for step in planned(tmp_path, arms=arms).steps]
    assert steps == ["prior/seed-1", "method/seed-1", "prior/seed-2", "method/seed-2"]
