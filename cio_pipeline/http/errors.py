"""Why no complete answer came, in words that quote no header, URL or body, unlike the exceptions of requests and urllib3."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from typing import NamedTuple

import requests
import urllib3

TRIES_OF_A_NAME, TRIES_OF_A_PROXY, TRIES_OF_A_REFUSED_CONNECTION = 3, 3, 5
"""A name server or a proxy may be away for a moment, but a mistyped name is no better after a minute."""

ADDRESSES = {"PostHog": "POSTHOG_HOST", "Customer.io": "CUSTOMERIO_TRACKING_ENDPOINT"}
"""The setting with the address of a service."""

CERTIFICATE = {10: "has run out", 62: "is of another host", 64: "is of another host"}
"""OpenSSL's results (X509_V_ERR_*); any other means an issuer that is not trusted."""

BROKEN = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
)
"""What requests raises if no complete answer came. The last two happen while the body is read, beyond urllib3's own retries."""


class Fault(NamedTuple):
    """What went wrong, as the end of a sentence, and how many tries it is worth."""

    words: str
    tries: int = 1000


class UnusableBody(Exception):
    """The body cannot be used; the message says why, as the end of a sentence."""


class TooLongBody(UnusableBody):
    """The body has more bytes than allowed."""


class NotWritten(OSError):
    """The file for a body cannot be written, which is not a fault of the service."""


def fault_of(error: Exception, service: str) -> Fault:
    """The fault behind an exception of a request; for an unknown one, only its class."""
    setting = ADDRESSES.get(service, service)
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            problem = CERTIFICATE.get(cause.verify_code, "is of an issuer that is not trusted here")
            hint = "if a proxy of yours issues certificates, REQUESTS_CA_BUNDLE must name the file of its CA"
            return Fault(f"its certificate {problem}: is {setting} right? ({hint})", tries=1)
        if _is_ca_bundle(cause):
            return Fault("REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names no file of certificates that can be read", tries=1)
    if _any(causes, requests.exceptions.ProxyError, urllib3.exceptions.ProxyError, requests.exceptions.InvalidProxyURL):
        return Fault("the proxy that HTTPS_PROXY or HTTP_PROXY names does not let it through", TRIES_OF_A_PROXY)
    if _any(causes, socket.gaierror, urllib3.exceptions.NameResolutionError):
        return Fault(f"no name server knows that host: is {setting} right?", TRIES_OF_A_NAME)
    if _any(causes, ConnectionRefusedError):
        return Fault(f"it refused the connection: is {setting} right, and does it run?", TRIES_OF_A_REFUSED_CONNECTION)
    if isinstance(error, UnusableBody):
        return Fault(str(error))
    kind = type(error).__name__
    if isinstance(error, requests.RequestException) and not isinstance(error, BROKEN):
        return Fault(f"the request could not be made ({kind}): is {setting} right?", tries=1)
    if isinstance(error, urllib3.exceptions.HTTPError | http.client.HTTPException | OSError):
        return Fault(f"the connection failed ({kind})")
    return Fault(f"the request could not be made ({kind})", tries=1)


def _is_ca_bundle(cause: BaseException) -> bool:
    """Whether the CA bundle is at fault. requests reports a missing file with an OSError, OpenSSL what is in it."""
    if isinstance(cause, ssl.SSLError):
        return cause.reason in ("NO_CERTIFICATE_OR_CRL_FOUND", "NO_START_LINE")
    return type(cause) is OSError and "CA certificate bundle" in str(cause)


def _any(causes: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(cause, kinds) for cause in causes)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and all that led to it, by cause and by context, each once."""
    todo, seen = [error], set[int]()
    while todo:
        cause = todo.pop()
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        todo += [one for one in (cause.__context__, cause.__cause__) if one is not None]
