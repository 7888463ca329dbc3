"""The documentation is executed: each page in a folder of its own, its blocks in their printed order.

A page's ``bash`` blocks go through the commands' own entry points in this process, its ``python`` blocks share one
namespace, and its ``yaml`` blocks that begin with ``# file: NAME`` are written to that file. Training is cut short by
overrides (``_SHORT``), so the commands run as printed and end soon. A comment behind a command says what is special:

* ``# needs ...``, ``# takes ...``, ``# starts ...``: it is parsed, and not run;
* ``# may refuse: ...``: with so little data the answer may be :class:`NotEnoughEvidenceError`.

``composer --world_size`` starts processes, as its ranks are to find each other; those with ``&`` behind them are waited
for by the next one without.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from composer.cli.launcher import get_free_tcp_port

from forked_python import forked_python
from reuse_algos import algorithms, callbacks, cli, errors, train
from reuse_algos.recipe.shipped import shipped_recipe

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
NOTEBOOK = DOCS / "walk.ipynb"

_SHORT = ("data.train_examples=60", "max_duration=1ep", "callbacks.run_recorder.weights=[init, last]")
_FENCE = re.compile(r"^```(bash|python|yaml)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_OF_THE_USER = ("mine.yaml", "pool.yaml", "RECIPE.yaml")  # files that a reader writes
_NOT_RUN = ("needs ", "takes ", "starts ")
# Of an extra, which a page cannot run without.
_PACKAGES = {"hugging_face.md": "transformers", "streams.md": "streaming"}


def _blocks(page: Path) -> list[tuple[str, str]]:
    return _FENCE.findall(page.read_text(encoding="utf-8"))


def _commands(text: str) -> Iterator[tuple[list[str], str]]:
    """Words of each command of a bash block, and the comment behind it."""
    for line in text.replace("\\\n", " ").splitlines():
        command, _, comment = line.partition(" #")
        if command.strip() and not command.startswith("#"):
            yield shlex.split(command), comment.strip()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, with the shipped recipes where a clone has them."""
    (tmp_path / "yamls").symlink_to(ROOT / "yamls")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def _shortened(words: list[str]) -> list[str]:
    """A training command with fewer examples and epochs; a duration that is printed is kept."""
    keys = {word.partition("=")[0] for word in words}
    recipe = Path(words[1]) if Path(words[1]).is_file() else shipped_recipe(words[1])
    callbacks = yaml.safe_load(recipe.read_text())["callbacks"]
    short = [word for word in _SHORT if word.partition("=")[0] not in keys]
    if "robust_evaluation" in callbacks:
        short.append("callbacks.robust_evaluation.examples=8")
    if "training_instruments" in callbacks:
        short.append("callbacks.training_instruments.every=2ba")
    return [*words, *short]


