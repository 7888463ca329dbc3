"""Rows of a few bits: against levels written down by hand, and signals of such rows against a dictionary."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reuse_algos.archive import RunArchive, Signal, dequantize, quantize, shape_text
from reuse_algos.archive.signals.packed import packed_shape, parse_shape
from reuse_algos.archive.signals.segments import Segment, check_signal
from reuse_algos.errors import ArchiveCorruptError, ArchiveError

from .conftest import NUM_EXAMPLES, MakeRun, manifest_of, rewrite
from .torture.hostile import sealed

N = NUM_EXAMPLES
SHAPE = (2, 3, 3)


def draw(count: int, seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)) * 0.03


def unpacked(columns: Mapping[str, Tensor], bits: int, shape: tuple[int, ...]) -> Tensor:
    return dequantize(columns["values"], columns["scale"], bits, shape)


def test_two_bits_by_hand() -> None:
    packed = quantize(torch.tensor([[0.3, -0.3, 0.11, -0.09, 0.21]]), 2)
    # Levels -0.3, -0.1, 0.1, 0.3 are 0 to 3: 3 0 2 1 | 3 (0.21 is nearer to 0.3), the first in the lowest bits.
    assert packed["values"].tolist() == [[3 + (0 << 2) + (2 << 4) + (1 << 6), 3]]
    assert packed["values"].dtype == torch.uint8
    assert packed["scale"].tolist() == [pytest.approx(0.3)]
    rows = dequantize(packed["values"], packed["scale"], 2, (5,))
    torch.testing.assert_close(rows, torch.tensor([[0.3, -0.3, 0.1, -0.1, 0.3]]))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_level_survives(bits: int) -> None:
    top = 2**bits - 1
    levels = 0.25 * (2 * torch.arange(top + 1, dtype=torch.float64) / top - 1)
    packed = quantize(levels.float()[None], bits)
    assert packed["values"].shape == (1, math.ceil((top + 1) * bits / 8))
    torch.testing.assert_close(unpacked(packed, bits, (top + 1,))[0].double(), levels, rtol=1e-6, atol=1e-9)


@settings(max_examples=120, deadline=None)
@given(
    bits=st.sampled_from([2, 4, 8]),
    norm=st.sampled_from(["linf", "l2"]),
    count=st.integers(0, 5),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    seed=st.integers(0, 1000),
    zeros=st.booleans(),
)
def test_round_trip(bits: int, norm: Any, count: int, shape: tuple[int, ...], seed: int, zeros: bool) -> None:
    rows = draw(count, seed, shape)
    if zeros:
        rows[:1] = 0
    packed = quantize(rows, bits, norm=norm)
    assert packed["values"].shape == (count, packed_shape(shape, bits))
    found = unpacked(packed, bits, shape)
    assert (found.shape, found.dtype) == (rows.shape, torch.float32)
    flat, back = rows.double().flatten(1), found.double().flatten(1)
    if norm == "linf":
        largest = flat.abs().amax(1)
        assert torch.equal(packed["scale"].double(), largest)
        assert bool((back.abs().amax(1) <= largest).all())
        assert bool(((back - flat).abs() <= largest[:, None] / (2**bits - 1) * (1 + 1e-5)).all())
    else:
        assert bool((back.norm(dim=1) <= flat.norm(dim=1) * (1 + 1e-6)).all())
    # What is a row of levels stays what it is.
    again = quantize(found, bits)
    if norm == "linf":
        torch.testing.assert_close(unpacked(again, bits, shape), found, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_is_clipped_at_the_edge_stays_there(bits: int) -> None:
    """A perturbation that keeps black pixels black still does after it was packed."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(20, 30, generator=generator).round(decimals=1)
    pixels[:, ::3] = 0.0
    low, high = -pixels, 1 - pixels
    exact = (0.1 * torch.randn(20, 30, generator=generator).sign()).clamp(low, high)
    assert int((exact == 0).sum()) > 50
    kept = unpacked(quantize(exact, bits, room=(low, high)), bits, (30,)).clamp(low, high)
    at_edge = (exact == low) | (exact == high)
    torch.testing.assert_close(kept[at_edge], exact[at_edge], rtol=0, atol=1e-7)
    blind = unpacked(quantize(exact, bits), bits, (30,)).clamp(low, high)
    assert float((blind - exact).abs().max()) > float((kept - exact).abs().max()) or bits == 8


