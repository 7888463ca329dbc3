"""Run under the composer launcher: every strategy's batches and metrics, as this rank saw them."""

import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from composer.utils import dist

from curricula import follow_all
from reuse_algos.archive import RunArchive


def main() -> None:
    warnings.simplefilter("ignore")
    dist.initialize_dist("cpu")
    folder = Path(sys.argv[1])
    result = follow_all(RunArchive(folder / "archive"))
    (folder / f"{dist.get_global_rank()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
