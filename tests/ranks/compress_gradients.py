"""Run under the composer launcher: exchanges gradients in all ways and writes what came of it."""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from composer.utils import dist
from torch.utils.data import TensorDataset

from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import GradientCompression, RunRecorder
from reuse_algos.callbacks.gradient_compression.exchange import agree_by_median, agree_by_sign, scalecom
from reuse_algos.errors import ModelError, PriorRunMismatchError
from toy import blobs, checkpointed, epoch_loader, mlp, trainer


def rows(seed: int, size: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * dist.get_global_rank() + seed)
    return torch.randn(size, generator=generator, dtype=torch.float64)


def error_feedback() -> float:
    """How far the summed gradients' mean is from what was sent and what is remembered."""
    memory, sent, total = [torch.zeros(40, dtype=torch.float64)], torch.zeros(40), torch.zeros(40)
    sent, total = sent.double(), total.double()
    for step in range(12):
        gradient = rows(step)
        found = scalecom([gradient], memory, leader=step % dist.get_world_size(), ratio=8, beta=1.0)
        memory, sent = found.memory, sent + found.gradients[0]
        total = total + gradient
    both = torch.stack([total, memory[0]]) / dist.get_world_size()
    torch.distributed.all_reduce(both)
    return float((both[0] - sent - both[1]).abs().max())


def formula() -> float:
    """How far a step with a filter is from the paper's formula, computed from everybody's rows."""
    everyone = [torch.empty(40, dtype=torch.float64) for _ in range(dist.get_world_size())]
    gradient, memory = rows(1), rows(2)
    torch.distributed.all_gather(everyone, gradient + memory)
    chosen = everyone[1].abs().topk(5).indices
    expected = torch.zeros(40, dtype=torch.float64)
    expected[chosen] = torch.stack(everyone).mean(0)[chosen]
    rest = gradient + memory
    rest[chosen] = 0
    found = scalecom([gradient], [memory], leader=1, ratio=8, beta=0.3)
    wrong = (found.gradients[0] - expected).abs().max() + (found.memory[0] - (0.7 * memory + 0.3 * rest)).abs().max()
    return float(wrong)


def votes() -> dict[str, Any]:
    value = [
        torch.tensor([1.0, -2.0, 5.0, 0.0]),
        torch.tensor([-9.0, -1.0, 5.0, 0.0]),
        torch.tensor([3.0, 1.0, -5.0, 0.0]),
    ]
    own, none = [value[dist.get_global_rank()]], [torch.zeros(4)]
    sign, median = agree_by_sign(own, none, 0.5), agree_by_median(own, none)
    return {
        "sign": sign.gradients[0].tolist(), "sign_bytes": sign.bytes,
        "median": median.gradients[0].tolist(), "median_bytes": median.bytes,
    }  # fmt: skip


def fitted(method: Any, folder: Path | None = None, duration: str | None = None, **arguments: Any) -> Any:
    data = blobs(48)
    double = TensorDataset(data.tensors[0].double(), data.tensors[1])
    callbacks = [] if method is None else [GradientCompression(method)]
    more = {} if folder is None else checkpointed(folder, save_interval="3ba")
    one = trainer(
        epoch_loader(double, batch_size=12), mlp().double(), callbacks=[*callbacks, *arguments.pop("more", [])],
        max_duration="2ep", **more, **arguments,
    )  # fmt: skip
    one.fit() if duration is None else one.fit(duration=duration)
    one.close()
    return one, callbacks[0] if callbacks else None


def weights(one: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in one.state.model.parameters()]


def equal(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def refusal(**arguments: Any) -> str:
    try:
        fitted("scalecom", **arguments)
    except (ModelError, PriorRunMismatchError) as error:
        return str(error)
    return ""


def main() -> None:
    dist.initialize_dist("cpu")
    here = Path(sys.argv[1])
    found: dict[str, Any] = {"feedback": error_feedback(), "formula": formula(), **votes()}
    plain, _ = fitted(None)
    whole, _ = fitted({"name": "scalecom", "ratio": 1})
    found["ratio_1_is_all_reduce"] = equal(plain, whole)
    found["bytes"] = {}
    methods = {"scalecom": {"name": "scalecom", "ratio": 10}, "sign": {"name": "sign", "noise": 0.1, "scale": 0.01},
               "median": {"name": "median", "noise": 0.1}, "powersgd": "powersgd", "fp16": "fp16"}  # fmt: skip
    for name, method in methods.items():
        archive = here / f"archive-{name}"
        recorder = RunRecorder(str(archive), run_name=name, weights=[])
        one, callback = fitted(method, more=[recorder])
        copies = dist.all_gather_object([value.tolist() for value in weights(one)])
        recorded = RunArchive(archive).run(name).metric("reuse/gradient_compression/bytes").value.tolist()
        finite = all(bool(value.isfinite().all()) for value in weights(one))
        found["bytes"][name] = {
            "recorded": recorded,
            "alike": all(copy == copies[0] for copy in copies),
            "finite": finite,
        }
        found["bytes"][name]["changed"] = not equal(plain, one)
    for name in ("scalecom", "sign", "median"):
        straight, _ = fitted(methods[name], here / f"straight-{name}")
        fitted(methods[name], here / f"stopped-{name}", duration="3ba")
        resumed, callback = fitted(methods[name], here / f"stopped-{name}")
        found[f"resumed_{name}"] = equal(straight, resumed)
        if name == "scalecom":
            found["remembers"] = any(bool(value.any()) for value in callback.memory.values())
    found["forced"] = refusal(ddp_sync_strategy="forced_sync")
    found["multi"] = refusal(ddp_sync_strategy="multi_auto_sync", device_train_microbatch_size=2)
    try:
        fitted("sign", here / "stopped-scalecom")
        found["other"] = ""
    except PriorRunMismatchError as error:
        found["other"] = str(error)
    (here / f"{dist.get_global_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
