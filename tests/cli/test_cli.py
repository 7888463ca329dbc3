"""The ``reuse-algos`` command on real archives of made-up runs."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reuse_algos
import reuse_algos.train as train_module
from archive.torture.hostile import sealed as reseal
from compare.synthetic_runs import METRIC, noisy, write_run
from reuse_algos.archive import (
    DatasetRecord,
    EnvironmentRecord,
    HarvestRecord,
    ModelRecord,
    PriorUse,
    RunArchive,
)
from reuse_algos.cli import build_parser, main
from reuse_algos.errors import ArchiveError, RunNotFoundError
from reuse_algos.recipe.compose import load_recipe
from reuse_algos.recipe.shipped import shipped_recipe
from reuse_algos.sequence import load_sequence

ROOT = Path(__file__).parents[2]
X = np.arange(1, 11) / 10


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An archive with three baseline runs, three quicker ones, a diverged and an unfinished one."""
    archive = RunArchive(tmp_path_factory.mktemp("cli") / "archive", create=True)
    rng = np.random.default_rng(0)
    ids: dict[str, Any] = {"path": str(archive.root)}
    ids["baseline"] = [write_run(archive, "baseline", seed, noisy(rng, 0.3 + 0.4 * X)) for seed in range(3)]
    use = PriorUse(
        run_id=ids["baseline"][0], algorithm="prior_run_distillation", signals=["logits"], harvest_seconds=2.0
    )
    ids["quick"] = [
        write_run(archive, "quick", seed, noisy(rng, 0.3 + 0.7 * X), prior_runs=[use], tags={"study": "digits"})
        for seed in range(3)
    ]
    ids["diverged"] = write_run(archive, "odd", 0, [0.5, float("nan")], health="diverged")
    ids["unfinished"] = write_run(archive, "odd", 1, [0.5, 0.6], finish=False)
    ids["full"] = write_full_run(archive)
    return ids


def write_full_run(archive: RunArchive) -> str:
    """A run with weights, signals and every record."""
    meta = {"epoch": 0, "source": "capture", "encoding": "dense", "num_classes": 2}
    some = {"ids": torch.arange(3), "values": torch.zeros(3, 2, dtype=torch.float16)}
    every = {"ids": torch.arange(4), "values": torch.ones(4, 2, dtype=torch.float16)}
    return write_run(
        archive,
        "full",
        7,
        0.1 * X,
        setup_seconds=1.5,
        tags={"study": "digits"},
        put=[
            ("weights", "last", {"w": torch.zeros(3)}),
            ("signals", "logits", some, {**meta, "slot": 0, "view": 0}),
            ("signals", "logits", every, {**meta, "slot": 1, "view": 1}),
        ],
        dataset=DatasetRecord(
            name="digits", num_examples=4, fingerprint="f" * 64, num_classes=2, num_views=2, view_seed=0
        ),
        model=ModelRecord(name="digits_cnn", num_parameters=1234, flops_per_example=5_000_000),
        environment=EnvironmentRecord(versions={"torch": "2.7.0"}, hardware={"name": "abacus"}, git_commit="abc"),
        recipe={"max_duration": "10ep", "optimizer": {"name": "sgd", "lr": 0.1}},
        harvests=[HarvestRecord(signal="logits", views=[0, 1], weights="last", seconds=3.5, hardware="abacus")],
    )


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command that must fail with exit code 2 says: one message, no traceback, nothing on stdout."""
    code, out, err = call(capsys, *argv)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    return err


def test_help_is_fast_because_nothing_heavy_is_imported() -> None:
    check = (
        "import sys; from reuse_algos.cli import main; code = main(['--help']); "
        "heavy = {'torch', 'composer', 'numpy', 'scipy', 'matplotlib', 'rich', 'wandb'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy or code else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("train", "runs", "show", "verify", "harvest", "scores", "compare", "recommend", "demo"):
        assert f"\n    {command}" in done.stdout


def test_commands_that_read_an_archive_do_not_import_the_trainer(tmp_path: Path) -> None:
    RunArchive(tmp_path, create=True)
    check = (
        "import sys; from reuse_algos.cli import main; import reuse_algos.compare.show.page; "
        f"code = main(['runs', {str(tmp_path)!r}]); heavy = {{'composer', 'transformers'}} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy or code else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command", ["train", "runs", "show", "verify", "harvest", "scores", "compare", "recommend", "demo"]
)
def test_every_command_explains_itself_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert f"examples:\n  reuse-algos {command}" in out
    if command not in ("train", "demo"):
        assert "REUSE_ALGOS_ARCHIVE" in out
    assert max(len(line) for line in out.splitlines()) <= 100


def _help_texts() -> dict[str, str]:
    """Every help text of the program, with those of sub-commands, by its words."""
    texts, todo = {"train.py": train_module._parser().format_help()}, [("reuse-algos", build_parser())]
    while todo:
        words, parser = todo.pop()
        texts[words] = parser.format_help()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                todo += [(f"{words} {name}", one) for name, one in action.choices.items()]
    return texts


def test_every_file_that_a_help_text_names_opens() -> None:
    """Recipes and sequences load. Pictures, pages and JSON are written, and two files are the reader's own."""
    own = {"classes.txt", "pool.yaml"}
    texts, opened = _help_texts(), set()
    for words, text in texts.items():
        for found in re.findall(r"[\w./-]+\.(?:yaml|txt|npy|npz|csv)\b", text):
            if found.startswith("yamls/sequences/"):
                assert load_sequence(ROOT / found, ["archive=x"]).arms, f"{words}: {found}"
            elif found.startswith("yamls/"):
                assert load_recipe(ROOT / found).settings.model is not None, f"{words}: {found}"
            else:
                assert found.split("/")[-1] in own, f"{words}: {found} is not in the repository"
                continue
            opened.add(found)
        for found in re.findall(r"^  reuse-algos train ([\w/]+)(?= |$)", text, flags=re.MULTILINE):
            assert load_recipe(shipped_recipe(found)).settings.model is not None, f"{words}: {found}"
            opened.add(found)
    assert {"yamls/digits/baseline.yaml", "yamls/sequences/five_seeds.yaml"} <= opened
    assert len(texts) > 15


