"""What do replayed adversarial examples cost, and what do they bring? Against online AdvProp and plain training.

Two parts, each with its file of JSON lines:

``--steps``: step times of plain training, of replays (``replace`` and ``append`` at fraction 0.5, with and without
split batch norm) and of online attacks, in one process, step by step in turn, as ratios to the plain step of the same
round. Goals: ``replace`` at most 1.10, ``append`` at most 1.6.

Without ``--steps``: clean accuracy, and accuracy of 1,000 evaluation images under FGSM and PGD-10, at the end of
training on the CPU-sized CIFAR-100 of yamls/cifar100/small (10,000 images, 20 superclasses, a small ResNet, 20 epochs).
First a prior run with a seed of its own (101) is trained, and attacked by PGD-5 in its eight views. Then for each seed:

* ``plain``, its learning rate fully decayed, and ``plain_long``: 1.5 times the epochs, which is what ``append`` costs;
* ``append_split``, ``append_joint``, ``replace_split``, ``replace_joint``: replays of half of the rows, which have
  batch norms of their own or not;
* ``online_pgd1``: AdvProp, as ``append_split`` but attacked again at every step by PGD-1 against the current model.

Results are appended one run each, with everything that is needed to judge it; runs that are in the file are not
repeated, so it can be stopped and started again. The summary compares by
``reuse_algos.compare.estimates.interval``, paired by seed.

    python benchmarks/adversarial.py --steps                                  # a few minutes
    python benchmarks/adversarial.py --npz cifar100.npz                       # the study
    python benchmarks/adversarial.py --npz cifar100.npz --jobs 2 --time-limit 3000 --autocast bfloat16
    python benchmarks/adversarial.py --study digits --epochs 2 --out /tmp/try.jsonl --archive /tmp/try-archive
    python benchmarks/adversarial.py --summary

Cost: an epoch of 10,000 images takes about 9 s on two otherwise idle CPU cores (one job on both). The prior run takes 3
minutes and its harvest 5; a run of plain 3 minutes, of ``append`` 4.5 and of ``online_pgd1`` 5.5; all of one seed about
half an hour. ``--autocast bfloat16`` halves that where the CPU has it.

Seconds of training, and so the costs in the summary, are only as good as the machine is quiet; what a step costs is for
``--steps`` to say.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from adversarial_online import OnlineAdvProp
from adversarial_steps import BATCH, VARIANTS, Setting, measure, summarise
from composer import Trainer
from job_runner import ResultsFile, RunQueue, command_line, surroundings

from reuse_algos.algorithms import AdversarialReplay
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RobustEvaluation
from reuse_algos.compare.estimates.interval import Interval, difference_interval, mean_interval
from reuse_algos.harvest import harvest
from reuse_algos.recipe import build_trainer, load_recipe
from reuse_algos.training.attacks import Attack

ROOT = Path(__file__).parents[1]
FIRST_PRIOR_SEED = 101
STUDIES = {"cifar100-small": ("cifar100/small/baseline", 20), "digits": ("digits/baseline", 30)}

# Share of the number of epochs, settings of the replay, and the attack where perturbations are made at every step.
_APPEND, _REPLACE = {"name": "append", "fraction": 0.5}, {"name": "replace", "fraction": 0.5}
METHODS: dict[str, tuple[float, dict[str, Any] | None, int | None]] = {
    "plain": (1.0, None, None),
    "plain_long": (1.5, None, None),
    "append_split": (1.0, {**_APPEND, "split_batch_norm": True}, None),
    "append_joint": (1.0, {**_APPEND, "split_batch_norm": False}, None),
    "replace_split": (1.0, {**_REPLACE, "split_batch_norm": True}, None),
    "replace_joint": (1.0, {**_REPLACE, "split_batch_norm": False}, None),
    "online_pgd1": (1.0, {**_APPEND, "split_batch_norm": True}, 1),
}
# At the size of the attack that made the perturbations, or would have, and at a quarter of it.
MEASURES = {
    "FGSM": ("fgsm", 1.0),
    "PGD-10": ("pgd", 1.0),
    "FGSM/4": ("fgsm_small", 0.25),
    "PGD-10/4": ("pgd_small", 0.25),
}
# A share of training in every run, as they differ in length.
WARM_UP = "scheduler.t_warmup=0.05dur"


class Study:
    """The runs that are wanted, the file that holds those that are done."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        full = STUDIES[options.study][1]
        self.epochs = full if options.epochs is None else options.epochs
        self.out = ResultsFile(options.out)
        self.seeds = [int(seed) for seed in options.seeds.split(",")]
        self.methods = options.methods.split(",") if options.methods else list(METHODS)
        self.prior_seeds = [FIRST_PRIOR_SEED + number for number in range(options.priors)]
        # What runs must have in common to be compared.
        self.common = {
            "study": options.study,
            "epochs": self.epochs,
            "epsilon_255": options.epsilon,
            "autocast": options.autocast,
            "priors": options.priors,
        }
        self.queue = RunQueue(__file__, self.out, jobs=options.jobs, time_limit=options.time_limit, describe=_described)

    def find(self, method: str, seed: int) -> dict[str, Any] | None:
        """Return the record of one run."""
        # A prior run serves whatever number of them is asked for.
        keys = [key for key in self.common if not (method == "prior" and key == "priors")]
        found = self.out.records(**{key: self.common[key] for key in keys}, method=method, seed=seed)
        return found[-1] if found else None

    def run_all(self, jobs: Sequence[tuple[str, int]]) -> None:
        """Those that are not done yet, several at a time, until the time is up."""
        places = {"npz": self.options.npz, "archive": self.options.archive}
        todo = [(method, seed) for method, seed in jobs if self.find(method, seed) is None]
        self.queue.run_all([{**self.common, **places, "method": method, "seed": seed} for method, seed in todo])

    def main(self) -> int:
        """Prior runs, then the methods, then the summary."""
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown:
            print(f"unknown methods {unknown}; known: {', '.join(METHODS)}", file=sys.stderr)
            return 2
        if not self.options.summary:
            RunArchive(self.options.archive, create=True)
            self.run_all([("prior", seed) for seed in self.prior_seeds])
            if any(self.find("prior", seed) is None for seed in self.prior_seeds):
                print("the prior runs are not complete; start again to go on", file=sys.stderr)
                return 1
            # Seeds in turn, so that whatever the time allows is balanced over the methods.
            self.run_all([(method, seed) for seed in self.seeds for method in self.methods])
        self.summarise()
        return 1 if self.queue.failed else 0

    # Summary --------------------------------------------------------------------------------------------------------

    def summarise(self) -> None:
        """Accuracies with their intervals, paired differences from plain, and costs."""
        size = self.common["epsilon_255"]
        print(
            f"\n{self.options.study}, {self.epochs} epochs, epsilon {size}/255 (and a quarter of it); 95 % intervals;"
        )
        print("differences from plain paired by seed, in points. Cost: training against plain; with harvest: plus the")
        print("whole harvest for this one run; with priors: plus harvest and prior runs divided by the number of seeds")
        for name in ("accuracy", *MEASURES):
            print(f"\n{'clean accuracy' if name == 'accuracy' else 'accuracy under ' + name}")
            plain = self._values("plain", name)
            for method in self.methods:
                if own := self._values(method, name):
                    mean = _shown(mean_interval(list(own.values())))
                    print(f"  {method:14} n={len(own)}  {mean:24} {_difference(own, plain)}")
        print(f"\n{'cost':16} training  with harvest  with priors  fooling at the end")
        for method in self.methods:
            self._print_cost(method)
        for seed in self.prior_seeds:
            if (prior := self.find("prior", seed)) is not None:
                rates = ", ".join(f"{name} {value:.3f}" for name, value in prior["rates"].items())
                seconds = f"{prior['train_seconds']:.0f} s of training, harvest {prior['harvest_seconds']:.0f} s"
                print(f"prior run {seed}: {seconds}; {rates}")

    def _values(self, method: str, name: str) -> dict[int, float]:
        return {seed: one[name] for seed in self.seeds if (one := self.find(method, seed)) is not None}

    def _print_cost(self, method: str) -> None:
        pairs = [(self.find(method, seed), self.find("plain", seed)) for seed in self.seeds]
        known = [(own, plain) for own, plain in pairs if own is not None and plain is not None]
        if not known:
            return
        priors = [one for seed in self.prior_seeds if (one := self.find("prior", seed)) is not None]
        uses_priors = bool(known[0][0]["prior_runs"])
        shared = sum(one["train_seconds"] + one["harvest_seconds"] for one in priors) / len(self.seeds)

        def share(extra: Any) -> str:
            shares = [(own["cost_seconds"] + extra(own)) / plain["cost_seconds"] for own, plain in known]
            return f"{100 * sum(shares) / len(shares):.0f} %"

        cells = [share(lambda own: 0.0)]
        cells += [share(lambda own: own["harvest_seconds"]), share(lambda own: shared)] if uses_priors else ["-", "-"]
        fooling = [own["fooling"] for own, _ in known if own["fooling"] is not None]
        stale = f"{sum(fooling) / len(fooling):.3f}" if fooling else "-"
        print(f"  {method:14} {cells[0]:>8}  {cells[1]:>12}  {cells[2]:>11}  {stale:>8}")


