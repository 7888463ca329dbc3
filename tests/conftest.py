"""Nothing that a test does leaves its temporary folder."""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import forked_python

if TYPE_CHECKING:
    from archive.moto_server import MotoServer

# Set before anything is imported or collected: child processes inherit it, too.
_PYTHON = forked_python.prepare()
_CACHE = tempfile.TemporaryDirectory(prefix="reuse_algos-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name
os.environ["WANDB_MODE"] = "offline"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # or each process starts another that imports torch, to wait for work
os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums in the same order in every process, and cores are for workers


@pytest.fixture(scope="session", autouse=True)
def _commits_once() -> Iterator[None]:
    """Every Trainer and checkpoint looks for Composer's commit, and every recorded run starts git twice for ours.

    Together they take as long as six batches of a small training.
    """
    with pytest.MonkeyPatch.context() as here:
        for module, name in (
            ("composer.utils.collect_env", "get_composer_commit_hash"),
            ("reuse_algos.callbacks.recorder.facts.provenance", "_git_commit"),
        ):
            if module in sys.modules:
                here.setattr(sys.modules[module], name, functools.cache(getattr(sys.modules[module], name)))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_seeds_for_gpus_that_are_not_there() -> Iterator[None]:
    """Without a GPU torch keeps each seed for one to come, with the whole stack in words: 0.7 ms below pytest."""
    torch = sys.modules.get("torch")
    with pytest.MonkeyPatch.context() as here:
        if torch is not None and not torch.cuda.is_available():
            here.setattr(torch.cuda.random, "_lazy_call", lambda *arguments, **options: None)
        yield


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes that the code under test starts are forks."""
    monkeypatch.setattr(sys, "executable", forked_python.forked_python())


@pytest.fixture(scope="session")
def moto_server() -> Iterator[MotoServer]:
    """One S3 server for all tests; each makes its own bucket."""
    from archive.moto_server import MotoServer  # here: most tests need none, and it takes a second

    server = MotoServer()
    yield server
    server.close()


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No trace of the user's own clouds: neither credentials nor endpoints nor the host's metadata service."""
    for name in list(os.environ):
        if name.upper().startswith(("AWS_", "S3_", "GOOGLE_", "AZURE_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def s3(moto_server: MotoServer, cloud: None, monkeypatch: pytest.MonkeyPatch) -> MotoServer:
    """The server, with credentials for it in the environment."""
    for name, value in {**moto_server.environment, "AWS_ENDPOINT_URL": moto_server.url}.items():
        monkeypatch.setenv(name, value)
    return moto_server


@pytest.fixture
def gcs(moto_server: MotoServer, cloud: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The server again, as Google's."""
    from archive.faulty_proxy import FaultyProxy, translate_gcs

    proxy = FaultyProxy(moto_server.port, change=translate_gcs)
    account = {"gcs_base_url": proxy.url, "disable_oauth": True, "client_email": "", "private_key": ""}
    (tmp_path / "account.json").write_text(json.dumps({**account, "private_key_id": ""}))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    yield
    proxy.close()
