"""Unlabelled pools: archived teachers label them, and students train on what was chosen."""

from __future__ import annotations

import io
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from forked_python import launch
from made_sequences import Here
from reuse_algos import train
from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.cli import main
from reuse_algos.data import DataConfig, load_datasets
from reuse_algos.data.datasets.pseudo import Chosen, PseudoLabels, chosen_info, shared_examples
from reuse_algos.data.datasets.resampling import class_quotas, resampling_plan
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import ArchiveConflictError, DataError, PriorRunMismatchError, RecipeError, SignalNotFoundError
from reuse_algos.harvest import LabelConfig, harvest, label_pool
from reuse_algos.priors.model import archived_model
from reuse_algos.priors.pseudo_labels import choose_pairs, select_pairs
from reuse_algos.recipe import build_trainer, load_recipe
from reuse_algos.sequence import load_sequence, plan_sequence, print_report, run_sequence, sequence_report
from reuse_algos.sequence.reporting.render import plan_records

ROOT = Path(__file__).parents[1]
POOL = DataConfig(name="digits", train_examples=50, train_rest=True)


def train_digits(archive: Path, name: str, *overrides: str) -> PriorRun:
    """A short run on 50 digits, by the recipe of the digits."""
    common = [
        f"archive={archive}", f"run_name={name}", "device=cpu", "progress_bar=false", "data.train_examples=50",
        "data.batch_size=10", "max_duration=4ep", "eval_interval=4ep", "callbacks.run_recorder.signals={}",
    ]  # fmt: skip
    assert train.main([str(ROOT / "yamls/digits/baseline.yaml"), *common, *overrides]) == 0
    return RunArchive(archive).run(name)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with two teachers and a pool that the first one labelled."""
    path = tmp_path_factory.mktemp("pools") / "archive"
    train_digits(path, "teacher-1")
    train_digits(path, "teacher-2", "seed=2")
    label_pool(path, LabelConfig("teacher-1", keep=10), POOL, name="pool-1", device="cpu")
    return path


def logits_of(run: PriorRun, images: Any) -> Tensor:
    model = archived_model(run, "last")
    with torch.no_grad():
        return model((images, None))


def pool_images() -> tuple[Tensor, DatasetInfo]:
    dataset: Any = load_datasets(POOL).train
    return dataset.__getitems__(range(len(dataset)))[0], dataset.info


def test_the_rest_is_what_the_part_leaves_out() -> None:
    whole, part, rest = (
        load_datasets(DataConfig(name="digits", drop_last=False, **more)).info.keys.tolist()
        for more in ({}, {"train_examples": 50}, {"train_examples": 50, "train_rest": True})
    )
    assert len(part) == 50
    assert sorted(part + rest) == whole
    with pytest.raises(DataError, match="nothing is left out"):
        DataConfig(train_rest=True).check()


@pytest.mark.parametrize(
    ("how", "wanted"), [("natural", [64, 32, 4]), ("sqrt", [51, 36, 13]), ("uniform", [34, 33, 33])]
)
def test_quotas_follow_the_frequency(how: str, wanted: list[int]) -> None:
    counts = np.array([64, 32, 4])
    quotas = class_quotas(counts, how, 100)
    exact = counts ** {"natural": 1.0, "sqrt": 0.5, "uniform": 0.0}[how]
    assert quotas.sum() == 100
    assert np.abs(quotas - 100 * exact / exact.sum()).max() < 1
    assert quotas.tolist() == wanted


def test_resampling_shows_every_class_its_quota_and_takes_turns() -> None:
    labels = torch.tensor([0] * 40 + [1] * 9 + [2])
    plan = resampling_plan(labels, "uniform", seed=3)
    epochs = [np.asarray(plan(epoch)) for epoch in range(6)]
    for shown in epochs:
        assert np.bincount(labels[shown]).tolist() == [17, 17, 16]
    # Within a class nobody is shown twice more often than another, over any number of epochs.
    for last in range(1, 7):
        times = np.bincount(np.concatenate(epochs[:last]), minlength=50)
        for one in range(3):
            own = times[labels.numpy() == one]
            assert own.max() - own.min() <= 1
    assert not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(np.asarray(resampling_plan(labels, "uniform", seed=3)(4)), epochs[4])


def test_a_pool_run_is_the_teachers_pass(store: Path) -> None:
    archive = RunArchive(store)
    run, teacher = archive.run("pool-1"), archive.run("teacher-1")
    images, info = pool_images()
    expected = logits_of(teacher, images).half().float()
    found, seen = run.signal("logits").dense(0)
    assert bool(seen.all())
    torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=2e-3)
    assert run.labels() is None
    assert torch.equal(run.keys(), info.keys)
    assert (run.health, run.manifest.progress.batch, len(info.keys)) == ("empty", 0, 1387)
    assert [(use.run_id, use.algorithm) for use in run.manifest.prior_runs] == [(teacher.id, "label")]
    assert teacher.manifest.model is not None
    assert run.manifest.cost.train_flops == 1387 * (teacher.manifest.model.flops_per_example or 0)
    assert run.manifest.harvests[0].seconds > 0
    assert run.id not in {found.id for found in archive.runs()}  # nobody takes it for a teacher


def test_damage_to_any_file_of_a_pool_run_is_found(store: Path, tmp_path: Path) -> None:
    """Verification reads a pool as it reads a trained run: every byte of its record and its scores."""
    there = tmp_path / "archive"
    shutil.copytree(store, there)
    assert RunArchive(there).verify().ok
    pool = RunArchive(there).run("pool-1").id
    files = [file for file in sorted((there / "runs" / pool).rglob("*")) if file.is_file() and file.stat().st_size]
    assert any("logits" in str(file) for file in files)
    for file in files:
        whole = file.read_bytes()
        place = len(whole) // 2
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged manifest is said aloud as well
            problems = RunArchive(there).verify().problems
        assert any(pool in str(problem) for problem in problems), file
        file.write_bytes(whole)
    assert RunArchive(there).verify().ok


def test_several_teachers_are_averaged_as_probabilities(store: Path) -> None:
    done = label_pool(store, LabelConfig(["teacher-1", "teacher-2"]), POOL, name="pool-of-two", device="cpu")
    archive = RunArchive(store)
    images, _ = pool_images()
    mean = torch.stack([logits_of(archive.run(f"teacher-{n}"), images).softmax(1) for n in (1, 2)]).mean(0)
    found, _ = archive.run(done.run_id).signal("logits").dense(0)
    torch.testing.assert_close(found.float().softmax(1), mean, rtol=0, atol=3e-3)
    assert done.teachers == [archive.run(f"teacher-{n}").id for n in (1, 2)]


def test_only_the_largest_scores_are_kept(store: Path) -> None:
    done = label_pool(store, LabelConfig("teacher-1", keep=3), POOL, name="pool-of-three", device="cpu")
    archive = RunArchive(store)
    whole, _ = archive.run("pool-1").signal("logits").dense(0)
    kept, _ = archive.run(done.run_id).signal("logits").dense(0)
    # Logits that half precision makes equal may come in either order.
    best = whole.gather(1, kept.topk(3).indices)
    torch.testing.assert_close(best, whole.topk(3).values, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(
        kept.softmax(1).topk(3).values, whole.float().softmax(1).topk(3).values, rtol=0, atol=2e-3
    )


def test_an_interrupted_labelling_goes_on_with_the_same_bytes(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reuse_algos.harvest.label._BLOCK", 500)
    config, archive = LabelConfig("teacher-1"), RunArchive(store)
    straight = label_pool(archive, config, POOL, name="pool-straight", device="cpu")
    from reuse_algos.harvest.label import _Work

    put, calls = _Work._put, []

    def failing(self: Any, writer: Any, positions: Tensor) -> Any:
        calls.append(len(positions))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return put(self, writer, positions)

    with monkeypatch.context() as patch:
        patch.setattr(_Work, "_put", failing)
        with pytest.raises(KeyboardInterrupt):
            label_pool(archive, config, POOL, name="pool-stopped", device="cpu")
    assert not archive.run("pool-stopped").finished
    with pytest.raises(SignalNotFoundError, match="no finished pass"):
        student_pairs(archive.run("pool-stopped"))
    with pytest.raises(ArchiveConflictError, match="unfinished and made from other settings"):
        label_pool(archive, LabelConfig("teacher-1", keep=4), POOL, name="pool-stopped", device="cpu")
    resumed = label_pool(archive, config, POOL, name="pool-stopped", device="cpu")
    assert (resumed.rows, resumed.computed) == (1387, 387)
    one, other = (archive.run(done.run_id) for done in (straight, resumed))
    assert torch.equal(one.signal("logits").dense(0)[0], other.signal("logits").dense(0)[0])
    hashes = [[entry.sha256 for entry in run.manifest.files] for run in (one, other)]
    assert hashes[0] == hashes[1]
    with pytest.raises(ArchiveConflictError, match="has a run named 'pool-stopped' already"):
        label_pool(archive, config, POOL, name="pool-stopped", device="cpu")


def student_pairs(run: PriorRun, **asked: int) -> Chosen:
    loaded = load_datasets(POOL)
    pool, held_out = (getattr(part, "info") for part in (loaded.train, loaded.eval))  # noqa: B009
    return choose_pairs(run, pool, held_out, PseudoLabels("pool-1", **{"per_class": 20, **asked}), num_classes=10)


def test_a_student_sees_the_chosen_images_under_the_teachers_labels(store: Path) -> None:
    run = RunArchive(store).run("pool-1")
    chosen = student_pairs(run, per_image=3)
    scores, _ = run.signal("logits").dense(0)
    expected = select_pairs(scores.double().softmax(1), per_class=20, per_image=3)
    assert torch.equal(chosen.positions, expected[0])
    assert torch.equal(chosen.labels, expected[1])
    assert len(chosen.positions.unique()) < len(chosen.positions)  # some serve several classes
    config = DataConfig(name="digits", train_examples=50, train_rest=True, pseudo_labels=PseudoLabels("pool-1", 20, 3))
    data: Any = load_datasets(config, chosen=chosen).train
    shown, labels = data.__getitems__(range(len(data)))
    images, info = pool_images()
    assert torch.equal(shown, images[chosen.positions])
    assert torch.equal(labels, chosen.labels)
    assert len(data.info.keys.unique()) == len(data.info.keys)
    first = [chosen.positions.tolist().index(p) for p in chosen.positions.unique().tolist()]
    assert torch.equal(data.info.keys[first], info.keys[chosen.positions[first]])


def test_a_run_on_the_rest_is_harvested_by_its_recipe(store: Path) -> None:
    run = train_digits(store, "on-the-rest", "data.train_examples=1400", "data.train_rest=true", "scheduler=null")
    (done,) = harvest(store, run.id, signals=("el2n",), device="cpu", progress=False)
    assert done.rows == len(run.keys()) == 37


def test_keys_of_repeated_images_do_not_depend_on_the_others() -> None:
    pool = DatasetInfo("pool", torch.tensor([7, 8, 9]))
    few = chosen_info(pool, Chosen(torch.tensor([1, 1]), torch.tensor([0, 2])))
    many = chosen_info(pool, Chosen(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 2])))
    assert few.keys[0] == many.keys[1] == 8
    assert few.keys[1] == many.keys[3]
    assert len(many.keys.unique()) == 4


def test_a_resumed_student_is_bit_equal_and_refuses_other_labels(store: Path, tmp_path: Path) -> None:
    labels = "data.pseudo_labels={run: pool-1, per_class: 10, per_image: 2}"
    more = ["data.train_rest=true", labels, "data.resample=uniform", "data.drop_last=false", "scheduler=null"]
    straight = train_digits(store, "student-straight", *more)
    half = [*more, f"save_folder={tmp_path / 'ck'}", "save_interval=1ep"]
    kept = ["run_name=student-stopped", f"archive={store}", "device=cpu", "progress_bar=false", "max_duration=4ep"]
    kept += ["data.train_examples=50", "data.batch_size=10", "eval_interval=4ep", "callbacks.run_recorder.signals={}"]
    trainer = build_trainer(load_recipe(ROOT / "yamls/digits/baseline.yaml", [*kept, *half]))
    trainer.fit(duration="2ep")
    trainer.engine.close()
    again = [f"load_path={next(tmp_path.glob('ck/ep2-*'))}"]
    other = [text.replace("per_class: 10", "per_class: 11") for text in more]
    wrong = build_trainer(load_recipe(ROOT / "yamls/digits/baseline.yaml", [*kept, *other, *again]))
    with pytest.raises(PriorRunMismatchError, match="other pseudo-labels"):
        wrong.fit()
    wrong.engine.close()
    trainer = build_trainer(load_recipe(ROOT / "yamls/digits/baseline.yaml", [*kept, *more, *again]))
    trainer.fit()
    trainer.close()
    resumed = RunArchive(store).runs(run_name="student-stopped", order="latest")[0]
    for name, tensor in straight.weights().items():
        assert torch.equal(tensor, resumed.weights()[name]), name
    pool = RunArchive(store).run("pool-1")
    use = resumed.manifest.prior_runs[0]
    assert (use.run_id, use.signals) == (pool.id, ["logits"])
    assert use.harvest_seconds == pool.manifest.harvests[0].seconds


def npz(path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> DataConfig:
    """The digits' images in a file, 300 of them in the pool, after a change."""
    images, info = load_raw()
    arrays = {
        "x_train": images[:300], "y_train": np.zeros(300, int), "x_test": images[300:400],
        "y_test": info[300:400], "class_names": np.array([str(n) for n in range(10)]),
        "keys_train": np.arange(300), "keys_test": np.arange(1000, 1100),
    }  # fmt: skip
    change(arrays)
    np.savez(path, **arrays)
    return DataConfig(name="npz", path=str(path), batch_size=10)


