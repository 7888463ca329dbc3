"""The signal ``adversarial``: for each example and view, what makes an archived model wrong about it.

Shapes: N training examples, B rows of a batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from reuse_algos.archive import dequantize, quantize, shape_text
from reuse_algos.archive.format.records import Scalar
from reuse_algos.archive.signals.success import success_rates
from reuse_algos.data.images.pixels import PixelSpace, pixel_space_of
from reuse_algos.data.info import infer_info
from reuse_algos.errors import DataError, ModelError
from reuse_algos.harvest.computations import ArchivedForward
from reuse_algos.training.attacks import Attack, ascend, pixel_room, random_targets

ADVERSARIAL = "adversarial"


@dataclass(frozen=True)
class AttackSettings:
    """What the rows of one signal have in common.

    Attributes:
        attack: What made them.
        bits: How many bits a number is kept in.
        pixels: The pixel space of the images.
    """

    attack: Attack
    bits: int
    pixels: PixelSpace

    def meta(self) -> dict[str, Scalar]:
        """Return what the archive keeps of them beside each view."""
        return {
            "attack": self.attack.method,
            "attack_settings": self.attack.describe(),
            "epsilon": self.attack.epsilon,
            "steps": self.attack.num_steps,
            "step_size": self.attack.step,
            "norm": self.attack.norm,
            "targeted": self.attack.targeted,
            "random_start": self.attack.starts_randomly,
            "attack_seed": self.attack.seed,
            "pixel_mean": ",".join(map(repr, self.pixels.mean)),
            "pixel_std": ",".join(map(repr, self.pixels.std)),
        }


def default_bits(attack: Attack) -> int:
    """Return how many bits a number is kept in where nothing else is asked for: 2 for ``linf``, 8 for ``l2``."""
    # linf: nearly every pixel ends at one of the ball's two faces or at the edge of the pixel range, and 2 bits have a
    # level at or beyond each of these. Of the success of the exact perturbations they keep all on CIFAR-100 (FGSM
    # 0.918, PGD 0.961 at 8/255; 0.307 at 1/255), and on digits with epsilon 0.1 all of FGSM's (0.694) and 99 % of
    # PGD's (0.882 of 0.888).
    # l2: a few pixels carry most of the norm, and 2 bits, whose least level is a third of the largest, would give most
    # of the ball to all the others (with epsilon 0.5: 0.576 of 0.767 on CIFAR-100, 0.570 of 0.808 on digits; 4 bits
    # 0.755 and 0.794; 8 bits all of it).
    return 2 if attack.norm == "linf" else 8


def attack_settings(dataset: Dataset, attack: Attack, bits: int | None) -> AttackSettings:
    """Return the settings for a dataset.

    Args:
        dataset: The data that are attacked.
        attack: How they are attacked.
        bits: How many bits a number is kept in; None: :func:`default_bits`.

    Raises:
        DataError: Its pixel space is not known.
    """
    pixels = pixel_space_of(dataset)
    if pixels is None:
        raise DataError(
            f"the dataset {infer_info(dataset).name!r} does not say how its images were normalised, so nobody knows "
            "what epsilon is in its inputs. Give it an attribute pixel_space = PixelSpace(mean, std), or wrap it: "
            "ViewedDataset(..., pixel_space=PixelSpace(mean, std)); both are on the scale of pixels from 0 to 1."
        )
    return AttackSettings(attack, default_bits(attack) if bits is None else bits, pixels)


def attack_view(
    settings: AttackSettings,
    forward: ArchivedForward,
    keys_N: Tensor,
    view: int,
    batches: Iterable[tuple[Any, Tensor | None]],
    advance: Callable[[int], None],
) -> tuple[dict[str, Tensor], dict[str, Scalar]]:
    """Perturb all examples of a view.

    Args:
        settings: How.
        forward: The archived model.
        keys_N: int64, of the examples in the order of the batches.
        view: Number of the view.
        batches: Each with the labels of its examples.
        advance: Told how many examples are done.

    Returns:
        The columns ``values`` uint8 ``[N, P]`` and ``scale`` float32 ``[N]`` on the CPU, and what is to be said of
        them: the encoding, the settings, ``clean_accuracy``, ``success`` and ``success_quantized``, and the counts that
        these are shares of (:mod:`reuse_algos.archive.signals.success`). Success is the share of the examples
        classified rightly when clean that are classified wrongly when perturbed; with random targets, the share of all
        examples that are classified as the target; None where there was none to fool.

    Raises:
        DataError: The inputs are not images of this pixel space, epsilon is beyond their range, or there are no labels.
        ModelError: The model has no logits ``[B, K]``, or they have no gradient with respect to the inputs: autograd
            knows no way, it is 0 for every example of the view, or it is not finite for one.
    """
    attack, pixels = settings.attack, settings.pixels
    parts: list[dict[str, Tensor]] = []
    count, done, shape, steep = _Counts(), 0, (), False
    for batch, labels_B in batches:
        clean_BCHW, labels_B, logits_of = forward.differentiable(ADVERSARIAL, batch, labels_B)
        keys_B = keys_N[done : done + len(labels_B)].to(labels_B.device)
        views_B = torch.full_like(keys_B, view)
        exact_BCHW, slope_B = ascend(logits_of, clean_BCHW, labels_B, attack, pixels, keys_B=keys_B, views_B=views_B)
        if broken := int(slope_B.isnan().sum()):
            raise ModelError(
                f"the gradient of the model's logits with respect to its inputs is not finite for {broken} of the "
                f"{len(slope_B)} examples from position {done} on of view {view}, so it does not say where to go. Look "
                "for NaN in its weights or outputs, for a root or logarithm at 0, or harvest in a wider precision "
                "(fp32)."
            )
        steep = steep or bool(slope_B.any())
        shape = tuple(exact_BCHW.shape[1:])
        # Success is measured after this, too: the perturbations that a later run reads are the rounded ones.
        packed = quantize(exact_BCHW, settings.bits, norm=attack.norm, room=pixel_room(clean_BCHW, pixels))
        kept_BCHW = dequantize(packed["values"], packed["scale"], settings.bits, shape)
        shown = [clean_BCHW, pixels.add(clean_BCHW, exact_BCHW), pixels.add(clean_BCHW, kept_BCHW)]
        with torch.no_grad():
            logits_3BK = torch.stack([logits_of(inputs_BCHW) for inputs_BCHW in shown])
        targets_B = None
        if attack.targeted == "random":
            targets_B = random_targets(attack.seed, labels_B, logits_3BK.shape[2], keys_B, views_B)
        count.add(logits_3BK.argmax(dim=2), labels_B, targets_B)
        parts.append({key: column.cpu() for key, column in packed.items()})
        done += len(labels_B)
        advance(len(labels_B))
    if not steep:
        raise ModelError(
            f"the gradient of the model's logits with respect to its inputs is 0 for every example of view {view}, so "
            "there is nothing to ascend. It rounds its inputs or does not use them, or all of its units are dead; "
            "attack a model that is differentiable from its images on."
        )
    columns = {key: torch.cat([part[key] for part in parts]) for key in ("values", "scale")}
    meta = {"encoding": "packed", "bits": settings.bits, "shape": shape_text(shape), "num_classes": None}
    return columns, {**meta, **settings.meta(), **count.meta()}


@dataclass
class _Counts:
    """How many examples were right, could be fooled, and were."""

    examples: int = 0
    right: int = 0
    foolable: int = 0
    fooled: int = 0
    fooled_quantized: int = 0

    def add(self, classes_3B: Tensor, labels_B: Tensor, targets_B: Tensor | None) -> None:
        """Count a batch.

        Args:
            classes_3B: int64, of the clean, the perturbed, and the perturbed images as they are kept.
            labels_B: int64.
            targets_B: int64; None: any wrong class will do.
        """
        right_B = classes_3B[0] == labels_B
        if targets_B is None:
            foolable_B, fooled_2B = right_B, (classes_3B[1:] != labels_B) & right_B
        # With a target every example can be fooled, also one that the model takes for another class.
        else:
            foolable_B, fooled_2B = torch.ones_like(right_B), classes_3B[1:] == targets_B
        fooled, quantized = fooled_2B.sum(dim=1).tolist()
        self.examples += len(labels_B)
        self.right += int(right_B.sum())
        self.foolable += int(foolable_B.sum())
        self.fooled += fooled
        self.fooled_quantized += quantized

    def meta(self) -> dict[str, Scalar]:
        """Return the counts and their shares, as the archive keeps them."""
        counts: dict[str, Scalar] = {
            "num_examples": self.examples,
            "num_correct": self.right,
            "num_foolable": self.foolable,
            "num_fooled": self.fooled,
            "num_fooled_quantized": self.fooled_quantized,
        }
        return {**counts, **success_rates([counts])}
