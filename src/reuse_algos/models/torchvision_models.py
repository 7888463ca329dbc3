"""The classification models of torchvision, with a head for other classes."""

from __future__ import annotations

from typing import Any

import torch
import torchvision.models
from torch import nn

from reuse_algos.errors import ModelError, nearest

# Their auxiliary heads give more than logits while training, so these are built without; torchvision asks that the
# initialisation be chosen, and pretrained ones expect inputs scaled another way than everywhere else.
_AUXILIARY: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "init_weights": True, "transform_input": False}
    for name in ("googlenet", "inception_v3")
}


def torchvision_model_names() -> list[str]:
    """Return the names of all classification models of the installed torchvision."""
    return torchvision.models.list_models(module=torchvision.models)


def build_torchvision_model(
    name: str, num_classes: int, image_shape: tuple[int, int, int], weights: str | None = None
) -> nn.Module:
    """Build a torchvision model for ``num_classes`` classes.

    Args:
        name: One of :func:`torchvision_model_names`.
        num_classes: Classes of the new head.
        image_shape: (C, H, W) that it will get.
        weights: Name of pretrained weights such as ``"DEFAULT"`` or ``"IMAGENET1K_V2"``, fetched over the network if
            they are not in torch's cache; all but the head is taken. None: random.

    Raises:
        ModelError: If the model cannot take such images, or has no such weights or they cannot be fetched.
    """
    options: dict[str, Any] = dict(_AUXILIARY.get(name, {}))
    # Vision transformers have a position embedding for one image size.
    if name.startswith("vit_"):
        options["image_size"] = image_shape[1]
    try:
        model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    except (RuntimeError, ValueError, AssertionError) as error:  # the vision transformers look at the size here
        raise _misfit(name, image_shape, error) from error
    _check_image_shape(model, name, image_shape)
    if weights is not None:
        _load_pretrained(model, name, weights)
    return model


def _check_image_shape(model: nn.Module, name: str, image_shape: tuple[int, int, int]) -> None:
    """Pass one image through the model on torch's meta device, which computes shapes only."""
    tensors = {key: value.to("meta") for key, value in (*model.named_parameters(), *model.named_buffers())}
    model.eval()  # so that batch norms neither need several values per channel nor update anything
    try:
        with torch.no_grad():
            torch.func.functional_call(model, tensors, torch.empty((1, *image_shape), device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _misfit(name, image_shape, error) from error
    finally:
        model.train()


def _misfit(name: str, image_shape: tuple[int, int, int], error: Exception) -> ModelError:
    channels, height, width = image_shape
    return ModelError(
        f"Model {name!r} of torchvision cannot take images of {channels} x {height} x {width} (channels, height, "
        f"width): {error}. Set data.image_size, or take one of this library's own models, which take any number of "
        "channels and any size."
    )


def _load_pretrained(model: nn.Module, name: str, weights: str) -> None:
    if name in _AUXILIARY:
        raise ModelError(f"Pretrained weights of {name!r} need inputs scaled in another way; take another model.")
    choices = torchvision.models.get_model_weights(name)
    known = [member.name for member in choices]
    if weights not in (*known, "DEFAULT"):
        raise ModelError(f"Model {name!r} of torchvision has no weights {weights!r}.{nearest(weights, known)}")
    try:
        # The model as published, since some builders rename the weights that they load.
        state = torchvision.models.get_model(name, weights=choices[weights]).state_dict()
    except OSError as error:
        raise ModelError(f"Weights {weights!r} of model {name!r} could not be fetched: {error}") from error
    own = model.state_dict()
    other = [key for key in own if own[key].shape != state[key].shape]
    misfits = [key for key in other if own[key].shape[1:] != state[key].shape[1:]]
    if misfits:
        raise ModelError(
            f"Weights {weights!r} of model {name!r} are for images of another size: {misfits[0]} is "
            f"{tuple(state[misfits[0]].shape)} there, but {tuple(own[misfits[0]].shape)} is needed. "
            "Set data.image_size."
        )
    # What is left is the head, which has one row per class.
    model.load_state_dict({key: value for key, value in state.items() if key not in other}, strict=False)
