"""Signals against a plain oracle: a dictionary from (position, slot) to the row that was put last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reuse_algos.archive import DatasetRecord, RunArchive, Signal, decode_top_k, encode_top_k
from reuse_algos.archive.signals.segments import Segment
from reuse_algos.errors import (
    ArchiveCorruptError,
    ArchiveError,
    ArchiveVersionError,
    ExampleIdError,
    SignalNotFoundError,
)

from .conftest import NUM_EXAMPLES, manifest_of

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
N, C = NUM_EXAMPLES, 5


def dense_segment(slot: int, ids: Sequence[int], seed: int, columns: tuple[int, ...] = (C,)) -> Segment:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(ids), *columns, generator=generator).half()
    meta = {"slot": slot, "epoch": slot, "view": slot, "source": "capture", "encoding": "dense", "num_classes": C}
    return Segment(f"segment {seed}", meta, {"ids": torch.tensor(ids, dtype=torch.int64), "values": values})


def top_k_segment(slot: int, ids: Sequence[int], seed: int, k: int = 2) -> Segment:
    logits = torch.randn(len(ids), C, generator=torch.Generator().manual_seed(seed))
    meta = {"slot": slot, "encoding": "top_k", "num_classes": C}
    tensors = {"ids": torch.tensor(ids, dtype=torch.int64), **encode_top_k(logits, k)}
    return Segment(f"segment {seed}", meta, tensors)


def archived(archive: RunArchive, segments: Sequence[Segment], name: str = "logits") -> Signal:
    writer = archive.start_run("signals")
    writer.commit(manifest_of([writer.put("signals", name, part.tensors, part.meta) for part in segments]))
    return archive.run(writer.run_id).signal(name)


def oracle(segments: Sequence[Segment]) -> dict[tuple[int, int], Tensor]:
    rows: dict[tuple[int, int], Tensor] = {}
    for part in segments:
        tensors = part.tensors
        values = tensors["values"]
        if "indices" in tensors:
            values = decode_top_k(values, tensors["indices"], tensors["rest"], C)
        rows.update({(int(i), part.slot): values[row] for row, i in enumerate(tensors["ids"])})
    return rows


def expect(
    rows: Mapping[tuple[int, int], Tensor], positions: Sequence[int], slots: Sequence[int], like: Tensor
) -> tuple[Tensor, Tensor]:
    zero = torch.zeros_like(like)
    pairs = list(zip(positions, slots, strict=True))
    found = [rows.get(pair, zero) for pair in pairs]
    return torch.stack(found) if found else zero.new_zeros((0, *zero.shape)), torch.tensor([p in rows for p in pairs])


LAYOUTS = {
    "one full slot": [dense_segment(0, range(N), 1)],
    "three full slots": [dense_segment(slot, range(N), slot) for slot in (2, 0, 7)],
    "two ranks": [dense_segment(0, range(0, N, 2), 1), dense_segment(0, range(1, N, 2), 2)],
    "a partial epoch": [dense_segment(0, range(N), 1), dense_segment(1, [0, 3, 11], 2)],
    "overlays": [
        dense_segment(0, range(N), 1),
        dense_segment(0, [2, 3, 4], 2),
        dense_segment(0, [4, 9], 3),
        dense_segment(1, [4], 4),
        dense_segment(1, range(N), 5),
    ],
    "an empty segment": [dense_segment(0, [], 1), dense_segment(3, [5], 2)],
    "top-k": [top_k_segment(0, range(N), 1), top_k_segment(1, [1, 2, 3], 2), top_k_segment(1, [3, 10], 3)],
    "top-k of all": [top_k_segment(0, range(N), 1, k=C)],
    "scalars": [dense_segment(0, range(N), 1, ()), dense_segment(1, [0, 5], 2, ())],
    "matrices": [dense_segment(0, range(N), 1, (2, 3)), dense_segment(1, [0, 5], 2, (2, 3))],
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("copied_bytes", [1 << 20, 0])
def test_gather_is_the_oracle(
    archive: RunArchive, layout: str, device: str, copied_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots of several files are copied into memory as far as they fit, and read from their files beyond."""
    monkeypatch.setattr("reuse_algos.archive.signals.joined._COPIED_BYTES", copied_bytes)
    segments = LAYOUTS[layout]
    signal, rows = archived(archive, segments), oracle(segments)
    resident = signal.resident(device)
    like = next(iter(rows.values()))
    generator = torch.Generator().manual_seed(0)
    slots = [*signal.slots, 99, -1]
    for size in (0, 1, 7, 40):
        positions_B = torch.randint(N, (size,), generator=generator)
        drawn_B = torch.tensor(slots)[torch.randint(len(slots), (size,), generator=generator)]
        for slots_B in (drawn_B, *(torch.full((size,), slot) for slot in signal.slots)):
            expected, expected_seen = expect(rows, positions_B.tolist(), slots_B.tolist(), like)
            for source in (signal, resident):
                found, seen = source.gather(positions_B, slots_B)
                assert seen.tolist() == expected_seen.tolist()
                assert found.dtype == expected.dtype
                torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0 if device == "cpu" else 1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_slots_and_counts_are_the_oracle(archive: RunArchive, layout: str) -> None:
    segments = LAYOUTS[layout]
    signal, rows = archived(archive, segments), oracle(segments)
    like = next(iter(rows.values()))
    assert signal.slots == sorted({part.slot for part in segments})
    assert (signal.num_examples, signal.name) == (N, "logits")
    for slot in signal.slots:
        values, seen = signal.dense(slot)
        expected, expected_seen = expect(rows, range(N), [slot] * N, like)
        torch.testing.assert_close(values, expected, rtol=0, atol=0)
        assert seen.equal(expected_seen)
        assert signal.seen(slot).equal(expected_seen)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_another_run_are_remapped(archive: RunArchive, layout: str, device: str) -> None:
    """The reading run has other examples in another order, some of them new and one of them twice."""
    segments = LAYOUTS[layout]
    signal, rows = archived(archive, segments), oracle(segments)
    prior = [11, -1, 5, 5, 0, 3, -1, 4]
    for slots in (None, signal.slots[:1]):
        resident = signal.resident(device, slots=slots, rows=torch.tensor(prior))
        assert resident.num_examples == len(prior)
        positions = list(range(len(prior))) * len(signal.slots)
        asked = [slot for slot in signal.slots for _ in prior]
        held = {key: row for key, row in rows.items() if slots is None or key[1] in slots}
        expected, expected_seen = expect(held, [prior[p] for p in positions], asked, next(iter(rows.values())))
        found, seen = resident.gather(torch.tensor(positions), torch.tensor(asked))
        assert seen.tolist() == expected_seen.tolist()
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0 if device == "cpu" else 1e-6)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_overlay_of_segments_is_the_oracle(data: st.DataObject) -> None:
    ids = st.sets(st.integers(0, N - 1)).map(sorted)
    parts = data.draw(st.lists(st.tuples(st.integers(0, 3), ids), min_size=1, max_size=6))
    segments = [dense_segment(slot, members, seed) for seed, (slot, members) in enumerate(parts)]
    signal, rows = Signal("loss", segments, N), oracle(segments)
    pairs = data.draw(st.lists(st.tuples(st.integers(0, N - 1), st.integers(0, 4)), max_size=20))
    positions_B = torch.tensor([position for position, _ in pairs], dtype=torch.int64)
    slots_B = torch.tensor([slot for _, slot in pairs], dtype=torch.int64)
    like = torch.zeros(C, dtype=torch.float16)
    expected, expected_seen = expect(rows, positions_B.tolist(), slots_B.tolist(), like)
    for source in (signal, signal.resident("cpu")):
        found, seen = source.gather(positions_B, slots_B)
        assert found.equal(expected)
        assert seen.tolist() == expected_seen.tolist()


