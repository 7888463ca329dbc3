"""``verify``, ``gc``, ``copy`` and ``rm`` as their users see them."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from compare.synthetic_runs import write_run
from reuse_algos.archive import LocalStore, PriorUse, RunArchive
from reuse_algos.archive.upkeep.leases import Marker
from reuse_algos.cli import main
from reuse_algos.commands.common import names_archive
from reuse_algos.commands.upkeep.gc import age
from reuse_algos.errors import ArchiveError

X = np.arange(1, 11) / 10


@pytest.fixture(autouse=True)
def _no_real_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def archive(tmp_path: Path) -> RunArchive:
    return RunArchive(tmp_path / "archive", create=True)


def call(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in argv])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    code, out, err = call(capsys, *argv)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    return err


def grow_old(archive: RunArchive, days: float = 2) -> None:
    for path in (archive.root / "runs").rglob("*"):
        if path.is_file():
            os.utime(path, times=(path.stat().st_mtime - days * 86400,) * 2)


def add_garbage(archive: RunArchive, run_id: str) -> str:
    entry = archive.join_run(run_id, 5).put("weights", "crashed", {"w": torch.ones(1000)})
    return f"runs/{run_id}/{entry.path}"


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", ["verify", "gc", "copy", "rm"])
def test_every_command_explains_itself_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert f"examples:\n  reuse-algos {command}" in out
    assert max(len(line) for line in out.splitlines()) <= 100
    assert f"\n    {command} " in call(capsys, "--help")[1]


def test_gc_says_what_would_go_and_goes_only_when_told(archive: RunArchive, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = write_run(archive, "m", 0, X)
    garbage = add_garbage(archive, run_id)
    code, out, _ = call(capsys, "gc", archive.root)
    assert (code, garbage in out) == (0, False)
    assert "1 are too young to judge" in out
    grow_old(archive)
    before = content(archive.root)
    code, out, err = call(capsys, "gc", archive.root)
    assert (code, err) == (0, "")
    assert f"garbage: {garbage} (4." in out
    assert "1 files" in out
    assert "would be deleted (with --delete)" in out
    assert content(archive.root) == before
    code, out, _ = call(capsys, "gc", archive.root, "--delete", "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["deleted"], report["runs"], report["kept"]) == (0, True, True, 1, 1)
    assert report["collected"] == [{"path": garbage, "bytes": len(before[garbage])}]
    assert report["bytes"] == len(before[garbage])
    assert content(archive.root) == {path: data for path, data in before.items() if path != garbage}
    assert "0 files, 0 B, deleted" in call(capsys, "gc", "--archive", archive.root, "--delete")[1]


def test_gc_reports_what_it_cannot_judge(archive: RunArchive, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = write_run(archive, "m", 0, X)
    garbage = add_garbage(archive, run_id)
    (archive.root / "runs" / run_id / "manifests" / "g000001.json").write_bytes(b"{}")
    (archive.root / "runs" / run_id / "mine.txt").write_bytes(b"mine")
    grow_old(archive)
    code, out, _ = call(capsys, "gc", archive.root, "--delete")
    assert code == 1
    assert f"left alone: {run_id}" in out
    assert "g000001.json is damaged" in out
    assert (archive.root / garbage).exists()
    code, out, _ = call(capsys, "gc", archive.root, "--json")
    assert code == 1
    assert json.loads(out)["problems"][0]["run_id"] == run_id


def test_ages(archive: RunArchive, capsys: pytest.CaptureFixture[str]) -> None:
    assert [age(text) for text in ("90m", "1h", "1.5d", "2w")] == [5400, 3600, 129600, 1209600]
    assert "less than 1h" in refused(capsys, "gc", archive.root, "--min-age", "59m")
    for text in ("1", "d", "-1d", "1y", "1e9d", "nan"):
        assert "is not an age such as" in refused(capsys, "gc", archive.root, f"--min-age={text}")
    garbage = add_garbage(archive, write_run(archive, "m", 0, X))
    grow_old(archive, days=0.5)
    assert garbage not in call(capsys, "gc", archive.root, "--min-age", "13h")[1]
    assert garbage in call(capsys, "gc", archive.root, "--min-age", "11h")[1]


def test_copy(archive: RunArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(archive, name, 0, X, tags={"study": name}) for name in ("a", "b", "c")]
    target = tmp_path / "target"
    code, out, err = call(capsys, "copy", archive.root, target, runs[0], "b-0")
    assert (code, err) == (0, "")
    assert out.startswith(f"2 runs are in {target}: 2 files copied")
    assert RunArchive(target).run_ids() == sorted(runs[:2])
    code, out, _ = call(capsys, "copy", archive.root, target, "--tag", "study=c", "study=a", "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["runs"], report["files"], report["there"]) == (0, True, 2, 1, 1)
    assert RunArchive(target).run_ids() == sorted(runs)
    _, out, _ = call(capsys, "copy", archive.root, tmp_path / "third", "a-0", "b-0", "--tag", "study=b", "study=c")
    assert "1 runs are in" in out
    assert "0 files copied (0 B), 3 were there" in call(capsys, "copy", archive.root, target, "--quick")[1]
    assert call(capsys, "verify", target)[0] == 0
    assert "no run 'nope'" in refused(capsys, "copy", archive.root, target, "nope")
    assert "no archive" in refused(capsys, "copy", tmp_path / "nowhere", target)
    assert not (tmp_path / "nowhere").exists()


def test_copy_reports_what_it_could_not_copy(
    archive: RunArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = (write_run(archive, "m", seed, X) for seed in range(2))
    (file,) = (archive.root / "runs" / bad / "data" / "metrics").iterdir()
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1])
    code, out, _ = call(capsys, "copy", archive.root, tmp_path / "target")
    assert code == 1
    assert f"not copied: {bad}: {file} has" in out
    assert RunArchive(tmp_path / "target").run_ids() == [good]
    code, out, _ = call(capsys, "copy", archive.root, tmp_path / "target", "--json")
    assert code == 1
    assert json.loads(out)["problems"][0]["run_id"] == bad


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("answer", ["y\n", "YES\n", "n\n", "\n", ""])
def test_rm_asks_first(
    archive: RunArchive, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    keep, gone = (write_run(archive, name, 0, X) for name in ("keep", "gone"))
    use = PriorUse(run_id=gone, algorithm="x")
    user = write_run(archive, "user", 0, X, prior_runs=[use])
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    code, out, err = call(capsys, "rm", archive.root, gone)
    assert f"{gone} is a prior run of: {user}" in err
    assert f"remove from {archive.root}:\n  {gone}\n" in err
    if answer.strip().lower().startswith("y"):
        assert (code, out.startswith(f"removed {gone}: 3 files")) == (0, True)
        assert archive.run_ids() == sorted([keep, user])
    else:
        assert (code, out) == (1, "")
        assert archive.run_ids() == sorted([keep, gone, user])


def test_copy_by_tags_reports_a_run_whose_tags_cannot_be_read(
    archive: RunArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, sound = (write_run(archive, name, 0, X, tags={"study": "a"}) for name in ("a", "b"))
    manifest = archive.root / "runs" / damaged / "manifests" / "g000001.json"
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes()[:-9])
    code, out, _ = call(capsys, "copy", archive.root, tmp_path / "target", "--tag", "study=a", "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["runs"]) == (1, False, 1)
    assert [problem["run_id"] for problem in report["problems"]] == [damaged]
    assert RunArchive(tmp_path / "target").run_ids() == [sound]


def test_a_url_with_a_slash_too_few_makes_no_folder(
    archive: RunArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "write s3://bucket/x" in refused(capsys, "copy", archive.root, "s3:/bucket/x")
    assert not (tmp_path / "s3:").exists()


def test_what_names_an_archive(tmp_path: Path) -> None:
    assert names_archive("dbfs:/Volumes/a/b/c/x")
    assert names_archive("s3://bucket/x")
    assert names_archive(str(tmp_path))
    assert not names_archive("resnet-17-0123abcdef")


def test_an_outage_is_no_damage(
    archive: RunArchive, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store goes away after the records were read: exit code 2 and one line, and no list of damaged files."""
    write_run(archive, "m", 0, X)

    def fail(store: LocalStore, path: str, *rest: object) -> object:
        raise ArchiveError(f"cannot read {path}: no network")

    monkeypatch.setattr(LocalStore, "stream", fail)
    monkeypatch.setattr(LocalStore, "size", fail)
    assert "no network" in refused(capsys, "verify", archive.root)


