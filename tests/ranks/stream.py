"""Run under the composer launcher: train on a stream and record its signals; die in mid-epoch where asked to.

With the name of a strategy as third argument a curriculum decides what is shown, and each rank writes that down.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from composer.utils import dist

from reuse_algos import HistoryCurriculum, RunRecorder
from reuse_algos.data.streams import stream_info
from reuse_algos.training.batch_keys import BatchKeys
from streams.shards import BATCH, KEYS, Net, mds_loader
from toy import EndsProcess, checkpointed, trainer


def main() -> None:
    dist.initialize_dist("cpu")
    folder, batch = Path(sys.argv[1]), int(sys.argv[2])
    loader = mds_loader(
        [folder / "a", folder / "b"], workers=2, batch_size=BATCH // dist.get_world_size(), predownload=8
    )
    recorder = RunRecorder(
        folder / "archive",
        run_name="stream",
        signals={"logits": {}, "loss": {}},
        keys=BatchKeys(**KEYS),
        dataset=stream_info(loader.dataset),
    )
    callbacks, algorithms = [recorder, EndsProcess(batch)], []
    if len(sys.argv) > 3:
        from streams.test_steered_streams import SCORES, Watch

        strategy = {"name": sys.argv[3], "keep": 0.6}
        algorithms.append(HistoryCurriculum(folder / "archive", strategy=strategy, score=SCORES))
        callbacks.insert(0, watch := Watch())
    arguments = checkpointed(folder / "save", save_interval="3ba", callbacks=callbacks)
    trainer(loader, Net(), algorithms=algorithms, lr=0.01, max_duration="2ep", **arguments).fit()
    if algorithms:
        torch.save(watch.shown, folder / f"shown-{dist.get_global_rank()}.pt")


if __name__ == "__main__":
    main()
