"""When to stop teaching: the term does harm, or the student is better than its teachers.

Shapes: B rows, D channels that the head is given.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from composer import State
from composer.utils import dist
from torch import Tensor, nn

from reuse_algos.archive import PriorRun
from reuse_algos.errors import ModelError, SignalNotFoundError
from reuse_algos.training.outputs import has_compiled_parts, unwrap_model
from reuse_algos.training.parameters.head import find_head, head_module

log = logging.getLogger(__name__)

_LOOKS_PER_EPOCH = 4  # a look costs two short backward passes to the logits
# Between two looks: a few batches in a row say the same.
_LEAST_BATCHES = 8
# Looks in a row with the same sign: a single batch may oppose or surprise by chance.
_PATIENCE = 3
# Cosine of the two gradients. Those of unrelated losses are near 0 on either side of it.
_OPPOSED = -0.1
# At the optimum of a weighted sum the gradients of its parts are opposite by definition, whatever the teachers say: a
# student that has learned its labels opposes teachers at a high temperature, as it would oppose smoothed labels. So
# opposition is a sign only as long as the model's own loss pulls about as hard as it did at the first look.
_STILL_PULLS = 0.5
# Share of training rows by which the student must be ahead: a point is beyond the noise of a few batches.
_PASSED = 0.01
# Share of channels that died since the first look; some are dead from the start in healthy networks.
_DIED = 0.25


class Look(NamedTuple):
    """What one batch shows; None where it cannot be known.

    Attributes:
        cosine: Of the angle between the gradients of the term and of the model's own loss at the logits.
        right: Share of the rows that the student answers rightly.
        taught: Share that its teachers do.
        dead: Share of the channels in front of the head that are 0 for every row.
        own: Root mean square, over the rows, of the gradient of the model's own loss at the logits.
    """

    cosine: float | None = None
    right: float | None = None
    taught: float | None = None
    dead: float | None = None
    own: float | None = None


class HarmWatch:
    """Judges what a batch shows now and then, and remembers how often in a row it was bad.

    The term harms where one of these shows at three looks in a row: its gradient opposes that of the model's own loss,
    which has not fallen to half yet; the student answers more rows of the training batches rightly than its teachers
    do; channels in front of the head die.

    Args:
        on: Whether there is a watch at all.
    """

    def __init__(self, on: bool) -> None:
        self.on = on
        self.forget()

    def forget(self) -> None:
        """Forget what another Trainer showed."""
        self._bad: dict[str, int] = {}
        self._first_dead: float | None = None
        self._first_own: float | None = None

    def is_due(self, state: State) -> bool:
        """Return whether the batch that begins is one to look at."""
        length = state.dataloader_len
        apart = max(_LEAST_BATCHES, 0 if length is None else int(length) // _LOOKS_PER_EPOCH)
        return self.on and int(state.timestamp.batch) % apart == apart - 1

    def judge(self, look: Look) -> str | None:
        """Return why the term does harm, or None where it does not, or not yet for sure."""
        signs: dict[str, str] = {}
        if look.own is not None and self._first_own is None:
            self._first_own = look.own
        learning = look.own is None or self._first_own is None or look.own >= _STILL_PULLS * self._first_own
        if look.cosine is not None and look.cosine < _OPPOSED and learning:
            signs["opposed"] = f"its gradient opposes that of the model's own loss (cosine {look.cosine:.2f})"
        if look.right is not None and look.taught is not None and look.right > look.taught + _PASSED:
            signs["passed"] = (
                f"the student is right in {look.right:.1%} of the training rows, its teachers in {look.taught:.1%}"
            )
        if look.dead is not None:
            self._first_dead = look.dead if self._first_dead is None else self._first_dead
            if look.dead >= self._first_dead + _DIED:
                signs["dead"] = (
                    f"{look.dead:.0%} of the channels in front of the head are dead, {self._first_dead:.0%} at first"
                )
        # A sign that is missing this time begins from 0 again.
        self._bad = {name: self._bad.get(name, 0) + 1 for name in signs}
        return next((words for name, words in signs.items() if self._bad[name] >= _PATIENCE), None)

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen so far."""
        return {"bad": dict(self._bad), "first_dead": self._first_dead, "first_own": self._first_own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._bad = {str(name): int(count) for name, count in state["bad"].items()}
        first_dead, first_own = state["first_dead"], state["first_own"]
        self._first_dead = None if first_dead is None else float(first_dead)
        self._first_own = None if first_own is None else float(first_own)


class Channels:
    """Sees which channels in front of the head are alive in a batch, by a hook that is there for this batch only."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._alive_D: Tensor | None = None

    def begin(self, model: nn.Module, num_classes: int) -> None:
        """Watch the head of a model during the batch that begins, if it has one that can be watched."""
        self.end()
        plain = unwrap_model(model)
        # A hook would have a compiled model compiled again.
        if has_compiled_parts(model):
            return
        try:
            _, head = head_module(plain, find_head(plain, num_classes))
        except ModelError:
            return
        self._handle = head.register_forward_pre_hook(self._see)

    def _see(self, head: nn.Module, arguments: tuple[Any, ...]) -> None:
        if not arguments or not isinstance(arguments[0], Tensor) or not head.training:
            return
        features = arguments[0].detach()
        channel = 1 if isinstance(head, nn.Conv1d | nn.Conv2d | nn.Conv3d) else -1
        alive_D = (features.movedim(channel, -1) != 0).flatten(0, -2).any(0)
        self._alive_D = alive_D if self._alive_D is None else self._alive_D | alive_D

    def end(self) -> float | None:
        """Return the share of dead channels over all ranks, or None where nothing was seen; the hook is taken away."""
        if self._handle is not None:
            self._handle.remove()
        alive_D, self._handle, self._alive_D = self._alive_D, None, None
        if alive_D is None:
            return None
        alive = alive_D.to(torch.int32)
        if dist.get_world_size() > 1:
            # A channel that is alive on any rank is alive.
            dist.all_reduce(alive, reduce_operation="MAX")
        return 1.0 - float(alive.float().mean())


@dataclass(frozen=True)
class TeacherGoal:
    """The best value of a metric that a teacher had.

    Attributes:
        metric: Its full name.
        mode: ``max`` or ``min``: whether more or less of it is better.
        value: The best of all teachers.
    """

    metric: str
    mode: str
    value: float

    @staticmethod
    def of(runs: Sequence[PriorRun], monitor: str | None) -> TeacherGoal:
        """Return the goal that prior runs set.

        Args:
            runs: At least one.
            monitor: The metric; None: the one that the first run monitored.

        Raises:
            SignalNotFoundError: That run monitored none.
        """
        name = monitor or runs[0].manifest.monitor
        if name is None:
            raise SignalNotFoundError(f"stop_when_better: run {runs[0].id} monitored no metric; name one (monitor)")
        mode = runs[0].metric_mode(name)
        return TeacherGoal(name, mode, (max if mode == "max" else min)(run.best_metric(name)[0] for run in runs))

    def passed_with(self, state: State) -> float | None:
        """Return the student's value where its evaluator just ran and it is better than the teachers' (EVAL_END)."""
        label, metric = self.metric.split("/")[-2:] if "/" in self.metric else ("eval", self.metric)
        found = state.eval_metrics.get(label, {}).get(metric) if state.dataloader_label == label else None
        if found is None:
            return None
        value = float(found.compute())
        return value if (value > self.value if self.mode == "max" else value < self.value) else None
