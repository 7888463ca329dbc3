"""Selecting among many runs: what is read and kept in memory, and that short cuts give the long way's answer."""

from __future__ import annotations

import math
import random
import struct
import threading
import weakref
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reuse_algos.archive import Manifest, RunArchive, history_tensors
from reuse_algos.archive.format.envelope import seal, unseal
from reuse_algos.archive.format.names import manifest_path
from reuse_algos.archive.run import PriorRun
from reuse_algos.errors import ArchiveWarning

from .conftest import MONITOR, MakeRun, history, manifest_of, rewrite

ORDERS = ("best", "latest", "first")


def put_history(archive: RunArchive, values: dict[str, list[float]], *, old: bool = False, **fields: Any) -> str:
    """Commit a run that has nothing but metrics; an old one as before the manifest said their last values."""
    writer = archive.start_run("toy")
    entry = writer.put("metrics", "history", history_tensors({name: history(v) for name, v in values.items()}))
    writer.commit(manifest_of([msgspec.structs.replace(entry, meta={}) if old else entry], **fields))
    writer.finish()
    return writer.run_id


def count_calls(monkeypatch: pytest.MonkeyPatch, archive: RunArchive) -> list[str]:
    calls: list[str] = []
    store = type(archive._store)
    for name in ("get", "open", "size", "list", "stream", "walk"):
        real = getattr(store, name)

        def counted(self: object, *arguments: object, name: str = name, real: Any = real) -> object:
            calls.append(name)
            return real(self, *arguments)

        monkeypatch.setattr(store, name, counted)
    return calls


@pytest.mark.parametrize("order", ORDERS)
def test_no_order_opens_any_file_of_a_run(
    archive: RunArchive, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, order: Any
) -> None:
    for number in range(5):
        make_run(values=(number / 5,))
    calls = count_calls(monkeypatch, archive)
    assert len(archive.runs(order=order, limit=2)) == 2
    assert sorted(calls) == ["get"] * 10 + ["list"] * 6
    calls.clear()
    assert archive.runs(order="best", limit=1)[0].final_metric() == 4 / 5
    assert "open" not in calls


@pytest.mark.parametrize("order", ORDERS)
def test_a_limit_gives_the_beginning_of_the_whole_list(archive: RunArchive, make_run: MakeRun, order: Any) -> None:
    draw = random.Random(0)
    for _ in range(24):
        make_run(values=(draw.choice([0.1, 0.5, math.nan, 0.7]),), created_at=f"2024-01-{draw.randrange(1, 9):02d}")
    everything = [run.id for run in archive.runs(order=order)]
    assert len(everything) >= (12 if order == "best" else 24)
    for limit in (0, 1, 2, 7, 23, 100):
        assert [run.id for run in archive.runs(order=order, limit=limit)] == everything[:limit]


@pytest.mark.parametrize("order", ORDERS)
def test_no_more_runs_are_alive_than_asked_for(
    archive: RunArchive, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, order: Any
) -> None:
    for number in range(20):  # the worst order: each is better than those before
        make_run(f"run-{number:02d}", values=(number / 20,), created_at=f"2024-01-{number + 1:02d}")
    alive: weakref.WeakSet[PriorRun] = weakref.WeakSet()
    counts: list[int] = []
    real_init, real_get = PriorRun.__init__, type(archive._store).get

    def init(self: PriorRun, *arguments: Any) -> None:
        real_init(self, *arguments)
        alive.add(self)

    def get(self: Any, *arguments: Any) -> bytes | None:
        counts.append(len(alive))
        return real_get(self, *arguments)

    monkeypatch.setattr(PriorRun, "__init__", init)
    monkeypatch.setattr(type(archive._store), "get", get)
    found = archive.runs(order=order, limit=3)
    assert len(found) == 3
    assert len(counts) == 40
    assert max(counts) <= 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.floats(width=64))
def test_the_manifest_says_the_last_value_bit_by_bit(archive: RunArchive, value: float) -> None:
    run = archive.run(put_history(archive, {MONITOR: [0.5, value]}))
    (entry,) = run.manifest.files
    assert f"final/{MONITOR}" in entry.meta
    ours, historys = run.final_metric(), run.metric(MONITOR).final()
    if math.isnan(historys):
        assert math.isnan(ours)
    else:
        assert struct.pack("d", ours) == struct.pack("d", historys) == struct.pack("d", value)


@pytest.mark.parametrize("value", [1e22, 1e16, -0.0, 5e-324, 1.7976931348623157e308, 3.0, 2.0**63, 0.1 + 0.2])
def test_numbers_that_json_may_spell_oddly(archive: RunArchive, value: float) -> None:
    run = archive.run(put_history(archive, {MONITOR: [value]}))
    assert struct.pack("d", run.final_metric()) == struct.pack("d", value)


def test_old_and_new_manifests_are_ordered_together(archive: RunArchive) -> None:
    values = {0.3: True, 0.9: False, 0.8: True, 0.1: False, math.nan: True, math.inf: False}
    ids = {value: put_history(archive, {MONITOR: [0.5, value]}, old=old) for value, old in values.items()}
    assert [run.id for run in archive.runs(order="best")] == [ids[0.9], ids[0.8], ids[0.3], ids[0.1]]
    assert [run.final_metric() for run in archive.runs(order="best", limit=2)] == [0.9, 0.8]
    assert math.isnan(archive.run(ids[math.nan]).final_metric())


