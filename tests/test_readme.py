"""What the README shows runs."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from reuse_algos import RunArchive
from toy import blobs, mlp

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def _snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_two_lines_in_somebody_s_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippet is executed twice: the first run has nothing to learn from yet and only records."""
    (snippet,) = [code for code in _snippets("python") if "Trainer(" in code]
    added = [line for line in snippet.splitlines() if "# +" in line]
    assert len(added) == 2, "the README promises two added lines"
    monkeypatch.chdir(tmp_path)
    results = []
    for run in ("first", "second"):
        first = run == "first"
        lines = [line for line in snippet.splitlines() if not (first and line.strip().startswith("algorithms="))]
        model = mlp(seed=len(results))
        scope: dict[str, Any] = {
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
            "train_dataloader": DataLoader(blobs(), batch_size=16, shuffle=True),
            "eval_dataloader": DataLoader(blobs(32, seed=9), batch_size=32),
        }
        with warnings.catch_warnings():
            exec(compile("\n".join(lines), "README.md", "exec"), scope)
        scope["trainer"].close()
        results.append(scope["trainer"])
    archive = RunArchive(tmp_path / "archive", create=True)
    first, second = archive.runs(order="first")
    assert [use.run_id for use in second.manifest.prior_runs] == [first.id]
    assert "reuse/distillation/loss" in second.metric_names
    assert "reuse/distillation/loss" not in first.metric_names


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
    assert len(commands) >= 6
    for command in commands:
        assert parser.parse_args(command.split()).run is not None
