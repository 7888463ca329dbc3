"""Data that drift: models that are told the time, interpolation of gradients, periods in their order."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Algorithm, Event, State
from composer.algorithms import MixUp
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.transforms.functional import InterpolationMode, rotate

from compare.synthetic_runs import write_run
from forked_python import launch
from reuse_algos import train
from reuse_algos.algorithms.gradient_interpolation import GradientInterpolation, ascend_delta, interpolate
from reuse_algos.archive import DatasetRecord, PriorRun, RunArchive
from reuse_algos.cli import main
from reuse_algos.data import DataConfig, load_datasets
from reuse_algos.data.datasets.rotation import Rotated, period_of
from reuse_algos.errors import DataError, ModelError, PriorRunMismatchError, RecipeError
from reuse_algos.models import build_model
from reuse_algos.models.time_conditioned import Time2Vec, TimeConditioned, time_of, with_time
from reuse_algos.priors.drift import drift_between
from reuse_algos.sequence import load_sequence, plan_sequence
from timed import timed_blobs, timed_model, timed_trainer
from toy import checkpointed, epoch_loader, mlp, trainer

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("delta", [-0.4, 0.0, 0.03, 0.5])
def test_a_model_that_is_linear_in_time_is_interpolated_exactly(delta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, a, b = (torch.randn(7, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    times = torch.rand(7, generator=generator, dtype=torch.float64)

    def model(t: Tensor) -> Tensor:
        return x.sin() * a + t[:, None] * (b + x)

    found = interpolate(model, times, torch.tensor(delta, dtype=torch.float64))
    torch.testing.assert_close(found, model(times), rtol=0, atol=1e-14)


def test_of_a_sine_it_is_the_first_taylor_polynomial() -> None:
    times = torch.linspace(0, 2, 5, dtype=torch.float64)
    found = interpolate(lambda t: (3 * t).sin()[:, None], times, torch.tensor(0.3, dtype=torch.float64))
    before = times - 0.3
    expected = (3 * before).sin() + 0.3 * 3 * (3 * before).cos()
    torch.testing.assert_close(found[:, 0], expected, rtol=0, atol=1e-14)


def test_gradients_agree_with_finite_differences_in_float64() -> None:
    model = timed_model(norm=False).module.double()
    inputs = timed_blobs(6).tensors[0].double()
    names, values = zip(*model.named_parameters(), strict=True)

    def loss(delta: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        z = interpolate(lambda t: functional_call(model, given, (with_time(inputs, t),)), time_of(inputs), delta)
        return z.square().sum()

    points = [torch.tensor(0.2, dtype=torch.float64), *(value.detach().clone() for value in values)]
    for point in points:
        point.requires_grad_(True)
    assert torch.autograd.gradcheck(loss, tuple(points), atol=1e-7)


def test_the_ascent_climbs_and_stays_within_the_clamp() -> None:
    def square(d: Tensor) -> Tensor:
        return d.square()

    # d <- d + 0.1 * 2 d, five times.
    assert ascend_delta(square, 0.1, steps=5, rate=0.1, limit=1.0) == pytest.approx(0.1 * 1.2**5)
    assert ascend_delta(square, -0.1, steps=50, rate=0.1, limit=0.5) == -0.5
    assert ascend_delta(square, 0.1, steps=0, rate=0.1, limit=1.0) == 0.1
    with pytest.raises(ModelError, match="do not depend on the time"):
        interpolate(lambda t: torch.ones(3, 2), torch.zeros(3), torch.tensor(0.1))


def test_time2vec_is_a_line_and_sines() -> None:
    torch.manual_seed(0)
    layer = Time2Vec(4)
    t = torch.tensor([0.0, 0.5, 2.0])
    w, b = layer.linear.weight[:, 0], layer.linear.bias
    expected = torch.stack([w[0] * t + b[0], *((w[i] * t + b[i]).sin() for i in (1, 2, 3))], dim=1)
    torch.testing.assert_close(layer(t), expected)


def test_images_are_told_the_time_of_their_last_channel() -> None:
    model: Any = build_model({"name": "digits_cnn", "width": 4, "time": 3}, num_classes=10, image_shape=(2, 8, 8))
    images = torch.randn(5, 2, 8, 8)
    images[:, 1] = torch.arange(5.0)[:, None, None] / 10
    assert torch.equal(time_of(images), torch.arange(5.0) / 10)
    assert torch.equal(with_time(images, time_of(images)), images)
    seen: list[Tensor] = []
    model.module.net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model((images, None))
    features = model.module.time2vec(time_of(images))
    assert seen[0].shape == (5, 1 + 3, 8, 8)
    assert torch.equal(seen[0][:, 1:, 3, 4], features)
    again = build_model(model.reuse_config)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    for config, words in (
        ({"name": "resnet18", "time": 2}, "torchvision"),
        ({"name": "digits_cnn", "time": 0}, "at least 1"),
    ):
        with pytest.raises(ModelError, match=words):
            build_model(config, num_classes=10, image_shape=(2, 8, 8))


class Losses(Algorithm):
    """Notes the loss before and after the algorithm, and what it stands for."""

    def __init__(self, algorithm: GradientInterpolation) -> None:
        self.algorithm, self.seen = algorithm, []

    def match(self, event: Event, state: State) -> bool:
        return event == Event.BEFORE_BACKWARD

    def apply(self, event: Event, state: State, logger: Any) -> None:
        inputs, labels = state.batch
        model = state.model.module
        delta = torch.tensor(self.algorithm.delta)
        before = time_of(inputs) - delta
        step = 1e-3
        value, up, down = (model(with_time(inputs, before + move)) for move in (0.0, step, -step))
        z = value + delta * (up - down) / (2 * step)
        cross_entropy = nn.functional.cross_entropy
        self.seen.append(
            (float(state.loss), float(cross_entropy(z, labels) + 0.5 * cross_entropy(model(inputs), labels)))
        )


def test_the_loss_is_that_of_the_extrapolation_and_the_weighted_plain_one() -> None:
    algorithm = GradientInterpolation(0.5, steps=3)
    losses = Losses(algorithm)
    trainer(epoch_loader(timed_blobs()), timed_model(norm=False), algorithms=[algorithm, losses]).fit()
    assert len(losses.seen) >= 4
    for found, expected in losses.seen:
        assert found == pytest.approx(expected, abs=2e-4)
    assert 0 < abs(algorithm.delta) <= 0.5


def test_its_passes_leave_statistics_and_generators_alone() -> None:
    states = []
    for algorithms in ([], [GradientInterpolation()]):
        model = timed_model()
        trainer(epoch_loader(timed_blobs()), model, algorithms=algorithms, lr=0.0, max_duration="1ep").fit()
        states.append(({k: v.clone() for k, v in model.named_buffers()}, torch.rand(3), model.training))
    plain, with_it = states
    assert all(torch.equal(plain[0][name], with_it[0][name]) for name in plain[0])
    assert torch.equal(plain[1], with_it[1])
    assert plain[2] == with_it[2]


def test_a_resumed_run_is_bit_equal(tmp_path: Path) -> None:
    weights, deltas = [], []
    for stop in (None, "5ba"):
        folder = tmp_path / str(stop)
        for duration in ["3ep"] if stop is None else [stop, "3ep"]:
            algorithm = GradientInterpolation()
            one = trainer(
                epoch_loader(timed_blobs()), timed_model(), algorithms=[algorithm], max_duration="3ep",
                **checkpointed(folder, save_interval="5ba"),
            )  # fmt: skip
            one.fit() if duration == "3ep" else one.fit(duration=duration)
            one.close()
        weights.append({name: value.clone() for name, value in one.state.model.state_dict().items()})
        deltas.append(algorithm.delta)
    assert deltas[0] == deltas[1] != 0
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.ranks
def test_two_ranks_agree_on_the_step_and_with_one(tmp_path: Path) -> None:
    one, algorithm = timed_trainer()
    one.fit()
    script = ROOT / "tests/ranks/interpolate_in_time.py"
    launch(2, str(script), str(tmp_path), check=True)
    two = [json.loads((tmp_path / f"2-{rank}.json").read_text()) for rank in range(2)]
    assert two[0]["delta"] == two[1]["delta"]
    assert two[0]["delta"] == pytest.approx(algorithm.delta, rel=1e-3)
    sums = [float(p.detach().double().sum()) for p in one.state.model.parameters()]
    assert two[0]["weights"] == pytest.approx(sums, abs=1e-2)


def test_what_it_cannot_work_with_is_refused() -> None:
    with pytest.raises(ValueError, match="spread above 0"):
        GradientInterpolation(spread=1.0)
    plain = trainer(epoch_loader(timed_blobs()), mlp(), algorithms=[GradientInterpolation()])
    with pytest.raises(ModelError, match="does not take the time as an input"):
        plain.fit()
    mixed = trainer(epoch_loader(timed_blobs()), timed_model(), algorithms=[MixUp(alpha=0.2), GradientInterpolation()])
    with pytest.raises(PriorRunMismatchError, match="no example of one time"):
        mixed.fit()
    for one in (plain, mixed):
        one.engine.close()


def rotated(**more: Any) -> Any:
    return load_datasets(DataConfig(name="digits", batch_size=10, rotated=Rotated(**more)))


def test_each_period_has_images_of_its_own_turned_as_far() -> None:
    upright: Any = load_datasets(DataConfig(name="digits"))
    data = rotated(period=3, window=2)
    assert data.image_shape == (2, 8, 8)
    period = period_of(data.info.keys, 10)
    assert period.unique().tolist() == [2, 3]
    images, labels = data.train.__getitems__(range(len(data.train)))
    torch.testing.assert_close(images[:, 1, 0, 0], period * 25 / 255, rtol=0, atol=1e-6)
    assert torch.equal(images[:, 1].flatten(1).amax(1), images[:, 1].flatten(1).amin(1))
    places = upright.info.positions_of(data.info.keys)
    original, original_labels = upright.train.__getitems__(places.tolist())
    assert torch.equal(labels, original_labels)
    space = upright.train.pixel_space
    pixels = (space.to_pixels(original) * 255).round().to(torch.uint8)
    expected = torch.stack([
        rotate(image, 12.0 * float(p), InterpolationMode.BILINEAR) for image, p in zip(pixels, period, strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(space.to_pixels(images[:, :1]) * 255, expected.float(), rtol=0, atol=1e-3)
    held_out, _ = data.eval.__getitems__(range(len(data.eval)))
    assert held_out[:, 1].unique().tolist() == pytest.approx([4 * 25 / 255])
    assert len(data.eval) == 360
    counts = [len(rotated(period=p, window=1).train) for p in range(9)]
    assert sum(counts) == len(rotated(period=8).train)
    assert min(counts) > 100


@pytest.mark.parametrize(("wrong", "words"), [
    ({"period": 9}, "period must be from 0 to 8"), ({"period": 1, "window": 3}, "window must be from 1 to the 2"),
    ({"period": 0, "periods": 1}, "periods must be from 2"),
])  # fmt: skip
def test_periods_out_of_range_are_refused(wrong: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Rotated(**wrong)
    with pytest.raises(DataError, match="one channel is the time"):
        DataConfig(augment="crop", rotated=Rotated(1)).check()


def test_periods_out_of_order_are_refused_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    falling = ["grid.data.rotated.period=[3,2]"]
    with pytest.raises(RecipeError, match=r"reuse/period-2: periods are out of order"):
        plan_sequence(load_sequence(ROOT / "yamls/sequences/periods.yaml", falling))
    common = [
        str(ROOT / "yamls/digits/baseline.yaml"), f"archive={tmp_path / 'archive'}", "device=cpu", "model.time=2",
        "data.train_examples=null", "max_duration=2ba", "eval_interval=2ba", "progress_bar=false", "scheduler=null",
    ]  # fmt: skip
    assert train.main([*common, "run_name=late", "data.rotated={period: 5, window: 1}"]) == 0
    warm = "algorithms.prior_run_warm_start={runs: late}"
    assert train.main([*common, "run_name=early", "data.rotated={period: 4, window: 1}", warm]) == 2
    assert "run late-" in (told := capsys.readouterr().err)
    assert "was trained up to period 5, this run up to 4" in " ".join(told.split())
    assert train.main([*common, "run_name=next", "data.rotated={period: 6, window: 2}", warm]) == 0
    archive = RunArchive(tmp_path / "archive")
    (use,) = archive.run("next").manifest.prior_runs
    assert use.run_id == archive.run("late").id
    capsys.readouterr()
    assert main(["drift", str(tmp_path / "archive"), "--runs", "late,next", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["period"] for row in rows] == [5, 6]
    assert main(["drift", str(tmp_path / "archive"), "--runs", "next,late"]) == 2
    assert "periods are out of order" in capsys.readouterr().err


def run_with_logits(
    archive: RunArchive,
    name: str,
    keys: list[int],
    classes: list[int],
    labels: list[int],
    again: dict[int, int] | None = None,
    content: list[int] | None = None,
    **facts: Any,
) -> PriorRun:
    """A run whose archived logits take each example for a class, and ``again`` for another one an epoch later."""

    def signal(epoch: int, ids: list[int], classes: list[int]) -> Any:
        meta = {"epoch": epoch, "source": "capture", "encoding": "dense", "slot": epoch, "view": 0, "num_classes": 4}
        logits = nn.functional.one_hot(torch.tensor(classes), 4).half() * 3
        return "signals", "logits", {"ids": torch.tensor(ids), "values": logits}, meta

    examples = {"keys": torch.tensor(keys), "labels": torch.tensor(labels)}
    if content:
        examples |= {"content_rows": torch.arange(len(keys)), "content_hashes": torch.tensor(content)}
    columns = [signal(0, list(range(len(keys))), classes)]
    if again:
        columns.append(signal(1, list(again), list(again.values())))
    return archive.run(
        write_run(
            archive, name, 0, [0.5],
            put=[("dataset", "examples", examples), *columns],
            dataset=DatasetRecord(
                name=name, num_examples=len(keys), labels_known=True, **{"fingerprint": "f" * 64, **facts}
            ),
        )
    )  # fmt: skip


def test_drift_counts_who_changed_their_mind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    before = run_with_logits(archive, "january", [5, 3, 9, 1], [0, 1, 2, 3], [0, 1, 3, 3])
    after = run_with_logits(archive, "february", [9, 7, 3, 1], [3, 0, 2, 3], [3, 0, 1, 3])
    found = drift_between(before, after)
    assert found.keys.tolist() == [9, 3, 1]
    assert found.changed.tolist() == [9, 3]
    assert (found.learned, found.forgotten) == (1, 1)
    # An epoch that was broken off says what it came to, and the one before says the rest.
    april = run_with_logits(archive, "april", [9, 7, 3, 1], [3, 0, 2, 3], [3, 0, 1, 3], again={2: 1, 3: 0})
    found = drift_between(before, april)
    assert (found.keys.tolist(), found.after.tolist()) == ([9, 3, 1], [3, 1, 0])
    with pytest.raises(PriorRunMismatchError, match="no scored example in common"):
        drift_between(before, run_with_logits(archive, "march", [70, 80], [0, 1], [0, 1]))
    assert main(["drift", str(tmp_path / "archive"), "--runs", "january-0,february-0"]) == 0
    assert "2 (66.7 %)" in capsys.readouterr().out
    assert main(["drift", str(tmp_path / "archive"), "--runs", "january-0"]) == 2
    assert "at least two runs" in capsys.readouterr().err


def test_drift_never_takes_a_position_for_an_example(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)

    def month(name: str, fingerprint: str, classes: list[int], content: list[int] | None = None) -> PriorRun:
        facts = {"fingerprint": fingerprint * 64, "key_kind": "position"}
        return run_with_logits(archive, name, [0, 1, 2], classes, [0, 0, 0], content=content, **facts)

    plain, other = month("plain", "a", [0, 1, 2]), month("other", "b", [0, 1, 2])
    with pytest.raises(PriorRunMismatchError, match="known by their positions only"):
        drift_between(plain, other)
    assert drift_between(plain, month("same-data", "a", [0, 1, 3])).changed.tolist() == [2]
    # The second month begins with the first one's third example, and ends with its first.
    january, february = month("january", "a", [0, 1, 2], [50, 60, 70]), month("february", "b", [2, 3, 1], [70, 90, 50])
    found = drift_between(january, february)
    assert (found.keys.tolist(), found.before.tolist(), found.after.tolist()) == ([0, 2], [2, 0], [2, 1])


def test_a_net_that_takes_no_time_is_wrapped_for_vectors() -> None:
    net = TimeConditioned(nn.Linear(2 + 3, 2), 3)
    inputs = timed_blobs(4).tensors[0]
    expected = net.net(torch.cat([inputs[:, :2], net.time2vec(inputs[:, 2])], 1))
    assert torch.equal(net(inputs), expected)
    assert not math.isnan(float(expected.detach().sum()))
