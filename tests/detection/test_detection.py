"""Detectors: what strong views keep, lose and gain, archived boxes, and a Trainer that is taught by them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reuse_algos.algorithms import FeatureDistillation, MixTraining
from reuse_algos.algorithms.mix_training.boxes import strong_view
from reuse_algos.archive import RunArchive
from reuse_algos.data.dense import BoxDataset, SceneConfig, load_boxes
from reuse_algos.data.dense.boxes import careless_boxes
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import DataError, ModelError, PriorRunMismatchError, SignalNotFoundError, TaskError
from reuse_algos.functional import mixed_targets
from reuse_algos.harvest import harvest
from reuse_algos.harvest.boxes import box_rows
from reuse_algos.models import build_model
from reuse_algos.recipe import build_trainer, compose_recipe

TRUE = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 0, 50, 10]])
LABELS = torch.tensor([1, 2, 3])


def test_true_boxes_stay_where_the_teacher_sees_them_and_sure_ones_are_added() -> None:
    """By hand: the first stays, the second is not seen, the third is seen but a sure pseudo-box takes its place."""
    scores = torch.tensor([0.95, 0.5, 0.97])
    found = torch.tensor(
        [
            [41.0, 0, 51, 10, 0.93, 3],  # IoU with the third: 90 / 110
            [60, 60, 70, 70, 0.99, 5],
            [0, 0, 10, 10, 0.2, 1],  # not sure
            [0, 0, 0, 0, 0, 0],
        ]
    )
    boxes, labels = mixed_targets(TRUE, LABELS, scores, found)
    assert labels.tolist() == [1, 3, 5]
    assert boxes.tolist() == [TRUE[0].tolist(), [41, 0, 51, 10], [60, 60, 70, 70]]
    boxes, labels = mixed_targets(TRUE, LABELS, scores, found, overlap=0.85)
    assert labels.tolist() == [1, 3, 3, 5], "an overlap of 0.82 is not enough"
    nothing = torch.zeros(4, 6)
    assert mixed_targets(TRUE, LABELS, torch.zeros(3), nothing)[1].tolist() == []
    empty = mixed_targets(TRUE[:0], LABELS[:0], torch.zeros(0), found)
    assert empty[1].tolist() == [3, 5]


def test_strong_views_move_boxes_with_what_they_hold() -> None:
    """A bright square on a dark ground: its brightest pixels lie in the box of the view."""
    image = torch.zeros(1, 64, 64)
    image[:, 20:36, 28:44] = 4.0
    box, label = torch.tensor([[28.0, 20, 44, 36]]), torch.tensor([7])
    seen = 0
    for seed in range(20):
        view, boxes, labels = strong_view(image, box, label, np.random.default_rng(seed))
        again = strong_view(image, box, label, np.random.default_rng(seed))
        assert torch.equal(view, again[0])
        assert torch.equal(boxes, again[1])
        assert labels.tolist() == [7]
        x1, y1, x2, y2 = boxes[0].tolist()
        assert 0 <= x1 < x2 <= 64
        assert 0 <= y1 < y2 <= 64
        ys, xs = (view[0] > view[0].min() + 0.75 * (view[0].max() - view[0].min())).nonzero().T
        inside = (xs + 0.5 >= x1 - 1) & (xs + 0.5 <= x2 + 1) & (ys + 0.5 >= y1 - 1) & (ys + 0.5 <= y2 + 1)
        assert float(inside.float().mean()) == 1
        seen += len(xs)
    assert seen > 20 * 100
    _, gone, _ = strong_view(image, torch.tensor([[0.0, 0, 1, 1]]), label, np.random.default_rng(0))
    assert len(gone) == 0, "too small to be a box"


def test_rows_of_archived_boxes() -> None:
    found = [
        {
            "boxes": torch.tensor([[0.0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 10]]),
            "scores": torch.tensor([0.5, 0.9, 0.75]),
            "labels": torch.tensor([1, 4, 1]),
        },
        {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    targets = [{"boxes": TRUE, "labels": LABELS}, {"boxes": TRUE[:0], "labels": LABELS[:0]}]
    boxes = box_rows("boxes", found, targets)
    assert (boxes.dtype, tuple(boxes.shape)) == (torch.float16, (2, 32, 6))
    assert boxes[0, 0].tolist() == pytest.approx([20, 20, 30, 30, 0.9, 4], abs=1e-3)
    assert torch.equal(boxes[0, 3:], torch.zeros(29, 6).half())
    scores = box_rows("gt_scores", found, targets)
    assert scores[0, :3].tolist() == [0.75, 0, 0], "the second box is found under another label"
    crowd = {"boxes": TRUE[:1].repeat(33, 1), "labels": LABELS[:1].repeat(33)}
    with pytest.raises(DataError, match="33 true boxes, and gt_scores has room for 32"):
        box_rows("gt_scores", found[:1], [crowd])


def test_careless_boxes_lose_what_they_are_told_to() -> None:
    train, held = load_boxes("digit_boxes", SceneConfig(train=200, eval=20, size=64, most=4))
    boxes, labels = train._boxes, train._labels
    count = sum(map(len, boxes))
    left, kept = careless_boxes(boxes, labels, 64, drop=0.3, jitter=0.0, seed=1)
    assert sum(map(len, left)) / count == pytest.approx(0.7, abs=0.07)
    assert all(len(one) == len(two) for one, two in zip(left, kept, strict=True))
    moved, _ = careless_boxes(boxes, labels, 64, drop=0.0, jitter=0.1, seed=1)
    widths = torch.cat([box[:, 2] - box[:, 0] for box in boxes])
    off = (torch.cat([box[:, 0] for box in moved]) - torch.cat([box[:, 0] for box in boxes])) / widths
    assert float(off.std()) == pytest.approx(0.1, abs=0.02)
    clean = load_boxes("digit_boxes", SceneConfig(train=20, eval=20, size=64, most=4, drop=0.5))[1]
    assert all(torch.equal(one, two) for one, two in zip(clean._boxes, held._boxes, strict=True)), "evaluation is clean"


def test_digits_of_one_class_have_the_same_boxes() -> None:
    settings = {"train": 6, "eval": 4, "size": 32, "drop": 0.4, "jitter": 0.1}
    (many, _), (one, held) = (
        load_boxes("digit_boxes", SceneConfig(**settings, one_class=own)) for own in (False, True)
    )
    assert one.info.class_names == ("background", "digit")
    assert all(torch.equal(first, second) for first, second in zip(many._boxes, one._boxes, strict=True))
    assert {int(label) for part in (one, held) for labels in part._labels for label in labels} == {1}


def test_boxes_without_an_area_are_refused() -> None:
    info = DatasetInfo("boxes", torch.arange(1))
    images = torch.zeros(1, 8, 8, dtype=torch.uint8)
    BoxDataset(images, [torch.zeros(0, 4)], [LABELS[:0]], info)  # none is a picture like any other
    for wrong in ([[4.0, 0, 4, 2]], [[0.0, 0, 9, 2]]):
        with pytest.raises(DataError, match="of example 0 with labels .* must be .x1, y1, x2, y2."):
            BoxDataset(images, [torch.tensor(wrong)], [LABELS[:1]], info)


def _train(archive: Path, name: str, **recipe: Any) -> Any:
    values = {
        "run_name": name,
        "archive": str(archive),
        "data": {"name": "digit_boxes", "batch_size": 4, "scenes": {"train": 8, "eval": 4, "size": 32, "drop": 0.4}},
        "model": {"name": "tiny_fcos", "width": 16},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "max_duration": "1ep",
        "device": "cpu",
        "progress_bar": False,
        "callbacks": {"run_recorder": {}},
        **recipe,
    }
    trainer = build_trainer(compose_recipe(values))
    trainer.fit()
    trainer.close()
    return trainer


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector whose boxes and scores were harvested; some of its training pictures have no box."""
    pytest.importorskip("faster_coco_eval")
    folder = tmp_path_factory.mktemp("detection")
    _train(folder, "prior")
    harvest(folder, "prior", signals=("boxes", "gt_scores"), progress=False, trust_data=True)
    return folder


