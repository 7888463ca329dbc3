"""Selecting runs, and what their metrics say."""

from __future__ import annotations

import datetime
import errno
import math
from typing import Any

import pytest

from reuse_algos.archive import LocalStore, RunArchive, history_tensors, infer_mode
from reuse_algos.errors import (
    ArchiveError,
    ArchivePermissionError,
    ArchiveWarning,
    RunNotFoundError,
    SignalNotFoundError,
)

from .conftest import MONITOR, MakeRun, history, manifest_of

NAN = math.nan


def times(archive: RunArchive, make_run: MakeRun) -> list[str]:
    """Ids of four runs in the order in which they say that they were started, committed in another order."""
    stamps = ["2024-01-02T00:00:00Z", "2023-12-31T23:00:00-05:00", "2024-01-01T00:00:00+00:00", "2024-01-03"]
    ids = [make_run("toy", created_at=stamp) for stamp in stamps]
    return [ids[2], ids[1], ids[0], ids[3]]


def test_order_by_time(archive: RunArchive, make_run: MakeRun) -> None:
    expected = times(archive, make_run)
    assert [run.id for run in archive.runs(order="first")] == expected
    assert [run.id for run in archive.runs(order="latest")] == expected[::-1]
    assert [run.id for run in archive.runs(limit=2)] == expected[:1:-1]
    assert archive.runs(limit=0) == []


def test_times_are_kept_in_utc(archive: RunArchive, make_run: MakeRun) -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    run_id = archive.start_run("toy", created_at=datetime.datetime(2024, 1, 1, 1, 0, tzinfo=zone))
    run_id.commit(manifest_of([]))
    assert archive.run(run_id.run_id).manifest.created_at == "2023-12-31T23:00:00.000000+00:00"
    with pytest.raises(ArchiveError, match="not a time"):
        make_run(created_at="yesterday")


def test_best_is_by_the_final_value_of_the_monitor(archive: RunArchive, make_run: MakeRun) -> None:
    values = {
        "late": (0.1, 0.9),
        "peaked": (0.99, 0.3),
        "infinite": (0.5, math.inf),
        "ends in NaN": (0.9, NAN),
        "all NaN": (NAN, NAN),
        "nothing": (),
        "middle": (NAN, 0.6),
    }
    ids = {name: make_run(name, values=value) for name, value in values.items()}
    make_run("no monitor", monitor=None)
    best = archive.runs(order="best")
    assert [run.id for run in best] == [ids["late"], ids["middle"], ids["peaked"]]
    assert [run.id for run in archive.runs(order="best", limit=1)] == [ids["late"]]


def test_best_may_mean_least(archive: RunArchive, make_run: MakeRun) -> None:
    ids = [make_run(values=(value,), monitor_mode="min") for value in (0.3, 0.1, 0.2)]
    assert [run.id for run in archive.runs(order="best")] == [ids[1], ids[2], ids[0]]


def test_equal_runs_go_by_id(archive: RunArchive, make_run: MakeRun) -> None:
    ids = sorted(make_run(values=(0.5,), created_at="2024-01-01") for _ in range(4))
    for order in ("best", "first", "latest"):
        assert [run.id for run in archive.runs(order=order)] == ids


def test_best_by_a_named_metric(archive: RunArchive) -> None:
    ids = []
    for loss in (0.5, 0.2, NAN, 0.9):
        writer = archive.start_run("toy")
        columns = {"loss/train/total": history([loss]), MONITOR: history([loss])}
        writer.commit(manifest_of([writer.put("metrics", "history", history_tensors(columns))]))
        writer.finish()
        ids.append(writer.run_id)
    assert [run.id for run in archive.runs(order="best", metric="total")] == [ids[1], ids[0], ids[3]]
    assert [run.id for run in archive.runs(order="best", metric="MulticlassAccuracy")] == [ids[3], ids[0], ids[1]]


def test_an_unknown_metric_is_an_error_that_lists_the_known(archive: RunArchive, make_run: MakeRun) -> None:
    make_run()
    with pytest.raises(SignalNotFoundError, match=f"the runs have no metric 'eval/Accuracies'.*{MONITOR}"):
        archive.runs(order="best", metric="eval/Accuracies")
    assert RunArchive(archive.root / "empty", create=True).runs(order="best", metric="anything") == []


def test_different_monitors_are_not_compared(archive: RunArchive, make_run: MakeRun) -> None:
    make_run()
    make_run(monitor="metrics/eval/CrossEntropy", monitor_mode="min")
    with pytest.raises(SignalNotFoundError, match="different monitors"):
        archive.runs(order="best")
    assert len(archive.runs(order="best", metric=MONITOR)) == 2


