"""A harvest split up: parts that any number of processes compute, and that are put together in one commit.

Parts begin and end where batches do, so the rows are those of one process bit for bit.

Legend: N examples, M rows of a part.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from reuse_algos.errors import DataError, PriorRunMismatchError


@dataclass(frozen=True)
class Shards:
    """How a harvest is split up.

    Attributes:
        folder: Where the parts lie until they are put together; all processes see it.
        count: How many parts a view has, at least 1; fewer where there are fewer batches.
        only: Compute this part alone, from 0 to ``count - 1``, and commit nothing. Default: None, put all parts
            together, after computing those that are missing.
    """

    folder: Path
    count: int
    only: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if self.count < 1 or (self.only is not None and not 0 <= self.only < self.count):
            raise ValueError(f"there must be at least 1 shard, and a shard is from 0 to {self.count - 1}: {self.only}")

    def rows(
        self,
        about: dict[str, Any],
        count: int,
        batch_size: int,
        compute: Callable[[Tensor], Iterator[Tensor]],
        spent: Callable[[float], None],
    ) -> Tensor | None:
        """Return the rows of a view, ``[N, ...]``, or None where only one part is computed.

        Args:
            about: What the rows are of: run, weights, data, signal, view. Parts of something else are refused.
            count: N.
            batch_size: Examples of a batch.
            compute: Positions to the rows of each batch.
            spent: Told the seconds that a part took that is taken from its file.

        Raises:
            PriorRunMismatchError: A part in the folder is of another harvest.
            DataError: A part cannot be read, or the folder cannot be written.
        """
        parts = []
        for number, positions_M in enumerate(self._parts(count, batch_size)):
            if self.only is not None and number != self.only:
                continue
            path = self.folder / f"{about['run']}-{about['signal']}-{about['view']}-{number:05d}.safetensors"
            own = {**about, "shard": number, "shards": self.count, "batch_size": batch_size, "rows": len(positions_M)}
            found = _read(path, own)
            if found is None:
                began = time.perf_counter()
                rows_M = torch.cat(list(compute(positions_M)))
                if self.only is not None:
                    _write(path, rows_M, own, time.perf_counter() - began)
            else:
                rows_M, seconds = found
                spent(seconds)
            parts.append(rows_M)
        # In the order of the parts, which is that of the positions.
        return None if self.only is not None else torch.cat(parts)

    def clear(self, about: dict[str, Any]) -> None:
        """Remove the parts of a view that is committed."""
        for path in self.folder.glob(f"{about['run']}-{about['signal']}-{about['view']}-[0-9]*.safetensors"):
            path.unlink()

    def _parts(self, count: int, batch_size: int) -> list[Tensor]:
        batches = torch.arange(count).split(batch_size)
        # As even as whole batches allow: a part that ended within a batch would have other rows in half precision.
        groups = torch.arange(len(batches)).tensor_split(min(self.count, len(batches)))
        return [torch.cat([batches[number] for number in group.tolist()]) for group in groups]


def _read(path: Path, about: dict[str, Any]) -> tuple[Tensor, float] | None:
    """Return the rows of a part and the seconds that they took; None where there is none yet."""
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            known, seconds = json.loads(metadata["about"]), float(metadata["seconds"])
            rows_M = file.get_tensor("rows")
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise DataError(f"{path} is not a part of a harvest: {error}. Remove it") from error
    if known != about or len(rows_M) != about["rows"]:
        differing = sorted(key for key in known.keys() | about.keys() if known.get(key) != about.get(key))
        raise PriorRunMismatchError(
            f"{path} is a part of another harvest: {', '.join(differing)} differ. Remove it, or give another folder"
        )
    return rows_M, seconds


def _write(path: Path, rows_M: Tensor, about: dict[str, Any], seconds: float) -> None:
    # Under a name of this process, then renamed: a reader finds a whole file or none.
    partly = path.with_suffix(f".part{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"about": json.dumps(about), "seconds": repr(seconds)}
        safetensors.torch.save_file({"rows": rows_M.contiguous()}, partly, metadata)
        partly.replace(path)
    except OSError as error:
        raise DataError(f"the part {path} cannot be written: {error}") from error
