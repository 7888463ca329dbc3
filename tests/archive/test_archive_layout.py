"""What a run looks like on disk, and that everything comes back as it was put."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from reuse_algos.archive import (
    CostRecord,
    EnvironmentRecord,
    HarvestRecord,
    Manifest,
    MetricHistory,
    ModelRecord,
    PriorUse,
    Progress,
    RunArchive,
    TensorInfo,
    describe,
    history_tensors,
)
from reuse_algos.errors import ArchiveError, ArchiveNotADirectoryError, ArchivePermissionError

from .conftest import MONITOR, MakeRun, files_below, history, manifest_of, put_files


def test_files_are_where_the_format_says(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run("ResNet-56 @ seed=1")
    assert re.fullmatch(r"resnet-56-seed-1-[0-9a-f]{10}", run_id)
    shapes = {re.sub(r"[0-9a-f]{16}\.", "HASH.", name) for name in files_below(archive.root)}
    prefix = f"runs/{run_id}"
    assert shapes == {
        "archive.json",
        f"{prefix}/data/dataset/examples-1-HASH.safetensors",
        f"{prefix}/data/metrics/history-1-HASH.safetensors",
        f"{prefix}/data/signals/logits-1-HASH.safetensors",
        f"{prefix}/data/weights/last-1-HASH.safetensors",
        f"{prefix}/manifests/g000001.json",
        f"{prefix}/final.json",
    }


def test_manifest_is_plain_json_for_other_tools(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run(tags={"method": "baseline"})
    loaded = json.loads((archive.root / f"runs/{run_id}/manifests/g000001.json").read_bytes())
    assert loaded["content"]["tags"] == {"method": "baseline"}
    assert loaded["content"]["format"] == [1, 2]
    assert loaded["content"]["archive_id"] == archive.archive_id


def test_every_field_of_a_manifest_comes_back(archive: RunArchive) -> None:
    writer = archive.start_run("full")
    manifest = manifest_of(
        put_files(writer),
        tags={"study": "ünïcode \u3000 [[[{{{"},
        seed=-3,
        recipe={"optimizer": {"lr": 0.1, "betas": [0.9, 0.95]}, "flag": None},
        model=ModelRecord(
            name="m", config={"name": "m", "depth": 2}, parameters={"w": TensorInfo(dtype="F32", shape=())}
        ),
        environment=EnvironmentRecord(versions={"torch": "2"}, hardware={"gpus": 0, "memory_gib": 1.5, "gpu": None}),
        progress=Progress(epoch=1, batch=10, sample=320),
        cost=CostRecord(train_seconds=3.25),
        monitor_mode="min",
        health="diverged",
        harvests=[HarvestRecord(signal="logits", views=[0, 1], weights="last", seconds=1.0, hardware="cpu")],
        prior_runs=[PriorUse(run_id="a", algorithm="b", weights=["last"], harvest_seconds=0.5)],
    )
    committed = writer.commit(manifest)
    read = archive.run(writer.run_id).manifest
    assert read == committed
    filled = ("archive_id", "run_id", "run_name", "generation", "attempt", "write_id", "created_at", "committed_at")
    for name in set(Manifest.__struct_fields__) - set(filled):
        assert getattr(read, name) == getattr(manifest, name), name
    assert (read.run_name, read.generation, read.attempt) == ("full", 1, 1)


def test_infinity_in_settings_is_spelled_as_in_yaml(archive: RunArchive) -> None:
    writer = archive.start_run("inf")
    recipe = {"clip": math.inf, "floor": -math.inf, "list": (1, math.nan)}
    committed = writer.commit(manifest_of([], recipe=recipe))
    assert committed.recipe == {"clip": ".inf", "floor": "-.inf", "list": [1, ".nan"]}


@pytest.mark.parametrize("fields", [{"recipe": {"x": object()}}, {"cost": CostRecord(train_seconds=math.nan)}])
def test_what_json_cannot_hold_is_refused(archive: RunArchive, fields: dict[str, object]) -> None:
    writer = archive.start_run("odd")
    with pytest.raises(ArchiveError, match=r"g000001\.json cannot be written"):
        writer.commit(manifest_of([], **fields))
    assert archive.run_ids() == []


ALL_TYPES = {
    "f64": torch.tensor([1.0, math.nan, math.inf], dtype=torch.float64),
    "f32": torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)),
    "f16": torch.tensor([[1.5, -2.0]], dtype=torch.float16),
    "bf16": torch.tensor(3.0, dtype=torch.bfloat16),
    "f8": torch.tensor([0.5, 1.0]).to(torch.float8_e4m3fn),
    "c64": torch.tensor([1 + 2j]).conj(),
    "i64": torch.tensor([2**62, -1]),
    "i32": torch.tensor([7], dtype=torch.int32),
    "u16": torch.tensor([65535]).to(torch.uint16),
    "bool": torch.tensor([True, False, True]),
    "empty": torch.empty(0, 5),
    "strided": torch.arange(12).reshape(3, 4).t(),
}


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    one, other = one.resolve_conj().contiguous(), other.contiguous()
    same = one.reshape(-1).view(torch.uint8).equal(other.reshape(-1).view(torch.uint8))
    return same and one.shape == other.shape and one.dtype == other.dtype


def test_tensors_of_every_type_come_back_bit_equal(archive: RunArchive) -> None:
    writer = archive.start_run("types")
    entry = writer.put("weights", "last", ALL_TYPES)
    writer.commit(manifest_of([entry]))
    read = archive.run(writer.run_id).weights()
    assert read.keys() == ALL_TYPES.keys()
    assert all(same_bits(ALL_TYPES[name], read[name]) for name in ALL_TYPES)
    assert describe(read) == entry.tensors


def test_files_are_those_of_the_safetensors_library(archive: RunArchive) -> None:
    writer = archive.start_run("oracle")
    plain = {name: tensor.contiguous() for name, tensor in ALL_TYPES.items() if name != "c64"}
    entry = writer.put("weights", "last", plain)
    written = (archive.root / "runs" / writer.run_id / entry.path).read_bytes()
    assert len(written) == entry.bytes
    by_library = safetensors.torch.load(written)
    assert all(same_bits(plain[name], by_library[name]) for name in plain)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(2, device="meta"), torch.eye(2).to_sparse(), torch.zeros(1).to(torch.complex128)]
)
def test_tensors_that_cannot_be_archived_are_named(archive: RunArchive, tensor: torch.Tensor) -> None:
    with pytest.raises(ArchiveError, match=r"'odd\.weight'.*cannot be archived"):
        archive.start_run("x").put("weights", "last", {"odd.weight": tensor})


@pytest.mark.parametrize(
    ("kind", "name"), [("weights", "../x"), ("weights", ""), ("weights", "a/b"), ("model", "last")]
)
def test_bad_names_are_refused_on_writing(archive: RunArchive, kind: str, name: str) -> None:
    with pytest.raises(ArchiveError, match="cannot archive"):
        archive.start_run("x").put(kind, name, {})
    assert list(files_below(archive.root)) == ["archive.json"]


def test_metrics_come_back_with_nan_and_infinity(archive: RunArchive) -> None:
    writer = archive.start_run("metrics")
    values = [math.nan, 0.1, math.inf, -math.inf, -0.0, 5e-324]
    entry = writer.put("metrics", "history", history_tensors({MONITOR: history(values), "loss/train": history([2.0])}))
    writer.commit(manifest_of([entry]))
    run = archive.run(writer.run_id)
    assert run.metric_names == ["loss/train", MONITOR]
    read = run.metric(MONITOR)
    assert read.value.tobytes() == np.array(values).tobytes()
    assert [column.dtype for column in read] == [np.int64] * 3 + [np.float64] * 3
    for column, expected in zip(read, history(values), strict=True):
        np.testing.assert_array_equal(column, expected)


def test_columns_of_a_history_must_have_one_length() -> None:
    ragged = MetricHistory(*[np.zeros(2)] * 5, np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="differ in length"):
        history_tensors({"m": ragged})


def test_putting_the_same_content_twice_is_harmless(archive: RunArchive) -> None:
    writer = archive.start_run("twice")
    first = put_files(writer)
    before = files_below(archive.root)
    assert put_files(writer) == first
    assert files_below(archive.root) == before


def test_keys_and_labels(archive: RunArchive, make_run: MakeRun) -> None:
    run = archive.run(make_run())
    assert run.keys().tolist() == [7 * position for position in range(12)]
    labels = run.labels()
    assert labels is not None
    assert labels.tolist() == [position % 5 for position in range(12)]


def test_labels_may_be_unknown(archive: RunArchive) -> None:
    writer = archive.start_run("unlabelled")
    writer.commit(manifest_of([writer.put("dataset", "examples", {"keys": torch.arange(12)})]))
    assert archive.run(writer.run_id).labels() is None


def test_weights_by_name_and_by_epoch(archive: RunArchive) -> None:
    writer = archive.start_run("weights")
    names = ("last", "best", "ep0005")
    files = [writer.put("weights", name, {"w": torch.tensor([float(i)])}) for i, name in enumerate(names)]
    writer.commit(manifest_of(files))
    run = archive.run(writer.run_id)
    assert run.weight_names == ["best", "ep0005", "last"]
    assert [run.weights(name)["w"].item() for name in ("last", "best", "ep0005", "5ep")] == [0, 1, 2, 2]
    with pytest.raises(LookupError, match=r"no weights 'lastt'\. Did you mean 'last'"):
        run.weights("lastt")


def test_of_a_file_put_again_the_later_one_counts(archive: RunArchive) -> None:
    writer = archive.start_run("again")
    files = [writer.put("weights", "last", {"w": torch.tensor([float(i)])}) for i in range(3)]
    writer.commit(manifest_of(files))
    assert archive.run(writer.run_id).weights()["w"].item() == 2


def test_writing_to_mapped_tensors_never_reaches_the_file(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    run = archive.run(run_id)
    before = {name: path.read_bytes() for name, path in files_below(archive.root).items()}
    weight = run.weights()["layer.weight"]
    original = weight.clone()
    weight.zero_()
    run.signal("logits").dense(0)[0].fill_(1)
    run.metric(MONITOR).value[:] = 0
    assert {name: path.read_bytes() for name, path in files_below(archive.root).items()} == before
    assert archive.run(run_id).weights()["layer.weight"].equal(original)
    assert archive.verify().ok


def test_reading_a_large_file_copies_nothing(archive: RunArchive) -> None:
    writer = archive.start_run("mapped")
    writer.commit(manifest_of([writer.put("weights", "last", {"w": torch.zeros(1 << 20)})]))
    mapped = archive.run(writer.run_id).weights()["w"]
    address = mapped.data_ptr()
    regions = (line.split() for line in Path("/proc/self/maps").read_text().splitlines())
    holding = [r for r in regions if (b := [int(x, 16) for x in r[0].split("-")]) and b[0] <= address < b[1]]
    assert holding[0][-1].endswith(".safetensors")


def test_a_hash_is_computed_once_per_host(
    archive: RunArchive, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reuse_algos.archive.format.tensors._SMALL_BYTES", 0)  # these are hashed at every reading
    run = archive.run(make_run())
    run.weights()
    monkeypatch.setattr("reuse_algos.archive.stores.cache._seen", set())  # as in another process

    def fail(*_: object) -> str:
        raise AssertionError("hashed again")

    monkeypatch.setattr("reuse_algos.archive.format.tensors.hash_file", fail)
    run.weights()
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/not-writable")
    monkeypatch.setattr("reuse_algos.archive.stores.cache._seen", set())
    with pytest.raises(AssertionError, match="hashed again"):
        run.weights()


def test_a_cache_that_cannot_be_written_is_not_an_error(
    archive: RunArchive, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/not-writable")
    assert archive.run(make_run()).weights()


def test_opening_again_finds_the_same_archive(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    again = RunArchive(str(archive.root))
    assert again.archive_id == archive.archive_id
    assert again.run_ids() == [run_id]


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="is a file; an archive is a directory"):
        RunArchive(tmp_path / "file", create=True)
    with pytest.raises(ArchiveNotADirectoryError):
        RunArchive(tmp_path / "file" / "below", create=True)


@pytest.mark.parametrize("options", [{}, {"read_only": True}, {"create": True, "read_only": True}])
def test_an_archive_that_is_not_there_is_not_made_unasked(tmp_path: Path, options: dict[str, bool]) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ArchiveError, match="there is no archive at"):
            RunArchive(path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["https://host/x", "sftp://host/x"])
def test_unknown_kinds_of_stores_are_refused_clearly(url: str) -> None:
    with pytest.raises(ArchiveError, match="no kind of store is known for .*Known: a directory, .*s3://"):
        RunArchive(url, create=True)


def test_a_read_only_archive_is_read_and_never_written(archive: RunArchive, make_run: MakeRun) -> None:
    run_id = make_run()
    before = files_below(archive.root)
    reader = RunArchive(archive.root, read_only=True)
    assert reader.run(run_id).weights()
    assert reader.verify().ok
    with pytest.raises(ArchivePermissionError, match="opened read-only"):
        put_files(reader.start_run("new"))
    with pytest.raises(PermissionError, match="opened read-only"):
        reader.resume_run(run_id)
    assert files_below(archive.root) == before
