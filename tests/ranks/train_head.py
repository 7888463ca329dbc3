"""Run under the composer launcher: a head on live and on cached features, whose losses every rank writes down."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from composer.utils import dist

from features import head_of_blobs
from reuse_algos.archive import RunArchive

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "microbatches": {"device_train_microbatch_size": 3},
    "compiled": {"compile_config": {"backend": "aot_eager"}},
}


def main() -> None:
    warnings.simplefilter("ignore")
    dist.initialize_dist("cpu")
    archive, facts = RunArchive(sys.argv[1]), {}
    for case, arguments in CASES.items():
        facts[case] = []
        for source in ("live", "cached"):
            one, steps = head_of_blobs(archive, settings={"source": source}, **arguments)
            one.fit()
            one.close()
            facts[case].append(
                {
                    "losses": steps.losses,
                    "shapes": sorted({shape[1] for shape in steps.shapes}),
                    "head": steps.weights[-1]["module.3.weight"].flatten().tolist(),
                }
            )
    Path(sys.argv[2], f"{dist.get_global_rank()}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
