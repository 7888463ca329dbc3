"""What do scores of earlier runs save? Every strategy of HistoryCurriculum against its controls, at equal cost.

On the CPU-sized CIFAR-100 of yamls/cifar100/small (10,000 images, 20 superclasses, a small ResNet; 20 epochs are the
full budget). Three prior runs with seeds of their own (101 to 103) are trained and archived first. Then, for each seed:

* ``plain``: the full budget, its learning rate fully decayed;
* ``dynamic_prune`` (and ``dynamic_prune_75``, which leaves out as many of fewer, easier examples), ``prune``,
  ``subset``: the full number of epochs, each of them shorter;
* ``curriculum``, ``active_bias``, ``focus``: half the number of epochs, as curricula help at short budgets if at all;
* for each of them its control ``.shuffled``: every example has the score of another one. What only orders examples by
  score (``prune``, ``subset``, ``curriculum``) then takes them at random at the same rate;
* ``dynamic_prune.random``: scores are uniform random numbers in every epoch, which is random pruning at the same rate,
  as ``dynamic_prune`` itself replaces shuffled scores by the run's own losses;
* ``plain.<steps>``: plain training with exactly as many steps as each of them took, fully decayed.

Results are appended to a file of JSON lines, one run each, with everything that is needed to judge it; runs that are in
the file are not repeated, so the benchmark can be stopped and started again. The summary compares by
``reuse_algos.compare.estimates.interval``, paired by seed.

    python benchmarks/curriculum.py --npz cifar100.npz                        # all of it
    python benchmarks/curriculum.py --npz cifar100.npz --jobs 2 --time-limit 3000 --methods dynamic_prune,plain
    python benchmarks/curriculum.py --study digits --epochs 2 --out /tmp/try.jsonl --archive /tmp/try-archive
    python benchmarks/curriculum.py --summary

Cost: an epoch of 10,000 images takes about 9 s on two otherwise idle CPU cores (one job on both). A run is 20 epochs
(plain, 3 minutes), about 13 (dynamic_prune, 2 minutes) or the worth of 10 (the others, 90 s). The three prior runs take
9 minutes and all runs of one seed about 40: two hours for three seeds, and one with ``--autocast bfloat16`` where the
CPU has it. ``--npz`` names a file in Keras' layout; without it the data are the recipe's (torchvision's in ./data).
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
from composer import Trainer
from job_runner import ResultsFile, RunQueue, surroundings

from reuse_algos.algorithms import HistoryCurriculum
from reuse_algos.archive import RunArchive
from reuse_algos.compare.estimates.interval import Interval, difference_interval, mean_interval
from reuse_algos.recipe import build_trainer, load_recipe

ROOT = Path(__file__).parents[1]
PRIOR_SEEDS = (101, 102, 103)
STUDIES = {"cifar100-small": ("cifar100/small/baseline", 20), "digits": ("digits/baseline", 30)}

# Share of the full number of epochs, and settings of the strategy.
STRATEGIES: dict[str, tuple[float, dict[str, Any]]] = {
    # Both leave out 37.5 % of the examples: a half of the easier three quarters, or three quarters of the easier half.
    "dynamic_prune": (1.0, {"strategy": {"name": "dynamic_prune", "easy_share": 0.75}, "score": "loss"}),
    "dynamic_prune_75": (1.0, {"strategy": {"name": "dynamic_prune", "prune_rate": 0.75}, "score": "loss"}),
    "prune": (1.0, {"strategy": {"name": "prune", "keep": 0.5, "class_balance": True}, "score": "el2n"}),
    "subset": (1.0, {"strategy": {"name": "subset", "keep": 0.5}, "score": "variation_ratio"}),
    "curriculum": (0.5, {"strategy": "curriculum", "score": "loss"}),
    "active_bias": (0.5, {"strategy": "active_bias", "score": "variance"}),
    "focus": (0.5, {"strategy": "focus", "score": "loss"}),
}
_NOTABLE_LOSS = 0.02
# A share of training in every run: epochs, in which a recipe may give it, are shorter where examples are left out.
WARM_UP = "scheduler.t_warmup=0.05dur"
CONTROLS = (".shuffled", ".random")
RANDOM_TOO = ("dynamic_prune",)


def method_names() -> list[str]:
    """Return every method but the plain runs at the steps of another."""
    shuffled = [name + control for name in STRATEGIES for control in ("", ".shuffled")]
    return ["plain", *shuffled, *(f"{name}.random" for name in RANDOM_TOO)]


class Benchmark:
    """The runs that are wanted, the file that holds those that are done."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.recipe, full = STUDIES[options.study]
        self.epochs = full if options.epochs is None else options.epochs
        self.out = ResultsFile(options.out)
        self.queue = RunQueue(__file__, self.out, jobs=options.jobs, time_limit=options.time_limit, describe=_described)

    # Jobs -----------------------------------------------------------------------------------------------------------

    def job(self, method: str, seed: int) -> dict[str, Any]:
        """Return what a run needs."""
        base = method.removesuffix(".shuffled").removesuffix(".random")
        job: dict[str, Any] = {"study": self.options.study, "epochs": self.epochs, "method": method, "seed": seed}
        job |= {"npz": self.options.npz, "archive": self.options.archive, "autocast": self.options.autocast}
        if method == "plain" or method == "prior":
            return job | {"max_duration": f"{self.epochs}ep", "settings": None}
        if method.startswith("plain."):
            return job | {"max_duration": f"{method.removeprefix('plain.')}ba", "settings": None}
        share, settings = STRATEGIES[base]
        if method.endswith(CONTROLS):
            shuffled = {"name": settings["score"], "shuffled": True}
            settings = {**settings, "score": shuffled if method.endswith(".shuffled") else "random"}
        return job | {"max_duration": f"{max(1, round(share * self.epochs))}ep", "settings": settings}

    def find(self, method: str, seed: int) -> dict[str, Any] | None:
        """Return the record of one run."""
        found = self.out.records(study=self.options.study, epochs=self.epochs, method=method, seed=seed)
        return found[-1] if found else None

    def run_all(self, jobs: list[tuple[str, int]]) -> None:
        """Those that are not done yet, several at a time, until the time is up."""
        self.queue.run_all([self.job(method, seed) for method, seed in jobs if self.find(method, seed) is None])

    def main(self) -> int:
        """Prior runs, then the methods, then plain runs at their numbers of steps, then the summary."""
        seeds = [int(seed) for seed in self.options.seeds.split(",")]
        methods = self.options.methods.split(",") if self.options.methods else method_names()
        unknown = [name for name in methods if name not in method_names()]
        if unknown:
            print(f"unknown methods {unknown}; known: {', '.join(method_names())}", file=sys.stderr)
            return 2
        if not self.options.summary:
            self.run_all([("prior", seed) for seed in PRIOR_SEEDS])
            if any(self.find("prior", seed) is None for seed in PRIOR_SEEDS):
                print("the prior runs are not complete; start again to go on", file=sys.stderr)
                return 1
            # Seeds in turn, so that whatever the time allows is balanced over the methods.
            self.run_all([(method, seed) for seed in seeds for method in methods])
            matched = []
            for seed in seeds:
                for method in methods:
                    record = self.find(method, seed)
                    if record is not None and "." not in method and method != "plain":
                        matched.append((f"plain.{record['steps']}", seed))
            self.run_all(list(dict.fromkeys(matched)))
        self.summarise(methods, seeds)
        return 1 if self.queue.failed else 0

    # Summary --------------------------------------------------------------------------------------------------------

    def summarise(self, methods: list[str], seeds: list[int]) -> None:
        """Return a table: accuracy, cost, and paired differences from the plain runs and from the shuffled control."""
        print(f"\n{self.options.study}, {self.epochs} epochs; 95 % intervals; differences paired by seed, in points")
        print("cost: examples trained on, against plain; with priors: plus those of the prior runs divided by the")
        print("number of seeds; pays: from how many later runs on they and the prior runs cost less than plain ones")
        print(f"{'method':25} n  accuracy               cost   with priors  pays   against plain", end=" " * 11)
        print("at equal steps")
        full = self._values("plain", seeds)
        for method in methods:
            records = {seed: record for seed in seeds if (record := self.find(method, seed)) is not None}
            if not records:
                continue
            own = {seed: record["accuracy"] for seed, record in records.items()}
            equal = {
                seed: matched["accuracy"]
                for seed, record in records.items()
                if (matched := self.find(f"plain.{record['steps']}", seed)) is not None
            }
            uses_priors = method != "plain" and not method.endswith(".random")
            priors = self._prior_examples() if uses_priors else 0
            print(
                f"{method:25} {len(own)}  {_shown(mean_interval(list(own.values())), 100):21}  "
                f"{self._share(records):>5}  {self._share(records, priors / len(seeds)):>11}  "
                f"{self._pays_from(records, priors):>5}  {_difference(own, full):24} {_difference(own, equal)}"
            )
        for name in STRATEGIES:
            own, shuffled = self._values(name, seeds), self._values(f"{name}.shuffled", seeds)
            if name in methods and set(own) & set(shuffled):
                print(f"{name} against its scores shuffled: {_difference(own, shuffled)}")
        self._say_what_pruning_saves(seeds)

    def _values(self, method: str, seeds: list[int]) -> dict[int, float]:
        return {seed: record["accuracy"] for seed in seeds if (record := self.find(method, seed)) is not None}

    def _pairs(self, records: dict[int, dict[str, Any]]) -> list[tuple[int, int]]:
        """Return a method's examples with those of the plain runs of the same seeds."""
        found = [(record, self.find("plain", seed)) for seed, record in records.items()]
        return [(record["examples"], plain["examples"]) for record, plain in found if plain is not None]

    def _share(self, records: dict[int, dict[str, Any]], extra: float = 0.0) -> str:
        shares = [(own + extra) / plain for own, plain in self._pairs(records)]
        return f"{100 * sum(shares) / len(shares):.0f} %" if shares else "-"

    def _prior_examples(self) -> int:
        """Return what all prior runs together were trained on."""
        return sum(one["examples"] for seed in PRIOR_SEEDS if (one := self.find("prior", seed)) is not None)

    def _pays_from(self, records: dict[int, dict[str, Any]], prior_examples: int) -> str:
        pairs = self._pairs(records)
        saved = sum(plain - own for own, plain in pairs)
        if not pairs or prior_examples == 0:
            return "-"
        return "never" if saved <= 0 else str(math.ceil(prior_examples * len(pairs) / saved))

    def _say_what_pruning_saves(self, seeds: list[int]) -> None:
        own, full = self._values("dynamic_prune", seeds), self._values("plain", seeds)
        both = sorted(set(own) & set(full))
        if len(both) < 2:
            return
        saved = []
        for seed in both:
            record, plain = self.find("dynamic_prune", seed), self.find("plain", seed)
            if record is not None and plain is not None:
                saved.append(1 - record["examples"] / plain["examples"])
        difference = difference_interval([own[s] for s in both], [full[s] for s in both], paired=True)
        verdict = "no loss beyond the interval" if difference.high >= 0 else "a loss beyond the interval"
        if difference.high >= 0 and difference.low < -_NOTABLE_LOSS:
            verdict += f", which does not exclude one of {100 * _NOTABLE_LOSS:.0f} points: more seeds would tell"
        goal = "at least 35 %" if min(saved) >= 0.35 else "less than 35 %"
        print(
            f"dynamic_prune saves {100 * sum(saved) / len(saved):.1f} % of the examples ({goal}) and differs by "
            f"{_shown(difference, 100)} points from plain: {verdict}."
        )


