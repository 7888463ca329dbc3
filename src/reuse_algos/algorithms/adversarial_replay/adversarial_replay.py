"""The Composer algorithm: earlier models' adversarial examples, replayed.

Legend: B rows of a microbatch, R of them replayed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from composer import Event, State
from composer.loggers import Logger
from composer.utils.batch_helpers import batch_get
from torch import Tensor

from reuse_algos.algorithms.adversarial_replay.checks import (
    TASKS,
    image_shape,
    known_views,
    pixels_of,
    refuse_changed_inputs,
    refuse_other_pixels,
    refuse_uneven_ranks,
)
from reuse_algos.algorithms.adversarial_replay.perturbations import Perturbations
from reuse_algos.algorithms.adversarial_replay.replay.batch_rows import BatchRows
from reuse_algos.algorithms.adversarial_replay.replay.row_replay import RowReplay
from reuse_algos.algorithms.adversarial_replay.replay.rows import replayed_rows
from reuse_algos.algorithms.adversarial_replay.settings import Append, Replace, Replayable
from reuse_algos.algorithms.adversarial_replay.written_back import WrittenBack
from reuse_algos.algorithms.base import ReusingAlgorithm, refuse_another
from reuse_algos.archive import PriorUse, RunArchive
from reuse_algos.data.example_ids import ExampleIds
from reuse_algos.data.images.pixels import PixelSpace
from reuse_algos.data.info import DatasetInfo, try_info
from reuse_algos.data.nested import take_rows
from reuse_algos.data.sampler import Examples
from reuse_algos.errors import ExampleIdError
from reuse_algos.priors.choosing import RunSelection
from reuse_algos.sections import fit_section
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.first_batch.task_reader import TaskReader
from reuse_algos.training.flops import PASSES_PER_STEP
from reuse_algos.training.interplay import Replayed
from reuse_algos.training.outputs import device_of
from reuse_algos.training.parameters.batch_norm import share_statistics
from reuse_algos.training.tasks.recorded_task import refuse_other_tasks
from reuse_algos.training.window import Window

log = logging.getLogger(__name__)

_METRICS = "reuse/adversarial_replay/"


class AdversarialReplay(ReusingAlgorithm):
    r"""Train on adversarial examples that were made once, against an earlier model.

    `AdvProp <https://arxiv.org/abs/1911.09665>`_ trains on adversarial examples with batch norms of their own. Here
    ``reuse-algos harvest RUN --signals adversarial`` attacks the model of an earlier run, and what it found is added to
    the same views of a share of every batch's rows. With ``append`` the loss becomes :math:`(1 - w) L + w L_{adv}`.

    Args:
        archive: A :class:`~reuse_algos.archive.RunArchive` or its path.
        runs: Which prior runs, see :data:`~reuse_algos.priors.choosing.RunSelection`.
        mode: :class:`Append` (replayed rows come on top of the batch) or :class:`Replace` (they take the place of their
            clean ones), a mapping with ``name``, or the bare name. Default: ``append``.
        perturbations: :class:`Replayable`: of which weights, how runs are drawn, when they are stale, and whether
            attacks go on from them. Default: its defaults.
        when: :class:`~reuse_algos.training.window.Window`, the batches in which it is on. Default: all of them.
        keys: :class:`~reuse_algos.training.batch_keys.BatchKeys`: where inputs (float ``[B, C, H, W]``), targets,
            logits and ids lie. Ids are keys of ``dataset``, of iterable datasets, which must show every example in one
            view. Default: pairs of inputs and targets.
        pixels: :class:`~reuse_algos.data.images.pixels.PixelSpace`: mean and std per channel, on the scale 0 to 1, that
            the inputs were normalised with. Default: what the dataset's ``pixel_space`` says.
        mismatch: ``refuse`` prior runs on other data, or ``allow`` them: examples (and views) that have no perturbation
            are not replayed. Runs with other views are refused in any case. Default: ``refuse``.
        dataset: What the train data are. Default: read off the loader's dataset.
        seed: Seed of the draw among runs, and of what the model draws for replayed rows (dropout). Default: 0.

    Raises:
        ValueError: An argument is out of its range.
        RunNotFoundError, SignalNotFoundError, PriorRunMismatchError, ExampleIdError: At the start of training.
        TaskError: In the first batch: the task is neither multiclass nor dense.
        ModelError: The model has batch norms that cannot be split, or outputs that cannot be put together.

    Logs ``reuse/adversarial_replay/rows``, ``/coverage``, ``/clean_loss``, ``/adversarial_loss``, ``/clean_error``,
    ``/adversarial_error`` and ``/fooling``. The card beside this file defines each.

    Example:
        .. code-block:: python

            Trainer(..., algorithms=[AdversarialReplay("./archive", "resnet20-1")])
    """

    place = 1  # behind a curriculum's weights, before the distillation term, which reads the replayed rows

    def __init__(
        self,
        archive: RunArchive | str | os.PathLike[str],
        runs: RunSelection,
        *,
        mode: Append | Replace | str | Mapping[str, Any] = "append",
        perturbations: Replayable | Mapping[str, Any] | None = None,
        when: Window | Mapping[str, Any] | None = None,
        keys: BatchKeys | Mapping[str, Any] | None = None,
        pixels: PixelSpace | Mapping[str, Any] | None = None,
        mismatch: str = "refuse",
        dataset: DatasetInfo | None = None,
        seed: int = 0,
    ) -> None:
        self.keys: BatchKeys = fit_section(BatchKeys, keys or {}, "keys")
        super().__init__(archive, runs, seed=seed, mismatch=mismatch, id_key=self.keys.ids)
        self.mode: Append | Replace = fit_section(Append | Replace, mode, "mode")
        self.replayable: Replayable = fit_section(Replayable, perturbations or {}, "perturbations")
        self.when: Window = fit_section(Window, when or {}, "when")
        self.task_reader = TaskReader(self.keys)
        self.dataset = dataset
        self.pixels: PixelSpace | None = None if pixels is None else fit_section(PixelSpace, pixels, "pixels")
        self._given_pixels = self.pixels
        self.perturbations: Perturbations | None = None
        self.replay = RowReplay(self.mode, self.keys, seed)
        self._looked_at_pixels = False
        self.written = WrittenBack.of(self.replayable, self.keys, auxiliary=self.mode.split_batch_norm)
        self._slots_used: dict[str, set[int]] = {}  # views looked up so far, by run id

    def match(self, event: Event, state: State) -> bool:
        """Return true for the id events, and for the loss where there are replayed rows or auxiliary batch norms."""
        if self.stands_aside(event):
            return False
        if event == Event.BEFORE_LOSS:
            return self.replay.current is not None
        if event == Event.AFTER_LOSS:
            return self.task_reader.task is None
        if event in (Event.BEFORE_BACKWARD, Event.AFTER_BACKWARD, Event.AFTER_TRAIN_BATCH):
            # Also in batches without replayed rows: DDP waits for the auxiliary branches, and optimizers move them.
            return self.replay.rows is not None or bool(self.replay.branches.layers)
        return event in (Event.INIT, Event.BEFORE_LOAD, Event.BATCH_END, Event.FIT_END, *ExampleIds.EVENTS)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Follow the event."""
        if event in ExampleIds.EVENTS:
            self.ids.handle(event, state)
        if event == Event.INIT:
            self.take_place(state)
        elif event == Event.BEFORE_LOAD:
            self.replay.branches.split(state)
        elif event == Event.FIT_START:
            # A second fit finds the plain model that the first one left.
            self.replay.branches.take_back(state)
            self.begin(state)
        elif event == Event.BEFORE_TRAIN_BATCH:
            self._plan_batch(state)
        elif event == Event.BEFORE_FORWARD:
            self.task_reader.handle(event, state)
            self.replay.prepare(state, self.adversarial_inputs)
        elif event == Event.BEFORE_LOSS:
            self.replay.look_at_rows(state)
        elif event == Event.AFTER_LOSS:
            if self.task_reader.handle(event, state):
                self.task_reader.known.require("AdversarialReplay", TASKS)
        elif event == Event.BEFORE_BACKWARD:
            self.replay.combine(state)
        elif event == Event.AFTER_BACKWARD:
            self.replay.after_backward()
        elif event == Event.AFTER_TRAIN_BATCH:
            self.replay.after_batch(state)
        elif event == Event.BATCH_END:
            # Not at AFTER_TRAIN_BATCH, which is inside the optimizer's closure: a GPU would have to wait for it.
            metrics = self.replay.end_batch()
            self.batches_applied += int(metrics["rows"] > 0 and self.mode.weight != 0)
            self.log_metrics({_METRICS + name: value for name, value in metrics.items()}, logger)
        elif event == Event.EPOCH_END:
            self.replay.record.end_epoch(self.replayable.warn_below)
            if self.written is not None:
                self.written.end_epoch(int(state.timestamp.epoch))
        elif event == Event.FIT_END:
            self.replay.branches.put_aside(state)
            self.warn_if_idle(logger, self.replay.record.why_idle(self.when, self.mode))

    def start_afresh(self) -> None:
        """Forget what another Trainer did with this algorithm (INIT)."""
        super().start_afresh()
        self.task_reader.start_afresh()
        self.replay.forget()
        self.perturbations, self._slots_used = None, {}
        self.written = WrittenBack.of(self.replayable, self.keys, auxiliary=self.mode.split_batch_norm)

    def start(self, state: State) -> None:
        """Match data, views and pixels with the prior runs, and load their perturbations."""
        refuse_changed_inputs(state)
        refuse_other_tasks(self.prior_runs, "AdversarialReplay", TASKS)
        refuse_another(state, AdversarialReplay, "replay rows of a batch", "several runs")
        dataset: Any = getattr(state.dataloader, "dataset", None)
        info = self.dataset or try_info(dataset)
        if info is None:
            raise ExampleIdError("the train examples cannot be told apart; describe them: dataset=DatasetInfo(...).")
        # With it, keys that come with the batch become positions.
        self.ids.info, self._looked_at_pixels = info, False
        # Perturbations first: without them nobody needs to know the pixels.
        self.load_perturbations(state, info)
        self.pixels = self._given_pixels or pixels_of(dataset)

    def load_perturbations(self, state: State, info: DatasetInfo) -> None:
        """Load what :meth:`adversarial_inputs` needs of the prior runs."""
        dataset: Any = getattr(state.dataloader, "dataset", None)
        policy = known_views(self.ids)
        self.perturbations = Perturbations(
            self.prior_runs,
            self.replayable,
            info,
            policy,
            device_of(state.model),
            seed=self.seed,
            mismatch=self.mismatch,
            archive=self.archive.location,
            shape=image_shape(dataset),
            slots_used=self._slots_used,
        )
        refuse_uneven_ranks(state.model, self.perturbations.complete)
        if self.written is not None:
            self.written.prepare(self.perturbations, policy.num_views, info.num_examples, device_of(state.model))
        log.info("replaying perturbations %s of %s", self.perturbations.name, ", ".join(self.perturbations.run_ids))

    def _plan_batch(self, state: State) -> None:
        """Choose the rows of this rank's batch that are replayed."""
        self.replay.leave_batch()
        if not self.when.is_on(state):
            return
        examples = self.ids.batch
        # Counted over the batches in which it is on: fractions of a row are carried over from one to the next.
        number = int(state.timestamp.batch) // self.when.every_n_batches
        rows_R, runs_R = replayed_rows(self.mode.fraction, len(examples.positions), number), None
        wanted, alike = len(rows_R), True
        if self.perturbations is not None:
            runs_R = self.perturbations.draw(examples, rows_R, int(state.timestamp.epoch))
            rows_R, runs_R = rows_R[runs_R >= 0], runs_R[runs_R >= 0]
            alike = self.perturbations.complete
        if self.written is not None:
            share_statistics(state.model)  # the attack is in evaluation mode, before DDP shares them
        rows = BatchRows(rows_R, runs_R, len(examples.positions), device_of(state.model), alike=alike)
        self.replay.begin_batch(state, wanted, rows)

    def adversarial_inputs(self, state: State, rows_R: Tensor) -> Tensor | None:
        """Return what the model is to see instead of some rows of the microbatch in ``state.batch``.

        Sub-classes may get them from elsewhere, such as an attack on the current model.

        Args:
            state: At BEFORE_FORWARD.
            rows_R: int64 on the CPU, which rows.

        Returns:
            ``[R, C, H, W]`` like the inputs; None where no row is to be replayed after all.
        """
        assert self.perturbations is not None
        assert self.pixels is not None
        assert self.replay.rows is not None
        assert self.replay.rows.runs_here is not None
        clean_BCHW: Any = batch_get(state.batch, self.keys.input)
        self.perturbations.check_shape(clean_BCHW.shape[1:])
        if not self._looked_at_pixels:
            refuse_other_pixels(clean_BCHW, self.pixels)  # once, as a GPU has to be waited for
            self._looked_at_pixels = True
        shown = self.ids.microbatch
        shown = Examples(shown.positions[rows_R], shown.views[rows_R])
        delta_RCHW = self.perturbations.gather(shown.positions, shown.views, self.replay.rows.runs_here)
        if self.written is not None:
            delta_RCHW = self.written.move(state, rows_R, delta_RCHW, shown, self.pixels)
        return self.pixels.add(take_rows(clean_BCHW, rows_R, len(clean_BCHW)), delta_RCHW)

    def replaced_rows(self, state: State) -> Tensor | None:
        """Return the rows of the microbatch that are replayed in place of their clean ones."""
        return self.replay.replaced_rows()

    def replayed_outputs(self, state: State) -> Replayed | None:
        """Return the outputs of the appended rows."""
        return self.replay.replayed_outputs()

    def extra_flops(self, flops_per_example: int) -> float | None:
        """Return the FLOPs of appended rows, and of the steps of attacks: a pass forward and one backward each."""
        appended, replayed = self.replay.record.appended, self.replay.record.replayed
        passes = 0 if self.written is None else 2 * replayed
        return None if appended is None else float(flops_per_example * (PASSES_PER_STEP * appended + passes))

    def prior_uses(self) -> list[PriorUse]:
        """Return what was used of each prior run, with the share of its harvest that the looked-up views are."""
        return [] if self.perturbations is None else self.perturbations.prior_uses(self.prior_runs)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on as if it had never stopped."""
        state = super().state_dict()
        if self.written is not None:
            state["written"] = self.written.state_dict()
        replay, slots = self.replay, {run_id: sorted(slots) for run_id, slots in self._slots_used.items()}
        return {**state, "restarted": replay.restarted, "record": replay.record.state_dict(), "slots_used": slots}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        super().load_state_dict(state)
        self.replay.restarted = bool(state["restarted"])
        self.replay.record.load_state_dict(state["record"])
        if self.written is not None and "written" in state:
            self.written.load_state_dict(state["written"])
        self._slots_used = {run_id: set(map(int, slots)) for run_id, slots in state["slots_used"].items()}
