"""Filters in words: what they choose, and where they say that they cannot be read."""

from __future__ import annotations

import pytest

from reuse_algos.archive import RunArchive, RunSummary, Where, WhereError
from reuse_algos.cli import main

from .conftest import MakeRun

RUN = RunSummary(
    "toy-1", 1, "toy run", "2024-01-02T00:00:00+00:00", "2024-01-02", "2024-01-03", "ok",
    "metrics/eval/MulticlassAccuracy", "max", 7, 20, 500, 12.5, {"study": "lr", "lr": "0.10", "a b": "c"},
    {"metrics/eval/MulticlassAccuracy": 0.91, "loss/train/total": 0.2, "loss/eval/total": 0.3, "bad": ".nan"},
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("tags.study=lr and accuracy>0.9", True),
        ("tags.study=lr and accuracy>0.91", False),
        ("tags.study = 'lr' AND metrics/eval/MulticlassAccuracy >= 0.91", True),
        ("MulticlassAccuracy<0.5 or tags.lr=0.1", True),
        ("not (seed=7 or seed=8)", False),
        ("not seed=8 and not seed=9", True),
        ("seed in (6, 7)", True),
        ("tags.study in (wd, 'depth')", False),
        ('run_name="toy run" and run_id!=other', True),
        ('"tags.a b"=c', True),
        ("created_at>=2024-01-02 and created_at<2024-01-03", True),
        ("finished=true and health=ok and epoch>=20 and batch<1e3 and train_seconds<=12.5", True),
        ("tags.missing!=x", False),
        ("not tags.missing=x", True),
        ("bad!=0.5", False),
        ("loss/train/total<0.25", True),
        ("seed=1 and seed=1 or seed=7", True),
        ("seed=7 or seed=1 and seed=1", True),
        ("tags.study<ls", True),
        ("accuracy=high", False),
    ],
)
def test_what_is_chosen(text: str, chosen: bool) -> None:
    assert Where(text)(RUN) is chosen


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a name, 'not' or '\\(' at character 1, found 'the end'"),
        ("seed", "expected one of =, !=, <, <=, >, >= or 'in' at character 5"),
        ("seed=", "expected a value at character 6"),
        ("seed=1 seed=2", "expected 'and', 'or' or the end at character 8, found 'seed=2'"),
        ("(seed=1", r"expected '\)' at character 8"),
        ("seed=1)", "the end at character 7"),
        ("seed in 1", r"expected '\(' after 'in' at character 9"),
        ("seed in (1 2)", r"expected ',' or '\)' at character 12"),
        ("a='b", "cannot read this at character 3"),
        ("__import__('os')", "expected one of"),
        ("(" * 40 + "a=1", "more than 32 levels deep at character"),
        ("not " * 40 + "a=1", "more than 32 levels deep"),
        ("a=" + "1" * 5000, "at most 4096 characters"),
    ],
)
def test_what_cannot_be_read_is_pointed_to(text: str, message: str) -> None:
    with pytest.raises(WhereError, match=message):
        Where(text)
    assert issubclass(WhereError, ValueError)


def test_a_name_of_several_metrics_is_refused() -> None:
    with pytest.raises(WhereError, match="several metrics 'total'; say which: loss/train/total, loss/eval/total"):
        Where("total<1")(RUN)


def test_runs_by_a_filter(archive: RunArchive, make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [make_run(f"run-{n}", values=(n / 10,), tags={"study": "lr" if n % 2 else "wd"}) for n in range(6)]
    assert [run.id for run in archive.runs(where="accuracy>0.2 and tags.study=lr", order="best")] == [ids[5], ids[3]]
    assert archive.runs(where="accuracy>2") == []
    with pytest.raises(WhereError, match=r"no run has a metric 'acuracy'\..*MulticlassAccuracy"):
        archive.runs(where="acuracy>0.2")
    assert main(["runs", str(archive.root), "--where", "seed=1 or run_name in (run-1, run-4)"]) == 0
    out = capsys.readouterr().out
    assert [name for name in ids if name in out] == [ids[1], ids[4]]
    assert main(["runs", str(archive.root), "--where", "run_name=="]) == 2
    assert "expected a value at character 10" in capsys.readouterr().err
