"""How long an object store that does not answer as it should can hold a process up."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from reuse_algos.archive import RunArchive
from reuse_algos.errors import ArchiveError

from .faulty_proxy import silent_server, trickling_server
from .moto_server import MotoServer


def test_a_server_that_trickles(s3: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes keep coming, so there is never silence, but a small record has to be there within its time."""
    monkeypatch.setattr("reuse_algos.archive.stores.remote.client._RECORD_SECONDS", 2)
    monkeypatch.setattr("reuse_algos.archive.stores.remote.config._RETRY_SECONDS", 1)
    with trickling_server(0.1) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(ArchiveError, match="cannot read s3://bucket/archive/archive.json: no answer in time"):
            RunArchive("s3://bucket/archive", create=True)


def test_ctrl_c_ends_a_wait(s3: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # A wait that would last longer than any loaded machine takes to send a signal.
    monkeypatch.setattr("reuse_algos.archive.stores.remote.config._SILENCE_SECONDS", 120)
    monkeypatch.setattr("reuse_algos.archive.stores.remote.client._RECORD_SECONDS", 120)
    with silent_server() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a trainer may have left its own
        try:
            began = time.monotonic()
            timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                RunArchive("s3://bucket/archive", create=True)
            assert time.monotonic() - began < 60
            timer.join()
        finally:
            signal.signal(signal.SIGINT, before)
