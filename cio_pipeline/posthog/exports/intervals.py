"""PostHog's on-demand exports (`file_download_batch_exports`): asked for, waited for and found again."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any
from urllib.parse import quote

from upath import UPath

from cio_pipeline.http_retry import Unavailable
from cio_pipeline.posthog.client import Api
from cio_pipeline.posthog.exports.downloads import NO_EXPORT, TRIES, Downloads, Export, pause_before, refused_export
from cio_pipeline.posthog.source import NotExtracted

logger = logging.getLogger(__name__)

PATH = "file_download_batch_exports"
FILE = {"format": "Parquet", "compression": "zstd", "max_size_mb": 100}
POLL_SECONDS = 5.0
LONGEST_WAIT_SECONDS = 6 * 3600
LIST_SECONDS = 600.0
"""So long the list of a completed export's files is waited for; "a small delay", PostHog's code says."""

EMPTY_LIST_SECONDS = 30.0
"""So long where the list is empty, and PostHog does not say how many events there are: an export may well have none."""

UNDER_WAY = ("Starting", "Running")


class FileExports:
    """A project's exports. Which ones were asked for is kept in the folder `kept`, for PostHog's list does not tell of what."""

    def __init__(self, api: Api, name: str, kept: UPath | None) -> None:
        self._api, self._name, self._kept = api, name, kept
        self.downloads = Downloads(api)

    def finished(self, first: datetime, last: datetime) -> Export:
        """A completed export of the interval and the list of its files: an earlier one, where its files are still there.

        One that ended otherwise is asked for once more. Raises `NotExtracted`, and `http.Unavailable`.
        """
        between = f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
        if (earlier := self._earlier(first, last)) is not None:
            logger.info("PostHog's export of %s was made before, and is read again.", between)
            return earlier
        for _ in range(2):
            path = self._create(first, last)
            self._keep(first, last, path)
            export = self._awaited(path)
            logger.info("PostHog's export of %s: %s.", between, export.status)
            if export.status == "Completed":
                return export
        raise NotExtracted(f"PostHog's export of {first:%Y-%m-%d %H:%M} UTC ended as {export.status} twice: {export.error}")

    def more_files(self, export: Export, known: set[str]) -> list[str]:
        """The files that PostHog lists by now, beyond the known ones: waited for a while, perhaps none."""
        began = time.monotonic()
        while time.monotonic() - began < EMPTY_LIST_SECONDS:
            time.sleep(POLL_SECONDS)
            if more := [file for file in self._look(export.path).files or [] if file not in known]:
                return more
        return []

    def _earlier(self, first: datetime, last: datetime) -> Export | None:
        """An export of this interval that is completed or under way, with files that can be had."""
        for path in dict.fromkeys((*self._kept_paths(first, last), *self._listed(first, last))):
            if (export := self._usable(path)) is not None:
                return export
        return None

    def _usable(self, path: str) -> Export | None:
        try:
            export = self._look(path)
            export = self._awaited(path) if export.status in UNDER_WAY else self._with_files(export)
        except NotExtracted:
            return None
        is_there = export.status == "Completed" and all(self.downloads.is_there(export, file) for file in export.files or [])
        return export if is_there else None

    def _create(self, first: datetime, last: datetime) -> str:
        """The path of a new export. Where too many are under way in the project (429), it is waited for."""
        interval = {"data_interval_start": first.isoformat(), "data_interval_end": last.isoformat()}
        for attempt in range(2):  # each one that was made is billed, and few may be under way at once
            pause_before(attempt)
            answer = self._api.ask("POST", PATH, json={"model": "events", "file": FILE, **interval})
            if answer.status not in (200, 201, 202):
                raise refused_export(answer)
            with suppress(ValueError, KeyError, TypeError):
                return f"{PATH}/{quote(str(answer.response.json()['id']), safe='')}"
            if listed := next(self._listed(first, last), None):
                return listed
        raise NotExtracted(NO_EXPORT)

    def _awaited(self, path: str) -> Export:
        """The export when it has ended, with its files. It is cancelled where we do not see its end."""
        try:
            return self._with_files(self._ended(path))
        except BaseException:
            with suppress(Unavailable, NotExtracted):
                self._api.ask("POST", f"{path}/cancel", tries=1)
            raise

    def _ended(self, path: str) -> Export:
        began = time.monotonic()
        export = self._look(path)
        while export.status in UNDER_WAY:
            if time.monotonic() - began > LONGEST_WAIT_SECONDS:
                raise NotExtracted(f"PostHog's export was still under way ({export.status}) after six hours.")
            time.sleep(POLL_SECONDS)
            export = self._look(path)
        return export

    def _with_files(self, export: Export) -> Export:
        """The export with the list of its files, which may come some time after it is completed."""
        began = time.monotonic()
        while export.status == "Completed" and not export.files and export.records != 0:
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
                raise refused_export(answer)
            if (export := _export(path, answer.body, self._api.clean)) is not None:
                return export
        raise NotExtracted(NO_EXPORT)

    def _listed(self, first: datetime, last: datetime) -> Iterator[str]:
        """The exports of this interval in PostHog's list, as far as that tells of what they are."""
        try:
            answer = self._api.ask("GET", PATH, tries=1)
            found = answer.body["results"] if answer.status == 200 else []
        except (Unavailable, NotExtracted, KeyError, TypeError):
            return
        for one in found if isinstance(found, list) else []:
            if isinstance(one, dict) and one.get("model", "events") == "events" and _interval(one) == (first, last):
                yield f"{PATH}/{quote(str(one.get('id')), safe='')}"

    def _keep(self, first: datetime, last: datetime, path: str) -> None:
        if self._kept is not None:
            self._kept.mkdir(parents=True, exist_ok=True)
            self._kept_file(self._kept, first, last).write_text(path)

    def _kept_paths(self, first: datetime, last: datetime) -> list[str]:
        if self._kept is None or not (file := self._kept_file(self._kept, first, last)).exists():
            return []
        return [path] if (path := file.read_text()).startswith(f"{PATH}/") else []

    def _kept_file(self, kept: UPath, first: datetime, last: datetime) -> UPath:
        project = hashlib.sha256(self._name.encode()).hexdigest()[:12]
        return kept / f"{first:%Y%m%dT%H%M%S}-{last:%Y%m%dT%H%M%S}-{project}.txt"


def _export(path: str, body: Any, clean: Callable[[Any], str]) -> Export | None:
    """The export that PostHog tells of; None where its answer is none."""
    if not isinstance(body, dict) or not isinstance(body.get("status"), str):
        return None
    files, records = body.get("files"), body.get("records_completed")
    known = [str(file) for file in files] if isinstance(files, list) else None
    error = clean(body.get("error") or "no reason given.")[:300]
    return Export(path, clean(body["status"]), known, records if isinstance(records, int) else None, error)


def _interval(one: dict[str, Any]) -> tuple[datetime, datetime] | None:
    try:
        start, end = (str(one[f"data_interval_{name}"]).replace("Z", "+00:00") for name in ("start", "end"))
        return datetime.fromisoformat(start), datetime.fromisoformat(end)
    except (KeyError, ValueError):
        return None