def _described(record: dict[str, Any]) -> str:
    measured = ", ".join(f"{name} {record[name]:.3f}" for name in MEASURES)
    return f"clean {record['accuracy']:.4f}, {measured}; {record['train_seconds']:.0f} s of training"


def _shown(interval: Interval) -> str:
    if math.isinf(interval.high):  # all seeds have the same value, such as 0: how far another would be is not known
        return f"{100 * interval.estimate:.2f}"
    return f"{100 * interval.estimate:.2f} [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"


def _difference(own: dict[int, float], other: dict[int, float]) -> str:
    both = sorted(set(own) & set(other))
    if not both or own == other:
        return "-"
    return "difference " + _shown(difference_interval([own[s] for s in both], [other[s] for s in both], paired=True))


# One run --------------------------------------------------------------------------------------------------------------


def run_one(job: dict[str, Any], out: Path) -> None:
    """Train one run and write its record."""
    torch.set_num_threads(job["threads"])
    prior = job["method"] == "prior"
    share, settings, online_steps = (1.0, None, None) if prior else METHODS[job["method"]]
    duration = f"{max(1, round(share * job['epochs']))}ep"
    attacks = {name: {"epsilon": part * job["epsilon_255"] / 255} for name, part in MEASURES.values()}
    for name in ("pgd", "pgd_small"):
        attacks[name]["steps"] = 10
    # The archive may also hold priors of other lengths and sizes of the attack.
    tags = {"method": "prior", "setting": f"{job['epochs']}ep-{job['epsilon_255']:g}-{job['autocast']}"}
    overrides = [
        f"seed={job['seed']}",
        f"run_name={job['method']}-{tags['setting']}-{job['seed']}",
        f"archive={job['archive']}",
        f"max_duration={duration}",
        f"eval_interval={duration}",
        WARM_UP,
        f"tags.method={job['method']}",
        f"tags.setting={tags['setting']}",
        "device=cpu",
        "progress_bar=false",
        "callbacks=" + json.dumps({"robust_evaluation": {"attacks": attacks, "interval": "1dur"}}),
    ]
    if prior:
        overrides.append("callbacks.run_recorder={weights: [last]}")
    if job["npz"] is not None:
        overrides += ["data.name=npz", f"data.path={job['npz']}"]
    if job["autocast"] is not None:
        overrides.append(f"model.autocast={job['autocast']}")
    if settings is not None:
        runs = {"tags": tags, "order": "first", "limit": job["priors"]}
        options = {"runs": runs, "mode": settings, "perturbations": {"warn_below": 0.0}}
        overrides.append("algorithms.adversarial_replay=" + json.dumps(options))
    trainer = build_trainer(load_recipe(ROOT / "yamls" / f"{STUDIES[job['study']][0]}.yaml", overrides))
    if online_steps is not None:
        (replay,) = [one for one in trainer.state.algorithms if isinstance(one, AdversarialReplay)]
        OnlineAdvProp.instead_of(replay, Attack(epsilon=job["epsilon_255"] / 255, steps=online_steps))
    trainer.fit()
    record = _record(job, trainer, overrides)
    name = trainer.state.run_name
    trainer.close()
    if prior:
        attack = Attack(epsilon=job["epsilon_255"] / 255)
        (made,) = harvest(job["archive"], name, signals=("adversarial",), attack=attack, progress=False)
        record |= {"harvest_seconds": made.seconds, "harvest_bytes": made.bytes, "rates": made.rates}
        record |= {"attack": attack.describe(), "views": len(made.views)}
    out.write_text(json.dumps(record))


