"""Step times of plain training, replays and online attacks, for ``adversarial.py``: step by step in turn."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from adversarial_online import OnlineAdvProp
from composer import Trainer
from composer.algorithms import ChannelsLast
from step_clock import StepClock, epochs_by_turns, ratios

from reuse_algos.algorithms import AdversarialReplay
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.example_ids import TrackExamples
from reuse_algos.data.images.augment import Augmentation
from reuse_algos.data.images.device_loader import DeviceImages, dataloader_of
from reuse_algos.data.images.pixels import PixelSpace
from reuse_algos.data.sampler import EpochSampler
from reuse_algos.harvest import harvest
from reuse_algos.models import build_model
from reuse_algos.training.attacks import Attack

BATCH, CLASSES, VIEWS = 128, 20, 2
GOALS = {"replace_split": 1.10, "replace_joint": 1.10, "append_split": 1.6, "append_joint": 1.6}

# Name -> settings of AdversarialReplay, and steps of PGD where the perturbations are made at every step.
VARIANTS: dict[str, tuple[dict[str, Any] | None, int | None]] = {
    "plain": (None, None),
    "replace_split": ({"name": "replace", "split_batch_norm": True}, None),
    "replace_joint": ({"name": "replace", "split_batch_norm": False}, None),
    "append_split": ({"name": "append", "split_batch_norm": True}, None),
    "append_joint": ({"name": "append", "split_batch_norm": False}, None),
    "online_pgd1": ({"name": "append", "split_batch_norm": True}, 1),
    "online_pgd5": ({"name": "append", "split_batch_norm": True}, 5),
    "online_pgd5_whole_batch": ({"name": "append", "split_batch_norm": True, "fraction": 1.0}, 5),  # as published
}


@dataclass(frozen=True)
class Setting:
    """How to measure.

    Attributes:
        epochs: epochs that count.
        steps: steps of each that are timed.
        model: name of the network.
        autocast: its ``autocast``.
        threads: of torch.
    """

    epochs: int
    steps: int
    model: str
    autocast: str | None
    threads: int


def images(count: int, device: str, classes: int = CLASSES) -> DeviceImages:
    """Random images of CIFAR's shape, augmented in numbered views as in the recipes."""
    generator = torch.Generator().manual_seed(0)
    return DeviceImages(
        torch.randint(0, 256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8),
        torch.randint(0, classes, (count,), generator=generator),
        pixels=PixelSpace((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        augmentation=Augmentation("crop_flip"),
        num_views=VIEWS,
        device=device,
    )


class Training:
    """A trainer that goes on by one epoch at a time."""

    def __init__(
        self, dataset: DeviceImages, setting: Setting, algorithms: list[Any], recorder: RunRecorder | None = None
    ) -> None:
        torch.manual_seed(0)
        self.clock = StepClock()
        config = {"name": setting.model, "autocast": setting.autocast}
        model = build_model(config, num_classes=CLASSES, image_shape=(3, 32, 32))
        sampler = EpochSampler(len(dataset), seed=0)
        self.trainer = Trainer(
            model=model,
            train_dataloader=dataloader_of(dataset, BATCH, sampler, drop_last=True),
            optimizers=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
            max_duration="0ep",
            device="gpu" if torch.cuda.is_available() else "cpu",
            algorithms=[ChannelsLast(), *algorithms],
            callbacks=[self.clock, TrackExamples(), *([recorder] if recorder else [])],
            progress_bar=False,
            auto_log_hparams=False,
        )

    def epoch(self) -> None:
        """Train one more epoch."""
        self.trainer.fit(duration="1ep")


def measure(names: list[str], setting: Setting) -> dict[str, list[float]]:
    """Return the seconds of each step by variant, made in turn; the first epoch warms up."""
    dataset = images((setting.steps + 1) * BATCH, "cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "archive"
        recorder = RunRecorder(archive, run_name="prior")
        prior = Training(dataset, setting, [], recorder)
        prior.trainer.fit(duration="1ba")
        prior.trainer.close()
        assert recorder.run_id is not None
        quick = Attack(method="fgsm")  # its quality does not matter here
        harvest(archive, recorder.run_id, signals=("adversarial",), attack=quick, dataset=dataset, progress=False)
        trainings = {name: Training(dataset, setting, _algorithms(name, archive)) for name in names}
        seconds = epochs_by_turns(trainings, setting.epochs, setting.threads)
        for training in trainings.values():
            training.trainer.close()
    return seconds


def _algorithms(name: str, archive: Path) -> list[Any]:
    settings, steps = VARIANTS[name]
    if settings is None:
        return []
    replay = AdversarialReplay(archive, "prior", mode=settings, perturbations={"warn_below": 0.0})
    return [replay if steps is None else OnlineAdvProp.instead_of(replay, Attack(steps=steps))]


def summarise(seconds: dict[str, list[float]], show: Callable[[str], None] = print) -> dict[str, dict[str, float]]:
    """Median of each variant's steps against the plain step of the same round, with the middle half of the rounds."""
    summary = {}
    for name, times in seconds.items():
        low, middle, high = ratios(times, seconds["plain"])
        median = statistics.median(times)
        summary[name] = {"median_seconds": median, "ratio": middle, "ratio_25": low, "ratio_75": high}
        goal = GOALS.get(name)
        verdict = "" if goal is None else f"  (goal at most {goal:.2f}: {'met' if middle <= goal else 'not met'})"
        show(f"{name:24} {1000 * median:8.1f} ms  ratio {middle:.3f} [{low:.3f}, {high:.3f}]{verdict}")
    return summary
