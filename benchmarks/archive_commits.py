"""What very many commits of one small run take: bytes and seconds at the start and at the end.

Each commit adds one signal of two rows and a new history of one metric, as a run does that records every epoch. Run it
from a checkout::

    python benchmarks/archive_commits.py --commits 10000 --output benchmarks/results/archive_commits.jsonl

The line has ``bytes`` of manifests and their parts, ``bytes_of_data`` of signals and metrics, the median milliseconds
of a commit (its data files not counted) over the first and the last tenth, their ``ratio``, and what reading the last
generation takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from archive_torture import header

from reuse_algos.archive import DatasetRecord, FileEntry, Manifest, MetricHistory, RunArchive, history_tensors

METRIC = "metrics/eval/MulticlassAccuracy"


def measure(folder: Path, commits: int) -> dict[str, Any]:
    """Commit so often, and return what that took."""
    archive = RunArchive(folder, create=True)
    writer = archive.start_run("small")
    positions = torch.arange(2)
    dataset = DatasetRecord(name="toy", num_examples=2, fingerprint="f" * 64, num_classes=2)
    signals: list[FileEntry] = [writer.put("dataset", "examples", {"keys": positions, "labels": positions})]
    seconds = []
    for epoch in range(commits):
        meta = {"slot": epoch, "epoch": epoch, "view": epoch, "source": "capture", "encoding": "dense"}
        values = torch.tensor([epoch, 1.0]) / 3
        signals.append(writer.put("signals", "loss", {"ids": positions, "values": values}, meta))
        column = torch.tensor([float(epoch)], dtype=torch.float64).numpy()
        history = writer.put("metrics", "history", history_tensors({METRIC: MetricHistory(*[column] * 6)}))
        manifest = Manifest(dataset=dataset, monitor=METRIC, tags={"study": "commits"}, files=[history, *signals])
        began = time.perf_counter()
        writer.commit(manifest)
        seconds.append(time.perf_counter() - began)
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    manifests = sum(size for path, size in sizes.items() if "parts" in path.parts or "manifests" in path.parts)
    tenth = max(1, commits // 10)
    first, last = (1000 * statistics.median(part) for part in (seconds[:tenth], seconds[-tenth:]))
    began = time.perf_counter()
    files = len(RunArchive(folder).run(writer.run_id).manifest.files)
    return {
        "commits": commits,
        "bytes": manifests,
        "bytes_of_data": sum(sizes.values()) - manifests,
        "first_ms": round(first, 3),
        "last_ms": round(last, 3),
        "ratio": round(last / first, 3),
        "read_seconds": round(time.perf_counter() - began, 3),
        "files": files,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", type=int, default=10_000, help="default 10000")
    parser.add_argument("--output", type=Path, help="also append the lines to this file")
    arguments = parser.parse_args()
    arguments.scale, arguments.seed = 1.0, 0
    with tempfile.TemporaryDirectory(prefix="archive_commits-") as folder:
        facts = header(arguments, "archive_commits")
        lines = [facts, measure(Path(folder, "archive"), arguments.commits)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    print(text, end="")
    if arguments.output is not None:
        with arguments.output.open("a") as output:
            output.write(text)


if __name__ == "__main__":
    main()
