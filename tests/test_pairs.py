"""Relative representations against a dense numpy version, on made-up pairs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from compare.synthetic_runs import write_run
from reuse_algos.archive import DatasetRecord, PriorRun, RunArchive
from reuse_algos.cli import main
from reuse_algos.errors import DataError
from reuse_algos.pairs import RelativeSpace, read_prompts, relative_rows, zero_shot

CLASSES = 5


def pairs(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, image features, text features and classes: both modalities place the classes in directions of their own."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.Generator().manual_seed(99)
    image_centres, text_centres = (
        torch.randn(CLASSES, 12, generator=centres),
        torch.randn(CLASSES, 8, generator=centres),
    )
    labels = torch.arange(count) % CLASSES
    images = image_centres[labels] + 0.8 * torch.randn(count, 12, generator=generator)
    texts = text_centres[labels] + 0.5 * torch.randn(count, 8, generator=generator)
    keys = torch.randperm(10 * count, generator=generator)[:count]
    return keys, images, texts, labels


def by_numpy(images: Tensor, texts: Tensor, anchors: tuple[Tensor, Tensor], k: int, power: float) -> np.ndarray:
    """Every step on dense float64 matrices, row by row."""
    relative = []
    for rows, known in zip((images, texts), anchors, strict=True):
        unit = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in (rows.double().numpy(), known.double().numpy())]
        cosines = unit[0] @ unit[1].T
        for row in cosines:
            row[np.argsort(-row, kind="stable")[k:]] = 0
        powers = np.maximum(cosines, 0) ** power
        relative.append(powers / np.linalg.norm(powers, axis=1, keepdims=True))
    return relative[0] @ relative[1].T


@pytest.mark.parametrize(("k", "power"), [(20, 8.0), (20, 1.0), (100, 8.0), (100, 3.0), (1, 2.0)])
def test_it_equals_a_dense_numpy_version(k: int, power: float) -> None:
    keys, images, texts, _ = pairs(100)
    space = RelativeSpace(k, power)
    space.add(keys, images, texts)
    _, new_images, new_texts, _ = pairs(40, seed=1)
    expected = by_numpy(new_images, new_texts, (images, texts), k, power)
    found = space.similarity(new_images, new_texts)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def accuracy(space: RelativeSpace, seed: int = 1) -> Tensor:
    """Accuracy for each class, with one prompt for each class."""
    _, images, texts, labels = pairs(500, seed=seed)
    prompts = torch.stack([texts[labels == number].mean(0) for number in range(CLASSES)])
    right = space.similarity(images, prompts).argmax(1) == labels
    return torch.stack([right[labels == number].double().mean() for number in range(CLASSES)])


def test_it_classifies_and_shuffled_pairs_do_not() -> None:
    keys, images, texts, _ = pairs(400)
    space, control = RelativeSpace(50), RelativeSpace(50)
    space.add(keys, images, texts)
    control.add(keys, images, texts[torch.randperm(400, generator=torch.Generator().manual_seed(5))])
    assert accuracy(space).mean() > 0.8
    assert abs(accuracy(control).mean() - 1 / CLASSES) < 0.1


def test_removing_a_class_forgets_it_and_adding_it_again_is_bit_equal() -> None:
    keys, images, texts, labels = pairs(400)
    space = RelativeSpace(50)
    space.add(keys, images, texts)
    _, new_images, new_texts, _ = pairs(30, seed=2)
    before, known = space.similarity(new_images, new_texts), accuracy(space)
    gone = labels == 3
    space.remove(keys[gone])
    assert not torch.isin(keys[gone], space.keys).any()
    assert accuracy(space)[3] < 0.3 < known[3]
    space.add(keys[gone].flip(0), images[gone].flip(0), texts[gone].flip(0))
    assert torch.equal(space.similarity(new_images, new_texts), before)


def test_the_shares_of_the_deciding_pairs_add_up() -> None:
    keys, images, texts, labels = pairs(200)
    space = RelativeSpace(30)
    space.add(keys, images, texts)
    _, new_images, new_texts, new_labels = pairs(10, seed=3)
    shares = space.decided_by(new_images[0], new_texts[0], count=200)
    expected = float(space.similarity(new_images[:1], new_texts[:1]))
    assert sum(one.share for one in shares) == pytest.approx(expected, abs=1e-6)
    assert [one.share for one in shares] == sorted((one.share for one in shares), reverse=True)
    (best,) = space.decided_by(new_images[0], new_texts[0], count=1)
    assert labels[keys == best.key] == new_labels[0]


def test_of_equal_cosines_the_earlier_anchor_is_kept() -> None:
    rows = relative_rows(
        torch.tensor([[2.0, 0.0], [0.0, -1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), 1, 8
    )
    assert rows.tolist() == [[1, 0, 0], [0, 0, 0]], "and a row without a positive cosine is 0"


def features_run(archive: RunArchive, name: str, keys: Tensor, rows: Tensor, kind: str | None = None) -> PriorRun:
    """A run with archived features of its examples."""
    meta = {"epoch": 0, "source": "harvest", "encoding": "dense", "slot": 0, "view": 0}
    values = {"ids": torch.arange(len(keys)), "values": rows}
    return archive.run(
        write_run(
            archive, name, 0, [0.5],
            put=[("dataset", "examples", {"keys": keys}), ("signals", "features", values, meta)],
            dataset=DatasetRecord(name=name, num_examples=len(keys), fingerprint="f" * 64, key_kind=kind),
        )
    )  # fmt: skip


def test_archived_features_are_matched_by_key(tmp_path: Path) -> None:
    keys, images, texts, _ = pairs(60)
    archive = RunArchive(tmp_path / "archive", create=True)
    image_run = features_run(archive, "images", keys[:50], images[:50])
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1)) + 10
    text_run = features_run(archive, "texts", keys[order], texts[order])
    space, expected = RelativeSpace.of_runs(image_run, text_run, k=10), RelativeSpace(10)
    expected.add(keys[10:50], images[10:50], texts[10:50])
    assert torch.equal(space.keys, keys[10:50].sort().values)
    assert torch.equal(space.similarity(images, texts), expected.similarity(images, texts))
    strange = features_run(archive, "strange", -1 - keys, texts)
    with pytest.raises(DataError, match="no key in common"):
        RelativeSpace.of_runs(image_run, strange)
    # Seventh of one dataset and seventh of another are a pair by accident.
    for kind, wrong in (("position", keys), (None, torch.arange(60))):
        with pytest.raises(DataError, match="by their positions only"):
            RelativeSpace.of_runs(image_run, features_run(archive, "by-position", wrong, texts, kind))
    with pytest.raises(LookupError, match="reuse-algos harvest ARCHIVE plain"):
        RelativeSpace.of_runs(archive.run(write_run(archive, "plain", 0, [0.5])), text_run)


def test_wrong_input_is_refused() -> None:
    keys, images, texts, _ = pairs(10)
    space = RelativeSpace(11)
    space.add(keys, images, texts)
    with pytest.raises(DataError, match="k=11 is larger than the 10 anchors"):
        space.similarity(images, texts)
    with pytest.raises(DataError, match="a key is given twice, or is there already"):
        space.add(keys[:1], images[:1], texts[:1])
    with pytest.raises(DataError, match=r"features of size \(3,\) do not fit those of 12 there"):
        space.add(keys[:1] + 1000, images[:1, :3], texts[:1])
    with pytest.raises(DataError, match="2 keys come with 1 images and 1 texts"):
        space.add(keys[:2] + 1000, images[:1], texts[:1])
    with pytest.raises(DataError, match="1 of 1 keys to remove are not anchors"):
        space.remove(torch.tensor([-5]))
    with pytest.raises(ValueError, match="k from 1 and a finite power above 0"):
        RelativeSpace(0)


def labelled_runs(tmp_path: Path) -> tuple[RunArchive, PriorRun, PriorRun]:
    """Images of 300 pairs and of 60 more; texts of the pairs and of five prompts, one for each class."""
    keys, images, texts, labels = pairs(360)
    _, _, prompts, _ = pairs(5, seed=7)
    archive = RunArchive(tmp_path / "archive", create=True)
    names = [f"class-{number}" for number in range(CLASSES)]
    meta = {"epoch": 0, "source": "harvest", "encoding": "dense", "slot": 0, "view": 0}
    made = []
    for name, own_keys, rows, own_labels in (
        ("images", keys, images, labels),
        ("texts", torch.cat([keys[:300], -1 - torch.arange(5)]), torch.cat([texts[:300], prompts]), None),
    ):
        examples = {"keys": own_keys} if own_labels is None else {"keys": own_keys, "labels": own_labels}
        values = {"ids": torch.arange(len(own_keys)), "values": rows}
        run = write_run(
            archive, name, 0, [0.5],
            put=[("dataset", "examples", examples), ("signals", "features", values, meta)],
            dataset=DatasetRecord(
                name=name, num_examples=len(own_keys), fingerprint="f" * 64, class_names=names, labels_known=True
            ),
        )  # fmt: skip
        made.append(archive.run(run))
    return archive, made[0], made[1]


def test_images_without_a_text_are_classified_by_the_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, images, texts = labelled_runs(tmp_path)
    file = tmp_path / "classes.txt"
    file.write_text("".join(f"class-{number}\t{-1 - number}\n" for number in range(CLASSES)))
    found = zero_shot(images, texts, read_prompts(file, texts), k=50)
    keys, rows, all_texts, labels = pairs(360)
    space = RelativeSpace(50)
    space.add(keys[:300], rows[:300], all_texts[:300])
    expected = space.similarity(rows[300:], torch.nn.functional.normalize(pairs(5, seed=7)[2], dim=1))
    assert torch.equal(found.keys, keys[300:])
    torch.testing.assert_close(found.scores, expected, rtol=0, atol=1e-6)
    assert torch.equal(found.labels, labels[300:])
    assert found.accuracy == float((found.classes == labels[300:]).double().mean()) > 0.7
    command = ["zero-shot", str(archive.location), "--images", images.id, "--texts", texts.id, "--prompts", str(file)]
    key = int(keys[301])
    assert main([*command, "--k", "50", "--explain", str(key), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["anchors"], told["images"], told["accuracy"]) == (300, 60, found.accuracy)
    assert told["classes"][str(key)] == f"class-{int(found.classes[1])}"
    deciding = told["decided_by"][str(key)]
    assert [one["key"] for one in deciding] == [one.key for one in found.decided_by(key)]
    # Without the pairs that decided, others do.
    without = ",".join(str(one["key"]) for one in deciding)
    assert main([*command, "--k", "50", "--explain", str(key), "--without", without, "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["anchors"] == 300 - len(deciding)
    assert not {one["key"] for one in deciding} & {one["key"] for one in other["decided_by"][str(key)]}
    assert main([*command, "--k", "301"]) == 2
    assert "k=301 is larger than the 300 anchors" in capsys.readouterr().err
    assert main([*command, "--k", "50", "--without", "123456789"]) == 2
    assert "none of the 300 pairs" in capsys.readouterr().err
    for wrong, words in (
        (["--without", str(1 << 63)], "whole number of 64 bits"),
        (["--explain", str(-(1 << 70))], "whole number of 64 bits"),
        (["--explain", "1,,2"], "keys with commas between"),
        (["--power", "inf"], "finite number above 0"),
        (["--texts", images.id], "not with itself"),
    ):
        assert main([*command, *wrong]) == 2
        assert words in capsys.readouterr().err


def test_prompts_may_come_with_features_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, images, texts = labelled_runs(tmp_path)
    file, by_key = tmp_path / "prompts.npz", tmp_path / "classes.txt"
    rows = pairs(5, seed=7)[2]
    np.savez(file, names=[f"class-{n}" for n in range(CLASSES)], features=rows.numpy())
    by_key.write_text("".join(f"class-{number}\t{-1 - number}\n" for number in range(CLASSES)))
    one, other = (zero_shot(images, texts, read_prompts(path, texts), k=50) for path in (file, by_key))
    torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-6)
    np.savez(file, names=["a", "b"], features=np.array([[1.0, np.nan], [1.0, 2.0]]))
    with pytest.raises(DataError, match="NaN or infinite"):
        read_prompts(file, texts)
    # A prompt of zeros fits no image.
    np.savez(file, names=["a", "b"], features=np.zeros((2, rows.shape[1]), np.float32))
    archive = str(tmp_path / "archive")
    command = ["zero-shot", archive, "--images", images.id, "--texts", texts.id, "--prompts", str(file), "--k", "50"]
    assert main(command) == 0
    assert "fits no class: 60" in capsys.readouterr().out
    np.savez(file, names=["a", "b"], features=rows[:2, :3].numpy())
    with pytest.raises(DataError, match="the prompts have 3 features"):
        zero_shot(images, texts, read_prompts(file, texts), k=50)


@pytest.mark.parametrize(("text", "words"), [
    ("a\t-1\nb\t777777\n", "line 2: run .* has no features of key 777777"), ("a\t-1\na\t-2\n", "each named once"),
    ("a -1\n", "write a name, a tab, and keys"), ("", "names no class"),
])  # fmt: skip
def test_prompts_that_cannot_be_meant_are_refused(tmp_path: Path, text: str, words: str) -> None:
    _, _, texts = labelled_runs(tmp_path)
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(DataError, match=words):
        read_prompts(tmp_path / "p.txt", texts)


def test_damage_to_any_file_of_a_run_with_features_is_found(tmp_path: Path) -> None:
    archive, images, _ = labelled_runs(tmp_path)
    assert archive.verify().ok
    files = [file for file in sorted((tmp_path / "archive/runs" / images.id).rglob("*")) if file.is_file()]
    assert any("features" in file.name for file in files)
    for file in files:
        whole = file.read_bytes()
        if not whole:
            continue
        place = len(whole) - 1 - len(whole) // 3
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged manifest warns as well
            assert any(images.id in str(problem) for problem in archive.verify().problems), file
        file.write_bytes(whole)
    assert archive.verify().ok
