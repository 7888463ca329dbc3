"""What went wrong at an object store, in words: which store, which object, and what to do.

obstore says it all in one long text with the server's answer inside. Here that text is read once, and nowhere else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from reuse_algos.errors import ArchiveCorruptError, ArchiveError, ArchivePermissionError

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_BULK = re.compile(r"[Rr]equest failed for key .*\(code: (\w{1,64})\)")  # one of many deletions, in an answer of 200
_ENDPOINT = re.compile(r"Error performing [A-Z]+ (https?://[^/\s?]+)")
_PROVIDER = re.compile(r"External \w+ credential provider: ([^\n]{1,300})")  # boto3's, at a later request
_NO_OBJECT = {"NoSuchKey", "BlobNotFound", "ResourceNotFound"}
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_WRONG_KEY = {
    "AuthenticationFailed",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
# The store is busy, or the body did not arrive as it was sent: the same request may well succeed.
_PASSING = {
    "BadDigest",
    "IncompleteBody",
    "InternalError",
    "Md5Mismatch",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
_METADATA_SERVICES = ("169.254.169.254", "metadata.google.internal", "token request")

NO_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE where boto3 is installed",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account, or run "
    "`gcloud auth application-default login`",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or AZURE_STORAGE_SAS_TOKEN)",
}
"""By provider: how to give the credentials that are missing."""


@dataclass(frozen=True)
class Fault:
    """A failed request.

    Attributes:
        reason: What happened and what to do, to be put behind the object's name.
        kind: The error to raise.
        missing: The store said that there is no such object.
        exists: The store said that there is such an object already, or that another request about it goes on.
        transient: The same request may succeed a moment later.
        received: The store may have carried the request out.
        unsupported: The store does not know this kind of request.
        untagged: The store carried the request out, but its answer has no entity tag, which obstore takes for an error.
        cause: The exception that said so.
    """

    reason: str
    kind: type[ArchiveError] = ArchiveError
    missing: bool = False
    exists: bool = False
    transient: bool = False
    received: bool = True
    unsupported: bool = False
    untagged: bool = False
    cause: Exception | None = None

    def stop(self, action: str, where: str) -> NoReturn:
        """Raise it as an error of ours: ``cannot <action> <where>: <reason>``."""
        raise self.kind(f"cannot {action} {where}: {self.reason}") from self.cause


def read_fault(error: Exception, provider: str, bucket: str) -> Fault:
    """Tell what an exception of obstore means.

    Args:
        error: The exception.
        provider: ``"s3"``, ``"gs"`` or ``"az"``.
        bucket: The bucket or container.
    """
    text, name = str(error), type(error).__name__
    found = _STATUS.search(text)
    status = int(found[1]) if found else None
    found = _CODE.search(text)
    code = found[1] if found else ""
    found = _BULK.search(text)
    if found:
        status, code = (int(found[1]), "") if found[1].isdigit() else (200, found[1])
    exists = name in ("AlreadyExistsError", "PreconditionError")
    # An answer to HEAD has no body and so no code. Any other answer of a store has one: what says 404 without it is no
    # store, but a proxy or a page, and must not look like an empty archive.
    head = "Error performing HEAD" in text
    missing = code in _NO_OBJECT or (status == 404 and not code and (head or found is not None))
    untagged = "ETag Header missing" in text
    kind, reason, transient, received = ArchiveError, "", False, True
    if provider_said := _PROVIDER.search(text):
        reason = f"new credentials could not be obtained ({provider_said[1]}): check the profile or role they come from"
        kind, received = ArchivePermissionError, False
    elif any(sign in text for sign in _METADATA_SERVICES) or "Account must be specified" in text:
        reason = f"no credentials were found: {NO_CREDENTIALS[provider]}"
        kind, received = ArchivePermissionError, False
    elif code in _NO_BUCKET:
        word = "container" if provider == "az" else "bucket"
        reason = f"there is no {word} {bucket!r}: create it, or check the name and the endpoint"
    elif code in _WRONG_KEY or name == "UnauthenticatedError":
        kind = ArchivePermissionError
        said = f" ({code or status})" if code or status else ""
        reason = f"the credentials were refused{said}: they are wrong or expired; check the environment"
    elif name == "PermissionDeniedError" or status in (401, 403) or code == "AccessDenied":
        kind = ArchivePermissionError
        maybe = "" if code else "are wrong or "  # an answer to HEAD does not say which
        reason = f"permission denied: these credentials {maybe}may not do this; ask the bucket's owner for access"
    elif status in (301, 307, 308) or "Received redirect" in text:
        reason = "the bucket is in another region: set AWS_REGION to it"
    elif missing:
        reason = "there is no such object"
    elif untagged:
        reason = "the store answers without entity tags (ETag), so it takes no file of more than 16 MiB: use another"
    elif name == "InvalidPathError":
        kind = ArchiveCorruptError
        said = ascii(text.splitlines()[0][:200])
        reason = f"there is an object whose name is not a path ({said}): remove it, or install boto3 to pass it over"
    elif status is not None:
        transient = status in (408, 429) or status >= 500 or code in _PASSING
        said = f"the store answered {status}{f' ({code})' if code else ''}"
        reason = f"{said} again and again: try later" if transient else f"{said}: is this the right endpoint?"
    elif "dns error" in text:
        reason, transient, received = "its name cannot be resolved: check the endpoint and the network", True, False
    elif "kind: Connect" in text:
        reason, transient, received = "no connection: check the endpoint and the network", True, False
    elif "source: TimedOut" in text or "kind: Timeout" in text:
        reason, transient = "no answer in time: check the network, or try later", True
    else:
        reason, transient = text.splitlines()[0][:300], "HTTP error" in text or "kind: " in text
    found = _ENDPOINT.search(text)
    if found and not missing:
        reason = f"{reason} (endpoint {found[1]})"
    return Fault(
        reason,
        kind,
        missing=missing,
        exists=exists,
        transient=transient,
        received=received,
        unsupported=status == 501 or name == "NotSupportedError",
        untagged=untagged,
        cause=error,
    )
