"""The names in an archive: which are safe, and the path of each file of a run.

Paths are relative to the archive, with ``/`` between their parts::

    archive.json
    runs/<run_id>/data/<kind>/<name>-<attempt>-<16 digits of sha256>.safetensors
    runs/<run_id>/manifests/g000007.json
    runs/<run_id>/final.json
    runs/<run_id>/leases/<attempt>-<16 hex digits>-<number>.json
    runs/<run_id>/gc/<16 hex digits>.json
    runs/<run_id>/thinned/g000007.json
    index/<runs in it>-<32 digits of sha256>.json
    index/changed/<run_id>/<16 hex digits>-<number>.json
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable

IDENTITY = "archive.json"
"""Path of the archive's own record."""

INDEX = "index"
"""Where the summaries of ended runs are kept together."""

SAFE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
"""Pattern of a name that may be part of a path."""

_SAFE_NAME = re.compile(SAFE_NAME, re.ASCII)
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{16}", re.ASCII)
_MANIFEST = re.compile(r"g([0-9]{6})\.json", re.ASCII)
_ATTEMPT = re.compile(r"-([1-9][0-9]{0,8})-[0-9a-f]{16}\.safetensors\Z", re.ASCII)
_DATA = re.compile(rf"data/{SAFE_NAME}/[^/]+-[1-9][0-9]{{0,8}}-[0-9a-f]{{16}}\.safetensors", re.ASCII)
_LEASE = re.compile(r"leases/[1-9][0-9]{0,8}-[0-9a-f]{16}-[0-9]{1,9}\.json", re.ASCII)
_THINNED = re.compile(r"thinned/g([0-9]{6})\.json", re.ASCII)
_SHARD = re.compile(r"index/([0-9]{6})-[0-9a-f]{32}\.json", re.ASCII)
_CHANGE = re.compile(rf"index/changed/({SAFE_NAME})/[0-9a-f]{{16}}-[0-9]{{1,9}}\.json", re.ASCII)
_MARKER = re.compile(r"gc/[0-9a-f]{16}\.json", re.ASCII)


def is_safe_name(name: str) -> bool:
    """Return whether a name may be part of a path: 1 to 128 of ``A-Z a-z 0-9 . _ -``, the first a letter or digit."""
    return _SAFE_NAME.fullmatch(name) is not None


def safe_names(names: Iterable[str]) -> list[str]:
    """Return those of many names that may be part of a path, in their order."""
    return list(filter(_SAFE_NAME.fullmatch, names))


def temporary_name() -> str:
    """Return a new name for a file that is being written. No reader ever looks at such a file."""
    return f".tmp-{secrets.token_hex(8)}"


def is_temporary(name: str) -> bool:
    """Return whether a name is one of :func:`temporary_name`."""
    return _TEMPORARY.fullmatch(name) is not None


def run_prefix(run_id: str) -> str:
    """Return the path of a run."""
    return f"runs/{run_id}"


def manifest_path(run_id: str, generation: int) -> str:
    """Return the path of the manifest of one generation."""
    # Padded, so that names sort as generations do.
    return f"{run_prefix(run_id)}/manifests/g{generation:06d}.json"


def manifest_generation(name: str) -> int | None:
    """Return the generation that a file name in ``manifests/`` stands for; None for any other name."""
    found = _MANIFEST.fullmatch(name)
    return int(found[1]) if found else None


def final_path(run_id: str) -> str:
    """Return the path of the record that the run ended."""
    return f"{run_prefix(run_id)}/final.json"


def lease_path(run_id: str, attempt: int, token: str, number: int) -> str:
    """Return the path of a writer's lease; ``token`` is 16 hex digits of that writer."""
    # The attempt in the name lets a listing tell whose lease it is, without opening it.
    return f"{run_prefix(run_id)}/leases/{attempt}-{token}-{number}.json"


def marker_path(run_id: str) -> str:
    """Return a new path for a marker that says what is being deleted."""
    # A new name each time: two deletions at once each have a flag of their own to take away.
    return f"{run_prefix(run_id)}/gc/{secrets.token_hex(8)}.json"


def thinned_path(run_id: str, generation: int) -> str:
    """Return the path of the note that the generations before this one were deleted."""
    return f"{run_prefix(run_id)}/thinned/g{generation:06d}.json"


def thinned_generation(path: str) -> int | None:
    """Return the generation of such a note, given its path relative to its run; None for any other path."""
    found = _THINNED.fullmatch(path)
    return int(found[1]) if found else None


def shard_path(runs: int, sha256: str) -> str:
    """Return the path of a shard of the index, which holds the summaries of so many runs."""
    # Named by content: two processes that index the same runs put the same file, and either one serves.
    return f"{INDEX}/{runs:06d}-{sha256[:32]}.json"


def shard_runs(path: str) -> int | None:
    """Return how many runs a shard says that it holds; None if the path is not that of a shard."""
    found = _SHARD.fullmatch(path)
    return int(found[1]) if found else None


def change_path(run_id: str, token: str, number: int) -> str:
    """Return the path of the note that an ended run says something else now."""
    return f"{INDEX}/changed/{run_id}/{token}-{number}.json"


def changed_run(path: str) -> str | None:
    """Return the run that a note of :func:`change_path` is about; None if the path is not that of such a note."""
    found = _CHANGE.fullmatch(path)
    return found[1] if found else None


def data_path(kind: str, name: str, attempt: int, sha256: str) -> str:
    """Return the path of a data file, relative to its run."""
    # Content and attempt in the name: a resumed run that computes something else never meets an old file.
    return f"data/{kind}/{name}-{attempt}-{sha256[:16]}.safetensors"


def data_attempt(path: str) -> int | None:
    """Return the attempt that a data file's path names; None if the path does not end as one."""
    found = _ATTEMPT.search(path)
    return int(found[1]) if found else None


def is_data(path: str) -> bool:
    """Return whether a path, relative to its run, is that of a data file."""
    return _DATA.fullmatch(path) is not None


def is_lease(path: str) -> bool:
    """Return whether a path, relative to its run, is that of a lease."""
    return _LEASE.fullmatch(path) is not None


def is_marker(path: str) -> bool:
    """Return whether a path, relative to its run, is that of a marker."""
    return _MARKER.fullmatch(path) is not None


def is_manifest(path: str) -> bool:
    """Return whether a path, relative to its run, is that of a manifest."""
    folder, _, name = path.partition("/")
    return folder == "manifests" and manifest_generation(name) is not None
