"""Row 20: archives that earlier releases wrote are read as they were, verified, and gone on with.

``tests/archive/fixtures`` holds one folder for each released format, written by that release's
``make_fixture.py``: an archive, and what it must read as.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch

from reuse_algos.archive import PriorRun, RunArchive

from ..small_runs import manifest_of, put_files
from .outcome import Outcome, Tally, spread

COLUMNS = ("step", "sample", "epoch", "train_seconds", "eval_seconds", "value")
FIXTURES = Path(__file__).parents[1] / "fixtures"


def description(archive: RunArchive) -> dict[str, Any]:
    """Everything that can be read from an archive, as JSON; numbers that JSON lacks are in words."""
    runs = archive.runs(order="first", unfinished=True, unhealthy=True)
    return {
        "archive_id": archive.archive_id,
        "run_ids": archive.run_ids(),
        "chosen": [run.id for run in archive.runs(order="best")],
        "runs": {run.id: _run(run) for run in runs},
    }


def case(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """Every run of every fixture (of ``count`` of them, all for None)."""
    tally = Tally()
    fixtures = sorted(FIXTURES.glob("format-*"))
    if not fixtures:
        raise RuntimeError(f"there are no fixtures in {FIXTURES}")
    for fixture in (fixtures[at] for at in spread(len(fixtures), count, seed)):
        root = folder / fixture.name
        shutil.copytree(fixture / "archive", root)  # a copy, since what is used here is also written to
        expected = json.loads((fixture / "expected.json").read_text())
        tally.tries += len(expected["runs"])
        try:
            _check(root, expected, tally, fixture.name)
        except Exception as error:
            tally.lose(f"{fixture.name}: {error!r}")
    tally.notes["formats"] = ", ".join(fixture.name for fixture in fixtures)
    return tally.outcome()


def _check(root: Path, expected: dict[str, Any], tally: Tally, name: str) -> None:
    archive = RunArchive(root, create=True)
    for problem in archive.verify().problems:
        tally.lose(f"{name}: {problem}")
    found = description(archive)
    for run_id in expected["runs"]:
        if found["runs"].get(run_id) != expected["runs"][run_id]:
            tally.tear(f"{name}: {run_id} reads as {found['runs'].get(run_id)}")
    if {**found, "runs": None} != {**expected, "runs": None}:
        tally.tear(f"{name}: the archive reads as {found}")
    for run_id in expected["runs"]:  # and this release goes on with it
        writer, base = archive.resume_run(run_id)
        writer.commit(base)
        generation = expected["runs"][run_id]["generation"]
        if archive.run(run_id).manifest.generation != generation + 2:
            tally.lose(f"{name}: {run_id} cannot be resumed")
        if _run(archive.open_run(run_id, generation)) != expected["runs"][run_id]:
            tally.tear(f"{name}: {run_id} reads otherwise once it was resumed")
    writer = archive.start_run("new")
    writer.commit(manifest_of(put_files(writer)))
    if writer.run_id not in archive.run_ids() or not archive.verify().ok:
        tally.lose(f"{name}: no new run can be written to it")


def _run(run: PriorRun) -> dict[str, Any]:
    manifest = run.manifest
    signals = {}
    for name in run.signal_names:
        signal = run.signal(name)
        signals[name] = {
            "encoding": signal.encoding,
            "num_classes": signal.num_classes,
            "slots": {
                str(slot): {
                    "rows": _tensor(signal.dense(slot)[0]),
                    "seen": signal.dense(slot)[1].tolist(),
                    "meta": signal.slot_meta(slot),
                }
                for slot in signal.slots
            },
        }
    has_data = any(entry.kind == "dataset" for entry in manifest.files)
    labels = run.labels() if has_data else None
    found = {
        "generation": manifest.generation,
        "attempt": manifest.attempt,
        "run_name": run.run_name,
        "created_at": manifest.created_at,
        "finished": run.finished,
        "health": run.health,
        "tags": run.tags,
        "seed": manifest.seed,
        "recipe": manifest.recipe,
        "monitor": [manifest.monitor, manifest.monitor_mode],
        "dataset": _record(manifest.dataset),
        "model": _record(manifest.model),
        "environment": _record(manifest.environment),
        "progress": _record(manifest.progress),
        "cost": _record(manifest.cost),
        "harvests": [_record(harvest) for harvest in manifest.harvests],
        "prior_runs": [_record(use) for use in manifest.prior_runs],
        "keys": run.keys().tolist() if has_data else None,
        "labels": None if labels is None else labels.tolist(),
        "weights": {
            name: {key: _tensor(tensor) for key, tensor in sorted(run.weights(name).items())}
            for name in run.weight_names
        },
        "metrics": {
            name: {column: [repr(value) for value in getattr(run.metric(name), column).tolist()] for column in COLUMNS}
            for name in run.metric_names
        },
        "signals": signals,
    }
    return json.loads(json.dumps(found))  # as it will be in a file, without tuples


def _record(record: msgspec.Struct | None) -> dict[str, Any] | None:
    """A record without the fields that it has by default, which a later release may add to."""
    if record is None:
        return None
    names = [name for name in record.__struct_fields__ if getattr(record, name) not in (None, [], {}, 0, "")]
    return {name: msgspec.to_builtins(getattr(record, name)) for name in sorted(names)}


def _tensor(tensor: torch.Tensor) -> dict[str, Any]:
    """Type, shape and exact numbers."""
    numbers = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).reshape(-1).tolist()
    return {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "values": [repr(number) for number in numbers]}
