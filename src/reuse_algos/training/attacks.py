"""Adversarial perturbations of images: FGSM and PGD, in pixel units whatever the normalisation.

- FGSM: Goodfellow, Shlens & Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015, section 4,
  https://arxiv.org/abs/1412.6572.
- PGD: Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018, section 2.1,
  https://arxiv.org/abs/1706.06083.

Legend: B examples, C channels, H height, W width, D = C * H * W numbers of an image, K classes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from reuse_algos.data.hashing import uniform_floats, uniform_ints, view_hash
from reuse_algos.data.images.pixels import PixelSpace
from reuse_algos.errors import DataError, ModelError, nearest
from reuse_algos.training.parameters.batch_norm import split_layers
from reuse_algos.training.parameters.kept_state import kept_modes

Forward = Callable[[Tensor], Tensor]
"""From inputs ``[B, C, H, W]`` to logits ``[B, K]``."""

METHODS = ("fgsm", "pgd")
NORMS = ("linf", "l2")
TARGETED = ("none", "random")

# Salts of view_hash. Those below 64 belong to data/.
_SALT_TARGET, _SALT_START, _SALT_ELEMENT, _SALT_ANGLE, _SALT_RADIUS = range(64, 69)

# Inputs in half precision are off by up to this many pixel units; what is further out was normalised otherwise.
_OUTSIDE = 0.005


@dataclass(frozen=True)
class Attack:
    """How images are to be perturbed. All sizes are in pixel units, where an image has values from 0 to 1.

    Attributes:
        method: ``"fgsm"``, one step to the edge of the ball; or ``"pgd"``, several projected steps.
        epsilon: Radius of the ball: above 0, for ``linf`` up to 1, for ``l2`` up to sqrt(D), the diagonal of the cube.
        steps: Steps of PGD, from 1. FGSM always takes one.
        step_size: Length of a step of PGD in the attack's norm; by default ``2.5 * epsilon / steps``, which reaches the
            edge from anywhere and can move along it (Madry et al. 2018, section 5).
        norm: ``"linf"`` (every pixel by at most epsilon) or ``"l2"`` (Euclidean norm of an image's perturbation).
        targeted: ``"none"``: away from the label. ``"random"``: towards another class, drawn by a hash of (seed, key,
            view).
        random_start: Whether PGD starts from a random point of the ball, drawn by a hash of (seed, key, view), instead
            of the clean image. Default: PGD does. FGSM never does.
        seed: Seed of the random targets and starts.

    Raises:
        ValueError: A value is not one of these, or out of range.
    """

    method: Literal["fgsm", "pgd"] = "pgd"
    epsilon: float = 8 / 255
    steps: int = 5
    step_size: float | None = None
    norm: Literal["linf", "l2"] = "linf"
    targeted: Literal["none", "random"] = "none"
    random_start: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for field, choices in (("method", METHODS), ("norm", NORMS), ("targeted", TARGETED)):
            value = getattr(self, field)
            if value not in choices:
                raise ValueError(f"attack {field}: unknown value {value!r}.{nearest(str(value), choices)}")
        limit, said = (1.0, "1") if self.norm == "linf" else (sys.float_info.max, "sqrt(C * H * W)")
        if not _is_number(self.epsilon) or not 0 < self.epsilon <= limit:
            raise ValueError(
                f"attack epsilon must be above 0 and at most {said} for {self.norm}, not {self.epsilon!r}. It is in "
                "pixel units of 0 to 1: 8 of 255 levels are 8/255."
            )
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise ValueError(f"attack steps must be a whole number from 1, not {self.steps!r}.")
        if self.step_size is not None and not (_is_number(self.step_size) and 0 < self.step_size < math.inf):
            raise ValueError(f"attack step_size must be above 0, in pixel units, not {self.step_size!r}.")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ValueError(f"attack seed must be a whole number, not {self.seed!r}.")
        if self.random_start is not None and not isinstance(self.random_start, bool):
            raise ValueError(f"attack random_start must be true or false, not {self.random_start!r}.")
        if self.method == "fgsm" and (self.step_size is not None or self.random_start):
            raise ValueError(
                "attack step_size and random_start belong to pgd: fgsm takes one step of length epsilon from the clean "
                "image. Leave them out, or take method pgd with 1 step."
            )

    @property
    def num_steps(self) -> int:
        """How many gradients it takes."""
        return 1 if self.method == "fgsm" else self.steps

    @property
    def step(self) -> float:
        """Length of a step, in pixel units."""
        if self.method == "fgsm":
            return self.epsilon
        return 2.5 * self.epsilon / self.steps if self.step_size is None else self.step_size

    @property
    def starts_randomly(self) -> bool:
        """Whether it starts from a random point of the ball."""
        return self.method == "pgd" and self.random_start is not False

    def describe(self) -> str:
        """Return one line that is equal for two attacks exactly when they make the same perturbations."""
        parts = [f"{self.norm}", f"epsilon={_pixels(self.epsilon)}"]
        if self.method == "pgd":
            parts += [f"steps={self.steps}", f"step_size={_pixels(self.step)}"]
            parts += [] if self.starts_randomly else ["from the clean image"]
        parts += ["random target"] if self.targeted == "random" else []
        parts += [f"seed={self.seed}"] if self.targeted == "random" or self.starts_randomly else []
        return f"{self.method}({', '.join(parts)})"


def pixel_size(text: str) -> float:
    """Return a size in pixel units, written as a number or as a fraction such as ``8/255``.

    Raises:
        ValueError: It is neither, or not above 0.
    """
    above, slash, below = text.partition("/")
    try:
        number = float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        number = 0.0
    if not 0 < number < math.inf:
        raise ValueError(f"{text!r} is not a number above 0, such as 0.03 or 8/255")
    return number


class Perturbed(NamedTuple):
    """What an attack made of a batch, on the device of its inputs.

    Attributes:
        delta_BCHW: float32, what to add to the pixels, in the memory format of the inputs.
        slope_B: float32, the largest absolute value of each example's gradients, up to a positive factor: 0 if they
            were all 0, so that the attack left the example where it began; NaN if one of them was not finite.
    """

    delta_BCHW: Tensor
    slope_B: Tensor


def perturb(
    forward: Forward,
    inputs_BCHW: Tensor,
    labels_B: Tensor,
    attack: Attack,
    pixels: PixelSpace,
    *,
    keys_B: Tensor | None = None,
    views_B: Tensor | None = None,
) -> Tensor:
    """Return what to add to the pixels: the perturbations of :func:`ascend`, whose arguments these are.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2, bias=False))
    >>> _ = model[1].weight.data.copy_(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    >>> images, pixels = torch.full((1, 3, 1, 1), 0.5), PixelSpace((0.0,) * 3, (1.0,) * 3)
    >>> perturb(model, images, torch.tensor([0]), Attack("fgsm", epsilon=0.25), pixels).flatten()
    tensor([-0.2500, -0.2500, -0.2500])
    """
    return ascend(forward, inputs_BCHW, labels_B, attack, pixels, keys_B=keys_B, views_B=views_B).delta_BCHW


@contextmanager
def attacked(model: nn.Module, *, auxiliary: bool = False) -> Iterator[None]:
    """Put a model into evaluation mode in the ``with`` block, and each of its modules back into its own mode.

    Args:
        model: The user's, without wrappers.
        auxiliary: Whether inputs go through the auxiliary branches of split batch norms. Default: the main ones.
    """
    layers: list[Any] = split_layers(model) if auxiliary else []
    with kept_modes(model):
        # In training mode the perturbed images would move batch norm's statistics, and lie in each other's gradients.
        model.eval()
        try:
            for layer in layers:
                # Its own flag only: then it asks the switch, and its auxiliary child stays in evaluation mode.
                layer.training = layer.switch.auxiliary = True
            yield
        finally:
            for layer in layers:
                layer.switch.auxiliary = False


def ascend(
    forward: Forward,
    inputs_BCHW: Tensor,
    labels_B: Tensor,
    attack: Attack,
    pixels: PixelSpace,
    *,
    keys_B: Tensor | None = None,
    views_B: Tensor | None = None,
    start_BCHW: Tensor | None = None,
) -> Perturbed:
    """Perturb images so that a model's cross entropy grows (or, with targets, that of the target falls).

    Every example goes its own way, ``delta <- project(delta + step * direction(d L_b / d p_b))``, with the sign as
    direction for ``linf`` and the gradient over its Euclidean norm for ``l2``, projected onto the ball and onto valid
    pixels. Only the gradient with respect to the inputs is computed: no parameter gets a ``.grad``, whether or not it
    requires one, and callers may be inside ``torch.no_grad``. Nothing is drawn from any generator.

    An example whose gradient is exactly 0, or not finite, stays where it is in that step: there is no direction to go.
    ``slope_B`` says where it was so.

    Args:
        forward: The model, from inputs to logits ``[B, K]``, K at least 2; its mode and precision are the caller's.
        inputs_BCHW: Clean inputs, floating point, any memory format.
        labels_B: int64 from 0 to K-1.
        attack: What to do.
        pixels: What the inputs mean.
        keys_B: int64: identity of each example; needed for random starts and random targets.
        views_B: int64: the view in which each is shown; 0 by default.
        start_BCHW: Perturbations in pixel units to start from, clipped to the ball. Default: as the attack says.

    Returns:
        The perturbations, and how steep it was.

    Raises:
        ValueError: Keys are needed and not given.
        DataError: The inputs are not valid pixels of this space, ``epsilon`` is beyond their diagonal, or labels do not
            fit.
        ModelError: The model has no logits ``[B, K]``, or autograd knows no way from them to the inputs.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
    >>> _ = model[1].weight.data.zero_()  # a model without any slope
    >>> images, pixels = torch.full((1, 3, 1, 1), 0.5), PixelSpace((0.0,) * 3, (1.0,) * 3)
    >>> ascend(model, images, torch.tensor([0]), Attack("fgsm"), pixels).slope_B
    tensor([0.])
    """
    if keys_B is None and (attack.starts_randomly or attack.targeted == "random"):
        raise ValueError(f"{attack.describe()} draws by the examples' keys; give keys_B (int64 [B]).")
    # Not only enable_grad: inside inference mode autograd would record nothing.
    with torch.inference_mode(False), torch.enable_grad():
        clean_BCHW = inputs_BCHW.detach().clone()
        labels_B = labels_B.detach().clone().to(clean_BCHW.device)
        low_BCHW, high_BCHW = _room(clean_BCHW, attack, pixels)
        delta_BCHW = torch.zeros_like(low_BCHW)
        slope_B111 = delta_BCHW.new_zeros(len(delta_BCHW), 1, 1, 1)
        if not len(clean_BCHW):
            return Perturbed(delta_BCHW, slope_B111.flatten())
        # What is not drawn by keys does not look at them.
        keys_B = torch.zeros_like(labels_B) if keys_B is None else keys_B.detach().clone().to(clean_BCHW.device)
        views_B = torch.zeros_like(labels_B) if views_B is None else views_B.detach().clone().to(clean_BCHW.device)
        if attack.starts_randomly:
            start_BD = _random_start(attack, keys_B, views_B, delta_BCHW[0].numel())
            delta_BCHW.copy_(start_BD.view(delta_BCHW.shape)).clamp_(low_BCHW, high_BCHW)
        if start_BCHW is not None:
            delta_BCHW.copy_(start_BCHW)
            if attack.norm == "l2":
                delta_BCHW *= (attack.epsilon / _norms(delta_BCHW).clamp_(min=1e-30)).clamp_(max=1)
            delta_BCHW.clamp_(low_BCHW, high_BCHW)
        for step in range(attack.num_steps):
            moved_BCHW = pixels.add(clean_BCHW, delta_BCHW).detach().requires_grad_()
            logits_BK = forward(moved_BCHW)
            _check_logits(logits_BK, labels_B)
            if step == 0:
                _check_labels(labels_B, logits_BK.shape[1])
            # x = (p - mean) / std, so d/dp = d/dx / std, which is what a difference of pixels does too.
            gradient_BCHW = pixels.delta_to_inputs(_gradient(moved_BCHW, logits_BK, labels_B, attack, keys_B, views_B))
            top_B111 = torch.linalg.vector_norm(gradient_BCHW, ord=math.inf, dim=(1, 2, 3), keepdim=True)
            top_B111 = top_B111.where(top_B111.isfinite(), math.nan)
            slope_B111 = torch.maximum(slope_B111, top_B111)  # NaN wins
            # Not an error: a network that is being trained may be flat or diverge for a while.
            gradient_BCHW = gradient_BCHW.masked_fill(top_B111.isnan(), 0.0)
            if attack.norm == "linf":
                delta_BCHW += attack.step * gradient_BCHW.sign_()
            else:
                # A gradient of 0 stays 0 over the least norm, so that the example stays where it is.
                delta_BCHW += attack.step * gradient_BCHW.div_(_norms(gradient_BCHW).clamp_(min=1e-30))
                delta_BCHW *= (attack.epsilon / _norms(delta_BCHW).clamp_(min=1e-30)).clamp_(max=1)
            # Last, as valid pixels never lead out of the ball again: the clean image is valid, and lies in the same
            # interval.
            delta_BCHW.clamp_(low_BCHW, high_BCHW)
        return Perturbed(delta_BCHW, slope_B111.flatten())


def random_targets(seed: int, labels_B: Tensor, num_classes: int, keys_B: Tensor, views_B: Tensor) -> Tensor:
    """Return a class other than the label for each example, a function of (seed, key, view).

    Args:
        seed: Seed of the attack.
        labels_B: int64 from 0 to K-1.
        num_classes: K, at least 2.
        keys_B: int64, on the device of the labels.
        views_B: int64, on the same device.

    Returns:
        int64 ``[B]``.

    >>> random_targets(0, torch.tensor([0]), 2, torch.tensor([7]), torch.tensor([0]))
    tensor([1])
    """
    # From K - 1 classes, stepping over the label: uniform over the others without drawing twice.
    others_B = uniform_ints(view_hash(seed, keys_B, views_B, _SALT_TARGET), num_classes - 1)
    return others_B + (others_B >= labels_B)


def pixel_room(inputs_BCHW: Tensor, pixels: PixelSpace) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest valid perturbation of each pixel: ``-p`` and ``1 - p``.

    Args:
        inputs_BCHW: Floating point.
        pixels: What they mean.

    Returns:
        Two float32 ``[B, C, H, W]`` in the memory format of the inputs.

    Raises:
        DataError: The inputs are not valid pixels of this space.
    """
    if inputs_BCHW.ndim != 4:
        raise DataError(f"images [B, C, H, W] are perturbed, not inputs of shape {tuple(inputs_BCHW.shape)}.")
    values_BCHW = pixels.to_pixels(inputs_BCHW.detach().float())
    if values_BCHW.numel():
        least, most = (float(value) for value in values_BCHW.aminmax())
        if not (least >= -_OUTSIDE and most <= 1 + _OUTSIDE):
            raise DataError(
                f"with pixel mean {list(pixels.mean)} and std {list(pixels.std)} the inputs are pixels from "
                f"{least:.4g} to {most:.4g}, not from 0 to 1. Give the mean and std with which they were normalised."
            )
    # Rounding may leave a pixel just outside, where its least perturbation would be above 0.
    values_BCHW.clamp_(0, 1)
    return -values_BCHW, 1 - values_BCHW


def _room(clean_BCHW: Tensor, attack: Attack, pixels: PixelSpace) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest perturbation of each pixel by itself."""
    low_BCHW, high_BCHW = pixel_room(clean_BCHW, pixels)
    if attack.norm == "linf":
        return low_BCHW.clamp_(min=-attack.epsilon), high_BCHW.clamp_(max=attack.epsilon)
    diagonal = math.sqrt(math.prod(clean_BCHW.shape[1:]))
    if attack.epsilon > diagonal:
        raise DataError(
            f"attack epsilon {attack.epsilon} is beyond the range: two images of shape {tuple(clean_BCHW.shape[1:])} "
            f"differ by at most {diagonal:.4g} in l2, in pixel units of 0 to 1."
        )
    return low_BCHW, high_BCHW


def _random_start(attack: Attack, keys_B: Tensor, views_B: Tensor, size: int) -> Tensor:
    """Return a uniform point of the ball for each example: float64 ``[B, D]``."""
    hashes_B1 = view_hash(attack.seed, keys_B, views_B, _SALT_START)[:, None]
    element_D = torch.arange(size, device=keys_B.device)
    uniform_BD = uniform_floats(view_hash(attack.seed, hashes_B1, element_D, _SALT_ELEMENT))
    if attack.norm == "linf":
        return (2 * uniform_BD - 1) * attack.epsilon
    # Normal numbers (Box & Muller 1958) have a uniform direction, and the D-th root of a uniform number makes the
    # radius that of a uniform point.
    angle_BD = 2 * math.pi * uniform_floats(view_hash(attack.seed, hashes_B1, element_D, _SALT_ANGLE))
    normal_BD = (-2 * (1 - uniform_BD).log()).sqrt() * angle_BD.cos()
    radius_B1 = uniform_floats(view_hash(attack.seed, keys_B, views_B, _SALT_RADIUS))[:, None] ** (1 / size)
    return attack.epsilon * radius_B1 * normal_BD / normal_BD.norm(dim=1, keepdim=True).clamp_(min=1e-300)


def _gradient(
    moved_BCHW: Tensor, logits_BK: Tensor, labels_B: Tensor, attack: Attack, keys_B: Tensor, views_B: Tensor
) -> Tensor:
    """Return the gradient of each example's objective with respect to its inputs, up to a positive factor: float32."""
    if attack.targeted == "random":
        # The loss of the class that is wanted has to fall.
        targets_B, sign = random_targets(attack.seed, labels_B, logits_BK.shape[1], keys_B, views_B), -1.0
    else:
        targets_B, sign = labels_B, 1.0
    upstream_BK = sign * _loss_direction(logits_BK.detach(), targets_B)
    gradient = None
    if logits_BK.requires_grad:
        (gradient,) = torch.autograd.grad(
            logits_BK, moved_BCHW, grad_outputs=upstream_BK.to(logits_BK.dtype), allow_unused=True
        )
    if gradient is None:
        raise ModelError(
            "the model's logits have no gradient with respect to its inputs, so there is nothing to ascend. It "
            "detaches them or does not use them; attack a model that is differentiable from its images on."
        )
    return gradient.float()


def _loss_direction(logits_BK: Tensor, targets_B: Tensor) -> Tensor:
    """Return the gradient of the cross entropy over the probability of the other classes: float32 ``[B, K]``."""
    # The gradient itself is softmax - onehot, which half precision rounds to 0 on an example that the model is sure of.
    # Over the probability of the other classes it stays a direction: per example that is a positive factor, which
    # neither the sign nor the normalised gradient sees. (Where examples influence each other, such as in batch norm in
    # training mode, it weighs them.)
    others_BK = logits_BK.float().scatter(1, targets_B[:, None], -math.inf)
    return others_BK.softmax(dim=1).scatter_(1, targets_B[:, None], -1.0)


def _check_logits(logits_BK: Tensor, labels_B: Tensor) -> None:
    if logits_BK.ndim != 2 or len(logits_BK) != len(labels_B) or logits_BK.shape[1] < 2:
        raise ModelError(
            f"attacks are on classifiers with logits [B, K] for K of 2 or more classes; of {len(labels_B)} images "
            f"these are {tuple(logits_BK.shape)}."
        )
    if labels_B.ndim != 1 or labels_B.dtype != torch.int64:
        raise DataError(f"labels must be int64 [B], not {labels_B.dtype} of shape {tuple(labels_B.shape)}.")


def _check_labels(labels_B: Tensor, num_classes: int) -> None:
    """Refuse labels that are not classes of the model."""
    # Once for an attack, as reading the range makes a GPU wait.
    least, most = (int(label) for label in labels_B.aminmax())
    if least < 0 or most >= num_classes:
        raise DataError(f"labels from {least} to {most} do not fit a model of {num_classes} classes.")


def _norms(delta_BCHW: Tensor) -> Tensor:
    """Return the Euclidean norm of each example, ``[B, 1, 1, 1]``."""
    return torch.linalg.vector_norm(delta_BCHW, dim=(1, 2, 3), keepdim=True)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _pixels(value: float) -> str:
    """Return a number of pixel units in words, in 255ths where it is a whole number of those."""
    levels = round(value * 255)
    return f"{levels}/255" if 1 <= levels < 255 and levels / 255 == value else repr(float(value))
