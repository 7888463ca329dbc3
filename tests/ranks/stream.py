"""Run under the composer launcher: train on a stream and record its signals; die in mid-epoch where asked to."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from composer.utils import dist

from reuse_algos import RunRecorder
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
    callbacks = [recorder, EndsProcess(batch)]
    arguments = checkpointed(folder / "save", save_interval="3ba", callbacks=callbacks)
    trainer(loader, Net(), lr=0.01, max_duration="2ep", **arguments).fit()


if __name__ == "__main__":
    main()
