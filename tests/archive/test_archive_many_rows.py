"""Signals of very many rows: checked in full without filling memory, and looked up the short way."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from reuse_algos.archive import DatasetRecord, RunArchive, Signal
from reuse_algos.archive.format.tensors import tensor_parts
from reuse_algos.archive.signals.segments import Segment, check_signal
from reuse_algos.errors import ArchiveCorruptError, ExampleIdError

from .conftest import manifest_of
from .test_archive_signals import resident_kib

META = {"slot": 0, "encoding": "dense", "num_classes": None}


def put_signal(archive: RunArchive, tensors: dict[str, Tensor], num_examples: int) -> str:
    writer = archive.start_run("large")
    entry = writer.put("signals", "logits", tensors, META)
    dataset = DatasetRecord(name="large", num_examples=num_examples, fingerprint="f")
    writer.commit(manifest_of([entry], dataset=dataset))
    return writer.run_id


@pytest.fixture
def tiny_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reuse_algos.archive.signals.segments._SMALL_BYTES", -1)
    monkeypatch.setattr("reuse_algos.archive.signals.segments._ROWS_PER_PART", 3)


@pytest.mark.parametrize("rows", [0, 1, 7, 1000])
@pytest.mark.parametrize("part_bytes", [1, 24, 100, 1 << 20])
def test_the_parts_of_a_tensor_are_the_tensor(
    archive: RunArchive, monkeypatch: pytest.MonkeyPatch, rows: int, part_bytes: int
) -> None:
    monkeypatch.setattr("reuse_algos.archive.format.tensors._PART_BYTES", part_bytes)
    tensors = {"ids": torch.arange(rows), "values": torch.randn(rows, 2, 3), "narrow": torch.randn(rows).half()}
    tensors["empty"] = torch.zeros(rows, 0)
    writer = archive.start_run("parts")
    entry = writer.put("weights", "last", tensors)
    path = f"runs/{writer.run_id}/{entry.path}"
    for name, tensor in tensors.items():
        parts = list(tensor_parts(archive._store, path, entry, name))
        assert torch.equal(torch.cat(parts) if parts else tensor[:0], tensor if tensor.numel() else tensor[:0])
        assert all(part.nbytes <= max(part_bytes, tensor[:1].nbytes) for part in parts)


def test_a_file_that_shrinks_under_a_reader_is_damage(archive: RunArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reuse_algos.archive.format.tensors._PART_BYTES", 80)
    writer = archive.start_run("parts")
    entry = writer.put("weights", "last", {"ids": torch.arange(100)})
    path = f"runs/{writer.run_id}/{entry.path}"
    parts = tensor_parts(archive._store, path, entry, "ids")
    assert next(parts).tolist() == list(range(10))
    os.chmod(archive.root / path, 0o644)
    os.truncate(archive.root / path, entry.bytes - 400)
    with pytest.raises(ArchiveCorruptError, match="became shorter"):
        list(parts)


@pytest.mark.usefixtures("tiny_parts")
@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("fault", range(9))
def test_a_fault_between_two_parts_is_found(fault: int, in_parts: bool) -> None:
    ids = torch.arange(10)
    ids[fault + 1] = ids[fault] if fault % 2 else 0
    tensors = {"ids": ids, "values": torch.zeros(10)}

    def parts(key: str) -> Iterable[Tensor]:
        return tensors[key].split(3)

    assert check_signal(META, tensors, 10, parts if in_parts else None) == "its ids are not strictly ascending int64"
    tensors["ids"] = torch.arange(10)
    assert check_signal(META, tensors, 10, parts if in_parts else None) is None
    assert "from 0 to 8" in str(check_signal(META, tensors, 9, parts if in_parts else None))
    tensors["ids"] = torch.arange(-1, 9)
    assert "from 0 to 9" in str(check_signal(META, tensors, 10, parts if in_parts else None))


@pytest.mark.usefixtures("tiny_parts")
@pytest.mark.parametrize("row", range(7))
def test_an_index_out_of_range_is_found_in_any_part(row: int) -> None:
    indices = torch.zeros(7, 2, dtype=torch.int32)
    tensors = {"ids": torch.arange(7), "values": torch.zeros(7, 2), "indices": indices, "rest": torch.zeros(7)}
    meta = {"slot": 0, "encoding": "top_k", "num_classes": 4}
    assert check_signal(meta, tensors, 7) is None
    for index in (4, -1):
        indices[row, 1] = index
        assert check_signal(meta, tensors, 7, lambda key: tensors[key].split(2)) == "its indices are not from 0 to 3"


def test_opening_leaves_no_rows_in_memory(archive: RunArchive) -> None:
    """Neither those of the ids, all of which are checked, nor those of the values."""
    rows = 2_000_000
    run_id = put_signal(archive, {"ids": torch.arange(rows), "values": torch.zeros(rows, dtype=torch.uint8)}, rows)
    for _ in range(2):  # hashed in the first round
        signal = archive.run(run_id).signal("logits")
        segment = signal._by_slot[0][0]
        assert resident_kib(segment.tensors["ids"].data_ptr()) < segment.tensors["ids"].nbytes / 1024 / 16


@pytest.mark.parametrize("columns", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("count", [1, 256, 50_000])
def test_a_position_out_of_range_is_refused_by_the_short_way_too(columns: tuple[int, ...], count: int) -> None:
    rows = 300
    signal = Signal(
        "loss", [Segment("x", META, {"ids": torch.arange(rows), "values": torch.ones(rows, *columns)})], rows
    )
    slots = torch.zeros(count, dtype=torch.int64)
    good = torch.arange(count) % rows
    found, seen = signal.gather(good, slots)
    assert found.shape == (count, *columns)
    assert seen.dtype == torch.bool
    assert seen.tolist() == [True] * count
    for bad in (rows, -1, 2**40, -(2**40)):
        positions = good.clone()
        positions[count // 2] = bad
        with pytest.raises(ExampleIdError, match=f"positions 0 to {rows - 1}"):
            signal.gather(positions, slots)


def test_what_a_look_up_returns_belongs_to_the_caller() -> None:
    signal = Signal("loss", [Segment("x", META, {"ids": torch.arange(9), "values": torch.ones(9, 2)})], 9)
    positions, slots = torch.tensor([3, 4]), torch.zeros(2, dtype=torch.int64)
    found, seen = signal.gather(positions, slots)
    found.zero_()
    seen.zero_()
    assert [part.tolist() for part in signal.gather(positions, slots)] == [[[1, 1], [1, 1]], [True, True]]


@pytest.mark.parametrize(
    ("positions", "slots"),
    [
        (torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64)),
        (torch.tensor(0), torch.tensor(0)),
    ],
)
def test_positions_and_slots_are_two_vectors(positions: Tensor, slots: Tensor) -> None:
    signal = Signal("loss", [Segment("x", META, {"ids": torch.arange(9), "values": torch.ones(9, 2)})], 9)
    with pytest.raises(ExampleIdError, match="equally long vectors"):
        signal.gather(positions, slots)


def test_slots_in_any_form_that_a_tensor_takes() -> None:
    segments = [
        Segment(str(slot), {**META, "slot": slot}, {"ids": torch.arange(9), "values": torch.full((9,), float(slot))})
        for slot in (0, 3, 1 << 30)
    ]
    signal = Signal("loss", segments, 9)
    positions = torch.arange(4)
    for slot in (0, 3, 1 << 30):
        for slots in (torch.full((4,), slot), torch.tensor(slot).expand(4), torch.tensor([[slot, 7]] * 4)[:, 0]):
            found, seen = signal.gather(positions, slots)
            assert (found.tolist(), seen.all().item()) == ([slot] * 4, True)
    found, seen = signal.gather(positions, torch.tensor([0, 3, 7, -1]))
    assert (found.tolist(), seen.tolist()) == ([0, 3, 0, 0], [True, True, False, False])
    found, seen = signal.gather(positions, torch.full((4,), -1))
    assert (found.tolist(), seen.any().item()) == ([0] * 4, False)
    assert [len(part) for part in signal.gather(positions[:0], positions[:0])] == [0, 0]
    int32 = torch.full((4,), 3, dtype=torch.int32)
    assert signal.gather(positions, int32)[0].tolist() == [3] * 4
