"""What an archive of very many runs, or a run of very many commits, takes.

A generator makes the runs as a writer would leave them: one manifest, a history of two metrics, and the record that the
run ended. Each measurement is a process of its own, which has imported the library before the clock starts. Run it
from a checkout::

    python benchmarks/archive_scale.py select --runs 1000,100000 --output benchmarks/results/archive_scale.jsonl
    python benchmarks/archive_scale.py compare --runs 20000 --output benchmarks/results/archive_scale.jsonl
    python benchmarks/archive_scale.py s3 --runs 5000 --output benchmarks/results/archive_scale.jsonl
    python benchmarks/archive_scale.py commits --runs 10000 --output benchmarks/results/archive_scale.jsonl

``select`` takes the five best by a tag and a metric; ``first`` and ``again`` are seconds of the processor, ``peak_mib``
the largest resident memory and ``base_mib`` what of it was there before. ``compare`` and ``recommend`` read every run.
``s3`` counts the requests to a local server. ``commits`` commits one small run so often: each commit adds a signal of
two rows and a new history of one metric, as a run does that records every epoch. Its line has the ``bytes`` of
manifests and their parts, ``bytes_of_data`` of signals and metrics, the milliseconds of the processor that a commit
takes (its data files not counted) as the median of each tenth, and the ``ratio`` of the last tenth to the first.
``load_average`` is the processes that wanted to run beside it: seconds of the processor are longer on a busy machine.
``--made`` names archives that were made before, so that making 100,000 runs is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from archive_torture import ROOT, header

METRIC = "metrics/eval/MulticlassAccuracy"
METHODS = ("baseline", "distilled", "pruned", "warm")
BUDGETS = (5, 10, 20)


def make_runs(folder: Path, count: int) -> None:
    """Write an archive of so many ended runs, and its index."""
    import numpy as np

    from reuse_algos.archive import (
        CostRecord,
        FileEntry,
        Manifest,
        MetricHistory,
        RunArchive,
        describe,
        history_tensors,
    )
    from reuse_algos.archive.format.envelope import seal
    from reuse_algos.archive.format.manifest import encode_manifest
    from reuse_algos.archive.format.metrics import final_meta
    from reuse_algos.archive.format.names import data_path, final_path, manifest_path
    from reuse_algos.archive.format.records import FinalRecord, Progress
    from reuse_algos.archive.format.tensors import hash_chunks, tensor_chunks
    from reuse_algos.archive.index.update import update_index

    archive = RunArchive(folder, create=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        method, budget = METHODS[number % len(METHODS)], BUDGETS[number // len(METHODS) % len(BUDGETS)]
        steps = np.arange(1, budget + 1)
        best = 0.6 + 0.1 * (method != "baseline") + 0.01 * budget + draw.normal(0, 0.02)
        values = best * (1 - 0.5**steps)
        history = MetricHistory(10 * steps, 640 * steps, steps, 1.5 * steps, 0.1 * steps, values)
        tensors = history_tensors({METRIC: history, "loss/train/total": history._replace(value=1 - values)})
        chunks = tensor_chunks(tensors)
        size, sha256 = hash_chunks(chunks)
        run_id = f"run-{number:08x}"
        entry = FileEntry(
            kind="metrics", name="history", path=data_path("metrics", "history", 1, sha256), bytes=size,
            sha256=sha256, tensors=describe(tensors), meta=final_meta(tensors),
        )  # fmt: skip
        manifest = Manifest(
            archive_id=archive.archive_id, run_id=run_id, run_name=f"{method}-{number}", generation=1,
            attempt=1, write_id="w", committed_at="2026-01-02",
            created_at=f"2026-01-01T00:00:{number % 60:02d}.{number:06d}+00:00",
            tags={"method": method, "study": f"s{number // 1000}", "seed": str(number)}, seed=number,
            recipe={"max_duration": f"{budget}ep", "optimizer": {"name": "sgd", "lr": 0.1}}, monitor=METRIC,
            progress=Progress(epoch=budget, batch=10 * budget, sample=640 * budget),
            cost=CostRecord(train_seconds=1.5 * budget, train_flops=1e9 * budget), files=[entry],
        )  # fmt: skip
        final = FinalRecord(run_id=run_id, generation=1, ended_at="2026-01-02T00:00:00+00:00")
        sealed = {
            f"runs/{run_id}/{entry.path}": b"".join(chunks),
            manifest_path(run_id, 1): encode_manifest(manifest),
            final_path(run_id): seal(final, "final.json"),
        }
        for path, data in sealed.items():
            where = folder / path
            where.parent.mkdir(parents=True, exist_ok=True)
            where.write_bytes(data)
    update_index(archive._store, archive.archive_id, everything=True)


def select(folder: str) -> dict[str, Any]:
    """Choose five runs twice, in this process."""
    from reuse_algos.archive import RunArchive

    facts: dict[str, Any] = {"base_mib": _peak_mib()}
    for name in ("first", "again"):
        began, wall = time.process_time(), time.perf_counter()
        chosen = RunArchive(folder).runs(tags={"method": "distilled"}, order="best", metric=METRIC, limit=5)
        facts[name] = round(time.process_time() - began, 3)
        facts[f"{name}_wall"] = round(time.perf_counter() - wall, 3)
        facts["peak_mib"] = _peak_mib()
    return {**facts, "chosen": [run.id for run in chosen]}


def compare(folder: str) -> dict[str, Any]:
    """Compare and recommend over all runs, and write the page."""
    from reuse_algos.archive import RunArchive
    from reuse_algos.compare import Question, read_outcomes, recommend
    from reuse_algos.compare import compare as compare_runs
    from reuse_algos.compare.show.page import report_page

    facts: dict[str, Any] = {"base_mib": _peak_mib()}

    def timed(name: str, action: Callable[[], Any]) -> Any:
        began = time.process_time()
        found = action()
        facts[f"{name}_seconds"] = round(time.process_time() - began, 2)
        facts[f"{name}_peak_mib"] = _peak_mib()
        return found

    question = Question(over="budgets", target=0.75)
    outcomes = timed("read", lambda: read_outcomes(RunArchive(folder), question))
    timed("recommend", lambda: recommend(outcomes, question))
    question = Question(target=0.65)
    comparison = timed("compare", lambda: compare_runs(outcomes, question))
    facts["page_bytes"] = len(timed("page", lambda: report_page(comparison, outcomes)).encode())
    return facts


def _peak_mib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def commits(folder: str, count: int) -> dict[str, Any]:
    """Commit one run so often."""
    import torch

    from reuse_algos.archive import DatasetRecord, FileEntry, Manifest, MetricHistory, RunArchive, history_tensors

    archive = RunArchive(folder, create=True)
    writer = archive.start_run("small")
    positions = torch.arange(2)
    dataset = DatasetRecord(name="toy", num_examples=2, fingerprint="f" * 64, num_classes=2)
    signals: list[FileEntry] = [writer.put("dataset", "examples", {"keys": positions, "labels": positions})]
    seconds = []
    for epoch in range(count):
        meta = {"slot": epoch, "epoch": epoch, "view": epoch, "source": "capture", "encoding": "dense"}
        values = torch.tensor([epoch, 1.0]) / 3
        signals.append(writer.put("signals", "loss", {"ids": positions, "values": values}, meta))
        column = torch.tensor([float(epoch)], dtype=torch.float64).numpy()
        history = writer.put("metrics", "history", history_tensors({METRIC: MetricHistory(*[column] * 6)}))
        manifest = Manifest(dataset=dataset, monitor=METRIC, tags={"study": "commits"}, files=[history, *signals])
        began = time.process_time()
        writer.commit(manifest)
        seconds.append(time.process_time() - began)
    sizes = {path: path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()}
    manifests = sum(size for path, size in sizes.items() if "parts" in path.parts or "manifests" in path.parts)
    tenth = max(1, count // 10)
    medians = [1000 * statistics.median(seconds[at : at + tenth]) for at in range(0, tenth * 10, tenth)]
    began = time.process_time()
    files = len(RunArchive(folder).run(writer.run_id).manifest.files)
    return {
        "bytes": manifests,
        "bytes_of_data": sum(sizes.values()) - manifests,
        "tenths_ms": [round(median, 3) for median in medians],
        "ratio": round(medians[-1] / medians[0], 3),
        "read_seconds": round(time.process_time() - began, 3),
        "files": files,
    }


def s3(folder: str) -> dict[str, Any]:
    """Put the archive into a local S3 server, and count the requests of a selection there."""
    from archive import moto_server  # of the tests
    from reuse_algos.archive import RunArchive

    requests = 0
    real = moto_server._OneAtATime.__call__

    def counted(self: Any, environ: Any, start_response: Any) -> Any:
        nonlocal requests
        requests += 1
        return real(self, environ, start_response)

    moto_server._OneAtATime.__call__ = counted  # type: ignore[method-assign]
    server = moto_server.MotoServer()
    os.environ.update(server.environment, AWS_ENDPOINT_URL=server.url, AWS_ALLOW_HTTP="true")
    bucket = server.new_bucket()
    for path in Path(folder).rglob("*.json"):  # what a selection reads: the histories are left out
        server.client.put_object(Bucket=bucket, Key=f"a/{path.relative_to(folder)}", Body=path.read_bytes())
    facts: dict[str, Any] = {}
    for name in ("first", "again"):
        before, began = requests, time.perf_counter()
        reader = RunArchive(f"s3://{bucket}/a")
        chosen = reader.runs(tags={"method": "distilled"}, order="best", metric=METRIC, limit=5)
        facts[f"{name}_requests"] = requests - before
        facts[f"{name}_wall"] = round(time.perf_counter() - began, 2)
    server.close()
    return {**facts, "chosen": [run.id for run in chosen]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("select", "compare", "s3", "commits"))
    parser.add_argument("--runs", default="1000,100000", help="numbers of runs (or commits), with commas between")
    parser.add_argument("--output", type=Path, help="also append the lines to this file")
    parser.add_argument("--made", type=Path, help="folder with an archive of N runs in N/, made there if it is missing")
    parser.add_argument("--in", dest="folder", help="measure in this process, in an archive that is there")
    arguments = parser.parse_args()
    if arguments.folder:
        sys.path.insert(0, str(ROOT / "tests"))
        warnings.simplefilter("ignore")
        import reuse_algos.archive
        import reuse_algos.compare.show.page  # noqa: F401  # imported before the clock starts

        work = {"select": select, "compare": compare, "s3": s3, "commits": partial(commits, count=int(arguments.runs))}
        print(json.dumps(work[arguments.what](arguments.folder)))
        return
    arguments.scale, arguments.seed = 1.0, 0
    lines = [header(arguments, "archive_scale")]
    for count in map(int, arguments.runs.split(",")):
        with tempfile.TemporaryDirectory(prefix="archive_scale-") as folder:
            os.environ["XDG_CACHE_HOME"] = f"{folder}/making"
            archive = Path(folder, "archive") if arguments.made is None else arguments.made / str(count)
            if arguments.what != "commits" and not archive.exists():
                make_runs(archive, count)
            command = [sys.executable, __file__, arguments.what, "--in", str(archive), "--runs", str(count)]
            environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                sys.exit(done.stderr)
            found = json.loads(done.stdout.splitlines()[-1])
            load = round(os.getloadavg()[0], 1)
            lines.append({"what": arguments.what, "runs": count, **found, "load_average": load})
        print(json.dumps(lines[-1]), flush=True)
    if arguments.output is not None:
        with arguments.output.open("a") as output:
            output.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