@pytest.mark.parametrize(
    ("rows", "bits", "norm"),
    [
        (torch.zeros(2, 3), 3, "linf"),
        (torch.zeros(2, 3), 2, "l1"),
        (torch.zeros(3), 2, "linf"),
        (torch.zeros(2, 0), 2, "linf"),
        (torch.full((2, 3), math.nan), 2, "linf"),
        (torch.full((2, 3), math.inf), 2, "linf"),
    ],
)
def test_what_cannot_be_packed(rows: Tensor, bits: int, norm: Any) -> None:
    with pytest.raises(ValueError, match="pack"):
        quantize(rows, bits, norm=norm)


def test_shapes_as_text() -> None:
    assert parse_shape(shape_text((3, 32, 32))) == (3, 32, 32)
    for text in (
        "",
        "3x",
        "x3",
        "3x0",
        "-3",
        "3x3\n",
        "03",
        "3 x 3",
        "٣",
        "x".join("1" * 9),
        "1e3",
        "9" * 10,
        3,
        None,
        b"3",
    ):
        assert parse_shape(text) is None


def segment(slot: int, ids: list[int], seed: int, bits: int = 2, shape: tuple[int, ...] = SHAPE) -> Segment:
    tensors = {"ids": torch.tensor(ids, dtype=torch.int64), **quantize(draw(len(ids), seed, shape), bits)}
    meta = {"slot": slot, "encoding": "packed", "bits": bits, "shape": shape_text(shape), "num_classes": None}
    return Segment(f"segment {seed}", meta, tensors)


def archived(archive: RunArchive, segments: list[Segment]) -> Signal:
    writer = archive.start_run("packed")
    writer.commit(manifest_of([writer.put("signals", "adversarial", s.tensors, s.meta) for s in segments]))
    assert archive.verify().ok
    return archive.run(writer.run_id).signal("adversarial")


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_look_ups_are_the_dictionary(archive: RunArchive, bits: int, device: str) -> None:
    parts = [segment(0, list(range(N)), 1, bits), segment(2, [1, 4, 9], 2, bits), segment(2, [4, 5], 3, bits)]
    rows: dict[tuple[int, int], Tensor] = {}
    for part in parts:
        decoded = dequantize(part.tensors["values"], part.tensors["scale"], bits, SHAPE)
        rows |= {(int(i), part.slot): decoded[at] for at, i in enumerate(part.tensors["ids"])}
    signal = archived(archive, parts)
    assert (signal.encoding, signal.row_shape, signal.row_format.bits) == ("packed", SHAPE, bits)
    assert signal.num_classes is None
    positions, slots = torch.arange(N).repeat(4), torch.arange(4).repeat_interleave(N)
    pairs = list(zip(positions.tolist(), slots.tolist(), strict=True))
    expected = torch.stack([rows.get(pair, torch.zeros(SHAPE)) for pair in pairs])
    resident = signal.resident(device)
    for source in (signal, resident):
        found, seen = source.gather(positions, slots)
        assert (found.dtype, found.shape) == (torch.float32, (4 * N, *SHAPE))
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0)
        assert seen.tolist() == [pair in rows for pair in pairs]
    values, seen = signal.dense(2)
    torch.testing.assert_close(values, expected[2 * N : 3 * N], rtol=0, atol=0)
    assert int(seen.sum()) == 4
    # Another run's positions, some of which this one has not; and the device holds bits, not floats.
    mapped = signal.resident(device, slots=[2], rows=torch.tensor([9, -1, 5]))
    found, seen = mapped.gather(torch.tensor([0, 1, 2]), torch.tensor([2, 2, 2]))
    torch.testing.assert_close(found.cpu(), torch.stack([rows[9, 2], torch.zeros(SHAPE), rows[5, 2]]), rtol=0, atol=0)
    assert seen.tolist() == [True, False, True]
    row_bytes = packed_shape(SHAPE, bits) + 4
    assert mapped.nbytes == 3 * row_bytes + 3 * 4
    assert signal.nbytes == (N + 3 + 2) * row_bytes


