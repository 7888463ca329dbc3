"""One archive, several users: other umasks, a run that the others may not read, odd keys in a bucket."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import reuse_algos.commands
import reuse_algos.compare
from reuse_algos.archive import RunArchive
from reuse_algos.cli import main
from reuse_algos.errors import ArchiveCorruptError, ArchiveWarning

from .moto_server import MotoServer
from .small_runs import manifest_of, put_files

ALICE, BOB, CAROL, TEAM = 61001, 61002, 61003, 61000


def as_user(uid: int, umask: int, work: Callable[[], int | None]) -> tuple[int, str]:
    """Do something in a child process of a user of the team; return its exit status and what it printed.

    Only root can be others: anybody else does it as themselves.
    """
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            status = 70
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                if os.geteuid() == 0:
                    os.setgroups([TEAM])
                    os.setgid(TEAM)
                    os.setuid(uid)
                os.umask(umask)
                os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
                warnings.simplefilter("default")
                status = work() or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return status, output.read()


def write(root: Path, name: str, value: float) -> None:
    writer = RunArchive(root, create=True).start_run(name)
    writer.commit(
        manifest_of(put_files(writer, (value / 2, value)), tags={"method": name}, recipe={"max_duration": "2ep"})
    )
    writer.finish()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user of the team may write to, with all that commands import already imported."""
    for package in (reuse_algos.commands, reuse_algos.compare):  # other users may not read this one's packages
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    path = Path(tempfile.mkdtemp(prefix="shared-"))
    if os.geteuid() == 0:
        os.chown(path, -1, TEAM)
    os.chmod(path, 0o2775)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def shared(folder: Path) -> tuple[Path, dict[str, str]]:
    """An archive with a run each of users with the umasks 002, 022 and 077, and the ids by user."""
    root = folder / "archive"
    for uid, umask, name, value in (
        (ALICE, 0o002, "alice", 0.5),
        (BOB, 0o022, "bob", 0.6),
        (CAROL, 0o077, "carol", 0.7),
    ):
        status, printed = as_user(uid, umask, lambda name=name, value=value: write(root, name, value))
        assert status == 0, printed
    ids = {path.name.split("-")[0]: path.name for path in (root / "runs").iterdir()}
    if os.geteuid() != 0:
        os.chmod(root / "runs" / ids["carol"], 0)
    return root, ids


def test_a_run_that_others_may_not_read_is_named_and_left_out(shared: tuple[Path, dict[str, str]]) -> None:
    root, ids = shared
    commands = {
        "runs": ["runs", str(root)],
        "filter": ["runs", str(root), "--where", "accuracy>0.1"],
        "compare": ["compare", str(root), "--group-by", "tags.method", "--baseline", "alice"],
        "recommend": ["recommend", str(root), "--group-by", "tags.method", "--baseline", "alice", "--target", "0.4"],
        "verify": ["verify", str(root)],
        "quick": ["verify", str(root), "--quick"],
        "gc": ["gc", str(root), "--delete"],
        "copy": ["copy", str(root), str(root.with_name("copy"))],
    }
    for name, command in commands.items():
        status, printed = as_user(BOB, 0o022, lambda command=command: main(command))
        assert (status, ids["carol"] in printed) == (1, True), f"{name}: {printed}"
        assert "Traceback" not in printed, f"{name}: {printed}"
        if name in ("runs", "filter", "compare", "recommend"):
            assert ("alice" in printed, "bob" in printed) == (True, True), f"{name}: {printed}"
    assert sorted(run.run_name for run in RunArchive(root.with_name("copy")).runs()) == ["alice", "bob"]
    status, printed = as_user(ALICE, 0o002, lambda: write(root, "again", 0.8))
    assert status == 0, printed


def test_who_may_read_all_runs_is_told_of_no_fault(shared: tuple[Path, dict[str, str]]) -> None:
    root, ids = shared
    if os.geteuid() != 0:
        os.chmod(root / "runs" / ids["carol"], 0o700)
    status, printed = as_user(CAROL, 0o077, lambda: main(["runs", str(root)]))
    assert (status, [name in printed for name in ids]) == (0, [True] * 3), printed
    status, printed = as_user(CAROL, 0o077, lambda: main(["verify", str(root)]))
    assert status == 0, printed


def test_an_archive_whose_maker_keeps_it_private_says_so(folder: Path) -> None:
    root = folder / "archive"
    status, printed = as_user(ALICE, 0o077, lambda: write(root, "alice", 0.5))
    assert status == 0, printed
    if os.geteuid() != 0:
        os.chmod(root, 0)
    for command in (["runs", str(root)], ["verify", str(root)], ["gc", str(root)]):
        status, printed = as_user(BOB, 0o022, lambda command=command: main(command))
        assert (status, "Permission denied" in printed, "Traceback" in printed) == (2, True, False), printed
    os.chmod(root, 0o700)


@pytest.fixture
def bucket(s3: MotoServer, request: pytest.FixtureRequest) -> str:
    """A bucket with two runs, and keys with control characters among the runs, in the index and in one run."""
    bucket = s3.new_bucket()
    archive = RunArchive(f"s3://{bucket}/archive", create=True)
    ids = []
    for name, value in (("good", 0.5), ("odd", 0.6)):
        writer = archive.start_run(name)
        recipe = {"max_duration": "1ep"}
        writer.commit(manifest_of(put_files(writer, (value,)), tags={"method": name}, recipe=recipe))
        writer.finish()
        ids.append(writer.run_id)
    for key in ("runs/a\x1b[2Jb/manifests/g000001.json", "runs/\x07", "index/\x01.json", f"runs/{ids[1]}/data/\x7f"):
        s3.client.put_object(Bucket=bucket, Key=f"archive/{key}", Body=b"{}")
    return bucket


def test_keys_with_control_characters_are_named_and_passed_over(
    bucket: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = f"s3://{bucket}/archive"
    monkeypatch.setattr("reuse_algos.archive.index.catalog.FEW_RUNS", 0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ArchiveWarning)
        assert [run.run_name for run in RunArchive(location).runs(order="first")] == ["good", "odd"]
        named = " ".join(str(one.message) for one in said)
        assert r"'archive/runs/\x07', 'archive/runs/a\x1b[2Jb'" in named
        assert r"'archive/index/\x01.json'" in named
        groups = ["--group-by", "tags.method", "--baseline", "good", "--target", "0.4"]
        for command in (
            ["runs"], ["compare", *groups], ["recommend", *groups],
            ["verify"], ["verify", "--quick"], ["gc"], ["copy", str(tmp_path / "copy")],
        ):  # fmt: skip
            assert main([command[0], location, *command[1:]]) == 0
            printed = capsys.readouterr()
            if command[0] in ("runs", "compare", "recommend"):
                assert ("good" in printed.out, "odd" in printed.out) == (True, True)
            assert r"archive/runs/a\x1b[2Jb" in printed.err
            assert "\x1b" not in printed.out + printed.err
        assert sorted(run.run_name for run in RunArchive(tmp_path / "copy").runs()) == ["good", "odd"]
        writer = RunArchive(location).start_run("later")
        writer.commit(manifest_of(put_files(writer)))
        writer.finish()
        assert len(RunArchive(location).runs()) == 3


def test_without_boto3_such_a_key_is_named_and_the_remedy(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ArchiveCorruptError, match=r"runs/a.x1b.*: remove it, or install boto3"):
        RunArchive(f"s3://{bucket}/archive").runs()