def _record(job: dict[str, Any], trainer: Trainer, overrides: list[str]) -> dict[str, Any]:
    state = trainer.state
    (robust,) = [one for one in state.callbacks if isinstance(one, RobustEvaluation)]
    replays = [one for one in state.algorithms if isinstance(one, AdversarialReplay)]
    uses = [use for one in replays for use in one.prior_uses()]
    seconds = state.timestamp.total_wct.total_seconds()
    setup = sum(one.setup_seconds for one in replays)
    return {
        **{key: value for key, value in job.items() if key not in ("npz", "archive")},
        "accuracy": float(state.eval_metrics["eval"]["MulticlassAccuracy"].compute()),
        **{
            title: robust.latest_metrics[f"metrics/eval/robust/{name.upper()}Accuracy"]
            for title, (name, _) in MEASURES.items()
        },
        "clean_of_attacked": robust.latest_metrics["metrics/eval/robust/CleanAccuracy"],
        "fooling": next((one.latest_metrics.get("reuse/adversarial_replay/fooling") for one in replays), None),
        "examples": int(state.timestamp.sample),
        "steps": int(state.timestamp.batch),
        "train_seconds": seconds,
        "setup_seconds": setup,
        "harvest_seconds": sum(use.harvest_seconds for use in uses),
        "cost_seconds": seconds + setup,
        "prior_runs": [use.run_id for use in uses],
        **surroundings(),
        "overrides": [line for line in overrides if not line.startswith(("archive=", "data.path="))],
    }