def _run(words: list[str], comment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = words[0]
    if program == "export":
        name, _, value = words[1].partition("=")
        monkeypatch.setenv(name, value)
        return
    if program in ("pip", "make", "wandb", "flower-superlink", "flower-supernode", "flwr"):
        assert comment.startswith(_NOT_RUN), f"{' '.join(words)}: not run here, and the page does not say why"
        return
    if program == "composer" and "--world_size" in words:
        _run_node(words)
        return
    if program == "composer":
        assert words[1:5] == ["-n", words[2], "-m", "reuse_algos.train"], words
        words, program = ["reuse-algos", "train", *words[5:]], "reuse-algos"
    assert program == "reuse-algos", words
    parsed = cli.build_parser().parse_args(words[1:])
    assert parsed.run is not None
    if comment.startswith(_NOT_RUN):
        return
    code = _execute(_shortened(words[1:]) if words[1] == "train" else words[1:])
    allowed = (0, 2) if comment.startswith("may refuse") else (0,)
    assert code in allowed, f"{' '.join(words)} ended with {code}"


_nodes: list[subprocess.Popen[str]] = []
_port: list[str] = []


def _run_node(words: list[str]) -> None:
    """Start the processes of one node; where it is the last one, wait for all nodes."""
    behind = words[-1] == "&"
    own = words[1:-1] if behind else words[1:]
    if not _nodes:
        _port[:] = [str(get_free_tcp_port())]
    own[own.index("--master_port") + 1] = _port[0]  # what the page names may be taken
    place = own.index("reuse_algos.train")
    command = [forked_python(), "-m", "composer.cli.launcher", *own[:place], *_shortened(own[place:])]
    _nodes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    if not behind:
        nodes = [*_nodes]
        _nodes.clear()
        for node in nodes:
            said, _ = node.communicate(timeout=600)
            assert node.returncode == 0, said


def _execute(arguments: list[str]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train.main(arguments[1:]) if arguments[0] == "train" else cli.main(arguments)


def _execute_python(code: str, name: str, scope: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, name, "exec"), scope)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_page_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if package := _PACKAGES.get(page.name):
        pytest.importorskip(package)
    scope: dict[str, Any] = {"__name__": page.stem}
    for language, text in _blocks(page):
        if language == "python":
            _execute_python(text, str(page), scope)
        elif language == "yaml":
            assert isinstance(yaml.safe_load(text), dict)
            if found := re.match(r"# file: (\S+)\n", text):
                (folder / found[1]).write_text(text, encoding="utf-8")
        else:
            for words, comment in _commands(text):
                _run(words, comment, monkeypatch)


def test_the_notebook_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells run in order with fewer epochs, and what it shows is stored in it."""
    import matplotlib.pyplot as plt

    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(folder / "notebook"))
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    scope: dict[str, Any] = {"__name__": "walk"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            code = re.sub(r"max_duration=\d+ep", "max_duration=1ep", "".join(cell["source"]))
            _execute_python(code, "walk.ipynb", scope)
    plt.close("all")
    shown = [cell for cell in notebook["cells"] if cell.get("outputs")]
    assert len(shown) >= 5, "the notebook is stored without its outputs: run it, and store them"
    assert len(scope["archive"].run_ids()) == 7


def test_each_error_has_an_entry() -> None:
    """A heading for each class, with more below it than the heading."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    classes = {name for name in errors.__all__ if inspect.isclass(getattr(errors, name))}
    entries = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", page, flags=re.DOTALL | re.MULTILINE))
    assert entries.keys() == classes
    for name, text in entries.items():
        assert len(text.split()) >= 12, name
        for base in getattr(errors, name).__bases__:
            if base.__module__ == "builtins" and base not in (Exception, UserWarning):
                assert f"`{base.__name__}`" in text, f"{name} is also a {base.__name__}"


def test_the_page_of_techniques_has_all_of_them() -> None:
    text = (DOCS / "guides" / "techniques.md").read_text()
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert rows == {*algorithms.__all__, *callbacks.__all__} - {"ReusingAlgorithm"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_lead_somewhere_and_sentences_are_short(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (page.parent / target).is_file(), target
    for path in re.findall(r"yamls/[\w/]+\.yaml", text):
        assert (ROOT / path).is_file(), path
    prose = re.sub(r"^(```|:::|#|\||\d\.|- ).*?$", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.M)
    sentences = [s for s in re.split(r"[.:?!]\s+|\n\n", prose) if len(s.split()) > 2]
    words = sum(len(sentence.split()) for sentence in sentences)
    assert words <= 20 * max(len(sentences), 1), f"{words / len(sentences):.1f} words in a sentence"


def _parsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield "", parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, one in action.choices.items():
                for inner, found in _parsers(one):
                    yield f"{name} {inner}".strip(), found


def test_files_that_help_texts_name_exist_and_their_examples_parse() -> None:
    """Every .yaml that a help text gives as an example is one that comes with the library, or the reader's own."""
    parser = cli.build_parser()
    texts = {name: one.format_help() for name, one in _parsers(parser)}
    texts["launcher"] = train._parser().format_help()
    examples = 0
    for name, text in texts.items():
        for file in re.findall(r"[\w./]+\.yaml", text):
            assert file in _OF_THE_USER or (ROOT / file).is_file(), f"{name}: {file}"
        for command in re.findall(r"^ +reuse-algos (\w.+)$", text.partition("examples:\n")[2], flags=re.MULTILINE):
            assert parser.parse_args(shlex.split(command)).run is not None, command
            examples += 1
        for recipe in re.findall(r"reuse-algos (?:train|sequence) (\w+/\w+)(?=\s|$)", text):
            assert shipped_recipe(recipe).is_file()
    assert examples >= 30


def test_sphinx_builds_the_pages_without_a_warning(tmp_path: Path) -> None:
    """Only where the extra ``docs`` is installed, as it is with the extra ``dev``."""
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    build_main = pytest.importorskip("sphinx.cmd.build").build_main
    path = list(sys.path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = build_main(
                ["-q", "-W", "--keep-going", "-b", "html", "-d", str(tmp_path / "t"), str(DOCS), str(tmp_path / "html")]
            )
    finally:
        sys.path[:] = path
    assert code == 0
    reference = (tmp_path / "html" / "api" / "algorithms.html").read_text(encoding="utf-8")
    assert 'id="reuse_algos.algorithms.PriorRunDistillation"' in reference
    assert "data:image/png" in (tmp_path / "html" / "walk.html").read_text(encoding="utf-8")


def test_the_page_of_other_setups_names_tests_that_exist() -> None:
    page = (DOCS / "guides" / "other_setups.md").read_text(encoding="utf-8")
    named = sorted(set(re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", page)))
    assert len(named) > 50
    tests = Path(__file__).parent
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (tests / file).is_file() or (name and f"def {name}(" not in (tests / file).read_text(encoding="utf-8"))
    ]
    assert missing == []