def test_a_detector_is_read_while_it_trains_as_without(archive: Path, tmp_path: Path) -> None:
    """Bit for bit the training of the run without instruments, whose readings are those of its first two scenes."""
    reading = {"training_instruments": {"sets": ["economy", "stopping", "curvature"], "every": "1ba", "examples": 2}}
    reading["training_instruments"]["hessian"] = {"probes": 2, "iterations": 2}
    trained = _train(tmp_path, "read", callbacks={"run_recorder": {}, **reading}, device_train_microbatch_size=2)
    plain = _train(tmp_path, "plain", device_train_microbatch_size=2)
    theirs = plain.state.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in trained.state.model.state_dict().items())
    run = RunArchive(tmp_path).run("read")
    assert run.metric("instruments/alpha").step.tolist() == [1, 2]
    assert run.metric("instruments/batch_size").value.tolist() == [4, 4]
    for name in ("largest_eigenvalue", "largest_eigenvalue_error", "trace", "trace_error"):
        assert np.isfinite(run.metric(f"instruments/{name}").value).all(), name
    assert all(-1 <= value < 1 for value in run.metric("instruments/alpha").value)
    assert run.metric("instruments/distance").value[1] > 0


def test_harvested_boxes_are_what_the_archived_detector_finds(archive: Path) -> None:
    from reuse_algos.priors.model import archived_model

    run = RunArchive(archive).run("prior")
    signal = run.signal("boxes")
    assert (signal.row_shape, signal.num_examples) == ((32, 6), 8)
    train, _ = load_boxes("digit_boxes", SceneConfig(train=8, eval=4, size=32, drop=0.4))
    model = archived_model(run, "last")
    with torch.no_grad():
        found = model(([train[3][0]], [train[3][1]]))
    expected = box_rows("boxes", found, [train[3][1]])[0]
    torch.testing.assert_close(signal.dense(signal.slots[0])[0][3].float(), expected.float(), rtol=1e-2, atol=1e-2)


