"""Replayed rows of a batch: through the model, into the loss, and what other algorithms read of them.

Legend: B rows of a microbatch, R of them replayed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from composer import State
from composer.utils import dist
from torch import Tensor

from reuse_algos.algorithms.adversarial_replay.record import ReplayRecord
from reuse_algos.algorithms.adversarial_replay.replay.batch_rows import BatchRows
from reuse_algos.algorithms.adversarial_replay.replay.branches import Branches
from reuse_algos.algorithms.adversarial_replay.replay.forward import Replay, ReplayedForward
from reuse_algos.algorithms.adversarial_replay.replay.losses import look_at_rows
from reuse_algos.algorithms.adversarial_replay.settings import Append, Replace
from reuse_algos.data.hashing import view_hash
from reuse_algos.data.nested import take_rows, with_item
from reuse_algos.data.trainer import num_rows
from reuse_algos.errors import ModelError
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.interplay import Replayed
from reuse_algos.training.loss import add_to_loss, total_of
from reuse_algos.training.outputs import device_of, logits_of

_SALT_PASS = 97  # of view_hash; perturbations.py has the one before


class RowReplay:
    """Takes rows of each microbatch through the model in another form, and their loss into the batch's.

    Args:
        mode: How rows are replayed.
        keys: Where inputs, targets and logits lie.
        seed: Of what the model draws in the forward pass of the rows (dropout).

    Attributes:
        branches: The auxiliary batch norms.
        record: What is logged and counted.
        rows: The rows of this rank's batch; None where the algorithm is off in it.
        current: Those of the microbatch; None where it has none.
    """

    def __init__(self, mode: Append | Replace, keys: BatchKeys, seed: int) -> None:
        self.mode, self.keys, self.seed = mode, keys, seed
        self.branches = Branches(mode.split_batch_norm)
        self.record = ReplayRecord()
        self.rows: BatchRows | None = None
        self.current: Replay | None = None
        self.restarted = False
        self._appends = mode.name == "append"
        self._forward = ReplayedForward(mode.name, mode.split_batch_norm, keys.input, self.branches.switch)
        self._added: Tensor | None = None  # the loss of the current rows

    def forget(self) -> None:
        """Forget what another Trainer did (INIT)."""
        self.branches.forget()
        self.leave_batch()
        self.record, self.restarted = ReplayRecord(), False

    def leave_batch(self) -> None:
        """Replay nothing until the next batch."""
        # Also what an attempt at this batch left that failed: Composer tries again with smaller microbatches.
        self._forward.disarm()
        self.rows = self.current = self._added = self.record.sums = None

    def begin_batch(self, state: State, wanted: int, rows: BatchRows) -> None:
        """Replay these rows in the batch that comes (BEFORE_TRAIN_BATCH)."""
        # Once, in the first batch in which it is on: the main branch has gone on since the model was split.
        if not self.restarted:
            self.branches.restart(state)
            self.restarted = True
        self.rows = rows
        self.record.begin_batch(wanted, device_of(state.model))

    def prepare(self, state: State, inputs: Callable[[State, Tensor], Tensor | None]) -> None:
        """Put the microbatch's replayed rows into the forward pass that comes (BEFORE_FORWARD).

        Args:
            state: Of the trainer.
            inputs: (state, which rows) -> what the model is to see instead, or None.
        """
        self.current = self._added = None
        if self.rows is None:
            return
        count = num_rows(state.batch)
        rows_R = self.rows.next_microbatch(count)
        inputs_RCHW = inputs(state, rows_R) if len(rows_R) else None
        if inputs_RCHW is None:
            return
        batch = with_item(take_rows(state.batch, rows_R, count), self.keys.input, inputs_RCHW)
        # What the model draws for these rows is a function of the batch and of the first row, not of a generator's
        # state.
        # The rank stands above the bits of any row number, so that no two ranks draw the same.
        place = torch.tensor([(dist.get_global_rank() << 32) + self.rows.first])
        seed = int(view_hash(self.seed, torch.tensor([int(state.timestamp.batch)]), place, _SALT_PASS))
        self.current = Replay(rows_R, count, batch, seed)
        self._forward.arm(state.model, state.batch, self.current)

    def look_at_rows(self, state: State) -> None:
        """Compute the loss of the replayed rows, and what is logged (BEFORE_LOSS).

        Raises:
            ModelError: They were not in the forward pass.
        """
        assert self.current is not None
        assert self.record.sums is not None
        if not self.current.begun:
            raise ModelError(
                "the batch was exchanged between BEFORE_FORWARD of AdversarialReplay and the forward pass, so the rows "
                "to replay are not in it. Let what changes state.batch do so earlier, such as at BEFORE_TRAIN_BATCH."
            )
        self._added = look_at_rows(state, self.current, self.record.sums, appends=self._appends, keys=self.keys)

    def combine(self, state: State) -> None:
        """Make the loss that of all rows (BEFORE_BACKWARD)."""
        replay = self.current
        if self.rows is not None and self.record.sums is not None and (self._appends or replay is None):
            self.record.sums.add_clean_loss(total_of(state.loss), self.rows.count)
        if self.rows is not None and self._appends and self.rows.replayed:
            clean_share, share = self._shares(self.rows)
            # Without replayed rows here the loss is only scaled.
            added = total_of(state.loss).detach().new_zeros(()) if self._added is None else self._added
            state.loss = add_to_loss(state.loss, share * added, scale=clean_share, part="adversarial", shown=added)
        self.branches.with_idle(state, replay is not None, replay is not None and replay.main_idle)

    def after_backward(self) -> None:
        """Return to the main branch of the batch norms (AFTER_BACKWARD)."""
        self._forward.settle()

    def after_batch(self, state: State) -> None:
        """Keep the auxiliary branches where no row of any rank went through them (AFTER_TRAIN_BATCH)."""
        if self.rows is None or not self.rows.replayed:
            self.branches.leave(state)

    def end_batch(self) -> dict[str, float]:
        """Return the metrics by name, over all ranks (BATCH_END)."""
        metrics = self.record.end_batch(appends=self._appends)
        self.rows = self.current = self._added = None
        return metrics

    def _shares(self, rows: BatchRows) -> tuple[float, float]:
        return rows.shares(self.mode.weight, 0 if self.current is None else len(self.current.rows_R))

    def replaced_rows(self) -> Tensor | None:
        """Return the rows of the microbatch that are replayed in place of their clean ones: bool ``[B]``, or None."""
        if self.current is None or self._appends:
            return None
        replaced_B = torch.zeros(self.current.num_rows, dtype=torch.bool)
        replaced_B[self.current.rows_R] = True
        return replaced_B

    def replayed_outputs(self) -> Replayed | None:
        """Return the outputs of the appended rows; None where there are none in the batch."""
        if self.rows is None or not self._appends or not self.rows.replayed:
            return None
        if self.current is None:
            return Replayed(None, torch.zeros(0, dtype=torch.int64), *self._shares(self.rows))
        logits_RK = logits_of(self.current.outputs, self.keys.output)
        rows_R = self.current.rows_R.to(logits_RK.device, non_blocking=True)
        return Replayed(self.current.outputs, rows_R, *self._shares(self.rows))
