"""Name -> Composer model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from composer.models import ComposerClassifier, ComposerModel
from safetensors import SafetensorError
from torch import Tensor, nn

from reuse_algos.errors import ModelError, nearest
from reuse_algos.models.cifar_resnet import CifarResNet
from reuse_algos.models.detection import DETECTION_MODELS, build_detection_model
from reuse_algos.models.digits_cnn import DigitsCNN
from reuse_algos.models.segmentation import SEGMENTATION_MODELS, build_segmentation_model
from reuse_algos.models.text import TEXT_MODELS, build_text_model
from reuse_algos.models.time_conditioned import TimeConditioned
from reuse_algos.models.torchvision_models import build_torchvision_model, torchvision_model_names

_RESNET_BLOCKS = {
    "resnet_small": 1,
    "resnet8": 1,
    "resnet20": 3,
    "resnet32": 5,
    "resnet44": 7,
    "resnet56": 9,
    "resnet110": 18,
}
_DEFAULT_WIDTH = 16
_OF_TEXTS = ("vocabulary", "max_tokens")
_AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class ModelConfig:
    """The ``model:`` section of a recipe.

    Attributes:
        name: ``resnet8``, ``20``, ``32``, ``44``, ``56``, ``110`` (He et al., for small images), ``resnet_small`` (the
            same as ``resnet8``), ``digits_cnn``, or any classification model of torchvision. For texts: ``tiny_bert``
            (classes) and ``tiny_gpt`` (a causal language model). For masks: ``tiny_unet`` and torchvision's
            ``lraspp_mobilenet_v3_large``. For boxes: ``tiny_fcos`` and two of torchvision's detectors,
            ``ssdlite320_mobilenet_v3_large`` and ``fasterrcnn_mobilenet_v3_large_320_fpn``.
        width: Channels of the first convolution of this library's own models, null is 16; of models for texts the size
            of the hidden vectors, null is 64.
        depth: Layers of models for texts, null is 2; of ``resnet_small``, 6 n + 2 such as 50, null is 8.
        weights: Name of torchvision's pretrained weights, such as ``DEFAULT``; null starts from random numbers.
        weights_path: A ``.safetensors`` file with the weights to start from; null for none.
        new_head: Leave out of ``weights_path`` what differs from the model only in its number of rows: the last layer
            of a model of other classes, as ``weights`` does.
        autocast: ``bfloat16`` or ``float16`` runs the network's forward pass under ``torch.autocast`` and returns
            float32 logits; null leaves that to ``precision``. For CPUs with bfloat16 instructions, where Composer
            takes no ``precision`` but fp32: a small ResNet trains 1.5 to 2 times as fast.
        time: Take the last input channel as the time, and give the network this many features of it (Time2Vec) in its
            place; null for plain images. For this library's own models.
    """

    name: str = "resnet20"
    width: int | None = None
    depth: int | None = None
    weights: str | None = None
    weights_path: str | None = None
    new_head: bool = False
    autocast: str | None = None
    time: int | None = None


def model_names() -> list[str]:
    """Return every name that :func:`build_model` knows, this library's own first."""
    return [
        *_RESNET_BLOCKS,
        "digits_cnn",
        *TEXT_MODELS,
        *SEGMENTATION_MODELS,
        *DETECTION_MODELS,
        *torchvision_model_names(),
    ]


