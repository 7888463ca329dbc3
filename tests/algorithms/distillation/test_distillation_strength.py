"""Terms whose strength does not depend on the teachers' scale: units, gradients, bounds, and the age of views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from composer.models import ComposerClassifier
from composer.optim import LinearScheduler
from torch import Tensor, nn

from distilling import distil, fit, series, teacher
from reuse_algos.algorithms.prior_run_distillation import KL, MSE, Cached
from reuse_algos.algorithms.prior_run_distillation.loss.section import Strength, Weighing
from reuse_algos.algorithms.prior_run_distillation.loss.strength import (
    Measured,
    logit_moments,
    pulls,
    standardized,
    variance_of,
)
from reuse_algos.algorithms.prior_run_distillation.teachers.sources import CachedTeachers, LiveTeachers
from reuse_algos.archive import RunArchive
from reuse_algos.errors import PriorRunMismatchError, TaskError
from reuse_algos.training.tasks.task import Task
from toy import NUM_CLASSES, mlp, record_run, viewed

TASKS = {
    "multiclass": Task("multiclass", 5),
    "token": Task("token", 5, -1),
    "multilabel": Task("multilabel", 5),
    "regression": Task("regression", 5),
}


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_standardized_rows_in_closed_form() -> None:
    z = _numbers(4, 5, 3)
    x = z.numpy()
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(standardized(z).numpy(), expected, atol=1e-12)
    # The scale and the shift of a row do not matter, up to the 1e-4.
    torch.testing.assert_close(standardized(50 * z + 7), standardized(z), atol=1e-4, rtol=1e-3)


def test_standardized_rows_with_masked_classes_and_nan() -> None:
    """Masked classes are left out; what is not a number stays so and has no gradient; constant rows have one."""
    z = torch.tensor([[1.0, 2.0, -torch.inf], [torch.nan, 1.0, 2.0], [0.0, 0.0, 0.0]], requires_grad=True)
    out = standardized(z)
    torch.testing.assert_close(out[0, :2], standardized(torch.tensor([[1.0, 2.0]]))[0])
    assert out[0, 2] == -torch.inf
    out[:, 1].sum().backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert z.grad[0, 2] == 0
    assert z.grad[1, 0] == 0


@pytest.mark.parametrize("name", TASKS)
def test_moments_in_closed_form_and_over_microbatches(name: str) -> None:
    task = TASKS[name]
    z = _numbers(6, 5, 3) if name == "token" else _numbers(6, 5)
    seen = torch.tensor([True, True, False, True, True, False])
    places = (6, 3) if name == "token" else (6, 5)
    counted = None if name == "multiclass" else _numbers(*places, seed=1) > -2
    x = z.numpy()[seen.numpy()]
    if name == "multiclass":
        expected = x.var(1).mean()
    elif name == "token":
        assert counted is not None
        expected = x.var(1)[counted.numpy()[seen.numpy()]].mean()
    else:
        assert counted is not None
        mask = counted.numpy()[seen.numpy()]
        if name == "multilabel":
            expected = np.square(x)[mask].mean()
        else:
            expected = np.mean([x[mask[:, c], c].var() for c in range(5)])
    whole = logit_moments(task, z, seen, counted)
    assert variance_of(whole) == pytest.approx(expected, rel=1e-9)
    parts = [
        logit_moments(task, z[i : i + 2], seen[i : i + 2], None if counted is None else counted[i : i + 2])
        for i in (0, 2, 4)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(0), whole)


def test_pulls_are_the_gradients_at_the_logits() -> None:
    z = _numbers(8, 5).requires_grad_()
    y, t = torch.arange(8) % 5, _numbers(8, 5, seed=1)
    pulled = pulls(F.cross_entropy(z, y), ((z - t) ** 2).mean(), z)
    assert pulled is not None
    own = (torch.softmax(z, 1) - F.one_hot(y, 5)).detach() / 8
    taught = (2 * (z - t) / z.numel()).detach()
    expected = torch.stack([(own**2).sum(), (taught**2).sum(), (own * taught).sum()]).float()
    torch.testing.assert_close(pulled, expected)
    assert z.grad is None
    assert pulls(torch.zeros((), requires_grad=True), ((z - t) ** 2).mean(), z) is None


@pytest.mark.parametrize("loss", [MSE(scale="teacher"), KL(scale="teacher"), MSE(scale="rows"), KL(scale="rows")])
def test_terms_do_not_depend_on_the_teachers_scale(loss: MSE) -> None:
    """Logits of student and teacher that are seven times as large, and their deviation, give the same term."""
    task, s, t = TASKS["multiclass"], _numbers(6, 5), _numbers(6, 5, seed=1)
    values = []
    for scale in (1, 7):
        deviation = variance_of(logit_moments(task, scale * t)) ** 0.5
        student, target = (loss.in_units(scale * z, deviation) for z in (s, t))
        strength = Strength(1.0, 4.0)
        values.append(loss.term(student, loss.target([target], [1.0], strength, task), strength, task, Weighing()))
    assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-3 if loss.scale == "rows" else 1e-6)
    if isinstance(loss, KL) or loss.scale == "rows":
        return
    assert float(values[0]) == pytest.approx(float(((s - t) ** 2).mean() / t.var(1, correction=0).mean()), rel=1e-6)


def _deviation(archive: RunArchive) -> float:
    variances = []
    for index in range(2):
        signal = archive.runs(order="first")[index].signal("logits")
        rows = [signal.dense(view)[0][view::2] for view in (0, 1)]
        variances.append(torch.cat(rows).double().var(1, correction=0).mean())
    return float(torch.stack(variances).mean().sqrt())


def test_scale_of_cached_teachers_comes_from_the_archive(archive: RunArchive) -> None:
    """The first batch is taught already."""
    _, plain, _ = fit([], max_duration="1ba")
    settings = {"name": "mse", "weight": 2.0, "scale": "teacher"}
    algorithm = distil(archive, source="cached", loss=settings)
    _, watch, _ = fit([algorithm], max_duration="1ba")
    deviation = algorithm.lessons.measured.deviation
    assert deviation == pytest.approx(_deviation(archive), rel=1e-6)
    with torch.no_grad():
        mixed = sum(teacher(archive, i)((watch.inputs[0], None)) for i in range(2)) / 2
    expected = float(plain.losses[0]) + 2.0 * float(((watch.outputs[0] - mixed) ** 2).mean()) / deviation**2
    assert float(watch.losses[0]) == pytest.approx(expected, rel=2e-3)  # the archive has float16


@pytest.mark.parametrize("microbatch", [16, 4])
def test_scale_and_bound_of_live_teachers_come_from_the_first_batches(archive: RunArchive, microbatch: int) -> None:
    """The first batch shows the teachers' scale and the second the gradients; the term counts from the third on."""
    _, plain, _ = fit([], max_duration="3ba", lr=0.0)
    settings = {"name": "mse", "weight": 50.0, "scale": "teacher", "bound": 0.5}
    algorithm = distil(archive, source="live", loss=settings)
    _, watch, log = fit([algorithm], max_duration="3ba", lr=0.0, device_train_microbatch_size=microbatch)
    active = series(log, "reuse/distillation/active")
    assert active == [0.0, 0.0, 1.0]
    parts = 16 // microbatch
    if parts == 1:
        assert [float(loss) for loss in watch.losses[:2]] == [float(loss) for loss in plain.losses[:2]]
    with torch.no_grad():
        x, z = torch.cat(watch.inputs[:parts]), torch.cat(watch.outputs[parts : 2 * parts])
        taught = [teacher(archive, i)((x, None)).double() for i in range(2)]
        deviation = float(torch.stack([t.var(1, correction=0).mean() for t in taught]).mean().sqrt())
        assert algorithm.lessons.measured.deviation == pytest.approx(deviation, rel=1e-6)
        second = torch.cat(watch.inputs[parts : 2 * parts])
        mixed = sum(teacher(archive, i)((second, None)) for i in range(2)) / 2
        pull = 50 * 2 * ((z - mixed) / deviation**2 / z.numel()).norm()
    pulled = series(log, "reuse/distillation/pull")[0]
    assert pulled * algorithm.lessons.measured.factor < 0.5 * (1 + 1e-6)
    # What the batch's ratio was, from its two norms.
    own = pull / pulled
    assert 0.5 < float(own) * 16**0.5 < 1.5  # rows of p - y, each of a norm near 1, divided by 16
    weight = series(log, "reuse/distillation/weight")
    assert weight[:2] == [50.0, 50.0]
    assert weight[2] == pytest.approx(50 * 0.5 / pulled, rel=1e-6)


