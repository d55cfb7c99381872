"""What can go wrong with a bucket: what to try again, and what to say.

Backends report errors in their own ways: s3fs as OSError caused by botocore's
ClientError, gcsfs as HttpError, and both pass on those of their network libraries. They
are sorted by HTTP status and code where there is one, else by the name of their class.
"""

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

from afterimage.errors import UserError
from afterimage.storage.urls import scheme_of

Result = TypeVar("Result")
Kind = Literal["missing", "exists", "bucket", "expired", "denied", "later", "other"]

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further try of what may pass; each is varied by half."""

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_EXPIRED |= {"RequestExpired", "InvalidToken"}
_DENIED = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}
_DENIED |= {"CredentialRetrievalError", "ProfileNotFound", "InvalidAccessKeyId"}
_DENIED |= {"SignatureDoesNotMatch", "AccessDenied", "401", "403"}
_REFRESH = {"RefreshError", "TokenRetrievalError", "SSOTokenLoadError"}
_REFRESH |= {"UnauthorizedSSOTokenError"}
_LATER = {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout"}
_LATER |= {"IncompleteBody", "BadDigest", "OperationAborted", "RequestTimeTooSkewed"}
_LATER |= {"ConditionalRequestConflict", "ThrottlingException", "408", "429"}
_BROKEN = {"EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError"}
_BROKEN |= {"ConnectionClosedError", "HTTPClientError", "ConnectionError"}
_BROKEN |= {"ClientError", "ClientPayloadError", "ServerDisconnectedError"}
_BROKEN |= {"IncompleteRead", "IncompleteReadError", "ResponseStreamingError"}
_BROKEN |= {"TimeoutError", "FSTimeoutError", "ChecksumError", "TransportError"}
_EXISTS = {"PreconditionFailed", "412"}


class RemoteError(UserError):
    """A bucket that cannot be read or written; the message names it and the fix.

    `kind` is "denied" or "expired" for credentials, "later" if the store did not answer
    within all tries, else "bucket" or "other".
    """

    def __init__(self, message: str, kind: Kind):
        super().__init__(message)
        self.kind: Kind = kind


class HalfWritten(Exception):
    """An object has another size than was written or listed; worth another try."""


def retried(action: Callable[[], Result], url: str, doing: str) -> Result:
    """The result of `action`, tried again while its error is one that may pass.

    Raises FileNotFoundError and FileExistsError as they are, and RemoteError for the
    rest: `doing` says what failed, such as "cannot be read".
    """
    waits = iter(WAITS)
    while True:
        try:
            return action()
        except (RemoteError, MemoryError):
            raise
        except Exception as error:
            kind = kind_of(error)
            if kind == "missing":
                raise FileNotFoundError(
                    errno.ENOENT, os.strerror(errno.ENOENT), url
                ) from error
            if kind == "exists":
                raise FileExistsError(url) from error
            wait = next(waits, None) if kind == "later" else None
            if wait is None:
                text = f"{url} {doing}: {_said(error)}{_cure(kind, url)}"
                raise RemoteError(text, kind) from error
            time.sleep(wait * random.uniform(0.5, 1.5))


def kind_of(error: BaseException) -> Kind:
    """What an error of a backend means."""
    chain = list(_chain(error))
    codes = {code for one in chain for code in _codes(one)}
    classes = {kind.__name__ for one in chain for kind in type(one).__mro__}
    if "NoSuchBucket" in codes:
        return "bucket"
    if codes & _EXPIRED or classes & _REFRESH:
        return "expired"
    if codes & _DENIED or classes & _DENIED:
        return "denied"
    if codes & _EXISTS or isinstance(error, FileExistsError):
        return "exists"
    later = codes & _LATER or any(c.isdigit() and 500 <= int(c) < 600 for c in codes)
    if later or isinstance(error, HalfWritten):
        return "later"
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, PermissionError):
        return "denied"
    # botocore and aiohttp both have a ClientError; the first has a code.
    return "later" if classes & _BROKEN and not codes else "other"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _codes(error: BaseException) -> Iterator[str]:
    """The codes of a service's answer: botocore's response, gcsfs's and aiohttp's."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        yield str(response.get("Error", {}).get("Code", ""))
        yield str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    for name in ("code", "status"):
        value = getattr(error, name, None)
        if isinstance(value, int | str):
            yield str(value)


def _said(error: BaseException) -> str:
    """The shortest honest form of a backend's error: its last cause's first line."""
    first = next((one for one in _chain(error) if any(_codes(one))), error)
    lines = str(first).strip().splitlines() or [""]
    text = lines[0][:200].rstrip(". ")
    return f"{type(first).__name__}: {text}" if text else type(first).__name__


def _cure(kind: Kind, url: str) -> str:
    where = {
        "s3": "aws sso login, AWS_PROFILE, or AWS_ACCESS_KEY_ID and its like",
        "gs": "gcloud auth application-default login, or "
        "GOOGLE_APPLICATION_CREDENTIALS",
    }.get(scheme_of(url) or "", "the credentials of this store")
    return {
        "expired": f". The token has expired; renew it ({where})",
        "denied": f". Check that the credentials may do this ({where})",
        "bucket": ". There is no such bucket; create it, or correct its name",
        "later": f". {len(WAITS) + 1} tries failed; check the network and the store",
    }.get(kind, "")
