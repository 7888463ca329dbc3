"""What the console says of a record: what was archived, what is missing, and how to go on."""

from __future__ import annotations

import sys

from reuse_algos.archive import Manifest


def archived_line(run_id: str, location: str, manifest: Manifest) -> str:
    """Return one line on a finished record."""
    parts = [f"reuse_algos: archived run {run_id} in {location}"]
    teachers = sorted({use.run_id for use in manifest.prior_runs})
    parts.append(f"prior runs: {', '.join(teachers)}" if teachers else "no prior runs")
    missing = _missing(manifest)
    return "; ".join(parts) + (". Missing: " + "; ".join(missing) if missing else "")


def stopped_line(run_id: str, location: str, manifest: Manifest, *, checkpoints: bool) -> str:
    """Return one line on a record whose training was stopped.

    Args:
        run_id: The run.
        location: Where the archive is.
        manifest: What was committed.
        checkpoints: Whether Composer saves checkpoints of this training.
    """
    kept = sorted({f"{entry.kind} {entry.name}" for entry in manifest.files if entry.kind != "dataset"})
    advice = (
        "Start it again with the same run_name from its checkpoint (load_path, or autoresume: true) to go on"
        if checkpoints
        else "It cannot go on, because no checkpoints are saved: set save_folder next time"
    )
    return (
        f"reuse_algos: run {run_id} was stopped in epoch {manifest.progress.epoch} after batch "
        f"{manifest.progress.batch}; kept as unfinished in {location}: {', '.join(kept) or 'nothing'}. {advice}"
    )


def say(line: str) -> None:
    """Write a line to the console. Standard output belongs to the results of commands."""
    print(line, file=sys.stderr, flush=True)


def _missing(manifest: Manifest) -> list[str]:
    signals = {entry.name for entry in manifest.files if entry.kind == "signals"}
    found = []
    if not manifest.tags:
        found.append("tags (runs can only be chosen and compared by name)")
    if manifest.dataset is None or not manifest.dataset.labels_known:
        known = manifest.task is not None and manifest.task.num_classes
        where = "batches have them, and the dataset does not list them: " if known else ""
        found.append(
            f"labels ({where}no scores by label; `targets` of the dataset or RunRecorder(dataset=...) has them)"
        )
    if "logits" not in signals:
        found.append("logits (no cached teachers until they are harvested; live ones work where weights are kept)")
    if not any(entry.kind == "weights" for entry in manifest.files):
        found.append("weights (no live teachers, no warm start, no harvest)")
    return found
