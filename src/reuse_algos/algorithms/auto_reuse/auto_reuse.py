"""The Composer algorithm: one line that looks at the archive and does what was shown to help."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from composer import Event, State
from composer.loggers import Logger
from composer.utils import dist
from torch import nn

from reuse_algos.algorithms.auto_reuse.decision import Decision, decide
from reuse_algos.algorithms.auto_reuse.facts import facts_of
from reuse_algos.algorithms.base import ReusingAlgorithm
from reuse_algos.algorithms.prior_run_distillation import PriorRunDistillation
from reuse_algos.algorithms.prior_run_warm_start import PriorRunWarmStart
from reuse_algos.archive import PriorUse, RunArchive
from reuse_algos.data.info import DatasetInfo, try_info
from reuse_algos.errors import ReuseAlgosError
from reuse_algos.presets import preset
from reuse_algos.priors.model import untouched_copy
from reuse_algos.sections import fit_section
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.first_batch.task_reader import TaskReader
from reuse_algos.training.ranks import on_rank_zero


class AutoReuse(ReusingAlgorithm):
    """Look at the archive and at the first batch, and reuse earlier runs where a preset was shown to help.

    At the start of training the finished runs of the archive are held against this run's data, classes and model. A
    run on a part of the data gives its weights (:class:`PriorRunWarmStart`). Runs on the same data teach
    (:class:`PriorRunDistillation`), those of the same model before those of another. Where nothing fits, where classes
    have changed, or where the first batch shows that what was chosen is not true for this run, training is plain. The
    decision and its reason are printed and recorded.

    Args:
        archive: A :class:`~reuse_algos.archive.RunArchive` or its path; it is made where there is none.
        runs: A query that narrows the runs down, such as ``{"tags": {"study": "resnet"}}``. Default: all runs.
        dry_run: Only say what would be done. Default: False.
        keys: :class:`~reuse_algos.training.batch_keys.BatchKeys`: where inputs, targets, logits and ids lie. Default:
            pairs of inputs and targets.
        dataset: What the train data are. Default: read off the loader's dataset.
        seed: Seed of what the chosen algorithm draws. Default: 0.

    Attributes:
        decision: What was decided and why; None before training starts.
        chosen: The algorithm that acts; None where nothing is done.

    Example:
        .. code-block:: python

            Trainer(..., algorithms=[AutoReuse("./archive")], callbacks=[RunRecorder("./archive")])
    """

    place = 2

    def __init__(
        self,
        archive: RunArchive | str | os.PathLike[str],
        *,
        runs: Mapping[str, Any] | None = None,
        dry_run: bool = False,
        keys: BatchKeys | Mapping[str, Any] | None = None,
        dataset: DatasetInfo | None = None,
        seed: int = 0,
    ) -> None:
        home = archive if isinstance(archive, RunArchive) else RunArchive(archive, create=True)
        super().__init__(home, dict(runs or {}), seed=seed)
        self.query: dict[str, Any] = dict(self.runs)  # type: ignore[arg-type]
        self.dry_run, self.dataset = dry_run, dataset
        self.keys: BatchKeys = fit_section(BatchKeys, keys or {}, "keys")
        self.decision: Decision | None = None
        self.chosen: PriorRunDistillation | PriorRunWarmStart | None = None
        self._untouched: nn.Module | None = None
        self._resumed: dict[str, Any] | None = None

    @property
    def task_reader(self) -> TaskReader | None:
        """The chosen algorithm's, for whoever asks the run for its task."""
        return getattr(self.chosen, "task_reader", None)

    def match(self, event: Event, state: State) -> bool:
        """Answer only: the start always, then what the chosen algorithm answers."""
        if event in (Event.INIT, Event.BEFORE_LOAD, Event.FIT_START):
            return True
        return self.chosen is not None and self.chosen.match(event, state)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Decide at the start, then follow the event as the chosen algorithm does."""
        if event == Event.INIT:
            self.decision = self.chosen = self._resumed = None
            self.take_place(state)
        elif event == Event.BEFORE_LOAD:
            # Archived models may need a plain copy of this one, and only now can it be made.
            if not self.dry_run and self.archive.runs(**{**self.query, "limit": 1}):
                self._untouched = untouched_copy(state.model)
        elif event == Event.FIT_START:
            self._start(state, logger)
        elif self.chosen is not None:
            self._follow(event, state, logger)

    def _start(self, state: State, logger: Logger) -> None:
        began = time.perf_counter()
        if self.decision is None:
            self.decision = on_rank_zero(lambda: self._decide(state))
            self._say("would do " if self.dry_run else "")
        if self.chosen is None and (chosen := self._build(self.decision)) is not None:
            # It was not in the Trainer's list at INIT.
            chosen.apply(Event.INIT, state, logger)
            if self._resumed is not None:
                chosen.load_state_dict(self._resumed)
            if isinstance(chosen, PriorRunDistillation):
                chosen.student = self._untouched
            self.chosen = chosen
        self._untouched = self._resumed = None
        self.setup_seconds += time.perf_counter() - began
        if self.chosen is not None:
            self._follow(Event.FIT_START, state, logger)

    def _decide(self, state: State) -> Decision:
        info = self.dataset or try_info(getattr(state.dataloader, "dataset", None))
        found = facts_of(self.archive, self.query, state.model, info)
        return decide(found, 0 if info is None else info.num_examples)

    def _build(self, decision: Decision) -> PriorRunDistillation | PriorRunWarmStart | None:
        """Return the algorithm that the preset of a situation names."""
        if self.dry_run or not decision.acts:
            return None
        ((name, settings),) = preset(decision.situation).items()
        runs = list(decision.runs)
        if name == "prior_run_warm_start":
            return PriorRunWarmStart(self.archive, runs, dataset=self.dataset, seed=self.seed, **settings)
        return PriorRunDistillation(
            self.archive, runs, keys=self.keys, dataset=self.dataset, seed=self.seed, **settings
        )

    def _follow(self, event: Event, state: State, logger: Logger) -> None:
        """Pass the event on. What the chosen algorithm refuses before the first step is a reason to do nothing."""
        chosen, decision = self.chosen, self.decision
        assert chosen is not None
        assert decision is not None
        earlier = chosen.setup_seconds
        try:
            chosen.apply(event, state, logger)
        except ReuseAlgosError as error:
            # The first loss comes before the first step: nothing has been trained, so plain training is still possible.
            before = event == Event.FIT_START or (event == Event.AFTER_LOSS and int(state.timestamp.batch) == 0)
            if not before:
                raise
            reason = f"{decision}, but it does not fit: {error}"
            self.decision, self.chosen = Decision("nothing", (), reason), None
            self._say("")
            return
        self.prior_runs, self.latest_metrics = chosen.prior_runs, chosen.latest_metrics
        self.batches_applied = chosen.batches_applied
        self.setup_seconds += chosen.setup_seconds - earlier

    def _say(self, how: str) -> None:
        if dist.get_global_rank() == 0:
            print(f"reuse_algos: AutoReuse {how}{self.decision}", file=sys.stderr, flush=True)

    def start(self, state: State) -> None:
        """Do nothing: the chosen algorithm loads what it needs."""

    def extra_flops(self, flops_per_example: int) -> float | None:
        """Return the chosen algorithm's FLOPs."""
        return 0.0 if self.chosen is None else self.chosen.extra_flops(flops_per_example)

    # Record and state -----------------------------------------------------------------------------------------------

    def prior_uses(self) -> list[PriorUse]:
        """Return what the chosen algorithm has used."""
        return [] if self.chosen is None else self.chosen.prior_uses()

    def why(self) -> str | None:
        """Return the decision and its reason, for the run's record."""
        if self.decision is None:
            return None
        more = None if self.chosen is None else self.chosen.why()
        return f"{'would do ' if self.dry_run else ''}{self.decision}" + (f"; {more}" if more else "")

    def state_dict(self) -> dict[str, Any]:
        """Return the decision and the state of the chosen algorithm."""
        decision = None if self.decision is None else dataclasses.asdict(self.decision)
        chosen = None if self.chosen is None else self.chosen.state_dict()
        return {**super().state_dict(), "decision": decision, "chosen": chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the decision of the checkpoint, whatever was archived since."""
        super().load_state_dict(state)
        found = state["decision"]
        self.decision = None if found is None else Decision(found["situation"], tuple(found["runs"]), found["reason"])
        self.chosen, self._resumed = None, state["chosen"]
