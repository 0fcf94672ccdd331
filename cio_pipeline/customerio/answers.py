"""Reads Customer.io's answers: JSON or a web page, the workspace's host, the errors, and whether items are at fault."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import urlsplit

import requests

from cio_pipeline.masking import mask, printable
from cio_pipeline.settings.addresses import TRACKING_HOSTS

UNKNOWN, IN_DETAIL, WEB_PAGE = "no reason given", "reason only in the message", "a web page"
REASON_CHARACTERS = 200

MAX_BLOCKED = 9
"""Up to this many refused items may be all that a run has of their kind, each with content that a firewall blocks."""


def json_object(response: requests.Response) -> dict[str, Any] | None:
    """Returns the answer as a JSON object in UTF-8; None if it is not one, or has a name twice, so that one value may hide
    another."""
    try:
        parsed = json.loads(response.content.decode("utf-8", "replace"), object_pairs_hook=_each_once)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a name is there twice")
    return members


def serving_host(account: dict[str, Any] | None) -> str | None:
    """Returns the host in an answer of `accounts/region`. Older answers have `data_center` instead of `region`, and no
    `url`."""
    members = account or {}
    region = str(members.get("region") or members.get("data_center") or "").lower()
    if region not in TRACKING_HOSTS and host(members.get("url")) not in TRACKING_HOSTS.values():
        return None
    return host(members.get("url")) or TRACKING_HOSTS.get(region)


def host(url: Any) -> str | None:
    """Returns the host of a URL; None if it has none."""
    try:
        return urlsplit(url).hostname if isinstance(url, str) else None
    except ValueError:
        return None


def errors_in(body: dict[str, Any] | None) -> list[Any]:
    """v2: {"errors": [...]}; v1: {"meta": {"error": "..."}} or {"meta": {"errors": ["..."]}} (OpenAPI, and what v1 answers)."""
    members = body or {}
    meta = members.get("meta")
    errors = members.get("errors") or (isinstance(meta, dict) and (meta.get("errors") or meta.get("error"))) or []
    return errors if isinstance(errors, list) else [errors]


def max_items_at_fault(status: int, parsed: dict[str, Any] | None, *, is_batch: bool) -> int:
    """Returns how many items may themselves be at fault if every item of a kind is refused with this answer. If more are
    refused, the service is at fault.

    - 401, the keys: none;
    - 413, the size: a few;
    - 403 with a page instead of JSON, which a firewall sends because of the content: a few in batches, one by the v1 call;
    - an error that names a field or a single item, or any error of the v1 call, which has a single event: one;
    - anything else: none.
    """
    if status == 401:
        return 0
    if status == 413 or (status == 403 and parsed is None):
        return MAX_BLOCKED if status == 413 or is_batch else 1
    errors = errors_in(parsed)
    return int(names_an_item(errors) or (not is_batch and bool(errors)))


def names_an_item(errors: list[Any]) -> bool:
    """Returns whether an error names a field, or item 0, which in a request of a single item is that item."""
    objects = [error for error in errors if isinstance(error, dict)]
    return any(error.get("field") or (type(error.get("batch_index")) is int and error["batch_index"] == 0) for error in objects)


def first_reason(errors: list[Any]) -> tuple[str, str]:
    """Returns the first error: its reason and field, which quote no data, and its whole message, which may."""
    error = errors[0] if errors else {}
    if not isinstance(error, dict):
        return IN_DETAIL, _text(error)
    reason = " ".join(str(error[part]) for part in ("reason", "field") if error.get(part))
    return mask(_text(reason))[:REASON_CHARACTERS] or UNKNOWN, _text(error.get("message") or "")


def page_text(response: requests.Response) -> tuple[str, str]:
    """Reason and detail of an answer that is not a JSON object: a firewall's or a proxy's."""
    start = response.content[:10_000].decode("utf-8", "replace")
    words = " ".join(re.sub(r"(?s)<(script|style)\b.{0,5000}?</\1>|<[^>]{0,500}>", " ", start).split())
    return (WEB_PAGE if "<" in start else UNKNOWN), _text(words)


def _text(value: Any) -> str:
    """Printable text. What was cut within a character is not UTF-8, and could not be stored."""
    return printable(str(value).encode("utf-8", "replace").decode())