def test_by_tags_and_name(archive: RunArchive, make_run: MakeRun) -> None:
    one = make_run("one", tags={"method": "baseline", "seed": "1"})
    two = make_run("two", tags={"method": "baseline", "seed": "2"})
    three = make_run("one", tags={"method": "distilled"})

    def ids(**selection: object) -> set[str]:
        return {run.id for run in archive.runs(**selection)}  # type: ignore[arg-type]

    assert ids() == {one, two, three}
    assert ids(tags={"method": "baseline"}) == {one, two}
    assert ids(tags={"method": "baseline", "seed": 2}) == {two}
    assert ids(tags={"method": ["baseline", "distilled"], "seed": ["1", 7]}) == {one}
    assert ids(tags={"method": "base"}) == ids(tags={"colour": "red"}) == set()
    assert ids(run_name="one") == {one, three}
    assert ids(run_name="one", tags={"method": "distilled"}) == {three}


def test_unfinished_and_unhealthy_runs_only_when_asked_for(archive: RunArchive, make_run: MakeRun) -> None:
    good = make_run()
    running = make_run(finished=False)
    diverged, empty = make_run(health="diverged"), make_run(health="empty")
    assert {run.id for run in archive.runs()} == {good}
    assert {run.id for run in archive.runs(unfinished=True)} == {good, running}
    assert {run.id for run in archive.runs(unhealthy=True)} == {good, diverged, empty}
    assert [run.id for run in archive.runs(order="best")] == [good]
    assert len(archive.run_ids()) == 4
    assert not archive.run(running).finished


def test_an_unknown_order_is_refused(archive: RunArchive) -> None:
    with pytest.raises(ArchiveError, match="Did you mean 'latest'"):
        archive.runs(order="lates")  # type: ignore[arg-type]


def test_a_run_by_id_or_by_name(archive: RunArchive, make_run: MakeRun) -> None:
    one, two = make_run("resnet"), make_run("vgg")
    assert archive.run(one).id == one
    assert archive.run("vgg").id == two
    third = make_run("vgg")
    with pytest.raises(RunNotFoundError, match=f"2 runs are named 'vgg'.*({two}|{third})"):
        archive.run("vgg")
    with pytest.raises(LookupError, match=f"Did you mean .*{one}"):
        archive.run(one[:-1] + "x")
    with pytest.raises(RunNotFoundError, match="no run 'anything'"):
        RunArchive(archive.root / "empty", create=True).run("anything")


def test_metrics_by_short_name(archive: RunArchive) -> None:
    writer = archive.start_run("toy")
    columns = {"metrics/eval/Acc": history([1.0]), "metrics/train/Acc": history([2.0]), "loss/total": history([3.0])}
    writer.commit(manifest_of([writer.put("metrics", "history", history_tensors(columns))], monitor=None))
    run = archive.run(writer.run_id)
    assert run.final_metric("total") == 3.0
    assert run.final_metric("train/Acc") == 2.0
    assert run.final_metric("Acc") == 1.0, "a short name means the evaluation's metric, as users of compare expect"
    with pytest.raises(SignalNotFoundError, match="no metric 'cc'"):
        run.metric("cc")
    with pytest.raises(SignalNotFoundError, match="no monitor"):
        run.final_metric()


@pytest.mark.parametrize(
    ("values", "mode", "expected"),
    [
        ((0.1, NAN, 0.7, 0.7, 0.3), "max", (0.7, 2)),
        ((0.1, NAN, 0.7, 0.05), "min", (0.05, 3)),
        ((math.inf, 0.5, -math.inf), "max", (0.5, 1)),
        ((math.inf, 0.5, -math.inf), "min", (0.5, 1)),
    ],
)
def test_the_best_value_is_finite(
    archive: RunArchive, make_run: MakeRun, values: tuple[float, ...], mode: str, expected: tuple[float, int]
) -> None:
    run = archive.run(make_run(values=values, monitor_mode=mode))
    assert run.best_metric() == expected
    assert run.best_metric(MONITOR, mode) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [(NAN, NAN), ()])
def test_there_may_be_no_best_value(archive: RunArchive, make_run: MakeRun, values: tuple[float, ...]) -> None:
    run = archive.run(make_run(values=values))
    value, row = run.best_metric()
    assert math.isnan(value)
    assert row == -1
    assert math.isnan(run.final_metric())


def test_which_direction_is_better() -> None:
    less = ["loss/train/total", "metrics/eval/CrossEntropy", "LanguagePerplexity", "eval/MSE", "top1_error", "MAE"]
    assert [infer_mode(name) for name in less] == ["min"] * len(less)
    assert [infer_mode(name) for name in (MONITOR, "F1", "metrics/eval/BinaryAUROC")] == ["max"] * 3


