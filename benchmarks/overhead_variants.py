"""The trainings that ``overhead.py`` times against each other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from adversarial_steps import VIEWS, images
from composer import Callback, Trainer
from composer.algorithms import ChannelsLast
from step_clock import StepClock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from reuse_algos.algorithms import AdversarialReplay, HistoryCurriculum, PriorRunDistillation
from reuse_algos.algorithms.prior_run_distillation import KL
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder, TrainingInstruments
from reuse_algos.data.example_ids import TrackExamples
from reuse_algos.data.images.device_loader import DeviceImages, dataloader_of
from reuse_algos.data.sampler import EpochSampler
from reuse_algos.harvest import harvest
from reuse_algos.models import build_model
from reuse_algos.priors.model import archived_model
from reuse_algos.training.attacks import Attack

__all__ = ["VARIANTS", "Setting", "build", "prepare"]

CLASSES = 100
TEMPERATURE, WEIGHT, LR, MOMENTUM = 4.0, 0.9, 0.01, 0.9

# Name -> the module that it needs, beside this library's own.
VARIANTS: dict[str, str | None] = {
    "plain": None,
    "raw": None,
    "recipe": None,
    "recorder": None,
    "cached_1": None,
    "cached_5": None,
    "live_1": None,
    "live_5": None,
    "live_1_every_10": None,
    "curriculum": None,
    "weighted": None,
    "replay_replace": None,
    "replay_append": None,
    "instruments": None,
    "timm_1": "timm",
    "torchdistill_1": "torchdistill",
}
_TEACHERS = {"cached_1": 1, "cached_5": 5, "live_1": 1, "live_5": 5, "live_1_every_10": 1}


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        model: name of the network.
        batch: examples of a batch.
        batches: of an epoch.
        autocast: dtype of the forward pass, None for float32.
        cpu: CPU seconds of the training's thread in place of seconds on the wall.
    """

    model: str
    batch: int
    batches: int
    autocast: str | None
    cpu: bool = False

    @property
    def now(self) -> Callable[[], float]:
        """The clock: each training is a thread of its own, whose seconds of the processor are those of its steps."""
        return time.thread_time if self.cpu else time.perf_counter

    def network(self, seed: int = 0) -> Any:
        """Return the network as a Composer model on the device, channels last."""
        torch.manual_seed(seed)
        config = {"name": self.model, "autocast": self.autocast}
        model = build_model(config, num_classes=CLASSES, image_shape=(3, 32, 32))
        return model.to(device=_device(), memory_format=torch.channels_last)

    def loader(self, dataset: DeviceImages) -> DataLoader:
        """Whole batches, in an order of seed and epoch."""
        return dataloader_of(dataset, self.batch, EpochSampler(len(dataset), seed=0), drop_last=True)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class ComposerTraining:
    """A Trainer that goes on by one epoch at a time.

    Args:
        dataset: what it trains on.
        setting: how.
        parts: algorithms and callbacks. Those of them that need to know the examples of a batch track the loader
            themselves, as in a user's own Trainer; nothing else does.
        seed: of the network.
    """

    def __init__(self, dataset: DeviceImages, setting: Setting, *parts: Any, seed: int = 0) -> None:
        self.clock = StepClock(setting.now)
        self.student = model = setting.network(seed)
        self.dataset = dataset
        callbacks = [part for part in parts if isinstance(part, Callback)]
        self.trainer = Trainer(
            model=model,
            train_dataloader=setting.loader(dataset),
            optimizers=torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM),
            max_duration="0ep",
            device="gpu" if torch.cuda.is_available() else "cpu",
            algorithms=[ChannelsLast(), *(part for part in parts if part not in callbacks)],
            callbacks=[self.clock, *callbacks],
            progress_bar=False,
            auto_log_hparams=False,
        )

    def epoch(self) -> None:
        """Train one more epoch."""
        self.dataset.set_epoch(int(self.trainer.state.timestamp.epoch))  # the views of this epoch, tracked or not
        self.trainer.fit(duration="1ep")

    def close(self) -> None:
        """End the Trainer."""
        self.trainer.close()


Step = Callable[[Tensor, Tensor], None]


class LoopTraining:
    """A loop of PyTorch over the same loader: one call of ``step`` with images and labels for each batch."""

    def __init__(self, dataset: DeviceImages, setting: Setting, student: nn.Module, step: Step) -> None:
        self.clock, self.loader, self.step = StepClock(setting.now), setting.loader(dataset), step
        self.student = student
        self.epochs = 0

    def epoch(self) -> None:
        """Train one more epoch."""
        self.loader.sampler.set_epoch(self.epochs)  # type: ignore[attr-defined]
        self.loader.dataset.set_epoch(self.epochs)  # type: ignore[attr-defined]  # the views of this epoch
        self.epochs += 1
        self.clock.restart()
        for inputs, labels in self.loader:
            self.clock.tick()
            self.step(inputs, labels)

    def close(self) -> None:
        """Do nothing: there is nothing to end."""


