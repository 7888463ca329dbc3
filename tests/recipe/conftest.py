"""Small data and settings for recipes."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def small_npz(tmp_path_factory):
    """A file in Keras' layout with CIFAR-100's shapes: 100 classes, 200 train and 100 test images."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("npz") / "images.npz"
    np.savez(
        path,
        x_train=rng.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8),
        y_train=np.arange(200) % 100,
        x_test=rng.integers(0, 256, (100, 32, 32, 3), dtype=np.uint8),
        y_test=np.arange(100) % 100,
    )
    return path


@pytest.fixture(scope="session")
def small_texts(tmp_path_factory):
    """Ten texts of each of two labels."""
    root = tmp_path_factory.mktemp("texts")
    for label in ("fruit", "tools"):
        (root / label).mkdir()
        for number in range(10):
            (root / label / f"{number}.txt").write_text(f"{label} number {number}")
    return root


@pytest.fixture
def on_cpu(tmp_path):
    """Overrides that keep a recipe inside the test's folder, on the CPU and quiet."""
    return [f"archive={tmp_path / 'archive'}", "device=cpu", "progress_bar=false"]
