"""What simple methods reach on the texts of the studies: the lines that a transformer has to pass.

    python benchmarks/text_lines.py bbc_news      # tf-idf + logistic regression, accuracy
    python benchmarks/text_lines.py city_names    # n-grams up to order 5, cross entropy per character in nats

The texts, their split and their vocabulary are those of the recipes ``text/<name>/baseline``. One JSON line at the end
of ``--out``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch

from reuse_algos.data.datasets.load import load_datasets
from reuse_algos.data.text import load_corpus
from reuse_algos.data.text.dataset import corpus_info
from reuse_algos.recipe import load_recipe
from reuse_algos.recipe.shipped import shipped_recipe

RESULTS = Path(__file__).parent / "results" / "text_lines.jsonl"


def tf_idf_accuracy(train: list[str], labels: list[int], held: list[str], held_labels: list[int]) -> float:
    """Return the accuracy of logistic regression on word weights, with scikit-learn's defaults."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(sublinear_tf=True)
    model = LogisticRegression(max_iter=1000, C=10.0).fit(words.fit_transform(train), labels)
    return float(model.score(words.transform(held), held_labels))


def n_gram_entropy(train: list[list[int]], held: list[list[int]], order: int, vocabulary: int) -> float:
    """Return the cross entropy per token of n-grams with Witten-Bell smoothing down to a uniform distribution.

    Args:
        train: Token ids of each text.
        held: Texts for evaluation; the first token of each is not judged.
        order: Longest context + 1.
        vocabulary: Number of tokens.
    """
    counts: list[dict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(order)]
    for text in train:
        for place in range(1, len(text)):
            for length in range(min(order, place + 1)):
                counts[length][tuple(text[place - length : place])][text[place]] += 1
    total, number = 0.0, 0
    for text in held:
        for place in range(1, len(text)):
            chance = 1.0 / vocabulary
            for length in range(min(order, place + 1)):
                seen = counts[length].get(tuple(text[place - length : place]))
                if seen:
                    tokens, kinds = sum(seen.values()), len(seen)
                    chance = (seen[text[place]] + kinds * chance) / (tokens + kinds)
            total -= math.log(chance)
            number += 1
    return total / number


def line(name: str, root: str | None) -> dict[str, Any]:
    """Return the facts of one dataset's line."""
    config = load_recipe(
        shipped_recipe(f"text/{name}/baseline"), [] if root is None else [f"data.root={root}"]
    ).settings.data
    loaded = load_datasets(config)
    if name == "city_names":
        texts = []
        for part in (loaded.train, loaded.eval):
            rows = (part[position] for position in range(len(part)))  # type: ignore[arg-type,index]
            texts.append([row["input_ids"][: int(row["attention_mask"].sum())].tolist() for row in rows])
        values = {f"order {order}": n_gram_entropy(*texts, order, loaded.num_classes) for order in (1, 2, 3, 4, 5)}
        return {"metric": "cross entropy per character, nats", "values": values}
    corpus = load_corpus(name, root)
    of_key = dict(zip(corpus_info(corpus, name).keys.tolist(), corpus.texts, strict=True))
    parts: list[Any] = []
    for info in (loaded.info, loaded.eval_info):
        assert isinstance(info.labels, torch.Tensor)
        parts += [[of_key[key] for key in info.keys.tolist()], info.labels.tolist()]
    values = {"tf-idf + logistic regression": tf_idf_accuracy(*parts)}
    others = other_splits(list(corpus.texts), [int(label) for label in corpus.labels], len(parts[0]))
    return {"metric": "accuracy", "values": values, "held": len(parts[2]), "other_splits": others}


def other_splits(texts: list[str], labels: list[int], train: int, number: int = 8) -> list[float]:
    """Return the accuracy of the line where other texts are held out: seeds 0, 1, ... draw the training texts."""
    found = []
    for seed in range(number):
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
        parts = ([one[row] for row in rows] for rows in (order[:train], order[train:]) for one in (texts, labels))
        found.append(tf_idf_accuracy(*parts))  # type: ignore[arg-type]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("bbc_news", "city_names"))
    parser.add_argument("--root", help="folder of the data, where it is not an installed package")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    began = time.perf_counter()
    found = {"name": arguments.name, **line(arguments.name, arguments.root)}
    found["seconds"] = round(time.perf_counter() - began, 1)
    with arguments.out.open("a") as file:
        file.write(json.dumps(found) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
