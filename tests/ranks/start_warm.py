"""Run under the composer launcher: warm starts whose weights and gradients every rank writes down."""

import contextlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from composer.utils import dist

from reuse_algos.archive import RunArchive
from toy import checkpointed, epoch_loader, mlp, trainer
from warming import Named, Stop, Weights, same, warm

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "frozen": {"freeze": "backbone"},
    "perturbed": {"head": "reset", "perturb": 0.2, "shrink": 0.5},
    "thawed": {"freeze": "backbone", "learning_rates": {"backbone": 0.5}, "unfreeze_at": "3ba"},
}


def run(archive: RunArchive, settings: dict[str, Any], *others: Any, **arguments: Any) -> Weights:
    weights = Weights()
    one = trainer(
        epoch_loader(Named()),
        mlp(5 + dist.get_global_rank()),  # DDP gives every rank what the first one has
        algorithms=[warm(archive, **settings), *others],
        callbacks=[weights],
        **arguments,
    )
    with contextlib.suppress(KeyboardInterrupt):
        one.fit()
    one.close()
    return weights


def main() -> None:
    warnings.simplefilter("ignore")
    dist.initialize_dist("cpu")
    archive, folder = RunArchive(sys.argv[1]), Path(sys.argv[2])
    tensors: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for case, settings in CASES.items():
        seen = run(archive, settings, max_duration="2ep" if case == "thawed" else "2ba")
        tensors[case] = {"first": seen.first, "last": seen.later[-1]}
        facts[case] = [sorted(names) for names in seen.with_gradient]
    # Stopped after everything trains again (the last checkpoint is of the fourth batch), and resumed.
    straight = run(archive, CASES["thawed"], **checkpointed(folder / "straight", save_interval="2ba"))
    run(archive, CASES["thawed"], Stop(5), **checkpointed(folder / "stopped", save_interval="2ba"))
    dist.barrier()
    later = run(archive, CASES["thawed"], **checkpointed(folder / "stopped", save_interval="2ba"))
    equal = len(later.later) == 4 and same(later.later[-1], straight.later[-1])
    facts["resumed"] = all(dist.all_gather_object(equal))
    torch.save(tensors, folder / f"{dist.get_global_rank()}.pt")
    if dist.get_global_rank() == 0:
        (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