def test_rm_without_a_terminal_needs_yes(archive: RunArchive, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(archive, f"run{seed}", seed, X) for seed in range(4)]
    assert "--yes" in refused(capsys, "rm", archive.root, runs[0])
    assert len(archive.run_ids()) == 4
    code, out, _ = call(capsys, "rm", archive.root, runs[0], "run1-1", runs[0], "--yes", "--json")
    assert code == 0
    assert [(found["run_id"], found["files"], found["prior_run_of"]) for found in json.loads(out)] == [
        (runs[0], 3, []),
        (runs[1], 3, []),
    ]
    assert call(capsys, "rm", runs[2], runs[3], "--yes", "--archive", archive.root)[0] == 0
    assert archive.run_ids(uncommitted=True) == []
    assert "no run" in refused(capsys, "rm", archive.root, runs[0], "--yes")


def test_rm_finds_the_archive_in_the_environment(
    archive: RunArchive, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [write_run(archive, f"run{seed}", seed, X) for seed in range(3)]
    monkeypatch.setenv("REUSE_ALGOS_ARCHIVE", str(archive.root))
    assert call(capsys, "rm", "--yes", runs[0])[0] == 0
    assert call(capsys, "rm", runs[1], runs[2], "--yes")[0] == 0
    assert archive.run_ids() == []


def test_rm_refuses_a_run_that_may_still_be_written(archive: RunArchive, capsys: pytest.CaptureFixture[str]) -> None:
    busy = write_run(archive, "busy", 0, X, finish=False)
    assert "may still be written" in refused(capsys, "rm", archive.root, busy, "--yes")
    assert archive.run_ids() == [busy]
    assert call(capsys, "rm", archive.root, busy, "--yes", "--force")[0] == 0
    assert archive.run_ids() == []


def test_rm_takes_a_run_that_cannot_be_read(
    archive: RunArchive, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, other = write_run(archive, "m", 0, X), write_run(archive, "n", 0, X)
    real = LocalStore.get

    def fail(store: LocalStore, path: str, max_bytes: int) -> bytes | None:
        if path == f"runs/{run_id}/manifests/g000001.json":
            raise ArchiveError(f"cannot read {path}: Input/output error")
        return real(store, path, max_bytes)

    monkeypatch.setattr(LocalStore, "get", fail)
    code, _, err = call(capsys, "rm", archive.root, run_id, "--yes")
    assert (code, archive.run_ids()) == (0, [other])
    assert "which runs used these cannot be told: " in err


def test_rm_completes_a_removal_of_which_only_data_is_left(
    archive: RunArchive, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = write_run(archive, "m", 0, X)
    Marker(archive._store, run_id, everything=True)
    for name in ("final.json", "manifests/g000001.json"):
        archive._store.delete(f"runs/{run_id}/{name}")
    assert archive.run_ids() == []
    assert call(capsys, "rm", archive.root, run_id, "--yes")[0] == 0
    assert archive.run_ids(uncommitted=True) == []


def test_verify_takes_a_name_and_says_what_is_wrong_with_the_archive_itself(
    archive: RunArchive, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(archive, "first", 0, X)
    write_run(archive, "second", 0, X)
    assert "1 runs, 1 files" in call(capsys, "verify", archive.root, "second-0")[1]
    archive.join_run(archive.run_ids()[0], 2)._lease.renew()  # neither a lease nor a marker is a problem
    Marker(archive._store, archive.run_ids()[0])
    assert call(capsys, "verify", archive.root)[0] == 0
    identity = archive.root / "archive.json"
    identity.chmod(0o644)
    identity.write_bytes(b"{}")
    code, out, err = call(capsys, "verify", archive.root)
    assert (code, err) == (1, "")
    assert "archive: archive.json: " in out
    assert "is damaged" in out
    assert "1 problems: 2 runs, 2 files" in out
    identity.unlink()
    code, out, _ = call(capsys, "verify", archive.root, "--json")
    report = json.loads(out)
    assert (code, report["runs"], report["problems"][0]["path"]) == (1, 2, "archive.json")


@pytest.mark.parametrize("command", ["verify", "gc", "copy", "rm"])
def test_progress_is_shown_only_to_those_who_watch(
    archive: RunArchive,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    run_id = write_run(archive, "m", 0, X)
    more = {"copy": [str(tmp_path / "target")], "rm": [run_id, "--yes"]}.get(command, [])
    monkeypatch.setenv("TERM", "xterm")
    watched = Terminal()
    monkeypatch.setattr(sys, "stderr", watched)
    if command != "rm":
        assert main([command, str(archive.root), *more, "--json"]) == 0
        assert watched.getvalue() == ""
    assert main([command, str(archive.root), *more]) == 0
    assert command in watched.getvalue()
    if command == "verify":
        first, second = watched.getvalue().index("verify: manifests"), watched.getvalue().rindex("verify ")
        assert first < second
    assert "%" not in capsys.readouterr().out
