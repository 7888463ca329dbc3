"""``reuse-algos demo --all``: every technique on the handwritten digits, and how robust the models are."""

from __future__ import annotations

import math
import time
from pathlib import Path

from rich.table import Table

from reuse_algos.archive import RunArchive
from reuse_algos.compare import Question, compare, read_outcomes
from reuse_algos.compare.estimates.interval import mean_interval
from reuse_algos.compare.show.figures import plot_comparison
from reuse_algos.compare.show.terminal import comparison_table
from reuse_algos.demo.runs import console, one_thread, quiet_run
from reuse_algos.harvest import harvest
from reuse_algos.training.attacks import Attack

_ARMS = (
    ("baseline", "plain runs at full budget; each archives its weights, logits and metrics"),
    ("short", "the control: plain runs at the small budget, learning rate fully decayed"),
    ("distilled", "the small budget again, taught by the archived baseline runs"),
    ("warm_start", "the small budget from the weights of one run on half of the images, as if the data had grown"),
    ("dynamic_pruned", "the full budget without some of the easy images, easy by the archived baseline runs"),
    ("adversarial_replay", "the small budget, half of the images also as they fooled the first baseline run"),
)
_ATTACK = Attack(epsilon=24 / 255)  # 8/255, usual for photographs, fools few models of these digits
_HALF = "digits-half-1"
_ROBUST = "callbacks.robust_evaluation={interval: 1dur, examples: 360, attacks: {fgsm: {}, pgd: {steps: 10}}}"
_ROBUST_METRICS = {"clean": "CleanAccuracy", "FGSM 8/255": "FGSMAccuracy", "PGD-10 8/255": "PGDAccuracy"}


def show_every_technique(folder: Path, archive_path: Path, *, seeds: int) -> int:
    """Train six groups of small models on handwritten digits, and compare what they cost and how robust they are.

    Args:
        folder: Where the plot goes.
        archive_path: Where the archive goes.
        seeds: Runs in each group.

    Returns:
        The exit status, 0.

    Raises:
        ReuseAlgosError: A run fails.
    """
    out = console()
    began = time.perf_counter()
    with one_thread():
        for method, why in _ARMS:
            out.print(f"\n[bold]{method.replace('_', '-')}[/bold]: {why}")
            overrides = [_ROBUST]
            if method == "short":
                # A short plain run is what distillation would be without a teacher.
                overrides.append("tags.control_of=distilled")
            elif method == "adversarial_replay":
                out.print(_attack_baseline(archive_path))
            elif method == "warm_start":
                out.print(_train_on_half(archive_path))
                overrides.append(f"algorithms.prior_run_warm_start.runs={{run_name: {_HALF}, order: first, limit: 1}}")
            for seed in range(1, seeds + 1):
                out.print(_train(method, seed, archive_path, *overrides))
    archive = RunArchive(archive_path)
    # The run on half of the images is another study, and there to be reused: it is not compared with the others.
    question = Question(group_by="tags.method", baseline="baseline")
    outcomes = read_outcomes(archive, question, {"study": "digits"})
    comparison = compare(outcomes, question)
    plot = folder / "compare.png"
    plot_comparison(comparison, outcomes, plot)
    out.print()
    out.print(comparison_table(comparison))
    out.print(_robustness(archive, list(outcomes.groups)))
    out.print(f"plot: {plot}\narchive: {archive_path} (try `reuse-algos runs {archive_path}`)", soft_wrap=True)
    out.print(f"{len(_ARMS) * seeds} runs and one on half of the images in {time.perf_counter() - began:.0f} s")
    return 0


def _train(method: str, seed: int, archive: Path, *overrides: str) -> str:
    """Train one run of a shipped recipe and return a line that says how it went."""
    run = quiet_run(f"digits/{method}", archive, f"seed={seed}", *overrides)
    cost, progress = run.manifest.cost, run.manifest.progress
    return (
        f"  seed {seed}: accuracy {run.final_metric():.4f} after {progress.epoch} epochs, {progress.batch} steps, "
        f"{cost.train_seconds + cost.setup_seconds:.1f} s of training"
    )


def _train_on_half(path: Path) -> str:
    """Train the run that all warm starts go on from, on half of the images, and return a line that says how it went."""
    if RunArchive(path).runs(run_name=_HALF):
        return f"  {_HALF} has been trained before"
    half = [
        _ROBUST,
        "data.train_examples=250",
        f"run_name={_HALF}",
        "tags={study: digits-half, method: half, role: prior}",
    ]
    return _train("baseline", 1, path, *half).replace("  seed 1:", f"  {_HALF}, 250 of the 500 images:")


def _attack_baseline(path: Path) -> str:
    """Harvest adversarial examples of the first baseline run and return a line that says how it went."""
    archive = RunArchive(path)
    run = archive.runs(tags={"study": "digits", "method": "baseline"}, order="first", limit=1)[0]
    (result,) = harvest(archive, run.id, signals=("adversarial",), attack=_ATTACK, progress=False)
    if not result.computed:
        return f"  {run.run_name} has been attacked before"
    return (
        f"  attack on {run.run_name}: {result.rates['success_quantized']:.0%} of its training images fool it, made in "
        f"{result.seconds:.1f} s"
    )


def _robustness(archive: RunArchive, groups: list[str]) -> Table:
    """Return the mean accuracy of each group at the end, on images that were perturbed against each model itself."""
    table = Table(title="Robustness: accuracy on evaluation images perturbed against each run's own model", box=None)
    table.title_justify = "left"
    table.add_column("tags.method")
    for title in _ROBUST_METRICS:
        table.add_column(title)
    for group in groups:
        runs = [run for run in archive.runs(tags={"method": group}) if any("/robust/" in n for n in run.metric_names)]
        cells = []
        for metric in _ROBUST_METRICS.values() if runs else ():
            interval = mean_interval([run.final_metric(metric) for run in runs])
            # One run has no interval.
            known = math.isfinite(interval.low)
            spread = f" [{interval.low:.4f}, {interval.high:.4f}]" if known else ""
            cells.append(f"{interval.estimate:.4f}{spread}".replace("[", r"\["))
        table.add_row(group, *cells)
    return table