def test_a_dataset_without_a_collate_function_is_harvested_by_the_loader_s(archive: Path, tmp_path: Path) -> None:
    """A user's collate_fn is in the DataLoader: the harvest takes it, and names it where lists do not stack."""
    from shutil import copytree

    from torch.utils.data import Subset

    copy = copytree(archive, tmp_path / "copy")
    own = Subset(load_boxes("digit_boxes", SceneConfig(train=8, eval=4, size=32, drop=0.4))[0], range(8))
    given: dict[str, Any] = {"signals": ("boxes",), "dataset": own, "replace": True, "progress": False}
    with pytest.raises(DataError, match="default_collate .* Pass the collate_fn of your own loader"):
        harvest(copy, "prior", **given)
    harvest(copy, "prior", **given, collate_fn=BoxDataset.collate_fn)
    before, after = (RunArchive(where).run("prior").signal("boxes") for where in (archive, copy))
    assert torch.equal(after.dense(after.slots[0])[0], before.dense(before.slots[0])[0])


@pytest.mark.parametrize("control", [None, "shuffled"])
def test_strong_views_are_added_with_their_weight(archive: Path, control: str | None) -> None:
    """With a threshold of 0 everything that was found is added; the metrics say so, and what was used is recorded."""
    options = {"runs": "prior", "threshold": 0.0, "weight": 2.0, "control": control}
    one = _train(archive, f"mix-{control}", algorithms={"mix_training": options})
    algorithm = next(found for found in one.state.algorithms if isinstance(found, MixTraining))
    assert algorithm.batches_applied == 2
    assert algorithm.latest_metrics["reuse/mix_training/loss"] > 0
    signal = RunArchive(archive).run("prior").signal("boxes").dense(0)[0]
    rows = algorithm._rows_N.sort().values
    assert rows.tolist() == list(range(8)), "every image gets somebody's boxes"
    assert (algorithm._rows_N.tolist() == list(range(8))) == (control is None)
    mean = float((signal[..., 4] > 0).sum(1).float().mean())
    assert 0 <= algorithm.latest_metrics["reuse/mix_training/added"] <= max(32.0, mean)
    (use,) = RunArchive(archive).run(f"mix-{control}").manifest.prior_runs
    assert (use.algorithm, sorted(use.signals)) == ("mix_training", ["boxes", "gt_scores"])
    assert use.harvest_seconds > 0


def test_a_threshold_above_every_score_is_refused(archive: Path) -> None:
    """Strong views would have no box left, and teach the detector to find nothing."""
    highest = RunArchive(archive).run("prior").signal("boxes").dense(0)[0][..., 4].max()
    with pytest.raises(PriorRunMismatchError, match=rf"no score of run prior.* its boxes is {float(highest):.2f}"):
        _train(archive, "too-sure", algorithms={"mix_training": {"runs": "prior", "threshold": 1.0}})


def test_a_detector_starts_from_an_archived_one(archive: Path) -> None:
    warm = {"prior_run_warm_start": {"runs": "prior"}}
    one = _train(archive, "warm", algorithms=warm, optimizer={"name": "sgd", "lr": 0.0}, max_duration="1ba")
    old = dict(RunArchive(archive).run("prior").weights("last"))
    for name, parameter in one.state.model.named_parameters():
        assert torch.equal(parameter, old[name]), name


