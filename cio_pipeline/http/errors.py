"""Says why no complete answer came, without quoting a header, URL or body, as the exceptions of requests and urllib3 do."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from typing import NamedTuple

import requests
import urllib3

NAME_SERVER_TRIES, PROXY_TRIES, REFUSED_CONNECTION_TRIES = 3, 3, 5
"""A name server or a proxy may be unavailable for a moment, but a mistyped name does not improve within a minute."""

ADDRESSES = {"PostHog": "POSTHOG_HOST", "Customer.io": "CUSTOMERIO_TRACKING_ENDPOINT"}
"""The setting that holds the address of each service."""

CERTIFICATE = {10: "has expired", 62: "is for another host", 64: "is for another host"}
"""By OpenSSL's result (X509_V_ERR_*); any other means an issuer that is not trusted."""

NO_COMPLETE_ANSWER = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
)
"""The errors of requests for this. The last two occur while the body is read, which urllib3 does not retry."""


class Problem(NamedTuple):
    """The problem with a try, as the end of a sentence, and after how many tries with it to give up."""

    text: str
    max_tries: int = 1000


class UnusableBody(Exception):
    """The body cannot be used; the message says why, as the end of a sentence."""


class BodyTooLong(UnusableBody):
    """The body has more bytes than allowed."""


class NotWritten(OSError):
    """The file for a body cannot be written, which is not the service's problem."""


def problem_of(error: Exception, service: str) -> Problem:
    """Returns the problem behind an exception; for an unknown one, only its class. service: as in `retry.send`."""
    setting = ADDRESSES.get(service, service)
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = CERTIFICATE.get(cause.verify_code, "is from an issuer that is not trusted here")
            hint = "if a proxy of yours issues certificates, REQUESTS_CA_BUNDLE must name its CA's file"
            return Problem(f"its certificate {reason}: is {setting} right? ({hint})", max_tries=1)
        if _is_ca_bundle(cause):
            return Problem("REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE does not name a readable file of certificates", max_tries=1)
    if _any(causes, requests.exceptions.ProxyError, urllib3.exceptions.ProxyError, requests.exceptions.InvalidProxyURL):
        return Problem("the proxy in HTTPS_PROXY or HTTP_PROXY does not let it through", PROXY_TRIES)
    if _any(causes, socket.gaierror, urllib3.exceptions.NameResolutionError):
        return Problem(f"no name server knows that host: is {setting} right?", NAME_SERVER_TRIES)
    if _any(causes, ConnectionRefusedError):
        return Problem(f"it refused the connection: is {setting} right, and is it running?", REFUSED_CONNECTION_TRIES)
    if isinstance(error, UnusableBody):
        return Problem(str(error))
    kind = type(error).__name__
    if isinstance(error, requests.RequestException) and not isinstance(error, NO_COMPLETE_ANSWER):
        return Problem(f"the request could not be made ({kind}): is {setting} right?", max_tries=1)
    if isinstance(error, urllib3.exceptions.HTTPError | http.client.HTTPException | OSError):
        return Problem(f"the connection failed ({kind})")
    return Problem(f"the request could not be made ({kind})", max_tries=1)


def _is_ca_bundle(cause: BaseException) -> bool:
    """True if the CA bundle is the cause: requests raises an OSError if it is missing, OpenSSL an SSLError if it is bad."""
    if isinstance(cause, ssl.SSLError):
        return cause.reason in ("NO_CERTIFICATE_OR_CRL_FOUND", "NO_START_LINE")
    return type(cause) is OSError and "CA certificate bundle" in str(cause)


def _any(causes: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(cause, kinds) for cause in causes)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and all those that led to it, by cause or context, each once."""
    todo, seen = [error], set[int]()
    while todo:
        cause = todo.pop()
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        todo += [earlier for earlier in (cause.__context__, cause.__cause__) if earlier is not None]
