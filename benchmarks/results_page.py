"""Write RESULTS.md from the raw files in ``results/``: every figure on the page comes from there.

Each section is what the benchmark's own ``--summary`` prints of its raw file, with the hardware, versions, commits and
commands that the file names. What has no raw file yet has no section.

    python benchmarks/results_page.py            # writes benchmarks/RESULTS.md
    python benchmarks/results_page.py --check    # exit code 1 where the page is not what the raw files say
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job_runner import ResultsFile
from results_texts import archive_costs, beside, streams, torture

HERE = Path(__file__).parent
PAGE = HERE / "RESULTS.md"
Record = dict[str, Any]

HEAD = """\
# Results

Built by `python benchmarks/results_page.py` from the raw values in [results](results); no figure is typed by hand.
Intervals are at 95 % and over seeds; with three seeds they are wide, and each holds by itself. Ratios were measured
side by side in one process. Where a goal was missed, the line says so.

## The goals

Set for ResNet-56 on full CIFAR-100, which needs a GPU and has not been run. Below is how far the CPU-sized study is
from them; its runs shared a machine, so their cost is counted in examples. By `python benchmarks/goals.py`.
"""


@dataclass(frozen=True)
class Section:
    """One benchmark's part of the page.

    Attributes:
        title: of the section.
        file: raw values, in ``results/``.
        about: one sentence.
        body: raw records -> text.
    """

    title: str
    file: str
    about: str
    body: Callable[[Path], str]


@functools.cache
def benchmark(name: str) -> Any:
    """Return the module of a benchmark, whatever else goes by its name."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[f"benchmarks_{name}"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def summary(script: str, *arguments: str) -> Callable[[Path], str]:
    """Return what ``script --summary`` prints of the file."""

    def printed(path: Path) -> str:
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            status = benchmark(script).main([*arguments, "--summary", "--out", str(path)])
        if status:
            raise SystemExit(f"{script}.py --summary failed with exit code {status}")
        return "\n".join(line.rstrip() for line in text.getvalue().strip("\n").splitlines())

    return printed


def study(name: str, *arguments: str) -> Callable[[Path], str]:
    """Return what prints a study's summary, by default counted in examples, and below it a line of simple methods."""
    printed = summary(
        "study", str(HERE / "studies" / f"{name}.yaml"), "--judge-by", "samples", "--no-advice", *arguments
    )

    def body(path: Path) -> str:
        text = printed(path)
        lines = ResultsFile(HERE / "results" / "text_lines.jsonl").records(name=name)
        return f"{text}\n\n{beside(ResultsFile(path).records(), lines[-1])}" if lines else text

    return body


def step_ratios(path: Path) -> str:
    """Medians of step times as ratios to a plain step, with the middle half of the rounds; the last record counts."""
    record = ResultsFile(path).records()[-1]
    lines = [f"{record['model']}, batch {record['batch']}, {record['threads']} thread(s)"]
    for name, found in record["summary"].items():
        count = len(record["seconds"][name])
        spread = f"[{found['ratio_25']:.3f}, {found['ratio_75']:.3f}]"
        lines.append(f"{name:26} {1000 * found['median_seconds']:8.1f} ms  {found['ratio']:6.3f} {spread}  n = {count}")
    return "\n".join(lines)


def archive_scale(path: Path) -> str:
    """Return the newest line of each measurement beside its goals; memory as a ratio to the fewest runs."""

    def beside(one: Record) -> str:
        # Seconds of the processor are longer where many processes share its caches.
        load = one.get("load_average", 0)
        return f"; with {load:.0f} processes at once on the two cores" if load > 4 else ""

    newest: dict[tuple[str, int], dict[str, Any]] = {}
    for one in ResultsFile(path).records():
        if "what" in one:
            newest[one["what"], one["runs"]] = one
    lines = []
    for (what, count), one in sorted(newest.items()):
        if what == "select":
            few = newest[what, min(runs for name, runs in newest if name == what)]
            memory = one["peak_mib"] / few["peak_mib"]
            lines.append(
                f"five of {count:,} runs by tag and metric: {one['first']:.2f} s of the processor at first (goal 3), "
                f"{one['again']:.2f} s again (goal 0.5); memory {memory:.2f} times that of {few['runs']:,} runs (goal "
                f"1.2){beside(one)}"
            )
        elif what == "s3":
            lines.append(
                f"five of {count:,} runs in S3: {one['first_requests']} requests at first (goal 40), "
                f"{one['again_requests']} again"
            )
        elif what == "compare":
            compared = one["read_seconds"] + one["compare_seconds"]
            advised = one["read_seconds"] + one["recommend_seconds"]
            more = (one["page_peak_mib"] - one["base_mib"]) * 2**20 / 1e6
            lines.append(
                f"{count:,} runs: compare {compared:.1f} s of the processor (goal 20), recommend {advised:.1f} s (goal "
                f"30); a page of {one['page_bytes'] / 1e6:.1f} MB (goal 5), {more:.0f} MB more memory (goal 300)"
            )
        elif what == "commits":
            lines.append(
                f"{count:,} commits of a small run: {one['bytes'] / 1e6:.1f} MB of manifests (goal 20); the last tenth "
                f"takes {one['ratio']:.2f} times as long as the first (goal 1.5){beside(one)}"
            )
    return "\n".join(lines)


