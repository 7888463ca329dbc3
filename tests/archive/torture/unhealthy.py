"""Row 18: runs that diverged or trained nothing are stored exactly, and teach only when they are asked for by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Event, State
from composer.models import ComposerClassifier

from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.errors import RunNotFoundError
from reuse_algos.priors.choosing import select_runs
from toy import epoch_loader, mlp, trainer, viewed

from .outcome import Outcome, Tally, spread

SIGNALS: dict[str, dict[str, Any]] = {"logits": {}, "loss": {}}


class _Breaks(Callback):
    """Puts a value into the weights at an event, or stops the training there."""

    def __init__(self, event: Event, value: float | None) -> None:
        self.event, self.value = event, value
        self.recorder: RunRecorder | None = None

    def run_event(self, event: Event, state: State, logger: Any) -> None:
        del logger
        if event != self.event:
            return
        if self.value is None:
            assert self.recorder is not None
            self.recorder.state_dict()  # as for a checkpoint
            raise KeyboardInterrupt
        for parameter in state.model.parameters():
            parameter.data.view(-1)[0] = self.value


WAYS: dict[str, Callable[[], tuple[_Breaks | None, float]]] = {
    "learning rate too high": lambda: (None, 1e30),
    "NaN in the weights": lambda: (_Breaks(Event.EPOCH_START, math.nan), 0.1),
    "infinity in the weights": lambda: (_Breaks(Event.EPOCH_START, math.inf), 0.1),
    "minus infinity in the weights": lambda: (_Breaks(Event.EPOCH_START, -math.inf), 0.1),
    "stopped before the first batch": lambda: (_Breaks(Event.EPOCH_START, None), 0.1),
}


def case(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """Each way to go wrong (``count`` of them, all for None), beside a run that went well."""
    tally = Tally()
    names = list(WAYS)
    for name in (names[at] for at in spread(len(names), count, seed)):
        tally.tries += 1
        archive = RunArchive(folder / f"archive-{tally.tries}", create=True)
        good, _ = _train(archive, "good", None, 0.1)
        bad, model = _train(archive, "bad", *WAYS[name]())
        _check_stored(archive, bad, model, tally, name)
        _check_choice(archive, good, bad, tally, name)
    return tally.outcome()


def _train(archive: RunArchive, name: str, breaks: _Breaks | None, lr: float) -> tuple[str, ComposerClassifier]:
    recorder = RunRecorder(archive, run_name=name, signals=SIGNALS, weights=("last", "1ep"))
    model = mlp(1)
    if breaks is not None:
        breaks.recorder = recorder
    callbacks = [recorder, *([breaks] if breaks else [])]
    one = trainer(epoch_loader(viewed()), model, callbacks=callbacks, max_duration="2ep", lr=lr)
    with suppress(KeyboardInterrupt):
        one.fit()
    assert recorder.run_id is not None
    return recorder.run_id, model


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _check_stored(archive: RunArchive, run_id: str, model: ComposerClassifier, tally: Tally, name: str) -> None:
    run = archive.run(run_id)
    if run.health == "empty":
        tally.check(
            (run.weight_names, run.signal_names, run.finished) == ([], [], False), f"{name}: something is there"
        )
    else:
        tally.check(run.health == "diverged", f"{name}: its health is {run.health}")
        for key, value in model.state_dict().items():
            stored = run.weights("last")[key.removeprefix("module.") if key not in run.weights("last") else key]
            if not torch.equal(_bits(stored), _bits(value)):
                tally.tear(f"{name}: {key} is not what it was")
        loss = run.metric("loss/train/total").value
        if math.isfinite(loss[-1]):
            tally.tear(f"{name}: the last loss reads as {loss[-1]}")
        if bool(torch.isfinite(run.signal("loss").dense(run.signal("loss").slots[-1])[0]).all()):
            tally.tear(f"{name}: the losses of the examples read as finite")
    for problem in archive.verify(run_id).problems:
        tally.tear(f"{name}: {problem}")


def _check_choice(archive: RunArchive, good: str, bad: str, tally: Tally, name: str) -> None:
    for order in ("first", "latest", "best"):
        metric = {"metric": "loss/train/total"} if order == "best" else {}
        for unfinished in (False, True):
            chosen = [run.id for run in select_runs(archive, {"order": order, "unfinished": unfinished, **metric})]
            tally.check(chosen == [good], f"{name}: {order} chose {chosen}")
        asked = [
            run.id for run in select_runs(archive, {"order": order, "unfinished": True, "unhealthy": True, **metric})
        ]
        expected = [good] if order == "best" else [good, bad] if order == "first" else [bad, good]
        tally.check(asked == expected, f"{name}: {order} chose {asked} when asked for unhealthy ones")
    with suppress(RunNotFoundError):
        tally.miss(f"{name}: {select_runs(archive, {'run_name': 'bad'})} was chosen")
    tally.check([run.id for run in select_runs(archive, bad)] == [bad], f"{name}: it cannot be asked for by its id")