def test_backbone_and_head_of_a_detector_are_named(archive: Path) -> None:
    """A detector of ten digits starts from one of a single class: only what says which class is new, and trains."""
    one_class = {"train": 8, "eval": 4, "size": 32, "one_class": True}
    _train(archive, "one", data={"name": "digit_boxes", "batch_size": 4, "scenes": one_class})
    classes = "head.classification_head.cls_logits.*"
    start = {"runs": "one", "head": {"name": "reset", "pattern": classes}, "mismatch": "allow"}
    start["trainable"] = {"freeze": "backbone"}
    trained = _train(archive, "ten", algorithms={"prior_run_warm_start": start}, max_duration="1ba")
    old = dict(RunArchive(archive).run("one").weights("last"))
    moved = [name for name, one in trained.state.model.named_parameters() if not torch.equal(one, old[name])]
    assert moved == [f"module.head.classification_head.cls_logits.{part}" for part in ("weight", "bias")]
    start["head"] = "reset"
    with pytest.raises(ModelError, match="no linear layer .* with 11 outputs.*head: {name: reset, pattern: 'fc"):
        _train(archive, "unnamed", algorithms={"prior_run_warm_start": start})


def test_a_detector_is_taught_by_backbone_and_head_of_an_archived_one(archive: Path) -> None:
    """The logged term is that of two detectors side by side, in units of the teacher's deviation in the first batch."""
    from reuse_algos.functional import feature_term
    from reuse_algos.priors.model import archived_model

    teach = {"runs": "prior", "modules": ["backbone", "head.classification_head"], "when": {"stop": "1dur"}}
    data = {"name": "digit_boxes", "batch_size": 8, "scenes": {"train": 8, "eval": 4, "size": 32, "drop": 0.4}}
    still = {"optimizer": {"name": "sgd", "lr": 0.0}, "max_duration": "2ep", "data": data}
    trained = _train(archive, "features", algorithms={"feature_distillation": teach}, **still)
    algorithm = next(one for one in trained.state.algorithms if isinstance(one, FeatureDistillation))
    assert algorithm.batches_applied == 1, "the first of two batches measures the deviation"
    shown = RunArchive(archive).run("features").metric("reuse/feature_distillation/loss")
    assert shown.step.tolist() == [2]
    train, _ = load_boxes("digit_boxes", SceneConfig(train=8, eval=4, size=32, drop=0.4))
    teacher, student = archived_model(RunArchive(archive).run("prior"), "last"), trained.state.model.train()
    images, targets = zip(*(train[i] for i in range(8)), strict=True)

    def given(model: Any) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for module in (model.module.backbone, model.module.head.classification_head):
            module.register_forward_hook(lambda _, __, out: found.append(out))
        with torch.no_grad():
            model((list(images), list(targets)))
        return found

    deviations = [float(one.double().std(correction=0)) for one in given(copy.deepcopy(teacher))]
    pairs = zip(given(student), given(teacher), deviations, strict=True)
    expected = [float(feature_term(ours, theirs, deviation)) for ours, theirs, deviation in pairs]
    assert float(shown.value[0]) == pytest.approx(sum(expected) / 2, rel=1e-4)
    (use,) = RunArchive(archive).run("features").manifest.prior_runs
    assert (use.algorithm, use.weights) == ("feature_distillation", ["last"])
    extra = algorithm.extra_flops(0)
    assert extra == 16 * algorithm._flops[0] > 0, "the teacher saw each image twice"


