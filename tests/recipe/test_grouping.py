"""Groups of runs in W&B: the runs of one group differ in nothing but the seed, and those of two groups in more."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from reuse_algos.recipe import compose_recipe
from reuse_algos.recipe.build import _wandb_options
from reuse_algos.recipe.grouping import group_of, trained_by
from reuse_algos.sequence import Plan, load_sequence, plan_sequence

ROOT = Path(__file__).parents[2]


def group(**changes: Any) -> str:
    values = {
        "max_duration": "5ep",
        "seed": 1,
        "tags": {"study": "cifar100-small", "method": "distilled"},
        "data": {"name": "digits"},
        "model": {"name": "digits_cnn", "width": 4},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "device": "cpu",
    }
    return group_of(compose_recipe(values | changes))


def planned(here: Path, text: str) -> Plan:
    path = here / "sequence.yaml"
    path.write_text(text)
    return plan_sequence(load_sequence(path))


def seeds_by_group(plan: Plan) -> dict[str, list[int]]:
    found = defaultdict(list)
    for step in plan.steps:
        found[_wandb_options({}, step.recipe)["group"]].append(step.recipe.settings.seed)
    return dict(found)


def test_seeds_share_a_group_that_can_be_read() -> None:
    first = group()
    assert re.fullmatch(r"cifar100-small-distilled-5ep-[0-9a-f]{6}", first)
    assert group(seed=2) == group(seed=3, run_name="x-${seed}", tags={"study": "cifar100-small", "method": "distilled"})
    assert group(seed=2) == first
    assert group(max_duration=5) == first
    # Where a run goes, and what is shown of it, does not part it from the others.
    assert (
        group(archive="./there", save_folder="there", progress_bar=False, loggers={"wandb": {"project": "p"}}) == first
    )


@pytest.mark.parametrize(
    "change",
    [
        {"max_duration": "10ep"},
        {"optimizer": {"name": "sgd", "lr": 0.3}},
        {"data": {"name": "digits", "train_examples": 100}},
        {"tags": {"study": "cifar100-small", "method": "distilled", "note": "again"}},
        {"tags": {"study": "cifar100", "method": "small-distilled"}},  # the same words, joined
        {"algorithms": {"label_smoothing": {"smoothing": 0.1}}},
    ],
)
def test_whatever_else_differs_is_another_group(change: dict[str, Any]) -> None:
    assert group(**change) != group()
    assert group(**change, seed=2) == group(**change)


def test_a_seed_inside_of_other_texts_is_a_seed() -> None:
    """Runs that each reuse the run of their own seed differ in nothing else; those with another query do."""

    def reusing(name: str, seed: int) -> str:
        tags = {"method": "m", "replica": "r${seed}"}
        algorithms = {"prior_run_distillation": {"runs": {"run_name": name}, "source": "cached"}}
        return group(
            seed=seed, tags=tags, algorithms=algorithms, archive="./archive", eval_subset_num_batches="${seed}"
        )

    assert reusing("prior-10${seed}", 1) == reusing("prior-10${seed}", 2)
    assert reusing("prior-10${seed}", 1).startswith("m-5ep-")
    assert len({reusing(name, 1) for name in ("prior-10${seed}", "prior-101", "prior-102")}) == 3
    recipe = compose_recipe({"max_duration": "1ep", "seed": 7, "run_name": "a-${seed}-7", "tags": {"t": "${seed}"},
                             "data": {"name": "digits"}, "model": {"name": "digits_cnn"},
                             "optimizer": {"name": "sgd", "lr": 0.7}})  # fmt: skip
    record = recipe.without_seed
    assert (record["seed"], record["run_name"], record["tags"]) == ("<seed>", "a-<seed>-7", {"t": "<seed>"})
    assert record["optimizer"] == recipe.record["optimizer"] == {"name": "sgd", "lr": 0.7}
    assert recipe.record["run_name"] == "a-7-7"


def test_names_without_tags_and_long_ones() -> None:
    assert re.fullmatch(r"digits-digits_cnn-5ep-[0-9a-f]{6}", group(tags={}))
    assert group(tags={"a": "same", "b": "same", "c": "5ep"}).startswith("same-5ep-")
    long, other = (group(tags={"a": "x" * 200, "b": end}) for end in "yz")
    assert len(long) == len(other) == 128
    assert long != other
    assert long.startswith("xxx")
    assert "-5ep-" in long
    assert group(tags={"step": "mine"}).startswith("mine-5ep-")  # only a sequence's steps are one run each


def test_a_sequence_has_one_group_for_each_arm_budget_and_rate(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        """
        {name: tiny, archive: here, folder: there, recipe: digits/baseline, overrides: {device: cpu},
         grid: {seed: [1, 2, 3], max_duration: [5ep, 10ep], optimizer.lr: [0.1, 0.3]},
         arms: {prior: {grid: {seed: [101, 102, 103]}, tags: {role: prior}}, plain: {}, taught: {overrides: {
           algorithms.prior_run_distillation:
             {runs: {run_name: "${name}-prior-seed-10\\\\${seed}"}, source: cached}}}}}
        """,
    )
    groups = seeds_by_group(plan)
    assert groups.pop(next(name for name in groups if "prior" in name)) == [101, 102, 103]
    assert all(sorted(seeds) == [1, 2, 3] for seeds in groups.values())
    assert sorted(name.rsplit("-", 1)[0] for name in groups) == [
        "tiny-plain-10ep", "tiny-plain-10ep", "tiny-plain-5ep", "tiny-plain-5ep",
        "tiny-taught-10ep", "tiny-taught-10ep", "tiny-taught-5ep", "tiny-taught-5ep",
    ]  # fmt: skip


def test_the_groups_of_a_study_are_its_arms_at_their_budgets() -> None:
    """Also those arms whose runs each reuse the run of their own seed."""
    plan = plan_sequence(load_sequence(ROOT / "benchmarks/studies/cifar100_small.yaml", ["folder=elsewhere"]))
    expected = defaultdict(list)
    for step in plan.steps:
        expected[step.arm, step.point.get("max_duration")].append(step.recipe.settings.seed)
    groups = seeds_by_group(plan)
    assert sorted(groups.values()) == sorted(expected.values())
    others = {arm for (arm, _), seeds in expected.items() if sorted(seeds) != [1, 2, 3]}
    assert others == {"prior", "prior-half", "prior-distilled", "untrained"}
    assert sum(sorted(seeds) == [1, 2, 3] for seeds in groups.values()) == len(groups) - 4


def test_what_has_its_default_is_not_what_a_recipe_says() -> None:
    recipe = compose_recipe({"max_duration": "1ep", "data": {"name": "digits"}, "model": {"name": "digits_cnn"},
                             "optimizer": {"name": "sgd", "lr": float("inf")}, "save_interval": "2ep"})  # fmt: skip
    assert trained_by(recipe.record) == {
        "model.name": "digits_cnn", "max_duration": "1ep",
        "optimizer.name": "sgd", "optimizer.lr": ".inf",
    }  # fmt: skip
