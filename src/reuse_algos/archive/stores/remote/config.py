"""From a URL and the environment to an obstore client."""

from __future__ import annotations

import importlib
import json
import os
import re
from datetime import timedelta
from typing import Any, NamedTuple

from reuse_algos.archive.stores.remote.errors import NO_CREDENTIALS
from reuse_algos.errors import ArchiveError, ArchivePermissionError

OBJECT_SCHEMES = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "az": "az",
    "abfs": "az",
    "abfss": "az",
}
"""The URL schemes that obstore reaches, and whose store each means."""

_CONNECT_SECONDS = 3
_SILENCE_SECONDS = 5
_RETRY_SECONDS = 6  # no further try is begun after this

_S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT_URL")  # the last one is Composer's
_AZURE_ENDPOINTS = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
# What makes obstore find credentials by itself without asking the host's metadata service.
_S3_OTHER_WAYS = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)


class Address(NamedTuple):
    """Where a store is: the provider, its bucket or container, the prefix in it, and Azure's account if named."""

    provider: str
    bucket: str
    prefix: str
    account: str
    location: str


def parse_address(location: str) -> Address:
    """Take a URL apart.

    Args:
        location: ``scheme://bucket/prefix``; for ``abfs`` also ``abfs://container@account.host/prefix``.

    Raises:
        ArchiveError: It has no bucket, or a part that no key of an archive has.
    """
    scheme, _, rest = location.partition("://")
    authority, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    container, at, host = authority.partition("@")
    account = host.split(".")[0] if at else ""
    provider = OBJECT_SCHEMES[scheme.lower()]
    usable = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", container) and (not at or (provider == "az" and account))
    parts = prefix.split("/") if prefix else []
    if not usable or any(re.fullmatch(r"\.{0,2}|.*[^ -~].*|.*[\\?#%*{}^`\[\]\"<>|~].*", part) for part in parts):
        raise ArchiveError(
            f"{location[:200]!r} cannot be the place of an archive: write {scheme}://bucket/prefix, with a prefix of "
            "ordinary characters and no empty part"
        )
    clean = f"{scheme}://{authority}" + (f"/{prefix}" if prefix else "")
    return Address(provider, container, prefix, account, clean)


def configure(address: Address) -> dict[str, Any]:
    """Return what the environment says of a store, for :func:`connect`. Ask once: a profile may run a program.

    Raises:
        ArchivePermissionError: There are no credentials.
    """
    # A missing obstore is reported first, before credentials are looked for.
    _load(address)
    return _PROVIDERS[address.provider][1](address)


def connect(
    address: Address, settings: dict[str, Any], *, retries: int, seconds: int | None, silence: bool = True
) -> Any:
    """Make an obstore client. Nothing is sent.

    Args:
        address: What to connect to.
        settings: As :func:`configure` made them.
        retries: How often a failed request is sent again by the client itself.
        seconds: The most that one request may take; None for no bound while bytes keep coming.
        silence: Also give a request up when nothing comes for some seconds. Not for uploads, whose answer comes late.

    Raises:
        ArchiveError: obstore is not installed, or the configuration cannot be understood.
    """
    retry = {
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=_RETRY_SECONDS),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=1),
            "base": 2,
        },
    }
    client: dict[str, Any] = {"connect_timeout": timedelta(seconds=_CONNECT_SECONDS)}
    client["timeout"] = timedelta(days=7) if seconds is None else timedelta(seconds=seconds)
    if silence:
        client["read_timeout"] = timedelta(seconds=_SILENCE_SECONDS)
    # One configuration serves several clients, so nothing may be taken out of it.
    settings = dict(settings)
    if settings.pop("allow_http", False):
        client["allow_http"] = True
    make = getattr(_load(address), _PROVIDERS[address.provider][0])
    try:
        return make(address.bucket, retry_config=retry, client_options=client, **settings)
    except (obstore_error(), ValueError, TypeError) as error:
        raise ArchiveError(f"cannot open {address.location}: {str(error).splitlines()[0]}") from error


def _load(address: Address) -> Any:
    try:
        return importlib.import_module("obstore.store")
    except ImportError as error:
        raise ArchiveError(
            f"{address.location} is an object store, and obstore is not installed: pip install 'reuse-algos[remote]'"
        ) from error


def obstore_error() -> type[Exception]:
    """Return the base of obstore's own exceptions."""
    return importlib.import_module("obstore.exceptions").BaseError


def _first(names: tuple[str, ...]) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def s3_endpoint() -> str | None:
    """Return the endpoint that the environment names for S3; None for Amazon's own."""
    return _first(_S3_ENDPOINTS)


def _s3(address: Address) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    endpoint = s3_endpoint()
    if endpoint is not None:
        settings |= {"endpoint": endpoint, "allow_http": endpoint.startswith("http://")}
    region = _first(("AWS_REGION", "AWS_DEFAULT_REGION"))
    if region is not None:
        settings["region"] = region
    has_keys = os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not has_keys and _first(_S3_OTHER_WAYS) is None:
        provider = _boto3_credentials(address)
        if provider is not None:
            settings["credential_provider"] = provider
            if region is None and "region" in provider.config:
                settings["region"] = provider.config["region"]
    return settings


def _boto3_credentials(address: Address) -> Any:
    """Return the credentials of a profile or a role, as boto3 finds them; None where there is no boto3."""
    try:
        provider = importlib.import_module("obstore.auth.boto3").Boto3CredentialProvider
    except ImportError:
        return None
    try:
        return provider()
    except Exception as error:  # botocore's many: a profile that is not there, a file that cannot be read
        reason = "" if "Received None" in str(error) else f" ({str(error).strip()})"
        raise ArchivePermissionError(
            f"cannot open {address.location}: no credentials were found{reason}: {NO_CREDENTIALS['s3']}"
        ) from error


def _gs(address: Address) -> dict[str, Any]:
    # A service account for an emulator names the emulator's address in its file.
    path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") or os.environ.get("GOOGLE_SERVICE_ACCOUNT")
    if not path:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError) as error:
        raise ArchivePermissionError(
            f"cannot open {address.location}: the credentials in {path} cannot be read ({error}): "
            f"{NO_CREDENTIALS['gs']}"
        ) from error
    base = found.get("gcs_base_url", "") if isinstance(found, dict) else ""
    return {"allow_http": str(base).startswith("http://")}


def _az(address: Address) -> dict[str, Any]:
    settings: dict[str, Any] = {"account_name": address.account} if address.account else {}
    endpoint = _first(_AZURE_ENDPOINTS)
    if endpoint is not None:
        settings |= {"endpoint": endpoint, "allow_http": endpoint.startswith("http://")}
    elif not settings and not os.environ.get("AZURE_STORAGE_ACCOUNT_NAME"):
        raise ArchivePermissionError(f"cannot open {address.location}: which account? {NO_CREDENTIALS['az']}")
    return settings


_PROVIDERS = {"s3": ("S3Store", _s3), "gs": ("GCSStore", _gs), "az": ("AzureStore", _az)}
