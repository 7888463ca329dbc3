"""Streams: ids in every sample, views that can be replayed, epochs that follow a plan, and what the examples are."""

from __future__ import annotations

from reuse_algos.data.streams.ids import ID, VIEW, keys_of_ids
from reuse_algos.data.streams.info import scan_stream, stream_info
from reuse_algos.data.streams.iterable import IdStream, webdataset_id
from reuse_algos.data.streams.steering import SteeredStream
from reuse_algos.data.streams.streaming import StreamIds, with_ids

__all__ = [
    "ID",
    "VIEW",
    "IdStream",
    "SteeredStream",
    "StreamIds",
    "keys_of_ids",
    "scan_stream",
    "stream_info",
    "webdataset_id",
    "with_ids",
]
