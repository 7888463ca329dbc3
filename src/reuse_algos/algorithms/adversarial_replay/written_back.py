"""Perturbations that training goes on changing: one step from the archived one, written back for the next epoch.

Source: Zheng et al., "Efficient adversarial training with transferable adversarial examples" (ATTA), CVPR 2020,
https://arxiv.org/abs/1912.11969, algorithm 1. Their inverse augmentation is not needed: views are
numbered.

Legend: N training examples, V views, B rows of a microbatch, R of them replayed, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from composer import State
from composer.core import get_precision_context
from composer.utils import dist
from torch import Tensor

from reuse_algos.algorithms.adversarial_replay.perturbations import Perturbations
from reuse_algos.algorithms.adversarial_replay.settings import Replayable, Start
from reuse_algos.data.images.pixels import PixelSpace
from reuse_algos.data.nested import take_rows, with_item
from reuse_algos.data.sampler import Examples
from reuse_algos.errors import DataError, PriorRunMismatchError
from reuse_algos.training.attacks import Attack, ascend, attacked
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.first_batch.task_reader import class_numbers_of
from reuse_algos.training.outputs import logits_of, unwrap_model

# All of them are kept on the training device in float16. Beyond this size that would crowd out the training.
_MOST_BYTES = 4 << 30


class WrittenBack:
    """The perturbations of a training that starts each attack where its last one on the same view ended.

    Args:
        use: Length of the step, and when to begin again.
        keys: Where inputs, targets and logits lie.
        auxiliary: Whether the rows go through auxiliary batch norms.
    """

    def __init__(self, use: Start, keys: BatchKeys, *, auxiliary: bool) -> None:
        self.use, self.keys, self.auxiliary = use, keys, auxiliary
        self._attack: Attack | None = None
        self._values_VN = torch.zeros(0)
        self._known_VN = torch.zeros(0)
        self._fresh_VN = torch.zeros(0)  # written on this rank in this epoch, which other ranks do not know yet
        self._loaded: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, settings: Replayable, keys: BatchKeys, *, auxiliary: bool) -> WrittenBack | None:
        """Return one where attacks are to go on; None where perturbations are shown as they are."""
        return cls(settings.use, keys, auxiliary=auxiliary) if isinstance(settings.use, Start) else None

    def prepare(self, found: Perturbations, num_views: int, num_examples: int, device: torch.device) -> None:
        """Make room for the perturbations, and take over those of a checkpoint (FIT_START).

        Raises:
            PriorRunMismatchError: The archived attacks do not say one ball, or not an L-infinity one.
            DataError: There are too many, or the checkpoint has those of other data.
        """
        if found.epsilon is None:
            raise PriorRunMismatchError(
                "use: start goes on with the archived attack, and the prior runs do not have one L-infinity attack of "
                "one epsilon on record. Harvest them again (--replace), or choose one run."
            )
        step = found.epsilon / 2 if self.use.step is None else self.use.step
        self._attack = Attack("pgd", found.epsilon, 1, step, random_start=False)
        shape = (num_views, num_examples, *found.image_shape)
        if (size := 2 * torch.Size(shape).numel()) > _MOST_BYTES:
            raise DataError(
                f"use: start keeps a perturbation of every example in every view, {size / 2**30:.1f} GiB here, and at "
                f"most {_MOST_BYTES >> 30} GiB are kept on the device. Take fewer views (data.num_views) or use: as_is."
            )
        if self._values_VN.shape != shape:
            # Half the memory of float32, and still much finer than a step of a pixel.
            self._values_VN = torch.zeros(shape, dtype=torch.float16, device=device)
            self._known_VN = torch.zeros(shape[:2], dtype=torch.bool, device=device)
            self._fresh_VN = torch.zeros_like(self._known_VN)
        if self._loaded is not None:
            if self._loaded["values"].shape != shape:
                raise DataError(
                    f"the checkpoint has perturbations {tuple(self._loaded['values'].shape)} (views, examples, "
                    f"channels, height, width), and this training has {shape}. Go on with the data that it was made "
                    "with."
                )
            self._values_VN.copy_(self._loaded["values"])
            self._known_VN.copy_(self._loaded["known"])
            self._loaded = None

    def move(
        self, state: State, rows_R: Tensor, archived_RCHW: Tensor, examples: Examples, pixels: PixelSpace
    ) -> Tensor:
        """Take one step from the last perturbation of each example in its view, and write it back.

        Args:
            state: At BEFORE_FORWARD.
            rows_R: int64 on the CPU: which rows of the microbatch.
            archived_RCHW: Where examples begin that have not been attacked yet, in pixel units.
            examples: Positions and views of these rows.
            pixels: What the inputs mean.

        Returns:
            Float32 ``[R, C, H, W]`` in pixel units.

        Raises:
            TaskError: The targets are not one class for each image.
        """
        assert self._attack is not None
        clean_BCHW: Any = state.batch_get_item(self.keys.input)
        batch = take_rows(state.batch, rows_R, len(clean_BCHW))
        labels_R = class_numbers_of(batch, self.keys.target, "AdversarialReplay with use: start (not with use: as_is)")
        device = self._values_VN.device
        places = examples.views.to(device), examples.positions.to(device)
        start_RCHW = torch.where(
            self._known_VN[places].view(-1, 1, 1, 1), self._values_VN[places].float(), archived_RCHW.to(device)
        )
        model: Any = unwrap_model(state.model)

        def forward(moved_RCHW: Tensor) -> Tensor:
            return logits_of(model(with_item(batch, self.keys.input, moved_RCHW)), self.keys.output)

        # Through the branch that the rows will be trained in: the main one is not the model that they are to fool.
        with get_precision_context(state.precision, state.precision_config), attacked(model, auxiliary=self.auxiliary):
            inputs_RCHW = take_rows(clean_BCHW, rows_R, len(clean_BCHW))
            moved = ascend(forward, inputs_RCHW, labels_R, self._attack, pixels, start_BCHW=start_RCHW)
        self._values_VN[places] = moved.delta_BCHW.to(device, torch.float16)
        self._known_VN[places] = self._fresh_VN[places] = True
        return moved.delta_BCHW

    def end_epoch(self, epochs: int) -> None:
        """Share what was written in the epoch with all ranks. Every rank must call this."""
        self._values_VN, self._known_VN = self._over_ranks()
        self._fresh_VN.zero_()
        if self.use.reset_every is not None and epochs % self.use.reset_every == 0:
            # As ATTA does: perturbations that have gone on for long fit weights that training has left behind.
            self._known_VN.zero_()

    def _over_ranks(self) -> tuple[Tensor, Tensor]:
        """Return values and which are known, with those that other ranks wrote in this epoch."""
        if dist.get_world_size() == 1:
            return self._values_VN, self._known_VN  # no copy: they may take gigabytes
        values_VN, known_VN = self._values_VN.clone(), self._known_VN.clone()
        writers_VN = self._fresh_VN.to(torch.int32)
        dist.all_reduce(writers_VN)
        for view, fresh_N in enumerate(self._fresh_VN):  # one view at a time, in the float32 that sums need
            total_N = values_VN[view].float() * fresh_N.view(-1, 1, 1, 1)
            dist.all_reduce(total_N)
            written_N = writers_VN[view] > 0
            # An example that several ranks were shown in one epoch goes on from the mean, which lies in the ball, too.
            mean_N = total_N / writers_VN[view].clamp_min(1).view(-1, 1, 1, 1)
            values_VN[view] = torch.where(written_N.view(-1, 1, 1, 1), mean_N.half(), values_VN[view])
            known_VN[view] |= written_N
        return values_VN, known_VN

    def state_dict(self) -> dict[str, Any]:
        """Return everything that was written, of all ranks; every rank must call this, as Composer's checkpoints do."""
        if not self._values_VN.numel():
            return dict(self._loaded or {})
        values_VN, known_VN = self._over_ranks()
        return {"values": values_VN.to("cpu", copy=True), "known": known_VN.to("cpu", copy=True)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it, at the next :meth:`prepare`."""
        self._loaded = state or None