def test_one_full_slot_is_not_copied(archive: RunArchive) -> None:
    signal = archived(archive, LAYOUTS["one full slot"])
    assert signal.dense(0)[0].data_ptr() == signal.dense(0)[0].data_ptr()
    found, _ = signal.gather(torch.tensor([3]), torch.tensor([0]))
    assert found[0].equal(signal.dense(0)[0][3])


def test_the_facts_about_a_signal(archive: RunArchive) -> None:
    dense = archived(archive, LAYOUTS["overlays"])
    assert (dense.encoding, dense.num_classes) == ("dense", C)
    assert dense.slot_meta(1) == {
        "slot": 1,
        "epoch": 1,
        "view": 1,
        "source": "capture",
        "encoding": "dense",
        "num_classes": C,
    }
    assert dense.nbytes == (12 + 3 + 2 + 1 + 12) * C * 2
    top_k = archived(archive, LAYOUTS["top-k"])
    assert (top_k.encoding, top_k.num_classes) == ("top_k", C)
    assert top_k.nbytes == (12 + 3 + 2) * (2 * 2 + 2 * 4 + 4)
    resident = dense.resident("cpu")
    assert resident.nbytes == (1 + 2 * N) * C * 2 + 2 * N * 4  # only rows that hold, a row of zeros, and the table


