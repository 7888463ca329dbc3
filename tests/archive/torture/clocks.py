"""Row 26: the clock of the host is set forward or back while a run trains, and its seconds stay those that passed."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from composer import Callback, Event, State
from composer.trainer import trainer as composer_trainer
from torch.utils.data import DataLoader

from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from toy import blobs, epoch_loader, mlp, trainer, viewed

from ..small_runs import MONITOR
from .outcome import Outcome, Tally, spread

STEPS = tuple(
    itertools.product(
        (-3600, 3600, -86_400, 86_400),
        (Event.EPOCH_START, Event.BEFORE_FORWARD, Event.BATCH_END, Event.EVAL_BEFORE_ALL),
    )
)
"""By how many seconds the clock is set, and at which event of the second epoch."""


class _Stepped(Callback):
    """The clock of the host as Python and Composer see it; it is set once, in the second epoch."""

    def __init__(self, seconds: int, event: Event) -> None:
        self.seconds, self.event, self.offset = seconds, event, 0

    def run_event(self, event: Event, state: State, logger: Any) -> None:
        del logger
        if event == self.event and int(state.timestamp.epoch) == 1:
            self.offset = self.seconds

    @contextlib.contextmanager
    def clock(self) -> Iterator[None]:
        real, now = time.time, datetime.datetime.now
        days = SimpleNamespace(
            datetime=SimpleNamespace(now=lambda *zone: now(*zone) + datetime.timedelta(seconds=self.offset)),
            timedelta=datetime.timedelta,
        )
        with (
            mock.patch.object(time, "time", side_effect=lambda: real() + self.offset),
            mock.patch.object(composer_trainer, "datetime", days),
        ):
            yield


def case(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """Each step of the clock (``count`` of them, all for None) in a training of three epochs with evaluations."""
    tally = Tally()
    for seconds, event in (STEPS[at] for at in spread(len(STEPS), count, seed)):
        tally.tries += 1
        _try(folder / f"archive-{tally.tries}", _Stepped(seconds, event), tally)
    return tally.outcome()


def _try(root: Path, stepped: _Stepped, tally: Tally) -> None:
    what = f"{stepped.seconds} s at {stepped.event.value}"
    recorder = RunRecorder(root, run_name="stepped")
    with stepped.clock():
        one = trainer(
            epoch_loader(viewed()),
            mlp(1),
            callbacks=[stepped, recorder],
            eval_dataloader=DataLoader(blobs(32, seed=9), batch_size=32),
            max_duration="3ep",
        )
        began = time.perf_counter()
        one.fit()
        passed = time.perf_counter() - began
        by_composer = one.state.timestamp.total_wct
        one.close()
    # A step within an evaluation is none of Composer's training time; any other shows there.
    shown = stepped.event == Event.EVAL_BEFORE_ALL or abs(by_composer.total_seconds() - stepped.seconds) < 60 + passed
    tally.check(shown, f"{what}: the clock was not set: Composer counted {by_composer}")
    archive = RunArchive(root)
    runs = archive.runs(run_name="stepped")
    if [run.id for run in runs] != [recorder.run_id]:
        tally.lose(f"{what}: {[run.id for run in runs]} for {recorder.run_id}")
        return
    cost, history = runs[0].manifest.cost, runs[0].metric(MONITOR)
    tally.most("most seconds beyond those that passed", cost.train_seconds + cost.eval_seconds - passed)
    if min(cost.train_seconds, cost.eval_seconds) <= 0 or cost.train_seconds + cost.eval_seconds > passed:
        tally.tear(f"{what}: {cost} in {passed} s")
    steps = history.train_seconds.tolist()
    if steps != sorted(steps) or not 0 < steps[0] <= steps[-1] <= cost.train_seconds:
        tally.tear(f"{what}: {steps} of {cost.train_seconds} s")
    tally.check(archive.verify().ok, f"{what}: {archive.verify().problems[:1]}")
