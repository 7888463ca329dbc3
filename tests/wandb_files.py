"""Reads what W&B wrote offline: the records of its run file, not what its Python objects say."""

from __future__ import annotations

import gc
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore


def end_wandb() -> None:
    """End W&B's service, which writes to the end only then, and whose settings are those of its first use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its socket to the garbage collector
        wandb.teardown()
        gc.collect()


def keep_offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have W&B write below a folder only, and log nothing on the terminal."""
    end_wandb()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(folder))


class OfflineRun:
    """One offline run.

    Attributes:
        folder: of the run.
        header: its ``run`` record (project, job type, name).
        config: values by key, as last set.
        history: one dictionary per logged row.
        summary: values by key, as last set.
        artifacts: name and type -> path in the artifact -> bytes.
    """

    def __init__(self, folder: Path) -> None:
        end_wandb()
        (found,) = sorted((folder / "wandb").glob("offline-run-*"))
        (file,) = found.glob("*.wandb")
        self.folder = found
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.artifacts: dict[tuple[str, str], dict[str, bytes]] = {}
        store = DataStore()
        store.open_for_scan(str(file))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            self._take(record)
        store.close()

    def _take(self, record: Any) -> None:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            self.header = record.run
            self._update(self.config, record.run.config.update)
        elif kind == "config":
            self._update(self.config, record.config.update)
        elif kind == "summary":
            self._update(self.summary, record.summary.update)
        elif kind == "history":
            row: dict[str, Any] = {}
            self._update(row, record.history.item)
            self.history.append(row)
        elif kind == "artifact":
            files = {one.path: Path(one.local_path).read_bytes() for one in record.artifact.manifest.contents}
            self.artifacts[record.artifact.name, record.artifact.type] = files

    @staticmethod
    def _update(values: dict[str, Any], items: Any) -> None:
        for item in items:
            *path, last = [item.key] if item.key else item.nested_key
            node = values
            for key in path:
                node = node.setdefault(key, {})
            node[last] = json.loads(item.value_json)

    @property
    def last(self) -> dict[str, Any]:
        """The only row that a comparison logs."""
        (row,) = [row for row in self.history if any(not key.startswith("_") for key in row)]
        return row

    def table(self, name: str) -> list[dict[str, Any]]:
        """Rows of a logged table by column."""
        data = json.loads((self.folder / "files" / self.last[name]["path"]).read_text())
        return [dict(zip(data["columns"], row, strict=True)) for row in data["data"]]

    def chart(self, name: str) -> dict[str, Any]:
        """Definition of a custom chart: which one, its fields and texts."""
        return self.config["_wandb"]["visualize"][name]["panel_config"]
