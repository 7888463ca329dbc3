"""What does ``TrainingInstruments(every="1ep")`` cost, in CPU seconds?

Two trainings of the same network, one with and one without the callback, make their steps in turn in one process with
one thread. Seconds are those of the processor (``time.process_time``) and not of the clock on the wall, since the
machine does other work as well. Two measures of one reading:

- hooks: the seconds inside the callback's own hooks, over the seconds of a step without it;
- in turn: how much longer the steps of an epoch with the callback are than those of the other training's epoch.

The ratio of an epoch follows from the steps that it has: 1 + reading / (steps x step). Here the epochs are shorter than
the one that is stated, so that the measurement takes minutes; each has one reading.

    python benchmarks/instruments_cost.py        # some minutes on one core; tiny_bert needs reuse-algos[nlp]
    python benchmarks/instruments.py --summary

"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from composer import Callback, State, Trainer
from job_runner import ResultsFile, command_line, surroundings
from step_clock import StepClock, epochs_by_turns
from torch.utils.data import DataLoader, Dataset

from reuse_algos.callbacks import TrainingInstruments
from reuse_algos.models import build_model

OUT = Path(__file__).parent / "results" / "instruments.jsonl"
TOKENS, VOCABULARY = 64, 8192
# Model -> batch, steps of a measured epoch, steps of the epoch that is stated, and what that is.
CASES: dict[str, tuple[int, int, int, str]] = {
    "resnet56": (128, 4, 391, "50,000 images"),
    "tiny_bert": (32, 50, 475, "15,218 texts of Debian's fortunes"),
    "tiny_bert_bbc": (32, 50, 50, "1,600 texts of the recipe text/bbc_news"),
}


class Watched(TrainingInstruments):
    """Instruments that count the CPU seconds inside their own hooks."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.hooks: list[float] = []

    def batch_start(self, state: State, logger: Any) -> None:
        """Count what keeping the examples takes, together with :meth:`batch_end`."""
        began = time.process_time()
        super().batch_start(state, logger)
        self.hooks.append(time.process_time() - began)

    def batch_end(self, state: State, logger: Any) -> None:
        """Add what the reading takes."""
        began = time.process_time()
        super().batch_end(state, logger)
        self.hooks[-1] += time.process_time() - began


class Rows(Dataset):
    """Random examples of one kind: images with classes, or texts of which about half are padded."""

    def __init__(self, model: str, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(0, 10, (count,), generator=generator)
        if model == "resnet56":
            self.inputs = torch.randn(count, 3, 32, 32, generator=generator)
        else:
            self.inputs = torch.randint(4, VOCABULARY, (count, TOKENS), generator=generator)
            self.lengths = torch.randint(8, 2 * TOKENS, (count,), generator=generator).clamp_max(TOKENS)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> Any:
        if self.inputs.dim() == 4:
            return self.inputs[row], self.labels[row]
        # As in real texts: most are shorter than the longest, and a model branches on whether one is padded.
        length = int(self.lengths[row])
        mask = (torch.arange(TOKENS) < length).long()
        return {"input_ids": self.inputs[row] * mask, "attention_mask": mask, "labels": self.labels[row]}


class Training:
    """A Trainer that goes on by one epoch at a time."""

    def __init__(self, name: str, batch: int, steps: int, *callbacks: Callback) -> None:
        self.clock = StepClock(time.process_time)
        torch.manual_seed(0)
        kind = name.removesuffix("_bbc")
        if kind == "tiny_bert":
            inputs = {"vocabulary": VOCABULARY, "max_tokens": TOKENS}
            model = build_model({"name": kind, "depth": 1}, num_classes=10, inputs=inputs)
        else:
            model = build_model(kind, num_classes=10, image_shape=(3, 32, 32))
        self.trainer = Trainer(
            model=model,
            train_dataloader=DataLoader(Rows(kind, batch * steps), batch, shuffle=True),
            optimizers=torch.optim.SGD(model.parameters(), lr=0.01),
            max_duration="0ep",
            device="cpu",
            callbacks=[self.clock, *callbacks],
            progress_bar=False,
            auto_log_hparams=False,
        )

    def epoch(self) -> None:
        """Train one more epoch."""
        self.trainer.fit(duration="1ep")


def measure(name: str, epochs: int) -> dict[str, Any]:
    """Return the seconds of readings and of steps."""
    batch, steps, stated, what = CASES[name]
    callback = Watched(every="1ep")
    pair = {"plain": Training(name, batch, steps), "instruments": Training(name, batch, steps, callback)}
    seconds = epochs_by_turns(pair, epochs, threads=1)
    # The clock leaves out the last step of an epoch; the first one has the reading.
    each = {key: [sum(v[k * (steps - 1) : (k + 1) * (steps - 1)]) for k in range(epochs)] for key, v in seconds.items()}
    return {
        "what": "cost",
        "model": name,
        "batch": batch,
        "examples": min(callback.examples, batch),
        "epoch": stated,
        "of": what,
        "hooks": [value for index, value in enumerate(callback.hooks) if index % steps == 0][1:],
        "plain_steps": seconds["plain"],
        "extra": [with_ - without for with_, without in zip(each["instruments"], each["plain"], strict=True)],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and append a line for each model; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", default=str(OUT))
    options = parser.parse_args(argv)
    out = ResultsFile(options.out)
    for name in options.models:
        record = measure(name, options.epochs)
        out.append({**record, **surroundings(), "command": command_line(__file__)})
        print(name, record["hooks"], record["plain_steps"], record["extra"], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
