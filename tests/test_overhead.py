"""``benchmarks/overhead.py``: what is timed against each other is the same training, and the ratios are right."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import overhead  # noqa: E402
import overhead_variants  # noqa: E402
import step_clock  # noqa: E402

EPOCHS = 2
SETTING = overhead_variants.Setting(model="resnet8", batch=8, batches=4, autocast=None)
HAVE_TORCHDISTILL = importlib.util.find_spec("torchdistill") is not None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of each variant after it made the same epochs; by the names of the network's own parameters."""
    folder = tmp_path_factory.mktemp("overhead")
    names = ["plain", "raw", "recipe", "recorder", "cached_1", "live_1", "timm_1"]
    names += ["torchdistill_1"] if HAVE_TORCHDISTILL else []
    dataset = overhead_variants.prepare(folder, names, SETTING)
    found = {}
    for name in names:
        training = overhead_variants.build(name, folder, dataset, SETTING)
        for _ in range(EPOCHS):
            training.epoch()
        found[name] = weights_of(training)
        training.close()
    return found


def weights_of(training: Any) -> dict[str, torch.Tensor]:
    """The student's parameters by the network's own names, whatever wraps it."""
    return {name.rsplit("module.", 1)[-1]: value.clone() for name, value in training.student.named_parameters()}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference of two weights."""
    shared = one.keys() & other.keys()
    assert len(shared) == len(one)
    return max(float((one[name] - other[name]).abs().max()) for name in shared)


def test_the_references_train_the_same_network_on_the_same_batches(trained: dict[str, Any]) -> None:
    for name in ("raw", "recipe", "recorder"):
        assert distance(trained["plain"], trained[name]) < 1e-6
    assert distance(trained["plain"], trained["live_1"]) > 1e-4


def test_distillation_is_the_same_as_that_of_the_peers(trained: dict[str, Any]) -> None:
    for name in ("timm_1", "cached_1", *(["torchdistill_1"] if HAVE_TORCHDISTILL else [])):
        assert distance(trained["live_1"], trained[name]) < 1e-5


class Loop:
    """Notes when it makes a step."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.clock, self.name, self.notes = step_clock.StepClock(), name, notes

    def epoch(self) -> None:
        """Three steps."""
        self.clock.restart()
        for _ in range(3):
            self.clock.tick()
            self.notes.append(self.name)


def test_steps_are_made_in_turn_and_the_first_epoch_does_not_count() -> None:
    notes: list[str] = []
    seconds = step_clock.epochs_by_turns({name: Loop(name, notes) for name in "abc"}, epochs=2)
    rounds = [notes[at : at + 3] for at in range(0, len(notes), 3)]
    assert len(rounds) == 9
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_ratios_are_taken_round_by_round() -> None:
    plain = [1.0, 2.0, 4.0, 8.0] * 5  # a machine that grows slow: ratios of means would say something else
    seconds = {
        "plain": plain,
        "raw": [0.8 * x for x in plain],
        "recipe": [0.88 * x for x in plain],
        "cached_1": [1.01 * x for x in plain],
        "cached_5": [1.03 * x for x in plain],
    }
    found = overhead.summarise({"seconds": seconds, "batches": 21})
    assert found["plain"]["median_seconds"] == 3.0
    assert found["cached_1"]["to_plain"]["ratio"] == pytest.approx(1.01)
    assert found["recipe"]["to_raw"]["ratio"] == pytest.approx(1.1)
    assert {name: one["goal"]["met"] for name, one in found.items() if "goal" in one} == {
        "recipe": False,
        "cached_1": True,
        "cached_5": False,
    }


def test_every_tenth_batch_counts_as_one_of_ten() -> None:
    plain = [2.0] * 18
    every = [4.0 if step % 9 == 0 else 2.2 for step in range(18)]  # nine timed steps of an epoch; the first is dear
    found = overhead.summarise({"seconds": {"plain": plain, "live_1_every_10": every}, "batches": 10})
    assert found["live_1_every_10"]["to_plain"]["ratio"] == pytest.approx((2.0 + 9 * 1.1) / 10)
