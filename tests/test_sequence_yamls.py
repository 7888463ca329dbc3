"""Every sequence that comes with the library is documented, can be planned, and costs what its header says."""

from __future__ import annotations

from pathlib import Path

import pytest

from reuse_algos.sequence import Plan, load_sequence, plan_sequence

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "yamls/sequences").glob("*.yaml"))


def plan(name: str, *overrides: str) -> Plan:
    return plan_sequence(load_sequence(ROOT / f"yamls/sequences/{name}.yaml", overrides))


def test_all_are_there() -> None:
    assert [path.stem for path in FILES] == [
        "attack_strength",
        "batch_size",
        "five_seeds",
        "growing_data",
        "learning_rate_search",
        "pairs",
        "periods",
        "pool",
        "rate_halving",
        "transfer_learning",
    ]


def test_a_sweep_of_batch_sizes_has_a_constant_rate() -> None:
    steps = plan("batch_size").steps
    assert {step.recipe.settings.scheduler is None for step in steps} == {True}
    assert len({(step.recipe.settings.data.batch_size, step.recipe.settings.optimizer["lr"]) for step in steps}) == 28


def test_halving_takes_a_quarter_of_the_steps() -> None:
    found = plan("rate_halving")
    lengths = [int(str(step.recipe.settings.max_duration).removesuffix("ep")) for step in found.of_arm("halving")]
    whole = sum(int(str(step.recipe.settings.max_duration).removesuffix("ep")) for step in found.of_arm("full"))
    # Eight rates in the first rung, two of them in the second, one in the last.
    assert (8 * lengths[0] + 2 * lengths[8] + lengths[16]) / whole < 0.27


def test_a_sweep_of_attacks_changes_the_strength_only() -> None:
    steps = plan("attack_strength").steps
    strengths = [step.recipe.settings.algorithms["adversarial_training"]["epsilon"] for step in steps]
    assert strengths == sorted(set(strengths))
    assert len({str(step.recipe.settings.optimizer) for step in steps}) == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_header_says_what_how_and_at_what_cost(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# What:")
    assert f"# Run:     reuse-algos sequence {path.relative_to(ROOT)}" in text
    runs = len(plan(path.stem).steps)
    assert f"# Cost:    {runs} runs" in text
    for line in text.splitlines():
        if line.startswith("# Try:"):
            overrides = line.split(f"{path.relative_to(ROOT)} ")[1].split()
            assert len(plan(path.stem, *overrides).steps) < runs


@pytest.mark.parametrize("name", ["five_seeds", "growing_data", "learning_rate_search"])
def test_reuse_is_the_same_steps_with_something_to_reuse(name: str) -> None:
    found = plan(name)
    without, reuse = found.of_arm("without"), found.of_arm("reuse")
    assert [step.name for step in without] == [step.name for step in reuse]
    assert [step.special for step in reuse] == [True] + [False] * (len(reuse) - 1)
    for plain, reusing in zip(without, reuse, strict=True):
        for key in ("data", "model", "optimizer", "scheduler", "seed", "precision"):
            assert plain.recipe.record[key] == reusing.recipe.record[key]
        assert plain.recipe.settings.algorithms == {}
        assert len(reusing.recipe.settings.algorithms) == (not reusing.special)


def test_data_grow_and_nothing_else_changes() -> None:
    steps = plan("growing_data").of_arm("without")
    assert [step.recipe.settings.data.train_fraction for step in steps] == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert {step.recipe.settings.data.train_examples for step in steps} == {None}


def test_transfer_learning_is_taught_so() -> None:
    found = plan("transfer_learning", "overrides.data.name=caltech101")
    assert found.config.baseline is None
    for step in found.steps:
        settings = step.recipe.settings
        assert (settings.model.name, settings.model.weights) == ("resnet50", "DEFAULT")
        assert settings.scheduler == {"name": "multi_step", "milestones": ["8ep", "16ep"], "gamma": 0.1}
        frozen = step.arm == "feature-extraction"
        assert settings.algorithms == ({"freezing": {"freeze": "backbone"}} if frozen else {})
