"""The Composer algorithm: earlier models' adversarial examples, replayed.

Legend: B rows of a microbatch, R of them replayed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from composer import Event, State
from composer.core import get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from composer.utils.batch_helpers import batch_get
from torch import Tensor

from reuse_algos.algorithms.adversarial_replay.branches import Branches
from reuse_algos.algorithms.adversarial_replay.checks import (
    TASKS,
    image_shape,
    known_views,
    pixels_of,
    refuse_another,
    refuse_changed_inputs,
    refuse_other_outputs,
    refuse_other_pixels,
    refuse_uneven_ranks,
)
from reuse_algos.algorithms.adversarial_replay.forward import Replay, ReplayedForward
from reuse_algos.algorithms.adversarial_replay.losses import (
    ReplaySums,
    mean_over_ranks,
    warn_stale,
    weighed_loss,
)
from reuse_algos.algorithms.adversarial_replay.perturbations import Perturbations
from reuse_algos.algorithms.adversarial_replay.rows import replayed_rows, take_rows, with_item
from reuse_algos.algorithms.adversarial_replay.settings import Append, Replace, Replayable
from reuse_algos.algorithms.base import ReusingAlgorithm
from reuse_algos.archive import PriorUse, RunArchive
from reuse_algos.data.example_ids import ExampleIds
from reuse_algos.data.hashing import view_hash
from reuse_algos.data.images.pixels import PixelSpace
from reuse_algos.data.info import DatasetInfo, try_info
from reuse_algos.data.sampler import Examples
from reuse_algos.data.trainer import num_rows
from reuse_algos.errors import ExampleIdError, ModelError
from reuse_algos.priors.choosing import RunSelection, match_examples
from reuse_algos.sections import fit_section
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.first_batch import TaskReader, targets_of
from reuse_algos.training.flops import PASSES_PER_STEP
from reuse_algos.training.interplay import Replayed
from reuse_algos.training.loss import add_to_loss, total_of
from reuse_algos.training.outputs import device_of, logits_of, unwrap_model
from reuse_algos.training.window import Window

__all__ = ["AdversarialReplay"]

log = logging.getLogger(__name__)

_METRICS = "reuse/adversarial_replay/"
_SALT_PASS = 97  # of view_hash; perturbations.py has the one before


class AdversarialReplay(ReusingAlgorithm):
    r"""Train on adversarial examples that were made once, against an earlier model.

    `Xie et al. 2020 <https://arxiv.org/abs/1911.09665>`_ (AdvProp) improve accuracy on clean images with adversarial
    examples that have batch norm statistics of their own; making them costs several times the training. Here they come
    from the archive: ``reuse-algos harvest RUN --signals adversarial`` attacks the model of an earlier run, and this
    algorithm adds what it found to the same views of the same examples.

    A share of the rows of every batch, evenly spread, is replayed: the perturbation is added to the clean input in
    pixel units and clipped to valid pixels. With ``append`` the loss becomes :math:`(1 - w) L + w L_{adv}`.

    Args:
        archive: A :class:`~reuse_algos.archive.RunArchive` or its path.
        runs: Which prior runs, see :data:`~reuse_algos.priors.choosing.RunSelection`.
        mode: :class:`Append` (replayed rows come on top of the batch) or :class:`Replace` (they take the place of their
            clean ones), a mapping with ``name``, or the bare name. Default: ``append``.
        perturbations: :class:`Replayable`: of which weights, how runs are drawn, when they are stale. Default: its
            defaults.
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
        ValueError: an argument is out of its range.
        RunNotFoundError, SignalNotFoundError, PriorRunMismatchError: at the start of training.
        ExampleIdError: at the start, where examples, views or pixels are not known.
        TaskError: in the first batch: the task is neither multiclass nor dense.
        ModelError: the model has batch norms that cannot be split, or outputs that cannot be put together.

    Logs ``reuse/adversarial_replay/rows`` (replayed rows of the batch, over all ranks), ``/coverage`` (their share of
    those that were to be), ``/clean_loss``, ``/adversarial_loss`` (means over clean and replayed rows),
    ``/clean_error``, ``/adversarial_error`` (shares of wrong rows; append: of the same examples), and ``/fooling``:
    share of what the model is right about that the perturbations turn. With ``append`` that is counted: of the replayed
    rows whose clean row is classified rightly in this batch, those whose perturbed one is not. With ``replace`` no row
    is seen in both forms, and it is estimated from the errors on different rows, see
    :func:`~reuse_algos.algorithms.adversarial_replay.fooling_rate`. The model is measured in training mode:
    with ``split_batch_norm`` perturbed rows go through the auxiliary branches, clean ones through the main ones.

    Example:
        .. code-block:: python

            Trainer(..., algorithms=[AdversarialReplay("./archive", "resnet20-1")])
    """

    place = 1

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
        self.task_reader = TaskReader(keys=self.keys)
        self.dataset = dataset
        self.pixels: PixelSpace | None = None if pixels is None else fit_section(PixelSpace, pixels, "pixels")
        self.perturbations: Perturbations | None = None
        self._given_pixels = self.pixels
        self.branches = Branches(self.mode.split_batch_norm)
        self._forward = ReplayedForward(
            self.mode.name, self.mode.split_batch_norm, self.keys.input, self.branches.switch
        )
        self._info: DatasetInfo | None = None
        self._rows = torch.zeros(0, dtype=torch.int64)  # of this rank's batch: which rows, and whose perturbation
        self._runs = torch.zeros(0, dtype=torch.int64)
        self._views = torch.zeros(0, dtype=torch.int64)
        self._wanted = 0
        self._replayed = 0.0  # rows of the batch that are, per rank: the mean over all ranks
        self._batch_rows = 0.0  # likewise all rows
        self._looked_at_pixels = False
        self._first = self._count = 0
        self._current: Replay | None = None
        self._added: Tensor | None = None  # the loss of the current microbatch's replayed rows
        self._sums: ReplaySums | None = None  # of the running batch
        self._epoch_sums = torch.zeros(0, dtype=torch.float64)
        self._restarted = self._warned = False
        self._appended: int | None = 0  # rows, in all batches; None after a checkpoint that does not say
        self._times_on = self._times_due = 0  # batches in which it was on, and in which rows were to be replayed
        self._earlier_slots: dict[str, set[int]] = {}

    # What the engine asks -------------------------------------------------------------------------------------------

    def match(self, event: Event, state: State) -> bool:
        """Answer only: the id events always, the loss where there are replayed rows or auxiliary batch norms."""
        if event == Event.BEFORE_LOSS:
            return self._current is not None
        if event == Event.AFTER_LOSS:
            return self.task_reader.task is None
        if event in (Event.BEFORE_BACKWARD, Event.AFTER_BACKWARD, Event.AFTER_TRAIN_BATCH):
            return self._sums is not None or bool(self.branches.layers)
        return event in (Event.INIT, Event.BEFORE_LOAD, Event.BATCH_END, Event.FIT_END, *ExampleIds.EVENTS)

    def is_active(self, state: State) -> bool:
        """Whether rows of the current batch are replayed."""
        return self.when.is_on(state)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Follow the event."""
        if event == Event.INIT:
            self.take_place(state)
        elif event == Event.BEFORE_LOAD:
            self.branches.split(state)
        elif event == Event.BEFORE_LOSS:
            self._look_at_rows(state)
        elif event == Event.AFTER_LOSS:
            if self.task_reader.handle(event, state):
                self.task_reader.known.require("AdversarialReplay", TASKS)
        elif event == Event.BEFORE_BACKWARD:
            self._combine(state)
        elif event == Event.AFTER_BACKWARD:
            self._forward.settle()
        elif event == Event.AFTER_TRAIN_BATCH:
            if not self._replayed:
                self.branches.leave(state)
        elif event == Event.BATCH_END:
            self._log_batch(logger)
        elif event == Event.FIT_END:
            self.branches.put_aside(state)
            self.warn_if_idle(logger, self._why_idle())
        else:
            self.ids.handle(event, state)
            if event == Event.FIT_START:
                self.branches.take_back(state)
                self.begin(state)
            elif event == Event.BEFORE_TRAIN_BATCH:
                self._plan_batch(state)
            elif event == Event.BEFORE_FORWARD:
                self.task_reader.handle(event, state)
                self._prepare(state)
            elif event == Event.EPOCH_END:
                self._end_epoch()

    # Start ----------------------------------------------------------------------------------------------------------

    def start(self, state: State) -> None:
        """Match data, views and pixels with the prior runs, and load their perturbations."""
        refuse_changed_inputs(state)
        refuse_another(state, AdversarialReplay)
        dataset: Any = getattr(state.dataloader, "dataset", None)
        info = self.dataset or try_info(dataset)
        if info is None:
            raise ExampleIdError(
                "the train examples cannot be told apart; say what they are: dataset=DatasetInfo(...)."
            )
        self._info, self._looked_at_pixels = info, False
        self.pixels = self._given_pixels or pixels_of(dataset)
        self.load_perturbations(state, info)

    def load_perturbations(self, state: State, info: DatasetInfo) -> None:
        """Load what :meth:`adversarial_inputs` needs of the prior runs."""
        dataset: Any = getattr(state.dataloader, "dataset", None)
        policy = known_views(self.ids, dataset)
        if self.perturbations is not None:
            self._earlier_slots = self.perturbations.slots_used
        found = Perturbations(
            self.prior_runs,
            self.replayable.weights,
            [match_examples(run, info, self.mismatch) for run in self.prior_runs],
            policy,
            info.keys,
            device_of(state.model),
            seed=self.seed,
            recency=self.replayable.recency,
            mismatch=self.mismatch,
            archive=self.archive.location,
            shape=image_shape(dataset),
        )
        refuse_uneven_ranks(state.model, found.complete)
        for run_id, slots in self._earlier_slots.items():
            found.slots_used.setdefault(run_id, set()).update(slots)
        self.perturbations = found
        log.info("replaying perturbations %s of %s", found.name, ", ".join(found.run_ids))

    # Each batch -----------------------------------------------------------------------------------------------------

    def _plan_batch(self, state: State) -> None:
        """Which rows of this rank's batch are replayed: the same for every cut into microbatches, and every retry."""
        self._forward.disarm()
        self._current, self._added, self._sums, self._first = None, None, None, 0
        self._replayed = 0.0
        if not self.is_active(state):
            self._rows = self._rows[:0]
            return
        if not self._restarted:
            self.branches.restart(state)
            self._restarted = True
        examples = self._positions(self.ids.batch)
        number = int(state.timestamp.batch) // self.when.every_n_batches
        rows_R = replayed_rows(self.mode.fraction, len(examples.positions), number)
        self._wanted = len(rows_R)
        if self.perturbations is not None:
            views_R = examples.views[rows_R]
            runs_R = self.perturbations.draw(examples.positions[rows_R], views_R, int(state.timestamp.epoch))
            known_R = runs_R >= 0
            rows_R, self._runs = rows_R[known_R], runs_R[known_R]
        self._rows = rows_R
        device = device_of(state.model)
        complete = self.perturbations is None or self.perturbations.complete
        self._batch_rows, self._replayed = mean_over_ranks((len(examples.positions), len(rows_R)), device, complete)
        self._sums = ReplaySums(device)

    def _positions(self, examples: Examples) -> Examples:
        """Rows of the current data; ids that came with the batch are its keys, in the only view there is."""
        if self.ids.id_key is None:
            return examples
        assert self._info is not None
        return Examples(self._info.positions_of(examples.positions), torch.zeros_like(examples.views))

    # Each microbatch ------------------------------------------------------------------------------------------------

    def _prepare(self, state: State) -> None:
        """BEFORE_FORWARD: put the microbatch's replayed rows into the forward pass that comes."""
        first, count = self._first, num_rows(state.batch)
        self._first, self._count = first + count, count
        self._current = self._added = None
        here = (self._rows >= first) & (self._rows < first + count)
        rows_R = self._rows[here] - first
        if not len(rows_R):
            return
        inputs_RCHW = self.adversarial_inputs(state, rows_R)
        if inputs_RCHW is None:
            return
        batch = with_item(take_rows(state.batch, rows_R, count), self.keys.input, inputs_RCHW)
        keys = torch.tensor([int(state.timestamp.batch)]), torch.tensor([(dist.get_global_rank() << 32) + first])
        seed = int(view_hash(self.seed, *keys, _SALT_PASS))
        self._current = Replay(rows_R, count, batch, seed)
        self._forward.arm(state.model, state.batch, self._current)

    def adversarial_inputs(self, state: State, rows_R: Tensor) -> Tensor | None:
        """What the model is to see instead of some rows of the microbatch in ``state.batch``.

        Sub-classes may get them from elsewhere, such as an attack on the current model.

        Args:
            state: at BEFORE_FORWARD.
            rows_R: int64 on the CPU, which rows.

        Returns:
            ``[R, C, H, W]`` like the inputs; None where no row is to be replayed after all.
        """
        assert self.perturbations is not None
        assert self.pixels is not None
        clean_BCHW: Any = batch_get(state.batch, self.keys.input)
        self.perturbations.check_shape(clean_BCHW.shape[1:])
        if not self._looked_at_pixels:
            refuse_other_pixels(clean_BCHW, self.pixels)  # once, as a GPU has to be waited for
            self._looked_at_pixels = True
        examples = self._positions(self.ids.microbatch)
        here = torch.searchsorted(self._rows, rows_R + (self._first - len(clean_BCHW)))
        delta_RCHW = self.perturbations.gather(examples.positions[rows_R], examples.views[rows_R], self._runs[here])
        return self.pixels.add(take_rows(clean_BCHW, rows_R, len(clean_BCHW)), delta_RCHW)

    def _look_at_rows(self, state: State) -> None:
        """BEFORE_LOSS: the loss of the replayed rows by the targets of their clean ones, and what is logged."""
        replay, sums = self._current, self._sums
        assert replay is not None
        assert sums is not None
        if not replay.begun:
            raise ModelError(
                "the batch was exchanged between BEFORE_FORWARD of AdversarialReplay and the forward pass, so the rows "
                "to replay are not in it. Let what changes state.batch do so earlier, such as at BEFORE_TRAIN_BATCH."
            )
        model: Any = unwrap_model(state.model)
        targets_B = targets_of(state.batch, self.keys.target)
        with get_precision_context(state.precision, state.precision_config):
            if self.mode.name == "append":
                # Their batch again, as LabelSmoothing may have changed the targets since the forward pass.
                inputs_RCHW = batch_get(replay.batch, self.keys.input)
                batch = with_item(take_rows(state.batch, replay.rows_R, replay.num_rows), self.keys.input, inputs_RCHW)
                self._added = weighed_loss(
                    state, replay.rows_R, replay.outputs, batch, model.loss(replay.outputs, batch)
                )
                sums.add_adversarial_loss(self._added, len(replay.rows_R))
            else:
                self._add_losses_apart(model, state, replay, sums)
        outputs_BK, adversarial_RK = (
            logits_of(state.outputs, self.keys.output),
            logits_of(replay.outputs, self.keys.output),
        )
        refuse_other_outputs(outputs_BK, targets_B)
        rows_R = replay.rows_R.to(outputs_BK.device, non_blocking=True)
        if self.mode.name == "append":
            sums.add_pairs(outputs_BK[rows_R], adversarial_RK, targets_B[rows_R])
        else:
            kept_K = replay.kept_K.to(outputs_BK.device, non_blocking=True)
            sums.add_rows(outputs_BK[kept_K], targets_B[kept_K], adversarial_RK, targets_B[rows_R])

    @torch.no_grad()
    def _add_losses_apart(self, model: Any, state: State, replay: Replay, sums: ReplaySums) -> None:
        """replace: losses of the rows that stayed clean and of the replayed ones, for the log."""
        for rows, add in ((replay.kept_K, sums.add_clean_loss), (replay.rows_R, sums.add_adversarial_loss)):
            if len(rows):
                parts = (take_rows(part, rows, replay.num_rows) for part in (state.outputs, state.batch))
                add(total_of(model.loss(*parts)), len(rows))

    def _combine(self, state: State) -> None:
        """BEFORE_BACKWARD: the loss of all rows."""
        replay = self._current
        if self._sums is not None and (self.mode.name == "append" or replay is None):
            self._sums.add_clean_loss(total_of(state.loss), self._count)
        if self._appends:
            clean_share, share = self._shares()
            # Without replayed rows here the loss is only scaled.
            added = total_of(state.loss).detach().new_zeros(()) if self._added is None else self._added
            state.loss = add_to_loss(state.loss, share * added, scale=clean_share, part="adversarial", shown=added)
        self.branches.with_idle(state, replay is not None, replay is not None and replay.main_idle)

    @property
    def _appends(self) -> bool:
        """Whether the batch has appended rows, if not in this microbatch then in another, or on another rank."""
        return self.mode.name == "append" and self._replayed > 0

    def _shares(self) -> tuple[float, float]:
        """Weights of the microbatch's clean and replayed means, so that over the whole batch they are 1 - w and w.

        A microbatch, or a rank, that holds more than its share of the replayed rows counts with more of their weight,
        as Composer weighs microbatches by their clean rows, and ranks alike.
        """
        rows, replayed = len(self.ids.batch.positions), self._replayed
        weight = replayed / (self._batch_rows + replayed) if self.mode.weight is None else self.mode.weight
        here = 0 if self._current is None else len(self._current.rows_R)
        return 1 - weight, weight * (here / replayed) * (rows / self._count)

    # What others ask ------------------------------------------------------------------------------------------------

    def replaced_rows(self, state: State) -> Tensor | None:
        """The rows of the microbatch that are replayed in place of their clean ones."""
        if self._current is None or self.mode.name == "append":
            return None
        replaced_B = torch.zeros(self._current.num_rows, dtype=torch.bool)
        replaced_B[self._current.rows_R] = True
        return replaced_B

    def replayed_outputs(self, state: State) -> Replayed | None:
        """The appended rows."""
        if not self._appends:
            return None
        if self._current is None:
            return Replayed(None, self._rows[:0], *self._shares())
        logits_RK = logits_of(self._current.outputs, self.keys.output)
        rows_R = self._current.rows_R.to(logits_RK.device, non_blocking=True)
        return Replayed(self._current.outputs, rows_R, *self._shares())

    # Log, record and state ------------------------------------------------------------------------------------------

    def _log_batch(self, logger: Logger) -> None:
        # Not at AFTER_TRAIN_BATCH, which is inside the optimizer's closure: a GPU would have to wait for it.
        metrics = {_METRICS + "rows": 0.0}
        if self._sums is not None:
            totals = self._sums.over_ranks(self._wanted)
            metrics = {_METRICS + name: value for name, value in ReplaySums.read(totals).items()}
            self._epoch_sums = totals if not len(self._epoch_sums) else self._epoch_sums + totals
            self._times_on += 1
            self._times_due += int(totals[-1] > 0)
            if self.mode.name == "append" and self._appended is not None:
                self._appended += int(metrics[_METRICS + "rows"])
            self.batches_applied += int(metrics[_METRICS + "rows"] > 0 and self.mode.weight != 0)
        self._sums = self._current = self._added = None
        self.log_metrics(metrics, logger)

    def _end_epoch(self) -> None:
        fooling = ReplaySums.staleness(self._epoch_sums) if len(self._epoch_sums) else None
        self._epoch_sums = torch.zeros(0, dtype=torch.float64)
        if fooling is not None:
            # Once for a stretch of stale epochs; a newer stretch is told again.
            if fooling < self.replayable.warn_below and not self._warned:
                warn_stale(fooling, self.replayable.warn_below)
            self._warned = fooling < self.replayable.warn_below

    def start_afresh(self) -> None:
        """INIT: forget what another Trainer did with this algorithm."""
        super().start_afresh()
        self.branches.forget()
        self._forward.disarm()
        self.perturbations, self._earlier_slots = None, {}
        self._appended = 0
        self._times_on = self._times_due = 0
        self._restarted = self._warned = False
        self._epoch_sums = torch.zeros(0, dtype=torch.float64)

    def _why_idle(self) -> str:
        if not self._times_on:
            return f"no batch lay between start={self.when.start} and stop={self.when.stop}"
        if not self._times_due:
            return f"fraction={self.mode.fraction} of the {self._times_on} batches in which it was on is not one row"
        if self.mode.weight == 0:
            return "replayed rows have weight=0"
        return f"no row that was drawn in {self._times_due} batches has a perturbation: harvest more views or examples"

    def extra_flops(self, flops_per_example: int) -> float | None:
        """Passes of appended rows."""
        return None if self._appended is None else float(PASSES_PER_STEP * flops_per_example * self._appended)

    def prior_uses(self) -> list[PriorUse]:
        """What was used of each prior run, with the share of its harvest that the looked-up views are."""
        return [] if self.perturbations is None else self.perturbations.prior_uses(self.prior_runs)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on as if it had never stopped."""
        state = super().state_dict()
        slots_used = self._earlier_slots if self.perturbations is None else self.perturbations.slots_used
        state.update(
            restarted=self._restarted,
            warned=self._warned,
            times=(self._times_on, self._times_due),
            appended=self._appended,
            epoch_sums=self._epoch_sums.clone(),
            slots_used={run_id: sorted(slots) for run_id, slots in slots_used.items()},
        )
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        super().load_state_dict(state)
        self._restarted, self._warned = bool(state["restarted"]), bool(state["warned"])
        self._times_on, self._times_due = map(int, state["times"])
        self._appended = state.get("appended")
        self._epoch_sums = torch.as_tensor(state["epoch_sums"]).cpu().clone()
        self._earlier_slots = {run_id: set(map(int, slots)) for run_id, slots in state["slots_used"].items()}
