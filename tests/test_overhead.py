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

from reuse_algos.data.example_ids import TrackExamples  # noqa: E402
from reuse_algos.data.sampler import TrackedBatchSampler  # noqa: E402

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
        if isinstance(training, overhead_variants.ComposerTraining):
            TRACKED[name] = tracking_of(training)
        training.close()
    return found


TRACKED: dict[str, tuple[bool, bool]] = {}


def tracking_of(training: overhead_variants.ComposerTraining) -> tuple[bool, bool]:
    """Whether the loader was swapped for a tracked one, and whether a callback was given that does it."""
    state = training.trainer.state
    loader: Any = state.train_dataloader
    given = any(isinstance(one, TrackExamples) for one in state.callbacks)
    return isinstance(loader.batch_sampler, TrackedBatchSampler), given


def test_only_what_needs_the_examples_tracks_them(trained: dict[str, Any]) -> None:
    del trained
    assert TRACKED == {
        "plain": (False, False),  # Composer alone: the cost of the tracker is in the ratios of the others
        "recipe": (True, True),
        "recorder": (True, False),
        "cached_1": (True, False),
        "live_1": (True, False),
    }


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


def test_the_interval_of_the_median_is_that_of_the_tables() -> None:
    """For twenty values: from the sixth to the fifteenth (Conover, Practical Nonparametric Statistics, 3.2)."""
    values = torch.randperm(20, generator=torch.Generator().manual_seed(1)).double() + 1
    assert overhead.interval_of_median(values.tolist(), [1.0] * 20) == [6.0, 15.0]
    assert overhead.interval_of_median([1.0] * 5, [1.0] * 5) is None, "five values cannot tell at 95 %"


def test_every_tenth_batch_counts_as_one_of_ten() -> None:
    plain = [2.0] * 18
    every = [4.0 if step % 9 == 0 else 2.2 for step in range(18)]  # nine timed steps of an epoch; the first is dear
    found = overhead.summarise({"seconds": {"plain": plain, "live_1_every_10": every}, "batches": 10})
    own = found["live_1_every_10"]
    assert own["to_plain"]["ratio"] == pytest.approx((2.0 + 9 * 1.1) / 10)
    assert own["median_seconds"] == pytest.approx((4.0 + 9 * 2.2) / 10)
    assert own["cycles"] == 2
    assert "cycles" not in found["plain"]


def test_the_spread_of_every_tenth_batch_is_that_of_whole_cycles() -> None:
    # Epochs of 20 batches, 19 timed: cycles of ten and of nine timed steps. The machine's speed differs by the cycle.
    dear, cheap = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0), (1.0, 1.0, 1.1, 1.0, 1.2, 1.0)
    plain, every = [], []
    for number in range(6):
        steps = 9 if number % 2 else 10
        speed = 1.0 + number
        plain += [speed] * steps
        every += [speed * dear[number], *[speed * cheap[number]] * (steps - 1)]
    found = overhead.summarise({"seconds": {"plain": plain, "live_1_every_10": every}, "batches": 20})
    own = found["live_1_every_10"]["to_plain"]
    by_hand = sorted((x + 9 * y) / 10 for x, y in zip(dear, cheap, strict=True))
    assert by_hand == pytest.approx([1.1, 1.2, 1.39, 1.4, 1.6, 1.68])
    assert own["ratio"] == pytest.approx((1.39 + 1.4) / 2)
    assert (own["ratio_25"], own["ratio_75"]) == pytest.approx((1.1 + 0.75 * 0.1, 1.6 + 0.25 * 0.08))
    assert own["ratio_25"] < own["ratio"] < own["ratio_75"]
    assert found["live_1_every_10"]["cycles"] == 6


def test_what_a_cycle_lacks_is_filled_in_by_its_cheap_steps() -> None:
    times = [30.0, *[1.0] * 9, 50.0, *[2.0] * 4, *[4.0] * 4]
    assert overhead.cycles(times, 20) == pytest.approx([(30 + 9) / 10, (50 + 9 * 3) / 10])
    # A cycle that is longer than an epoch: one reading in 390 batches, by an epoch of eleven.
    assert overhead.cycles([30.0, *[2.0] * 9], 11, 390) == pytest.approx([(30 + 389 * 2) / 390])


def test_the_command_names_the_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "measure", lambda names, setting, **options: {n: [1.0] * 18 for n in names})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(BENCHMARKS.parent)
    common = ["--batch", "8", "--epochs", "2", "--variants", "plain", "raw", "--out", str(tmp_path / "o.jsonl")]
    for given in ([], ["--peers", str(tmp_path / "peers")], ["--peers", "./peers"], ["--autocast", "bfloat16"]):
        overhead.main([*common, *given])
    start = "python benchmarks/overhead.py --model resnet56 --batch 8 --batches 10 --epochs 2 --threads 1"
    assert [one["command"] for one in overhead.ResultsFile(tmp_path / "o.jsonl").records()] == [
        f"{start} --variants plain raw",
        f"{start} --peers peers --variants plain raw",
        f"{start} --peers peers --variants plain raw",
        f"{start} --autocast bfloat16 --variants plain raw",
    ]


def test_a_single_cycle_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(overhead, "measure", None)
    with pytest.raises(SystemExit):
        overhead.main(["--epochs", "1", "--variants", "live_1_every_10"])
    assert "cycles of 10 batches needs two" in capsys.readouterr().err
