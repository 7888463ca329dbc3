"""Checks at the start of training: what must be so before anything can be replayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from composer import State
from composer.utils import dist
from torch import Tensor, nn

from reuse_algos.archive import PriorRun
from reuse_algos.data.example_ids import ExampleIds
from reuse_algos.data.images.pixels import PixelSpace, pixel_space_of
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import DataError, ExampleIdError, PriorRunMismatchError, TaskError
from reuse_algos.priors.views import numbered_views
from reuse_algos.training.attacks import pixel_room
from reuse_algos.training.interplay import changes_inputs, hides_inputs, mixes_examples
from reuse_algos.training.tasks.recorded_task import task_of

TASKS = ("multiclass", "dense")
"""Tasks whose attacks and errors are defined: those of images with one softmax, or one for each pixel."""


def refuse_other_outputs(logits_BK: Tensor, targets_B: Tensor) -> None:
    """Refuse outputs of which no row can be right or wrong by its largest logit, before the task is known.

    Raises:
        TaskError: There are fewer than two classes in dimension 1, or targets of another shape.
    """
    classes = logits_BK.shape[1] if logits_BK.dim() > 1 else 1
    if classes < 2 or targets_B.shape not in (logits_BK.shape, logits_BK[:, 0].shape):
        raise TaskError(
            f"AdversarialReplay is defined for the tasks {' and '.join(TASKS)}, whose outputs have the classes in "
            f"dimension 1; found outputs of shape {tuple(logits_BK.shape)} and targets of {tuple(targets_B.shape)}."
        )


def refuse_other_tasks(runs: Sequence[PriorRun]) -> None:
    """Refuse prior runs that recorded a task without attacks, before anything is asked about their pixels.

    Raises:
        TaskError: There is one.
    """
    for run in runs:
        if (task := task_of(run.manifest)) is not None:
            task.require(f"AdversarialReplay of run {run.id}", TASKS)


def refuse_other_pixels(inputs_BCHW: Tensor, pixels: PixelSpace) -> None:
    """Refuse inputs that are not valid pixels.

    Raises:
        DataError: Some are further out than rounding explains.
    """
    # Clipping to valid pixels would change them without a word. Called once, as the look makes a GPU wait.
    try:
        pixel_room(inputs_BCHW, pixels)
    except DataError as error:
        raise DataError(
            f"{error} For AdversarialReplay these are pixels.mean and pixels.std, or the dataset's attribute "
            "pixel_space."
        ) from error


def refuse_changed_inputs(state: State) -> None:
    """Refuse algorithms that make something other than a known view of an image out of a row.

    Raises:
        PriorRunMismatchError: There is one.
    """
    changers = mixes_examples(state) + changes_inputs(state)
    if changers:
        raise PriorRunMismatchError(
            f"{changers[0]} changes the inputs, and a perturbation is only adversarial for the view that it was made "
            f"for. Remove {changers[0]}; the dataset's own augmentation, in numbered views, may stay."
        )
    if hiding := hides_inputs(state):
        raise PriorRunMismatchError(
            f"{hiding[0]} with source: cached trains on features instead of images, which cannot be perturbed. Use "
            "source: live there."
        )


def known_views(ids: ExampleIds) -> ViewPolicy:
    """Return the numbered views in which examples are shown.

    Raises:
        ExampleIdError: Ids come with the batch, and there may be several views.
        PriorRunMismatchError: The augmentation is not in numbered views.
    """
    policy = ids.view_policy
    if ids.id_key is not None and (policy is None or policy.num_views != 1):
        raise ExampleIdError(
            "with id_key it is not known in which view an example is shown, unless there is one only. Give the "
            "dataset an attribute view_policy = ViewPolicy(seed, 1, transform), or use a map-style dataset."
        )
    return numbered_views(policy, "and a perturbation is only adversarial for the view that it was made for")


def pixels_of(dataset: Any) -> PixelSpace:
    """Return the pixel space of the training inputs.

    Raises:
        ExampleIdError: The dataset does not say it.
    """
    pixels = pixel_space_of(dataset)
    if pixels is None:
        raise ExampleIdError(
            f"perturbations are in pixel units, and {type(dataset).__name__} does not say how its pixels were "
            "normalised. Give pixels: {mean: ..., std: ...} (one number per channel, on the scale 0 to 1; 0 and 1 "
            "where the inputs are pixels), or let the dataset have an attribute pixel_space."
        )
    return pixels


def image_shape(dataset: Any) -> tuple[int, ...] | None:
    """Return (C, H, W) of the images, or None where the dataset does not say it."""
    # Wrappers such as Subset and ViewedDataset hold the dataset that knows as their ``dataset``.
    while dataset is not None and not hasattr(dataset, "image_shape"):
        dataset = getattr(dataset, "dataset", None)
    shape = getattr(dataset, "image_shape", None)
    return None if shape is None else tuple(int(size) for size in shape)


def refuse_uneven_ranks(model: nn.Module, complete: bool) -> None:
    """Refuse SyncBatchNorm on several ranks where these may replay different numbers of rows.

    Raises:
        PriorRunMismatchError: Not every example has a perturbation.
    """
    # A rank without replayed rows makes no second pass, and SyncBatchNorm of the others would wait for it for ever.
    synchronised = any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    if synchronised and not complete and dist.get_world_size() > 1:
        raise PriorRunMismatchError(
            "some examples have no perturbation, so the ranks would replay different numbers of rows, and "
            "SyncBatchNorm would wait for ever for those without any. Harvest all views of all examples, or use "
            "ordinary batch norm."
        )