def load_raw() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None], bunch.target


def test_a_pool_from_another_file_is_labelled(store: Path, tmp_path: Path) -> None:
    done = label_pool(store, LabelConfig("teacher-1"), npz(tmp_path / "a.npz", lambda a: None), name="filed")
    assert (done.rows, RunArchive(store).run("filed").labels()) == (300, None)


def test_a_pool_that_holds_evaluation_images_is_refused(store: Path, tmp_path: Path) -> None:
    def leak(arrays: dict[str, np.ndarray]) -> None:
        arrays["x_test"][5] = arrays["x_train"][17]

    with pytest.raises(DataError, match=r"1 of the 300 images of the pool npz are in the evaluation data.*keys 17"):
        label_pool(store, LabelConfig("teacher-1"), npz(tmp_path / "a.npz", leak), name="leak")


def test_shared_examples_by_key_where_content_is_not_known() -> None:
    pool, held_out = DatasetInfo("a", torch.arange(5)), DatasetInfo("b", torch.tensor([3, 9]))
    assert shared_examples(pool, held_out).tolist() == [3]
    positions = DatasetInfo("b", torch.tensor([3, 9]), key_kind="position")
    assert shared_examples(pool, positions).tolist() == []


def test_other_pixels_other_classes_and_no_teacher_are_refused(store: Path, tmp_path: Path) -> None:
    def darken(arrays: dict[str, np.ndarray]) -> None:
        arrays["x_train"] //= 2

    def rename(arrays: dict[str, np.ndarray]) -> None:
        arrays["class_names"] = np.array([f"n{n}" for n in range(10)])

    def enlarge(arrays: dict[str, np.ndarray]) -> None:
        for part in ("x_train", "x_test"):
            arrays[part] = arrays[part].repeat(2, 1).repeat(2, 2)

    for change, words in ((darken, "pixels of mean"), (rename, "other classes"), (enlarge, "of shape")):
        with pytest.raises(PriorRunMismatchError, match=words):
            label_pool(store, LabelConfig("teacher-1"), npz(tmp_path / "a.npz", change), name="no")
    with pytest.raises(PriorRunMismatchError, match="cannot teach"):
        label_pool(store, LabelConfig("pool-1"), POOL, name="no")
    with pytest.raises(SignalNotFoundError, match="no finished pass"):
        student_pairs(RunArchive(store).run("teacher-1"))
    with pytest.raises(DataError, match="per_image must be from 1 to"):
        student_pairs(RunArchive(store).run("pool-1"), per_image=11)


