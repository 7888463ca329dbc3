"""Run under the composer launcher: record a run, distil from it, write down which example got which numbers.

The learning rate is 0 and the model has no batch norm, so that every rank computes what one alone would.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from composer.utils import dist
from torch import nn

from reuse_algos.algorithms import PriorRunDistillation
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from toy import NUM_CLASSES, NUM_FEATURES, epoch_loader, trainer, viewed


def _linear(scale: float) -> ComposerClassifier:
    layer = nn.Linear(NUM_FEATURES, NUM_CLASSES)
    with torch.no_grad():
        values = torch.linspace(-scale, scale, layer.weight.numel())
        layer.weight.copy_(values.reshape(layer.weight.shape))
        layer.bias.zero_()
    return ComposerClassifier(layer, num_classes=NUM_CLASSES)


def main() -> None:
    dist.initialize_dist("cpu")
    folder = Path(sys.argv[1])
    recorder = RunRecorder(folder, run_name="prior", signals={"logits": {"last_epochs": 2}, "loss": {}})
    trainer(epoch_loader(viewed()), _linear(1.0), callbacks=[recorder], lr=0.0, max_duration="3ep").fit()
    logged = {}
    for source in ("cached", "live"):
        log = InMemoryLogger()
        student = RunRecorder(folder, run_name=f"student-{source}")
        algorithm = PriorRunDistillation(folder, "prior", source=source, combine="mixup", loss="kl", when={})
        trainer(
            epoch_loader(viewed()), _linear(0.3), algorithms=[algorithm], callbacks=[student], loggers=[log], lr=0.0
        ).fit()
        logged[source] = [float(value) for _, value in log.data["reuse/distillation/loss"]]
    if dist.get_global_rank() == 0:
        run = RunArchive(folder).run("prior")
        signal = run.signal("logits")
        result = {
            "keys": run.keys().tolist(),
            "slots": signal.slots,
            "seen": [int(signal.seen(slot).sum()) for slot in signal.slots],
            "frozen_logits": [signal.dense(slot)[0].float().tolist() for slot in signal.slots],
            "distillation": logged,
        }
        (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