def run_steps(options: argparse.Namespace) -> int:
    """Measure step times, append them to their file and print the ratios."""
    names = options.methods.split(",") if options.methods else list(VARIANTS)
    unknown = [name for name in names if name not in VARIANTS]
    if unknown or "plain" not in names:
        print(f"unknown variants {unknown}" if unknown else "plain must be among the variants", file=sys.stderr)
        print(f"known: {', '.join(VARIANTS)}", file=sys.stderr)
        return 2
    setting = Setting(options.epochs or 3, options.steps_per_epoch, options.model, options.autocast, options.threads)
    seconds = measure(names, setting)
    print(f"{options.model}, batch {BATCH}, {len(seconds['plain'])} steps each; ratio: median [middle half]")
    summary = summarise(seconds)
    record = {"model": options.model, "batch": BATCH, "autocast": options.autocast, "threads": options.threads}
    record |= {"summary": summary, "seconds": {name: [round(one, 6) for one in seconds[name]] for name in names}}
    ResultsFile(options.steps_out).append({**record, **surroundings(), "command": command_line(__file__)})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    results = ROOT / "benchmarks" / "results"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", action="store_true", help="measure step times")
    parser.add_argument("--steps-per-epoch", type=int, default=10, help="timed steps of each variant in each epoch")
    parser.add_argument("--model", default="resnet_small", help="network of --steps")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads in --steps")
    parser.add_argument("--steps-out", default=str(results / "adversarial_steps.jsonl"))
    parser.add_argument("--study", choices=sorted(STUDIES), default="cifar100-small")
    parser.add_argument("--npz", help="the data, one file in Keras' layout; default: the recipe's data")
    parser.add_argument("--epochs", type=int, help="the budget; default: the recipe's, and 3 with --steps")
    parser.add_argument("--epsilon", type=float, default=8.0, help="of all attacks, in 255ths (default: 8)")
    parser.add_argument("--priors", type=int, default=1, help="how many prior runs are attacked")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--methods", help=f"separated by commas; default: all of {', '.join(METHODS)}")
    parser.add_argument("--autocast", help="model.autocast of every run, such as bfloat16; default: none")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, which share the cores")
    parser.add_argument("--time-limit", type=float, help="start no further run after so many seconds")
    parser.add_argument("--archive", default="archive-adversarial", help="folder for the archive of the prior runs")
    parser.add_argument("--out", default=str(results / "adversarial.jsonl"))
    parser.add_argument("--summary", action="store_true", help="only the summary of what is in the file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one is not None:
        run_one(json.loads(options.one), Path(options.out))
        return 0
    return run_steps(options) if options.steps else Study(options).main()


if __name__ == "__main__":
    sys.exit(main())
