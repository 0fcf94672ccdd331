"""Requests PostHog's on-demand exports (`file_download_batch_exports`), waits for them, and finds earlier ones again."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any
from urllib.parse import quote

import requests
from upath import UPath

from cio_pipeline.errors import PipelineError
from cio_pipeline.http.retry import Unavailable
from cio_pipeline.posthog.client import PATIENCE_SECONDS, Api
from cio_pipeline.posthog.exports.downloads import (
    NO_EXPORT,
    TRIES,
    Downloads,
    Export,
    NotFound,
    export_error_for,
    pause_before,
)
from cio_pipeline.posthog.source import NotExtracted

logger = logging.getLogger(__name__)

PATH = "file_download_batch_exports"
FILE = {"format": "Parquet", "compression": "zstd", "max_size_mb": 100}
POLL_SECONDS = 5.0
LONGEST_WAIT_SECONDS = 6 * 3600
LIST_SECONDS = 600.0
"""How long to wait for the list of a completed export's files: "a small delay", according to PostHog's code."""

EMPTY_LIST_SECONDS = 30.0
"""How long to wait if the list is empty and PostHog does not say how many events there are: there may be none."""

CREATION_PAUSES = (0.0, 15.0, 90.0)
"""Seconds before each try. An export may be created, and billed, even if the answer says otherwise or is lost."""

PATIENCE = PATIENCE_SECONDS / len(CREATION_PAUSES)

IN_PROGRESS = ("Starting", "Running")


class FileExports:
    """The exports of a project. Their ids are kept in the folder `stored` by interval, which PostHog's list may lack."""

    def __init__(self, api: Api, name: str, stored: UPath | None) -> None:
        self._api, self._name, self._stored = api, name, stored
        self.downloads = Downloads(api)

    def finished(self, first: datetime, last: datetime) -> Export:
        """Returns a completed export of the interval with the list of its files: an earlier one if its files still exist.

        An export that ends in any other status is requested once more. Raises `NotExtracted` and `http.retry.Unavailable`.
        """
        between = f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
        if (earlier := self._earlier(first, last)) is not None:
            logger.info("PostHog's export of %s exists from before, and is read again.", between)
            return earlier
        for _ in range(2):
            path = self._create(first, last)
            self._store(first, last, path)
            export = self._awaited(path)
            logger.info("PostHog's export of %s: %s.", between, export.status)
            if export.status == "Completed":
                return export
        raise NotExtracted(f"PostHog's export of {first:%Y-%m-%d %H:%M} UTC ended as {export.status} twice: {export.error}")

    def more_files(self, export: Export, known: set[str]) -> list[str]:
        """Returns the files that PostHog lists in addition to the known ones, after waiting for a while; perhaps none."""
        began = time.monotonic()
        while time.monotonic() - began < EMPTY_LIST_SECONDS:
            time.sleep(POLL_SECONDS)
            if more := [file for file in self._look(export.path).files or [] if file not in known]:
                return more
        return []

    def _earlier(self, first: datetime, last: datetime) -> Export | None:
        """An earlier export of this interval, completed by now, unless its files are known to be gone."""
        for path in dict.fromkeys((*self._stored_paths(first, last), *self._listed(first, last))):
            if (export := self._usable(path)) is not None:
                return export
        return None

    def _usable(self, path: str) -> Export | None:
        try:
            export = self._look(path)
        except NotFound:
            return None
        export = self._awaited(path) if export.status in IN_PROGRESS else self._with_files(export)
        is_gone = export.status != "Completed" or any(self.downloads.is_gone(export, file) for file in export.files or [])
        return None if is_gone else export

    def _create(self, first: datetime, last: datetime) -> str:
        """Creates an export and returns its path. If too many are running in the project (429), it waits."""
        interval = {"data_interval_start": first.isoformat(), "data_interval_end": last.isoformat()}
        why: PipelineError = NotExtracted(NO_EXPORT)
        for seconds in CREATION_PAUSES:
            if seconds:
                time.sleep(seconds)
            try:
                answer = self._api.ask(
                    "POST", PATH, tries=1, patience=PATIENCE, json={"model": "events", "file": FILE, **interval}
                )
            except (Unavailable, NotExtracted) as broken:
                why = broken
            else:
                if answer.status not in (200, 201, 202):
                    raise export_error_for(answer)
                if (name := _id(answer.response)) is not None:
                    return f"{PATH}/{quote(name, safe='')}"
            if listed := next(self._listed(first, last), None):
                return listed
        raise why

    def _awaited(self, path: str) -> Export:
        """Returns the export once it has ended, with its files. If this run is cancelled, so is the export; after any other
        failure, a rerun continues with it."""
        try:
            return self._with_files(self._ended(path))
        except PipelineError:
            raise
        except BaseException:
            self._cancel(path)
            raise

    def _cancel(self, path: str) -> None:
        with suppress(Unavailable, NotExtracted):
            self._api.ask("POST", f"{path}/cancel", tries=1, patience=0)

    def _ended(self, path: str) -> Export:
        began = time.monotonic()
        export = self._look(path)
        while export.status in IN_PROGRESS:
            if time.monotonic() - began > LONGEST_WAIT_SECONDS:
                self._cancel(path)
                raise NotExtracted(f"PostHog's export was still in progress ({export.status}) after six hours.")
            time.sleep(POLL_SECONDS)
            export = self._look(path)
        return export

    def _with_files(self, export: Export) -> Export:
        """The export with the list of its files, which may come some time after it is completed."""
        began = time.monotonic()
        while export.status == "Completed" and not export.files and (export.files is None or export.records != 0):
            is_sure = export.files is None or bool(export.records)
            if time.monotonic() - began > (LIST_SECONDS if is_sure else EMPTY_LIST_SECONDS):
                if not is_sure:
                    break
                raise NotExtracted(
                    f"PostHog's export is completed, but the list of its files did not come in {LIST_SECONDS / 60:.0f} minutes:"
                    " run the day again later."
                )
            time.sleep(POLL_SECONDS)
            export = self._look(export.path)
        return export

    def _look(self, path: str) -> Export:
        for attempt in range(TRIES):
            pause_before(attempt)
            answer = self._api.ask("GET", path)
            if answer.status != 200:
                raise export_error_for(answer)
            if (export := _export(path, answer.body, self._api.clean)) is not None:
                return export
        raise NotExtracted(NO_EXPORT)

    def _listed(self, first: datetime, last: datetime) -> Iterator[str]:
        """The paths of the exports of this interval in PostHog's list, as far as it tells their intervals."""
        body = self._api.ask("GET", PATH, patience=LIST_SECONDS).body
        listed = body.get("results") if isinstance(body, dict) else None
        for item in listed if isinstance(listed, list) else []:
            if isinstance(item, dict) and item.get("model", "events") == "events" and _interval(item) == (first, last):
                yield f"{PATH}/{quote(str(item.get('id')), safe='')}"

    def _store(self, first: datetime, last: datetime, path: str) -> None:
        if self._stored is not None:
            self._stored.mkdir(parents=True, exist_ok=True)
            self._stored_file(self._stored, first, last).write_text(path)

    def _stored_paths(self, first: datetime, last: datetime) -> list[str]:
        if self._stored is None or not (file := self._stored_file(self._stored, first, last)).exists():
            return []
        return [path] if (path := file.read_text()).startswith(f"{PATH}/") else []

    def _stored_file(self, stored: UPath, first: datetime, last: datetime) -> UPath:
        project = hashlib.sha256(self._name.encode()).hexdigest()[:12]
        return stored / f"{first:%Y%m%dT%H%M%S}-{last:%Y%m%dT%H%M%S}-{project}.txt"


def _export(path: str, body: Any, clean: Callable[[Any], str]) -> Export | None:
    """The export in an answer of PostHog, or None if there is none."""
    if not isinstance(body, dict) or not isinstance(body.get("status"), str):
        return None
    files = body.get("files")
    known = list(dict.fromkeys(map(str, files))) if isinstance(files, list) else None
    error = clean(body.get("error") or "no reason given.")[:300]
    return Export(path, clean(body["status"]), known, _count(body.get("records_completed")), error)


def _count(value: Any) -> int | None:
    """A number of records, which may also be text or a float, or None if it is not a number."""
    try:
        return None if isinstance(value, bool) else int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _id(response: requests.Response) -> str | None:
    """The id of the created export, or None if the answer has none."""
    try:
        name = response.json()["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return str(name) if name and isinstance(name, str | int) and name is not True else None


def _interval(item: dict[str, Any]) -> tuple[datetime, datetime] | None:
    try:
        start, end = (str(item[f"data_interval_{name}"]).replace("Z", "+00:00") for name in ("start", "end"))
        return datetime.fromisoformat(start), datetime.fromisoformat(end)
    except (KeyError, ValueError):
        return None
