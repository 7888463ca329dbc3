"""Labels that were planted wrong are found again."""

from __future__ import annotations

from pathlib import Path

import torch

from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.datasets.config import DataConfig
from reuse_algos.data.datasets.load import load_datasets
from reuse_algos.data.images.device_loader import DeviceImages, dataloader_of
from reuse_algos.data.images.pixels import PixelSpace
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.sampler import EpochSampler
from reuse_algos.models import build_model
from reuse_algos.priors.scores.label_noise import label_noise
from reuse_algos.priors.scores.run_scores import ScoreSpec, prior_scores
from toy import trainer

SHARE = 0.05


def flipped_digits(count: int = 800) -> tuple[DeviceImages, torch.Tensor, torch.Tensor]:
    """Digits of which 5 % have another label, with where that is and what it was."""
    loaded = load_datasets(DataConfig(name="digits", train_examples=count))
    labels = loaded.info.labels
    assert labels is not None
    generator = torch.Generator().manual_seed(0)
    wrong = torch.randperm(count, generator=generator)[: int(SHARE * count)]
    noisy = labels.clone()
    noisy[wrong] = (noisy[wrong] + torch.randint(1, 10, (len(wrong),), generator=generator)) % 10
    images = loaded.train._images_NP.view(count, 8, 8)  # type: ignore[attr-defined]
    info = DatasetInfo("noisy-digits", loaded.info.keys, noisy, loaded.info.class_names)
    return DeviceImages(images, noisy, pixels=PixelSpace(loaded.mean, loaded.std), info=info), wrong, labels


def test_planted_label_noise_is_found(tmp_path: Path) -> None:
    data, wrong, truth = flipped_digits()
    signals = {"logit_margin": {}, "logits": {"last_epochs": 1}, "loss": {}, "correct": {}}
    recorder = RunRecorder(tmp_path, run_name="noisy", signals=signals)
    sampler = EpochSampler(len(data), seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model({"name": "digits_cnn", "width": 4}, num_classes=10, image_shape=(1, 8, 8))
    trainer(
        dataloader_of(data, batch_size=40, sampler=sampler),
        model,
        callbacks=[recorder],
        max_duration="12ep",
    ).fit()
    run = RunArchive(tmp_path).run("noisy")
    noise = label_noise([run], data.info)
    suspects = noise.suspects()
    planted = set(wrong.tolist())
    hits = [position for position in suspects.tolist() if position in planted]
    assert noise.presentations == [12]
    assert len(hits) / len(suspects) > 0.6  # of labels drawn at random 5 % would be
    assert len(hits) / len(planted) > 0.9
    # The first ones are surest, and the class that the run saw instead is the true one.
    first = suspects[: len(planted) // 2].tolist()
    assert sum(position in planted for position in first) / len(first) > 0.95
    named = [int(noise.instead_N[position]) == int(truth[position]) for position in hits]
    assert sum(named) / len(named) > 0.8
    # Other scores of the same run rank them high as well.
    for name in ("loss_mean", "forgetting", "loss"):
        score_N = prior_scores([run], ScoreSpec(name, aggregate="rank"), data.info)
        assert float(score_N[wrong].mean()) > 0.8