def test_wrong_usage_is_two(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert "COMMAND" in refused(capsys)
    assert "invalid choice" in refused(capsys, "trian")
    assert "at least 1" in refused(capsys, "runs", made["path"], "--limit", "0")
    assert "at least 1" in refused(capsys, "harvest", made["path"], "x", "--views", "many")
    assert "KEY=VALUE" in refused(capsys, "runs", made["path"], "--tag", "method")
    assert "which archive?" in refused(capsys, "runs")
    assert "named twice" in refused(capsys, "runs", made["path"], "--archive", made["path"])
    assert "invalid float" in refused(capsys, "compare", made["path"], "--target", "high")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--version")
    assert code == 0
    assert out.startswith("reuse-algos ")


def test_the_three_ways_to_name_an_archive(
    made: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = made["full"]
    expected = call(capsys, "show", made["path"], run)
    assert expected[0] == 0
    assert call(capsys, "show", run, "--archive", made["path"]) == expected
    monkeypatch.setenv("REUSE_ALGOS_ARCHIVE", made["path"])
    assert call(capsys, "show", run) == expected
    assert call(capsys, "show", "--json", run)[0] == 0
    assert call(capsys, "runs")[0] == 0
    assert "no archive" in refused(capsys, "show", run, "--archive", str(tmp_path))
    # verify has two optional arguments: a single one is the run unless it is a folder.
    assert "1 runs" in call(capsys, "verify", run)[1]
    assert "9 runs" in call(capsys, "verify", made["path"])[1]
    assert "9 runs" in call(capsys, "verify")[1]
    assert "1 runs" in call(capsys, "verify", made["path"], run)[1]


def test_an_archive_that_is_none_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        assert "archive" in refused(capsys, "runs", str(path))
    file = tmp_path / "file"
    file.write_text("")
    assert str(file) in refused(capsys, "runs", str(file))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def ids_of(out: str) -> list[str]:
    return [run["run_id"] for run in json.loads(out)]


def test_runs_selects_and_orders(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = made["path"]
    everything = [*made["baseline"], *made["quick"], made["diverged"], made["unfinished"], made["full"]]
    healthy = [*made["baseline"], *made["quick"], made["full"]]
    assert ids_of(call(capsys, "runs", path, "--order", "first", "--json")[1]) == healthy
    assert ids_of(call(capsys, "runs", path, "--json")[1]) == healthy[::-1]
    assert ids_of(call(capsys, "runs", path, "--all", "--order", "first", "--json")[1]) == everything
    quick = ids_of(call(capsys, "runs", path, "--tag", "method=quick", "study=digits", "--json")[1])
    assert sorted(quick) == sorted(made["quick"])
    either = call(capsys, "runs", path, "--tag", "method=quick", "--tag", "method=baseline", "--json")[1]
    assert len(ids_of(either)) == 6
    _, out, _ = call(
        capsys, "runs", path, "--order", "best", "--limit", "2", "--metric", "MulticlassAccuracy", "--json"
    )
    finals = {run: RunArchive(path).run(run).final_metric() for run in healthy}
    best = sorted(finals, key=finals.__getitem__, reverse=True)[:2]
    assert ids_of(out) == best
    assert json.loads(out)[0]["final_metric"] == pytest.approx(finals[best[0]])
    error = refused(capsys, "runs", path, "--order", "best", "--metric", "MultiAccuracy")
    assert "the runs have no metric 'MultiAccuracy'" in error


def test_runs_says_what_there_is(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "runs", made["path"], "--all")
    assert code == 0
    assert "unfinished" in out
    assert "diverged" in out
    assert made["full"] in out
    assert max(len(line) for line in out.splitlines()) <= 100
    code, out, _ = call(capsys, "runs", made["path"], "--tag", "method=odd")
    assert code == 0
    assert "no runs match" in out
    assert "--all would show 2" in out
    # NaN is null in JSON, which the help says.
    odd = json.loads(call(capsys, "runs", made["path"], "--tag", "method=odd", "--all", "--json")[1])
    assert {run["run_id"]: run["final_metric"] for run in odd} == {made["diverged"]: None, made["unfinished"]: 0.6}


def test_show(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "show", made["path"], made["full"])
    assert code == 0
    for expected in (
        made["full"], "finished, ok", "method=full", "study=digits", "train 100 s", "setup 1.5 s",
        "FLOPs of training", METRIC,
        "(monitor, max)", "last", "logits  dense", "2 slots, 1 of them complete; 0: 75 %",
        "digits: 4 examples, 2 classes", "f" * 64,
        "digits_cnn: 1234 parameters, 5 MFLOPs", "abacus", "torch 2.7.0", "abc", "2 views with weights last: 3.5 s",
        "lr: 0.1", "captured, slot: epoch (from 0)  0: 0, 1: 0",
    ):  # fmt: skip
        assert expected in out, expected
    code, out, _ = call(capsys, "show", made["path"], "quick-0")
    assert f"{made['baseline'][0]}  prior_run_distillation: signals logits; harvest 2 s" in out
    assert "FLOPs" not in out


def test_show_json(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(call(capsys, "show", made["path"], made["full"], "--json")[1])
    assert facts["signals"]["logits"]["coverage_of_slots"] == {"0": 0.75, "1": 1.0}
    assert facts["signals"]["logits"]["num_examples"] == 4
    manifest = RunArchive(made["path"]).run(made["full"]).manifest
    sizes = {kind: sum(f.bytes for f in manifest.files if f.kind == kind) for kind in ("weights", "signals")}
    assert facts["signals"]["logits"]["bytes"] == sizes["signals"]
    assert facts["weights"] == {"last": sizes["weights"]}
    assert facts["metrics"] == {METRIC: {"final": 0.1, "best": 0.1}}
    assert facts["recipe"] == manifest.recipe
    assert facts["cost"]["setup_seconds"] == 1.5
    diverged = json.loads(call(capsys, "show", made["path"], made["diverged"], "--json")[1])
    assert diverged["metrics"][METRIC] == {"final": None, "best": 0.5}
    assert diverged["health"] == "diverged"


def test_an_unknown_run_is_named_with_its_neighbours(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "show", made["path"], "quick-9")
    assert error.startswith("reuse-algos: error: there is no run 'quick-9'")
    assert "quick-0" in error
    assert error.count("\n") == 1


def test_debug_shows_the_traceback(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["show", made["path"], "nope", "--debug"], ["--debug", "show", made["path"], "nope"]):
        code, _, err = call(capsys, *argv)
        assert code == 2
        assert "Traceback" in err
        assert "RunNotFoundError" in err


def test_verify_finds_a_flipped_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    good, bad = (write_run(archive, "m", seed, X) for seed in range(2))
    path = str(archive.root)
    code, out, _ = call(capsys, "verify", path)
    assert code == 0
    assert out.startswith("all is well: 2 runs, 2 files")
    (file,) = (archive.root / "runs" / bad / "data" / "metrics").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    code, out, _ = call(capsys, "verify", path)
    assert code == 1
    assert bad in out
    assert file.name in out
    assert "1 problems" in out
    assert call(capsys, "verify", path, good)[0] == 0
    code, out, _ = call(capsys, "verify", path, bad, "--json")
    report = json.loads(out)
    assert code == 1
    assert not report["ok"]
    assert [(p["run_id"], Path(p["path"]).name) for p in report["problems"]] == [(bad, file.name)]
    assert report["problems"][0]["what"]
    assert "no run" in refused(capsys, "verify", path, "nope")


def test_a_damaged_run_is_a_warning_line_in_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    good, bad = (write_run(archive, "m", seed, X) for seed in range(2))
    (manifest,) = (archive.root / "runs" / bad / "manifests").iterdir()
    manifest.write_bytes(b"{}")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, out, err = call(capsys, "runs", str(archive.root), "--json")
    assert code == 1  # not all of it could be read
    assert ids_of(out) == [good]
    assert err.startswith(f"reuse-algos: ArchiveWarning: run {bad} is left out")
    assert err.count("\n") == 1


def test_compare(made: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    methods = ("--tag", "method=baseline", "method=quick")
    plot = tmp_path / "plot.svg"
    code, out, _ = call(capsys, "compare", made["path"], *methods, "--plot", str(plot))
    assert code == 0
    assert "faster" in out
    assert f"plot: {plot}" in out
    assert plot.read_text().startswith("<?xml")
    _, out, _ = call(capsys, "compare", made["path"], *methods, "--json", "--target", "0.5", "--pairing", "none")
    plain = json.loads(out)
    assert (plain["target"], plain["method"], plain["groups"][1]["paired"]) == (0.5, "runs", False)
    assert plain["groups"][1]["verdict"] == "faster"
    # "No difference" is an answer, not a failure.
    code, out, _ = call(capsys, "compare", made["path"], *methods, "--baseline", "quick")
    assert code == 0
    assert "target not reached" in out


def test_compare_refuses(made: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = made["path"]
    assert "Did you mean 'baseline'" in refused(capsys, "compare", path, "--baseline", "basline", "--target", "0.5")
    assert "different numbers of steps" not in refused(capsys, "compare", path, "--group-by", "nonsense")
    assert ".png, .pdf, .svg" in refused(capsys, "compare", path, "--plot", str(tmp_path / "plot.gif"))
    assert "there is no folder" in refused(
        capsys, "compare", path, "--target", "0.5", "--plot", str(tmp_path / "nowhere" / "plot.png")
    )


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    """Replace a module of the package, so that a command can be tested without training."""
    module = types.ModuleType(f"reuse_algos.{name}")
    for key, value in functions.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, f"reuse_algos.{name}", module)
    monkeypatch.setattr(reuse_algos, name, module, raising=False)


def test_train_passes_its_arguments_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[list[str]] = []
    stand_in(monkeypatch, "train", main=lambda argv: seen.append(argv) or 0)
    assert call(capsys, "train", "recipe.yaml", "seed=3", "tags.method=a b", "data.classes=[1,2]")[0] == 0
    assert seen == [["recipe.yaml", "seed=3", "tags.method=a b", "data.classes=[1,2]"]]
    assert call(capsys, "train", "--check", "recipe.yaml", "seed=3")[0] == 0
    assert seen[1] == ["recipe.yaml", "seed=3", "--check"]
    assert "RECIPE" in refused(capsys, "train")


def test_demo_passes_its_arguments_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    stand_in(monkeypatch, "demo", run_demo=lambda folder, **options: seen.append((folder, *options.values())) or 1)
    assert call(capsys, "demo")[0] == 1
    assert call(capsys, "demo", "--folder", "x", "--seeds", "3", "--keep", "--all")[0] == 1
    assert seen == [(Path("demo"), None, False, False), (Path("x"), 3, True, True)]


@dataclasses.dataclass
class Harvested:
    """The fields of HarvestResult; a test below holds the two together."""

    run_id: str
    signal: str
    views: list[int]
    computed: list[int]
    rows: int
    bytes: int
    seconds: float
    rates: dict[str, float] = dataclasses.field(default_factory=dict)


def test_harvest_passes_its_arguments_on(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    path, run = made["path"], made["full"]

    def harvest(archive: RunArchive, run_id: str, **options: Any) -> list[Harvested]:
        seen.append((archive.archive_id, run_id, options))
        return [Harvested(run_id, "logits", [0, 1, 2], [1, 2], 8, 100, 2.5)]

    stand_in(monkeypatch, "harvest", harvest=harvest)
    code, out, _ = call(capsys, "harvest", "--signals", "logits, loss", path, run, "--views", "32")
    assert code == 0
    assert out == f"logits of {run}: 8 rows of 2 views; 3 views are complete; 2.5 s\n"
    options = ("--weights", "best", "--batch-size", "64", "--device", "cpu", "--top-k", "5", "--precision", "fp32")
    argv = (
        "harvest",
        "full-7",
        "--archive",
        path,
        *options,
        "--data",
        "root=/d",
        "--data",
        "download=true",
        "--trust-data",
        "--json",
    )
    _, out, _ = call(capsys, *argv)
    assert [one["seconds"] for one in json.loads(out)] == [2.5]
    nothing = dict.fromkeys(("views", "batch_size", "device", "top_k", "precision", "data"))
    archive_id = RunArchive(path).archive_id
    expected = {**nothing, "signals": ["logits", "loss"], "views": 32, "weights": "last", "progress": False}
    assert seen[0] == (archive_id, run, expected)
    expected = {
        "signals": ["logits"], "views": None, "weights": "best", "batch_size": 64, "device": "cpu", "top_k": 5,
        "precision": "fp32", "data": {"root": "/d", "download": True}, "progress": False,
        "trust_data": True,
    }  # fmt: skip
    assert seen[1] == (archive_id, run, expected)
    argv = (
        "harvest",
        path,
        run,
        "--signals",
        "el2n",
        "--signals",
        "grand",
        "--weights",
        "ep0001,last",
        "--memory",
        "2",
    )
    assert call(capsys, *argv)[0] == 0
    passed = [(o["signals"], o["weights"], o["memory_bytes"]) for *_, o in seen[2:]]
    assert passed == [(["el2n", "grand"], "ep0001", 2 << 20), (["el2n", "grand"], "last", 2 << 20)]
    assert "no run 'nope'" in refused(capsys, "harvest", path, "nope")
    assert "empty name" in refused(capsys, "harvest", path, run, "--signals", "logits,")
    assert "KEY=VALUE" in refused(capsys, "harvest", path, run, "--data", "root")
    assert "not YAML" in refused(capsys, "harvest", path, run, "--data", "root=[")


def test_commands_fit_the_functions_that_they_call() -> None:
    """The stand-ins above accept anything; the real functions must accept what the commands pass."""
    from reuse_algos.demo import run_demo
    from reuse_algos.harvest import HarvestResult
    from reuse_algos.harvest import harvest as real_harvest
    from reuse_algos.train import main as real_train

    assert [f.name for f in dataclasses.fields(HarvestResult)] == [f.name for f in dataclasses.fields(Harvested)]
    names = ("signals", "views", "weights", "top_k", "batch_size", "device", "precision", "data", "progress")
    inspect.signature(real_harvest).bind(
        "archive", "run", **dict.fromkeys((*names, "memory_bytes", "attack", "bits", "replace"))
    )
    inspect.signature(real_train).bind(["recipe.yaml"])
    inspect.signature(run_demo).bind(Path("demo"), seeds=3, keep=False, everything=True)


def test_interruption_and_errors_of_others(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> Any:
        def main(argv: list[str]) -> int:
            raise error

        return main

    def raising(args: Any) -> int:
        raise KeyboardInterrupt

    stand_in(monkeypatch, "train", main=fail(KeyboardInterrupt()))
    assert call(capsys, "train", "r.yaml")[0] == 130
    for command in (["sequence", "s.yaml"], ["harvest", "a", "r"], ["label", "a", "r", "--data", "d", "--name", "n"]):
        args = build_parser().parse_args(command)
        monkeypatch.setattr(
            "reuse_algos.cli._parsed", lambda argv, args=args: argparse.Namespace(**{**vars(args), "run": raising})
        )
        code, _, err = call(capsys, *command)
        assert code == 130
        assert err.startswith("reuse-algos: interrupted; ")
        assert "stay in the archive, and the same command goes on" in err
    monkeypatch.undo()
    stand_in(monkeypatch, "train", main=fail(RunNotFoundError("no such run")))
    assert refused(capsys, "train", "r.yaml") == "reuse-algos: error: no such run\n"
    stand_in(monkeypatch, "train", main=fail(FileNotFoundError(2, "No such file or directory", "r.yaml")))
    assert "No such file or directory: 'r.yaml'" in refused(capsys, "train", "r.yaml")
    stand_in(monkeypatch, "train", main=fail(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):  # a bug is not dressed up as the user's mistake
        main(["train", "r.yaml"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["callbacks={}"], "no save_folder and no run_recorder, so nothing is kept"),
        (["callbacks={}", "save_folder=saved"], "the checkpoints in save_folder are kept"),
        ([], ""),  # the recorder says it, see tests/callbacks/test_interrupted_runs.py
    ],
)
def test_an_interrupted_training_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    def fit(trainer: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("composer.Trainer.fit", fit)
    short = ["data.train_examples=40", "data.batch_size=20", "max_duration=1ep", "scheduler=null"]
    assert main(["train", str(ROOT / "yamls/digits/baseline.yaml"), f"archive={tmp_path}/a", *short, *more]) == 130
    shown = " ".join("".join(capsys.readouterr()).split())
    assert ("interrupted digits-baseline" in shown) == bool(said)
    assert said in shown


def test_a_closed_pipe_is_no_error(made: dict[str, Any]) -> None:
    code = "import sys; from reuse_algos.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "runs", made["path"]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 141
    assert err == ""


def test_a_strangers_names_do_not_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    tags = {"note": "\x1b]0;owned\x07\x1b[2J", "way": "\u202egnp", "csi": "\x9b2J"}
    with pytest.raises(ArchiveError, match=r"the tag '\\u001b\]0;owned.*holds a control character"):
        write_run(archive, "plain", 0, [0.5], tags=tags)
    run_id = write_run(archive, "plain", 0, [0.5], tags={"note": "NOTE", "way": "WAY", "csi": "CSI"})
    (path,) = (archive.root / "runs" / run_id / "manifests").iterdir()
    content = json.loads(path.read_bytes())["content"] | {"tags": tags}  # as another program may write it
    path.chmod(0o644)
    path.write_bytes(reseal(json.dumps(content, separators=(",", ":")).encode()))
    assert main(["runs", str(tmp_path / "archive"), "--json"]) == 0
    said = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(said)
    assert json.loads(said)[0]["tags"] == tags  # escaped, not changed
    for command in (["runs", str(tmp_path / "archive")], ["show", str(tmp_path / "archive"), run_id]):
        assert main(command) == 0
    assert main(["show", str(tmp_path / "archive"), "\x1b[2Jno"]) == 2
    seen = capsys.readouterr()
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(seen.out + seen.err)
    assert "\\x1b]0;owned" in "".join(seen.out.split())
    assert "\\x1b[2Jno" in seen.err