def test_a_student_of_another_pool_is_refused(store: Path) -> None:
    loaded = load_datasets(DataConfig(name="digits", train_examples=60, train_rest=True))
    infos = [getattr(part, "info") for part in (loaded.train, loaded.eval)]  # noqa: B009
    with pytest.raises(PriorRunMismatchError, match=r"labelled another pool than the 1377 .*'train_examples': 50"):
        choose_pairs(RunArchive(store).run("pool-1"), *infos, PseudoLabels("pool-1", 5), num_classes=10)


def test_recipes_with_pools_are_checked(tmp_path: Path) -> None:
    recipe = ROOT / "yamls/digits/curriculum.yaml"
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, ["data.resample=sqrt", "label={runs: x}", "data.pseudo_labels={run: a, per_class: 0}"])
    for words in ("label trains nothing", "history_curriculum chooses", "per_class must be at least 1"):
        assert words in str(caught.value)
    with pytest.raises(DataError, match="in a run archive"):
        load_datasets(DataConfig(name="digits", pseudo_labels=PseudoLabels("a", 1)))


def test_the_command_labels_and_says_what_it_did(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pool.yaml").write_text("data: {name: digits, train_examples: 1300, train_rest: true}\n")
    command = [
        "label",
        str(store),
        "teacher-1,teacher-2",
        "--data",
        str(tmp_path / "pool.yaml"),
        "--name",
        "by-command",
    ]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["computed"], len(told["teachers"])) == (137, 137, 2)
    assert main(command) == 2
    assert "has a run named 'by-command' already" in capsys.readouterr().err
    for wrong, words in ((["--device", "cuda:99"], "cannot be used here"), (["--precision", "amp_fb16"], "'amp_bf16'")):
        assert main([*command[:-1], "wrong", *wrong]) == 2
        assert words in capsys.readouterr().err
        assert not list((store / "runs").glob("wrong*"))
    (tmp_path / "none.yaml").write_text("model: {name: digits_cnn}\n")
    assert main(["label", str(store), "teacher-1", "--data", str(tmp_path / "none.yaml"), "--name", "x"]) == 2
    assert "data: missing" in capsys.readouterr().err


