"""The targets of alerts: each function returns a setting's value, or raises `ValueError` with what is wrong with it."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import SplitResult, urlsplit

from cio_pipeline.settings import addresses
from cio_pipeline.settings.values import parse_names

EMAIL = re.compile(r"[^\s@<>,;\"]+@[^\s@<>,;\"]+")
SMTP = "must be smtp://user:password@host:587, or smtps:// for a server that begins with TLS; user and password percent-encoded"


def url(text: Any) -> Any:
    """Returns a URL to call: a host, and whatever the service puts after it."""
    if not isinstance(text, str) or not text:
        return text
    if _parts(text, "http", "https") is None or re.search(r"[\s<>|]", text):
        raise ValueError("must be a URL, https://host/path, as the service shows it")
    return text


def emails(text: Any) -> Any:
    """Returns email addresses, separated by commas."""
    addresses = parse_names(text)
    if isinstance(addresses, tuple) and not all(EMAIL.fullmatch(one) for one in addresses):
        raise ValueError("must be email addresses, separated by commas, without names")
    return addresses


def smtp_url(text: Any) -> Any:
    """Returns the URL of a mail server, with its login."""
    if not isinstance(text, str):
        return text
    parts = _parts(text, "smtp", "smtps")
    if parts is None or parts.path.strip("/") or parts.query or parts.fragment or bool(parts.username) != bool(parts.password):
        raise ValueError(SMTP)
    return text


def _parts(text: str, *schemes: str) -> SplitResult | None:
    """Returns the parts of a URL with one of these schemes, or None if it is not one, or its host or port is impossible."""
    try:
        parts = urlsplit(text)
        return parts if parts.scheme in schemes and addresses.is_host(parts.hostname or "") and parts.port != 0 else None
    except ValueError:
        return None
