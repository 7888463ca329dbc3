"""Studies: the files that are there can be planned, and one that is killed gives the table of one that was not."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from made_sequences import Here
from made_sequences import made_up as fill_in
from reuse_algos.archive import RunArchive
from reuse_algos.sequence import load_sequence, plan_sequence

ROOT = Path(__file__).parents[1]
STUDIES = sorted((ROOT / "benchmarks/studies").glob("*.yaml"))
DRIVER = ROOT / "benchmarks/study.py"
OF_THE_CLOCK = ("train_seconds", "setup_seconds", "harvest_seconds", "finished", "run_id", "prior_runs",
                "archive_id", "command")  # fmt: skip

sys.path.insert(0, str(ROOT / "benchmarks"))
import study  # noqa: E402
from study_summary import advice, compare_records  # noqa: E402


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_can_be_planned_and_names_what_its_controls_control(path: Path, tmp_path: Path) -> None:
    assert load_sequence(path, ["folder=elsewhere"]).name == path.stem.replace("_", "-")
    # The steps of one seed: another one changes the seed. A study with all of its seeds is in recipe/test_grouping.py.
    short = tmp_path / path.name
    short.write_text(re.sub(r"\bseed: \[(\d+),[^]]*\]", r"seed: [\1]", path.read_text()))
    config = load_sequence(short, ["folder=elsewhere"])
    plan = plan_sequence(config)
    assert config.baseline in config.arms
    for name, arm in config.arms.items():
        assert arm.tags.get("control_of", name) in config.arms
        budgets = {step.point.get("max_duration") for step in plan.of_arm(name)}
        assert (arm.tags.get("role") == "prior") == (budgets == {None}) or "origin" in name
    assert f"# Run:     python benchmarks/study.py benchmarks/studies/{path.name} " in path.read_text()


def tiny(here: Path) -> list[str]:
    """A study of one prior run and two methods on 60 digits; arguments of the driver."""
    query = {"run_name": "${name}-prior-seed-10\\${seed}"}
    teach = {"prior_run_distillation": {"runs": query, "source": "cached", "loss": {"name": "mse", "weight": 0.5}}}
    values = {
        "name": "tiny-study",
        "folder": str(here / "work"),
        "recipe": "digits/baseline",
        "baseline": "plain",
        "overrides": {"data.train_examples": 60, "scheduler": None, "device": "cpu", "eval_interval": "1dur"},
        "grid": {"max_duration": ["40ep"], "seed": [1]},
        "arms": {
            "prior": {"grid": {"seed": [101]}, "tags": {"role": "prior"}, "overrides": {"max_duration": "40ep"}},
            "plain": {},
            "distilled": {"overrides": {"algorithms": teach}},
        },
    }
    path = here / "tiny.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return [str(path), "--archive", str(here / "archive"), "--out", str(here / "results.jsonl")]


def rows(here: Path) -> list[dict[str, Any]]:
    """The results without what the clock and chance decide."""
    records = [json.loads(line) for line in (here / "results.jsonl").read_text().splitlines()]
    for one in records:
        one["prior_count"] = len(one["prior_runs"])
        for key in OF_THE_CLOCK:
            del one[key]
    return sorted(records, key=lambda one: one["step"] + one["method"])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills processes")
def test_killed_at_random_and_restarted_gives_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    killed.mkdir()
    draw = random.Random(7)
    command = [sys.executable, str(DRIVER), *tiny(killed), "--jobs", "2"]
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if "starts" in line or "goes on" in line:
                break
        checkpoints, until = draw.random() < 0.5, time.monotonic() + 60
        while checkpoints and not list(killed.rglob("*.pt")) and time.monotonic() < until and process.poll() is None:
            time.sleep(0.02)
        time.sleep(draw.uniform(0.0, 2.0))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 runs are finished" in done.stdout

    monkeypatch.setattr("reuse_algos.sequence.running.driver.LocalLauncher", lambda threads: Here())
    assert study.main(tiny(straight)) == 0
    assert rows(killed) == rows(straight)
    assert [(one["method"], one["prior_count"]) for one in rows(straight)] == [
        ("distilled", 1),
        ("plain", 0),
        ("prior", 0),
    ]
    # Another call trains nothing and writes nothing; the summary is made from the lines alone.
    before = (straight / "results.jsonl").read_bytes()
    assert study.main(tiny(straight)) == 0
    assert (straight / "results.jsonl").read_bytes() == before
    capsys.readouterr()
    assert study.main([*tiny(straight), "--summary"]) == 0
    records = [json.loads(line) for line in before.decode().splitlines()]
    comparison = compare_records(records, "plain")
    assert [group.name for group in comparison.groups] == ["plain", "distilled"]
    plain = next(one for one in records if one["method"] == "plain")
    assert comparison.groups[0].points[0].values == [plain["final"]]
    assert f"{plain['final']:.4f}" in capsys.readouterr().out
    # By another metric: the ends of all of them are in the lines.
    loss = plain["finals"]["metrics/eval/CrossEntropy"]
    assert study.main([*tiny(straight), "--summary", "--metric", "metrics/eval/CrossEntropy"]) == 0
    assert f"{loss:.4f}" in capsys.readouterr().out
    assert study.main([*tiny(straight), "--summary", "--metric", "metrics/eval/Los"]) == 2


def test_time_limit_and_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = tiny(tmp_path)
    assert study.main([*arguments, "--time-limit", "0s"]) == 3
    out = capsys.readouterr().out
    assert "0 of 3 runs are finished" in out
    assert "left of prior: 1 (seed-101)" in out
    assert study.main([*arguments, "--arms", "plane"]) == 2
    assert "has no arm plane. Did you mean 'plain'" in capsys.readouterr().err
    assert study.main([*arguments, "--summary"]) == 2
    assert "has no run of these methods yet" in capsys.readouterr().err
    assert not (tmp_path / "results.jsonl").exists()


# One file, one archive ------------------------------------------------------------------------------------------------


def trained(here: Path, archive: str) -> dict[str, Any]:
    """The tiny study's finished steps, made up in an archive; arm -> run id."""
    here.mkdir(exist_ok=True)
    config = load_sequence(tiny(here)[0], archive=str(here / archive))
    values = {arm: {step.name: [0.5] for step in plan_sequence(config).of_arm(arm)} for arm in config.arms}
    _, states = fill_in(plan_sequence(config), values)
    return {found.step.arm: found.run.id for found in states if found.run is not None}


