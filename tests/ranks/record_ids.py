"""Run under the composer launcher: writes the ids of every batch of this rank."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from composer.utils import dist

from reuse_algos.data.sampler import EpochSampler
from toy import NumberedDataset, Spy, loader, trainer


def main() -> None:
    dist.initialize_dist("cpu")
    spy = Spy()
    data = loader(
        NumberedDataset(24), batch_size=8 // dist.get_world_size(), sampler=EpochSampler(24, seed=5), drop_last=True
    )
    trainer(data, algorithms=[spy], device_train_microbatch_size=2).fit()
    batches: dict[int, list[int]] = {}
    for batch, ids in spy.seen:
        batches.setdefault(batch, []).extend(ids)
    out = Path(sys.argv[1]) / f"{dist.get_world_size()}-{dist.get_global_rank()}.json"
    out.write_text(json.dumps([batches[b] for b in sorted(batches)]))


if __name__ == "__main__":
    main()