SAME_DATA = (
    "plain",
    "distilled",
    "distilled-half",
    "distilled-half-batch-32",
    "distilled-again-batch-32",
    "plain-batch-32",
    "distilled-one",
    "distilled-kl",
    "smoothed",
    "untrained-teacher",
    "curriculum",
    "curriculum-shuffled",
    "distilled-curriculum",
    "replayed",
)

SECTIONS = (
    Section(
        "Outputs of earlier runs for independent new models",
        "cifar100_small.jsonl",
        "CIFAR-100, 10,000 images, 20 superclasses, a small ResNet; each run with its own fully decayed schedule.",
        summary(
            "study",
            str(HERE / "studies" / "cifar100_small.yaml"),
            "--judge-by",
            "samples",
            "--arms",
            ",".join(SAME_DATA),
        ),
    ),
    Section(
        "The same with batches of 32, against plain training with batches of 32",
        "cifar100_small.jsonl",
        "Arms of the same study: what is left where all have small batches.",
        summary(
            "study",
            str(HERE / "studies" / "cifar100_small.yaml"),
            "--judge-by",
            "samples",
            "--no-advice",
            "--baseline",
            "plain-batch-32",
            "--arms",
            "plain-batch-32,distilled-half-batch-32,distilled-again-batch-32",
        ),
    ),
    Section(
        "Outputs of taught runs, against tuned plain training",
        "savings_small.jsonl",
        "The same images. Plain training has the batch size and the rate that were best of seven at 20 epochs, the "
        "arms have settings that were best of six at a third of it, all on seeds that are not shown.",
        study("savings_small", "--arms", "plain,taught"),
    ),
    Section(
        "Data that grow, from runs that were taught",
        "grown_small.jsonl",
        "Started from the weights of a run on half of the images: a plain one (warm), or one that five of these taught "
        "(warm-taught). Plain training on all images has the batch size and the rate that were best of seven; the rate "
        "of the arms was the best of three, on seeds that are not shown.",
        study("grown_small", "--arms", "plain,warm,warm-taught"),
    ),
    Section(
        "The same: the search, on two seeds",
        "grown_small.jsonl",
        "Settings at a quarter of the epochs of plain training. No claim.",
        study(
            "grown_small",
            "--arms",
            "plain,screen-warm,screen-warm-0.1,screen-taught,screen-taught-0.1,screen-taught-0.025,"
            "screen-taught-distilled",
        ),
    ),
    Section(
        "Pruning in a long training (not finished)",
        "pruning_long_digits.jsonl",
        "All digits, 100 epochs, losses of three earlier runs. Nine or ten seeds of twenty: the intervals are wider "
        "than the 0.3 points of the goal.",
        study("pruning_long_digits"),
    ),
    Section(
        "Do the presets ever harm?",
        "do_no_harm.jsonl",
        "Presets `same_data` and `other_architecture` (crossed), one setting for all. Its weight was chosen after two "
        "runs of Fashion-MNIST, with seeds 1 and 2; digits and glyphs were not looked at, and CIFAR-100 is where the "
        "library's older settings were tuned. A preset harms where it is surely more than 0.3 points below plain.",
        summary("do_no_harm"),
    ),
    Section(
        "What was tried for the missed goals",
        "tries_cifar100_small.jsonl",
        "Other settings of the same recipe, with a seed or two and no claim; the raw file has the overrides of each.",
        summary("tries"),
    ),
    Section(
        "Runs of another architecture",
        "cifar100_small_resnet20.jsonl",
        "The same images and settings; three runs of ResNet-8 serve ResNet-20.",
        summary("study", str(HERE / "studies" / "cifar100_small_resnet20.yaml"), "--judge-by", "samples"),
    ),
    Section(
        "Warm starts, on the same data and on grown data",
        "cifar100_small.jsonl",
        "Arms of the same study, in two comparisons.",
        summary("warm_start"),
    ),
    Section(
        "Whole sequences with reuse, over those without",
        "sequence_cost.jsonl",
        "Digits; every repetition starts from an empty archive, so the prior runs are counted. Of growing data there "
        "are two: over plain runs of 30 epochs, and over plain runs of 6 (the control), as cheap as the sequence.",
        summary("sequence_cost"),
    ),
    Section(
        "A search by successive halving, over the full grid",
        "halving.jsonl",
        "Eight learning rates; every run of every rung is counted. Goal: at most 0.35 of the cost. CIFAR-100 is "
        "2,000 images, 20 superclasses and a narrow small ResNet.",
        summary("halving"),
    ),
    Section(
        "Curricula and pruning",
        "curriculum_cifar100_small.jsonl",
        "Every strategy of `HistoryCurriculum` against its controls, at equal cost.",
        summary("curriculum"),
    ),
    Section(
        "Robust digits: attacks that go on from archived perturbations",
        "robust_digits.jsonl",
        "Accuracy under PGD-10 at 0.1, after online adversarial training with PGD-5, after the same with one step "
        "(the control without an archive), and with AdversarialReplay, use: start, from the perturbations of an "
        "archived robust run, which is not counted. Rates were chosen for each of them with two other seeds.",
        study("robust_digits", "--judge-by", "flops", "--arms", "online,one-step,start"),
    ),
    Section(
        "The same, over training with one step",
        "robust_digits.jsonl",
        "Both cost one step of an attack for each image.",
        study("robust_digits", "--judge-by", "flops", "--baseline", "one-step", "--arms", "one-step,start"),
    ),
    Section(
        "The same: accuracy on clean digits",
        "robust_digits.jsonl",
        "Of the same runs.",
        study(
            "robust_digits",
            "--judge-by",
            "flops",
            "--metric",
            "metrics/eval/robust/CleanAccuracy",
            "--arms",
            "online,one-step,start",
        ),
    ),
    Section(
        "Replayed adversarial examples: accuracy",
        "adversarial.jsonl",
        "Replays of an earlier model's perturbations against plain training and online AdvProp.",
        summary("adversarial", "--epochs", "10", "--autocast", "bfloat16"),
    ),
    Section(
        "Replayed adversarial examples: step time",
        "adversarial_steps.jsonl",
        "Ratios to the plain step of the same round. Goals: replace at most 1.10, append at most 1.6.",
        step_ratios,
    ),
    Section(
        "Cached features: step time",
        "features.jsonl",
        "A head trained on archived features against one behind the frozen network.",
        summary("features"),
    ),
    Section(
        "Overhead of a step",
        "overhead.jsonl",
        "Every way of reuse against plain cross entropy, and our recipe against a loop of PyTorch.",
        summary("overhead"),
    ),
    Section(
        "Texts: a small BERT on 1,600 news texts",
        "bbc_news.jsonl",
        "Three archived runs teach, for the whole training or its first 35 %; short texts first, with its control.",
        study("bbc_news"),
    ),
    Section(
        "Texts: a character language model of city names",
        "city_names.jsonl",
        "Two archived runs of 8 epochs teach by their 16 largest logits at each character; lower is better.",
        study("city_names"),
    ),
    Section(
        "Segmentation: slices of a brain",
        "mni152.jsonl",
        "Two archived runs teach a small U-Net by their maps at a quarter of the size, per pixel or per channel.",
        study("mni152"),
    ),
    Section("Segmentation: digits on a canvas", "digit_scenes.jsonl", "The same on 400 scenes.", study("digit_scenes")),
    Section(
        "Detection: boxes that are missing or off",
        "digit_boxes.jsonl",
        "30 % of the training boxes are missing and the others are off by 10 %. `MixTraining` by an archived detector, "
        "the same with the boxes of other pictures (its control), the archived backbone and head as teachers, and "
        "clean boxes (the bound).",
        study("digit_boxes"),
    ),
    Section(
        "Streams",
        "stream_rows.jsonl",
        "mosaicml-streaming; seconds are the processor's. The first two lines are of 100,000 samples.",
        lambda path: streams(ResultsFile(path).records()),
    ),
    Section(
        "An unlabelled pool",
        "pools.jsonl",
        "A student on what archived scores chose of a pool, over K, with controls. Intervals are against labelled "
        "images only at summed steps.",
        summary("pools"),
    ),
    Section(
        "Clients without labels",
        "federated.jsonl",
        "Digits sorted by label over four clients, 40 labels at the server: accuracy after rounds of alternate and of "
        "parallel training, with and without an archived teacher for the first round.",
        summary("federated"),
    ),
    Section(
        "Sequences on a cluster",
        "cluster.jsonl",
        "24 small runs by each launcher, and what a step costs beyond its own time, by the local launcher's. Goal: at "
        "most 1.5 s on Ray.",
        summary("cluster"),
    ),
    Section(
        "The period that comes next",
        "periods.jsonl",
        "Moons that turn: told the time, fine-tuned, and with gradient interpolation. Measured twice, with version "
        "0.1.0 and 0.2.0: the errors are the same to the last digit.",
        summary("periods"),
    ),
    Section(
        "Retraining period after period, and a pool, as sequences",
        "sequences.jsonl",
        "Digits that turn by 12 degrees a period; 50 labelled digits with a pool of 1,387. By the shipped "
        "sequences. The periods were trained a second time, with the logits of two epochs: the errors are the same "
        "to the last digit, and changed classes are now counted of all images that two periods have in common.",
        summary("sequences"),
    ),
    Section(
        "Forecasts after a quarter, a half and three quarters of a run",
        "forecasts.jsonl",
        "Every run is forecast from its own first part and the other runs. Medians of relative errors: of the last "
        "loss, beside the last value that was seen; of the time to the end, beside Composer's linear one, than which "
        "it is no better on this shared machine.",
        summary("forecasts", "--archive", "forecast-archive"),
    ),
    Section(
        "Compressed gradients where each rank has digits of its own",
        "gradients.jsonl",
        "Four ranks, the digits sorted by label, up to 1,000 steps. The first seed chose of three rates, and two "
        "others were trained with the best; a rate is given up once it has taken as many steps as the best so far.",
        summary("gradients"),
    ),
    Section(
        "Four depths predict a fifth, and one process two",
        "layers.jsonl",
        "ResNets on digits at a constant rate. They learn the digits by heart, so in the second half the loss falls "
        "faster than the form of the curve allows, and `predict size` now says that it is not enough evidence for a "
        "loss. Predicted losses here are of fits by squared errors, before that. Of the processes, one had one thread "
        "and each of two had two on two cores: they shared the cores, and `predict` now refuses that, too. The last "
        "group is of a quiet machine; in the others it did other work as well, and their seconds tell little.",
        summary("layers", "--archive", "layers-archive"),
    ),
    Section(
        "Pictures and their names as one space",
        "pairs.jsonl",
        "Glyphs of DejaVu Sans and their names; means over random splits, least and most in brackets. Archived "
        "encoders are two runs with other tasks (the kind of a character, its direction of writing), by the "
        "library's commands.",
        summary("pairs"),
    ),
    Section(
        "What instruments tell of a run",
        "instruments.jsonl",
        "Wrong learning rates, when to stop, laziness over widths and warm starts, and what a reading costs. Findings "
        "are those of today's rules for the raw readings.",
        summary("instruments"),
    ),
    Section("What the archive costs", "archive_cost.jsonl", "Ratios and memory.", archive_costs),
    Section(
        "An archive of very many runs",
        "archive_scale.jsonl",
        "Generated runs; the newest line of each measurement.",
        archive_scale,
    ),
    Section("What the archive withstands", "archive_torture.jsonl", "The newest line of each case.", torture),
)