Change = Callable[[dict[str, Any], dict[str, Tensor]], object]
BAD: Mapping[str, tuple[Change, str]] = {
    "no bits": (lambda m, t: m.pop("bits"), "bits are None"),
    "odd bits": (lambda m, t: m.update(bits=3), "bits are 3, not one of"),
    "bits as truth": (lambda m, t: m.update(bits=True), "bits are True"),
    "bits in words": (lambda m, t: m.update(bits="2"), "bits are '2'"),
    "no shape": (lambda m, t: m.pop("shape"), "shape is None"),
    "a shape of another form": (lambda m, t: m.update(shape="3,32,32"), "its shape is '3,32,32'"),
    "a long shape": (lambda m, t: m.update(shape="9" * 10_000), "its shape is '9999"),
    "a huge shape": (lambda m, t: m.update(shape="x".join(["999999999"] * 8)), "bytes each"),
    "one number more": (lambda m, t: m.update(shape="2x3x5"), r"\(12, 5\), but rows of 2x3x5 in 2 bits are 8 bytes"),
    "more bits": (lambda m, t: m.update(bits=4), "rows of 2x3x3 in 4 bits are 9 bytes each"),
    "signed values": (lambda m, t: t.update(values=t["values"].to(torch.int8)), "its values are torch.int8"),
    "values in rows": (lambda m, t: t.update(values=t["values"][:, None]), "of shape"),
    "no scale": (lambda m, t: t.pop("scale"), "holds the tensors"),
    "half a scale": (lambda m, t: t.update(scale=t["scale"].half()), "its scale is not one float32 per row"),
    "a scale too many": (lambda m, t: t.update(scale=torch.ones(N + 1)), "differ in their number of rows"),
    "a wide scale": (lambda m, t: t.update(scale=torch.ones(N, 1)), "its scale is not one float32 per row"),
    "a scale below 0": (lambda m, t: t["scale"].__setitem__(3, -1.0), "not finite and 0 or more"),
    "a scale that is no number": (lambda m, t: t["scale"].__setitem__(N - 1, math.nan), "not finite"),
    "an infinite scale": (lambda m, t: t["scale"].__setitem__(0, math.inf), "not finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_segments_are_refused_on_writing_and_on_reading(archive: RunArchive, case: str) -> None:
    change, message = BAD[case]
    good = segment(0, list(range(N)), 1)
    meta, tensors = dict(good.meta), dict(good.tensors)
    assert check_signal(meta, tensors, N) is None
    change(meta, tensors)
    with pytest.raises(ArchiveError, match=f"cannot archive the signal 'adversarial': .*{message}"):
        archive.start_run("bad").put("signals", "adversarial", tensors, meta)
    with pytest.raises(ArchiveCorruptError, match=f"file x is not a segment .*{message}"):
        Signal("adversarial", [Segment("file x", meta, tensors)], N)
    if "scale" in tensors:  # and where a large file is read in parts
        assert check_signal(meta, tensors, N, lambda key: tensors[key].split(5)) is not None


def unbacked(encoding: str, row_bytes: int) -> Segment:
    """No row, and a claim of how large each would be."""
    ids, meta = torch.zeros(0, dtype=torch.int64), {"slot": 0, "encoding": encoding, "num_classes": None}
    if encoding == "dense":
        return Segment("file x", meta, {"ids": ids, "values": torch.zeros(0, row_bytes, dtype=torch.uint8)})
    shape = {"bits": 8, "shape": shape_text((row_bytes // 1000, 1000))}
    tensors = {"ids": ids, "values": torch.zeros(0, row_bytes, dtype=torch.uint8), "scale": torch.zeros(0)}
    return Segment("file x", meta | shape, tensors)


@pytest.mark.parametrize("encoding", ["dense", "packed"])
def test_rows_that_are_not_there_are_not_believed_to_be_large(archive: RunArchive, encoding: str) -> None:
    """A file of 192 bytes can claim rows of 10^11, and each look-up of what was not seen would make so many zeros."""
    bomb = unbacked(encoding, 10**11)
    with pytest.raises(ArchiveError, match="it has no row, and values of 100000000000 bytes for each; at most 1048576"):
        archive.start_run("bomb").put("signals", "adversarial", bomb.tensors, bomb.meta)
    with pytest.raises(ArchiveCorruptError, match="file x is not a segment .*it has no row"):
        Signal("adversarial", [bomb], N)
    small = archived(archive, [unbacked(encoding, 4000)])
    rows, seen = small.gather(torch.arange(N), torch.zeros(N, dtype=torch.int64))
    assert (len(rows), rows.any(), seen.any()) == (N, False, False)
    assert not small.resident("cpu").gather(torch.arange(N), torch.zeros(N, dtype=torch.int64))[1].any()


def test_an_archive_whose_rows_are_not_there_takes_no_memory(
    archive: RunArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same in an archive that somebody else wrote, without the check on writing."""
    from reuse_algos.archive import run_writer

    bomb = unbacked("packed", 10**11)
    with monkeypatch.context() as patched:
        patched.setattr(run_writer, "check_signal", lambda *_, **__: None)
        writer = archive.start_run("bomb")
        entry = writer.put("signals", "adversarial", bomb.tensors, bomb.meta)
        writer.commit(manifest_of([entry]))
    assert entry.bytes < 1000
    with pytest.raises(ArchiveCorruptError, match="it has no row, and values of 100000000000 bytes"):
        archive.run(writer.run_id).signal("adversarial")


def test_rows_of_too_many_numbers_are_refused() -> None:
    wide = {"ids": torch.zeros(1, dtype=torch.int64), "values": torch.zeros(1, 1, dtype=torch.uint8).expand(1, 3 << 24)}
    meta = {"slot": 0, "encoding": "packed", "bits": 2, "shape": shape_text((3, 1 << 13, 1 << 13)), "num_classes": None}
    fault = check_signal(meta, {**wide, "scale": torch.ones(1)}, N)
    assert fault == "its rows of 3x8192x8192 are 201326592 numbers each, more than 67108864"


def test_a_whole_slot_is_decoded_in_parts(archive: RunArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    from reuse_algos.archive.signals import signal as signals

    parts = [segment(0, list(range(N)), 1), segment(1, [1, 4, 9], 2)]
    signal = archived(archive, parts)
    expected = [signal.gather(torch.arange(N), torch.full((N,), slot)) for slot in (0, 1)]
    decoded: list[int] = []
    gather = Signal.gather
    monkeypatch.setattr(Signal, "gather", lambda self, p, s: decoded.append(len(p)) or gather(self, p, s))
    monkeypatch.setattr(signals, "_PART_NUMBERS", 7 * SHAPE[0] * SHAPE[1] * SHAPE[2])
    for slot in (0, 1):
        values, seen = signal.dense(slot)
        assert torch.equal(values, expected[slot][0])
        assert torch.equal(seen, expected[slot][1])
    assert max(decoded) == 7
    assert sum(decoded) == 2 * N


def test_segments_of_other_bits_or_shapes_do_not_go_together() -> None:
    first = segment(0, list(range(N)), 1)
    for other in (segment(1, [0], 2, 4), segment(1, [0], 2, 2, (3, 3, 2)), segment(1, [0], 2, 2, (18,))):
        with pytest.raises(ArchiveCorruptError, match=r"segment 2 .* differs from"):
            Signal("adversarial", [first, other], N)


@pytest.mark.parametrize(
    "claim", [{"shape": "999999999x999999999"}, {"bits": 8}, {"encoding": "dense"}, {"encoding": "top_k"}]
)
def test_a_manifest_that_claims_otherwise_is_refused(archive: RunArchive, claim: dict[str, Any]) -> None:
    signal = archived(archive, [segment(0, list(range(N)), 1)])
    (run_id,) = archive.run_ids()
    manifest = msgspec.to_builtins(archive.run(run_id).manifest)
    (entry,) = (entry for entry in manifest["files"] if entry["kind"] == "signals")
    entry["meta"].update(claim)
    path = archive.root / f"runs/{run_id}/manifests/g000001.json"
    rewrite(path, lambda _: sealed(msgspec.json.encode(manifest)))
    with pytest.raises(ArchiveCorruptError, match="is not a segment of the signal 'adversarial'"):
        archive.run(run_id).signal("adversarial")
    assert signal.num_examples == N


def test_other_signals_are_as_they_were(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    assert archive.run(run_id).signal("logits").row_shape == (5,)
