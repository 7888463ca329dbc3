"""Does a space of pairs classify pictures of glyphs by words, without training, and how fast are pairs added?

The pairs are the glyphs of DejaVu Sans and their names, such as GREEK SMALL LETTER ALPHA. Classes are the 15 most
frequent first words of the names; a tenth of the pictures of these classes are classified and are no anchors. Two kinds
of encoders:

- archived: a small CNN learns the general category of each character from its picture, a small BERT its direction of
  writing from its name. Both are recorded, their features are harvested, and examples are pairs by their archived keys.
  The pictures to be classified have no name in the texts' run. Ten archived names stand for each class, and are no
  anchors. The command zero-shot gives its answer as well, for k = 800 and power 8;
- fitted: the pictures' principal components (100, whitened), and tf-idf of words and letters of the names, of which a
  truncated singular value decomposition keeps 100. Each class is given by its own word.

Of both:

- accuracy over k and power, beside the largest class and beside shuffled pairs (each picture with another one's name);
- of one class (the second most frequent): its accuracy with all anchors and without those of the class;
- CPU seconds for 1,000 anchors added to the others and for their removal, and whether similarities are bit-equal after.

    python benchmarks/pairs.py --encoders archived     # some minutes on one core; needs reuse-algos[nlp]
    python benchmarks/pairs.py --encoders fitted       # a minute
    python benchmarks/pairs.py --summary
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from job_runner import ResultsFile, command_line, surroundings
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_union
from torch import Tensor

from reuse_algos.archive import RunArchive
from reuse_algos.cli import main as main_of_library
from reuse_algos.data.glyphs import glyphs
from reuse_algos.data.info import key_of_path
from reuse_algos.harvest import harvest
from reuse_algos.pairs import RelativeSpace, read_prompts
from reuse_algos.pairs.relative_space import archived_features
from reuse_algos.recipe import build_trainer, compose_recipe

OUT = Path(__file__).parent / "results" / "pairs.jsonl"
CLASSES, SIZE, MANY = 15, 100, 1000
EXAMPLES = 10  # archived names that stand for a class
TEXT = {"max_tokens": 12, "vocabulary": 2048}
PICTURES = {
    "model": {"name": "digits_cnn", "width": 16},
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "max_duration": "5ep",
}
NAMES = {
    "model": {"name": "tiny_bert", "depth": 1},
    "optimizer": {"name": "decoupled_adamw", "lr": 2.0e-3},
    "max_duration": "5ep",
}
SETTINGS = ((800, 8.0), (200, 8.0), (200, 1.0), (0, 1.0))  # k and power; 0: all anchors


def encoded(known: np.ndarray, images: np.ndarray, names: list[str], prompts: list[str]) -> tuple[Tensor, ...]:
    """Return features of all images, all names and the prompts; the encoders are fitted to the known ones."""
    words = make_union(
        TfidfVectorizer(token_pattern=r"[^ -]+", sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), sublinear_tf=True, min_df=5),
    )
    rows = words.fit_transform([names[place] for place in known])
    smaller = TruncatedSVD(SIZE, random_state=0).fit(rows)
    seen = PCA(SIZE, whiten=True, random_state=0).fit(images[known])
    texts = [smaller.transform(words.transform(some)) for some in (names, prompts)]
    return tuple(torch.from_numpy(np.asarray(one)).float() for one in (seen.transform(images), *texts))


class Encoded(NamedTuple):
    """What encoders make of the glyphs.

    Attributes:
        pictures: Float ``[N, D]``.
        texts: Float ``[N, E]``; rows of glyphs that are not known are not looked at.
        asked: Float ``[T, E]``, what stands for the classes.
        keys: int64 ``[N]``, of the glyphs.
        anchors: int64, places of the glyphs whose pairs are known.
        facts: What else there is to record.
    """

    pictures: Tensor
    texts: Tensor
    asked: Tensor
    keys: Tensor
    anchors: Tensor
    facts: dict[str, Any]


def fitted(known: Tensor, images: np.ndarray, names: list[str], prompts: list[str]) -> Encoded:
    """Return features by encoders that are fitted to the known glyphs."""
    return Encoded(
        *encoded(known.numpy(), images.reshape(len(images), -1) / 255, names, prompts),
        torch.arange(len(names)),
        known,
        {},
    )


def archived(
    known: Tensor, images: np.ndarray, codes: list[int], names: list[str], prompts: list[str], seed: int
) -> Encoded:
    """Return the features that two runs have archived, and what the command says of the glyphs that are not known."""
    kinds, sides = ([of(chr(code)) for code in codes] for of in (unicodedata.category, unicodedata.bidirectional))
    paths = [f"{side}/{code:05x}.txt" for side, code in zip(sides, codes, strict=True)]
    keys = torch.tensor([key_of_path(path) for path in paths])
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "words"
        for row in known.tolist():
            # The held-out part needs a text of each label; it is not looked at.
            for part in (words / "train" / paths[row], words / "val" / sides[row] / "one.txt"):
                part.parent.mkdir(parents=True, exist_ok=True)
                part.write_text(names[row], encoding="utf-8")
        classes = sorted(set(kinds))
        labels = np.array([classes.index(kind) for kind in kinds])
        arrays = {"x_train": images, "y_train": labels, "keys_train": keys.numpy(), "class_names": np.array(classes)}
        np.savez(f"{folder}/glyphs.npz", x_test=images[:100], y_test=labels[:100], keys_test=np.arange(100), **arrays)
        lines = []
        for word in prompts:
            own = [row for row in known.tolist() if names[row].split()[0] == word]
            chosen = generator.choice(own, EXAMPLES, replace=False).tolist()
            lines.append(f"{word}\t{','.join(str(int(keys[row])) for row in chosen)}")
        Path(folder, "classes.txt").write_text("\n".join(lines), encoding="utf-8")
        began = time.process_time()
        train(folder, "pictures", seed, {"name": "npz", "path": f"{folder}/glyphs.npz", "augment": "none"}, PICTURES)
        train(folder, "names", seed, {"name": "text_files", "root": str(words), "text": TEXT}, NAMES)
        for run in ("pictures", "names"):
            harvest(f"{folder}/archive", run, signals=("features",), plain=True, progress=False, trust_data=True)
        seconds = time.process_time() - began
        answer = io.StringIO()
        command = ["zero-shot", f"{folder}/archive", "--images", "pictures", "--texts", "names", "--json"]
        with contextlib.redirect_stdout(answer):
            assert main_of_library([*command, "--prompts", f"{folder}/classes.txt"]) == 0
        archive = RunArchive(f"{folder}/archive")
        runs = [archive.run(name) for name in ("pictures", "names")]
        asked = read_prompts(f"{folder}/classes.txt", runs[1])
        found = [archived_features(run) for run in runs]
        assert archive.verify().ok
    place = {int(key): row for row, key in enumerate(keys.tolist())}
    filled = []
    for run_keys, values in found:
        whole = values.new_zeros(len(names), values.shape[1])
        whole[torch.tensor([place[int(key)] for key in run_keys.tolist()])] = values
        filled.append(whole)
    said = {place[int(key)]: word for key, word in json.loads(answer.getvalue())["classes"].items()}
    facts = {
        "training_seconds": seconds,
        "command": [said[row] for row in sorted(said) if row not in set(known.tolist())],
    }
    anchors = known[~torch.isin(keys[known], asked.keys)]
    return Encoded(filled[0], filled[1], asked.features, keys, anchors, facts)


def train(folder: str, name: str, seed: int, data: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Train one encoder into the archive."""
    values = {
        "run_name": name,
        "archive": f"{folder}/archive",
        "seed": seed,
        "data": {"batch_size": 64, **data},
        "scheduler": {"name": "cosine_with_warmup", "t_warmup": "0.1dur"},
        "callbacks": {"run_recorder": {"weights": ["last"]}},
        "device": "cpu",
        "progress_bar": False,
        **recipe,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no logits are recorded
        trainer = build_trainer(compose_recipe(values))
        trainer.fit()
        trainer.close()


def measure(encoders: str, seed: int) -> dict[str, Any]:
    """Return all accuracies and seconds for one way of setting pictures aside."""
    known_glyphs = glyphs()
    images = np.stack([glyph.picture for glyph in known_glyphs])
    codes, names = [glyph.code for glyph in known_glyphs], [glyph.name for glyph in known_glyphs]
    first = [name.split()[0] for name in names]
    prompts = [word for word, _ in Counter(first).most_common(CLASSES)]
    labels = torch.tensor([prompts.index(word) if word in prompts else -1 for word in first])
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    aside = order[labels[order] >= 0]
    aside = aside[: len(aside) // 10]
    known = order[~torch.isin(order, aside)]
    if encoders == "archived":
        made = archived(known, images, codes, names, prompts, seed)
    else:
        made = fitted(known, images, names, prompts)
    pictures, texts, asked, keys, known, facts = made
    truth = labels[aside]

    def space(k: int, power: float, partners: Tensor = known) -> RelativeSpace:
        made = RelativeSpace(k or len(known), power)
        made.add(keys[known], pictures[known], texts[partners])
        return made

    def right(made: RelativeSpace) -> Tensor:
        return made.similarity(pictures[aside], asked).argmax(1) == truth

    found: dict[str, Any] = {"encoders": encoders, "pairs": len(known), "classified": len(aside)}
    if "command" in facts:
        said = facts.pop("command")
        own = space(*SETTINGS[0]).similarity(pictures[aside.sort().values], asked).argmax(1).tolist()
        found["as_the_command"] = said == [prompts[number] for number in own]
    found |= facts
    found["accuracy"] = {f"{k},{power:g}": float(right(space(k, power)).double().mean()) for k, power in SETTINGS}
    shuffled = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed + 1))]
    found["shuffled"] = float(right(space(*SETTINGS[0], partners=shuffled)).double().mean())
    found["largest_class"] = float((truth == truth.mode().values).double().mean())
    made = space(*SETTINGS[0])
    before, own = right(made)[truth == 1], known[labels[known] == 1]
    made.remove(keys[own])
    found["one_class"] = {
        "with": float(before.double().mean()),
        "without": float(right(made)[truth == 1].double().mean()),
    }
    made_of = keys[known], pictures[known], texts[known]
    return {**found, **_timed(space(*SETTINGS[0]), made_of, (pictures[aside], asked))}


