"""The choice of pseudo-labels against a triple loop."""

from __future__ import annotations

import pytest
import torch

from reuse_algos.priors.pseudo_labels import select_pairs


def by_loops(scores: list[list[float]], per_class: int, per_image: int) -> list[tuple[int, int]]:
    """The same choice, read off the definition."""
    classes = len(scores[0])
    pairs = []
    for label in range(classes):
        candidates = []
        for image, row in enumerate(scores):
            better = sum(row[k] > row[label] or (row[k] == row[label] and k < label) for k in range(classes))
            if better < per_image:
                candidates.append((-row[label], image))
        pairs += [(image, label) for _, image in sorted(candidates)[:per_class]]
    return pairs


def test_it_equals_a_triple_loop_with_ties() -> None:
    shared = 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        images, classes = 1 + seed % 23, 1 + seed % 7
        scores_NC = torch.randint(4, (images, classes), generator=generator).float() / 4  # many ties
        per_class, per_image = 1 + seed % 9, 1 + seed % classes
        image_M, class_M = select_pairs(scores_NC, per_class=per_class, per_image=per_image)
        pairs = list(zip(image_M.tolist(), class_M.tolist(), strict=True))
        assert pairs == by_loops(scores_NC.tolist(), per_class, per_image)
        shared += len(image_M) > len(set(image_M.tolist()))
    assert shared > 20, "some images served several classes"


def test_large_k_keeps_every_image_once() -> None:
    scores_NC = torch.rand(50, 5, generator=torch.Generator().manual_seed(0))
    image_M, class_M = select_pairs(scores_NC, per_class=1000)
    assert sorted(image_M.tolist()) == list(range(50))
    assert torch.equal(scores_NC.argmax(1)[image_M], class_M)


@pytest.mark.parametrize(
    ("scores", "settings", "message"),
    [
        (torch.zeros(3), {"per_class": 1}, r"float matrix \[N, C\], got torch.float32 \(3,\)"),
        (torch.zeros(3, 2, dtype=torch.int64), {"per_class": 1}, "got torch.int64"),
        (torch.tensor([[0.0, float("nan")]]), {"per_class": 1}, "scores hold NaN"),
        (torch.zeros(3, 2), {"per_class": 0}, "per_class must be at least 1, got 0"),
        (torch.zeros(3, 2), {"per_class": 1, "per_image": 3}, "from 1 to the number of classes 2, got 3"),
    ],
)
def test_wrong_input_is_refused(scores: torch.Tensor, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_pairs(scores, **settings)
