"""Seconds of training and of evaluation, by a monotonic clock."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

from composer import Event

# Composer's own number is a difference of two times of day: a clock that is set back by an hour, or a laptop that
# sleeps overnight, makes it wrong by as much. perf_counter is monotonic, and on Linux it stands still while the machine
# sleeps.
_STARTS = (Event.EPOCH_START, Event.BEFORE_DATALOADER)


class TrainClock:
    """Counts what Composer's ``total_wct`` counts: from the first batch that is loaded to the end of each batch.

    Evaluation is counted apart. A resumed run goes on from the seconds in its checkpoint.

    The owner passes on every event to :meth:`follow`, before it does anything else.

    Attributes:
        train_seconds: Up to the end of the latest batch, so that all metrics of a step have the same.
        eval_seconds: Up to the end of the latest evaluation. ``Trainer.eval`` outside training does not count.
    """

    def __init__(self) -> None:
        self.train_seconds = self.eval_seconds = 0.0
        self._since: float | None = None
        self._evaluating: float | None = None
        self._standalone = False

    @property
    def running_seconds(self) -> float:
        """Seconds of training up to now, within a batch as well."""
        return self.train_seconds + (0.0 if self._since is None else perf_counter() - self._since)

    def follow(self, event: Event) -> None:
        """Follow an event of the Trainer."""
        if event == Event.FIT_START:
            self._since = None
        elif event in _STARTS and self._since is None:
            self._since = perf_counter()
        elif event == Event.BATCH_END and self._since is not None:
            now = perf_counter()
            self.train_seconds, self._since = self.train_seconds + now - self._since, now
        elif event in (Event.EVAL_STANDALONE_START, Event.EVAL_STANDALONE_END):
            self._standalone = event == Event.EVAL_STANDALONE_START
        elif event == Event.EVAL_BEFORE_ALL:
            self._evaluating = perf_counter()
        elif event == Event.EVAL_AFTER_ALL and self._evaluating is not None:
            taken, self._evaluating = perf_counter() - self._evaluating, None
            if self._since is not None:
                self._since += taken  # the training stood still meanwhile
            if not self._standalone:
                self.eval_seconds += taken

    def state_dict(self) -> dict[str, float]:
        """Return the seconds so far."""
        return {"train_seconds": self.train_seconds, "eval_seconds": self.eval_seconds}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from them."""
        self.train_seconds, self.eval_seconds = float(state["train_seconds"]), float(state["eval_seconds"])
