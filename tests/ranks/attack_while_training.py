"""Run under the composer launcher, or imported: train, attack the model at each epoch, write the metrics down.

The learning rate is 0 and the model has no batch norm, so that every rank computes what one alone would.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from composer.models import ComposerClassifier
from composer.utils import dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RobustEvaluation, RunRecorder
from reuse_algos.data.images.device_loader import DeviceImages, dataloader_of
from reuse_algos.data.images.pixels import PixelSpace
from toy import trainer

MEAN, STD = (0.4, 0.6), (0.3, 0.2)
SIDE = 4


def images(count: int = 50, seed: int = 0, classes: int = 2, **arguments: object) -> DeviceImages:
    """Random images of two channels, whose class is whether the first is lighter than the second (or of several)."""
    generator = torch.Generator().manual_seed(seed)
    pixels_NHWC = torch.randint(0, 256, (count, SIDE, SIDE, 2), generator=generator, dtype=torch.uint8)
    difference_N = pixels_NHWC[..., 0].float().mean((1, 2)) - pixels_NHWC[..., 1].float().mean((1, 2))
    labels_N = (difference_N > 0).long() if classes == 2 else torch.arange(count) % classes
    return DeviceImages(pixels_NHWC, labels_N, pixels=PixelSpace(MEAN, STD), **arguments)  # type: ignore[arg-type]


def linear(classes: int = 2) -> ComposerClassifier:
    """A linear model that is right about most of them."""
    layer = nn.Linear(2 * SIDE * SIDE, classes)
    std_D, mean_D = (torch.tensor(values).repeat_interleave(SIDE * SIDE) for values in (STD, MEAN))
    with torch.no_grad():
        sign_D = torch.cat([torch.ones(SIDE * SIDE), -torch.ones(SIDE * SIDE)])
        weight_D = sign_D * torch.linspace(0.6, 1.4, SIDE * SIDE).repeat(2) * std_D
        layer.weight.copy_(torch.stack([weight_D * (-1) ** (k + 1) * (1 + k // 2) for k in range(classes)]))
        layer.bias.copy_(-(layer.weight @ ((0.5 - mean_D) / std_D)))
    return ComposerClassifier(nn.Sequential(nn.Flatten(), layer), num_classes=classes)


def eval_loader(dataset: DeviceImages, batch_size: int = 16) -> DataLoader[tuple[Tensor, Tensor]]:
    """All of it in order, shared among the ranks."""
    return dataloader_of(dataset, batch_size, sampler=dist.get_sampler(dataset))


def robust_history(folder: Path) -> dict[str, list[float]]:
    """Every robust metric of one run of two epochs."""
    callback = RobustEvaluation(attacks={"fgsm": {"epsilon": 0.1}, "pgd": {"epsilon": 0.1, "steps": 3}}, examples=41)
    one = trainer(
        eval_loader(images(32, seed=1)),
        linear(),
        eval_dataloader=eval_loader(images()),
        callbacks=[callback, RunRecorder(folder, run_name="run")],
        lr=0.0,
    )
    one.fit()
    one.close()
    run = RunArchive(folder).run("run")
    return {name: run.metric(name).value.tolist() for name in run.metric_names if "/robust/" in name}


def main() -> None:
    dist.initialize_dist("cpu")
    folder = Path(sys.argv[1])
    history = robust_history(folder / "archive")
    if dist.get_global_rank() == 0:
        (folder / "history.json").write_text(json.dumps(history))


if __name__ == "__main__":
    main()
