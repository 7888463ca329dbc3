"""Helpers of the tests of AdversarialReplay: small images, two runs on them, and perturbations of our own making."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from composer import Algorithm, Callback, Event, State
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader

from reuse_algos.algorithms import AdversarialReplay
from reuse_algos.archive import HarvestRecord, RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.example_ids import TrackExamples
from reuse_algos.data.images.augment import Augmentation
from reuse_algos.data.images.device_loader import DeviceImages, WorkerImages
from reuse_algos.data.images.pixels import PixelSpace
from reuse_algos.data.info import DatasetInfo
from shorthand import sections
from toy import detached, epoch_loader, trainer

N, BATCH, VIEWS, CLASSES = 48, 16, 2, 4
SHAPE = (3, 6, 6)
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.5)
EPSILON = 16 / 255


def corners(labels_N: Tensor, seed: int = 0) -> Tensor:
    """Random pixels ``[N, 6, 6, 3]``, brighter in the corner of the label."""
    pixels = torch.randint(0, 120, (len(labels_N), 6, 6, 3), generator=torch.Generator().manual_seed(seed))
    for row, label in enumerate(labels_N.tolist()):
        pixels[row, 3 * (label // 2) : 3 * (label // 2) + 3, 3 * (label % 2) : 3 * (label % 2) + 3] += 90
    return pixels


def images(length: int = N, num_views: int = VIEWS, *, seed: int = 0, **settings: Any) -> WorkerImages:
    """Images whose brightest corner says the class, in numbered crops."""
    labels = torch.arange(length) % CLASSES
    pixels = settings.pop("pixels", None)
    pixels = corners(labels, seed) if pixels is None else pixels
    info = settings.pop("info", None) or DatasetInfo("corners", torch.arange(length), labels, tuple("abcd"))
    space = PixelSpace(settings.pop("mean", MEAN), settings.pop("std", STD))
    settings = {"view_seed": 3, "augmentation": Augmentation("crop", padding=1), **settings}
    data = DeviceImages(pixels.byte(), labels, pixels=space, num_views=num_views, info=info, **settings)
    return WorkerImages(data)


def conv_net(seed: int = 0, *, norm: bool = True, dropout: float = 0.0) -> ComposerClassifier:
    """A small net with batch norms of two kinds, and dropout before them where asked for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.Dropout(dropout),
            nn.BatchNorm2d(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 12),
            nn.BatchNorm1d(12) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Linear(12, CLASSES),
        )
    return ComposerClassifier(net, num_classes=CLASSES)


def record(folder: Path | str, name: str, *, seed: int = 1, **settings: Any) -> str:
    """Train on the images and archive the run; its id."""
    recorder = RunRecorder(
        folder, run_name=name, tags={"method": "baseline"}, signals={"logits": {"last_epochs": VIEWS}, "loss": {}}
    )
    one = trainer(
        epoch_loader(settings.pop("data", None) or images(), BATCH),
        settings.pop("model", None) or conv_net(seed),
        callbacks=[recorder],
        eval_dataloader=DataLoader(images(16, seed=9), batch_size=16),
        **{"max_duration": "2ep", "seed": seed, **settings},
    )
    one.fit()
    one.close()
    assert recorder.run_id is not None
    return recorder.run_id


