"""Requests PostHog's on-demand exports, and waits for them. PostHog bills each of them, so earlier ones are used again."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from urllib.parse import quote

from upath import UPath

from cio_pipeline.errors import PipelineError
from cio_pipeline.http.retry import Unavailable
from cio_pipeline.posthog.client import PATIENCE_SECONDS, Api
from cio_pipeline.posthog.exports.answers import (
    IN_PROGRESS,
    NO_EXPORT,
    Export,
    NotFound,
    export_error_for,
    parse_export,
    parse_id,
    parse_interval,
)
from cio_pipeline.posthog.exports.downloads import TRIES, Downloads, pause_before
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


class FileExports:
    """The exports of a project. The path of each is stored by interval, as PostHog's list may not say the intervals."""

    def __init__(self, api: Api, project: str, folder: UPath | None) -> None:
        """project: tells it from other projects; folder: of the stored paths, None to store none."""
        self._api, self._project, self._folder = api, project, folder
        self.downloads = Downloads(api)

    def completed(self, first: datetime, last: datetime) -> Export:
        """Returns a completed export of the interval with the list of its files: an earlier one if its files still exist.

        An export that ends in any other status is requested once more. Raises `NotExtracted` and `http.retry.Unavailable`.
        """
        interval = f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
        if (earlier := self._earlier(first, last)) is not None:
            logger.info("PostHog has already exported %s: that export is read again.", interval)
            return earlier
        for _ in range(2):
            path = self._create(first, last)
            self._store(first, last, path)
            export = self._wait_for(path)
            logger.info("PostHog's export of %s: %s.", interval, export.status)
            if export.status == "Completed":
                return export
        raise NotExtracted(f"PostHog's export of {first:%Y-%m-%d %H:%M} UTC ended as {export.status} twice: {export.error}")

    def more_files(self, export: Export, known: set[str]) -> list[str]:
        """Waits until PostHog lists other files than the known ones, and returns them; none if it does not in 30 seconds."""
        began = time.monotonic()
        while time.monotonic() - began < EMPTY_LIST_SECONDS:
            time.sleep(POLL_SECONDS)
            if more := [file for file in self._get(export.path).files or [] if file not in known]:
                return more
        return []

    def _earlier(self, first: datetime, last: datetime) -> Export | None:
        """An earlier export of this interval that can be used again."""
        for path in dict.fromkeys((*self._stored_paths(first, last), *self._listed_paths(first, last))):
            if (export := self._reusable(path)) is not None:
                return export
        return None

    def _reusable(self, path: str) -> Export | None:
        """The export once it has completed. None if it has failed, or if one of its files is known to be gone."""
        try:
            export = self._get(path)
        except NotFound:
            return None
        export = self._wait_for(path) if export.status in IN_PROGRESS else self._with_files(export)
        is_gone = export.status != "Completed" or any(self.downloads.is_gone(export, file) for file in export.files or [])
        return None if is_gone else export

    def _create(self, first: datetime, last: datetime) -> str:
        """Creates an export and returns its path. If too many are running in the project (429), it waits."""
        interval = {"data_interval_start": first.isoformat(), "data_interval_end": last.isoformat()}
        error: PipelineError = NotExtracted(NO_EXPORT)
        for seconds in CREATION_PAUSES:
            if seconds:
                time.sleep(seconds)
            try:
                answer = self._api.ask(
                    "POST", PATH, tries=1, patience=PATIENCE, json={"model": "events", "file": FILE, **interval}
                )
            except (Unavailable, NotExtracted) as failure:
                error = failure
            else:
                if answer.status not in (200, 201, 202):
                    raise export_error_for(answer)
                if (export_id := parse_id(answer.response)) is not None:
                    return f"{PATH}/{quote(export_id, safe='')}"
            if path := next(self._listed_paths(first, last), None):
                return path
        raise error

    def _wait_for(self, path: str) -> Export:
        """The export with its files, once it has ended. If this run is cancelled, so is the export; after any other failure, a
        rerun continues with it."""
        try:
            return self._with_files(self._wait_for_end(path))
        except PipelineError:
            raise
        except BaseException:
            self._cancel(path)
            raise

    def _wait_for_end(self, path: str) -> Export:
        began = time.monotonic()
        export = self._get(path)
        while export.status in IN_PROGRESS:
            if time.monotonic() - began > LONGEST_WAIT_SECONDS:
                self._cancel(path)
                raise NotExtracted(f"PostHog's export was still in progress ({export.status}) after six hours.")
            time.sleep(POLL_SECONDS)
            export = self._get(path)
        return export

    def _with_files(self, export: Export) -> Export:
        """The export with the list of its files, which may come some time after it has completed."""
        began = time.monotonic()
        while export.status == "Completed" and not export.files and (export.files is None or export.records != 0):
            is_list_certain = export.files is None or bool(export.records)
            if time.monotonic() - began > (LIST_SECONDS if is_list_certain else EMPTY_LIST_SECONDS):
                if not is_list_certain:
                    break
                raise NotExtracted(
                    f"PostHog's export is completed, but the list of its files did not come in {LIST_SECONDS / 60:.0f} minutes:"
                    " run the day again later."
                )
            time.sleep(POLL_SECONDS)
            export = self._get(export.path)
        return export

    def _get(self, path: str) -> Export:
        for attempt in range(TRIES):
            pause_before(attempt)
            answer = self._api.ask("GET", path)
            if answer.status != 200:
                raise export_error_for(answer)
            if (export := parse_export(path, answer.body, self._api.clean)) is not None:
                return export
        raise NotExtracted(NO_EXPORT)

    def _cancel(self, path: str) -> None:
        with suppress(Unavailable, NotExtracted):
            self._api.ask("POST", f"{path}/cancel", tries=1, patience=0)

    def _listed_paths(self, first: datetime, last: datetime) -> Iterator[str]:
        """The paths of the exports of this interval in PostHog's list, as far as it says their intervals."""
        body = self._api.ask("GET", PATH, patience=LIST_SECONDS).body
        listed = body.get("results") if isinstance(body, dict) else None
        for item in listed if isinstance(listed, list) else []:
            if isinstance(item, dict) and item.get("model", "events") == "events" and parse_interval(item) == (first, last):
                yield f"{PATH}/{quote(str(item.get('id')), safe='')}"

    def _stored_paths(self, first: datetime, last: datetime) -> list[str]:
        if self._folder is None or not (file := self._file(self._folder, first, last)).exists():
            return []
        return [path] if (path := file.read_text()).startswith(f"{PATH}/") else []

    def _store(self, first: datetime, last: datetime, path: str) -> None:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file(self._folder, first, last).write_text(path)

    def _file(self, folder: UPath, first: datetime, last: datetime) -> UPath:
        project = hashlib.sha256(self._project.encode()).hexdigest()[:12]
        return folder / f"{first:%Y%m%dT%H%M%S}-{last:%Y%m%dT%H%M%S}-{project}.txt"
