"""Checks that every part of the archive asks of a store: whether files are there, and whose fault an error is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from reuse_algos.archive.format.names import IDENTITY
from reuse_algos.archive.stores.base import Store
from reuse_algos.errors import ArchiveCorruptError, ArchiveError, ArchivePermissionError, ArchiveVersionError

DAMAGE = (ArchiveCorruptError, ArchiveVersionError)
"""The errors of a damaged run. Any other error may be gone a moment later, so it must not hide the run."""


@contextlib.contextmanager
def reading(store: Store) -> Iterator[None]:
    """Treat a part of a store that cannot be read as damage, as long as the rest of it can be.

    Raises:
        ArchiveCorruptError: The part is damaged, or cannot be read.
        ArchiveVersionError: It was written in a newer major format.
        ArchiveError: The store is out of reach as a whole.
    """
    try:
        yield
    except DAMAGE:
        raise
    except ArchiveError as error:
        with contextlib.suppress(ArchiveCorruptError):  # an odd file in this one's place does not show an outage
            store.size(IDENTITY)  # raises if it is out of reach as a whole
        raise ArchiveCorruptError(str(error)) from error


@contextlib.contextmanager
def refusals_as_damage(store: Store) -> Iterator[None]:
    """Treat what this user may not read as damage of that part, as long as the archive itself may be read.

    Raises:
        ArchiveCorruptError: The part is damaged, or may not be read.
        ArchiveError: Anything else, which may be gone a moment later; or nothing of the store may be read.
    """
    try:
        yield
    except ArchivePermissionError as error:
        store.size(IDENTITY)  # raises if nothing may be read
        raise ArchiveCorruptError(str(error)) from error


class MissingFileError(ArchiveCorruptError):
    """A file that should be there is missing."""


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
    # A remote store answers many requests at once; on a local disk threads only cost.
    threads = min(store.concurrency, len(sizes))
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
                raise ArchiveCorruptError(f"{store.location}/{path} has {there} bytes and should have {size}")
