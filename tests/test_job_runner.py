"""What resumable benchmarks share: results files that outlive a torn line, and commands that can be run again."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from job_runner import ResultsFile, ResultsFileError, command_line, without_places  # noqa: E402

# Torn results files ---------------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_left_out_and_cut_by_the_next_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.jsonl"
    whole = b'{"n": 0}\n{"n": 1}\n'
    line = json.dumps({"n": 2, "text": "abc"}).encode()
    for length in range(1, len(line)):
        path.write_bytes(whole + line[:length])
        out = ResultsFile(path)
        assert [one["n"] for one in out.records()] == [0, 1]
        assert f"{path} ends in a torn line of {length} bytes" in capsys.readouterr().err
        assert out.records(n=1) == [{"n": 1}]
        assert capsys.readouterr().err == ""  # said once
        out.append({"n": 3})
        assert path.read_bytes() == whole + b'{"n": 3}\n'


def test_a_whole_last_line_without_its_newline_is_a_record(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n": 1}')
    out = ResultsFile(path)
    assert [one["n"] for one in out.records()] == [0, 1]
    out.append({"n": 2})
    assert path.read_bytes() == b'{"n": 0}\n{"n": 1}\n{"n": 2}\n'


@pytest.mark.parametrize("bad", [b'{"n": 1{"n": 2}', b"[1, 2]", b"\xff\xfe"])
def test_a_bad_line_elsewhere_is_an_error_that_names_it(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"n": 0}\n\n' + bad + b'\n{"n": 3}\n')
    with pytest.raises(ResultsFileError, match=r"results\.jsonl, line 3: no JSON object"):
        ResultsFile(path).records()


# Commands -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("benchmarks/studies/x.yaml", "benchmarks/studies/x.yaml"),
        ("./benchmarks/studies/cifar100_small.yaml", "benchmarks/studies/cifar100_small.yaml"),
        (f"{ROOT}/benchmarks/studies/x.yaml", "benchmarks/studies/x.yaml"),
        (f"--archive={ROOT}/archives/one", "--archive=archives/one"),
        (f"folder={ROOT}/../{ROOT.name}/work", "folder=work"),
        ("sequences/five_seeds", "sequences/five_seeds"),
        ("overrides.data.path=/abs/of/cifar100.npz", "overrides.data.path=cifar100.npz"),
        ("overrides.data={name: npz, path: /abs/c.npz}", "overrides.data={name: npz, path: c.npz}"),
        ('overrides.data={name: npz,"path":"/my abs/c.npz"}', 'overrides.data={name: npz,"path":"c.npz"}'),
        (f"paths=[/abs/one, '{ROOT}/data/two']", "paths=[one, 'data/two']"),
        ("/abs/my files/out.jsonl", "out.jsonl"),
        ("../../elsewhere/out.jsonl", "out.jsonl"),
        ("~/out.jsonl", "out.jsonl"),
        ("s3://bucket/prefix/archive", "archive"),
        ("file:///abs/archive", "archive"),
        ("grid.max_duration=[2ep]", "grid.max_duration=[2ep]"),
        ("--arms", "--arms"),
        ("plain,warm", "plain,warm"),
        ("runs=${name}-prior/x", "runs=${name}-prior/x"),
        ("", ""),
    ],
)
def test_paths_are_kept_inside_the_repository_and_shortened_outside(
    given: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert without_places(given) == written


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("studies/cifar100_small.yaml", "benchmarks/studies/cifar100_small.yaml"),
        ("--out=results/not_there_yet.jsonl", "--out=benchmarks/results/not_there_yet.jsonl"),
        ("../archive", "archive"),
        ("sequences/five_seeds", "sequences/five_seeds"),
        ("npz", "npz"),
    ],
)
def test_a_command_given_in_a_folder_of_the_repository_runs_at_its_root(
    given: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT / "benchmarks")
    assert without_places(given) == written


def test_the_command_can_be_read_back_by_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    given = ["benchmarks/studies/x.yaml", "overrides.data.path=/abs/c.npz", "grid.seed=[1, 2]", "--out", "a/b.jsonl"]
    monkeypatch.setattr(sys, "argv", ["study.py", *given])
    command = command_line(str(ROOT / "benchmarks/study.py"))
    assert shlex.split(command) == [
        "python", "benchmarks/study.py", "benchmarks/studies/x.yaml", "overrides.data.path=c.npz", "grid.seed=[1, 2]",
        "--out", "a/b.jsonl",
    ]  # fmt: skip
    assert command.startswith("python benchmarks/study.py benchmarks/studies/x.yaml overrides.data.path=c.npz 'grid")
