"""Run under the composer launcher: trains with gradient interpolation and writes its steps in time and weights."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from composer.utils import dist

from timed import timed_trainer


def main() -> None:
    dist.initialize_dist("cpu")
    trainer, algorithm = timed_trainer()
    trainer.fit()
    weights = [round(float(p.detach().double().sum()), 4) for p in trainer.state.model.parameters()]
    out = Path(sys.argv[1]) / f"{dist.get_world_size()}-{dist.get_global_rank()}.json"
    out.write_text(json.dumps({"delta": algorithm.delta, "weights": weights}))


if __name__ == "__main__":
    main()
