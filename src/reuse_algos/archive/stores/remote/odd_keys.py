"""Listing a bucket in which somebody has put keys that are not paths, such as ones with control characters.

obstore refuses the whole page of a listing that has such a key, and with it the runs of everybody. boto3 takes any key,
so where it is installed it lists what obstore will not.
"""

from __future__ import annotations

import importlib
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

from reuse_algos.archive.stores.remote.config import Address, s3_endpoint
from reuse_algos.errors import ArchiveCorruptError, ArchiveError, ArchiveWarning

_ODD = re.compile(r"[\x00-\x1f\x7f]|(?:\A|/)\.{0,2}(?:/|\Z)")
_SHOWN = 3  # odd keys that one warning names


def names_around(address: Address, key: str, refusal: ArchiveCorruptError) -> set[str]:
    """Return the names directly below a key.

    Args:
        address: The bucket.
        key: The key.
        refusal: The error with which obstore refused to list it.

    Raises:
        ArchiveCorruptError: ``refusal``, where boto3 is not installed or the bucket is not in S3.
        ArchiveError: They could not be listed.
    """
    names: set[str] = set()
    for page in _pages(address, key, refusal, Delimiter="/"):
        names |= {found["Prefix"][len(key) + 1 :].rstrip("/") for found in page.get("CommonPrefixes", ())}
        names |= {found["Key"][len(key) + 1 :] for found in page.get("Contents", ())}
    _warn(address, [f"{key}/{name}" for name in names])
    return names - {""}


def objects_around(address: Address, key: str, after: str, refusal: ArchiveCorruptError) -> Iterator[dict[str, Any]]:
    """Give each object below a key as obstore does, but those whose keys are not paths.

    Args:
        address: The bucket.
        key: The key.
        after: The last key that is known already.
        refusal: The error with which obstore refused to list it.

    Raises:
        ArchiveCorruptError: ``refusal``, where boto3 is not installed or the bucket is not in S3.
        ArchiveError: They could not be listed.
    """
    for page in _pages(address, key, refusal, StartAfter=after):
        found = page.get("Contents", ())
        _warn(address, [item["Key"] for item in found])
        for item in found:
            if not _ODD.search(item["Key"]):
                yield {"path": item["Key"], "size": item["Size"], "last_modified": item["LastModified"]}


def _pages(address: Address, key: str, refusal: ArchiveCorruptError, **options: str) -> Iterator[dict[str, Any]]:
    try:
        boto3 = importlib.import_module("boto3")
    except ImportError:
        boto3 = None
    if boto3 is None or address.provider != "s3":
        raise refusal
    region = os.environ.get("AWS_REGION") or None  # boto3 itself reads AWS_DEFAULT_REGION only
    try:
        client = boto3.client("s3", endpoint_url=s3_endpoint(), region_name=region)
        yield from client.get_paginator("list_objects_v2").paginate(Bucket=address.bucket, Prefix=f"{key}/", **options)
    except Exception as error:  # botocore's many
        raise ArchiveError(f"{refusal}; and boto3 cannot list it: {error}") from error


def _warn(address: Address, keys: list[str]) -> None:
    if odd := sorted(filter(_ODD.search, keys)):
        shown = ", ".join(map(ascii, odd[:_SHOWN])) + (" and others" if len(odd) > _SHOWN else "")
        warnings.warn(
            f"{address.location} has keys that are not paths, which no archive writes: {shown}. They are passed over; "
            "remove them",
            ArchiveWarning,
            stacklevel=2,
        )
