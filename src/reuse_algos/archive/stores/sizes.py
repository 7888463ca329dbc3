"""Whether files are in a store with the sizes that they should have: many small questions, asked at once."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from reuse_algos.archive.stores.store import Store
from reuse_algos.errors import ArchiveCorruptError

__all__ = ["MissingFileError", "check_sizes"]


class MissingFileError(ArchiveCorruptError):
    """A file that a manifest is to list is not there."""


def check_sizes(store: Store, sizes: Mapping[str, int]) -> None:
    """Make sure that files are there, with as many threads as the store takes.

    Args:
        store: Where.
        sizes: Bytes of each file, by its path.

    Raises:
        MissingFileError: One is not there.
        ArchiveCorruptError: One has another size.
        ArchiveError: One could not be asked for.
    """
    threads = min(getattr(store, "concurrency", 1), len(sizes))
    with contextlib.ExitStack() as stack:
        if threads > 1:
            pool = ThreadPoolExecutor(threads, thread_name_prefix="archive")
            stack.callback(pool.shutdown, cancel_futures=True)  # of no use any more once one has failed
            found = pool.map(store.size, sizes)
        else:
            found = map(store.size, sizes)
        for (path, size), there in zip(sizes.items(), found, strict=True):
            if there is None:
                raise MissingFileError(f"{store.location}/{path} is not there")
            if there != size:
                raise ArchiveCorruptError(f"{store.location}/{path} has {there} bytes, the manifest says {size}")