def test_bound_and_scale_do_not_depend_on_microbatches(archive: RunArchive) -> None:
    found = []
    for microbatch in (16, 8, 2):
        loss = {"name": "mse", "weight": 9, "scale": "teacher", "bound": 0.5}
        algorithm = distil(archive, source="live", loss=loss, teacher_model=mlp)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            linear = ComposerClassifier(nn.Linear(6, NUM_CLASSES), num_classes=NUM_CLASSES)  # no batch norm
        fit([algorithm], linear, max_duration="2ep", device_train_microbatch_size=microbatch)
        found.append((algorithm.lessons.measured.deviation, algorithm.lessons.measured.factor))
        assert algorithm.lessons.measured.looks == 7  # of 8 batches: the first shows the scale
    for one in found[1:]:
        assert one == pytest.approx(found[0], rel=1e-6)


def test_the_factor_only_falls_and_then_stays() -> None:
    measured = Measured(scaled=False, bound=1.0)
    assert not measured.is_ready
    factors = []
    for ratio in (2.0, 0.5, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        assert measured.wants_pulls
        measured.hold(ratio)
        factors.append(measured.factor)
    assert factors == [0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25]
    assert not measured.wants_pulls


@pytest.mark.parametrize("source", ["live", "cached"])
def test_a_resumed_run_goes_on_with_what_was_measured(archive: RunArchive, tmp_path: Path, source: str) -> None:
    def one(folder: str, **settings: Any) -> Any:
        loss = MSE(weight=4.0, scale="teacher", bound=0.3, weight_scheduler=LinearScheduler(t_max="2ep"))
        algorithm = distil(archive, loss=loss, source=source)
        found, _, _ = fit([algorithm], save_folder=str(tmp_path / folder), save_interval="1ba", **settings)
        return found, algorithm

    whole, first = one("a", max_duration="2ep")
    for batch in (1, 3):
        checkpoint = tmp_path / "a" / f"ep0-ba{batch}-rank0.pt"
        resumed, algorithm = one(f"b{batch}", max_duration="2ep", load_path=str(checkpoint))
        assert algorithm.lessons.measured.state_dict() == first.lessons.measured.state_dict()
        theirs = resumed.state.model.state_dict()
        for name, value in whole.state.model.state_dict().items():
            assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "mse", "scale": "classes"}, r"loss.scale: must be one of 'none', 'teacher', 'rows'"),
        ({"name": "kl", "bound": 0}, "bound must be above 0"),
        ({"name": "kl", "bound": 1.0, "weight": 1.0}, "bound needs a share of the model's own loss"),
    ],
)
def test_settings_of_the_strength(archive: RunArchive, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distil(archive, loss=settings)


def test_standardized_rows_need_classes() -> None:
    with pytest.raises(TaskError, match=r"loss.scale: rows needs classes that exclude each other.*Set scale: teacher"):
        MSE(scale="rows").check_task(TASKS["regression"])


# The age of captured views -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aged(tmp_path_factory: pytest.TempPathFactory) -> RunArchive:
    """Six epochs of three views, captured in the last three."""
    path = tmp_path_factory.mktemp("aged")
    record_run(path, epochs=6, num_views=3)
    return RunArchive(path)


def test_views_that_were_captured_early_are_refused_or_taken_on_purpose(aged: RunArchive) -> None:
    data = viewed(num_views=3)
    young = {"name": "cached", "oldest": "1ep"}
    with pytest.raises(
        PriorRunMismatchError,
        match=r"captured 1 of the 3 views .*: view 0 is 2 of 6 epochs old, and source.oldest is 1ep",
    ):
        fit([distil(aged, source=young)], data=data, max_duration="1ba")
    for oldest, kind in (
        ("1dur", CachedTeachers),
        ("2ep", CachedTeachers),
        ("1ep", LiveTeachers),
        ("0.1dur", LiveTeachers),
    ):
        algorithm = distil(aged, source={"name": "auto", "oldest": oldest})
        fit([algorithm], data=data, max_duration="1ba")
        assert isinstance(algorithm.teachers, kind)


def test_rows_of_early_views_go_without_the_term_where_that_is_allowed(aged: RunArchive) -> None:
    algorithm = distil(aged, source={"name": "cached", "oldest": "1ep"}, mismatch="allow")
    _, _, log = fit([algorithm], data=viewed(num_views=3), max_duration="3ep")
    coverage = np.array(series(log, "reuse/distillation/coverage")).reshape(3, 4)
    assert coverage.tolist() == [[0.0] * 4, [1.0] * 4, [1.0] * 4]


def test_oldest_is_a_share_or_epochs() -> None:
    with pytest.raises(ValueError, match="oldest must be a share of the duration"):
        Cached(oldest="3ba")
