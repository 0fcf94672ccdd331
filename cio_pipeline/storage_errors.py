"""Explains errors of Amazon's, Google's and Microsoft's storage, and of disks.

Only codes and the names of exceptions are used, because messages may contain keys and signed URLs.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from cio_pipeline.errors import causes

EXPIRED = "the credentials for the storage have expired: renew them"
WRONG_KEY = "the storage does not accept the credentials: check the keys, and that they belong to this storage"
NO_KEY = (
    "no credentials for the storage were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what your storage needs"
)
DENIED = (
    "the storage refuses access: let the credentials list the bucket and read its objects (at Amazon, s3:ListBucket and"
    " s3:GetObject, and kms:Decrypt if it is encrypted), and for CIO_DATA_DIR also write and delete them (s3:PutObject and"
    " s3:DeleteObject)"
)
ARCHIVED = "it is archived (such as in Glacier): restore it first"
NO_BUCKET = "there is no such bucket: check its name in the setting"
GONE = "it has disappeared since the folder was listed: run the day again"
BUSY = "the storage is too busy or has a problem: run the day again later"
REGION = "the bucket is in another region: set AWS_DEFAULT_REGION to the bucket's"
NO_REASON = (
    "the storage refuses the request without saying why: have the credentials expired, or is the bucket in another region than"
    " AWS_DEFAULT_REGION?"
)
CLOCK = "this machine's clock is wrong, so the storage refuses its signatures"
UNREACHABLE = "the storage cannot be reached: check the network, the proxy, and AWS_ENDPOINT_URL if it is set"
CERTIFICATE = "the storage's certificate is not trusted: is there a proxy, or a private CA that AWS_CA_BUNDLE must name?"
NOT_ALLOWED = "this user may not read it: change its permissions"
NO_SPACE = "the disk is full"
NOT_SUPPORTED = "its compression is not supported: export it with zstd, lz4, snappy, gzip or brotli"
DAMAGED = "it is damaged or cut short: is the file complete? Copy it again, or backfill it in PostHog"

CAUSES = {
    EXPIRED: ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "UnauthorizedSSOTokenError"),
    WRONG_KEY: (
        *("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthFailure", "InvalidSecurity", "401"),
        *("InvalidClientTokenId", "AuthenticationFailed", "ClientAuthenticationError", "Unauthorized"),
    ),
    NO_KEY: (
        *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"),
        *("SSOTokenLoadError", "ProfileNotFound", "DefaultCredentialsError", "NoAuthTokenError"),
    ),
    ARCHIVED: ("InvalidObjectState", "BlobArchived", "BlobBeingRehydrated"),
    DENIED: (
        *("AccessDenied", "AccessDeniedException", "Forbidden", "403", "AllAccessDisabled", "AccountProblem"),
        *("AuthorizationFailure", "AuthorizationPermissionMismatch", "InsufficientAccountPermissions", "KMS.DisabledException"),
    ),
    NO_BUCKET: ("NoSuchBucket", "ContainerNotFound", "InvalidBucketName", "ParamValidationError"),
    GONE: ("NoSuchKey", "404", "NoSuchVersion", "BlobNotFound", "PreconditionFailed", "412"),
    BUSY: (
        *("SlowDown", "ServiceUnavailable", "503", "500", "InternalError", "RequestLimitExceeded", "RequestTimeout", "429"),
        *("ServerBusy", "TooManyRequests", "ThrottlingException", "Throttling"),
    ),
    REGION: (
        *("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301", "NoRegionError"),
        *("TemporaryRedirect", "InvalidRegionError"),
    ),
    CLOCK: ("RequestTimeTooSkewed",),
    NO_REASON: ("400",),
    CERTIFICATE: ("SSLError", "SSLCertVerificationError", "ClientConnectorCertificateError"),
    UNREACHABLE: (
        *(
            "EndpointConnectionError",
            "ConnectTimeoutError",
            "ReadTimeoutError",
            "ConnectionClosedError",
            "ProxyConnectionError",
        ),
        *("ClientConnectorError", "ClientConnectorDNSError", "ServiceRequestError", "ConnectionError", "ClientOSError"),
        *(
            "ConnectionRefusedError",
            "ConnectionResetError",
            "TimeoutError",
            "FSTimeoutError",
            "ServerTimeoutError",
            "gaierror",
            "ClientPayloadError",
        ),
    ),
    NOT_SUPPORTED: ("ArrowNotImplementedError",),
}
BY_CODE = {code: sentence for sentence, codes in CAUSES.items() for code in codes}
BY_ERRNO = {errno.ENOSPC: NO_SPACE, errno.EDQUOT: NO_SPACE, errno.EACCES: NOT_ALLOWED, errno.EPERM: NOT_ALLOWED}
NO_FILE = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)


def explain(raised: BaseException) -> str:
    """Returns the cause and what to do, to end the sentence "this file cannot be read: ...", with the code in parentheses."""
    if (code := _known_code(raised)) is not None:
        return f"{BY_CODE[code]} ({code})"
    for error in causes(raised):
        if isinstance(error, OSError) and error.errno in BY_ERRNO:
            return f"{BY_ERRNO[error.errno]} ({type(error).__name__})"
    name = type(raised).__name__
    if isinstance(raised, PermissionError):
        return f"{DENIED} ({name})"
    return f"{GONE if isinstance(raised, NO_FILE) else DAMAGED} ({name})"


def problem_of_storage(raised: BaseException) -> str | None:
    """Returns the same if no file in the storage can be used; None if the error may concern only this file."""
    code = _known_code(raised)
    return None if code is None or BY_CODE[code] in (GONE, NOT_SUPPORTED) else f"{BY_CODE[code]} ({code})"


def _known_code(raised: BaseException) -> str | None:
    return next((code for error in causes(raised) for code in _codes(error) if code in BY_CODE), None)


def _codes(error: BaseException) -> Iterator[str]:
    """An error's code, wherever the client libraries put it, its HTTP status, and the names of its classes."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        yield str(response.get("Error", {}).get("Code", ""))
        yield str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    for attribute in ("error_code", "code", "status_code", "status"):
        code = getattr(error, attribute, None)
        if isinstance(code, (str, int)):
            yield str(code)
    yield from (kind.__name__ for kind in type(error).__mro__ if kind.__module__ != "builtins" or kind is type(error))