def test_a_sequence_trains_teacher_pool_and_student_in_order_and_counts_all(tmp_path: Path) -> None:
    overrides = [
        "grid.seed=[1]", f"folder={tmp_path / 'work'}", "arms.without.overrides.max_duration=8ba",
        "overrides.max_duration=4ba", "overrides.scheduler=null", "arms.pool.steps.2.overrides.max_duration=4ba",
        "arms.pool.steps.3.overrides.max_duration=4ba", "overrides.device=cpu",
    ]  # fmt: skip
    config = load_sequence(ROOT / "yamls/sequences/pool.yaml", overrides, archive=str(tmp_path / "archive"))
    plan = plan_sequence(config)
    order = [step.name for step in plan.steps if step.arm == "pool"]
    assert order == [f"{name}_seed-1" for name in ("teacher", "pool", "student", "fine-tuning")]
    states = run_sequence(plan, launcher=Here(), say=lambda line: None)
    archive = RunArchive(config.archive)
    report = sequence_report(config, states, archive)
    pool = report.arms[1]
    assert [step.judged for step in pool.steps] == [False, False, False, True]
    assert [step.cost.steps for step in pool.steps] == [4, 0, 4, 4]
    harvest = archive.run("pool-pool-pool_seed-1").manifest.harvests[0].seconds
    assert pool.total.harvest_seconds == pytest.approx(harvest)
    assert pool.steps[2].cost.harvest_seconds == pytest.approx(harvest)
    assert pool.final.estimate == pool.steps[3].final == pool.best
    assert any("not judged by teacher_seed-1, pool_seed-1, student_seed-1" in note for note in report.notes)
    ids = {step.name: step.run_id for step in pool.steps}
    assert [record["max_duration"] for record in plan_records(states)][1:] == ["4ba", None, "4ba", "4ba"]
    shown = io.StringIO()
    print_report(report, Console(file=shown, width=200))
    assert re.search(r"pool/pool_seed-1 \(empty\) +- +- +0 +0 ", shown.getvalue())
    assert pool.steps[2].prior_runs == [ids["pool_seed-1"]]
    assert pool.steps[3].prior_runs == [ids["student_seed-1"]]


@pytest.mark.ranks
def test_two_ranks_train_the_student_of_one(store: Path, tmp_path: Path) -> None:
    recipe = [str(ROOT / "yamls/digits/baseline.yaml"), f"archive={store}", "device=cpu", "progress_bar=false"]
    recipe += ["data.train_examples=50", "data.train_rest=true", "data.pseudo_labels={run: pool-1, per_class: 20}"]
    recipe += ["data.resample=sqrt", "max_duration=1ep", "callbacks.run_recorder.signals={loss: {}}", "scheduler=null"]
    assert train.main([*recipe, "run_name=ranks-1"]) == 0
    launch(2, "-m", "reuse_algos.train", *recipe, "run_name=ranks-2", check=True)
    one, two = (RunArchive(store).run(f"ranks-{ranks}") for ranks in (1, 2))
    assert torch.equal(one.keys(), two.keys())
    assert torch.equal(one.labels(), two.labels())  # type: ignore[arg-type]
    assert torch.equal(one.signal("loss").seen(0), two.signal("loss").seen(0))
    assert one.manifest.prior_runs == two.manifest.prior_runs