class ReusableClassifier(ComposerClassifier):
    """A Composer classifier that knows how it was built.

    Args:
        module: The network: float ``[B, C, H, W]`` to logits ``[B, num_classes]``.
        num_classes: Number of classes.
        reuse_config: What :func:`build_model` takes to build the same architecture again.
        autocast: Dtype of ``torch.autocast`` around the network's forward pass; None for no autocast of its own.
    """

    reuse_config: dict[str, Any]

    def __init__(
        self,
        module: nn.Module,
        num_classes: int,
        reuse_config: dict[str, Any],
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(module, num_classes=num_classes)
        self.reuse_config = reuse_config
        self._autocast = autocast

    def forward(self, batch: Any) -> Tensor:
        """Return logits ``[B, num_classes]`` of a batch's first element; float32 if the model has its own autocast."""
        if self._autocast is None:
            return super().forward(batch)
        device_type = next(self.module.parameters()).device.type
        # Only the network runs in half precision: the caller computes loss and metrics in float32.
        with torch.autocast(device_type, self._autocast):
            logits_BK = super().forward(batch)
        return logits_BK.float()


def build_model(
    config: ModelConfig | Mapping[str, Any] | str,
    num_classes: int | None = None,
    image_shape: Sequence[int] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> ComposerModel:
    """Build a model with Composer's metrics: accuracy in training, accuracy and cross entropy in evaluation.

    The model has an attribute ``reuse_config``: a dict of plain values that this function takes as ``config``, alone,
    to build the same architecture again (weights to start from are left out: an archived model brings its own).

    Initial weights are drawn from torch's global generator, as by every torch module; seed it before.

    Args:
        config: Fields of :class:`ModelConfig`, or a name. A mapping may hold ``num_classes`` and ``image_shape`` too.
        num_classes: Number of classes, at least 2.
        image_shape: (C, H, W) of the images.
        inputs: What a model for texts must know, see :func:`~reuse_algos.models.text.build_text_model`. Default: what
            ``config`` says.

    Raises:
        ModelError: If a field or the name is unknown, or the model cannot be built for such images and classes.
    """
    given = _as_mapping(config)
    own_classes, own_shape = given.pop("num_classes", None), given.pop("image_shape", None)
    # An archived config has both; what the caller says of its data counts first.
    num_classes = own_classes if num_classes is None else num_classes
    image_shape = own_shape if image_shape is None else image_shape
    known = {key: given.pop(key) for key in _OF_TEXTS if key in given}
    settings = _settings(given)
    if settings.name in TEXT_MODELS:
        return _text_model(settings, num_classes, {**known, **(inputs or {})})
    if inputs:
        raise ModelError(f"Model {settings.name!r} reads images, and the data are texts. Take one of {TEXT_MODELS}.")
    if settings.depth is not None and settings.name != "resnet_small":
        raise ModelError(
            f"model.depth: is for models for texts and for resnet_small, and {settings.name!r} has a depth of its own."
        )
    classes, shape = _check_task(settings.name, num_classes, image_shape)
    if settings.name in (*SEGMENTATION_MODELS, *DETECTION_MODELS):
        return _dense_model(settings, classes, shape)
    autocast = _autocast_dtype(settings.autocast)
    module, measures = _build_module(settings, classes, shape)
    _load_weights(module, settings)
    # Plain values only: the archive keeps them as JSON, and a later run builds the model from them.
    reuse_config = {"name": settings.name, "num_classes": classes, "image_shape": list(shape), **measures}
    if settings.autocast is not None:
        reuse_config["autocast"] = settings.autocast
    return ReusableClassifier(module, classes, reuse_config, autocast)


def _text_model(settings: ModelConfig, num_classes: int | None, inputs: Mapping[str, Any]) -> ComposerModel:
    """Build a transformer, and load the weights that the recipe names."""
    if num_classes is None or num_classes < 2:
        raise ModelError(f"Model {settings.name!r}: num_classes must be 2 or more, not {num_classes}.")
    _refuse_weights_and_autocast(settings)
    model = build_text_model(settings.name, num_classes, inputs, settings.width, settings.depth)
    _load_weights(model, settings)
    return model


def _dense_model(settings: ModelConfig, num_classes: int, image_shape: tuple[int, int, int]) -> ComposerModel:
    """Build a model for masks or boxes, and load the weights that the recipe names."""
    _refuse_weights_and_autocast(settings)
    build = build_detection_model if settings.name in DETECTION_MODELS else build_segmentation_model
    model = build(settings.name, num_classes, image_shape, settings.width)
    _load_weights(model.module, settings)
    return model


def _refuse_weights_and_autocast(settings: ModelConfig) -> None:
    for field in ("weights", "autocast"):
        if getattr(settings, field) is not None:
            raise ModelError(f"model.{field}: {settings.name!r} has none; leave it out.")


def _as_mapping(config: ModelConfig | Mapping[str, Any] | str) -> dict[str, Any]:
    if isinstance(config, str):
        return {"name": config}
    return asdict(config) if isinstance(config, ModelConfig) else {str(key): value for key, value in config.items()}


def _settings(given: dict[str, Any]) -> ModelConfig:
    known = [field.name for field in fields(ModelConfig)]
    unknown = [f"model.{key}: unknown setting.{nearest(key, known)}" for key in given if key not in known]
    # All unknown settings at once, as a recipe reports its faults.
    if unknown:
        raise ModelError("\n".join(unknown))
    return ModelConfig(**given)


def _check_task(
    name: str, num_classes: int | None, image_shape: Sequence[int] | None
) -> tuple[int, tuple[int, int, int]]:
    if num_classes is None or image_shape is None:
        raise ModelError(f"Model {name!r}: num_classes and image_shape must be given.")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ModelError(f"Model {name!r}: image_shape must be (channels, height, width), not {tuple(image_shape)}.")
    if num_classes < 2:
        raise ModelError(f"Model {name!r}: a classifier needs at least 2 classes, not {num_classes}.")
    channels, height, width = (int(size) for size in image_shape)
    return int(num_classes), (channels, height, width)


def _autocast_dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    if name not in _AUTOCAST_DTYPES:
        raise ModelError(f"model.autocast: {name!r} is none of {', '.join(_AUTOCAST_DTYPES)}, or null for none.")
    return _AUTOCAST_DTYPES[name]


def _blocks(depth: int) -> int:
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ModelError(f"model.depth: a small ResNet has 6 n + 2 layers, such as 8, 20 or 50, not {depth}.")
    return blocks


def _build_module(
    settings: ModelConfig, num_classes: int, image_shape: tuple[int, int, int]
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network, and the settings besides the name that say how it is built."""
    name = settings.name
    if name in _RESNET_BLOCKS or name == "digits_cnn":
        if settings.weights is not None:
            raise ModelError(f"model.weights: {name!r} has no published weights; give model.weights_path.")
        width = _DEFAULT_WIDTH if settings.width is None else settings.width
        if width < 1:
            raise ModelError(f"model.width: must be 1 or more, not {width}.")
        channels, measures = image_shape[0], {"width": width}
        if settings.time is not None:
            if settings.time < 1 or channels < 2:
                raise ModelError(
                    f"model.time: needs at least 1 feature and a channel beside that of the time, got {settings.time} "
                    f"features and {channels} channels."
                )
            # The features take the place of the one channel that holds the time.
            channels, measures = channels - 1 + settings.time, {**measures, "time": settings.time}
        if name == "digits_cnn":
            module: nn.Module = DigitsCNN(num_classes, in_channels=channels, width=width)
        else:
            blocks = _RESNET_BLOCKS[name] if settings.depth is None else _blocks(settings.depth)
            measures |= {} if settings.depth is None else {"depth": settings.depth}
            module = CifarResNet(blocks, num_classes, in_channels=channels, width=width)
        return module if settings.time is None else TimeConditioned(module, settings.time), measures
    if name not in torchvision_model_names():
        raise ModelError(f"model.name: unknown model {name!r}.{nearest(str(name), model_names())}")
    if settings.time is not None:
        raise ModelError(f"model.time: {name!r} of torchvision takes three channels of colour; take another model.")
    if settings.width is not None:
        raise ModelError(f"model.width: {name!r} of torchvision has a fixed width; take another model.")
    return build_torchvision_model(name, num_classes, image_shape, settings.weights), {}


def _load_weights(module: nn.Module, settings: ModelConfig) -> None:
    """Load the weights that the recipe names, saved from the network itself or from the Composer model around it."""
    if settings.weights_path is None:
        return
    path = Path(settings.weights_path)
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"model.weights_path: {path} cannot be read as a safetensors file: {error}") from error
    # Saved from the Composer model, which holds the network as "module".
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if settings.new_head:
        own = module.state_dict()
        head = {key for key, value in own.items() if key in state and _other_rows(value, state[key])}
        # The model's own rows take the head's place, so that loading stays strict for all other tensors.
        state = {key: own[key] if key in head else value for key, value in state.items()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"model.weights_path: the weights in {path} do not fit the model: {error}") from error


def _other_rows(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether two tensors differ in their number of rows and in nothing else of their shape."""
    return ours.dim() == theirs.dim() > 0 and ours.shape != theirs.shape and ours.shape[1:] == theirs.shape[1:]
