"""``reuse-algos scores`` on archives of made-up runs over the digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compare.synthetic_runs import write_run
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks.recorder.facts.state_facts import dataset_record, examples_of
from reuse_algos.cli import main
from reuse_algos.commands.common import ARCHIVE_VARIABLE
from reuse_algos.commands.show import score_pictures
from reuse_algos.data.datasets.config import DataConfig
from reuse_algos.data.datasets.load import LoadedData, load_datasets
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import DataError

COUNT = 60
EPOCHS = 3
SECTION = {"name": "digits", "train_examples": COUNT, "batch_size": 20, "augment": "crop", "num_views": 4}


@pytest.fixture(scope="module")
def loaded() -> LoadedData:
    return load_datasets(DataConfig(name="digits", train_examples=COUNT, batch_size=20))


def add_run(archive: RunArchive, info: DatasetInfo, seed: int, *, recipe: bool = True, margins: bool = True) -> str:
    rng = np.random.default_rng(seed)
    meta = {"view": -1, "source": "capture", "encoding": "dense", "num_classes": None}
    ids = torch.arange(info.num_examples)
    put: list[tuple[Any, ...]] = [("dataset", "examples", examples_of(info), {})]
    for epoch in range(EPOCHS):
        for name in ("loss", "logit_margin") if margins else ("loss",):
            values = torch.from_numpy(rng.normal(0.6, 1.0, info.num_examples)).float()
            at = {**meta, "slot": epoch, "epoch": epoch}
            put.append(("signals", name, {"ids": ids, "values": values}, at))
    record = dataset_record(info, None)
    recorded = {"data": SECTION} if recipe else None
    return write_run(archive, "made", seed, [0.5] * EPOCHS, put=put, dataset=record, recipe=recorded)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, loaded: LoadedData) -> dict[str, Any]:
    archive = RunArchive(tmp_path_factory.mktemp("scores") / "archive", create=True)
    runs = [add_run(archive, loaded.info, seed) for seed in range(2)]
    bare = add_run(archive, loaded.info, 2, recipe=False, margins=False)
    return {"path": str(archive.root), "runs": runs, "bare": bare, "archive": archive}


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["scores", *argv])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    code, out, err = call(capsys, *argv)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    return err


def signal(made: dict[str, Any], run: str, name: str) -> np.ndarray:
    kept = made["archive"].run(run).signal(name)
    return np.stack([kept.dense(epoch)[0].double().numpy() for epoch in kept.slots])


def test_summary_is_numpys(made: dict[str, Any], loaded: LoadedData, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, made["path"], *made["runs"], "--score", "loss_mean", "--json")
    assert code == 0
    facts = json.loads(out)
    expected = np.mean([signal(made, run, "loss").mean(0) for run in made["runs"]], axis=0)
    labels, keys = loaded.info.labels, loaded.info.keys
    assert labels is not None
    rows = [(facts["all"], np.arange(COUNT))]
    rows += [(one, np.flatnonzero(labels.numpy() == number)) for number, one in enumerate(facts["classes"])]
    for row, members in rows:
        values = expected[members]
        assert row["n"] == len(members)
        assert row["mean"] == pytest.approx(values.mean())
        assert row["quartiles"] == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]))
        hardest = members[values.argmax()]
        assert row["hardest"] == {"key": int(keys[hardest]), "score": pytest.approx(expected[hardest])}
    assert [one["class"] for one in facts["classes"]] == [str(number) for number in range(10)]
    assert [(run["run_id"], run["signals"]) for run in facts["runs"]] == [(run, ["loss"]) for run in made["runs"]]
    assert (facts["num_examples"], facts["unknown"], facts["aggregate"]) == (COUNT, 0, "mean")


def test_table_and_options(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path, run = made["path"], made["runs"][0]
    code, out, _ = call(capsys, path, run, "--epoch", "1")
    assert code == 0
    assert out.startswith(f"loss from loss of {run}\ndigits: {COUNT} examples; higher is harder\n")
    last = out.splitlines()[-1].split()
    values = signal(made, run, "loss")[1]
    assert last[:3] == ["all", str(COUNT), f"{values.mean():.4g}"]
    assert max(len(line) for line in out.splitlines()) <= 100
    facts = json.loads(call(capsys, path, *made["runs"], "--aggregate", "rank", "--json")[1])
    assert facts["all"]["mean"] == pytest.approx(0.5)


def test_which_name_is_the_archive(
    made: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, (one, two) = made["path"], made["runs"]
    expected = call(capsys, path, one, two)
    assert expected[0] == 0
    assert call(capsys, one, two, "--archive", path) == expected
    assert "which archive?" in refused(capsys, one)
    assert "no archive" in refused(capsys, one, two)
    assert "which run?" in refused(capsys, path)
    monkeypatch.setenv(ARCHIVE_VARIABLE, path)
    assert call(capsys, one, two) == expected
    assert call(capsys, path, one, two) == expected


def test_suspected_labels(
    made: dict[str, Any], loaded: LoadedData, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "noise.json"
    code, out, _ = call(capsys, made["path"], *made["runs"], "--noise", str(file))
    assert code == 0
    found = json.loads(file.read_text())
    margins = np.mean([signal(made, run, "logit_margin").mean(0) for run in made["runs"]], axis=0)
    order = [position for position in np.argsort(margins) if margins[position] < 0]
    assert [one["position"] for one in found["examples"]] == order
    assert len(order) >= 3
    labels = loaded.info.labels
    assert labels is not None
    for one in found["examples"]:
        assert one["key"] == int(loaded.info.keys[one["position"]])
        assert one["label"] == str(int(labels[one["position"]]))
        assert one["predicted"] is None  # no logits were kept
        assert one["margin"] == pytest.approx(margins[one["position"]])
    assert "Pleiss et al. 2020" in found["criterion"]
    assert found["epochs"] == [EPOCHS, EPOCHS]
    assert f"{len(order)} suspected labels" in out
    assert "That is few" in out
    assert f"all suspected labels: {file}" in out
    facts = json.loads(call(capsys, made["path"], *made["runs"], "--noise", "2", "--json")[1])
    assert facts["noise"]["suspects"] == len(order)
    assert facts["noise"]["examples"] == found["examples"][:2]


def test_pictures(made: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture, sheet = tmp_path / "histogram.svg", tmp_path / "sheet.png"
    argv = (made["path"], made["runs"][0], "--picture", str(picture), "--contact-sheet", str(sheet), "--per-class", "2")
    code, out, err = call(capsys, *argv)
    assert (code, err) == (0, "")
    assert out.endswith(f"picture: {picture}\ncontact sheet: {sheet}\n")
    assert picture.read_text().startswith("<?xml")
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_the_sheet_shows_the_right_images(loaded: LoadedData) -> None:
    labels = loaded.info.labels
    assert labels is not None
    values = np.random.default_rng(3).random(COUNT)
    values[np.flatnonzero(labels.numpy() == 3)] = np.nan  # nothing is known of class 3
    ends = score_pictures.ends_of_classes(values, labels.numpy(), 10, 2)
    assert list(ends) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    members = np.flatnonzero(labels.numpy() == 4)
    order = members[np.argsort(values[members])].tolist()
    assert ends[4] == (order[:2], order[::-1][:2])
    names = [f"class {number}" for number in range(10)]
    read = score_pictures.image_reader(loaded)
    axes = score_pictures.contact_sheet(ends, names, read, "title").axes[0]
    canvas = np.asarray(axes.images[0].get_array())
    row, side, step = 3, 48, 50  # class 4 is the fourth row; 8 pixels are shown as 48, with a gap of 2
    images = loaded.train._images_NP.view(COUNT, 8, 8).numpy()  # type: ignore[attr-defined]
    for column, position in ((0, order[0]), (1, order[1]), (3, order[-1]), (2, order[-2])):
        left = column * step + (step // 2 if column >= 2 else 0)
        shown = canvas[row * step : row * step + side, left : left + side]
        assert np.array_equal(shown[..., 0], images[position].repeat(6, 0).repeat(6, 1))
    assert [label.get_text() for label in axes.get_yticklabels()] == [names[number] for number in ends]


def test_what_the_model_takes_an_image_for_stands_on_the_sheet(loaded: LoadedData) -> None:
    read = score_pictures.image_reader(loaded)
    axes = score_pictures.contact_sheet({0: ([0], [1])}, ["zero"], read, "t", {1: "eight"}).axes[0]
    assert [text.get_text() for text in axes.texts] == ["eight"]
    assert axes.texts[0].get_position()[0] > 50, "on the hardest image, which stands to the right"


def test_skewed_scores_are_drawn_on_a_logarithmic_axis() -> None:
    labels = np.zeros(100, dtype=np.int64)
    skewed = np.geomspace(1e-4, 10.0, 100)
    for values, scale in ((skewed, "log"), (skewed - 1.0, "linear"), (np.linspace(0.1, 1.0, 100), "linear")):
        axes = score_pictures.histogram(values, labels, ["a"], "t").axes
        assert [one.get_xscale() for one in axes] == [scale, scale]
        counts = [bar.get_height() for bar in axes[0].patches]
        assert sum(counts) == 100
    assert max(bar.get_height() for bar in score_pictures.histogram(skewed, labels, ["a"], "t").axes[0].patches) <= 3


def test_large_images_and_other_examples() -> None:
    class Examples:
        def __init__(self, shape: tuple[int, ...]) -> None:
            self.shape = shape

        def __getitem__(self, index: Any) -> tuple[torch.Tensor, int]:
            return torch.full(self.shape, 0.5), 0

    def data(shape: tuple[int, ...]) -> Any:
        return type("Data", (), {"train": Examples(shape), "mean": (0.1,), "std": (0.2,)})()

    read = score_pictures.image_reader(data((3, 224, 200)))
    assert read(0).shape == (224, 200, 3)
    assert set(read(0).ravel().tolist()) == {51}  # (0.5 * 0.2 + 0.1) * 255
    axes = score_pictures.contact_sheet({0: ([0], [1])}, ["a"], read, "t").axes[0]
    assert np.asarray(axes.images[0].get_array()).shape[0] <= 64 + 2
    with pytest.raises(DataError, match="needs images"):
        score_pictures.image_reader(data((3,)))(0)


def test_refusals(made: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, run, bare = made["path"], made["runs"][0], made["bare"]
    assert "no score 'los'. Did you mean 'loss'" in refused(capsys, path, run, "--score", "los")
    assert "combined by 'median'" in refused(capsys, path, run, "--aggregate", "median")
    assert f"harvest {path} {run} --signals el2n" in refused(capsys, path, run, "--score", "el2n")
    assert ".png, .pdf, .svg" in refused(capsys, path, run, "--picture", "a.gif")
    assert "there is no folder" in refused(capsys, path, run, "--picture", str(tmp_path / "nowhere" / "a.png"))
    assert "--noise needs" in refused(capsys, path, run, "--noise", "0")
    assert "has neither" in refused(capsys, path, bare, "--noise", "5")
    sheet = ("--contact-sheet", str(tmp_path / "sheet.png"))
    # The table is printed even where the sheet cannot be made.
    code, out, err = call(capsys, path, bare, *sheet)
    assert (code, "no recipe that says what its data were" in err) == (2, True)
    assert out.splitlines()[-1].split()[:2] == ["all", str(COUNT)]
    code, out, err = call(capsys, path, run, *sheet, "--data", "train_examples=59", "--json")
    assert (code, "Signals must come from the same examples" in err) == (2, True)
    assert json.loads(out)["num_examples"] == COUNT
    assert "no run 'nope'" in refused(capsys, path, "nope")
    assert list(tmp_path.iterdir()) == []
