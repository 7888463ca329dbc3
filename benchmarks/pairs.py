"""Does a space of pairs classify pictures of glyphs by words, without training, and how fast are pairs added?

The pairs are the glyphs of DejaVu Sans and their names, such as GREEK SMALL LETTER ALPHA. The encoders know nothing of
the pairs: the pictures' principal components (100, whitened), and tf-idf of words and letters of the names, of which a
truncated singular value decomposition keeps 100. Classes are the 15 most frequent first words of the names, each given
by its own word as the prompt; a tenth of the pictures of these classes are classified and are no anchors.

- accuracy over k and power, beside the largest class and beside shuffled pairs (each picture with another one's name);
- of one class (the second most frequent): its accuracy with all anchors and without those of the class;
- CPU seconds for 1,000 anchors added to the others and for their removal, and whether similarities are bit-equal after.

    python benchmarks/pairs.py                # a minute on one core
    python benchmarks/pairs.py --summary
"""

from __future__ import annotations

import argparse
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from glyphs import picture
from job_runner import ResultsFile, command_line, surroundings
from matplotlib.font_manager import get_font
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_union
from torch import Tensor

from reuse_algos.pairs import RelativeSpace

OUT = Path(__file__).parent / "results" / "pairs.jsonl"
CLASSES, SIZE, MANY = 15, 100, 1000
SETTINGS = ((800, 8.0), (200, 8.0), (200, 1.0), (0, 1.0))  # k and power; 0: all anchors


def glyphs() -> tuple[np.ndarray, list[str]]:
    """Return pictures ``[N, 784]`` from 0 to 1 and their names."""
    font = get_font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"))
    font.set_size(18, 72)
    images, names = [], []
    for code in sorted(font.get_charmap()):
        name = unicodedata.name(chr(code), "")
        if name and (image := picture(font, code)) is not None:
            images.append(image.ravel() / 255)
            names.append(name)
    return np.stack(images), names


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


def measure(seed: int) -> dict[str, Any]:
    """Return all accuracies and seconds for one way of setting pictures aside."""
    images, names = glyphs()
    first = [name.split()[0] for name in names]
    prompts = [word for word, _ in Counter(first).most_common(CLASSES)]
    labels = torch.tensor([prompts.index(word) if word in prompts else -1 for word in first])
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    aside = order[labels[order] >= 0]
    aside = aside[: len(aside) // 10]
    known = order[~torch.isin(order, aside)]
    pictures, texts, asked = encoded(known.numpy(), images, names, prompts)
    truth = labels[aside]

    def space(k: int, power: float, keys: Tensor = known, partners: Tensor = known) -> RelativeSpace:
        made = RelativeSpace(k or len(keys), power)
        made.add(keys, pictures[keys], texts[partners])
        return made

    def right(made: RelativeSpace) -> Tensor:
        return made.similarity(pictures[aside], asked).argmax(1) == truth

    found: dict[str, Any] = {"pairs": len(known), "classified": len(aside)}
    found["accuracy"] = {f"{k},{power:g}": float(right(space(k, power)).double().mean()) for k, power in SETTINGS}
    shuffled = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed + 1))]
    found["shuffled"] = float(right(space(*SETTINGS[0], partners=shuffled)).double().mean())
    found["largest_class"] = float((truth == truth.mode().values).double().mean())
    made = space(*SETTINGS[0])
    before, own = right(made)[truth == 1], known[labels[known] == 1]
    made.remove(own)
    found["one_class"] = {
        "with": float(before.double().mean()),
        "without": float(right(made)[truth == 1].double().mean()),
    }
    return {**found, **_timed(space(*SETTINGS[0]), known, pictures, texts, (pictures[aside], asked))}


def _timed(
    made: RelativeSpace, known: Tensor, pictures: Tensor, texts: Tensor, asked: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """Remove the first anchors and add them again, in another order."""
    before, some = made.similarity(*asked), known[:MANY]
    began = time.process_time()
    made.remove(some)
    removed = time.process_time()
    again = some.flip(0)
    made.add(again, pictures[again], texts[again])
    added = time.process_time()
    seconds = {"removed": removed - began, "added": added - removed}
    return {"anchors": MANY, "cpu_seconds": seconds, "bit_equal": torch.equal(made.similarity(*asked), before)}


def summary(records: Sequence[dict[str, Any]]) -> str:
    """Return means over the ways of setting pictures aside."""
    lines = [
        f"{len(records)} random splits, {records[0]['pairs']} pairs, {records[0]['classified']} pictures classified"
    ]

    def mean(values: Sequence[float]) -> str:
        return f"{100 * np.mean(values):5.1f} % ({100 * min(values):.1f} to {100 * max(values):.1f})"

    for key in records[0]["accuracy"]:
        k, power = key.split(",")
        lines.append(
            f"{'all' if k == '0' else k:>5} anchors, power {power}: {mean([r['accuracy'][key] for r in records])}"
        )
    lines.append(f"largest class: {mean([one['largest_class'] for one in records])}")
    lines.append(f"shuffled pairs: {mean([one['shuffled'] for one in records])}")
    pairs = [mean([one["one_class"][key] for one in records]) for key in ("with", "without")]
    lines.append(f"one class with its anchors: {pairs[0]}, without them: {pairs[1]}")
    added, removed = (max(one["cpu_seconds"][key] for one in records) for key in ("added", "removed"))
    equal = all(one["bit_equal"] for one in records)
    lines.append(
        f"{records[0]['anchors']:,} anchors added in at most {added:.3f} s of the processor (goal 1), removed in "
        f"{removed:.3f} s; similarities after removing and adding again are {'' if equal else 'NOT '}bit-equal"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the splits that are missing, or print the summary; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--out", default=str(OUT))
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args(argv)
    out = ResultsFile(options.out)
    if not options.summary:
        torch.set_num_threads(1)
        done = {one["seed"] for one in out.records()}
        for seed in range(options.splits):
            if seed not in done:
                out.append({"seed": seed, **measure(seed), **surroundings(), "command": command_line(__file__)})
    print(summary(out.records()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
