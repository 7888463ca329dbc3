"""The index: what it spares, and that what is false, damaged, old or lost in it changes no selection."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from reuse_algos.archive import RunArchive
from reuse_algos.archive.asked import Asked
from reuse_algos.archive.format.names import shard_runs
from reuse_algos.archive.index.catalog import _shares
from reuse_algos.archive.index.host import KnownShard, open_host
from reuse_algos.archive.index.shards import decode_shard, encode_shard
from reuse_algos.archive.index.update import update_index
from reuse_algos.errors import ArchiveWarning

from .conftest import MONITOR, MakeRun, manifest_of, rewrite
from .test_archive_many_runs import count_calls

VALUES = [0.1, 0.9, 0.5, 0.7, 0.3, 0.8]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reuse_algos.archive.index.catalog.FEW_RUNS", 0)
    monkeypatch.setattr("reuse_algos.archive.index.update.ENOUGH_RUNS", 4)


@pytest.fixture
def ids(archive: RunArchive, make_run: MakeRun) -> list[str]:
    return [make_run(f"run-{n}", values=(value,), tags={"n": str(n)}) for n, value in enumerate(VALUES)]


def shards(archive: RunArchive) -> list[str]:
    return [item.path for item in archive._store.walk("index") if shard_runs(item.path) is not None]


def best(archive: RunArchive) -> list[str]:
    return [run.id for run in RunArchive(archive.root).runs(order="best", limit=2)]


def other_host(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("host")))


def test_the_end_of_a_run_writes_a_shard_and_readers_open_only_what_they_choose(
    archive: RunArchive, ids: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert [shard_runs(path) for path in shards(archive)] == [4]
    assert best(archive) == [ids[1], ids[5]]
    other_host(monkeypatch, tmp_path_factory)
    monkeypatch.setattr("reuse_algos.archive.index.catalog.COMPARED", 0)
    calls = count_calls(monkeypatch, archive)
    assert best(archive) == [ids[1], ids[5]]
    first = calls.count("get")
    calls.clear()
    assert best(archive) == [ids[1], ids[5]]
    assert (calls.count("get"), calls.count("list")) == (5, 4), "archive.json, the listings, and two runs"
    assert first == 2 + 2 * 2 + 2, "archive.json, the shard, two runs that it does not know, one that is chosen"
    assert len(list(archive.summaries())) == 6


def poisoned(archive: RunArchive, *, beside: bool = False, **changes: Any) -> None:
    """Put a shard that says something else of the first run that it knows, in the place of all, or beside them."""
    (path,) = shards(archive)
    shard = decode_shard(path, (archive.root / path).read_bytes(), archive.archive_id)
    first, *rest = sorted(shard.runs, key=lambda run: run.run_name)
    replaces = [] if beside else [path]
    path, data = encode_shard(archive.archive_id, [msgspec.structs.replace(first, **changes), *rest], replaces)
    archive._store.put_if_absent(path, [data])


@pytest.mark.parametrize("compared", [0, 100])
@pytest.mark.parametrize(
    "lie", [{"finals": {MONITOR: 0.95}}, {"tags": {"n": "1"}}, {"generation": 7}, {"run_name": "run-5"}]
)
def test_a_lie_that_would_be_chosen_is_found_out(
    archive: RunArchive,
    ids: list[str],
    lie: dict[str, Any],
    compared: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    poisoned(archive, **lie)
    other_host(monkeypatch, tmp_path_factory)
    monkeypatch.setattr("reuse_algos.archive.index.catalog.COMPARED", compared)
    for _ in range(2):
        reader = RunArchive(archive.root)
        assert best(archive) == [ids[1], ids[5]]
        assert [run.id for run in reader.runs(tags={"n": 1})] == [ids[1]]
        assert [run.id for run in reader.runs(run_name="run-5")] == [ids[5]]
        assert reader.run("run-5").id == ids[5]


HIDING = [{"health": "diverged"}, {"finals": {MONITOR: 0.0}}, {"tags": {"n": "9"}}]


@pytest.mark.parametrize("compared", [0, 100])
@pytest.mark.parametrize("lie", HIDING)
def test_a_shard_that_hides_a_run_is_found_out_by_a_host_that_knew_better(
    archive: RunArchive, ids: list[str], lie: dict[str, Any], compared: int, monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    other_host(monkeypatch, tmp_path_factory)
    monkeypatch.setattr("reuse_algos.archive.index.catalog.COMPARED", compared)
    assert len(RunArchive(archive.root).runs()) == len(ids)
    (true,) = shards(archive)
    poisoned(archive, **lie)
    found = RunArchive(archive.root)
    # Where the runs of the true one were compared, the false one is not believed; else the run is doubted.
    monkeypatch.setattr("reuse_algos.archive.index.catalog.COMPARED", 0)
    assert {run.id for run in found.runs()} == set(ids)
    (false,) = {*shards(archive)} - {true}
    with open_host(archive._store.location, archive.archive_id) as host:
        assert (host.names(false)[0] == [], host.doubted()) == ((True, set()) if compared else (False, {ids[0]}))
    assert {run.id for run in found.runs()} == set(ids)
    assert [run.id for run in found.runs(tags={"n": 0})] == [ids[0]]
    assert [run.final_metric() for run in found.runs(order="best")] == sorted(VALUES, reverse=True)


@pytest.mark.parametrize("lie", [*HIDING, {"ended_at": "2020-01-01"}])
def test_garbage_collection_takes_away_a_shard_that_hides_a_run(
    archive: RunArchive, ids: list[str], lie: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    poisoned(archive, **lie)
    other_host(monkeypatch, tmp_path_factory)
    for path in shards(archive):
        os.utime(archive.root / path, (0, 0))
    archive.collect_garbage(delete=True, min_age_seconds=3600)
    assert sorted(shard_runs(path) or 0 for path in shards(archive)) == [2, 4], "the honest one, and the other runs"
    other_host(monkeypatch, tmp_path_factory)
    monkeypatch.setattr("reuse_algos.archive.index.catalog.COMPARED", 0)
    assert {run.id for run in RunArchive(archive.root).runs()} == set(ids)
    assert archive.verify(quick=True).ok


def test_a_shard_that_says_of_a_run_that_it_ended_is_found_out_by_comparing(
    archive: RunArchive, ids: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    writer = archive.start_run("going")
    writer.commit(manifest_of([]))
    poisoned(archive, run_id=writer.run_id)
    other_host(monkeypatch, tmp_path_factory)
    assert {run.run_id for run in RunArchive(archive.root).summaries()} == set(ids)


def test_a_lie_that_would_hide_a_run_is_found_out_by_comparing(
    archive: RunArchive, ids: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    poisoned(archive, health="diverged")
    other_host(monkeypatch, tmp_path_factory)
    assert {run.id for run in RunArchive(archive.root).runs()} == set(ids)


@pytest.mark.parametrize("lie", HIDING)
def test_where_two_shards_differ_the_run_itself_is_asked(
    archive: RunArchive, ids: list[str], lie: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    poisoned(archive, beside=True, **lie)
    other_host(monkeypatch, tmp_path_factory)
    monkeypatch.setattr("reuse_algos.archive.index.catalog.COMPARED", 0)
    for _ in range(2):
        found = RunArchive(archive.root)
        assert {run.id for run in found.runs()} == set(ids)
        assert [run.id for run in found.runs(tags={"n": 0})] == [ids[0]]
        assert [run.final_metric() for run in found.runs(order="best")] == sorted(VALUES, reverse=True)


@pytest.fixture
def believed(
    archive: RunArchive, ids: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> RunArchive:
    """An archive whose only shard hides the first run, read on another host that has compared nothing."""
    (true,) = shards(archive)
    poisoned(archive, health="diverged")
    (archive.root / true).unlink()  # or the two would be found to differ
    other_host(monkeypatch, tmp_path_factory)
    monkeypatch.setattr("reuse_algos.archive.index.catalog.COMPARED", 0)
    assert {run.id for run in RunArchive(archive.root).runs()} == set(ids[1:]), "the lie is believed"
    return archive


def test_after_enough_selections_every_run_of_a_shard_was_compared(
    believed: RunArchive, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reuse_algos.archive.index.catalog.COMPARED", 1)
    found = [len(RunArchive(believed.root).runs()) for _ in range(4)]  # the shard has four runs
    assert found == sorted(found)
    assert found[-1] == len(ids)


def test_a_quick_verification_finds_a_run_that_is_hidden_and_this_host_believes_it_no_more(
    believed: RunArchive, ids: list[str]
) -> None:
    (problem,) = believed.verify(quick=True).problems
    assert f"something else of run {ids[0]}" in problem.what
    assert {run.id for run in RunArchive(believed.root).runs()} == set(ids)


def test_a_line_of_a_shard_is_found_by_its_place() -> None:
    ids = [f"run-{n}" for n in range(3000)]
    lines = [f'["{run_id}",{"7" * (n % 50)}]'.encode() for n, run_id in enumerate(ids)]
    shard = KnownShard(ids, b"\n".join(lines), [])
    assert [shard.line(at) for at in range(3000)] == lines
    # Where lengths are so uneven that it is not near its share of the text, it is looked for from the start.
    lines[2990:] = [line + b" " * 100_000 for line in lines[2990:]]
    shard = KnownShard(ids, b"\n".join(lines), [])
    assert [shard.line(at) for at in (0, 1500, 2989, 2990, 2999)] == [lines[at] for at in (0, 1500, 2989, 2990, 2999)]
    assert KnownShard(["run"], b'["no"]', []).line(0) == b""


def test_lines_that_may_fit_are_found_in_the_text() -> None:
    lines = [b'{"a":"1"}', b'{"b":"2"}', b'{"a":"1","b":"2"}', b"", b'{"a":"2","b":"3"}', b'{"a":"1","b":"4"}']
    text = b"\n".join(lines)
    wanted: list[tuple[dict[str, object], list[int]]] = [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"a": 1}, [0, 2, 5]),
        ({"a": 1, "b": [2, 4]}, [2, 5]),
        ({"b": [2, 3]}, [1, 2, 4]),
        ({"b": 5}, []),
    ]
    for tags, places in wanted:
        asked = Asked(None, tags, None, unfinished=False, unhealthy=False)
        assert asked.likely(text) == [lines[at] for at in places]
        assert asked.likely(b"") == []


def test_each_run_of_each_shard_is_as_likely_to_be_compared() -> None:
    assert (_shares(5, []), _shares(0, [3, 4]), _shares(1000, [3, 4])) == ([], [0, 0], [3, 4])
    drawn = [_shares(50, [90, 10]) for _ in range(400)]
    assert all(first + second == 50 for first, second in drawn)
    # Hypergeometric: 5 of the 10 on average; the mean of 400 has a standard deviation of 0.075.
    assert sum(second for _, second in drawn) / 400 == pytest.approx(50 * 10 / 100, abs=0.6)


@pytest.mark.parametrize("data", [b"", b"{}", b"\0" * 5000, None])
def test_damage_costs_time_only(
    archive: RunArchive, ids: list[str], data: bytes | None, monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    (path,) = shards(archive)
    rewrite(archive.root / path, lambda whole: whole[: len(whole) // 2] if data is None else data)
    other_host(monkeypatch, tmp_path_factory)
    assert best(archive) == [ids[1], ids[5]]
    (database,) = Path(os.environ["XDG_CACHE_HOME"]).glob("reuse_algos/index/*.sqlite")
    database.write_bytes((database.read_bytes()[:5000]) if data is None else data)
    assert best(archive) == [ids[1], ids[5]]
    assert best(archive) == [ids[1], ids[5]]


def test_the_listing_says_which_runs_exist(archive: RunArchive, ids: list[str]) -> None:
    assert best(archive) == [ids[1], ids[5]]
    archive.remove_run(ids[1])
    assert best(archive) == [ids[5], ids[3]]


def test_an_ended_run_that_says_something_else_is_read_again(archive: RunArchive, ids: list[str]) -> None:
    assert best(archive) == [ids[1], ids[5]]
    writer, base = archive.resume_run(ids[1])
    assert list(archive._store.walk("index/changed")) == [], "the same again is no change"
    writer.commit(msgspec.structs.replace(base, tags={"n": "other"}))
    found = RunArchive(archive.root)
    assert [run.id for run in found.runs(tags={"n": "other"})] == [ids[1]]
    assert found.runs(tags={"n": "1"}) == []


def test_an_index_that_is_deleted_is_forgotten_and_written_again(archive: RunArchive, ids: list[str]) -> None:
    writer, base = archive.resume_run(ids[0])
    writer.commit(msgspec.structs.replace(base, tags={"n": "other"}))
    assert len(RunArchive(archive.root).runs(tags={"n": "other"})) == 1
    for item in list(archive._store.walk("index")):
        archive._store.delete(item.path)
    assert len(RunArchive(archive.root).runs(tags={"n": "other"})) == 1
    assert update_index(archive._store, archive.archive_id, everything=True) == 1
    assert [shard_runs(path) for path in shards(archive)] == [6]
    assert best(archive) == [ids[1], ids[5]]


def test_small_shards_are_put_together_and_swept(archive: RunArchive, ids: list[str], make_run: MakeRun) -> None:
    ids += [make_run(values=(0.2,)) for _ in range(6)]
    assert sorted(shard_runs(path) or 0 for path in shards(archive)) == [4, 4, 4]
    for item in archive.root.glob("index/*.json"):
        item.touch()
    make_run(values=(0.95,))
    report = archive.collect_garbage(delete=True, min_age_seconds=3600)
    assert report.shards == 1
    assert sorted(shard_runs(path) or 0 for path in shards(archive)) == [4, 4, 4, 13]
    assert len(RunArchive(archive.root).runs()) == 13
    assert len(list(RunArchive(archive.root).summaries())) == 13


def test_a_damaged_run_gives_way_when_it_is_opened(archive: RunArchive, ids: list[str]) -> None:
    assert best(archive) == [ids[1], ids[5]]
    rewrite(archive.root / f"runs/{ids[1]}/manifests/g000001.json", lambda data: data[:-9])
    with pytest.warns(ArchiveWarning, match=ids[1]):
        assert best(archive) == [ids[5], ids[3]]


def test_a_run_that_has_not_ended_is_always_read(archive: RunArchive, ids: list[str]) -> None:
    writer = archive.start_run("going")
    writer.commit(manifest_of([], tags={"n": "a"}))
    for tag in ("a", "b"):
        writer.commit(manifest_of([], tags={"n": tag}))
        assert [run.run_id for run in archive.summaries(tags={"n": tag}, unfinished=True)] == [writer.run_id]
