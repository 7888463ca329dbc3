"""Run under the composer launcher: what this rank replayed, and what became of the model; batch norms under DDP."""

import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from composer.utils import dist

from replaying import conv_net, fit, follow, replay
from reuse_algos.archive import RunArchive


def main() -> None:
    warnings.simplefilter("ignore")
    dist.initialize_dist("cpu")
    folder = Path(sys.argv[1])
    archive = RunArchive(folder / "archive")
    result = follow(archive)
    # Batches without replayed rows, microbatches, both branches: every parameter must have its gradient.
    for mode in ("append", "replace"):
        fit([replay(archive, mode=mode, every_n_batches=2)], conv_net(5), device_train_microbatch_size=4)
        fit([replay(archive, mode=mode, start="1ep")], conv_net(5), max_duration="2ep")
    (folder / f"{dist.get_global_rank()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
