"""Run under the composer launcher: what this rank replayed, and what became of the model; batch norms under DDP."""

import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from composer.utils import dist

from replaying import follow, follow_branches, follow_part
from reuse_algos.archive import RunArchive


def main() -> None:
    warnings.simplefilter("ignore")
    dist.initialize_dist("cpu")
    folder = Path(sys.argv[1])
    archive = RunArchive(folder / "archive", create=True)
    result = {
        "follow": follow(archive),
        "part": follow_part(archive),
        "branches": follow_branches(archive),
    }
    (folder / f"{dist.get_global_rank()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
