"""Object stores: who wins a put, what is checked, and what is said when a store cannot be used."""

from __future__ import annotations

import copy
import hashlib
import multiprocessing
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from reuse_algos.archive import LocalStore, RunArchive, Store, open_store
from reuse_algos.archive.stores.remote.config import parse_address
from reuse_algos.archive.stores.remote.errors import read_fault
from reuse_algos.errors import (
    ArchiveConflictError,
    ArchiveCorruptError,
    ArchiveError,
    ArchivePermissionError,
    ArchiveWarning,
)

from .faulty_proxy import FaultyProxy, Request, ignore_conditions, silent_server
from .moto_server import MotoServer
from .small_runs import manifest_of, put_files, use_everything
from .torture import object_store_faults

PROBE = "index/conditional-put"


def open_writable(bucket: str) -> Store:
    return open_store(f"s3://{bucket}/archive", create=True, read_only=False)


@pytest.fixture
def proxy(s3: MotoServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(s3.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.close()


@pytest.fixture
def plain_proxy(s3: MotoServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(s3.port, change=ignore_conditions)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.close()


def nth_put(path: str, *faults: str | None):
    """Faults of the first puts of one object, in order."""
    left = list(faults)

    def fault(request: Request) -> str | None:
        return left.pop(0) if left and request.method == "PUT" and request.path.endswith(path) else None

    return fault


def test_faults_at_requests_of_a_run(tmp_path: Path) -> None:
    outcome = object_store_faults.case(tmp_path, count=6, seed=3)
    assert outcome.tries >= 18
    assert outcome.ok, outcome.notes


@pytest.mark.parametrize("fault", ["lost", "500", "reset"])
def test_a_put_whose_answer_was_lost_is_no_conflict(proxy: FaultyProxy, s3: MotoServer, fault: str) -> None:
    store = open_writable(s3.new_bucket())
    store.put_if_absent("warm", [b""])
    proxy.reset(nth_put("/commit", fault))
    store.put_if_absent("commit", [b"mine"])
    assert [request.method for request in proxy.requests][:2] == ["PUT", "PUT"]
    assert all(request.headers.get("if-none-match") == "*" for request in proxy.requests if request.method == "PUT")
    assert store.get("commit", 9) == b"mine"
    with pytest.raises(ArchiveConflictError):
        store.put_if_absent("commit", [b"mine"])


def test_another_s_put_stays_one_when_answers_are_lost(proxy: FaultyProxy, s3: MotoServer) -> None:
    store = open_writable(s3.new_bucket())
    store.put_if_absent("commit", [b"first"])
    proxy.reset(nth_put("/commit", "lost"))
    with pytest.raises(ArchiveConflictError, match="another writer was first"):
        store.put_if_absent("commit", [b"other"])
    assert store.get("commit", 9) == b"first"


def test_a_409_while_another_request_goes_on_is_no_conflict(proxy: FaultyProxy, s3: MotoServer) -> None:
    store = open_writable(s3.new_bucket())
    store.put_if_absent("warm", [b""])
    proxy.reset(nth_put("/commit", "409 ConditionalRequestConflict"))
    store.put_if_absent("commit", [b"mine"])
    assert store.get("commit", 9) == b"mine"


def test_every_commit_has_one_winner(s3: MotoServer) -> None:
    bucket = s3.new_bucket()
    results: list[tuple[int, int]] = []

    def write(writer: int) -> None:
        store = open_writable(bucket)
        for commit in range(8):
            try:
                store.put_if_absent(f"g/{commit}", [f"{writer}".encode()])
                results.append((commit, writer))
            except ArchiveConflictError:
                pass

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(commit for commit, _ in results) == list(range(8))
    store = open_writable(bucket)
    assert all(store.get(f"g/{commit}", 9) == str(writer).encode() for commit, writer in results)


def test_the_store_is_tried_out_once_before_the_first_write(proxy: FaultyProxy, s3: MotoServer) -> None:
    bucket = s3.new_bucket()

    def probes() -> int:
        return sum(request.method == "PUT" and request.path.endswith(PROBE) for request in proxy.requests)

    store = open_writable(bucket)
    store.list("runs")
    assert probes() == 0
    store.put_if_absent("a", [b""])
    store.put_if_absent("b", [b""])
    assert probes() == 2
    open_writable(bucket).put_if_absent("c", [b""])
    assert probes() == 3
    reader = open_store(f"s3://{bucket}/archive", create=False, read_only=True)
    with pytest.raises(ArchivePermissionError, match="opened read-only"):
        reader.put_if_absent("d", [b""])
    assert probes() == 3


def test_a_store_that_replaces_objects_is_used_by_one_writer_and_says_so(plain_proxy: FaultyProxy, s3: MotoServer):
    store = open_writable(s3.new_bucket())
    with pytest.warns(ArchiveWarning, match="one writer per run only") as caught:
        store.put_if_absent("a", [b"first"])
    store.put_if_absent("b", [b""])  # a second warning would be an error
    assert len(caught) == 1
    plain_proxy.reset(nth_put("/c", "lost"))
    store.put_if_absent("c", [b"mine"])
    with pytest.raises(ArchiveConflictError):
        store.put_if_absent("a", [b"second"])
    assert (store.get("a", 9), store.get("c", 9)) == (b"first", b"mine")


def test_what_arrives_changed_is_put_again(proxy: FaultyProxy, s3: MotoServer) -> None:
    store = open_writable(s3.new_bucket())
    proxy.reset(nth_put("/a", "corrupt"))
    store.put_if_absent("a", [b"right"])
    assert store.get("a", 9) == b"right"
    proxy.reset(nth_put("/b", *["corrupt"] * 9))
    with pytest.raises(ArchiveError, match="/archive/b: it did not arrive as it was sent"):
        store.put_if_absent("b", [b"right"])
    assert store.size("b") is None


def test_where_the_entity_tag_is_no_checksum_all_is_read_back(proxy: FaultyProxy, s3: MotoServer) -> None:
    store = open_writable(s3.new_bucket())
    store.put_if_absent("warm", [b""])
    proxy.reset(nth_put("/a", "corrupt encrypted", "encrypted"))
    store.put_if_absent("a", [b"right"])
    assert [request.method for request in proxy.requests] == ["PUT", "HEAD", "GET", "POST", "PUT", "HEAD", "GET"]
    assert store.get("a", 9) == b"right"


def test_a_store_that_answers_without_entity_tags(proxy: FaultyProxy, s3: MotoServer) -> None:
    proxy.reset(lambda request: "no tag")
    store = open_writable(s3.new_bucket())
    store.put_if_absent("a", [b"first"])
    with pytest.raises(ArchiveConflictError):
        store.put_if_absent("a", [b"second"])
    assert store.get("a", 9) == b"first"
    data = bytes(1000)
    store.put_if_absent("b", [data])
    with store.open("b", len(data), hashlib.sha256(data).hexdigest()) as file:
        assert file.read() == data
    sent = iter(("corrupt no tag", *["no tag"] * 20))
    proxy.reset(lambda request: next(sent))
    store.put_if_absent("c", [b"right"])
    assert [request.method for request in proxy.requests] == ["PUT", "HEAD", "GET", "POST", "PUT", "HEAD", "GET"]
    assert store.get("c", 9) == b"right"


def test_what_comes_down_changed_is_fetched_again_twice(proxy: FaultyProxy, s3: MotoServer) -> None:
    store = open_writable(s3.new_bucket())
    data = bytes(1000)
    sha256 = hashlib.sha256(data).hexdigest()
    store.put_if_absent("a", [data])
    faults = ["corrupt answer", "corrupt answer", None]
    proxy.reset(lambda request: faults.pop(0) if request.method == "GET" else None)
    with store.open("a", len(data), sha256) as file:
        assert file.read() == data
    assert faults == []
    store.put_if_absent("b", [bytes(999) + b"x"])
    proxy.reset()
    with pytest.raises(ArchiveCorruptError, match=r"/archive/b is damaged: its sha256 is .* fetched 3 times"):
        store.open("b", 1000, hashlib.sha256(b"other").hexdigest())
    with pytest.raises(ArchiveCorruptError, match="has more than the 9 bytes"):
        store.open("b", 9, hashlib.sha256(b"other").hexdigest())


def test_more_than_a_page_of_objects(s3: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "60")
    bucket = s3.new_bucket()
    keys = [f"archive/runs/run-{number:04d}/final.json" for number in range(205)]
    for key in [*keys, "archive/runs/héllo/x", "archive/runs/.hidden", "archive/runs-more/x", "archive/runs/"]:
        s3.client.put_object(Bucket=bucket, Key=key, Body=b"12")
    store = open_writable(bucket)
    assert store.list("runs") == [f"run-{number:04d}" for number in range(205)]
    found = list(store.walk("runs"))
    assert sorted(item.path for item in found) == [key.removeprefix("archive/") for key in keys]
    assert {item.size for item in found} == {2}


def test_without_boto3_a_name_that_is_no_path_is_damage(s3: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    bucket = s3.new_bucket()
    s3.client.put_object(Bucket=bucket, Key="archive/runs/../../x", Body=b"")
    store = open_writable(bucket)
    for use in (lambda: store.list("runs"), lambda: list(store.walk("runs"))):
        with pytest.raises(ArchiveCorruptError, match="whose name is not a path.*remove it, or install boto3"):
            use()


def use_all(store: Store):
    return (
        ("read", lambda: store.get("runs/a", 9)),
        ("read", lambda: store.size("runs/a")),
        ("read", lambda: list(store.stream("runs/a"))),
        ("read", lambda: store.open("runs/a", 1, "0" * 64)),
        ("list", lambda: store.list("runs")),
        ("list", lambda: list(store.walk("runs"))),
        ("write", lambda: store.put_if_absent("runs/a", [b"x"])),
        ("write", lambda: store.put_if_absent("runs/a", [bytes(17 << 20)])),
        ("delete", lambda: store.delete("runs/a")),
    )


def test_a_missing_bucket_is_no_empty_archive(s3: MotoServer) -> None:
    store = open_store("s3://no-such-bucket/archive", create=True, read_only=False)
    for action, use in use_all(store):
        with pytest.raises(
            ArchiveError, match=f"cannot {action} s3://no-such-bucket/archive/.*there is no bucket 'no-"
        ):
            use()
    with pytest.raises(ArchiveError, match="there is no bucket 'no-such-bucket': create it, or check the name"):
        RunArchive("s3://no-such-bucket/archive", create=True)


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_denied_is_not_missing(proxy: FaultyProxy, s3: MotoServer, code: str) -> None:
    store = open_writable(s3.new_bucket())
    proxy.reset(lambda request: f"403 {code}")
    said = "permission denied" if code == "AccessDenied" else "credentials (were refused|are wrong)"
    for action, use in use_all(store):
        with pytest.raises(ArchivePermissionError, match=f"cannot {action} {store.location}/.*{said}"):
            use()


def give_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin no further try after a second."""
    for seconds in ("config._RETRY_SECONDS", "client._SECONDS", "puts._SECONDS"):
        monkeypatch.setattr(f"reuse_algos.archive.stores.remote.{seconds}", 1)


@pytest.mark.parametrize("fault", ["500", "503 SlowDown", "429 TooManyRequests", "reset"])
def test_a_store_that_never_answers_well(
    proxy: FaultyProxy, s3: MotoServer, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    bucket = s3.new_bucket()
    give_up_soon(monkeypatch)
    proxy.reset(lambda request: fault)
    with pytest.raises(ArchiveError, match=f"s3://{bucket}/archive/archive.json: .*try") as caught:
        RunArchive(f"s3://{bucket}/archive", create=True)
    assert not isinstance(caught.value, ArchivePermissionError | ArchiveCorruptError | ArchiveConflictError)


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("http://127.0.0.1:9", "no connection: check the endpoint and the network .endpoint http://127.0.0.1:9"),
        ("http://nowhere.invalid", "its name cannot be resolved: check the endpoint"),
        ("https://127.0.0.1:9", "no connection"),
    ],
)
def test_no_network(s3: MotoServer, monkeypatch: pytest.MonkeyPatch, endpoint: str, said: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    give_up_soon(monkeypatch)
    with pytest.raises(ArchiveError, match=f"cannot read s3://bucket/archive/archive.json: {said}"):
        RunArchive("s3://bucket/archive", create=True)
    with pytest.raises(ArchiveError, match=said):
        open_writable("bucket").put_if_absent("a", [b""])


def test_a_server_that_says_nothing(s3: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reuse_algos.archive.stores.remote.config._SILENCE_SECONDS", 1)
    monkeypatch.setattr("reuse_algos.archive.stores.remote.config._RETRY_SECONDS", 1)
    with silent_server() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(ArchiveError, match="no answer in time: check the network, or try later .endpoint"):
            RunArchive("s3://bucket/archive", create=True)


def test_no_try_of_a_large_upload_is_begun_after_its_time(
    proxy: FaultyProxy, s3: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_writable(s3.new_bucket())
    store.put_if_absent("warm", [b""])
    uploads = []

    def fail(request: Request) -> str | None:
        if request.method == "POST" and "uploads" in request.path:
            uploads.append(request)
            return "400 RequestTimeout"
        return None

    for seconds, tries in ((60, 4), (-1, 1)):
        monkeypatch.setattr("reuse_algos.archive.stores.remote.puts._PARTS_SECONDS", seconds)
        uploads.clear()
        proxy.reset(fail)
        with pytest.raises(ArchiveError, match="cannot write .*/large: the store answered 400"):
            store.put_if_absent("large", [bytes(17 << 20)])
        assert len(uploads) == tries


def test_a_server_that_is_no_store(proxy: FaultyProxy, s3: MotoServer) -> None:
    store = open_writable(s3.new_bucket())
    proxy.reset(lambda request: "404 Oops")
    with pytest.raises(ArchiveError, match="the store answered 404 .Oops.: is this the right endpoint?"):
        store.get("a", 9)


@pytest.mark.usefixtures("cloud")
@pytest.mark.parametrize(
    ("location", "remedy"),
    [
        ("s3://bucket/x", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("az://container/x", "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"),
    ],
)
def test_no_credentials(location: str, remedy: str) -> None:
    with pytest.raises(ArchivePermissionError, match=f"cannot open {location}: .*{remedy}"):
        RunArchive(location, create=True)


@pytest.mark.usefixtures("cloud")
def test_credentials_of_a_profile(moto_server: MotoServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "no-credentials").write_text("[mine]\naws_access_key_id=testing\naws_secret_access_key=testing\n")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("S3_ENDPOINT_URL", moto_server.url)  # Composer's name for it
    archive = RunArchive(f"s3://{moto_server.new_bucket()}/archive", create=True)
    assert archive.run_ids() == []
    monkeypatch.setenv("AWS_PROFILE", "yours")
    with pytest.raises(ArchivePermissionError, match="no credentials were found .*yours.*: set AWS_ACCESS_KEY_ID"):
        RunArchive("s3://bucket/archive", create=True)


@pytest.mark.usefixtures("cloud")
def test_credentials_that_cannot_be_renewed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expired = '{"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b", "Expiration": "2020-01-01T00:00:00Z"}'
    program = tmp_path / "program"
    program.write_text(
        f"#!/bin/sh\ntest -e {tmp_path}/used && echo boom >&2 && exit 1\ntouch {tmp_path}/used\necho '{expired}'\n"
    )
    program.chmod(0o755)
    (tmp_path / "config").write_text(f"[profile mine]\nregion = us-east-1\ncredential_process = {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    with pytest.raises(ArchivePermissionError, match="new credentials could not be obtained .*boom.*check the profile"):
        RunArchive("s3://bucket/archive", create=True)


@pytest.mark.usefixtures("cloud")
def test_credentials_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(ArchivePermissionError, match="gs://bucket/x: the credentials in .*none.json cannot be read"):
        RunArchive("gs://bucket/x", create=True)


def test_obstore_is_not_installed(s3: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {"obstore", *(name for name in sys.modules if name.split(".")[0] == "obstore")}:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ArchiveError, match=r"s3://bucket/x is an object store.*pip install 'reuse-algos\[remote\]'"):
        RunArchive("s3://bucket/x", create=True)


def test_local_archives_load_no_obstore(tmp_path: Path) -> None:
    code = f"import sys; from reuse_algos.archive import RunArchive; RunArchive({str(tmp_path / 'a')!r}, create=True); "
    code += "sys.exit(any(name.split('.')[0] in ('obstore', 'boto3') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.mark.parametrize(
    "location",
    [
        "s3://",
        "s3:///x",
        "s3://b/a//b",
        "s3://b/../x",
        "s3://b/./x",
        "s3://b/x?y=1",
        "s3://b/x#y",
        "s3://b/%2e",
        "s3://a@b/x",
    ],
)
def test_urls_that_make_no_sense(location: str) -> None:
    with pytest.raises(ArchiveError, match="cannot be the place of an archive: write s3://bucket/prefix"):
        RunArchive(location, create=True)


@pytest.mark.parametrize("location", ["s3:/bucket/x", "gs:/b", "file:/tmp/x", "s4:/b/x"])
def test_a_slash_too_few(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scheme, _, rest = location.partition(":/")
    with pytest.raises(ArchiveError, match=f"a slash too few: write {scheme}://{rest}, or ./{location} for a folder"):
        RunArchive(location, create=True)
    assert not list(tmp_path.iterdir())
    assert RunArchive(f"./{location}", create=True).root == tmp_path / f"{scheme}:" / rest


def test_addresses() -> None:
    assert parse_address("s3://b/p/q/")[:4] == ("s3", "b", "p/q", "")
    assert parse_address("gs://b")[:4] == ("gs", "b", "", "")
    assert parse_address("abfss://c@acc.dfs.core.windows.net/p")[:4] == ("az", "c", "p", "acc")
    assert parse_address("s3://b/p/").location == "s3://b/p"


def test_kinds_of_stores_can_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "more-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Name: more\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[reuse_algos.stores]\nmore = more_stores:open_it\n")
    (tmp_path / "more_stores.py").write_text(
        "from pathlib import Path\nfrom reuse_algos.archive import LocalStore\n"
        f"def open_it(location, *, create, read_only):\n    return LocalStore(Path({str(tmp_path)!r}) / location[7:])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    store = open_store("more://abc", create=True, read_only=False)
    assert store.location == str(tmp_path / "abc")
    with pytest.raises(ArchiveError, match="no kind of store is known for mroe://. Known: .*file://.*more://.*s3://"):
        RunArchive("mroe://abc", create=True)


def test_file_urls(tmp_path: Path) -> None:
    archive = RunArchive(f"file://{tmp_path}/a%20b", create=True)
    assert archive.root == tmp_path / "a b"
    with pytest.raises(ArchiveError, match="is not a local directory"):
        RunArchive("file://elsewhere/x", create=True)


def test_an_archive_of_a_store_object(tmp_path: Path, s3: MotoServer) -> None:
    store = LocalStore(tmp_path / "a")
    assert RunArchive(store, create=True).archive_id == RunArchive(tmp_path / "a").archive_id
    location = f"s3://{s3.new_bucket()}/x"
    archive = RunArchive(location, create=True)
    assert (archive.location, repr(archive)) == (location, f"RunArchive({location!r})")
    with pytest.raises(ArchiveError, match="is not a local directory: use `location`"):
        archive.root  # noqa: B018
    for copied in (copy.deepcopy(archive), pickle.loads(pickle.dumps(archive))):
        assert copied.archive_id == archive.archive_id
        assert copied.run_ids() == []


def _list_in_child(location: str, said: multiprocessing.SimpleQueue) -> None:
    try:
        said.put(str(RunArchive(location).run_ids()))
    except ArchiveError as error:
        said.put(str(error))


def test_a_fork_is_told_instead_of_waiting_forever(s3: MotoServer) -> None:
    location = f"s3://{s3.new_bucket()}/x"
    RunArchive(location, create=True)
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of every fork beside threads
        process = context.Process(target=_list_in_child, args=(location, said))
        process.start()
    process.join(60)
    assert process.exitcode == 0
    assert "this process was forked from one that uses an object store" in said.get()


def test_what_was_fetched_is_hashed_once(s3: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    location = f"s3://{s3.new_bucket()}/x"
    writer = RunArchive(location, create=True).start_run("toy")
    writer.commit(manifest_of(put_files(writer)))
    monkeypatch.setattr("reuse_algos.archive.format.tensors.hash_file", None)  # an error if it were called
    for _ in range(2):
        use_everything(RunArchive(location, read_only=True), writer.run_id)


@pytest.mark.parametrize(
    ("said", "missing", "transient", "kind"),
    [
        ("Bulk delete request failed for key a/b: The specified blob does not exist. (code: 404)", True, False, None),
        ("DeleteObjects request failed for key a/b: Access Denied (code: AccessDenied)", False, False, True),
        ("DeleteObjects request failed for key a/b: try later (code: InternalError)", False, True, False),
    ],
)
def test_deletions_that_fail_one_by_one(said: str, missing: bool, transient: bool, kind: bool | None) -> None:
    fault = read_fault(FileNotFoundError(said), "az", "c")
    assert (fault.missing, fault.transient) == (missing, transient)
    if kind is not None:
        assert (fault.kind is ArchivePermissionError) == kind