def test_what_is_not_there_is_named(archive: RunArchive) -> None:
    signal = archived(archive, LAYOUTS["three full slots"])
    for use in (signal.seen, signal.dense, signal.slot_meta, lambda slot: signal.resident("cpu", [slot])):
        with pytest.raises(SignalNotFoundError, match="no slot 1; it has 0, 2, 7"):
            use(1)
    run = archive.runs(unfinished=True)[0]
    with pytest.raises(SignalNotFoundError, match=r"no signal 'logit'\. Did you mean 'logits'"):
        run.signal("logit")
    with pytest.raises(SignalNotFoundError, match=r"It has no weights at all\. RunRecorder\(weights"):
        run.weights("last")


@pytest.mark.parametrize("position", [-1, N, 2**40])
@pytest.mark.parametrize("layout", ["one full slot", "two ranks"])
def test_positions_beyond_the_data_are_refused(archive: RunArchive, layout: str, position: int) -> None:
    signal = archived(archive, LAYOUTS[layout])
    with pytest.raises(ExampleIdError, match="has positions 0 to 11"):
        signal.gather(torch.tensor([0, position]), torch.tensor([0, 0]))
    if position > 0:
        with pytest.raises(ExampleIdError):
            signal.resident("cpu", rows=torch.tensor([0, position]))
    with pytest.raises(ExampleIdError, match="equally long"):
        signal.gather(torch.tensor([0, 1]), torch.tensor([0]))


IDS = torch.arange(3)
BAD_SEGMENTS = {
    "no slot": ({}, {"ids": IDS, "values": torch.zeros(3)}),
    "a negative slot": ({"slot": -1}, {"ids": IDS, "values": torch.zeros(3)}),
    "a slot in words": ({"slot": "0"}, {"ids": IDS, "values": torch.zeros(3)}),
    "an encoding that is no name": ({"slot": 0, "encoding": 3}, {"ids": IDS, "values": torch.zeros(3)}),
    "no values": ({"slot": 0}, {"ids": IDS}),
    "one tensor too many": ({"slot": 0}, {"ids": IDS, "values": torch.zeros(3), "x": IDS}),
    "falling ids": ({"slot": 0}, {"ids": IDS.flip(0), "values": torch.zeros(3)}),
    "repeated ids": ({"slot": 0}, {"ids": torch.tensor([1, 1]), "values": torch.zeros(2)}),
    "negative ids": ({"slot": 0}, {"ids": IDS - 1, "values": torch.zeros(3)}),
    "narrow ids": ({"slot": 0}, {"ids": IDS.int(), "values": torch.zeros(3)}),
    "too few values": ({"slot": 0}, {"ids": IDS, "values": torch.zeros(2)}),
    "a single value": ({"slot": 0}, {"ids": IDS, "values": torch.tensor(1.0)}),
    "top-k without classes": (
        {"slot": 0, "encoding": "top_k"},
        {"ids": IDS, "values": torch.zeros(3, 2), "indices": torch.zeros(3, 2).int(), "rest": torch.zeros(3)},
    ),
    "top-k of more than there are": (
        {"slot": 0, "encoding": "top_k", "num_classes": 1},
        {"ids": IDS, "values": torch.zeros(3, 2), "indices": torch.zeros(3, 2).int(), "rest": torch.zeros(3)},
    ),
    "top-k with an index too large": (
        {"slot": 0, "encoding": "top_k", "num_classes": 4},
        {"ids": IDS, "values": torch.zeros(3, 2), "indices": torch.full((3, 2), 4).int(), "rest": torch.zeros(3)},
    ),
    "top-k with real indices": (
        {"slot": 0, "encoding": "top_k", "num_classes": 4},
        {"ids": IDS, "values": torch.zeros(3, 2), "indices": torch.zeros(3, 2), "rest": torch.zeros(3)},
    ),
    "top-k with a wide rest": (
        {"slot": 0, "encoding": "top_k", "num_classes": 4},
        {"ids": IDS, "values": torch.zeros(3, 2), "indices": torch.zeros(3, 2).int(), "rest": torch.zeros(3, 1)},
    ),
}


@pytest.mark.parametrize("case", BAD_SEGMENTS)
def test_malformed_segments_are_refused_on_writing_and_on_reading(archive: RunArchive, case: str) -> None:
    meta, tensors = BAD_SEGMENTS[case]
    with pytest.raises(ArchiveError, match="cannot archive the signal 'loss'"):
        archive.start_run("bad").put("signals", "loss", tensors, meta)
    with pytest.raises(ArchiveCorruptError, match="file x is not a segment"):
        Signal("loss", [Segment("file x", meta, tensors)], N)