def test_listing_costs_one_listing_and_two_small_reads_per_run(
    archive: RunArchive, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = 20
    for _ in range(runs):
        make_run(tags={"a": "b"})
    calls: list[str] = []
    store = type(archive._store)
    for name in ("get", "open", "size", "list"):
        real = getattr(store, name)

        def counted(self: object, *arguments: object, name: str = name, real=real) -> object:
            calls.append(name)
            return real(self, *arguments)

        monkeypatch.setattr(store, name, counted)
    assert len(archive.runs(tags={"a": "b"})) == runs
    assert sorted(calls) == ["get"] * 2 * runs + ["list"] * (runs + 1)


class Failing:
    """A store of which one file cannot be read at this moment."""

    def __init__(self, archive: RunArchive, path: str, error: ArchiveError, concurrency: int) -> None:
        self._store, self._path, self._error, self.concurrency = archive._store, path, error, concurrency

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, path: str, max_bytes: int) -> bytes | None:
        if path == self._path:
            raise self._error
        return self._store.get(path, max_bytes)


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("name", ["manifests/g000001.json", "final.json"])
def test_what_cannot_be_read_now_changes_no_selection(
    archive: RunArchive, make_run: MakeRun, name: str, concurrency: int
) -> None:
    error = ArchiveError("503")
    ids = [make_run(values=(value,)) for value in (0.1, 0.9, 0.5)]
    failing = RunArchive(Failing(archive, f"runs/{ids[1]}/{name}", error, concurrency), create=True)
    for order in ("best", "first", "latest"):
        with pytest.raises(type(error), match=str(error)):
            failing.runs(order=order, limit=1)
    with pytest.raises(type(error), match=str(error)):
        failing.run("toy")  # which might be the name of that run
    with pytest.raises(type(error), match=str(error)):
        failing.run("unknown")


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("name", ["manifests/g000001.json", "final.json"])
def test_a_run_that_may_not_be_read_is_named_and_left_out(
    archive: RunArchive, make_run: MakeRun, name: str, concurrency: int
) -> None:
    ids = [make_run(values=(value,)) for value in (0.1, 0.9, 0.5)]
    path = f"runs/{ids[1]}/{name}"
    for order, expected in (("best", [ids[2], ids[0]]), ("first", [ids[0], ids[2]]), ("latest", [ids[2], ids[0]])):
        shared = RunArchive(Failing(archive, path, ArchivePermissionError(f"403 for {path}"), concurrency))
        with pytest.warns(ArchiveWarning, match=f"run {ids[1]} is left out: 403 for {path}"):
            assert [run.id for run in shared.runs(order=order)] == expected
        assert shared.faults == {ids[1]: f"403 for {path}"}
    with pytest.raises(ArchivePermissionError, match="403"):
        shared.run(ids[1])


def test_an_archive_that_may_not_be_read_at_all_is_an_error(archive: RunArchive, make_run: MakeRun) -> None:
    make_run()
    closed = RunArchive(archive.root)

    class Closed(Failing):
        def get(self, path: str, max_bytes: int) -> bytes | None:
            raise ArchivePermissionError(f"403 for {path}")

        def size(self, path: str) -> int | None:
            raise ArchivePermissionError(f"403 for {path}")

    closed._store = Closed(archive, "", ArchiveError(), 1)  # type: ignore[assignment]
    with pytest.raises(ArchivePermissionError, match=r"403 for archive\.json"):
        closed.runs()


def test_an_unreadable_file_here_is_raised_and_an_odd_one_is_damage(
    archive: RunArchive, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_run(), make_run()
    manifest = archive.root / "runs" / first / "manifests" / "g000001.json"
    real = LocalStore._open

    def fail(store: LocalStore, path: str) -> Any:
        if str(store.root / path) == str(manifest):
            raise OSError(errno.EIO, "Input/output error")
        return real(store, path)

    monkeypatch.setattr(LocalStore, "_open", fail)
    with pytest.raises(ArchiveError, match=f"cannot read {manifest}: Input/output error"):
        archive.runs()
    monkeypatch.undo()
    manifest.unlink()
    manifest.symlink_to("/etc/hostname")
    with pytest.warns(ArchiveWarning, match=first):
        assert [run.id for run in archive.runs()] == [second]


def test_a_run_from_the_future_is_named_where_the_latest_are_asked_for(archive: RunArchive, make_run: MakeRun) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    ids = [make_run(created_at=(now + datetime.timedelta(minutes=after)).isoformat()) for after in (-1, 5, 90)]
    with pytest.warns(
        ArchiveWarning, match=f"run {ids[2]} says that it was started at .*which is in the future"
    ) as told:
        assert [run.id for run in archive.runs(order="latest", limit=2)] == ids[:0:-1]
    assert told[0].filename == __file__
    # Where it is not the time that decides, or the run is not chosen, there is nothing to say.
    assert len(archive.runs(order="first")) == len(archive.runs(order="best")) == 3
    archive.remove_run(ids[2])
    assert archive.runs(order="latest", limit=1)[0].id == ids[1]