def _timed(made: RelativeSpace, pairs: tuple[Tensor, ...], asked: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Remove the first anchors and add them again, in another order."""
    before, (some, *again) = made.similarity(*asked), [part[:MANY] for part in pairs]
    began = time.process_time()
    made.remove(some)
    removed = time.process_time()
    made.add(some.flip(0), *(part.flip(0) for part in again))
    added = time.process_time()
    seconds = {"removed": removed - began, "added": added - removed}
    return {"anchors": MANY, "cpu_seconds": seconds, "bit_equal": torch.equal(made.similarity(*asked), before)}


def summary(records: Sequence[dict[str, Any]]) -> str:
    """Return means over the ways of setting pictures aside, for each kind of encoders."""
    kinds = {kind: [one for one in records if one["encoders"] == kind] for kind in ("archived", "fitted")}
    return "\n\n".join("\n".join(_lines(kind, some)) for kind, some in kinds.items() if some)


def _lines(kind: str, records: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        f"{kind} encoders, {len(records)} random splits, {records[0]['pairs']} pairs, {records[0]['classified']} "
        "pictures classified"
    ]

    def mean(values: Sequence[float]) -> str:
        return f"{100 * np.mean(values):5.1f} % ({100 * min(values):.1f} to {100 * max(values):.1f})"

    if kind == "archived":
        seconds = float(np.mean([one["training_seconds"] for one in records]))
        lines.append(f"both runs and their harvests: {seconds:.0f} s of the processor")
        same = all(one["as_the_command"] for one in records)
        lines.append(f"the command zero-shot gives {'the same' if same else 'OTHER'} answers for 800 anchors, power 8")
    for key in records[0]["accuracy"]:
        k, power = key.split(",")
        lines.append(
            f"{'all' if k == '0' else k:>5} anchors, power {power}: {mean([r['accuracy'][key] for r in records])}"
        )
    lines.append(f"largest class: {mean([one['largest_class'] for one in records])}")
    lines.append(f"shuffled pairs: {mean([one['shuffled'] for one in records])}; by chance: {100 / CLASSES:.1f} %")
    pairs = [mean([one["one_class"][key] for one in records]) for key in ("with", "without")]
    lines.append(f"one class with its anchors: {pairs[0]}, without them: {pairs[1]}")
    added, removed = (max(one["cpu_seconds"][key] for one in records) for key in ("added", "removed"))
    equal = all(one["bit_equal"] for one in records)
    lines.append(
        f"{records[0]['anchors']:,} anchors added in at most {added:.3f} s of the processor (goal 1), removed in "
        f"{removed:.3f} s; similarities after removing and adding again are {'' if equal else 'NOT '}bit-equal"
    )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the splits that are missing, or print the summary; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", choices=("archived", "fitted"), default="archived")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--out", default=str(OUT))
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args(argv)
    out = ResultsFile(options.out)
    if not options.summary:
        torch.set_num_threads(1)
        done = {(one["encoders"], one["seed"]) for one in out.records()}
        for seed in range(options.splits):
            if (options.encoders, seed) not in done:
                found = measure(options.encoders, seed)
                out.append({"seed": seed, **found, **surroundings(), "command": command_line(__file__)})
    print(summary(out.records()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
