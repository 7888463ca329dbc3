"""What a store behind Composer's own classes does otherwise than the conformance suite shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from composer.utils import ObjectStore, ObjectStoreTransientError

from reuse_algos.archive import RunArchive
from reuse_algos.composer_store import ComposerStore, open_composer_store
from reuse_algos.errors import ArchiveConflictError, ArchiveError, ArchivePermissionError, ArchiveWarning

from .small_runs import manifest_of, put_files, use_everything


class Folder(ObjectStore):
    """A Composer object store in a directory, whose uploads can be spoilt and whose calls can fail."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.failures: list[Exception] = []
        self.spoilt = 0

    def _call(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    def get_uri(self, object_name: str) -> str:
        return f"folder://{object_name}"

    def upload_object(self, object_name, filename, callback=None, **kwargs) -> None:
        self._call()
        target = self.root / object_name
        target.parent.mkdir(parents=True, exist_ok=True)
        data = Path(filename).read_bytes()
        if self.spoilt and data:
            self.spoilt -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])  # the right length, other bytes
        target.write_bytes(data)

    def get_object_size(self, object_name: str) -> int:
        self._call()
        return (self.root / object_name).stat().st_size

    def download_object(self, object_name, filename, overwrite=False, callback=None) -> None:
        self._call()
        shutil.copyfile(self.root / object_name, filename)

    def list_objects(self, prefix: str | None) -> list[str]:
        self._call()
        names = [f"/{path.relative_to(self.root)}" for path in self.root.rglob("*") if path.is_file()]
        return [name for name in names if name.startswith(f"/{prefix or ''}")]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "objects")


@pytest.mark.filterwarnings("ignore:.*one writer per run only")
def test_a_run_is_recorded_and_read(folder: Folder) -> None:
    archive = RunArchive(ComposerStore(folder, "p/q"), create=True)
    assert archive.location == "folder://p/q"
    writer = archive.start_run("toy")
    writer.commit(manifest_of(put_files(writer)))
    writer.finish()
    again = RunArchive(ComposerStore(folder, "p/q", read_only=True))
    use_everything(again, writer.run_id)
    assert again.verify().ok


def test_one_writer_is_said_aloud_once(folder: Folder) -> None:
    store = ComposerStore(folder)
    with pytest.warns(ArchiveWarning, match="reached through Composer.*one writer per run only"):
        store.put_if_absent("a", [b"1"])
    store.put_if_absent("b", [b"2"])  # a second warning would be an error


@pytest.mark.filterwarnings("ignore:.*one writer per run only")
def test_wrong_bytes_of_the_right_length_are_sent_again(folder: Folder) -> None:
    store = ComposerStore(folder)
    folder.spoilt = 2
    store.put_if_absent("a", [b"right"])
    assert store.get("a", 9) == b"right"
    folder.spoilt = 3
    with pytest.raises(ArchiveError, match="folder:///b: it did not arrive as it was sent, 3 times"):
        store.put_if_absent("b", [b"right"])


@pytest.mark.filterwarnings("ignore:.*one writer per run only")
def test_what_fails_for_a_moment_is_tried_again(folder: Folder) -> None:
    store = ComposerStore(folder)
    folder.failures = [ObjectStoreTransientError("busy"), ObjectStoreTransientError("busy")]
    store.put_if_absent("a", [b"1"])
    folder.failures = [ObjectStoreTransientError("busy")] * 3
    with pytest.raises(ArchiveError, match="cannot read folder:///a: .*busy, 3 times: try later"):
        store.get("a", 9)
    folder.failures = [RuntimeError("AccessDenied by a policy")]
    with pytest.raises(ArchivePermissionError, match="cannot list folder:///runs: RuntimeError: AccessDenied"):
        store.list("runs")
    folder.failures = [FileNotFoundError("NoSuchBucket")]
    with pytest.raises(ArchiveError, match="cannot list folder:///runs: .*NoSuchBucket"):
        store.list("runs")
    with pytest.raises(ArchiveConflictError):
        store.put_if_absent("a", [b"1"])


@pytest.mark.parametrize("location", ["oci://bucket/x", "dbfs:/Volumes/a/b/c/x", "dbfs:/elsewhere", "s4://bucket/x"])
def test_what_composer_cannot_open_is_told(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABRICKS_HOST", "DATABRICKS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ArchiveError, match=f"cannot open {location} with Composer's object stores: "):
        open_composer_store(location, create=True, read_only=False)


@pytest.mark.filterwarnings("ignore:.*one writer per run only")
def test_what_cannot_delete_refuses_before_it_begins(folder: Folder) -> None:
    archive = RunArchive(ComposerStore(folder, "p"), create=True)
    writer = archive.start_run("toy")
    writer.commit(manifest_of(put_files(writer)))
    writer.finish()
    before = folder.list_objects("")
    for delete in (
        lambda: archive.remove_run(writer.run_id, force=True),
        lambda: archive.remove_run(writer.run_id),
        lambda: archive.collect_garbage(delete=True),
    ):
        with pytest.raises(ArchiveError, match="cannot delete anything in folder://p: .*nothing was changed"):
            delete()
        assert folder.list_objects("") == before
    assert archive.collect_garbage().ok
    assert archive.verify().ok
    archive.resume_run(writer.run_id)  # no marker stands in the way of commits


@pytest.mark.filterwarnings("ignore:.*one writer per run only")
def test_leases_stay_where_nothing_can_be_deleted(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ComposerStore(folder, "p")
    monkeypatch.setattr(store, "delete", lambda path: pytest.fail(f"{path} is to be deleted"))
    archive = RunArchive(store, create=True)
    writer = archive.start_run("toy")
    files = put_files(archive.join_run(writer.run_id, 1))  # another rank's, so that commits need a lease
    writer.commit(manifest_of(files))
    assert len(store.list(f"runs/{writer.run_id}/leases")) == 1
