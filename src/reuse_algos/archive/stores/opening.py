"""Opening a store by its location."""

from __future__ import annotations

import importlib.metadata
import os
import re
import urllib.parse
from pathlib import Path

from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.stores.local import LocalStore
from reuse_algos.errors import ArchiveError

STORES_GROUP = "reuse_algos.stores"
"""The entry points by which other packages add kinds of stores; each is named by its URL scheme."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(dbfs):/", re.ASCII)
_ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/(?!/)", re.ASCII)


def open_store(location: str | os.PathLike[str], *, create: bool, read_only: bool) -> Store:
    """Open the store at ``location``. This is the one place that knows which kinds of stores there are.

    Args:
        location: A directory, ``file://`` and a directory, ``s3://bucket/prefix``, ``gs://bucket/prefix``,
            ``az://container/prefix``, or a URL of a scheme that an installed package registers under the entry point
            group ``reuse_algos.stores``, each a function ``(location, *, create, read_only) -> Store``.
        create: Make the directory if it is missing. Buckets are not made.
        read_only: Refuse every write.

    Raises:
        ArchiveError: There is nothing and nothing may be made, or the scheme is not known.
        ArchiveNotADirectoryError: It is a file, or below one.
        ArchivePermissionError: It may not be opened, or there are no credentials.
    """
    location = os.fspath(location)
    found = _SCHEME.match(location)
    scheme = (found[1] or found[2]).lower() if found else ""
    if scheme == "file":
        url = urllib.parse.urlsplit(location)
        if url.netloc not in ("", "localhost") or url.query or url.fragment:
            raise ArchiveError(f"{location!r} is not a local directory: write file:///path, or just the path")
        location, scheme = urllib.parse.unquote(url.path), ""
    if not scheme:
        if found := _ONE_SLASH.match(location):
            rest = location[found.end() :]
            raise ArchiveError(
                f"{location!r} looks like a URL with a slash too few: write {found[1]}://{rest}, or ./{location} for a "
                "folder of this name"
            )
        return LocalStore(Path(location).expanduser(), create=create, read_only=read_only)
    from reuse_algos.archive.stores.remote.config import OBJECT_SCHEMES  # here, not to load it for local archives

    if scheme in OBJECT_SCHEMES:
        from reuse_algos.archive.stores.remote.object_store import ObjectStore

        return ObjectStore(location, read_only=read_only)
    others = {entry.name: entry for entry in importlib.metadata.entry_points(group=STORES_GROUP)}
    if scheme not in others:
        known = ", ".join(f"{name}://" for name in sorted({"file", *OBJECT_SCHEMES, *others}))
        raise ArchiveError(f"{location!r}: no kind of store is known for {scheme}://. Known: a directory, {known}")
    return others[scheme].load()(location, create=create, read_only=read_only)
