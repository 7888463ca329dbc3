"""What the README shows runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.utils.data import DataLoader

from reuse_algos import RunArchive
from reuse_algos.algorithms.adversarial_replay.checks import TASKS
from reuse_algos.training.tasks.task import Kind
from toy import blobs, mlp

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def _snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_two_lines_in_somebody_s_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippet is executed twice as it is: the first run finds an empty archive and only records."""
    (snippet,) = [code for code in _snippets("python") if "Trainer(" in code]
    added = [line for line in snippet.splitlines() if "# +" in line]
    assert len(added) == 2, "the README promises two added lines"
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        model = mlp(seed=seed)
        scope: dict[str, Any] = {
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
            "train_dataloader": DataLoader(blobs(), batch_size=16, shuffle=True),
            "eval_dataloader": DataLoader(blobs(32, seed=9), batch_size=32),
        }
        exec(compile(snippet, "README.md", "exec"), scope)
        scope["trainer"].close()
    first, second = RunArchive(tmp_path / "archive").runs(order="first")
    assert first.tags == second.tags == {"method": "mine"}
    assert first.manifest.prior_runs == []
    (decision,) = second.manifest.decisions.values()
    assert "the same model on the same data" in decision


def test_figures_are_those_of_the_results_page() -> None:
    """Each interval of the README's table stands on the page that is built from raw values."""
    page = re.sub(r"\s+", " ", (ROOT / "benchmarks" / "RESULTS.md").read_text())
    found = re.findall(r"\| ([\d.]+) times \[([\d.]+), ([\d.]+)\] \|", README)
    assert len(found) == 7
    for value, low, high in found:
        assert f"{value} [{low}, {high}]" in page, value


def test_the_table_of_tasks_is_what_the_algorithms_say() -> None:
    rows = [line.split("|") for line in README.splitlines() if line.startswith("| ") and line.count("|") == 7]
    table = {row[1].strip(): [cell.strip() for cell in row[2:6]] for row in rows if row[1].strip() != "task"}
    assert list(table) == list(get_args(Kind))
    for name, (distilled, _, replayed, _) in table.items():
        assert ("kl" in distilled) == (name not in ("regression", "detection"))
        assert (replayed == "yes") == (name in TASKS)


def test_commands_and_links_exist() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", README):
        assert (ROOT / target).exists(), target
    for path in re.findall(r"yamls/[\w/]+\.yaml", README):
        assert (ROOT / path).is_file(), path
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_commands_parse() -> None:
    from reuse_algos.cli import build_parser

    parser = build_parser()
    commands = re.findall(r"^ *reuse-algos (.+?)(?:  +#.*)?$", "\n".join(_snippets("bash")), flags=re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        assert parser.parse_args(command.split()).run is not None