@pytest.mark.parametrize("said", ["high", True, None, ".NaN"])
def test_what_is_no_number_is_looked_up_in_the_history(archive: RunArchive, said: Any) -> None:
    run_id = put_history(archive, {MONITOR: [0.25]})
    path = manifest_path(run_id, 1)

    def change(data: bytes) -> bytes:
        manifest = unseal(data, Manifest, path)
        entries = [msgspec.structs.replace(entry, meta={f"final/{MONITOR}": said}) for entry in manifest.files]
        return seal(msgspec.structs.replace(manifest, files=entries), path)

    rewrite(archive.root / path, change)
    assert [run.final_metric() for run in archive.runs(order="best")] == [0.25]


def test_a_short_name_may_fit_other_metrics_in_other_runs(archive: RunArchive) -> None:
    one = put_history(archive, {"metrics/eval/Acc": [0.5]}, monitor=None)
    two = put_history(archive, {"metrics/eval/Acc": [0.6], "metrics/eval/Loss": [0.1]}, monitor=None)
    assert [run.id for run in archive.runs(order="best", metric="Acc")] == [two, one]
    assert [run.id for run in archive.runs(order="best", metric="Loss")] == [two]
    three = put_history(archive, {"metrics/train/Acc": [0.7]}, monitor=None)
    assert [run.id for run in archive.runs(order="best", metric="Acc")] == [two, one], "the evaluation's is meant"
    assert {run.id for run in archive.runs(where="Acc>0")} == {one, two, three}
    assert [run.id for run in archive.runs(order="best", metric="train/Acc")] == [three]


@pytest.mark.parametrize("order", ORDERS)
def test_a_run_that_cannot_be_decoded_in_full_gives_way_to_the_next(
    archive: RunArchive, make_run: MakeRun, order: Any
) -> None:
    """Its seal is right, so the scan does not notice; a hostile manifest is only refused when it is used."""
    day = {"latest": "2024-01-03", "first": "2024-01-01", "best": "2024-01-02"}[order]
    good = make_run(values=(0.5,), created_at="2024-01-02")
    bad = make_run(values=(0.9,), created_at=day)
    path = manifest_path(bad, 1)

    def change(data: bytes) -> bytes:
        manifest = unseal(data, Manifest, path)
        first, *rest = manifest.files
        outside = msgspec.structs.replace(first, path="../../archive.json")
        return seal(msgspec.structs.replace(manifest, files=[outside, *rest]), path)

    rewrite(archive.root / path, change)
    with pytest.warns(ArchiveWarning, match=bad):
        assert [run.id for run in archive.runs(order=order, limit=1)] == [good]


@pytest.mark.parametrize("key", ["tensors", "meta"])
def test_a_malformed_entry_of_the_history_is_damage(archive: RunArchive, make_run: MakeRun, key: str) -> None:
    class Loose(msgspec.Struct, tag_field="record", tag="manifest"):
        format: tuple[int, int]
        run_id: str
        run_name: str
        generation: int
        created_at: str
        monitor: str
        files: list[Any]

    good, bad = make_run(values=(0.5,)), make_run(values=(0.9,))
    path = manifest_path(bad, 1)

    def change(data: bytes) -> bytes:
        loose = unseal(data, Loose, path)
        for entry in loose.files:
            entry[key] = ["not", "a", "mapping"]
        return seal(loose, path)

    rewrite(archive.root / path, change)
    with pytest.warns(ArchiveWarning, match=bad):
        assert [run.id for run in archive.runs(order="best")] == [good]


class Remote:
    """A store that says that it takes several requests at once, and finds out whether it gets them."""

    concurrency = 4

    def __init__(self, store: Any) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._together = threading.Barrier(2, timeout=20)
        self._active = self.calls = self.peak = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, path: str, max_bytes: int) -> bytes | None:
        with self._lock:
            self.calls += 1
            self._active += 1
            self.peak = max(self.peak, self._active)
            first = self.calls <= 2
        if first:
            self._together.wait()  # breaks if requests come one after the other
        data = self._store.get(path, max_bytes)
        with self._lock:
            self._active -= 1
        return data


def test_a_remote_store_is_read_in_parallel_with_the_same_answer(archive: RunArchive, make_run: MakeRun) -> None:
    for number in range(30):
        make_run(values=(number / 30,), created_at=f"2024-01-{number + 1:02d}")
    bad = make_run()
    rewrite(archive.root / manifest_path(bad, 1), lambda data: data[:-9])
    with pytest.warns(ArchiveWarning, match=bad):
        expected = {order: [run.id for run in archive.runs(order=order)] for order in ORDERS}
    parallel = RunArchive(archive.root, create=True)
    store = Remote(parallel._store)
    parallel._store = store  # type: ignore[assignment]
    with pytest.warns(ArchiveWarning, match=bad) as warned:
        assert {order: [run.id for run in parallel.runs(order=order)] for order in ORDERS} == expected
    assert len(warned) == 1
    assert 2 <= store.peak <= Remote.concurrency


def test_an_error_ends_a_parallel_scan(archive: RunArchive, make_run: MakeRun) -> None:
    for _ in range(12):
        make_run()

    class Broken(Remote):
        def get(self, path: str, max_bytes: int) -> bytes | None:
            raise RuntimeError("a fault that is none of the archive's")

    parallel = RunArchive(archive.root, create=True)
    parallel._store = Broken(parallel._store)  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="none of the archive's"):
        parallel.runs()