def provenance(records: Sequence[Record]) -> str:
    """Hardware, versions, commits and commands of a raw file."""

    def texts(*keys: str) -> list[str]:
        values = [one[key] for one in records for key in keys if one.get(key)]
        plain = [json.dumps(one, sort_keys=True) if isinstance(one, dict) else str(one) for one in values]
        return list(dict.fromkeys(plain))

    def words(key: str) -> str:
        shown = []
        for text in texts(key):
            found = json.loads(text)
            shown.append(", ".join(f"{name} {value}" for name, value in found.items()))
        return "; ".join(shown)

    commits = ", ".join(text[:7] for text in texts("commit", "git_commit"))
    commands = texts("command")
    shown = [f"`{command}`" for command in commands[:4]]
    lines = [f"- hardware: {words('hardware')}", f"- versions: {words('versions')}", f"- commits: {commits}"]
    return "\n".join([*lines, f"- made by: {'; '.join(shown)}{'; ...' if len(commands) > 4 else ''}"])


def page() -> str:
    """Return the whole page."""
    parts = [HEAD, "```text\n" + "\n\n".join(benchmark("goals").goals()) + "\n```\n"]
    for section in SECTIONS:
        path = HERE / "results" / section.file
        if not path.exists():
            continue
        text = section.body(path)
        parts.append(
            f"## {section.title}\n\n{section.about} Raw values: [{section.file}](results/{section.file}).\n\n"
            f"```text\n{text}\n```\n\n{provenance(ResultsFile(path).records())}\n"
        )
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the page instead of writing it")
    options = parser.parse_args()
    text = page()
    if not options.check:
        PAGE.write_text(text)
        return 0
    if PAGE.read_text() == text:
        return 0
    print(f"{PAGE} is not what the raw files say: run `python benchmarks/results_page.py`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
