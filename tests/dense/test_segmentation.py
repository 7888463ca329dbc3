"""A class for each pixel: terms by double loops, data with exact masks, archived maps, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reuse_algos import PriorRunDistillation
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks.signals.kept_logits import at_size, bytes_of_row, check_logits
from reuse_algos.data.datasets.config import DataConfig
from reuse_algos.data.datasets.load import load_datasets
from reuse_algos.data.dense import SceneConfig, compose_scenes, load_dense
from reuse_algos.errors import DataError, ModelError, RecipeError, TaskError
from reuse_algos.functional import channel_wise_term
from reuse_algos.models import build_model
from reuse_algos.recipe import build_trainer, compose_recipe


def _maps(seed: int) -> torch.Tensor:
    return 3 * torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _double_loop(student: torch.Tensor, teacher: torch.Tensor, temperature: float, counted: torch.Tensor) -> float:
    total = 0.0
    for row in range(len(student)):
        for channel in range(student.shape[1]):
            keep = counted[row]
            if not bool(keep.any()):
                continue
            p = (teacher[row, channel][keep] / temperature).exp()
            q = (student[row, channel][keep] / temperature).exp()
            p, q = p / p.sum(), q / q.sum()
            total += float((p * (p / q).log()).sum())
    return temperature**2 * total / (len(student) * student.shape[1])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_channel_wise_term_is_the_double_loop(temperature: float) -> None:
    """Ignored positions are minus infinity on both sides, and a picture without a counted one adds nothing."""
    student, teacher = _maps(1), _maps(2)
    counted = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(3)) > 0.3
    counted[1] = False
    found = channel_wise_term(student, teacher, temperature, counted_BX=counted)
    assert float(found) == pytest.approx(_double_loop(student, teacher, temperature, counted), rel=1e-12)
    whole = torch.ones_like(counted)
    plain = channel_wise_term(student, teacher, temperature)
    assert float(plain) == pytest.approx(_double_loop(student, teacher, temperature, whole), rel=1e-12)
    assert float(channel_wise_term(student, student, temperature)) == 0
    shifted = student + torch.arange(4.0, dtype=torch.float64)[:, None, None]
    assert float(channel_wise_term(shifted, teacher, temperature)) == pytest.approx(float(plain), rel=1e-12)
    assert channel_wise_term(student.half(), teacher.half(), 1.0).dtype == torch.float32


def test_channel_wise_gradients_stay_out_of_what_does_not_count() -> None:
    student, teacher = _maps(1).requires_grad_(), _maps(2)
    counted = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(3)) > 0.3
    counted[1] = False
    broken = teacher.clone()
    broken[1] = torch.nan
    seen = torch.tensor([True, True, False])
    term = channel_wise_term(student, broken, 4.0, seen_B=seen, counted_BX=counted)
    term.backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
    assert torch.equal(student.grad[1:], torch.zeros_like(student.grad[1:]))
    hidden = (~counted[0])[None].expand(4, 5, 6)
    assert torch.equal(student.grad[0][hidden], torch.zeros(int(hidden.sum()), dtype=torch.float64))
    one = channel_wise_term(student[:1], teacher[:1], 4.0, counted_BX=counted[:1])
    assert float(term) == pytest.approx(float(one) / 3, rel=1e-12), "the mean still divides by B"
    weights = torch.tensor([2.0, 1.0, 1.0])
    weighed = channel_wise_term(student, broken, 4.0, seen, weights, counted)
    assert float(weighed) == pytest.approx(2 * float(term), rel=1e-12)


# Data -----------------------------------------------------------------------------------------------------------------


def test_scenes_have_exact_masks_and_boxes() -> None:
    made = compose_scenes(20, size=32, most=3, seed=4, held_out=False)
    again = compose_scenes(20, size=32, most=3, seed=4, held_out=False)
    assert torch.equal(made.images, again.images)
    other = compose_scenes(20, size=32, most=3, seed=4, held_out=True)
    assert not torch.equal(made.masks, other.masks)
    assert (made.images.dtype, tuple(made.masks.shape)) == (torch.uint8, (20, 32, 32))
    for scene in range(20):
        boxes, labels = made.boxes[scene], made.labels[scene]
        assert 1 <= len(boxes) == len(labels) <= 3
        assert bool((boxes[:, :2] < boxes[:, 2:]).all())
        assert 0 <= float(boxes.min()) <= float(boxes.max()) <= 32
        # The last digit covers the others, so its box is exactly that of its pixels or of what is left of them.
        x1, y1, x2, y2 = boxes[-1].int().tolist()
        inside = torch.zeros(32, 32, dtype=torch.bool)
        inside[y1:y2, x1:x2] = True
        others = {int(label) for label in labels[:-1]}
        if int(labels[-1]) not in others:
            ys, xs = (made.masks[scene] == labels[-1]).nonzero().T
            assert (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1) == (x1, y1, x2, y2)
        assert set(made.masks[scene].unique().tolist()) <= {0, *labels.tolist()}


def _nifti(path: Path, volume: np.ndarray) -> None:
    header = bytearray(352)
    header[40:56] = np.array([3, *volume.shape[::-1], 1, 1, 1, 1], "<i2").tobytes()
    header[70:72] = np.array([2], "<i2").tobytes()
    header[344:348] = b"n+1\0"
    with gzip.open(path, "wb") as file:
        file.write(bytes(header) + volume.astype(np.uint8).tobytes())


def test_slices_of_a_brain_are_split_with_a_gap(tmp_path: Path) -> None:
    """A volume of its own: every second slice, held-out blocks, and no training slice within 3 of one."""
    shape = (189, 233, 197)
    rows = np.arange(189, dtype=np.uint8)[:, None, None] * np.ones(shape, np.uint8)
    grey = np.zeros(shape, np.uint8)
    grey[:, :, :98] = 200
    white = np.zeros(shape, np.uint8)
    white[:, :, 110:] = 255
    for kind, volume in (("t1", rows), ("gm", grey), ("wm", white)):
        _nifti(tmp_path / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz", volume)
    train, held = load_dense("mni152", str(tmp_path), None)
    assert tuple(train.images.shape[1:]) == (112, 96)
    assert train.keys.tolist() == train.images[:, 0, 0].tolist(), "each picture is its own slice"
    near = (train.keys[:, None] - held.keys[None]).abs().min()
    assert int(near) > 3
    assert len(held.keys) == 14
    assert train.masks[0, 50].tolist() == [1] * 48 + [0] * 6 + [2] * 42
    (tmp_path / "mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz").write_bytes(b"no")
    with pytest.raises(DataError, match="wm_tal_nlin_sym_09a_converted.nii.gz cannot be read"):
        load_dense("mni152", str(tmp_path), None)


def _npz(path: Path, mask_value: int = 1) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    masks = (images[..., 0] > 128).astype(np.uint8)
    masks[2, 1, 1] = mask_value
    masks[3, :4] = 255
    arrays = {"x_train": images, "y_train": masks, "x_test": images[:2], "y_test": masks[:2]}
    np.savez(path, class_names=np.array(["dark", "light"]), **arrays)
    return path


def test_masks_with_unknown_values_are_refused(tmp_path: Path) -> None:
    load_datasets(DataConfig("dense_npz", path=str(_npz(tmp_path / "good.npz")), batch_size=2))
    bad = DataConfig("dense_npz", path=str(_npz(tmp_path / "bad.npz", 7)), batch_size=2)
    with pytest.raises(DataError, match=r"values \[7\], first in example 2, and there are 2 classes, 0 to 1.*by 255"):
        load_datasets(bad)
    with pytest.raises(DataError, match="data.classes: is for images with one label, and 'mni152' is a dataset of pic"):
        DataConfig("mni152", classes=[1]).check()
    with pytest.raises(DataError, match="data.scenes: is for digit_scenes"):
        DataConfig("digits", scenes=SceneConfig()).check()


def _damage(path: Path, **changed: np.ndarray) -> None:
    with np.load(path) as file:
        arrays = {**file, **changed}
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"keys_train": np.arange(2)}, r"keys_train of .* must be 6 whole numbers.*int64 \(2,\)"),
        ({"keys_train": np.arange(6) + 0.5}, r"must be 6 whole numbers.*float64 \(6,\)"),
        ({"keys_train": np.array(list("abcdef"))}, r"must be 6 whole numbers.*<U1 \(6,\)"),
        ({"keys_train": np.array([0, 1, 2, 3, 4, 0])}, "key 0 belongs to more than one example, such as 0 and 5"),
        ({"x_train": np.zeros((0, 8, 8), np.uint8), "y_train": np.zeros((0, 8, 8), np.uint8)}, "no training example"),
    ],
)
def test_files_of_pictures_and_masks_are_looked_at(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = _npz(tmp_path / "data.npz")
    _damage(path, **changed)
    with pytest.raises(DataError, match=message):
        load_datasets(DataConfig("dense_npz", path=str(path), batch_size=2))


@pytest.mark.parametrize("content", [b"PK\x03\x04", b""])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="data.npz cannot be read as dense_npz"):
        load_datasets(DataConfig("dense_npz", path=str(path), batch_size=2))


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        ("digit_boxes", "tiny_unet", "digit_boxes has boxes, and tiny_unet learns none. Take one of tiny_fcos"),
        ("digit_scenes", "digits_cnn", "digit_scenes has a class for each pixel, and digits_cnn learns none"),
        ("digits", "tiny_fcos", "tiny_fcos learns boxes, and digits has none. It goes with digit_boxes"),
        ("text_files", "tiny_unet", "tiny_unet learns a class for each pixel, and text_files has none"),
    ],
)
def test_models_and_data_that_do_not_go_together_are_refused(data: str, model: str, message: str) -> None:
    values = {"data": {"name": data}, "model": {"name": model}, "optimizer": {"name": "adamw"}, "max_duration": "1ba"}
    with pytest.raises(RecipeError, match=f"model.name: {message}"):
        compose_recipe(values, source="x.yaml")


# Models and training --------------------------------------------------------------------------------------------------


def test_models_are_small_and_rebuilt_from_their_record() -> None:
    model = build_model({"name": "tiny_unet"}, 11, (1, 32, 32))
    assert sum(parameter.numel() for parameter in model.parameters()) < 100_000
    again = build_model(model.reuse_config)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert tuple(model((torch.zeros(2, 1, 30, 26),)).shape) == (2, 11, 30, 26)
    lraspp = build_model({"name": "lraspp_mobilenet_v3_large"}, 3, (3, 64, 64)).eval()
    assert tuple(lraspp((torch.zeros(1, 3, 64, 64),)).shape) == (1, 3, 64, 64)
    with pytest.raises(ModelError, match="takes pictures of 3 channels, not 1"):
        build_model({"name": "lraspp_mobilenet_v3_large"}, 3, (1, 64, 64))
    everything_ignored = torch.full((2, 8, 8), 255)
    assert float(model.loss(torch.zeros(2, 11, 8, 8), (None, everything_ignored))) == 0


def _train(path: Path, archive: Path, name: str, **recipe: Any) -> Any:
    values = {
        "run_name": name,
        "archive": str(archive),
        "data": {"name": "dense_npz", "path": str(path), "batch_size": 3},
        "model": {"name": "tiny_unet", "width": 2},
        "optimizer": {"name": "sgd", "lr": 0.0},
        "max_duration": "1ep",
        "device": "cpu",
        "progress_bar": False,
        "callbacks": {"run_recorder": {"signals": {"logits": {}, "loss": {}}}},
        **recipe,
    }
    trainer = build_trainer(compose_recipe(values))
    trainer.fit()
    trainer.close()
    return trainer


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("dense")
    path = _npz(folder / "masks.npz")
    _train(path, folder / "archive", "whole")
    small = {"run_recorder": {"signals": {"logits": {"size": [4, 4]}}}}
    _train(path, folder / "archive", "small", callbacks=small)
    return path, folder / "archive"


@pytest.mark.parametrize("loss", ["kl", "mse", "channel_wise"])
@pytest.mark.parametrize("runs", ["whole", "small"])
def test_archived_maps_teach(prior: tuple[Path, Path], runs: str, loss: str) -> None:
    """A student that is its own teacher has a term of 0, but for float16; smaller maps are interpolated."""
    path, archive = prior
    trainer = _train(
        path,
        archive,
        f"student-{runs}-{loss}",
        algorithms={
            "prior_run_distillation": {
                "runs": runs,
                "source": "cached",
                "loss": {"name": loss, "scale": "none"},
                "when": {"stop": "1dur"},
            }
        },
    )
    teach = next(one for one in trainer.state.algorithms if isinstance(one, PriorRunDistillation))
    found = teach.latest_metrics["reuse/distillation/loss"]
    if runs == "whole":
        assert 0 <= found < 1e-4
    else:
        signal = RunArchive(archive).run("small").signal("logits")
        assert signal.row_shape == (2, 4, 4)
        assert found > 1e-4


def test_a_smaller_map_is_the_mean_of_its_pixels(prior: tuple[Path, Path]) -> None:
    whole = RunArchive(prior[1]).run("whole").signal("logits").dense(0)[0].float()
    small = RunArchive(prior[1]).run("small").signal("logits").dense(0)[0].float()
    torch.testing.assert_close(small, F.avg_pool2d(whole, 2), atol=2e-3, rtol=2e-3)
    maps = torch.randn(2, 3, 8, 8)
    assert torch.equal(at_size(maps, [4, 4]), F.avg_pool2d(maps, 2))


def test_the_size_of_logits_is_said_before_training() -> None:
    assert bytes_of_row((11, 32, 32), None, None) == 2 * 11 * 32 * 32
    assert bytes_of_row((11, 32, 32), None, (8, 8)) == 2 * 11 * 8 * 8
    assert bytes_of_row((50_000, 128), 16, None) == 128 * (16 * 6 + 4)
    assert check_logits((3,), None, None, 10) == ""
    assert check_logits((11, 32, 32), None, None, 600) == "logits take 12.9 MiB for each view"
    with pytest.raises(TaskError, match=r"would take 11.9 GiB for each view. Keep the largest \(top_k: 16\)"):
        check_logits((50_000, 128), None, None, 1000)
    with pytest.raises(TaskError, match=r"signals.logits.size: \[64, 64\] makes maps of pixels smaller"):
        check_logits((11, 32, 32), None, (64, 64), 600)


def test_channel_wise_is_refused_for_other_tasks(tmp_path: Path) -> None:
    from toy import loader, record_run, trainer, viewed

    record_run(tmp_path, seed=1, epochs=1)
    teach = PriorRunDistillation(tmp_path, {"order": "first"}, source="live", loss="channel_wise", when={})
    with pytest.raises(TaskError, match="channel_wise is not defined for the task 'multiclass'"):
        trainer(loader(viewed()), algorithms=[teach]).fit()