def lines_of(here: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (here / "results.jsonl").read_text().splitlines()]


def rewrite(here: Path, lines: list[dict[str, Any]]) -> bytes:
    (here / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return (here / "results.jsonl").read_bytes()


def in_archive(here: Path, archive: str, *more: str) -> list[str]:
    """Arguments to train the tiny study in another archive, nothing being trained in this process."""
    return [*tiny(here), "--archive", str(here / archive), *more]


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> int:
        raise AssertionError("something is trained")

    monkeypatch.setattr("reuse_algos.sequence.running.driver.LocalLauncher", lambda threads: Here(refuse))


@pytest.mark.usefixtures("no_training")
def test_a_file_of_another_archive_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = trained(tmp_path, "one")
    assert study.main(in_archive(tmp_path, "one")) == 0
    assert {one["method"]: one["run_id"] for one in lines_of(tmp_path)} == first
    assert [one["archive_id"] for one in lines_of(tmp_path)] == 3 * [RunArchive(tmp_path / "one").archive_id]
    before = (tmp_path / "results.jsonl").read_bytes()
    # An archive that is not there yet, and one with runs of its own.
    for name in ("none", "two"):
        if name == "two":
            trained(tmp_path, "two")
        capsys.readouterr()
        assert study.main(in_archive(tmp_path, name)) == 2
        error = capsys.readouterr().err
        assert f"from another archive ({RunArchive(tmp_path / 'one').archive_id})" in error
        assert "--out another.jsonl" in error
        assert (tmp_path / "results.jsonl").read_bytes() == before
    assert not (tmp_path / "none").exists()
    assert study.main(in_archive(tmp_path, "two", "--out", str(tmp_path / "another.jsonl"))) == 0
    assert len((tmp_path / "another.jsonl").read_text().splitlines()) == 3
    assert study.main(in_archive(tmp_path, "one")) == 0
    assert (tmp_path / "results.jsonl").read_bytes() == before


@pytest.mark.usefixtures("no_training")
def test_lines_that_name_no_archive_are_known_by_their_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path, "one")
    trained(tmp_path, "two")
    assert study.main(in_archive(tmp_path, "one")) == 0
    old = [{key: value for key, value in one.items() if key != "archive_id"} for one in lines_of(tmp_path)]
    # The archive that holds them goes on: what is missing of the file is added, with the archive's name.
    rewrite(tmp_path, old[:2])
    assert study.main(in_archive(tmp_path, "one")) == 0
    assert [one.get("archive_id") for one in lines_of(tmp_path)] == [
        None,
        None,
        RunArchive(tmp_path / "one").archive_id,
    ]
    before = rewrite(tmp_path, old)
    assert study.main(in_archive(tmp_path, "two")) == 2
    assert "has 3 runs of tiny-study, and the archive at" in (error := capsys.readouterr().err)
    assert f"none of them (such as {old[0]['run_id']})" in error
    assert (tmp_path / "results.jsonl").read_bytes() == before
    # Lines of other studies in the file do not matter.
    rewrite(tmp_path, [{**one, "study": "other"} for one in old])
    assert study.main(in_archive(tmp_path, "two")) == 0
    assert len(lines_of(tmp_path)) == 6