def _described(record: dict[str, Any]) -> str:
    examples, seconds = record["examples"], record["cost_seconds"]
    return f"accuracy {record['accuracy']:.4f}, {examples} examples, {record['steps']} steps, {seconds:.0f} s"


def _shown(interval: Interval, scale: float = 1.0) -> str:
    return f"{scale * interval.estimate:.2f} [{scale * interval.low:.2f}, {scale * interval.high:.2f}]"


def _difference(own: dict[int, float], other: dict[int, float]) -> str:
    both = sorted(set(own) & set(other))
    if not both or own == other:
        return "-"
    return _shown(difference_interval([own[s] for s in both], [other[s] for s in both], paired=True), 100)


# One run --------------------------------------------------------------------------------------------------------------


def run_one(job: dict[str, Any], out: Path) -> None:
    """Train one run and write its record."""
    torch.set_num_threads(job["threads"])
    recipe_name = STUDIES[job["study"]][0]
    prior = job["method"] == "prior"
    overrides = [
        f"seed={job['seed']}",
        f"run_name={job['method']}-{job['epochs']}ep-{job['seed']}",
        f"archive={job['archive']}",
        f"max_duration={job['max_duration']}",
        f"eval_interval={job['max_duration']}",
        WARM_UP,
        f"tags.method={job['method']}",
        f"tags.epochs='{job['epochs']}'",
        "device=cpu",
        "progress_bar=false",
    ]
    if job["npz"] is not None:
        overrides += ["data.name=npz", f"data.path={job['npz']}"]
    if job["autocast"] is not None:
        overrides.append(f"model.autocast={job['autocast']}")
    if prior:
        overrides.append("callbacks.run_recorder.signals={logits: {last_epochs: 8}, loss: {}, correct: {}}")
    else:
        overrides.append("callbacks={}")
    if job["settings"] is not None:
        # The archive also holds priors of other lengths, where the benchmark was run with other --epochs.
        runs = {"tags": {"method": "prior", "epochs": str(job["epochs"])}, "order": "first", "limit": len(PRIOR_SEEDS)}
        overrides.append("algorithms.history_curriculum=" + json.dumps({"runs": runs, **job["settings"]}))
    trainer = build_trainer(load_recipe(ROOT / "yamls" / f"{recipe_name}.yaml", overrides))
    trainer.fit()
    record = _record(job, trainer, overrides)
    trainer.close()
    out.write_text(json.dumps(record))