def deltas(seed: int, views: int = VIEWS, length: int = N, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Perturbations in pixel units, float32 ``[views, length, C, H, W]``."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(views, length, *shape, generator=generator) * 2 - 1) * EPSILON


def put_deltas(
    archive: RunArchive,
    run_id: str,
    deltas_VN: Tensor,
    *,
    ids: Mapping[int, Tensor] | None = None,
    name: str = "adversarial",
    seconds: float = 8.0,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write perturbations into a run that has ended, as plain numbers; by default on record as those of an attack."""
    attack = {"norm": "linf", "epsilon": EPSILON} if meta is None else dict(meta)
    writer, manifest = archive.resume_run(run_id)
    files = [file for file in manifest.files if (file.kind, file.name) != ("signals", name)]
    for view, delta_N in enumerate(deltas_VN):
        rows = torch.arange(len(delta_N)) if ids is None else ids[view]
        if not len(rows):
            continue
        said = {"slot": view, "epoch": 2, "view": view, "source": "harvest", "encoding": "dense", "num_classes": None}
        values = {"ids": rows, "values": delta_N[rows].contiguous()}
        files.append(writer.put("signals", name, values, {**said, **attack}))
    made = HarvestRecord(signal=name, views=list(range(len(deltas_VN))), weights="last", seconds=seconds, hardware="x")
    writer.commit(msgspec.structs.replace(manifest, files=files, harvests=[*manifest.harvests, made]))
    writer.finish()


def make_archive(folder: Path) -> RunArchive:
    """Two runs, an older and a newer one, each with perturbations (see :func:`deltas`, seeds 1 and 2)."""
    archive = RunArchive(folder, create=True)
    for seed, name in ((1, "older"), (2, "newer")):
        put_deltas(archive, record(folder, name, seed=seed), deltas(seed))
    return archive


def perturbed(inputs: Tensor, delta: Tensor) -> Tensor:
    """What a model is to see, by hand: through pixels and back."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return ((inputs * std + mean + delta).clamp(0, 1) - mean) / std


class Calls(Callback):
    """Everything that the inner module was given and gave while training, by forward pass; and the losses."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.results: list[Tensor] = []
        self.outputs: list[Any] = []
        self.batches: list[Any] = []
        self.losses: list[Any] = []

    def fit_start(self, state: State, logger: Any) -> None:
        inner: Any = getattr(state.model, "module", state.model)
        inner = inner if isinstance(inner, nn.Sequential) else inner.module
        inner.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, arguments: Any, result: Tensor) -> None:
        if module.training:
            self.inputs.append(arguments[0].detach().clone())
            self.results.append(result.detach().clone())

    def after_forward(self, state: State, logger: Any) -> None:
        self.outputs.append(detached(state.outputs))
        self.batches.append(copy.deepcopy(state.batch))

    def before_backward(self, state: State, logger: Any) -> None:
        self.losses.append(detached(state.loss))


def replay(archive: RunArchive, **settings: Any) -> AdversarialReplay:
    runs = settings.pop("runs", "newer")
    return AdversarialReplay(archive, runs, **sections("replay", {"warn_below": 0.0, **settings}))


def fit(algorithms: list[Any], model: Any = None, *, data: Any = None, **arguments: Any) -> tuple[Any, Calls, Any]:
    calls, log = Calls(), InMemoryLogger()
    callbacks = [*arguments.pop("callbacks", []), calls, TrackExamples()]  # without it a plain run shows no views
    one = trainer(
        arguments.pop("loader", None) or epoch_loader(data or images(), BATCH),
        model or conv_net(5),
        algorithms=algorithms,
        callbacks=callbacks,
        loggers=[log],
        **{"max_duration": "1ep", **arguments},
    )
    one.fit()
    one.close()
    return one, calls, log


def both_branches(one: Any) -> dict[str, Tensor]:
    """State of the model of a trainer that has ended, with the auxiliary batch norms that were put aside."""
    for algorithm in one.state.algorithms:
        if isinstance(algorithm, AdversarialReplay):
            algorithm.replay.branches.take_back(one.state)
    return one.state.model.state_dict()


def series(log: InMemoryLogger, name: str) -> list[float]:
    return [float(value) for _, value in log.data[f"reuse/adversarial_replay/{name}"]]


def positions_of(inputs: Tensor, view: int, data: WorkerImages | None = None) -> Tensor:
    """Which examples these clean inputs are, found by looking."""
    data = data or images()
    known = torch.stack([data[(position, view)][0] for position in range(len(data))])  # type: ignore[index]
    return torch.cdist(inputs.flatten(1), known.flatten(1)).argmin(1)


def follow_replace(archive: RunArchive, **settings: Any) -> dict[str, float]:
    """What this rank showed of which example in which epoch: the sum of its numbers, by epoch and key."""
    algorithm = Replayed(archive, **{"mode": "replace", "runs": ["older", "newer"], **settings})
    fit([algorithm], conv_net(5, norm=False), max_duration="2ep")
    return algorithm.seen


def add_part(archive: RunArchive, folder: Path) -> None:
    """A run with perturbations of some examples only, unevenly spread over the ranks."""
    rows = torch.tensor([row for row in range(N) if row % 5 in (0, 1) or row in range(0, 20, 2)])
    put_deltas(archive, record(folder, "part"), deltas(4), ids={0: rows, 1: rows})


def follow_part(archive: RunArchive) -> dict[str, Any]:
    """Replayed rows and final weights where examples have no perturbation."""
    found: dict[str, Any] = {}
    for weight in (None, 0.5):
        settings = {"runs": "part", "fraction": 1.0, "mismatch": "allow", "weight": weight}
        one, _, log = fit([replay(archive, **settings)], conv_net(5, norm=False), lr=0.05)
        weights = torch.cat([p.detach().flatten() for p in one.state.model.parameters()])
        found[str(weight)] = {"rows": series(log, "rows"), "weights": weights.tolist()}
    return found


class Unused(Algorithm):
    """As LayerFreezing and StochasticDepth: DDP is to look for unused parameters."""

    def match(self, event: Event, state: State) -> bool:
        return False

    def apply(self, event: Event, state: State, logger: Any) -> None:
        pass

    @property
    def find_unused_parameters(self) -> bool:
        return True


def follow_branches(archive: RunArchive) -> dict[str, list[float]]:
    """Both branches of batch norms under DDP: every parameter must have its gradient, whatever the batch holds.

    Returns the weights of this rank by case. At a learning rate of 0 the main statistics are compared right here with
    those of a run without replayed rows.
    """
    found: dict[str, list[float]] = {}
    for mode in ("append", "replace"):
        for case, others, settings, arguments in (
            ("microbatches", [], {"every_n_batches": 2}, {"device_train_microbatch_size": 4}),
            ("late", [], {"start": "1ep"}, {"max_duration": "2ep"}),
            ("unused", [Unused()], {"every_n_batches": 2}, {}),
            ("unused microbatches", [Unused()], {}, {"device_train_microbatch_size": 4}),
        ):
            one, _, _ = fit([*others, replay(archive, mode=mode, **settings)], conv_net(5), lr=0.05, **arguments)
            state = both_branches(one)
            assert any("auxiliary" in name for name in state)
            weights = [v.flatten() for name, v in state.items() if name.endswith(("weight", "bias"))]
            found[f"{mode} {case}"] = torch.cat(weights).tolist()
    still, _, _ = fit([replay(archive)], conv_net(5), lr=0.0)
    plain, _, _ = fit([], conv_net(5), lr=0.0)
    for name, value in plain.state.model.state_dict().items():
        assert torch.equal(still.state.model.state_dict()[name], value), name
    return found


class Replayed(AdversarialReplay):
    """Remembers what was made of which example in each epoch."""

    def __init__(self, archive: RunArchive, runs: Any = "newer", **settings: Any) -> None:
        super().__init__(archive, runs, **sections("replay", {"warn_below": 0.0, **settings}))
        self.seen: dict[str, float] = {}

    def adversarial_inputs(self, state: State, rows_R: Tensor) -> Tensor | None:
        inputs = super().adversarial_inputs(state, rows_R)
        assert inputs is not None
        positions = self.ids.microbatch.positions[rows_R].tolist()
        for position, total in zip(positions, inputs.double().sum((1, 2, 3)).tolist(), strict=True):
            self.seen[f"{int(state.timestamp.epoch)}-{position}"] = total
        return inputs
