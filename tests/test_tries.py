"""benchmarks/tries.py: what single tries came to."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import tries


def test_the_best_of_each_duration_comes_first_and_the_last_word_on_a_seed_counts() -> None:
    def line(name: str, epochs: int, seed: int, final: float) -> dict[str, object]:
        return {"name": name, "max_duration": f"{epochs}ep", "seed": seed, "final": final}

    records = [
        line("worse", 5, 11, 0.30),
        line("better", 5, 11, 0.99),
        line("better", 5, 12, 0.42),
        line("better", 5, 11, 0.40),
        line("longer", 10, 11, 0.45),
    ]
    assert [row.split(maxsplit=3) for row in tries.summary(records).splitlines()[1:]] == [
        ["5", "2", "41.0", "better"],
        ["5", "1", "30.0", "worse"],
        ["10", "1", "45.0", "longer"],
    ]
