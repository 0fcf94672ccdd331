"""What Customer.io's answers say: JSON or a web page, the workspace's host, the errors, and whether items are at fault."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import urlsplit

import requests

from cio_pipeline.masking import mask, printable

UNKNOWN, IN_DETAIL, WEB_PAGE = "no reason given", "no reason but in words", "a web page"
REASON_CHARACTERS = 200

A_FEW = 9
"""Up to this many refused items may be all that a run has of their kind, each with content that a firewall blocks."""

HOSTS = {"us": "track.customer.io", "eu": "track-eu.customer.io"}


def json_object(response: requests.Response) -> dict[str, Any] | None:
    """The object that an answer is, in UTF-8; None where it is none, or has a name twice, so that one may hide the other."""
    try:
        parsed = json.loads(response.content.decode("utf-8", "replace"), object_pairs_hook=_each_once)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def serving_host(account: dict[str, Any] | None) -> str | None:
    """The host that an answer of `accounts/region` names; older ones have `data_center` for `region`, and no `url`."""
    given = account or {}
    region = str(given.get("region") or given.get("data_center") or "").lower()
    if region not in HOSTS and host(given.get("url")) not in HOSTS.values():
        return None
    return host(given.get("url")) or HOSTS.get(region)


def host(url: Any) -> str | None:
    """The host of a URL; None where it is none."""
    try:
        return urlsplit(url).hostname if isinstance(url, str) else None
    except ValueError:
        return None


def errors_in(body: dict[str, Any] | None) -> list[Any]:
    """v2: {"errors": [...]}; v1: {"meta": {"error": "..."}} or {"meta": {"errors": ["..."]}} (OpenAPI, and what v1 answers)."""
    given = body or {}
    meta = given.get("meta")
    found = given.get("errors") or (isinstance(meta, dict) and (meta.get("errors") or meta.get("error"))) or []
    return found if isinstance(found, list) else [found]


def own_faults(status: int, parsed: dict[str, Any] | None, *, is_batch: bool) -> int:
    """The most items that this answer may refuse for good, where it refuses all of their kind; 0: the fault is the service's.

    413 is about an item's size, and a page with 403 is a firewall's, about what is in it; no other page is about an item. The
    v1 call has but one event, which words of the Track API are about, unless the status says otherwise (401: keys).
    """
    if status == 401:
        return 0
    if status == 413 or (status == 403 and parsed is None):
        return A_FEW if status == 413 or is_batch else 1
    errors = errors_in(parsed)
    return int(names_an_item(errors) or (not is_batch and bool(errors)))


def names_an_item(errors: list[Any]) -> bool:
    """Whether an error has a field, or the number of an item that is alone."""
    found = [error for error in errors if isinstance(error, dict)]
    return any(error.get("field") or (type(error.get("batch_index")) is int and error["batch_index"] == 0) for error in found)


def first_reason(errors: list[Any]) -> tuple[str, str]:
    """What the first error says: its reason and field, without the data its message may quote, and the whole of it."""
    error = errors[0] if errors else {}
    if not isinstance(error, dict):
        return IN_DETAIL, _text(error)
    reason = " ".join(str(error[part]) for part in ("reason", "field") if error.get(part))
    return mask(_text(reason))[:REASON_CHARACTERS] or UNKNOWN, _text(error.get("message") or "")


def page_text(response: requests.Response) -> tuple[str, str]:
    """What an answer says that is no JSON object: a firewall's or a proxy's."""
    start = response.content[:10_000].decode("utf-8", "replace")
    words = " ".join(re.sub(r"(?s)<(script|style)\b.{0,5000}?</\1>|<[^>]{0,500}>", " ", start).split())
    return (WEB_PAGE if "<" in start else UNKNOWN), _text(words)


def _text(value: Any) -> str:
    """A text that was cut within a character is not UTF-8, and could not be kept."""
    return printable(str(value).encode("utf-8", "replace").decode())
