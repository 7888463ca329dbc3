"""What all algorithms that read the archive share."""

from __future__ import annotations

import os
import re
import sys
import time
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from composer import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist

from reuse_algos.archive import PriorRun, PriorUse, RunArchive
from reuse_algos.data.example_ids import ExampleIds
from reuse_algos.errors import ExampleIdError, NoEffectWarning
from reuse_algos.priors.choosing import RunSelection, choose_runs, open_archive, split_if_empty
from reuse_algos.training.interplay import BatchEffects
from reuse_algos.training.ranks import on_every_rank, on_rank_zero


class Stopwatch:
    """The seconds that a stretch of work takes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._pending: list[tuple[Any, Any]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Add the time of the ``with`` block."""
        # CUDA events are read later, so that the stream does not have to wait for the clock.
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
        """Return the seconds so far; waits for GPU work that is still under way."""
        for start, stop in self._pending:
            stop.synchronize()
            self.seconds += start.elapsed_time(stop) / 1000.0
        self._pending.clear()
        return self.seconds


def _timing_event() -> Any:
    """Return a CUDA event that can be timed."""
    # Untyped because torch's stubs of it are wrong about record().
    return torch.cuda.Event(enable_timing=True)


class ReusingAlgorithm(Algorithm, BatchEffects):
    """Base of the algorithms: opens the archive, pins the prior runs, follows example ids, counts what it did.

    Sub-classes implement :meth:`start` and their own events. What they draw is a function of the seed and of numbers
    that a checkpoint has (batch, epoch, example), so a resumed run draws the same.

    Args:
        archive: The archive or its path.
        runs: Which prior runs, see :data:`~reuse_algos.priors.choosing.RunSelection`. A query with ``if_empty: skip``
            trains without them where nothing matches, and makes the archive where there is none.
        seed: Seed of everything this algorithm draws. Default: 0.
        mismatch: ``refuse`` or ``allow`` prior runs on other data or other views. Default: ``refuse``.
        id_key: Key of the batch that holds the example ids, for iterable datasets. Default: none.

    Raises:
        ValueError: ``mismatch`` is neither of the two.
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
        self.runs, self._may_skip = split_if_empty(runs)
        # The first run of all has no archive to read yet.
        self.archive = open_archive(archive, create=self._may_skip)
        self.skipped: str | None = None
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
        """Return what this run used of which prior run, for its own record."""

    def why(self) -> str | None:
        """Return what this algorithm decided by itself and why, for the run's record; None where it decided nothing."""
        return None

    def start_afresh(self) -> None:
        """Forget the runs and counts of another Trainer that this algorithm has served (INIT)."""
        self.prior_runs, self._pinned = [], None
        self.setup_seconds, self.batches_applied, self.latest_metrics = 0.0, 0, {}
        self.skipped = self._why_skip() if self._may_skip else None

    def _why_skip(self) -> str | None:
        """Return that there is nothing to learn from yet, and say so; None where a run matches."""
        query: Any = self.runs
        if on_rank_zero(lambda: bool(self.archive.runs(**{**query, "limit": 1}))):
            return None
        why = f"nothing to learn from yet: no finished run in {self.archive.location} matches {query}"
        if dist.get_global_rank() == 0:
            print(f"reuse_algos: {type(self).__name__} skips this run, {why}", file=sys.stderr, flush=True)
        return why

    def stands_aside(self, event: Event) -> bool:
        """Return whether to do nothing at this event: always but at the next Trainer's INIT, once skipped."""
        return self.skipped is not None and event != Event.INIT

    def begin(self, state: State) -> None:
        """Pin the prior runs and load from them, timed as set-up (FIT_START)."""
        began = time.perf_counter()
        # A resumed run reads the runs that it began with, also where the query would find better ones by now.
        self._pinned = choose_runs(self.archive, self.runs, self._pinned)
        pinned = self._pinned

        def load() -> None:
            self.prior_runs = [self.archive.open_run(run_id, generation) for run_id, generation in pinned]
            self.start(state)

        # On every rank, so that an error of one reaches all of them and not a time-out.
        on_every_rank(load)
        self.setup_seconds += time.perf_counter() - began

    def log_metrics(self, metrics: dict[str, float], logger: Logger) -> None:
        """Give metrics to the loggers, and to the recorder through :attr:`latest_metrics`."""
        self.latest_metrics = metrics
        logger.log_metrics(metrics)

    def warn_if_idle(self, logger: Logger, why: str) -> None:
        """Warn that the algorithm was on and changed nothing (FIT_END)."""
        # A technique that did nothing would otherwise count as one that does not help.
        if self.batches_applied == 0:
            warnings.warn(f"{type(self).__name__} had no effect: {why}", NoEffectWarning, stacklevel=2)
        logger.log_metrics({f"reuse/{snake_case(type(self).__name__)}/batches": self.batches_applied})

    def state_dict(self) -> dict[str, Any]:
        """Return the pinned runs and the counters."""
        state = super().state_dict()
        state.update(pinned=self._pinned, batches_applied=self.batches_applied, setup_seconds=self.setup_seconds)
        state["skipped"] = self.skipped
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the runs and counters of the checkpoint."""
        self._pinned = [(str(run_id), int(generation)) for run_id, generation in state["pinned"] or []] or None
        self.batches_applied = int(state["batches_applied"])
        self.setup_seconds = float(state["setup_seconds"])
        # What began without prior runs goes on without them, whatever was archived since.
        self.skipped = state["skipped"]

    def take_place(self, state: State) -> None:
        """Forget another Trainer, and move behind the algorithms of others (INIT).

        This library's algorithms stand there by :attr:`place`, whatever their order in the list.
        """
        self.start_afresh()
        # Behind MixUp and LabelSmoothing, which rewrite the loss at the same event. A curriculum's weights go into the
        # loss first, then replayed rows, then the distillation term, as each reads what the one before left.
        others = [one for one in state.algorithms if not isinstance(one, ReusingAlgorithm)]
        ours = sorted((one for one in state.algorithms if isinstance(one, ReusingAlgorithm)), key=lambda one: one.place)
        state.algorithms[:] = [*others, *ours]


def refuse_another(state: State, kind: type, what: str, several: str) -> None:
    """Refuse a second algorithm of a kind of which a run can have one.

    Args:
        state: Of the trainer.
        kind: The class, sub-classes included.
        what: What only one can do, after "only one can".
        several: What the one that is kept can put together, such as ``several runs``.

    Raises:
        ExampleIdError: There are two.
    """
    if sum(isinstance(algorithm, kind) for algorithm in state.algorithms) > 1:
        raise ExampleIdError(
            f"there are two {kind.__name__} algorithms, and only one can {what}. Keep one of them; {several} come "
            "together in its runs."
        )


def snake_case(name: str) -> str:
    """Return the name that recipes and records have for a class: ``AutoReuse``: ``auto_reuse``, ``EMA``: ``ema``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