def _record(job: dict[str, Any], trainer: Trainer, overrides: list[str]) -> dict[str, Any]:
    state = trainer.state
    ours = [one for one in state.algorithms if isinstance(one, HistoryCurriculum)]
    seconds = state.timestamp.total_wct.total_seconds()
    setup = sum(one.setup_seconds for one in ours)
    uses = [use for one in ours for use in one.prior_uses()]
    harvest = sum(use.harvest_seconds for use in uses)
    num_examples = len(state.dataloader.dataset)  # type: ignore[union-attr]
    sampler = state.dataloader.batch_sampler  # type: ignore[union-attr]
    return {
        "study": job["study"],
        "method": job["method"],
        "seed": job["seed"],
        "epochs": job["epochs"],
        "max_duration": job["max_duration"],
        "settings": job["settings"],
        "accuracy": float(state.eval_metrics["eval"]["MulticlassAccuracy"].compute()),
        "examples": int(state.timestamp.sample),
        "steps": int(state.timestamp.batch),
        "num_examples": num_examples,
        "examples_per_epoch": len(sampler.batch_sampler.sampler) if ours else num_examples,
        "train_seconds": seconds,
        "setup_seconds": setup,
        "harvest_seconds": harvest,
        "cost_seconds": seconds + setup + harvest,
        "prior_runs": [use.run_id for use in uses],
        "threads": job["threads"],
        "overrides": [line for line in overrides if not line.startswith(("archive=", "data.path="))],
        **surroundings(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=sorted(STUDIES), default="cifar100-small")
    parser.add_argument("--npz", help="the data, one file in Keras' layout; default: the recipe's data")
    parser.add_argument("--epochs", type=int, help="the full budget; default: the baseline recipe's")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--methods", help=f"separated by commas; default: all of {', '.join(method_names())}")
    parser.add_argument("--autocast", help="model.autocast of every run, such as bfloat16; default: none")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, which share the cores")
    parser.add_argument("--time-limit", type=float, help="start no further run after so many seconds")
    parser.add_argument("--archive", default="archive-curriculum", help="folder for the archive of the prior runs")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "curriculum.jsonl"))
    parser.add_argument("--summary", action="store_true", help="only the summary of what is in the file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one is not None:
        run_one(json.loads(options.one), Path(options.out))
        return 0
    if not options.summary:
        RunArchive(options.archive, create=True)
    return Benchmark(options).main()


if __name__ == "__main__":
    sys.exit(main())
