"""A shard: one file of the index, which holds the summaries of many ended runs.

It is named by its content and never changed. A shard may replace smaller ones, which hold nothing that it does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from reuse_algos.archive.format.envelope import FORMAT, MAX_SEALED_BYTES, seal, unseal
from reuse_algos.archive.format.names import shard_path
from reuse_algos.archive.format.records import Struct
from reuse_algos.archive.format.summary import RunSummary
from reuse_algos.errors import ArchiveCorruptError

SHARD_RUNS = 8192
"""The most runs of one shard."""

MAX_SUMMARY_BYTES = 1 << 14
"""A run with a larger summary is read by itself: one run must not fill the index."""

# Commas are what a sealed file's bound on items counts.
_MAX_BYTES, _MAX_COMMAS = MAX_SEALED_BYTES - (1 << 16), 480_000


class Shard(Struct, frozen=True, kw_only=True, tag_field="record", tag="shard"):
    """What a shard holds.

    Attributes:
        format: Major and minor format version.
        archive_id: The archive that it is of.
        runs: The summaries.
        replaces: Paths of smaller shards that need not be read any more.
    """

    format: tuple[int, int] = FORMAT
    archive_id: str
    runs: list[RunSummary]
    replaces: list[str] = msgspec.field(default_factory=list)


def encode_summary(summary: RunSummary) -> bytes:
    """Return a summary as JSON, in one line. Equal summaries give equal lines."""
    return msgspec.json.encode(summary)


def decode_summaries(lines: Iterable[bytes]) -> list[RunSummary]:
    """Decode summaries that :func:`encode_summary` wrote.

    Raises:
        ValueError: One of them is not a summary.
    """
    # One list is decoded in a fraction of the time of its items one by one.
    return msgspec.json.decode(b"[" + b",".join(lines) + b"]", type=list[RunSummary])


def fitting(summaries: Sequence[RunSummary]) -> int:
    """Return how many of these summaries, from the first on, one shard can hold."""
    size = commas = 0
    for count, summary in enumerate(summaries):
        data = encode_summary(summary)
        size, commas = size + len(data) + 1, commas + data.count(b",") + 1
        if count == SHARD_RUNS or size > _MAX_BYTES or commas > _MAX_COMMAS:
            return count
    return len(summaries)


def encode_shard(archive_id: str, runs: Iterable[RunSummary], replaces: Iterable[str] = ()) -> tuple[str, bytes]:
    """Return the path of a new shard, and its content.

    Args:
        archive_id: The archive.
        runs: The summaries, no more than :func:`fitting` says.
        replaces: Paths of shards whose runs are all among them. Default: none.
    """
    # Sorted, so that processes that find the same runs write the same file.
    shard = Shard(archive_id=archive_id, runs=sorted(runs, key=lambda run: run.run_id), replaces=sorted(replaces))
    data = seal(shard, "index")
    return shard_path(len(shard.runs), hashlib.sha256(data).hexdigest()), data


def decode_shard(path: str, data: bytes, archive_id: str) -> Shard:
    """Check and decode a shard.

    Args:
        path: Its path.
        data: The whole file.
        archive_id: The archive that it must be of.

    Raises:
        ArchiveCorruptError: It is damaged, of another archive, not what its name says, or holds a run twice or one
            that has not ended.
        ArchiveVersionError: It was written in a newer major format.
    """
    shard = unseal(data, Shard, path)
    if shard_path(len(shard.runs), hashlib.sha256(data).hexdigest()) != path:
        raise ArchiveCorruptError(f"{path} is not the shard that its name says")
    if len({run.run_id for run in shard.runs}) != len(shard.runs):
        raise ArchiveCorruptError(f"{path} holds a run more than once")
    if not all(run.finished for run in shard.runs):
        raise ArchiveCorruptError(f"{path} holds a run that has not ended")
    if shard.archive_id != archive_id:
        raise ArchiveCorruptError(f"{path} is of the archive {shard.archive_id[:40]!r}")
    return shard
