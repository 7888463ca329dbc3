"""What all algorithms that spend the archive share."""

from __future__ import annotations

import os
import time
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from composer import Algorithm, State
from composer.loggers import Logger

from reuse_algos.archive import PriorRun, PriorUse, RunArchive
from reuse_algos.data.example_ids import ExampleIds
from reuse_algos.errors import NoEffectWarning
from reuse_algos.priors.choosing import RunSelection, choose_runs, open_archive
from reuse_algos.training.interplay import BatchEffects
from reuse_algos.training.ranks import on_every_rank

__all__ = ["ReusingAlgorithm", "Stopwatch", "snake_case"]


class Stopwatch:
    """Seconds spent in a stretch of work; on a GPU by CUDA events, which do not hold up the stream."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._pending: list[tuple[Any, Any]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Add the time of the ``with`` block."""
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            start, stop = _timing_event(), _timing_event()
            start.record()
            yield
            stop.record()
            self._pending.append((start, stop))
        else:
            began = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - began

    def read(self) -> float:
        """Seconds so far; waits for GPU work that is still under way."""
        for start, stop in self._pending:
            stop.synchronize()
            self.seconds += start.elapsed_time(stop) / 1000.0
        self._pending.clear()
        return self.seconds


def _timing_event() -> Any:
    """A CUDA event; untyped because torch's stubs of it are wrong about record()."""
    return torch.cuda.Event(enable_timing=True)


class ReusingAlgorithm(Algorithm, BatchEffects):
    """Base of the algorithms: opens the archive, pins the prior runs, follows example ids, counts what it did.

    Sub-classes implement :meth:`start` and their own events. What they draw comes from generators seeded by
    ``(seed, number of the batch)``, so there is no generator state to lose on resume.

    Args:
        archive: the archive or its path.
        runs: which prior runs, see :data:`~reuse_algos.priors.choosing.RunSelection`.
        seed: seed of everything this algorithm draws.
        mismatch: ``refuse`` or ``allow`` prior runs on other data or other views.
        id_key: key of the batch that holds the example ids, for iterable datasets.
    """

    place: ClassVar[int] = 0
    """Order among this library's algorithms, all of which run behind the others: lower ones first."""

    def __init__(
        self,
        archive: RunArchive | str | os.PathLike[str],
        runs: RunSelection,
        *,
        seed: int = 0,
        mismatch: str = "refuse",
        id_key: str | int | None = None,
    ) -> None:
        if mismatch not in ("refuse", "allow"):
            raise ValueError(f"mismatch must be 'refuse' or 'allow', got {mismatch!r}")
        self.archive = open_archive(archive)
        self.runs = runs
        self.seed = seed
        self.mismatch = mismatch
        self.ids = ExampleIds(id_key)
        self.prior_runs: list[PriorRun] = []
        self.setup_seconds = 0.0
        self.batches_applied = 0
        self.latest_metrics: dict[str, float] = {}
        self._pinned: list[tuple[str, int]] | None = None

    @abstractmethod
    def start(self, state: State) -> None:
        """Load what is needed from :attr:`prior_runs`. Runs once, at FIT_START."""

    @abstractmethod
    def prior_uses(self) -> list[PriorUse]:
        """What this run has spent of which prior run, for its own record."""

    def why(self) -> str | None:
        """Return what this algorithm decided by itself and why, for the run's record; None where it decided nothing."""
        return None

    def start_afresh(self) -> None:
        """INIT: forget the runs and counts of another Trainer that this algorithm has served."""
        self.prior_runs, self._pinned = [], None
        self.setup_seconds, self.batches_applied, self.latest_metrics = 0.0, 0, {}

    def begin(self, state: State) -> None:
        """FIT_START: pin the prior runs and load from them, timed as set-up."""
        began = time.perf_counter()
        self._pinned = choose_runs(self.archive, self.runs, self._pinned)
        pinned = self._pinned

        def load() -> None:
            self.prior_runs = [self.archive.open_run(run_id, generation) for run_id, generation in pinned]
            self.start(state)

        on_every_rank(load)
        self.setup_seconds += time.perf_counter() - began

    def log_metrics(self, metrics: dict[str, float], logger: Logger) -> None:
        """Hand metrics to the loggers, and to the recorder through :attr:`latest_metrics`."""
        self.latest_metrics = metrics
        logger.log_metrics(metrics)

    def warn_if_idle(self, logger: Logger, why: str) -> None:
        """FIT_END: say so when the algorithm was on and changed nothing."""
        if self.batches_applied == 0:
            warnings.warn(f"{type(self).__name__} had no effect: {why}", NoEffectWarning, stacklevel=2)
        logger.log_metrics({f"reuse/{snake_case(type(self).__name__)}/batches": self.batches_applied})

    def state_dict(self) -> dict[str, Any]:
        """Pinned runs and counters."""
        state = super().state_dict()
        state.update(pinned=self._pinned, batches_applied=self.batches_applied, setup_seconds=self.setup_seconds)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to the runs and counters of the checkpoint."""
        self._pinned = [(str(run_id), int(generation)) for run_id, generation in state["pinned"] or []] or None
        self.batches_applied = int(state["batches_applied"])
        self.setup_seconds = float(state["setup_seconds"])

    def take_place(self, state: State) -> None:
        """INIT: start afresh, and move behind the algorithms of others, to see the loss after MixUp rewrote it.

        This library's own stand there by :attr:`place`, whatever their order in the list: a curriculum's weights go
        into the loss first, then replayed rows, then the distillation term.
        """
        self.start_afresh()
        others = [one for one in state.algorithms if not isinstance(one, ReusingAlgorithm)]
        ours = sorted((one for one in state.algorithms if isinstance(one, ReusingAlgorithm)), key=lambda one: one.place)
        state.algorithms[:] = [*others, *ours]


def snake_case(name: str) -> str:
    """Return the name that recipes and records have for a class: ``AutoReuse`` -> ``auto_reuse``."""
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")