def test_an_encoding_of_a_newer_version_is_not_called_damage(archive: RunArchive) -> None:
    meta, tensors = {"slot": 0, "encoding": "zip"}, {"ids": IDS, "values": torch.zeros(3)}
    with pytest.raises(ArchiveVersionError, match=r"file x keeps .* 'loss' in the encoding 'zip'.*upgrade"):
        Signal("loss", [Segment("file x", meta, tensors)], N)
    with pytest.raises(ArchiveError, match="cannot archive the signal 'loss': with encoding 'zip'"):
        archive.start_run("bad").put("signals", "loss", tensors, meta)


def test_segments_must_fit_each_other_and_the_data() -> None:
    with pytest.raises(ArchiveCorruptError, match="not from 0 to 2"):
        Signal("loss", [dense_segment(0, range(N), 1)], 3)
    for other in (dense_segment(1, range(N), 2, (C + 1,)), top_k_segment(1, range(N), 2)):
        with pytest.raises(ArchiveCorruptError, match=r"segment 2 .* differs from"):
            Signal("loss", [dense_segment(0, range(N), 1), other], N)


@pytest.mark.parametrize("k", [1, 3, 9, 10])
def test_top_k_keeps_probabilities_and_the_remaining_mass(k: int) -> None:
    logits_BC = 4 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits_BC = logits_BC.half().double()  # so that rounding to half precision is no part of the comparison
    encoded = encode_top_k(logits_BC, k)
    dtypes = {"values": torch.float16, "indices": torch.int32, "rest": torch.float32}
    assert {name: tensor.dtype for name, tensor in encoded.items()} == dtypes
    decoded_BC = decode_top_k(encoded["values"], encoded["indices"], encoded["rest"], 10)
    probabilities_BC, expected_BC = decoded_BC.softmax(1), logits_BC.softmax(1)
    kept_BC = torch.zeros_like(probabilities_BC, dtype=torch.bool).scatter_(1, encoded["indices"].long(), True)
    assert kept_BC.equal(expected_BC >= expected_BC.sort(1, descending=True).values[:, k - 1 : k])
    torch.testing.assert_close(probabilities_BC[kept_BC].double(), expected_BC[kept_BC], rtol=1e-5, atol=1e-7)
    rest_B = (expected_BC * ~kept_BC).sum(1)
    torch.testing.assert_close((probabilities_BC * ~kept_BC).sum(1).double(), rest_B, rtol=1e-5, atol=1e-7)
    if k < 10:  # the rest is shared equally
        others_BC = decoded_BC[~kept_BC].reshape(50, 10 - k)
        assert others_BC.eq(others_BC[:, :1]).all()


@pytest.mark.parametrize(("shape", "k"), [((4, 10), 0), ((4, 10), 11), ((10,), 1)])
def test_top_k_refuses_what_it_cannot_keep(shape: tuple[int, ...], k: int) -> None:
    with pytest.raises(ValueError, match="cannot keep"):
        encode_top_k(torch.zeros(shape), k)


def test_a_look_up_in_a_large_slot_reads_only_its_rows(archive: RunArchive) -> None:
    """Resident memory, not time: the rows asked for are far fewer than the pages of the map."""
    rows, width = 16_000, 1024
    writer = archive.start_run("large")
    values = torch.arange(rows).half().unsqueeze(1).repeat(1, width)
    entry = writer.put("signals", "logits", {"ids": torch.arange(rows), "values": values}, {"slot": 0})
    dataset = DatasetRecord(name="large", num_examples=rows, fingerprint="f")
    writer.commit(manifest_of([entry], dataset=dataset))
    archive.run(writer.run_id).signal("logits")  # hashed here
    signal = archive.run(writer.run_id).signal("logits")
    address = signal.dense(0)[0].data_ptr()
    found, seen = signal.gather(torch.tensor([5, 2000, 17]), torch.zeros(3, dtype=torch.int64))
    assert found[:, 0].tolist() == [5, 2000, 17]
    assert seen.all()
    assert resident_kib(address) < values.nbytes / 1024 / 3


def resident_kib(address: int) -> int:
    """Size of the part in memory of the mapping at an address."""
    inside = False
    with open("/proc/self/smaps") as regions:
        for line in regions:
            first, *rest = line.split()
            if "-" in first:
                begin, end = (int(bound, 16) for bound in first.split("-"))
                inside = begin <= address < end
            elif inside and first == "Rss:":
                return int(rest[0])
    raise AssertionError("there is no such mapping")
