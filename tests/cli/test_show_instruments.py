"""``reuse-algos show --instruments`` and ``--lazy`` on a run of a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compare.synthetic_runs import write_run
from reuse_algos.archive import RunArchive
from reuse_algos.cli import main
from reuse_algos.commands.show.instrument_panel import panel, readings_of_run
from reuse_algos.compare import Question, compare, read_outcomes
from reuse_algos.errors import ModelError
from reuse_algos.harvest.laziness import laziness_of_run
from reuse_algos.harvest.training_data import load_run_data
from reuse_algos.priors.model import archived_model
from reuse_algos.recipe import build_trainer, compose_recipe, load_recipe

RECIPE = Path(__file__).parents[2] / "yamls" / "digits" / "instruments.yaml"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> RunArchive:
    folder = tmp_path_factory.mktemp("instruments") / "archive"
    small = [f"archive={folder}", "max_duration=2ep", "progress_bar=false", "data.train_examples=100", "seed=1"]
    for more in (["callbacks.training_instruments.every=2ba"], ["seed=2", "callbacks.run_recorder.weights=[last]"]):
        trainer = build_trainer(load_recipe(str(RECIPE), [*small, *more]))
        trainer.fit()
        trainer.close()
    return RunArchive(folder, create=True)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["show", *arguments]) == 0
    return capsys.readouterr().out


def test_a_picture_and_the_numbers_of_two_runs(
    archive: RunArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where, picture = str(archive.root), tmp_path / "panel.png"
    runs = "digits-instruments-1,digits-instruments-2"
    facts = json.loads(shown(capsys, where, runs, "--instruments", "--picture", str(picture), "--json"))
    assert [one["run_id"] for one in facts] == [archive.run(name).id for name in runs.split(",")]
    history = archive.run("digits-instruments-1").metric("instruments/loss")
    expected = {"count": 5, "first": history.value[0], "last": history.value[-1], "last_step": 9}
    assert facts[0]["readings"]["loss"] == expected
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = shown(capsys, where, "digits-instruments-1", "--instruments", "--picture", str(picture))
    assert "norm_test" in text
    assert "gradient_sizes" not in text


def test_the_panel_has_a_curve_and_a_map_for_each_run(archive: RunArchive) -> None:
    readings = readings_of_run(archive.run("digits-instruments-1"))
    figure = panel({"one": readings, "$two": {"alpha": [(1, -0.5)]}, "three": readings})
    axes = {axis.get_title(): axis for axis in figure.axes}
    assert len(axes["alpha"].get_lines()) == 4, "three runs and the line at 0"
    assert axes["alpha"].get_lines()[1].get_marker() != "None", "a single reading is seen"
    drawn = axes["loss"].get_lines()[0].get_ydata()
    assert np.array_equal(np.asarray(drawn), [value for _, value in readings["loss"]])
    assert axes["sizes of gradients, one"].get_images()[0].get_array().shape == (10, 5)
    ticks = [label.get_text() for label in axes["sizes of gradients, one"].get_yticklabels()]
    assert ticks == ["below", *(f"1e{power}" for power in range(-8, 1))], "from small to large"
    assert "sizes of gradients, three" in axes
    assert not any("two" in title for title in axes), "no sizes were read"


@pytest.mark.parametrize("option", ["--instruments", "--lazy"])
def test_a_run_that_cannot_be_shown_does_not_cost_the_others(
    archive: RunArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    picture = ["--picture", str(tmp_path / "panel.png")]
    name = "digits-instruments-1"
    assert main(["show", str(archive.root), f"missing,{name}", option, *picture, "--json"]) == 1
    said = capsys.readouterr()
    assert [one["run_id"] for one in json.loads(said.out)] == [archive.run(name).id]
    assert "left out missing: there is no run 'missing'" in said.err
    assert main(["show", str(archive.root), "missing,lost", option, *picture]) == 2
    assert "'lost'" in capsys.readouterr().err
    assert main(["show", str(archive.root), name, option, "--recipe"]) == 2
    assert main(["show", str(archive.root), name, option, "--data", "root"]) == 2


def test_readings_are_metrics_of_a_comparison(archive: RunArchive) -> None:
    question = Question(group_by="seed", baseline="1", metric="norm_test", mode="min")
    outcomes = read_outcomes(archive, question)
    run = archive.run("digits-instruments-1")
    history = run.metric("instruments/norm_test")
    assert outcomes.metric == "instruments/norm_test"
    (own,) = outcomes.groups["1"]
    assert own.final == history.value[-1]
    assert own.readings["instruments/norm_test"] == list(
        zip(history.step.tolist(), history.value.tolist(), strict=True)
    )
    assert compare(outcomes, question).group("2").runs[0].final == outcomes.groups["2"][0].final


def test_a_run_without_readings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    run = write_run(archive, "plain", 0, [0.5, 0.6])
    with pytest.raises(LookupError, match="was trained without instruments"):
        readings_of_run(archive.run(run))
    assert main(["show", str(archive.root), "plain-0", "--instruments"]) != 0
    assert "TrainingInstruments" in capsys.readouterr().err


def test_laziness_afterwards(archive: RunArchive, capsys: pytest.CaptureFixture[str]) -> None:
    run = archive.run("digits-instruments-1")
    (facts,) = json.loads(shown(capsys, str(archive.root), "digits-instruments-1", "--lazy", "--json"))
    found = {name: row["last"] for name, row in facts["readings"].items()}
    assert found == laziness_of_run(run)
    first, last = run.weights("init"), run.weights("last")
    names = [name for name, _ in archived_model(run, "last").named_parameters()]
    moved = sum(float((last[name] - first[name]).double().square().sum()) for name in names)
    size = sum(float(first[name].double().square().sum()) for name in names)
    assert found["relative_distance"] == pytest.approx((moved / size) ** 0.5, rel=1e-6)
    loaded = load_run_data(run)
    images = torch.stack([loaded.eval[index][0] for index in range(len(loaded.eval))])  # type: ignore[arg-type]
    labels = torch.tensor([int(loaded.eval[index][1]) for index in range(len(loaded.eval))])  # type: ignore[arg-type]
    with torch.no_grad():
        right = archived_model(run, "last")((images, labels)).argmax(1) == labels
        # As the linearised network: initial parameters with the batch-norm statistics of the last weights.
        start = archived_model(run, "last")
        start.load_state_dict({name: first[name] for name in names}, strict=False)
        first_right = start((images, labels)).argmax(1) == labels
    assert found["accuracy"] == pytest.approx(float(right.double().mean()), abs=1e-9)
    assert found["initial_accuracy"] == pytest.approx(float(first_right.double().mean()), abs=1e-9)
    with pytest.raises(LookupError, match=r"has no weights init, only last\. .*weights: \[init, last\]"):
        laziness_of_run(archive.run("digits-instruments-2"))
    assert main(["show", str(archive.root), "digits-instruments-1", "--lazy", "--instruments"]) == 2


@pytest.mark.parametrize("learn", ["labels", "tokens"])
def test_laziness_of_texts(tmp_path: Path, learn: str) -> None:
    """Classes of texts lie under their name in the batch; a language model does not classify."""
    pytest.importorskip("transformers")
    for label, words in enumerate(("red green blue", "one two three")):
        (folder := tmp_path / "texts" / str(label)).mkdir(parents=True)
        for number, word in enumerate(words.split() * 4):
            (folder / f"{number}.txt").write_text(f"{word} {words}")
    text = {"max_tokens": 6, "vocabulary": 20, "learn": learn}
    recipe = {
        "run_name": "texts",
        "archive": str(tmp_path / "archive"),
        "data": {"name": "text_files", "root": str(tmp_path / "texts"), "batch_size": 8, "text": text},
        "model": {"name": "tiny_bert" if learn == "labels" else "tiny_gpt", "width": 8, "depth": 1},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "max_duration": "1ep",
        "device": "cpu",
        "progress_bar": False,
        "callbacks": {"run_recorder": {"weights": ["init", "last"]}},
    }
    trainer = build_trainer(compose_recipe(recipe))
    trainer.fit()
    trainer.close()
    run = RunArchive(tmp_path / "archive").run("texts")
    if learn == "tokens":
        with pytest.raises(ModelError, match=r"laziness is read off classifiers .* targets \(\d+, \d+\)\.$"):
            laziness_of_run(run, trust_data=True)
        return
    found = laziness_of_run(run, trust_data=True)
    assert found["accuracy"] == pytest.approx(run.metric("metrics/eval/MulticlassAccuracy").value[-1], abs=1e-6)
    assert 0 < found["relative_distance"] < 1
