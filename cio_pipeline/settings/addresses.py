"""The addresses in the settings: each function returns a setting's URL, or raises `ValueError` with what is wrong with it."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import unquote, urlsplit

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

TRACKING_HOSTS = {"us": "track.customer.io", "eu": "track-eu.customer.io"}
"""The hosts of Customer.io's Track API, by region."""

TRACKED = f"must be {' or '.join(TRACKING_HOSTS.values())}, or another address such as https://host:8443"
ASKED = "must be https://us.posthog.com, https://eu.posthog.com or your own PostHog's, such as https://posthog.example.com"
DATABASES = "must be an SQLAlchemy URL, sqlite:////folder/ledger.db or postgresql://user:password@host/database"
LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
PRIVATE_NAMES = ("localhost", "local", "internal", "home.arpa")


def tracking_address(text: Any) -> str:
    """Returns the address of the Track API: one of its hosts, or a URL."""
    if str(text).lower() in TRACKING_HOSTS.values():
        return f"https://{str(text).lower()}"
    address, host = _address(str(text), TRACKED)
    if host.endswith(".customer.io") and host not in TRACKING_HOSTS.values():
        raise ValueError(f"must be the Track API's: {' or '.join(TRACKING_HOSTS.values())}")
    return address


def posthog_address(text: Any) -> str:
    """Returns the address of a PostHog that can be queried."""
    address, host = _address(str(text), ASKED)
    if host.endswith(".i.posthog.com"):
        raise ValueError(
            "must be the address of PostHog's app, such as https://us.posthog.com: i.posthog.com only takes events"
        )
    return address


def is_plain(url: str) -> bool:
    """Returns whether a URL is `http` to a host that others may listen to: not on this machine or in a private network."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.lower().startswith("http:")
    return parts.scheme == "http" and not is_private(parts.hostname or "")


def is_private(host: str) -> bool:
    """Returns whether a host is this machine, or one of a private network."""
    try:
        address = ip_address(host)
    except ValueError:
        last = host.rstrip(".").lower()
        is_single = "." not in last and re.fullmatch(r"[a-z][a-z0-9-]*", last) is not None
        return is_single or any(last.endswith(f".{name}") for name in PRIVATE_NAMES)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_private


def _address(text: str, wanted: str) -> tuple[str, str]:
    """Returns `https://host:port` and the host, for a URL that is no more than that."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(wanted) from None
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not is_host(host) or port == 0 or parts.netloc.endswith(":"):
        raise ValueError(wanted)
    if "@" in parts.netloc:
        raise ValueError(f"must not contain a login: {wanted.removeprefix('must be ')}")
    if parts.path.strip("/") or "?" in text or "#" in text:
        raise ValueError(f"must end after its host, without a path: {wanted.removeprefix('must be ')}")
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}{'' if port is None else f':{port}'}", host


def is_host(host: str) -> bool:
    """Returns whether it is the name or address of a host."""
    try:
        ip_address(host)
    except ValueError:
        labels = host.split(".")
        is_name = len(host) <= 253 and all(map(LABEL.fullmatch, labels))
        return is_name and any(letter.isalpha() for letter in labels[-1]) and not labels[-1].startswith("0x")
    return "%" not in host


def database_url(text: Any) -> Any:
    """Returns the text of CIO_LEDGER_URL. Raises `ValueError` unless it is an SQLAlchemy URL of SQLite or PostgreSQL, with its
    user and password percent-encoded, as they would otherwise be misread."""
    if text is None:
        return None
    try:
        url = make_url(str(text))
    except (ArgumentError, ValueError):
        raise ValueError(DATABASES) from None
    kind, _, driver = url.drivername.partition("+")
    is_file = kind == "sqlite" and driver in ("", "pysqlite") and not url.host
    if not is_file and kind not in ("postgresql", "postgres"):
        raise ValueError(DATABASES)
    login, at, _ = str(text).partition("://")[2].rpartition("@")
    if at and unquote(login.partition(":")[2]) != (url.password or ""):
        raise ValueError("special characters in its user and password must be percent-encoded")
    return text
