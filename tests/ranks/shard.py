"""Run under the composer launcher: record and distil with the model sharded by FSDP, and what is refused with it.

FSDP of torch's second version, which also shards on the CPU.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from composer.loggers import InMemoryLogger
from composer.utils import dist
from composer.utils.parallelism import FSDP2Config
from torch import nn
from torch.distributed.tensor import DTensor

from reuse_algos.algorithms import PriorRunDistillation, PriorRunWarmStart
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import GradientCompression, RunRecorder
from reuse_algos.errors import ReuseAlgosError
from toy import NUM_CLASSES, NUM_FEATURES, blobs, epoch_loader, trainer


def _model() -> Any:
    import torch
    from composer.models import ComposerClassifier

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(NUM_FEATURES, 16), nn.ReLU(), nn.Linear(16, NUM_CLASSES))
    return ComposerClassifier(net, num_classes=NUM_CLASSES)


def _fit(folder: Path, name: str, *, sharded: bool, **settings: Any) -> dict[str, Any]:
    """Train, and return the losses of this rank and whether the parameters were in parts."""
    log = InMemoryLogger()
    parallel = {"parallelism_config": {"fsdp": FSDP2Config()}} if sharded else {}
    distillation = PriorRunDistillation(folder, "teacher", source="cached", loss="mse", when={})
    settings = {
        "algorithms": [distillation],
        "callbacks": [RunRecorder(folder, run_name=name, weights=[], signals={"logits": {}})],
        **settings,
    }
    one = trainer(epoch_loader(blobs()), _model(), loggers=[log], **parallel, **settings)
    one.fit()
    parts = all(isinstance(parameter, DTensor) for parameter in one.state.model.parameters())
    one.close()
    logged = {key: [float(value) for _, value in log.data[key]] for key in log.data if key.startswith("loss/train")}
    logged["distillation"] = [float(value) for _, value in log.data.get("reuse/distillation/loss", [])]
    return {"parts": parts, "losses": logged}


def _refusal(folder: Path, **settings: Any) -> str:
    try:
        _fit(folder, "refused", sharded=True, **settings)
    except ReuseAlgosError as error:
        return f"{type(error).__name__}: {error}"
    return "trained"


def main() -> None:
    warnings.simplefilter("ignore")
    dist.initialize_dist("cpu")
    folder = Path(sys.argv[1])
    found: dict[str, Any] = {}
    for sharded, name in ((False, "whole"), (True, "sharded")):
        # Without steps: gloo of torch 2.7 adds up where FSDP asks it for the mean, so weights are not those of DDP.
        found[name] = _fit(folder, name, sharded=sharded, lr=0.0)
    recorder = RunRecorder(folder, run_name="recorded", weights=[], signals={"logits": {}, "loss": {}})
    found["plain"] = _fit(folder, "plain", sharded=True, algorithms=[], callbacks=[])
    found["recorded"] = _fit(folder, "recorded", sharded=True, algorithms=[], callbacks=[recorder])
    found["weights"] = _refusal(folder, algorithms=[], callbacks=[RunRecorder(folder, run_name="refused")])
    found["warm start"] = _refusal(folder, algorithms=[PriorRunWarmStart(folder, "teacher")], callbacks=[])
    found["compression"] = _refusal(folder, algorithms=[], callbacks=[GradientCompression(method="fp16")])
    if dist.get_global_rank() == 0:
        found["runs"] = RunArchive(folder).run_ids()
        (folder / "result.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
