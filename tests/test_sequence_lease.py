"""The lease of a sequence: one holder at a time, whoever is alive, on any machine; and jobs that end before it does."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from reuse_algos.errors import ArchiveError, SequenceError
from reuse_algos.sequence.progress import open_store_of
from reuse_algos.sequence.running import lease as leases
from reuse_algos.sequence.running.job import main
from reuse_algos.sequence.running.lease import LeaseKey, SequenceLease, outlast


class Time:
    """The clock of leases; it moves as they sleep, and each sleep may change the archive."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.each: Callable[[], object] = lambda: None
        monkeypatch.setattr(leases, "monotonic", lambda: self.now)
        monkeypatch.setattr(leases, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.each()


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


def new(here: Path, **options: bool) -> SequenceLease:
    return SequenceLease(str(here / "archive"), "tiny", **{"local": False, **options}, lost=lambda: None)


def there(here: Path) -> dict[str, dict[str, object]]:
    return {path.name: json.loads(path.read_text()) for path in (here / "archive/sequences/tiny").iterdir()}


def left_by(here: Path, number: int, *, token: str | None = "0" * 16, **who: object) -> None:
    """The lease of another process."""
    record = {"token": token, "host": "elsewhere", "pid": 1, "local": False, **who}
    store = open_store_of(str(here / "archive"))
    store.put_if_absent(f"sequences/tiny/{number}.json", [json.dumps(record).encode()])


def test_numbers_go_on_and_only_the_last_lease_stays(tmp_path: Path) -> None:
    first = new(tmp_path)
    first.acquire()
    first.renew()
    assert {name: record["token"] for name, record in there(tmp_path).items()} == {"2.json": first.key.token}
    first.release()
    assert {name: record["token"] for name, record in there(tmp_path).items()} == {"3.json": None}
    second = new(tmp_path)
    second.acquire(lambda line: pytest.fail(line))
    assert list(there(tmp_path)) == ["4.json"]
    second.release()


def test_a_holder_that_renews_is_alive(tmp_path: Path, time: Time) -> None:
    left_by(tmp_path, 7)
    time.each = lambda: left_by(tmp_path, 8) if time.now == 30.0 else None
    said: list[str] = []
    with pytest.raises(SequenceError, match=r"another process is running the sequence tiny .*\(elsewhere, process 1\)"):
        new(tmp_path).acquire(said.append)
    assert time.now == 30.0
    assert len(said) == 1


def test_a_lease_that_has_run_out_is_taken_over(tmp_path: Path, time: Time) -> None:
    left_by(tmp_path, 7)
    lease = new(tmp_path)
    lease.acquire(lambda line: None)
    assert 180.0 < time.now <= 181.0
    assert there(tmp_path)["8.json"]["token"] == lease.key.token
    lease.release()


def test_of_two_that_take_it_over_one_wins(tmp_path: Path, time: Time) -> None:
    left_by(tmp_path, 7)
    time.each = lambda: left_by(tmp_path, 8) if time.now > 180.0 else None
    with pytest.raises(SequenceError, match="another process"):
        new(tmp_path).acquire(lambda line: None)


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(tmp_path: Path, time: Time) -> None:
    """Only where its jobs ended with it: those on another machine need their time."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        gone = process.pid
    for number, local, seconds in ((7, True, 1.0), (20, False, 180.0)):
        left_by(tmp_path, number, host=socket.gethostname(), pid=gone, local=local)
        before = time.now
        lease = new(tmp_path)
        lease.acquire(lambda line: None)
        assert seconds < time.now - before <= seconds + 0.5
        lease.release()


def test_a_holder_learns_that_its_lease_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.01)
    lost = threading.Event()
    lease = SequenceLease(str(tmp_path / "archive"), "tiny", local=True, lost=lost.set)
    left_by(tmp_path, 1, token=None)
    put, taken = lease._store.put_if_absent, threading.Event()

    def taken_first(path: str, chunks: object) -> None:
        if not taken.is_set() and path != "sequences/tiny/2.json":
            taken.set()
            left_by(tmp_path, int(Path(path).stem))
        put(path, chunks)

    monkeypatch.setattr(lease._store, "put_if_absent", taken_first)
    lease.acquire()
    assert lost.wait(30)
    lease.release()
    assert lease.is_lost
    assert there(tmp_path)["3.json"]["token"] == "0" * 16  # the other one's is left alone


def test_a_job_outlasts_neither_its_sequence_nor_a_silent_one(tmp_path: Path, time: Time) -> None:
    lease = new(tmp_path)
    lease.acquire()
    time.each = lambda: lease.renew() if time.now < 300.0 else None
    outlast(lease.key)
    # It saw the last renewal at most one look after it was made, and is gone long before anybody may take over.
    assert 300.0 + 90.0 - 15.0 <= time.now < 300.0 + 180.0 - 15.0
    time.each, before = lease.release, time.now
    outlast(lease.key)
    assert time.now == before + 15.0


def test_an_archive_that_is_out_of_reach_for_a_while_ends_no_job(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = new(tmp_path)
    lease.acquire()
    newest, failures = leases._newest, list(range(4))

    def flaky(store: object, sequence: str) -> object:
        if time.now > 0.0 and failures:
            failures.pop()
            raise ArchiveError("out of reach")
        return newest(store, sequence)  # type: ignore[arg-type]

    monkeypatch.setattr(leases, "_newest", flaky)
    time.each = lambda: lease.renew() if time.now < 300.0 else None
    outlast(lease.key)
    assert not failures
    assert time.now > 300.0
    lease.release()


def test_what_is_not_a_lease_is_refused(tmp_path: Path) -> None:
    open_store_of(str(tmp_path / "archive")).put_if_absent("sequences/tiny/1.json", [b"{}"])
    with pytest.raises(ArchiveError, match=r"sequences/tiny/1\.json is not a lease of a sequence"):
        new(tmp_path).acquire()


def test_a_job_ends_with_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job of another machine, whose sequence was taken over while it trained."""
    left_by(tmp_path, 5)
    ended: list[int] = []
    done = threading.Event()

    def end(status: int) -> None:
        ended.append(status)
        done.set()

    monkeypatch.setattr("reuse_algos.train.main", lambda arguments: done.wait(30) and 0)
    key = LeaseKey(str(tmp_path / "archive"), "tiny", "1" * 16)
    asked = {"lease": vars(key), "recipe": "recipe.yaml"}
    assert main([json.dumps(asked)], ends=end) == 0
    assert ended == [143]