class OfImages(nn.Module):
    """A Composer model as a module from images to logits, as the peers want it."""

    # timm scales images for the teacher where its normalisation differs: here it is the same, so nothing is done.
    pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # noqa: RUF012

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to logits ``[B, K]``."""
        return self.model((inputs, None))


def prepare(folder: Path, names: list[str], setting: Setting) -> DeviceImages:
    """Make the data, and an archive with as many prior runs, and signals of them, as the variants need."""
    dataset = images(setting.batches * setting.batch, _device(), CLASSES)
    wanted = max([1, *(_TEACHERS[name] for name in names if name in _TEACHERS)])
    for number in range(wanted):
        recorder = RunRecorder(folder / "archive", run_name=f"prior-{number}")
        prior = ComposerTraining(dataset, setting, recorder, seed=number + 1)
        prior.trainer.fit(duration="1ba")
        prior.close()
        signals = ["logits"] if {"cached_1", "cached_5"} & set(names) else []
        if number == 0:
            signals += ["el2n"] if {"curriculum", "weighted"} & set(names) else []
            signals += ["adversarial"] if {"replay_replace", "replay_append"} & set(names) else []
        if signals:
            # A weak attack: how well it fools a model does not matter here.
            attack = Attack(method="fgsm") if "adversarial" in signals else None
            options: dict[str, Any] = {"signals": signals, "attack": attack, "batch_size": 4 * setting.batch}
            harvest(folder / "archive", f"prior-{number}", dataset=dataset, progress=False, **options)
    assert dataset.view_policy.num_views == VIEWS
    return dataset


def build(name: str, folder: Path, dataset: DeviceImages, setting: Setting) -> ComposerTraining | LoopTraining:
    """Return one variant, ready to train."""
    if name == "raw":
        return LoopTraining(dataset, setting, *_plain_step(setting))
    if name == "timm_1":
        return LoopTraining(dataset, setting, *_timm_step(setting, folder))
    if name == "torchdistill_1":
        return LoopTraining(dataset, setting, *_torchdistill_step(setting, folder))
    return ComposerTraining(dataset, setting, *_parts(name, folder))


def _parts(name: str, folder: Path) -> list[Any]:
    archive = folder / "archive"
    if name in ("recipe", "recorder"):
        signals: dict[str, Any] | None = {"logits": {}} if name == "recorder" else None
        recorder = RunRecorder(folder / "recorded", run_name=name, signals=signals)
        return [recorder, TrackExamples()] if name == "recipe" else [recorder]  # as build_trainer has it
    if name in _TEACHERS:
        source, every = name.split("_")[0], 10 if name.endswith("_every_10") else 1
        runs = [f"prior-{number}" for number in range(_TEACHERS[name])]
        loss = KL(temperature=TEMPERATURE, weight=WEIGHT)
        return [PriorRunDistillation(archive, runs, source=source, loss=loss, when={"every_n_batches": every})]
    if name == "curriculum":
        return [HistoryCurriculum(archive, "prior-0", strategy="curriculum", score="el2n")]
    if name == "weighted":
        return [
            HistoryCurriculum(archive, "prior-0", strategy={"name": "active_bias", "mode": "weighting"}, score="el2n")
        ]
    if name == "instruments":
        return [TrainingInstruments(every="1ep")]
    if name.startswith("replay"):
        mode = name.removeprefix("replay_")
        return [AdversarialReplay(archive, "prior-0", mode=mode, perturbations={"warn_below": 0.0})]
    return []


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)


def _plain_step(setting: Setting) -> tuple[nn.Module, Step]:
    student = OfImages(setting.network()).train()
    optimizer = _optimizer(student)

    def step(inputs: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(student(inputs), labels).backward()
        optimizer.step()

    return student, step


def _student_and_teacher(setting: Setting, folder: Path) -> tuple[OfImages, OfImages]:
    """Return the peers' teacher: the prior run that teaches ``live_1``."""
    teacher = archived_model(RunArchive(folder / "archive").run("prior-0"), "last")
    return OfImages(setting.network()).train(), OfImages(
        teacher.to(device=_device(), memory_format=torch.channels_last)
    ).eval()


def _timm_step(setting: Setting, folder: Path) -> tuple[nn.Module, Step]:
    from timm.task import DistillationTeacher, LogitDistillationTask

    student, teacher = _student_and_teacher(setting, folder)
    task = LogitDistillationTask(
        student_model=student,
        teacher_model=DistillationTeacher(teacher, device=torch.device(_device())),
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=1.0 - WEIGHT,
        temperature=TEMPERATURE,
        device=torch.device(_device()),
        verbose=False,
    )
    optimizer = _optimizer(student)

    def step(inputs: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        task(inputs, labels)["loss"].backward()
        optimizer.step()

    return student, step


def _torchdistill_step(setting: Setting, folder: Path) -> tuple[nn.Module, Step]:
    from torchdistill.core.distillation import DistillationBox

    student, teacher = _student_and_teacher(setting, folder)
    logits = {f"{one}_module_{what}": value for one in ("student", "teacher") for what, value in _OUTPUT.items()}
    kd = {"key": "KDLoss", "kwargs": {**logits, "temperature": TEMPERATURE, "alpha": 1.0 - WEIGHT}}
    config = {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": LR, "momentum": MOMENTUM}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}}},
    }
    device = torch.device(_device())
    box = DistillationBox(teacher, student, {}, config, device, [], distributed=False, lr_factor=1)
    box.pre_epoch_process(epoch=0)

    def step(inputs: Tensor, labels: Tensor) -> None:
        box.pre_forward_process()
        loss = box.forward_process(inputs, labels, None)
        box.post_forward_process(loss)

    return student, step


_OUTPUT = {"path": ".", "io": "output"}
