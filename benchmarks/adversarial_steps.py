"""Step times of plain training, replays and online attacks, for ``adversarial.py``: step by step in turn."""

from __future__ import annotations

import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from adversarial_online import OnlineAdvProp
from composer import Callback, State, Trainer
from composer.algorithms import ChannelsLast

from reuse_algos.algorithms import AdversarialReplay
from reuse_algos.attacks import Attack
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.augment import Augmentation
from reuse_algos.data.device_loader import DeviceImages, device_dataloader
from reuse_algos.data.example_ids import TrackExamples
from reuse_algos.data.sampler import EpochSampler
from reuse_algos.harvest import harvest
from reuse_algos.models import build_model

BATCH, CLASSES, VIEWS = 128, 20, 2
GOALS = {"replace_split": 1.10, "replace_joint": 1.10, "append_split": 1.6, "append_joint": 1.6}

# Name -> settings of AdversarialReplay, and steps of PGD where the perturbations are made at every step.
VARIANTS: dict[str, tuple[dict[str, Any] | None, int | None]] = {
    "plain": (None, None),
    "replace_split": ({"mode": "replace", "split_batch_norm": True}, None),
    "replace_joint": ({"mode": "replace", "split_batch_norm": False}, None),
    "append_split": ({"mode": "append", "split_batch_norm": True}, None),
    "append_joint": ({"mode": "append", "split_batch_norm": False}, None),
    "online_pgd1": ({"mode": "append", "split_batch_norm": True}, 1),
    "online_pgd5": ({"mode": "append", "split_batch_norm": True}, 5),
    "online_pgd5_whole_batch": ({"mode": "append", "split_batch_norm": True, "fraction": 1.0}, 5),  # as published
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


class StepClock(Callback):
    """Times each step up to the start of the next one of the same epoch, and lets the next trainer make its step then.

    Every trainer runs in a thread of its own and a baton goes round, so that whatever else the machine does meets all.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.baton = threading.Semaphore(0)
        self.next: StepClock | None = None
        self._began: float | None = None

    def epoch_start(self, state: State, logger: Any) -> None:
        """The first step of an epoch has no predecessor in it."""
        del state, logger
        self._began = None

    def batch_start(self, state: State, logger: Any) -> None:
        """End of one step, start of the next."""
        del state, logger
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._began is not None:
            self.seconds.append(now - self._began)
        if self.next is not None and self.next is not self:
            self.next.baton.release()
            self.baton.acquire()
        self._began = time.perf_counter()


def images(count: int, device: str) -> DeviceImages:
    """Random images of CIFAR's shape, augmented in numbered views as in the recipes."""
    generator = torch.Generator().manual_seed(0)
    return DeviceImages(
        torch.randint(0, 256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8),
        torch.randint(0, CLASSES, (count,), generator=generator),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
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
        self.clock, self.threads = StepClock(), setting.threads
        config = {"name": setting.model, "autocast": setting.autocast}
        model = build_model(config, num_classes=CLASSES, image_shape=(3, 32, 32))
        sampler = EpochSampler(len(dataset), seed=0)
        self.trainer = Trainer(
            model=model,
            train_dataloader=device_dataloader(dataset, BATCH, sampler, drop_last=True),
            optimizers=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
            max_duration="0ep",
            device="gpu" if torch.cuda.is_available() else "cpu",
            algorithms=[ChannelsLast(), *algorithms],
            callbacks=[self.clock, TrackExamples(), *([recorder] if recorder else [])],
            progress_bar=False,
            auto_log_hparams=False,
        )

    def epoch(self) -> None:
        """Train one more epoch, holding the baton only."""
        self.clock.baton.acquire()
        try:
            torch.set_num_threads(self.threads)  # each thread of Python has a number of its own
            self.trainer.fit(duration="1ep")
        finally:
            if self.clock.next is not None:
                self.clock.next.baton.release(1 << 20)  # it may go on without waiting, and pass that on


def measure(names: list[str], setting: Setting) -> dict[str, list[float]]:
    """Seconds of each step by variant, all of them of equal number and made in turn; the first epoch warms up."""
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
        seconds: dict[str, list[float]] = {name: [] for name in names}
        order = list(names)
        for number in range(setting.epochs + 1):
            random.Random(number).shuffle(order)  # who comes after whom changes
            for name, times in _epoch_by_turns([trainings[one] for one in order], order).items():
                seconds[name] += times if number else []
        for training in trainings.values():
            training.trainer.close()
    return seconds


def _algorithms(name: str, archive: Path) -> list[Any]:
    settings, steps = VARIANTS[name]
    if settings is None:
        return []
    replay = AdversarialReplay(archive, "prior", warn_below=0.0, **settings)
    return [replay if steps is None else OnlineAdvProp.instead_of(replay, Attack(steps=steps))]


def _epoch_by_turns(trainings: list[Training], names: list[str]) -> dict[str, list[float]]:
    for training, after in zip(trainings, [*trainings[1:], trainings[0]], strict=True):
        training.clock.seconds.clear()
        training.clock.baton = threading.Semaphore(0)
        training.clock.next = after.clock
    with ThreadPoolExecutor(len(trainings)) as threads:
        ends = [threads.submit(training.epoch) for training in trainings]
        trainings[0].clock.baton.release()
        for end in ends:
            end.result()
    return {name: list(one.clock.seconds) for name, one in zip(names, trainings, strict=True)}


def summarise(seconds: dict[str, list[float]], show: Callable[[str], None] = print) -> dict[str, dict[str, float]]:
    """Median of each variant's steps against the plain step of the same round, with the middle half of the rounds."""
    summary = {}
    for name, times in seconds.items():
        ratios = sorted(own / plain for own, plain in zip(times, seconds["plain"], strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        median = statistics.median(times)
        summary[name] = {"median_seconds": median, "ratio": middle, "ratio_25": low, "ratio_75": high}
        goal = GOALS.get(name)
        verdict = "" if goal is None else f"  (goal at most {goal:.2f}: {'met' if middle <= goal else 'not met'})"
        show(f"{name:24} {1000 * median:8.1f} ms  ratio {middle:.3f} [{low:.3f}, {high:.3f}]{verdict}")
    return summary