@pytest.mark.usefixtures("no_training")
def test_a_step_that_has_another_run_in_the_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = trained(tmp_path, "one")
    assert study.main(in_archive(tmp_path, "one")) == 0
    lines = lines_of(tmp_path)
    # The file's run is not the archive's.
    other = [{**one, "run_id": "elsewhere"} if one["method"] == "plain" else one for one in lines]
    before = rewrite(tmp_path, other)
    assert study.main(in_archive(tmp_path, "one")) == 2
    assert f"run elsewhere of plain/{lines[1]['step']}" in (error := capsys.readouterr().err)
    assert f"has run {runs['plain']}: " in error
    assert (tmp_path / "results.jsonl").read_bytes() == before
    # A step that would be trained again.
    rewrite(tmp_path, lines)
    RunArchive(tmp_path / "one").remove_run(runs["plain"], force=True)
    assert study.main(in_archive(tmp_path, "one")) == 2
    assert "has no finished run of it" in capsys.readouterr().err
    # It does not matter to other arms.
    assert study.main(in_archive(tmp_path, "one", "--arms", "distilled")) == 0
    # A file that was pooled is not summarised.
    rewrite(tmp_path, [*lines, *(one for one in other if one["method"] == "plain")])
    capsys.readouterr()
    assert study.main([*tiny(tmp_path), "--summary"]) == 2
    assert f"two runs of plain/{lines[1]['step']}: {runs['plain']} and elsewhere" in capsys.readouterr().err


def made_up() -> list[dict[str, Any]]:
    """Lines of a results file: distilled runs are 2.5 times as quick as plain ones, to within 0.002."""
    from compare.budget_records import records as quick_as

    lines = []
    for method, speed in (("plain", 1.0), ("distilled", 2.5)):
        for run in quick_as(method, (5, 10, 20, 40), speed):
            lines.append(
                {
                    "method": method, "role": None, "metric": "accuracy", "mode": "max", "seed": run.seed,
                    "budget": run.budget, "steps": run.steps, "samples": run.samples, "final": run.final,
                    "train_seconds": run.train_seconds, "setup_seconds": 0.0, "harvest_seconds": 0.0,
                    "flops_per_example": 10, "recipe": {}, "prior_runs": [], "run_id": run.run_id, "control_of": None,
                    "health": "ok",
                }
            )  # fmt: skip
    return lines


def test_summary_recovers_the_speed_up_and_gives_advice_for_each_level() -> None:
    comparison = compare_records(made_up(), "plain", judge_by="steps")
    found = comparison.group("distilled").speedups
    assert found["steps"].low < 2.5 < found["steps"].high
    assert found["steps"].verdict == "faster"
    assert found["flops"].estimate == pytest.approx(found["steps"].estimate)
    assert comparison.groups[0].points[0].costs["flops"] == 3 * 10 * 5 * 20 * 32
    lines = advice(made_up(), "plain")
    assert [line.split(" (")[0] for line in lines] == [f"To be as good as plain after {n}ep" for n in (5, 10, 20, 40)]
    assert "Train distilled for about" in lines[2]
    assert "times fewer steps than plain" in lines[2]
    assert [one.name for one in compare_records(made_up(), "plain", ["plain"]).groups] == ["plain"]


def test_flops_that_a_run_recorded_are_taken() -> None:
    live = {"recipe": {"algorithms.prior_run_distillation.source": "live"}, "train_flops": 4e9}
    lines = [one | live if one["method"] == "distilled" else one for one in made_up()]
    comparison = compare_records(lines, "plain")
    assert [point.costs["flops"] for point in comparison.group("distilled").points] == [pytest.approx(4e9)] * 4


@pytest.mark.parametrize(
    ("recipe", "known"),
    [
        ({"algorithms.prior_run_distillation.source": "cached", "algorithms.prior_run_distillation.loss": "mse"}, True),
        ({"algorithms.prior_run_distillation.source": "live"}, False),
        ({"algorithms.prior_run_distillation.loss": "mse"}, False),  # the default looks for itself
        ({"algorithms.adversarial_replay.mode": "append"}, False),
        ({"algorithms.label_smoothing.smoothing": 0.1}, True),
    ],
)
def test_flops_of_live_teachers_and_replays_are_not_known(recipe: dict[str, Any], known: bool) -> None:
    lines = [one | {"recipe": recipe} if one["method"] == "distilled" else one for one in made_up()]
    distilled = compare_records(lines, "plain").group("distilled")
    assert (distilled.points[0].costs["flops"] is not None) == known
    assert ("flops" in distilled.speedups) == known


def test_the_results_page_is_what_the_raw_files_say() -> None:
    import results_page

    assert results_page.PAGE.read_text() == results_page.page()