def test_features_that_cannot_be_compared_are_refused(archive: Path) -> None:
    def run(name: str, *modules: str, **recipe: Any) -> None:
        _train(
            archive, name, algorithms={"feature_distillation": {"runs": "prior", "modules": list(modules)}}, **recipe
        )

    with pytest.raises(ModelError, match="the model has no module 'backbon'. Did you mean 'backbone'"):
        run("unknown", "backbon")
    wide = {"name": "tiny_fcos", "width": 32}
    with pytest.raises(ModelError, match=r"'backbone' has shape \(4, 64, .*in the student and \(4, 32, .*same width"):
        run("wide", "backbone", model=wide)
    with pytest.raises(ModelError, match=r"'anchor_generator \[0\]' has shape \(64, 4\), and the microbatch 4 rows"):
        run("anchors", "anchor_generator")
    with pytest.raises(ModelError, match="no gradient reaches the student's backbone: these modules are frozen"):
        _train(
            archive,
            "frozen",
            algorithms={
                "freezing": {"freeze": "backbone.*"},
                "feature_distillation": {"runs": "prior", "modules": ["backbone"]},
            },
        )
    with pytest.raises(ValueError, match="modules must be a list of names, at least one, got 'backbone'"):
        FeatureDistillation(archive, "prior", "backbone")
    state = FeatureDistillation(archive, "prior", ["backbone"]).state_dict()
    with pytest.raises(ValueError, match=r"modules are \['head'\], and the checkpoint has \['backbone'\]"):
        FeatureDistillation(archive, "prior", ["head"]).load_state_dict(state)
    with pytest.raises(ValueError, match="weight must be above 0, got 0"):
        FeatureDistillation(archive, "prior", ["backbone"], weight=0)


def test_a_run_without_boxes_and_other_tasks_are_refused(archive: Path, tmp_path: Path) -> None:
    _train(tmp_path, "bare")
    with pytest.raises(SignalNotFoundError, match="no signal 'boxes'.*--signals boxes,gt_scores"):
        _train(tmp_path, "two", algorithms={"mix_training": {"runs": "bare"}})
    from toy import loader, trainer, viewed

    info = load_boxes("digit_boxes", SceneConfig(train=8, eval=4, size=32))[0].info
    mix = MixTraining(archive, "prior", threshold=0.0, dataset=info)
    with pytest.raises(TaskError, match="MixTraining is for detectors"):
        trainer(loader(viewed(8)), algorithms=[mix], max_duration="1ba").fit()
    with pytest.raises(ValueError, match="threshold must be from 0 to 1, got 2"):
        MixTraining(archive, "prior", threshold=2)


@pytest.mark.parametrize(
    "algorithms",
    [
        {"prior_run_distillation": {"runs": "prior", "source": "live"}},
        {"adversarial_training": {"epsilon": 0.1, "steps": 1}},
    ],
)
def test_what_needs_one_answer_for_each_image_names_what_detectors_have(
    archive: Path, algorithms: dict[str, Any]
) -> None:
    with pytest.raises(TaskError, match="not defined for the task detection.*MixTraining.*FeatureDistillation"):
        _train(archive, "refused", algorithms=algorithms)


def test_a_detector_has_no_scores_to_harvest(archive: Path) -> None:
    curriculum = {"history_curriculum": {"runs": "prior", "strategy": "prune", "score": "loss"}}
    with pytest.raises(SignalNotFoundError, match="a detector, whose images have no logits.*there is MixTraining"):
        _train(archive, "refused", algorithms=curriculum)


@pytest.mark.parametrize("signals", [{"logits": {}}, {"loss": {}}, {"logits": {"last_epochs": 1}, "correct": {}}])
def test_signals_of_one_tensor_are_refused_by_what_serves_detectors(tmp_path: Path, signals: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="not defined for the task detection.*MixTraining.*boxes,gt_scores"):
        _train(tmp_path, "prior", callbacks={"run_recorder": {"signals": signals}})


def test_logits_of_a_detector_are_not_harvested(archive: Path) -> None:
    with pytest.raises(TaskError, match="not defined for the task detection.*boxes,gt_scores"):
        harvest(archive, "prior", signals=("logits",), progress=False, trust_data=True)


def test_a_new_detector_finds_boxes_with_an_area() -> None:
    """Its distances go through a ReLU: from around 0 they can all die, and every box is a point for ever."""
    torch.manual_seed(0)
    model = build_model({"name": "tiny_fcos", "width": 16}, 2, (1, 64, 64)).eval()
    with torch.no_grad():
        features = model.module.backbone(torch.rand(1, 1, 64, 64))
        distances, _ = model.module.head.regression_head([features])
    assert float(distances.min()) > 0.5
    assert float(distances.mean()) == pytest.approx(1.0, abs=0.2), "16 pixels wide and high, about a digit"


def test_detectors_are_rebuilt_from_their_record() -> None:
    model = build_model({"name": "tiny_fcos", "width": 16}, 11, (1, 64, 64))
    again = build_model(model.reuse_config)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    found = model.eval()(([torch.zeros(1, 64, 64)], None))
    assert found[0].keys() >= {"boxes", "scores", "labels"}
