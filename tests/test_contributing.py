"""The walk through the code in CONTRIBUTING.md leads past files and functions that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
STOP = re.compile(r"^(\d+)\. `([^`]+)`, `([\w.]+)`:", re.MULTILINE)


def _names(path: Path) -> set[str]:
    """Functions, and methods as ``Class.method``, that a file defines."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, functions):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, functions)}
    return names


def test_the_walk_has_at_most_ten_stops_and_each_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    stops = STOP.findall(text)
    assert [int(number) for number, _, _ in stops] == list(range(1, len(stops) + 1))
    assert 5 <= len(stops) <= 10
    assert len(stops) == len(re.findall(r"^\d+\. ", text, re.MULTILINE))
    missing = [f"{path}: {name}" for _, path, name in stops if name not in _names(ROOT / path)]
    assert not missing
    assert (ROOT / "yamls/digits/distilled.yaml").exists()
