"""``reuse-algos compare --budgets`` and ``reuse-algos recommend``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compare.budget_records import study
from reuse_algos.archive import RunArchive
from reuse_algos.cli import main


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("runs") / "archive"
    study(RunArchive(place, create=True))
    return str(place)


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_compare_budgets(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "compare", path, "--budgets", "--price-per-hour", "3.6", "--later-runs", "10")
    assert code == 0
    assert "distilled needs" in out
    assert "divided by 10 later runs" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 100
    code, out, _ = call(capsys, "compare", path, "--budgets", "--count-prior-training", "--json")
    data = json.loads(out)
    assert code == 0
    assert [group["name"] for group in data["groups"]] == ["baseline", "distilled", "a smooth teacher"]
    assert data["count_prior_training"] is True


def test_recommend(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "recommend", path, "--target", "0.6")
    assert code == 0
    assert out.startswith("Train distilled for about")
    code, out, _ = call(capsys, "recommend", path, "--target", "0.6", "--json", "--price-per-hour", "2")
    data = json.loads(out)
    assert data["choice"] == "distilled"
    assert data["candidates"][0]["dollars"]["estimate"] > 0
    code, out, _ = call(capsys, "recommend", path, "--target", "0.6", "--judge-by", "flops")
    assert "fewer FLOPs" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 100
    code, out, _ = call(capsys, "recommend", path, "--target", "0.9")
    assert code == 0  # an answer, not a failure
    assert out.startswith("Not enough evidence")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("compare", "--price-per-hour", "1"), "--price-per-hour: only with --budgets"),
        (("compare", "--judge-by", "steps", "--later-runs", "9"), "--judge-by, --later-runs: only with --budgets"),
        (("compare", "--count-prior-training"), "--count-prior-training: only with --budgets"),
        (("recommend", "--target", "0.6", "--judge-by", "flop"), "cannot be judged by 'flop'"),
        (("compare", "--budgets", "--judge-by", "minutes"), "cannot be judged by 'minutes'"),
        (("compare", "--budgets", "--price-per-hour", "-1"), "price of an hour"),
        (("compare", "--budgets", "--baseline", "basline"), "Did you mean 'baseline'"),
        (("recommend", "--target", "nan"), "must be a number"),
        (("recommend", "--target", "0.6", "--baseline", "basline"), "Did you mean 'baseline'"),
        (("recommend",), "--target"),
    ],
)
def test_what_makes_no_sense_is_refused(
    path: str, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    code, out, err = call(capsys, words[0], path, *words[1:])
    assert (code, out) == (2, "")
    assert said in err


def test_no_archive_is_made_by_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = call(capsys, "recommend", str(tmp_path / "nothing"), "--target", "1")
    assert code == 2
    assert not (tmp_path / "nothing").exists()
