"""What PostHog answers about its on-demand exports (`file_download_batch_exports`)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

import requests

from cio_pipeline.posthog.client import Answer, error_for
from cio_pipeline.posthog.source import NotExtracted

NO_EXPORT = "PostHog's answer is not an export: is POSTHOG_HOST the address of PostHog itself?"
IN_PROGRESS = ("Starting", "Running")


class Export(NamedTuple):
    """A requested export as PostHog last described it.

    path: of its API; files, records: None if PostHog did not say which, or how many; error: why it failed, if it did.
    """

    path: str
    status: str
    files: list[str] | None
    records: int | None
    error: str


class NotFound(NotExtracted):
    """PostHog has no such export or file."""


def export_error_for(answer: Answer) -> NotExtracted:
    """Returns the error for an unexpected answer: it names the setting to correct."""
    if answer.status == 403:
        needed = "the scope Batch Export Write, or access to POSTHOG_PROJECT_ID"
        return NotExtracted(f"POSTHOG_PERSONAL_API_KEY lacks {needed} (403).")
    if answer.status == 404:
        return NotFound("POSTHOG_PROJECT_ID is not found at POSTHOG_HOST, or this PostHog has no file downloads (404).")
    return NotExtracted(NO_EXPORT) if answer.status < 400 else error_for(answer)


def parse_export(path: str, body: Any, clean: Callable[[Any], str]) -> Export | None:
    """Returns the export that the answer describes, or None if it describes none. clean: removes keys from a text."""
    if not isinstance(body, dict) or not isinstance(body.get("status"), str):
        return None
    files = body.get("files")
    unique = list(dict.fromkeys(map(str, files))) if isinstance(files, list) else None
    error = clean(body.get("error") or "no reason given.")[:300]
    return Export(path, clean(body["status"]), unique, _count(body.get("records_completed")), error)


def parse_id(response: requests.Response) -> str | None:
    """Returns the id of the created export, or None if the answer has none."""
    try:
        value = response.json()["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return str(value) if value and isinstance(value, str | int) and value is not True else None


def parse_interval(item: dict[str, Any]) -> tuple[datetime, datetime] | None:
    """Returns the start and end of a listed export, or None if PostHog does not tell them."""
    try:
        start, end = (str(item[f"data_interval_{name}"]) for name in ("start", "end"))
        return datetime.fromisoformat(start), datetime.fromisoformat(end)
    except (KeyError, ValueError):
        return None


def _count(value: Any) -> int | None:
    """A number of records, which may also be text or a float, or None if it is not a number."""
    try:
        return None if isinstance(value, bool) else int(value)
    except (TypeError, ValueError, OverflowError):
        return None
